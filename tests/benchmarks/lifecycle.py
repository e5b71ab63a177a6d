"""Part (g): from the start of the process to its first delivered record, and from SIGTERM to the end, under load.

The feed sends from the first subscription on. With `flush: interval` the first record waits for its interval, as every
record does; `adaptive` shows what is left without it. A stop drains what was read, so it shows how much that is.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Final

from tests.benchmarks.children import run_child
from tests.benchmarks.line import Setup, run_way

RATE: Final = 10_000
LOOK_S: Final = 0.005
START_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 30.0  # above the grace, so that one that is not kept shows as a failure
RUNS: Final = {"flush: interval": Setup(), "flush: adaptive": Setup(flush="adaptive")}


def measure(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return the medians of some lives that take `seconds` of load each."""
    lives = {name: [measure_one(setup, seconds) for _ in range(rounds)] for name, setup in RUNS.items()}
    return {
        name: {what: median(life[what] for life in rows) for what in rows[0]} | {"rounds": rounds}
        for name, rows in lives.items()
    }


def measure_one(setup: Setup, seconds: float) -> dict[str, float]:
    """Live once; raises if it does not end with 0 in time."""
    with run_child("tests.benchmarks.feed") as feeding, run_child("tests.benchmarks.endpoint") as receiving:
        feed, endpoint = int(feeding.first_line()), int(receiving.first_line())
        started_s = time.monotonic()
        with run_way(setup, feed, endpoint) as line:
            line.go(messages=int(RATE * (START_LIMIT_S + STOP_LIMIT_S + seconds)), rate=RATE)
            while not line.totals().get("records"):
                if time.monotonic() > started_s + START_LIMIT_S:
                    raise TimeoutError(f"no record within {START_LIMIT_S:g} s")
                time.sleep(LOOK_S)
            first_s = time.monotonic()
            time.sleep(seconds)
            before, stopping_s = line.totals()["records"], time.monotonic()
            code = line.measured.stop(STOP_LIMIT_S)
            stopped_s = time.monotonic()
            if code:
                raise RuntimeError(f"it ended with {code}")
            return {
                "first_record_s": first_s - started_s,
                "stop_s": stopped_s - stopping_s,
                "records_drained": line.totals()["records"] - before,
            }
