"""How the grace of a stop is divided, counted back from its end (completeness.md §8)."""

from __future__ import annotations

from typing import NamedTuple

OBSERVERS_S = 2.0  # hypercorn ends open event streams, the last scrape and the last probe are answered
FINAL_BEAT_S = 1.0  # the least that is kept for the last heartbeat


class StopPlan(NamedTuple):
    """Seconds after the stop was asked for until which each step may go on."""

    last_put_s: float
    delivery_s: float
    final_beat_s: float

    @classmethod
    def within(cls, grace_s: float, call_timeout_s: float) -> StopPlan:
        """Divide `grace_s` so that a put that uses its whole `call_timeout_s` (connect + read) still ends in time.

        A thread inside a put cannot be interrupted, so the last one must *start* early enough.
        """
        final_beat_s = max(0.0, grace_s - OBSERVERS_S)
        return cls(max(0.0, final_beat_s - call_timeout_s), max(0.0, final_beat_s - FINAL_BEAT_S), final_beat_s)
