"""Closes over REST what was not seen live, or declares it; and seeds the order books.

Three jobs run side by side in one nursery, each within its part of the weight budget: trades, closed bars, books. None
of them ever holds up the live reader: gaps and requests are noted without waiting, and a page is fetched only while the
line has room, one page at a time.

What is missing stays noted until its records, or the hole that declares it, are on the line. A venue that cannot be
reached is asked again for ever; a venue that answers and does not have the ids is asked a bounded number of times,
because its database may lag behind its streams (facts/binance.md §6), and then they are a hole.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import structlog
import trio

from ingestor.core.binance import milliseconds, number_in, rest_kline_record, rest_trade_record, unreadable_row
from ingestor.core.claims import Intervals, kline_open_ms, kline_ordinal
from ingestor.core.gaps import PendingGaps
from ingestor.core.intake import held_bytes, hole_record
from ingestor.core.model import Claim, Gap, Hole, HoleReason, MarketData, RecordBatch, Subscription
from ingestor.rest_client import INVALID_SYMBOL, PAGE_ROWS, BadRequestError, UnavailableError, depth_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random
    from typing import NoReturn

    from ingestor import config
    from ingestor.channels import BatchSender
    from ingestor.core.binance import DepthSnapshot, RestKline, RestTrade
    from ingestor.core.weight import Purpose
    from ingestor.dead_letter import DeadLetterSink
    from ingestor.metrics import Metrics
    from ingestor.rest_client import RestClient

log = structlog.get_logger()

_FRUITLESS_DELAYS_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)  # a lag of a minute and a half is waited for
_VENUE_AWAY_S: Final = 5.0  # on top of the client's own retries
_BAR_SETTLES_MS: Final = 2_000  # the venue closes a bar up to 1.8 s late; what it shows before then may still change

_BOOK_WORKERS: Final = 3
_FEW_LEVELS: Final = 100  # the dearest snapshot of the lowest price
_LOOK_AGAIN_S: Final = 1.0
_LONGEST_RUSH_S: Final = 300.0  # symbols that never speak must not keep the others from being refreshed
_REFRESH_SPREAD: Final = (0.75, 1.25)
_RELAPSE_S: Final = 60.0  # a book lost again this soon after its snapshot waits longer for the next one
_LONGEST_BOOK_WAIT_S: Final = 60.0

_NEWEST_REPAIRS: Final = 100
_HIGHEST_ID: Final = 2**63 - 1


class Books(Protocol):
    """The order books, as their owner lets them be seeded."""

    def begin_buffering(self, symbol: str) -> None:
        """Keep the diffs of `symbol` from now on: a snapshot is on its way."""
        ...

    def end_buffering(self, symbol: str) -> None:
        """Keep them no longer: none is on its way, and the next one may be long in coming."""
        ...

    def load_snapshot(self, symbol: str, snapshot: DepthSnapshot, levels: int, received_us: int) -> MarketData | None:
        """Start the book from a snapshot of at most `levels` a side and return its record; None asks for another."""
        ...

    def in_doubt(self) -> int:
        """How many books need a snapshot, or may find out that they do, whether they have asked for one or not."""
        ...


class Repair:
    """Takes gaps and requests for snapshots, and works them off until cancelled.

    `records` is this task's sender into the line; `run` closes it. `on_hole` is told every hole that was declared,
    with its symbol, and is the one who logs and counts it. `wall_ns` is the wall clock.
    """

    def __init__(
        self,
        rest: RestClient,
        books: Books,
        records: BatchSender[RecordBatch],
        settings: config.Repair,
        book_settings: config.Book,
        *,
        metrics: Metrics,
        wall_ns: Callable[[], int],
        random: Random,
        on_hole: Callable[[str, Hole], None],
        dead_letters: DeadLetterSink,
    ) -> None:
        self._metrics = metrics
        self._outlet = outlet = _Outlet(records, metrics, wall_ns, on_hole, dead_letters)
        trades, bars, diffs = _Ledger(outlet), _Ledger(outlet), _Ledger(outlet)
        given_up = partial(_Declaration, reason="repair_limit")
        by_id = _TradePages(rest, trades, settings.max_trades_per_gap)
        self._trades = _GapRepair(trades, by_id if settings.enabled else given_up(trades))
        self._bars = _GapRepair(bars, _BarPages(rest, bars) if settings.enabled else given_up(bars))
        self._diffs = _GapRepair(diffs, _Declaration(diffs, reason="disconnected"))
        self._restarts = _Restarts(outlet)
        self._ledgers = {"trade": trades, "kline": bars, "depth": diffs}
        self._books = _BookSync(rest, books, outlet, book_settings, random)

    def report_gap(self, gap: Gap) -> None:
        """Note ids that were not seen live; never blocks. Trades and closed bars are fetched, depth is declared."""
        self._metrics.gaps_detected.labels(_stream_type(gap.subscription)).inc()
        log.info("gap", symbol=gap.subscription.symbol, kind=gap.subscription.kind, first=gap.first, last=gap.last)
        jobs = {"trade": self._trades, "kline": self._bars, "depth": self._diffs}
        jobs[_stream_type(gap.subscription)].note(gap)

    def report_restart(self, unseen: Gap) -> None:
        """Note which ids of a new generation nobody saw, perhaps none, to be declared; never blocks."""
        self._restarts.note([unseen])

    def report_lost(self, lost: Sequence[Gap]) -> None:
        """Note ids from before a restart that nobody can fetch any more, to be declared; never blocks."""
        self._restarts.note(lost)

    async def give_up(self, subscription: Subscription) -> None:
        """Declare what is owed of a subscription whose ids begin again now: the same numbers are other events then."""
        pending = self._ledgers[_stream_type(subscription)].pending
        owed = pending.within(subscription, 0, _HIGHEST_ID)
        pending.withdraw(subscription, 0, _HIGHEST_ID)  # at once: what is reported while we wait is of the new ids
        for each in owed:
            await self._outlet.declare(each, "id_restart")

    def request_snapshot(self, symbol: str) -> None:
        """Note that the book of `symbol` needs a snapshot; never blocks."""
        self._books.request(symbol)

    def forget_book(self, symbol: str) -> None:
        """Note that there is no book of `symbol` any more. Ids that are missing stay owed, whoever carries it next."""
        self._books.forget(symbol)

    def pending(self) -> dict[str, int]:
        """How much is not done yet: missing trades, missing bars, books that wait for a snapshot."""
        return {
            "trades": self._trades.owed(),
            "bars": self._bars.owed(),
            "books": self._books.waiting(),
        }

    def newest(self) -> list[dict[str, Any]]:
        """Return the newest runs of ids that were fetched and put on the line, oldest first."""
        return list(self._outlet.repaired)

    async def run(self) -> None:
        """Repair until cancelled; what is left then is not claimed, so the next task finds it."""
        with self._outlet.records:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._trades.run)
                nursery.start_soon(self._bars.run)
                nursery.start_soon(self._diffs.run)
                nursery.start_soon(self._restarts.run)
                for _ in range(_BOOK_WORKERS):
                    nursery.start_soon(self._books.run, True)
                nursery.start_soon(self._books.run, False)


class _Outlet:
    """The way into the line, and the account of what went there."""

    def __init__(
        self,
        records: BatchSender[RecordBatch],
        metrics: Metrics,
        wall_ns: Callable[[], int],
        on_hole: Callable[[str, Hole], None],
        dead_letters: DeadLetterSink,
    ) -> None:
        self.dead_letters = dead_letters
        self.records = records
        self.metrics = metrics
        self.repaired: deque[dict[str, Any]] = deque(maxlen=_NEWEST_REPAIRS)
        self._wall_ns = wall_ns
        self._on_hole = on_hole

    def now_us(self) -> int:
        return self._wall_ns() // 1000

    async def send(self, records: list[MarketData], raws: list[bytes]) -> None:
        """Put records on the line, each beside the row it came from."""
        books = (record.depth for record in records if record.depth is not None)
        size_bytes = held_bytes(raws, sum(len(book.bids) + len(book.asks) for book in books))
        await self.records.send(RecordBatch(records, raws, trio.current_time(), size_bytes))

    def note_repaired(self, subscription: Subscription, first: int, last: int) -> None:
        """Remember which ids were fetched, and when."""
        symbol, kind = subscription
        repaired_ms = self._wall_ns() // 1_000_000
        self.repaired.append(
            {"symbol": symbol, "stream": kind, "first": first, "last": last, "repaired_ms": repaired_ms}
        )

    async def declare(self, gap: Gap, reason: HoleReason) -> None:
        """Say in the stream that the ids of `gap` are not in it."""
        symbol, kind = gap.subscription
        hole = Hole(kind, gap.first, gap.last, reason, gap.detected_ms)
        await self.send([hole_record(symbol, hole, self.now_us())], [b""])
        self._on_hole(symbol, hole)


class _Bell:
    """Wakes the workers of one job when there is news, or when it is time."""

    def __init__(self) -> None:
        self._news = trio.Event()

    def ring(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def wait_until(self, due_at: float) -> None:
        """Wait for a ring, until `due_at` at the latest."""
        with trio.move_on_at(due_at):
            await self._news.wait()


class _Ledger:
    """What one job still owes, and the way to pay: by delivering it, or by declaring it."""

    def __init__(self, outlet: _Outlet) -> None:
        self.pending = PendingGaps()
        self._outlet = outlet

    def now_us(self) -> int:
        return self._outlet.now_us()

    async def wait_for_room(self) -> None:
        await self._outlet.records.wait_for_room()

    def owed(self, subscription: Subscription, first: int, last: int) -> Intervals:
        """Return what is still owed of `first` to `last` (inclusive): it may have been given up during a request."""
        return Intervals((gap.first, gap.last) for gap in self.pending.within(subscription, first, last))

    async def deliver(
        self, subscription: Subscription, ids: Sequence[int], records: list[MarketData], rows: Sequence[msgspec.Struct]
    ) -> None:
        """Send records with their ids and the rows that they were made of; they are owed no longer."""
        if not records:
            return
        await self._outlet.send(records, [msgspec.json.encode(row) for row in rows])
        self._outlet.metrics.ids_repaired.labels(_stream_type(subscription)).inc(len(records))
        for first, last in Intervals((each, each) for each in ids):
            self.pending.withdraw(subscription, first, last)
            self._outlet.note_repaired(subscription, first, last)

    async def give_up_rows(self, run: Gap, rows: Sequence[bytes], numbers: Sequence[int | None]) -> bool:
        """Let go of rows that cannot be read: a letter each, and a hole for those whose number is known and owed.

        Say whether there was one of those.
        """
        if not rows:
            return False
        owed = self.owed(run.subscription, run.first, run.last)
        claims = [
            Claim(run.subscription, each, each) if each is not None and each in owed else None for each in numbers
        ]
        at_ms = self.now_us() // 1000
        await self._outlet.dead_letters.write(
            [unreadable_row(raw, at_ms, run.subscription, claim) for raw, claim in zip(rows, claims, strict=True)]
        )
        for claim in filter(None, claims):
            await self.declare(claim.subscription, claim.first, claim.last, "poison")
        return any(claims)

    async def declare(self, subscription: Subscription, first: int, last: int, reason: HoleReason) -> None:
        """Declare what is owed of `first` to `last` (inclusive)."""
        for hole in self.pending.within(subscription, first, last):
            await self._outlet.declare(hole, reason)
            self.pending.withdraw(subscription, hole.first, hole.last)


class _Restarts:
    """Declares what ids that began again leave behind, in the order in which it is noted."""

    def __init__(self, outlet: _Outlet) -> None:
        self._outlet = outlet
        self._noted: deque[Gap] = deque()
        self._bell = _Bell()

    def note(self, gaps: Sequence[Gap]) -> None:
        self._noted += gaps
        self._bell.ring()

    async def run(self) -> NoReturn:
        while True:
            while not self._noted:
                await self._bell.wait_until(inf)
            await self._outlet.declare(self._noted[0], "id_restart")
            self._noted.popleft()


class _Pages(Protocol):
    """Knows how one kind of id is fetched."""

    async def fetch(self, run: Gap) -> Gap | None:
        """Fetch the beginning of `run` and settle it; return the part of which the venue had nothing, or None."""
        ...


class _GapRepair:
    """Works one ledger off: run by run, a page at a time, the subscriptions in turn."""

    def __init__(self, ledger: _Ledger, pages: _Pages) -> None:
        self._ledger = ledger
        self._pages = pages
        self._bell = _Bell()
        self._fruitless: dict[Subscription, int] = {}

    def note(self, gap: Gap) -> None:
        self._ledger.pending.add(gap)
        self._bell.ring()

    def owed(self) -> int:
        return self._ledger.pending.count()

    async def run(self) -> NoReturn:
        pending = self._ledger.pending
        while True:
            await self._ledger.wait_for_room()
            now = trio.current_time()
            run = pending.next_run(now)
            if run is None:
                await self._bell.wait_until(pending.due_at(now))
            else:
                await self._work_on(run)

    async def _work_on(self, run: Gap) -> None:
        subscription = run.subscription
        try:
            lacking = await self._pages.fetch(run)
        except UnavailableError as failure:
            log.warning("repair_waits", symbol=subscription.symbol, kind=subscription.kind, reason=str(failure))
            self._ledger.pending.postpone(subscription, trio.current_time() + _VENUE_AWAY_S)
        except BadRequestError as refusal:
            log.warning("repair_refused", symbol=subscription.symbol, kind=subscription.kind, reason=str(refusal))
            if refusal.code:
                await self._ledger.declare(subscription, run.first, run.last, "venue_has_none")
            else:  # somebody on the way may have said so, who knows nothing of the ids
                await self._judge(subscription, run)
        else:
            await self._judge(subscription, lacking)

    async def _judge(self, subscription: Subscription, lacking: Gap | None) -> None:
        """Ask later for what the venue did not have; after enough patience it is a hole."""
        attempts = self._fruitless.pop(subscription, 0)
        if lacking is None:
            return
        if attempts == len(_FRUITLESS_DELAYS_S):
            await self._ledger.declare(subscription, lacking.first, lacking.last, "venue_has_none")
            return
        self._fruitless[subscription] = attempts + 1
        self._ledger.pending.postpone(subscription, trio.current_time() + _FRUITLESS_DELAYS_S[attempts])


class _Declaration:
    """What is not fetched at all, only declared."""

    def __init__(self, ledger: _Ledger, *, reason: HoleReason) -> None:
        self._ledger = ledger
        self._reason: HoleReason = reason

    async def fetch(self, run: Gap) -> Gap | None:
        await self._ledger.declare(run.subscription, run.first, run.last, self._reason)
        return None


class _TradePages:
    """Trades by id; a run of more than `max_run` is left to the backfill command, and declared."""

    def __init__(self, rest: RestClient, ledger: _Ledger, max_run: int) -> None:
        self._rest = rest
        self._ledger = ledger
        self._max_run = max_run

    async def fetch(self, run: Gap) -> Gap | None:
        symbol = run.subscription.symbol
        count = run.last - run.first + 1
        if count > self._max_run:
            await self._ledger.declare(run.subscription, run.first, run.last, "repair_limit")
            return None
        limit = min(PAGE_ROWS, count)
        unreadable: list[bytes] = []
        try:
            rows = await self._rest.historical_trades(symbol, run.first, limit, on_unreadable=unreadable.extend)
        except BadRequestError as refusal:
            if refusal.code == INVALID_SYMBOL:
                raise
            return await self._bridge(run)
        ids = [self._id_in(raw, run, limit) for raw in unreadable]
        if not rows and ids and not any(each is not None for each in ids):
            raise UnavailableError("an answer of which not even an id can be read")
        is_settled = await self._ledger.give_up_rows(run, unreadable, ids)
        if not rows:
            return None if is_settled else run  # nothing from here on: gone, or the database is late
        # An id that is no longer kept is answered with the oldest that is, without a word.
        await self._ledger.declare(run.subscription, run.first, rows[0].trade_id - 1, "venue_forgot")
        return await self._deliver(run, rows)

    @staticmethod
    def _id_in(raw: bytes, run: Gap, limit: int) -> int | None:
        """Return the id of a row that cannot be read; alone on its page it is the one that was asked for."""
        trade_id = number_in(raw)
        return run.first if trade_id is None and limit == 1 else trade_id

    async def _deliver(self, run: Gap, rows: Sequence[RestTrade]) -> Gap | None:
        """Send what is wanted of an answer; return `run` if that says nothing of where it begins."""
        received_us = self._ledger.now_us()
        owed = self._ledger.owed(run.subscription, run.first, run.last)
        wanted = [row for row in rows if row.trade_id in owed]
        records = [rest_trade_record(run.subscription.symbol, row, received_us) for row in wanted]
        await self._ledger.deliver(run.subscription, [row.trade_id for row in wanted], records, wanted)
        # An answer may be nonsense; asked again at once, it would be asked for as long as the budget lasts.
        return None if wanted or rows[0].trade_id > run.first else run

    async def _bridge(self, run: Gap) -> Gap | None:
        """Do without historicalTrades: the newest trades from memory, and for all older ones the proof that they exist.

        Aggregate trades hold no single quantities, so they cannot replace trades; they tell what was forgotten from
        what never was.
        """
        rows = await self._rest.trades(run.subscription.symbol, PAGE_ROWS, purpose="trades")
        if not rows:
            return run
        before_memory = min(run.last, rows[0].trade_id - 1)
        if before_memory >= run.first:
            await self._declare_unreachable(run, before_memory)
        return await self._deliver(run, rows)

    async def _declare_unreachable(self, run: Gap, last: int) -> None:
        rows = await self._rest.agg_trades(run.subscription.symbol, end_ms=run.detected_ms)
        existing = Intervals((row.first_trade_id, row.last_trade_id) for row in rows if row.first_trade_id >= 0)
        for start, end in existing.within(run.first, last):
            await self._ledger.declare(run.subscription, start, end, "venue_forgot")
        await self._ledger.declare(run.subscription, run.first, last, "venue_has_none")


class _BarPages:
    """Closed bars by ordinal."""

    def __init__(self, rest: RestClient, ledger: _Ledger) -> None:
        self._rest = rest
        self._ledger = ledger

    async def fetch(self, run: Gap) -> Gap | None:
        symbol, interval = run.subscription.symbol, run.subscription.kind.removeprefix("kline_")
        # Asked before the bars: one that was over then is over in the answer, which marks nothing as unfinished.
        settled_ms = await self._rest.recent_time_ms() - _BAR_SETTLES_MS
        last = min(run.last, run.first + PAGE_ROWS - 1, kline_ordinal(interval, settled_ms) - 1)
        if last < run.first:
            until_over_s = (kline_open_ms(interval, run.first + 1) - settled_ms) / 1000
            self._ledger.pending.postpone(run.subscription, trio.current_time() + until_over_s)
            return None
        # All that may open within: early history has bars off the grid, and a grid that we have wrong loses none.
        end_ms = kline_open_ms(interval, last + 1) - 1
        unreadable: list[bytes] = []
        rows = await self._rest.klines(
            symbol,
            interval,
            start_ms=kline_open_ms(interval, run.first),
            end_ms=end_ms,
            on_unreadable=unreadable.extend,
        )
        opened = [number_in(raw) for raw in unreadable]
        ordinals = [None if each is None else kline_ordinal(interval, milliseconds(each)) for each in opened]
        is_settled = await self._ledger.give_up_rows(run, unreadable, ordinals)
        received_us = self._ledger.now_us()
        wanted = [row for row in rows if self._is_wanted(interval, row, run.first, last, settled_ms)]
        records = [rest_kline_record(symbol, interval, row, received_us, closed=True) for row in wanted]
        delivered = [kline_ordinal(interval, record.sequence) for record in records]
        await self._ledger.deliver(run.subscription, delivered, records, wanted)
        return None if wanted or is_settled else run._replace(last=last)

    @staticmethod
    def _is_wanted(interval: str, row: RestKline, first: int, last: int, settled_ms: int) -> bool:
        ordinal = kline_ordinal(interval, milliseconds(row.open_time))
        return first <= ordinal <= last and milliseconds(row.close_time) < settled_ms


@dataclass
class _Wish:
    """When the book of a symbol wants its next snapshot, and how it went so far."""

    due_s: float
    urgent: bool  # no synchronised book; else only a deeper or a fresher one is wanted
    relapses: int = 0  # snapshots in a row that did not hold
    loaded_s: float = -inf


class _BookSync:
    """Seeds the books: urgent ones first and from the books' part of the budget, refreshing from what is left."""

    def __init__(self, rest: RestClient, books: Books, outlet: _Outlet, settings: config.Book, random: Random) -> None:
        self._rest = rest
        self._books = books
        self._outlet = outlet
        self._settings = settings
        self._random = random
        self._bell = _Bell()
        self._wishes: dict[str, _Wish] = {}
        self._in_flight: dict[str, trio.CancelScope] = {}
        self._rush_s = inf  # since when books that may yet ask would need more than is left

    def request(self, symbol: str) -> None:
        now = trio.current_time()
        wish = self._wishes.setdefault(symbol, _Wish(now, urgent=True))
        if not wish.urgent:
            self._hasten(wish, now)
            if symbol in self._in_flight:
                self._in_flight[symbol].cancel()  # a refresh may wait long for what is left of the budget
        self._bell.ring()

    def forget(self, symbol: str) -> None:
        self._wishes.pop(symbol, None)
        if symbol in self._in_flight:
            self._in_flight[symbol].cancel()

    def waiting(self) -> int:
        """How many books cannot answer for want of a snapshot."""
        return sum(wish.urgent for wish in self._wishes.values())

    async def run(self, urgent: bool) -> NoReturn:
        while True:
            await self._outlet.records.wait_for_room()
            due_s, symbol = self._next(urgent)
            now = trio.current_time()
            if due_s > now:
                await self._bell.wait_until(due_s)
            elif not urgent and (calm_s := self._calm_at()) > now:
                await trio.sleep_until(min(calm_s, now + _LOOK_AGAIN_S))
            else:
                await self._seed(symbol, self._wishes[symbol])

    def _calm_at(self) -> float:
        """From when on there is budget for what only makes answers better; inf for not before a book is seeded.

        First come books that cannot answer: those that wait, and while all start or reconnect, those whose next message
        is yet to come.
        """
        now = trio.current_time()
        if any(wish.urgent and wish.due_s <= now for wish in self._wishes.values()):
            return inf
        if self._books.in_doubt() * depth_weight(_FEW_LEVELS) <= self._rest.weight_left("books"):
            self._rush_s = inf
            return -inf
        self._rush_s = min(self._rush_s, now)
        return self._rush_s + _LONGEST_RUSH_S

    def _next(self, urgent: bool) -> tuple[float, str]:
        """Return the wish that is due first, and when; never (inf) if there is none."""
        wishes = (
            (wish.due_s, symbol)
            for symbol, wish in self._wishes.items()
            if wish.urgent is urgent and symbol not in self._in_flight
        )
        return min(wishes, default=(inf, ""))

    async def _seed(self, symbol: str, wish: _Wish) -> None:
        """Fetch a snapshot, load it and send its record; the next wish is noted."""
        levels = self._levels(wish)
        outcome, snapshot = "overtaken", None
        with trio.CancelScope() as scope:
            self._in_flight[symbol] = scope
            outcome, snapshot = await self._fetch(symbol, wish, levels)
        del self._in_flight[symbol]
        record = None
        if self._wishes.get(symbol) is not wish:
            outcome = "overtaken"  # the book is not wanted any more, or again from the beginning
        elif snapshot is not None:
            record = self._books.load_snapshot(symbol, snapshot, levels, self._outlet.now_us())
            if record is None:
                outcome = "too_old"
                self._again(wish)
            else:
                self._note_loaded(wish, levels)
        self._outlet.metrics.snapshots.labels(outcome).inc()
        self._bell.ring()
        if record is None:
            self._books.end_buffering(symbol)
        else:
            await self._outlet.send([record], [msgspec.json.encode(snapshot)])

    def _levels(self, wish: _Wish) -> int:
        """Return how many levels to ask for: few while many books wait, so that all can answer soon.

        Books that may find out with their next message wait as well: the budget has to last for them.
        """
        most = self._settings.snapshot_levels
        waiting = max(self.waiting(), self._books.in_doubt())
        if wish.urgent and waiting * depth_weight(most) > self._rest.weight_left("books"):
            return min(_FEW_LEVELS, most)
        return most

    async def _fetch(self, symbol: str, wish: _Wish, levels: int) -> tuple[str, DepthSnapshot | None]:
        """Return the outcome, and the snapshot if there is one."""
        purpose: Purpose = "books" if wish.urgent else "backfill"
        begin_buffering = partial(self._books.begin_buffering, symbol)
        try:
            return "loaded", await self._rest.depth(symbol, levels, purpose=purpose, on_admitted=begin_buffering)
        except UnavailableError as failure:
            log.warning("snapshot_waits", symbol=symbol, reason=str(failure))
            wish.due_s = trio.current_time() + _VENUE_AWAY_S
            return "unavailable", None
        except BadRequestError as refusal:
            log.warning("snapshot_refused", symbol=symbol, reason=str(refusal))
            if refusal.code:
                self._rest_until_refresh(wish)
            else:  # in no words of the venue's: it may be a matter of a moment
                wish.due_s = trio.current_time() + _LONGEST_BOOK_WAIT_S
            return "refused", None

    def _note_loaded(self, wish: _Wish, levels: int) -> None:
        now = trio.current_time()
        wish.loaded_s = now
        self._rest_until_refresh(wish)
        if levels < self._settings.snapshot_levels:
            wish.due_s = now

    def _rest_until_refresh(self, wish: _Wish) -> None:
        wish.urgent = False
        wish.due_s = trio.current_time() + self._settings.resnapshot_s * self._random.uniform(*_REFRESH_SPREAD)

    def _hasten(self, wish: _Wish, now: float) -> None:
        """Make a settled book's wish urgent, at once unless it was lost soon after the last snapshot."""
        if now - wish.loaded_s > _RELAPSE_S:
            wish.urgent, wish.due_s, wish.relapses = True, now, 0
        else:
            self._again(wish)

    def _again(self, wish: _Wish) -> None:
        """Wish for another snapshot, later each time: one that does not hold must not eat the budget."""
        wish.urgent = True
        wish.due_s = trio.current_time() + min(_LONGEST_BOOK_WAIT_S, 0.5 * 2**wish.relapses)
        wish.relapses = min(wish.relapses + 1, 10)


def _stream_type(subscription: Subscription) -> str:
    return subscription.kind.partition("_")[0]
