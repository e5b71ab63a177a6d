"""The venue in a box: WebSocket and REST on one loopback port, fed by a market model or a recording, broken on request.

The protocol is `protocol.py` and `rest.py`; this module moves bytes and time. Everything a connection gets goes through
one queue with one writer, so that data, replies and pings never interleave, and a whole turn leaves with one call.
"""

from __future__ import annotations

import math
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol
from urllib.parse import parse_qsl, urlsplit

import h11
import trio
import wsproto
from wsproto import events
from wsproto.utilities import RemoteProtocolError

from ingestor.local import faults
from ingestor.local.archive import ArchiveDesk
from ingestor.local.history import join_windows
from ingestor.local.ledger import Ledger
from ingestor.local.protocol import BadPathError, Close, Ping, Rules, VenueConnection, shutdown_notice
from ingestor.local.rest import Response, RestDesk, Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from ingestor.local.faults import Fault
    from ingestor.local.history import Message

_READ_BYTES: Final = 65_536
_FAREWELL_S: Final = 1.0  # how long a client may take to answer our close frame
_ROOM_BYTES: Final = 1 << 20  # a recording without pace goes on when no connection has more than this to read
_LARGEST_TARGET_BYTES: Final = 16_384  # longer URLs are refused (facts/binance.md §2)
_TEXT: Final = 0x81  # final fragment of a text message
_HEADERS: Final = [bytes((_TEXT, size)) for size in range(126)]


class VenueUrls(NamedTuple):
    """Where the venue listens."""

    websocket_url: str
    rest_url: str

    @property
    def archive_url(self) -> str:
        """Where the public archive is: its paths and those of REST do not meet, so one address serves both."""
        return self.rest_url


class Feed(Source, Protocol):
    """What the venue is fed by: a `Market` or a `Recording`."""

    @property
    def paced(self) -> bool:
        """Whether events are due at given times, or may come as fast as they are read."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        ...

    def watch(self, stream: str) -> None:
        """Give the events of `stream` from now on."""
        ...

    def advance(self, to_ms: int) -> list[Message]:
        """Return what happened until `to_ms`."""
        ...


class Venue:
    """One venue; `serve` it on a port, or `run` it and `handle` streams of your own.

    `ledger` holds what was produced and sent, `finished` is set when a recording was played and read to its end. With
    `windows_differ`, every second connection gets depth diffs of two windows in one: the same changes, cut differently
    on each connection, as seen on the venue (facts/binance.md §4).
    """

    def __init__(
        self,
        source: Feed,
        *,
        script: Sequence[Fault] = (),
        rules: Rules | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
        tick_s: float = 0.01,
        windows_differ: bool = False,
    ) -> None:
        self.rules = rules or Rules()
        self.desk = RestDesk(source, self.rules)
        self.archive = ArchiveDesk(source)
        self.ledger = Ledger()
        self.finished = trio.Event()
        self.messages_sent = 0
        self._source = source
        self._script = faults.Script(script)
        self._wall_ns = wall_ns
        self._tick_s = tick_s
        self._windows_differ = windows_differ
        self._wide = False
        self._sessions: dict[_Session, None] = {}
        self._listeners: dict[str, list[_Session]] = {}
        self._attempts: deque[float] = deque()
        self._first_subscribed_s = math.inf
        self._skips: dict[str, int] = {}
        self._repeats: dict[str, int] = {}
        self._fragments = 0
        self._refuse_mutely = False
        self._refuse_until_s = self._mute_until_s = self._rest_fails_until_s = -math.inf
        self._lag_until_s = self._stale_until_s = -math.inf

    @property
    def connections(self) -> int:
        """How many WebSocket connections are open."""
        return len(self._sessions)

    @property
    def subscribed(self) -> frozenset[str]:
        """All streams that anybody ever subscribed to; of others the ledger knows nothing."""
        return frozenset(self._listeners)

    @property
    def rest_is_mute(self) -> bool:
        """Whether REST requests are left without an answer now."""
        return trio.current_time() < self._mute_until_s

    async def serve(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        task_status: trio.TaskStatus[VenueUrls] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; starts with the URLs. `port` 0 takes a free one; OSError when it is taken."""
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, self.handle, port, host=host))
            bound = listeners[0].socket.getsockname()[1]
            nursery.start_soon(self.run)
            task_status.started(VenueUrls(f"ws://{host}:{bound}", f"http://{host}:{bound}"))

    async def run(self) -> NoReturn:
        """Let the venue live: produce, send, ping, fail, until cancelled."""
        while True:
            self._turn(trio.current_time())
            await trio.sleep(self._tick_s)

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one client on `stream` until either side hangs up."""
        async with stream:
            try:
                await self._serve_http(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
                return  # the client is gone, or it speaks something else

    # -- HTTP -----------------------------------------------------------------------------------------------------

    async def _serve_http(self, stream: trio.abc.Stream) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_TARGET_BYTES)
        while True:
            request = await _next_request(http, stream)
            if request is None:
                return
            target = request.target.decode("ascii")
            if _wants_upgrade(request):
                await self._serve_websocket(stream, http, request, target)
                return
            response = self._answer(target, request)
            if response is None:
                await _ignore(stream)
                return
            await stream.send_all(_encode(http, response))
            if http.our_state is not h11.DONE:
                return
            http.start_next_cycle()

    def _answer(self, target: str, request: h11.Request) -> Response | None:
        """Answer a request; None while REST is mute."""
        self._follow_faults(trio.current_time())
        try:
            parts = urlsplit(target)
        except ValueError as error:
            return Response(400, str(error).encode())
        if parts.path.startswith("/data/"):
            asked = next((value.decode("latin-1") for name, value in request.headers if name == b"range"), None)
            return self.archive.answer(parts.path, asked)
        if self.rest_is_mute:
            return None
        return self.desk.answer(parts.path, parse_qsl(parts.query, keep_blank_values=True), self._wall_ms())

    async def _serve_websocket(
        self, stream: trio.abc.Stream, http: h11.Connection, request: h11.Request, target: str
    ) -> None:
        now = trio.current_time()
        if now < self._refuse_until_s:
            if self._refuse_mutely:
                await _ignore(stream)
            return
        refusal = self._count_attempt(now)
        if refusal:
            await stream.send_all(_encode(http, refusal))
            return
        websocket = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        try:
            connection = VenueConnection(target, self.rules, now)
            websocket.initiate_upgrade_connection(list(request.headers), target)
        except (BadPathError, RemoteProtocolError) as error:
            await stream.send_all(_encode(http, Response(400, str(error).encode())))
            return
        session = _Session(stream, connection, websocket, self, wide_windows=self._wide)
        self._wide = self._windows_differ and not self._wide
        session.enqueue(websocket.send(events.AcceptConnection()))
        early, _ = http.trailing_data
        await self._attend(session, early)

    def _count_attempt(self, now: float) -> Response | None:
        attempts = self._attempts
        while attempts and attempts[0] <= now - self.rules.connect_window_s:
            attempts.popleft()
        attempts.append(now)
        return Response(429, b"Too many connection attempts") if len(attempts) > self.rules.connects else None

    # -- connections ----------------------------------------------------------------------------------------------

    async def _attend(self, session: _Session, early: bytes) -> None:
        self._sessions[session] = None
        self.relist(session)
        try:
            await session.run(early)
        finally:
            del self._sessions[session]
            session.connection.streams = {}
            self.relist(session)

    def relist(self, session: _Session) -> None:
        """Bring the index of listeners up to date with what `session` is subscribed to."""
        audible = session.connection.audible
        for stream in session.listed - audible:
            self._listeners[stream].remove(session)
        for stream in audible - session.listed:
            self._listeners.setdefault(stream, []).append(session)
            self._source.watch(stream)
            self._first_subscribed_s = min(self._first_subscribed_s, trio.current_time())
        session.listed = audible

    # -- time -----------------------------------------------------------------------------------------------------

    def _turn(self, now: float) -> None:
        self._follow_faults(now)
        if self._source.paced or self._has_room():
            self._dispatch(self._source.advance(self._wall_ms()))
        for session in self._sessions:
            session.tick(now)
        if self._source.finished and not any(session.held_bytes for session in self._sessions):
            self.finished.set()

    def _has_room(self) -> bool:
        return bool(self._sessions) and all(session.held_bytes < _ROOM_BYTES for session in self._sessions)

    def _dispatch(self, messages: Iterable[Message]) -> None:
        for message in messages:
            copies = self._copies(message.stream) if self._skips or self._repeats else 1
            listeners = self._listeners.get(message.stream) or ()
            sent = 0
            for session in listeners:
                for _ in range(copies):
                    sent += session.push(message, fragmented=self._fragments > 0)
            if self._fragments and sent:
                self._fragments -= 1
            self.messages_sent += sent
            self.ledger.note(message, sent)

    def _copies(self, stream: str) -> int:
        for counters, copies in ((self._skips, 0), (self._repeats, 2)):
            if left := counters.pop(stream, 0):
                if left > 1:
                    counters[stream] = left - 1
                return copies
        return 1

    def _wall_ms(self) -> int:
        return self._wall_ns() // 1_000_000

    # -- faults ---------------------------------------------------------------------------------------------------

    def _follow_faults(self, now: float) -> None:
        for fault in self._script.due(now - self._first_subscribed_s):
            self.suffer(fault)
        if now >= self._rest_fails_until_s:
            self.desk.trouble.answer = None
        if now >= self._lag_until_s:
            self.desk.trouble.lag_ms = 0
        if now >= self._stale_until_s:
            self.desk.trouble.stale_books = None

    def suffer(self, fault: Fault) -> None:  # noqa: C901, PLR0912 - a table: one case a fault
        """Let `fault` happen now, whatever its `at_s`."""
        now = trio.current_time()
        match fault:
            case faults.Disconnect(which=which):
                for session in list(self._sessions)[: 1 if which == "oldest" else None]:
                    session.cut()
            case faults.Refuse(for_s=for_s, mute=mute):
                self._refuse_until_s, self._refuse_mutely = now + for_s, mute
            case faults.Stall(for_s=for_s):
                for session in self._sessions:
                    session.stalled_until_s = now + for_s
            case faults.Deafen(stream=stream):
                for session in self._sessions:
                    session.connection.deafen(stream)
                    self.relist(session)
            case faults.Skip(stream=stream, messages=messages):
                self._skips[stream] = messages
            case faults.Repeat(stream=stream, messages=messages):
                self._repeats[stream] = messages
            case faults.Fragment(messages=messages):
                self._fragments = messages
            case faults.Inject(what=what):
                for session in self._sessions:
                    session.inject(faults.garbage(what), reserved_bits=what == "reserved_bits")
            case faults.Shutdown(after_s=after_s):
                for session in self._sessions:
                    session.announce_shutdown(self._wall_ms(), now + after_s)
            case faults.FailRest(for_s=for_s, what="mute"):
                self._mute_until_s = now + for_s
            case faults.FailRest(for_s=for_s, what=what):
                self._rest_fails_until_s = now + for_s
                self.desk.trouble.answer = faults.rest_answer(what, for_s, self._wall_ms())
            case faults.StaleBooks(for_s=for_s):
                self._stale_until_s = now + for_s
                self.desk.trouble.stale_books = {}
            case faults.DamageArchive(downloads=downloads):
                self.archive.damaged = downloads
            case faults.Lag(for_s=for_s, lag_ms=lag_ms):
                self._lag_until_s = now + for_s
                self.desk.trouble.lag_ms = lag_ms


class _Session:
    """One WebSocket client: a reader, a writer, and the queue between the venue and the writer."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        connection: VenueConnection,
        websocket: wsproto.WSConnection,
        venue: Venue,
        *,
        wide_windows: bool,
    ) -> None:
        self.connection = connection
        self.listed: frozenset[str] = frozenset()
        self.held_bytes = 0
        self.stalled_until_s = -math.inf
        self._stream = stream
        self._websocket = websocket
        self._venue = venue
        self._wide_windows = wide_windows
        self._open_windows: dict[str, Message] = {}
        self._queue: list[bytes] = []
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        self._closing = False
        self._close_at_s = math.inf
        self._text = ""

    async def run(self, early: bytes) -> None:
        """Talk until either side hangs up."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_broken, self._write)
                await self._until_broken(self._read, early)
                self._end()

    def cut(self) -> None:
        """Drop the connection without a word."""
        self._scope.cancel()

    def push(self, message: Message, *, fragmented: bool) -> int:
        """Queue an event; return how many were queued."""
        if self.stalled_until_s > trio.current_time():
            return 0
        if self._wide_windows and message.stream.endswith("@depth@100ms"):
            earlier = self._open_windows.pop(message.stream, None)
            if earlier is None or earlier.last + 1 != message.first:
                self._open_windows[message.stream] = message
                return 1  # it leaves with the next one
            message = join_windows(earlier, message)
        payload = self.connection.wrap(message)
        self.enqueue(_fragments(payload) if fragmented else _frame(payload))
        return 1

    def inject(self, payload: bytes, *, reserved_bits: bool) -> None:
        """Queue a text frame as it is, with reserved bits set on request."""
        frame = _frame(payload)
        self.enqueue(bytes((frame[0] | 0x70,)) + frame[1:] if reserved_bits else frame)

    def announce_shutdown(self, at_ms: int, close_at_s: float) -> None:
        """Tell the client that this server goes away at `close_at_s`."""
        self.enqueue(_frame(shutdown_notice(at_ms, combined=self.connection.combined)))
        self._close_at_s = close_at_s

    def tick(self, now: float) -> None:
        """Do what is due by itself."""
        if self.held_bytes > self._venue.rules.outbound_bytes:
            self.cut()  # a slow reader; the real one drops it as well
        elif now >= self._close_at_s:
            self._close_at_s = math.inf
            self._act([Close(1001, "server shutdown")])
        else:
            self._act(self.connection.tick(now))

    def enqueue(self, data: bytes) -> None:
        """Queue whole frames for the writer; a stalled or closing connection says nothing more."""
        if self._closing or self.stalled_until_s > trio.current_time():
            return
        self._queue.append(data)
        self.held_bytes += len(data)
        self._wake.set()

    def _act(self, actions: Iterable[bytes | Ping | Close]) -> None:
        for action in actions:
            if self._closing:
                return
            match action:
                case Ping(payload=payload):
                    self.enqueue(self._websocket.send(events.Ping(payload=payload)))
                case Close(code=code, reason=reason):
                    self.enqueue(self._websocket.send(events.CloseConnection(code=code, reason=reason)))
                    self._end()
                case reply:
                    self.enqueue(_frame(reply))

    def _end(self) -> None:
        """Let the writer finish, and give the client a moment to answer."""
        self._closing = True
        self._wake.set()
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + _FAREWELL_S)

    async def _until_broken(self, talk: Callable[..., Awaitable[None]], *args: bytes) -> None:
        """Do one half of the talking; a client that is gone ends both, and nothing else."""
        try:
            await talk(*args)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.cut()

    async def _write(self) -> None:
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._wake = trio.Event()
                await self._wake.wait()
            data, self._queue = b"".join(self._queue), []
            await self._stream.send_all(data)
            self.held_bytes -= len(data)

    async def _read(self, data: bytes) -> None:
        while True:
            self._websocket.receive_data(data)
            if not all(self._take(event) for event in self._websocket.events()):
                return
            data = bytes(await self._stream.receive_some(_READ_BYTES))
            if not data:
                return

    def _take(self, event: events.Event) -> bool:
        """Take what the client says; False when it hangs up or breaks the protocol."""
        if self._closing and not isinstance(event, events.CloseConnection):
            return True  # nothing is answered after our close frame
        now = trio.current_time()
        match event:
            case events.TextMessage(data=text, message_finished=finished):
                self._text += text
                if finished:
                    text, self._text = self._text, ""
                    self._act(self.connection.receive(text, now))
                    self._venue.relist(self)
            case events.Ping():
                self.enqueue(self._websocket.send(event.response()))
                self._act(self.connection.receive_ping(now))
            case events.Pong(payload=payload):
                self._act(self.connection.receive_pong(now, bytes(payload)))
            case events.CloseConnection():
                if not self._closing:
                    self.enqueue(self._websocket.send(event.response()))
                return False
            case _:
                pass  # binary messages mean nothing here
        return True


def _frame(payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return _HEADERS[size] + payload
    if size < 65_536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


def _fragments(payload: bytes) -> bytes:
    """Spell a message as three fragments with a ping between the first two; they may be cut inside a character."""
    third = len(payload) // 3
    first, second, last = (_frame(part) for part in (payload[:third], payload[third : 2 * third], payload[2 * third :]))
    return b"\x01" + first[1:] + b"\x89\x00" + b"\x00" + second[1:] + b"\x80" + last[1:]


async def _next_request(http: h11.Connection, stream: trio.abc.Stream) -> h11.Request | None:
    """Read one request; None when the client hung up."""
    request: h11.Request | None = None
    while True:  # noqa: ASYNC913 - ends with what was received, or waits for more
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage) or event is h11.PAUSED:
            return request
        elif isinstance(event, h11.ConnectionClosed):
            return None


def _wants_upgrade(request: h11.Request) -> bool:
    return any(name == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers)


def _encode(http: h11.Connection, response: Response) -> bytes:
    headers = [*response.headers, ("content-length", str(len(response.body)))]
    parts = (
        http.send(h11.Response(status_code=response.status, headers=headers)),
        http.send(h11.Data(data=response.body)),
        http.send(h11.EndOfMessage()),
    )
    return b"".join(part or b"" for part in parts)


async def _ignore(stream: trio.abc.Stream) -> None:
    """Say nothing until the client hangs up."""
    while await stream.receive_some(_READ_BYTES):
        pass
