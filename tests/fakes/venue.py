"""A scripted WebSocket venue, in memory or on real sockets: each connection plays the next script."""

from __future__ import annotations

import json
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
import trio.testing
from wsproto.utilities import generate_accept_token

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable

    Script = Callable[["VenueSocket"], Awaitable[None]]

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A


def frame(payload: bytes, first: int = TEXT) -> bytes:
    """One unmasked frame as a server sends it; `first` is its first byte: FIN bit, reserved bits, opcode."""
    if len(payload) < 126:
        return bytes((first, len(payload))) + payload
    if len(payload) < 0x10000:
        return struct.pack("!BBH", first, 126, len(payload)) + payload
    return struct.pack("!BBQ", first, 127, len(payload)) + payload


class VenueSocket:
    """The venue's end of one connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.requested_path = ""
        self.requested_host = ""
        self.pongs: list[bytes] = []
        self.closed_with: bytes | None = None
        self._buffer = bytearray()

    async def read_head(self) -> bytes:
        """Wait for the client's handshake and return its key."""
        while b"\r\n\r\n" not in self._buffer:
            await self._fill()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        request_line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.requested_path, self.requested_host = request_line.split()[1], headers["host"]
        return headers["sec-websocket-key"].encode()

    async def accept(self, *, along: bytes = b"") -> None:
        """Finish the handshake; `along` travels in the same segment."""
        token = generate_accept_token(await self.read_head())
        head = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        )
        await self.send(head + token + b"\r\n\r\n" + along)

    async def send(self, data: bytes) -> None:
        """Send raw bytes."""
        await self.stream.send_all(data)

    async def send_text(self, *messages: str | bytes) -> None:
        """Send messages, a frame each, in one segment."""
        await self.send(b"".join(frame(text.encode() if isinstance(text, str) else text) for text in messages))

    async def read_frame(self) -> tuple[int, bytes]:
        """Wait for the client's next frame; return its first byte and its unmasked payload."""
        await self._fill_to(2)
        first, length = self._buffer[0], self._buffer[1] & 0x7F
        start = 2
        if length >= 126:
            start += 2 if length == 126 else 8
            await self._fill_to(start)
            length = int.from_bytes(self._buffer[2:start])
        await self._fill_to(start + 4 + length)
        mask = self._buffer[start : start + 4]
        masked = self._buffer[start + 4 : start + 4 + length]
        del self._buffer[: start + 4 + length]
        return first, bytes(byte ^ mask[index % 4] for index, byte in enumerate(masked))

    async def read_request(self) -> dict[str, Any]:
        """Wait for the next JSON message, noting pongs and close frames on the way."""
        while True:
            first, payload = await self.read_frame()
            if first == TEXT:
                request: dict[str, Any] = json.loads(payload)
                return request
            if first == PONG:
                self.pongs.append(payload)
            else:
                self.closed_with = payload

    async def grant(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait for `count` requests and acknowledge each; return them."""
        requests = []
        for _ in range(count):
            requests.append(await self.read_request())
            await self.send_text(json.dumps({"result": None, "id": requests[-1]["id"]}))
        return requests

    async def stay(self) -> None:
        """Keep the connection open and read what comes until the client leaves."""
        with suppress(trio.EndOfChannel):
            while True:
                await self.read_request()

    async def _fill_to(self, size: int) -> None:
        while len(self._buffer) < size:
            await self._fill()

    async def _fill(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise trio.EndOfChannel
        self._buffer += data


class FakeVenue:
    """Plays one script per connection, in order; an exception in place of a script is raised by the connect.

    `attempts` are the times of the connects, `sockets` the venue's ends. A connection is cut when its script is over.
    """

    def __init__(self, nursery: trio.Nursery, scripts: Iterable[Script | Exception]) -> None:
        self.attempts: list[float] = []
        self.sockets: list[VenueSocket] = []
        self._nursery = nursery
        self._scripts = deque(scripts)

    async def connect(self) -> trio.abc.Stream:
        """Connect through memory; never returns when the scripts are used up."""
        self.attempts.append(trio.current_time())
        script = self._next_script()
        if isinstance(script, Exception):
            await trio.lowlevel.checkpoint()
            raise script
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._play, script, theirs)
        return ours

    async def serve(self, ssl_context: ssl.SSLContext | None = None) -> int:
        """Serve the scripts on a loopback port, with TLS if a context is given; return the port."""
        if ssl_context is None:
            listeners: list[Any] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            socket = listeners[0].socket
        else:
            listeners = list(
                await trio.open_ssl_over_tcp_listeners(0, ssl_context, host="127.0.0.1", https_compatible=True)
            )
            socket = listeners[0].transport_listener.socket
        self._nursery.start_soon(trio.serve_listeners, self._accept, listeners)
        port: int = socket.getsockname()[1]
        return port

    async def _accept(self, stream: trio.abc.Stream) -> None:
        self.attempts.append(trio.current_time())
        script = self._next_script()
        if isinstance(script, Exception):
            raise script
        await self._play(script, stream)

    def _next_script(self) -> Script | Exception:
        return self._scripts.popleft() if self._scripts else never

    async def _play(self, script: Script, stream: trio.abc.Stream) -> None:
        socket = VenueSocket(stream)
        self.sockets.append(socket)
        # An escaping error would stop the whole server; the client leaving early is none.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
            await script(socket)
        await trio.aclose_forcefully(stream)


async def never(socket: VenueSocket) -> None:
    """Accept the connection and say nothing, for ever."""
    del socket
    await trio.sleep_forever()


async def polite(socket: VenueSocket) -> None:
    """Shake hands, acknowledge one request and stay."""
    await socket.accept()
    await socket.grant()
    await socket.stay()
