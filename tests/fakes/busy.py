"""A market at its busiest: more trades a second in one symbol than were ever measured (facts/binance.md §4, 954)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from ingestor.local.market import Market

FULL_RATE: Final = 2_500  # orders a second; one fills up to several trades
DIFFS_PER_S: Final = 500  # changes of the book beside them, told in ten diffs a second


async def be_busy(market: Market, from_s: float, to_s: float, *, orders_per_s: float = FULL_RATE) -> None:
    """Have everybody trade at once for a while; the times count from now."""
    began_s = trio.current_time()
    await trio.sleep_until(began_s + from_s)
    usual = {}
    for symbol in market._symbols.values():
        usual[symbol] = symbol._acts_per_ms, symbol._order_share
        symbol._acts_per_ms = (orders_per_s + DIFFS_PER_S) / 1_000
        symbol._order_share = orders_per_s / (orders_per_s + DIFFS_PER_S)
        symbol._act_at = market.now_ms
    await trio.sleep_until(began_s + to_s)
    for symbol, (acts_per_ms, order_share) in usual.items():
        symbol._acts_per_ms, symbol._order_share = acts_per_ms, order_share
