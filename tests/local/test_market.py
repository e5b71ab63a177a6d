"""The seeded market: deterministic, and of one piece: trades, diffs, bars, tops and REST agree."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.core.model import Subscription
from ingestor.local.history import INTERVALS, Book, Message, bar_open_ms, text8, units
from ingestor.local.market import Market

START_MS = 1_790_000_003_210
KINDS = ("trade", "depth@100ms", "bookTicker", "kline_1s", "kline_1m")


def watched_market(**options: Any) -> Market:
    market = Market(("BTCUSDT", "ABCEUR"), start_ms=START_MS, **options)
    for symbol in market.symbols:
        for kind in KINDS:
            market.watch(f"{symbol.lower()}@{kind}")
    return market


def by_stream(messages: list[Message]) -> dict[str, list[dict[str, Any]]]:
    streams: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for message in messages:
        streams[message.stream].append(msgspec.json.decode(message.payload))
    return streams


@given(st.lists(st.integers(1, 3_000), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_however_time_is_cut_the_same_happens(steps: list[int]) -> None:
    """Many small turns give the messages of one long turn, byte by byte."""
    cut, whole = watched_market(seed=7), watched_market(seed=7)
    now_ms, pieces = START_MS, []
    for step in steps:
        now_ms += step
        pieces += cut.advance(now_ms)
    assert pieces == whole.advance(now_ms)


def test_another_seed_is_another_market() -> None:
    """Two seeds differ; a symbol lives the same life whatever its neighbours are."""
    one, other = watched_market(seed=1), watched_market(seed=2)
    assert one.advance(START_MS + 2_000) != other.advance(START_MS + 2_000)
    alone = Market(("ABCEUR",), seed=1, start_ms=START_MS)
    alone.advance(START_MS + 2_000)
    assert alone.depth("ABCEUR", 5) == one.depth("ABCEUR", 5)


def test_unwatched_streams_are_not_spelled_out_but_happen() -> None:
    """REST knows the trades of a stream that nobody subscribed to."""
    market = Market(("BTCUSDT",), start_ms=START_MS, orders_per_s=100)
    for stream in ("nosuch@trade", "BTCUSDT@trade", "btcusdt@kline_7m", "btcusdt@unknown"):
        market.watch(stream)
    assert market.advance(START_MS + 2_000) == []
    history = market.history("BTCUSDT")
    assert history
    assert len(history.fills) > 100
    assert market.history("NOSUCH") is None
    assert market.now_ms == START_MS + 2_000


def test_trade_ids_follow_each_other_and_times_never_go_back() -> None:
    """Ids rise by one, the fields stand in the venue's order, and the message names its id."""
    messages = [
        one for one in watched_market(orders_per_s=200).advance(START_MS + 3_000) if one.stream == "btcusdt@trade"
    ]
    rows = [msgspec.json.decode(one.payload) for one in messages]
    assert [row["t"] for row in rows] == list(range(rows[0]["t"], rows[0]["t"] + len(rows)))
    assert all(earlier["T"] <= later["T"] for earlier, later in pairwise(rows))
    assert list(rows[0]) == ["e", "E", "s", "t", "p", "q", "T", "m", "M"]
    assert messages[0].subscription == Subscription("BTCUSDT", "trade")
    assert (messages[0].first, messages[0].last) == (rows[0]["t"], rows[0]["t"])
    assert {row["m"] for row in rows} == {True, False}


def test_diffs_chain_and_rebuild_the_book_at_every_top() -> None:
    """The first snapshot and all diffs equal every bookTicker with the update id of a diff, and at last REST depth."""
    market = watched_market(seed=3, orders_per_s=100, updates_per_s=60)
    book = Book()
    update_id, bids, asks = market.depth("BTCUSDT", 5_000)
    book.bids, book.asks, book.update_id = dict(bids), dict(asks), update_id
    streams = by_stream(market.advance(START_MS + 10_000))
    tops = {row["u"]: row for row in streams["btcusdt@bookTicker"]}
    compared = 0
    for diff in streams["btcusdt@depth@100ms"]:
        assert diff["U"] == book.update_id + 1
        assert diff["b"] == sorted(diff["b"], key=lambda level: -float(level[0]))
        book.apply(diff["b"], diff["a"], diff["u"])
        if top := tops.get(diff["u"]):
            compared += 1
            [(bid, bid_size)], [(ask, ask_size)] = book.top(1)
            assert bid < ask
            assert [text8(bid), text8(bid_size)] == [top["b"], top["B"]]
            assert [text8(ask), text8(ask_size)] == [top["a"], top["A"]]
    assert compared > 0
    now_id, now_bids, now_asks = market.depth("BTCUSDT", 5_000)
    assert now_id >= book.update_id
    assert min(len(now_bids), len(now_asks)) > 300


def test_windows_without_change_are_silent() -> None:
    """A quiet book sends no diff, and the next one chains to the last."""
    diffs = by_stream(watched_market(orders_per_s=0.5, updates_per_s=0.5).advance(START_MS + 60_000))[
        "abceur@depth@100ms"
    ]
    assert 0 < len(diffs) < 120
    assert all(earlier["u"] + 1 == later["U"] for earlier, later in pairwise(diffs))


def test_bars_are_what_the_trades_add_up_to() -> None:
    """Every closed minute bar equals the sum of its trades, closes once, and REST gives the same."""
    market = watched_market(orders_per_s=3, seed=5)
    streams = by_stream(market.advance(START_MS + 185_000))
    bars = [row["k"] for row in streams["btcusdt@kline_1m"]]
    closed = [bar for bar in bars if bar["x"]]
    assert [bar["t"] for bar in closed] == [bar_open_ms("1m", START_MS) + n * 60_000 for n in range(3)]
    for bar in closed:
        trades = [row for row in streams["btcusdt@trade"] if bar["t"] <= row["T"] <= bar["T"]]
        prices = [units(row["p"]) for row in trades]
        assert (bar["o"], bar["c"]) == (trades[0]["p"], trades[-1]["p"])
        assert (bar["h"], bar["l"]) == (text8(max(prices)), text8(min(prices)))
        assert bar["n"] == len(trades) == bar["L"] - bar["f"] + 1
        assert bar["v"] == text8(sum(units(row["q"]) for row in trades))
        assert bar["V"] == text8(sum(units(row["q"]) for row in trades if not row["m"]))
    history = market.history("BTCUSDT")
    assert history
    assert [bar.count for bar in history.all_bars("1m")][:3] == [bar["n"] for bar in closed]
    assert history.all_bars("1h")[-1].count == len(history.fills) == history.day().count


def test_other_bars_than_seconds_are_pushed_every_two_seconds() -> None:
    """A minute bar is pushed every two seconds or when it closes, a second bar every second, closed."""
    streams = by_stream(watched_market().advance(START_MS + 20_000))
    assert [row["k"]["x"] for row in streams["btcusdt@kline_1s"]] == [True] * 20
    events = [row["E"] for row in streams["btcusdt@kline_1m"]]
    assert len(events) == 10
    assert {later - earlier for earlier, later in pairwise(events)} == {2_000}


def test_a_bar_without_trades_has_no_ids_and_the_last_close() -> None:
    """Its n is 0, f and L are -1, and all four prices are the previous close; it is closed like any other."""
    rows = by_stream(watched_market(orders_per_s=0.2).advance(START_MS + 30_000))["btcusdt@kline_1s"]
    empty = next(later["k"] | {"before": earlier["k"]["c"]} for earlier, later in pairwise(rows) if not later["k"]["n"])
    assert (empty["f"], empty["L"], empty["v"], empty["x"]) == (-1, -1, "0.00000000", True)
    assert {empty[key] for key in "ohlc"} == {empty["before"]}


def test_every_interval_closes_at_its_boundary() -> None:
    """Across a month's end all bars of all intervals stand on their grid and hold every trade once."""
    month_ms = bar_open_ms("1M", START_MS)
    market = Market(("BTCUSDT",), start_ms=month_ms - 600_000, orders_per_s=0.1, updates_per_s=0.1)
    market.advance(month_ms + 600_000)
    history = market.history("BTCUSDT")
    assert history
    for interval in INTERVALS[3:]:
        bars = history.all_bars(interval)
        assert all(bar.open_ms == bar_open_ms(interval, bar.open_ms) for bar in bars)
        assert sum(bar.count for bar in bars) == len(history.fills)
    assert [bar.open_ms for bar in history.all_bars("1M")] == [bar_open_ms("1M", month_ms - 1), month_ms]


def test_a_sweep_gives_trades_of_one_time_and_aggregates_of_one_price() -> None:
    """A large order eats several levels within one millisecond; fills of a level share an aggregate."""
    market = Market(("BTCUSDT",), start_ms=START_MS, orders_per_s=50)
    market.advance(START_MS + 5_000)
    history = market.history("BTCUSDT")
    assert history
    prices_at: dict[int, set[int]] = defaultdict(set)
    prices_of: dict[int, set[int]] = defaultdict(set)
    for fill in history.fills:
        prices_at[fill.time_ms].add(fill.price)
        prices_of[fill.aggregate_id].add(fill.price)
    assert max(map(len, prices_at.values())) > 2
    assert {len(prices) for prices in prices_of.values()} == {1}
    assert len(prices_of) < len(history.fills)


@pytest.mark.parametrize("levels", [1, 5_000])
def test_the_book_keeps_its_size(levels: int) -> None:
    """However far the price walks, both sides keep a few hundred levels and never cross."""
    market = Market(("ABCEUR",), start_ms=START_MS, orders_per_s=300, levels=levels)
    before = len(market.depth("ABCEUR", 5_000)[1])
    market.advance(START_MS + 20_000)
    _, bids, asks = market.depth("ABCEUR", 5_000)
    assert bids[0][0] < asks[0][0]
    assert before / 2 < len(bids) < before * 2


def test_a_late_close_comes_between_updates_of_the_next_bar() -> None:
    """Order by open time differs from order of arrival, and event times still never go back."""
    streams = by_stream(watched_market(late_close_ms=3_500).advance(START_MS + 90_000))
    bars = [(row["k"]["t"], row["k"]["x"]) for row in streams["btcusdt@kline_1m"]]
    at = bars.index((bar_open_ms("1m", START_MS), True))
    assert bars[at - 1][0] == bars[at][0] + 60_000
    events = [row["E"] for row in streams["btcusdt@kline_1m"]]
    assert events == sorted(events)


def test_ids_can_begin_anew() -> None:
    """Trades and update ids restart at small numbers, and the past is gone from REST."""
    market = watched_market(orders_per_s=50)
    market.advance(START_MS + 2_000)
    market.restart_ids("BTCUSDT")
    streams = by_stream(market.advance(START_MS + 4_000))
    assert streams["btcusdt@trade"][0]["t"] == 0
    assert streams["btcusdt@depth@100ms"][0]["U"] == 1
    history = market.history("BTCUSDT")
    assert history
    assert history.fills[0].trade_id == 0
