"""Heartbeats and the reader on real engines: a task writes, dies, and the next one knows what is missing."""

from __future__ import annotations

import time
from functools import partial
from random import Random

import pytest
import trio
from prometheus_client import CollectorRegistry

from ingestor.aws import KinesisApi, KinesisSink, StreamClient, make_kinesis_client
from ingestor.core.claims import Coverage
from ingestor.core.health import HealthBoard
from ingestor.core.intake import Begin
from ingestor.core.model import Claim, EntryFailure, PutEntry, Subscription
from ingestor.core.resume import Identity, Resume, Resumed
from ingestor.heartbeat import Author, HeartbeatWriter, ReadBack
from ingestor.metrics import Metrics
from ingestor.reader import OLDEST, ShardPage, StreamReader
from ingestor.serializer import decode_heartbeat, encode_heartbeat
from ingestor.threads import open_threads
from tests.integration.delivery import settings_for
from tests.integration.engines import CREDENTIALS, client_of, create_stream, stream_name_of

pytestmark = pytest.mark.integration

US = Identity("ingestor", "test", "venue.test", "us-east-1/data")
NAMES = [Subscription(f"COIN{number}USDT", "trade") for number in range(450)]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def api_of(url: str, stream: str) -> KinesisApi:
    settings = settings_for(url, stream, "none")
    return KinesisApi(lambda: make_kinesis_client(settings), open_threads(4))


def reader_of(url: str, stream: str) -> StreamReader:
    return StreamReader(
        StreamClient(api_of(url, stream)), stream, is_patient=True, pace_s=0.0, poll_s=0.2, jitter=Random(1)
    )


async def run_a_task(url: str, stream: str, *, from_id: int, to_id: int) -> None:
    """Begin every subscription, acknowledge some ids, write one more beat and die without a word."""
    coverage = Coverage()
    writer = HeartbeatWriter(
        KinesisSink(api_of(url, stream), stream),
        encode_heartbeat,
        author=Author(US, f"task-{from_id}", "1", 0),
        coverage=coverage,
        interval_s=0.5,
        counters=dict,
        components=dict,
        event_ms=lambda _: 1_000,
        board=HealthBoard(),
        metrics=Metrics(CollectorRegistry()),
        wall_ns=time.time_ns,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        await writer.admit([Begin(name, from_id, 1_000) for name in NAMES])
        coverage.acknowledge([Claim(name, from_id, to_id) for name in NAMES])
        await trio.sleep(1.2)
        nursery.cancel_scope.cancel()


async def test_a_new_task_finds_what_old_ones_left_undone(engine_url: str, request: pytest.FixtureRequest) -> None:
    """Two tasks wrote beats of three parts over two shards; what lies between them and after them is missing."""
    stream = stream_name_of(request.node.name)
    await trio.to_thread.run_sync(create_stream, client_of(engine_url), stream, 2)
    with trio.fail_after(40):
        await run_a_task(engine_url, stream, from_id=1, to_id=20)
        await run_a_task(engine_url, stream, from_id=26, to_id=30)
        await trio.sleep(1.6)  # three intervals: they are dead
        coverage = Coverage()
        resume = Resume(coverage, NAMES, identity=US, instance="new", lookback_s=700.0)
        for name in NAMES:
            coverage.originate(name, 34)
            resume.begin(name, 34, 1_000)
        answers: list[Resumed] = []
        started_ms = time.time_ns() // 1_000_000
        read_back = ReadBack(
            reader_of(engine_url, stream), resume, decode_heartbeat, started_ms=started_ms, wall_ns=time.time_ns
        )
        await read_back.run(answers.append)
    assert {answer.subscription for answer in answers} == set(NAMES)
    assert all(list(answer.missing) == [(21, 25), (31, 33)] for answer in answers)


async def test_order_survives_a_split(kinesis_local_url: str, request: pytest.FixtureRequest) -> None:
    """Records of one key, before and after its shard was split: bounded and following readers see them in order."""
    stream = stream_name_of(request.node.name)
    client = client_of(kinesis_local_url)
    await trio.to_thread.run_sync(create_stream, client, stream, 1)
    sink = KinesisSink(api_of(kinesis_local_url, stream), stream)
    followed, read = list[bytes](), list[bytes]()
    all_seen = trio.Event()

    async def take(kept: list[bytes], page: ShardPage) -> None:
        kept += [payload.data for payload in page.payloads]
        if len(kept) >= 10:
            all_seen.set()
        await trio.lowlevel.checkpoint()

    async def put(numbers: range) -> None:
        for number in numbers:
            [result] = await sink.put([PutEntry(b"%d" % number, "key", None)])
            assert not isinstance(result, EntryFailure)

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            reader = reader_of(kinesis_local_url, stream)
            nursery.start_soon(partial(reader.read, OLDEST, partial(take, followed), follow=True))
            await put(range(5))
            split = partial(
                client.split_shard,
                StreamName=stream,
                ShardToSplit="shardId-000000000000",
                NewStartingHashKey=str(2**127),
            )
            await trio.to_thread.run_sync(split)
            await trio.sleep(1)  # the engine takes a moment
            await put(range(5, 10))
            await all_seen.wait()
            nursery.cancel_scope.cancel()
        await reader_of(kinesis_local_url, stream).read(OLDEST, partial(take, read))
    assert followed == read == [b"%d" % number for number in range(10)]
