"""The one crossing into worker threads, handed down as a value so that a simulation can run the same code inline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class RunBlocking(Protocol):
    """Runs a blocking call without blocking the loop, and returns what it returns."""

    async def __call__(self, fn: Callable[[], T], /) -> T:
        """Wait for `fn()`; unless it was opened otherwise, to its end, because what it did may have landed."""
        ...


def open_threads(count: int, *, may_abandon: bool = False) -> RunBlocking:
    """Make a crossing with its own limiter of `count` threads, so that one slow service cannot starve another.

    With `may_abandon` a cancelled call is left to itself and what it did stays unknown: for reads, and for what may be
    done twice.
    """
    limiter = trio.CapacityLimiter(count)

    async def run_blocking(fn: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(fn, limiter=limiter, abandon_on_cancel=may_abandon)

    return run_blocking
