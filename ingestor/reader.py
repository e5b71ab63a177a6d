"""Reads a Kinesis stream back: shards in, records of ours out, for `tail`, `audit` and the read-back of heartbeats.

Every shard is read, the closed ones too, parents before their children, so that records of one key keep their order
across a reshard. A page that failed is asked for again; nothing is skipped, and an empty page is not taken for the end.
What cannot be decoded is handed on as such.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import trio

from ingestor.core.backoff import Backoff
from ingestor.core.errors import DecodeError, SinkError
from ingestor.core.kpl import disaggregate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ingestor.aws import RecordsPage, StoredRecord
    from ingestor.core.model import MarketData
    from ingestor.core.shards import ShardInfo

T = TypeVar("T")
IteratorKind: TypeAlias = Literal[
    "TRIM_HORIZON", "LATEST", "AT_TIMESTAMP", "AFTER_SEQUENCE_NUMBER", "AT_SEQUENCE_NUMBER"
]
PAGE_RECORDS: Final = 10_000  # the most that GetRecords gives
LOST_ITERATOR: Final = frozenset({"ExpiredIteratorException", "InvalidArgumentException"})  # five minutes old, or worse
PERSONS_TURN: Final = frozenset({"configuration", "poison"})
PACE_S: Final = 0.25  # 5 reads a second and shard are shared by all readers (facts/aws.md §1.1): leave one to others
POLL_S: Final = 1.0


class StreamApi(Protocol):
    """What is needed of `aws.StreamClient`; every method raises `SinkError`."""

    async def list_shards(self, stream: str) -> list[ShardInfo]:
        """All shards, the closed ones too."""
        ...

    async def get_shard_iterator(
        self,
        stream: str,
        shard_id: str,
        kind: IteratorKind,
        *,
        timestamp_ms: int | None = None,
        sequence: str | None = None,
    ) -> str:
        """Say where to read a shard from."""
        ...

    async def get_records(self, iterator: str, limit: int = PAGE_RECORDS) -> RecordsPage:
        """One page of a shard."""
        ...


class Start(NamedTuple):
    """Where reading begins: at the oldest record, behind the newest, or at a time of arrival."""

    kind: Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"]
    timestamp_ms: int | None = None


OLDEST: Final = Start("TRIM_HORIZON")
LATEST: Final = Start("LATEST")


def since(timestamp_ms: int) -> Start:
    """Begin at a time of arrival, in milliseconds since the epoch; before the oldest record is no mistake."""
    return Start("AT_TIMESTAMP", timestamp_ms)


class Payload(NamedTuple):
    """One record of ours, out of its blob but not decoded; `problem` says why a blob could not be opened."""

    data: bytes
    partition_key: str
    arrival_ms: int
    problem: str | None = None


class ShardPage(NamedTuple):
    """What one read of a shard gave, in order. `millis_behind` 0: the shard held no more at that moment."""

    shard_id: str
    payloads: list[Payload]
    millis_behind: int


class ReadRecord(NamedTuple):
    """A decoded record and where it was found."""

    record: MarketData
    shard_id: str
    arrival_ms: int
    partition_key: str


class Unreadable(NamedTuple):
    """Something in the stream that is not a record of ours, and why."""

    data: bytes
    reason: str
    shard_id: str
    arrival_ms: int
    partition_key: str


Consume: TypeAlias = "Callable[[ShardPage], Awaitable[None]]"
IsEnd: TypeAlias = "Callable[[RecordsPage], bool]"


def decode_page(page: ShardPage, decode: Callable[[bytes], MarketData]) -> Iterator[ReadRecord | Unreadable]:
    """Decode what a page holds, one item for each payload."""
    for data, partition_key, arrival_ms, problem in page.payloads:
        if problem is not None:
            yield Unreadable(data, problem, page.shard_id, arrival_ms, partition_key)
            continue
        try:
            record = decode(data)
        except DecodeError as error:
            yield Unreadable(data, str(error), page.shard_id, arrival_ms, partition_key)
        else:
            yield ReadRecord(record, page.shard_id, arrival_ms, partition_key)


class StreamReader:
    """Reads all shards of one stream at once and hands pages to one consumer.

    `pace_s` is the least time between two reads of a shard, `poll_s` that between reads at its end. A patient reader
    retries every error for ever; an impatient one, for a person who waits, raises what only a person can mend.
    `report_trouble` is told of every failed call, with the seconds until the next try.
    """

    def __init__(
        self,
        api: StreamApi,
        stream: str,
        *,
        is_patient: bool = False,
        pace_s: float = PACE_S,
        poll_s: float = POLL_S,
        page_records: int = PAGE_RECORDS,
        jitter: Random | None = None,
        report_trouble: Callable[[SinkError, float], None] | None = None,
    ) -> None:
        self._api = api
        self._stream = stream
        self._is_patient = is_patient
        self._pace_s = pace_s
        self._poll_s = poll_s
        self._page_records = page_records
        self._jitter = jitter or Random()  # noqa: S311 - spreads retries, keeps no secret
        self._report_trouble = report_trouble or _say_nothing

    async def read(
        self,
        start: Start,
        consume: Consume,
        *,
        until_ms: int | None = None,
        follow: bool = False,
        on_caught_up: Callable[[], None] | None = None,
    ) -> None:
        """Hand every page from `start` to `consume`, in order for each shard, shards side by side.

        Returns when every shard was read to its present end, or to a record that arrived after `until_ms`; with
        `follow` it goes on for ever. `on_caught_up` is called once, when every shard has been at its end. Raises
        `SinkError`, itself and in no group, if the reader is not patient.
        """
        async with trio.open_nursery() as nursery:
            reading = _Reading(self, nursery, consume, until_ms, on_caught_up or _say_nothing, follow=follow)
            nursery.start_soon(reading.begin, start)
        if reading.failure is not None:
            raise reading.failure

    async def list_shards(self) -> list[ShardInfo]:
        """List all shards, however many tries it takes."""
        return await self._insist(self._backoff(), lambda: self._api.list_shards(self._stream))

    async def pages(self, shard_id: str, start: Start, consume: Consume, is_end: IsEnd) -> bool:
        """Hand the pages of one shard to `consume` until `is_end` says so; return whether it holds no more for ever."""
        cursor = _Cursor(self._api, self._stream, shard_id, start, self._page_records)
        backoff = self._backoff()
        while True:
            page = await self._insist(backoff, cursor.next_page)
            backoff.reset()
            await consume(_opened(shard_id, page))
            if page.next_iterator is None or is_end(page):
                return page.next_iterator is None
            await trio.sleep(self._pace_s if page.millis_behind else self._poll_s)

    async def _insist(self, backoff: Backoff, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except SinkError as error:
                if not self._is_patient and error.failure in PERSONS_TURN:
                    raise
                delay_s = backoff.next_delay()
                self._report_trouble(error, delay_s)
            await trio.sleep(delay_s)

    def _backoff(self) -> Backoff:
        return Backoff(initial_s=0.5, max_s=10.0, multiplier=2.0, jitter=self._jitter)


class _Cursor:
    """A place in one shard that survives expired iterators."""

    def __init__(self, api: StreamApi, stream: str, shard_id: str, start: Start, page_records: int) -> None:
        self._api = api
        self._stream = stream
        self._shard_id = shard_id
        self._start = start
        self._page_records = page_records
        self._iterator: str | None = None
        self._sequence: str | None = None

    async def next_page(self) -> RecordsPage:
        """Read on; raises `SinkError`, after which the same place is read again."""
        if self._iterator is None:
            self._iterator = await self._find_place()
        try:
            page = await self._api.get_records(self._iterator, self._page_records)
        except SinkError as error:
            if error.code in LOST_ITERATOR:
                self._iterator = None
            raise
        self._iterator = page.next_iterator
        if page.records:
            self._sequence = page.records[-1].sequence_number
        return page

    async def _find_place(self) -> str:
        get = self._api.get_shard_iterator
        if self._sequence is not None:
            try:
                return await get(self._stream, self._shard_id, "AFTER_SEQUENCE_NUMBER", sequence=self._sequence)
            except SinkError as error:
                if error.code in LOST_ITERATOR:  # somebody made the stream anew: it has no such record
                    self._sequence = None
                raise
        return await get(self._stream, self._shard_id, self._start.kind, timestamp_ms=self._start.timestamp_ms)


class _Reading:
    """One reading of a whole stream: which shards are under way, and who waits for whom."""

    def __init__(
        self,
        reader: StreamReader,
        nursery: trio.Nursery,
        consume: Consume,
        until_ms: int | None,
        on_caught_up: Callable[[], None],
        *,
        follow: bool,
    ) -> None:
        self._reader = reader
        self._nursery = nursery
        self._consume = consume
        self._until_ms = until_ms
        self._on_caught_up = on_caught_up
        self._follow = follow
        self._read: dict[str, trio.Event] = {}
        self._behind: set[str] = set()
        self._has_caught_up = False
        self.failure: SinkError | None = None

    async def begin(self, start: Start) -> None:
        """Begin every shard that is new; one that fails for good ends the whole reading."""
        try:
            shards = await self._reader.list_shards()
        except SinkError as error:
            self._fail(error)
            return
        shards = [shard for shard in shards if shard.shard_id not in self._read]
        for shard in shards:
            self._read[shard.shard_id] = trio.Event()
            self._behind.add(shard.shard_id)
        for shard in shards:
            if start.kind == "LATEST" and shard.closed:
                self._finish(shard.shard_id)
            else:
                self._nursery.start_soon(self._follow_shard, shard, start)

    async def _follow_shard(self, shard: ShardInfo, start: Start) -> None:
        for parent_id in (shard.parent_id, shard.adjacent_parent_id):
            if parent_id in self._read:
                await self._read[parent_id].wait()
        try:
            is_split = await self._reader.pages(
                shard.shard_id, start, self._consume, lambda page: self._is_end(shard, page)
            )
        except SinkError as error:
            self._fail(error)
            return
        if (
            is_split and not shard.closed
        ):  # it closed under our eyes: its children are new, and hold only what came later
            await self.begin(OLDEST if start.kind == "LATEST" else start)
        self._finish(shard.shard_id)

    def _finish(self, shard_id: str) -> None:
        self._read[shard_id].set()
        self._note_tip(shard_id)

    def _fail(self, error: SinkError) -> None:
        self.failure = error
        self._nursery.cancel_scope.cancel()

    def _is_end(self, shard: ShardInfo, page: RecordsPage) -> bool:
        if page.millis_behind == 0:
            self._note_tip(shard.shard_id)
            return not self._follow or shard.closed  # an emulator goes on giving iterators of a closed shard
        overshoots = bool(page.records) and self._until_ms is not None and page.records[-1].arrival_ms > self._until_ms
        return overshoots and not self._follow

    def _note_tip(self, shard_id: str) -> None:
        self._behind.discard(shard_id)
        if not self._behind and not self._has_caught_up:
            self._has_caught_up = True
            self._on_caught_up()


def _opened(shard_id: str, page: RecordsPage) -> ShardPage:
    payloads = [payload for record in page.records for payload in _payloads(record)]
    return ShardPage(shard_id, payloads, page.millis_behind)


def _payloads(record: StoredRecord) -> list[Payload]:
    try:
        inner = disaggregate(record.data, record.partition_key)
    except DecodeError as error:
        return [Payload(record.data, record.partition_key, record.arrival_ms, str(error))]
    return [Payload(data, partition_key, record.arrival_ms) for partition_key, _, data in inner]


def _say_nothing(*_: object) -> None:
    pass
