"""Where naive clients go wrong (facts/binance.md §14), done to the whole service by the simulated venue.

Each test names its trap in its docstring; the last one sees that none of the eleven is forgotten.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from msgspec.structs import replace

from ingestor.local.faults import Disconnect, FailRest, Inject, Lag, Refuse, Repeat, Shutdown, Skip, StaleBooks, Stall
from ingestor.local.market import Market
from tests.fakes.busy import be_busy
from tests.fakes.service import run_for
from tests.fakes.world import START_MS, MemoryWorld, config_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from ingestor.core.audit import StreamReport
    from ingestor.local.faults import Fault, Garbage
    from ingestor.local.history import Message

TRADES, BARS = "btcusdt@trade", "btcusdt@kline_1m"


async def live_through(seconds: float, folder: Path, script: Sequence[Fault], **market: Any) -> MemoryWorld:
    """Run the service for a while at a venue that behaves like this, and stop it."""
    habits: dict[str, Any] = {"orders_per_s": 4.0, "updates_per_s": 5.0, **market}
    world = MemoryWorld(source=Market(["BTCUSDT"], seed=3, start_ms=START_MS, **habits), script=script)
    await run_for(seconds, config_for(world, folder), world)
    return world


def report_of(world: MemoryWorld, kind: str) -> StreamReport:
    report = world.audit()
    assert report.is_complete
    return next(each for each in report.streams if each.kind == kind)


async def test_history_that_silently_starts_later_is_declared_and_the_rest_fetched(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trap 6: the answer to a forgotten id is no error: it begins at the oldest one that is kept."""
    world = await live_through(120, tmp_path, [Disconnect(10), Refuse(10, 60)], keep_trades=20)
    trades = report_of(world, "trade")
    assert [hole.reason for hole in trades.declared] == ["venue_forgot"]
    assert len(trades.delivered) == 2


async def test_a_database_that_lags_is_asked_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Trap 6: an empty or short page right after a loss is no proof that there is nothing."""
    world = await live_through(90, tmp_path, [Skip(10, TRADES, 5), Lag(5, 40, 30_000)])
    trades = report_of(world, "trade")
    assert (trades.declared, len(trades.delivered)) == ([], 1)
    assert sum("historicalTrades" in request for request in world.rest_requests) > 1


async def test_a_ban_is_sat_out_in_silence_and_the_gap_closed_afterwards(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trap 9, 418 with Retry-After: one request that meets it, none until it is over, then the repair."""
    world = await live_through(120, tmp_path, [Skip(10, TRADES, 5), FailRest(9, 60, "banned")])
    trades = report_of(world, "trade")
    assert (trades.declared, len(trades.delivered)) == ([], 1)
    assert sum("historicalTrades" in request for request in world.rest_requests) <= 3


async def test_a_snapshot_from_behind_the_stream_is_fetched_again_not_for_ever(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trap 1: a book that the diffs do not reach back to, and then one they just follow; a literal reader loops."""
    world = await live_through(60, tmp_path, [StaleBooks(0, 8)])
    assert report_of(world, "depth").snapshots == 1
    assert sum("/depth" in request for request in world.rest_requests) < 12
    last = [each for each in world.delivered() if each.depth is not None][-1]
    assert last.bid_price is not None


async def test_bars_that_never_existed_are_declared_not_waited_for(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Trap 7: a halt leaves holes in REST's bars for good, so patience is bounded."""
    market = Market(["BTCUSDT"], seed=3, start_ms=START_MS, orders_per_s=2.0)
    world = MemoryWorld(source=market, script=[Skip(5, BARS, 120)])
    minutes = range(START_MS // 60_000, START_MS // 60_000 + 3)
    world.venue.desk.trouble.missing_bars = {("BTCUSDT", "1m"): {minute * 60_000 for minute in minutes}}
    await run_for(500, config_for(world, tmp_path), world)
    bars = report_of(world, "kline_1m")
    assert {hole.reason for hole in bars.declared} == {"venue_has_none"}


async def test_a_closing_message_that_comes_late_is_no_gap(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Trap 7: updates of the next bar may come first; nothing is fetched for it, and nothing comes twice."""
    world = await live_through(200, tmp_path, [], late_close_ms=1_800)
    bars = report_of(world, "kline_1m")
    assert (bars.declared, bars.duplicates, len(bars.delivered)) == ([], 0, 1)
    assert [request for request in world.rest_requests if "klines" in request] == []


async def test_many_streams_are_subscribed_to_in_messages_that_the_venue_answers(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trap 2: more than 4 kB gets no reply, more than 5 messages a second with pongs cost the connection."""
    symbols = [f"SYMBOL{number}USDT" for number in range(400)]
    market = Market(symbols, seed=3, start_ms=START_MS, orders_per_s=0.2, updates_per_s=0.1, levels=20)
    world = MemoryWorld(symbols, source=market)
    config = config_for(world, tmp_path)
    connections = config.binance.connections.model_copy(update={"max_streams": 400})
    binance = config.binance.model_copy(update={"streams": ("trade",), "connections": connections})
    line = await run_for(30, config.model_copy(update={"binance": binance}), world)
    assert sum(len(each.stream_name) for each in line.subscriptions) > 7_000  # in one message they get no reply
    assert line.service.metrics.reconnections.value == 0
    traded = {name.symbol for name, account in world.venue.ledger.items() if account.produced.count() > 2}
    assert len(traded) > 300
    assert traded <= {each.symbol for each in world.audit().streams}


async def test_what_no_router_knows_and_no_decoder_reads_costs_nothing_but_itself(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trap 3: events of unknown kinds and streams, a missing field, broken JSON, and `!serverShutdown` among them."""
    garbage: Sequence[Garbage] = ("unknown_event", "unknown_stream", "missing_field", "invalid_json", "invalid_utf8")
    script = [Inject(5.0 + number, what) for number, what in enumerate(garbage)]
    world = MemoryWorld(script=[*script, Shutdown(12)])
    line = await run_for(60, config_for(world, tmp_path), world)
    assert world.audit().is_complete
    assert [each.declared for each in world.audit().streams] == [[], [], []]
    assert line.service.metrics.reconnections.value == 1
    [letters] = (tmp_path / "dead-letter").glob("*.jsonl")
    assert len(letters.read_text().splitlines()) == len(garbage)


async def test_a_connection_that_says_nothing_is_given_up_and_what_it_missed_is_fetched(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trap 4: open and silent, pings too; no ping of ours would tell, thirty seconds of nothing do."""
    world = await live_through(120, tmp_path, [Stall(10, 300)])
    trades = report_of(world, "trade")
    assert (trades.declared, len(trades.delivered), trades.duplicates) == ([], 1, 0)
    assert report_of(world, "kline_1m").declared == []


async def test_events_that_come_twice_are_known_by_their_ids(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Trap 5: over two connections that cut windows differently, and repeated on each; trades share a millisecond."""
    market = Market(["BTCUSDT"], seed=3, start_ms=START_MS, orders_per_s=20.0, updates_per_s=20.0)
    script = [Repeat(10.0, stream, 30) for stream in (TRADES, BARS, "btcusdt@depth@100ms")]
    world = MemoryWorld(source=market, script=script, windows_differ=True)
    config = config_for(world, tmp_path)
    connections = config.binance.connections.model_copy(update={"redundancy": 2})
    config = config.model_copy(update={"binance": config.binance.model_copy(update={"connections": connections})})
    await run_for(50, config, world)
    times = [each.timestamp for each in world.delivered() if each.trade]
    assert len(set(times)) < len(times)
    for each in world.audit().streams:
        assert (each.duplicates, each.declared, len(each.delivered)) == (0, [], 1), each


async def test_an_unfinished_bar_of_rest_is_not_stored_as_closed_and_empty_bars_have_no_ids(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trap 7: the closing message is lost, so the bar is fetched once it is over; -1 is no trade id."""
    market = Market(["BTCUSDT"], seed=3, start_ms=START_MS, orders_per_s=0.0, updates_per_s=5.0)
    world = MemoryWorld(source=market, script=[Skip(35, BARS, 4)])
    await run_for(110, config_for(world, tmp_path), world)
    bars = [each for each in world.delivered() if each.kline is not None and each.kline.closed]
    assert [each.source for each in bars] == ["rest", "websocket"]
    for each in bars:
        assert each.kline is not None
        assert (each.kline.trade_count, each.kline.first_trade_id, each.kline.last_trade_id) == (0, None, None)
        assert each.kline.volume == "0.00000000"


class Precise(Market):
    """A market that names the price of one trade with twelve decimals."""

    precise: int | None = None

    def advance(self, to_ms: int) -> list[Message]:
        """Live on."""
        messages = super().advance(to_ms)
        for place, message in enumerate(messages):
            if message.stream == TRADES and to_ms > START_MS + 10_000 and self.precise is None:
                self.precise = message.last
                payload = message.payload.replace(b'","q"', b'1234","q"')
                messages[place] = replace(message, payload=payload)
        return messages


async def test_a_price_with_more_decimals_than_the_schema_is_declared_never_rounded(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trap 8: eight decimals are custom, not law; a letter keeps the bytes, a hole the id, and repair lets it be."""
    market = Precise(["BTCUSDT"], seed=3, start_ms=START_MS, orders_per_s=4.0, updates_per_s=5.0)
    world = MemoryWorld(source=market)
    line = await run_for(50, config_for(world, tmp_path), world)
    assert [(hole["stream"], hole["first"], hole["reason"]) for hole in line.service.holes.newest()] == [
        ("trade", market.precise, "poison")
    ]
    trades = report_of(world, "trade")
    assert [(hole.first, hole.last, hole.reason) for hole in trades.declared] == [
        (market.precise, market.precise, "poison")
    ]
    [letters] = (tmp_path / "dead-letter").glob("*.jsonl")
    assert f'\\"t\\":{market.precise},' in letters.read_text()
    assert [request for request in world.rest_requests if "historicalTrades" in request] == []


async def test_a_request_limit_is_obeyed_to_the_second(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Trap 9, 429 with Retry-After: nobody asks anything until it is over."""
    world = await live_through(120, tmp_path, [Skip(10, TRADES, 5), FailRest(9, 60, "limited")])
    trades = report_of(world, "trade")
    assert (trades.declared, len(trades.delivered)) == ([], 1)
    assert sum("historicalTrades" in request for request in world.rest_requests) <= 3


async def test_order_book_changes_of_an_outage_are_declared_and_the_book_is_seeded_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trap 10: nobody can send them again, so it is said which ones they were."""
    world = await live_through(60, tmp_path, [Disconnect(10), Refuse(10, 5)])
    depth = report_of(world, "depth")
    assert [hole.reason for hole in depth.declared] == ["disconnected"]
    assert (depth.unseeded, depth.snapshots >= 2) == ([], True)


async def test_hundreds_of_trades_in_ten_milliseconds_are_no_trouble(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Trap 11: 520 were measured in one slot; buffers are bounded in bytes and stall, they do not drop."""
    market = Market(["BTCUSDT"], seed=3, start_ms=START_MS, orders_per_s=2.0, updates_per_s=5.0)
    world = MemoryWorld(source=market)
    config = config_for(world, tmp_path)
    config = config.model_copy(update={"channels": config.channels.model_copy(update={"max_bytes": 20_000})})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(be_busy, market, 20.0, 20.1, orders_per_s=60_000.0))
        line = await run_for(50, config, world)
    trades = report_of(world, "trade")
    assert (trades.declared, len(trades.delivered), trades.duplicates) == ([], 1, 0)
    assert trades.delivered_ids > 5_000
    assert line.service.metrics.reconnections.value == 0


def test_no_trap_is_forgotten() -> None:
    """The checklist of the facts has eleven."""
    texts = [test.__doc__ or "" for name, test in globals().items() if name.startswith("test_")]
    held = {int(number) for text in texts for number in re.findall(r"^Trap (\d+)", text)}
    assert held == set(range(1, 12))
