"""A world in memory: the simulated venue and Kinesis without a socket or a thread, on whatever clock Trio runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl

import httpx
import trio
from trio.testing import memory_stream_pair

from ingestor.config import Binance, Config, DeadLetters, Health, Heartbeat, Kinesis, Repair
from ingestor.core.audit import Audit, AuditReport
from ingestor.core.errors import SinkError
from ingestor.core.kpl import disaggregate
from ingestor.local.market import Market
from ingestor.local.venue import Venue
from ingestor.serializer import Serializer
from ingestor.world import World
from tests.fakes.streams import MemoryStream, MemoryStreams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from pathlib import Path

    from ingestor.core.model import EntryResult, MarketData, PutEntry
    from ingestor.local.faults import Fault
    from ingestor.local.venue import Feed

T = TypeVar("T")
START_MS = 1_790_000_000_000
DATA, BEATS = "data", "beats"
REST_TIMEOUT_S = 10.0


async def run_inline(fn: Callable[[], T]) -> T:
    """Do blocking work right here: Trio's autojump clock does not see threads."""
    await trio.lowlevel.checkpoint()
    return fn()


class Life:
    """One run of the service as the world sees it. Killed, nothing that it still does reaches anybody.

    A call into AWS runs in a thread, which no cancellation interrupts: it ends by itself, or with the process.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_dead = False
        self._threads: dict[trio.CancelScope, None] = {}

    def kill(self) -> None:
        """End it at once, as SIGKILL does: calls under way never return, and no other one begins."""
        self.is_dead = True
        for scope in self._threads:
            scope.cancel()

    async def reach(self) -> None:
        """Pass, if alive; the dead wait for ever."""
        if self.is_dead:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async def abandon(self, nursery: trio.Nursery, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call` as a thread would run it that is left to itself by whoever is cancelled while he waits."""
        done = trio.Event()
        results: list[T] = []
        errors: list[SinkError] = []

        async def run() -> None:
            try:
                results.append(await self.in_thread(call))
            except SinkError as error:
                errors.append(error)
            done.set()

        nursery.start_soon(run)
        await done.wait()
        for error in errors:
            raise error
        return results[0]

    async def in_thread(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call` as a thread would run it."""
        await self.reach()
        with trio.CancelScope(shield=True) as scope:
            self._threads[scope] = None
            try:
                result = await call()
            finally:
                del self._threads[scope]
            if not self.is_dead:
                return result
        await trio.sleep_forever()
        raise AssertionError("the dead do not return")


class LifeSink:
    """A stream as one life writes to it; `on_answer` is told what it learned before it goes on."""

    def __init__(
        self,
        stream: MemoryStream,
        life: Life,
        on_answer: Callable[[Sequence[PutEntry], Sequence[EntryResult]], None] | None,
    ) -> None:
        self._stream = stream
        self._life = life
        self._on_answer = on_answer

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryResult]:
        """Put as long as there is life."""
        answer = await self._life.in_thread(partial(self._stream.put, entries, self._life.number))
        if self._on_answer is not None:
            self._on_answer(entries, answer)
        return answer


class BeatSink(LifeSink):
    """A stream whose puts may be left to themselves, in `nursery`: they end there, and may land after all."""

    def __init__(self, stream: MemoryStream, life: Life, nursery: Callable[[], trio.Nursery]) -> None:
        super().__init__(stream, life, None)
        self._nursery = nursery

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryResult]:
        """Put as long as there is life and somebody waits."""
        return await self._life.abandon(self._nursery(), partial(super().put, entries))


class MemoryWorld:
    """Everything outside of the service; it survives the service, so that another one can follow."""

    def __init__(
        self,
        symbols: Sequence[str] = ("BTCUSDT",),
        *,
        seed: int = 1,
        source: Feed | None = None,
        script: Sequence[Fault] = (),
        tick_s: float = 0.05,
        windows_differ: bool = False,
    ) -> None:
        self._began_s = trio.current_time()
        self.seed = seed
        self.symbols = tuple(symbols)
        market = source or Market(symbols, seed=seed, start_ms=START_MS, orders_per_s=2.0, updates_per_s=5.0)
        self.venue = Venue(market, script=script, wall_ns=self.wall_ns, tick_s=tick_s, windows_differ=windows_differ)
        self.data = MemoryStream(self.wall_ns, shards=2)
        self.beats = MemoryStream(self.wall_ns)
        self.streams = MemoryStreams({DATA: self.data, BEATS: self.beats})
        self.rest_requests: list[str] = []
        self.on_answer: Callable[[Sequence[PutEntry], Sequence[EntryResult]], None] | None = None
        self.clock_error_s = 0.0  # by how much the clocks of services are ahead of everybody else's
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

    def next_life(self) -> Life:
        """Begin the next run of the service."""
        self._lives += 1
        return Life(self._lives)

    def as_seen_by_a_service(self, life: Life | None = None) -> World:
        """Return it as a service takes it; each has chance of its own, as two processes would."""
        life = life or self.next_life()
        return World(
            connect=partial(self._connect, life),
            rest_transport=httpx.MockTransport(partial(self._answer, life)),
            data_sink=LifeSink(self.data, life, self.on_answer),
            heartbeat_sink=BeatSink(self.beats, life, self._threads),
            streams=self.streams,
            run_blocking=run_inline,
            wall_ns=lambda: self.wall_ns() + round(self.clock_error_s * 1e9),
            random=Random(f"{self.seed}/{life.number}"),
        )

    def _threads(self) -> trio.Nursery:
        assert self._sockets is not None
        return self._sockets

    async def _connect(self, life: Life) -> trio.abc.Stream:
        await life.reach()
        ours, theirs = memory_stream_pair()
        self._threads().start_soon(self.venue.handle, theirs)
        return ours

    async def _answer(self, life: Life, request: httpx.Request) -> httpx.Response:
        await trio.sleep(0.02)
        await life.reach()
        self.rest_requests.append(f"{request.url.path}?{request.url.query.decode()}")
        if self.venue.rest_is_mute:
            await trio.sleep(REST_TIMEOUT_S)
            raise httpx.ReadTimeout("no answer", request=request)
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
