"""Makes a Trio run repeat itself: the same seed gives the same order of events, in this process and in any other."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog
import trio
from trio.testing import MockClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

# Trio shuffles the tasks that are ready. It has a switch for Hypothesis: sorted by age, then shuffled by this `Random`.
SCHEDULER: Any = trio._core._run


MOST_ROUNDS = 20_000


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Let chance in Trio's scheduler come from `seed` within the block."""
    before = SCHEDULER._ALLOW_DETERMINISTIC_SCHEDULING, SCHEDULER._r.getstate()
    SCHEDULER._ALLOW_DETERMINISTIC_SCHEDULING = True
    SCHEDULER._r.seed(seed)
    try:
        yield
    finally:
        SCHEDULER._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        SCHEDULER._r.setstate(before[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing: a simulated run has thousands of warnings, all of them wanted."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


class Watchdog(trio.abc.Instrument):
    """Ends a run that goes round and round without time passing: virtual time alone cannot."""

    def __init__(self) -> None:
        self.has_barked = False
        self.scope = trio.CancelScope()
        self._now = -1.0
        self._rounds = 0

    def after_io_wait(self, timeout: float) -> None:
        """Count the rounds of Trio's loop at one moment."""
        now = trio.current_time()
        self._rounds = self._rounds + 1 if now == self._now else 0
        self._now = now
        if self._rounds > MOST_ROUNDS:
            self.has_barked = True
            self.scope.cancel()


def run_virtual(seed: int, main: Callable[[], Awaitable[None]]) -> bool:
    """Run `main` on virtual time, which leaps ahead whenever everybody waits; False if it hung."""
    watchdog = Watchdog()

    async def watched() -> None:
        with watchdog.scope:
            await main()

    with repeatable(seed):
        trio.run(watched, clock=MockClock(autojump_threshold=0), instruments=[watchdog])
    return not watchdog.has_barked
