"""The watcher of the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from prometheus_client import CollectorRegistry

from ingestor.core.health import HealthBoard
from ingestor.core.rates import RollingRates
from ingestor.loop_watch import watch_loop
from ingestor.metrics import Metrics

if TYPE_CHECKING:
    from trio.testing import MockClock


async def test_it_notes_turns_stalls_and_rates(autojump_clock: MockClock) -> None:
    """Over five seconds it looks a hundred times, keeps the board current and samples the totals every second."""
    board, metrics, rates = HealthBoard(), Metrics(CollectorRegistry()), RollingRates()
    metrics.count_messages_by(lambda: {("BTCUSDT", "trade"): int(trio.current_time() * 100)})
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_loop, board, metrics, rates)
        began = trio.current_time()
        assert board.turned_s == began
        await trio.sleep(5.01)
        nursery.cancel_scope.cancel()
    assert board.turned_s is not None
    assert abs(board.turned_s - began - 5.0) < 0.011
    assert abs(rates.per_second()["messages"] - 100) < 1
    assert metrics.registry.get_sample_value("event_loop_stall_seconds_count") == 100


async def test_a_blocked_loop_shows_as_a_stall(mock_clock: MockClock) -> None:
    """When the loop comes back late, the lateness is observed."""
    board, metrics = HealthBoard(), Metrics(CollectorRegistry())
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_loop, board, metrics, RollingRates())
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(3.0)  # nobody was woken for three seconds
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert metrics.registry.get_sample_value("event_loop_stall_seconds_bucket", {"le": "2.0"}) == 0
    assert metrics.registry.get_sample_value("event_loop_stall_seconds_bucket", {"le": "5.0"}) == 1


async def test_it_counts_the_tasks_that_live(autojump_clock: MockClock) -> None:
    """Seven tasks more are seven more within a second, and none once they have ended."""
    metrics = Metrics(CollectorRegistry())

    def living() -> float | None:
        return metrics.registry.get_sample_value("event_loop_tasks")

    async with trio.open_nursery() as nursery:
        await nursery.start(watch_loop, HealthBoard(), metrics, RollingRates())
        await trio.sleep(1.01)
        before = living()
        assert before is not None
        async with trio.open_nursery() as sleepers:
            for _ in range(7):
                sleepers.start_soon(trio.sleep, 2.0)
            await trio.sleep(1.5)
            assert living() == before + 7
        await trio.sleep(1.5)
        assert living() == before
        nursery.cancel_scope.cancel()
