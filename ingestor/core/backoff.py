"""How long to wait before the next attempt: exponential, with full jitter, and back to the start on proof of health."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


class Backoff:
    """Delays that grow with every failure.

    Full jitter (a uniform draw below the ceiling) spreads clients that were cut off together; `jitter` is the source of
    randomness, None for the bare ceiling. Whoever waits calls `reset()` on the first data, because a handshake proves
    nothing.
    """

    def __init__(self, *, initial_s: float, max_s: float, multiplier: float, jitter: Random | None) -> None:
        self._initial_s = initial_s
        self._max_s = max_s
        self._multiplier = multiplier
        self._jitter = jitter
        self._ceiling_s = min(initial_s, max_s)

    def next_delay(self) -> float:
        """Return the seconds to wait now, and let the next delay be longer."""
        ceiling_s = self._ceiling_s
        self._ceiling_s = min(ceiling_s * self._multiplier, self._max_s)
        return ceiling_s if self._jitter is None else self._jitter.uniform(0.0, ceiling_s)

    def reset(self) -> None:
        """Start again from the shortest delay."""
        self._ceiling_s = min(self._initial_s, self._max_s)
