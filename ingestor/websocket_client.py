"""The live feed: one supervised task per connection keeps its subscriptions flowing, whatever the network does.

Messages come in by the receive lane and leave through `consume`, a list at a time, in order and each exactly once. What
the outside can do to a connection becomes `DisconnectedError`, is logged and counted, and the connection is opened
again, later each time; a bug ends the process. Nothing is dropped here: a slow consumer stalls the reader.
"""

from __future__ import annotations

import math
import ssl
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import h11
import structlog
import trio
import trio_websocket
import wsproto.utilities
from wsproto.frame_protocol import CloseReason

from ingestor.core.binance import Ack, ServerShutdown, StreamError
from ingestor.core.errors import DisconnectedError
from ingestor.core.health import ConnectionFact
from ingestor.core.rate_limit import control_pace
from ingestor.core.subscription import Subscribing
from ingestor.frames import HandshakeRefusedError, ReceiveLane
from ingestor.tls import TlsStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from typing import Final, NoReturn, TypeAlias

    from ingestor.core.backoff import Backoff
    from ingestor.core.binance import Control
    from ingestor.core.health import ConnectionState, HealthBoard
    from ingestor.core.model import Subscription
    from ingestor.core.rate_limit import RateLimit
    from ingestor.metrics import Metrics

    Connect: TypeAlias = "Callable[[], Awaitable[trio.abc.Stream]]"
    Consume: TypeAlias = "Callable[[list[bytes], float], Awaitable[Sequence[Control]]]"

log = structlog.get_logger()

COMBINED_PATH: Final = "/stream"  # every event says which stream it belongs to (facts/binance.md §2)

# How connecting fails; trio turns what an open socket does into the same errors.
CONNECT_ERRORS: Final = (OSError, trio.BrokenResourceError)  # ssl.SSLError is an OSError

# How trio-websocket reports the end of a connection. wsproto and h11 complain through their own errors when the peer
# breaks the handshake in a way that trio-websocket does not expect, or when a frame crosses a close (its issue 184).
CONNECTION_ERRORS: Final = (
    trio_websocket.HandshakeError,
    trio_websocket.ConnectionClosed,
    wsproto.utilities.ProtocolError,
    h11.ProtocolError,
)

# What the lane raises when the connection is at fault; anything else comes from the consumer.
LANE_LOSSES: Final = (DisconnectedError, trio.BrokenResourceError, trio.ClosedResourceError)

# A server that announces its end right after every connect must not use up the connects of all the others.
SHUTDOWN_STORM_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class VenueUrl:
    """The parts of a `ws://` or `wss://` URL that a connection needs; `path` already names the combined mode."""

    host: str
    port: int
    is_tls: bool
    path: str

    @property
    def host_header(self) -> str:
        """The `Host:` of the handshake, without the port where it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


def parse_url(url: str) -> VenueUrl:
    """Take a WebSocket base URL such as `wss://stream.binance.com:9443` apart; ValueError if it is none."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname:
        raise ValueError(f"not a ws:// or wss:// URL: {url!r}")
    is_tls = parts.scheme == "wss"
    return VenueUrl(
        parts.hostname, parts.port or (443 if is_tls else 80), is_tls, parts.path.rstrip("/") + COMBINED_PATH
    )


@cache
def default_context() -> ssl.SSLContext:
    """Return what verifies the venue by the system's authorities; made once, since reading those takes time."""
    return ssl.create_default_context()


async def open_stream(url: VenueUrl, ssl_context: ssl.SSLContext | None = None) -> trio.abc.Stream:
    """Connect to the first address of the host that answers; with TLS, verified against the host's name, for `wss`."""
    stream = await trio.open_tcp_stream(url.host, url.port)
    if not url.is_tls:
        return stream
    secured = TlsStream(stream, ssl_context or default_context(), server_hostname=url.host)
    try:
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """How long each step may take, in seconds. Silence means not one byte, and the venue pings every 20 s."""

    connect_s: float = 10.0
    acknowledge_s: float = 10.0
    silence_s: float = 30.0
    farewell_s: float = 3.0  # for a hand-over that a stop finds under way


DEFAULT_LIMITS: Final = FeedLimits()


class Farewell:
    """Lets a hand-over that has begun be finished after a stop, but not for ever.

    A consumer that is cancelled half-way has noted ids as seen which then never arrive. So a hand-over is shielded,
    from the loss of its connection without limit, from a stop for `grace_s`.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._deadline = math.inf
        self._scopes: set[trio.CancelScope] = set()

    @contextmanager
    def protect(self) -> Iterator[trio.CancelScope]:
        """Shield what is awaited within."""
        with trio.CancelScope(shield=True, deadline=self._deadline) as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.remove(scope)

    async def watch(self) -> NoReturn:
        """Wait for the stop, which comes as a cancellation, and set the limit from there."""
        try:
            await trio.sleep_forever()
        finally:
            self._deadline = trio.current_time() + self._grace_s
            for scope in self._scopes:
                scope.deadline = self._deadline


class Feed:
    """One open connection, from the first byte to its loss; it never lives again."""

    def __init__(
        self,
        name: str,
        subscriptions: Sequence[Subscription],
        consume: Consume,
        *,
        limits: FeedLimits,
        farewell: Farewell,
        fact: ConnectionFact,
        metrics: Metrics,
    ) -> None:
        self.subscribing = Subscribing(subscriptions)
        self.had_data = False
        self._name = name
        self._consume = consume
        self._limits = limits
        self._farewell = farewell
        self._fact = fact
        self._metrics = metrics
        self._answered = trio.Event()
        self._shutdown_announced = trio.Event()

    async def run(self, connect: Connect, url: VenueUrl) -> None:
        """Stream until the venue announces that it will go away; DisconnectedError for every other end.

        Whatever ends it, messages that were read are handed on before this returns or raises.
        """
        enter(self._fact, "connecting")
        lane = ReceiveLane(await self._open(connect), self._hand_over)
        losses: list[BaseException] = []
        try:
            await self._live(lane, url)
        except* (DisconnectedError, *CONNECTION_ERRORS) as group:
            losses = leaves(group)
        finally:
            # Without a close handshake: its answer would have to be waited for, and proves nothing to either side.
            with trio.move_on_after(self._limits.farewell_s, shield=True):
                await trio.aclose_forcefully(lane)
                await self._hand_over(*lane.take_pending())  # shields itself, for as long as is right
        if lane.error is not None:
            if not isinstance(lane.error, LANE_LOSSES):
                raise lane.error  # a bug of the consumer, which trio-websocket has lost
            losses.append(lane.error)
        if not self._shutdown_announced.is_set():
            raise clearest(losses)

    async def _open(self, connect: Connect) -> trio.abc.Stream:
        try:
            with trio.fail_after(self._limits.connect_s):
                return await connect()
        except trio.TooSlowError:
            raise DisconnectedError(f"no connection within {self._limits.connect_s:g} s") from None
        except CONNECT_ERRORS as error:
            raise DisconnectedError(f"no connection: {error.__cause__ or error}") from error

    async def _live(self, lane: ReceiveLane, url: VenueUrl) -> None:
        async with trio.open_nursery() as nursery:
            socket = await self._shake_hands(nursery, lane, url)
            enter(self._fact, "subscribing")
            with self._metrics.connections_open.track_inprogress():
                nursery.start_soon(self._watch_silence, lane)
                nursery.start_soon(self._watch_close, socket)
                nursery.start_soon(self._subscribe, socket, lane)
                await self._shutdown_announced.wait()
            nursery.cancel_scope.cancel()

    async def _shake_hands(
        self, nursery: trio.Nursery, lane: ReceiveLane, url: VenueUrl
    ) -> trio_websocket.WebSocketConnection:
        stream: Any = lane  # any stream will do, but the annotation over there is narrower
        with trio.move_on_after(self._limits.connect_s):
            return await trio_websocket.wrap_client_stream(nursery, stream, url.host_header, url.path)
        raise DisconnectedError(f"no handshake within {self._limits.connect_s:g} s")

    async def _watch_silence(self, lane: ReceiveLane) -> NoReturn:
        limit_s = self._limits.silence_s
        while (silent_s := lane.silent_s(trio.current_time())) < limit_s:  # noqa: ASYNC110 - time is awaited
            await trio.sleep(limit_s - silent_s)
        raise DisconnectedError(f"silent for {limit_s:g} s")

    async def _watch_close(self, socket: trio_websocket.WebSocketConnection) -> NoReturn:
        """Wait for the end: ConnectionClosed is raised by it. No message comes, because the lane keeps them all."""
        await socket.get_message()
        raise AssertionError("a data message went past the receive lane")

    async def _subscribe(self, socket: trio_websocket.WebSocketConnection, lane: ReceiveLane) -> None:
        """Ask for everything, at the pace the venue allows, and see that every message is answered in time."""
        pace = control_pace()
        while not self.subscribing.is_settled:
            request = self.subscribing.next_request()
            if request is None:
                await self._wait_answer(lane)
            else:
                await trio.sleep(pace.reserve(trio.current_time()))
                await socket.send_message(request.message)

    async def _wait_answer(self, lane: ReceiveLane) -> None:
        """Wait for any answer; while the consumer is full the answer may lie unread, so that time does not count."""
        self._answered = trio.Event()
        due_s = lane.listened_s(trio.current_time()) + self._limits.acknowledge_s
        while (left_s := due_s - lane.listened_s(trio.current_time())) > 0:
            with trio.move_on_after(left_s):
                await self._answered.wait()
                return
        raise DisconnectedError(f"no answer to SUBSCRIBE within {self._limits.acknowledge_s:g} s")

    async def _hand_over(self, messages: list[bytes], received_s: float) -> None:
        if not messages:
            return
        controls: Sequence[Control] = ()
        with self._farewell.protect() as scope:
            controls = await self._consume(messages, received_s)
        if scope.cancelled_caught:
            self._metrics.abandoned.labels(reason="stop").inc(len(messages))
            log.warning("messages_abandoned", connection=self._name, messages=len(messages))
        self._fact.last_message_s = received_s
        self.had_data = self.had_data or len(messages) > len(controls)
        for control in controls:
            self._act_on(control)

    def _act_on(self, control: Control) -> None:
        match control:
            case Ack(id=request_id):
                self.subscribing.acknowledge(request_id)
            case StreamError(code=code, text=text, id=request_id):
                given_up = [subscription.stream_name for subscription in self.subscribing.refuse(request_id)]
                # No name to give up: it was a message around a bad name, or an answer to nothing of ours.
                report = log.error if given_up else log.info
                report("subscription_refused", connection=self._name, code=code, text=text, given_up=given_up)
            case ServerShutdown():
                self._shutdown_announced.set()
        self._answered.set()
        self._fact.acknowledged = self.subscribing.acknowledged
        if self.subscribing.is_settled and self._fact.state != "live":
            enter(self._fact, "live")
            log.info("subscribed", connection=self._name, subscriptions=self.subscribing.acknowledged)


def enter(fact: ConnectionFact, state: ConnectionState) -> None:
    """Note that the connection is in another state from now on."""
    fact.state, fact.since_s = state, trio.current_time()
    if state != "live":
        fact.acknowledged = 0


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the plain errors of a group of groups, in order."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def clearest(losses: Sequence[BaseException]) -> DisconnectedError:
    """Name one loss for several: what we noticed ourselves is the clearest, the others often only follow from it."""
    for loss in losses:
        if isinstance(loss, DisconnectedError):
            return loss
    error = DisconnectedError(describe(losses[0]))
    error.__cause__ = losses[0]
    return error


def describe(loss: BaseException) -> str:
    """Say in words what an error of trio-websocket means."""
    if not isinstance(loss, trio_websocket.ConnectionClosed):
        return f"{type(loss).__name__}: {loss}"
    if loss.reason is None or loss.reason.code == CloseReason.ABNORMAL_CLOSURE:
        return "connection lost without a close frame"
    return f"closed by the venue: {loss.reason.code} {loss.reason.reason or loss.reason.name}"


class Connection:
    """One connection that is opened again whenever it is lost."""

    def __init__(
        self,
        name: str,
        subscriptions: Sequence[Subscription],
        consume: Consume,
        *,
        url: VenueUrl,
        connect: Connect,
        backoff: Backoff,
        connects: RateLimit,
        board: HealthBoard,
        metrics: Metrics,
        limits: FeedLimits = DEFAULT_LIMITS,
    ) -> None:
        self.name = name
        self.subscriptions = tuple(subscriptions)
        self._url = url
        self._connect = connect
        self._backoff = backoff
        self._connects = connects
        self._metrics = metrics
        self._farewell = Farewell(limits.farewell_s)
        self._fact = board.connections[name] = ConnectionFact(subscriptions=len(self.subscriptions))
        self._last_shutdown_s = -math.inf
        self._new_feed = partial(
            Feed, consume=consume, limits=limits, farewell=self._farewell, fact=self._fact, metrics=metrics
        )

    async def run(self) -> None:
        """Stay subscribed until cancelled; reconnect after every loss, slower each time."""
        enter(self._fact, "connecting")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._farewell.watch)
            while True:
                await trio.sleep(self._connects.reserve(trio.current_time()))
                await trio.sleep(await self._live_once())
                self._metrics.reconnections.inc()

    async def _live_once(self) -> float:
        """Live one life; return the seconds to wait before the next one."""
        feed = self._new_feed(self.name, self.subscriptions)
        loss: DisconnectedError | None = None
        try:
            await feed.run(self._connect, self._url)
        except DisconnectedError as error:
            loss = error
        finally:
            enter(self._fact, "down")
        if feed.had_data:
            self._backoff.reset()  # data, not a handshake, proves the link healthy
        delay_s = self._delay_after(loss)
        cause = "server shutdown announced" if loss is None else str(loss)
        log.warning("connection_lost", connection=self.name, cause=cause, delay_s=round(delay_s, 3))
        return delay_s

    def _delay_after(self, loss: DisconnectedError | None) -> float:
        """Return the seconds to wait: none after an announced shutdown, and never less than the venue asked for."""
        if loss is None:
            previous_s, self._last_shutdown_s = self._last_shutdown_s, trio.current_time()
            if self._last_shutdown_s - previous_s > SHUTDOWN_STORM_S:
                return 0.0
        delay_s = self._backoff.next_delay()
        return max(delay_s, loss.retry_after_s) if isinstance(loss, HandshakeRefusedError) else delay_s
