"""When calls stop, and how they begin again."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.circuit_breaker import CircuitBreaker


def test_it_opens_at_the_threshold_and_lets_one_probe_through_later() -> None:
    """Closed, open, half-open, closed."""
    breaker = CircuitBreaker(failure_threshold=3, reset_timeout_s=30.0)
    for now in (1.0, 2.0):
        breaker.start()
        breaker.fail(now)
    assert (breaker.state, breaker.allows_at) == ("closed", -math.inf)
    breaker.fail(3.0)
    assert (breaker.state, breaker.allows_at) == ("open", 33.0)
    breaker.start()
    assert (breaker.state, breaker.allows_at) == ("half_open", math.inf)
    breaker.succeed()
    assert (breaker.state, breaker.allows_at) == ("closed", -math.inf)


def test_a_failed_probe_opens_for_another_whole_timeout() -> None:
    """One failure is enough then."""
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout_s=30.0)
    breaker.fail(0.0)
    breaker.start()
    breaker.fail(40.0)
    assert (breaker.state, breaker.allows_at) == ("open", 70.0)
    assert repr(breaker) == "<CircuitBreaker open after 2 failures>"


def test_a_withdrawn_probe_leaves_the_next_call_to_be_one() -> None:
    """It taught nothing."""
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout_s=30.0)
    breaker.fail(0.0)
    breaker.start()
    breaker.withdraw()
    assert (breaker.state, breaker.allows_at) == ("open", 30.0)


def test_a_success_forgets_the_failures_before_it() -> None:
    """Only failures in a row count."""
    breaker = CircuitBreaker(failure_threshold=2, reset_timeout_s=30.0)
    for now in range(10):
        breaker.fail(float(now))
        breaker.succeed()
    assert breaker.state == "closed"


@given(outcomes=st.lists(st.booleans(), max_size=50), threshold=st.integers(1, 5))
def test_it_is_open_exactly_after_so_many_failures_in_a_row(outcomes: list[bool], threshold: int) -> None:
    """Whatever came before."""
    breaker = CircuitBreaker(threshold, reset_timeout_s=30.0)
    row = 0
    for now, good in enumerate(outcomes):
        if good:
            breaker.succeed()
            row = 0
        else:
            breaker.fail(float(now))
            row += 1
        assert (breaker.state == "open") == (row >= threshold)
