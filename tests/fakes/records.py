"""Records by their ids, for tests that do not care about the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestor.core.claims import kline_open_ms
from ingestor.core.model import Depth, EventType, Hole, Kline, MarketData, Trade

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingestor.core.model import HoleReason, Level, Source

BTC = "BTCUSDT"


def trade(
    trade_id: int,
    *,
    symbol: str = BTC,
    source: Source = "websocket",
    price: str = "1.00000000",
    at_ms: int | None = None,
) -> MarketData:
    """Make a trade; its time is its id unless it is given."""
    record = _record(symbol, "trade", source, trade_id)
    record.timestamp = trade_id if at_ms is None else at_ms
    record.price, record.volume, record.trade = price, "2.00000000", Trade(trade_id, buyer_is_maker=True)
    return record


def trades(ids: Iterable[int], *, symbol: str = BTC, source: Source = "websocket") -> list[MarketData]:
    """Make trades."""
    return [trade(trade_id, symbol=symbol, source=source) for trade_id in ids]


def diff(first: int, final: int, *, symbol: str = BTC, bids: Iterable[Level] = ()) -> MarketData:
    """Make a change of the order book."""
    record = _record(symbol, "depth", "websocket", final)
    record.depth = Depth(first, final, snapshot=False, bids=list(bids), asks=[])
    return record


def snapshot(final: int, *, symbol: str = BTC) -> MarketData:
    """Make a whole order book."""
    record = _record(symbol, "depth", "rest", final)
    record.depth = Depth(final, final, snapshot=True, bids=[], asks=[])
    return record


def bar(
    ordinal: int, *, interval: str = "1m", closed: bool = True, source: Source = "websocket", close: str = "1.00000000"
) -> MarketData:
    """Make a bar by its number."""
    open_ms = kline_open_ms(interval, ordinal)
    record = _record(BTC, "kline", source, open_ms)
    one = "1.00000000"
    close_ms = kline_open_ms(interval, ordinal + 1) - 1
    record.kline = Kline(interval, open_ms, close_ms, one, one, one, close, one, one, 1, one, one, None, None, closed)
    return record


def hole(
    first: int, last: int, *, stream: str = "trade", reason: HoleReason = "disconnected", detected_ms: int = 0
) -> MarketData:
    """Make a declared hole."""
    record = _record(BTC, "hole", "websocket", first)
    record.hole = Hole(stream, first, last, reason, detected_ms)
    return record


def _record(symbol: str, event_type: EventType, source: Source, sequence: int) -> MarketData:
    return MarketData(symbol, sequence, None, None, None, None, source, event_type, sequence, sequence * 1000)
