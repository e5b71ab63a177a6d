"""Quiet symbols across tasks: what happened while nobody ran is fetched although nothing is said now."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import trio

from ingestor import app
from ingestor.core.model import Subscription
from ingestor.local.faults import Disconnect, Refuse
from ingestor.local.market import Market
from tests.fakes.service import run_for, run_line
from tests.fakes.world import START_MS, MemoryWorld, config_for
from tests.simulation.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from ingestor.core.model import PutEntry

SYMBOLS = ("AUSDT", "BUSDT", "CUSDT", "DUSDT", "EUSDT")
TRADES = tuple(Subscription(symbol, "trade") for symbol in SYMBOLS)


class Moody(MemoryWorld):
    """A venue whose symbols fall silent and speak again."""

    def __init__(self, symbols: tuple[str, ...] = SYMBOLS) -> None:
        self.market = Market(symbols, seed=4, start_ms=START_MS, orders_per_s=2.0, updates_per_s=2.0)
        super().__init__(symbols, source=self.market)

    def hush(self) -> None:
        """Let nobody act any more."""
        for symbol in self.market._symbols.values():
            symbol._act_at = inf

    def speak(self) -> None:
        """Let everybody act again."""
        for symbol in self.market._symbols.values():
            symbol._act_at = self.market.now_ms + 1

    async def pass_time(self, seconds: float) -> None:
        async with self.alive():
            await trio.sleep(seconds)

    def requests(self, endpoint: str) -> list[str]:
        return [request for request in self.rest_requests if f"/{endpoint}?" in request]


async def test_what_quiet_symbols_lack_is_fetched_before_they_speak(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Their heads come from one request; trades of the pause are in the stream while the venue says nothing."""
    world = Moody()
    config = config_for(world, tmp_path, resume=True)
    await run_for(30, config, world)
    await world.pass_time(20)
    world.hush()
    world.rest_requests.clear()
    line = await run_for(40, config, world)
    assert len(world.requests("ticker/24hr")) <= 2  # the second one is of the watch over silent streams
    assert world.requests("trades") == []
    heads = {each: history.fills[-1].trade_id for each in TRADES if (history := world.market.history(each.symbol))}
    assert {each: line.coverage[each].watermark for each in TRADES} == heads
    assert world.audit().is_complete
    assert all(len(each.delivered) == 1 for each in world.audit().streams if each.kind == "trade")


async def test_trades_between_the_head_and_the_first_live_one_are_a_gap(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A first start of all: counted from the head, so nothing that comes later can be missed silently."""
    world = Moody()
    config = config_for(world, tmp_path, resume=True)
    await world.pass_time(5)
    world.hush()
    histories = {symbol: world.market.history(symbol) for symbol in SYMBOLS}
    after = {symbol: history.fills[-1].trade_id + 1 for symbol, history in histories.items() if history}
    async with world.alive(), trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(run_line, config, world, stop)
        await trio.sleep(30)
        assert [each for each in world.delivered() if each.trade] == []
        world.venue.suffer(Refuse(0, 5))  # what comes first is seen by nobody
        world.venue.suffer(Disconnect(0))
        world.speak()
        await trio.sleep(30)
        stop.set()
    report = world.audit()
    assert report.is_complete
    spoken = {each.symbol: each.delivered for each in report.streams if each.kind == "trade"}
    assert {symbol: ranges[0].first for symbol, ranges in spoken.items()} == after
    assert [len(ranges) for ranges in spoken.values()] == [1] * len(SYMBOLS)


async def test_a_task_of_quiet_symbols_becomes_ready(autojump_clock: MockClock, tmp_path: Path) -> None:
    """An orchestrator would start it anew every five minutes otherwise; but not before it is clear that none speaks."""
    world = Moody()
    await world.pass_time(5)
    world.hush()
    config = config_for(world, tmp_path, resume=True)
    quiet = config.model_copy(update={"binance": config.binance.model_copy(update={"streams": ("trade",)})})
    service = app.Service(quiet, world.as_seen_by_a_service())
    stop = trio.Event()
    async with world.alive(), service.rest, trio.open_nursery() as nursery:
        nursery.start_soon(app.Line(service, await service.find_subscriptions(stop)).run, stop)
        await trio.sleep(18)
        assert not service.board.ready(trio.current_time())
        await trio.sleep(12)
        assert service.board.ready(trio.current_time())
        stop.set()
    assert [each for each in world.delivered() if each.trade] == []


async def test_what_waits_at_a_slow_start_is_not_taken_for_quiet(autojump_clock: MockClock, tmp_path: Path) -> None:
    """While the first origin cannot be written nothing goes on; what was said meanwhile is delivered all the same."""
    world = Moody()
    config = config_for(world, tmp_path, resume=True)

    async def be_away_at_first(entries: Sequence[PutEntry]) -> None:
        await trio.sleep_until(8)

    world.beats.before_put = be_away_at_first
    line = await run_for(40, config, world)
    assert [each for each in world.rest_requests if "/ticker/24hr?" in each or "/trades?" in each], "it did look"
    first = {each: world.venue.ledger[each].produced.lowest for each in TRADES}
    assert {each: line.coverage[each].origin for each in TRADES} == first
    delivered = {Subscription(each.symbol, each.kind): each.delivered for each in world.audit().streams}
    assert {each: delivered[each][0].first for each in TRADES} == first
    assert world.audit().is_complete


async def test_a_wiped_venue_is_seen_at_the_first_trade_of_a_quiet_symbol(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its newest id is far below what was covered: no evidence yet, and nothing new is taken for covered."""
    world = Moody(("AUSDT",))
    config = config_for(world, tmp_path, resume=True)
    await run_for(30, config, world)
    world.market.restart_ids("AUSDT")
    await world.pass_time(10)
    world.hush()
    async with world.alive(), trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(run_line, config, world, stop)
        await trio.sleep(30)
        world.speak()
        await trio.sleep(30)
        stop.set()
    [hole] = [each.hole for each in world.delivered() if each.hole and each.hole.stream == "trade"]
    live = [each for each in world.delivered() if each.trade and each.trade.trade_id < 1_000]
    assert (hole.reason, hole.first, hole.last) == ("id_restart", 0, live[0].sequence - 1)
    assert [each.sequence for each in live] == list(range(live[0].sequence, live[-1].sequence + 1))


async def test_a_head_is_written_down_before_what_follows_it_goes_on(autojump_clock: MockClock, tmp_path: Path) -> None:
    """As the origin of any subscription: a kill right after its first trade is no silent hole."""
    world = Moody()
    journal = Journal(trio.current_time, lambda: False)
    world.data.on_stored = journal.take_record
    world.beats.on_stored = journal.take_beat
    world.on_answer = journal.take_answer
    world.beats.before_put = slow
    journal.begin_life(1)
    await world.pass_time(5)
    world.hush()
    async with world.alive(), trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(
            run_line, config_for(world, tmp_path, resume=True, batch={"flush_interval_s": 0.1}), world, stop
        )
        while not world.requests("ticker/24hr"):  # noqa: ASYNC110 - seen from outside
            await trio.sleep(0.01)
        world.speak()
        await trio.sleep(30)
        stop.set()
    assert journal.problems == []
    assert len(TRADES) == len({each.claim.subscription for each in journal.stored if each.claim and each.record.trade})


async def slow(_entries: Sequence[PutEntry]) -> None:
    await trio.sleep(1.5)
