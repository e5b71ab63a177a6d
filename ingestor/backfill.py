"""Loads past ranges of trades and closed bars, from the archive and over REST, into the line that live records take.

Every range is resolved to ids first (a bar's id is its ordinal), so that it can be counted, divided, continued and
proven. What the archive does not have yet, or only damaged, comes over REST. Ids that the venue does not have become
holes, each with its reason: bars are really missing where the exchange was halted, and old trades are forgotten.

Requests belong to the purpose `backfill` of the weight budget: they take what live work leaves. Several symbols take
turns, page by page. Pages of one subscription are fetched side by side and sent in order.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, cast

import msgspec
import structlog
import trio

from ingestor.archive_client import ArchiveAwayError, ArchiveClient, DamagedFileError, read_lines
from ingestor.config import moment, moment_text
from ingestor.core.archive import BadRowError, days_ended, files_between, parse
from ingestor.core.binance import (
    RestKline,
    TradeRow,
    milliseconds,
    number_in,
    rest_kline_record,
    rest_trade_record,
    unreadable_row,
)
from ingestor.core.claims import Intervals, Range, kline_open_ms, kline_ordinal
from ingestor.core.errors import IngestorError
from ingestor.core.intake import held_bytes, hole_record
from ingestor.core.model import Claim, Hole, HoleReason, MarketData, RecordBatch, Subscription
from ingestor.core.paging import (
    Absence,
    Bounds,
    Page,
    Pager,
    bars_between,
    first_trade_in,
    join_newest,
    last_trade_in,
)
from ingestor.core.sharding import share
from ingestor.logs import leaves
from ingestor.rest_client import PAGE_ROWS, BadRequestError, RestrictedLocationError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ingestor.channels import BatchSender
    from ingestor.config import BackfillRange, Shard
    from ingestor.core.archive import ArchiveFile, ArchiveKind
    from ingestor.dead_letter import DeadLetterSink
    from ingestor.rest_client import RestClient
    from ingestor.threads import RunBlocking

log = structlog.get_logger()

PAGES_IN_FLIGHT: Final = 8  # 3000 pages of bars a minute, at 0.15 s each, are what the venue's whole budget allows
FILES_IN_FLIGHT: Final = 4  # of the archive, however many symbols there are
PAGE_WEIGHT: Final = {"trade": 25, "kline": 2}
_BAR_SETTLES_MS: Final = 2_000  # the venue closes a bar up to 1.8 s late; what it shows before then may still change
_VENUE_AWAY_S: Final = 5.0  # on top of the client's own retries
_FRUITLESS_DELAYS_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # the venue's database lags by a minute at worst
_LOOKUP_ROWS: Final = 100  # enough to see past rows that the venue declared invalid
_DATABASE_LAGS_MS: Final = 600_000  # more than anybody reported: what is older, the database has


Row: TypeAlias = TradeRow | RestKline


class BackfillError(IngestorError):
    """A past range that cannot be loaded as it was asked for."""


class Wanted(NamedTuple):
    """A past range as a person names it: from `start_ms` on and before `end_ms`, or ids `first_id` to `last_id`."""

    subscription: Subscription
    start_ms: int | None = None
    end_ms: int | None = None
    first_id: int | None = None
    last_id: int | None = None


class Found(NamedTuple):
    """The ids of a range, None when there are none (yet), and what a person should know of it."""

    page: Page | None
    notes: list[str] = []  # noqa: RUF012 - a default of a NamedTuple, never changed


class Todo(NamedTuple):
    """What is left to load of one subscription.

    `start_ms` and `end_ms` are the times of the whole range, where it was asked for by times; `read` are the files of
    the archive that were read to their end before, with the ids in each.
    """

    ids: Intervals
    start_ms: int | None = None
    end_ms: int | None = None
    read: Mapping[str, Range] = {}


class Watcher(Protocol):
    """Whoever wants to know how it goes."""

    def sent(self, subscription: Subscription, event_ms: int) -> None:
        """Note that records were sent, the newest of this venue time."""
        ...

    def hole(self, symbol: str, hole: Hole) -> None:
        """Note that a hole was sent."""
        ...

    def read(self, subscription: Subscription, file: str, ids: Range) -> None:
        """Note that everything in a file of the archive, these ids, was sent or need not be."""
        ...

    def refused(self, file: str, reason: str) -> None:
        """Note that a file of the archive is not used."""
        ...


def configured(ranges: Sequence[BackfillRange], shard: Shard) -> list[Wanted]:
    """Return the ranges of the configuration that are this task's share."""
    mine = share({each.symbol for each in ranges}, shard.index, shard.count)
    return [
        Wanted(
            Subscription(each.symbol, each.stream if each.interval is None else f"kline_{each.interval}"),
            _milliseconds(each.start),
            _milliseconds(each.end),
        )
        for each in ranges
        if each.symbol in mine
    ]


def _milliseconds(text: str) -> int:
    return round(moment(text).timestamp() * 1000)


async def resolve(rest: RestClient, wanted: Wanted) -> Found:
    """Return the ids of a range, as far as they are there; raises `BackfillError` when the venue refuses its symbol."""
    subscription, start_ms, end_ms = wanted.subscription, wanted.start_ms, wanted.end_ms
    try:
        if start_ms is None or end_ms is None:
            return await _trades_numbered(rest, wanted)
        start_ms = max(0, start_ms)  # the venue takes no sign
        if subscription.kind == "trade":
            return await _trades_between(rest, subscription.symbol, start_ms, end_ms)
        return await _bars_between(rest, subscription, start_ms, end_ms)
    except BadRequestError as refusal:
        raise BackfillError(f"{subscription.symbol}: the venue says {refusal}") from refusal


async def _trades_numbered(rest: RestClient, wanted: Wanted) -> Found:
    """Return the ids as they were given, as far as there are trades yet."""
    first, last = wanted.first_id, wanted.last_id
    if first is None or last is None:
        raise BackfillError("a range has a start and an end, or a first and a last id")
    newest = await rest.trades(wanted.subscription.symbol, 1, purpose="backfill")
    newest_id = newest[-1].trade_id if newest else -1
    notes = [f"{newest_id} is the newest trade now"] if newest_id < last else []
    last = min(last, newest_id)
    return Found(Page(first, last) if first <= last else None, notes)


async def _bars_between(rest: RestClient, subscription: Subscription, start_ms: int, end_ms: int) -> Found:
    interval = interval_of(subscription)
    await rest.klines(subscription.symbol, interval, limit=1, purpose="backfill")  # refuses a symbol it does not have
    settled_ms = await rest.server_time_ms() - _BAR_SETTLES_MS
    running = kline_ordinal(interval, settled_ms)
    is_cut = kline_ordinal(interval, end_ms - 1) >= running
    notes = [f"the bar of {moment_text(kline_open_ms(interval, running))} is not over yet"] if is_cut else []
    return Found(bars_between(interval, start_ms, end_ms, settled_ms), notes)


async def _trades_between(rest: RestClient, symbol: str, start_ms: int, end_ms: int) -> Found:
    """Map times to ids, by the aggregate trades: the fills of one order share their time.

    Those come from a database, which may be behind. So near the present the newest trades, which come from memory, have
    a say, and until the two agree the database gets time to catch up.
    """
    now_ms = await rest.server_time_ms()
    notes = [f"it ends in the future: loaded as far as {moment_text(now_ms // 1000 * 1000)}"] if end_ms > now_ms else []
    bounds = known = Bounds(None, None)
    for delay_s in (0.0, *_FRUITLESS_DELAYS_S):
        await trio.sleep(delay_s)
        known = Bounds(await _first_trade_from(rest, symbol, start_ms), await _last_trade_before(rest, symbol, end_ms))
        if end_ms <= now_ms - _DATABASE_LAGS_MS or await _first_trade_from(rest, symbol, end_ms) is not None:
            bounds = known
            break
        newest = await rest.trades(symbol, PAGE_ROWS, purpose="backfill")
        joined = join_newest(known, [(row.trade_id, milliseconds(row.time)) for row in newest], start_ms, end_ms)
        if joined is not None:
            bounds = joined
            break
    else:
        bounds = known
        notes.append("the venue's database is behind: the newest trades before the end are not in it yet")
    if bounds.first and await _last_trade_before(rest, symbol, start_ms) is None:
        notes.append(f"the venue tells of no trade before id {bounds.first}: older ones of this range are forgotten")
    return Found(bounds.page(), notes)


async def _first_trade_from(rest: RestClient, symbol: str, start_ms: int) -> int | None:
    rows = await rest.agg_trades(symbol, start_ms=start_ms, limit=_LOOKUP_ROWS, purpose="backfill")
    while rows:
        first = first_trade_in(rows)
        if first is not None:
            return first
        rows = await rest.agg_trades(symbol, from_id=rows[-1].aggregate_id + 1, purpose="backfill")
    return None


async def _last_trade_before(rest: RestClient, symbol: str, end_ms: int) -> int | None:
    if end_ms <= 0:  # the venue takes no sign
        return None
    rows = await rest.agg_trades(symbol, end_ms=end_ms - 1, limit=_LOOKUP_ROWS, purpose="backfill")
    while rows:
        last = last_trade_in(rows)
        if last is not None:
            return last
        oldest = rows[0].aggregate_id
        before = await rest.agg_trades(symbol, from_id=max(0, oldest - PAGE_ROWS), purpose="backfill")
        rows = [row for row in before if row.aggregate_id < oldest]
    return None


class Backfill:
    """Loads past ranges.

    `records` is this task's sender into the line; whoever made it closes it. `files` None leaves the archive aside.
    `run_blocking` is where files are read, `wall_ns` is the wall clock, `dead_letters` takes rows that cannot be read.
    """

    def __init__(
        self,
        rest: RestClient,
        records: BatchSender[RecordBatch],
        *,
        files: ArchiveClient | None,
        run_blocking: RunBlocking,
        wall_ns: Callable[[], int],
        watcher: Watcher,
        dead_letters: DeadLetterSink,
    ) -> None:
        self._rest = rest
        self._files = files
        self._places = trio.Semaphore(FILES_IN_FLIGHT)
        self._run_blocking = run_blocking
        self._outlet = _Outlet(records, wall_ns, watcher, dead_letters)

    async def run(self, todo: Mapping[Subscription, Todo]) -> None:
        """Send everything in `todo`, or declare it; the subscriptions side by side.

        Raises `BackfillError`, `RestrictedLocationError`, `FolderError`; a venue that is away is asked again for ever.
        """
        async with trio.open_nursery() as nursery:
            for subscription, what in todo.items():
                nursery.start_soon(self.load, subscription, what, workers_of_each(len(todo)))

    async def load(self, subscription: Subscription, todo: Todo, workers: int) -> None:
        """Send everything of one subscription, at most `workers` pages of it at once; errors as for `run`."""
        left = todo.ids.copy()
        if self._files is not None:
            load = _ArchiveLoad(subscription, left, self._files, self._run_blocking, self._outlet)
            await load.run(await files_of(self._rest, subscription, todo), todo.read, self._places)
        await _RestLoad(subscription, left, self._rest, self._outlet).run(workers)


def workers_of_each(subscriptions: int) -> int:
    """Return how many pages each of so many subscriptions may have in flight."""
    return max(1, PAGES_IN_FLIGHT // max(1, subscriptions))


async def files_of(rest: RestClient, subscription: Subscription, todo: Todo) -> list[ArchiveFile]:
    """Return the files of the archive that hold what is left, oldest first, whether they exist or not.

    A range that was asked for by times has them; ids are looked up, which fails (`BackfillError`) for trades that the
    venue forgot.
    """
    now_ms = await rest.server_time_ms()
    symbol, interval, ids = subscription.symbol, interval_of(subscription), todo.ids
    if subscription.kind != "trade":
        first_ms, last_ms = kline_open_ms(interval, ids.lowest), kline_open_ms(interval, ids.highest)
    elif todo.start_ms is not None and todo.end_ms is not None:
        first_ms, last_ms = todo.start_ms, todo.end_ms - 1
    else:
        first_ms, last_ms = [await _time_of(rest, symbol, each) for each in (ids.lowest, ids.highest)]
    files = files_between(symbol, _archive_kind(subscription), interval, first_ms, last_ms + 1, now_ms=now_ms)
    return [file for file in files if _is_needed(file, ids, todo.read)]


async def behind_archive(rest: RestClient, subscription: Subscription, ids: Intervals) -> Intervals:
    """Return which ids the archive cannot have yet: a day is in it once it is over, at the earliest."""
    today_ms = days_ended(await rest.server_time_ms())
    if subscription.kind == "trade":
        first = await _first_trade_from(rest, subscription.symbol, today_ms)
    else:
        first = kline_ordinal(interval_of(subscription), today_ms - 1) + 1
    return Intervals() if first is None else ids.within(first, ids.highest)


async def _time_of(rest: RestClient, symbol: str, trade_id: int) -> int:
    rows = await rest.historical_trades(symbol, trade_id, 1, purpose="backfill")
    if not rows or rows[0].trade_id != trade_id:
        raise BackfillError(
            f"{symbol}: the venue does not keep trade {trade_id}, so its day is not known; "
            "say --start and --end to load it from the archive"
        )
    return milliseconds(rows[0].time)


def _is_needed(file: ArchiveFile, ids: Intervals, read: Mapping[str, Range]) -> bool:
    """Whether any of `ids` may be in a file; of one that was not read to its end, nobody knows."""
    known = read.get(file.name)
    return known is None or bool(ids.within(known.first, known.last))


def _archive_kind(subscription: Subscription) -> ArchiveKind:
    return "trades" if subscription.kind == "trade" else "klines"


def kind_of(subscription: Subscription) -> str:
    """Return `trade` or `kline`."""
    return subscription.kind.partition("_")[0]


class HoleWatcher:
    """The watcher that passes holes on to `on_hole`, and nothing else."""

    def __init__(self, on_hole: Callable[[str, Hole], None]) -> None:
        self._on_hole = on_hole

    def hole(self, symbol: str, hole: Hole) -> None:
        """Pass it on."""
        self._on_hole(symbol, hole)

    def sent(self, subscription: Subscription, event_ms: int) -> None:
        """Ignore it."""

    def read(self, subscription: Subscription, file: str, ids: Range) -> None:
        """Ignore it."""

    def refused(self, file: str, reason: str) -> None:
        """Ignore it; it is in the log."""


class Background:
    """The ranges of the configuration, beside live work: nothing of it may end the service or hold it up.

    `covered` says what of a subscription earlier tasks delivered; run it once that is known.
    """

    def __init__(
        self,
        backfill: Backfill,
        rest: RestClient,
        ranges: Sequence[Wanted],
        covered: Callable[[Subscription], Intervals],
    ) -> None:
        self._backfill = backfill
        self._rest = rest
        self._ranges = ranges
        self._covered = covered

    async def run(self) -> None:
        """Load what is not delivered yet; what one range meets does not touch the others."""
        left: dict[Subscription, Intervals] = {}
        for wanted in self._ranges:
            page = await self._resolve(wanted)
            if page is not None:
                missing = self._covered(wanted.subscription).missing(page.first, page.last)
                left.setdefault(wanted.subscription, Intervals()).update(missing)
        log.info("backfill_begins", ids={each.stream_name: ids.count() for each, ids in left.items()})
        async with trio.open_nursery() as nursery:
            for subscription, ids in left.items():
                nursery.start_soon(self._load, subscription, ids, workers_of_each(len(left)))

    async def _load(self, subscription: Subscription, ids: Intervals, workers: int) -> None:
        try:
            await self._backfill.load(subscription, Todo(ids), workers)
        except* (BackfillError, RestrictedLocationError) as group:
            errors = [str(error) for error in leaves(group)]
            log.warning("backfill_ended", stream=subscription.stream_name, errors=errors)
        else:
            log.info("backfill_done", stream=subscription.stream_name)

    async def _resolve(self, wanted: Wanted) -> Page | None:
        while True:
            try:
                page, notes = await resolve(self._rest, wanted)
            except UnavailableError as failure:
                log.warning("backfill_waits", symbol=wanted.subscription.symbol, reason=str(failure))
            except (BackfillError, RestrictedLocationError) as error:
                log.warning("backfill_range_refused", stream=wanted.subscription.stream_name, error=str(error))
                return None
            else:
                for note in notes:
                    log.warning("backfill_range", stream=wanted.subscription.stream_name, note=note)
                return page
            await trio.sleep(_VENUE_AWAY_S)


class _Outlet:
    """The way into the line."""

    def __init__(
        self,
        records: BatchSender[RecordBatch],
        wall_ns: Callable[[], int],
        watcher: Watcher,
        dead_letters: DeadLetterSink,
    ) -> None:
        self._records = records
        self._wall_ns = wall_ns
        self._dead_letters = dead_letters
        self.watcher = watcher

    async def wait_for_room(self) -> None:
        """Live records come first: wait until the line is at most half full."""
        await self._records.wait_for_room()

    async def deliver(self, way: _Rows, rows: Sequence[Row], raws: list[bytes]) -> None:
        """Put the records of rows on the line, each beside the bytes it came from."""
        if rows:
            received_us = self._wall_ns() // 1000
            await self.send(way.subscription, way.records(rows, received_us), raws)

    async def send(self, subscription: Subscription, records: list[MarketData], raws: list[bytes]) -> None:
        """Put records on the line."""
        await self._records.send(RecordBatch(records, raws, trio.current_time(), held_bytes(raws)))
        self.watcher.sent(subscription, records[-1].timestamp)

    async def give_up(self, subscription: Subscription, rows: Mapping[bytes, int | None]) -> None:
        """Let go of rows that cannot be read, each with the id it stands for, if that is known."""
        at_ms = self._wall_ns() // 1_000_000
        await self._dead_letters.write(
            [
                unreadable_row(raw, at_ms, subscription, None if each is None else Claim(subscription, each, each))
                for raw, each in rows.items()
            ]
        )

    async def declare(self, subscription: Subscription, absence: Absence) -> None:
        """Say in the stream that the venue does not have these ids."""
        now_us = self._wall_ns() // 1000
        hole = Hole(subscription.kind, absence.first, absence.last, absence.reason, now_us // 1000)
        record = hole_record(subscription.symbol, hole, now_us)
        await self._records.send(RecordBatch([record], [b""], trio.current_time(), held_bytes([b""])))
        self.watcher.hole(subscription.symbol, hole)


class _Rows(Protocol):
    """How rows of one subscription are counted and made into records; a page at a time, because a file has millions."""

    @property
    def subscription(self) -> Subscription:
        """Whose rows they are."""
        ...

    def ids(self, rows: Sequence[Row]) -> list[int]:
        """Return the id of every row."""
        ...

    def id_in(self, raw: bytes) -> int | None:
        """Return the id of a row that cannot be read, if that much can."""
        ...

    def records(self, rows: Sequence[Row], received_us: int) -> list[MarketData]:
        """Return the record of every row."""
        ...


class _TradeRows(NamedTuple):
    subscription: Subscription

    def ids(self, rows: Sequence[TradeRow]) -> list[int]:
        return [row.trade_id for row in rows]

    def id_in(self, raw: bytes) -> int | None:
        return number_in(raw)

    def records(self, rows: Sequence[TradeRow], received_us: int) -> list[MarketData]:
        symbol = self.subscription.symbol
        return [rest_trade_record(symbol, row, received_us) for row in rows]


class _BarRows(NamedTuple):
    subscription: Subscription

    def ids(self, rows: Sequence[RestKline]) -> list[int]:
        interval = interval_of(self.subscription)
        return [kline_ordinal(interval, milliseconds(row.open_time)) for row in rows]

    def id_in(self, raw: bytes) -> int | None:
        opened = number_in(raw)
        return None if opened is None else kline_ordinal(interval_of(self.subscription), milliseconds(opened))

    def records(self, rows: Sequence[RestKline], received_us: int) -> list[MarketData]:
        symbol, interval = self.subscription.symbol, interval_of(self.subscription)
        return [rest_kline_record(symbol, interval, row, received_us, closed=True) for row in rows]


def interval_of(subscription: Subscription) -> str:
    """Return the interval of bars, such as `1m`."""
    return subscription.kind.removeprefix("kline_")


def _rows_of(subscription: Subscription) -> _Rows:
    return cast("_Rows", (_TradeRows if subscription.kind == "trade" else _BarRows)(subscription))


class _Turns:
    """Lets those who drew a number pass in the order of their numbers."""

    def __init__(self) -> None:
        self._drawn = 0
        self._served = 0
        self._waiting = trio.lowlevel.ParkingLot()

    def draw(self) -> int:
        self._drawn += 1
        return self._drawn

    async def wait_for(self, number: int) -> None:
        await trio.lowlevel.checkpoint()
        while number != self._served + 1:
            await self._waiting.park()

    def finish(self) -> None:
        self._served += 1
        self._waiting.unpark_all()


class _ArchiveLoad:
    """One subscription from the archive; what was sent is taken out of `left`."""

    def __init__(
        self,
        subscription: Subscription,
        left: Intervals,
        files: ArchiveClient,
        run_blocking: RunBlocking,
        outlet: _Outlet,
    ) -> None:
        self._subscription = subscription
        self._left = left
        self._files = files
        self._run_blocking = run_blocking
        self._outlet = outlet
        self._rows = _rows_of(subscription)
        self._kind: ArchiveKind = _archive_kind(subscription)

    async def run(self, files: Sequence[ArchiveFile], read: Mapping[str, Range], places: trio.Semaphore) -> None:
        """Send what the archive has of what is left, file after file; one at a time, and only in one of `places`."""
        todo = deque(files)
        while todo:
            file = todo.popleft()
            async with places:
                is_there = await self._load(file)
            if not is_there and file.is_month:  # it comes days after the month, the days come next day
                todo.extendleft(day for day in reversed(file.days()) if _is_needed(day, self._left, read))

    async def _load(self, file: ArchiveFile) -> bool:
        """Send what is wanted of one file; False when the archive does not have it."""
        try:
            path = await self._fetch(file)
            if path is None:
                return False
            ids = await self._read(path)
        except (DamagedFileError, BadRowError) as error:
            reason = str(error).removeprefix(f"{file.name}: ")
            log.warning("archive_file_refused", file=file.name, error=reason)
            self._outlet.watcher.refused(file.name, reason)
        else:
            self._outlet.watcher.read(self._subscription, file.name, ids)
        await self._files.forget(file)
        return True

    async def _fetch(self, file: ArchiveFile) -> Path | None:
        while True:
            try:
                return await self._files.fetch(file)
            except ArchiveAwayError as failure:
                log.warning("backfill_waits", file=file.name, reason=str(failure))
            await trio.sleep(_VENUE_AWAY_S)

    async def _read(self, path: Path) -> Range:
        """Send the rows of a file that are left to send; return the ids between which all of its rows are."""
        first, last = inf, -1
        with closing(read_lines(path)) as chunks:
            while (lines := await self._run_blocking(partial(next, chunks, None))) is not None:
                rows = parse(self._kind, lines)
                ids = self._rows.ids(rows)
                if ids:
                    first, last = min(first, ids[0]), max(last, ids[-1])
                wanted = self._take(ids)
                if wanted is not None:
                    rows, lines = [rows[at] for at in wanted], [lines[at] for at in wanted]
                await self._outlet.wait_for_room()
                await self._outlet.deliver(self._rows, rows, lines)
        return Range(int(first), last) if last >= 0 else Range(0, -1)

    def _take(self, ids: list[int]) -> list[int] | None:
        """Return the positions of the ids that are left to send, each once, None for all; they are left no longer."""
        if ids and ids == list(range(ids[0], ids[0] + len(ids))) and self._left.covers(ids[0], ids[-1]):
            self._left.discard(ids[0], ids[-1])
            return None
        positions = []
        for position, number in enumerate(ids):
            if number in self._left:
                self._left.discard(number, number)
                positions.append(position)
        return positions


class _RestLoad:
    """One subscription over REST."""

    def __init__(self, subscription: Subscription, ids: Intervals, rest: RestClient, outlet: _Outlet) -> None:
        head_reason: HoleReason = "venue_forgot" if subscription.kind == "trade" else "venue_has_none"
        self._pager = Pager(ids, PAGE_ROWS, head_reason)
        self._subscription = subscription
        self._rows = _rows_of(subscription)
        self._rest = rest
        self._outlet = outlet
        self._turns = _Turns()
        self._asking = trio.Lock()  # held until the budget admits, or later pages would be admitted before earlier ones

    async def run(self, workers: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        """Fetch one page after the other, and hold it until all before it were sent."""
        while True:
            await self._asking.acquire()
            await self._outlet.wait_for_room()
            page = self._pager.take()
            if page is None:
                self._asking.release()
                return
            number = self._turns.draw()
            rows, absences = await self._read(page)
            await self._turns.wait_for(number)
            await self._outlet.deliver(self._rows, rows, [msgspec.json.encode(row) for row in rows])
            for absence in absences:
                await self._outlet.declare(self._subscription, absence)
            self._turns.finish()

    async def _read(self, page: Page) -> tuple[list[Row], list[Absence]]:
        """Return all rows of a page, and what is not there; the venue's database gets time to catch up.

        Patience ends where nothing more comes, not where an answer is shorter than it was asked to be.
        """
        found: list[Row] = []
        absences: list[Absence] = []
        delays = iter(_FRUITLESS_DELAYS_S)
        asked = page
        while True:
            rows, unreadable = await self._fetch(asked)
            ids = self._rows.ids(rows)
            found += [row for row, number in zip(rows, ids, strict=True) if asked.first <= number <= asked.last]
            poison = await self._give_up(asked, unreadable)
            absences += [Absence(number, number, "poison") for number in poison]
            ids = sorted([*ids, *poison])
            absent, lacking = self._pager.settle(asked, ids)
            nameless = len(unreadable) - len(poison)  # so many ids are not absent, only nobody knows which
            absences += [each._replace(reason="poison") if each.size <= nameless else each for each in absent]
            if lacking is None:
                return found, absences
            if lacking.first > asked.first:
                delays = iter(_FRUITLESS_DELAYS_S)
            delay_s = next(delays, None)
            if delay_s is None:
                return found, absences + self._given_up(lacking, ids)
            await trio.sleep(delay_s)
            asked = lacking

    def _given_up(self, lacking: Page, ids: Sequence[int]) -> list[Absence]:
        """Say what it means that nothing of `lacking` came, again and again; `ids` came instead, the last time."""
        return [Absence(*lacking, "venue_has_none")] if ids else self._pager.give_up(lacking)

    async def _give_up(self, page: Page, rows: Sequence[bytes]) -> list[int]:
        """Let go of rows that cannot be read; return those ids of the page that are known of them."""
        numbers: dict[bytes, int | None] = {}
        for raw in rows:
            number = page.first if page.size == 1 else self._rows.id_in(raw)
            numbers[raw] = number if number is not None and page.first <= number <= page.last else None
        if numbers:
            await self._outlet.give_up(self._subscription, numbers)
        return [number for number in numbers.values() if number is not None]

    async def _fetch(self, page: Page) -> tuple[Sequence[Row], list[bytes]]:
        """Return the rows of a page, and those that cannot be read."""
        symbol = self._subscription.symbol
        while True:
            unreadable: list[bytes] = []
            try:
                if self._subscription.kind == "trade":
                    return await self._rest.historical_trades(
                        symbol,
                        page.first,
                        page.size,
                        purpose="backfill",
                        on_admitted=self._asked,
                        on_unreadable=unreadable.extend,
                    ), unreadable
                interval = interval_of(self._subscription)
                return await self._rest.klines(
                    symbol,
                    interval,
                    start_ms=kline_open_ms(interval, page.first),
                    limit=page.size,
                    purpose="backfill",
                    on_admitted=self._asked,
                    on_unreadable=unreadable.extend,
                ), unreadable
            except UnavailableError as failure:
                log.warning("backfill_waits", symbol=symbol, reason=str(failure))
                await trio.sleep(_VENUE_AWAY_S)
            except BadRequestError as refusal:
                raise BackfillError(f"{symbol}: the venue says {refusal}") from refusal

    def _asked(self) -> None:
        """Let the next page be asked for; a request that is sent again has done so before."""
        if self._asking.statistics().owner is trio.lowlevel.current_task():
            self._asking.release()
