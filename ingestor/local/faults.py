"""What can go wrong with the venue, as plain data: a script of faults with times, or one drawn from a seed.

`at_s` counts from the first subscription that the venue saw. The venue applies them; nothing here acts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from ingestor.local.rest import Response, error_body


class Disconnect(Struct, frozen=True):
    """Cut connections without a close frame: all of them, or the oldest."""

    at_s: float
    which: Literal["all", "oldest"] = "all"


class Refuse(Struct, frozen=True):
    """Hang up on every handshake for `for_s`; `mute` leaves it unanswered instead (a half-open connection)."""

    at_s: float
    for_s: float
    mute: bool = False


class Stall(Struct, frozen=True):
    """Keep all present connections open and silent, pings included, for `for_s`; what happens meanwhile never comes."""

    at_s: float
    for_s: float


class Deafen(Struct, frozen=True):
    """Leave `stream` acknowledged but dead on the present connections, until it is subscribed again."""

    at_s: float
    stream: str


class Skip(Struct, frozen=True):
    """Lose the next `messages` of `stream`."""

    at_s: float
    stream: str
    messages: int = 1


class Repeat(Struct, frozen=True):
    """Send the next `messages` of `stream` twice."""

    at_s: float
    stream: str
    messages: int = 1


class Fragment(Struct, frozen=True):
    """Send the next `messages` (of any stream) as three fragments each, a ping between them."""

    at_s: float
    messages: int = 1


Garbage: TypeAlias = Literal[
    "invalid_json", "invalid_utf8", "unknown_event", "unknown_stream", "missing_field", "oversize", "reserved_bits"
]


class Inject(Struct, frozen=True):
    """Send something that no client asked for on all connections."""

    at_s: float
    what: Garbage


class Shutdown(Struct, frozen=True):
    """Announce `serverShutdown` on all present connections, and close them `after_s` later."""

    at_s: float
    after_s: float = 10.0


RestFailure: TypeAlias = Literal["internal", "busy", "timeout", "limited", "banned", "restricted", "forbidden", "mute"]


class FailRest(Struct, frozen=True):
    """Let every REST request fail for `for_s`; `mute` does not answer at all."""

    at_s: float
    for_s: float
    what: RestFailure = "internal"


class Lag(Struct, frozen=True):
    """Let the database behind REST lag by `lag_ms` for `for_s`."""

    at_s: float
    for_s: float
    lag_ms: int = 5_000


class StaleBooks(Struct, frozen=True):
    """Give the same snapshots again and again for `for_s`, from a server that is behind the stream."""

    at_s: float
    for_s: float


class DamageArchive(Struct, frozen=True):
    """Send the next `downloads` of the public archive one byte short."""

    at_s: float
    downloads: int = 1


Fault: TypeAlias = (
    StaleBooks
    | DamageArchive
    | Disconnect
    | Refuse
    | Stall
    | Deafen
    | Skip
    | Repeat
    | Fragment
    | Inject
    | Shutdown
    | FailRest
    | Lag
)

_OVERSIZE_BYTES: Final = 17 << 20  # more than any client should take in one frame

_GARBAGE: Final[dict[Garbage, bytes]] = {
    "invalid_json": b'{"stream":"btcusdt@trade","data":{"e":"trade",',
    "invalid_utf8": b'{"stream":"btcusdt@trade","data":{"e":"\xc3\x28"}}',
    "unknown_event": b'{"stream":"btcusdt@mystery","data":{"e":"mystery","E":1790000000000,"s":"BTCUSDT"}}',
    "unknown_stream": b'{"stream":"nosuch@trade","data":{"e":"trade","E":1790000000000,"s":"NOSUCH","t":1,'
    b'"p":"1.00000000","q":"1.00000000","T":1790000000000,"m":true,"M":true}}',
    "missing_field": b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1790000000000,"s":"BTCUSDT","t":1}}',
    "reserved_bits": b'{"stream":"btcusdt@trade","data":{}}',
}


def garbage(what: Garbage) -> bytes:
    """Return the payload to inject."""
    if what == "oversize":
        return b'{"stream":"btcusdt@trade","data":"' + b"x" * _OVERSIZE_BYTES + b'"}'
    return _GARBAGE[what]


def rest_answer(what: RestFailure, for_s: float, now_ms: int) -> Response | None:
    """Return what REST says while it fails in this way; None when it says nothing."""
    wait_s = str(max(1, round(for_s)))
    until_ms = now_ms + round(for_s * 1_000)
    answers: dict[RestFailure, tuple[int, int, str]] = {
        "internal": (500, -1000, "An unknown error occurred while processing the request."),
        "busy": (503, -1008, "Server is currently overloaded with other requests. Please try again in a few minutes."),
        "timeout": (408, -1007, "Timeout waiting for response from backend server."),
        "limited": (429, -1003, "Too much request weight used."),
        "restricted": (451, 0, "Service unavailable from a restricted location according to 'b. Eligibility'."),
        "banned": (418, -1003, f"Way too much request weight used; IP banned until {until_ms}."),
    }
    if what == "mute":
        return None
    if what == "forbidden":  # the firewall speaks HTML (facts §1)
        return Response(403, b"<html><body>403 Forbidden</body></html>", (("content-type", "text/html"),))
    status, code, text = answers[what]
    headers = (("retry-after", wait_s),) if status in (418, 429) else ()
    return Response(status, error_body(code, text), (("content-type", "application/json;charset=UTF-8"), *headers))


class Script:
    """Faults in the order of their times; each is handed out once."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self._waiting = deque(sorted(faults, key=lambda fault: fault.at_s))

    def due(self, elapsed_s: float) -> list[Fault]:
        """Take out what is due `elapsed_s` after the first subscription."""
        due: list[Fault] = []
        while self._waiting and self._waiting[0].at_s <= elapsed_s:
            due.append(self._waiting.popleft())
        return due


def chaos(seed: int, streams: Sequence[str], duration_s: float, *, every_s: float = 3.0) -> list[Fault]:
    """Draw survivable faults, about one per `every_s`; the first and last tenth of `duration_s` are quiet.

    Kinds are dealt like cards, so that a short run sees many of them.
    """
    rng = Random(seed)  # noqa: S311 - a reproducible schedule, not a secret
    faults: list[Fault] = []
    deck: list[_Draw] = []
    at_s = duration_s / 10
    while (at_s := at_s + rng.uniform(0.5, 1.5) * every_s) < duration_s * 0.9:
        if not deck:
            deck = rng.sample(_DECK, len(_DECK))
        faults.append(deck.pop()(rng, at_s, rng.choice(streams)))
    return faults


_Draw: TypeAlias = Callable[[Random, float, str], Fault]

_DECK: Final[Sequence[_Draw]] = (
    lambda _, at_s, __: Disconnect(at_s),
    lambda _, at_s, __: Disconnect(at_s, "oldest"),
    lambda rng, at_s, _: Refuse(at_s, _brief(rng)),
    lambda rng, at_s, stream: Skip(at_s, stream, rng.randint(1, 20)),
    lambda rng, at_s, stream: Skip(at_s, stream, rng.randint(1, 20)),
    lambda rng, at_s, stream: Repeat(at_s, stream, rng.randint(1, 20)),
    lambda rng, at_s, _: Fragment(at_s, rng.randint(1, 5)),
    lambda rng, at_s, _: Inject(at_s, rng.choice(("invalid_json", "unknown_event"))),
    lambda rng, at_s, _: Shutdown(at_s, _brief(rng)),
    lambda rng, at_s, _: Stall(at_s, _brief(rng)),
    lambda rng, at_s, _: FailRest(at_s, _brief(rng), rng.choice(("internal", "busy", "timeout", "limited"))),
    lambda rng, at_s, _: Lag(at_s, _brief(rng), rng.randint(200, 2_000)),
    lambda rng, at_s, _: StaleBooks(at_s, _brief(rng)),
)


def _brief(rng: Random) -> float:
    return rng.uniform(0.5, 3.0)
