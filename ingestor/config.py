"""The typed configuration: YAML and environment in, frozen sections out, or one error that holds every mistake.

`load` collects everything before it complains: keys nobody knows, wrong types, values out of bounds and contradictions
between sections, each with its path in the file. Nothing connects before this has passed. A value from the environment
(`INGESTOR__SECTION__KEY`) wins over the file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, date, datetime
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ingestor.core.errors import ConfigError
from ingestor.core.stopping import StopPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

ENVIRONMENT_PREFIX = "INGESTOR__"
KINDS: Final = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    type(None): "null",
}
LONGEST_DIMENSION: Final = 1024  # of PutMetricData, as in the model of botocore
LONGEST_NAMESPACE: Final = 255
UNITS: Final = {"s": "seconds", "bytes": "bytes"}  # by the end of a name
PLAIN_WORDS = {  # for pydantic's messages that speak of Python where a file is meant
    "tuple_type": "Input should be a list",
    "too_short": "Input should be a list that is not empty",
    "model_type": "Input should be a section with keys of its own",
}


def refuse_boolean(value: object) -> object:
    """YAML reads `on` as true, and Python takes true for 1; neither is what the writer of a number meant."""
    if isinstance(value, bool):
        raise PydanticCustomError("boolean_as_number", "Input should be a number")
    return value


def as_text(value: object) -> object:
    """YAML reads `2024-01-01` as a date; the text is wanted."""
    return value.isoformat() if isinstance(value, date) else value


def upper_case_symbol(text: str) -> str:
    """Return a symbol in upper case, or a selector such as `all:USDT` with its quote asset in upper case.

    Not only Latin letters: the venue allows any word character except lower case ones, up to 50.
    """
    selector, colon, name = text.strip().rpartition(":")
    is_known = selector.lower() == "all" if colon else True
    if not is_known or not re.fullmatch(r"[\w.-]{1,50}|\*" if colon else r"[\w.-]{1,50}", name):
        raise PydanticCustomError("symbol", "Input should be BTCUSDT, or all:USDT for every symbol quoted in USDT")
    return f"all:{name.upper()}" if colon else name.upper()


def moment(text: str) -> datetime:
    """Read an ISO 8601 time; without an offset it is UTC."""
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def moment_text(at_ms: int) -> str:
    """Write a time, in milliseconds since the epoch, as `moment` reads it."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds" if at_ms % 1000 else "seconds").replace("+00:00", "Z")


def checked_moment(text: str) -> str:
    """Return `text` when `moment` can read it."""
    try:
        moment(text)
    except ValueError:
        raise PydanticCustomError(
            "moment", "Input should be a time such as 2024-01-31 or 2024-01-31T12:00:00Z"
        ) from None
    return text


Number = BeforeValidator(refuse_boolean)  # stands last, so that the schema knows the bounds before it
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), Number]
Count = Annotated[int, Field(gt=0), Number]
Share = Annotated[float, Field(gt=0, le=1), Number]
Symbol = Annotated[str, AfterValidator(upper_case_symbol)]
Moment = Annotated[str, BeforeValidator(as_text), AfterValidator(checked_moment)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]  # Kinesis: CreateStream, StreamName
KlineInterval = Literal[
    "1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M"
]
StreamKind = Literal["trade", "depth", "kline"]


class Section(BaseModel):
    """A frozen part of the configuration; a key it does not know is a mistake.

    What stands below a key is its description, for the README, `ingestor check --keys` and `--schema`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def take_empty_as_default(cls, value: Any) -> Any:
        """Read a section with nothing below it (`kinesis:`) as one where nothing is changed."""
        return {} if value is None else value


class Service(Section):
    """Who this is, and how long it may take to stop."""

    name: str = "ingestor"
    """Who writes: part of what names a feed, so tasks with another name do not take over from each other."""
    environment: str = "local"
    """Where: `production`, `staging`; the other part of that name."""
    shutdown_grace_s: Seconds = 25.0
    """From SIGTERM to the end; stay below what the orchestrator waits before it kills."""


class Logging(Section):
    """What is logged and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged. SIGHUP reads it again."""
    format: Literal["json", "console"] = "json"
    """`json` for machines, `console` for people."""


class Backoff(Section):
    """Delays between reconnects."""

    initial_s: Seconds = 1.0
    """The first delay before connecting again."""
    max_s: Seconds = 60.0
    """The longest of these delays."""
    multiplier: Annotated[float, Field(ge=1), Number] = 2.0
    """How much longer each delay is than the one before; data, not a handshake, begins anew."""
    jitter: bool = True
    """Take a random delay from nothing up to it, so that tasks do not come all at once."""


class Connections(Section):
    """How the subscriptions are spread over WebSocket connections and kept alive."""

    max_streams: Annotated[int, Field(gt=0, le=1024), Number] = 200
    """Streams that one connection carries; the venue allows 1024."""
    redundancy: Annotated[int, Field(ge=1, le=2), Number] = 1
    """2 runs two connections for every stream all the time; losing one of them loses nothing."""
    rollover_after_s: Seconds = 82_800.0
    """Age at which a connection is replaced, make before break; the venue drops it after 24 h."""
    silence_limit_s: Seconds = 30.0
    """Without any byte for so long, a connection is dead; the venue pings every 20 s."""
    backoff: Backoff = Backoff()


class Rest(Section):
    """How much of the venue's REST budget may be used."""

    max_weight_share: Share = 0.8
    """Share of the venue's weight limit that is used; lower it when something else shares the address."""
    timeout_s: Seconds = 10.0
    """The longest that one request may take."""
    max_attempts: Count = 8
    """Tries of a request that fails, except for bans, which are waited out."""


class Book(Section):
    """How order books are seeded and refreshed."""

    snapshot_levels: Annotated[int, Field(gt=0, le=5000), Number] = 1000
    """Levels on each side of an order book snapshot; fewer cost less weight."""
    resnapshot_s: Seconds = 3600.0
    """How often each book is asked for again, so that late readers find a start."""


class Binance(Section):
    """The venue: where it is and what is taken from it."""

    websocket_url: str = "wss://stream.binance.com:9443"
    """Where the live streams are."""
    rest_url: str = "https://api.binance.com"
    """Where repairs, snapshots and backfill over REST go."""
    archive_url: str = "https://data.binance.vision"
    """Where `backfill --via archive` downloads."""
    symbols: Annotated[tuple[Symbol, ...], Field(min_length=1)] = ("BTCUSDT", "ETHUSDT")
    """Which symbols: names, or selectors such as `all:USDT`. SIGHUP reads it again."""
    streams: Annotated[tuple[StreamKind, ...], Field(min_length=1)] = ("trade", "depth", "kline")
    """What of each symbol: `trade`, `depth` (changes every 100 ms), `kline`. SIGHUP reads it again."""
    kline_intervals: tuple[KlineInterval, ...] = ("1m",)
    """Intervals of bars, such as `1m`, `1h`, `1d`. SIGHUP reads it again."""
    connections: Connections = Connections()
    rest: Rest = Rest()
    book: Book = Book()
    allow_plaintext: bool = False
    """Accept `ws://` and `http://` beyond this machine."""


class Repair(Section):
    """Closing gaps over REST."""

    enabled: bool = True
    """Fetch what is missing over REST; otherwise every gap becomes a hole."""
    max_trades_per_gap: Count = 1_000_000
    """A longer gap becomes a hole `repair_limit`, for `ingestor backfill` to fill."""


class BackfillRange(Section):
    """A past range that the service loads in the background."""

    symbol: Symbol
    """Which symbol."""
    stream: Literal["trade", "kline"]
    """What of it."""
    interval: KlineInterval | None = None
    """Of the bars; trades have none."""
    start: Moment
    """The first moment, such as `2026-01-31T12:00:00Z`."""
    end: Moment
    """The first moment that is not wanted any more."""


class BatchLimits(Section):
    """When a batch leaves: records, bytes or age."""

    max_records: Annotated[int, Field(gt=0, le=500), Number] = 500
    """Entries in one put; Kinesis takes 500."""
    max_bytes: Annotated[int, Field(gt=0, le=10_485_760), Number] = 4_000_000
    """Bytes in one put."""
    flush: Literal["interval", "adaptive"] = "interval"
    """`interval` waits for full blobs, `adaptive` only while a put is under way: sooner, and dearer at low rates."""
    flush_interval_s: Seconds = 1.0
    """The longest that a record waits for company."""


class Retry(Section):
    """Retrying single entries that Kinesis refused."""

    max_attempts: Count = 10
    """Tries of an entry that is refused by itself, before it is a dead letter. Throttling is retried for ever."""
    initial_s: Seconds = 0.1
    """The first delay before an entry is sent again."""
    max_s: Seconds = 10.0
    """The longest of these delays."""


class CircuitBreakerLimits(Section):
    """When whole-call failures stop further calls, and for how long."""

    failure_threshold: Count = 5
    """Failures of whole calls, one after the other, that open the breaker: no call is made then."""
    reset_timeout_s: Seconds = 30.0
    """How long that lasts, before one call probes."""


class Timeouts(Section):
    """Socket timeouts towards AWS: the thread in a call cannot be interrupted otherwise."""

    connect_s: Seconds = 3.0
    """The longest wait for a connection to AWS."""
    read_s: Seconds = 6.0
    """The longest wait for its answer; what takes longer is sent again, and may be there twice."""


class Kinesis(Section):
    """The data stream and how it is written."""

    stream_name: Name = "bitcoin-market-data"
    """The data stream, which has to exist."""
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] = "us-east-1"
    """Of all AWS services here; `AWS_REGION` is not read."""
    endpoint_url: str | None = None
    """Another endpoint than AWS: LocalStack, an emulator, a VPC endpoint."""
    partition_key: Literal["symbol", "symbol_event_type", "spread"] = "symbol"
    """What keeps its order: a `symbol`, a `symbol_event_type`, or (`spread`, for one too hot for a shard) nothing."""
    aggregation: Literal["kpl", "none"] = "kpl"
    """`kpl` packs many records into one and costs a small part; `none` is for consumers that cannot unpack."""
    encoding: Literal["avro", "glue"] = "avro"
    """What stands before each record: `avro` (single-object), or the header of the `glue` schema registry."""
    batch: BatchLimits = BatchLimits()
    retry: Retry = Retry()
    circuit_breaker: CircuitBreakerLimits = CircuitBreakerLimits()
    allow_plaintext: bool = False
    """Accept `http://` beyond this machine."""
    blob_bytes: Annotated[int, Field(ge=1_000, le=1_048_576), Number] = 49_900
    """Size of an aggregated record; Kinesis bills by 25 KB, so just below a multiple of it."""
    timeouts: Timeouts = Timeouts()
    shard_budget_share: Share = 0.9
    """Share of a shard's limits (1 MB/s, 1000 records/s) that is used."""
    lanes: Annotated[int, Field(gt=0, le=256), Number] = 8
    """Puts in flight. Two a shard or more; another number breaks the order of a key across that deploy."""


class Heartbeat(Section):
    """The heartbeat stream, which is also the checkpoint."""

    stream_name: Name = "ingestor-heartbeat"
    """The stream that says what is covered. It is the checkpoint: a stream of its own, one shard is enough."""
    interval_s: Seconds = 5.0
    """How often it is said; a task that takes over fetches at most so much twice."""
    resume: bool = True
    """Read back at start what earlier tasks covered, and fetch or declare the rest."""
    resume_lookback_s: Seconds = 86_400.0
    """How far that looks back; not longer than the stream retains."""


class Spool(Section):
    """Where encoded records wait while Kinesis is away."""

    directory: Path | None = None
    """A folder on disk where records wait while Kinesis is away; none: they wait in memory."""
    max_bytes: Count = 1_073_741_824
    """What may wait there; then memory fills, and then the venue is not read any more."""
    memory_max_bytes: Count = 33_554_432
    """What may wait in memory."""


class Channels(Section):
    """How much may wait between two tasks."""

    max_batches: Count = 256
    """Batches that may wait between two tasks of the line."""
    max_bytes: Count = 67_108_864
    """Bytes that may wait there."""


class DeadLetters(Section):
    """Where records go that are given up."""

    kind: Literal["file", "sqs"] = "file"
    """`file`, or `sqs`; what the queue does not take goes to the folder."""
    directory: Path = Path("dead-letter")
    """Where the files go, a line for each letter."""
    queue_url: str | None = None
    """The address of the SQS queue, for `kind: sqs`."""


class Health(Section):
    """Where the probes, the metrics and the page are served."""

    host: str = "0.0.0.0"  # noqa: S104 - probes come from outside the container
    """The address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535), Number] = 8080
    """The port of probes, metrics and page; 0 takes a free one."""


class CloudWatch(Section):
    """The second half of the dual emission."""

    mode: Literal["none", "api", "emf"] = "none"
    """`api` calls PutMetricData, `emf` writes lines to standard output, `none`. Prometheus is always there."""
    namespace: str = "Ingestor"
    """The namespace that they appear in."""
    interval_s: Seconds = 60.0
    """How often they are sent."""


class Metrics(Section):
    """Emission besides Prometheus."""

    cloudwatch: CloudWatch = CloudWatch()


class Shard(Section):
    """This task's share of the symbols."""

    index: Annotated[int, Field(ge=0), Number] = 0
    """Which of the tasks this one is, counted from 0."""
    count: Count = 1
    """How many tasks share the symbols."""


class Config(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, case_sensitive=True, use_attribute_docstrings=True)

    service: Service = Service()
    logging: Logging = Logging()
    binance: Binance = Binance()
    repair: Repair = Repair()
    backfill: tuple[BackfillRange, ...] = ()
    """Past ranges that the service loads in the background, once, and continues after a restart."""
    kinesis: Kinesis = Kinesis()
    heartbeat: Heartbeat = Heartbeat()
    spool: Spool = Spool()
    channels: Channels = Channels()
    dead_letter: DeadLetters = DeadLetters()
    health: Health = Health()
    metrics: Metrics = Metrics()
    shard: Shard = Shard()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Build from arguments only: the environment comes in through `load`, so that a test has none by accident."""
        return (init_settings,)


class Environment(EnvSettingsSource):
    """The values that environment variables set, as nested mappings. Lists are JSON, or text with commas."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(
            Config,
            case_sensitive=False,
            env_prefix=ENVIRONMENT_PREFIX,
            env_nested_delimiter="__",
            env_parse_none_str="null",
        )
        self.env_vars = {name.lower(): None if text == "null" else text for name, text in environ.items() if text}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ARG002 - pydantic's
        """Read JSON, or what stands between commas; a mistake in it is reported with all the others."""
        try:
            return json.loads(value)
        except ValueError:
            return [part.strip() for part in str(value).split(",")]


MERGE_TAG = "tag:yaml.org,2002:merge"  # of the key `<<`


class UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that stands twice: the second would silently win.

    A key is the text that stands there, whatever YAML takes it for (`on` is true, `1` a number).
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, and complain with the line when a key comes again."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key has to be a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
            if key.tag != MERGE_TAG:
                key.tag = self.DEFAULT_SCALAR_TAG
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value, and say where it stands when it only looks like a date or a number, such as 2024-13-01."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError) as error:  # PyYAML's own constructors let them through
            kind = node.tag.rpartition(":")[2]
            text = f"{node.value!r} looks like a {kind} and is none (quote a text)"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error


# What may change while the service runs. All else is a promise to others (where records go, in which order, who this
# is) or has been divided up at the start (lanes, limits, threads, files, ports).
CHANGEABLE: Final[Mapping[str, tuple[str, ...]]] = {
    "logging": ("level",),
    "binance": ("symbols", "streams", "kline_intervals"),
}


class Contradiction(NamedTuple):
    """A mistake that no value shows alone; `paths` are the values it was read from."""

    paths: tuple[str, ...]
    text: str


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read the YAML file at `path`, lay the environment over it, and return the checked result.

    Raises `ConfigError` with every problem at once, each beginning with its path such as `kinesis.batch.max_records`.
    """
    values = merged(read_yaml(path), set_by_environment(environ))
    config, broken, problems = validate(values, environ)
    for contradiction in contradictions(config):
        if not any(touches(bad, path) for bad in broken for path in contradiction.paths):
            problems.append(f"{contradiction.paths[0]}: {contradiction.text}")
    if problems:
        raise ConfigError(problems)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file into a mapping; a file that cannot be read or parsed is a `ConfigError` with line and column."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text at byte {error.start}"]) from error
    try:
        values = yaml.load(text, UniqueKeyLoader)  # noqa: S506 - it is the safe loader, made stricter
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError([f"{where}: {error.problem or error.context}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: {error}".splitlines()[0]]) from error
    except ValueError as error:  # of `datetime`: 2024-02-30 looks like a date
        raise ConfigError([f"{path}: what looks like a date or a number is none: {error}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: is nested too deeply"]) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: holds a {type(values).__name__}, and sections such as `kinesis:` are expected"])
    return {str(key): value for key, value in values.items()}


def set_by_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what `INGESTOR__SECTION__KEY` variables set; sections that do not exist too, to be reported."""
    values: dict[str, Any] = Environment(environ)()
    for name, text in environ.items():
        section = name.upper().removeprefix(ENVIRONMENT_PREFIX).partition("__")[0].lower()
        if name.upper().startswith(ENVIRONMENT_PREFIX) and section not in Config.model_fields:
            values[section] = text
    return values


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested mappings over each other; what stands in `above` wins."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return result


def validate(values: dict[str, Any], environ: Mapping[str, str]) -> tuple[Config, list[str], list[str]]:
    """Return the configuration, the paths of what is broken in it, and a line of text for each.

    What is broken is left out of the returned configuration, so that its default stands in, and contradictions between
    the other values can be told in the same breath.
    """
    try:
        return Config(**values), [], []
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
    broken = [dotted(detail["loc"]) for detail in details]
    for detail in details:
        leave_out(values, detail["loc"])
    config, _, _ = validate(values, {})
    return config, broken, [described(detail, environ) for detail in details]


def leave_out(values: dict[str, Any], location: tuple[int | str, ...]) -> None:
    """Remove what `location` points to; of a list that holds a mistake, all of it."""
    inner: Any = values
    for here, below in zip(location, (*location[1:], None), strict=True):
        if not isinstance(inner, dict) or here not in inner:
            return
        if below is None or isinstance(below, int):
            del inner[str(here)]
            return
        inner = inner[here]


def dotted(location: tuple[int | str, ...]) -> str:
    """Write a location as people do: `binance.symbols[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def touches(broken: str, path: str) -> bool:
    """Tell whether a broken place is this value, inside of it or around it."""
    return f"{broken}.".startswith((f"{path}.", f"{path}[")) or f"{path}.".startswith(f"{broken}.")


def described(detail: ErrorDetails, environ: Mapping[str, str]) -> str:
    """Say in one line where the mistake is, what it is and what was found there."""
    location = detail["loc"]
    where = dotted(location)
    variable = ENVIRONMENT_PREFIX + "__".join(part for part in location if isinstance(part, str)).upper()
    culprits = [name for name in environ if f"{name.upper()}__".startswith(f"{variable}__")]
    if culprits:
        where += f" (from {', '.join(culprits)})"
    if detail["type"] == "extra_forbidden":
        return f"{where}: there is no such key{suggestion(location)}"
    if detail["type"] == "missing":
        return f"{where}: is missing"
    found = repr(detail["input"])
    message = PLAIN_WORDS.get(detail["type"], detail["msg"])
    text = f"{where}: {message}, found {found if len(found) <= 80 else found[:77] + '...'}"
    if isinstance(detail["input"], bool):
        text += " (YAML reads yes, no, on and off as true and false: quote a text)"
    return text


def suggestion(location: tuple[int | str, ...]) -> str:
    """Return `; did you mean ...?` when a key that exists beside it looks like it."""
    section: Any = Config
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            section = BackfillRange if part == "backfill" else annotation
    close = get_close_matches(str(location[-1]).lower(), section.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def contradictions(config: Config) -> Iterator[Contradiction]:
    """Find what does not fit together, in a configuration whose single values are right."""
    yield from contradicting_subscriptions(config.binance)
    yield from contradicting_urls(config)
    yield from contradicting_limits(config)
    yield from contradicting_names(config)
    yield from contradicting_ranges(config.backfill)


def contradicting_subscriptions(binance: Binance) -> Iterator[Contradiction]:
    """Find what is asked for twice, and klines of no interval."""
    for name in ("symbols", "streams", "kline_intervals"):
        twice = [value for value, count in Counter(getattr(binance, name)).items() if count > 1]
        if twice:
            yield Contradiction((f"binance.{name}",), f"{', '.join(twice)} stands there more than once")
    if "kline" in binance.streams and not binance.kline_intervals:
        paths = ("binance.kline_intervals", "binance.streams")
        yield Contradiction(paths, "is empty although `binance.streams` asks for kline")


def contradicting_urls(config: Config) -> Iterator[Contradiction]:
    """Find addresses that are none, that carry a password, or that would carry data in the clear over a network."""
    binance, kinesis = config.binance, config.kinesis
    for path, url, scheme, permission in (
        ("binance.websocket_url", binance.websocket_url, "ws", "binance.allow_plaintext"),
        ("binance.rest_url", binance.rest_url, "http", "binance.allow_plaintext"),
        ("binance.archive_url", binance.archive_url, "http", "binance.allow_plaintext"),
        ("kinesis.endpoint_url", kinesis.endpoint_url, "http", "kinesis.allow_plaintext"),
        ("dead_letter.queue_url", config.dead_letter.queue_url, "http", "kinesis.allow_plaintext"),
    ):
        allowed = kinesis.allow_plaintext if permission.startswith("kinesis") else binance.allow_plaintext
        text = None if url is None else wrong_with_url(url, scheme, permission, allow_plaintext=allowed)
        if text is not None:
            yield Contradiction((path, permission), text)
    if config.dead_letter.kind == "sqs" and config.dead_letter.queue_url is None:
        paths = ("dead_letter.queue_url", "dead_letter.kind")
        yield Contradiction(paths, "is missing although `dead_letter.kind` is sqs")


CREDENTIALS_ELSEWHERE = "should hold neither a user name nor a query: credentials come from the AWS chain only"


def wrong_with_url(url: str, scheme: str, permission: str, *, allow_plaintext: bool) -> str | None:
    """Return what is wrong with `url`, which should be `scheme` or its form over TLS; None when nothing is."""
    if not {"@", "?", "#"}.isdisjoint(url):  # nothing of it is repeated: there is a secret in it, as a rule
        return CREDENTIALS_ELSEWHERE
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return f"is not an address: {error}"
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not an address: what stands behind the colon is no port"
    if parts.scheme not in (scheme, f"{scheme}s") or not host:
        return f"should begin with {scheme}s:// and name a host, found {url!r}"
    if parts.scheme == scheme and not allow_plaintext and not is_loopback(host):
        return f"{scheme}:// to {host} needs `{permission}: true`, or use {scheme}s://"
    return None


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine and nothing else; names below `localhost` are asked of a name server."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_plain_and_local(url: str) -> bool:
    """Tell whether `url` is plain text that is meant for this machine: through a proxy it would leave it."""
    parts = urlsplit(url)
    return parts.scheme == "http" and is_loopback(parts.hostname or "")


def contradicting_limits(config: Config) -> Iterator[Contradiction]:
    """Find limits that exclude each other."""
    kinesis, backoff, shard = config.kinesis, config.binance.connections.backoff, config.shard
    if shard.index >= shard.count:
        paths = ("shard.index", "shard.count")
        yield Contradiction(
            paths, f"is {shard.index}, and with `shard.count` {shard.count} the last is {shard.count - 1}"
        )
    for path, limits in (("binance.connections.backoff", backoff), ("kinesis.retry", kinesis.retry)):
        if limits.max_s < limits.initial_s:
            text = f"is {limits.max_s:g}, less than `initial_s` {limits.initial_s:g}"
            yield Contradiction((f"{path}.max_s", f"{path}.initial_s"), text)
    if kinesis.stream_name == config.heartbeat.stream_name:
        paths = ("heartbeat.stream_name", "kinesis.stream_name")
        yield Contradiction(paths, "is the data stream too; the checkpoint needs a stream of its own")
    if kinesis.aggregation == "kpl" and kinesis.batch.max_bytes < 2 * kinesis.blob_bytes:
        text = f"is {kinesis.batch.max_bytes}, too little for blobs of `kinesis.blob_bytes` {kinesis.blob_bytes}"
        yield Contradiction(("kinesis.batch.max_bytes", "kinesis.blob_bytes", "kinesis.aggregation"), text)
    grace_s, call_s = config.service.shutdown_grace_s, kinesis.timeouts.connect_s + kinesis.timeouts.read_s
    if StopPlan.within(grace_s, call_s).last_put_s <= 0:
        text = f"is {grace_s:g}: no time for a last put, which may take {call_s:g} s (`kinesis.timeouts`)"
        yield Contradiction(("service.shutdown_grace_s", "kinesis.timeouts"), text)


def contradicting_names(config: Config) -> Iterator[Contradiction]:
    """Find names that CloudWatch would refuse: it refuses all that is sent with one of them, embedded ones silently."""
    service, cloudwatch = config.service, config.metrics.cloudwatch
    if cloudwatch.mode == "none":
        return
    names = (
        ("service.name", service.name, LONGEST_DIMENSION),
        ("service.environment", service.environment, LONGEST_DIMENSION),
        ("metrics.cloudwatch.namespace", cloudwatch.namespace, LONGEST_NAMESPACE),
    )
    for path, name, longest in names:
        if not (name.isascii() and name.isprintable() and name.strip() and len(name) <= longest):
            text = f"is {name!r}; CloudWatch wants 1 to {longest} visible characters of ASCII"
            yield Contradiction((path, "metrics.cloudwatch.mode"), text)
    if cloudwatch.namespace.startswith("AWS/"):
        text = "begins with AWS/, which is kept for services of AWS"
        yield Contradiction(("metrics.cloudwatch.namespace", "metrics.cloudwatch.mode"), text)


def contradicting_ranges(ranges: tuple[BackfillRange, ...]) -> Iterator[Contradiction]:
    """Find past ranges that end before they begin, and intervals where they do not belong."""
    for index, wanted in enumerate(ranges):
        path = f"backfill[{index}]"
        if wanted.stream == "kline" and wanted.interval is None:
            yield Contradiction((f"{path}.interval",), "is missing: klines have one")
        if wanted.stream == "trade" and wanted.interval is not None:
            yield Contradiction((f"{path}.interval",), "is set: trades have none")
        if wanted.symbol.startswith("all:"):
            yield Contradiction((f"{path}.symbol",), "is a selector, and a past range is of one symbol")
        if moment(wanted.end) <= moment(wanted.start):
            yield Contradiction((f"{path}.end",), f"is not after `start` {wanted.start}")


def adopt(running: Config, wanted: Config) -> Config:
    """Return `running` with what of `wanted` may change while the service runs."""
    sections = {
        section: getattr(running, section).model_copy(
            update={key: getattr(getattr(wanted, section), key) for key in keys}
        )
        for section, keys in CHANGEABLE.items()
    }
    return running.model_copy(update=sections)


def differences(before: Config, after: Config) -> list[str]:
    """Return the path of every value that differs, a list counting as one."""
    return list(_differences(before.model_dump(), after.model_dump(), ""))


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in before.items():
        other = after[key]
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differences(value, other, f"{path}{key}.")
        elif value != other:
            yield f"{path}{key}"


class Key(NamedTuple):
    """A key as a person looks it up; `default` is JSON, which YAML reads too."""

    path: str
    kind: str
    default: str
    meaning: str


def keys(section: type[BaseModel] = Config, path: str = "") -> Iterator[Key]:
    """Return every key there is, in the order of the file."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{path}{name}.")
            continue
        items = get_args(inner)[0] if get_origin(inner) is tuple else None
        unit = UNITS.get(name.rpartition("_")[2]) if inner in (int, float) else None
        yield Key(f"{path}{name}", unit or kind_of(inner), default_of(field), field.description or "")
        if isinstance(items, type) and issubclass(items, BaseModel):
            yield from keys(items, f"{path}{name}[].")


def default_of(field: FieldInfo) -> str:
    """Write the default as a file would hold it; nothing when there is none."""
    if field.is_required():
        return ""
    default = field.default
    return f"{default:g}" if isinstance(default, float) else json.dumps(default, default=str)


def kind_of(annotation: Any) -> str:
    """Say in words what a value may be."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(inner[0])
    if origin is Literal:
        return ", ".join(inner) if len(inner) < 6 else f"{inner[0]} … {inner[-1]}"
    if origin is tuple:
        return f"list of {kind_of(inner[0])}"
    if origin in (Union, UnionType):
        return " or ".join(map(kind_of, inner))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "sections"
    return KINDS[annotation]


def to_yaml(config: Config) -> str:
    """Write every effective value the way a configuration file holds it."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
