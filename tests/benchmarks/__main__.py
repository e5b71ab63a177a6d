"""Measures what the README claims, each number beside the one it is compared with, in one run.

    python -m tests.benchmarks [--only PART]... [--minutes M] [--seconds S] [--out FILE] [--publish]

Every part can be measured alone; what was measured before stays in FILE, so a run may be done in pieces. `--publish`
takes all that FILE holds into the README: the numbers, the tables, the charts.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import time
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import backfill, cost, encode, latency, lifecycle, line, peers, receive, report, stages, steady

if TYPE_CHECKING:
    from collections.abc import Callable

MILLION = 1_000_000
BOOKS = 500
ROUNDS = 5


def describe_machine() -> dict[str, str]:
    """Say what is measured on."""
    models = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def measure_line() -> dict[str, Any]:
    """Measure part (c), the ordinary implementation on fewer messages because it is slow.

    The ways take turns, and of each the run with the median cost is shown: a machine has good and bad minutes.
    """
    ways = {
        "ordinary implementation": partial(line.measure, line.Setup("ordinary"), 30_000),
        "ours, plain": partial(line.measure, line.Setup("plain"), 150_000),
        "ours, aggregated": partial(line.measure, line.Setup(), 500_000),
        "ours, aggregated, market mix": partial(line.measure, line.Setup(kinds=line.MIX), 200_000),
    }
    rounds = [{way: measure() for way, measure in ways.items()} for _ in range(ROUNDS)]
    return {way: sorted((each[way] for each in rounds), key=itemgetter("cpu_us"))[ROUNDS // 2] for way in ways}


def parts(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return every part by name, in the order in which they are measured."""
    seconds: float | None = options.seconds
    return {
        "receive": lambda: receive.measure(seconds=3.0),
        "encode": encode.measure,
        "line": measure_line,
        "stages": stages.measure,
        "peers": lambda: peers.measure(seconds=3.0, messages=500_000),
        "latency": lambda: latency.measure(seconds or 60.0),
        "memory": lambda: {"ours, aggregated": line.measure(line.Setup(), MILLION)},
        "steady": lambda: steady.measure(options.minutes * 60),
        "depth": lambda: steady.measure_books(BOOKS, seconds or 60.0),
        "cost": lambda: cost.measure(seconds or 20.0),
        "lifecycle": lambda: lifecycle.measure(rounds=5, seconds=3.0),
        "backfill": backfill.measure,
    }


def show(table: report.Table) -> Table:
    """Lay a table out for the terminal."""
    shown = Table(*table.columns)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=report.PARTS, action="append", help="this part; may be given again")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long each run of `steady` takes")
    parser.add_argument(
        "--seconds", type=float, help="how long each run of `latency` (60), `cost` (20), `depth` (60) takes"
    )
    parser.add_argument("--out", type=Path, default=Path(".nox/bench.json"), help="where the JSON goes")
    parser.add_argument(
        "--publish", action="store_true", help="take what FILE holds into the README, measuring nothing"
    )
    options = parser.parse_args()
    measured: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.publish:
        report.publish(measured)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    console = Console()
    measures = parts(options)
    for name in options.only or measures:
        machine, began_s = describe_machine(), time.monotonic()
        results = measures[name]()
        measured[name] = {"machine": machine, "results": results}
        console.print(show(report.PARTS[name].table(results)))
        took_s = time.monotonic() - began_s
        console.print(f"{name}: {took_s:.0f} s; {report.describe(machine)}; load {machine['load']} before\n")
        options.out.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
