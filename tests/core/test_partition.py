"""Partition keys: what stays in order with what."""

from __future__ import annotations

from collections import Counter

import pytest

from ingestor.core.lanes import lane_index
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


@pytest.mark.parametrize("lanes", [1, 2, 8, 30, 256])
def test_spread_gives_every_lane_its_turn_for_every_symbol_on_its_own(lanes: int) -> None:
    """Two symbols that alternate both reach all lanes, and each of them as often as the others."""
    key_of = key_rule("spread", lanes)
    keys = [key_of(market_record(symbol=symbol)) for symbol in ("BTCUSDT", "ETHUSDT") * lanes * 2]
    assert {key.partition("#")[0] for key in keys[::2]} == {"BTCUSDT"}
    for own in (keys[::2], keys[1::2]):
        assert Counter(lane_index(key, lanes) for key in own) == dict.fromkeys(range(lanes), 2)
        assert own[:lanes] == own[lanes:]
