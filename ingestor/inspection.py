"""What a person asks about a stream: `tail` shows its records as they come, `audit` proves that none is missing.

Both read with the same reader as the service itself, and change nothing. A stream that is not there or may not be read
raises `SinkError` with the words of AWS.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ingestor.aws import KinesisApi, StreamClient, make_kinesis_client
from ingestor.core.audit import Audit, AuditReport, Difference, compare
from ingestor.core.claims import Intervals, claim_of, kline_open_ms, kline_ordinal, subscription_of
from ingestor.core.errors import DecodeError, IngestorError
from ingestor.core.wording import printable, printable_json, shortened
from ingestor.metrics import open_metrics
from ingestor.reader import LATEST, OLDEST, ReadRecord, ShardPage, StreamReader, Unreadable, decode_page, since
from ingestor.rest_client import RestClient, VenueError
from ingestor.serializer import Serializer, decode_heartbeat
from ingestor.threads import open_threads
from ingestor.world import schema_version_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from ingestor.config import Binance, Config, Kinesis
    from ingestor.core.audit import StreamReport
    from ingestor.core.errors import SinkError
    from ingestor.core.model import MarketData, Subscription

    OpenStream: TypeAlias = Callable[[Kinesis, str], StreamReader]

READER_THREADS: Final = 8
INTERRUPTED: Final = 130  # what a shell reports for SIGINT
SAMPLE_IDS: Final = 1_000  # newest ids of a subscription that are held against the venue: one page of REST


class CrossCheckError(IngestorError):
    """Nothing could be held against the venue; what the stream proves by itself is told all the same."""


def open_reader(settings: Kinesis, stream: str) -> StreamReader:
    """Make a reader for a person who waits: as fast as the stream allows, with errors raised."""
    api = KinesisApi(lambda: make_kinesis_client(settings, connections=READER_THREADS), open_threads(READER_THREADS))
    return StreamReader(StreamClient(api), stream, pace_s=0.0, report_trouble=Troubles().say)


class Troubles:
    """Tells a person who waits what for, on standard error: once for each trouble that is none of pace."""

    def __init__(self) -> None:
        self._told = ""

    def say(self, error: SinkError, _delay_s: float) -> None:
        """Take note of a failed call that is made again."""
        text = str(error)
        if error.failure != "throttled" and text != self._told:
            self._told = text
            sys.stderr.write(printable(f"{text}; trying again") + "\n")
            sys.stderr.flush()


def open_rest(settings: Binance) -> RestClient:
    """Make a client of the venue for a person who waits; use it with `async with`."""
    metrics = open_metrics()
    random = Random()  # noqa: S311 - spreads retries, keeps no secret
    return RestClient(settings.rest_url, settings.rest, metrics=metrics, wall_ns=time.time_ns, random=random)


def open_serializer(settings: Kinesis) -> Serializer:
    """Make what decodes the data stream, whichever header its records carry."""
    return Serializer(framing=settings.encoding, schema_version_id=schema_version_id(settings))


async def tail(
    config: Config, *, stream: str | None, as_json: bool, out: TextIO, open_stream: OpenStream = open_reader
) -> None:
    """Write every record of `stream` (the data stream by default) as it arrives, until interrupted."""
    reader = open_stream(config.kinesis, stream or config.kinesis.stream_name)
    decode = open_serializer(config.kinesis).decode
    write = json_line if as_json else plain_line

    async def show(page: ShardPage) -> None:
        out.writelines(write(item) + "\n" for item in decode_page(page, decode))
        out.flush()

    try:
        await reader.read(LATEST, show, follow=True)
    except* KeyboardInterrupt:
        pass  # the way to end it


def json_line(item: ReadRecord | Unreadable) -> str:
    """Write an item for machines."""
    place = {"shard": item.shard_id, "arrival_ms": item.arrival_ms, "partition_key": item.partition_key}
    if isinstance(item, ReadRecord):
        return _json({**place, "record": item.record})
    beat = _heartbeat(item.data)
    content = {"unreadable": item.reason, "bytes": len(item.data)} if beat is None else {"heartbeat": beat}
    return _json({**place, **content})


def plain_line(item: ReadRecord | Unreadable) -> str:
    """Write an item for a terminal, on one line whatever whoever wrote it put there."""
    if isinstance(item, ReadRecord):
        record = item.record
        line = f"{_clock(item.arrival_ms)}  {record.symbol:<12} {record.event_type:<6} {_words(record)}"
        return printable(shortened(line))
    beat = _heartbeat(item.data)
    if beat is None:
        return printable(shortened(f"{_clock(item.arrival_ms)}  unreadable, {len(item.data)} bytes: {item.reason}"))
    final = ", final" if beat["final"] else ""
    line = (
        f"{_clock(item.arrival_ms)}  heartbeat {beat['beat']} of {beat['service']}/{beat['instance']}, "
        f"part {beat['part'] + 1} of {beat['parts']}, {len(beat['entries'])} subscriptions{final}"
    )
    return printable(shortened(line))


async def audit(
    config: Config,
    *,
    symbol: str | None,
    start_ms: int | None,
    end_ms: int | None,
    as_json: bool,
    out: TextIO,
    cross_check: bool = False,
    open_stream: OpenStream = open_reader,
    open_venue: Callable[[Binance], RestClient] = open_rest,
) -> int:
    """Read the data stream back and print the proof; return 1 if something is missing and not declared, else 0.

    Interrupted, it proves nothing and returns 130.

    `start_ms` and `end_ms` are times of arrival in the stream. With `cross_check` the newest ids of every subscription
    are also held against the venue, and a value that differs makes it 1 too. Raises `CrossCheckError`, with the proof
    printed, when they cannot be.
    """
    reader = open_stream(config.kinesis, config.kinesis.stream_name)
    sample = Sample()
    report = differences = failure = None
    is_over = False
    try:
        report = await prove(
            reader,
            open_serializer(config.kinesis).decode,
            symbol=symbol,
            start_ms=start_ms,
            end_ms=end_ms,
            watch=sample.add if cross_check else None,
        )
        if cross_check:
            try:
                differences = await _cross_checked(report, sample, open_venue(config.binance))
            except VenueError as error:
                failure = CrossCheckError(f"the cross-check failed: {error}")
        is_over = True
    except* KeyboardInterrupt:
        pass  # no `return` in here: the language forbids it
    if report is None or not is_over:
        return INTERRUPTED
    out.write(as_json_text(report, differences) if as_json else as_text(report, differences))
    out.flush()
    if failure is not None:
        raise failure
    if cross_check and not sample:
        raise CrossCheckError("no trade and no closed bar is there to be held against the venue")
    return 0 if report.is_complete and not differences else 1


async def _cross_checked(report: AuditReport, sample: Sample, rest: RestClient) -> list[VenueDifference] | None:
    """Return what differs, None when there is nothing to compare."""
    if not sample:
        return None
    async with rest:
        return await check_with_venue(report, sample, rest)


async def prove(
    reader: StreamReader,
    decode: Callable[[bytes], MarketData],
    *,
    symbol: str | None = None,
    start_ms: int | None = None,
    end_ms: int | None = None,
    watch: Callable[[MarketData], None] | None = None,
) -> AuditReport:
    """Read everything from `start_ms` to now and report; what arrived after `end_ms` may only fill holes.

    `watch` is shown every record of the range. A bar runs on standard error while a terminal is there to see it.
    """
    proof = Audit()
    with Progress(
        TextColumn("reading the stream"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[records]} records"),
        TimeRemainingColumn(),
        console=(console := Console(stderr=True)),
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        bar = ReadingBar(progress)

        async def take(page: ShardPage) -> None:
            for item in decode_page(page, decode):
                if isinstance(item, Unreadable):
                    proof.add_undecodable()
                elif symbol is None or item.record.symbol == symbol:
                    is_late = end_ms is not None and item.arrival_ms > end_ms
                    proof.add(item.record, is_late=is_late)
                    if watch is not None and not is_late:
                        watch(item.record)
            bar.advance(page)

        await reader.read(OLDEST if start_ms is None else since(start_ms), take)
    return proof.report()


class ReadingBar:
    """How far a reading has come: the shard that is furthest behind its end, against how far behind it began."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=1.0, records=0)
        self._began_behind: dict[str, int] = {}
        self._behind: dict[str, int] = {}
        self._records = 0

    def advance(self, page: ShardPage) -> None:
        """Take a page into account."""
        self._began_behind.setdefault(page.shard_id, max(page.millis_behind, 1))
        self._behind[page.shard_id] = page.millis_behind
        self._records += len(page.payloads)
        done = 1.0 - max(self._behind[shard] / began for shard, began in self._began_behind.items())
        self._progress.update(self._task, completed=max(done, 0.0), records=self._records)


class Sample:
    """The newest trades and closed bars of every subscription, to be held against the venue."""

    def __init__(self, size: int = SAMPLE_IDS) -> None:
        self._size = size
        self._newest: dict[Subscription, deque[tuple[int, tuple[str, ...]]]] = {}

    def __bool__(self) -> bool:
        return bool(self._newest)

    def add(self, record: MarketData) -> None:
        """Keep what a trade or a closed bar says."""
        claim = claim_of(record)
        if claim is None:
            return
        bar = record.kline
        if bar is not None:
            values: tuple[str | None, ...] = (bar.open, bar.high, bar.low, bar.close, bar.volume)
        elif record.trade is not None:
            values = (record.price, record.volume)
        else:
            return
        newest = self._newest.setdefault(claim.subscription, deque(maxlen=self._size))
        newest.append((claim.first, tuple(value or "" for value in values)))

    def of(self, stream: StreamReport) -> dict[int, tuple[str, ...]]:
        """Give the values by id, of the newest ids that fit on one page."""
        held = dict(self._newest.get(_subscription(stream), ()))
        lowest = max(held, default=0) - self._size + 1
        return {number: values for number, values in held.items() if number >= lowest}


class VenueDifference(msgspec.Struct, frozen=True):
    """An id of a subscription for which the stream and the venue do not agree."""

    symbol: str
    kind: str
    difference: Difference


async def check_with_venue(report: AuditReport, sample: Sample, rest: RestClient) -> list[VenueDifference]:
    """Ask the venue for the ids in `sample` and compare; what the report declares or holds elsewhere is no news."""
    differences = []
    for stream in report.streams:
        ours = sample.of(stream)
        if not ours:
            continue
        accounted = Intervals((span.first, span.last) for span in stream.delivered)
        accounted.update(Intervals((hole.first, hole.last) for hole in stream.declared))
        theirs = await _venue_values(stream, min(ours), max(ours), rest)
        relevant = {number: row for number, row in theirs.items() if number in ours or number not in accounted}
        differences += [VenueDifference(stream.symbol, stream.kind, found) for found in compare(ours, relevant)]
    return differences


async def _venue_values(stream: StreamReport, first: int, last: int, rest: RestClient) -> dict[int, tuple[str, ...]]:
    """Fetch one page: trades by id, or bars by ordinal."""
    count = last - first + 1
    if stream.kind == "trade":
        trades = await rest.historical_trades(stream.symbol, first, count)
        return {row.trade_id: (row.price, row.quantity) for row in trades if row.trade_id <= last}
    interval = stream.kind.removeprefix("kline_")
    bars = await rest.klines(
        stream.symbol,
        interval,
        start_ms=kline_open_ms(interval, first),
        end_ms=kline_open_ms(interval, last + 1) - 1,
        limit=count,
    )
    return {
        kline_ordinal(interval, row.open_time): (row.open, row.high, row.low, row.close, row.volume) for row in bars
    }


def as_json_text(report: AuditReport, differences: list[VenueDifference] | None = None) -> str:
    """Write the proof for machines: one JSON object."""
    proof: dict[str, Any] = {"is_complete": report.is_complete, **msgspec.to_builtins(report)}
    if differences is not None:
        proof["differences"] = msgspec.to_builtins(differences)
    return _json(proof) + "\n"


def as_text(report: AuditReport, differences: list[VenueDifference] | None = None) -> str:
    """Write the proof for a person: a table, then every hole by name, then the verdict."""
    console = Console(width=120)
    with console.capture() as capture:
        console.print(proof_table(report))
        for line in (*_hole_lines(report), *_difference_lines(differences or [])):
            console.print(printable(line), highlight=False, markup=False)
        console.print(verdict(report, differences), style="bold")
    return capture.get()


def proof_table(report: AuditReport) -> Table:
    """Lay the report out, one row for each subscription; the caller prints it where it likes."""
    table = Table(box=None, header_style="bold")
    table.add_column("symbol")
    table.add_column("kind")
    for name in ("records", "first id", "last id", "ranges", "duplicates", "declared", "missing", "conflicts"):
        table.add_column(name, justify="right")
    for row in report.rows():
        style = "red" if row.missing or row.conflicts else "yellow" if row.declared else None
        table.add_row(*("" if value is None else Text(printable(str(value))) for value in row), style=style)
    return table


def verdict(report: AuditReport, differences: list[VenueDifference] | None = None) -> str:
    """Say the result in one sentence."""
    streams = report.streams
    if not report.is_about_something:
        found = sum(stream.records for stream in streams)
        ours = f"{found} records of ours have no id that counts" if found else "no record of ours was found"
        return f"NOTHING PROVEN: {ours}, and {report.undecodable} entries of others"
    missing = sum(stream.undeclared_ids for stream in streams)
    declared = sum(stream.declared_ids for stream in streams)
    conflicts = sum(len(stream.conflicts) for stream in streams)
    text = f"{missing} ids are missing and not declared, {declared} are declared, {conflicts} came with two values"
    if report.undecodable:
        text += f"; {report.undecodable} entries are not ours or not readable"
    if differences is not None:
        text += f"; {len(differences)} differ from the venue"
    return f"{'complete' if report.is_complete and not differences else 'NOT COMPLETE'}: {text}"


def _hole_lines(report: AuditReport) -> list[str]:
    lines = []
    for stream in report.streams:
        name = f"{stream.symbol} {stream.kind}"
        lines += [f"missing   {name} {hole.first}..{hole.last}" for hole in stream.undeclared]
        lines += [f"declared  {name} {hole.first}..{hole.last} {hole.reason}" for hole in stream.declared]
        lines += [f"no snapshot yet behind the break  {name} {hole.first}..{hole.last}" for hole in stream.unseeded]
        lines += [f"two values  {name} {number}" for number in stream.conflicts]
    return lines


def _difference_lines(differences: list[VenueDifference]) -> list[str]:
    return [
        f"{found.difference.problem}  {found.symbol} {found.kind} {found.difference.id}"
        f" ours {found.difference.delivered} venue {found.difference.venue}"
        for found in differences
    ]


def _subscription(stream: StreamReport) -> Subscription:
    return subscription_of(stream.symbol, stream.kind)


def _heartbeat(data: bytes) -> dict[str, Any] | None:
    try:
        return decode_heartbeat(data)
    except DecodeError:
        return None


def _words(record: MarketData) -> str:
    """Say what matters about a record."""
    depth, bar, hole = record.depth, record.kline, record.hole
    if hole is not None:
        return f"{hole.stream} {hole.first}..{hole.last} not delivered: {hole.reason}"
    if bar is not None:
        state = "closed" if bar.closed else "open"
        return f"{bar.interval} {state} o {bar.open} h {bar.high} l {bar.low} c {bar.close} v {bar.volume}"
    if depth is not None:
        kind = "snapshot" if depth.snapshot else "diff"
        best = (
            f"bid {record.bid_price} ask {record.ask_price}" if record.bid_price or record.ask_price else "no book yet"
        )
        return f"{kind} {depth.first_update_id}..{depth.final_update_id} {best}"
    return f"{record.sequence} {record.price} x {record.volume}"


def _clock(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).strftime("%H:%M:%S.%f")[:-3]


def _json(value: object) -> str:
    return printable_json(msgspec.json.encode(value).decode())
