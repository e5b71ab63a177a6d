"""The watermark lag tells how long acknowledgement has been behind, at any rate of flow."""

from __future__ import annotations

from ingestor.core.lag import WatermarkLag
from ingestor.core.model import Subscription

TRADES = Subscription("BTCUSDT", "trade")
BARS = Subscription("BTCUSDT", "kline_1m")


def test_a_watermark_that_follows_closely_has_no_lag() -> None:
    """Something is always in flight; what counts is that each goal is reached soon."""
    lag = WatermarkLag()
    for second in range(10):
        lag.sweep({TRADES: 100 * second + 100}, {TRADES: 100 * second + 40}, float(second))
    assert lag.by_stream_type({TRADES: 999}, 9.5) == {"trade": 0.0}
    assert lag.by_stream_type({TRADES: 940}, 9.5)["trade"] <= 1.5


def test_a_watermark_that_stands_still_grows_late() -> None:
    """The age of the first goal that was missed is the lag."""
    lag = WatermarkLag()
    for second in range(31):
        lag.sweep({TRADES: 100 * second + 100}, {TRADES: 50}, float(second))
    assert lag.by_stream_type({TRADES: 50}, 30.0) == {"trade": 30.0}


def test_the_worst_subscription_speaks_for_its_type() -> None:
    """One late symbol is not hidden by a hundred prompt ones; types are told apart."""
    other = Subscription("ETHUSDT", "trade")
    lag = WatermarkLag()
    lag.sweep({TRADES: 10, other: 10, BARS: 5}, {}, 0.0)
    assert lag.by_stream_type({TRADES: 9, BARS: 4}, 7.0) == {"trade": 7.0, "kline": 0.0}


def test_ids_that_begin_again_set_a_new_goal() -> None:
    """A goal of the old generation can never be reached."""
    lag = WatermarkLag()
    lag.sweep({TRADES: 5_000}, {TRADES: 10}, 0.0)
    lag.sweep({TRADES: 3}, {TRADES: 2}, 50.0)
    assert lag.by_stream_type({TRADES: 2}, 60.0) == {"trade": 0.0}


def test_what_is_carried_no_longer_has_no_lag() -> None:
    """Its goal would never be reached, and would alarm for ever."""
    lag = WatermarkLag()
    lag.sweep({TRADES: 100, BARS: 5}, {}, 0.0)
    lag.sweep({BARS: 5}, {}, 1.0)
    assert lag.by_subscription({}, 9.0) == {BARS: 9.0}
