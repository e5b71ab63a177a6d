"""The capacity and cost sheet of the README: arithmetic on what was measured, and on the prices of AWS.

What was measured is what the README's section about speed shows too. `python tests/test_readme.py --write` makes the
sheet anew.
"""

from __future__ import annotations

import math
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ingestor.config import Config
from tests.benchmarks import prices, report

if TYPE_CHECKING:
    from collections.abc import Mapping

RATES: Final = (100, 1_000, 3_000, 10_000, 30_000)
HEARTBEATS_DOLLARS: Final = prices.month(units_a_s=0, shards=1)  # a stream of one shard; its units are cents

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


def measured(published: Mapping[str, Any]) -> Measured:
    """Pick what the sheet rests on out of all that was measured."""
    mix = published["line"]["results"]["ours, aggregated, market mix"]
    memory = published["memory"]["results"]["ours, aggregated"]
    return Measured(round(mix["cpu_us"], 1), round(mix["payload_units_per_million"]), round(memory["rss_mb_end"]))


def size(rate: int, found: Measured) -> Sizing:
    """Work out what `rate` messages a second ask for."""
    cores = rate * found.cpu_us / 1e6
    tasks = math.ceil(cores / FULL_CORE)
    vcpu, memory_gb = next(
        each for each in SIZES if cores / tasks <= FULL_CORE * each[0] and bound_mb(found) <= each[1] * 1_000
    )
    bytes_a_s = rate * bytes_each(found)
    units_a_s = units_of(bytes_a_s)
    shards = prices.shards_for(records_a_s=0, bytes_a_s=bytes_a_s)
    plain_shards = prices.shards_for(records_a_s=rate, bytes_a_s=0)
    return Sizing(
        cores,
        tasks,
        vcpu,
        memory_gb,
        shards,
        prices.month(units_a_s, shards) + HEARTBEATS_DOLLARS,
        prices.month_on_demand(bytes_a_s) + HEARTBEATS_DOLLARS,
        prices.month(rate, plain_shards) + HEARTBEATS_DOLLARS,
    )


def bound_mb(found: Measured) -> float:
    """Return what a task takes at most: what was measured, and all buffers full to their defaults."""
    config = Config()
    return found.memory_mb + (config.spool.memory_max_bytes + 2 * config.channels.max_bytes) / 1e6


def bytes_each(found: Measured) -> float:
    """Return what a message takes in the stream; blobs are nearly full units, so it is a little less."""
    return found.units_a_million / 1e6 * prices.UNIT_BYTES


def units_of(bytes_a_s: float) -> float:
    """Return the PUT payload units a second, rounded up for every lane and flush: the smallest blob is one."""
    kinesis = Config().kinesis
    flushes_a_s = kinesis.lanes / kinesis.batch.flush_interval_s
    return flushes_a_s * math.ceil(bytes_a_s / flushes_a_s / prices.UNIT_BYTES)


def sheet() -> str:
    """Write the sheet."""
    found = measured(report.published())
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
        headroom=100 * (prices.HEADROOM - 1),
        lanes=Config().kinesis.lanes,
        shard_hour=prices.DOLLARS_A_SHARD_HOUR,
        units=prices.DOLLARS_A_MILLION_UNITS,
        stream_hour=prices.DOLLARS_AN_ON_DEMAND_HOUR,
        gb=prices.DOLLARS_AN_ON_DEMAND_GB,
        hours=prices.HOURS_A_MONTH,
    )
    return "\n".join([*rows, "", *(fill(note, WIDTH, subsequent_indent="  ") for note in notes.splitlines())])
