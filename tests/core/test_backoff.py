"""Backoff: how delays grow, spread and start again."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.backoff import Backoff


def test_delays_double_up_to_the_limit_without_jitter() -> None:
    """The bare ceiling is 1, 2, 4 ... seconds, and stays at the limit."""
    backoff = Backoff(initial_s=1.0, max_s=60.0, multiplier=2.0, jitter=None)
    assert [backoff.next_delay() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_reset_starts_again_from_the_shortest_delay() -> None:
    """After a reset the first delay comes again."""
    backoff = Backoff(initial_s=0.5, max_s=60.0, multiplier=3.0, jitter=None)
    assert [backoff.next_delay(), backoff.next_delay()] == [0.5, 1.5]
    backoff.reset()
    assert backoff.next_delay() == 0.5


def test_jitter_is_drawn_from_the_injected_source() -> None:
    """The same seed gives the same delays: a uniform draw between zero and the ceiling."""
    backoff = Backoff(initial_s=1.0, max_s=60.0, multiplier=2.0, jitter=random.Random(7))
    source = random.Random(7)
    assert [backoff.next_delay() for _ in range(4)] == [source.uniform(0.0, ceiling_s) for ceiling_s in (1, 2, 4, 8)]


@given(
    initial_s=st.floats(0.001, 100), max_s=st.floats(0.001, 100), multiplier=st.floats(1, 10), seed=st.integers(0, 99)
)
def test_no_delay_exceeds_the_limit_however_long_the_outage(
    initial_s: float, max_s: float, multiplier: float, seed: int
) -> None:
    """Two thousand failures in a row neither overflow nor leave the bounds."""
    backoff = Backoff(initial_s=initial_s, max_s=max_s, multiplier=multiplier, jitter=random.Random(seed))
    assert all(0.0 <= backoff.next_delay() <= max_s for _ in range(2000))
