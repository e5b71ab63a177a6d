"""A stream changes its shape under load: nothing is lost, nothing is thrown away, every key stays in order."""

from __future__ import annotations

import warnings
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import pytest
import trio

from tests.fakes.fault_proxy import Faults, open_fault_proxy
from tests.integration.delivery import SYMBOLS, Line, first_arrivals, settings_for
from tests.integration.engines import CREDENTIALS, client_of, create_stream, stream_name_of
from tests.integration.kcl import Consumer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its protobuf code of 2022 uses is deprecated since
    from aws_kinesis_agg.aggregator import RecordAggregator

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import ShardTypeDef

    from ingestor.core.shards import ShardInfo

pytestmark = pytest.mark.integration

PER_SYMBOL = 900
PACE_S = 0.012  # between two batches of thirty records: some seconds of load
DEADLINE_S = 40.0


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def open_shards(client: KinesisClient, stream: str) -> list[ShardTypeDef]:
    """Return the shards that still take records, in the order of their hash keys."""
    shards = client.list_shards(StreamName=stream)["Shards"]
    still_open = [shard for shard in shards if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]
    return sorted(still_open, key=lambda shard: int(shard["HashKeyRange"]["StartingHashKey"]))


async def split(client: KinesisClient, stream: str) -> None:
    """Split the first shard in the middle."""
    [first, *_] = await trio.to_thread.run_sync(open_shards, client, stream)
    keys = first["HashKeyRange"]
    middle = (int(keys["StartingHashKey"]) + int(keys["EndingHashKey"])) // 2
    call = partial(client.split_shard, StreamName=stream, NewStartingHashKey=str(middle), ShardToSplit=first["ShardId"])
    await trio.to_thread.run_sync(call)


async def merge(client: KinesisClient, stream: str) -> None:
    """Merge the second shard with the third."""
    _, left, right = await trio.to_thread.run_sync(open_shards, client, stream)
    call = partial(client.merge_shards, StreamName=stream, ShardToMerge=left["ShardId"])
    await trio.to_thread.run_sync(partial(call, AdjacentShardToMerge=right["ShardId"]))


async def test_a_split_and_a_merge_under_load_lose_nothing_and_keep_every_key_in_order(
    kinesis_local_url: str, request: pytest.FixtureRequest
) -> None:
    """Two shards become three and two again while records flow and some are refused; a consumer reads as KCL does.

    The producer finds the new shards by itself: the answers to its puts name them.
    """
    stream = stream_name_of(request.node.name)
    client = client_of(kinesis_local_url)
    await trio.to_thread.run_sync(create_stream, client, stream, 2)
    maps: list[set[str]] = []

    def note(shards: list[ShardInfo]) -> None:
        maps.append({shard.shard_id for shard in shards if not shard.closed})

    with trio.fail_after(DEADLINE_S):
        async with open_fault_proxy(kinesis_local_url, faults=Faults(throttled_entries=0.1), seed=4) as proxy:
            line = Line(settings_for(proxy.url, stream, "kpl"), on_shards=note)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(line.deliver, PER_SYMBOL, pace_s=PACE_S))
                await line.wait_claimed(PER_SYMBOL // 5)
                await split(client, stream)
                await line.wait_claimed(PER_SYMBOL * 3 // 5)
                await merge(client, stream)
        order = proxy.order_of(stream)
        assert (order.overtaken, order.overlapping) == ([], [])
        assert proxy.seen("ProvisionedThroughputExceededException") > 0
        consumer = Consumer()
        await trio.to_thread.run_sync(consumer.read, client, stream)
        last = await trio.to_thread.run_sync(open_shards, client, stream)

    assert consumer.discarded == []
    places: set[tuple[str, ...]] = set()
    for symbol in SYMBOLS:
        own = [record for record in consumer.received if record.partition_key == symbol]
        assert [record.data for record in own] == [b"%s %d" % (symbol.encode(), n) for n in range(1, PER_SYMBOL + 1)]
        places.add(tuple(first_arrivals(record.shard_id for record in own)))
        assert list(line.claimed[symbol]) == [(1, PER_SYMBOL)]
    assert {place[0] for place in places} == maps[0]
    assert max(map(len, places)) == 3  # some keys were moved twice
    shapes = [shards for shards, _ in groupby(maps)]
    assert [len(shards) for shards in shapes] == [2, 3, 2]
    assert shapes[-1] == {shard["ShardId"] for shard in last}
    assert line.metrics.registry.get_sample_value("kinesis_shards") == 2


def test_the_consumer_throws_away_what_was_aggregated_without_one_hash_for_all() -> None:
    """As the library does that AWS published for Python: one record of a symbol that hashes elsewhere, all are gone."""
    aggregator = RecordAggregator()
    for symbol in SYMBOLS:
        aggregator.add_user_record(symbol, b"data")
    blob = aggregator.clear_and_get()
    assert blob is not None
    partition_key, _, data = blob.get_contents()
    consumer = Consumer()
    half: ShardTypeDef = {
        "ShardId": "lower",
        "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": str(2**127 - 1)},
        "SequenceNumberRange": {"StartingSequenceNumber": "1"},
    }
    consumer.process(half, data, partition_key)
    assert (len(consumer.discarded), consumer.received) == (1, [])
    whole: ShardTypeDef = {**half, "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": str(2**128 - 1)}}
    consumer.process(whole, data, partition_key)
    assert [record.partition_key for record in consumer.received] == list(SYMBOLS)
