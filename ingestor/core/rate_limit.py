"""So many events in any window of time, and no more: answers how long the next one has to wait."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

# The venue takes 5 inbound messages a second and connection, pongs included, and bans who exceeds it (facts/binance.md
# §2, read 2026-11-23). One of ours every 300 ms leaves room for pongs.
CONTROL_PACE_S: Final = 0.3
# The venue takes 300 connection attempts per 5 minutes and IP address (ibid.). What is left belongs to neighbours
# behind the same address, such as the task that takes over from us.
CONNECTS_PER_WINDOW: Final = 250
CONNECT_WINDOW_S: Final = 300.0


class RateLimit:
    """At most `limit` places in any `window_s` seconds, handed out first come first served.

    A place that was reserved is taken, used or not: the caller waits for the delay and goes. With a limit of 1 it is a
    pace.
    """

    def __init__(self, limit: int, window_s: float) -> None:
        self._window_s = window_s
        self._taken_at = deque[float](maxlen=limit)

    def delay(self, now: float) -> float:
        """Return the seconds until a place is free, without taking it."""
        if len(self._taken_at) < (self._taken_at.maxlen or 0):
            return 0.0
        return max(0.0, self._taken_at[0] + self._window_s - now)

    def reserve(self, now: float) -> float:
        """Take the next place and return the seconds until it may be used."""
        delay_s = self.delay(now)
        self._taken_at.append(now + delay_s)
        return delay_s


class RatePerKey:
    """At most `limit` events in any `window_s` seconds for each key; `keys` of them are remembered, the newest ones."""

    def __init__(self, limit: int, window_s: float, *, keys: int) -> None:
        self._limit = limit
        self._window_s = window_s
        self._keys = keys
        self._limits: dict[str, RateLimit] = {}

    def admits(self, key: str, now: float) -> bool:
        """Say whether an event may happen now; if so, it counts."""
        limit = self._limits.pop(key, None) or RateLimit(self._limit, self._window_s)
        self._limits[key] = limit
        if len(self._limits) > self._keys:
            del self._limits[next(iter(self._limits))]
        if limit.delay(now) > 0:
            return False
        limit.reserve(now)
        return True


def control_pace() -> RateLimit:
    """Return the pace of our messages to the venue on one connection."""
    return RateLimit(1, CONTROL_PACE_S)


def connect_limit() -> RateLimit:
    """Return the limit on connection attempts that all connections of this process share."""
    return RateLimit(CONNECTS_PER_WINDOW, CONNECT_WINDOW_S)
