"""What a venue remembers of one symbol: the trades, bars and order book that its REST answers are computed from.

Prices and quantities are integers of 1e-8, so that sums are exact and `text8` gives the venue's own spelling back.
Memory is bounded: the oldest trades and bars are forgotten, as the venue forgets them. Where the service has the same
arithmetic (when a bar opens), this is written apart from it on purpose: the venue is what the service is measured by.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from calendar import timegm
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import Struct, structs

from ingestor.core.model import Level, Subscription  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Sequence

UNIT: Final = 100_000_000
LAST_MS: Final = 10**15  # later than any time in milliseconds

_SECOND_MS: Final = 1_000
_MINUTE_MS: Final = 60 * _SECOND_MS
_HOUR_MS: Final = 60 * _MINUTE_MS
_DAY_MS: Final = 24 * _HOUR_MS

# facts/binance.md §4; a month has no fixed length and is handled apart.
INTERVALS_MS: Final = {
    "1s": _SECOND_MS,
    "1m": _MINUTE_MS,
    "3m": 3 * _MINUTE_MS,
    "5m": 5 * _MINUTE_MS,
    "15m": 15 * _MINUTE_MS,
    "30m": 30 * _MINUTE_MS,
    "1h": _HOUR_MS,
    "2h": 2 * _HOUR_MS,
    "4h": 4 * _HOUR_MS,
    "6h": 6 * _HOUR_MS,
    "8h": 8 * _HOUR_MS,
    "12h": 12 * _HOUR_MS,
    "1d": _DAY_MS,
    "3d": 3 * _DAY_MS,
    "1w": 7 * _DAY_MS,
}
INTERVALS: Final = (*INTERVALS_MS, "1M")
_FIRST_MS: Final = {"1w": 4 * _DAY_MS, "3d": _DAY_MS}  # weeks open on Mondays, three days on 1970-01-02 and so on


class Message(Struct, frozen=True, gc=False):
    """One event as the venue sends it, bare, and the ids it carries (`subscription` None: nobody counts them)."""

    stream: str
    payload: bytes
    at_ms: int
    subscription: Subscription | None = None
    first: int = 0
    last: int = 0


class Fill(NamedTuple):
    """A trade; `aggregate_id` is shared by the fills of one taker order at one price."""

    trade_id: int
    price: int
    quantity: int
    time_ms: int
    buyer_is_maker: bool
    aggregate_id: int

    @property
    def quote(self) -> int:
        """What was paid, rounded down to the eighth decimal."""
        return self.price * self.quantity // UNIT


class Aggregate(NamedTuple):
    """The fills of one taker order at one price, as the venue's aggTrades give them."""

    aggregate_id: int
    price: int
    quantity: int
    first_id: int
    last_id: int
    time_ms: int
    buyer_is_maker: bool


class Bar(Struct):
    """A candle; `first_id` and `last_id` are -1 while it has no trade."""

    open_ms: int
    open: int
    high: int
    low: int
    close: int
    volume: int = 0
    quote: int = 0
    taker: int = 0
    taker_quote: int = 0
    count: int = 0
    first_id: int = -1
    last_id: int = -1

    def merge(self, later: Bar) -> None:
        """Take in a bar of a shorter interval that follows what is here already."""
        if not later.count:
            return
        if not self.count:
            self.open, self.high, self.low, self.first_id = later.open, later.high, later.low, later.first_id
        else:
            self.high, self.low = max(self.high, later.high), min(self.low, later.low)
        self.close, self.last_id = later.close, later.last_id
        self.volume += later.volume
        self.quote += later.quote
        self.taker += later.taker
        self.taker_quote += later.taker_quote
        self.count += later.count

    def add(self, fill: Fill) -> None:
        """Take in one trade."""
        price, quantity, quote = fill.price, fill.quantity, fill.quote
        if self.count:
            if price > self.high:
                self.high = price
            elif price < self.low:
                self.low = price
        else:
            self.open = self.high = self.low = price
            self.first_id = fill.trade_id
        self.close, self.last_id = price, fill.trade_id
        self.volume += quantity
        self.quote += quote
        self.count += 1
        if not fill.buyer_is_maker:
            self.taker += quantity
            self.taker_quote += quote


def text8(units: int) -> str:
    """Spell `units` as the venue does: eight decimals (facts/binance.md §4)."""
    whole, part = divmod(units, UNIT)
    return f"{whole}.{part:08d}"


def units(text: str) -> int:
    """Read a decimal text of at most eight decimals back into units."""
    whole, _, part = text.partition(".")
    return int(whole) * UNIT + int(part.ljust(8, "0"))


def bar_open_ms(interval: str, at_ms: int) -> int:
    """Return when the bar of `interval` that holds the instant `at_ms` opened."""
    if interval == "1M":
        year, month = time.gmtime(at_ms // _SECOND_MS)[:2]
        return timegm((year, month, 1, 0, 0, 0)) * _SECOND_MS
    return at_ms - (at_ms - _FIRST_MS.get(interval, 0)) % INTERVALS_MS[interval]


def bar_close_ms(interval: str, open_ms: int) -> int:
    """Return the last millisecond of the bar that opened at `open_ms`."""
    if interval == "1M":
        return bar_open_ms("1M", open_ms + 31 * _DAY_MS) - 1
    return open_ms + INTERVALS_MS[interval] - 1


class DepthPayload(Struct):
    """A diff event, its keys in the venue's order."""

    e: str
    E: int
    s: str
    U: int
    u: int
    b: list[Level]
    a: list[Level]


def join_windows(earlier: Message, later: Message) -> Message:
    """Make one diff of two that follow each other: the union of their levels, later quantities win."""
    first, last = (msgspec.json.decode(one.payload, type=DepthPayload) for one in (earlier, later))
    bids, asks = dict(first.b) | dict(last.b), dict(first.a) | dict(last.a)
    joined = structs.replace(
        last,
        U=first.U,
        b=sorted(bids.items(), key=lambda level: -units(level[0])),
        a=sorted(asks.items(), key=lambda level: units(level[0])),
    )
    return structs.replace(later, payload=msgspec.json.encode(joined), first=earlier.first)


class Book:
    """All price levels of one symbol and the id of the last change."""

    def __init__(self, update_id: int = 0) -> None:
        self.update_id = update_id
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}

    def apply(self, bids: Sequence[Level], asks: Sequence[Level], update_id: int) -> None:
        """Set absolute quantities, as a diff event says them; zero removes the level."""
        for levels, changes in ((self.bids, bids), (self.asks, asks)):
            for price, quantity in changes:
                if amount := units(quantity):
                    levels[units(price)] = amount
                else:
                    levels.pop(units(price), None)
        self.update_id = update_id

    def top(self, limit: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the best `limit` levels of both sides, best first."""
        return sorted(self.bids.items(), reverse=True)[:limit], sorted(self.asks.items())[:limit]


class Ladder:
    """The unfinished bars of every interval: trades go into the second, seconds into the minute, minutes into the rest.

    So a trade touches one bar, whatever number of intervals there is.
    """

    def __init__(self, start_ms: int, price: int) -> None:
        self._second = _empty_bar("1s", start_ms, price)
        self._minute = _empty_bar("1m", start_ms, price)
        self._longer = {name: _empty_bar(name, start_ms, price) for name in INTERVALS[2:]}
        self.add = self._second.add

    def current(self, interval: str) -> Bar:
        """Return a copy of the unfinished bar as it stands."""
        bar = structs.replace(self._bar(interval))
        if interval not in ("1s", "1m"):
            bar.merge(self._minute)
        if interval != "1s":
            bar.merge(self._second)
        return bar

    def close_second(self, at_ms: int) -> list[tuple[str, Bar]]:
        """Pass the second boundary `at_ms`; return the bars that end there."""
        second = self._second
        self._minute.merge(second)
        closed = [("1s", second)]
        self._second = _empty_bar("1s", at_ms, second.close)
        self.add = self._second.add
        if at_ms % _MINUTE_MS == 0:
            closed += self._close_minute(at_ms)
        return closed

    def _close_minute(self, at_ms: int) -> list[tuple[str, Bar]]:
        minute = self._minute
        closed = [("1m", minute)]
        self._minute = _empty_bar("1m", at_ms, minute.close)
        for name, bar in self._longer.items():
            bar.merge(minute)
            if bar_open_ms(name, at_ms) == at_ms:
                closed.append((name, bar))
                self._longer[name] = _empty_bar(name, at_ms, minute.close)
        return closed

    def _bar(self, interval: str) -> Bar:
        return {"1s": self._second, "1m": self._minute}.get(interval) or self._longer[interval]


def _empty_bar(interval: str, at_ms: int, price: int) -> Bar:
    return Bar(bar_open_ms(interval, at_ms), price, price, price, price)


class History:
    """What is remembered of one symbol; `keep_*` bound it. All trades since `trades_since_ms` are there."""

    def __init__(self, symbol: str, *, start_ms: int = 0, keep_trades: int = 100_000, keep_bars: int = 2_000) -> None:
        self.symbol = symbol
        self.trades_since_ms = start_ms
        self.book = Book()
        self.fills: list[Fill] = []
        self.bars: dict[str, list[Bar]] = {}
        self.ladder: Ladder | None = None
        self._keep_trades = keep_trades
        self._keep_bars = keep_bars

    def add_fill(self, fill: Fill) -> None:
        """Remember a trade, and forget the oldest when there are too many."""
        fills = self.fills
        fills.append(fill)
        if len(fills) >= 2 * self._keep_trades:  # in halves, so that forgetting costs nothing per trade
            del fills[: -self._keep_trades]
            self.trades_since_ms = fills[0].time_ms + 1

    def add_bar(self, interval: str, bar: Bar) -> None:
        """Remember a bar; one with the open time of the last replaces it."""
        bars = self.bars.setdefault(interval, [])
        if bars and bars[-1].open_ms == bar.open_ms:
            bars[-1] = bar
            return
        bars.append(bar)
        if len(bars) >= 2 * self._keep_bars:
            del bars[: -self._keep_bars]

    def all_bars(self, interval: str) -> list[Bar]:
        """Return the remembered bars of `interval`, oldest first, the unfinished one last."""
        closed = self.bars.get(interval, [])
        return [*closed, self.ladder.current(interval)] if self.ladder else closed

    def day(self) -> Bar:
        """Return everything of the last day as one bar."""
        minutes = self.all_bars("1m")[-1_440:] if self.ladder else []
        day = Bar(0, 0, 0, 0, 0)
        for minute in minutes:
            day.merge(minute)
        for fill in () if minutes else self.fills:
            day.add(fill)
        return day

    def page(self, from_id: int | None, until_ms: int, limit: int) -> list[Fill]:
        """Return at most `limit` trades from `from_id` on (None: the newest), not after `until_ms`.

        An id that is no longer kept is no error: the page starts at the oldest one that is (facts/binance.md §6).
        """
        end = bisect_left(self.fills, until_ms + 1, key=lambda fill: fill.time_ms)
        begin = end - limit if from_id is None else bisect_left(self.fills, from_id, key=lambda fill: fill.trade_id)
        return self.fills[max(begin, 0) : min(begin + limit, end)]

    def aggregates(self, *, from_id: int | None, start_ms: int | None, end_ms: int, limit: int) -> list[Aggregate]:
        """Return at most `limit` aggregates: oldest first from where is asked, else the newest."""
        if from_id is not None:
            begin = bisect_left(self.fills, from_id, key=lambda fill: fill.aggregate_id)
        elif start_ms is not None:
            begin = bisect_left(self.fills, start_ms, key=lambda fill: fill.time_ms)
        else:
            end = bisect_left(self.fills, end_ms + 1, key=lambda fill: fill.time_ms)
            return _newest_aggregates(self.fills, end, limit)
        return _oldest_aggregates(self.fills, begin, end_ms, limit)


def _oldest_aggregates(fills: Sequence[Fill], begin: int, end_ms: int, limit: int) -> list[Aggregate]:
    found: list[Aggregate] = []
    index = begin
    while index < len(fills) and len(found) < limit and fills[index].time_ms <= end_ms:
        after = index + 1
        while after < len(fills) and fills[after].aggregate_id == fills[index].aggregate_id:
            after += 1
        found.append(_aggregate(fills[index:after]))
        index = after
    return found


def _newest_aggregates(fills: Sequence[Fill], end: int, limit: int) -> list[Aggregate]:
    found: list[Aggregate] = []
    while end > 0 and len(found) < limit:
        begin = end - 1
        while begin > 0 and fills[begin - 1].aggregate_id == fills[end - 1].aggregate_id:
            begin -= 1
        found.append(_aggregate(fills[begin:end]))
        end = begin
    return found[::-1]


def _aggregate(fills: Sequence[Fill]) -> Aggregate:
    first, last = fills[0], fills[-1]
    total = sum(fill.quantity for fill in fills)
    return Aggregate(
        first.aggregate_id, first.price, total, first.trade_id, last.trade_id, first.time_ms, first.buyer_is_maker
    )
