"""The line's channels are bounded in batches and in bytes, and end when every sender has hung up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ingestor.channels import BatchReceiver, BatchSender, open_batch_channel


@dataclass(frozen=True)
class Parcel:
    size_bytes: int


def open_parcel_channel(max_batches: int, max_bytes: int) -> tuple[BatchSender[Parcel], BatchReceiver[Parcel]]:
    return open_batch_channel(max_batches, max_bytes)


async def test_a_sender_waits_while_the_bytes_are_used_up() -> None:
    """Room is counted in bytes, not only in batches, and comes back when a batch is received."""
    sender, receiver = open_parcel_channel(100, 1_000)
    async with trio.open_nursery() as nursery:
        await sender.send(Parcel(900))
        nursery.start_soon(sender.send, Parcel(200))
        await wait_all_tasks_blocked()
        assert receiver.fill() == (1, 900)
        assert await receiver.receive() == Parcel(900)
        await wait_all_tasks_blocked()
        assert receiver.fill() == (1, 200)


async def test_an_oversize_batch_passes_alone() -> None:
    """A batch larger than the whole budget does not wait for ever."""
    sender, receiver = open_parcel_channel(100, 10)
    await sender.send(Parcel(1_000))
    assert receiver.receive_nowait() == Parcel(1_000)
    assert receiver.fill() == (0, 0)


async def test_a_cancelled_send_leaves_the_batch_with_its_sender() -> None:
    """Neither waiting for bytes nor waiting for a slot keeps room that nobody uses."""
    sender, receiver = open_parcel_channel(1, 1_000)
    await sender.send(Parcel(1))
    with trio.move_on_after(0):
        await sender.send(Parcel(1))
    assert receiver.fill() == (1, 1)


async def test_the_channel_ends_when_every_sender_has_hung_up() -> None:
    """End of input is the channel's own message; there is no stopping flag."""
    sender, receiver = open_parcel_channel(4, 1_000)
    with receiver:
        with sender, sender.clone() as second:
            await second.send(Parcel(1))
        assert await receiver.receive() == Parcel(1)
        with pytest.raises(trio.EndOfChannel):
            await receiver.receive()


async def test_a_send_to_nobody_is_an_error() -> None:
    """A receiver that has gone away is told to the sender, not hidden."""
    sender, receiver = open_parcel_channel(4, 1_000)
    receiver.close()
    with pytest.raises(trio.BrokenResourceError):
        await sender.send(Parcel(1))


async def test_a_patient_sender_waits_until_half_of_the_channel_is_free() -> None:
    """Repair leaves the other half to live data, in batches and in bytes."""
    for size_bytes, most in ((1, 2), (300, 1)):
        sender, receiver = open_parcel_channel(4, 1_000)
        for _ in range(3):
            await sender.send(Parcel(size_bytes))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.wait_for_room)
            await wait_all_tasks_blocked()
            while receiver.fill()[0] > most:
                assert len(nursery.child_tasks) == 1
                receiver.receive_nowait()
                await wait_all_tasks_blocked()
            assert not nursery.child_tasks
