"""A consumer that behaves as the Kinesis Client Library does where it can hurt a producer (facts/aws.md §2.3).

It reads a shard to its end before it begins the shard's children. Of an aggregated record it looks at every record
inside: if the hash of one of them, its explicit hash key or else the MD5 of its partition key, lies outside of the
shard, it throws the whole record away without a word (`AggregatorUtil.java` of KCL 2 and 3). Here that is noted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import md5
from typing import TYPE_CHECKING, Any, NamedTuple

from ingestor.core.kpl import MAGIC, disaggregate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import ShardTypeDef


class Received(NamedTuple):
    """A record of a user, and the shard that it came out of."""

    shard_id: str
    partition_key: str
    data: bytes


@dataclass
class Consumer:
    """What was received, in the order of processing, and what was thrown away."""

    received: list[Received] = field(default_factory=list[Received])
    discarded: list[bytes] = field(default_factory=list[bytes])

    def read(self, client: KinesisClient, stream: str) -> None:
        """Read all there is, parents before their children. Blocks."""
        for shard in parents_first(client.list_shards(StreamName=stream)["Shards"]):
            for record in records_of(client, stream, shard["ShardId"]):
                self.process(shard, record["Data"], record["PartitionKey"])

    def process(self, shard: ShardTypeDef, data: bytes, partition_key: str) -> None:
        """Take a stored record apart, or throw it away."""
        keys = shard["HashKeyRange"]
        inner = disaggregate(data, partition_key)
        hashes = [
            int(record.explicit_hash_key) if record.explicit_hash_key else hash_of(record.partition_key)
            for record in inner
        ]
        is_ours = all(int(keys["StartingHashKey"]) <= each <= int(keys["EndingHashKey"]) for each in hashes)
        if data.startswith(MAGIC) and not is_ours:
            self.discarded.append(data)
        else:
            self.received += [Received(shard["ShardId"], record.partition_key, record.data) for record in inner]


def hash_of(partition_key: str) -> int:
    """Return the hash key that Kinesis gives to a partition key."""
    return int.from_bytes(md5(partition_key.encode(), usedforsecurity=False).digest(), "big")


def parents_first(shards: Sequence[ShardTypeDef]) -> Iterator[ShardTypeDef]:
    """Give every shard after those that it was made of."""
    left = {shard["ShardId"]: shard for shard in shards}
    while left:
        orphans = [
            shard_id
            for shard_id, shard in left.items()
            if shard.get("ParentShardId") not in left and shard.get("AdjacentParentShardId") not in left
        ]
        for shard_id in sorted(orphans):
            yield left.pop(shard_id)


def records_of(client: KinesisClient, stream: str, shard_id: str) -> Iterator[Any]:
    """Give the records of one shard, up to its end or to where nothing more is."""
    iterator = client.get_shard_iterator(StreamName=stream, ShardId=shard_id, ShardIteratorType="TRIM_HORIZON")
    token: str | None = iterator["ShardIterator"]
    while token is not None:
        page = client.get_records(ShardIterator=token)
        yield from page["Records"]
        token = page.get("NextShardIterator") if page["MillisBehindLatest"] else None
