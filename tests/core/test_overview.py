"""Many subscriptions at a glance."""

from __future__ import annotations

from ingestor.core.model import Subscription
from ingestor.core.overview import SymbolRow, TypeRow, overview

TRADES, DEPTH = Subscription("BTCUSDT", "trade"), Subscription("BTCUSDT", "depth")
MINUTES, HOURS = Subscription("BTCUSDT", "kline_1m"), Subscription("BTCUSDT", "kline_1h")
OTHER = Subscription("ETHUSDT", "trade")


def test_types_are_counted_and_the_silent_told_apart() -> None:
    """Newest and oldest speak of subscriptions that sent something."""
    view = overview([(TRADES, 900), (OTHER, 500), (DEPTH, 0)], {})
    assert view.types == {"trade": TypeRow(2, 2, 900, 500), "depth": TypeRow(1, 0, None, None)}


def test_a_symbol_has_its_worst_lag_and_its_newest_events() -> None:
    """Intervals of bars count as one type."""
    view = overview([(TRADES, 900), (MINUTES, 300), (HOURS, 200), (DEPTH, 0)], {TRADES: 1.0, MINUTES: 4.0})
    assert view.symbols == [SymbolRow("BTCUSDT", 4.0, {"trade": 900, "kline": 300})]


def test_only_the_latest_symbols_are_named() -> None:
    """A whole market stays readable: the worst first, then by name."""
    many = [Subscription(f"S{number:03}", "trade") for number in range(100)]
    view = overview([(each, 1) for each in many], {many[70]: 9.0, many[30]: 2.0}, worst=4)
    assert [row.symbol for row in view.symbols] == ["S070", "S030", "S000", "S001"]
    assert view.types["trade"].subscriptions == 100


def test_rows_do_not_share_what_they_hold() -> None:
    """Two symbols, two accounts."""
    view = overview([(TRADES, 5), (OTHER, 6)], {})
    assert [row.last_event_ms for row in view.symbols] == [{"trade": 5}, {"trade": 6}]
