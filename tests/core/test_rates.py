"""Rates from growing totals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.rates import RollingRates


def test_there_is_no_rate_before_two_samples() -> None:
    """Nothing is known at first, and one sample is no rate."""
    rates = RollingRates()
    assert rates.per_second() == {}
    rates.sample(5.0, {"messages": 70.0})
    assert rates.per_second() == {"messages": 0.0}


def test_a_rate_is_the_growth_over_the_window() -> None:
    """Old samples leave, except the one that the window begins with."""
    rates = RollingRates(window_s=10.0)
    for second in range(31):
        rates.sample(float(second), {"messages": 5.0 * second if second <= 20 else 100.0 + 50.0 * (second - 20)})
    assert rates.per_second() == {"messages": 50.0}


def test_a_total_that_appears_later_grows_from_zero() -> None:
    """A counter that was not there at the window's begin counts from nothing."""
    rates = RollingRates()
    rates.sample(0.0, {})
    rates.sample(2.0, {"bytes": 8.0})
    assert rates.per_second() == {"bytes": 4.0}


@given(st.lists(st.floats(0, 100), min_size=2, max_size=50), st.floats(1, 20))
def test_a_steady_total_has_its_rate_whatever_the_sampling(steps: list[float], window_s: float) -> None:
    """Uneven sampling does not bend a steady rate."""
    rates, now = RollingRates(window_s), 0.0
    for step in steps:
        now += 0.1 + step
        rates.sample(now, {"messages": 3.0 * now})
    assert abs(rates.per_second()["messages"] - 3.0) < 1e-6
