"""Per subscription: is the next id in order, seen before, or is something missing? And what is, until it is repaired.

A tracker holds the id it expects. The message that follows on costs one comparison; everything else takes the slow way.
Facts: facts/binance.md §4-§6 (trade ids step by one, closed bars may come late), rules: completeness.md §3, §5, §6.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from itertools import pairwise
from math import inf
from typing import Final

from ingestor.core.claims import Intervals, kline_ordinal
from ingestor.core.model import Gap, Subscription

_DEPTH_RESTART_MS: Final = 10_000  # two connections cut windows differently, so E alone proves nothing within seconds
_LATE_BAR_GRACE_MS: Final = 5_000  # closing messages were seen up to 1.8 s after the end of their bar
_MAX_RUNS: Final = 1_024  # pieces of missing ids kept for a subscription; more of them are joined and fetched twice


class Verdict(Enum):
    """What an id is to its subscription; records of `DUPLICATE` are dropped, all others are taken."""

    IN_ORDER = "in_order"
    FIRST = "first"  # the first one seen: the origin of a new subscription
    OVERLAP = "overlap"  # begins with what was seen, ends with what was not (depth)
    GAP = "gap"  # `missing` tells which ids lie between
    RESTART = "restart"  # the venue began its ids again: a new generation, with this one as origin
    DUPLICATE = "duplicate"


IN_ORDER: Final = Verdict.IN_ORDER
FIRST: Final = Verdict.FIRST
OVERLAP: Final = Verdict.OVERLAP
GAP: Final = Verdict.GAP
RESTART: Final = Verdict.RESTART
DUPLICATE: Final = Verdict.DUPLICATE

NOTHING_MISSING: Final = (0, -1)


class TradeTracker:
    """Trades of one symbol by trade id; `expected` is -1 before the first one.

    `missing` is the closed range of ids behind the newest `GAP`. After `RESTART` it is what was expected before.
    """

    __slots__ = ("_unheard", "expected", "last_event_ms", "missing")

    def __init__(self, expected: int = -1, last_event_ms: int = 0) -> None:
        self.expected = expected
        self.last_event_ms = last_event_ms
        self.missing = NOTHING_MISSING
        self._unheard = -1  # what was expected of a stream that was counted without having spoken

    def accept(self, trade_id: int, trade_ms: int) -> Verdict:
        """Judge a live trade by its id and trade time; the hot path."""
        if trade_id == self.expected:
            self.expected = trade_id + 1
            self.last_event_ms = trade_ms
            return IN_ORDER
        return self._out_of_order(trade_id, trade_ms)

    def begin_behind(self, trade_id: int, trade_ms: int) -> bool:
        """Expect what follows `trade_id`, the newest trade up to `trade_ms`; False if one was seen already.

        An older one that comes after all, because it had to wait for its turn while this was found out, is the first.
        """
        if self.expected >= 0:
            return False
        self.expected = self._unheard = trade_id + 1
        self.last_event_ms = trade_ms
        return True

    def pass_over(self, trade_id: int, trade_ms: int) -> tuple[int, int] | None:
        """Expect what follows `trade_id`, a trade of `trade_ms` that will not come; return the ids passed over."""
        if not 0 <= self.expected <= trade_id:
            return None
        passed = (self.expected, trade_id)
        self.expected = trade_id + 1
        self.last_event_ms = max(self.last_event_ms, trade_ms)  # if it comes after all, it is a duplicate
        return passed

    def _out_of_order(self, trade_id: int, trade_ms: int) -> Verdict:
        expected = self.expected
        if expected < 0:
            verdict = FIRST
        elif trade_id > expected:
            verdict = GAP
            self.missing = (expected, trade_id - 1)
        elif trade_ms > self.last_event_ms:
            verdict = RESTART  # a duplicate carries the very time of the first one, so a newer one is another trade
        elif expected == self._unheard:
            verdict = FIRST
        else:
            return DUPLICATE
        self.expected = trade_id + 1
        self.last_event_ms = trade_ms
        self._unheard = -1
        return verdict


class DepthTracker:
    """Diffs of one book by update ids: contiguous means U <= previous u + 1 and u > previous u."""

    __slots__ = ("expected", "last_event_ms", "missing")

    def __init__(self, expected: int = -1, last_event_ms: int = 0) -> None:
        self.expected = expected
        self.last_event_ms = last_event_ms
        self.missing = NOTHING_MISSING

    def accept(self, first_id: int, final_id: int, event_ms: int) -> Verdict:
        """Judge the diff of update ids `first_id` to `final_id`; the hot path."""
        if first_id == self.expected:
            self.expected = final_id + 1
            self.last_event_ms = event_ms
            return IN_ORDER
        return self._out_of_order(first_id, final_id, event_ms)

    def _out_of_order(self, first_id: int, final_id: int, event_ms: int) -> Verdict:
        expected = self.expected
        if expected < 0:
            verdict = FIRST
        elif first_id > expected:
            verdict = GAP
            self.missing = (expected, first_id - 1)
        elif final_id >= expected:
            verdict = OVERLAP
        elif event_ms > self.last_event_ms + _DEPTH_RESTART_MS:
            verdict = RESTART
        else:
            return DUPLICATE
        self.expected = final_id + 1
        self.last_event_ms = event_ms
        return verdict


class KlineTracker:
    """Bars of one symbol and interval: closed ones by ordinal, interim ones by growth.

    An interim update is taken iff (open time, trade count, closed) grows. A bar whose closing message did not come is
    missed when a later bar closes, or when `overdue` finds that a later bar has been running for longer than a closing
    message may be late. `expected` is the ordinal of the next bar to close, -1 before the first message.
    """

    __slots__ = (
        "_interval",
        "_newest_open_ms",
        "_newest_trades",
        "_running",
        "_running_since_ms",
        "expected",
        "missing",
    )

    def __init__(self, interval: str, expected: int = -1) -> None:
        self.expected = expected
        self.missing = NOTHING_MISSING
        self._interval = interval
        self._newest_open_ms = -1
        self._newest_trades = -1
        self._running = expected  # ordinal of the newest bar seen, and when it was first seen
        self._running_since_ms = 0

    def accept(self, open_ms: int, trade_count: int, now_ms: int, *, closed: bool) -> Verdict:
        """Judge the state of a bar; `now_ms` is the monotonic clock in milliseconds."""
        if closed:
            return self._accept_closed(open_ms, trade_count, now_ms)
        if open_ms == self._newest_open_ms:
            if trade_count <= self._newest_trades:
                return DUPLICATE
            self._newest_trades = trade_count
            return IN_ORDER
        if open_ms < self._newest_open_ms:
            return DUPLICATE
        return self._begin(open_ms, trade_count, now_ms)

    @property
    def newest(self) -> tuple[int, int]:
        """The open time and the number of trades of the newest bar seen; above any number once it is closed."""
        return self._newest_open_ms, self._newest_trades

    def pass_over(self, running: int) -> tuple[int, int] | None:
        """Expect the bar `running`, whose predecessors will not come; return the ordinals passed over."""
        if not 0 <= self.expected < running:
            return None
        passed = (self.expected, running - 1)
        self.expected = running
        return passed

    def overdue(self, now_ms: int) -> tuple[int, int] | None:
        """Return the ordinals of bars whose closing message must be lost, once; None while there is nothing to miss."""
        if not 0 <= self.expected < self._running or now_ms < self._running_since_ms + _LATE_BAR_GRACE_MS:
            return None
        missing = (self.expected, self._running - 1)
        self.expected = self._running
        return missing

    def _begin(self, open_ms: int, trade_count: int, now_ms: int) -> Verdict:
        """Note that a later bar than all before is running."""
        ordinal = kline_ordinal(self._interval, open_ms)
        self._newest_open_ms = open_ms
        self._newest_trades = trade_count
        if self._running <= self.expected:  # else an earlier one is missed already, and its clock runs
            self._running_since_ms = now_ms
        self._running = ordinal
        if self.expected < 0:
            self.expected = ordinal
            return FIRST
        return IN_ORDER

    def _accept_closed(self, open_ms: int, trade_count: int, now_ms: int) -> Verdict:
        ordinal = kline_ordinal(self._interval, open_ms)
        expected = self.expected
        if ordinal < expected:
            return DUPLICATE
        if open_ms > self._newest_open_ms:
            self._begin(open_ms, trade_count, now_ms)
        if open_ms == self._newest_open_ms:
            self._newest_trades = _CLOSED  # nothing that is said of this bar from now on is news
        self.expected = ordinal + 1
        if expected < 0:
            return FIRST
        if ordinal == expected:
            return IN_ORDER
        self.missing = (expected, ordinal - 1)
        return GAP


_CLOSED: Final = 2**63 - 1  # above any trade count


class PendingGaps:
    """What is missing and not yet repaired: a coalescing set of ids per subscription, looked at in turn.

    Nothing overflows and nothing blocks: however often the same ids are reported, they are held once, until they are
    withdrawn. `now` is the monotonic clock in seconds; a subscription that was postponed is passed over until then.
    """

    def __init__(self) -> None:
        self._missing: dict[Subscription, Intervals] = {}
        self._detected_ms: dict[Subscription, int] = {}
        self._not_before: dict[Subscription, float] = {}
        self._turns: deque[Subscription] = deque()

    def add(self, gap: Gap) -> None:
        """Hold the ids of `gap`, once; the time of detection is that of the first gap of the subscription."""
        missing = self._missing.get(gap.subscription)
        if missing is None:
            missing = self._missing[gap.subscription] = Intervals()
            self._detected_ms[gap.subscription] = gap.detected_ms
            self._turns.append(gap.subscription)
        missing.add(gap.first, gap.last)
        if len(missing) > _MAX_RUNS:
            _join_nearest(missing)

    def next_run(self, now: float) -> Gap | None:
        """Return the lowest run of missing ids of the subscription whose turn it is; they stay held."""
        for _ in range(len(self._turns)):
            subscription = self._turns[0]
            self._turns.rotate(-1)
            if self._not_before.get(subscription, now) <= now:
                first, last = next(iter(self._missing[subscription]))
                return Gap(subscription, first, last, self._detected_ms[subscription])
        return None

    def within(self, subscription: Subscription, first: int, last: int) -> list[Gap]:
        """Return what is held between `first` and `last` (inclusive), run by run."""
        missing = self._missing.get(subscription)
        if missing is None:
            return []
        detected_ms = self._detected_ms[subscription]
        return [Gap(subscription, start, end, detected_ms) for start, end in missing.within(first, last)]

    def withdraw(self, subscription: Subscription, first: int, last: int) -> None:
        """Hold what lies between `first` and `last` (inclusive) no longer."""
        missing = self._missing.get(subscription)
        if missing is None:
            return
        missing.discard(first, last)
        if not missing:
            del self._missing[subscription], self._detected_ms[subscription]
            self._not_before.pop(subscription, None)
            self._turns.remove(subscription)

    def postpone(self, subscription: Subscription, until: float) -> None:
        """Pass `subscription` over before `until`."""
        if subscription in self._missing:
            self._not_before[subscription] = until

    def due_at(self, now: float) -> float:
        """Return when there is something to do: `now`, later, or never (inf)."""
        return min((max(now, self._not_before.get(each, now)) for each in self._turns), default=inf)

    def count(self) -> int:
        """How many ids are held."""
        return sum(missing.count() for missing in self._missing.values())


def _join_nearest(missing: Intervals) -> None:
    """Join the two neighbours that are least apart; what lay between them is fetched again, which loses nothing."""
    runs = list(missing)
    _, before, after = min((later[0] - earlier[1], earlier[1], later[0]) for earlier, later in pairwise(runs))
    missing.add(before, after)
