"""The grace of a stop is divided so that nothing outlives it."""

from __future__ import annotations

from ingestor.core.stopping import StopPlan


def test_the_last_put_starts_early_enough_to_end_before_the_grace() -> None:
    """25 s of grace, 9 s of socket timeouts and 2 s for the observers leave 14 s to start puts in."""
    assert StopPlan.within(grace_s=25, call_timeout_s=9) == StopPlan(last_put_s=14, delivery_s=22, final_beat_s=23)


def test_a_grace_that_is_too_short_leaves_no_negative_times() -> None:
    """Whatever is configured, the steps keep their order and none lies before the stop."""
    assert StopPlan.within(grace_s=1, call_timeout_s=9) == StopPlan(0, 0, 0)
