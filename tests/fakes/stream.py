"""The read side of a Kinesis stream in memory: shards with parents, pages, time, expired iterators, scripted errors."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from ingestor.aws import RecordsPage, StoredRecord
from ingestor.core.errors import SinkError
from ingestor.core.shards import ShardInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestor.core.model import EntryFailure, PutEntry
    from ingestor.reader import IteratorKind

EXPIRED = SinkError("transient", "ExpiredIteratorException", "Iterator expired.")
THROTTLED = SinkError("throttled", "ProvisionedThroughputExceededException", "Rate exceeded for shard.")
NO_STREAM = SinkError("configuration", "ResourceNotFoundException", "Stream s under account 1 not found.")

EPOCH_MS = 1_700_000_000_000  # the wall clock when trio's clock is 0


def wall_ns() -> int:
    """Tell the time of day by trio's clock, so that a test controls both."""
    return EPOCH_MS * 1_000_000 + round(trio.current_time() * 1e9)


@dataclass
class FakeShard:
    """One shard; `empty_reads` pages without records come before the first one, as AWS is free to do."""

    parent: str | None = None
    adjacent_parent: str | None = None
    closed: bool = False
    records: list[StoredRecord] = field(default_factory=list[StoredRecord])
    empty_reads: int = 0


class FakeStream:
    """Streams by name are all this one. Iterators are `shard/position`; `errors` are raised by the next calls.

    `calls` holds what was asked: the name of the call and the time.
    """

    def __init__(self, shards: dict[str, FakeShard] | None = None) -> None:
        self.shards = {"s0": FakeShard()} if shards is None else shards
        self.errors: deque[SinkError | None] = deque()
        self.calls: list[tuple[str, float]] = []
        self.gives_iterators_for_ever = False

    def store(self, data: bytes, *, shard: str = "s0", key: str = "k", arrival_ms: int | None = None) -> None:
        """Put one record in, arriving now unless said otherwise."""
        records = self.shards[shard].records
        arrival = wall_ns() // 1_000_000 if arrival_ms is None else arrival_ms
        records.append(StoredRecord(data, key, arrival, f"{shard}:{len(records)}"))

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryFailure | None]:
        """Take entries as a sink does, so that what was written can be read back."""
        await self._answer("put")
        for entry in entries:
            self.store(entry.data, key=entry.partition_key)
        return [None] * len(entries)

    async def list_shards(self, stream: str) -> list[ShardInfo]:
        """All shards."""
        assert stream
        await self._answer("list_shards")
        return [
            ShardInfo(name, shard.parent, shard.adjacent_parent, 0, 1, shard.closed)
            for name, shard in self.shards.items()
        ]

    async def get_shard_iterator(
        self,
        stream: str,
        shard_id: str,
        kind: IteratorKind,
        *,
        timestamp_ms: int | None = None,
        sequence: str | None = None,
    ) -> str:
        """Find the position."""
        assert stream
        await self._answer(f"iterator {kind}")
        records = self.shards[shard_id].records
        if kind == "LATEST":
            position = len(records)
        elif kind == "AT_TIMESTAMP":
            assert timestamp_ms is not None
            position = sum(record.arrival_ms < timestamp_ms for record in records)
        elif kind == "AFTER_SEQUENCE_NUMBER":
            position = [record.sequence_number for record in records].index(sequence or "") + 1
        else:
            position = 0
        return f"{shard_id}/{position}"

    async def get_records(self, iterator: str, limit: int = 10_000) -> RecordsPage:
        """Read a page."""
        await self._answer("get_records")
        shard_id, _, position = iterator.partition("/")
        shard, start = self.shards[shard_id], int(position)
        if shard.empty_reads:
            shard.empty_reads -= 1
            return RecordsPage([], iterator, 1_000)
        page = shard.records[start : start + limit]
        end = start + len(page)
        is_read = end == len(shard.records)
        is_over = is_read and shard.closed and not self.gives_iterators_for_ever
        return RecordsPage(page, None if is_over else f"{shard_id}/{end}", 0 if is_read else 1_000)

    async def _answer(self, call: str) -> None:
        self.calls.append((call, trio.current_time()))
        await trio.lowlevel.checkpoint()
        error = self.errors.popleft() if self.errors else None
        if error is not None:
            raise error

    def times_of(self, call: str) -> list[float]:
        """When `call` was made."""
        return [at_s for name, at_s in self.calls if name == call]
