"""A seeded model of a spot market: orders meet a real order book; trades, diffs, bars and REST follow from that.

Pure: time goes in as `advance(to_ms)`, messages come out in the order of their event time. The same seed gives the same
market, however finely time is cut and whatever is watched, and no symbol's life depends on which others there are.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from operator import attrgetter
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestor.core.claims import kline_ordinal, subscription_of
from ingestor.local.history import INTERVALS, UNIT, Bar, Fill, History, Ladder, Message, bar_close_ms, text8

if TYPE_CHECKING:
    from collections.abc import Sequence

TICK: Final = UNIT // 100  # prices have two decimals and quantities five, so that price * quantity fits eight
LOT: Final = UNIT // 100_000

_WINDOW_MS: Final = 100  # of the @depth@100ms stream
_SECOND_MS: Final = 1_000
_FEWEST_LEVELS: Final = 100  # so that no taker and no withdrawal ever reaches the far end
_SWEEP_LEVELS: Final = 20  # levels that one taker order eats at most
_KNOWN_PRICES: Final = {"BTC": 60_000 * UNIT, "ETH": 3_000 * UNIT, "BNB": 600 * UNIT, "SOL": 150 * UNIT}


class Market:
    """Many symbols on one clock; `orders_per_s` and `updates_per_s` are means per symbol.

    Only streams that are watched are spelled out, everything happens all the same. `keep_trades` and `keep_bars`
    (an interval) bound what REST and the archive can still give. The closing message of a bar comes `late_close_ms`
    after its end: 5 to 1800 ms were seen, when updates of the next bar may be under way (facts/binance.md §4).
    """

    paced = True  # its events are due at given times: do not ask for more than the clock allows
    finished = False

    def __init__(
        self,
        symbols: Sequence[str],
        *,
        seed: int = 0,
        start_ms: int,
        orders_per_s: float = 10.0,
        updates_per_s: float = 20.0,
        levels: int = 500,
        keep_trades: int = 100_000,
        keep_bars: int = 2_000,
        late_close_ms: int = 0,
    ) -> None:
        self._now_ms = start_ms
        self._late: list[Message] = []
        self._symbols = {
            symbol: _SymbolMarket(
                History(symbol, start_ms=start_ms, keep_trades=keep_trades, keep_bars=keep_bars),
                Random(f"{seed}/{symbol}"),  # noqa: S311 - a reproducible model, not a secret
                start_ms,
                _Habits(orders_per_s, updates_per_s, levels, late_close_ms),
            )
            for symbol in symbols
        }

    @property
    def symbols(self) -> tuple[str, ...]:
        """All symbols, upper case."""
        return tuple(self._symbols)

    @property
    def now_ms(self) -> int:
        """How far time has come."""
        return self._now_ms

    def watch(self, stream: str) -> None:
        """Spell out the events of `stream` from now on; a stream that does not exist stays silent, as on the venue."""
        symbol, _, kind = stream.partition("@")
        market = self._symbols.get(symbol.upper())
        if market and symbol.islower():
            market.watch(kind)

    def history(self, symbol: str) -> History | None:
        """Return what REST may tell of `symbol`, or None."""
        market = self._symbols.get(symbol)
        return market.history if market else None

    def depth(self, symbol: str, limit: int) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the last update id, bids and asks, best first."""
        book = self._symbols[symbol].history.book
        return (book.update_id, *book.top(limit))

    def advance(self, to_ms: int) -> list[Message]:
        """Live until `to_ms` (inclusive) and return what was sent, in the order of event time."""
        messages = self._late
        for market in self._symbols.values():
            if market.due_ms <= to_ms:
                market.advance(to_ms, messages)
        self._now_ms = max(self._now_ms, to_ms)
        messages.sort(key=attrgetter("at_ms"))
        ripe = bisect_right(messages, to_ms, key=attrgetter("at_ms"))
        self._late = messages[ripe:]
        return messages[:ripe]

    def restart_ids(self, symbol: str) -> None:
        """Begin all ids of `symbol` anew and forget its past, as after a wipe of the testnet or a relisting."""
        self._symbols[symbol].restart_ids()


class _Habits(NamedTuple):
    orders_per_s: float
    updates_per_s: float
    levels: int
    late_close_ms: int


class _SymbolMarket:
    """One symbol: a book of resting orders, takers at random times, and everybody else changing their mind."""

    def __init__(self, history: History, rng: Random, start_ms: int, habits: _Habits) -> None:
        self.history = history
        self._symbol = history.symbol
        self._name = history.symbol.lower()
        self._rng = rng
        self._acts_per_ms = (habits.orders_per_s + habits.updates_per_s) / _SECOND_MS
        self._order_share = habits.orders_per_s / (habits.orders_per_s + habits.updates_per_s)
        self._home = self._opening_price()
        self._next_trade_id = rng.randrange(1_000_000, 5_000_000_000)
        self._next_aggregate_id = self._next_trade_id // 2
        self._told_update_id = history.book.update_id = rng.randrange(10_000_000_000, 90_000_000_000)
        self._bids, self._asks = history.book.bids, history.book.asks
        self._best_bid, self._best_ask = self._home - TICK, self._home
        levels = max(_FEWEST_LEVELS, min(habits.levels, self._home // TICK // 2))
        self._bid_end, self._ask_end = self._home - levels * TICK, self._home + (levels - 1) * TICK
        self._changes: dict[bool, dict[int, int]] = {True: {}, False: {}}  # of this window: is a bid, price, quantity
        self._seed_book(levels)
        self.history.ladder = self._ladder = Ladder(start_ms, self._home)
        self._act_at = start_ms + self._pause()
        self._window_at: float = math.inf  # the end of the window in which something happened
        self._second_at = _next_multiple(start_ms, _SECOND_MS)
        self._late_close_ms = habits.late_close_ms
        self._push_parity = rng.randrange(2)  # other bars than 1s are pushed every second second
        self.due_ms: float = 0
        self._trades = self._diffs = self._tops = False
        self._intervals: set[str] = set()

    def watch(self, kind: str) -> None:
        if kind == "trade":
            self._trades = True
        elif kind == "depth@100ms":
            self._diffs = True
        elif kind == "bookTicker":
            self._tops = True
        elif kind.startswith("kline_") and kind[6:] in INTERVALS:
            self._intervals.add(kind[6:])

    def advance(self, to_ms: int, out: list[Message]) -> None:
        while True:
            at = min(self._second_at, self._window_at, self._act_at)
            if at > to_ms:
                self.due_ms = at
                return
            if at == self._second_at:  # a trade on the boundary belongs to the new bar, so the boundary comes first
                self._pass_second(self._second_at, out)
                self._second_at += _SECOND_MS
            elif at == self._window_at:
                self._pass_window(int(at), out)
                self._window_at = math.inf
            else:
                self._act(int(at), out)
                self._act_at += self._pause()

    def restart_ids(self) -> None:
        self._next_trade_id = self._next_aggregate_id = self._told_update_id = self.history.book.update_id = 0
        self.history.fills.clear()

    # -- orders ---------------------------------------------------------------------------------------------------

    def _act(self, at_ms: int, out: list[Message]) -> None:
        """Let somebody take, or place, change or withdraw a resting order."""
        top_before = self._top()
        if self._rng.random() < self._order_share:
            self._take(at_ms, out)
        else:
            self._change_mind()
        self._tell_top(at_ms, top_before, out)
        self._window_at = min(self._window_at, _next_multiple(at_ms, _WINDOW_MS))

    def _take(self, at_ms: int, out: list[Message]) -> None:
        """One taker order eats its way into the book; the price is drawn back home so that it never wanders off."""
        rng = self._rng
        pull = (self._home - self._best_ask) / self._home * 5
        buys = rng.random() < 0.5 + max(-0.4, min(0.4, pull))
        wanted = LOT * (1 + int(rng.expovariate(1.0) * 20_000))
        for _ in range(_SWEEP_LEVELS):
            levels, price = (self._asks, self._best_ask) if buys else (self._bids, self._best_bid)
            filled = min(wanted, levels[price])
            self._fill(at_ms, price, filled, buyer_is_maker=not buys, out=out)
            self._set(levels, price, levels[price] - filled)
            wanted -= filled
            if price not in levels:
                self._step_up() if buys else self._step_down()
            if not wanted:
                break

    def _fill(self, at_ms: int, price: int, quantity: int, *, buyer_is_maker: bool, out: list[Message]) -> None:
        """Trade; the level may hold two makers, then it is two trades of one aggregate."""
        parts: tuple[int, ...] = (quantity,)
        if quantity > LOT and self._rng.random() < 0.25:
            part = quantity // 2 // LOT * LOT
            parts = (part, quantity - part)
        for part in parts:
            fill = Fill(self._next_trade_id, price, part, at_ms, buyer_is_maker, self._next_aggregate_id)
            self._next_trade_id += 1
            self.history.add_fill(fill)
            self._ladder.add(fill)
            if self._trades:
                out.append(self._trade_message(fill))
        self._next_aggregate_id += 1

    def _step_up(self) -> None:
        """Let asks retreat after the best is gone, and bids follow; the book keeps its size at both far ends."""
        old = self._best_ask
        self._best_ask = _next_level(self._asks, old, TICK)
        self._best_bid = self._best_ask - TICK
        self._set(self._bids, self._best_bid, self._size())
        self._ask_end += TICK
        self._set(self._asks, self._ask_end, self._size())
        end, self._bid_end = self._bid_end, _next_level(self._bids, self._bid_end, TICK)
        self._set(self._bids, end, 0)

    def _step_down(self) -> None:
        old = self._best_bid
        self._best_bid = _next_level(self._bids, old, -TICK)
        self._best_ask = self._best_bid + TICK
        self._set(self._asks, self._best_ask, self._size())
        self._bid_end -= TICK
        self._set(self._bids, self._bid_end, self._size())
        end, self._ask_end = self._ask_end, _next_level(self._asks, self._ask_end, -TICK)
        self._set(self._asks, end, 0)

    # -- resting orders -------------------------------------------------------------------------------------------

    def _seed_book(self, levels: int) -> None:
        for distance in range(levels):
            self._bids[self._best_bid - distance * TICK] = self._size()
            self._asks[self._best_ask + distance * TICK] = self._size()

    def _set(self, levels: dict[int, int], price: int, quantity: int) -> None:
        if quantity:
            levels[price] = quantity
        else:
            levels.pop(price, None)
        self._changes[levels is self._bids][price] = quantity
        self.history.book.update_id += 1

    def _change_mind(self) -> None:
        """Touch one resting order, most likely near the top, never the best or the last level."""
        rng = self._rng
        distance = 1 + int(rng.expovariate(0.05))
        bid = rng.random() < 0.5
        price = self._best_bid - distance * TICK if bid else self._best_ask + distance * TICK
        quantity = 0 if rng.random() < 0.2 else self._size()
        if self._bid_end < price < self._ask_end:
            self._set(self._bids if bid else self._asks, price, quantity)

    def _size(self) -> int:
        return LOT * (1 + int(self._rng.expovariate(1.0) * 50_000))

    # -- what is told ---------------------------------------------------------------------------------------------

    def _trade_message(self, fill: Fill) -> Message:
        trade_id, price, quantity, at_ms, buyer_is_maker, _ = fill
        maker = "true" if buyer_is_maker else "false"
        payload = (
            f'{{"e":"trade","E":{at_ms},"s":"{self._symbol}","t":{trade_id},"p":"{text8(price)}","q":"{text8(quantity)}",'
            f'"T":{at_ms},"m":{maker},"M":true}}'
        )
        subscription = subscription_of(self._symbol, "trade")
        return Message(f"{self._name}@trade", payload.encode(), at_ms, subscription, trade_id, trade_id)

    def _pass_window(self, at_ms: int, out: list[Message]) -> None:
        first, last = self._told_update_id + 1, self.history.book.update_id
        if last < first:
            return  # no event is sent for a window without change
        bids, asks = self._changes[True], self._changes[False]
        self._changes, self._told_update_id = {True: {}, False: {}}, last
        if self._diffs:
            payload = (
                f'{{"e":"depthUpdate","E":{at_ms},"s":"{self._symbol}","U":{first},"u":{last},'
                f'"b":{levels_text(sorted(bids.items(), reverse=True))},"a":{levels_text(sorted(asks.items()))}}}'
            )
            subscription = subscription_of(self._symbol, "depth")
            out.append(Message(f"{self._name}@depth@100ms", payload.encode(), at_ms, subscription, first, last))

    def _pass_second(self, at_ms: int, out: list[Message]) -> None:
        closed = dict(self._ladder.close_second(at_ms))
        for interval, bar in closed.items():
            self.history.add_bar(interval, bar)
        pushes = at_ms // _SECOND_MS % 2 == self._push_parity
        for interval in self._intervals:
            if interval in closed:
                out.append(
                    kline_message(self._symbol, interval, closed[interval], at_ms + self._late_close_ms, closed=True)
                )
            elif pushes:
                out.append(kline_message(self._symbol, interval, self._ladder.current(interval), at_ms, closed=False))

    def _top(self) -> tuple[int, int, int, int] | None:
        if not self._tops:
            return None
        return self._best_bid, self._bids[self._best_bid], self._best_ask, self._asks[self._best_ask]

    def _tell_top(self, at_ms: int, before: tuple[int, int, int, int] | None, out: list[Message]) -> None:
        now = self._top()
        if now is None or now == before:
            return
        bid, bid_size, ask, ask_size = map(text8, now)
        payload = (
            f'{{"u":{self.history.book.update_id},"s":"{self._symbol}",'
            f'"b":"{bid}","B":"{bid_size}","a":"{ask}","A":"{ask_size}"}}'
        )
        out.append(Message(f"{self._name}@bookTicker", payload.encode(), at_ms))

    # -- chance ---------------------------------------------------------------------------------------------------

    def _pause(self) -> float:
        return self._rng.expovariate(self._acts_per_ms)

    def _opening_price(self) -> int:
        known = next((price for prefix, price in _KNOWN_PRICES.items() if self._symbol.startswith(prefix)), None)
        return known or self._rng.randrange(50, 500) * UNIT


def levels_text(levels: Sequence[tuple[int, int]]) -> str:
    """Spell price levels as the venue does."""
    return "[" + ",".join([f'["{text8(price)}","{text8(quantity)}"]' for price, quantity in levels]) + "]"


def kline_message(symbol: str, interval: str, bar: Bar, at_ms: int, *, closed: bool) -> Message:
    """Spell a bar as its stream does; only a closed one is counted."""
    opened = bar.open_ms
    payload = (
        f'{{"e":"kline","E":{at_ms},"s":"{symbol}","k":{{"t":{opened},"T":{bar_close_ms(interval, opened)},'
        f'"s":"{symbol}","i":"{interval}","f":{bar.first_id},"L":{bar.last_id},"o":"{text8(bar.open)}","c":"{text8(bar.close)}",'
        f'"h":"{text8(bar.high)}","l":"{text8(bar.low)}","v":"{text8(bar.volume)}","n":{bar.count},'
        f'"x":{"true" if closed else "false"},"q":"{text8(bar.quote)}","V":"{text8(bar.taker)}",'
        f'"Q":"{text8(bar.taker_quote)}","B":"0"}}}}'
    )
    stream = f"{symbol.lower()}@kline_{interval}"
    if not closed:
        return Message(stream, payload.encode(), at_ms)
    ordinal = kline_ordinal(interval, opened)
    return Message(stream, payload.encode(), at_ms, subscription_of(symbol, f"kline_{interval}"), ordinal, ordinal)


def _next_multiple(at_ms: int, length_ms: int) -> int:
    return at_ms - at_ms % length_ms + length_ms


def _next_level(levels: dict[int, int], price: int, step: int) -> int:
    price += step
    while price not in levels:
        price += step
    return price
