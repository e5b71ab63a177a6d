"""The partition key of a record: what Kinesis hashes, and therefore what stays in order (architecture.md §10).

Records under one key keep their order. A hole goes under the key of the data it stands for, or it could overtake them.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestor.core.model import MarketData

PartitionRule: TypeAlias = Literal["symbol", "symbol_event_type", "spread"]
KeyOf: TypeAlias = "Callable[[MarketData], str]"


def key_rule(rule: PartitionRule, lanes: int) -> KeyOf:
    """Return the function from record to key: `BTCUSDT`, `BTCUSDT:trade`, or `BTCUSDT#n` with n in turn below `lanes`.

    `spread` is for one symbol that outgrows a shard; it gives up the order.
    """
    if rule == "symbol":
        return attrgetter("symbol")
    if rule == "symbol_event_type":
        return _symbol_and_event_type
    return _spread(lanes)


def _symbol_and_event_type(record: MarketData) -> str:
    hole = record.hole
    kind = record.event_type if hole is None else hole.stream.partition("_")[0]
    return f"{record.symbol}:{kind}"


def _spread(lanes: int) -> KeyOf:
    turns: dict[str, int] = {}  # per symbol: symbols that alternate would otherwise stick to one number each

    def spread(record: MarketData) -> str:
        symbol = record.symbol
        turn = turns.get(symbol, 0)
        turns[symbol] = (turn + 1) % lanes
        return f"{symbol}#{turn}"

    return spread
