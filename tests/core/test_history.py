"""The history behind the charts: readings in, bounded points out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.history import History, Point, Reading, quantile

BOUNDS = (0.1, 0.5, 1.0)


def reading(messages: float = 0, records: float = 0, waits: tuple[int, ...] = (0, 0, 0, 0)) -> Reading:
    """Read totals; the buffers and the lag are the same all the time."""
    return Reading(messages, records, waits, channel_bytes=10, held_bytes=20, spool_bytes=30, lag_s=1.234)


def test_one_reading_is_no_point() -> None:
    """A rate needs two readings apart in time."""
    history = History(BOUNDS)
    history.sample(1.0, reading(5))
    history.sample(1.0, reading(5))
    assert history.points() == []
    assert history.newest() is None


def test_a_point_says_what_happened_between_two_readings() -> None:
    """Rates are growth over time, quantiles are of what came in between; the rest is as it was read."""
    history = History(BOUNDS)
    history.sample(10.0, reading(100, 50, (7, 0, 0, 0)))
    history.sample(12.0, reading(300, 150, (7, 100, 0, 0)))
    assert history.points() == [Point(12.0, 100.0, 50.0, 0.3, 0.496, 10, 20, 30, 1.23)]
    assert history.newest() == history.points()[-1]


def test_a_time_without_acknowledgement_has_no_latency() -> None:
    """Nothing is not zero: the line of the chart is broken there."""
    history = History(BOUNDS)
    history.sample(0.0, reading(waits=(5, 0, 0, 0)))
    history.sample(2.0, reading(waits=(5, 0, 0, 0)))
    newest = history.newest()
    assert newest is not None
    assert (newest.p50_s, newest.p99_s) == (None, None)


def test_only_the_window_is_kept() -> None:
    """However long the service runs, the ring holds the newest quarter of an hour."""
    history = History(BOUNDS, every_s=2.0, window_s=900.0)
    for number in range(2_000):
        history.sample(2.0 * number, reading(number))
    points = history.points()
    assert len(points) == 451
    assert (points[0].uptime_s, points[-1].uptime_s) == (3_098.0, 3_998.0)


def test_quantiles_are_straight_within_a_bucket_and_end_at_the_highest_bound() -> None:
    """What is above all bounds is at least the highest one."""
    assert quantile(BOUNDS, (0, 0, 0, 0), 0.5) is None
    assert quantile(BOUNDS, (10, 0, 0, 0), 0.5) == 0.05
    assert quantile(BOUNDS, (10, 10, 0, 0), 0.75) == 0.3
    assert quantile(BOUNDS, (0, 0, 0, 4), 0.5) == 1.0


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_greater_share_is_never_a_smaller_value(counts: list[int], one: float, other: float) -> None:
    """Quantiles keep their order and stay within the bounds."""
    values = [quantile(BOUNDS, counts, share) for share in sorted((one, other))]
    if sum(counts):
        assert values[0] is not None
        assert values[1] is not None
        assert 0 <= values[0] <= values[1] <= 1
    else:
        assert values == [None, None]
