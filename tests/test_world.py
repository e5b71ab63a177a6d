"""The real world that a service opens: what a stop waits for, and what it leaves to itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from ingestor.config import Config, Kinesis, Timeouts
from ingestor.core.model import PutEntry
from ingestor.world import open_world

if TYPE_CHECKING:
    import pytest


async def test_a_heartbeat_that_hangs_does_not_hold_up_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says stays true if it lands after all, so it is left to itself; a put of data is waited for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    asked = trio.Event()

    async def hang(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            asked.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, hang, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        timeouts = Timeouts(connect_s=1, read_s=1)
        kinesis = Kinesis(region="us-east-1", endpoint_url=f"http://127.0.0.1:{port}", timeouts=timeouts)
        world = open_world(Config(kinesis=kinesis))
        with trio.CancelScope() as stop:
            async with trio.open_nursery() as beating:
                beating.start_soon(world.heartbeat_sink.put, [PutEntry(b"a beat", "key", None)])
                await asked.wait()
                stop.cancel()
        assert stop.cancelled_caught
        nursery.cancel_scope.cancel()
