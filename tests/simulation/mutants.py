"""Bugs on purpose, each put in at one well-named place: a simulation that lets one of them pass proves nothing."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from unittest.mock import patch

import trio

from ingestor import app, heartbeat
from ingestor.aws import RecordsPage
from ingestor.core import gaps
from ingestor.core.claims import Entry
from ingestor.core.errors import SinkError
from ingestor.core.gaps import DUPLICATE, GAP, IN_ORDER, DepthTracker, TradeTracker, Verdict
from ingestor.core.intake import Accepted, LiveKlines, LiveTrades
from ingestor.core.lanes import Lanes, claims_of
from ingestor.core.resume import Resume, carried
from ingestor.core.stopping import StopPlan
from ingestor.fan_in import FanIn
from ingestor.heartbeat import HeartbeatWriter
from ingestor.kinesis_producer import KinesisProducer
from ingestor.reader import _Cursor
from ingestor.repair import Repair, _BookSync, _Ledger, _TradePages
from ingestor.serializer import Serializer
from ingestor.websocket_client import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingestor.core.model import Subscription

Patch: TypeAlias = "Any"


def forget_a_subscription() -> Patch:
    """The venue has no account of what nobody subscribed to."""
    find_subscriptions = app.Service.find_subscriptions

    async def mutant(self: app.Service, stop: trio.Event) -> list[Subscription]:
        return (await find_subscriptions(self, stop))[1:]

    return patch.object(app.Service, "find_subscriptions", mutant)


def claim_before_the_answer() -> Patch:
    put = KinesisProducer._put

    async def mutant(self: KinesisProducer, call: list[Any]) -> Any:
        self._on_acknowledged(claims_of(call))
        return await put(self, call)

    return patch.object(KinesisProducer, "_put", mutant)


def forget_what_was_refused() -> Patch:
    """Entries that failed alone are not sent again."""
    settle = Lanes.settle

    def mutant(self: Lanes, call: Any, verdicts: Any, now: float) -> None:
        settle(self, call, verdicts, now)
        for parcel, verdict in zip(call, verdicts, strict=True):
            if verdict == "again":
                self._put_in_place(parcel, [])

    return patch.object(Lanes, "settle", mutant)


def forget_the_batch_that_failed() -> Patch:
    """A call that failed as a whole is not sent again."""
    take_failure = KinesisProducer._take_failure

    def mutant(self: KinesisProducer, call: list[Any], error: SinkError) -> Any:
        for parcel in call:
            self._lanes._put_in_place(parcel, [])
        return take_failure(self, call, error)

    return patch.object(KinesisProducer, "_take_failure", mutant)


def send_again_behind_what_is_newer() -> Patch:
    settle = Lanes.settle

    def mutant(self: Lanes, call: Any, verdicts: Any, now: float) -> None:
        settle(self, call, verdicts, now)
        for parcel, verdict in zip(call, verdicts, strict=True):
            if verdict == "again":
                self._put_in_place(parcel, [])
                self.add(parcel.records, now, now)

    return patch.object(Lanes, "settle", mutant)


def ignore_the_budget_of_a_shard() -> Patch:
    """The map of the stream is not taken over."""
    return patch.object(Lanes, "learn", lambda self, shards: None)


def give_up_without_a_hole() -> Patch:
    return patch.object(KinesisProducer, "_holes", lambda self, parcel: [])


def hold_without_limit() -> Patch:
    return patch.object(KinesisProducer, "_has_room", lambda self: True)


def put_until_the_very_end() -> Patch:
    """A stop waits for a Kinesis that is away."""
    return _both(
        patch.object(KinesisProducer, "_is_over", lambda self, now: not self._lanes.held_bytes),
        patch.object(StopPlan, "within", lambda *_: StopPlan(1e9, 1e9, 1e9)),
    )


def claim_in_the_beat_what_is_under_way() -> Patch:
    def mutant(subscription: Any, entry: Entry) -> Any:
        ahead = entry.copy()
        if ahead.covered:
            ahead.covered.add(ahead.covered.highest, ahead.covered.highest + 3)
        return carried(subscription, ahead)

    return patch.object(heartbeat, "carried", mutant)


def merge_to_one_interval() -> Patch:
    """The union of two accounts takes what lies between them along."""
    merge = Entry.merge

    def mutant(self: Entry, other: Entry) -> Entry:
        merged = merge(self, other)
        if merged.covered:
            merged.covered.add(merged.covered.lowest, merged.covered.highest)
        return merged

    return patch.object(Entry, "merge", mutant)


def do_not_wait_for_the_origin() -> Patch:
    async def mutant(self: HeartbeatWriter, begins: Any) -> None:
        for begin in begins:
            self._coverage.originate(begin.subscription, begin.first_id)
        await trio.lowlevel.checkpoint()

    return patch.object(HeartbeatWriter, "admit", mutant)


def say_goodbye_before_the_drain() -> Patch:
    """The last beat is written when the stop begins."""
    final_beat = HeartbeatWriter.final_beat
    flow = app.Line._flow

    async def early(self: app.Line, stop: trio.Event) -> None:
        await flow(self, stop)
        await final_beat(self.beats, trio.current_time() + 5.0)

    async def nothing(self: HeartbeatWriter, deadline_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    return _both(patch.object(app.Line, "_flow", early), patch.object(HeartbeatWriter, "final_beat", nothing))


def read_errors_as_nothing_there() -> Patch:
    next_page = _Cursor.next_page

    async def mutant(self: _Cursor) -> RecordsPage:
        try:
            return await next_page(self)
        except SinkError:
            return RecordsPage([], None, 0)

    return patch.object(_Cursor, "next_page", mutant)


def read_an_empty_page_as_the_end() -> Patch:
    next_page = _Cursor.next_page

    async def mutant(self: _Cursor) -> RecordsPage:
        page = await next_page(self)
        return page if page.records else RecordsPage([], None, 0)

    return patch.object(_Cursor, "next_page", mutant)


def fetch_nothing_at_a_start() -> Patch:
    return patch.object(app.Line, "_take_up", lambda self, answer: None)


def ignore_a_gap_in_trades() -> Patch:
    note = LiveTrades._note

    def mutant(self: LiveTrades, verdict: Verdict, *rest: Any) -> None:
        if verdict is not GAP:
            note(self, verdict, *rest)

    return patch.object(LiveTrades, "_note", mutant)


def forget_the_ids_at_a_reconnect() -> Patch:
    """What was expected before a connection was lost is not expected any more."""
    live = Connection._live

    async def mutant(self: Connection, *rest: Any) -> Any:
        try:
            return await live(self, *rest)
        finally:
            door: Any = self._door
            for stream in door._intake._streams.values():
                stream.tracker.expected = -1

    return patch.object(Connection, "_live", mutant)


def drop_a_batch_after_a_reconnect() -> Patch:
    """The first thing that a new connection brings is judged, and lost."""
    hand_on = FanIn._hand_on
    open_inlet = FanIn.open

    def opened(self: FanIn, subscriptions: Any) -> Any:
        self.__dict__["drops"] = self.__dict__.get("drops", -1) + 1
        return open_inlet(self, subscriptions)

    async def mutant(self: FanIn, accepted: Accepted) -> None:
        if self.__dict__.get("drops", 0) > 0 and accepted.batch is not None and not accepted.begins:
            self.__dict__["drops"] = 0
            accepted.batch = None
        await hand_on(self, accepted)

    return _both(patch.object(FanIn, "open", opened), patch.object(FanIn, "_hand_on", mutant))


def take_duplicates_for_new() -> Patch:
    out_of_order = TradeTracker._out_of_order

    def mutant(self: TradeTracker, trade_id: int, trade_ms: int) -> Verdict:
        verdict = out_of_order(self, trade_id, trade_ms)
        return IN_ORDER if verdict is DUPLICATE else verdict

    return patch.object(TradeTracker, "_out_of_order", mutant)


def declare_no_break_of_depth() -> Patch:
    declare = Accepted.declare

    def mutant(self: Accepted, subscription: Any, missing: Any, reason: str, received_us: int) -> None:
        if reason != "disconnected":
            declare(self, subscription, missing, reason, received_us)  # type: ignore[arg-type]

    return patch.object(Accepted, "declare", mutant)


def lose_and_declare() -> Patch:
    """A diff of each book is lost without need; the hole that tells of it makes it no better."""
    accept, seen = DepthTracker.accept, Counter[DepthTracker]()

    def mutant(self: DepthTracker, first_id: int, final_id: int, event_ms: int) -> Verdict:
        seen[self] += 1
        return DUPLICATE if seen[self] == 20 else accept(self, first_id, final_id, event_ms)

    return patch.object(DepthTracker, "accept", mutant)


def seed_no_book_again() -> Patch:
    """A book that was lost stays without a snapshot."""
    request = _BookSync.request

    def mutant(self: _BookSync, symbol: str) -> None:
        if symbol not in self._wishes:
            request(self, symbol)

    return patch.object(_BookSync, "request", mutant)


def miss_no_closed_bar() -> Patch:
    """Nobody looks for bars whose closing message never came, and a later one is taken as it is."""
    return patch.object(LiveKlines, "accept", _without_gaps(LiveKlines.accept))


def take_a_page_for_the_whole() -> Patch:
    """After one page everything that was asked for counts as repaired."""
    deliver = _TradePages._deliver

    async def mutant(self: _TradePages, run: Any, rows: Any) -> None:
        await deliver(self, run, rows)
        self._ledger.pending.withdraw(run.subscription, run.first, run.last)

    return patch.object(_TradePages, "_deliver", mutant)


def deliver_repairs_backwards() -> Patch:
    deliver = _Ledger.deliver

    async def mutant(self: _Ledger, subscription: Any, ids: Any, records: Any, rows: Any) -> None:
        await deliver(self, subscription, ids[::-1], records[::-1], rows[::-1])

    return patch.object(_Ledger, "deliver", mutant)


def declare_instead_of_fetching() -> Patch:
    async def mutant(self: _TradePages, run: Any) -> None:
        await self._ledger.declare(run.subscription, run.first, run.last, "venue_has_none")

    return patch.object(_TradePages, "fetch", mutant)


def give_up_on_a_venue_that_is_away() -> Patch:
    """A gap is forgotten when REST fails."""

    def mutant(self: gaps.PendingGaps, subscription: Any, until: float) -> None:
        self.withdraw(subscription, 0, 1 << 62)

    return patch.object(gaps.PendingGaps, "postpone", mutant)


def join_accounts_without_a_look_at_their_ids() -> Patch:
    """What a task took before it knew that the ids began again counts as ids of before."""

    def mutant(self: Resume, instance: str, subscription: Any, entry: Entry) -> None:
        self._found.merge({subscription: entry})

    return patch.object(Resume, "_take_in", mutant)


def repair_old_ids_after_a_restart() -> Patch:
    async def mutant(self: Repair, subscription: Any) -> None:
        await trio.lowlevel.checkpoint()

    return patch.object(Repair, "give_up", mutant)


def round_the_prices() -> Patch:
    encode_batch = Serializer.encode_batch

    def mutant(self: Serializer, batch: Any) -> Any:
        for record in batch.records:
            if record.trade is not None:
                record.price = f"{float(record.price):.1f}"
        return encode_batch(self, batch)

    return patch.object(Serializer, "encode_batch", mutant)


def _without_gaps(accept: Callable[..., bool]) -> Callable[..., bool]:
    def mutant(self: LiveKlines, event: Any, raw: bytes, received_us: int, accepted: Accepted) -> bool:
        before = len(accepted.gaps)
        result = accept(self, event, raw, received_us, accepted)
        del accepted.gaps[before:]
        self.tracker._running = -1
        return result

    return mutant


@contextmanager
def _both(*patches: Any) -> Iterator[None]:
    first, second = patches
    with first, second:
        yield


MUTANTS: Final = (
    forget_a_subscription,
    claim_before_the_answer,
    forget_what_was_refused,
    forget_the_batch_that_failed,
    send_again_behind_what_is_newer,
    ignore_the_budget_of_a_shard,
    give_up_without_a_hole,
    hold_without_limit,
    put_until_the_very_end,
    claim_in_the_beat_what_is_under_way,
    merge_to_one_interval,
    do_not_wait_for_the_origin,
    say_goodbye_before_the_drain,
    read_errors_as_nothing_there,
    read_an_empty_page_as_the_end,
    fetch_nothing_at_a_start,
    ignore_a_gap_in_trades,
    forget_the_ids_at_a_reconnect,
    drop_a_batch_after_a_reconnect,
    take_duplicates_for_new,
    declare_no_break_of_depth,
    lose_and_declare,
    seed_no_book_again,
    miss_no_closed_bar,
    take_a_page_for_the_whole,
    deliver_repairs_backwards,
    declare_instead_of_fetching,
    give_up_on_a_venue_that_is_away,
    join_accounts_without_a_look_at_their_ids,
    repair_old_ids_after_a_restart,
    round_the_prices,
)
