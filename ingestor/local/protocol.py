"""One WebSocket connection as the venue sees it, without I/O: control messages in, replies and closes out.

What it knows is facts/binance.md §2 and §3. The server around it moves bytes and asks `tick` what is due.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ingestor.local.history import INTERVALS

if TYPE_CHECKING:
    from ingestor.local.history import Message

_CLIENT_HEADER_BYTES: Final = 8  # of a masked frame of 126 to 65535 bytes
_STREAM: Final = re.compile(
    r"(?:[^\s@!/]+@(?:trade|aggTrade|blockTrade|bookTicker|avgPrice|referencePrice|miniTicker|ticker(?:_1h|_4h|_1d)?"
    rf"|depth(?:5|10|20)?(?:@100ms|@1000ms)?|kline_(?:{'|'.join(INTERVALS)})(?:@\+08:00)?)"
    r"|!(?:miniTicker|ticker_1h|ticker_4h|ticker_1d)@arr)"
)


class Rules(Struct, frozen=True, kw_only=True):
    """The venue's limits as facts/binance.md §2 and §7 have them; tests make them smaller."""

    ping_interval_s: float = 20.0
    pong_timeout_s: float = 60.0
    lifetime_s: float = 86_400.0
    inbound_per_s: int = 5
    max_streams: int = 1024
    control_bytes: int = 4096  # on the wire; what is larger gets no reply at all
    connects: int = 300
    connect_window_s: float = 300.0
    weight_per_minute: int = 6_000
    ban_s: float = 120.0  # the first one; each further one is twice as long
    strikes: int = 5  # requests after a 429 that the venue puts up with
    outbound_bytes: int = 64 << 20  # a reader this far behind is dropped


class Ping(Struct, frozen=True):
    """Send a ping frame."""

    payload: bytes


class Close(Struct, frozen=True):
    """Send a close frame and hang up."""

    code: int
    reason: str


class BadPathError(ValueError):
    """The path of the handshake is none of the venue's."""


class _Control(Struct):
    method: str | None = None
    params: Any = None
    id: int | str | UnsetType | None = UNSET


def parse_target(target: str) -> tuple[bool, tuple[str, ...]]:
    """Read the target of a handshake: whether events come wrapped, and the streams it names. Raises BadPathError."""
    try:
        parts = urlsplit(target)
    except ValueError as error:
        raise BadPathError(f"no such path: {error}") from error
    query = parse_qs(parts.query)
    if any(unit.lower() != "millisecond" for unit in query.get("timeUnit", ())):
        raise BadPathError("this venue counts in milliseconds only")
    path = unquote(parts.path)
    if path.rstrip("/") == "/stream":
        combined, names = True, query.get("streams", [""])[0]
    elif path == "/ws" or path.startswith("/ws/"):
        combined, names = False, path[len("/ws/") :]
    else:
        raise BadPathError(f"no such path: {parts.path}")
    streams = tuple(name for name in names.split("/") if name)
    if bad := [name for name in streams if not _STREAM.fullmatch(name)]:
        raise BadPathError(f"invalid stream: {bad[0]}")
    return combined, streams


class VenueConnection:
    """The venue's side of one connection: `streams` subscribed and whether events are `combined`; `now` is in seconds.

    Raises BadPathError for a target that the venue does not serve.
    """

    def __init__(self, target: str, rules: Rules, now: float) -> None:
        self.combined, names = parse_target(target)
        self.streams = dict.fromkeys(names)
        self._deaf: set[str] = set()
        self._rules = rules
        self._inbound: deque[float] = deque()
        self._ends_at = now + rules.lifetime_s
        self._ping_at = now + rules.ping_interval_s
        self._unanswered: dict[bytes, float] = {}  # when each ping was sent, by its payload, oldest first
        self._pings = 0

    @property
    def audible(self) -> frozenset[str]:
        """The subscriptions that really get events."""
        return frozenset(self.streams.keys() - self._deaf)

    def deafen(self, stream: str) -> None:
        """Leave `stream` acknowledged and listed, but dead until it is named again (facts §2, half-dead sockets)."""
        self._deaf.add(stream)

    def receive(self, text: str, now: float) -> list[bytes | Close]:
        """Take one text message and return the replies to it; replies are never wrapped."""
        if close := self._count_inbound(now):
            return [close]
        if len(text.encode()) + _CLIENT_HEADER_BYTES > self._rules.control_bytes:
            return []  # facts §2: no reply at all, nothing subscribed, the connection stays up
        try:
            control = msgspec.json.decode(text, type=_Control)
        except msgspec.ValidationError as error:
            return [_flat_error(2, f"Invalid request: {error}")]
        except (msgspec.DecodeError, RecursionError) as error:
            return [_flat_error(3, f"Invalid JSON: {error}")]
        return [self._answer(control)]

    def receive_ping(self, now: float) -> list[bytes | Close]:
        """Take a ping of the client; the caller sends the pong."""
        close = self._count_inbound(now)
        return [close] if close else []

    def receive_pong(self, now: float, payload: bytes) -> list[bytes | Close]:
        """Take a pong; the client is there only if it echoes a ping, and one that was not asked for is no more."""
        if payload in self._unanswered:
            sent_at = self._unanswered[payload]
            self._unanswered = {ping: at for ping, at in self._unanswered.items() if at > sent_at}
        close = self._count_inbound(now)
        return [close] if close else []

    def tick(self, now: float) -> list[Ping | Close]:
        """Return what is due by itself at `now`."""
        if now >= self._ends_at:
            return [Close(1001, "24 hours are over")]
        if any(now >= sent_at + self._rules.pong_timeout_s for sent_at in self._unanswered.values()):
            return [Close(1008, "Pong timeout")]
        if now < self._ping_at:
            return []
        self._ping_at = now + self._rules.ping_interval_s
        self._pings += 1
        payload = str(self._pings).encode()
        self._unanswered[payload] = now
        return [Ping(payload)]

    def wrap(self, message: Message) -> bytes:
        """Spell an event as this connection gets it."""
        if not self.combined:
            return message.payload
        return b'{"stream":"%b","data":%b}' % (message.stream.encode(), message.payload)

    def _count_inbound(self, now: float) -> Close | None:
        """PING, PONG and control messages all count (facts §2)."""
        inbound = self._inbound
        while inbound and inbound[0] <= now - 1.0:
            inbound.popleft()
        inbound.append(now)
        return Close(1008, "Too many requests") if len(inbound) > self._rules.inbound_per_s else None

    def _answer(self, control: _Control) -> bytes:  # noqa: PLR0911 - a table: one line a method
        if control.id is UNSET or control.method is None:
            return _flat_error(2, "Invalid request: missing field `method` or `id`")
        match control.method, control.params:
            case ("SUBSCRIBE" | "UNSUBSCRIBE") as method, [*names] if names:
                return self._change(method, names, control.id)
            case "LIST_SUBSCRIPTIONS", None | []:
                return _reply(list(self.streams), control.id)
            case "SET_PROPERTY", ["combined", bool(value)]:
                self.combined = value
                return _reply(None, control.id)
            case "SET_PROPERTY", ["combined", _]:
                return _flat_error(1, "Invalid value type: expected Boolean")
            case "GET_PROPERTY", ["combined"]:
                return _reply(self.combined, control.id)
            case (("SET_PROPERTY" | "GET_PROPERTY"), [str(), *_]):
                return _flat_error(0, "Unknown property")
            case (("SUBSCRIBE" | "UNSUBSCRIBE" | "LIST_SUBSCRIPTIONS" | "SET_PROPERTY" | "GET_PROPERTY"), _):
                return _flat_error(2, "Invalid request: wrong number or type of parameters")
            case method, _:
                return _flat_error(2, f"Invalid request: unknown variant `{method}`")

    def _change(self, method: str, names: list[Any], request_id: int | str | None) -> bytes:
        if not all(isinstance(name, str) and _STREAM.fullmatch(name) for name in names):
            return _nested_error("Invalid request: invalid stream", request_id)
        self._deaf.difference_update(names)
        if method == "UNSUBSCRIBE":
            for name in names:
                self.streams.pop(name, None)
            return _reply(None, request_id)
        wanted = self.streams | dict.fromkeys(names)
        if len(wanted) > self._rules.max_streams:
            return _nested_error("Invalid request: too many streams", request_id)
        self.streams = wanted
        return _reply(None, request_id)


def shutdown_notice(at_ms: int, *, combined: bool) -> bytes:
    """Spell the event that announces the end of this server (facts §2)."""
    payload = b'{"e":"serverShutdown","E":%d}' % at_ms
    return b'{"stream":"!serverShutdown","data":%b}' % payload if combined else payload


def _reply(result: object, request_id: int | str | None) -> bytes:
    return msgspec.json.encode({"result": result, "id": request_id})


def _flat_error(code: int, text: str) -> bytes:
    """Spell an error as the documentation has it; the server sends the nested shape for a bad stream (facts §3)."""
    return msgspec.json.encode({"code": code, "msg": text})


def _nested_error(text: str, request_id: int | str | None) -> bytes:
    return msgspec.json.encode({"error": {"code": 2, "msg": text}, "id": request_id})
