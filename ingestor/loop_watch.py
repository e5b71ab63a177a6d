"""Watches the event loop from inside: how late it wakes a sleeper, and that it turns at all.

It is the one task that writes `board.turned_s`, so a loop that was blocked shows as a stall in the histogram, and one
that starves its sleepers as not live; and it takes the samples that rates are made of, and counts the tasks that live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from typing import NoReturn

    from ingestor.core.health import HealthBoard
    from ingestor.core.rates import RollingRates
    from ingestor.metrics import Metrics

SLEEP_S = 0.05  # twenty looks a second cost nothing that can be measured, and see a stall of 20 ms every other time
TURNS_PER_SAMPLE = 20  # rates are read once a second


async def watch_loop(
    board: HealthBoard,
    metrics: Metrics,
    rates: RollingRates,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Measure until cancelled."""
    board.turn(trio.current_time())
    task_status.started()
    turns = 0
    while True:
        if turns % TURNS_PER_SAMPLE == 0:
            rates.sample(trio.current_time(), metrics.totals())
            metrics.tasks.set(trio.lowlevel.current_statistics().tasks_living)
        due_s = trio.current_time() + SLEEP_S
        await trio.sleep_until(due_s)
        now = trio.current_time()
        metrics.loop_stall.observe(max(0.0, now - due_s))
        board.turn(now)
        turns += 1
