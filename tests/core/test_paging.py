"""Paging against a model venue: whatever it lacks, every id is fetched or declared, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import assume, given
from hypothesis import strategies as st

from ingestor.core.binance import RestAggTrade
from ingestor.core.claims import Intervals, kline_open_ms
from ingestor.core.paging import (
    Absence,
    Bounds,
    Page,
    Pager,
    Reading,
    bars_between,
    first_trade_in,
    join_newest,
    last_trade_in,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MINUTE_MS = 60_000
DAY_MS = 86_400_000


def aggregate(first: int, last: int) -> RestAggTrade:
    return RestAggTrade(1, "1.0", "1.0", first, last, 0, buyer_is_maker=True)


class ModelVenue:
    """Has some ids, forgets none while asked, and answers from an id on, ascending, at most `limit`."""

    def __init__(self, ids: set[int]) -> None:
        self.ids = sorted(ids)
        self.asked: list[Page] = []

    def answer(self, page: Page) -> Sequence[int]:
        self.asked.append(page)
        return [number for number in self.ids if number >= page.first][: page.size]


ranges = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), max_size=5).map(
    lambda pairs: Intervals((first, first + length) for first, length in pairs)
)


@given(st.sets(st.integers(0, 400)), ranges, st.integers(1, 40), st.integers(1, 4))
def test_every_wanted_id_is_found_or_declared_once(ids: set[int], wanted: Intervals, size: int, in_flight: int) -> None:
    """Nothing twice, nothing skipped, nothing invented, with several pages in flight and answered in any order."""
    venue = ModelVenue(ids)
    pager = Pager(wanted, size)
    found: list[int] = []
    declared: list[int] = []
    flying: list[Page] = []
    while True:
        while len(flying) < in_flight and (page := pager.take()) is not None:
            flying.append(page)
        if not flying:
            break
        page = flying.pop()  # the newest first: the worst order
        answer = venue.answer(page)
        reading = pager.settle(page, answer)
        found += [number for number in answer if page.first <= number <= page.last]
        absent = reading.absent
        if reading.lacking is not None:
            assert not venue.answer(reading.lacking)
            absent = [*absent, *pager.give_up(reading.lacking)]
        for absence in absent:
            declared += range(absence.first, absence.last + 1)
    everything = [number for first, last in wanted for number in range(first, last + 1)]
    assert sorted(found + declared) == everything
    assert set(found) == ids & set(everything)
    assert all(page.size <= size for page in venue.asked)


@given(st.integers(0, 100), st.integers(1, 100), st.integers(1, 50))
def test_a_venue_that_has_everything_is_asked_as_often_as_needed(first: int, count: int, size: int) -> None:
    """A full range costs its length divided by the page, rounded up: not a request more."""
    venue = ModelVenue(set(range(250)))
    pager = Pager(Intervals([(first, first + count - 1)]), size)
    while (page := pager.take()) is not None:
        assert pager.settle(page, venue.answer(page)) == Reading([], None)
    assert len(venue.asked) == -(-count // size)
    assert pager.left() == 0


def test_forgotten_ids_cost_one_request() -> None:
    """The answer to a forgotten id begins at the oldest kept; nobody asks for what lies in between."""
    pager = Pager(Intervals([(1, 500_000_100)]), 1000)
    page = pager.take()
    assert page is not None
    assert page == Page(1, 1000)
    reading = pager.settle(page, range(437_921_759, 437_922_759))
    assert reading == Reading([Absence(1, 437_921_758, "venue_forgot")], None)
    assert pager.take() == Page(437_921_759, 437_922_758)


def test_bars_from_before_a_listing_never_were() -> None:
    """For bars the same answer has another reason."""
    pager = Pager(Intervals([(1, 100)]), 10, "venue_has_none")
    page = pager.take()
    assert page is not None
    assert pager.settle(page, [50, 51]).absent == [Absence(1, 49, "venue_has_none")]


def test_pages_in_flight_keep_what_they_were_given() -> None:
    """What another page holds is that page's to declare, even when an answer passes over it."""
    pager = Pager(Intervals([(0, 29)]), 10)
    first, second = pager.take(), pager.take()
    assert first is not None
    assert second is not None
    assert pager.settle(first, [25]).absent == [Absence(0, 9, "venue_forgot"), Absence(20, 24, "venue_forgot")]
    assert pager.settle(second, [25]).absent == [Absence(10, 19, "venue_forgot")]
    assert pager.take() == Page(25, 29)


def test_behind_the_end_nothing_is_asked_for() -> None:
    """A symbol that is gone has no bars from then on: one page that stays empty says so for all that follow."""
    pager = Pager(Intervals([(0, 14), (20, 39), (50, 1_000_000)]), 10)
    first, second = pager.take(), pager.take()
    assert first is not None
    assert second is not None
    assert pager.give_up(first) == [
        Absence(0, 9, "venue_has_none"),
        Absence(20, 39, "venue_has_none"),
        Absence(50, 1_000_000, "venue_has_none"),
    ]
    assert pager.take() is None
    assert pager.give_up(second) == [Absence(10, 14, "venue_has_none")]


def test_a_short_answer_says_nothing_of_the_rest() -> None:
    """Behind its last row the database may only be late."""
    pager = Pager(Intervals([(0, 9)]), 10)
    page = pager.take()
    assert page is not None
    assert pager.settle(page, []) == Reading([], page)
    assert pager.settle(page, [0, 1, 3]) == Reading([Absence(2, 2, "venue_has_none")], Page(4, 9))


def test_bars_belong_to_the_range_they_open_in() -> None:
    """The start counts, the end does not, and a start inside a bar leaves that bar out."""
    day = Page(0, 1439)
    assert bars_between("1m", 0, DAY_MS, 10 * DAY_MS) == day
    assert bars_between("1m", 1, DAY_MS + 1, 10 * DAY_MS) == Page(1, 1440)
    assert bars_between("1m", MINUTE_MS, MINUTE_MS, 10 * DAY_MS) is None


def test_the_unfinished_bar_is_left_out() -> None:
    """A bar counts once it is over, to the millisecond."""
    assert bars_between("1m", 0, DAY_MS, 2 * MINUTE_MS - 1) == Page(0, 0)
    assert bars_between("1m", 0, DAY_MS, 2 * MINUTE_MS) == Page(0, 1)
    assert bars_between("1m", 0, DAY_MS, MINUTE_MS - 1) is None


def test_months_are_bars_too() -> None:
    """Their ordinals have no fixed length."""
    start_ms, end_ms = kline_open_ms("1M", 600), kline_open_ms("1M", 612)
    assert bars_between("1M", start_ms, end_ms, end_ms) == Page(600, 611)


def test_rows_without_trades_are_looked_past() -> None:
    """Rows that an audit of 2022 invalidated have -1 for both ids."""
    invalid = aggregate(-1, -1)
    assert first_trade_in([invalid, aggregate(7, 9), aggregate(10, 10)]) == 7
    assert last_trade_in([aggregate(7, 9), aggregate(10, 12), invalid]) == 12
    assert first_trade_in([invalid]) is None
    assert last_trade_in([]) is None


@given(st.lists(st.integers(0, 20), max_size=12).map(sorted), st.integers(0, 20), st.integers(1, 21), st.data())
def test_the_newest_trades_fill_in_for_a_database_that_is_behind(
    times: list[int], start_ms: int, end_ms: int, data: st.DataObject
) -> None:
    """What is said is so, and a database that has everything is never waited for."""
    kept = times[: data.draw(st.integers(0, len(times)))]  # by the database
    assume(not kept or kept[-1] < end_ms)  # else it is not behind, and nobody asks
    newest = list(enumerate(times))[-data.draw(st.integers(1, 12)) :]
    inside = [number for number, at_ms in enumerate(times) if start_ms <= at_ms < end_ms]
    known = Bounds(
        next((number for number, at_ms in enumerate(kept) if at_ms >= start_ms), None), len(kept) - 1 if kept else None
    )
    found = join_newest(known, newest, start_ms, end_ms)
    if found is not None:
        assert found.page() == (Page(inside[0], inside[-1]) if inside else None)
    assert found is not None or len(kept) < len(times)


def test_trades_that_neither_database_nor_memory_has_are_not_known() -> None:
    """A busy second is more than the newest thousand: between the two there may be more."""
    assert join_newest(Bounds(3, 5), [(9, 60), (10, 61)], 0, 50) is None
    assert join_newest(Bounds(3, 8), [(9, 60), (10, 61)], 0, 50) == Bounds(3, 8)
    assert join_newest(Bounds(None, 5), [(9, 30), (10, 61)], 20, 50) is None
    assert join_newest(Bounds(None, 5), [(9, 10), (10, 30), (11, 61)], 20, 50) == Bounds(10, 10)
    assert join_newest(Bounds(None, None), [], 20, 50) == Bounds(None, None)
