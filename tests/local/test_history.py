"""What the venue remembers: bounded, exact, on the right grid."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.claims import kline_open_ms, kline_ordinal
from ingestor.local.history import INTERVALS, LAST_MS, Bar, Book, Fill, History, bar_close_ms, bar_open_ms, text8, units


def fill(trade_id: int, aggregate_id: int | None = None, at_ms: int | None = None) -> Fill:
    return Fill(trade_id, 100, 7, trade_id if at_ms is None else at_ms, False, aggregate_id or trade_id)


@given(st.integers(0, 10**18))
def test_units_and_text_are_inverse(amount: int) -> None:
    """A number spelled and read back is itself."""
    assert units(text8(amount)) == amount


def test_short_decimals_are_read_as_well() -> None:
    """Fewer than eight decimals, or none, mean the same."""
    assert units("1.5") == units("1.50000000")
    assert units("3") == units("3.00000000")


@given(st.sampled_from(INTERVALS), st.integers(0, 4_000_000_000_000))
def test_bars_open_where_the_service_believes_they_do(interval: str, at_ms: int) -> None:
    """Two independent calendars agree for every interval and instant."""
    opened = bar_open_ms(interval, at_ms)
    ordinal = kline_ordinal(interval, at_ms)
    assert opened <= at_ms <= bar_close_ms(interval, opened)
    assert opened == kline_open_ms(interval, ordinal)
    assert bar_close_ms(interval, opened) + 1 == kline_open_ms(interval, ordinal + 1)


def test_a_page_starts_where_asked_or_at_the_oldest_kept() -> None:
    """An id that was forgotten starts the page at the oldest one kept, without a complaint."""
    history = History("X", keep_trades=10)
    for number in range(100, 135):
        history.add_fill(fill(number))
    kept = [one.trade_id for one in history.fills]
    assert 10 <= len(kept) < 20
    assert history.page(1, LAST_MS, 3) == history.fills[:3]
    assert [one.trade_id for one in history.page(132, LAST_MS, 3)] == [132, 133, 134]
    assert [one.trade_id for one in history.page(None, LAST_MS, 2)] == [133, 134]
    assert [one.trade_id for one in history.page(132, 133, 9)] == [132, 133]
    assert history.page(999, LAST_MS, 3) == []
    assert History("Y").page(None, LAST_MS, 3) == []


def test_aggregates_join_the_fills_of_one_order() -> None:
    """First and last id chain, quantities add up; by id, by time, or the newest."""
    history = History("X")
    for number, aggregate in enumerate((50, 50, 51, 52, 52, 52)):
        history.add_fill(fill(number, aggregate, 1_000 + aggregate))
    everything = history.aggregates(from_id=0, start_ms=None, end_ms=LAST_MS, limit=10)
    assert [(one.aggregate_id, one.first_id, one.last_id, one.quantity) for one in everything] == [
        (50, 0, 1, 14),
        (51, 2, 2, 7),
        (52, 3, 5, 21),
    ]
    assert history.aggregates(from_id=None, start_ms=1_051, end_ms=1_051, limit=10) == everything[1:2]
    assert history.aggregates(from_id=None, start_ms=None, end_ms=LAST_MS, limit=2) == everything[1:]
    assert history.aggregates(from_id=None, start_ms=None, end_ms=1_051, limit=9) == everything[:2]


def test_old_bars_are_forgotten_and_a_repeated_one_replaces() -> None:
    """Memory is bounded, and a bar that comes again is the same bar."""
    history = History("X", keep_bars=5)
    for number in range(30):
        history.add_bar("1m", Bar(number, 1, 1, 1, 1))
    history.add_bar("1m", Bar(29, 2, 2, 2, 2))
    bars = history.all_bars("1m")
    assert 5 <= len(bars) < 10
    assert [bar.open_ms for bar in bars][-2:] == [28, 29]
    assert bars[-1].open == 2
    assert history.all_bars("5m") == []


def test_a_day_without_bars_is_summed_from_trades() -> None:
    """A recording of trades alone still knows first and last id."""
    history = History("X")
    assert (history.day().count, history.day().last_id) == (0, -1)
    history.add_fill(fill(5))
    history.add_fill(fill(6))
    assert (history.day().first_id, history.day().last_id, history.day().volume) == (5, 6, 14)


def test_merging_takes_extremes_from_both() -> None:
    """The later bar gives the close, and high and low come from either."""
    bar = Bar(0, 5, 6, 4, 5, count=1, first_id=1, last_id=1)
    bar.merge(Bar(1, 7, 9, 3, 8, count=2, first_id=2, last_id=3))
    bar.merge(Bar(2, 8, 8, 8, 8))
    assert (bar.open, bar.high, bar.low, bar.close, bar.count, bar.first_id, bar.last_id) == (5, 9, 3, 8, 3, 1, 3)


@pytest.mark.parametrize("quantity", ["0.00000000", "0"])
def test_zero_removes_a_level(quantity: str) -> None:
    """Quantities are absolute; removing what is not there is normal."""
    book = Book()
    book.apply([("10.0", "1.5"), ("9.0", "2")], [("11.0", "3")], 7)
    book.apply([("10.0", quantity), ("8.0", quantity)], [], 8)
    assert book.update_id == 8
    assert book.top(5) == ([(units("9"), units("2"))], [(units("11"), units("3"))])
