"""The live feed: one supervised task per connection keeps its subscriptions flowing, whatever the network does.

Messages come in by the receive lane and leave through the door of the line, a list at a time, in order and each exactly
once. What the outside can do to a connection becomes `DisconnectedError`, is logged and counted, and the connection is
opened again, later each time; a bug ends the process. Nothing is dropped here: a slow consumer stalls the reader.

A connection whose end is foreseen (its age, an announced shutdown, streams that are dead on it) is replaced before it
is closed, so that nothing is missing in between. What a connection carries may change while it lives; what stays of it
is not touched by that.
"""

from __future__ import annotations

import math
import ssl
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import h11
import structlog
import trio
import trio_websocket
import wsproto.utilities
from wsproto.frame_protocol import CloseReason

from ingestor.core.binance import Ack, ServerShutdown, StreamError
from ingestor.core.errors import DisconnectedError
from ingestor.core.health import ConnectionFact
from ingestor.core.rate_limit import RateLimit, control_pace
from ingestor.core.rollover import ROLLOVER_PACE_S, Overlap, lifetime_s
from ingestor.core.subscription import Subscribing
from ingestor.frames import HandshakeRefusedError, ReceiveLane
from ingestor.tls import TlsStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from random import Random
    from typing import Final, NoReturn, TypeAlias

    from ingestor.core.backoff import Backoff
    from ingestor.core.binance import Control
    from ingestor.core.health import HealthBoard
    from ingestor.core.intake import Inlet
    from ingestor.core.model import Subscription
    from ingestor.metrics import Metrics

    Connect: TypeAlias = "Callable[[], Awaitable[trio.abc.Stream]]"

log = structlog.get_logger()

RAW_PATH: Final = "/ws"
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

LEAST_SLEEP_S: Final = 0.001
REFUSALS_TOLD: Final = 20  # of one feed; who answers what was not asked would fill the log
OVERLAP_LOOK_S: Final = 0.1  # how often two feeds that overlap are compared

SHUTDOWN: Final = "server shutdown announced"
AGE: Final = "age"


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
    """Take a WebSocket base URL such as `wss://stream.binance.com:9443` apart; ValueError if it is none.

    The venue's manual writes it with `/ws` or `/stream` behind it; which of them is asked for is ours to say.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname:
        raise ValueError(f"not a ws:// or wss:// URL: {url!r}")
    is_tls = parts.scheme == "wss"
    base = parts.path.rstrip("/").removesuffix(RAW_PATH).removesuffix(COMBINED_PATH).rstrip("/")
    return VenueUrl(parts.hostname, parts.port or (443 if is_tls else 80), is_tls, base + COMBINED_PATH)


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
    close_s: float = 1.0  # for the venue's answer to our close frame
    rollover_after_s: float = 82_800.0


DEFAULT_LIMITS: Final = FeedLimits()


class Door(Protocol):
    """The way into the line, for messages of any number of feeds."""

    def open(self, subscriptions: Sequence[Subscription]) -> Inlet:
        """Let one more feed in."""
        ...

    def join(self, inlet: Inlet, subscriptions: Iterable[Subscription]) -> None:
        """Have a feed carry `subscriptions` too, those that it does not carry already."""
        ...

    async def consume(self, inlet: Inlet, messages: list[bytes], received_s: float) -> Sequence[Control]:
        """Take what was read at once; return the control messages among it."""
        ...

    async def leave(self, inlet: Inlet, subscriptions: Iterable[Subscription]) -> None:
        """Have a feed carry `subscriptions` no longer, after its last messages of them."""
        ...


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
    """One open connection, from the first byte to its end; it never lives again.

    `inlet` is there once the handshake is done. `changed` is set when it `has_ended` or when somebody wants it
    replaced, for the reason `to_replace`; whoever owns it decides what follows.
    """

    def __init__(
        self,
        name: str,
        subscriptions: Sequence[Subscription],
        door: Door,
        *,
        limits: FeedLimits,
        farewell: Farewell,
        fact: ConnectionFact,
        metrics: Metrics,
        lifetime_s: float,
    ) -> None:
        self.subscriptions = tuple(subscriptions)
        self.subscribing = Subscribing(subscriptions)
        self.fact = fact
        self.inlet: Inlet | None = None
        self.had_data = False
        self.ended = trio.Event()
        self.loss: DisconnectedError | None = None
        self.to_replace: str | None = None
        self.changed = trio.Event()
        self._name = name
        self._door = door
        self._limits = limits
        self._farewell = farewell
        self._metrics = metrics
        self._lifetime_s = lifetime_s
        self._refusals = 0
        self._answered = trio.Event()
        self._asked_again = trio.Event()
        self._retired = trio.Event()
        self._opening = trio.CancelScope()
        self._lane: ReceiveLane | None = None

    async def run(self, connect: Connect, url: VenueUrl) -> None:
        """Stream until it is retired or lost, which is noted as `loss`.

        Whatever ends it, messages that were read are handed on before this returns.
        """
        try:
            with self._opening:
                await self._run(connect, url)
        except DisconnectedError as loss:
            self.loss = loss
        finally:
            self.fact.enter("down", trio.current_time())
        self.ended.set()
        self.changed.set()

    @property
    def has_ended(self) -> bool:
        """Whether it is closed, and all that it brought has been handed on."""
        return self.ended.is_set()

    @property
    def is_live(self) -> bool:
        """Whether it is open, subscribed to everything, and not on its way out."""
        return self.fact.state == "live" and self.to_replace is None

    def listened_s(self, now: float) -> float:
        """Read a clock that stands still while the line is full, because nothing is read then."""
        return now if self._lane is None else self._lane.listened_s(now)

    def replace(self, reason: str) -> None:
        """Ask for another feed to take the place of this one."""
        self.to_replace = self.to_replace or reason
        self.changed.set()

    def retire(self) -> None:
        """Close it, as soon as it is open: another one carries everything, or there is nothing left to carry."""
        self._retired.set()

    def change(self, subscriptions: Sequence[Subscription]) -> None:
        """Carry `subscriptions` from now on; what stays of them is not touched."""
        added = set(subscriptions).difference(self.subscriptions)
        self.subscriptions = tuple(subscriptions)
        if self.inlet is not None:  # events of a new stream can come before its answer
            self._door.join(self.inlet, [each for each in self.subscriptions if each in added])
        self.subscribing.change(subscriptions)
        self.fact.subscriptions = len(self.subscriptions)
        self.fact.acknowledged = self.subscribing.acknowledged
        self._asked_again.set()

    def abandon(self) -> None:
        """Close it, at once while it is still being opened."""
        self.retire()
        if self.inlet is None:
            self.subscriptions = ()  # if it comes in all the same, with these: nobody may know them any more
            self._opening.cancel()

    def resubscribe(self, subscriptions: Iterable[Subscription]) -> None:
        """End and begin anew the streams of `subscriptions`, which are granted but dead."""
        self.subscribing.ask_again(subscriptions)
        self._asked_again.set()

    async def _run(self, connect: Connect, url: VenueUrl) -> None:
        self.fact.enter("connecting", trio.current_time())
        lane = ReceiveLane(await self._open(connect), self._hand_over, count_bytes=self._metrics.websocket_bytes.inc)
        self._lane = lane
        losses: list[BaseException] = []
        try:
            await self._live(lane, url)
        except* (DisconnectedError, *CONNECTION_ERRORS) as group:
            losses = leaves(group)
        finally:
            # Without waiting for an answer: it proves nothing to either side.
            with trio.move_on_after(self._limits.farewell_s, shield=True):
                await trio.aclose_forcefully(lane)
                await self._hand_over(*lane.take_pending())  # shields itself, for as long as is right
                while self.inlet is not None and self.inlet.subscriptions:  # more may be added while we wait
                    await self._leave(self.inlet, self.inlet.subscriptions)
        if lane.error is not None:
            if not isinstance(lane.error, LANE_LOSSES):
                raise lane.error  # a bug of the consumer, which trio-websocket has lost
            losses.append(lane.error)
        if not self._retired.is_set():
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
            self._enter()
            self.fact.enter("subscribing", trio.current_time())
            with self._metrics.connections_open.track_inprogress():
                nursery.start_soon(self._watch_silence, lane)
                nursery.start_soon(self._watch_close, socket)
                nursery.start_soon(self._watch_age)
                nursery.start_soon(self._subscribe, socket, lane)
                await self._retired.wait()
                with trio.move_on_after(self._limits.close_s):
                    await socket.aclose()
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
            # What is left of a rounding may be too little to move the clock, and this would turn for ever.
            await trio.sleep(max(limit_s - silent_s, LEAST_SLEEP_S))
        raise DisconnectedError(f"silent for {limit_s:g} s")

    async def _watch_close(self, socket: trio_websocket.WebSocketConnection) -> NoReturn:
        """Wait for the end: ConnectionClosed is raised by it. No message comes, because the lane keeps them all."""
        await socket.get_message()
        raise AssertionError("a data message went past the receive lane")

    async def _watch_age(self) -> None:
        await trio.sleep(self._lifetime_s)
        self.replace(AGE)

    async def _subscribe(self, socket: trio_websocket.WebSocketConnection, lane: ReceiveLane) -> NoReturn:
        """Ask for everything, at the pace the venue allows, and see that every message is answered in time."""
        pace = control_pace()
        while True:
            await self._leave_ended()
            request = self.subscribing.next_request()
            if request is not None:
                await trio.sleep(pace.reserve(trio.current_time()))
                await socket.send_message(request.message)
            elif not self.subscribing.is_settled:
                await self._wait_answer(lane)
            else:
                self._asked_again = trio.Event()
                await self._asked_again.wait()

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
        inlet = self._enter()
        controls: Sequence[Control] = ()
        with self._farewell.protect() as scope:
            controls = await self._door.consume(inlet, messages, received_s)
        if scope.cancelled_caught:
            self._metrics.abandoned.labels(reason="stop").inc(len(messages))
            log.warning("messages_abandoned", connection=self._name, messages=len(messages))
        self.fact.last_message_s = received_s
        self.had_data = self.had_data or len(messages) > len(controls)
        for control in controls:
            self._act_on(control)
        if controls:
            await self._leave_ended()

    def _enter(self) -> Inlet:
        """Go in at the door, if that was not done yet; messages may come along with the handshake."""
        if self.inlet is None:
            self.inlet = self._door.open(self.subscriptions)
        return self.inlet

    async def _leave_ended(self) -> None:
        """Carry no longer what has ended."""
        if (ended := self.subscribing.take_ended()) and self.inlet is not None:
            await self._leave(self.inlet, ended)

    async def _leave(self, inlet: Inlet, subscriptions: Sequence[Subscription]) -> None:
        with self._farewell.protect():
            await self._door.leave(inlet, subscriptions)

    def _act_on(self, control: Control) -> None:
        match control:
            case Ack(id=request_id):
                self.subscribing.acknowledge(request_id)
            case StreamError(code=code, text=text, id=request_id):
                given_up = [subscription.stream_name for subscription in self.subscribing.refuse(request_id)]
                # No name to give up: it was a message around a bad name, or an answer to nothing of ours.
                self._refusals += not given_up
                report = log.error if given_up else log.info if self._refusals <= REFUSALS_TOLD else log.debug
                report("subscription_refused", connection=self._name, code=code, text=text, given_up=given_up)
            case ServerShutdown():
                self.replace(SHUTDOWN)
        self._answered.set()
        self.fact.acknowledged = self.subscribing.acknowledged
        if self.subscribing.is_settled and self.fact.state != "live":
            self.fact.enter("live", trio.current_time())
            log.info("subscribed", connection=self._name, subscriptions=self.subscribing.acknowledged)


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
    """One connection that is opened again whenever it is lost, and replaced before its end when that is foreseen.

    `share` names what it carries, for readiness: connections of the same share stand in for each other. The first
    attempt is made after `start_after_s`. What it carries may `change` at any time; every feed follows, the present one
    and one that is about to take its place.
    """

    def __init__(
        self,
        name: str,
        subscriptions: Sequence[Subscription],
        door: Door,
        *,
        url: VenueUrl,
        connect: Connect,
        backoff: Backoff,
        connects: RateLimit,
        rollovers: RateLimit,
        jitter: Random,
        board: HealthBoard,
        metrics: Metrics,
        limits: FeedLimits = DEFAULT_LIMITS,
        share: str = "",
        start_after_s: float = 0.0,
    ) -> None:
        self.name = name
        self.subscriptions = tuple(subscriptions)
        self.feed: Feed | None = None
        self._door = door
        self._url = url
        self._connect = connect
        self._backoff = backoff
        self._connects = connects
        self._rollovers = rollovers
        self._jitter = jitter
        self._board = board
        self._metrics = metrics
        self._limits = limits
        self._start_after_s = start_after_s
        self._farewell = Farewell(limits.farewell_s)
        self._feeds: dict[Feed, None] = {}  # those that have not ended
        self._staying = trio.CancelScope()
        now = trio.current_time()
        self._fact = board.connections[name] = ConnectionFact(
            subscriptions=len(self.subscriptions), share=share or name, since_s=now, lost_s=now
        )
        self._last_shutdown_s = -math.inf

    def change(self, subscriptions: Sequence[Subscription]) -> None:
        """Carry `subscriptions` from now on."""
        self.subscriptions = tuple(subscriptions)
        self._fact.subscriptions = len(self.subscriptions)
        for feed in self._feeds:
            feed.change(self.subscriptions)

    def end(self) -> None:
        """Carry nothing from now on: `run` hands on what was read, closes and returns."""
        del self._board.connections[self.name]
        self._staying.cancel()
        self.subscriptions = ()
        for feed in self._feeds:
            feed.abandon()

    async def run(self) -> None:
        """Stay subscribed until cancelled or ended; reconnect after every loss, slower each time."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._farewell.watch)
            with self._staying:
                await self._stay(nursery)
            for feed in list(self._feeds):
                feed.abandon()  # also one that was begun in the very moment of the end
                await feed.ended.wait()
            log.info("connection_ended", connection=self.name)
            nursery.cancel_scope.cancel()

    async def _stay(self, nursery: trio.Nursery) -> NoReturn:
        """Keep a feed open."""
        await trio.sleep(self._start_after_s)
        feed = await self._begin(nursery)
        while True:
            self._go_on_with(feed)
            await feed.changed.wait()
            if feed.has_ended:
                await trio.sleep(self._delay_after_loss(feed))
                feed = await self._begin_again(nursery)
            else:
                feed = await self._replace(feed, nursery)

    async def _begin(self, nursery: trio.Nursery) -> Feed:
        """Open a feed, as soon as the venue's limit on connects allows; it is on its way when this returns."""
        await trio.sleep(self._connects.reserve(trio.current_time()))
        last = self._fact
        feed = Feed(
            self.name,
            self.subscriptions,
            self._door,
            limits=self._limits,
            farewell=self._farewell,
            fact=ConnectionFact(
                subscriptions=len(self.subscriptions),
                share=last.share,
                last_message_s=last.last_message_s,
                lost_s=last.lost_s,
            ),
            metrics=self._metrics,
            lifetime_s=lifetime_s(self._limits.rollover_after_s, self._jitter),
        )
        self._feeds[feed] = None
        nursery.start_soon(self._live, feed)
        return feed

    async def _begin_again(self, nursery: trio.Nursery) -> Feed:
        feed = await self._begin(nursery)
        self._metrics.reconnections.inc()
        return feed

    async def _live(self, feed: Feed) -> None:
        await feed.run(self._connect, self._url)
        del self._feeds[feed]
        if feed.had_data:
            self._backoff.reset()  # data, not a handshake, proves the link healthy

    def _go_on_with(self, feed: Feed) -> None:
        self.feed = feed
        self._fact = feed.fact
        if not self._staying.cancel_called:
            self._board.connections[self.name] = feed.fact

    def _delay_after_loss(self, feed: Feed) -> float:
        """Return the seconds to wait, never less than the venue asked for."""
        delay_s = self._backoff.next_delay()
        if isinstance(feed.loss, HandshakeRefusedError):
            delay_s = max(delay_s, feed.loss.retry_after_s)
        log.warning("connection_lost", connection=self.name, cause=str(feed.loss), delay_s=round(delay_s, 3))
        return delay_s

    def _delay_before_replacing(self, reason: str) -> float:
        """Return the seconds to wait: replacements for age keep apart, an announced shutdown waits for nobody."""
        now = trio.current_time()
        if reason == AGE:
            return self._rollovers.reserve(now)
        if reason != SHUTDOWN:
            return 0.0
        previous_s, self._last_shutdown_s = self._last_shutdown_s, now
        return 0.0 if now - previous_s > SHUTDOWN_STORM_S else self._backoff.next_delay()

    async def _replace(self, old: Feed, nursery: trio.Nursery) -> Feed:
        """Return the feed to go on with: a new one that carries everything, or whichever is left."""
        reason = old.to_replace or ""
        delay_s = self._delay_before_replacing(reason)
        log.info("connection_to_replace", connection=self.name, reason=reason, delay_s=round(delay_s, 3))
        while not await self._ends_within(old, delay_s):
            new = await self._begin_again(nursery)
            await self._overlap(old, new)
            if not new.has_ended or old.has_ended:
                old.retire()
                log.info("connection_replaced", connection=self.name, reason=reason)
                return new
            delay_s = self._delay_after_loss(new)
        return old

    async def _ends_within(self, feed: Feed, delay_s: float) -> bool:
        """Wait; say whether `feed` ended meanwhile."""
        with trio.move_on_after(delay_s):
            await feed.ended.wait()
        return feed.has_ended

    async def _overlap(self, old: Feed, new: Feed) -> None:
        """Wait until `new` carries everything, or either of the two has ended."""
        overlap: Overlap | None = None
        while not (old.has_ended or new.has_ended):
            now = trio.current_time()
            if overlap is not None and overlap.is_over(now) and new.subscribing.is_settled:
                if overlap.missing:
                    log.warning("streams_not_carried_over", connection=self.name, streams=overlap.missing)
                return
            if overlap is None and old.inlet and new.inlet and new.subscribing.is_settled:
                overlap = Overlap(old.inlet, new.inlet, now)
            await trio.sleep(OVERLAP_LOOK_S)


def rollover_pace() -> RateLimit:
    """Return the pace that all connections of this process keep when they are replaced for their age."""
    return RateLimit(1, ROLLOVER_PACE_S)
