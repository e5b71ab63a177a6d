"""What boto3 is asked, and what its answers and failures become. No socket is opened: botocore's Stubber answers."""

from __future__ import annotations

import datetime as dt
import io
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import trio
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from botocore.stub import Stubber
from botocore.validate import ParamValidationDecorator
from moto import mock_aws

from ingestor.aws import (
    AwsApi,
    KinesisApi,
    KinesisSink,
    QueueClient,
    QueueMessage,
    QueueSummary,
    RecordsPage,
    StoredRecord,
    StreamClient,
    StreamSummary,
    find_schema_version,
    make_cloudwatch_client,
    make_kinesis_client,
    make_sqs_client,
    translate,
)
from ingestor.config import Kinesis, Timeouts
from ingestor.core.errors import ConfigError, SinkError
from ingestor.core.model import EntryFailure, PutEntry
from ingestor.core.shards import ShardInfo
from ingestor.resources import read_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from mypy_boto3_kinesis.client import KinesisClient

    T = TypeVar("T")


async def inline(fn: Callable[[], T], /) -> T:
    await trio.lowlevel.checkpoint()
    return fn()


@pytest.fixture(scope="module")
def client() -> Iterator[KinesisClient]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield make_kinesis_client(Kinesis(region="eu-west-1", endpoint_url="http://127.0.0.1:1"))


@pytest.fixture
def own_client(monkeypatch: pytest.MonkeyPatch) -> KinesisClient:
    """Return a client that a test may change."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return make_kinesis_client(Kinesis(region="eu-west-1", endpoint_url=REAL))


@pytest.fixture
def stub(client: KinesisClient) -> Iterator[Stubber]:
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


@pytest.fixture
def api(client: KinesisClient) -> KinesisApi:
    return KinesisApi(lambda: client, inline)


def test_the_client_takes_everything_from_the_settings(client: KinesisClient) -> None:
    """Region and endpoint explicit, no retries and no validation of botocore's, short timeouts."""
    config: Any = client.meta.config
    assert client.meta.region_name == "eu-west-1"
    assert client.meta.endpoint_url == "http://127.0.0.1:1"
    assert config.retries == {"mode": "standard", "total_max_attempts": 1}
    assert (config.connect_timeout, config.read_timeout) == (3.0, 6.0)
    assert (config.tcp_keepalive, config.max_pool_connections) == (True, 10)
    serializer: Any = client._serializer  # type: ignore[attr-defined]  # the configuration object does not tell
    assert not isinstance(serializer, ParamValidationDecorator)


@pytest.mark.parametrize(
    ("wrong", "path"),
    [({"endpoint_url": "localhost:4566"}, "kinesis.endpoint_url"), ({"region": "-"}, "kinesis.region")],
)
def test_an_unusable_address_is_a_configuration_error(wrong: dict[str, str], path: str) -> None:
    """With the path of the key that is wrong."""
    with pytest.raises(ConfigError, match=path):
        make_kinesis_client(Kinesis(**wrong))  # type: ignore[arg-type]  # both are strings


async def test_an_accepted_put_names_the_shards(api: KinesisApi, stub: Stubber) -> None:
    """Entries go out as they are; an explicit hash key only where there is one."""
    stub.add_response(
        "put_records",
        {"Records": [{"SequenceNumber": "1", "ShardId": "s"}] * 2},
        {
            "StreamName": "stream",
            "Records": [
                {"Data": b"one", "PartitionKey": "k"},
                {"Data": b"two", "PartitionKey": "a", "ExplicitHashKey": "12"},
            ],
        },
    )
    sink = KinesisSink(api, "stream")
    assert await sink.put([PutEntry(b"one", "k", None), PutEntry(b"two", "a", "12")]) == ["s", "s"]


def wire(client: Any, body: bytes, status: int = 200, call: str = "kinesis.PutRecords") -> list[Any]:
    """Have `client` send into a list instead of a socket, and be answered with `body`."""
    sent: list[Any] = []

    def answer(request: Any, **_: object) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, status, HTTPHeaders(), RawAnswer(body))

    client.meta.events.register(f"before-send.{call}", answer)
    return sent


class RawAnswer(io.BytesIO):
    """A body as urllib3 has it."""

    def stream(self, **_: object) -> Iterator[bytes]:
        yield self.getvalue()


PUTS = [
    [PutEntry(b"one", "k", None)],
    [PutEntry(bytes(range(256)), '\u00e9\u20ac\U0001f600 "quoted"', "12"), PutEntry(b"", "a", None)],
    [PutEntry(b"x" * 50_000, "a", str(2**128 - 1))] * 8,
]


@pytest.mark.parametrize("entries", PUTS)
async def test_a_put_is_on_the_wire_what_botocore_would_make_of_it(
    own_client: KinesisClient, entries: list[PutEntry]
) -> None:
    """Its own serializer and ours say the same, and the answer says the same to both."""
    body = json.dumps({"FailedRecordCount": 0, "Records": [{"SequenceNumber": "1", "ShardId": "s"}] * len(entries)})
    sent = wire(own_client, body.encode())
    assert await KinesisSink(KinesisApi(lambda: own_client, inline), "stream").put(entries) == ["s"] * len(entries)
    plain = boto3.session.Session(region_name="eu-west-1").client("kinesis")
    theirs = wire(plain, body.encode())
    records: list[Any] = [
        {"Data": entry.data, "PartitionKey": entry.partition_key}
        | ({} if entry.explicit_hash_key is None else {"ExplicitHashKey": entry.explicit_hash_key})
        for entry in entries
    ]
    answer = plain.put_records(StreamName="stream", Records=records)
    assert json.loads(sent[0].body) == json.loads(theirs[0].body)
    assert sent[0].headers["Content-Type"] == theirs[0].headers["Content-Type"]
    assert sent[0].headers["X-Amz-Target"] == theirs[0].headers["X-Amz-Target"]
    assert answer["Records"] == own_client.put_records(StreamName="stream", Records=records)["Records"]


NO_ANSWERS = [b"<html>", b"[]", b"", b'{"Records":', b"{}"]


@pytest.mark.parametrize(
    "body",
    [
        *NO_ANSWERS,
        b'{"Records":null}',
        b'{"Records":[]}',
        b'{"Records":[null]}',
        b'{"Records":["s"]}',
        b'{"Records":[{}]}',
        b'{"Records":[{"ShardId":"s"}]}',
    ],
)
async def test_an_answer_that_is_none_is_unknown_whether_it_landed(own_client: KinesisClient, body: bytes) -> None:
    """A proxy that answers 200 with a page of its own has delivered nothing that we know of."""
    wire(own_client, body)
    with pytest.raises(SinkError) as failure:
        await KinesisSink(KinesisApi(lambda: own_client, inline), "stream").put([PutEntry(b"one", "k", None)])
    assert failure.value.may_have_landed


@pytest.mark.parametrize("body", [*NO_ANSWERS, b'{"Shards":[{}],"Records":[{}],"StreamDescriptionSummary":{}}'])
async def test_what_looks_at_a_stream_outlives_an_answer_that_is_none(own_client: KinesisClient, body: bytes) -> None:
    """To whoever asks it is one more failure that passes."""
    wire(own_client, body, call="kinesis")
    streams = StreamClient(KinesisApi(lambda: own_client, inline))
    for look in (
        partial(streams.describe, "stream"),
        partial(streams.list_shards, "stream"),
        partial(streams.get_shard_iterator, "stream", "s", "LATEST"),
        partial(streams.get_records, "i"),
    ):
        with pytest.raises(SinkError, match="UnreadableAnswer") as failure:
            await look()
        assert failure.value.failure == "transient"


@pytest.mark.parametrize("body", [*NO_ANSWERS, b'{"Successful":[{"Id":"1"}]}', b'{"Successful":[{}]}'])
async def test_a_letter_is_in_the_queue_only_if_the_queue_says_so(client: KinesisClient, body: bytes) -> None:
    """A proxy that answers 200 with a page of its own has taken nothing that we know of."""
    url = "http://127.0.0.1:1/123456789012/letters"
    sqs = make_sqs_client(url, "eu-west-1", Timeouts())
    wire(sqs, body, call="sqs")
    queue = QueueClient(AwsApi(lambda: sqs, inline))
    for ask in (partial(queue.send, url, ["a"]), partial(queue.delete, url, ["r"]), partial(queue.hold, url, ["r"], 1)):
        with pytest.raises(SinkError, match="UnreadableAnswer"):
            await ask()


async def test_failures_of_entries_are_aligned_with_them(api: KinesisApi, stub: Stubber) -> None:
    """An answer of 200 can hide them."""
    stub.add_response(
        "put_records",
        {
            "FailedRecordCount": 2,
            "Records": [
                {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded"},
                {"SequenceNumber": "1", "ShardId": "s"},
                {"ErrorCode": "InternalFailure"},
            ],
        },
    )
    assert await KinesisSink(api, "stream").put([PutEntry(b"", "k", None)] * 3) == [
        EntryFailure("ProvisionedThroughputExceededException", "Rate exceeded"),
        "s",
        EntryFailure("InternalFailure", ""),
    ]


@pytest.mark.parametrize(
    ("code", "status", "failure", "may_have_landed"),
    [
        ("ProvisionedThroughputExceededException", 400, "throttled", False),
        ("KMSThrottlingException", 400, "throttled", False),
        ("InternalFailure", 500, "transient", True),
        ("", 503, "transient", True),
        ("ValidationException", 400, "poison", False),
        ("InvalidArgumentException", 400, "poison", False),
        ("ResourceNotFoundException", 400, "configuration", False),
        ("AccessDeniedException", 400, "configuration", False),
        ("KMSDisabledException", 400, "configuration", False),
        ("UnrecognizedClientException", 400, "configuration", False),
        ("NeverHeardOfException", 400, "configuration", False),
    ],
)
async def test_an_error_of_the_service_says_what_to_do(
    api: KinesisApi, stub: Stubber, code: str, status: int, failure: str, *, may_have_landed: bool
) -> None:
    """By its code, or by its status where the code is unknown."""
    stub.add_client_error("put_records", code, "what AWS says", status)
    with pytest.raises(SinkError, match="what AWS says") as caught:
        await KinesisSink(api, "stream").put([PutEntry(b"", "k", None)])
    assert (caught.value.failure, caught.value.may_have_landed) == (failure, may_have_landed)
    assert caught.value.code == (code or "503")
    assert isinstance(caught.value.__cause__, ClientError)


async def test_a_refused_stream_name_is_no_poison(api: KinesisApi, stub: Stubber) -> None:
    """Or all data would go to the dead letter for a typing mistake."""
    text = "1 validation error detected: Value 'a b' at 'streamName' failed to satisfy constraint"
    stub.add_client_error("put_records", "ValidationException", text)
    with pytest.raises(SinkError) as caught:
        await KinesisSink(api, "a b").put([PutEntry(b"", "k", None)])
    assert caught.value.failure == "configuration"


@pytest.mark.parametrize(
    ("error", "failure", "code", "may_have_landed"),
    [
        (ConnectTimeoutError(endpoint_url="u"), "transient", "ConnectTimeout", False),
        (ReadTimeoutError(endpoint_url="u"), "transient", "ReadTimeout", True),
        (EndpointConnectionError(endpoint_url="u"), "transient", "EndpointUnreachable", False),
        (ConnectionClosedError(endpoint_url="u"), "transient", "ConnectionClosed", True),
        (SSLError(endpoint_url="u", error=OSError("e")), "transient", "TlsFailed", True),
        (ResponseParserError("not JSON"), "transient", "UnreadableAnswer", True),
        (BotoCoreError(), "transient", "NoAnswer", True),
        (NoCredentialsError(), "configuration", "NoCredentials", False),
        (PartialCredentialsError(provider="env", cred_var="v"), "configuration", "PartialCredentials", False),
        (NoRegionError(), "configuration", "NoRegion", False),
    ],
)
def test_a_failure_without_an_answer_says_whether_the_call_may_have_landed(
    error: Exception, failure: str, code: str, *, may_have_landed: bool
) -> None:
    """Refused before it was sent, or unknown."""
    translated = translate(error)
    assert (translated.failure, translated.code, translated.may_have_landed) == (failure, code, may_have_landed)


def test_missing_credentials_say_how_to_get_some() -> None:
    """The text is for the person who has to mend it."""
    assert "AWS_ACCESS_KEY_ID" in str(translate(NoCredentialsError()))


def test_a_bug_is_not_translated() -> None:
    """It stays what it is."""
    with pytest.raises(ZeroDivisionError):
        translate(ZeroDivisionError())


async def test_expired_credentials_open_a_new_client(client: KinesisClient, stub: Stubber) -> None:
    """By itself botocore does not renew them; the call fails, the next one has fresh ones."""
    opened: list[KinesisClient] = []

    def open_client() -> KinesisClient:
        opened.append(client)
        return client

    api = KinesisApi(open_client, inline)
    stub.add_client_error("put_records", "ExpiredTokenException", "The security token has expired", 400)
    with pytest.raises(SinkError) as caught:
        await KinesisSink(api, "stream").put([PutEntry(b"", "k", None)])
    assert (caught.value.failure, len(opened)) == ("configuration", 2)


async def test_all_shards_are_listed_page_by_page(api: KinesisApi, stub: Stubber) -> None:
    """Closed ones too, with their parents."""
    keys = {"StartingHashKey": "0", "EndingHashKey": "99"}
    stub.add_response(
        "list_shards",
        {
            "Shards": [
                {
                    "ShardId": "one",
                    "HashKeyRange": keys,
                    "SequenceNumberRange": {"StartingSequenceNumber": "1", "EndingSequenceNumber": "2"},
                }
            ],
            "NextToken": "more",
        },
        {"StreamName": "stream"},
    )
    stub.add_response(
        "list_shards",
        {
            "Shards": [
                {
                    "ShardId": "two",
                    "ParentShardId": "one",
                    "AdjacentParentShardId": "zero",
                    "HashKeyRange": keys,
                    "SequenceNumberRange": {"StartingSequenceNumber": "3"},
                }
            ]
        },
        {"NextToken": "more"},
    )
    assert await StreamClient(api).list_shards("stream") == [
        ShardInfo("one", None, None, 0, 99, closed=True),
        ShardInfo("two", "one", "zero", 0, 99, closed=False),
    ]


@pytest.mark.parametrize(
    ("kind", "where", "asked"),
    [
        ("TRIM_HORIZON", {}, {}),
        (
            "AT_TIMESTAMP",
            {"timestamp_ms": 1_500},
            {"Timestamp": dt.datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=dt.UTC)},
        ),
        ("AFTER_SEQUENCE_NUMBER", {"sequence": "7"}, {"StartingSequenceNumber": "7"}),
    ],
)
async def test_reading_starts_where_it_is_told_to(
    api: KinesisApi, stub: Stubber, kind: Any, where: dict[str, Any], asked: dict[str, Any]
) -> None:
    """At the horizon, a time, or a record."""
    expected = {"StreamName": "stream", "ShardId": "one", "ShardIteratorType": kind, **asked}
    stub.add_response("get_shard_iterator", {"ShardIterator": "it"}, expected)
    assert await StreamClient(api).get_shard_iterator("stream", "one", kind, **where) == "it"


async def test_a_page_has_records_and_says_how_far_behind_it_is(api: KinesisApi, stub: Stubber) -> None:
    """Arrival in milliseconds of the stream's clock."""
    stub.add_response(
        "get_records",
        {
            "Records": [
                {
                    "SequenceNumber": "1",
                    "ApproximateArrivalTimestamp": dt.datetime(1970, 1, 1, 0, 0, 2, 1_000, tzinfo=dt.UTC),
                    "Data": b"data",
                    "PartitionKey": "k",
                }
            ],
            "NextShardIterator": "next",
            "MillisBehindLatest": 40,
        },
        {"ShardIterator": "it", "Limit": 100},
    )
    stub.add_response("get_records", {"Records": []}, {"ShardIterator": "next", "Limit": 10_000})
    reader = StreamClient(api)
    assert await reader.get_records("it", 100) == RecordsPage([StoredRecord(b"data", "k", 2001, "1")], "next", 40)
    assert await reader.get_records("next") == RecordsPage([], None, 0)


SUMMARY: dict[str, Any] = {
    "StreamName": "stream",
    "StreamARN": "arn",
    "StreamStatus": "ACTIVE",
    "RetentionPeriodHours": 24,
    "StreamCreationTimestamp": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    "EnhancedMonitoring": [],
    "OpenShardCount": 4,
}


async def test_a_stream_is_described(api: KinesisApi, stub: Stubber) -> None:
    """With what is assumed where an emulator or an older service says nothing."""
    news = {
        "StreamModeDetails": {"StreamMode": "ON_DEMAND"},
        "MaxRecordSizeInKiB": 10240,
        "RecordDistributionStrategy": "AUTO",
    }
    stub.add_response("describe_stream_summary", {"StreamDescriptionSummary": SUMMARY}, {"StreamName": "stream"})
    stub.add_response("describe_stream_summary", {"StreamDescriptionSummary": SUMMARY | news})
    reader = StreamClient(api)
    assert await reader.describe("stream") == StreamSummary("arn", "ACTIVE", "PROVISIONED", 4, 24, 1024, None)
    assert await reader.describe("stream") == StreamSummary("arn", "ACTIVE", "ON_DEMAND", 4, 24, 10240, "AUTO")


def test_the_client_never_looks_at_the_region_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the configuration decides."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    assert boto3.session.Session().region_name == "ap-south-1"
    assert make_kinesis_client(Kinesis(region="us-west-2")).meta.region_name == "us-west-2"


def test_the_glue_registry_is_asked_for_the_version_of_our_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """The id that frames every record is that of today's schema, under the name of the data stream."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    definition = read_schema("market_data")
    with mock_aws():
        glue = boto3.client("glue", region_name="us-east-1")
        glue.create_registry(RegistryName="default-registry")
        made = glue.create_schema(
            RegistryId={"RegistryName": "default-registry"},
            SchemaName="bitcoin-market-data",
            DataFormat="AVRO",
            Compatibility="FULL_ALL",
            SchemaDefinition=definition,
        )
        found = find_schema_version(Kinesis(encoding="glue"), definition)
        assert str(found) == made["SchemaVersionId"]
        with pytest.raises(ConfigError, match=r"kinesis\.encoding: .*register schemas/avro/market_data\.avsc"):
            find_schema_version(Kinesis(encoding="glue", stream_name="other"), definition)


REAL = "https://kinesis.us-east-1.amazonaws.com"


@pytest.mark.parametrize("code", ["DryRunOperationException", None])
async def test_a_rehearsed_put_is_accepted_by_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch, code: str | None
) -> None:
    """The call says that it stores nothing; whatever is not refused would be accepted."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client = make_kinesis_client(Kinesis(endpoint_url=REAL))
    with Stubber(client) as stub:
        expected = {"StreamName": "s", "Records": [{"Data": b"", "PartitionKey": "check"}], "DryRun": True}
        if code is None:
            stub.add_response("put_records", {"Records": [{"SequenceNumber": "1", "ShardId": "s"}]}, expected)
        else:
            stub.add_client_error("put_records", code, expected_params=expected)
        assert await StreamClient(KinesisApi(lambda: client, inline)).rehearse_put("s")


async def test_a_rehearsal_that_is_refused_says_what_a_put_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing permission comes up before the first record."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client = make_kinesis_client(Kinesis(endpoint_url=REAL))
    with Stubber(client) as stub:
        stub.add_client_error("put_records", "AccessDeniedException")
        with pytest.raises(SinkError, match="AccessDeniedException"):
            await StreamClient(KinesisApi(lambda: client, inline)).rehearse_put("s")


async def test_nothing_is_rehearsed_with_an_emulator(api: KinesisApi, stub: Stubber) -> None:
    """It does not know the flag and would store the record."""
    assert not await StreamClient(api).rehearse_put("s")


async def test_a_queue_is_described_at_the_place_its_address_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an emulator needs no other setting."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = "http://127.0.0.1:1/123/letters"
    client = make_sqs_client(url, "us-east-1", Timeouts())
    assert client.meta.endpoint_url == "http://127.0.0.1:1"
    with Stubber(client) as stub:
        attributes = {"QueueArn": "arn:aws:sqs:us-east-1:1:letters", "MessageRetentionPeriod": "1209600"}
        stub.add_response("get_queue_attributes", {"Attributes": attributes})
        queue = await QueueClient(AwsApi(lambda: client, inline)).describe(url)
    assert queue == QueueSummary("arn:aws:sqs:us-east-1:1:letters", 1_209_600)
    with pytest.raises(ConfigError, match=r"kinesis\.region"):
        make_sqs_client(url, "-", Timeouts())


async def test_messages_of_a_queue_are_answered_by_position(client: KinesisClient) -> None:
    """What SQS refuses of a call that it answers is aligned with what was sent."""
    queue_url = "http://127.0.0.1:1/123456789012/letters"
    sqs = make_sqs_client(queue_url, "eu-west-1", Timeouts())
    queue = QueueClient(AwsApi(lambda: sqs, inline))
    entries = [{"Id": "0", "MessageBody": "a"}, {"Id": "1", "MessageBody": "b"}]
    done = {"Id": "0", "MessageId": "m", "MD5OfMessageBody": "0cc175b9c0f1b6a831c399e269772661"}
    failed = {"Id": "1", "SenderFault": True, "Code": "InvalidMessageContents", "Message": "no"}
    with Stubber(sqs) as stubber:
        stubber.add_response(
            "send_message_batch",
            {"Successful": [done], "Failed": [failed]},
            {"QueueUrl": queue_url, "Entries": entries},
        )
        assert await queue.send(queue_url, ["a", "b"]) == [None, EntryFailure("InvalidMessageContents", "no")]
        stubber.add_client_error("send_message_batch", "AccessDenied", "no", 403)
        with pytest.raises(SinkError, match="AccessDenied"):
            await queue.send(queue_url, ["a"])


SIGNED = """The request signature we calculated does not match the signature you provided.

The Canonical String for this request should have been
'POST
/

host:kinesis.eu-west-1.amazonaws.com
x-amz-date:20261123T000000Z
x-amz-security-token:IQoJb3JpZ2luX2VjEXAMPLETOKEN
x-amz-target:Kinesis_20131202.PutRecords

content-type;host;x-amz-date;x-amz-security-token;x-amz-target
deadbeef'
Credential=ASIAIOSFODNN7EXAMPLE/20261123/eu-west-1/kinesis/aws4_request, Signature=fe5f80f77d5fa3beca038a248ff027d0"""


async def test_what_aws_repeats_of_the_credentials_is_masked(api: KinesisApi, stub: Stubber) -> None:
    """A wrong signature is answered with the headers that it was made of; what helps stays."""
    stub.add_client_error("describe_stream_summary", "InvalidSignatureException", SIGNED, 403)
    with pytest.raises(SinkError) as caught:
        await StreamClient(api).describe("stream")
    text = str(caught.value)
    assert "does not match the signature you provided" in text
    assert "x-amz-date:20261123T000000Z" in text
    for secret in ("IQoJb3JpZ2luX2VjEXAMPLETOKEN", "ASIAIOSFODNN7EXAMPLE", "fe5f80f77d5fa3beca038a248ff027d0"):
        assert secret not in text


@pytest.mark.parametrize("service", ["KINESIS", "CLOUDWATCH", "SQS", "GLUE"])
def test_no_endpoint_of_the_environment_leads_plain_text_over_a_network(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only our configuration may allow it, and loopback needs no permission."""
    for name, secret in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(name, secret)
    makers: dict[str, Callable[[bool], object]] = {
        "KINESIS": lambda allowed: make_kinesis_client(Kinesis(allow_plaintext=allowed)),
        "CLOUDWATCH": lambda allowed: make_cloudwatch_client("us-east-1", timeout_s=1, allow_plaintext=allowed),
        "GLUE": lambda allowed: find_schema_version(Kinesis(allow_plaintext=allowed), "{}"),
        "SQS": lambda _: make_sqs_client("https://sqs.us-east-1.amazonaws.com/1/q", "us-east-1", Timeouts()),
    }
    make = makers[service]
    monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", "http://me:hunter2hunter2@kinesis.test:1")
    if service == "SQS":  # its address is in the configuration, and that is the one that counts
        assert make_sqs_client("https://sqs.test/1/q", "us-east-1", Timeouts()).meta.endpoint_url == "https://sqs.test"
        return
    with pytest.raises(ConfigError, match=r"kinesis\.allow_plaintext: http://\*\*\*@kinesis\.test:1") as caught:
        make(False)
    assert "hunter2" not in str(caught.value)
    if service != "GLUE":
        make(True)
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", "http://127.0.0.1:1")
        make(False)


@pytest.mark.parametrize(("endpoint", "is_local"), [("http://127.0.0.1:1", True), ("https://kinesis.test", False)])
def test_what_stays_on_this_machine_goes_through_no_proxy(
    endpoint: str, is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emulator is reached directly, whatever the proxies of the environment."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    for settings in (Kinesis(endpoint_url=endpoint), Kinesis()):  # from our configuration, or from the SDK's
        monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", endpoint)
        client: Any = make_kinesis_client(settings)
        proxy = client._endpoint.http_session._proxy_config.proxy_url_for(endpoint)
        assert proxy == (None if is_local else "http://proxy.test:3128")


async def test_messages_of_a_queue_are_taken_held_and_deleted() -> None:
    """Ten at a time, by their receipts, and what is refused is answered by position."""
    url = "http://127.0.0.1:1/123456789012/letters"
    sqs = make_sqs_client(url, "eu-west-1", Timeouts())
    queue = QueueClient(AwsApi(lambda: sqs, inline))
    failed = {"Id": "1", "SenderFault": True, "Code": "ReceiptHandleIsInvalid", "Message": "gone"}
    refused = [None, EntryFailure("ReceiptHandleIsInvalid", "gone")]
    with Stubber(sqs) as stubber:
        stubber.add_response(
            "receive_message",
            {"Messages": [{"MessageId": "m", "Body": "b", "ReceiptHandle": "r"}]},
            {"QueueUrl": url, "MaxNumberOfMessages": 10, "VisibilityTimeout": 300, "WaitTimeSeconds": 1},
        )
        assert await queue.receive(url, hold_s=300, wait_s=1) == [QueueMessage("m", "b", "r")]
        stubber.add_response("receive_message", {})
        assert await queue.receive(url, hold_s=300, wait_s=1) == []
        entries = [{"Id": "0", "ReceiptHandle": "r"}, {"Id": "1", "ReceiptHandle": "s"}]
        held = [entry | {"VisibilityTimeout": 0} for entry in entries]
        answer = {"Successful": [{"Id": "0"}], "Failed": [failed]}
        stubber.add_response("change_message_visibility_batch", answer, {"QueueUrl": url, "Entries": held})
        assert await queue.hold(url, ["r", "s"], 0) == refused
        stubber.add_response("delete_message_batch", answer, {"QueueUrl": url, "Entries": entries})
        assert await queue.delete(url, ["r", "s"]) == refused


def test_clients_share_what_describes_the_service() -> None:
    """The description of Kinesis and of all endpoints is 9 MB, and there are up to four clients."""
    first, second = (make_kinesis_client(Kinesis(region="us-east-1", endpoint_url=REAL)) for _ in range(2))
    assert first is not second
    assert first.meta.service_model.metadata is second.meta.service_model.metadata
