"""One subscription over several feeds: whose message is taken, and what waits for the other feed.

Trades and bars are taken from whoever brings them first (`Holdback`); diffs of a book follow one leader (`Relay`),
because the venue cuts their windows differently on each connection (completeness.md §6). Neither judges ids: the
tracker of the subscription does, and tells what it expects. `now` is the monotonic clock in seconds.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")

HOLDBACK_S: Final = 0.2  # how long what lies above a jump waits for what may still come
TAKEOVER_S: Final = 1.0  # for how long a standby may be ahead of its leader; windows are 100 ms, merged ones 200 ms
_HOLDBACK_ITEMS: Final = 1_000  # as many as one symbol was measured to trade in a second
_STANDBY_DIFFS: Final = 100  # ten seconds of one book


class Holdback(Generic[T]):
    """What lies above a jump in the ids waits here, because the other feed may bring what is missing.

    At most a thousand items and 200 ms: then the lowest goes on all the same, and the jump is a gap.
    """

    __slots__ = ("_due_at", "_held")

    def __init__(self) -> None:
        self._held: dict[int, T] = {}
        self._due_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._held)

    def hold(self, sequence: int, item: T, now: float) -> bool:
        """Keep `item`; False if this id is held already."""
        if sequence in self._held:
            return False
        if not self._held:
            self._due_at = now + HOLDBACK_S
        self._held[sequence] = item
        return True

    def next(self, expected: int, now: float) -> T | None:
        """Take out what may go on now: the expected id, or the lowest one when the wait for those below is over.

        A jump behind the one that was given up has a wait of its own.
        """
        held = self._held
        if not held:
            return None
        if expected in held:
            return held.pop(expected)
        lowest = min(held)
        if lowest > expected and now < self._due_at and len(held) <= _HOLDBACK_ITEMS:
            return None
        self._due_at = now + HOLDBACK_S
        return held.pop(lowest)

    def take_all(self) -> list[T]:
        """Take out everything, in order: nobody is left who could bring what is missing."""
        items = [self._held[sequence] for sequence in sorted(self._held)]
        self._held.clear()
        return items


class Diff(NamedTuple, Generic[T]):
    """Update ids `first` to `final` as one feed brought them at `at_s`."""

    first: int
    final: int
    item: T
    at_s: float


class Relay(Generic[T]):
    """Diffs of one book over several feeds: the leader's are taken, those of the others stand by.

    A standby takes over where the leader has a break, leaves, or stays behind it for a second. The first diff that is
    taken from it reaches back to what was taken last, so nothing is lost in between. Only when no feed has what is
    missing is it given up.
    """

    __slots__ = ("_leader", "_queues", "dropped")

    def __init__(self) -> None:
        self.dropped = 0  # diffs that were not needed, since somebody last looked
        self._leader: Hashable = None
        self._queues: dict[Hashable, deque[Diff[T]]] = {}

    def __bool__(self) -> bool:
        return any(self._queues.values())

    def join(self, feed: Hashable) -> None:
        """Take part from now on."""
        self._queues[feed] = deque(maxlen=_STANDBY_DIFFS)

    def leave(self, feed: Hashable) -> None:
        """Take part no longer; what `feed` held is given up, and covered by a break if nobody else has it."""
        self.dropped += len(self._queues.pop(feed))
        if self._leader is feed:
            self._leader = None

    def lead(self, feed: Hashable) -> None:
        """Make `feed` the leader at a beginning of the ids: what others hold is of the past."""
        self._leader = feed
        for queue in self._queues.values():
            self.dropped += len(queue)
            queue.clear()

    def offer(self, feed: Hashable, diff: Diff[T]) -> None:
        """Let `diff` of `feed` stand by; whether it goes on is said by `next`."""
        queue = self._queues[feed]
        if queue and diff.first <= queue[-1].first:  # the ids began again
            self.dropped += len(queue)
            queue.clear()
        queue.append(diff)

    def next(self, expected: int, now: float) -> T | None:
        """Take out the diff to go on with, if there is one now; its feed is the leader then."""
        self._drop_below(expected)
        feed = self._chosen(expected, now)
        if feed is None:
            return None
        self._leader = feed
        return self._queues[feed].popleft().item

    def take_all(self, feed: Hashable, expected: int) -> list[T]:
        """Take out all that `feed` holds and that is news, in order: it is the only one left."""
        self._drop_below(expected)
        queue = self._queues[feed]
        items = [diff.item for diff in queue]
        queue.clear()
        return items

    def _chosen(self, expected: int, now: float) -> Hashable:
        leading = self._queues.get(self._leader)
        if leading and leading[0].first <= expected:
            return self._leader
        is_quiet = leading is not None and not leading  # it may bring what the others have; else it has a break
        waiting = {feed: queue[0] for feed, queue in self._queues.items() if queue}
        for feed, diff in waiting.items():
            if diff.first <= expected and (not is_quiet or now >= diff.at_s + TAKEOVER_S):
                return feed
        patience_s = TAKEOVER_S if is_quiet else HOLDBACK_S
        if not waiting or now < min(diff.at_s for diff in waiting.values()) + patience_s:
            return None
        return min(waiting, key=lambda feed: waiting[feed].first)

    def _drop_below(self, expected: int) -> None:
        for queue in self._queues.values():
            while queue and queue[0].final < expected:
                queue.popleft()
                self.dropped += 1
