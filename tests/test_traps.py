"""What the venue does to naive clients (facts/binance.md §5 to §7), done to the whole service by its simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ingestor.local.faults import Disconnect, FailRest, Lag, Refuse, Skip, StaleBooks
from ingestor.local.market import Market
from tests.fakes.service import run_for
from tests.fakes.world import START_MS, MemoryWorld, config_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from ingestor.core.audit import StreamReport
    from ingestor.local.faults import Fault

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
    """The answer to a forgotten id is no error: it begins at the oldest one that is kept."""
    world = await live_through(120, tmp_path, [Disconnect(10), Refuse(10, 60)], keep_trades=20)
    trades = report_of(world, "trade")
    assert [hole.reason for hole in trades.declared] == ["venue_forgot"]
    assert len(trades.delivered) == 2


async def test_a_database_that_lags_is_asked_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    """An empty or short page right after a loss is no proof that there is nothing."""
    world = await live_through(90, tmp_path, [Skip(10, TRADES, 5), Lag(5, 40, 30_000)])
    trades = report_of(world, "trade")
    assert (trades.declared, len(trades.delivered)) == ([], 1)
    assert sum("historicalTrades" in request for request in world.rest_requests) > 1


async def test_a_ban_is_sat_out_in_silence_and_the_gap_closed_afterwards(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """418 with Retry-After: one request that meets it, none until it is over, then the repair."""
    world = await live_through(120, tmp_path, [Skip(10, TRADES, 5), FailRest(9, 60, "banned")])
    trades = report_of(world, "trade")
    assert (trades.declared, len(trades.delivered)) == ([], 1)
    assert sum("historicalTrades" in request for request in world.rest_requests) <= 3


async def test_a_snapshot_from_behind_the_stream_is_fetched_again_not_for_ever(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A server that is behind gives a book that the diffs do not reach back to; a literal reader loops into a ban."""
    world = await live_through(60, tmp_path, [StaleBooks(0, 8)])
    assert report_of(world, "depth").snapshots == 1
    assert sum("/depth" in request for request in world.rest_requests) < 12
    last = [each for each in world.delivered() if each.depth is not None][-1]
    assert last.bid_price is not None


async def test_bars_that_never_existed_are_declared_not_waited_for(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A halt leaves holes in REST's bars for good, so patience is bounded."""
    market = Market(["BTCUSDT"], seed=3, start_ms=START_MS, orders_per_s=2.0)
    world = MemoryWorld(source=market, script=[Skip(5, BARS, 120)])
    minutes = range(START_MS // 60_000, START_MS // 60_000 + 3)
    world.venue.desk.trouble.missing_bars = {("BTCUSDT", "1m"): {minute * 60_000 for minute in minutes}}
    await run_for(500, config_for(world, tmp_path), world)
    bars = report_of(world, "kline_1m")
    assert {hole.reason for hole in bars.declared} == {"venue_has_none"}


async def test_a_closing_message_that_comes_late_is_no_gap(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Updates of the next bar may come first; nothing is fetched for it, and nothing comes twice."""
    world = await live_through(200, tmp_path, [], late_close_ms=1_800)
    bars = report_of(world, "kline_1m")
    assert (bars.declared, bars.duplicates, len(bars.delivered)) == ([], 0, 1)
    assert [request for request in world.rest_requests if "klines" in request] == []
