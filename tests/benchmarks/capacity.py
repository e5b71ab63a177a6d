"""The capacity and cost sheet of the README: arithmetic on what was measured, and on the prices of AWS.

What was measured is read out of the README's own tables, so that the sheet says the same as they do. Everything else
here is a number with its source. `python tests/test_readme.py --write` makes the sheet anew.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from textwrap import fill
from typing import Final, NamedTuple

from ingestor.config import Config

README: Final = Path(__file__).parents[2] / "README.md"
RATES: Final = (100, 1_000, 3_000, 10_000, 30_000)

# us-east-1, facts of 2026-11-22. A PUT payload unit is up to 25 KB of one record.
DOLLARS_A_SHARD_HOUR: Final = 0.015
DOLLARS_A_MILLION_UNITS: Final = 0.014
DOLLARS_AN_ON_DEMAND_HOUR: Final = 0.04
DOLLARS_AN_ON_DEMAND_GB: Final = 0.08
UNIT_BYTES: Final = 25_000
SHARD_BYTES_A_S: Final = 1_000_000
SHARD_RECORDS_A_S: Final = 1_000
HOURS_A_MONTH: Final = 730
HEARTBEATS_DOLLARS: Final = HOURS_A_MONTH * DOLLARS_A_SHARD_HOUR  # a stream of one shard; its units are cents

SHARD_HEADROOM: Final = 1.3
FULL_CORE: Final = 0.6  # of a core that a task may need; above that, bursts wait
# Fargate: the sizes up to one vCPU, as one process uses no more, each with the least memory that goes with it.
SIZES: Final = ((0.25, 0.5), (0.5, 1.0), (1.0, 2.0))

WIDTH: Final = 140
COLUMNS: Final = (
    *("messages/s", "CPU, of a core", "tasks", "shards"),
    *("Kinesis, $ a month", "the same on demand", "the same not aggregated"),
)
NOTES: Final = """\
- **Measured** ([Speed](#speed)): {cpu_us:g} µs of CPU a message of the market mix, {units_a_million:,.0f} PUT payload \
units a million messages, {memory_mb:g} MB at full speed.
- **Arithmetic**: all of the table. A task should need at most {full:.0f} % of its vCPU; memory is what was measured \
with every buffer full ({bound_mb:.0f} MB), rounded up to what Fargate sells with the vCPU; shards are for \
{bytes_each:.0f} bytes a message and {headroom:.0f} % more; units are rounded up for each of the {lanes} lanes at \
every flush.
- **Prices** of us-east-1, read on 2026-11-22: ${shard_hour} a shard-hour, ${units} a million units; on demand \
${stream_hour} a stream-hour, ${gb} a GB; {hours} hours a month. That is for writing, and for a heartbeat stream of \
one shard. Reading on demand, longer retention, Fargate and CloudWatch (about 30 series a task) come on top."""


class Measured(NamedTuple):
    """What the README says was measured: the market mix, aggregated, and the memory of a task under full load."""

    cpu_us: float
    units_a_million: float
    memory_mb: float


class Sizing(NamedTuple):
    """What a rate of messages asks for; dollars are a month of it."""

    cores: float
    tasks: int
    vcpu: float
    memory_gb: float
    shards: int
    dollars: float
    dollars_on_demand: float
    dollars_plain: float


def measured(text: str) -> Measured:
    """Read the tables about speed."""
    mix = next(cells(line) for line in text.splitlines() if line.startswith("|") and "market mix" in line)
    return Measured(number(mix[1]), number(mix[4]), memory_at_the_end(text))


def cells(line: str) -> list[str]:
    """Split a line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def number(text: str) -> float:
    """Read a number as people write it."""
    return float(re.sub(r"[ ,\u202f]", "", text))


def memory_at_the_end(text: str) -> float:
    """Return the resident memory at the end of a run at full speed, in a sentence or in a table."""
    said = re.search(r"(\d+) MB at the end", text)
    if said is not None:
        return float(said[1])
    lines = text.splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("|") and "MB at the end" in line)
    return number(cells(lines[head + 2])[cells(lines[head]).index("MB at the end")])


def size(rate: int, found: Measured) -> Sizing:
    """Work out what `rate` messages a second ask for."""
    cores = rate * found.cpu_us / 1e6
    tasks = math.ceil(cores / FULL_CORE)
    vcpu, memory_gb = next(
        each for each in SIZES if cores / tasks <= FULL_CORE * each[0] and bound_mb(found) <= each[1] * 1_000
    )
    bytes_a_s = rate * bytes_each(found)
    units_a_s = units_of(bytes_a_s)
    shards = math.ceil(SHARD_HEADROOM * bytes_a_s / SHARD_BYTES_A_S)
    plain_shards = math.ceil(SHARD_HEADROOM * rate / SHARD_RECORDS_A_S)
    gb_a_month = bytes_a_s * HOURS_A_MONTH * 3_600 / 1e9
    return Sizing(
        cores,
        tasks,
        vcpu,
        memory_gb,
        shards,
        provisioned(units_a_s, shards),
        DOLLARS_AN_ON_DEMAND_HOUR * HOURS_A_MONTH + DOLLARS_AN_ON_DEMAND_GB * gb_a_month + HEARTBEATS_DOLLARS,
        provisioned(rate, plain_shards),
    )


def bound_mb(found: Measured) -> float:
    """Return what a task takes at most: what was measured, and all buffers full to their defaults."""
    config = Config()
    return found.memory_mb + (config.spool.memory_max_bytes + 2 * config.channels.max_bytes) / 1e6


def bytes_each(found: Measured) -> float:
    """Return what a message takes in the stream; blobs are nearly full units, so it is a little less."""
    return found.units_a_million / 1e6 * UNIT_BYTES


def units_of(bytes_a_s: float) -> float:
    """Return the PUT payload units a second, rounded up for every lane and flush: the smallest blob is one."""
    kinesis = Config().kinesis
    flushes_a_s = kinesis.lanes / kinesis.batch.flush_interval_s
    return flushes_a_s * math.ceil(bytes_a_s / flushes_a_s / UNIT_BYTES)


def provisioned(units_a_s: float, shards: int) -> float:
    """Return dollars a month, the heartbeat stream included."""
    units_a_month = units_a_s * HOURS_A_MONTH * 3_600
    shards_a_month = shards * HOURS_A_MONTH * DOLLARS_A_SHARD_HOUR
    return units_a_month / 1e6 * DOLLARS_A_MILLION_UNITS + shards_a_month + HEARTBEATS_DOLLARS


def sheet() -> str:
    """Write the sheet."""
    found = measured(README.read_text(encoding="utf-8"))
    rows = [f"| {' | '.join(COLUMNS)} |", f"|{'--:|' * len(COLUMNS)}"]
    for rate in RATES:
        each = size(rate, found)
        task = f"{each.tasks} of {each.vcpu:g} vCPU, {each.memory_gb:g} GB"
        dollars = " | ".join(f"{bill:,.0f}" for bill in (each.dollars, each.dollars_on_demand, each.dollars_plain))
        rows.append(f"| {rate:,} | {100 * each.cores:.1f} % | {task} | {each.shards} | {dollars} |")
    notes = NOTES.format(
        **found._asdict(),
        full=100 * FULL_CORE,
        bound_mb=bound_mb(found),
        bytes_each=bytes_each(found),
        headroom=100 * (SHARD_HEADROOM - 1),
        lanes=Config().kinesis.lanes,
        shard_hour=DOLLARS_A_SHARD_HOUR,
        units=DOLLARS_A_MILLION_UNITS,
        stream_hour=DOLLARS_AN_ON_DEMAND_HOUR,
        gb=DOLLARS_AN_ON_DEMAND_GB,
        hours=HOURS_A_MONTH,
    )
    return "\n".join([*rows, "", *(fill(note, WIDTH, subsequent_indent="  ") for note in notes.splitlines())])
