"""Measures what the README claims, each number beside the one it is compared with, in one run; under four minutes.

Writes the numbers as JSON and prints them as tables. `python -m tests.benchmarks [--only PART] [--out FILE]`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import backfill, encode, line, receive

if TYPE_CHECKING:
    from collections.abc import Callable

MILLION = 1_000_000


def describe_machine() -> dict[str, str]:
    """Say what was measured on."""
    models = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def measure_receive() -> dict[str, Any]:
    """Measure part (a)."""
    return receive.measure(seconds=3.0)


def measure_encode() -> dict[str, Any]:
    """Measure part (b)."""
    return encode.measure()


def measure_line() -> dict[str, Any]:
    """Measure part (c), the ordinary implementation on fewer messages because it is slow."""
    return {
        "ordinary implementation": line.measure("ordinary", 20_000),
        "ours, plain": line.measure("plain", 150_000),
        "ours, aggregated": line.measure("aggregated", 500_000),
        "ours, aggregated, market mix": line.measure("aggregated", 200_000, kinds=("trade", "depth", "kline")),
    }


def measure_memory() -> dict[str, Any]:
    """Measure part (c), memory: a million messages through one process."""
    return {"ours, aggregated": line.measure("aggregated", MILLION)}


def measure_backfill() -> dict[str, Any]:
    """Measure part (d)."""
    return backfill.measure()


def show_receive(results: dict[str, Any]) -> Table:
    """Lay out part (a)."""
    ours = results[next(iter(receive.WAYS))]["cpu_us"]
    table = Table("receive, 150-byte trades", "CPU µs / message", "messages / s", "CPU against ours")
    for way, measured in results.items():
        table.add_row(
            way, f"{measured['cpu_us']:.2f}", f"{measured['per_s']:,.0f}", f"{measured['cpu_us'] / ours:.1f} x"
        )
    return table


def show_encode(results: dict[str, Any]) -> Table:
    """Lay out part (b)."""
    ways = list(next(iter(results.values())))
    table = Table("encode, CPU µs / record", *ways)
    for kind, measured in results.items():
        ours = measured[ways[0]]
        table.add_row(kind, *(f"{measured[way]:.2f} ({measured[way] / ours:.1f} x)" for way in ways))
    return table


def show_line(results: dict[str, Any]) -> Table:
    """Lay out part (c)."""
    table = Table(
        "WebSocket to accepted put", "CPU µs / message", "messages / s", "ordinary / it", "PUT units / million", "MB"
    )
    usual = results.get("ordinary implementation", {}).get("cpu_us")
    for way, measured in results.items():
        ratio = f"{usual / measured['cpu_us']:.1f} x" if usual and "mix" not in way else ""
        table.add_row(
            way,
            f"{measured['cpu_us']:.1f}",
            f"{measured['per_s']:,.0f}",
            ratio,
            f"{measured['payload_units_per_million']:,.0f}",
            f"{measured['rss_mb_end']:.0f}",
        )
    return table


def show_memory(results: dict[str, Any]) -> Table:
    """Lay out the memory of part (c)."""
    table = Table("a million messages", "MB idle", "MB after a quarter", "MB at the end", "messages / s")
    for way, measured in results.items():
        sizes = (f"{measured[name]:.0f}" for name in ("rss_mb_idle", "rss_mb_settled", "rss_mb_end"))
        table.add_row(way, *sizes, f"{measured['per_s']:,.0f}")
    return table


def show_backfill(results: dict[str, Any]) -> Table:
    """Lay out part (d)."""
    ours = results[backfill.OURS]
    table = Table(
        "archive trades, zip to encoded", "CPU µs / row", "rows / s", "CPU against ours", "MB, quarter and end"
    )
    for way, measured in results.items():
        memory = f"{measured['rss_mb_quarter']:.0f}, {measured['rss_mb_end']:.0f}" if way == backfill.OURS else ""
        ratio = measured["cpu_us"] / ours["cpu_us"]
        table.add_row(way, f"{measured['cpu_us']:.2f}", f"{measured['per_s']:,.0f}", f"{ratio:.1f} x", memory)
    return table


PARTS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], Table]]] = {
    "receive": (measure_receive, show_receive),
    "encode": (measure_encode, show_encode),
    "line": (measure_line, show_line),
    "memory": (measure_memory, show_memory),
    "backfill": (measure_backfill, show_backfill),
}


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given again")
    parser.add_argument("--out", type=Path, default=Path(".nox/bench.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    results: dict[str, Any] = {"machine": machine}
    for name in arguments.only or PARTS:
        measure, show = PARTS[name]
        results[name] = measure()
        console.print(show(results[name]))
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
