"""moto's server as we run it: what it accepted is there, however many put at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from moto.kinesis.models import Shard

from ingestor.local import moto_server
from tests.integration.engines import client_of, create_stream

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

CALLS, RECORDS = 12, 250


def test_records_are_numbered_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mended, a shard still does what it did."""
    monkeypatch.setattr(Shard, "put_record", Shard.put_record)  # put back afterwards
    monkeypatch.setattr(Shard, "get_max_sequence_number", Shard.get_max_sequence_number)
    moto_server.mend(Shard)
    shard: Any = Shard(0, 0, 2**128)
    assert shard.get_max_sequence_number() == 0
    assert [shard.put_record("a", "data", explicit_hash_key="") for _ in range(3)] == ["1", "2", "3"]
    assert [record.partition_key for record in shard.records.values()] == ["a", "a", "a"]


def put(client: KinesisClient, writer: int) -> None:
    for call in range(CALLS):
        client.put_records(
            StreamName="at-once",
            Records=[{"Data": b"%d %d %d" % (writer, call, n), "PartitionKey": "a"} for n in range(RECORDS)],
        )


@pytest.mark.integration
async def test_records_put_at_once_do_not_replace_each_other(moto_url: str) -> None:
    """Two calls in flight is what our producer has; moto alone loses some of these."""
    client = client_of(moto_url)
    await trio.to_thread.run_sync(create_stream, client, "at-once", 1)
    async with trio.open_nursery() as nursery:
        for writer in range(2):
            nursery.start_soon(trio.to_thread.run_sync, put, client, writer)
    shard = "shardId-000000000000"
    first = client.get_shard_iterator(StreamName="at-once", ShardId=shard, ShardIteratorType="TRIM_HORIZON")
    stored = client.get_records(ShardIterator=first["ShardIterator"], Limit=10_000)["Records"]
    assert len({record["Data"] for record in stored}) == 2 * CALLS * RECORDS
