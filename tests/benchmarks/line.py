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

from tests.benchmarks.children import Child, ask, run_child, wait_for
from tests.benchmarks.feed import SYMBOLS

if TYPE_CHECKING:
    from collections.abc import Iterator

TRADED = 20  # symbols
START_LIMIT_S = 30.0
Way: TypeAlias = Literal["ordinary", "plain", "aggregated"]


class Sample(NamedTuple):
    """A moment of a run."""

    at_s: float
    records: int
    cpu_s: float
    rss_bytes: int


def config_of(way: Way, kinds: list[str], feed: int, endpoint: int, folder: str) -> dict[str, Any]:
    """Return the service's configuration: defaults, but for where things are."""
    return {
        "logging": {"level": "warning"},
        "binance": {
            "websocket_url": f"ws://127.0.0.1:{feed}",
            "rest_url": f"http://127.0.0.1:{feed}",
            "symbols": list(SYMBOLS[:TRADED]),
            "streams": kinds,
        },
        "kinesis": {
            "endpoint_url": f"http://127.0.0.1:{endpoint}",
            "aggregation": "none" if way == "plain" else "kpl",
        },
        "dead_letter": {"directory": f"{folder}/dead-letter"},
        "health": {"host": "127.0.0.1", "port": 0},
    }


@contextmanager
def run_way(way: Way, kinds: list[str], feed: int, endpoint: int) -> Iterator[Child]:
    """Run one implementation against a feed and an endpoint."""
    if way == "ordinary":
        names = "/".join(f"{symbol.lower()}@trade" for symbol in SYMBOLS[:TRADED])
        urls = (f"ws://127.0.0.1:{feed}/stream?streams={names}", f"http://127.0.0.1:{endpoint}")
        with run_child("tests.benchmarks.ordinary", *urls, output=subprocess.DEVNULL) as child:
            yield child
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bench.yaml")
        path.write_text(yaml.safe_dump(config_of(way, kinds, feed, endpoint, folder)))
        with run_child("ingestor", "run", "--config", str(path), output=subprocess.DEVNULL) as child:
            yield child


def measure(
    way: Way, messages: int, *, kinds: tuple[str, ...] = ("trade",), rate: float = 0, limit_s: float = 60.0
) -> dict[str, float]:
    """Carry `messages` from feed to endpoint; `rate` 0 is as fast as they are read. Raises if one is missing."""
    with run_child("tests.benchmarks.feed") as feeding, run_child("tests.benchmarks.endpoint") as receiving:
        feed, endpoint = int(feeding.first_line()), int(receiving.first_line())
        with run_way(way, list(kinds), feed, endpoint) as measured:
            streams = TRADED * len(kinds)
            wait_for(lambda: ask(feed, "/state")["streams"] == streams, START_LIMIT_S, "the subscription")
            time.sleep(1)  # start-up work that is not part of the line
            samples = [sample(measured, endpoint)]
            ask(feed, f"/go?messages={messages}&rate={rate}")
            give_up_s = time.monotonic() + limit_s
            while samples[-1].records - samples[0].records < messages:
                time.sleep(0.05)
                samples.append(sample(measured, endpoint))
                if time.monotonic() > give_up_s:
                    missing = messages - samples[-1].records
                    raise RuntimeError(f"{way}: {missing} of {messages} records did not arrive in {limit_s:g} s")
            totals = ask(endpoint, "/state")
    return evaluate(samples, messages) | {
        "records": samples[-1].records,
        "records_per_call": totals["records"] / totals["calls"],
        "payload_units_per_million": totals["payload_units"] / totals["records"] * 1e6,
    }


def sample(measured: Child, endpoint: int) -> Sample:
    """Look at both ends now."""
    if not measured.is_running():
        raise RuntimeError("the measured process has ended")
    cost = measured.cost()
    return Sample(time.monotonic(), ask(endpoint, "/state").get("records", 0), cost.cpu_s, cost.rss_bytes)


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
