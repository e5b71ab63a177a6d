"""No client can hold the service: not by silence, not by not reading, not by their number, not at a stop."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from trio.testing import lockstep_stream_pair

from ingestor.http_server import SEND_LIMIT_S, SILENCE_LIMIT_S, Client, serve_app

if TYPE_CHECKING:
    from trio.testing import MockClock

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
LOGGER = logging.getLogger("test_http_server")
FLOOD = b"x" * 50_000_000  # more than the buffers of both ends hold


class FakeSocket:
    """Remembers that it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Line:
    """A stream between two ends in memory, on which a send waits for its reader."""

    def __init__(self) -> None:
        self.near, self.far = lockstep_stream_pair()
        self.socket = FakeSocket()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.near, name)

    def as_client(self) -> Client:
        return Client(cast("trio.SocketStream", self))


async def test_a_send_that_nobody_reads_ends_with_the_connection(autojump_clock: MockClock) -> None:
    """Inside of a shield too, which is where hypercorn sends."""
    line = Line()
    client = line.as_client()
    with trio.CancelScope(shield=True), pytest.raises(trio.BrokenResourceError, match="does not read"):
        await client.send_all(b"news")
    assert trio.current_time() == SEND_LIMIT_S
    assert line.socket.is_closed


async def test_silence_in_both_directions_ends(autojump_clock: MockClock) -> None:
    """A client that opens a connection and says nothing is cut."""
    client = Line().as_client()
    with pytest.raises(trio.BrokenResourceError, match="silent"):
        await client.receive_some(10)
    assert trio.current_time() == SILENCE_LIMIT_S


async def test_who_is_sent_to_need_not_speak(autojump_clock: MockClock) -> None:
    """A viewer of the event stream says nothing for hours; it is cut only when the stream is silent as well."""
    line = Line()
    client = line.as_client()

    async def tell() -> None:
        for _ in range(100):
            await client.send_all(b"news")
            await trio.sleep(1)

    async def read() -> None:
        while True:
            await line.far.receive_some(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        nursery.start_soon(read)
        with pytest.raises(trio.BrokenResourceError, match="silent"):
            await client.receive_some(10)
        assert trio.current_time() == 99 + SILENCE_LIMIT_S
        nursery.cancel_scope.cancel()


async def hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer anything."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def flood(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with more than the buffers hold."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": FLOOD})


async def fail(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Break."""
    raise ZeroDivisionError


async def start(nursery: trio.Nursery, app: Any, most_clients: int = 8) -> int:
    """Serve `app`; return the port."""
    bound = socket.create_server(("127.0.0.1", 0))
    port: int = bound.getsockname()[1]

    async def serve(task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128 - `serve_app` calls it
        await serve_app(app, bound, LOGGER, most_clients=most_clients, task_status=task_status)

    await nursery.start(serve)
    return port


async def test_a_stop_does_not_wait_for_a_client_that_does_not_read() -> None:
    """The answer is stuck in a shielded send; cancelled, the server is gone at once."""
    with trio.fail_after(SEND_LIMIT_S / 2):
        async with trio.open_nursery() as nursery:
            port = await start(nursery, flood)
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(REQUEST)
            assert await stream.receive_some(1_000)
            nursery.cancel_scope.cancel()
    await stream.aclose()


async def test_the_oldest_connection_gives_way_to_the_newest() -> None:
    """Whoever takes all places cannot keep a probe out."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, hello, most_clients=2)
        idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        assert await idle[0].receive_some(10) == b""
        probe = await trio.open_tcp_stream("127.0.0.1", port)
        await probe.send_all(REQUEST)
        assert (await probe.receive_some(1_000)).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()
    for stream in (*idle, probe):
        await stream.aclose()


async def test_what_fails_for_one_client_does_not_end_the_server() -> None:
    """The next one is answered."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, fail)
        for _ in range(2):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(REQUEST)
            assert (await stream.receive_some(1_000)).startswith(b"HTTP/1.1 500")
            await stream.aclose()
        nursery.cancel_scope.cancel()
