"""What is subscribed to, spread over connections, and the conversation in which the venue is asked for it.

Both can change at any time: the start is the first change. Pure: names and messages in and out. Facts about the venue
are from facts/binance.md §2 and §3, read 2026-11-23.
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

Method: TypeAlias = Literal["SUBSCRIBE", "UNSUBSCRIBE"]


def expand(symbols: Iterable[str], streams: Iterable[str], kline_intervals: Iterable[str]) -> list[Subscription]:
    """Return every (symbol, kind) of a configuration once, in order of symbol and kind."""
    kinds = [kind for stream in streams for kind in kinds_of(stream, kline_intervals)]
    return sorted({Subscription(symbol.upper(), kind) for symbol in symbols for kind in kinds})


def kinds_of(stream: str, kline_intervals: Iterable[str]) -> list[str]:
    """Return the kinds that a configured stream stands for: one, or one for each interval of `kline`."""
    return [f"kline_{interval}" for interval in kline_intervals] if stream == "kline" else [stream]


def plan_connections(subscriptions: Iterable[Subscription], max_streams: int) -> list[tuple[Subscription, ...]]:
    """Spread the subscriptions over as few connections as `max_streams` allows, in shares that differ by one at most.

    The same set gives the same plan in whatever order it comes. Neighbours stay together, so that every connection
    carries its part of each kind: dealing them out in turn would put all depth on one connection of three.
    """
    ordered = sorted(set(subscriptions))
    count = -(-len(ordered) // max_streams)
    bounds = [len(ordered) * index // count for index in range(count + 1)] if count else []
    return [tuple(ordered[first:end]) for first, end in pairwise(bounds)]


class Shares:
    """Which share of the subscriptions every connection carries, by number, at most `max_streams` each.

    A change moves nothing: what a share carries stays there, what is added goes where there is most room, and only what
    finds none makes new shares. So what stays flows on undisturbed, and shares may grow uneven; a restart evens them
    out. A number is never given twice.
    """

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._shares: dict[int, tuple[Subscription, ...]] = {}
        self._next_number = 0

    def change(self, wanted: Iterable[Subscription]) -> dict[int, tuple[Subscription, ...]]:
        """Carry `wanted` and nothing else from now on; return the shares that changed, an empty one for the last time.

        From nothing, this is `plan_connections`.
        """
        new = set(wanted)
        left = {number: [each for each in share if each in new] for number, share in self._shares.items()}
        homeless = []
        for subscription in sorted(new.difference(*self._shares.values())):
            roomiest = min(left.values(), key=len, default=None)
            if roomiest is not None and len(roomiest) < self._max_streams:
                roomiest.append(subscription)
            else:
                homeless.append(subscription)
        for planned in plan_connections(homeless, self._max_streams):
            left[self._next_number] = list(planned)
            self._next_number += 1
        after = {number: tuple(share) for number, share in left.items()}
        changed = {number: share for number, share in after.items() if share != self._shares.get(number)}
        self._shares = {number: share for number, share in after.items() if share}
        return changed


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

    What is wanted may change at any time. Ends are asked for before beginnings, so that a connection never carries more
    than it is planned to; what is wanted again before its end was asked for is left as it is.
    """

    def __init__(self, subscriptions: Iterable[Subscription]) -> None:
        self.refused: list[Subscription] = []
        self._wanted: dict[Subscription, None] = {}
        self._told = set[Subscription]()  # asked for, and not asked to end or refused since
        self._granted = set[Subscription]()
        self._to_end: dict[Subscription, None] = {}
        self._to_begin: dict[Subscription, None] = {}
        self._halves = deque[tuple[Subscription, ...]]()
        self._ended: list[Subscription] = []
        self._next_id = 1
        self._unanswered: dict[int, Request] = {}
        self.change(subscriptions)

    @property
    def acknowledged(self) -> int:
        """How many of the wanted subscriptions were granted; asking for them again takes nothing away."""
        return len(self._granted & self._wanted.keys())

    @property
    def is_settled(self) -> bool:
        """Everything was sent and answered."""
        return not (self._to_end or self._to_begin or self._halves or self._unanswered)

    def change(self, subscriptions: Iterable[Subscription]) -> None:
        """Want `subscriptions`, and nothing else, from now on."""
        before, self._wanted = self._wanted, dict.fromkeys(subscriptions)
        gone = before.keys() - self._wanted.keys()
        halves = (tuple(each for each in share if each not in gone) for share in self._halves)
        self._halves = deque(share for share in halves if share)
        self.refused = [each for each in self.refused if each not in gone]
        under_way = set[Subscription]().union(*(request.subscriptions for request in self._unanswered.values()))
        for each in before:
            if each in gone:
                self._to_begin.pop(each, None)
                if each in self._told:
                    self._to_end[each] = None
                elif each not in under_way:  # never asked for, or refused
                    self._end([each])
        for each in self._wanted:
            if each not in before:
                self._to_end.pop(each, None)
                if each not in self._told:
                    self._to_begin[each] = None

    def ask_again(self, subscriptions: Iterable[Subscription]) -> None:
        """Have streams that are granted but dead ended and begun anew, those that are still wanted."""
        self._to_end.update((each, None) for each in subscriptions if each in self._wanted and each in self._told)

    def next_request(self) -> Request | None:
        """Return the message to send now and count it as sent; None while there is nothing to ask."""
        if self._to_end:
            share = split_for_messages(self._to_end)[0]
            for each in share:
                del self._to_end[each]
                if each in self._wanted:
                    self._to_begin[each] = None
            self._told.difference_update(share)
            return self._request("UNSUBSCRIBE", share)
        if not self._halves and not self._to_begin:
            return None
        share = self._halves.popleft() if self._halves else split_for_messages(self._to_begin)[0]
        for each in share:
            self._to_begin.pop(each, None)
        self._told.update(share)
        return self._request("SUBSCRIBE", share)

    def acknowledge(self, request_id: int | str | None) -> None:
        """Note that the venue granted a message; an id that is not ours says nothing."""
        request = self._unanswered.pop(request_id, None) if isinstance(request_id, int) else None
        if request is None:
            return
        if request.method == "SUBSCRIBE":
            self._granted.update(self._told.intersection(request.subscriptions))
        else:
            self._end(request.subscriptions)

    def refuse(self, request_id: int | str | None) -> tuple[Subscription, ...]:
        """Note that the venue refused a message; return the subscriptions that are given up with it.

        The id can be missing. The venue answers one message after the other, so it is then the oldest one that is
        meant.
        """
        if request_id is None:
            request_id = next(iter(self._unanswered), None)
        request = self._unanswered.pop(request_id, None) if isinstance(request_id, int) else None
        if request is None:
            return ()
        if request.method == "UNSUBSCRIBE":
            self._end(request.subscriptions)
            return ()
        self._end([each for each in request.subscriptions if each in self._told])
        self._told.difference_update(request.subscriptions)
        for each in request.subscriptions:
            self._to_end.pop(each, None)
        share = tuple(each for each in request.subscriptions if each in self._wanted)
        if len(request.subscriptions) > 1:
            middle = len(share) // 2
            self._halves.extend(half for half in (share[:middle], share[middle:]) if half)
            return ()
        self.refused += share
        return share

    def take_ended(self) -> list[Subscription]:
        """Return, each once, what has ended: nothing of it comes any more, or only late.

        The venue has answered to its end, or never had it begun.
        """
        ended = [each for each in self._ended if each not in self._wanted]
        self._ended = []
        return ended

    def _end(self, subscriptions: Iterable[Subscription]) -> None:
        for each in subscriptions:
            if each not in self._wanted:
                self._granted.discard(each)
                self._ended.append(each)

    def _request(self, method: Method, share: tuple[Subscription, ...]) -> Request:
        request = self._unanswered[self._next_id] = Request(self._next_id, share, method)
        self._next_id += 1
        return request
