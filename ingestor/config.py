"""The typed configuration: YAML and environment in, frozen sections out, or one error that holds every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
KlineInterval = Literal["1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M"]
StreamKind = Literal["trade", "depth", "kline"]


class Section(BaseModel):
    """A frozen part of the configuration; a key it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Service(Section):
    """Who this is, and how long it may take to stop."""

    name: str = "ingestor"
    environment: str = "local"
    shutdown_grace_s: Seconds = 25.0


class Logging(Section):
    """What is logged and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Backoff(Section):
    """Delays between reconnects."""

    initial_s: Seconds = 1.0
    max_s: Seconds = 60.0
    multiplier: Annotated[float, Field(ge=1)] = 2.0
    jitter: bool = True


class Connections(Section):
    """How the subscriptions are spread over WebSocket connections and kept alive."""

    max_streams: Annotated[int, Field(gt=0, le=1024)] = 200
    redundancy: Annotated[int, Field(ge=1, le=2)] = 1
    rollover_after_s: Seconds = 82_800.0
    silence_limit_s: Seconds = 30.0
    backoff: Backoff = Backoff()


class Rest(Section):
    """How much of the venue's REST budget may be used."""

    max_weight_share: Share = 0.8
    timeout_s: Seconds = 10.0
    max_attempts: Count = 8


class Book(Section):
    """How order books are seeded and refreshed."""

    snapshot_levels: Annotated[int, Field(gt=0, le=5000)] = 1000
    resnapshot_s: Seconds = 3600.0


class Binance(Section):
    """The venue: where it is and what is taken from it."""

    websocket_url: str = "wss://stream.binance.com:9443"
    rest_url: str = "https://api.binance.com"
    archive_url: str = "https://data.binance.vision"
    symbols: Annotated[tuple[str, ...], Field(min_length=1)] = ("BTCUSDT", "ETHUSDT")
    streams: Annotated[tuple[StreamKind, ...], Field(min_length=1)] = ("trade", "depth", "kline")
    kline_intervals: tuple[KlineInterval, ...] = ("1m",)
    connections: Connections = Connections()
    rest: Rest = Rest()
    book: Book = Book()
    allow_plaintext: bool = False


class Repair(Section):
    """Closing gaps over REST."""

    enabled: bool = True
    max_trades_per_gap: Count = 1_000_000


class BackfillRange(Section):
    """A past range that the service loads in the background."""

    symbol: str
    stream: Literal["trade", "kline"]
    interval: KlineInterval | None = None
    start: str
    end: str


class BatchLimits(Section):
    """When a batch leaves: records, bytes or age."""

    max_records: Annotated[int, Field(gt=0, le=500)] = 500
    max_bytes: Annotated[int, Field(gt=0, le=10_485_760)] = 4_000_000
    flush: Literal["interval", "adaptive"] = "interval"
    flush_interval_s: Seconds = 1.0


class Retry(Section):
    """Retrying single entries that Kinesis refused."""

    max_attempts: Count = 10
    initial_s: Seconds = 0.1
    max_s: Seconds = 10.0


class CircuitBreakerLimits(Section):
    """When whole-call failures stop further calls, and for how long."""

    failure_threshold: Count = 5
    reset_timeout_s: Seconds = 30.0


class Timeouts(Section):
    """Socket timeouts towards AWS: the thread in a call cannot be interrupted otherwise."""

    connect_s: Seconds = 3.0
    read_s: Seconds = 6.0


class Kinesis(Section):
    """The data stream and how it is written."""

    stream_name: str = "bitcoin-market-data"
    region: str = "us-east-1"
    endpoint_url: str | None = None
    partition_key: Literal["symbol", "symbol_event_type", "spread"] = "symbol"
    aggregation: Literal["kpl", "none"] = "kpl"
    encoding: Literal["avro", "glue"] = "avro"
    batch: BatchLimits = BatchLimits()
    retry: Retry = Retry()
    circuit_breaker: CircuitBreakerLimits = CircuitBreakerLimits()
    allow_plaintext: bool = False
    blob_bytes: Annotated[int, Field(ge=1_000, le=1_048_576)] = 49_900
    timeouts: Timeouts = Timeouts()
    shard_budget_share: Share = 0.9
    lanes: Annotated[int, Field(gt=0, le=256)] = 8


class Heartbeat(Section):
    """The heartbeat stream, which is also the checkpoint."""

    stream_name: str = "ingestor-heartbeat"
    interval_s: Seconds = 5.0
    resume: bool = True
    resume_lookback_s: Seconds = 86_400.0


class Spool(Section):
    """Where encoded records wait while Kinesis is away."""

    directory: Path | None = None
    max_bytes: Count = 1_073_741_824
    memory_max_bytes: Count = 33_554_432


class Channels(Section):
    """How much may wait between two tasks."""

    max_batches: Count = 256
    max_bytes: Count = 67_108_864


class DeadLetters(Section):
    """Where records go that are given up."""

    kind: Literal["file", "sqs"] = "file"
    directory: Path = Path("dead-letter")
    queue_url: str | None = None


class Health(Section):
    """Where the probes, the metrics and the page are served."""

    host: str = "0.0.0.0"  # noqa: S104 - probes come from outside the container
    port: Annotated[int, Field(ge=0, le=65535)] = 8080


class CloudWatch(Section):
    """The second half of the dual emission."""

    mode: Literal["none", "api", "emf"] = "none"
    namespace: str = "Ingestor"
    interval_s: Seconds = 60.0


class Metrics(Section):
    """Emission besides Prometheus."""

    cloudwatch: CloudWatch = CloudWatch()


class Shard(Section):
    """This task's share of the symbols."""

    index: Annotated[int, Field(ge=0)] = 0
    count: Count = 1


class Config(BaseSettings):
    """Everything that can be set; architecture.md §5 is its contract."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="INGESTOR__", env_nested_delimiter="__")

    service: Service = Service()
    logging: Logging = Logging()
    binance: Binance = Binance()
    repair: Repair = Repair()
    backfill: tuple[BackfillRange, ...] = ()
    kinesis: Kinesis = Kinesis()
    heartbeat: Heartbeat = Heartbeat()
    spool: Spool = Spool()
    channels: Channels = Channels()
    dead_letter: DeadLetters = DeadLetters()
    health: Health = Health()
    metrics: Metrics = Metrics()
    shard: Shard = Shard()
