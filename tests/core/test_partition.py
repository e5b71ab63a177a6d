"""Partition keys: what stays in order with what."""

from __future__ import annotations

import pytest

from ingestor.core.model import Hole
from ingestor.core.partition import key_rule
from tests.fakes.market_records import market_record

DEPTH_HOLE = market_record(event_type="hole", trade=None, hole=Hole("depth", 5, 9, "disconnected", 1))
BAR_HOLE = market_record(event_type="hole", trade=None, hole=Hole("kline_1m", 5, 9, "venue_has_none", 1))


def test_the_symbol_alone_keeps_all_of_a_symbol_in_order() -> None:
    """The default rule."""
    key_of = key_rule("symbol", 8)
    assert {key_of(market_record()), key_of(DEPTH_HOLE)} == {"BTCUSDT"}


@pytest.mark.parametrize(
    ("record", "key"),
    [(market_record(), "BTCUSDT:trade"), (DEPTH_HOLE, "BTCUSDT:depth"), (BAR_HOLE, "BTCUSDT:kline")],
)
def test_a_hole_goes_under_the_key_of_the_data_it_stands_for(record: object, key: str) -> None:
    """Or a depth hole could arrive after the depth record behind the break."""
    assert key_rule("symbol_event_type", 8)(record) == key  # type: ignore[arg-type]  # parametrize erases the type


def test_spread_takes_turns_for_every_symbol_on_its_own() -> None:
    """Two symbols that alternate both reach every number."""
    key_of = key_rule("spread", 2)
    keys = [key_of(market_record(symbol=symbol)) for symbol in "ABABAB"]
    assert keys == ["A#0", "B#0", "A#1", "B#1", "A#0", "B#0"]
