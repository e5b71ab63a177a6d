"""What Kinesis has acknowledged, as ids: interval sets, the claim of a record, the coverage that a heartbeat carries.

The model is completeness.md §1. Coverage grows by acknowledged claims and in no other way, and two accounts of it merge
in any order, with loss and repetition, into something that never holds an id that nobody acknowledged.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ingestor.core.model import Claim, Subscription

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ingestor.core.model import Hole, MarketData

COVERED_LIMIT: Final = 16  # intervals that a heartbeat carries for a subscription
RUN_LIMIT: Final = (
    4096  # intervals kept in memory for a subscription; a bound on memory, far above what repair leaves open
)


class Range(Struct, frozen=True):
    """Ids `first` to `last`, inclusive, where they are written down."""

    first: int
    last: int


class Intervals:
    """A set of ints, kept as sorted, disjoint, closed intervals that never touch each other."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in pairs:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Put `first` to `last` (inclusive) in; an empty range (`first > last`) changes nothing."""
        firsts, lasts = self._firsts, self._lasts
        if lasts and firsts[-1] <= first <= lasts[-1] + 1:  # nearly always: the next ids of a live stream
            lasts[-1] = max(lasts[-1], last)
            return
        if first > last:
            return
        low = bisect_left(lasts, first - 1)  # the first interval that reaches up to us
        high = bisect_right(firsts, last + 1)  # behind the last interval that begins within our reach
        if low < high:
            first, last = min(first, firsts[low]), max(last, lasts[high - 1])
        firsts[low:high] = [first]
        lasts[low:high] = [last]

    def discard(self, first: int, last: int) -> None:
        """Take `first` to `last` (inclusive) out, as far as they are in."""
        firsts, lasts = self._firsts, self._lasts
        low, high = bisect_left(lasts, first), bisect_right(firsts, last)
        if first > last or low >= high:
            return
        kept = [(firsts[low], first - 1), (last + 1, lasts[high - 1])]
        kept = [(start, end) for start, end in kept if start <= end]
        firsts[low:high] = [start for start, _ in kept]
        lasts[low:high] = [end for _, end in kept]

    def update(self, other: Intervals) -> None:
        """Put everything in `other` in."""
        for first, last in other:
            self.add(first, last)

    def subtract(self, other: Intervals) -> None:
        """Take everything in `other` out."""
        for first, last in other:
            self.discard(first, last)

    def within(self, first: int, last: int) -> Intervals:
        """Return the part of this set that lies in `first` to `last` (inclusive)."""
        low, high = bisect_left(self._lasts, first), bisect_right(self._firsts, last)
        pairs = zip(self._firsts[low:high], self._lasts[low:high], strict=True)
        return Intervals((max(first, start), min(last, end)) for start, end in pairs)

    def missing(self, first: int, last: int) -> Intervals:
        """Return what `first` to `last` (inclusive) holds and this set does not."""
        rest = Intervals(((first, last),))
        rest.subtract(self.within(first, last))
        return rest

    def covers(self, first: int, last: int) -> bool:
        """Whether all of `first` to `last` (inclusive) is in; an empty range is."""
        holder = self.holding(first)
        return first > last or (holder is not None and last <= holder[1])

    def holding(self, number: int) -> tuple[int, int] | None:
        """Return the interval that holds `number`, or None."""
        at = bisect_left(self._lasts, number)
        if at == len(self._lasts) or self._firsts[at] > number:
            return None
        return self._firsts[at], self._lasts[at]

    def count(self) -> int:
        """How many ints are in."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def ranges(self) -> list[Range]:
        """Write the set down."""
        return [Range(first, last) for first, last in self]

    def copy(self) -> Intervals:
        """Return an equal set that changes on its own."""
        twin = Intervals()
        twin._firsts, twin._lasts = self._firsts.copy(), self._lasts.copy()
        return twin

    @property
    def lowest(self) -> int:
        """The least member; `IndexError` when there is none."""
        return self._firsts[0]

    @property
    def highest(self) -> int:
        """The greatest member; `IndexError` when there is none."""
        return self._lasts[-1]

    def __contains__(self, number: int) -> bool:
        return self.holding(number) is not None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def __len__(self) -> int:
        return len(self._firsts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Intervals):
            return NotImplemented
        return self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Intervals({list(self)})"


_DAY_MS: Final = 86_400_000
_INTERVAL_MS: Final = {
    "1s": 1_000,
    "1m": 60_000,
    "3m": 180_000,
    "5m": 300_000,
    "15m": 900_000,
    "30m": 1_800_000,
    "1h": 3_600_000,
    "2h": 7_200_000,
    "4h": 14_400_000,
    "6h": 21_600_000,
    "8h": 28_800_000,
    "12h": 43_200_000,
    "1d": _DAY_MS,
    "3d": 3 * _DAY_MS,
    "1w": 7 * _DAY_MS,
}
# Weeks open on a Monday, and the epoch was a Thursday. Bars of three days open one day off the epoch: 2017-08-17,
# 2024-01-01, 2026-07-01 (the public archive's BTCUSDT-3d files as two public projects list them; read 2026-11-26).
_OFFSET_MS: Final = {"1w": 4 * _DAY_MS, "3d": _DAY_MS}


def kline_ordinal(interval: str, open_time_ms: int) -> int:
    """Return the number of the bar that opens at `open_time_ms`; consecutive bars have consecutive numbers.

    `interval` is `1s` to `1M` as the venue writes it. Months are counted from January 1970, everything else in bars
    since the epoch. Raises KeyError for an interval that the venue does not have.
    """
    if interval == "1M":
        return _months_since_epoch(open_time_ms)
    return (open_time_ms - _OFFSET_MS.get(interval, 0)) // _INTERVAL_MS[interval]


def kline_open_ms(interval: str, ordinal: int) -> int:
    """Return when the bar with this ordinal opens, in milliseconds; the inverse of `kline_ordinal`."""
    if interval == "1M":
        year, month = divmod(ordinal, 12)
        return _days_since_epoch(1970 + year, month + 1) * _DAY_MS
    return ordinal * _INTERVAL_MS[interval] + _OFFSET_MS.get(interval, 0)


def is_kline_interval(interval: str) -> bool:
    """Tell whether the venue has bars of this interval."""
    return interval == "1M" or interval in _INTERVAL_MS


def _months_since_epoch(at_ms: int) -> int:
    """Count months by the civil calendar, in years that begin in March; the inverse of `_days_since_epoch`."""
    era, day = divmod(at_ms // _DAY_MS + 719_468, 146_097)  # 400 years
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day_of_year = day - (365 * year + year // 4 - year // 100)
    return (400 * era + year - 1970) * 12 + (5 * day_of_year + 2) // 153 + 2


def _days_since_epoch(year: int, month: int) -> int:
    """Days from 1970-01-01 to the first of a month, by the civil calendar (`datetime` would drag in time zones)."""
    year -= month <= 2  # years that begin in March put the leap day at the end
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5
    return year * 365 + year // 4 - year // 100 + year // 400 + day_of_year - 719_468


@lru_cache(maxsize=65_536)
def subscription_of(symbol: str, kind: str) -> Subscription:
    """Return the one `Subscription` of (`symbol`, `kind`); cheaper than making one for every record."""
    return Subscription(symbol, kind)


@lru_cache(maxsize=65_536)
def _kline_subscription(symbol: str, interval: str) -> Subscription:
    return subscription_of(symbol, f"kline_{interval}")


class _TradeSubscriptions(dict[str, Subscription]):
    """`subscription_of` for trades: a dictionary is twice as fast, and these are most of all claims."""

    def __missing__(self, symbol: str) -> Subscription:
        if len(self) >= 65_536:
            self.clear()
        made = self[symbol] = subscription_of(symbol, "trade")
        return made


_trade_subscriptions: Final = _TradeSubscriptions()


def claim_of(record: MarketData) -> Claim | None:
    """Return the ids that this record stands for once acknowledged.

    None for a snapshot, for a bar that is open, for one of an interval that nobody can count in, and for what was lost
    to a restart: its ids are of an older generation, and the same numbers are other events now.
    """
    trade = record.trade
    if trade is not None:
        trade_id = trade.trade_id
        return Claim(_trade_subscriptions[record.symbol], trade_id, trade_id)
    depth = record.depth
    if depth is not None:
        if depth.snapshot:
            return None
        return Claim(subscription_of(record.symbol, "depth"), depth.first_update_id, depth.final_update_id)
    kline = record.kline
    if kline is not None:
        if not kline.closed or not is_kline_interval(kline.interval):
            return None
        ordinal = kline_ordinal(kline.interval, kline.open_time)
        return Claim(_kline_subscription(record.symbol, kline.interval), ordinal, ordinal)
    return None if record.hole is None else _claim_of_hole(record.symbol, record.hole)


def _claim_of_hole(symbol: str, hole: Hole) -> Claim | None:
    if hole.reason == "id_restart" and not hole.first == 0 <= hole.last:
        return None
    return Claim(subscription_of(symbol, hole.stream), hole.first, hole.last)


class Entry(Struct):
    """What is known to be in the stream of one subscription, counted from `origin`.

    `covered` holds ids that Kinesis acknowledged, or that an acknowledged hole record declares. `settled` says that the
    search for older coverage is over. `last_event_ms` is the newest venue time seen, `origin_ms` that of the first live
    event (0: not known); `generation` grows when the venue starts its ids again.
    """

    origin: int
    covered: Intervals
    generation: int = 0
    settled: bool = False
    last_event_ms: int = 0
    origin_ms: int = 0

    @property
    def watermark(self) -> int:
        """The id up to which, from `origin`, the set is complete; `origin - 1` while not even the origin is covered."""
        holder = self.covered.holding(self.origin)
        return self.origin - 1 if holder is None else holder[1]

    @property
    def bound(self) -> int:
        """The id from which on none is known to exist, acknowledged or not."""
        return max(self.origin, self.covered.highest + 1) if self.covered else self.origin

    def missing(self, last: int) -> Intervals:
        """Return what is not covered from `origin` to `last` (inclusive)."""
        return self.covered.missing(self.origin, last)

    def merge(self, other: Entry) -> Entry:
        """Join two accounts of the same subscription; commutative, associative and idempotent."""
        if self.generation != other.generation:
            return max(self, other, key=_generation).copy()
        merged = self.copy()
        merged.covered.update(other.covered)
        merged.origin, merged.origin_ms = min((self.origin, self.origin_ms), (other.origin, other.origin_ms))
        merged.settled = self.settled or other.settled
        merged.last_event_ms = max(self.last_event_ms, other.last_event_ms)
        return merged

    def copy(self) -> Entry:
        """Return an equal entry that changes on its own."""
        return Entry(
            self.origin, self.covered.copy(), self.generation, self.settled, self.last_event_ms, self.origin_ms
        )

    def forget(self, limit: int) -> None:
        """Keep at most `limit` intervals: the one that ends at the watermark and the longest others.

        What is forgotten is only fetched again. Merging never forgets, or its result would depend on the order.
        """
        excess = len(self.covered) - limit
        if excess <= 0:
            return
        spare = [pair for pair in self.covered if not pair[0] <= self.origin <= pair[1]]
        for first, last in sorted(spare, key=_length)[:excess]:
            self.covered.discard(first, last)


def _generation(entry: Entry) -> int:
    return entry.generation


def _length(pair: tuple[int, int]) -> int:
    return pair[1] - pair[0]


class Coverage:
    """The entries of all subscriptions; what this task knows to be acknowledged, inherited coverage included."""

    def __init__(self, entries: Mapping[Subscription, Entry] | None = None) -> None:
        self._entries = {subscription: entry.copy() for subscription, entry in (entries or {}).items()}
        self._restarted: set[Subscription] = set()  # and no claim of the new ids was acknowledged yet

    def originate(self, subscription: Subscription, first_live_id: int, event_ms: int = 0) -> None:
        """Begin to count `subscription` at its first live id, or at an earlier one than it is counted from already."""
        entry = self._entries.get(subscription)
        if entry is None:
            self._entries[subscription] = Entry(first_live_id, Intervals(), origin_ms=event_ms)
        elif first_live_id < entry.origin:
            entry.origin = first_live_id

    def acknowledge(self, claims: Iterable[Claim]) -> None:
        """Cover what Kinesis accepted; what belongs to a subscription that is not counted is let go (fetched again)."""
        entries, restarted = self._entries, self._restarted
        for claim in claims:
            subscription, first, last = claim.subscription, claim.first, claim.last
            entry = entries.get(subscription)
            if entry is None or (restarted and not self._is_of_this_generation(subscription, first, last)):
                continue
            entry.covered.add(first, last)
            if len(entry.covered) > RUN_LIMIT:
                entry.forget(RUN_LIMIT)

    def observe(self, subscription: Subscription, event_ms: int) -> None:
        """Remember the newest venue time, acknowledged or not: it tells an id restart from a duplicate."""
        entry = self._entries.get(subscription)
        if entry is not None and entry.last_event_ms < event_ms:
            entry.last_event_ms = event_ms

    def restart(self, subscription: Subscription, event_ms: int, *, is_under_way: bool = True) -> None:
        """Count a new generation from 0, because the venue began its ids again; we saw it first at `event_ms`.

        What was not seen of it is declared from 0 on; a task that dies before that is acknowledged leaves it missing to
        the next one. With `is_under_way` claims of the old ids may still come. A key keeps its order, so they come
        before the claim that holds the new id 0, and everything up to that one is let go.
        """
        old = self._entries.get(subscription)
        generation, last_event_ms = (old.generation + 1, old.last_event_ms) if old else (0, 0)
        self._entries[subscription] = Entry(0, Intervals(), generation, True, last_event_ms, event_ms)
        if is_under_way:
            self._restarted.add(subscription)

    def settle(self, subscription: Subscription) -> None:
        """Say that the search for older coverage of `subscription` is over."""
        entry = self._entries.get(subscription)
        if entry is not None:
            entry.settled = True

    def inherit(self, subscription: Subscription, found: Entry, *, is_restarted: bool) -> None:
        """Join what earlier tasks covered with what this one did, and settle it.

        What this task covered belongs to the venue's present ids: those of `found`, or their successors if restarted.
        """
        mine = self._entries[subscription]
        mine.generation += found.generation + is_restarted
        if is_restarted:
            mine.origin = 0
        mine.settled = True
        self._entries[subscription] = mine.merge(found)

    def merge(self, other: Mapping[Subscription, Entry] | Coverage) -> None:
        """Take in another account, entry by entry."""
        for subscription, entry in other.items():
            mine = self._entries.get(subscription)
            self._entries[subscription] = entry.copy() if mine is None else mine.merge(entry)

    def watermarks(self) -> dict[Subscription, int]:
        """For every subscription the id up to which its set is complete."""
        return {subscription: entry.watermark for subscription, entry in self._entries.items()}

    def get(self, subscription: Subscription) -> Entry | None:
        """Return the entry of `subscription`, to read; None while it is not counted."""
        return self._entries.get(subscription)

    def items(self) -> Iterable[tuple[Subscription, Entry]]:
        """Every subscription with its entry, to read."""
        return self._entries.items()

    def __getitem__(self, subscription: Subscription) -> Entry:
        return self._entries[subscription]

    def __contains__(self, subscription: Subscription) -> bool:
        return subscription in self._entries

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _is_of_this_generation(self, subscription: Subscription, first: int, last: int) -> bool:
        if subscription not in self._restarted:
            return True
        if not first <= 0 <= last:
            return False
        self._restarted.remove(subscription)
        return True
