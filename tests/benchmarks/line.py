"""Part (c): the whole line, from a WebSocket on loopback to the accepted put, feed and endpoint in other processes.

Ours is the real service (`python -m ingestor run`). CPU time is that of the whole process, boto3's threads included,
from the first message sent to the last record counted by the endpoint; throughput is taken between a tenth and nine
tenths of the records, so that neither the start nor the last flush counts.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import yaml

from tests.benchmarks.children import Child, ask, free_port, run_child, wait_for
from tests.benchmarks.feed import SYMBOLS

if TYPE_CHECKING:
    from collections.abc import Iterator

START_LIMIT_S = 60.0
SETTLE_S = 1.0  # start-up work that is not part of the line
LOOK_S = 0.05
MIX = ("trade", "depth", "kline")
Way: TypeAlias = Literal["ordinary", "plain", "aggregated"]


class Setup(NamedTuple):
    """One implementation and what it is to carry; all else about ours is its defaults."""

    way: Way = "aggregated"
    kinds: tuple[str, ...] = ("trade",)
    symbols: int = 20
    flush: Literal["interval", "adaptive"] = "interval"
    answer_after_ms: float = 0.0  # what the endpoint takes to answer a put

    @property
    def streams(self) -> int:
        """How many streams it subscribes to."""
        return self.symbols * len(self.kinds)


class Sample(NamedTuple):
    """A moment of a run."""

    at_s: float
    records: int
    cpu_s: float
    rss_bytes: int


class Line(NamedTuple):
    """A running line: the ports of its ends and of the service's health server (0: it has none)."""

    setup: Setup
    measured: Child
    feed: int
    endpoint: int
    health: int

    def sample(self) -> Sample:
        """Look at both ends now."""
        if not self.measured.is_running():
            raise RuntimeError("the measured process has ended")
        cost = self.measured.cost()
        return Sample(time.monotonic(), self.totals().get("records", 0), cost.cpu_s, cost.rss_bytes)

    def totals(self) -> dict[str, int]:
        """Return what the endpoint has counted."""
        answer: dict[str, int] = ask(self.endpoint, "/state")
        return answer

    def sent(self) -> int:
        """Return how many messages the feed has sent."""
        return int(ask(self.feed, "/state")["sent"])

    def wait_subscribed(self) -> None:
        """Wait until everything is subscribed, and a moment longer."""
        wait_for(
            lambda: bool(ask(self.feed, "/state")["streams"] == self.setup.streams), START_LIMIT_S, "the subscription"
        )
        time.sleep(SETTLE_S)

    def go(self, messages: int, rate: float = 0) -> None:
        """Have the feed send; `rate` 0 is as fast as it is read."""
        ask(self.feed, f"/go?messages={messages}&rate={rate}")


def config_of(setup: Setup, feed: int, endpoint: int, health: int, folder: str) -> dict[str, Any]:
    """Return the service's configuration: defaults, but for where things are."""
    return {
        "logging": {"level": "warning"},
        "binance": {
            "websocket_url": f"ws://127.0.0.1:{feed}",
            "rest_url": f"http://127.0.0.1:{feed}",
            "symbols": list(SYMBOLS[: setup.symbols]),
            "streams": list(setup.kinds),
        },
        "kinesis": {
            "endpoint_url": f"http://127.0.0.1:{endpoint}",
            "aggregation": "none" if setup.way == "plain" else "kpl",
            "batch": {"flush": setup.flush},
        },
        "dead_letter": {"directory": f"{folder}/dead-letter"},
        "health": {"host": "127.0.0.1", "port": health},
    }


@contextmanager
def run_line(setup: Setup) -> Iterator[Line]:
    """Run feed, endpoint and one implementation for the length of this block."""
    delay = str(setup.answer_after_ms)
    with run_child("tests.benchmarks.feed") as feeding, run_child("tests.benchmarks.endpoint", delay) as receiving:
        feed, endpoint = int(feeding.first_line()), int(receiving.first_line())
        with run_way(setup, feed, endpoint) as line:
            yield line


@contextmanager
def run_way(setup: Setup, feed: int, endpoint: int) -> Iterator[Line]:
    """Run one implementation against a feed and an endpoint."""
    if setup.way == "ordinary":
        names = "/".join(f"{symbol.lower()}@trade" for symbol in SYMBOLS[: setup.symbols])
        urls = (f"ws://127.0.0.1:{feed}/stream?streams={names}", f"http://127.0.0.1:{endpoint}")
        with run_child("tests.benchmarks.ordinary", *urls, output=subprocess.DEVNULL) as child:
            yield Line(setup, child, feed, endpoint, 0)
        return
    health = free_port()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bench.yaml")
        path.write_text(yaml.safe_dump(config_of(setup, feed, endpoint, health, folder)))
        with run_child("ingestor", "run", "--config", str(path), output=subprocess.DEVNULL) as child:
            yield Line(setup, child, feed, endpoint, health)


def measure(setup: Setup, messages: int, *, rate: float = 0, limit_s: float = 60.0) -> dict[str, float]:
    """Carry `messages` from feed to endpoint; `rate` 0 is as fast as they are read. Raises if one is missing."""
    with run_line(setup) as line:
        line.wait_subscribed()
        samples = [line.sample()]
        line.go(messages, rate)
        give_up_s = time.monotonic() + limit_s
        while samples[-1].records - samples[0].records < messages:
            time.sleep(LOOK_S)
            samples.append(line.sample())
            if time.monotonic() > give_up_s:
                missing = messages - samples[-1].records
                raise RuntimeError(f"{setup}: {missing} of {messages} records did not arrive in {limit_s:g} s")
        totals = line.totals()
        books = ask(line.health, "/status")["details"]["line"]["books"] if line.health else {}
    return evaluate(samples, messages) | {
        "records": samples[-1].records,
        "records_per_call": totals["records"] / totals["calls"],
        "payload_units_per_million": totals["payload_units"] / totals["records"] * 1e6,
        "books": books.get("all", 0),
        "books_synchronised": books.get("synchronised", 0),
    }


def evaluate(samples: list[Sample], messages: int) -> dict[str, float]:
    """Turn samples into the numbers of a report."""
    first, last = samples[0], samples[-1]
    early = next(each for each in samples if each.records >= messages * 0.1)
    late = next(each for each in samples if each.records >= messages * 0.9)
    settled = next(each for each in samples if each.records >= messages * 0.25)
    wall_s = late.at_s - early.at_s
    return {
        "cpu_us": (last.cpu_s - first.cpu_s) / messages * 1e6,
        "per_s": (late.records - early.records) / wall_s if wall_s else 0.0,
        "rss_mb_idle": first.rss_bytes / 1e6,
        "rss_mb_settled": settled.rss_bytes / 1e6,
        "rss_mb_end": last.rss_bytes / 1e6,
    }
