"""What is known live of every subscription, and what one read of messages means: records, gaps, lost books, poison.

The one composer of the core: it decodes with `binance`, tracks with `gaps`, keeps the books of `book`. All feeds of a
task share it, each by an inlet of its own, so that an event which arrives twice is taken once. `accept` is the hot path
of the service: one typed decode, one lookup and one method a message, and nothing else that is not a record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct, field

from ingestor.core.binance import (
    LONGEST_SYMBOL,
    REFUSALS,
    DepthEvent,
    KlineEvent,
    Poison,
    TradeEvent,
    classify,
    decode_message,
    depth_record,
    kline_record,
    milliseconds,
    snapshot_record,
    trade_record,
)
from ingestor.core.book import BookState, OrderBook, PriceCache
from ingestor.core.claims import kline_ordinal
from ingestor.core.gaps import (
    DUPLICATE,
    FIRST,
    GAP,
    IN_ORDER,
    RESTART,
    DepthTracker,
    KlineTracker,
    TradeTracker,
    Verdict,
)
from ingestor.core.model import DeadLetter, Gap, Hole, HoleReason, MarketData, RecordBatch, Subscription
from ingestor.core.voices import ENDED, NEVER, FirstCome, Led
from ingestor.core.wording import shortened

# How far a subscription is: its newest id and 0; of bars the newest open time and its number of trades. Comparable.
Position: TypeAlias = tuple[int, int]
NOWHERE: Position = (-1, 0)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ingestor.core.binance import Combined, Control, DepthSnapshot, Event
    from ingestor.core.model import PoisonReason
    from ingestor.core.voices import Shared, Voice

RECORD_OVERHEAD_BYTES = 600  # what the objects of one record cost beside its raw message, about
LEVEL_BYTES = 192  # and those of one level of a book: a tuple, its two texts, a place in a list


class Begin(Struct, frozen=True):
    """The first live id of a subscription; `is_restart`: the venue began its ids again."""

    subscription: Subscription
    first_id: int
    event_ms: int
    is_restart: bool = False


class Accepted(Struct):
    """What one read of messages came to; whoever asked acts on it."""

    received_s: float
    records: list[MarketData] = field(default_factory=list[MarketData])
    raws: list[bytes] = field(default_factory=list[bytes])
    batch: RecordBatch | None = None
    poison: list[DeadLetter] = field(default_factory=list[DeadLetter])
    controls: list[Control] = field(default_factory=list["Control"])
    begins: list[Begin] = field(default_factory=list[Begin])
    gaps: list[Gap] = field(default_factory=list[Gap])
    holes: list[tuple[str, Hole]] = field(default_factory=list[tuple[str, Hole]])  # in the batch, with their symbols
    resyncs: list[str] = field(default_factory=list[str])  # symbols whose book needs a snapshot
    duplicates: dict[str, int] = field(default_factory=dict[str, int])  # by stream type
    levels: int = 0  # of books, in the records

    def take(self, record: MarketData, raw: bytes) -> None:
        """Add a record beside the message it came from."""
        self.records.append(record)
        self.raws.append(raw)

    def drop_duplicates(self, stream_type: str, count: int = 1) -> None:
        """Count events that were seen before."""
        self.duplicates[stream_type] = self.duplicates.get(stream_type, 0) + count

    def declare(
        self, subscription: Subscription, missing: tuple[int, int], reason: HoleReason, received_us: int
    ) -> None:
        """Put a hole record where the ids `missing` would have been."""
        hole = Hole(subscription.kind, *missing, reason, received_us // 1000)
        self.holes.append((subscription.symbol, hole))
        self.take(hole_record(subscription.symbol, hole, received_us), b"")

    def begin_again(self, subscription: Subscription, first_id: int, received_us: int) -> None:
        """Put the hole of ids that began again in, and those of the old ids missed just before: nobody can fetch them.

        From 0 on nothing may be missing, but whoever reads the stream has to know.
        """
        lost = [gap for gap in self.gaps if gap.subscription == subscription]
        self.gaps = [gap for gap in self.gaps if gap.subscription != subscription]
        for gap in lost:
            self.declare(subscription, (gap.first, gap.last), "id_restart", received_us)
        self.declare(subscription, (0, first_id - 1), "id_restart", received_us)

    def seal(self) -> Accepted:
        """Put the records into the batch that they travel in."""
        if self.records:
            size_bytes = held_bytes(self.raws, self.levels)
            self.batch = RecordBatch(self.records, self.raws, self.received_s, size_bytes)
        return self


def held_bytes(raws: Sequence[bytes], levels: int = 0) -> int:
    """Return what it costs to hold records beside the messages they came from; `levels` of books are in them."""
    return sum(map(len, raws)) + RECORD_OVERHEAD_BYTES * len(raws) + LEVEL_BYTES * levels


def hole_record(symbol: str, hole: Hole, received_us: int) -> MarketData:
    """Make the record that says which ids are not in the stream (completeness.md §2)."""
    return MarketData(
        symbol=symbol,
        timestamp=hole.detected_ms,
        price=None,
        volume=None,
        bid_price=None,
        ask_price=None,
        source="websocket",
        event_type="hole",
        sequence=hole.first,
        received_at=received_us,
        hole=hole,
    )


class LiveTrades:
    """Trades of one symbol."""

    has_joined = True
    __slots__ = ("received", "subscription", "symbol", "tracker")

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.symbol = subscription.symbol
        self.tracker = TradeTracker()
        self.received = 0

    def accept(self, event: Event, raw: bytes, received_us: int, accepted: Accepted) -> bool:
        """Take one trade; False if this is not the event that the stream's name promises."""
        if type(event) is not TradeEvent or event.symbol != self.symbol:
            return False
        self.received += 1
        verdict = self.tracker.accept(event.trade_id, event.trade_time)
        if verdict is not IN_ORDER:
            if verdict is DUPLICATE:
                accepted.drop_duplicates("trade")
                return True
            self._note(verdict, event, received_us, accepted)
        accepted.records.append(trade_record(self.symbol, event, received_us))  # `take`, without the call
        accepted.raws.append(raw)
        return True

    def share(self, waiting: dict[Shared, None]) -> Shared:
        """Prepare for a second feed."""
        return FirstCome(self, waiting)

    @property
    def position(self) -> Position:
        """How far it is: by trade id."""
        return self.tracker.expected - 1, 0

    def pass_over(self, trade_id: int, event_ms: int) -> tuple[int, int] | None:
        """Expect what follows `trade_id`; return the ids that are passed over."""
        return self.tracker.pass_over(trade_id, event_ms)

    def id_of(self, event: Event) -> int:
        """Return the trade id."""
        return event.trade_id if type(event) is TradeEvent else NEVER

    def jump_to(self, event: Event) -> int | None:
        """Return the id of a trade that is above the expected one; None for what can be judged at once."""
        if type(event) is TradeEvent and event.symbol == self.symbol and event.trade_id > self.tracker.expected >= 0:
            return event.trade_id
        return None

    def is_past(self, event: Event) -> bool:
        """Say whether a trade that had a higher id than expected is from before a restart of the ids."""
        return type(event) is TradeEvent and event.trade_time < self.tracker.last_event_ms

    def drop(self, count: int, accepted: Accepted) -> None:
        """Count trades that another feed brought already."""
        self.received += count
        accepted.drop_duplicates("trade", count)

    def _note(self, verdict: Verdict, event: TradeEvent, received_us: int, accepted: Accepted) -> None:
        if verdict is GAP:
            accepted.gaps.append(Gap(self.subscription, *self.tracker.missing, received_us // 1000))
            return
        if verdict is RESTART:
            accepted.begin_again(self.subscription, event.trade_id, received_us)
        event_ms = milliseconds(event.trade_time)
        accepted.begins.append(Begin(self.subscription, event.trade_id, event_ms, verdict is RESTART))


class LiveDepth:
    """Order book changes of one symbol, and its book."""

    has_joined = True
    __slots__ = ("book", "left_at", "received", "subscription", "symbol", "tracker")

    def __init__(self, subscription: Subscription, prices: PriceCache) -> None:
        self.subscription = subscription
        self.symbol = subscription.symbol
        self.tracker = DepthTracker()
        self.book = OrderBook(prices)
        self.received = 0
        self.left_at = -1  # what was received when the last feed of it ended

    @property
    def is_in_doubt(self) -> bool:
        """Whether there is no book, or one that may turn out to be lost with the next diff: it had no feed since."""
        return self.book.state is BookState.UNSYNCHRONISED or self.received == self.left_at

    def accept(self, event: Event, raw: bytes, received_us: int, accepted: Accepted) -> bool:
        """Take one diff, with the best of the book after it; False if it is not what the stream's name promises."""
        if type(event) is not DepthEvent or event.symbol != self.symbol:
            return False
        self.received += 1
        verdict = self.tracker.accept(event.first_update_id, event.final_update_id, event.event_time)
        if verdict is not IN_ORDER:
            if verdict is DUPLICATE:
                accepted.drop_duplicates("depth")
                return True
            self._note(verdict, event, received_us, accepted)
        accepted.levels += len(event.bids) + len(event.asks)
        book = self.book
        if not book.apply(event.first_update_id, event.final_update_id, event.bids, event.asks):
            accepted.resyncs.append(self.symbol)
        bid, ask = book.best()
        accepted.take(depth_record(self.symbol, event, received_us, bid, ask), raw)
        return True

    def share(self, waiting: dict[Shared, None]) -> Shared:
        """Prepare for a second feed."""
        return Led(self, waiting)

    @property
    def position(self) -> Position:
        """How far it is: by update id."""
        return self.tracker.expected - 1, 0

    def own(self, event: Event) -> DepthEvent | None:
        """Return the event if it is what the stream's name promises."""
        return event if type(event) is DepthEvent and event.symbol == self.symbol else None

    def drop(self, count: int, accepted: Accepted) -> None:
        """Count diffs that were not needed."""
        self.received += count
        accepted.drop_duplicates("depth", count)

    def _note(self, verdict: Verdict, event: DepthEvent, received_us: int, accepted: Accepted) -> None:
        if verdict is GAP:
            accepted.declare(self.subscription, self.tracker.missing, "disconnected", received_us)
        elif verdict is FIRST or verdict is RESTART:
            if verdict is RESTART:
                accepted.begin_again(self.subscription, event.first_update_id, received_us)
            event_ms = milliseconds(event.event_time)
            accepted.begins.append(Begin(self.subscription, event.first_update_id, event_ms, verdict is RESTART))
            self.book.reset()
            accepted.resyncs.append(self.symbol)


class LiveKlines:
    """Bars of one symbol and interval."""

    has_joined = True
    __slots__ = ("interval", "last_event_ms", "received", "subscription", "symbol", "tracker")

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.symbol = subscription.symbol
        self.interval = subscription.kind.removeprefix("kline_")
        self.tracker = KlineTracker(self.interval)
        self.last_event_ms = 0
        self.received = 0

    def accept(self, event: Event, raw: bytes, received_us: int, accepted: Accepted) -> bool:
        """Take the state of one bar; False if it is not what the stream's name promises."""
        if type(event) is not KlineEvent or event.symbol != self.symbol or event.bar.interval != self.interval:
            return False
        self.received += 1
        bar = event.bar
        open_ms = milliseconds(bar.open_time)
        heard_ms = round(accepted.received_s * 1000)  # the wall clock may be put back by an hour
        verdict = self.tracker.accept(open_ms, bar.trade_count, heard_ms, closed=bar.closed)
        if verdict is DUPLICATE:
            accepted.drop_duplicates("kline")
            return True
        self.last_event_ms = milliseconds(event.event_time)
        if verdict is GAP:
            accepted.gaps.append(Gap(self.subscription, *self.tracker.missing, received_us // 1000))
        elif verdict is FIRST:
            first_ordinal = self.tracker.expected - bar.closed  # an open bar is the next to be claimed, a closed one is
            accepted.begins.append(Begin(self.subscription, first_ordinal, self.last_event_ms))
        accepted.take(kline_record(self.symbol, event, received_us), raw)
        return True

    def share(self, waiting: dict[Shared, None]) -> Shared:
        """Prepare for a second feed."""
        return FirstCome(self, waiting)

    @property
    def position(self) -> Position:
        """How far it is: by the newest bar and its number of trades."""
        return self.tracker.newest

    def pass_over(self, open_ms: int, event_ms: int) -> tuple[int, int] | None:
        """Expect the bar of `open_ms`; return the ordinals that are passed over."""
        del event_ms
        return self.tracker.pass_over(kline_ordinal(self.interval, open_ms))

    def id_of(self, event: Event) -> int:
        """Return an id below all: a bar is sent again and again, so the first message of a feed is as good as all."""
        del event
        return -1

    def jump_to(self, event: Event) -> int | None:
        """Return the ordinal of a closed bar that is above the expected one; None for what can be judged at once."""
        if type(event) is not KlineEvent or event.symbol != self.symbol or event.bar.interval != self.interval:
            return None
        ordinal = kline_ordinal(self.interval, milliseconds(event.bar.open_time))
        return ordinal if event.bar.closed and ordinal > self.tracker.expected >= 0 else None

    def is_past(self, event: Event) -> bool:
        """Say no: bars are counted by the clock, and the clock does not begin again."""
        del event
        return False

    def drop(self, count: int, accepted: Accepted) -> None:
        """Count closed bars that another feed brought already."""
        self.received += count
        accepted.drop_duplicates("kline", count)


Live: TypeAlias = LiveTrades | LiveDepth | LiveKlines


class Inlet:
    """The way in of one feed: for each stream its voice, or the live state itself while the feed carries it alone.

    `subscriptions` is what the feed carries now. A stream that it carries no longer keeps its place in `streams`.
    """

    __slots__ = ("streams", "subscriptions")

    def __init__(self, subscriptions: Iterable[Subscription] = ()) -> None:
        self.subscriptions = tuple(subscriptions)
        self.streams: dict[str, Voice] = {}


class Intake:
    """The live state of all subscriptions of this task.

    What is not wanted any more is live until no feed carries it; then it is forgotten, and told by `take_ended`.
    """

    def __init__(self, subscriptions: Iterable[Subscription] = ()) -> None:
        self._prices = PriceCache()
        self._streams: dict[str, Live] = {}
        self._depths: dict[str, LiveDepth] = {}
        self._inlets: dict[str, list[Inlet]] = {}
        self._shared: dict[str, Shared] = {}
        self._waiting: dict[Shared, None] = {}
        self._ending = set[str]()
        self._ended: dict[Subscription, int] = {}
        self._received_before: dict[tuple[str, str], int] = {}  # of what was forgotten; a counter never falls
        self.add(subscriptions)

    def add(self, subscriptions: Iterable[Subscription]) -> list[Subscription]:
        """Want `subscriptions` too; return those that are new, which will begin with their first live id."""
        new = []
        for subscription in subscriptions:
            self._ending.discard(subscription.stream_name)
            if subscription.stream_name not in self._streams:
                self._add(subscription)
                new.append(subscription)
        return new

    def end(self, subscriptions: Iterable[Subscription]) -> None:
        """Want `subscriptions` no longer; what feeds still bring of them is taken."""
        for subscription in subscriptions:
            self._ending.add(subscription.stream_name)
            self._forget_if_ended(subscription)

    def subscriptions(self) -> set[Subscription]:
        """Return all that is live."""
        return {live.subscription for live in self._streams.values()}

    def take_ended(self) -> dict[Subscription, int]:
        """Return what was forgotten since the last call, with its newest venue time (0: nothing came)."""
        ended, self._ended = self._ended, {}
        return ended

    def _forget_if_ended(self, subscription: Subscription) -> None:
        name = subscription.stream_name
        if name not in self._ending or self._inlets[name]:
            return
        self._ended[subscription] = self.last_event_ms(subscription)
        live = self._streams.pop(name)
        self._received_before[_label(live)] = self._received_before.get(_label(live), 0) + live.received
        self._ending.remove(name)
        del self._inlets[name]
        if subscription.kind == "depth":
            del self._depths[subscription.symbol]

    def _add(self, subscription: Subscription) -> None:
        live = self._live(subscription)
        self._streams[subscription.stream_name] = live
        self._inlets[subscription.stream_name] = []
        if isinstance(live, LiveDepth):
            self._depths[subscription.symbol] = live

    def _live(self, subscription: Subscription) -> Live:
        if subscription.kind == "trade":
            return LiveTrades(subscription)
        if subscription.kind == "depth":
            return LiveDepth(subscription, self._prices)
        return LiveKlines(subscription)

    def open(self, subscriptions: Iterable[Subscription]) -> Inlet:
        """Let one more feed in, which carries `subscriptions`; others may carry them too."""
        inlet = Inlet()
        self.join(inlet, subscriptions)
        return inlet

    def join(self, inlet: Inlet, subscriptions: Iterable[Subscription]) -> None:
        """Have a feed carry `subscriptions` too."""
        carried = set(inlet.subscriptions)
        new = [each for each in subscriptions if each not in carried]
        for subscription in new:
            name = subscription.stream_name
            inlets = self._inlets[name]
            if inlets:
                inlet.streams[name] = self._share(name, inlets).join(has_all=False)
            else:
                inlet.streams[name] = self._streams[name]
            inlets.append(inlet)
        inlet.subscriptions += tuple(new)

    def leave(self, inlet: Inlet, subscriptions: Iterable[Subscription], received_s: float) -> Accepted:
        """Have a feed carry `subscriptions` no longer, after its last message of them; return what waited for it.

        What is still under way is let go: it belongs to whoever carries them next.
        """
        accepted = Accepted(received_s)
        gone = set(subscriptions)
        for subscription in inlet.subscriptions:
            if subscription in gone:
                self._leave(inlet, subscription, accepted)
        inlet.subscriptions = tuple(each for each in inlet.subscriptions if each not in gone)
        return accepted.seal()

    def _leave(self, inlet: Inlet, subscription: Subscription, accepted: Accepted) -> None:
        name = subscription.stream_name
        inlets = self._inlets[name]
        inlets.remove(inlet)
        if inlets:
            shared = self._shared[name]
            shared.leave(inlet.streams[name], accepted)
            if len(inlets) == 1:
                self._unshare(name, shared, inlets[0], accepted)
        elif subscription.kind == "depth":
            live = self._depths[subscription.symbol]
            live.left_at = live.received
        inlet.streams[name] = ENDED
        self._forget_if_ended(subscription)

    def close(self, inlet: Inlet, received_s: float) -> Accepted:
        """Let a feed out, after its last message; return what waited for it."""
        return self.leave(inlet, inlet.subscriptions, received_s)

    def settle(self, now: float) -> Accepted:
        """Return what has waited for long enough for another feed; ask often while `is_waiting`."""
        accepted = Accepted(now)
        for shared in [each for each in self._waiting if not each.settle(accepted)]:
            del self._waiting[shared]
        return accepted.seal()

    @property
    def is_waiting(self) -> bool:
        """Whether something waits for another feed."""
        return bool(self._waiting)

    def _share(self, name: str, inlets: list[Inlet]) -> Shared:
        """Return what the feeds of a stream have in common; the first one has brought all there is so far."""
        shared = self._shared.get(name)
        if shared is None:
            shared = self._shared[name] = self._streams[name].share(self._waiting)
            inlets[0].streams[name] = shared.join(has_all=True)
        return shared

    def _unshare(self, name: str, shared: Shared, last: Inlet, accepted: Accepted) -> None:
        shared.end(last.streams[name], accepted)
        self._waiting.pop(shared, None)
        del self._shared[name]
        last.streams[name] = self._streams[name]

    def accept(self, inlet: Inlet, messages: list[bytes], received_s: float, received_us: int) -> Accepted:
        """Take the messages of one read; `received_s` monotonic and `received_us` wall clock of their arrival."""
        accepted = Accepted(received_s)
        streams = inlet.streams
        for message in messages:
            try:
                combined = decode_message(message)
            except REFUSALS:
                self._refused(message, received_us, accepted)
                continue
            stream = streams.get(combined.stream)
            if stream is None:
                accepted.poison.append(_stray(combined, message, received_us))
            elif not stream.accept(combined.data, message, received_us, accepted):
                accepted.poison.append(_mismatch(combined, message, received_us))
        return accepted.seal()

    def has_book(self, symbol: str) -> bool:
        """Whether there is a book of `symbol`."""
        return symbol in self._depths

    def begin_buffering(self, symbol: str) -> None:
        """Have the book of `symbol` keep its diffs from now on, if it is still wanted: a snapshot is on its way."""
        if symbol in self._depths:
            self._depths[symbol].book.begin_buffering()

    def end_buffering(self, symbol: str) -> None:
        """Have the book of `symbol` keep its diffs no longer, if there is one: no snapshot is on its way."""
        if symbol in self._depths:
            self._depths[symbol].book.end_buffering()

    def load_snapshot(self, symbol: str, snapshot: DepthSnapshot, levels: int, received_us: int) -> MarketData | None:
        """Start the book of `symbol` from a snapshot of at most `levels` a side; None asks for another one."""
        if symbol not in self._depths:
            return None  # forgotten while it was fetched
        book = self._depths[symbol].book
        if book.load(snapshot.last_update_id, snapshot.bids, snapshot.asks, limit=levels) == "too_old":
            return None
        bid = snapshot.bids[0][0] if snapshot.bids else None
        ask = snapshot.asks[0][0] if snapshot.asks else None
        return snapshot_record(symbol, snapshot, received_us, bid, ask)

    def overdue(self, now_s: float, now_ms: int) -> list[Gap]:
        """Return the bars whose closing message must be lost, each once; ask about once a second.

        `now_s` is the monotonic clock, `now_ms` the wall clock.
        """
        gaps = []
        for live in self._streams.values():
            missing = live.tracker.overdue(round(now_s * 1000)) if isinstance(live, LiveKlines) else None
            if missing is not None:
                gaps.append(Gap(live.subscription, *missing, now_ms))
        return gaps

    def position(self, subscription: Subscription) -> Position:
        """Return how far a subscription is; below (0, 0) while nothing of it was seen, or when it was forgotten."""
        live = self._streams.get(subscription.stream_name)
        return NOWHERE if live is None else live.position

    def begin_behind(self, heads: Iterable[tuple[Subscription, int, int]], received_s: float) -> Accepted:
        """Count trades from behind the venue's newest one on, by id and time, where none was seen yet.

        What is said of the time is no evidence of a restart: REST may be behind the stream.
        """
        accepted = Accepted(received_s)
        for subscription, last_id, event_ms in heads:
            live = self._streams.get(subscription.stream_name)
            if isinstance(live, LiveTrades) and live.tracker.begin_behind(last_id, event_ms):
                accepted.begins.append(Begin(subscription, last_id + 1, 0))
        return accepted

    def has_heard(self, subscription: Subscription) -> bool:
        """Say whether any feed brought anything of a subscription."""
        live = self._streams.get(subscription.stream_name)
        return live is not None and live.received > 0

    def pass_over(self, subscription: Subscription, there: Position, event_ms: int, now_ms: int) -> Gap | None:
        """Go on behind `there`, the venue's newest; return what has to be fetched now, because it will not come.

        For trades and bars of which something was seen; `event_ms` is the venue's time of the trade `there`.
        """
        live = self._streams.get(subscription.stream_name)
        missing = None if live is None or isinstance(live, LiveDepth) else live.pass_over(there[0], event_ms)
        return Gap(subscription, *missing, now_ms) if missing else None

    def received(self) -> dict[tuple[str, str], int]:
        """Return how many messages were received, by symbol and stream type, of what is live."""
        counts: dict[tuple[str, str], int] = {}
        for live in self._streams.values():
            label = _label(live)
            counts[label] = counts.get(label, self._received_before.get(label, 0)) + live.received
        return counts

    def received_ever(self) -> int:
        """Return how many messages were received, of what was forgotten too."""
        return sum(self._received_before.values()) + sum(live.received for live in self._streams.values())

    def last_event_ms(self, subscription: Subscription) -> int:
        """Return the newest venue time of a subscription, 0 before the first event, or when it was forgotten."""
        live = self._streams.get(subscription.stream_name)
        if live is None:
            return 0
        return milliseconds(live.last_event_ms if isinstance(live, LiveKlines) else live.tracker.last_event_ms)

    def next_ids(self) -> dict[Subscription, int]:
        """Return the id that every subscription expects next, where one was seen."""
        return {
            live.subscription: live.tracker.expected for live in self._streams.values() if live.tracker.expected >= 0
        }

    def in_doubt(self) -> int:
        """Return how many books need a snapshot, or may find out that they do."""
        return sum(each.is_in_doubt for each in self._depths.values())

    def synchronised(self) -> tuple[int, int]:
        """Return how many books are synchronised, and how many there are."""
        return sum(live.book.state is BookState.SYNCHRONISED for live in self._depths.values()), len(self._depths)

    def _refused(self, message: bytes, received_us: int, accepted: Accepted) -> None:
        meaning = classify(message)
        if isinstance(meaning, Poison):
            letter = _letter(meaning.reason, meaning.detail, message, received_us, meaning.symbol)
            accepted.poison.append(letter)
        else:
            accepted.controls.append(meaning)


def _label(live: Live) -> tuple[str, str]:
    return live.symbol, live.subscription.kind.partition("_")[0]


def _stray(combined: Combined, raw: bytes, received_us: int) -> DeadLetter:
    detail = f"stream {combined.stream!r} was not subscribed to"
    return _letter("unknown_subscription", detail, raw, received_us, combined.data.symbol)


def _mismatch(combined: Combined, raw: bytes, received_us: int) -> DeadLetter:
    detail = f"stream {combined.stream!r} carried a {type(combined.data).__name__} of {combined.data.symbol}"
    return _letter("unexpected_shape", detail, raw, received_us, combined.data.symbol)


def _letter(reason: PoisonReason, detail: str, raw: bytes, received_us: int, symbol: str | None) -> DeadLetter:
    named = symbol if symbol is None or len(symbol) <= LONGEST_SYMBOL else None
    return DeadLetter(reason=reason, detail=shortened(detail), raw=raw, at_ms=received_us // 1000, symbol=named)
