"""Every verdict of the trackers, and the account of what is missing."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.gaps import (
    DUPLICATE,
    FIRST,
    GAP,
    IN_ORDER,
    OVERLAP,
    RESTART,
    DepthTracker,
    KlineTracker,
    PendingGaps,
    TradeTracker,
)
from ingestor.core.model import Gap, Subscription

BTC = Subscription("BTCUSDT", "trade")
ETH = Subscription("ETHUSDT", "trade")
MINUTE = 60_000


# --- trades -----------------------------------------------------------------------------------------------------------


def test_trades_in_order_are_in_order() -> None:
    """The first one is the origin, each next one follows on, equal times included."""
    tracker = TradeTracker()
    assert [tracker.accept(i, ms) for i, ms in ((7, 100), (8, 100), (9, 103))] == [FIRST, IN_ORDER, IN_ORDER]


def test_a_jump_names_what_is_missing() -> None:
    """The ids between; what comes after the jump is in order again."""
    tracker = TradeTracker(expected=8)
    assert tracker.accept(12, 100) is GAP
    assert tracker.missing == (8, 11)
    assert tracker.accept(13, 100) is IN_ORDER


def test_a_trade_seen_before_is_a_duplicate() -> None:
    """Its time is that of the first one, so it is at most the newest time held."""
    tracker = TradeTracker(expected=8, last_event_ms=100)
    assert [tracker.accept(i, 100) for i in (7, 3)] == [DUPLICATE, DUPLICATE]
    assert tracker.accept(8, 101) is IN_ORDER


def test_an_old_id_with_a_newer_time_is_a_restart_of_the_ids() -> None:
    """A wiped testnet or a relisted symbol: never everything is a duplicate."""
    tracker = TradeTracker(expected=5_000, last_event_ms=100)
    assert tracker.accept(0, 101) is RESTART
    assert tracker.accept(1, 102) is IN_ORDER
    assert tracker.accept(2, 102) is IN_ORDER


def test_trades_are_counted_from_behind_the_venues_newest_one_where_none_was_seen() -> None:
    """A jump is a gap; who has spoken is left alone, and an old one is a duplicate from then on."""
    tracker = TradeTracker()
    assert tracker.begin_behind(100, 5_000)
    assert tracker.accept(104, 5_100) is GAP
    assert tracker.accept(100, 5_000) is DUPLICATE
    assert tracker.missing == (101, 103)
    assert not tracker.begin_behind(200, 9_000)
    assert tracker.expected == 105
    wiped = TradeTracker()
    wiped.begin_behind(100, 5_000)
    assert wiped.accept(3, 5_001) is RESTART


@pytest.mark.parametrize("first", [98, 100])
def test_trades_that_waited_while_the_newest_one_was_asked_for_are_the_first(first: int) -> None:
    """They were received and are news to everybody: it was the line that was slow, not the symbol that was quiet."""
    tracker = TradeTracker()
    assert tracker.begin_behind(100, 5_000)
    assert tracker.accept(first, 4_990) is FIRST
    for trade_id in range(first + 1, 103):
        assert tracker.accept(trade_id, 5_000) is IN_ORDER
    assert tracker.accept(first, 4_990) is DUPLICATE
    heard = TradeTracker()
    heard.begin_behind(100, 5_000)
    assert heard.accept(101, 5_001) is IN_ORDER
    assert heard.accept(first, 4_990) is DUPLICATE


def test_trades_that_will_not_come_are_passed_over() -> None:
    """If they come after all they are duplicates: a late one is no restart of the ids. Nothing seen, nothing passed."""
    tracker = TradeTracker(expected=8, last_event_ms=100)
    assert tracker.pass_over(11, 150) == (8, 11)
    assert [tracker.accept(10, 140), tracker.accept(12, 151)] == [DUPLICATE, IN_ORDER]
    assert tracker.pass_over(11, 150) is None
    assert TradeTracker().pass_over(11, 150) is None


@given(st.lists(st.integers(0, 40), max_size=60))
def test_every_id_below_the_expected_one_was_taken_or_named(ids: list[int]) -> None:
    """Whatever arrives (no restarts here): taken and missing ids are disjoint and make up all from the origin."""
    tracker = TradeTracker()
    taken: set[int] = set()
    missing: set[int] = set()
    for trade_id in ids:
        verdict = tracker.accept(trade_id, 0)
        if verdict is GAP:
            missing.update(range(tracker.missing[0], tracker.missing[1] + 1))
        if verdict is not DUPLICATE:
            assert trade_id not in taken
            taken.add(trade_id)
    assert not taken & missing
    if ids:
        assert taken | missing == set(range(ids[0], tracker.expected))


# --- depth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "final", "verdict"),
    [
        pytest.param(101, 105, IN_ORDER, id="follows on"),
        pytest.param(95, 105, OVERLAP, id="overlaps"),
        pytest.param(95, 101, OVERLAP, id="overlaps all but one"),
        pytest.param(95, 100, DUPLICATE, id="ends where we are"),
        pytest.param(103, 105, GAP, id="two ids are missing"),
    ],
)
def test_depth_is_contiguous_when_it_reaches_back_and_forward(first: int, final: int, verdict: object) -> None:
    """U <= previous u + 1 and u > previous u."""
    tracker = DepthTracker(expected=101, last_event_ms=1_000)
    assert tracker.accept(first, final, 1_100) is verdict
    if verdict is GAP:
        assert tracker.missing == (101, 102)
    if verdict is not DUPLICATE:
        assert tracker.expected == final + 1


def test_the_first_diff_is_the_origin() -> None:
    """Nothing was expected."""
    tracker = DepthTracker()
    assert tracker.accept(50, 60, 1_000) is FIRST
    assert tracker.accept(61, 61, 1_100) is IN_ORDER


def test_an_old_diff_of_another_connection_is_no_restart() -> None:
    """Event times differ between connections by how their windows are cut; only seconds tell a new generation."""
    tracker = DepthTracker(expected=101, last_event_ms=1_000)
    assert tracker.accept(90, 100, 1_050) is DUPLICATE
    assert tracker.accept(1, 4, 11_001) is RESTART
    assert tracker.accept(5, 6, 11_100) is IN_ORDER


# --- bars -------------------------------------------------------------------------------------------------------------


def test_an_interim_update_is_taken_only_when_it_grows() -> None:
    """(open time, trade count, closed) must grow; a repetition or an older state is dropped."""
    tracker = KlineTracker("1m")
    states = [(0, 3, False), (0, 3, False), (0, 5, False), (0, 4, False), (0, 5, True), (0, 9, False)]
    verdicts = [tracker.accept(open_ms, count, 0, closed=closed) for open_ms, count, closed in states]
    assert verdicts == [FIRST, DUPLICATE, IN_ORDER, DUPLICATE, IN_ORDER, DUPLICATE]


def test_closed_bars_count_by_ordinal() -> None:
    """Each once, the missing ones named."""
    tracker = KlineTracker("1m")
    verdicts = [tracker.accept(bar * MINUTE, 1, 0, closed=True) for bar in (10, 11, 11, 14, 12)]
    assert verdicts == [FIRST, IN_ORDER, DUPLICATE, GAP, DUPLICATE]
    assert tracker.missing == (12, 13)
    assert tracker.expected == 15


def test_the_first_message_of_a_running_bar_is_the_origin() -> None:
    """Its end will be seen, so it is the first bar that is promised."""
    tracker = KlineTracker("1m")
    assert tracker.accept(10 * MINUTE, 4, 0, closed=False) is FIRST
    assert tracker.expected == 10
    assert tracker.accept(10 * MINUTE, 9, 0, closed=True) is IN_ORDER


def test_a_closing_message_may_come_after_the_next_bar_has_begun() -> None:
    """The late one is taken within its grace, and the running bar goes on."""
    tracker = KlineTracker("1m", expected=10)
    assert tracker.accept(10 * MINUTE, 4, 0, closed=False) is IN_ORDER
    assert tracker.accept(11 * MINUTE, 1, 60_000, closed=False) is IN_ORDER
    assert tracker.overdue(64_999) is None
    assert tracker.accept(10 * MINUTE, 9, 64_999, closed=True) is IN_ORDER
    assert tracker.accept(11 * MINUTE, 2, 65_000, closed=False) is IN_ORDER
    assert tracker.overdue(200_000) is None


def test_an_interim_update_of_a_past_bar_is_dropped() -> None:
    """Nobody is promised it, and it would go back in time."""
    tracker = KlineTracker("1m", expected=10)
    assert tracker.accept(11 * MINUTE, 1, 0, closed=False) is IN_ORDER
    assert tracker.accept(10 * MINUTE, 5, 0, closed=False) is DUPLICATE


def test_a_closing_message_that_never_comes_is_missed_after_the_grace() -> None:
    """Five seconds after a later bar was first seen, not only a minute later when that one closes; and once."""
    tracker = KlineTracker("1m", expected=10)
    tracker.accept(12 * MINUTE, 1, 1_000, closed=False)
    tracker.accept(13 * MINUTE, 1, 5_500, closed=False)
    assert tracker.overdue(5_999) is None
    assert tracker.overdue(6_000) == (10, 12)
    assert tracker.overdue(9_000) is None
    assert tracker.accept(12 * MINUTE, 5, 9_000, closed=True) is DUPLICATE
    assert tracker.accept(13 * MINUTE, 5, 9_000, closed=True) is IN_ORDER


def test_nothing_is_overdue_before_the_first_message() -> None:
    """A subscription that was never heard of owes nothing."""
    assert KlineTracker("1m").overdue(10**13) is None


def test_bars_that_will_not_come_are_passed_over() -> None:
    """Up to the running one; the newest bar seen is told with its trades."""
    tracker = KlineTracker("1m", expected=10)
    tracker.accept(10 * MINUTE, 4, 0, closed=False)
    assert tracker.newest == (10 * MINUTE, 4)
    assert tracker.pass_over(12) == (10, 11)
    assert tracker.pass_over(12) is None
    assert tracker.accept(12 * MINUTE, 4, 0, closed=True) is IN_ORDER
    assert KlineTracker("1m").pass_over(12) is None


def test_months_are_counted_in_months() -> None:
    """Bars of unequal length still have consecutive ordinals."""
    tracker = KlineTracker("1M")
    january, february, march = 1_704_067_200_000, 1_706_745_600_000, 1_709_251_200_000
    verdicts = [tracker.accept(open_ms, 1, 0, closed=True) for open_ms in (january, february, march)]
    assert verdicts == [FIRST, IN_ORDER, IN_ORDER]


# --- what is missing --------------------------------------------------------------------------------------------------


def test_runs_are_given_in_turn_and_stay_until_withdrawn() -> None:
    """The lowest run of each subscription, one after the other."""
    pending = PendingGaps()
    pending.add(Gap(BTC, 10, 19, 1))
    pending.add(Gap(BTC, 30, 39, 2))
    pending.add(Gap(ETH, 5, 5, 3))
    runs = [pending.next_run(0.0) for _ in range(3)]
    assert runs == [Gap(BTC, 10, 19, 1), Gap(ETH, 5, 5, 3), Gap(BTC, 10, 19, 1)]
    pending.withdraw(BTC, 0, 14)
    assert pending.within(BTC, 0, 100) == [Gap(BTC, 15, 19, 1), Gap(BTC, 30, 39, 1)]
    assert pending.count() == 16


def test_the_same_ids_are_held_once() -> None:
    """However often they are reported, and however the reports overlap."""
    pending = PendingGaps()
    for first, last in ((10, 19), (15, 24), (10, 19), (25, 25)):
        pending.add(Gap(BTC, first, last, 1))
    assert pending.within(BTC, 0, 100) == [Gap(BTC, 10, 25, 1)]


def test_a_postponed_subscription_is_passed_over_until_its_time() -> None:
    """The others go on; when nothing else is due the time is known."""
    pending = PendingGaps()
    assert pending.due_at(0.0) == inf
    pending.add(Gap(BTC, 1, 1, 1))
    pending.add(Gap(ETH, 1, 1, 1))
    pending.postpone(BTC, 7.0)
    assert pending.due_at(3.0) == 3.0
    assert [pending.next_run(3.0), pending.next_run(3.0)] == [Gap(ETH, 1, 1, 1)] * 2
    pending.withdraw(ETH, 1, 1)
    assert (pending.next_run(3.0), pending.due_at(3.0)) == (None, 7.0)
    assert pending.next_run(7.0) == Gap(BTC, 1, 1, 1)


def test_nothing_is_known_of_a_subscription_without_gaps() -> None:
    """Settling it is no mistake: two ways of learning the same may cross."""
    pending = PendingGaps()
    pending.withdraw(BTC, 0, 10)
    pending.postpone(BTC, 5.0)
    assert pending.within(BTC, 0, 10) == []
    assert pending.due_at(0.0) == inf


def test_memory_is_bounded_by_joining_neighbours() -> None:
    """Above 1024 runs the two that are least apart become one: something is fetched twice, nothing is forgotten."""
    pending = PendingGaps()
    for number in range(1_024):
        pending.add(Gap(BTC, number * 10, number * 10, 1))
    pending.add(Gap(BTC, 10_243, 10_243, 1))
    runs = pending.within(BTC, 0, 20_000)
    assert len(runs) == 1_024
    assert runs[0] == Gap(BTC, 0, 10, 1)
    assert {number * 10 for number in range(1_024)} | {10_243} <= {
        each for run in runs for each in range(run.first, run.last + 1)
    }


ACTIONS = st.tuples(
    st.sampled_from(["add", "withdraw"]), st.sampled_from([BTC, ETH]), st.integers(0, 30), st.integers(0, 9)
)


@given(st.lists(ACTIONS, max_size=40))
def test_equals_a_set_of_ids(steps: list[tuple[str, Subscription, int, int]]) -> None:
    """Adding and withdrawing in any order leaves what a plain set would hold."""
    pending = PendingGaps()
    model: set[tuple[Subscription, int]] = set()
    for what, subscription, first, more in steps:
        ids = {(subscription, each) for each in range(first, first + more + 1)}
        if what == "add":
            pending.add(Gap(subscription, first, first + more, 1))
            model |= ids
        else:
            pending.withdraw(subscription, first, first + more)
            model -= ids
    held = {(s, i) for s in (BTC, ETH) for run in pending.within(s, 0, 99) for i in range(run.first, run.last + 1)}
    assert held == model
    assert pending.count() == len(model)
    assert (pending.next_run(0.0) is None) == (not model)
