"""Part (d): what the service adds to a message, and how long it is not at home, at rates that it can take.

The service measures itself: histograms from the arrival of the bytes to the call of a put and to its acknowledgement,
and how late its loop wakes a sleeper, twenty times a second. A quantile is the upper bound of the bucket that holds it,
so no number here is smaller than the truth. `flush: adaptive`; one line with an endpoint that answers as late as a real
one would, for whose puts records then wait.
"""

from __future__ import annotations

import time
from typing import Final

from tests.benchmarks.line import Setup, run_line
from tests.benchmarks.scrape import observed_between, quantile, scrape

RATES: Final = (1_000, 5_000, 20_000)
WARM_UP_S: Final = 3.0
ANSWER_AFTER_MS: Final = 15.0  # what a put takes within a region, about
QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
LATENCY: Final = "message_processing_latency_seconds"
STALL: Final = "event_loop_stall_seconds"


def measure(seconds: float) -> dict[str, dict[str, float]]:
    """Return milliseconds by rate: `put p99`, `acknowledged p99.9`, `stall p99` and so on."""
    adaptive = Setup(flush="adaptive")
    runs = {f"{rate:,}/s": (adaptive, rate) for rate in RATES}
    runs[f"5,000/s, put takes {ANSWER_AFTER_MS:g} ms"] = (adaptive._replace(answer_after_ms=ANSWER_AFTER_MS), 5_000)
    return {name: measure_one(setup, rate, seconds) for name, (setup, rate) in runs.items()}


def measure_one(setup: Setup, rate: int, seconds: float) -> dict[str, float]:
    """Let it flow and take the difference of two scrapes."""
    with run_line(setup) as line:
        line.wait_subscribed()
        line.go(messages=int(rate * (seconds + 2 * WARM_UP_S)), rate=rate)
        time.sleep(WARM_UP_S)
        before, first = scrape(line.health), line.sample()
        time.sleep(seconds)
        after, last = scrape(line.health), line.sample()
    stages = {stage: observed_between(before, after, LATENCY, stage=stage) for stage in ("put", "acknowledged")}
    histograms = {**stages, "stall": observed_between(before, after, STALL)}
    return {
        f"{what} {name}": quantile(observed, share) * 1000
        for what, observed in histograms.items()
        for name, share in QUANTILES.items()
    } | {
        "per_s": (last.records - first.records) / (last.at_s - first.at_s),
        "cpu_us": (last.cpu_s - first.cpu_s) / (last.records - first.records) * 1e6,
        "looks": sum(histograms["stall"].values()),
    }
