"""The `backfill` command: a small line of its own, from a past range to Kinesis or a file, that can be continued.

Backfill -> fan-in channel -> serializer -> producer (or an Avro file), as in the service. Progress is written down when
Kinesis acknowledged, so a run may end at any instant and the same command goes on; a signal ends it after what was sent
is delivered. The key of a record decides its lane, and a lane has one put in flight: what a kill may send twice is that
put, which is less than a page (unless `blob_bytes` was raised, and of each lane with the partition key `spread`).
"""

from __future__ import annotations

import gc
import hashlib
import signal
from collections import deque
from contextlib import asynccontextmanager, closing, nullcontext
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

import click
import trio
from rich.console import Console

from ingestor import logs
from ingestor.archive_client import ArchiveClient
from ingestor.aws import AUTO_DISTRIBUTION
from ingestor.backfill import (
    PAGE_WEIGHT,
    Backfill,
    BackfillError,
    Todo,
    Wanted,
    behind_archive,
    files_of,
    interval_of,
    kind_of,
    resolve,
)
from ingestor.channels import open_batch_channel
from ingestor.config import KlineInterval, moment_text
from ingestor.core.binance import LONGEST_SYMBOL
from ingestor.core.errors import IngestorError
from ingestor.core.health import SinkFact
from ingestor.core.intake import hole_record
from ingestor.core.model import Hole, Subscription
from ingestor.core.partition import key_rule
from ingestor.core.stopping import StopPlan
from ingestor.core.wording import printable_lines
from ingestor.dead_letter import FileDeadLetters, LetterFiles
from ingestor.kinesis_producer import KinesisProducer
from ingestor.loading_view import Part, PlainView, Plan, RichView, SpanStatus, Status, plan_text, summary_text
from ingestor.metrics import open_metrics
from ingestor.progress import Progress
from ingestor.rest_client import PAGE_ROWS, RestClient, RestrictedLocationError, UnavailableError
from ingestor.serializer import ContainerFile, Serializer, serialize
from ingestor.shard_watch import ShardWatch
from ingestor.world import open_world

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from typing import NoReturn, TextIO

    from ingestor.channels import BatchReceiver, BatchSender
    from ingestor.config import Config
    from ingestor.core.archive import ArchiveFile
    from ingestor.core.claims import Range
    from ingestor.core.model import Claim, DeadLetter, EncodedBatch, EncodedRecord, HoleReason, RecordBatch
    from ingestor.loading_view import View
    from ingestor.world import World

GC_THRESHOLDS: Final = (100_000, 50, 1_000)
CHANNEL_BATCHES: Final = 16
LOOK_EVERY_S: Final = 0.5
SYNC_EVERY_S: Final = 0.25  # of a file: what is noted as done has to be on the disk before
PACE_OVER_S: Final = 30.0
INTERRUPTED: Final = 130  # what a shell reports for SIGINT
FAILED: Final = 1
INTERVALS: Final[tuple[str, ...]] = get_args(KlineInterval)


class OutputExistsError(IngestorError):
    """The file to write is there already, and no run of this command began it."""


class Request(NamedTuple):
    """What the command line asks for; `output` None is Kinesis, times are milliseconds since the epoch."""

    symbols: tuple[str, ...]
    kind: str
    start_ms: int | None = None
    end_ms: int | None = None
    first_id: int | None = None
    last_id: int | None = None
    output: Path | None = None
    state: Path | None = None
    is_from_archive: bool = False

    def wanted(self) -> list[Wanted]:
        """Name the range of every symbol."""
        bounds = (self.start_ms, self.end_ms, self.first_id, self.last_id)
        return [Wanted(Subscription(symbol, self.kind), *bounds) for symbol in self.symbols]

    def text(self, config: Config) -> str:
        """Say what is loaded from where to where: a run continues only what was begun under the same text."""
        span = f"ids {self.first_id} to {self.last_id}"
        if self.start_ms is not None and self.end_ms is not None:
            span = f"{moment_text(self.start_ms)} to {moment_text(self.end_ms)}"
        kinesis = config.kinesis
        target = f"{kinesis.endpoint_url or kinesis.region} {kinesis.stream_name}"
        if self.output is not None:
            target = str(self.output.absolute())
        return f"{','.join(self.symbols)} {self.kind} {span} of {config.binance.rest_url} into {target}"

    def state_path(self, config: Config) -> Path:
        """Return where progress is kept: the same command finds the same file."""
        if self.state is not None:
            return self.state
        digest = hashlib.sha256(self.text(config).encode()).hexdigest()[:12]
        return Path(f"backfill-{self.symbols[0]}-{self.kind}-{digest}.json")


def read_request(
    *,
    symbols: Sequence[str],
    stream: str,
    interval: str | None,
    start: int | None,
    end: int | None,
    from_id: int | None,
    to_id: int | None,
    via: str,
    output: Path | None,
    state: Path | None,
) -> Request:
    """Make a request of the options of the command line; ValueError says which of them do not fit together."""
    times, ids = (start, end), (from_id, to_id)
    span = times if ids == (None, None) else ids
    selector = next((symbol for symbol in symbols if ":" in symbol), None)
    foreign = next((symbol for symbol in symbols if not 0 < len(symbol) <= LONGEST_SYMBOL or "/" in symbol), None)
    complaints = {
        "say --start and --end, or --from-id and --to-id": None in span or None not in (*times, *ids),
        "klines are counted by time: say --start and --end": stream == "kline" and ids != (None, None),
        "--end is not after --start": start is not None and end is not None and end <= start,
        "--to-id is below --from-id": from_id is not None and to_id is not None and to_id < from_id,
        "trades have no --interval": stream == "trade" and interval is not None,
        f"--interval is one of {' '.join(INTERVALS)}": interval is not None and interval not in INTERVALS,
        f"{selector} is a selector: name each --symbol": selector is not None,
        f"{foreign!r} is no symbol": foreign is not None,  # and its name is one of a file
        "--to and --state are the same file": output is not None and state is not None and is_same(output, state),
    }
    for text, is_so in complaints.items():
        if is_so:
            raise ValueError(text)
    kind = "trade" if stream == "trade" else f"kline_{interval or '1m'}"
    names = tuple(dict.fromkeys(symbol.upper() for symbol in symbols))
    return Request(names, kind, start, end, from_id, to_id, output, state, is_from_archive=via == "archive")


def is_same(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file."""
    return path.absolute() == other.absolute()


def collect_rarely() -> None:
    """Have the garbage collector look seldom: nothing that travels is in a cycle, so it would only cost (as in app)."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def run_command(request: Request, config: Config, *, plain: bool, dry_run: bool, out: TextIO) -> int:
    """Run the command until it is done or a signal comes; return its exit code: 0 complete, 1 failed, 130 ended.

    Raises `ConfigError` for an endpoint that cannot be.
    """
    console = Console(stderr=True)
    collect_rarely()
    view: View = PlainView(partial(click.echo, err=True)) if plain or not console.is_terminal else RichView(console)
    logs.set_up("warning", "console")  # after the view: it leads what is written to standard error around its bars
    code = FAILED
    load: Load | None = None
    try:
        world = open_world(config if request.output is None else _without_registry(config))
        load = Load(request, config, world)
        code = trio.run(partial(_run_until_signal, load, view=view, dry_run=dry_run, out=out))
    except* IngestorError as group:
        view.close()
        for error in logs.leaves(group):
            click.echo(printable_lines(f"error: {error}"), err=True)
        if load is not None and load.has_begun:
            click.echo(f"what was delivered is noted: the same command continues ({load.progress.path})", err=True)
    finally:
        view.close()
    return code


async def _run_until_signal(load: Load, *, view: View, dry_run: bool, out: TextIO) -> int:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_listen, stop)
        code = await load.run(stop, view=view, dry_run=dry_run, out=out)
        nursery.cancel_scope.cancel()
    return code


async def _listen(stop: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    """Set `stop` at the first signal; after it the default handlers are back, and the second one ends the process."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            stop.set()
            return


class Load:
    """One run of the command."""

    def __init__(self, request: Request, config: Config, world: World) -> None:
        self._request = request
        self._config = config
        self._world = world
        self._metrics = open_metrics()
        self.progress = Progress(request.state_path(config), request.text(config))
        self._tally = _Tally(self.progress)
        self._rest = RestClient(
            config.binance.rest_url,
            config.binance.rest,
            metrics=self._metrics,
            wall_ns=world.wall_ns,
            random=world.random,
            transport=world.rest_transport,
        )
        self._files = self._open_archive() if request.is_from_archive else None
        letters = LetterFiles(config.dead_letter.directory, world.wall_ns)
        self._letters = FileDeadLetters(letters, world.run_blocking, world.wall_ns, self._metrics)
        self._counted_letters = _CountedLetters(self._letters)
        key_of = key_rule(config.kinesis.partition_key, config.kinesis.lanes)
        self._serializer = (
            Serializer(
                framing=config.kinesis.encoding,
                schema_version_id=world.schema_version_id,
                key_of=key_of,
                wall_ns=world.wall_ns,
            )
            if request.output is None
            else Serializer(wall_ns=world.wall_ns)
        )

    @property
    def has_begun(self) -> bool:
        """Whether anything is delivered that a further run need not deliver again."""
        return any(span.done for span in self.progress.spans.values())

    async def run(self, stop: trio.Event, *, view: View, dry_run: bool, out: TextIO) -> int:
        """Load until everything is delivered or `stop` is set, and say what came of it; return the exit code."""
        with nullcontext() if dry_run else self.progress.locked():
            self.progress.load()
            self._check_output()
            async with self._rest, self._files or nullcontext():
                plan: str | None = None
                async with _until(stop):
                    await self._prepare()
                    plan = await self._plan() if dry_run else ""
                if plan is None:
                    out.write("interrupted before anything was loaded\n")
                    return INTERRUPTED
                if dry_run:
                    out.write(plan)
                    return 0
                if self.progress.missing() or self._request.output is not None:
                    await self._load(stop, view)
        view.close()
        letters = self._counted_letters.number
        out.write(summary_text(self._parts(), self._tally.refusals, letters, str(self._config.dead_letter.directory)))
        if left := sum(ids.count() for ids in self.progress.missing().values()):
            out.write(f"interrupted with {left:,} ids to go; the same command continues ({self.progress.path})\n")
            return INTERRUPTED
        return 0

    def _check_output(self) -> None:
        """See that the file is ours or new, before anything is fetched."""
        output = self._request.output
        if output is not None and output.exists() and not self.progress.path.exists():
            raise OutputExistsError(f"{output} is there already; remove it, or write to another file")

    def _open_archive(self) -> ArchiveClient:
        """Make the client of the archive; files wait beside the progress, so that a run finds what the last one had."""
        config, world = self._config, self._world
        path = self.progress.path
        return ArchiveClient(
            config.binance.archive_url,
            config.binance.rest,
            path.with_name(f"{path.name}.files"),
            run_blocking=world.run_blocking,
            random=world.random,
            transport=world.rest_transport,
        )

    async def _prepare(self) -> None:
        """Look at the stream and the limits, and find the ids of what is wanted; what an earlier run found stays.

        Raises `BackfillError`, or `SinkError` when there is no such stream.
        """
        wanted = [each for each in self._request.wanted() if each.subscription not in self.progress.spans]
        if not wanted and not self.progress.missing():
            return
        if self._request.output is None:
            await self._check_stream()
        url = self._config.binance.rest_url
        try:
            await self._rest.server_time_ms()
            await self._rest.exchange_info()
            for each in wanted:
                found = await resolve(self._rest, each)
                self.progress.begin(each.subscription, found.page, found.notes)
        except UnavailableError as failure:
            raise BackfillError(f"{url} does not answer: {failure}") from failure
        except RestrictedLocationError as refusal:
            raise BackfillError(f"{url} does not serve this address (HTTP 451): {refusal}") from refusal

    async def _check_stream(self) -> None:
        """See that the stream is there, and keeps an order."""
        name = self._config.kinesis.stream_name
        stream = await self._world.streams.describe(name)
        if stream.distribution == "AUTO":
            raise BackfillError(f"{name} {AUTO_DISTRIBUTION}")

    def _todo(self) -> dict[Subscription, Todo]:
        """Return what is left to do, with what is known of it."""
        times = self._request.start_ms, self._request.end_ms
        return {
            subscription: Todo(ids, *times, self.progress.spans[subscription].files)
            for subscription, ids in self.progress.missing().items()
        }

    async def _load(self, stop: trio.Event, view: View) -> None:
        """Send what is missing down the line, and see it delivered."""
        deliver = self._open_delivery()
        todo = self._todo()
        self.progress.save()
        max_bytes = self._config.channels.max_bytes
        records: BatchSender[RecordBatch]
        record_intake: BatchReceiver[RecordBatch]
        encoded: BatchSender[EncodedBatch]
        encoded_intake: BatchReceiver[EncodedBatch]
        records, record_intake = open_batch_channel(CHANNEL_BATCHES, max_bytes)
        encoded, encoded_intake = open_batch_channel(CHANNEL_BATCHES, max_bytes)
        backfill = Backfill(
            self._rest,
            records,
            files=self._files,
            run_blocking=self._world.run_blocking,
            wall_ns=self._world.wall_ns,
            watcher=self._tally,
            dead_letters=self._counted_letters,
        )
        failure: BaseExceptionGroup[IngestorError] | None = None
        async with trio.open_nursery() as observers:
            observers.start_soon(self._watch, view)
            observers.start_soon(self._letters.keep_trying)
            if todo:
                observers.start_soon(self._rest.keep_time)
            async with trio.open_nursery() as delivery:
                delivery.start_soon(deliver, encoded_intake)
                encode = partial(serialize, on_hole=self.progress.note_hole)
                letters = self._counted_letters
                delivery.start_soon(encode, record_intake, encoded, letters, self._serializer, self._metrics)
                with records:
                    async with _until(stop):
                        try:
                            await backfill.run(todo)
                        except* IngestorError as group:
                            failure = group  # what was fetched until then is delivered first
                if stop.is_set():
                    delivery.cancel_scope.deadline = trio.current_time() + self._stop_plan().delivery_s
            observers.cancel_scope.cancel()
        await self._letters.close()
        if failure is not None:
            raise failure

    def _open_delivery(self) -> Callable[[BatchReceiver[EncodedBatch]], Awaitable[None]]:
        """Return the last task of the line: the producer, or the writer of a file."""
        output = self._request.output
        return self._deliver if output is None else partial(self._write, output)

    async def _deliver(self, intake: BatchReceiver[EncodedBatch]) -> None:
        """Put batch after batch into the stream, within the budgets of its shards, until every sender has hung up."""
        producer = self._make_producer()
        watch = ShardWatch(
            self._world.streams,
            self._config.kinesis.stream_name,
            learn=producer.learn_shards,
            wait_for_news=producer.wait_unknown_shard,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            await producer.run(intake)
            nursery.cancel_scope.cancel()

    async def _write(self, output: Path, intake: BatchReceiver[EncodedBatch]) -> None:
        """Write batch after batch into the file until every sender has hung up; note them once they are on the disk."""
        run_blocking = self._world.run_blocking
        container = await run_blocking(partial(ContainerFile, output, self.progress.file_bytes))
        claims: list[Claim] = []
        size_bytes, due_s, ended = self.progress.file_bytes, inf, False
        with intake, closing(container):
            while not ended:
                batch: EncodedBatch | None = None
                with trio.move_on_at(due_s):
                    try:
                        batch = await intake.receive()
                    except trio.EndOfChannel:
                        ended = True
                if batch is not None:
                    size_bytes = await run_blocking(partial(container.append, batch.records))
                    claims += [record.claim for record in batch.records if record.claim is not None]
                    due_s = min(due_s, trio.current_time() + SYNC_EVERY_S)
                if claims and (ended or trio.current_time() >= due_s):
                    await run_blocking(container.sync)
                    self.progress.acknowledge(claims, size_bytes)
                    claims, due_s = [], inf

    def _make_producer(self) -> KinesisProducer:
        config, world = self._config, self._world
        return KinesisProducer(
            config.kinesis,
            world.data_sink,
            dead_letters=self._counted_letters,
            encode_hole=self._encode_hole,
            on_acknowledged=self.progress.acknowledge,
            metrics=self._metrics,
            fact=SinkFact(),
            wall_ns=world.wall_ns,
            jitter=world.random,
            held_max_bytes=config.spool.memory_max_bytes,
            farewell_s=config.kinesis.timeouts.connect_s + config.kinesis.timeouts.read_s,
        )

    def _encode_hole(self, claim: Claim, reason: HoleReason) -> EncodedRecord:
        now_us = self._world.wall_ns() // 1000
        hole = Hole(claim.subscription.kind, claim.first, claim.last, reason, now_us // 1000)
        self.progress.note_hole(claim.subscription.symbol, hole)
        return self._serializer.pack(hole_record(claim.subscription.symbol, hole, now_us))

    def _stop_plan(self) -> StopPlan:
        timeouts = self._config.kinesis.timeouts
        return StopPlan.within(self._config.service.shutdown_grace_s, timeouts.connect_s + timeouts.read_s)

    async def _watch(self, view: View) -> NoReturn:
        """Show how it goes."""
        pace = _Pace()
        while True:
            now = trio.current_time()
            spans = self.progress.spans
            rows_per_s = pace.at(now, sum(span.done.count() for span in spans.values()))
            left = sum(ids.count() for ids in self.progress.missing().values())
            used, limit = self._rest.weights()
            left_s = left / rows_per_s if rows_per_s else None
            view.show(Status(self._tally.statuses(), rows_per_s, used, limit, left_s, self._rest.silent_s()), now)
            await trio.sleep(LOOK_EVERY_S)

    async def _plan(self) -> str:
        """Say what there is to do."""
        requests = weight = 0
        files: list[ArchiveFile] = []
        for subscription, todo in self._todo().items():
            ids = todo.ids
            if self._request.is_from_archive:
                files += await files_of(self._rest, subscription, todo)
                ids = await behind_archive(self._rest, subscription, ids)
            pages = sum(-(-(last - first + 1) // PAGE_ROWS) for first, last in ids)
            requests += pages
            weight += pages * PAGE_WEIGHT[kind_of(subscription)]
        months = sum(file.is_month for file in files)
        plan = Plan(requests, weight, self._rest.weights()[1], len(files) - months, months)
        return plan_text(self._parts(), plan)

    def _parts(self) -> list[Part]:
        return [
            Part(
                _name(subscription),
                span.first,
                span.last,
                span.done.count(),
                span.holes(),
                span.notes,
                None if subscription.kind == "trade" else interval_of(subscription),
            )
            for subscription, span in self.progress.spans.items()
        ]


class _Tally:
    """What the backfill tells of its way: the watcher of `Backfill`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._event_ms: dict[Subscription, int] = {}
        self.refusals: list[tuple[str, str]] = []

    def sent(self, subscription: Subscription, event_ms: int) -> None:
        self._event_ms[subscription] = event_ms

    def hole(self, symbol: str, hole: Hole) -> None:
        self._progress.note_hole(symbol, hole)

    def read(self, subscription: Subscription, file: str, ids: Range) -> None:
        self._progress.spans[subscription].files[file] = ids

    def refused(self, file: str, reason: str) -> None:
        self.refusals.append((file, reason))

    def statuses(self) -> list[SpanStatus]:
        return [
            SpanStatus(_name(subscription), span.size, span.done.count(), self._event_ms.get(subscription))
            for subscription, span in self._progress.spans.items()
        ]


class _CountedLetters:
    """Dead letters that a person is told of at the end."""

    def __init__(self, letters: FileDeadLetters) -> None:
        self.number = 0
        self._letters = letters

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        self.number += len(letters)
        await self._letters.write(letters)


class _Pace:
    """Rows a second over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, rows: int) -> float:
        self._seen.append((now, rows))
        while self._seen[0][0] < now - PACE_OVER_S:
            self._seen.popleft()
        began_s, began = self._seen[0]
        return (rows - began) / (now - began_s) if now > began_s else 0.0


@asynccontextmanager
async def _until(stop: trio.Event) -> AsyncGenerator[None]:
    """Cancel the block when `stop` is set."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at, stop, nursery.cancel_scope)
        yield
        nursery.cancel_scope.cancel()


async def _cancel_at(stop: trio.Event, scope: trio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


def _without_registry(config: Config) -> Config:
    """Leave the Glue Schema Registry alone: a file carries its schema itself."""
    return config.model_copy(update={"kinesis": config.kinesis.model_copy(update={"encoding": "avro"})})


def _name(subscription: Subscription) -> str:
    return f"{subscription.symbol} {subscription.kind}"
