"""The one crossing into worker threads, handed down as a value so that a simulation can run the same code inline."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

M_ARENA_MAX: Final = -8  # malloc.h of glibc


class RunBlocking(Protocol):
    """Runs a blocking call without blocking the loop, and returns what it returns."""

    async def __call__(self, fn: Callable[[], T], /) -> T:
        """Wait for `fn()`; unless it was opened otherwise, to its end, because what it did may have landed."""
        ...


def share_one_heap() -> bool:
    """Have all threads of this process share one heap of the C library; call it before there are any.

    glibc would give each one its own, and what a call frees in one is of no use to the next call in another: with a
    thousand books 226 MB, and growing, where one heap stays at 170. The GIL lets nearly nobody wait for it. Returns
    whether the C library has heard of it; others have one heap anyway.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1))
    except (AttributeError, OSError):  # not glibc
        return False


def open_threads(count: int, *, may_abandon: bool = False) -> RunBlocking:
    """Make a crossing with its own limiter of `count` threads, so that one slow service cannot starve another.

    With `may_abandon` a cancelled call is left to itself and what it did stays unknown: for reads, and for what may be
    done twice.
    """
    limiter = trio.CapacityLimiter(count)

    async def run_blocking(fn: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(fn, limiter=limiter, abandon_on_cancel=may_abandon)

    return run_blocking
