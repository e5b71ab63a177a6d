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
        """Wait for `fn()`; never abandoned, because what it did may have landed."""
        ...


def open_threads(count: int) -> RunBlocking:
    """Make a crossing with its own limiter of `count` threads, so that one slow service cannot starve another."""
    limiter = trio.CapacityLimiter(count)

    async def run_blocking(fn: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(fn, limiter=limiter)

    return run_blocking
