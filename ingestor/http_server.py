"""Serves an ASGI application on a bound socket so that no client can hold the service: hypercorn behind our own door.

hypercorn shields its sends from cancellation and gives them no deadline, so one client that does not read would outlast
any stop; and its limit on reading ends an event stream that is alive. So every connection passes through a `Client`:
its sends have a deadline, silence in both directions has an end, and there is a bounded number of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

if TYPE_CHECKING:
    import logging
    import socket
    from typing import NoReturn

    from hypercorn.typing import ASGIFramework

MAX_CLIENTS: Final = 64
SEND_LIMIT_S: Final = 5.0  # one send, of at most some ten kilobytes
SILENCE_LIMIT_S: Final = 10.0  # nothing came and nothing went
MAX_HEADER_BYTES: Final = 8_192


class Client:
    """One connection, as hypercorn uses it. A send that takes too long closes it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self._stream = stream
        self._active_s = trio.current_time()

    async def send_all(self, data: bytes) -> None:
        """Send within the limit, which holds inside of hypercorn's shield too."""
        with trio.move_on_after(SEND_LIMIT_S) as limit:
            await self._stream.send_all(data)
        if limit.cancelled_caught:
            self.hang_up()
            raise trio.BrokenResourceError("the client does not read")
        self._active_s = trio.current_time()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive, for as long as something goes at least one way."""
        while (silent_at := self._active_s + SILENCE_LIMIT_S) > trio.current_time():
            with trio.move_on_at(silent_at):
                data = await self._stream.receive_some(max_bytes)
                self._active_s = trio.current_time()
                return data
        raise trio.BrokenResourceError("the client is silent")

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()

    def hang_up(self) -> None:
        """Close it at once; whatever waits for it fails."""
        self.socket.close()


class Clients:
    """The connections that are open. The oldest gives way to the newest, so that a probe always gets in."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[Client, None] = {}

    def admit(self, client: Client) -> None:
        """Take a client in."""
        if len(self._open) >= self._most:
            next(iter(self._open)).hang_up()
        self._open[client] = None

    def forget(self, client: Client) -> None:
        """Let go of a client that has left."""
        del self._open[client]

    def hang_up(self) -> None:
        """Close all of them at once."""
        for client in self._open:
            client.hang_up()


async def serve_app(
    app: ASGIFramework,
    bound: socket.socket,
    errors: logging.Logger,
    *,
    most_clients: int = MAX_CLIENTS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Answer on `bound`, which is ours from here on, until cancelled; then every connection ends at once."""
    config = Config()
    config.errorlog = errors
    config.read_timeout = None  # `Client` knows better
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.h2_max_header_list_size = MAX_HEADER_BYTES
    config.include_server_header = False
    context, clients = WorkerContext(max_requests=None), Clients(most_clients)

    async def talk(stream: trio.SocketStream) -> None:
        client = Client(stream)
        clients.admit(client)
        try:
            # It reads and writes nothing but what `Client` has, though it asks for a stream of TLS.
            await TCPServer(
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
        try:
            await trio.sleep_forever()
        finally:
            clients.hang_up()
