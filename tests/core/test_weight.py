"""The weight budget: never over, divided by purpose, released with the minute, corrected by the venue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.weight import PARTS, Admission, Purpose, WeightBudget

PURPOSES = st.sampled_from(list(PARTS))


def spend(budget: WeightBudget, purpose: Purpose, weight: int, now_ms: int) -> int:
    """Return how often `weight` is admitted until it is not."""
    times = 0
    while isinstance(budget.admit(purpose, weight, now_ms), Admission):
        times += 1
    return times


def test_each_purpose_has_its_part_at_once() -> None:
    """Half for trades, four tenths for books, one for probes: whoever comes first takes none of the others' parts."""
    budget = WeightBudget(1_000, 1.0)
    assert budget.admit("trades", 10, 0) == Admission(10, 0)
    assert [budget.left(purpose, 0) for purpose in PARTS] == [490, 400, 100, 0]
    assert [spend(budget, purpose, 10, 0) for purpose in ("trades", "books", "probes")] == [49, 40, 10]
    assert [budget.left(purpose, 0) for purpose in PARTS] == [0, 0, 0, 0]
    assert [budget.allowance(purpose) for purpose in PARTS] == [500, 400, 100, 0]


def test_what_others_do_not_use_is_released_with_the_minute() -> None:
    """Alone, trades get their half at once and all of it before the minute is over."""
    budget = WeightBudget(1_000, 1.0)
    assert [spend(budget, "trades", 10, now_ms) for now_ms in (0, 27_500, 55_000)] == [50, 25, 25]


def test_backfill_lives_on_what_is_left() -> None:
    """It owns nothing, and what it takes the others have let go."""
    budget = WeightBudget(1_000, 1.0)
    assert budget.admit("probes", 1, 0) == Admission(1, 0)
    assert budget.admit("backfill", 25, 0) == 0.5
    assert spend(budget, "backfill", 25, 55_000) == 39


def test_the_first_request_of_a_minute_goes_out_whatever_it_weighs() -> None:
    """With a tiny share the dearest snapshot would otherwise wait for ever."""
    budget = WeightBudget(1_000, 0.1)
    assert budget.admit("books", 250, 60_000) == Admission(250, 1)
    assert budget.admit("probes", 1, 90_000) == 30.0
    assert budget.admit("probes", 1, 120_000) == Admission(1, 2)


def test_a_used_up_minute_is_waited_out() -> None:
    """The answer is the seconds to the venue's next clock minute."""
    budget = WeightBudget(100, 1.0)
    assert spend(budget, "trades", 50, 55_000) == 2
    assert budget.admit("books", 1, 59_250) == 0.75
    assert budget.used(59_999) == 100
    assert budget.used(60_000) == 0


def test_the_venues_count_holds_when_it_is_higher() -> None:
    """It counts neighbours behind the same address; what is under way comes on top of it."""
    budget = WeightBudget(1_000, 1.0)
    first = budget.admit("trades", 25, 0)
    second = budget.admit("trades", 25, 0)
    assert isinstance(first, Admission)
    assert isinstance(second, Admission)
    budget.settle(first, 700, 100)
    assert budget.used(100) == 725
    budget.settle(second, 600, 200)
    assert budget.used(200) == 725
    assert budget.admit("trades", 300, 300) == 59.7


def test_a_count_of_the_minute_before_is_no_news() -> None:
    """An answer that crosses the boundary says nothing about the new minute."""
    budget = WeightBudget(1_000, 1.0)
    admission = budget.admit("trades", 25, 59_900)
    assert isinstance(admission, Admission)
    budget.settle(admission, 990, 60_100)
    assert budget.used(60_100) == 0


def test_a_count_that_falls_back_begins_a_minute() -> None:
    """Nowhere is it promised that the venue's minutes begin with the clock; the next one begins a minute later."""
    budget = WeightBudget(1_000, 1.0)
    early = budget.admit("trades", 100, 0)
    assert isinstance(early, Admission)
    budget.settle(early, 900, 100)
    late, beside = (budget.admit("trades", 25, 29_990) for _ in range(2))
    assert isinstance(late, Admission)
    assert isinstance(beside, Admission)
    budget.settle(late, 25, 30_000)
    assert budget.used(30_000) == 50  # the other one, under way, may count in the new minute
    assert budget.left("trades", 30_000) == 500
    budget.settle(beside, 925, 30_010)
    assert budget.used(89_999) == 50
    assert budget.used(90_000) == 0


def test_servers_that_disagree_a_little_begin_no_minute() -> None:
    """The answer to a later request may count less, when another server gives it."""
    budget = WeightBudget(1_000, 1.0)
    first = budget.admit("trades", 25, 0)
    assert isinstance(first, Admission)
    budget.settle(first, 700, 100)
    second = budget.admit("trades", 25, 200)
    assert isinstance(second, Admission)
    budget.settle(second, 600, 300)
    assert budget.used(300) == 725


def test_a_clock_that_was_set_is_trusted_again() -> None:
    """What a count once said of the minutes is forgotten then."""
    budget = WeightBudget(1_000, 1.0)
    early = budget.admit("trades", 100, 0)
    assert isinstance(early, Admission)
    budget.settle(early, 900, 100)
    late = budget.admit("trades", 25, 29_990)
    assert isinstance(late, Admission)
    budget.settle(late, 25, 30_000)
    budget.move_clock(0)
    assert budget.used(59_999) == 0
    assert spend(budget, "trades", 500, 60_000) == 1


def test_an_answer_without_a_count_changes_nothing() -> None:
    """A cut connection, say."""
    budget = WeightBudget(1_000, 1.0)
    admission = budget.admit("trades", 25, 0)
    assert isinstance(admission, Admission)
    budget.settle(admission, None, 100)
    assert budget.used(100) == 25


def test_during_a_ban_nothing_is_admitted() -> None:
    """Whatever the purpose; the latest of several bans counts."""
    budget = WeightBudget(1_000, 1.0)
    budget.ban(10_000)
    budget.ban(5_000)
    assert [budget.admit(purpose, 1, 4_000) for purpose in PARTS] == [6.0] * 4
    assert budget.admit("trades", 1, 10_000) == Admission(1, 0)


def test_a_ban_ends_when_it_would_have_whatever_the_clock_turned_out_to_be() -> None:
    """A minute of silence is a minute, although our clock was an hour behind."""
    budget = WeightBudget(1_000, 1.0)
    budget.ban(60_000)
    budget.move_clock(3_600_000)
    assert budget.admit("trades", 1, 3_600_000 + 20_000) == 40.0
    assert budget.admit("trades", 1, 3_600_000 + 60_000) == Admission(1, 61)


@given(
    st.integers(100, 2_000),
    st.lists(st.tuples(PURPOSES, st.sampled_from([1, 2, 4, 5, 25, 50]), st.integers(0, 3_000)), max_size=300),
)
def test_no_minute_ever_goes_over_and_every_wait_ends(limit: int, steps: list[tuple[Purpose, int, int]]) -> None:
    """Whoever waits as told is let through, and the sum of a minute stays within our share."""
    budget = WeightBudget(limit, 0.8)
    now_ms = 0
    sums: dict[int, int] = {}
    for purpose, weight, pause_ms in steps:
        now_ms += pause_ms
        given_up_ms = now_ms + 300_000
        while not isinstance(answer := budget.admit(purpose, weight, now_ms), Admission):
            assert answer > 0
            now_ms += max(1, round(answer * 1000))
            assert now_ms < given_up_ms
        sums[now_ms // 60_000] = sums.get(now_ms // 60_000, 0) + weight
    assert all(total <= limit * 0.8 for total in sums.values())
