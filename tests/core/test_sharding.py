"""Symbols are resolved and split over tasks without overlap or loss."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.sharding import has_selector, select, share

TRADING = {"BTCUSDT": "USDT", "ETHUSDT": "USDT", "ETHBTC": "BTC"}
SYMBOLS = [f"S{n}USDT" for n in range(1000)]


def test_a_selector_stands_for_every_symbol_of_its_quote_asset() -> None:
    """`all:USDT` takes the USDT pairs, and a symbol that is also named by itself is taken once."""
    assert select(["ETHUSDT", "all:USDT"], TRADING).symbols == ["ETHUSDT", "BTCUSDT"]
    assert select(["all:*"], TRADING).symbols == ["BTCUSDT", "ETHBTC", "ETHUSDT"]


def test_a_name_that_the_venue_does_not_trade_is_reported() -> None:
    """An unknown symbol never silently disappears."""
    assert select(["BTCUSDT", "BTCUSD"], TRADING) == (["BTCUSDT"], ["BTCUSD"])


def test_only_selectors_need_the_symbol_list() -> None:
    """Plain names can be subscribed to before the venue's list is known."""
    assert has_selector(["BTCUSDT", "all:USDT"])
    assert not has_selector(["BTCUSDT"])


@given(st.integers(1, 12))
def test_every_symbol_belongs_to_exactly_one_task(count: int) -> None:
    """The shares of all tasks are the whole set, once."""
    shares = [symbol for index in range(count) for symbol in share(SYMBOLS, index, count)]
    assert sorted(shares) == sorted(SYMBOLS)


def test_adding_a_task_moves_only_what_the_new_task_takes() -> None:
    """No symbol changes between two old tasks, and the new one takes about its share."""
    before = {symbol: index for index in range(4) for symbol in share(SYMBOLS, index, 4)}
    after = {symbol: index for index in range(5) for symbol in share(SYMBOLS, index, 5)}
    moved = {symbol for symbol in SYMBOLS if before[symbol] != after[symbol]}
    assert {after[symbol] for symbol in moved} == {4}
    assert 150 < len(moved) < 250
