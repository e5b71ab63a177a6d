"""A memory channel that is bounded in batches and in bytes, because a batch may hold one message or a thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Sized(Protocol):
    """What can travel here: it knows how many bytes it counts for."""

    @property
    def size_bytes(self) -> int:
        """What it counts for."""
        ...


T = TypeVar("T", bound=Sized)


class Budget:
    """Bytes that may be under way at once; one oversize item is let through alone, or it would wait for ever."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def acquire(self, size_bytes: int) -> None:
        """Wait until there is room; what is small enough may go before what waits, so nothing live waits for a page."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.held_bytes and self.held_bytes + size_bytes > self.max_bytes:
            await self._waiting.park()
        self.held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Give room back and wake whoever waits for it."""
        self.held_bytes -= size_bytes
        self._waiting.unpark_all()

    async def wait_for_release(self) -> None:
        """Wait until room is given back."""
        await self._waiting.park()


class BatchSender(Generic[T]):
    """The sending end; every producer owns a clone and closes it with a plain `with`."""

    def __init__(self, channel: trio.MemorySendChannel[T], budget: Budget) -> None:
        self._channel = channel
        self._budget = budget

    async def send(self, batch: T) -> None:
        """Hand `batch` on; waits while the channel is full. Cancelled, the batch is still the caller's."""
        await self._budget.acquire(batch.size_bytes)
        try:
            await self._channel.send(batch)
        except BaseException:
            self._budget.release(batch.size_bytes)
            raise

    async def wait_for_room(self) -> None:
        """Wait until at most half of the channel is taken: for senders that can wait, beside those that cannot."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._is_half_full():
            await self._budget.wait_for_release()

    def _is_half_full(self) -> bool:
        batches = self._channel.statistics()
        return (
            batches.current_buffer_used * 2 > batches.max_buffer_size
            or self._budget.held_bytes * 2 > self._budget.max_bytes
        )

    def clone(self) -> BatchSender[T]:
        """Another sender into the same channel; the channel ends when all of them are closed."""
        return BatchSender(self._channel.clone(), self._budget)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BatchReceiver(Generic[T]):
    """The receiving end: one consumer."""

    def __init__(self, channel: trio.MemoryReceiveChannel[T], budget: Budget) -> None:
        self._channel = channel
        self._budget = budget

    async def receive(self) -> T:
        """Wait for the next batch; `trio.EndOfChannel` when every sender has hung up and nothing is left."""
        batch = await self._channel.receive()
        self._budget.release(batch.size_bytes)
        return batch

    def receive_nowait(self) -> T:
        """Return the next batch, or raise `trio.WouldBlock` or `trio.EndOfChannel`."""
        batch = self._channel.receive_nowait()
        self._budget.release(batch.size_bytes)
        return batch

    def close(self) -> None:
        """Stop receiving; senders meet `trio.BrokenResourceError`."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fill(self) -> tuple[int, int]:
        """How many batches and bytes are under way, for a gauge."""
        return self._channel.statistics().current_buffer_used, self._budget.held_bytes


def open_batch_channel(max_batches: int, max_bytes: int) -> tuple[BatchSender[T], BatchReceiver[T]]:
    """Make both ends of a channel that holds at most `max_batches` batches and `max_bytes` bytes."""
    sender, receiver = trio.open_memory_channel[T](max_batches)
    budget = Budget(max_bytes)
    return BatchSender(sender, budget), BatchReceiver(receiver, budget)
