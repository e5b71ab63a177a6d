"""When a new connection may take the place of an old one, and when the old one should be replaced at all.

Make before break: both bring the same subscriptions for a while, until nothing would be missing without the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

    from ingestor.core.intake import Inlet

# The venue drops a connection at the 24 h mark (facts/binance.md §2, read 2026-11-23). All connections of a task are
# opened together, so each is replaced after a time of its own.
EARLIEST_SHARE: Final = 0.9
# Two replacements of this process are never closer together: a burst of doubled traffic, once for each connection.
ROLLOVER_PACE_S: Final = 10.0

QUIET_S: Final = 5.0  # bars come every two seconds, diffs ten times a second: silence on both feeds is no news
MAX_OVERLAP_S: Final = 60.0  # what has not been seen by then is left to the watch over silent subscriptions


def lifetime_s(rollover_after_s: float, jitter: Random) -> float:
    """Return after how many seconds a connection is to be replaced."""
    return rollover_after_s * jitter.uniform(EARLIEST_SHARE, 1.0)


class Overlap:
    """Watches an old and a new feed of the same subscriptions; made when the new one is subscribed to all of them.

    A subscription is carried over when the new feed has brought it and follows on what was taken, or when neither feed
    has brought any of it for five seconds. Those that are added meanwhile are waited for as well, and those that are
    ended are not. `now` is the monotonic clock.
    """

    def __init__(self, old: Inlet, new: Inlet, now: float) -> None:
        self._old = old
        self._new = new
        self._ends_s = now + MAX_OVERLAP_S
        self._carried_over = set[str]()
        self._waiting = {name: (voice.received, now) for name, voice in old.streams.items()}

    @property
    def missing(self) -> list[str]:
        """The streams that are not carried over yet."""
        return list(self._waiting)

    def is_over(self, now: float) -> bool:
        """Say whether the old feed may go: nothing is missing on the new one, or it has been waited for long enough."""
        waiting = {}
        for name, voice in self._old.streams.items():
            received, quiet_since_s = self._waiting.get(name, (voice.received, now))
            since_s = quiet_since_s if voice.received == received else now
            if name in self._carried_over or self._is_carried_over(name) or now - since_s >= QUIET_S:
                self._carried_over.add(name)
            else:
                waiting[name] = (voice.received, since_s)
        self._waiting = waiting
        return not waiting or now >= self._ends_s

    def _is_carried_over(self, name: str) -> bool:
        """Say whether the new feed has it; one that was ended before the new feed began is none of its business."""
        voice = self._new.streams.get(name)
        return voice is None or voice.has_joined
