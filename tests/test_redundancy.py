"""Two connections for the same subscriptions, for a while or always: nothing missing, nothing twice, order kept."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from ingestor import app
from ingestor.local import faults
from ingestor.local.market import Market
from ingestor.local.proof import prove
from tests.fakes.busy import FULL_RATE, be_busy
from tests.fakes.distant import DistantStream
from tests.fakes.world import START_MS, MemoryWorld, config_for

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from ingestor.config import Config
    from ingestor.core.audit import AuditReport
    from ingestor.local.faults import Fault
    from ingestor.world import World

SYMBOLS = ("BTCUSDT",)
LATENCIES_S = (0.15, 0.0, 0.1, 0.03)  # of one connection after the other


class Run:
    """A service in a world in memory, and what came of it."""

    def __init__(self, folder: Path, *, script: tuple[Fault, ...] = (), **connections: Any) -> None:
        self.market = Market(SYMBOLS, seed=3, start_ms=START_MS, orders_per_s=10.0, updates_per_s=20.0)
        self.world = MemoryWorld(SYMBOLS, source=self.market, script=script, windows_differ=True, tick_s=0.02)
        config = config_for(self.world, folder)
        settings = config.binance.connections.model_copy(update=connections)
        binance = config.binance.model_copy(update={"connections": settings})
        self.config: Config = config.model_copy(update={"binance": binance})
        self.unready: list[float] = []
        self.opened = 0
        self.service: app.Service
        self.line: app.Line
        self.report: AuditReport

    async def go_on_for(self, seconds: float, *, busy_s: tuple[float, float] = (0.0, 0.0)) -> None:
        """Run the line, and drain it; from `busy_s[0]` to `busy_s[1]` the market is at its busiest."""
        stop = trio.Event()
        near = self.world.as_seen_by_a_service()
        async with trio.open_nursery() as distance:
            self.service = app.Service(self.config, near._replace(connect=partial(self.connect, near, distance)))
            distance.start_soon(be_busy, self.market, *busy_s)
            await self._go_on(seconds, stop)
            distance.cancel_scope.cancel()
        self.report = self.world.audit()

    async def connect(self, near: World, nursery: trio.Nursery) -> trio.abc.Stream:
        """Connect to a venue that is near or far."""
        stream = await near.connect()
        self.opened += 1
        return DistantStream(stream, LATENCIES_S[self.opened % len(LATENCIES_S)], nursery)

    async def _go_on(self, seconds: float, stop: trio.Event) -> None:
        self.line = app.Line(self.service, await self.service.find_subscriptions(stop))
        async with self.world.alive(), self.service.rest, trio.open_nursery() as nursery:
            nursery.start_soon(self.line.run, stop)
            for second in range(int(seconds)):
                await trio.sleep(1)
                if not self.service.board.ready(trio.current_time()):
                    self.unready.append(second + 1)
            stop.set()

    def assert_whole(self) -> None:
        """Nothing is missing but what the stop cut off, nothing is declared, nothing came twice or out of order."""
        assert self.report.is_complete
        found = {(each.symbol, each.kind): each for each in self.report.streams}
        assert len(found) == 3
        for each in found.values():
            assert (each.duplicates, each.disordered, each.declared_ids) == (0, 0, 0), each
            assert len(each.delivered) == 1, each
        self.assert_all_arrived()
        assert not any("Trades" in request or "klines" in request for request in self.world.rest_requests)

    def assert_all_arrived(self) -> None:
        """Find what the venue produced, but for what the stop cut off."""
        produced = {name: account.produced for name, account in self.world.venue.ledger.items()}
        for row in prove(produced, self.report):
            assert row.missing <= {"depth": 60, "trade": 5}.get(row.kind, 0), row

    @property
    def trades(self) -> int:
        """How many are in the stream."""
        return sum(each.delivered_ids for each in self.report.streams if each.kind == "trade")

    @property
    def overlapping_trades(self) -> int:
        """How many came over two connections."""
        return int(self.service.metrics.duplicates_dropped.labels("trade")._value.get())

    @property
    def connects(self) -> float:
        return 1 + self.service.metrics.reconnections.value


@pytest.mark.parametrize(
    ("script", "connections"),
    [
        ((faults.Shutdown(at_s=38.0, after_s=10.0),), {}),
        ((), {"rollover_after_s": 41.5}),
        ((faults.Disconnect(40.0, "oldest"),), {"redundancy": 2}),
    ],
    ids=["announced shutdown", "rollover", "loss of one of two"],
)
async def test_no_change_of_connections_at_full_rate_loses_repeats_or_declares_anything(
    autojump_clock: MockClock, tmp_path: Path, script: tuple[Fault, ...], connections: dict[str, Any]
) -> None:
    """Thousands of trades a second while connections overlap, a bar that closes among them; all arrive, once."""
    run = Run(tmp_path, script=script, **connections)
    await run.go_on_for(46, busy_s=(37.0, 44.0))
    run.assert_whole()
    assert run.connects == 2
    assert run.trades > 7.0 * FULL_RATE
    assert run.overlapping_trades > FULL_RATE
    assert [second for second in run.unready if second > 2] == []


async def test_many_rollovers_lose_repeat_and_declare_nothing(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Several of them in a minute, with windows cut differently on every second connection; ready all the time."""
    run = Run(tmp_path, rollover_after_s=9.0)
    await run.go_on_for(65)
    run.assert_whole()
    assert run.connects >= 5
    assert run.unready in ([], [1])
    assert run.world.venue.connections <= 1


async def test_an_announced_shutdown_loses_repeats_and_declares_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The new connection has taken over long before the venue closes the old one."""
    run = Run(tmp_path, script=(faults.Shutdown(at_s=5.0, after_s=10.0), faults.Shutdown(at_s=68.0, after_s=10.0)))
    await run.go_on_for(80)
    run.assert_whole()
    assert run.connects == 3
    assert run.unready in ([], [1])


async def test_losing_one_of_two_connections_every_few_seconds_loses_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Diffs included; and the service stays ready."""
    cuts = tuple(faults.Disconnect(at_s, "oldest") for at_s in range(12, 60, 8))
    run = Run(tmp_path, redundancy=2, script=cuts)
    await run.go_on_for(65)
    run.assert_whole()
    assert run.connects > 6
    assert [second for second in run.unready if second > 2] == []
    assert set(run.service.board.connections) == {"ws-0a", "ws-0b"}


@pytest.mark.parametrize("stream", ["btcusdt@trade", "btcusdt@depth@100ms", "btcusdt@kline_1m"])
async def test_a_stream_that_is_granted_but_dead_is_found_and_repaired(
    stream: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The connection lives, its other streams flow; soon the dead one flows again, and what it missed is repaired."""
    run = Run(tmp_path, script=(faults.Deafen(at_s=50.0, stream=stream),))
    await run.go_on_for(100)
    assert run.report.is_complete
    assert run.connects == 1
    found = {(each.symbol, each.kind): each for each in run.report.streams}
    for name, each in found.items():
        assert (each.duplicates, each.disordered) == (0, 0), each
        declared = [hole.reason for hole in each.declared]
        assert declared == (["disconnected"] if name == ("BTCUSDT", "depth") and "depth" in stream else [])
    run.assert_all_arrived()
