"""The health of the service as plain facts with monotonic timestamps, each written by the one task that owns it.

Nobody computes a status and stores it: `live`, `ready`, `has_started` and `report` are answers about the facts at a
given `now`, so that a task which stopped writing is seen as well as one that wrote bad news.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

ConnectionState: TypeAlias = Literal["connecting", "subscribing", "live", "down"]
BreakerState: TypeAlias = Literal["closed", "half_open", "open"]
Status: TypeAlias = Literal["healthy", "degraded", "unhealthy"]

INTERVALS: Final = 3  # that pass without what should come in each of them, before it is said to be late


@dataclass(slots=True)
class ConnectionFact:
    """One WebSocket connection: written by the task that supervises it. `since_s` is when it entered its state.

    `lost_s` is since when it does not flow, through all attempts to open it again; None while it does. Connections of
    the same `share` carry the same subscriptions, each one a stand-in for the others.
    """

    state: ConnectionState = "connecting"
    since_s: float = 0.0
    last_message_s: float | None = None
    subscriptions: int = 0
    acknowledged: int = 0
    share: str = ""
    lost_s: float | None = None

    @property
    def is_live(self) -> bool:
        """It is open and the venue has acknowledged every subscription."""
        return self.state == "live" and self.acknowledged >= self.subscriptions

    def enter(self, state: ConnectionState, now: float) -> None:
        """Note that it is in another state from now on."""
        self.state, self.since_s = state, now
        if state == "live":
            self.lost_s = None
        else:
            self.acknowledged = 0
            self.lost_s = now if self.lost_s is None else self.lost_s


@dataclass(slots=True)
class SinkFact:
    """The way into Kinesis: written by the producer. `configuration_error` is text for the person who must mend it.

    `held_since_s` is since when there has been something to deliver, all deliveries of it included; None while there is
    nothing. In a quiet market the last success is long ago, and that is no outage. `is_found`: the stream is there.
    """

    is_found: bool = False
    breaker: BreakerState = "closed"
    last_success_s: float | None = None
    last_failure_s: float | None = None
    configuration_error: str | None = None
    held_bytes: int = 0
    held_since_s: float | None = None
    spooled_bytes: int = 0
    spool_trouble: str | None = None  # why the disk does not take records; memory does meanwhile
    hot_keys: dict[str, str] = field(default_factory=dict[str, str])  # that one shard was too small for, and its id

    @property
    def is_open(self) -> bool:
        """Nothing is known that speaks against a delivery."""
        return self.breaker == "closed" and self.configuration_error is None

    def hold(self, held_bytes: int, spooled_bytes: int, now: float) -> None:
        """Note what waits in memory and on disk."""
        self.held_bytes, self.spooled_bytes = held_bytes, spooled_bytes
        if not held_bytes and not spooled_bytes:
            self.held_since_s = None
        elif self.held_since_s is None:
            self.held_since_s = now


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """How long something may be wrong. The silence limit is below the watchdog's, so that the page shows it first."""

    silence_s: float = 15.0
    delivery_s: float = 15.0  # records wait, and none has been acknowledged for so long
    heartbeat_s: float = 30.0
    loop_s: float = 15.0
    outage_s: float = 60.0  # from degraded to unhealthy
    quiet_s: float = 20.0  # without a record, on connections that are live: nobody trades

    @classmethod
    def of(cls, *, flush_interval_s: float, heartbeat_interval_s: float) -> HealthLimits:
        """Return limits for a service that delivers and says it so seldom: what it does on purpose is no trouble."""
        usual = cls()
        return cls(
            delivery_s=max(usual.delivery_s, INTERVALS * flush_interval_s),
            heartbeat_s=max(usual.heartbeat_s, INTERVALS * heartbeat_interval_s),
        )


class Complaint(Struct, frozen=True):
    """What is wrong with a component, and how bad it is."""

    status: Literal["degraded", "unhealthy"]
    component: str
    text: str


class ConnectionReport(Struct, frozen=True):
    """A connection as a reader sees it; ages in seconds."""

    state: ConnectionState
    state_age_s: float
    lost_age_s: float | None
    last_message_age_s: float | None
    subscriptions: int
    acknowledged: int


class WebSocketReport(Struct, frozen=True):
    """All connections: the worst state, and the age of the newest message on any of them."""

    state: ConnectionState
    last_message_age_s: float | None
    connections: dict[str, ConnectionReport]


class KinesisReport(Struct, frozen=True):
    """The sink as a reader sees it; ages in seconds."""

    breaker: BreakerState
    last_success_age_s: float | None
    last_failure_age_s: float | None
    configuration_error: str | None
    held_bytes: int
    spooled_bytes: int = 0
    spool_trouble: str | None = None


class Report(Struct, frozen=True):
    """The answer of `/health`."""

    status: Status
    ready: bool
    started: bool
    stopping: bool
    uptime_s: float
    complaints: list[Complaint]
    websocket: WebSocketReport
    kinesis: KinesisReport
    heartbeat_age_s: float | None


STATES_WORST_FIRST: tuple[ConnectionState, ...] = ("down", "connecting", "subscribing", "live")


@dataclass(slots=True)
class HealthBoard:
    """The facts, and the answers about them. `now` is always the clock that the facts were written with."""

    since_s: float = 0.0
    limits: HealthLimits = field(default_factory=HealthLimits)
    connections: dict[str, ConnectionFact] = field(default_factory=dict[str, ConnectionFact])
    sink: SinkFact = field(default_factory=SinkFact)
    heartbeat_acknowledged_s: float | None = None
    stopping: bool = False
    turned_s: float | None = None
    ready_since_s: float | None = None

    def turn(self, now: float) -> None:
        """Note that the loop turned, and whether the service was ready for the first time."""
        self.turned_s = now
        if self.ready_since_s is None and self.ready(now):
            self.ready_since_s = now

    def live(self, now: float) -> bool:
        """Say whether the loop turns: whoever watches it has been here lately, or has not begun yet."""
        return self.turned_s is None or now - self.turned_s <= self.limits.loop_s

    def ready(self, now: float) -> bool:
        """Say whether everything subscribed is flowing and the sink takes it; never while stopping."""
        return (
            not self.stopping
            and self.live(now)
            and bool(self.connections)
            and all(self._is_carried(name) for name in self.connections)
            and self.sink.is_open
            and not self._is_starved(now)
            and (self.sink.last_success_s is not None or self._has_nothing_to_deliver(now))
        )

    def _has_nothing_to_deliver(self, now: float) -> bool:
        """Say whether nobody trades, while the stream is there and Kinesis takes heartbeats: more cannot be known."""
        newest_s = max(fact.since_s for fact in self.connections.values())
        return (
            now - newest_s > self.limits.quiet_s
            and self.sink.held_since_s is None
            and self.sink.is_found
            and self.heartbeat_acknowledged_s is not None
        )

    def _is_carried(self, name: str) -> bool:
        """Say whether the subscriptions of this connection flow, on it or on one of the same share."""
        share = self.connections[name].share
        return self.connections[name].is_live or any(
            bool(share) and fact.share == share and fact.is_live for fact in self.connections.values()
        )

    def has_started(self, now: float) -> bool:
        """Say whether the loop turns and the service has been ready once: an outage later does not change it."""
        return self.live(now) and (self.ready_since_s is not None or self.ready(now))

    def report(self, now: float) -> Report:
        """Name what is wrong, component by component, and give the facts as ages."""
        complaints = [*self._loop_complaints(now)]
        if not self.stopping:  # a stop closes the connections
            complaints += self._websocket_complaints(now)
        complaints += [*self._kinesis_complaints(now), *self._heartbeat_complaints(now)]
        severities = {complaint.status for complaint in complaints}
        status: Status = "unhealthy" if "unhealthy" in severities else "degraded" if severities else "healthy"
        return Report(
            status=status,
            ready=self.ready(now),
            started=self.has_started(now),
            stopping=self.stopping,
            uptime_s=now - self.since_s,
            complaints=complaints,
            websocket=self._websocket_report(now),
            kinesis=KinesisReport(
                breaker=self.sink.breaker,
                last_success_age_s=age(self.sink.last_success_s, now),
                last_failure_age_s=age(self.sink.last_failure_s, now),
                configuration_error=self.sink.configuration_error,
                held_bytes=self.sink.held_bytes,
                spooled_bytes=self.sink.spooled_bytes,
                spool_trouble=self.sink.spool_trouble,
            ),
            heartbeat_age_s=age(self.heartbeat_acknowledged_s, now),
        )

    def _loop_complaints(self, now: float) -> Iterator[Complaint]:
        if not self.live(now):
            yield Complaint("unhealthy", "process", f"the loop has not turned for {now - (self.turned_s or 0.0):.0f} s")
        if self.stopping:
            yield Complaint("degraded", "process", "stopping")

    def _websocket_complaints(self, now: float) -> Iterator[Complaint]:
        if not self.connections:
            yield Complaint(self._after_outage(self.since_s, now), "websocket", "no connection yet")
        for name, fact in self.connections.items():
            silent_s = now - max(fact.since_s, fact.last_message_s or fact.since_s)
            if fact.state != "live":
                lost_s = fact.since_s if fact.lost_s is None else fact.lost_s
                text = f"{name} is {fact.state} for {now - lost_s:.0f} s"
                status = "degraded" if self._is_carried(name) else self._after_outage(lost_s, now)
                yield Complaint(status, "websocket", text)
            elif not fact.is_live:
                text = f"{name} has {fact.acknowledged} of {fact.subscriptions} subscriptions acknowledged"
                yield Complaint("degraded", "websocket", text)
            elif silent_s > self.limits.silence_s:
                yield Complaint("degraded", "websocket", f"{name} is silent for {silent_s:.0f} s")

    @property
    def _success_s(self) -> float:
        """When something was acknowledged last, or the start."""
        return self.since_s if self.sink.last_success_s is None else self.sink.last_success_s

    @property
    def _starved_since_s(self) -> float:
        """Since when nothing has been acknowledged although there was something."""
        held_since_s = self.sink.held_since_s
        return self._success_s if held_since_s is None else max(self._success_s, held_since_s)

    def _is_starved(self, now: float) -> bool:
        """Say whether records wait for too long: calls that are answered and accept nothing open no breaker."""
        return bool(self.sink.held_bytes) and now - self._starved_since_s > self.limits.delivery_s

    def _kinesis_complaints(self, now: float) -> Iterator[Complaint]:
        sink = self.sink
        success_s, starved_s = self._success_s, self._starved_since_s
        if sink.configuration_error is not None:
            yield Complaint("unhealthy", "kinesis", sink.configuration_error)
        if sink.breaker != "closed":
            text = f"breaker {sink.breaker}, last success {now - success_s:.0f} s ago"
            yield Complaint(self._after_outage(starved_s, now), "kinesis", text)
        elif self._is_starved(now):
            text = f"{sink.held_bytes} bytes wait, last success {now - success_s:.0f} s ago"
            yield Complaint(self._after_outage(starved_s, now), "kinesis", text)
        elif sink.last_success_s is None:
            yield Complaint("degraded", "kinesis", "nothing delivered yet")
        if sink.spool_trouble is not None:
            yield Complaint("degraded", "spool", f"the disk fails, records wait in memory: {sink.spool_trouble}")

    def unwritten_s(self, now: float) -> float:
        """For how long no heartbeat has been acknowledged; since the start if none ever was."""
        return now - (self.since_s if self.heartbeat_acknowledged_s is None else self.heartbeat_acknowledged_s)

    def _heartbeat_complaints(self, now: float) -> Iterator[Complaint]:
        if (unwritten_s := self.unwritten_s(now)) > self.limits.heartbeat_s:
            yield Complaint("degraded", "heartbeat", f"no heartbeat acknowledged for {unwritten_s:.0f} s")

    def _after_outage(self, since_s: float, now: float) -> Literal["degraded", "unhealthy"]:
        return "unhealthy" if now - since_s > self.limits.outage_s else "degraded"

    def _websocket_report(self, now: float) -> WebSocketReport:
        facts = self.connections.values()
        states = {fact.state for fact in facts} or {"connecting"}
        newest_s = max((fact.last_message_s for fact in facts if fact.last_message_s is not None), default=None)
        return WebSocketReport(
            state=next(state for state in STATES_WORST_FIRST if state in states),
            last_message_age_s=age(newest_s, now),
            connections={
                name: ConnectionReport(
                    state=fact.state,
                    state_age_s=now - fact.since_s,
                    lost_age_s=age(fact.lost_s, now),
                    last_message_age_s=age(fact.last_message_s, now),
                    subscriptions=fact.subscriptions,
                    acknowledged=fact.acknowledged,
                )
                for name, fact in self.connections.items()
            },
        )


def age(moment_s: float | None, now: float) -> float | None:
    """Seconds since `moment_s`; None for something that has not happened."""
    return None if moment_s is None else now - moment_s
