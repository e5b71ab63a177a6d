"""No client can hold the service: not by silence, not by not reading, not by their number, not at a stop."""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from trio.testing import lockstep_stream_pair

from ingestor.http_server import ERRORS_TOLD, LIMITS, SEND_LIMIT_S, SILENCE_LIMIT_S, Client, Clients, Limits, serve_app

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


async def ignore(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer nothing."""
    await trio.sleep_forever()


async def start(nursery: trio.Nursery, app: Any, limits: Limits = LIMITS) -> int:
    """Serve `app`; return the port."""
    bound = socket.create_server(("127.0.0.1", 0))
    port: int = bound.getsockname()[1]

    async def serve(task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128 - `serve_app` calls it
        await serve_app(app, bound, LOGGER, limits=limits, task_status=task_status)

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
        port = await start(nursery, hello, LIMITS._replace(clients=2))
        idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        assert await idle[0].receive_some(10) == b""
        probe = await trio.open_tcp_stream("127.0.0.1", port)
        await probe.send_all(REQUEST)
        assert (await probe.receive_some(1_000)).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()
    for stream in (*idle, probe):
        await stream.aclose()


async def test_there_is_room_for_so_many_however_fast_they_come(autojump_clock: MockClock) -> None:
    """Each newcomer costs another one its place, also before those that were sent away have left."""
    clients, lines = Clients(2), [Line() for _ in range(6)]
    for line in lines:
        clients.admit(line.as_client())
    assert [line.socket.is_closed for line in lines] == [True] * 4 + [False] * 2


async def test_a_machine_without_files_left_is_told_of_seldom(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried ten times a second until there are some; ten tracebacks a second would hide why there are none."""

    async def accept(listener: trio.SocketListener) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(trio.SocketListener, "accept", accept)
    async with trio.open_nursery() as nursery:
        await start(nursery, hello)
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    assert len(caplog.records) == ERRORS_TOLD


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


async def exchange(port: int, *parts: bytes, host: str = "127.0.0.1") -> bytes:
    """Send `parts`, as far as they are taken, and return all that comes back until the connection is closed."""
    answer = b""
    async with await trio.open_tcp_stream("127.0.0.1", port, local_address=host) as stream:
        try:
            for part in parts:
                await stream.send_all(part)
            while data := await stream.receive_some():
                answer += data
        except trio.BrokenResourceError:
            pass  # it was closed with something of ours unread
    return answer


HEAD = b"GET / HTTP/1.1\r\nHost: here\r\n"


@pytest.mark.parametrize(
    "talk", [REQUEST * 50, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)], ids=["fifty requests", "HTTP/2"]
)
async def test_who_says_more_than_one_thing_is_answered_once_at_most(talk: bytes) -> None:
    """The connection ends with the first answer, or with what follows the request, whichever comes first."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, hello)
        answer = await exchange(port, talk)
        assert answer.count(b"hello") == answer.count(b"HTTP/1.1 ") <= 1
        assert (await exchange(port, REQUEST)).endswith(b"hello")
        nursery.cancel_scope.cancel()


async def test_errors_that_strangers_bring_about_are_told_seldom(caplog: pytest.LogCaptureFixture) -> None:
    """Each would be a traceback in the log, and they can bring about any number."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, fail)
        for _ in range(2 * ERRORS_TOLD):
            assert (await exchange(port, REQUEST)).startswith(b"HTTP/1.1 500 ")
        nursery.cancel_scope.cancel()
    assert len(caplog.records) == ERRORS_TOLD


@pytest.mark.parametrize(
    "request_of",
    [
        pytest.param(REQUEST, id="a request"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", id="an old one"),
        pytest.param(HEAD + b"Connection: keep-alive\r\n\r\n", id="one that would stay"),
        pytest.param(HEAD + b"Content-Length: 100\r\n\r\nabc", id="a body that does not come"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff\r\nabc", id="a chunk that does not come"),
        pytest.param(
            HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            id="one that asks for HTTP/2",
        ),
        pytest.param(
            HEAD + b"Connection: Upgrade\r\nupgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            id="one that asks for a WebSocket",
        ),
    ],
)
async def test_a_connection_carries_one_answer_in_the_one_protocol_and_ends(request_of: bytes) -> None:
    """Whatever it asked for; nothing of it is open afterwards, and no second request is looked at."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, hello)
        answer = await exchange(port, request_of)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/") == 1
        assert b"connection: close\r\n" in answer.lower()
        assert answer.endswith(b"hello")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"X: " + b"a" * 50_000 + b"\r\n\r\n",
        HEAD + b"X: " + b"a" * 50_000,
        HEAD + b"A: b\r\n" * 5_000 + b"\r\n",
        b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n",
        b"A" * 50_000,
    ],
    ids=["one long header", "one without an end", "many headers", "a long address", "a long method"],
)
async def test_a_head_is_bounded_however_it_arrives(head: bytes) -> None:
    """Also when all of it comes at once."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, ignore)
        assert (await exchange(port, head)).startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
        nursery.cancel_scope.cancel()


async def dribble(stream: trio.SocketStream, data: bytes, *, pause_s: float = 0.01) -> None:
    """Send byte by byte."""
    for byte in data:
        await stream.send_all(bytes([byte]))
        await trio.sleep(pause_s)


async def test_a_head_that_never_ends_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    """A byte now and then is no silence, and holds the place for the time of a head all the same; the log is quiet."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, ignore, LIMITS._replace(header_s=0.05))
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with pytest.raises(trio.BrokenResourceError):
                await dribble(stream, HEAD + b"X: " + b"y" * 10_000)
        nursery.cancel_scope.cancel()
    assert not caplog.records


async def test_a_body_without_an_end_is_not_read() -> None:
    """The answer does not wait for it, and what is sent after it meets a closed door."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, hello)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(HEAD + b"Content-Length: 1000000000000\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await dribble(stream, bytes(1_000_000), pause_s=0.0)
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_an_address_has_the_door_opened_so_often_and_others_are_served_meanwhile() -> None:
    """Whoever connects without end has the loop work for it no more than anybody."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, hello, LIMITS._replace(from_address=3, in_s=1_000.0))
        answers = [await exchange(port, REQUEST) for _ in range(5)]
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 3 + [b""] * 2
        assert (await exchange(port, REQUEST, host="127.0.0.2")).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        b"GET /\xff HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        HEAD + b"Host: there\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: \xb2\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 5_000 + b"\r\n",
        HEAD + b" folded: yes\r\n\x00: \x1b[2J\r\n\r\n",
        b"\x00" * 20_000,
        b"\r\n" * 20_000,
        b"",
    ],
)
async def test_garbage_ends_its_own_connection_and_tells_the_log_nothing(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger cannot fill the log, and the next one is answered."""
    async with trio.open_nursery() as nursery:
        port = await start(nursery, hello, LIMITS._replace(header_s=0.05))
        answer = await exchange(port, garbage)
        assert answer[:10] in {b"", b"HTTP/1.1 4", b"HTTP/1.1 5", b"HTTP/1.1 2"}
        with trio.fail_after(30):
            while not (await exchange(port, REQUEST)).startswith(b"HTTP/1.1 200"):
                pass  # a busy machine may take longer to say it than a head may take here
        nursery.cancel_scope.cancel()
    assert not caplog.records
