"""Reads the body of an HTTP answer as far as it may go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable


async def read_until(chunks: AsyncIterable[bytes], is_enough: Callable[[bytes], Awaitable[bool]]) -> None:
    """Hand over chunk by chunk, to the end or until `is_enough` says so.

    A body is generators inside of generators. Left in the middle, they would be ended by the garbage collector, some
    time; cancelled where they wait for the network, they end in order.
    """
    with trio.CancelScope() as scope:
        async for chunk in chunks:
            if not scope.cancel_called and await is_enough(chunk):
                scope.cancel()
