"""The fault proxy does what it says, or the tests behind it prove nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from tests.fakes.fault_proxy import INTERNAL_FAILURE, THROTTLED_CALL, CallError, FaultProxy, open_fault_proxy
from tests.integration.engines import client_of, create_stream, stream_name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import PutRecordsOutputTypeDef

pytestmark = pytest.mark.integration
THROTTLED = "ProvisionedThroughputExceededException"


class Rig:
    """A proxy before moto with a stream of its own, a client that never retries, and one that sees what is stored."""

    def __init__(self, proxy: FaultProxy, engine_url: str, stream: str) -> None:
        self.proxy = proxy
        self.stream = stream
        self._direct = client_of(engine_url)
        self._proxied: KinesisClient = client_of(proxy.url, attempts=1, read_timeout_s=0.5)

    async def put(self, *payloads: bytes, key: str = "BTCUSDT") -> PutRecordsOutputTypeDef:
        """Put all payloads under one key in one call."""
        records: Any = [{"Data": data, "PartitionKey": key} for data in payloads]
        return await trio.to_thread.run_sync(
            partial(self._proxied.put_records, StreamName=self.stream, Records=records)
        )

    async def stored(self) -> list[bytes]:
        """Read back every payload of the only shard."""
        return await trio.to_thread.run_sync(self._read)

    def _read(self) -> list[bytes]:
        start = self._direct.get_shard_iterator(
            StreamName=self.stream, ShardId="shardId-000000000000", ShardIteratorType="TRIM_HORIZON"
        )
        return [record["Data"] for record in self._direct.get_records(ShardIterator=start["ShardIterator"])["Records"]]


@pytest.fixture
async def rig(moto_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    stream = stream_name_of(request.node.name)
    await trio.to_thread.run_sync(create_stream, client_of(moto_url), stream, 1)
    async with open_fault_proxy(moto_url, seed=1) as proxy:
        yield Rig(proxy, moto_url, stream)


async def test_without_faults_it_only_passes_on(rig: Rig) -> None:
    """Answers and data are the engine's own."""
    answer = await rig.put(b"one", b"two")
    assert [entry.get("ShardId") for entry in answer["Records"]] == ["shardId-000000000000"] * 2
    assert await rig.stored() == [b"one", b"two"]
    assert [(call.outcome, call.count(None)) for call in rig.proxy.journal] == [("answered", 2)]


async def test_only_accepted_entries_are_stored_and_answers_keep_their_places(rig: Rig) -> None:
    """A partial failure is a 200 whose failed entries are named by position, and just the others are in the stream."""
    rig.proxy.set(failed_entries=0.3, throttled_entries=0.3)
    payloads = [b"%d" % n for n in range(60)]
    answer = await rig.put(*payloads)
    codes = [entry.get("ErrorCode") for entry in answer["Records"]]
    assert set(codes) == {None, "InternalFailure", THROTTLED}
    assert answer["FailedRecordCount"] == 60 - codes.count(None)
    assert await rig.stored() == [data for data, code in zip(payloads, codes, strict=True) if code is None]


async def test_a_shard_takes_its_share_of_records_a_second_and_throttles_the_rest(rig: Rig) -> None:
    """A share of 0.05 lets 50 records through at once and more only as time goes by."""
    rig.proxy.set(shard_share=0.05)
    answer = await rig.put(*(b"%d" % n for n in range(100)))
    assert answer["FailedRecordCount"] == rig.proxy.seen(THROTTLED)
    assert 45 <= answer["FailedRecordCount"] <= 50  # a slow machine refills a little between two entries


async def test_a_shard_limits_bytes_but_lets_the_largest_record_through(rig: Rig) -> None:
    """The byte bucket goes into debt for one large record, and the next one is throttled."""
    rig.proxy.set(shard_share=0.01)
    answer = await rig.put(bytes(50_000), b"next")
    assert [entry.get("ErrorCode") for entry in answer["Records"]] == [None, THROTTLED]


@pytest.mark.parametrize("refusal", [INTERNAL_FAILURE, THROTTLED_CALL])
async def test_a_refused_call_stores_nothing(rig: Rig, refusal: CallError) -> None:
    """The client sees status and code of the refusal."""
    rig.proxy.set(refused_calls=1.0, refusals=(refusal,))
    with pytest.raises(ClientError) as refused:
        await rig.put(b"one")
    response: Any = refused.value.response
    assert response["Error"]["Code"] == refusal.code
    assert response["ResponseMetadata"]["HTTPStatusCode"] == refusal.status
    assert await rig.stored() == []


async def test_a_cut_call_is_stored_and_never_answered(rig: Rig) -> None:
    """The outcome is unknown to the client: the connection closes after the engine took the records."""
    rig.proxy.set(cut_calls=1.0)
    with pytest.raises(ConnectionClosedError):
        await rig.put(b"one")
    assert await rig.stored() == [b"one"]
    assert rig.proxy.calls("cut") == 1


async def test_outages_of_all_three_kinds_end_and_store_nothing(rig: Rig) -> None:
    """Cut unread, hanging until the client gives up, and nobody listening; afterwards it works again."""
    rig.proxy.set(outage="cut")
    with pytest.raises(ConnectionClosedError):
        await rig.put(b"cut")
    rig.proxy.set(outage="hang")
    with pytest.raises(ReadTimeoutError):
        await rig.put(b"hang")
    rig.proxy.heal()
    async with rig.proxy.refusing_connections():
        with pytest.raises(EndpointConnectionError):
            await rig.put(b"refused")
    await rig.put(b"arrived")
    assert await rig.stored() == [b"arrived"]


async def test_latency_is_added_to_every_call(rig: Rig) -> None:
    """An answer takes at least as long as it is told to."""
    rig.proxy.set(latency_s=0.2)
    started_s = trio.current_time()
    await rig.put(b"one")
    assert trio.current_time() - started_s >= 0.2


async def test_it_notices_a_producer_that_overtakes_itself(rig: Rig) -> None:
    """New data of a key whose older data was not acknowledged is an offence; sending the old again is none."""
    rig.proxy.set(failed_entries=1.0)
    await rig.put(b"one")
    rig.proxy.heal()
    await rig.put(b"one")
    order = rig.proxy.order_of(rig.stream)
    assert order.overtaken == []
    rig.proxy.set(failed_entries=1.0)
    await rig.put(b"two")
    await rig.put(b"three")
    assert order.overtaken == ["BTCUSDT"]
