"""A stream whose other end is far away: what it sends arrives later, in order."""

from __future__ import annotations

import math

import trio


class DistantStream(trio.abc.Stream):
    """Delays what is received by `latency_s`, whatever is under way meanwhile; what we send arrives at once."""

    def __init__(self, near: trio.abc.Stream, latency_s: float, nursery: trio.Nursery) -> None:
        self._near = near
        self._latency_s = latency_s
        self._arriving, self._arrived = trio.open_memory_channel[tuple[float, bytes]](math.inf)
        nursery.start_soon(self._carry)

    async def _carry(self) -> None:
        with self._arriving:
            while True:  # noqa: ASYNC913 - a stream that has nothing to give waits
                try:
                    data = bytes(await self._near.receive_some())
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                self._arriving.send_nowait((trio.current_time() + self._latency_s, data))
                if not data:
                    return

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived; BrokenResourceError once a cut has."""
        del max_bytes
        try:
            due_s, data = await self._arrived.receive()
        except trio.EndOfChannel:
            raise trio.BrokenResourceError from None
        await trio.sleep_until(due_s)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send at once."""
        await self._near.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the near end does."""
        await self._near.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Hang up."""
        await self._near.aclose()
