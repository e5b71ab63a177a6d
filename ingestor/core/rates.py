"""Rates over a sliding window, from totals that only grow."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True)
class RollingRates:
    """Turns samples of running totals into rates per second over the last `window_s` seconds."""

    window_s: float = 10.0
    _samples: deque[tuple[float, dict[str, float]]] = field(
        default_factory=deque[tuple[float, dict[str, float]]], init=False
    )

    def sample(self, now: float, totals: Mapping[str, float]) -> None:
        """Note the totals at `now`; one sample older than the window is kept, so that the window is always covered."""
        self._samples.append((now, dict(totals)))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self.window_s:
            self._samples.popleft()

    def per_second(self) -> dict[str, float]:
        """Return the rate of every total of the newest sample; zero before there are two samples apart in time."""
        if not self._samples:
            return {}
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        if last_s <= first_s:
            return dict.fromkeys(last, 0.0)
        return {name: (total - first.get(name, 0.0)) / (last_s - first_s) for name, total in last.items()}
