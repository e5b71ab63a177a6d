"""Kinesis goes away for ten minutes, and the whole service goes on: nothing lost, memory flat, order kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ingestor import app
from ingestor.config import Spool
from ingestor.core.errors import SinkError
from ingestor.local.market import Market
from tests.fakes.world import START_MS, MemoryWorld, config_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from ingestor.config import Config
    from ingestor.core.audit import AuditReport
    from ingestor.core.model import PutEntry

AWAY = SinkError("transient", "EndpointUnreachable", "no route to host")
SPOOL_BYTES = 256 * 1024 * 1024
MEMORY_BYTES = 200_000  # less than a minute of this market


def with_spool(config: Config, folder: Path, memory_max_bytes: int = MEMORY_BYTES) -> Config:
    spool = Spool(directory=folder / "spool", max_bytes=SPOOL_BYTES, memory_max_bytes=memory_max_bytes)
    return config.model_copy(update={"spool": spool})


async def refuse(_entries: Sequence[PutEntry]) -> None:
    raise AWAY


async def unreadable() -> None:
    raise AWAY


class Life:
    """One run of the service in a world, and what was seen of it."""

    def __init__(self, config: Config, world: MemoryWorld) -> None:
        self.stop = trio.Event()
        self.service = app.Service(config, world.as_seen_by_a_service())
        self.line: app.Line | None = None
        self.most_held_bytes = 0
        self.most_spooled_bytes = 0

    async def run(self) -> None:
        async with self.service.rest, trio.open_nursery() as nursery:
            nursery.start_soon(self.watch)
            self.line = app.Line(self.service, await self.service.find_subscriptions(self.stop))
            await self.line.run(self.stop)
            nursery.cancel_scope.cancel()

    async def watch(self) -> None:
        while True:
            await trio.sleep(1)
            self.most_held_bytes = max(self.most_held_bytes, self.service.board.sink.held_bytes)
            self.most_spooled_bytes = max(self.most_spooled_bytes, self.service.board.sink.spooled_bytes)


def losses(report: AuditReport) -> int:
    return sum(each.duplicates + each.disordered + each.declared_ids for each in report.streams)


async def test_a_line_that_is_full_for_half_a_minute_costs_no_connection(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What waits unread would be lost with it, and changes of books are nowhere else."""
    world = MemoryWorld(["BTCUSDT", "ETHUSDT"])
    config = config_for(world, tmp_path)
    narrow = {
        "channels": config.channels.model_copy(update={"max_batches": 1, "max_bytes": 2_000}),
        "spool": Spool(memory_max_bytes=2_000),
    }
    life = Life(config.model_copy(update=narrow), world)

    async def be_slow(_entries: Sequence[PutEntry]) -> None:
        await trio.sleep_until(55)  # the venue hangs up on whoever leaves its ping unanswered for a minute

    async with world.alive(), trio.open_nursery() as nursery:
        nursery.start_soon(life.run)
        await trio.sleep(20)
        world.data.before_put = be_slow
        await trio.sleep(100)
        life.stop.set()
    delivered = world.delivered()
    assert [each.hole for each in delivered if each.hole] == []
    assert [each for each in delivered if each.trade and each.source == "rest"] == []
    assert world.audit().is_complete


async def test_an_outage_of_ten_minutes_loses_nothing_and_memory_stays_flat(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The venue connection stays up, and recovery drains in order: nothing missing, nothing twice, nothing late."""
    world = MemoryWorld(["BTCUSDT", "ETHUSDT"])
    life = Life(with_spool(config_for(world, tmp_path), tmp_path), world)
    async with world.alive(), trio.open_nursery() as nursery:
        nursery.start_soon(life.run)
        await trio.sleep(30)
        before = len(world.data.records())
        world.data.before_put = refuse
        await trio.sleep(600)
        assert len(world.data.records()) == before
        assert life.service.board.sink.breaker == "open"
        world.data.before_put = None
        await trio.sleep(60)
        assert life.service.board.sink.spooled_bytes == 0
        life.stop.set()
    report = world.audit()
    assert report.is_complete
    assert losses(report) == 0
    assert life.service.metrics.reconnections.value == 0
    assert life.most_held_bytes <= MEMORY_BYTES
    assert life.most_spooled_bytes > 3 * MEMORY_BYTES
    assert life.line is not None
    marks = life.line.coverage.watermarks()
    assert {each: mark + 1 for each, mark in marks.items()} == life.line.intake.next_ids()
    assert not list((tmp_path / "spool").iterdir())


async def test_a_stop_during_an_outage_leaves_its_records_to_the_next_task(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """They are delivered first, count as held, and are fetched by nobody; the watermark goes on behind them."""
    world = MemoryWorld(["BTCUSDT"])
    config = with_spool(config_for(world, tmp_path, resume=True), tmp_path)
    first, second = Life(config, world), Life(config, world)
    async with world.alive():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run)
            await trio.sleep(30)
            world.data.before_put = refuse
            await trio.sleep(60)
            first.stop.set()
        world.data.before_put = None
        world.rest_requests.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.run)
            await trio.sleep(120)
            second.stop.set()
    report = world.audit()
    assert report.is_complete
    by_kind = {each.kind: each for each in report.streams}
    assert by_kind["trade"].declared_ids == by_kind["trade"].duplicates == 0
    assert by_kind["depth"].duplicates == 0
    assert second.line is not None
    marks = second.line.coverage.watermarks()
    assert {each: mark + 1 for each, mark in marks.items()} == second.line.intake.next_ids()
    assert first.service.metrics.losses()["abandoned"] == 0
    assert not list((tmp_path / "spool").iterdir())


async def test_a_spool_of_ids_that_began_again_since_claims_none_of_the_new_ones(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its records are delivered before the task knows that the venue was wiped; the coverage holds new ids alone."""
    market = Market(["BTCUSDT"], seed=3, start_ms=START_MS, orders_per_s=2.0, updates_per_s=5.0)
    world = MemoryWorld(source=market)
    config = with_spool(config_for(world, tmp_path, resume=True), tmp_path)
    first, second = Life(config, world), Life(config, world)
    async with world.alive():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run)
            await trio.sleep(30)
            world.data.before_put = refuse
            await trio.sleep(20)
            first.stop.set()
        market.restart_ids("BTCUSDT")
        await trio.sleep(20)
        world.streams.before_read = unreadable
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.run)
            await trio.sleep(10)
            world.data.before_put = None
            await trio.sleep(40)
            world.streams.before_read = None
            await trio.sleep(30)
            second.stop.set()
    assert second.line is not None
    assert second.service.metrics.losses()["abandoned"] == 0
    next_ids = second.line.intake.next_ids()
    for subscription, entry in second.line.coverage.items():
        if not subscription.kind.startswith("kline"):
            assert entry.generation == 1
            assert entry.covered.highest == next_ids[subscription] - 1
