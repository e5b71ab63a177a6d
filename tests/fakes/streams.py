"""Kinesis streams in memory with both sides, writing and reading, and failures that a test decides on."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Literal

import trio

from ingestor.aws import RecordsPage, StoredRecord, StreamSummary
from ingestor.core.errors import SinkError
from ingestor.core.shards import ShardInfo
from tests.fakes.kinesis import shard_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ingestor.core.model import EntryFailure, EntryResult, PutEntry

HASH_KEYS = 1 << 128


class MemoryStream:
    """One stream that outlives the services which write to it.

    `before_put` is awaited with the entries of a call before anything is stored: it may wait, raise `SinkError`, or
    return failures by position. `after_put` is awaited when they are stored: raising there is an answer that was lost.
    `on_stored` is told the shard of every record that is stored, and who wrote it.
    """

    def __init__(self, wall_ns: Callable[[], int], *, shards: int = 1) -> None:
        self.shards: list[list[StoredRecord]] = [[] for _ in range(shards)]
        self.before_put: Callable[[Sequence[PutEntry]], Awaitable[list[EntryFailure | None] | None]] | None = None
        self.after_put: Callable[[], Awaitable[None]] | None = None
        self.on_stored: Callable[[int, StoredRecord, int], None] | None = None
        self.calls = 0
        self._wall_ns = wall_ns

    async def put(self, entries: Sequence[PutEntry], writer: int = 0) -> Sequence[EntryResult]:
        """Store what is not refused; `writer` says whose call it is."""
        self.calls += 1
        await trio.lowlevel.checkpoint()
        failures = await self.before_put(entries) if self.before_put is not None else None
        results = [
            failure or self._store(entry, writer)
            for entry, failure in zip(entries, failures or [None] * len(entries), strict=True)
        ]
        if self.after_put is not None:
            await self.after_put()
        return results

    def _store(self, entry: PutEntry, writer: int) -> str:
        number = shard_of(entry, len(self.shards))
        shard = self.shards[number]
        record = StoredRecord(entry.data, entry.partition_key, self._wall_ns() // 1_000_000, str(len(shard)))
        shard.append(record)
        if self.on_stored is not None:
            self.on_stored(number, record, writer)
        return str(number)

    def records(self) -> list[StoredRecord]:
        """Everything that is stored, shard by shard."""
        return [record for shard in self.shards for record in shard]


class MemoryStreams:
    """The reading side of several streams.

    `before_read` may raise or wait, for every call; `is_page_empty` may have a page come empty that is not the end.
    """

    def __init__(self, streams: dict[str, MemoryStream], *, distribution: str | None = None) -> None:
        self._streams = streams
        self._distribution = distribution
        self.before_read: Callable[[], Awaitable[None]] | None = None
        self.is_page_empty: Callable[[], bool] | None = None

    async def describe(self, stream: str) -> StreamSummary:
        """Say what a stream is."""
        shards, arn = len((await self._find(stream)).shards), f"arn:aws:kinesis:::stream/{stream}"
        return StreamSummary(arn, "ACTIVE", "PROVISIONED", shards, 24, 1024, self._distribution)

    async def list_shards(self, stream: str) -> list[ShardInfo]:
        """Divide the hash space evenly."""
        count = len((await self._find(stream)).shards)
        edges = [HASH_KEYS * number // count for number in range(count + 1)]
        return [
            ShardInfo(str(number), None, None, edges[number], edges[number + 1] - 1, closed=False)
            for number in range(count)
        ]

    async def get_shard_iterator(
        self,
        stream: str,
        shard_id: str,
        kind: Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP", "AFTER_SEQUENCE_NUMBER", "AT_SEQUENCE_NUMBER"],
        *,
        timestamp_ms: int | None = None,
        sequence: str | None = None,
    ) -> str:
        """Find a place; an iterator is stream, shard and position."""
        shard = (await self._find(stream)).shards[int(shard_id)]
        places = {
            "TRIM_HORIZON": 0,
            "LATEST": len(shard),
            "AT_TIMESTAMP": bisect_left(shard, timestamp_ms or 0, key=lambda record: record.arrival_ms),
            "AFTER_SEQUENCE_NUMBER": int(sequence or 0) + 1,
            "AT_SEQUENCE_NUMBER": int(sequence or 0),
        }
        return f"{stream}/{shard_id}/{places[kind]}"

    async def get_records(self, iterator: str, limit: int = 10_000) -> RecordsPage:
        """Read on."""
        stream, shard_id, place = iterator.split("/")
        shard = (await self._find(stream)).shards[int(shard_id)]
        if self.is_page_empty is not None and self.is_page_empty():
            return RecordsPage([], iterator, 1)
        page = shard[int(place) : int(place) + limit]
        end = int(place) + len(page)
        return RecordsPage(page, f"{stream}/{shard_id}/{end}", 0 if end == len(shard) else 1)

    async def _find(self, stream: str) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        if self.before_read is not None:
            await self.before_read()
        if stream not in self._streams:
            raise SinkError("configuration", "ResourceNotFoundException", f"Stream {stream} not found.")
        return self._streams[stream]
