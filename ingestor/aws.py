"""boto3's only home: builds the clients, crosses into threads, translates every error of AWS into `SinkError`.

Clients are made once, in the main thread, and shared by all calls: a client is thread-safe, building one is not
(facts/aws.md §1.8). botocore never retries here: order, deadlines and the count of duplicates are the caller's, so the
policy lives in one place.
"""

from __future__ import annotations

import datetime as dt
from contextlib import contextmanager, suppress
from functools import cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import boto3
import botocore.session
import msgspec
from botocore.client import BaseClient
from botocore.config import Config as ClientConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    InvalidRegionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from ingestor.config import is_plain_and_local
from ingestor.core.datums import MAX_DATUMS
from ingestor.core.errors import ConfigError, SinkError
from ingestor.core.model import EntryFailure, EntryResult, PutEntry
from ingestor.core.shards import ShardInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from botocore.client import ClientMeta
    from mypy_boto3_cloudwatch.client import CloudWatchClient
    from mypy_boto3_cloudwatch.type_defs import MetricDatumTypeDef
    from mypy_boto3_glue.type_defs import SchemaIdTypeDef
    from mypy_boto3_kinesis.client import KinesisClient
    from mypy_boto3_kinesis.literals import ShardIteratorTypeType
    from mypy_boto3_kinesis.type_defs import (
        ListShardsOutputTypeDef,
        PutRecordsRequestEntryTypeDef,
        RecordTypeDef,
        ShardTypeDef,
    )
    from mypy_boto3_sqs.client import SQSClient
    from mypy_boto3_sqs.type_defs import (
        ChangeMessageVisibilityBatchRequestEntryTypeDef,
        ChangeMessageVisibilityBatchResultTypeDef,
        DeleteMessageBatchRequestEntryTypeDef,
        DeleteMessageBatchResultTypeDef,
        SendMessageBatchRequestEntryTypeDef,
        SendMessageBatchResultTypeDef,
    )

    from ingestor.config import Kinesis, Timeouts
    from ingestor.core.datums import Datum
    from ingestor.core.errors import SinkFailure
    from ingestor.threads import RunBlocking

    BatchAnswer: TypeAlias = (
        SendMessageBatchResultTypeDef | ChangeMessageVisibilityBatchResultTypeDef | DeleteMessageBatchResultTypeDef
    )

T = TypeVar("T")
C = TypeVar("C")
B = TypeVar("B", bound=BaseClient)

# What a failed call means, by the code that AWS sends (facts/aws.md §1.6; botocore 1.44's Kinesis model and the common
# errors of the AWS JSON protocols, read 2026-11-22). A code that is not here is `transient` from 500 upward, else
# `configuration`: tried again, slowly and visibly, because a code we never met is no reason to lose data.
CODES: Final[dict[str, SinkFailure]] = {
    "ProvisionedThroughputExceededException": "throttled",
    "KMSThrottlingException": "throttled",
    "LimitExceededException": "throttled",
    "Throttling": "throttled",
    "ThrottlingException": "throttled",
    "TooManyRequestsException": "throttled",
    "RequestLimitExceeded": "throttled",
    "InternalFailure": "transient",
    "InternalFailureException": "transient",
    "ServiceUnavailable": "transient",
    "RequestTimeout": "transient",
    "RequestTimeoutException": "transient",
    "ExpiredIteratorException": "transient",
    "ExpiredNextTokenException": "transient",
    "ResourceInUseException": "transient",
    "InvalidArgumentException": "poison",
    "ValidationException": "poison",
    "ValidationError": "poison",
    "SerializationException": "poison",
    "RequestEntityTooLarge": "poison",
    "413": "poison",
    "ResourceNotFoundException": "configuration",
    "AccessDeniedException": "configuration",
    "KMSAccessDeniedException": "configuration",
    "KMSDisabledException": "configuration",
    "KMSInvalidStateException": "configuration",
    "KMSNotFoundException": "configuration",
    "KMSOptInRequired": "configuration",
    "UnrecognizedClientException": "configuration",
    "InvalidSignatureException": "configuration",
    "ExpiredTokenException": "configuration",
}

# Failures without an answer: what to do, our code for it, whether the call may have been accepted. First match counts.
NO_ANSWER: Final[tuple[tuple[type[Exception], SinkFailure, str, bool], ...]] = (
    (ConnectTimeoutError, "transient", "ConnectTimeout", False),
    (ReadTimeoutError, "transient", "ReadTimeout", True),
    (EndpointConnectionError, "transient", "EndpointUnreachable", False),
    (ProxyConnectionError, "transient", "ProxyUnreachable", False),
    (ConnectionClosedError, "transient", "ConnectionClosed", True),
    (SSLError, "transient", "TlsFailed", True),
    (NoCredentialsError, "configuration", "NoCredentials", False),
    (PartialCredentialsError, "configuration", "PartialCredentials", False),
    (CredentialRetrievalError, "configuration", "CredentialsUnavailable", False),
    (TokenRetrievalError, "configuration", "TokenUnavailable", False),
    (NoRegionError, "configuration", "NoRegion", False),
    (ResponseParserError, "transient", "UnreadableAnswer", True),
    (BotoCoreError, "transient", "NoAnswer", True),
)

AWS_DOMAINS: Final = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")

# A client keeps for good the credentials it was born with, or their absence: only a new client looks for them again.
STALE_CREDENTIALS: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "NoCredentials"})
_CREDENTIAL_ADVICE: Final = "give the task a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
GLUE_REGISTRY: Final = "default-registry"


class StoredRecord(NamedTuple):
    """One record as GetRecords returns it; `arrival_ms` is the stream's own clock."""

    data: bytes
    partition_key: str
    arrival_ms: int
    sequence_number: str


class RecordsPage(NamedTuple):
    """One page of a shard. An empty one is not the end: `millis_behind` 0 is, or no `next_iterator` (closed shard)."""

    records: list[StoredRecord]
    next_iterator: str | None
    millis_behind: int


AUTO_DISTRIBUTION: Final = (
    "distributes records itself (AUTO) and ignores partition keys, so nothing would be in order; "
    "set its record distribution to USER_PARTITION_KEY"
)


class StreamSummary(NamedTuple):
    """What a stream is.

    `mode`: PROVISIONED or ON_DEMAND, `distribution`: AUTO, USER_PARTITION_KEY or None; `key_id` None is not encrypted.
    """

    arn: str
    status: str
    mode: str
    open_shards: int
    retention_hours: int
    max_record_kib: int
    distribution: str | None
    key_id: str | None = None


class QueueSummary(NamedTuple):
    """What a queue is."""

    arn: str
    retention_s: int


class QueueMessage(NamedTuple):
    """A message as it was received; `receipt` is what it is held and deleted by."""

    message_id: str
    body: str
    receipt: str


@cache
def service_models() -> Any:
    """Return what loads the descriptions of AWS' services and remembers them, for all sessions of this process."""
    return botocore.session.Session().get_component("data_loader")


def open_session(region: str) -> boto3.session.Session:
    """Open a session for one client; sessions are not for several threads, and a client may be opened in any.

    Each by itself would read the same descriptions and hold them: 9 MB a client.
    """
    core = botocore.session.Session()
    core.register_component("data_loader", service_models())
    return boto3.session.Session(region_name=region, botocore_session=core)


def make_kinesis_client(settings: Kinesis, *, connections: int = 10) -> KinesisClient:
    """Build a client from `settings` and the credentials chain; `connections` is its pool, one per thread in use.

    The region is always explicit, because boto3 ignores `AWS_REGION`. Raises `ConfigError` for an unusable endpoint.
    """
    config = ClientConfig(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=settings.timeouts.connect_s,
        read_timeout=settings.timeouts.read_s,
        parameter_validation=False,
        proxies=_proxies_for(settings.endpoint_url),
        max_pool_connections=connections,
        tcp_keepalive=True,
    )
    session = open_session(settings.region)
    try:
        client = _direct(
            lambda given: session.client("kinesis", endpoint_url=settings.endpoint_url, config=given), config
        )
    except InvalidRegionError as error:
        raise ConfigError([f"kinesis.region: {error}"]) from error
    except ValueError as error:
        raise ConfigError([f"kinesis.endpoint_url: {error}"]) from error
    require_tls(client.meta, allow_plaintext=settings.allow_plaintext)
    _speak_put_records(client)
    client.meta.events.register("before-parse.kinesis", _keep_objects)
    return client


def _speak_put_records(client: KinesisClient) -> None:
    """Have PutRecords written and read by msgspec; endpoint, signature, connection and errors stay botocore's.

    botocore walks over entries and answers in Python, and its JSON encoder over every character of the base64. That was
    a third of the CPU time of a call of three blobs, and two thirds of one of 500 small records (2026-11-26).
    """
    events = client.meta.events
    events.register("before-parameter-build.kinesis.PutRecords", _write_body)
    events.register("before-call.kinesis.PutRecords", _send_body)
    events.register("before-parse.kinesis.PutRecords", _read_answer)


def _write_body(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
    context["body"] = msgspec.json.encode(params)  # bytes become base64, as in the AWS JSON protocol
    params["Records"] = []


def _send_body(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
    params["body"] = context.pop("body")


def _read_answer(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    if response_dict["status_code"] == HTTPStatus.OK:
        with suppress(
            ValueError, RecursionError
        ):  # whatever else it is, there are no results in it, and that is found out
            customized_response_dict |= msgspec.json.decode(response_dict["body"], type=dict[str, Any])
        response_dict["body"] = b"{}"


def _keep_objects(response_dict: dict[str, Any], **_: object) -> None:
    """Have botocore parse a 200 whose body is no JSON object as one that says nothing; it would stumble over others."""
    if response_dict["status_code"] == HTTPStatus.OK and not response_dict["body"].lstrip().startswith(b"{"):
        response_dict["body"] = b"{}"


def require_tls(meta: ClientMeta, *, allow_plaintext: bool) -> None:
    """Raise `ConfigError` for a client that would speak in the clear over a network.

    Our configuration is checked before; the SDK also takes endpoints from `AWS_ENDPOINT_URL` and from its own files.
    """
    url = meta.endpoint_url
    if urlsplit(url).scheme != "https" and not (allow_plaintext or is_plain_and_local(url)):
        service = meta.service_model.service_name
        text = f"{url} comes from AWS_ENDPOINT_URL or a file of the SDK for {service}; it needs `true`, or https://"
        raise ConfigError([f"kinesis.allow_plaintext: {text}"])


def _direct(make: Callable[[ClientConfig], B], config: ClientConfig) -> B:
    """Make a client; once more without proxies if the SDK found out by itself that it is to speak to this machine."""
    client = make(config)
    if config.proxies is None and is_plain_and_local(client.meta.endpoint_url):  # type: ignore[attr-defined]
        return make(config.merge(ClientConfig(proxies={})))
    return client


def _proxies_for(endpoint_url: str | None) -> dict[str, str] | None:
    """Return what `Config(proxies=...)` takes: none for plain text to this machine, else those of the environment."""
    return {} if endpoint_url is not None and is_plain_and_local(endpoint_url) else None


def find_schema_version(settings: Kinesis, definition: str) -> UUID:
    """Ask the Glue Schema Registry which version `definition` is; the schema has the name of the data stream.

    That name and the default registry are where AWS' own serializers look (facts/aws.md §3.1). Raises `ConfigError`
    when it is not there or cannot be asked: without its id nothing can be framed.
    """
    session = open_session(settings.region)
    config = ClientConfig(proxies=_proxies_for(settings.endpoint_url))
    client = _direct(lambda given: session.client("glue", endpoint_url=settings.endpoint_url, config=given), config)
    require_tls(client.meta, allow_plaintext=settings.allow_plaintext)
    schema: SchemaIdTypeDef = {"RegistryName": GLUE_REGISTRY, "SchemaName": settings.stream_name}
    try:
        version = client.get_schema_by_definition(SchemaId=schema, SchemaDefinition=definition)
    except (ClientError, BotoCoreError) as error:
        where = f"{GLUE_REGISTRY}/{settings.stream_name}"
        advice = f"register schemas/avro/market_data.avsc as {where}, and allow glue:GetSchemaByDefinition"
        raise ConfigError([f"kinesis.encoding: {error}; {advice}"]) from error
    return UUID(version["SchemaVersionId"])


def make_cloudwatch_client(region: str, *, timeout_s: float, allow_plaintext: bool = False) -> CloudWatchClient:
    """Build a client that takes at most twice `timeout_s` (connect, read) for a call; raises `ConfigError`.

    `AWS_ENDPOINT_URL_CLOUDWATCH` leads it to another endpoint.
    """
    config = ClientConfig(
        retries={"mode": "standard", "total_max_attempts": 1},  # the next interval tries again, with more to say
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        max_pool_connections=1,
    )
    try:
        session = open_session(region)
        client = _direct(lambda given: session.client("cloudwatch", config=given), config)
    except InvalidRegionError as error:
        raise ConfigError([f"kinesis.region: {error}"]) from error
    except ValueError as error:
        raise ConfigError([f"AWS_ENDPOINT_URL_CLOUDWATCH: {error}"]) from error
    require_tls(client.meta, allow_plaintext=allow_plaintext)
    return client


def make_sqs_client(queue_url: str, region: str, timeouts: Timeouts) -> SQSClient:
    """Build a client for the service that `queue_url` belongs to; raises `ConfigError`."""
    parts = urlsplit(queue_url)
    config = ClientConfig(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=timeouts.connect_s,
        read_timeout=timeouts.read_s,
        proxies=_proxies_for(queue_url),
    )
    try:
        endpoint_url = f"{parts.scheme}://{parts.netloc}"
        client = open_session(region).client("sqs", endpoint_url=endpoint_url, config=config)
    except InvalidRegionError as error:
        raise ConfigError([f"kinesis.region: {error}"]) from error
    client.meta.events.register("before-parse.sqs", _keep_objects)
    return client


class AwsApi(Generic[C]):
    """The crossing: a client and the threads in which its calls run."""

    def __init__(self, open_client: Callable[[], C], run_blocking: RunBlocking) -> None:
        """Open the client, and again when its credentials have expired or it found none: botocore never looks again."""
        self._open_client = open_client
        self._client = open_client()
        self._run_blocking = run_blocking

    async def call(self, request: Callable[[C], T]) -> T:
        """Run `request` in a worker thread; whatever AWS or the network answers raises `SinkError`."""
        return await self._run_blocking(partial(self._call, request))

    def _call(self, request: Callable[[C], T]) -> T:
        try:
            return request(self._client)
        except (ClientError, BotoCoreError, ResponseParserError) as error:
            failure = translate(error)
            if failure.code in STALE_CREDENTIALS:
                self._client = self._open_client()
            raise failure from error


class KinesisApi(AwsApi["KinesisClient"]):
    """The crossing to Kinesis; writers and readers share one."""


class CloudWatchSink:
    """Puts datums into one namespace, in as few calls as they need."""

    def __init__(self, api: AwsApi[CloudWatchClient], namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    async def publish(self, datums: Sequence[Datum], at_ms: int) -> None:
        """Send `datums` as of `at_ms`; raises `SinkError`. botocore compresses what is worth it."""
        at = dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC)
        wire = [_wire_datum(datum, at) for datum in datums]
        for start in range(0, len(wire), MAX_DATUMS):
            await self._api.call(partial(self._put, data=wire[start : start + MAX_DATUMS]))

    def _put(self, client: CloudWatchClient, data: list[MetricDatumTypeDef]) -> None:
        client.put_metric_data(Namespace=self._namespace, MetricData=data)


class QueueClient:
    """Looks at queues, writes into them and reads them; `code` of a `SinkError` is that of AWS.

    What a call of SQS refuses of its entries is answered by position, None for an accepted one; ten are the most.
    """

    def __init__(self, api: AwsApi[SQSClient]) -> None:
        self._api = api

    async def describe(self, queue_url: str) -> QueueSummary:
        """Ask GetQueueAttributes what a queue is; raises `SinkError`."""
        answer = await self._api.call(
            lambda client: client.get_queue_attributes(
                QueueUrl=queue_url, AttributeNames=["QueueArn", "MessageRetentionPeriod"]
            )
        )
        with _reading():
            attributes = answer["Attributes"]
            return QueueSummary(attributes["QueueArn"], int(attributes["MessageRetentionPeriod"]))

    async def send(self, queue_url: str, bodies: Sequence[str]) -> Sequence[EntryFailure | None]:
        """Send one SendMessageBatch call; the answer is aligned with `bodies`, None if accepted. Raises `SinkError`."""
        entries: list[SendMessageBatchRequestEntryTypeDef] = [
            {"Id": str(position), "MessageBody": body} for position, body in enumerate(bodies)
        ]
        answer = await self._api.call(lambda client: client.send_message_batch(QueueUrl=queue_url, Entries=entries))
        return _by_position(len(bodies), answer)

    async def receive(self, queue_url: str, *, hold_s: int, wait_s: int) -> list[QueueMessage]:
        """Take up to ten messages, which nobody else sees for `hold_s`; none: for `wait_s` there was none to see."""
        answer = await self._api.call(
            lambda client: client.receive_message(
                QueueUrl=queue_url, MaxNumberOfMessages=10, VisibilityTimeout=hold_s, WaitTimeSeconds=wait_s
            )
        )
        return [
            QueueMessage(message.get("MessageId", ""), message.get("Body", ""), message.get("ReceiptHandle", ""))
            for message in answer.get("Messages", [])
        ]

    async def hold(self, queue_url: str, receipts: Sequence[str], hold_s: int) -> Sequence[EntryFailure | None]:
        """Have messages seen by nobody else for `hold_s` from now on; 0 lets go of them. Raises `SinkError`."""
        entries: list[ChangeMessageVisibilityBatchRequestEntryTypeDef] = [
            {"Id": str(position), "ReceiptHandle": receipt, "VisibilityTimeout": hold_s}
            for position, receipt in enumerate(receipts)
        ]
        answer = await self._api.call(
            lambda client: client.change_message_visibility_batch(QueueUrl=queue_url, Entries=entries)
        )
        return _by_position(len(receipts), answer)

    async def delete(self, queue_url: str, receipts: Sequence[str]) -> Sequence[EntryFailure | None]:
        """Delete messages for good; raises `SinkError`."""
        entries: list[DeleteMessageBatchRequestEntryTypeDef] = [
            {"Id": str(position), "ReceiptHandle": receipt} for position, receipt in enumerate(receipts)
        ]
        answer = await self._api.call(lambda client: client.delete_message_batch(QueueUrl=queue_url, Entries=entries))
        return _by_position(len(receipts), answer)


class KinesisSink:
    """Puts entries into one stream."""

    def __init__(self, api: KinesisApi, stream_name: str) -> None:
        self._api = api
        self._stream_name = stream_name

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryResult]:
        """Send one PutRecords call; the answer is aligned with `entries`. Raises `SinkError`."""
        records = [_wire_entry(entry) for entry in entries]
        answer = await self._api.call(
            lambda client: client.put_records(StreamName=self._stream_name, Records=records),
        )
        results: Any = answer.get("Records")
        if not isinstance(results, list) or len(results) != len(entries):
            raise _unreadable(f"no {len(entries)} results")
        return [_entry_result(result) for result in results]


class StreamClient:
    """Looks at streams and reads them; every method raises `SinkError`, whose `code` is that of AWS."""

    def __init__(self, api: KinesisApi) -> None:
        self._api = api

    async def describe(self, stream: str) -> StreamSummary:
        """Ask DescribeStreamSummary what `stream` is."""
        answer = await self._api.call(lambda client: client.describe_stream_summary(StreamName=stream))
        with _reading():
            summary = answer["StreamDescriptionSummary"]
            return StreamSummary(
                arn=summary["StreamARN"],
                status=summary["StreamStatus"],
                mode=summary.get("StreamModeDetails", {}).get("StreamMode", "PROVISIONED"),
                open_shards=summary["OpenShardCount"],
                retention_hours=summary["RetentionPeriodHours"],
                max_record_kib=summary.get("MaxRecordSizeInKiB") or 1024,
                distribution=summary.get("RecordDistributionStrategy"),
                key_id=summary.get("KeyId"),
            )

    async def rehearse_put(self, stream: str) -> bool:
        """Have AWS say whether a put would be accepted; False where that cannot be asked. Raises `SinkError`.

        Only AWS itself knows `DryRun`: emulators store the record (facts/aws.md §1.3).
        """
        return await self._api.call(lambda client: _rehearse(client, stream))

    async def list_shards(self, stream: str) -> list[ShardInfo]:
        """All shards of `stream`, the closed ones too."""
        answer = await self._api.call(lambda client: client.list_shards(StreamName=stream))
        shards = _shard_infos(answer)
        while token := answer.get("NextToken"):
            answer = await self._api.call(partial(_more_shards, token=token))
            shards += _shard_infos(answer)
        return shards

    async def get_shard_iterator(
        self,
        stream: str,
        shard_id: str,
        kind: ShardIteratorTypeType,
        *,
        timestamp_ms: int | None = None,
        sequence: str | None = None,
    ) -> str:
        """Say where to read a shard from; AT_TIMESTAMP takes `timestamp_ms`, the SEQUENCE_NUMBER kinds `sequence`."""

        def request(client: KinesisClient) -> str:
            if timestamp_ms is not None:
                moment = dt.datetime.fromtimestamp(timestamp_ms / 1000, dt.UTC)
                answer = client.get_shard_iterator(
                    StreamName=stream, ShardId=shard_id, ShardIteratorType=kind, Timestamp=moment
                )
            elif sequence is not None:
                answer = client.get_shard_iterator(
                    StreamName=stream, ShardId=shard_id, ShardIteratorType=kind, StartingSequenceNumber=sequence
                )
            else:
                answer = client.get_shard_iterator(StreamName=stream, ShardId=shard_id, ShardIteratorType=kind)
            with _reading():
                return answer["ShardIterator"]

        return await self._api.call(request)

    async def get_records(self, iterator: str, limit: int = 10_000) -> RecordsPage:
        """One page; mind the 5 calls a second and shard that all readers share."""
        answer = await self._api.call(lambda client: client.get_records(ShardIterator=iterator, Limit=limit))
        with _reading():
            records = [_stored_record(record) for record in answer["Records"]]
        return RecordsPage(records, answer.get("NextShardIterator"), answer.get("MillisBehindLatest", 0))


def _unreadable(text: str) -> SinkError:
    """Say that a 200 came without what it has to say, from a proxy perhaps; what that kept from us is unknown."""
    return SinkError("transient", "UnreadableAnswer", f"200, and {text}", may_have_landed=True)


@contextmanager
def _reading() -> Iterator[None]:
    """Read an answer inside; whatever is missing in it is a failure like any other, and no bug of ours."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(f"not what was asked for: {error!r}") from error


def translate(error: Exception) -> SinkError:
    """Say what a failure of boto3 means for the caller, by the two tables above."""
    if isinstance(error, ClientError):
        return _translate_answer(error)
    for kind, failure, code, may_have_landed in NO_ANSWER:
        if isinstance(error, kind):
            advice = f"; {_CREDENTIAL_ADVICE}" if code in {"NoCredentials", "PartialCredentials"} else ""
            return SinkError(failure, code, f"{error}{advice}", may_have_landed=may_have_landed)
    raise error


def _translate_answer(error: ClientError) -> SinkError:
    details = error.response.get("Error", {})
    code, text = details.get("Code", ""), details.get("Message", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    is_server_side = status >= 500
    failure = CODES.get(code, "transient" if is_server_side else "configuration")
    if failure == "poison" and ("streamName" in text or "streamARN" in text):
        failure = "configuration"  # it is the name of the stream that is refused, not what we put into it
    return SinkError(failure, code or str(status), text, may_have_landed=is_server_side)


def _by_position(count: int, answer: BatchAnswer) -> list[EntryFailure | None]:
    """Align what a batch call of SQS says with what was sent; our ids are positions, and every one has to be there."""
    with _reading():
        results: dict[str, EntryFailure | None] = {each["Id"]: None for each in answer.get("Successful", [])}
        results |= {
            each["Id"]: EntryFailure(each["Code"], each.get("Message", "")) for each in answer.get("Failed", [])
        }
        return [results[str(position)] for position in range(count)]


def _entry_result(result: Any) -> EntryResult:
    """Read what a call says of one entry; only a sequence number says that it is in the stream."""
    if isinstance(result, dict):
        if code := result.get("ErrorCode"):
            return EntryFailure(str(code), str(result.get("ErrorMessage", "")))
        if result.get("SequenceNumber"):
            return result.get("ShardId")
    raise _unreadable("a result that says nothing")


def _wire_entry(entry: PutEntry) -> PutRecordsRequestEntryTypeDef:
    if entry.explicit_hash_key is None:
        return {"Data": entry.data, "PartitionKey": entry.partition_key}
    return {"Data": entry.data, "PartitionKey": entry.partition_key, "ExplicitHashKey": entry.explicit_hash_key}


def _wire_datum(datum: Datum, at: dt.datetime) -> MetricDatumTypeDef:
    return {
        "MetricName": datum.name,
        "Unit": datum.unit,
        "Timestamp": at,
        "Dimensions": [{"Name": name, "Value": value} for name, value in datum.dimensions],
        "Values": datum.values,
        "Counts": datum.counts,
    }


def _rehearse(client: KinesisClient, stream: str) -> bool:
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    if not host.endswith(AWS_DOMAINS):
        return False
    with suppress(client.exceptions.DryRunOperationException):  # how it says that it would
        client.put_records(StreamName=stream, Records=[{"Data": b"", "PartitionKey": "check"}], DryRun=True)
    return True


def _stored_record(record: RecordTypeDef) -> StoredRecord:
    arrival = record.get("ApproximateArrivalTimestamp")
    return StoredRecord(
        data=record["Data"],
        partition_key=record.get("PartitionKey", ""),
        arrival_ms=0 if arrival is None else round(arrival.timestamp() * 1000),
        sequence_number=record["SequenceNumber"],
    )


def _more_shards(client: KinesisClient, token: str) -> ListShardsOutputTypeDef:
    return client.list_shards(NextToken=token)


def _shard_infos(answer: ListShardsOutputTypeDef) -> list[ShardInfo]:
    with _reading():
        return [_shard_info(shard) for shard in answer["Shards"]]


def _shard_info(shard: ShardTypeDef) -> ShardInfo:
    keys = shard["HashKeyRange"]
    return ShardInfo(
        shard_id=shard["ShardId"],
        parent_id=shard.get("ParentShardId"),
        adjacent_parent_id=shard.get("AdjacentParentShardId"),
        first_hash_key=int(keys["StartingHashKey"]),
        last_hash_key=int(keys["EndingHashKey"]),
        closed="EndingSequenceNumber" in shard["SequenceNumberRange"],
    )
