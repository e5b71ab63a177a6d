from __future__ import annotations

import datetime as dt
from functools import reduce
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ingestor.core.claims import RUN_LIMIT, Coverage, Entry, Intervals, claim_of, kline_open_ms, kline_ordinal
from ingestor.core.model import Claim, Subscription
from ingestor.local.history import bar_open_ms
from tests.fakes.records import BTC, bar, diff, hole, snapshot, trade

if TYPE_CHECKING:
    from collections.abc import Iterable

TRADES = Subscription(BTC, "trade")
DEPTH = Subscription(BTC, "depth")
INTERVALS = ["1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M"]

numbers = st.integers(0, 60)
pairs = st.lists(st.tuples(numbers, st.integers(-1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=12)


def members(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


def is_normal(intervals: Intervals) -> bool:
    """Sorted, not empty, and never touching."""
    spans = list(intervals)
    return all(first <= last for first, last in spans) and all(
        left[1] + 1 < right[0] for left, right in pairwise(spans)
    )


class TestIntervals:
    @given(pairs)
    def test_adding_ranges_in_any_order_is_the_union(self, ranges: list[tuple[int, int]]) -> None:
        """Whatever was added is in, nothing else is, and no two intervals touch."""
        intervals = Intervals(ranges)
        assert members(intervals) == members(ranges)
        assert is_normal(intervals)
        assert intervals.count() == len(members(ranges))
        assert intervals == Intervals(reversed(ranges))

    @given(pairs, pairs)
    def test_set_operations_agree_with_sets_of_ints(
        self, ours: list[tuple[int, int]], theirs: list[tuple[int, int]]
    ) -> None:
        """Union and difference are those of the sets, and the other operand stays what it was."""
        other = Intervals(theirs)
        union, difference = Intervals(ours), Intervals(ours)
        union.update(other)
        difference.subtract(other)
        assert members(union) == members(ours) | members(theirs)
        assert members(difference) == members(ours) - members(theirs)
        assert is_normal(union)
        assert is_normal(difference)
        assert members(other) == members(theirs)

    @given(pairs, numbers, st.integers(-1, 20))
    def test_a_stretch_is_split_into_what_is_in_and_what_is_missing(
        self, ranges: list[tuple[int, int]], first: int, length: int
    ) -> None:
        """`within` and `missing` divide a stretch between them, and `covers` says that nothing is missing."""
        intervals, last = Intervals(ranges), first + length
        stretch = set(range(first, last + 1))
        assert members(intervals.within(first, last)) == members(ranges) & stretch
        assert members(intervals.missing(first, last)) == stretch - members(ranges)
        assert intervals.covers(first, last) == (stretch <= members(ranges))

    @given(pairs, numbers)
    def test_the_interval_around_a_number_is_found(self, ranges: list[tuple[int, int]], number: int) -> None:
        """`holding` gives the whole interval around a member, and None around a stranger."""
        intervals = Intervals(ranges)
        holder = intervals.holding(number)
        assert (number in intervals) == (number in members(ranges)) == (holder is not None)
        if holder is not None:
            assert set(range(holder[0], holder[1] + 1)) <= members(ranges)
            assert not {holder[0] - 1, holder[1] + 1} & members(ranges)

    def test_a_copy_changes_on_its_own(self) -> None:
        """What is added to a copy is not in the original."""
        original = Intervals([(1, 3)])
        twin = original.copy()
        twin.add(4, 9)
        assert list(original) == [(1, 3)]
        assert list(twin) == [(1, 9)]

    def test_extremes_and_looks(self) -> None:
        """The ends are at hand, the text shows the intervals, and other types are not equal."""
        intervals = Intervals([(5, 7), (1, 2)])
        assert (intervals.lowest, intervals.highest, len(intervals)) == (1, 7, 2)
        assert repr(intervals) == "Intervals([(1, 2), (5, 7)])"
        assert intervals != [(1, 2), (5, 7)]
        assert not Intervals()


class TestKlineOrdinals:
    @pytest.mark.parametrize("interval", INTERVALS)
    def test_consecutive_bars_have_consecutive_ordinals(self, interval: str) -> None:
        """From an ordinal to its open time and back is the identity, and any moment in a bar belongs to it."""
        for ordinal in range(700):
            open_ms, next_ms = kline_open_ms(interval, ordinal), kline_open_ms(interval, ordinal + 1)
            assert kline_ordinal(interval, open_ms) == kline_ordinal(interval, next_ms - 1) == ordinal
            assert open_ms < next_ms

    def test_months_open_on_the_first_of_a_month(self) -> None:
        """Months are those of the calendar, leap years and centuries included."""
        for year in (1970, 1972, 2000, 2017, 2024, 2026, 2099, 2100, 2101):
            for month in range(1, 13):
                moment = dt.datetime(year, month, 1, tzinfo=dt.UTC)
                assert kline_open_ms("1M", (year - 1970) * 12 + month - 1) == moment.timestamp() * 1000

    def test_weeks_open_on_mondays(self) -> None:
        """The venue's weekly bars open on Monday, 00:00 UTC."""
        opened = dt.datetime.fromtimestamp(kline_open_ms("1w", 2900) / 1000, dt.UTC)
        assert (opened.weekday(), opened.hour, opened.minute) == (0, 0, 0)

    @pytest.mark.parametrize("day", [dt.date(2017, 8, 17), dt.date(2024, 1, 1), dt.date(2026, 7, 1)])
    def test_bars_of_three_days_open_when_the_venue_opens_them(self, day: dt.date) -> None:
        """Not on multiples since the epoch: asked for by their open times, they would not be found."""
        opened = int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp() * 1000)
        assert kline_open_ms("3d", kline_ordinal("3d", opened)) == opened
        assert bar_open_ms("3d", opened + 86_400_000 * 2) == opened, "the simulated venue as well"

    def test_an_interval_that_the_venue_lacks_is_refused(self) -> None:
        """A name that is no interval is a bug of the caller."""
        with pytest.raises(KeyError):
            kline_ordinal("7m", 0)


class TestClaims:
    def test_a_trade_claims_its_id(self) -> None:
        """One id, once acknowledged."""
        assert claim_of(trade(7)) == Claim(TRADES, 7, 7)

    def test_a_diff_claims_all_its_update_ids_and_a_snapshot_none(self) -> None:
        """A snapshot repeats what is known and proves no contiguity."""
        assert claim_of(diff(5, 9)) == Claim(DEPTH, 5, 9)
        assert claim_of(snapshot(9)) is None

    def test_a_closed_bar_claims_its_ordinal_and_an_open_one_nothing(self) -> None:
        """Interim updates are not promised."""
        assert claim_of(bar(29_000_000)) == Claim(Subscription(BTC, "kline_1m"), 29_000_000, 29_000_000)
        assert claim_of(bar(29_000_000, closed=False)) is None

    def test_a_hole_claims_what_it_declares(self) -> None:
        """A declared hole stands for its ids, in the space of the stream it names."""
        assert claim_of(hole(3, 8, stream="depth")) == Claim(DEPTH, 3, 8)

    def test_what_was_lost_to_a_restart_claims_nothing(self) -> None:
        """Its ids are of the generation before; those of the new one that nobody saw are claimed."""
        assert claim_of(hole(900, 950, reason="id_restart")) is None
        assert claim_of(hole(0, -1, reason="id_restart")) is None
        assert claim_of(hole(0, 7, reason="id_restart")) == Claim(TRADES, 0, 7)

    def test_an_event_of_an_unknown_kind_claims_nothing(self) -> None:
        """A record without any of the parts we know stands for no ids."""
        record = trade(1)
        record.trade = None
        assert claim_of(record) is None


def entry(origin: int, *covered: tuple[int, int], generation: int = 0, settled: bool = False) -> Entry:
    return Entry(origin, Intervals(covered), generation, settled)


class TestEntries:
    def test_the_watermark_is_the_end_of_the_interval_that_holds_the_origin(self) -> None:
        """Below it nothing is missing; while the origin itself is not covered it lies before it."""
        assert entry(5, (1, 9), (20, 30)).watermark == 9
        assert entry(15, (1, 9), (20, 30)).watermark == 14

    def test_missing_is_counted_from_the_origin(self) -> None:
        """What lies before the origin is nobody's promise."""
        assert list(entry(5, (7, 9), (20, 30)).missing(25)) == [(5, 6), (10, 19)]

    def test_the_higher_generation_wins(self) -> None:
        """Ids of an older generation mean other events."""
        old, new = entry(1, (1, 99)), entry(4, (4, 5), generation=1)
        assert old.merge(new) == new.merge(old) == new

    def test_equal_generations_are_joined(self) -> None:
        """Union of what is covered, least origin, settled if either is, newest time."""
        left, right = entry(5, (5, 9), settled=True), entry(3, (8, 12), (20, 21))
        right.last_event_ms = 4
        joined = Entry(3, Intervals([(5, 12), (20, 21)]), 0, True, 4)
        assert left.merge(right) == right.merge(left) == joined
        assert list(left.covered) == [(5, 9)]

    def test_the_shortest_intervals_above_the_watermark_are_forgotten(self) -> None:
        """The interval at the watermark stays, however short it is."""
        kept = entry(1, (1, 1), (10, 19), (30, 31), (40, 44), (50, 50))
        kept.forget(3)
        assert list(kept.covered) == [(1, 1), (10, 19), (40, 44)]
        kept.forget(3)
        assert len(kept.covered) == 3

    @given(st.data())
    def test_merging_in_any_order_with_loss_and_repetition_claims_nothing_unacknowledged(
        self, data: st.DataObject
    ) -> None:
        """Accounts of several writers, some lost, some twice, in any order and grouping, stay within what was acked."""
        acknowledged = [data.draw(pairs, "acknowledged by a writer") for _ in range(data.draw(st.integers(1, 4)))]
        accounts = []
        for ranges in acknowledged:
            seen = data.draw(st.integers(0, len(ranges)), "beats written so far")
            accounts += [entry(data.draw(numbers), *ranges[:end], settled=end % 2 == 0) for end in {seen, len(ranges)}]
        heard = data.draw(st.lists(st.sampled_from(accounts), min_size=1, max_size=8), "beats read back")
        merged = reduce(Entry.merge, heard)
        shuffled = heard + heard[:2]
        Random(data.draw(st.integers(0, 9))).shuffle(shuffled)
        assert reduce(Entry.merge, shuffled) == merged
        assert reduce(lambda right, left: left.merge(right), reversed(heard)) == merged
        assert members(merged.covered) == {number for account in heard for number in members(account.covered)}
        assert members(merged.covered) <= {number for ranges in acknowledged for number in members(ranges)}


class TestCoverage:
    def test_coverage_grows_by_acknowledgements_only(self) -> None:
        """Beginning to count covers nothing; acknowledged claims do, retried and repaired ones out of order."""
        coverage = Coverage()
        coverage.originate(TRADES, 10)
        assert coverage.watermarks() == {TRADES: 9}
        coverage.acknowledge([Claim(TRADES, 10, 12), Claim(TRADES, 20, 22)])
        assert coverage.watermarks() == {TRADES: 12}
        coverage.acknowledge([Claim(TRADES, 13, 19)])
        assert coverage.watermarks() == {TRADES: 22}
        assert coverage[TRADES].settled is False

    def test_the_first_origin_counts(self) -> None:
        """A later first id, as after a reconnect, changes nothing."""
        coverage = Coverage()
        coverage.originate(TRADES, 10)
        coverage.originate(TRADES, 50)
        assert coverage[TRADES].origin == 10

    def test_claims_of_a_subscription_that_is_not_counted_are_let_go(self) -> None:
        """A backfill of another symbol is not the live line's promise."""
        coverage = Coverage()
        coverage.acknowledge([Claim(TRADES, 1, 5)])
        coverage.observe(TRADES, 5)
        coverage.settle(TRADES)
        assert len(coverage) == 0
        assert coverage.get(TRADES) is None

    def test_memory_of_a_subscription_is_bounded(self) -> None:
        """Far more holes than repair leaves open cost the shortest intervals, never the watermark."""
        coverage = Coverage()
        coverage.originate(TRADES, 0)
        coverage.acknowledge(Claim(TRADES, 2 * number, 2 * number) for number in range(RUN_LIMIT + 50))
        assert len(coverage[TRADES].covered) == RUN_LIMIT
        assert coverage[TRADES].watermark == 0

    def test_the_newest_event_time_is_kept(self) -> None:
        """Older times do not take it back."""
        coverage = Coverage({TRADES: entry(1)})
        coverage.observe(TRADES, 70)
        coverage.observe(TRADES, 60)
        assert coverage[TRADES].last_event_ms == 70

    def test_after_a_restart_claims_of_old_ids_are_let_go(self) -> None:
        """What was under way when the venue began again proves nothing about the new ids, which count from 0."""
        coverage = Coverage({TRADES: entry(900, (900, 950)), DEPTH: entry(1)})
        coverage.restart(TRADES, 0)
        coverage.acknowledge([Claim(TRADES, 951, 960), Claim(DEPTH, 1, 2)])
        assert (coverage[TRADES].generation, list(coverage[TRADES].covered)) == (1, [])
        coverage.acknowledge([Claim(TRADES, 961, 970), Claim(TRADES, 0, 4), Claim(TRADES, 5, 9)])
        assert list(coverage[TRADES].covered) == [(0, 9)]
        assert list(coverage[DEPTH].covered) == [(1, 2)]

    def test_a_task_that_dies_before_a_restart_is_declared_leaves_it_missing(self) -> None:
        """The ids that nobody saw are owed from 0 on, until their hole is acknowledged."""
        coverage = Coverage({TRADES: entry(900, (900, 950))})
        coverage.restart(TRADES, 0)
        assert list(coverage[TRADES].missing(5)) == [(0, 5)]

    def test_a_restart_of_something_never_counted_begins_it(self) -> None:
        """The first generation is 0."""
        coverage = Coverage()
        coverage.restart(TRADES, 0)
        assert coverage[TRADES] == entry(0, settled=True)

    def test_inheriting_joins_earlier_tasks_with_this_one(self) -> None:
        """Same ids: the origin moves back and the gap between both opens."""
        coverage = Coverage({TRADES: entry(20, (20, 25))})
        coverage.inherit(TRADES, entry(5, (5, 15), generation=2), is_restarted=False)
        assert coverage[TRADES] == entry(5, (5, 15), (20, 25), generation=2, settled=True)
        assert list(coverage[TRADES].missing(19)) == [(16, 19)]

    def test_inheriting_after_a_restart_keeps_only_what_is_new(self) -> None:
        """New ids: a new generation, and nothing of the old one."""
        coverage = Coverage({TRADES: entry(3, (3, 4))})
        coverage.inherit(TRADES, entry(5, (5, 900), generation=2), is_restarted=True)
        assert coverage[TRADES] == entry(0, (3, 4), generation=3, settled=True)

    def test_merging_another_account_takes_copies(self) -> None:
        """Entries are joined or taken over, and the other account stays what it was."""
        ours, theirs = Coverage({TRADES: entry(5, (5, 6))}), Coverage({TRADES: entry(7, (7, 8)), DEPTH: entry(1)})
        ours.merge(theirs)
        ours.acknowledge([Claim(DEPTH, 1, 1)])
        assert dict(ours.items()) == {TRADES: entry(5, (5, 8)), DEPTH: entry(1, (1, 1))}
        assert list(theirs[DEPTH].covered) == []
        assert set(ours) == {TRADES, DEPTH}
        assert TRADES in ours


@given(st.dates(min_value=dt.date(1, 1, 1), max_value=dt.date(9999, 12, 31)))
def test_months_are_counted_as_the_calendar_has_them(day: dt.date) -> None:
    """Every day of every month, before 1970 as well."""
    days = (day - dt.date(1970, 1, 1)).days
    assert kline_ordinal("1M", days * 86_400_000 + 5) == (day.year - 1970) * 12 + day.month - 1


@given(st.integers(-(2**63), 2**63 - 1))
def test_no_time_is_too_far_to_count_months(at_ms: int) -> None:
    """A stranger's record may be of any year; counting does not go through the months one by one."""
    ordinal = kline_ordinal("1M", at_ms)
    assert kline_open_ms("1M", ordinal) <= at_ms < kline_open_ms("1M", ordinal + 1)


def test_a_bar_of_no_known_interval_claims_nothing() -> None:
    """It is in the stream, and nobody can count in it."""
    record = bar(7)
    assert record.kline is not None
    record.kline = structs.replace(record.kline, interval="7m")
    assert claim_of(record) is None
