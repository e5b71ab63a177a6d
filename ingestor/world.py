"""Everything outside the process, as values: sockets, HTTP, AWS, threads, clocks. A simulation hands in its own."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ingestor.aws import (
    AwsApi,
    CloudWatchSink,
    KinesisApi,
    KinesisSink,
    QueueClient,
    StreamClient,
    find_schema_version,
    make_cloudwatch_client,
    make_kinesis_client,
    make_sqs_client,
)
from ingestor.cloudwatch import EmfOutlet
from ingestor.core.stopping import OBSERVERS_S
from ingestor.kinesis_producer import CALLS_IN_FLIGHT
from ingestor.reader import StreamApi
from ingestor.resources import read_schema
from ingestor.threads import open_threads
from ingestor.websocket_client import open_stream, parse_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    import httpx
    import trio

    from ingestor.aws import StreamSummary
    from ingestor.cloudwatch import MetricsOutlet
    from ingestor.config import Config, Kinesis
    from ingestor.dead_letter import Queue
    from ingestor.kinesis_producer import Sink
    from ingestor.threads import RunBlocking

SIDE_THREADS: Final = 4  # heartbeats and read-back; the data stream never waits for them


class Streams(StreamApi, Protocol):
    """Reading streams, and asking what they are: `aws.StreamClient`."""

    async def describe(self, stream: str) -> StreamSummary:
        """Say what `stream` is; raises `SinkError`."""
        ...


class World(NamedTuple):
    """What the service needs of the outside.

    `rest_transport` None is the network; `schema_version_id` is what the Glue Schema Registry calls our schema;
    without a `metrics_outlet` there is Prometheus alone, without a `queue` dead letters go into files.
    """

    connect: Callable[[], Awaitable[trio.abc.Stream]]
    rest_transport: httpx.AsyncBaseTransport | None
    data_sink: Sink
    heartbeat_sink: Sink
    streams: Streams
    run_blocking: RunBlocking
    wall_ns: Callable[[], int]
    random: random.Random
    schema_version_id: UUID | None = None
    metrics_outlet: MetricsOutlet | None = None
    queue: Queue | None = None


def open_world(config: Config) -> World:
    """Open the real one, from the main thread; raises `ConfigError` for an endpoint that cannot be."""
    kinesis = config.kinesis
    data = KinesisApi(partial(make_kinesis_client, kinesis, connections=CALLS_IN_FLIGHT), open_threads(CALLS_IN_FLIGHT))
    # A beat says all that an earlier one said, so one that a stop cannot wait for is left to itself; so is a read.
    side = KinesisApi(
        partial(make_kinesis_client, kinesis, connections=SIDE_THREADS), open_threads(SIDE_THREADS, may_abandon=True)
    )
    return World(
        connect=partial(open_stream, parse_url(config.binance.websocket_url)),
        rest_transport=None,
        data_sink=KinesisSink(data, kinesis.stream_name),
        heartbeat_sink=KinesisSink(side, config.heartbeat.stream_name),
        streams=StreamClient(side),
        run_blocking=open_threads(1),
        wall_ns=time.time_ns,
        random=random.Random(),  # noqa: S311 - spreads retries, keeps no secret
        schema_version_id=schema_version_id(kinesis),
        metrics_outlet=open_metrics_outlet(config),
        queue=open_queue(config),
    )


def open_queue(config: Config) -> Queue | None:
    """Open the way to the queue of dead letters, if `dead_letter.kind` asks for one."""
    url = config.dead_letter.queue_url
    if config.dead_letter.kind != "sqs" or url is None:
        return None
    kinesis = config.kinesis
    return QueueClient(AwsApi(partial(make_sqs_client, url, kinesis.region, kinesis.timeouts), open_threads(1)))


def open_metrics_outlet(config: Config) -> MetricsOutlet | None:
    """Open what `metrics.cloudwatch.mode` asks for, with a thread of its own that a stop need not wait for long."""
    settings = config.metrics.cloudwatch
    if settings.mode == "api":
        make_client = partial(
            make_cloudwatch_client,
            config.kinesis.region,
            timeout_s=OBSERVERS_S / 2,
            allow_plaintext=config.kinesis.allow_plaintext,
        )
        return CloudWatchSink(AwsApi(make_client, open_threads(1)), settings.namespace)
    if settings.mode == "emf":
        # Not `sys.stdout`: a thread that is stuck in it would hold its lock, without which the process cannot end.
        out = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
        return EmfOutlet(out, settings.namespace, open_threads(1, may_abandon=True))
    return None


def schema_version_id(settings: Kinesis) -> UUID | None:
    """Return what the Glue header has to carry, None for plain Avro; raises `ConfigError` if it cannot be found out."""
    return find_schema_version(settings, read_schema("market_data")) if settings.encoding == "glue" else None
