"""The real service as a process, between a simulated venue in this process and an engine, and the proof afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import trio
import yaml

from ingestor.config import Kinesis
from ingestor.inspection import open_reader
from ingestor.inspection import prove as read_back
from ingestor.local.market import Market
from ingestor.local.proof import ProofRow, prove
from ingestor.local.venue import Venue, VenueUrls
from ingestor.serializer import Serializer
from tests.integration.engines import CREDENTIALS, REGION, clean_environment, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from ingestor.core.audit import AuditReport
    from ingestor.core.claims import Intervals
    from ingestor.core.model import Subscription
    from ingestor.local.faults import Fault

SYMBOLS = ("BTCUSDT", "ETHUSDT")
NOWHERE = {
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def new_venue(script: Sequence[Fault] = (), *, windows_differ: bool = False) -> Venue:
    """Return a quiet market: the engines are slow (facts/aws.md §4)."""
    market = Market(SYMBOLS, seed=5, start_ms=time.time_ns() // 1_000_000, orders_per_s=8.0, updates_per_s=10.0)
    return Venue(market, script=script, windows_differ=windows_differ)


def configuration(urls: VenueUrls, kinesis_url: str, stream: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """Return a configuration as a file holds it; `sections` are merged into it, one level deep."""
    base: dict[str, dict[str, Any]] = {
        "service": {"shutdown_grace_s": 15},
        "logging": {"level": "info", "format": "json"},
        "binance": {
            "websocket_url": urls.websocket_url,
            "rest_url": urls.rest_url,
            "symbols": list(SYMBOLS),
            "connections": {"backoff": {"initial_s": 0.2}},
        },
        "kinesis": {
            "stream_name": stream,
            "region": REGION,
            "endpoint_url": kinesis_url,
            "blob_bytes": 2_000,
            "batch": {"flush_interval_s": 0.2},
            "retry": {"initial_s": 0.05, "max_s": 0.5},
            "circuit_breaker": {"reset_timeout_s": 0.5},
            "timeouts": {"connect_s": 1, "read_s": 2},
        },
        "heartbeat": {"stream_name": heartbeats_of(stream), "interval_s": 1},
        "dead_letter": {"directory": str(folder / "dead-letter")},
        "health": {"host": "127.0.0.1", "port": free_port()},
    }
    return {name: base.get(name, {}) | sections.get(name, {}) for name in base | sections}


def heartbeats_of(stream: str) -> str:
    """Return the name of the heartbeat stream beside `stream`."""
    return f"{stream}-heartbeat"


class Running:
    """A service under test: what it says of itself, its log, and how it ends."""

    def __init__(self, process: trio.Process, log: Path, http: httpx.AsyncClient) -> None:
        self._process = process
        self._log = log
        self._http = http

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def terminate(self) -> None:
        """Ask it to stop, as an orchestrator does, and do not wait."""
        self._process.send_signal(signal.SIGTERM)

    def log(self) -> str:
        """Return everything it has written."""
        return self._log.read_text()

    async def get(self, path: str) -> httpx.Response:
        """Ask the health port, however long it takes to be there."""
        while self._process.poll() is None:
            try:
                return await self._http.get(path)
            except httpx.TransportError:
                await trio.sleep(0.05)
        raise AssertionError(f"the service has ended with {self._process.returncode}: {self.log()}")

    async def wait_error(self, mention: str) -> str:
        """Wait for a line of level error in the log that mentions something, and return it."""
        while True:
            await self.get("/live")  # fails as soon as the process has ended
            for line in self.log().splitlines():
                if mention in line and json.loads(line)["level"] in {"error", "critical"}:
                    return line
            await trio.sleep(0.1)

    async def wait_ready(self, *, status: int = 200) -> None:
        """Wait until `/ready` answers with `status`."""
        while (await self.get("/ready")).status_code != status:  # noqa: ASYNC110 - another process cannot set an event
            await trio.sleep(0.1)

    async def wait_started(self) -> None:
        """Wait until `/started` says what an orchestrator waits for before it stops the old task of a deploy."""
        while (await self.get("/started")).status_code != 200:  # noqa: ASYNC110 - as above
            await trio.sleep(0.1)

    async def wait_begun(self) -> None:
        """Wait until every subscription has an origin, from which on nothing may be missing."""
        while True:
            line = (await self.get("/status")).json()["details"]["line"]
            if line and len(line["watermarks"]) == line["subscriptions"]:
                return
            await trio.sleep(0.1)

    async def wait_covered(self, produced: Mapping[Subscription, Intervals]) -> None:
        """Wait until the service says that all of `produced` is acknowledged."""
        goals = {subscription.stream_name: ids.highest for subscription, ids in produced.items() if ids}
        while True:
            marks = (await self.get("/status")).json()["details"]["line"]["watermarks"]
            if all(marks.get(name, -1) >= goal for name, goal in goals.items()):
                return
            await trio.sleep(0.1)

    async def freeze(self, for_s: float) -> None:
        """Take the CPU away from it for a while, as a container is throttled."""
        self._process.send_signal(signal.SIGSTOP)
        await trio.sleep(for_s)
        self._process.send_signal(signal.SIGCONT)

    async def stop(self) -> int:
        """Ask it to stop, as an orchestrator does; return the exit code."""
        self.terminate()
        return await self._process.wait()

    def hang_up(self) -> None:
        """Have it read its configuration again; nothing when it has ended."""
        self._process.send_signal(signal.SIGHUP)

    async def wait_sheltered(self) -> None:
        """Wait until SIGHUP is kept, or heeded: first it is an interpreter that knows nothing of us."""
        bit = 1 << (signal.SIGHUP - 1)
        while not bit & self._signals("SigBlk", "SigCgt"):  # noqa: ASYNC110 - another process cannot set an event
            await trio.sleep(0.001)

    def _signals(self, *masks: str) -> int:
        """Return the signals that are blocked (`SigBlk`), caught (`SigCgt`), or in any other of its masks."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return reduce(or_, (int(line.split()[1], 16) for line in status.splitlines() if line.startswith(masks)))

    async def kill(self) -> None:
        """End it as the machine would that it runs on."""
        self._process.kill()
        await self._process.wait()

    async def wait_end(self) -> int:
        """Wait until it ends by itself; return the exit code."""
        return await self._process.wait()


@asynccontextmanager
async def run_service(
    settings: Mapping[str, Any], folder: Path, environment: Mapping[str, str] = CREDENTIALS
) -> AsyncIterator[Running]:
    """Run `python -m ingestor run` for the length of this block; what is left of it then is killed."""
    config, log = folder / "ingestor.yaml", folder / "ingestor.log"
    config.write_text(yaml.safe_dump(dict(settings)))
    command = [sys.executable, "-m", "ingestor", "run", "--config", str(config)]
    with log.open("ab") as out:
        process = await trio.lowlevel.open_process(
            command,
            env=clean_environment(**NOWHERE | dict(environment)),
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    url = f"http://127.0.0.1:{settings['health']['port']}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            yield Running(process, log, http)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def open_venue(venue: Venue) -> AsyncIterator[VenueUrls]:
    """Let a venue live for the length of this block."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(venue.serve)
        nursery.cancel_scope.cancel()


def produced_by(venue: Venue) -> dict[Subscription, Intervals]:
    """Return what has come into being until now."""
    return {subscription: account.produced.copy() for subscription, account in venue.ledger.items()}


async def prove_from(
    engine_url: str, stream: str, produced: Mapping[Subscription, Intervals]
) -> tuple[list[ProofRow], AuditReport]:
    """Read the stream back from the engine itself and hold it against what was produced."""
    settings = Kinesis(stream_name=stream, region=REGION, endpoint_url=engine_url)
    report = await read_back(open_reader(settings, stream), Serializer().decode)
    return prove(produced, report), report
