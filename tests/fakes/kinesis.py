"""A Kinesis stream in memory: does what it is told, remembers what it was asked, and stores as the real one would."""

from __future__ import annotations

from collections import deque
from hashlib import md5
from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import trio

from ingestor.core.errors import SinkError
from ingestor.core.kpl import InnerRecord, disaggregate
from ingestor.core.model import EntryFailure, PutEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ingestor.core.model import EntryResult

THROTTLED = EntryFailure("ProvisionedThroughputExceededException", "Rate exceeded for shard shardId-000000000000")
INTERNAL = EntryFailure("InternalFailure", "Internal service failure.")
ODD = EntryFailure("OddException", "nobody knows")

UNAVAILABLE = SinkError("transient", "ServiceUnavailable", "try later", may_have_landed=True)
OVERALL_THROTTLE = SinkError("throttled", "ThrottlingException", "Rate exceeded")
NO_STREAM = SinkError("configuration", "ResourceNotFoundException", "Stream s under account 1 not found.")
INVALID = SinkError("poison", "ValidationException", "1 validation error detected")


class LandedThenFailed(NamedTuple):
    """A call that was stored, and whose answer never came."""

    error: SinkError


Step: TypeAlias = "SinkError | LandedThenFailed | Callable[[Sequence[PutEntry]], list[EntryFailure | None]]"


class Put(NamedTuple):
    """One call: when it came, and with what."""

    at_s: float
    entries: list[PutEntry]


class FakeKinesis:
    """Plays `script` step by step, then accepts everything (or `always`).

    Entries of a call are stored in any order (`rng`), because the real one promises none. Each takes `latency_s`.
    """

    def __init__(
        self,
        script: Iterable[Step] = (),
        *,
        always: Step | None = None,
        shards: int = 1,
        latency_s: float = 0.0,
        rng: Random | None = None,
    ) -> None:
        self.puts: list[Put] = []
        self.script = deque(script)
        self.always = always
        self.shards: list[list[PutEntry]] = [[] for _ in range(shards)]
        self.latency_s = latency_s
        self.in_flight = 0
        self.most_in_flight = 0
        self._rng = rng or Random(1)

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryResult]:
        """Do what the script says; shards are called by their number."""
        self.puts.append(Put(trio.current_time(), list(entries)))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await trio.sleep(self.latency_s)
        finally:
            self.in_flight -= 1
        step = self.script.popleft() if self.script else self.always
        if isinstance(step, SinkError):
            raise step
        failures = [None] * len(entries) if step is None or isinstance(step, LandedThenFailed) else step(entries)
        places = [shard_of(entry, len(self.shards)) for entry in entries]
        accepted = [
            (entry, place) for entry, place, failure in zip(entries, places, failures, strict=True) if failure is None
        ]
        self._rng.shuffle(accepted)
        for entry, place in accepted:
            self.shards[place].append(entry)
        if isinstance(step, LandedThenFailed):
            raise step.error
        return [failure or str(place) for failure, place in zip(failures, places, strict=True)]

    @property
    def times(self) -> list[float]:
        """When the calls came."""
        return [put.at_s for put in self.puts]

    def stored(self) -> list[InnerRecord]:
        """Every record that is in the stream, shard by shard, in order."""
        return [
            inner for shard in self.shards for entry in shard for inner in disaggregate(entry.data, entry.partition_key)
        ]

    def stored_by_key(self) -> dict[str, list[bytes]]:
        """Sort the data that is in the stream by partition key, in order."""
        by_key: dict[str, list[bytes]] = {}
        for inner in self.stored():
            by_key.setdefault(inner.partition_key, []).append(inner.data)
        return by_key


def shard_of(entry: PutEntry, shards: int) -> int:
    """Route an entry as Kinesis does, over shards that divide the hash space evenly."""
    if entry.explicit_hash_key is not None:
        hashed = int(entry.explicit_hash_key)
    else:
        hashed = int.from_bytes(md5(entry.partition_key.encode(), usedforsecurity=False).digest(), "big")
    return hashed * shards >> 128


def refuse(failure: EntryFailure, *positions: int) -> Callable[[Sequence[PutEntry]], list[EntryFailure | None]]:
    """Make a step that refuses the entries at `positions` (all of them without any) and accepts the others."""
    return lambda entries: [
        failure if not positions or position in positions else None for position in range(len(entries))
    ]


def refuse_data(failure: EntryFailure, data: bytes) -> Callable[[Sequence[PutEntry]], list[EntryFailure | None]]:
    """Make a step that refuses entries with `data` inside."""
    return lambda entries: [failure if data in entry.data else None for entry in entries]


def invalid_with(data: bytes) -> Callable[[Sequence[PutEntry]], list[EntryFailure | None]]:
    """Make a step that refuses the whole call when `data` is inside of it."""

    def answer(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        if any(data in entry.data for entry in entries):
            raise INVALID
        return [None] * len(entries)

    return answer
