"""Part (e): the memory of the service while it works on and on, and whether it stays what it is."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Final

from tests.benchmarks.children import ask, wait_for
from tests.benchmarks.line import MIX, Line, Setup, run_line
from tests.benchmarks.trend import Look, keeps_growing, trend_of

RATE: Final = 10_000
DIFFS_PER_S: Final = 10  # of a symbol on the 100 ms stream
RUNS: Final = {
    "10,000 trades/s, 20 symbols": Setup(),
    "10,000 messages/s of all kinds, 1,000 symbols": Setup(kinds=MIX, symbols=1000),
}
SETTLING: Final = 0.25  # the share of a run after which memory has to have found its size
BOOKS_LIMIT_S: Final = 300.0
LOOK_S: Final = 1.0  # oftener in a run that is too short for a trend otherwise
LOOKS: Final = 80
POINTS: Final = 120  # of the curve that is kept


def measure(seconds: float) -> dict[str, dict[str, Any]]:
    """Return megabytes: idle, over time, and the trend of them, for each run."""
    return {name: measure_one(setup, RATE, seconds) for name, setup in RUNS.items()}


def measure_books(symbols: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Measure the diff stream of so many symbols alone, at the pace of the venue."""
    rate = symbols * DIFFS_PER_S
    return {
        f"{rate:,} diffs/s, {symbols:,} symbols": measure_one(Setup(kinds=("depth",), symbols=symbols), rate, seconds)
    }


def measure_one(setup: Setup, rate: int, seconds: float) -> dict[str, Any]:
    """Let it flow for `seconds`, from when all books are synchronised."""
    with run_line(setup) as line:
        line.wait_subscribed()
        idle = line.sample()
        line.go(messages=int(rate * (BOOKS_LIMIT_S + 2 * seconds)), rate=rate)
        books = setup.symbols if "depth" in setup.kinds else 0
        with suppress(TimeoutError):  # the report says how many there were
            wait_for(lambda: synchronised(line) == books, BOOKS_LIMIT_S, "the synchronisation of all books")
        first = last = line.sample()
        looks: list[Look] = []
        while not looks or looks[-1].at_s < seconds:
            time.sleep(min(LOOK_S, seconds / LOOKS))
            last = line.sample()
            looks.append(Look(last.at_s - first.at_s, last.rss_bytes / 1e6))
        still = synchronised(line)
    settled = [look for look in looks if look.at_s >= seconds * SETTLING]
    trend = trend_of(settled)
    step = -(-len(looks) // POINTS)
    return {
        "rss_mb_idle": idle.rss_bytes / 1e6,
        "rss_mb_highest": max(look.value for look in looks),
        "rss_mb_end": looks[-1].value,
        "rss_mb": [[round(at_s, 1), round(value, 2)] for at_s, value in looks[::step]],
        "growth_mb": trend.growth,
        "noise_mb": trend.noise,
        "mb_per_hour": trend.per_hour,
        "is_flat": not keeps_growing(settled),
        "seconds": seconds,
        "per_s": (last.records - first.records) / (last.at_s - first.at_s),
        "cpu_us": (last.cpu_s - first.cpu_s) / (last.records - first.records) * 1e6,
        "books_synchronised": still,
    }


def synchronised(line: Line) -> int:
    """Return how many books are synchronised now."""
    return int(ask(line.health, "/status")["details"]["line"]["books"]["synchronised"])
