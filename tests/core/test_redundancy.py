"""What waits for another feed, and which feed of a book is followed."""

from __future__ import annotations

from ingestor.core.redundancy import HOLDBACK_S, TAKEOVER_S, Diff, Holdback, Relay

# --- first arrival ----------------------------------------------------------------------------------------------------


def test_what_lies_above_a_jump_goes_on_as_soon_as_the_missing_id_is_there() -> None:
    """In order, without a gap; an id that is held already is refused."""
    held = Holdback[str]()
    assert (held.hold(7, "c", 1.0), held.hold(6, "b", 1.0), held.hold(6, "again", 1.0)) == (True, True, False)
    assert held.next(5, 1.1) is None
    assert [held.next(6, 1.1), held.next(7, 1.1), held.next(8, 1.1)] == ["b", "c", None]
    assert not held


def test_a_jump_that_nobody_fills_is_given_up_after_200_ms_and_a_second_one_has_its_own_time() -> None:
    """The lowest goes on, what follows it too."""
    held = Holdback[int]()
    for sequence in (7, 8, 10):
        held.hold(sequence, sequence, 1.0)
    assert held.next(5, 1.0 + HOLDBACK_S / 2) is None
    assert [held.next(5, 1.2), held.next(8, 1.2), held.next(9, 1.2)] == [7, 8, None]
    assert [held.next(9, 1.3), held.next(9, 1.4)] == [None, 10]


def test_a_thousand_are_held_and_no_more() -> None:
    """A burst behind a jump does not wait for the clock."""
    held = Holdback[int]()
    for sequence in range(1, 1_001):
        held.hold(sequence, sequence, 0.0)
    assert held.next(0, 0.0) is None
    held.hold(1_001, 1_001, 0.0)
    assert held.next(0, 0.0) == 1


def test_an_id_below_the_expected_one_does_not_stay_for_ever() -> None:
    """It was passed over meanwhile; whoever takes it out has it judged."""
    held = Holdback[int]()
    held.hold(7, 7, 1.0)
    assert held.next(9, 1.0) == 7


def test_what_is_held_can_be_taken_at_once() -> None:
    """When nobody is left who could bring what is missing."""
    held = Holdback[int]()
    held.hold(9, 9, 1.0)
    held.hold(7, 7, 1.0)
    assert held.take_all() == [7, 9]
    assert not held


# --- leader and standby -----------------------------------------------------------------------------------------------

A, B = "a", "b"


def diff(first: int, final: int, at_s: float = 0.0) -> Diff[tuple[int, int]]:
    return Diff(first, final, (first, final), at_s)


def a_relay() -> Relay[tuple[int, int]]:
    relay = Relay[tuple[int, int]]()
    relay.join(A)
    relay.join(B)
    relay.lead(A)
    return relay


def test_the_leader_goes_on_and_the_standby_waits_and_is_dropped() -> None:
    """Windows are cut differently, so they are never mixed."""
    relay = a_relay()
    relay.offer(B, diff(1, 7))
    assert relay.next(1, 0.0) is None
    relay.offer(A, diff(1, 5))
    assert relay.next(1, 0.0) == (1, 5)
    assert relay.next(6, 0.0) is None
    relay.offer(A, diff(6, 10))
    assert relay.next(6, 0.0) == (6, 10)
    assert relay.next(11, 0.0) is None
    assert (bool(relay), relay.dropped) == (False, 1)


def test_a_standby_takes_over_when_the_leader_stays_behind_for_a_second() -> None:
    """With what reaches back to the last diff taken; the old leader stands by from then on."""
    relay = a_relay()
    relay.offer(B, diff(4, 8, 1.0))
    relay.offer(B, diff(9, 12, 1.5))
    assert relay.next(6, 1.0 + TAKEOVER_S / 2) is None
    assert [relay.next(6, 2.0), relay.next(9, 2.0), relay.next(13, 2.0)] == [(4, 8), (9, 12), None]
    relay.offer(A, diff(13, 14, 2.0))
    assert relay.next(13, 2.0) is None


def test_a_standby_takes_over_at_once_when_the_leader_breaks_or_leaves() -> None:
    """It has what is missing: no gap."""
    broken = a_relay()
    broken.offer(B, diff(1, 9))
    broken.offer(A, diff(12, 14))
    assert [broken.next(6, 0.0), broken.next(10, 0.0)] == [(1, 9), None]
    left = a_relay()
    left.offer(B, diff(1, 9))
    left.leave(A)
    assert left.next(6, 0.0) == (1, 9)


def test_a_break_that_no_feed_can_mend_is_given_up_after_200_ms() -> None:
    """The feed that has most of what follows leads then."""
    relay = a_relay()
    relay.offer(A, diff(20, 24, 1.0))
    relay.offer(B, diff(16, 22, 1.1))
    assert relay.next(6, 1.1) is None
    assert [relay.next(6, 1.2), relay.next(23, 1.2)] == [(16, 22), None]
    relay.offer(B, diff(23, 26, 1.2))
    assert relay.next(23, 1.2) == (23, 26)


def test_a_standby_that_is_ahead_of_a_quiet_leader_is_no_break_for_a_second() -> None:
    """A feed that has just been opened starts where the other one has not arrived yet."""
    relay = a_relay()
    relay.offer(B, diff(9, 12, 1.0))
    assert relay.next(6, 1.9) is None
    relay.offer(A, diff(6, 8, 1.9))
    assert relay.next(6, 1.9) == (6, 8)
    assert relay.next(9, 2.0) == (9, 12)


def test_what_a_feed_held_goes_with_it() -> None:
    """It is counted; the tracker sees the break."""
    relay = a_relay()
    relay.offer(A, diff(20, 24))
    relay.leave(A)
    assert (bool(relay), relay.dropped) == (False, 1)


def test_a_beginning_of_the_ids_forgets_what_was_held() -> None:
    """On the feed that says so first, and on the one whose own ids go back."""
    relay = a_relay()
    relay.offer(B, diff(5_000, 5_001))
    relay.lead(A)
    assert (bool(relay), relay.dropped) == (False, 1)
    relay.offer(B, diff(5_002, 5_003))
    relay.offer(B, diff(3, 4))
    assert relay.take_all(B, 0) == [(3, 4)]


def test_a_hundred_diffs_stand_by_and_no_more() -> None:
    """The oldest are forgotten: what is missing then is a break."""
    relay = a_relay()
    for number in range(150):
        relay.offer(B, diff(number * 2 + 10, number * 2 + 11))
    assert relay.take_all(B, 0)[0] == (110, 111)
