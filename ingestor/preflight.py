"""`ingestor check --connect`: reaches everything that the service needs, once, and says what is missing and what to do.

It changes nothing: the venue is asked and subscribed to for a moment, streams are described and read, and whether they
may be written is rehearsed where AWS offers that. Each part is looked at beside the others, whatever becomes of them.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from contextlib import suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec
import trio

from ingestor import logs
from ingestor.aws import (
    AwsApi,
    KinesisApi,
    QueueClient,
    StreamClient,
    find_schema_version,
    make_kinesis_client,
    make_sqs_client,
)
from ingestor.core.binance import Ack, ServerShutdown, StreamError, classify
from ingestor.core.errors import ConfigError, DecodeError, SinkError
from ingestor.core.health import ConnectionFact
from ingestor.core.intake import Inlet
from ingestor.core.resume import PREDECESSOR_INTERVALS, beat_from_avro
from ingestor.core.sharding import has_selector, select, share
from ingestor.core.shards import HOT_KEY_ADVICE
from ingestor.core.subscription import expand, plan_connections
from ingestor.core.wording import printable
from ingestor.frames import HandshakeRefusedError
from ingestor.heartbeat import HOT_KEYS, identity_of
from ingestor.metrics import open_metrics
from ingestor.reader import StreamReader, since
from ingestor.resources import read_schema
from ingestor.rest_client import RestClient, RestrictedLocationError, VenueError
from ingestor.serializer import decode_heartbeat
from ingestor.threads import open_threads
from ingestor.websocket_client import Farewell, Feed, FeedLimits, open_stream, parse_url
from ingestor.world import Streams

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path
    from typing import TextIO

    from ingestor.aws import QueueSummary, StreamSummary
    from ingestor.config import Config
    from ingestor.core.binance import Control
    from ingestor.core.model import Subscription
    from ingestor.metrics import Metrics
    from ingestor.reader import ShardPage
    from ingestor.threads import RunBlocking

T = TypeVar("T")

THREADS: Final = 4
ATTEMPTS: Final = 2  # a person waits; the service has more patience
LIMIT_S: Final = 45.0  # for each part
FIRST_MESSAGE_S: Final = 5.0
RESTRICTED: Final = 451
SKEW_WARN_MS: Final = 1_000  # budgets and bans follow the venue's clock, latencies both; NTP is a hundred times better
MIB: Final = 1 << 20

Level: TypeAlias = Literal["ok", "warn", "fail"]
Note: TypeAlias = "Callable[[Finding], None]"
Part: TypeAlias = "Callable[[Config, Outside, Note], Awaitable[None]]"


class Finding(NamedTuple):
    """What was found out about `subject`, a key of the configuration where there is one, and what to do about it."""

    level: Level
    subject: str
    text: str
    advice: str = ""


class StreamProbe(Streams, Protocol):
    """Looks at streams, and finds out whether they may be written: `aws.StreamClient`."""

    async def rehearse_put(self, stream: str) -> bool:
        """Have AWS say whether a put would be accepted; False where that cannot be asked. Raises `SinkError`."""
        ...


class QueueProbe(Protocol):
    """Looks at queues: `aws.QueueClient`."""

    async def describe(self, queue_url: str) -> QueueSummary:
        """Say what the queue is; raises `SinkError`."""
        ...


class Outside(NamedTuple):
    """What is to be reached."""

    rest: RestClient
    connect: Callable[[], Awaitable[trio.abc.Stream]]
    streams: StreamProbe
    queue: QueueProbe | None
    find_schema: Callable[[], object]
    run_blocking: RunBlocking
    wall_ns: Callable[[], int]


def run(config: Config, out: TextIO) -> int:
    """Look at everything, write what was found to `out`, and return 1 if the service could not work, else 0."""
    logs.set_up("warning", "console")
    return trio.run(check, config, open_outside(config), out)


def open_outside(config: Config) -> Outside:
    """Open the real one; raises `ConfigError` for an endpoint that cannot be."""
    kinesis, letters = config.kinesis, config.dead_letter
    run_blocking = open_threads(THREADS)
    queue = None
    if letters.kind == "sqs" and letters.queue_url is not None:
        make_client = partial(make_sqs_client, letters.queue_url, kinesis.region, kinesis.timeouts)
        queue = QueueClient(AwsApi(make_client, run_blocking))
    return Outside(
        rest=RestClient(
            config.binance.rest_url,
            config.binance.rest.model_copy(update={"max_attempts": ATTEMPTS}),
            metrics=open_metrics(),
            wall_ns=time.time_ns,
            random=Random(),  # noqa: S311 - spreads retries, keeps no secret
        ),
        connect=partial(open_stream, parse_url(config.binance.websocket_url)),
        streams=StreamClient(KinesisApi(partial(make_kinesis_client, kinesis, connections=THREADS), run_blocking)),
        queue=queue,
        find_schema=partial(find_schema_version, kinesis, read_schema("market_data")),
        run_blocking=run_blocking,
        wall_ns=time.time_ns,
    )


async def check(config: Config, outside: Outside, out: TextIO) -> int:
    """Look at all parts at once and write what was found in the order in which data flows."""
    found: dict[str, list[Finding]] = {subject: [] for subject in PARTS}

    async def look(subject: str, part: Part) -> None:
        with trio.move_on_after(LIMIT_S) as scope:
            await part(config, outside, found[subject].append)
        if scope.cancelled_caught:
            text = f"no answer within {LIMIT_S:g} s"
            found[subject].append(Finding("fail", subject, text, "the log may say what it waited for"))

    async with outside.rest, trio.open_nursery() as nursery:
        for subject, part in PARTS.items():
            nursery.start_soon(look, subject, part)
    findings = [finding for part_findings in found.values() for finding in part_findings]
    out.writelines(map(written, findings))
    out.flush()
    return int(any(finding.level == "fail" for finding in findings))


def written(finding: Finding) -> str:
    """Write a finding as a line, and what to do about it as another one; venue and AWS had a hand in both."""
    advice = f"      -> {printable(finding.advice)}\n" if finding.advice else ""
    return f"{finding.level:<5} {finding.subject}: {printable(finding.text)}\n{advice}"


async def check_venue(config: Config, outside: Outside, note: Note) -> None:
    """Hold our clock and our symbols against the venue's."""
    subject = "binance.rest_url"
    try:
        before_ns = outside.wall_ns()
        venue_ms = await outside.rest.server_time_ms()
        ours_ms = (before_ns + outside.wall_ns()) / 2e6
        note(judge_clock(ours_ms - venue_ms))
        info = await outside.rest.exchange_info()
    except RestrictedLocationError as error:
        note(
            Finding("fail", subject, f"restricted location (HTTP 451): {error}", "run it in a region the venue serves")
        )
        return
    except VenueError as error:
        note(Finding("fail", subject, f"{config.binance.rest_url}: {error}", "open the way out: DNS, proxy, port 443"))
        return
    trading = {each.symbol: each.quote_asset for each in info.symbols if each.status == "TRADING"}
    paused = {each.symbol: each.status for each in info.symbols if each.symbol not in trading}
    for finding in judge_symbols(config, trading, paused):
        note(finding)


def judge_clock(ahead_ms: float) -> Finding:
    """Say how far our clock is from the venue's."""
    text = f"our clock is {abs(ahead_ms):.0f} ms {'ahead of' if ahead_ms > 0 else 'behind'} the venue's"
    if abs(ahead_ms) < SKEW_WARN_MS:
        return Finding("ok", "binance.rest_url", text)
    return Finding(
        "warn", "binance.rest_url", text, "synchronise it (NTP): latencies and REST budgets are read from it"
    )


def judge_symbols(config: Config, trading: dict[str, str], paused: dict[str, str]) -> list[Finding]:
    """Say which of the configured names the venue trades, and what this task's share of them costs in connections."""
    subject, binance, shard = "binance.symbols", config.binance, config.shard
    selection = select(binance.symbols, trading)
    unknown = [name for name in selection.unknown if name not in paused]
    found = [
        Finding("warn", subject, f"{name} is not traded now ({paused[name]})", "leave it, or take it out")
        for name in selection.unknown
        if name in paused
    ]
    if unknown:
        text = f"the venue does not know {', '.join(unknown)}"
        found.append(Finding("fail", subject, text, "correct the spelling, or take out what was delisted"))
    elif not selection.symbols:
        found.append(Finding("fail", subject, "the venue trades none of them", "name symbols, or another quote asset"))
    mine = share(selection.symbols, shard.index, shard.count)
    if selection.symbols and not mine:
        text = f"none of {len(selection.symbols)} symbols falls to task {shard.index} of {shard.count}"
        found.append(Finding("fail", "shard", text, "run fewer tasks"))
    elif mine:
        subscriptions = expand(mine, binance.streams, binance.kline_intervals)
        count = len(plan_connections(subscriptions, binance.connections.max_streams)) * binance.connections.redundancy
        text = f"{len(mine)} symbols, {len(subscriptions)} subscriptions, {count} connections"
        found.append(Finding("ok", subject, text))
    return found


class ProbeDoor:
    """Takes the messages of a feed nowhere; `heard` is set by the first one that is data."""

    def __init__(self) -> None:
        self.heard = trio.Event()
        self.refusal = ""

    def open(self, subscriptions: Sequence[Subscription]) -> Inlet:
        """Let the feed in."""
        return Inlet(subscriptions)

    async def consume(self, inlet: Inlet, messages: list[bytes], received_s: float) -> Sequence[Control]:
        """Find the answers."""
        del inlet, received_s
        await trio.lowlevel.checkpoint()
        controls: list[Control] = []
        for message in messages:
            meaning = classify(message)
            if isinstance(meaning, StreamError):
                self.refusal = f"{meaning.text} ({meaning.code})"
            if isinstance(meaning, Ack | StreamError | ServerShutdown):
                controls.append(meaning)
            else:
                self.heard.set()
        return controls

    def join(self, inlet: Inlet, subscriptions: Iterable[Subscription]) -> None:
        """Let the feed carry more."""
        inlet.subscriptions += tuple(subscriptions)

    async def leave(self, inlet: Inlet, subscriptions: Iterable[Subscription]) -> None:
        """Let the feed out, of some of what it carries or of all."""
        gone = set(subscriptions)
        inlet.subscriptions = tuple(each for each in inlet.subscriptions if each not in gone)
        await trio.lowlevel.checkpoint()


async def check_feed(config: Config, outside: Outside, note: Note) -> None:
    """Open one connection, subscribe to one symbol and wait for a message."""
    subject, binance = "binance.websocket_url", config.binance
    name = next((each for each in binance.symbols if not has_selector([each])), "BTCUSDT")
    subscriptions = expand([name], binance.streams, binance.kline_intervals)
    door, metrics = ProbeDoor(), open_metrics()
    feed = open_feed(subscriptions, door, metrics)
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, outside.connect, parse_url(binance.websocket_url))
        nursery.start_soon(retire_after, feed, door.heard, FeedLimits().connect_s + FIRST_MESSAGE_S)
        await feed.ended.wait()
        nursery.cancel_scope.cancel()
    if feed.loss is not None:
        advice = "open the way out: DNS, port 443 or 9443; with TLS inspection, its authority must be trusted"
        if isinstance(feed.loss, HandshakeRefusedError) and feed.loss.status == RESTRICTED:
            advice = "the venue does not serve this address: run it in another region"
        note(Finding("fail", subject, f"{binance.websocket_url}: {feed.loss}", advice))
    elif door.refusal:
        note(Finding("fail", subject, f"{name} was refused: {door.refusal}", "see binance.symbols"))
    elif door.heard.is_set():
        text = f"subscribed to {name}, first message after {trio.current_time() - began_s:.1f} s"
        note(Finding("ok", subject, text))
    else:
        note(Finding("warn", subject, f"subscribed to {name}, and nothing came", "is this symbol traded?"))


def open_feed(subscriptions: Sequence[Subscription], door: ProbeDoor, metrics: Metrics) -> Feed:
    """Make a feed that lives once."""
    return Feed(
        "check",
        subscriptions,
        door,
        limits=FeedLimits(),
        farewell=Farewell(0.0),
        fact=ConnectionFact(subscriptions=len(subscriptions)),
        metrics=metrics,
        lifetime_s=math.inf,
    )


async def retire_after(feed: Feed, heard: trio.Event, limit_s: float) -> None:
    """Close `feed` once it was heard, or when the time is over."""
    with trio.move_on_after(limit_s):
        await heard.wait()
    feed.retire()


class Step(NamedTuple):
    """One call that the service makes, the permission it takes, and how bad it is to be without."""

    action: str
    level: Level


async def check_data_stream(config: Config, outside: Outside, note: Note) -> None:
    """Look at the stream that records go to; only people read it back."""
    kinesis = config.kinesis
    subject, stream = "kinesis.stream_name", kinesis.stream_name
    await check_stream(subject, stream, config, outside.streams, note, reading="warn")


async def check_heartbeat_stream(config: Config, outside: Outside, note: Note) -> None:
    """Look at the stream that holds the checkpoint; to resume, it is read at every start."""
    subject, stream = "heartbeat.stream_name", config.heartbeat.stream_name
    reading: Level = "fail" if config.heartbeat.resume else "warn"
    if await check_stream(subject, stream, config, outside.streams, note, reading=reading):
        for key in await told_hot_keys(config, outside):
            text = f"{key} alone uses up the budget of its shard, says the task that runs"
            note(Finding("warn", "kinesis.partition_key", text, HOT_KEY_ADVICE))


async def told_hot_keys(config: Config, outside: Outside) -> list[str]:
    """Hear the newest heartbeats of the tasks that run, if any; return the keys that they call too much for a shard."""
    found: set[str] = set()
    ours = identity_of(config)

    async def hear(page: ShardPage) -> None:
        await trio.lowlevel.checkpoint()
        for payload in page.payloads:
            with suppress(DecodeError, msgspec.ValidationError):  # somebody else's
                beat = beat_from_avro(decode_heartbeat(payload.data))
                if beat.identity == ours and not beat.final:
                    found.update(filter(None, beat.components.get(HOT_KEYS, "").split(",")))

    look_back_ms = round(PREDECESSOR_INTERVALS * config.heartbeat.interval_s * 1000)
    reader = StreamReader(outside.streams, config.heartbeat.stream_name)
    with suppress(SinkError):  # it could be read a moment ago, and that is what has been told
        await reader.read(since(outside.wall_ns() // 1_000_000 - look_back_ms), hear)
    return sorted(found)


async def check_stream(
    subject: str, stream: str, config: Config, streams: StreamProbe, note: Note, *, reading: Level
) -> bool:
    """Describe a stream, rehearse a put and read from one shard; a call that is not allowed does not end it.

    Returns whether it may be read.
    """

    async def attempt(step: Step, call: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await call()
        except SinkError as error:
            note(refused(subject, stream, step, error))
            if not is_denied(error):
                raise _UnusableError from error
            return None

    with suppress(_UnusableError):
        summary = await attempt(Step("kinesis:DescribeStreamSummary", "warn"), partial(streams.describe, stream))
        for finding in judge_stream(subject, stream, summary, config) if summary is not None else ():
            note(finding)
        if await attempt(Step("kinesis:PutRecords", "fail"), partial(streams.rehearse_put, stream)):
            note(Finding("ok", subject, f"{stream} may be written"))
        shards = await attempt(Step("kinesis:ListShards", reading), partial(streams.list_shards, stream))
        if shards is None:
            return False
        find = partial(streams.get_shard_iterator, stream, shards[-1].shard_id, "LATEST")
        iterator = await attempt(Step("kinesis:GetShardIterator", reading), find)
        if iterator is None:
            return False
        read = partial(streams.get_records, iterator, 1)
        if await attempt(Step("kinesis:GetRecords", reading), read) is not None:
            note(Finding("ok", subject, f"{stream} may be read"))
            return True
    return False


class _UnusableError(Exception):
    """Any other call would fail as this one did."""


def judge_stream(subject: str, stream: str, summary: StreamSummary, config: Config) -> list[Finding]:
    """Say what a stream is, and what about it does not fit."""
    kinesis = config.kinesis
    text = f"{stream} is {summary.status}: {summary.open_shards} shards, {summary.mode}, {summary.retention_hours} h"
    found = [Finding("ok" if summary.status in {"ACTIVE", "UPDATING"} else "warn", subject, text)]
    if summary.key_id is not None:
        need = "a key of AWS needs no permission" if summary.key_id.endswith("alias/aws/kinesis") else KEY_NEED
        found.append(Finding("ok", subject, f"encrypted with {summary.key_id}: {need}"))
    if stream == config.heartbeat.stream_name:
        if summary.retention_hours * 3600 < config.heartbeat.resume_lookback_s:
            text = f"keeps {summary.retention_hours} h, and heartbeat.resume_lookback_s looks further back"
            found.append(Finding("warn", subject, text, "raise the retention, or lower resume_lookback_s"))
        return found
    if summary.distribution == "AUTO":
        text = f"{stream} distributes records itself (AUTO) and ignores partition keys"
        found.append(Finding("fail", subject, text, "set its record distribution to USER_PARTITION_KEY"))
    if kinesis.aggregation == "kpl" and kinesis.lanes < 2 * summary.open_shards:
        text = f"{kinesis.lanes} lanes for {summary.open_shards} shards leave some shards idle"
        found.append(Finding("warn", "kinesis.lanes", text, f"set {2 * summary.open_shards} or more"))
    return found


KEY_NEED: Final = "the role needs kms:GenerateDataKey on it, and kms:Decrypt to read"
ADVICE: Final = {  # by the code of the failure; what is not here is left to the words of AWS
    "ResourceNotFoundException": "create it, or correct its name and kinesis.region",
    "AWS.SimpleQueueService.NonExistentQueue": "create it, or correct dead_letter.queue_url",
    "QueueDoesNotExist": "create it, or correct dead_letter.queue_url",
    "UnrecognizedClientException": "these credentials are not valid in this region or partition",
    "InvalidSignatureException": "the secret key is wrong, or this machine's clock",
    "ExpiredTokenException": "renew the credentials",
    "EndpointUnreachable": "check kinesis.region, and the way out: NAT gateway or VPC endpoint",
    "ConnectTimeout": "check the way out: security group, NAT gateway or VPC endpoint",
    "TlsFailed": "with TLS inspection, its authority must be trusted",
    "KMSDisabledException": "enable the key of the stream",
    "KMSNotFoundException": "the key of the stream is gone: encrypt the stream with another one",
}


def is_denied(error: SinkError) -> bool:
    """Tell whether permission is what is missing."""
    return error.code.startswith(("AccessDenied", "KMSAccessDenied"))


def refused(subject: str, resource: str, step: Step, error: SinkError) -> Finding:
    """Say what failed and what to do; a permission by the name that a policy needs.

    What is not allowed is as bad as the step says; anything else stands in the way of the service as well.
    """
    level: Level = "fail"
    if is_denied(error):
        level = step.level
        action = "kms:GenerateDataKey, kms:Decrypt" if error.code.startswith("KMS") else step.action
        what = "the key of " if error.code.startswith("KMS") else ""
        advice = f"allow {action} on {what}{resource}"
    else:
        advice = ADVICE.get(error.code, "")
    return Finding(level, subject, f"{resource}: {step.action.partition(':')[2]} failed: {error}", advice)


async def check_dead_letters(config: Config, outside: Outside, note: Note) -> None:
    """Look at the queue, and at the directory behind it, or at the directory alone."""
    letters = config.dead_letter
    if outside.queue is None or letters.queue_url is None:
        note(await outside.run_blocking(lambda: check_directory("dead_letter.directory", letters.directory, 0)))
        return
    subject = "dead_letter.queue_url"
    try:
        queue = await outside.queue.describe(letters.queue_url)
    except SinkError as error:
        # Looking takes a permission that sending does not.
        note(refused(subject, letters.queue_url, Step("sqs:GetQueueAttributes", "warn"), error))
    else:
        text = f"{queue.arn} keeps letters for {queue.retention_s / 86_400:g} days; sqs:SendMessage is not tried"
        note(Finding("ok", subject, text))
    directory = await outside.run_blocking(lambda: check_directory("dead_letter.directory", letters.directory, 0))
    if directory.level != "ok":  # what the queue does not take goes there, and else into the log
        note(directory._replace(level="warn"))


async def check_spool(config: Config, outside: Outside, note: Note) -> None:
    """Look at the directory, if there is one."""
    spool = config.spool
    if spool.directory is None:
        text = (
            f"none: an outage of Kinesis is held in {spool.memory_max_bytes // MIB} MiB of memory, then the feed stalls"
        )
        note(Finding("ok", "spool.directory", text))
        return
    directory = spool.directory
    note(await outside.run_blocking(lambda: check_directory("spool.directory", directory, spool.max_bytes)))


def check_directory(subject: str, directory: Path, wanted_bytes: int) -> Finding:
    """Write into `directory`, or where the service will make it; nothing is left behind. Blocks."""
    path = place = directory.absolute()
    try:
        place = next(each for each in (path, *path.parents) if each.exists())
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"check")
            file.flush()
        free_bytes = shutil.disk_usage(place).free
    except OSError as error:
        text = f"{place} cannot be written: {error.strerror or error}"
        return Finding("fail", subject, text, "mount a volume there that the user of the service may write to")
    text = f"{directory} may be written, {free_bytes // MIB} MiB are free"
    if free_bytes < wanted_bytes:
        return Finding("warn", subject, text, f"it may grow to {wanted_bytes // MIB} MiB (spool.max_bytes)")
    return Finding("ok", subject, text)


async def check_schema(config: Config, outside: Outside, note: Note) -> None:
    """Ask the Glue registry for our schema, where records carry its number, as the service does before it starts."""
    if config.kinesis.encoding != "glue":
        return
    try:
        version = await outside.run_blocking(outside.find_schema)
    except ConfigError as error:
        note(Finding("fail", "kinesis.encoding", str(error)))
    else:
        note(Finding("ok", "kinesis.encoding", f"our schema is version {version} of the registry"))


# By the key that is in question, in the order in which data flows.
PARTS: Final[dict[str, Part]] = {
    "binance.rest_url": check_venue,
    "binance.websocket_url": check_feed,
    "kinesis.stream_name": check_data_stream,
    "heartbeat.stream_name": check_heartbeat_stream,
    "kinesis.encoding": check_schema,
    "dead_letter": check_dead_letters,
    "spool.directory": check_spool,
}
