"""A world in memory: the simulated venue and Kinesis without a socket or a thread, on whatever clock Trio runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl

import httpx
import trio
from trio.testing import memory_stream_pair

from ingestor.config import Binance, Config, DeadLetters, Health, Heartbeat, Kinesis, Repair
from ingestor.core.audit import Audit, AuditReport
from ingestor.core.kpl import disaggregate
from ingestor.local.market import Market
from ingestor.local.venue import Venue
from ingestor.serializer import Serializer
from ingestor.world import World
from tests.fakes.streams import MemoryStream, MemoryStreams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from ingestor.core.model import MarketData
    from ingestor.local.faults import Fault
    from ingestor.local.venue import Feed

T = TypeVar("T")
START_MS = 1_790_000_000_000
DATA, BEATS = "data", "beats"


async def run_inline(fn: Callable[[], T]) -> T:
    """Do blocking work right here: Trio's autojump clock does not see threads."""
    await trio.lowlevel.checkpoint()
    return fn()


class MemoryWorld:
    """Everything outside of the service; it survives the service, so that another one can follow."""

    def __init__(
        self,
        symbols: Sequence[str] = ("BTCUSDT",),
        *,
        seed: int = 1,
        source: Feed | None = None,
        script: Sequence[Fault] = (),
    ) -> None:
        self._began_s = trio.current_time()
        self.seed = seed
        self.symbols = tuple(symbols)
        market = source or Market(symbols, seed=seed, start_ms=START_MS, orders_per_s=2.0, updates_per_s=5.0)
        self.venue = Venue(market, script=script, wall_ns=self.wall_ns, tick_s=0.05)
        self.data = MemoryStream(self.wall_ns, shards=2)
        self.beats = MemoryStream(self.wall_ns)
        self.streams = MemoryStreams({DATA: self.data, BEATS: self.beats})
        self.rest_requests: list[str] = []
        self._sockets: trio.Nursery | None = None
        self._lives = 0

    def wall_ns(self) -> int:
        """Tell the wall clock, which moves with Trio's."""
        return START_MS * 1_000_000 + round((trio.current_time() - self._began_s) * 1e9)

    @asynccontextmanager
    async def alive(self) -> AsyncGenerator[None]:
        """Let the venue live while the block lasts."""
        async with trio.open_nursery() as nursery:
            self._sockets = nursery
            nursery.start_soon(self.venue.run)
            yield
            nursery.cancel_scope.cancel()

    def as_seen_by_a_service(self) -> World:
        """Return it as the next service takes it; each has chance of its own, as two processes would."""
        self._lives += 1
        return World(
            connect=self._connect,
            rest_transport=httpx.MockTransport(self._answer),
            data_sink=self.data,
            heartbeat_sink=self.beats,
            streams=self.streams,
            run_blocking=run_inline,
            wall_ns=self.wall_ns,
            random=Random(f"{self.seed}/{self._lives}"),
        )

    async def _connect(self) -> trio.abc.Stream:
        assert self._sockets is not None
        ours, theirs = memory_stream_pair()
        self._sockets.start_soon(self.venue.handle, theirs)
        await trio.lowlevel.checkpoint()
        return ours

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        await trio.sleep(0.02)
        self.rest_requests.append(f"{request.url.path}?{request.url.query.decode()}")
        now_ms = self.wall_ns() // 1_000_000
        query = parse_qsl(request.url.query.decode(), keep_blank_values=True)
        answer = self.venue.desk.answer(request.url.path, query, now_ms)
        return httpx.Response(answer.status, headers=list(answer.headers), content=answer.body)

    def delivered(self) -> list[MarketData]:
        """Everything in the data stream, decoded, shard by shard."""
        decode = Serializer().decode
        return [
            decode(inner.data)
            for record in self.data.records()
            for inner in disaggregate(record.data, record.partition_key)
        ]

    def audit(self) -> AuditReport:
        """Prove what is in the data stream."""
        proof = Audit()
        for record in self.delivered():
            proof.add(record)
        return proof.report()


def config_for(world: MemoryWorld, folder: Path, *, resume: bool = False, **kinesis: object) -> Config:
    """Make a configuration that fits the world; no file and no port is taken that is not the test's own."""
    return Config(
        binance=Binance(
            symbols=world.symbols, websocket_url="ws://venue", rest_url="http://venue", allow_plaintext=True
        ),
        kinesis=Kinesis.model_validate({"stream_name": DATA, **kinesis}),
        heartbeat=Heartbeat(stream_name=BEATS, resume=resume),
        dead_letter=DeadLetters(directory=folder / "dead-letter"),
        health=Health(host="127.0.0.1", port=0),
        repair=Repair(),
    )
