"""What is subscribed to, spread over connections, and the conversation in which the venue is asked for it.

Pure: names and messages in and out. Facts about the venue are from facts/binance.md §2 and §3, read 2026-11-23.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from ingestor.core.model import Subscription

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

# A SUBSCRIBE message of more than about 4096 bytes on the wire gets no reply and subscribes nothing, while the
# connection stays up; names may hold non-ASCII UTF-8, so bytes are what is counted.
MAX_SUBSCRIBE_BYTES: Final = 3_500
MAX_SUBSCRIBE_NAMES: Final = 150

DEPTH_SUFFIX: Final = "depth@100ms"

Method: TypeAlias = Literal["SUBSCRIBE", "UNSUBSCRIBE"]


def expand(symbols: Iterable[str], streams: Iterable[str], kline_intervals: Iterable[str]) -> list[Subscription]:
    """Return every (symbol, kind) of a configuration once, in order of symbol and kind."""
    kinds = [kind for stream in streams for kind in kinds_of(stream, kline_intervals)]
    return sorted({Subscription(symbol.upper(), kind) for symbol in symbols for kind in kinds})


def kinds_of(stream: str, kline_intervals: Iterable[str]) -> list[str]:
    """Return the kinds that a configured stream stands for: one, or one for each interval of `kline`."""
    return [f"kline_{interval}" for interval in kline_intervals] if stream == "kline" else [stream]


def parse_stream_name(name: str) -> Subscription:
    """Return the subscription that the venue calls `name`; ValueError for a name that we never subscribe to."""
    symbol, separator, suffix = name.partition("@")
    if symbol and separator and suffix == DEPTH_SUFFIX:
        return Subscription(symbol.upper(), "depth")
    if symbol and separator and (suffix == "trade" or (suffix.startswith("kline_") and "@" not in suffix)):
        return Subscription(symbol.upper(), suffix)
    raise ValueError(f"not a stream name of ours: {name!r}")


def plan_connections(subscriptions: Iterable[Subscription], max_streams: int) -> list[tuple[Subscription, ...]]:
    """Spread the subscriptions over as few connections as `max_streams` allows, in shares that differ by one at most.

    The same set gives the same plan in whatever order it comes. Neighbours stay together, so that every connection
    carries its part of each kind: dealing them out in turn would put all depth on one connection of three.
    """
    ordered = sorted(set(subscriptions))
    count = -(-len(ordered) // max_streams)
    bounds = [len(ordered) * index // count for index in range(count + 1)] if count else []
    return [tuple(ordered[first:end]) for first, end in pairwise(bounds)]


def subscribe_message(subscriptions: Sequence[Subscription], request_id: int, method: Method = "SUBSCRIBE") -> bytes:
    """Return the JSON text that asks for `subscriptions`; the venue answers with `request_id`."""
    params = [subscription.stream_name for subscription in subscriptions]
    return msgspec.json.encode({"method": method, "params": params, "id": request_id})


def split_for_messages(subscriptions: Iterable[Subscription]) -> list[tuple[Subscription, ...]]:
    """Cut the subscriptions, in their order, into shares that fit into one SUBSCRIBE message each."""
    shares: list[tuple[Subscription, ...]] = []
    share: list[Subscription] = []
    room_bytes = 0
    for subscription in subscriptions:
        size_bytes = len(subscription.stream_name.encode()) + 3  # quotes and comma
        if not share or size_bytes > room_bytes or len(share) == MAX_SUBSCRIBE_NAMES:
            shares += [tuple(share)] if share else []
            share, room_bytes = [], MAX_SUBSCRIBE_BYTES - len(subscribe_message((), 2**53, "UNSUBSCRIBE"))
        share.append(subscription)
        room_bytes -= size_bytes
    return [*shares, tuple(share)] if share else shares


@dataclass(frozen=True, slots=True)
class Request:
    """A message that is to be sent, and what it asks for."""

    id: int
    subscriptions: tuple[Subscription, ...]
    method: Method = "SUBSCRIBE"

    @property
    def message(self) -> str:
        """The JSON text of it."""
        return subscribe_message(self.subscriptions, self.id, self.method).decode()


class Subscribing:
    """The conversation that subscribes one connection: what to send next, what the venue has granted and what refused.

    One bad name makes the venue refuse the whole message. The names of a refused message are asked for again in two
    halves, until the bad one stands alone and is given up. An acknowledgement proves syntax only: a symbol that does
    not exist is acknowledged, and stays silent.
    """

    def __init__(self, subscriptions: Iterable[Subscription]) -> None:
        self.refused: list[Subscription] = []
        self._granted: set[Subscription] = set()
        self._next_id = 1
        self._to_send = deque[tuple[Method, tuple[Subscription, ...]]]()
        self._unanswered: dict[int, Request] = {}
        self._ask("SUBSCRIBE", split_for_messages(subscriptions))

    @property
    def acknowledged(self) -> int:
        """How many subscriptions were granted; asking for them again takes nothing away."""
        return len(self._granted)

    @property
    def is_settled(self) -> bool:
        """Everything was sent and answered."""
        return not self._to_send and not self._unanswered

    def ask_again(self, subscriptions: Iterable[Subscription]) -> None:
        """Have streams that are granted but dead ended and begun anew."""
        shares = split_for_messages(subscriptions)
        self._ask("UNSUBSCRIBE", shares)
        self._ask("SUBSCRIBE", shares)

    def next_request(self) -> Request | None:
        """Return the message to send now and count it as sent; None while there is nothing to ask."""
        if not self._to_send:
            return None
        method, share = self._to_send.popleft()
        request = self._unanswered[self._next_id] = Request(self._next_id, share, method)
        self._next_id += 1
        return request

    def acknowledge(self, request_id: int | str | None) -> None:
        """Note that the venue granted a message; an id that is not ours says nothing."""
        request = self._unanswered.pop(request_id, None) if isinstance(request_id, int) else None
        if request is not None and request.method == "SUBSCRIBE":
            self._granted.update(request.subscriptions)

    def refuse(self, request_id: int | str | None) -> tuple[Subscription, ...]:
        """Note that the venue refused a message; return the subscriptions that are given up with it.

        The id can be missing. The venue answers one message after the other, so it is then the oldest one that is
        meant.
        """
        if request_id is None:
            request_id = next(iter(self._unanswered), None)
        request = self._unanswered.pop(request_id, None) if isinstance(request_id, int) else None
        if request is None or request.method == "UNSUBSCRIBE":
            return ()
        share = request.subscriptions
        if len(share) > 1:
            middle = len(share) // 2
            self._ask("SUBSCRIBE", [share[:middle], share[middle:]])
            return ()
        self.refused += share
        return share

    def _ask(self, method: Method, shares: Iterable[tuple[Subscription, ...]]) -> None:
        self._to_send.extend((method, share) for share in shares)
