"""The partition key of a record: what Kinesis hashes, and therefore what stays in order (architecture.md §10).

Records under one key keep their order. A hole goes under the key of the data it stands for, or it could overtake them.
"""

from __future__ import annotations

from itertools import count, cycle
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, TypeAlias

from ingestor.core.lanes import lane_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingestor.core.model import MarketData

PartitionRule: TypeAlias = Literal["symbol", "symbol_event_type", "spread"]
KeyOf: TypeAlias = "Callable[[MarketData], str]"


def key_rule(rule: PartitionRule, lanes: int) -> KeyOf:
    """Return the function from record to key: `BTCUSDT`, `BTCUSDT:trade`, or `BTCUSDT#n`, in turn one for each lane.

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
    turns: dict[str, Iterator[str]] = {}  # per symbol: symbols that alternate would otherwise stick to one lane each

    def spread(record: MarketData) -> str:
        turn = turns.get(record.symbol)
        if turn is None:
            turn = turns[record.symbol] = cycle(_key_of_each_lane(record.symbol, lanes))
        return next(turn)

    return spread


def _key_of_each_lane(symbol: str, lanes: int) -> list[str]:
    """Return a key for every lane. As many keys as there are lanes would leave a third of these without one."""
    keys: dict[int, str] = {}
    numbers = count()
    while len(keys) < lanes:
        key = f"{symbol}#{next(numbers)}"
        keys.setdefault(lane_index(key, lanes), key)
    return list(keys.values())
