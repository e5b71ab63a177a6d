"""What a receiver that only counts is measured by. Standard library only: peers run in environments of their own."""

from __future__ import annotations

import time

from tests.benchmarks.children import report

WARM_UP_S = 0.5


class Meter:
    """Counts messages; the first half second does not count."""

    def __init__(self, seconds: float) -> None:
        self.messages = 0
        self._seconds = seconds
        self._starts_s = self._ends_s = 0.0
        self._from: tuple[int, float, float] | None = None

    def is_over(self, messages: int) -> bool:
        """Count `messages` more; report and return True once the time is up, which begins with the first one."""
        now_s = time.perf_counter()
        if not self.messages:
            self._starts_s = now_s + WARM_UP_S
            self._ends_s = self._starts_s + self._seconds
        self.messages += messages
        if self._from is None:
            if now_s >= self._starts_s:
                self._from = (self.messages, time.process_time(), now_s)
            return False
        if now_s < self._ends_s:
            return False
        first, cpu_s, wall_s = self._from
        counted = self.messages - first
        report({"cpu_us": (time.process_time() - cpu_s) / counted * 1e6, "per_s": counted / (now_s - wall_s)})
        return True
