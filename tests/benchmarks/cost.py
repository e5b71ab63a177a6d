"""Part (f): what Kinesis bills for, per million trades, at rates from one coin to a market; and the same in dollars.

Trades of twenty symbols for some seconds; counted are calls, records and PUT payload units (25 KB each) of what reached
the endpoint. A put takes as long as a real one about, because with `flush: adaptive` that decides how much waits for
the next one.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from tests.benchmarks import prices
from tests.benchmarks.latency import ANSWER_AFTER_MS
from tests.benchmarks.line import Setup, run_line

RATES: Final = (10, 100, 1_000, 10_000)
AT_ONCE: Final = {
    10: 4,
    100: 4,
    1_000: 2,
    10_000: 1,
}  # runs side by side: nothing is timed, and slow rates cost nothing
WAYS: Final = {
    "plain, interval": Setup("plain", answer_after_ms=ANSWER_AFTER_MS),
    "plain, adaptive": Setup("plain", flush="adaptive", answer_after_ms=ANSWER_AFTER_MS),
    "aggregated, interval": Setup("aggregated", answer_after_ms=ANSWER_AFTER_MS),
    "aggregated, adaptive": Setup("aggregated", flush="adaptive", answer_after_ms=ANSWER_AFTER_MS),
}
DRAIN_LIMIT_S: Final = 30.0

MILLION: Final = 1_000_000


def measure(seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    """Return counts and dollars by rate, then by way."""
    results = {}
    for rate in RATES:
        with ThreadPoolExecutor(AT_ONCE[rate]) as runs:
            measured = runs.map(partial(measure_one, rate=rate, seconds=seconds), WAYS.values())
            results[f"{rate:,}/s"] = dict(zip(WAYS, measured, strict=True))
    return results


def measure_one(setup: Setup, rate: int, seconds: float) -> dict[str, float]:
    """Carry so many seconds of trades, to the last of them."""
    messages = int(rate * seconds)
    with run_line(setup) as line:
        line.wait_subscribed()
        line.go(messages, rate)
        give_up_s = time.monotonic() + seconds + DRAIN_LIMIT_S
        while (totals := line.totals()).get("records", 0) < messages:
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"{setup} at {rate}/s: {totals} after {messages} messages")
            time.sleep(0.1)
    per_million = MILLION / totals["records"]
    counts = {name: totals[name] * per_million for name in ("calls", "entries", "payload_units", "data_bytes")}
    return counts | dollars(rate, counts)


def dollars(rate: int, per_million: dict[str, float]) -> dict[str, float]:
    """Return what a million trades cost in payload units, and a month of this rate with the shards that it needs."""
    a_second = {name: count * rate / MILLION for name, count in per_million.items()}
    shards = prices.shards_for(a_second["entries"], a_second["data_bytes"])
    return {
        "dollars_per_million": per_million["payload_units"] / MILLION * prices.DOLLARS_A_MILLION_UNITS,
        "shards": shards,
        "dollars_a_month": prices.month(a_second["payload_units"], shards),
    }
