"""Serves an ASGI application on a bound socket so that no client can hold the service: hypercorn behind our own door.

hypercorn shields its sends from cancellation and gives them no deadline, so one client that does not read would outlast
any stop; and its limit on reading ends an event stream that is alive. So every connection passes through a `Client`:
its sends have a deadline, silence in both directions has an end, and there is a bounded number of them. One address
opens a bounded number in a time, and a connection carries one request, so that no client has the loop work for it
alone. HTTP/1.1 is all that is spoken: in HTTP/2 a client could hold up an answer without holding up a send.
"""

from __future__ import annotations

import logging
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from ingestor.core.rate_limit import RateLimit, RatePerKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from hypercorn.typing import ASGIFramework

MAX_CLIENTS: Final = 64
SEND_LIMIT_S: Final = 5.0  # one send, of at most some ten kilobytes
SILENCE_LIMIT_S: Final = 10.0  # nothing came and nothing went
HEADER_LIMIT_S: Final = 5.0  # from the beginning of a connection to the end of the head of its request
MAX_HEADER_BYTES: Final = 8_192
READ_BYTES: Final = 4_096  # a head is measured between reads, so it may be that much larger
SEND_BUFFER_BYTES: Final = 262_144  # what waits in the kernel for a client that does not read


class Limits(NamedTuple):
    """How many connections may be open, how many one address may open in a time, and how long a head may take."""

    clients: int = MAX_CLIENTS
    from_address: int = 200
    in_s: float = 4.0
    addresses: int = 256  # are remembered
    header_s: float = HEADER_LIMIT_S


LIMITS: Final = Limits()
ERRORS_TOLD: Final = 10  # in a minute: a stranger who finds out how an error comes about could fill the log
ACCEPT_ERRORS: Final = logging.getLogger("trio.serve_listeners")  # without files left, Trio says so ten times a second


class Client:
    """One connection, as hypercorn uses it. A send that takes too long closes it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self._stream = stream
        self._active_s = trio.current_time()
        self._is_ending = False

    async def send_all(self, data: bytes) -> None:
        """Send within the limit, which holds inside of hypercorn's shield too."""
        if self._is_ending:
            raise trio.BrokenResourceError("the connection is being closed")
        with trio.move_on_after(SEND_LIMIT_S) as limit:
            await self._stream.send_all(data)
        if limit.cancelled_caught:
            self.hang_up()
            raise trio.BrokenResourceError("the client does not read")
        self._active_s = trio.current_time()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive a little, for as long as something goes at least one way."""
        del max_bytes
        while (silent_at := self._active_s + SILENCE_LIMIT_S) > trio.current_time():
            with trio.move_on_at(silent_at):
                data = await self._stream.receive_some(READ_BYTES)
                self._active_s = trio.current_time()
                return data
        raise trio.BrokenResourceError("the client is silent")

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; at once, because Quart cancels whoever ends the answer to its request."""
        self._is_ending = True
        with trio.CancelScope(shield=True):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()

    def hang_up(self) -> None:
        """Close it at once; whatever waits for it fails."""
        self.socket.close()


class Seldom(logging.Filter):
    """Lets so many lines of a logger through in a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = RateLimit(ERRORS_TOLD, 60.0)

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether this line is let through."""
        now = record.created
        if self._limit.delay(now) > 0:
            return False
        self._limit.reserve(now)
        return True


@contextmanager
def told_seldom(logger: logging.Logger) -> Iterator[None]:
    """Let few lines of `logger` through meanwhile."""
    seldom = Seldom()
    logger.addFilter(seldom)
    try:
        yield
    finally:
        logger.removeFilter(seldom)


class Clients:
    """The connections that are open. The oldest gives way to the newest, so that a probe always gets in."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[Client, None] = {}

    def admit(self, client: Client) -> None:
        """Take a client in."""
        if len(self._open) >= self._most:
            oldest = next(iter(self._open))
            del self._open[oldest]  # at once: it takes a moment to leave, and the next one may be here before
            oldest.hang_up()
        self._open[client] = None

    def forget(self, client: Client) -> None:
        """Let go of a client that has left, perhaps because it had to give way."""
        self._open.pop(client, None)

    def hang_up(self) -> None:
        """Close all of them at once."""
        for client in self._open:
            client.hang_up()


class Http1(H11Protocol):
    """HTTP/1.1 and nothing else: who asks for another protocol is answered in this one."""

    async def _check_protocol(self, event: Any) -> None:
        """Stay with it."""

    async def _create_stream(self, request: Any) -> None:
        headers = [(name, value) for name, value in request.headers.raw_items() if name.lower() != b"upgrade"]
        version, method = request.http_version, request.method
        plain = type(request)(method=method, target=request.target, headers=headers, http_version=version)
        await super()._create_stream(plain)


class Http1Server(TCPServer):
    """hypercorn's server of one connection, held to one protocol."""

    @property
    def protocol(self) -> Any:
        """What is spoken."""
        return self._http1

    @protocol.setter
    def protocol(self, wrapper: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Take what would switch protocols, and put the one in its place."""
        self._http1 = Http1(
            wrapper.app,
            wrapper.config,
            wrapper.context,
            wrapper.task_group,
            wrapper.state,
            wrapper.ssl,
            wrapper.client,
            wrapper.server,
            wrapper.send,
        )


async def serve_app(
    app: ASGIFramework,
    bound: socket.socket,
    errors: logging.Logger,
    *,
    limits: Limits = LIMITS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Answer on `bound`, which is ours from here on, until cancelled; then every connection ends at once."""
    config = Config()
    config.errorlog = errors
    config.read_timeout = None  # `Client` knows better
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.include_server_header = False
    config.keep_alive_max_requests = 1
    config.keep_alive_timeout = limits.header_s
    context, clients = WorkerContext(max_requests=None), Clients(limits.clients)
    rate = RatePerKey(limits.from_address, limits.in_s, keys=limits.addresses)

    async def talk(stream: trio.SocketStream) -> None:
        if not rate.admits(address_of(stream), trio.current_time()):
            stream.socket.close()
            return
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        client = Client(stream)
        clients.admit(client)
        try:
            # It reads and writes nothing but what `Client` has, though it asks for a stream of TLS.
            await Http1Server(
                ASGIWrapper(app),
                config,
                context,
                ConnectionState({}),
                cast("trio.SSLStream[trio.SocketStream]", client),
            )
        except* Exception as group:  # noqa: BLE001 - what a client brings about ends its own connection and no other
            errors.warning("a connection failed", exc_info=group)
        finally:
            clients.forget(client)

    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
        await nursery.start(trio.serve_listeners, talk, [listener])
        task_status.started()
        with told_seldom(errors), told_seldom(ACCEPT_ERRORS):
            try:
                await trio.sleep_forever()
            finally:
                clients.hang_up()


def address_of(stream: trio.SocketStream) -> str:
    """Return who the peer is; one that has left already is nobody."""
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return ""
