"""What was measured, for people: tables for the terminal and the README, charts beside them.

`.github/bench.json` holds the numbers that the README shows; its section about speed and its charts are made from them
and from nothing else, and tests hold them together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.benchmarks.charts import Bar, Curve, Group, bar_chart, curve_chart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

REPOSITORY: Final = Path(__file__).parents[2]
PICTURES: Final = REPOSITORY / ".github"
PUBLISHED: Final = PICTURES / "bench.json"
README: Final = REPOSITORY / "README.md"
BEGIN: Final = "<!-- speed: written by python -m tests.benchmarks --publish -->\n"
END: Final = "<!-- end -->"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
USUAL: Final = "ordinary implementation"


class Table(NamedTuple):
    """Rows of text under columns; the first column names the row."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def as_markdown(self) -> str:
        """Spell it for the README."""
        rule = "|".join(["---", *["--:"] * (len(self.columns) - 1)])
        return "\n".join([_row(self.columns), f"|{rule}|", *(_row(row) for row in self.rows)])


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def receive_table(results: Mapping[str, Any]) -> Table:
    """Lay out part (a)."""
    ours = next(iter(results.values()))["cpu_us"]
    return Table(
        ("receive, 150-byte trades", "CPU µs / message", "messages / s", "CPU against ours"),
        [
            (way, f"{each['cpu_us']:.2f}", f"{each['per_s']:,.0f}", f"{each['cpu_us'] / ours:.1f} {TIMES}")
            for way, each in results.items()
        ],
    )


def encode_table(results: Mapping[str, Any]) -> Table:
    """Lay out part (b)."""
    ways = list(next(iter(results.values())))
    return Table(
        ("encode, CPU µs / record", *ways),
        [
            (kind, *(f"{each[way]:.2f} ({each[way] / each[ways[0]]:.1f} {TIMES})" for way in ways))
            for kind, each in results.items()
        ],
    )


def line_table(results: Mapping[str, Any]) -> Table:
    """Lay out part (c)."""
    usual = results[USUAL]["cpu_us"]
    columns = ("WebSocket to accepted put", "CPU µs / message", "messages / s", "ordinary / it", "PUT units / million")
    return Table(
        columns,
        [
            (
                way,
                f"{each['cpu_us']:.1f}",
                f"{each['per_s']:,.0f}",
                "" if "mix" in way else f"{usual / each['cpu_us']:.1f} {TIMES}",
                f"{each['payload_units_per_million']:,.0f}",
            )
            for way, each in results.items()
        ],
    )


def line_chart(results: Mapping[str, Any]) -> str:
    """Draw part (c)."""
    bars = [Bar(way, each["cpu_us"], f"{each['cpu_us']:.1f} µs", is_ours=way != USUAL) for way, each in results.items()]
    return bar_chart("CPU per message, WebSocket to accepted put", "the whole process, shorter is better", [_all(bars)])


def peers_table(results: Mapping[str, Any]) -> Table:
    """Lay out the peers of part (c)."""
    ours = next(iter(results.values()))["per_s"]
    rows = []
    for name, each in results.items():
        label = f"{name} {each['version']}" if "version" in each else name
        if "skipped" in each:
            rows.append((name, f"skipped: {each['skipped']}", "", ""))
        else:
            rows.append(
                (label, f"{each['per_s']:,.0f}", f"{each['cpu_us']:.1f}", f"{ours / each['per_s']:.2f} {TIMES}")
            )
    return Table(("trades of ten or twenty symbols", "messages / s", "CPU µs / message", "ours / it"), rows)


def peers_chart(results: Mapping[str, Any]) -> str:
    """Draw the peers of part (c)."""
    ours = next(iter(results))
    bars = [
        Bar(name, each["per_s"], f"{each['per_s']:,.0f}", is_ours=name == ours)
        for name, each in results.items()
        if "per_s" in each
    ]
    note = "ingestor delivers every record to Kinesis; all others only count what they receive; longer is better"
    return bar_chart("Messages a second on the same machine", note, [_all(bars)])


def latency_table(results: Mapping[str, Any]) -> Table:
    """Lay out part (d)."""
    names = ("p50", "p99", "p99.9")
    columns = ("`flush: adaptive`, ms, at most", "to the put: p50, p99, p99.9", "to its acknowledgement", "loop stall")
    return Table(
        columns,
        [
            (
                rate,
                *(
                    ", ".join(f"{each[f'{what} {name}']:g}" for name in names)
                    for what in ("put", "acknowledged", "stall")
                ),
            )
            for rate, each in results.items()
        ],
    )


def latency_chart(results: Mapping[str, Any]) -> str:
    """Draw part (d)."""
    groups = [
        Group(
            rate,
            [
                Bar(
                    f"{label} {name}", each[f"{what} {name}"], f"≤ {each[f'{what} {name}']:g} ms", is_ours=what == "put"
                )
                for what, label in (("put", "received to put"), ("stall", "loop stall"))
                for name in ("p50", "p99", "p99.9")
            ],
        )
        for rate, each in results.items()
    ]
    return bar_chart(
        "What the service adds to a message", "flush: adaptive; milliseconds, log scale", groups, is_log=True
    )


def memory_table(results: Mapping[str, Any]) -> Table:
    """Lay out the memory of part (c)."""
    columns = ("a million messages at full speed", "MB idle", "MB after a quarter", "MB at the end", "messages / s")
    names = ("rss_mb_idle", "rss_mb_settled", "rss_mb_end")
    return Table(
        columns,
        [(way, *(f"{each[name]:.0f}" for name in names), f"{each['per_s']:,.0f}") for way, each in results.items()],
    )


def steady_table(results: Mapping[str, Any]) -> Table:
    """Lay out part (e)."""
    columns = ("steady load", "MB idle", "MB highest", "MB at the end", "growth (noise), MB", "minutes", "CPU, cores")
    return Table(
        columns,
        [
            (
                run if not each["books_synchronised"] else f"{run} ({each['books_synchronised']:,} books)",
                *(f"{each[name]:.0f}" for name in ("rss_mb_idle", "rss_mb_highest", "rss_mb_end")),
                f"{each['growth_mb']:+.1f} ({each['noise_mb']:.1f})",
                f"{each['seconds'] / 60:.2g}",
                f"{each['cpu_us'] * each['per_s'] / 1e6:.2f}",
            )
            for run, each in results.items()
        ],
    )


def steady_chart(results: Mapping[str, Any]) -> str:
    """Draw part (e)."""
    curves = [Curve(run, [(at_s / 60, value) for at_s, value in each["rss_mb"]]) for run, each in results.items()]
    return curve_chart(
        "Resident memory under steady load", "megabytes over minutes", curves, x_unit="minutes", y_unit="MB"
    )


def cost_table(results: Mapping[str, Any]) -> Table:
    """Lay out part (f): a column for each rate."""
    ways = list(next(iter(results.values())))
    rows = [(way, *(_bill(by_way[way]) for by_way in results.values())) for way in ways]
    for way in ways:
        if "aggregated" in way:
            saved = (by_way[ways[0]]["payload_units"] / by_way[way]["payload_units"] for by_way in results.values())
            rows.append((f"{way}: fewer units than plain", *(f"{ratio:.1f} {TIMES}" for ratio in saved)))
    return Table(("PUT units / puts per million trades / dollars a month", *results), rows)


def _bill(each: Mapping[str, Any]) -> str:
    return f"{each['payload_units']:,.0f} / {each['calls']:,.0f} / ${each['dollars_a_month']:,.0f}"


def cost_chart(results: Mapping[str, Any]) -> str:
    """Draw part (f)."""
    groups = [
        Group(
            rate,
            [
                Bar(way, each["payload_units"], f"{each['payload_units']:,.0f}", is_ours="aggregated" in way)
                for way, each in by_way.items()
            ],
        )
        for rate, by_way in results.items()
    ]
    return bar_chart("PUT payload units per million trades", "what Kinesis bills; log scale", groups, is_log=True)


def lifecycle_table(results: Mapping[str, Any]) -> Table:
    """Lay out part (g)."""
    columns = (
        "10,000 messages/s, medians",
        "start to first delivered record, s",
        "SIGTERM to end, s",
        "records drained",
    )
    return Table(
        columns,
        [
            (run, f"{each['first_record_s']:.2f}", f"{each['stop_s']:.2f}", f"{each['records_drained']:,.0f}")
            for run, each in results.items()
        ],
    )


def backfill_table(results: Mapping[str, Any]) -> Table:
    """Lay out the backfill."""
    ours = next(iter(results.values()))["cpu_us"]
    columns = ("archive trades, zip to encoded", "CPU µs / row", "rows / s", "CPU against ours", "MB, quarter and end")
    rows = []
    for way, each in results.items():
        memory = f"{each['rss_mb_quarter']:.0f}, {each['rss_mb_end']:.0f}" if "rss_mb_end" in each else ""
        rows.append(
            (way, f"{each['cpu_us']:.2f}", f"{each['per_s']:,.0f}", f"{each['cpu_us'] / ours:.1f} {TIMES}", memory)
        )
    return Table(columns, rows)


def stages_table(results: Mapping[str, Any]) -> Table:
    """Lay out where the time goes."""
    *_, whole = results.values()
    rows = [
        (stage, f"{each['cpu_us']:.2f}", f"{each['cpu_us'] / whole['cpu_us']:.0%}") for stage, each in results.items()
    ]
    return Table(("a trade, aggregated", "CPU µs / message", "share"), rows)


def _all(bars: list[Bar]) -> Group:
    return Group("", bars)


class Part(NamedTuple):
    """How a part is shown, and what a reader has to know about it."""

    table: Callable[[Mapping[str, Any]], Table]
    words: str
    chart: Callable[[Mapping[str, Any]], str] | None = None


PARTS: Final[Mapping[str, Part]] = {
    "receive": Part(receive_table, "All only count, and get every message as bytes."),
    "encode": Part(encode_table, "The same records to the same bytes; 50 at a time, as one read brings them."),
    "line": Part(
        line_table,
        '"Ordinary" is trio-websocket, json, Decimal, fastavro and `put_records` of 500, as one would write it. The '
        "market mix is 40 % trades, 45 % depth changes of 6 levels with synchronised books, 15 % klines. The ways took "
        "turns, five each; shown is the run with the median cost.",
        line_chart,
    ),
    "stages": Part(
        stages_table,
        "Where that goes: the stages in memory, and what is left. What would change it, as far as we can tell: batches "
        "that hold columns instead of records (about 0.6 µs), PutRecords written without boto3's machinery (up to 0.3 "
        "µs), or stages that are not Python.",
    ),
    "peers": Part(
        peers_table,
        "Ours receives, tracks, encodes, aggregates and delivers every message; the others only count what they "
        "receive, each in an environment of its own, on uvloop.",
        peers_chart,
    ),
    "latency": Part(
        latency_table,
        "From the arrival of the bytes, as the service measures it itself; a quantile is the upper bound of its "
        "bucket. The endpoint answers at once, but for the last line.",
        latency_chart,
    ),
    "memory": Part(memory_table, "Resident memory of one process."),
    "steady": Part(
        steady_table,
        "Growth is that of a straight line over the last three quarters, noise how far the line may be off.",
        steady_chart,
    ),
    "depth": Part(steady_table, "The 100 ms diff stream of 500 symbols, every book synchronised, on one core."),
    "cost": Part(
        cost_table,
        "Trades of 20 symbols, a put takes 15 ms. Prices of us-east-1, provisioned (2026-11-22): $0.014 per million "
        "PUT payload units of 25 KB, $0.015 per shard-hour; a month is all of it, with shards for the rate and 30 % "
        "more. `adaptive` buys its latency with more, smaller records.",
        cost_chart,
    ),
    "lifecycle": Part(lifecycle_table, "Imports, subscription and the first flush are in the start."),
    "backfill": Part(
        backfill_table, "One day of the public archive; the ordinary way is csv, a dict with Decimals, fastavro."
    ),
}


def picture_of(part: str) -> Path:
    """Return where the chart of a part is kept."""
    return PICTURES / f"bench-{part}.svg"


def section(measured: Mapping[str, Any]) -> str:
    """Return the part of the README that speaks of speed."""
    parts = [part for part in PARTS if part in measured]
    machines = [measured[part]["machine"] for part in parts]
    loads = [float(machine["load"]) for machine in machines]
    opening = f"Measured by `nox -s bench` on {describe(machines[0])}; load of the machine before each part began: "
    lines = [f"{opening}{min(loads):.1f} to {max(loads):.1f}. CPU time is that of the measured process.", ""]
    for name, machine in zip(parts, machines, strict=True):
        part = PARTS[name]
        apart = "" if describe(machine) == describe(machines[0]) else f" Measured apart, on {describe(machine)}."
        lines += [part.words + apart, ""]
        if part.chart is not None:
            lines += [f"![{name}]({picture_of(name).relative_to(REPOSITORY).as_posix()})", ""]
        lines += [part.table(measured[name]["results"]).as_markdown(), ""]
    return "\n".join(lines).strip()


def describe(machine: Mapping[str, str]) -> str:
    """Say what was measured on, and when."""
    return (
        f"{machine['date']}: {machine['cpu']}, {machine['cores']} cores shared with feed and endpoint, "
        f"Python {machine['python']}"
    )


def published() -> dict[str, Any]:
    """Return what the README shows."""
    measured: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return measured


def charts(measured: Mapping[str, Any]) -> dict[Path, str]:
    """Draw every chart of what was measured."""
    return {
        picture_of(name): part.chart(measured[name]["results"])
        for name, part in PARTS.items()
        if part.chart is not None and name in measured
    }


def publish(measured: Mapping[str, Any]) -> None:
    """Keep the numbers, draw the charts and write the README's section."""
    PUBLISHED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    for path, picture in charts(measured).items():
        path.write_text(picture, encoding="utf-8")
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}{section(measured)}\n{END}{after}", encoding="utf-8")
