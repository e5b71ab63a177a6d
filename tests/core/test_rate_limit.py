"""Rate limits: never more than so many in any window, and no longer wait than that needs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.rate_limit import RateLimit, RatePerKey, connect_limit, control_pace


def test_control_messages_are_spaced_and_leave_room_for_pongs() -> None:
    """The first goes at once, each further one 300 ms after the one before: 3.3 a second of the venue's 5."""
    pace = control_pace()
    assert [round(pace.reserve(10.0), 6) for _ in range(4)] == [0.0, 0.3, 0.6, 0.9]
    assert pace.reserve(20.0) == 0.0


def test_connects_beyond_the_window_wait_until_an_old_one_leaves_it() -> None:
    """The 251st attempt waits for the first to be five minutes old."""
    limit = connect_limit()
    assert {limit.reserve(now=100.0 + index / 10) for index in range(250)} == {0.0}
    assert limit.delay(200.0) == 200.0
    assert limit.reserve(200.0) == 200.0
    assert limit.delay(400.2) == 0.0


def test_asking_for_the_delay_takes_no_place() -> None:
    """Only a reservation counts."""
    limit = RateLimit(1, 5.0)
    assert [limit.delay(0.0), limit.delay(0.0), limit.reserve(0.0), limit.delay(0.0)] == [0.0, 0.0, 0.0, 5.0]


@given(
    limit=st.integers(1, 5), window_s=st.integers(1, 50), pauses_s=st.lists(st.integers(0, 30), min_size=1, max_size=60)
)
def test_any_window_holds_at_most_the_limit(limit: int, window_s: int, pauses_s: list[int]) -> None:
    """Whoever waits for the returned delay keeps the limit in every window, in the order of asking."""
    rate, now, used_at = RateLimit(limit, window_s), 0, list[float]()
    for pause_s in pauses_s:
        now += pause_s
        used_at.append(now + rate.reserve(now))
    assert used_at == sorted(used_at)
    assert all(later - earlier >= window_s for earlier, later in zip(used_at, used_at[limit:], strict=False))


def test_every_key_has_a_limit_of_its_own() -> None:
    """One that is over it takes nothing from another, and comes in again when its window has moved on."""
    rate = RatePerKey(2, 10.0, keys=2)
    assert [rate.admits("a", 0.0), rate.admits("a", 1.0), rate.admits("a", 9.0)] == [True, True, False]
    assert rate.admits("b", 9.0)
    assert rate.admits("a", 10.0)
    assert not rate.admits("a", 10.5)


def test_the_keys_that_were_not_heard_of_for_longest_are_forgotten() -> None:
    """So that any number of them costs no more."""
    rate = RatePerKey(1, 1_000.0, keys=2)
    assert [rate.admits(key, 0.0) for key in "abcb"] == [True, True, True, False]
    assert rate.admits("a", 0.0)
    assert not rate.admits("b", 0.0)
