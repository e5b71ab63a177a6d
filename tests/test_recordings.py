"""The real service on recordings of the real venue: every message delivered, every value as it was sent."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ingestor.local.recording import open_recording
from tests.fakes.service import run_for
from tests.fakes.world import MemoryWorld, config_for

if TYPE_CHECKING:
    from trio.testing import MockClock

    from ingestor.core.model import MarketData

SHARED = Path(__file__).parents[2] / "shared" / "data" / "binance" / "ws"
AT_ONCE, AS_RECORDED = 0, 1
RECORDINGS = [
    ("btcusdt_20230405", AT_ONCE),
    ("btcusdt_20240808", AT_ONCE),
    ("ethusdt_20240809", AT_ONCE),
    ("multi4_20211012", AS_RECORDED),  # it is over before a snapshot could arrive
]


def trade_of(record: MarketData) -> tuple[Any, ...]:
    """Take out of our record what the venue says of a trade; decimals as text."""
    assert record.trade is not None
    trade = record.trade
    return record.symbol, trade.trade_id, record.price, record.volume, record.timestamp, trade.buyer_is_maker


def sent_trade(data: dict[str, Any]) -> tuple[Any, ...]:
    return data["s"], data["t"], data["p"], data["q"], data["T"], data["m"]


def diff_of(record: MarketData) -> tuple[Any, ...]:
    """Take out of our record what the venue says of a change of the book."""
    assert record.depth is not None
    depth = record.depth
    bids, asks = ([list(level) for level in side] for side in (depth.bids, depth.asks))
    return record.symbol, depth.first_update_id, depth.final_update_id, record.timestamp, bids, asks


def sent_diff(data: dict[str, Any]) -> tuple[Any, ...]:
    return data["s"], data["U"], data["u"], data["E"], data["b"], data["a"]


@pytest.mark.parametrize(("name", "speed"), RECORDINGS)
async def test_a_recording_is_delivered_exactly(
    autojump_clock: MockClock, tmp_path: Path, name: str, speed: int
) -> None:
    """All trades and diffs, field by field, in the venue's order, none twice; and the best of the book where known."""
    path = SHARED / name / "ws.jsonl.gz"
    if not path.exists():
        pytest.skip(f"the shared recording {name} is not beside the repository")
    events = [json.loads(line)["data"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    symbols = sorted({event["s"] for event in events})
    world = MemoryWorld(symbols, source=open_recording(path, speed=speed))
    await run_for(60, config_for(world, tmp_path), world)
    assert world.venue.finished.is_set()

    by_symbol = {symbol: [each for each in world.delivered() if each.symbol == symbol] for symbol in symbols}
    for symbol, records in by_symbol.items():
        sent = [event for event in events if event["s"] == symbol]
        trades = [trade_of(each) for each in records if each.trade is not None]
        assert trades == [sent_trade(event) for event in sent if event.get("e") == "trade"]
        diffs = [each for each in records if each.depth is not None and not each.depth.snapshot]
        assert [diff_of(each) for each in diffs] == [
            sent_diff(event) for event in sent if event.get("e") == "depthUpdate"
        ]
        compare_tops(diffs, {event["u"]: event for event in sent if "e" not in event and "B" in event})
    assert world.audit().is_complete


def compare_tops(diffs: list[MarketData], tickers: dict[int, dict[str, Any]]) -> None:
    """Hold the best of our book against the venue's bookTicker of the same update id."""
    known = [each for each in diffs if each.bid_price is not None and each.sequence in tickers]
    assert known or not tickers
    for each in known:
        ticker = tickers[each.sequence]
        assert (each.bid_price, each.ask_price) == (ticker["b"], ticker["a"])
