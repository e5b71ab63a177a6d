"""Where the time of the whole line goes: its stages by themselves, in memory, on what the feed sends.

What they come to together, held against the whole line in the same run, is what is left for the system calls, the
event loop, and the threads in which boto3 puts.
"""

from __future__ import annotations

import gc
import time
from itertools import islice, pairwise
from statistics import median
from typing import TYPE_CHECKING, Final

from ingestor.app import GC_THRESHOLDS
from ingestor.config import Config
from ingestor.core.backoff import Backoff
from ingestor.core.intake import Intake
from ingestor.core.kpl import aggregate
from ingestor.core.lanes import LaneLimits, Lanes, claims_of
from ingestor.core.subscription import expand
from ingestor.frames import FrameSlicer
from ingestor.serializer import Serializer
from tests.benchmarks import line
from tests.benchmarks.feed import SYMBOLS, Stream, frame, in_turn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestor.core.delivery import Verdict

MESSAGES: Final = 140_000
READ: Final = 700  # messages of a full read
TRADED: Final = 20
LINE_MESSAGES: Final = 500_000
LINE_RUNS: Final = 3
USUAL_THRESHOLDS: Final = gc.get_threshold()
REST: Final = "the rest: event loop, boto3, cold caches, system calls"
STAGES: Final = ("cut frames", "decode and track", "encode", "sort into lanes", "aggregate", "settle")


def measure() -> dict[str, dict[str, float]]:
    """Return CPU microseconds per trade of each stage, of the whole line, and of what else is in that."""
    results = {stage: {"cpu_us": cpu_us} for stage, cpu_us in stages().items()}
    whole_us = median(line.measure(line.Setup(), LINE_MESSAGES)["cpu_us"] for _ in range(LINE_RUNS))
    rest_us = whole_us - sum(each["cpu_us"] for each in results.values())
    return results | {REST: {"cpu_us": rest_us}, "the whole line": {"cpu_us": whole_us}}


def stages() -> dict[str, float]:
    """Return CPU microseconds per trade of each stage."""
    spent_s = dict.fromkeys(STAGES, 0.0)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        for laps in laps_of(MESSAGES // READ):
            for stage, (before, after) in zip(STAGES, pairwise(laps), strict=True):
                spent_s[stage] += after - before
    finally:
        gc.set_threshold(*USUAL_THRESHOLDS)
    return {stage: each / MESSAGES * 1e6 for stage, each in spent_s.items()}


def laps_of(reads: int) -> Iterator[list[float]]:
    """Take so many reads through all stages; yield the CPU clock before each of them, and after the last."""
    subscriptions = expand(list(SYMBOLS[:TRADED]), ["trade"], ["1m"])
    turns = in_turn([Stream(each.stream_name, seed) for seed, each in enumerate(subscriptions)])
    slicer, intake, serializer, lanes = FrameSlicer(), Intake(subscriptions), Serializer(), new_lanes()
    slicer.is_open = True
    inlet = intake.open(subscriptions)
    now_ms = time.time_ns() // 1_000_000
    for number in range(reads):
        now_s, received_ms = number * 0.01, now_ms + number * 10
        octets = b"".join(frame(stream.message(received_ms)) for stream in islice(turns, READ))
        clock = time.process_time
        laps = [clock()]
        messages = slicer.feed(octets).messages
        laps.append(clock())
        batch = intake.accept(inlet, messages, now_s, received_ms * 1000).batch
        laps.append(clock())
        assert batch is not None
        encoded, _ = serializer.encode_batch(batch)
        laps.append(clock())
        lanes.add(encoded.records, now_s, now_s)
        laps.append(clock())
        call = lanes.take(now_s)
        laps.append(clock())
        verdicts: list[Verdict] = ["delivered"] * len(call)
        lanes.settle(call, verdicts, now_s)
        claims_of(call)
        lanes.release(call)
        laps.append(clock())
        yield laps


def new_lanes() -> Lanes:
    """Make lanes as the service has them by default."""
    settings = Config().kinesis
    limits = LaneLimits(
        max_entries=settings.batch.max_records,
        max_bytes=settings.batch.max_bytes,
        blob_bytes=settings.blob_bytes,
        flush_interval_s=settings.batch.flush_interval_s,
        adaptive=False,
        shard_share=settings.shard_budget_share,
    )
    return Lanes(settings.lanes, limits, lambda: Backoff(initial_s=0.1, max_s=10, multiplier=2, jitter=None), aggregate)
