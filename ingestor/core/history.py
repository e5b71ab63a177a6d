"""What the numbers were over the last minutes: a ring of bounded size, so that a page just opened shows the past."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

EVERY_S: Final = 2.0
WINDOW_S: Final = 900.0


class Reading(Struct, frozen=True):
    """What the owners of the numbers say at one moment; the first three only grow.

    `waits` counts records by the bucket that their time from receipt to acknowledgement fell into, the last bucket
    without an upper bound. `lag_s` is the largest watermark lag.
    """

    messages: float
    records: float
    waits: Sequence[int]
    channel_bytes: float
    held_bytes: float
    spool_bytes: float
    lag_s: float


class Point(Struct, frozen=True, array_like=True):
    """One sample as the page draws it: rates per second, times in seconds; None where nothing was acknowledged."""

    uptime_s: float
    messages_per_s: float
    records_per_s: float
    p50_s: float | None
    p99_s: float | None
    channel_bytes: float
    held_bytes: float
    spool_bytes: float
    lag_s: float


class History:
    """Turns readings into points and keeps the newest `window_s` seconds of them, one every `every_s`."""

    def __init__(self, bounds_s: Sequence[float], *, every_s: float = EVERY_S, window_s: float = WINDOW_S) -> None:
        self.every_s = every_s
        self.window_s = window_s
        self._bounds_s = tuple(bounds_s)
        self._points: deque[Point] = deque(maxlen=round(window_s / every_s) + 1)
        self._last: tuple[float, Reading] | None = None

    def sample(self, uptime_s: float, reading: Reading) -> None:
        """Note what was read at `uptime_s`; the first reading is what the second one is compared with."""
        if self._last is not None and uptime_s > self._last[0]:
            self._points.append(self._compare(*self._last, uptime_s, reading))
        self._last = uptime_s, reading

    def points(self) -> list[Point]:
        """Return the points, oldest first."""
        return list(self._points)

    def newest(self) -> Point | None:
        """Return the newest point; None before there is one."""
        return self._points[-1] if self._points else None

    def _compare(self, before_s: float, before: Reading, uptime_s: float, reading: Reading) -> Point:
        elapsed_s = uptime_s - before_s
        waits = [count - earlier for count, earlier in zip(reading.waits, before.waits, strict=True)]
        return Point(
            uptime_s=round(uptime_s, 2),
            messages_per_s=round((reading.messages - before.messages) / elapsed_s, 1),
            records_per_s=round((reading.records - before.records) / elapsed_s, 1),
            p50_s=quantile(self._bounds_s, waits, 0.5),
            p99_s=quantile(self._bounds_s, waits, 0.99),
            channel_bytes=reading.channel_bytes,
            held_bytes=reading.held_bytes,
            spool_bytes=reading.spool_bytes,
            lag_s=round(reading.lag_s, 2),
        )


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Return the value that `share` of the observations do not exceed, straight within its bucket; None without any.

    What is above the highest bound counts as that bound.
    """
    wanted, seen, low = share * sum(counts), 0, 0.0
    if not wanted:
        return None
    for bound, count in zip(bounds, counts, strict=False):
        if count and seen + count >= wanted:
            return round(low + (bound - low) * (wanted - seen) / count, 5)
        seen, low = seen + count, bound
    return bounds[-1]
