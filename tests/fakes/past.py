"""A venue with a past, and a world around one backfill: REST by the simulator's own desk, Kinesis and files in memory.

`kill_at_s` ends the world as SIGKILL would: from then on no call returns, and what landed may not have been answered.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qsl

import httpx
import trio

from ingestor.config import Binance, Config, DeadLetters, Kinesis
from ingestor.core.kpl import disaggregate
from ingestor.local.archive import ArchiveDesk
from ingestor.local.history import UNIT, Bar, Fill, History, bar_close_ms, bar_open_ms
from ingestor.local.protocol import Rules
from ingestor.local.rest import Response, RestDesk
from ingestor.serializer import Serializer
from ingestor.world import World
from tests.fakes.streams import MemoryStream, MemoryStreams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from ingestor.aws import StoredRecord
    from ingestor.core.model import EntryResult, MarketData, PutEntry

T = TypeVar("T")
_DECODE = Serializer().decode
START_MS = 29_833_334 * 60_000  # in 2026; a full minute, so that budgets begin with the clock of Trio
DATA = "data"


def history_of(symbol: str, *, trades: Iterable[int], step_ms: int, start_ms: int, seed: int = 0) -> History:
    """Make trades of these ids, two of one order every `2 * step_ms`, and nothing else."""
    history = History(symbol, start_ms=start_ms, keep_trades=10**9)
    random = Random(f"{symbol}/{seed}")
    for number, trade_id in enumerate(trades):
        price, quantity = random.randrange(1, 9 * UNIT), random.randrange(1, UNIT)
        at_ms = start_ms + number // 2 * 2 * step_ms
        history.add_fill(Fill(trade_id, price, quantity, at_ms, random.random() < 0.5, number // 2))
    return history


def add_bars(history: History, interval: str, start_ms: int, end_ms: int) -> None:
    """Add bars that open from `start_ms` on and before `end_ms`."""
    at_ms = bar_open_ms(interval, start_ms)
    while at_ms < end_ms:
        history.add_bar(interval, Bar(at_ms, 1, 4, 1, 3 + at_ms % 7, volume=7, quote=9, taker=2, count=2))
        at_ms = bar_close_ms(interval, at_ms) + 1


class PastVenue:
    """Answers REST and the archive, each request after `latency_s`; its clock begins `offset_s` into a minute."""

    def __init__(
        self,
        histories: Sequence[History],
        *,
        rules: Rules | None = None,
        latency_s: float = 0.05,
        offset_s: float = 0.0,
    ) -> None:
        self._offset_s = offset_s
        self._histories = {history.symbol: history for history in histories}
        self.symbols = tuple(self._histories)
        self.desk = RestDesk(self, rules or Rules())
        self.archive = ArchiveDesk(self)
        self.latency_s = latency_s
        self.is_archive_away = False
        self.downloads = self.most_downloads = 0
        self.requests: list[tuple[float, str]] = []
        self.statuses: Counter[int] = Counter()
        self.on_request: Callable[[int], None] | None = None  # told how many there were
        self.began_s: float | None = None

    def wall_ns(self) -> int:
        """Tell the wall clock, which moves with Trio's and begins when it is first looked at."""
        now = trio.current_time()
        if self.began_s is None:
            self.began_s = now - self._offset_s
        return START_MS * 1_000_000 + round((now - self.began_s) * 1e9)

    @property
    def now_ms(self) -> int:
        return self.wall_ns() // 1_000_000

    def history(self, symbol: str) -> History | None:
        return self._histories.get(symbol)

    def depth(self, symbol: str, limit: int) -> Any:
        raise NotImplementedError

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer one request of a client."""
        path, query = request.url.path, request.url.query.decode()
        self.requests.append((trio.current_time(), f"{path}?{query}"))
        if self.on_request is not None:
            self.on_request(len(self.requests))
        self.downloads += path.endswith(".zip")
        self.most_downloads = max(self.downloads, self.most_downloads)
        await trio.sleep(self.latency_s / 2)
        if self.is_archive_away and path.startswith("/data/"):
            answer = Response(503, b"")
        elif path.startswith("/data/"):
            answer = self.archive.answer(path, request.headers.get("range"))
        else:
            answer = self.desk.answer(path, parse_qsl(query), self.now_ms)
        self.statuses[answer.status] += 1
        await trio.sleep(self.latency_s / 2)
        self.downloads -= path.endswith(".zip")
        return httpx.Response(answer.status, headers=list(answer.headers), content=answer.body)


class PastWorld:
    """What one backfill after the other finds: the same venue, the same stream."""

    def __init__(self, venue: PastVenue, folder: Path, *, put_s: float = 0.1, clock_ahead_s: float = 0.0) -> None:
        """`clock_ahead_s` is how wrong our clock is."""
        self.venue = venue
        self._clock_ahead_ns = round(clock_ahead_s * 1e9)
        self.stream = MemoryStream(venue.wall_ns)
        self.streams = {DATA: self.stream}
        self.distribution: str | None = None
        self.kill_at_s = float("inf")
        self._put_s = put_s
        self._lives = 0
        self.config = Config(
            binance=Binance(rest_url="http://venue", archive_url="http://archive", allow_plaintext=True),
            kinesis=Kinesis(stream_name=DATA),
            dead_letter=DeadLetters(directory=folder / "dead-letter"),
        )

    def open(self) -> World:
        """Make the world for the next run."""
        self._lives += 1
        return World(
            connect=cast("Any", None),
            rest_transport=httpx.MockTransport(self.venue.answer),
            data_sink=self,
            heartbeat_sink=cast("Any", None),
            streams=MemoryStreams(self.streams, distribution=self.distribution),
            run_blocking=self.run_blocking,
            wall_ns=lambda: self.venue.wall_ns() + self._clock_ahead_ns,
            random=Random(self._lives),
        )

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryResult]:
        """Store entries half-way through the call, as a real one may before its answer is lost."""
        await self._pass(self._put_s / 2)
        answer = await self.stream.put(entries)
        await self._pass(self._put_s / 2)
        return answer

    async def run_blocking(self, fn: Callable[[], T], /) -> T:
        """Do blocking work right here: Trio's autojump clock does not see threads."""
        await self._pass(0.001)
        result = fn()
        await self._pass(0.001)
        return result

    def delivered(self) -> list[MarketData]:
        """Everything in the stream, in order."""
        return [one for record in self.stream.records() for one in self.opened(record)]

    def opened(self, record: StoredRecord) -> list[MarketData]:
        """Return what is in one record of the stream."""
        return [_DECODE(inner.data) for inner in disaggregate(record.data, record.partition_key)]

    async def _pass(self, seconds: float) -> None:
        await trio.sleep(seconds)
        if trio.current_time() >= self.kill_at_s:
            await trio.sleep_forever()
