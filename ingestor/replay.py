"""What a person does with dead letters: list them, look at one, send them again.

Letters lie in the directory, and in the queue if there is one. A letter is sent again only as a record that fits today:
a raw message of the venue is decoded and encoded by today's code, an encoded record is read and encoded again. What the
venue or Kinesis would refuse now as then stays where it is. Every letter that Kinesis accepted is marked in the
directory at once, and a marked one is never sent again; only then is it deleted from the queue.
"""

from __future__ import annotations

import datetime as dt
import json
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

import msgspec
import trio

from ingestor.aws import (
    AwsApi,
    KinesisApi,
    KinesisSink,
    QueueClient,
    find_schema_version,
    make_kinesis_client,
    make_sqs_client,
)
from ingestor.core.backoff import Backoff
from ingestor.core.binance import (
    REFUSALS,
    DepthEvent,
    KlineEvent,
    TradeEvent,
    decode_message,
    depth_record,
    kline_record,
    trade_record,
)
from ingestor.core.errors import DecodeError, EncodeError, IngestorError, SinkError
from ingestor.core.model import EntryFailure, PutEntry, Subscription
from ingestor.core.partition import key_rule
from ingestor.core.wording import printable, printable_lines
from ingestor.dead_letter import REPLAYED, ReplayMarks, read_letters, readable
from ingestor.kinesis_producer import MAX_RECORD_BYTES
from ingestor.letter_queue import WAIT_S, open_letter_queue
from ingestor.resources import read_schema
from ingestor.serializer import Serializer
from ingestor.threads import open_threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO, TextIO

    from ingestor.config import Config, Kinesis
    from ingestor.core.binance import Event
    from ingestor.core.model import EncodedRecord, EntryResult, MarketData, PoisonReason
    from ingestor.dead_letter import StoredLetter
    from ingestor.letter_queue import LetterQueue, Queue

OpenQueue: TypeAlias = "Callable[[Config], tuple[Queue, str] | None]"

BATCH_LETTERS: Final = 100
BATCH_BYTES: Final = 4_000_000
ATTEMPTS: Final = 8
# Reasons that speak of an encoded record; all others are of a raw message, which today's code may understand.
OF_RECORDS: Final[frozenset[PoisonReason]] = frozenset({"too_large", "rejected", "gave_up"})


class LetterError(IngestorError):
    """There is no such letter, or more than one, or the directory cannot be used."""


class RefusedError(IngestorError):
    """A letter cannot be sent again; `is_forcible` if a person may decide otherwise."""

    def __init__(self, text: str, *, is_forcible: bool = False) -> None:
        super().__init__(text)
        self.is_forcible = is_forcible


class Sink(Protocol):
    """Where records are put: `aws.KinesisSink`."""

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryResult]:
        """Put entries in one call; raises `SinkError`."""
        ...


class Ready(NamedTuple):
    """A letter, and the record that it is sent as."""

    stored: StoredLetter
    record: EncodedRecord


class Choice(NamedTuple):
    """Which letters are meant; None and nothing for all."""

    reason: str | None = None
    symbol: str | None = None
    ids: tuple[str, ...] = ()

    def takes(self, stored: StoredLetter) -> bool:
        """Say whether a letter is meant; ids may be cut short."""
        letter = stored.letter
        return (
            self.reason in (None, letter.reason)
            and (self.symbol is None or self.symbol.upper() == (letter.symbol or "").upper())
            and (not self.ids or stored.id.startswith(self.ids))
        )


def json_line(stored: StoredLetter, *, is_replayed: bool) -> str:
    """Write a letter for machines."""
    return json.dumps(
        {"id": stored.id, "file": stored.file, "replayed": is_replayed, **msgspec.to_builtins(stored.letter)}
    )


def plain_line(stored: StoredLetter, *, is_replayed: bool) -> str:
    """Write a letter for a terminal."""
    letter = stored.letter
    ids = "" if letter.claim is None else f"  {letter.claim.kind} {letter.claim.first}-{letter.claim.last}"
    state = "replayed" if is_replayed else "waiting"
    return (
        f"{stored.id}  {_clock(letter.written_ms)}  {state:<8}  {letter.reason:<20}  {_plain(letter.symbol or '-'):<12}"
        f"  {len(stored.raw):>8} bytes{ids}  {_plain(letter.detail)}"
    )


def open_sink(settings: Kinesis) -> Sink:
    """Make the sink of the data stream."""
    api = KinesisApi(lambda: make_kinesis_client(settings, connections=1), open_threads(1))
    return KinesisSink(api, settings.stream_name)


def open_queue(config: Config) -> tuple[Queue, str] | None:
    """Open the queue of dead letters, if there is one; it waits for messages longer than the service waits for it."""
    url = config.dead_letter.queue_url
    if config.dead_letter.kind != "sqs" or url is None:
        return None
    kinesis = config.kinesis
    timeouts = kinesis.timeouts.model_copy(update={"read_s": kinesis.timeouts.read_s + WAIT_S})
    return QueueClient(AwsApi(partial(make_sqs_client, url, kinesis.region, timeouts), open_threads(1))), url


def open_serializer(config: Config) -> Serializer:
    """Make what encodes records as the service does."""
    kinesis = config.kinesis
    version_id = find_schema_version(kinesis, read_schema("market_data")) if kinesis.encoding == "glue" else None
    key_of = key_rule(kinesis.partition_key, kinesis.lanes)
    return Serializer(framing=kinesis.encoding, schema_version_id=version_id, key_of=key_of)


async def list_letters(
    config: Config, choice: Choice, *, as_json: bool, out: TextIO, open_queue: OpenQueue = open_queue
) -> None:
    """Write a line for every letter that is meant; raises `SinkError` if the queue cannot be read."""
    replayed = read_marks(config.dead_letter.directory)
    write = json_line if as_json else plain_line

    def write_all(letters: Iterable[StoredLetter]) -> None:
        out.writelines(
            write(stored, is_replayed=stored.id in replayed) + "\n" for stored in filter(choice.takes, letters)
        )

    await each_letter(config, write_all, open_queue)


async def show_letter(
    config: Config,
    letter_id: str,
    *,
    as_raw: bool,
    out: TextIO,
    raw_out: BinaryIO,
    open_queue: OpenQueue = open_queue,
) -> None:
    """Write all that is known of one letter, or (`as_raw`) the bytes alone; raises `LetterError`."""
    found: dict[str, StoredLetter] = {}

    def look(letters: Iterable[StoredLetter]) -> None:
        found.update({each.id: each for each in letters if each.id.startswith(letter_id)})

    await each_letter(config, look, open_queue)
    if len(found) != 1:
        raise LetterError(f"{len(found) or 'no'} letters begin with {letter_id}")
    [stored] = found.values()
    if as_raw:
        raw_out.write(stored.raw)
        return
    fields: dict[str, Any] = {"id": stored.id, "file": stored.file, **msgspec.to_builtins(stored.letter)}
    del fields["raw_base64"]
    for name in ("first_seen_ms", "written_ms"):
        fields[name.removesuffix("_ms")] = _clock(fields.pop(name))
    text = fields.pop("text", None) or readable(stored.raw)
    fields["bytes"] = len(stored.raw)
    out.writelines(f"{name}: {_plain(value)}\n" for name, value in fields.items())
    out.write(f"\n{stored.raw.hex(' ') if text is None else printable_lines(text)}\n")


def letters_in(directory: Path) -> Iterator[StoredLetter]:
    """Give the letters in a directory; raises `LetterError` when they cannot be read."""
    try:
        yield from read_letters(directory)
    except OSError as error:
        raise LetterError(f"{error.filename or directory}: {error.strerror}") from error


def read_marks(directory: Path) -> set[str]:
    """Return the ids of the letters that were sent again; raises `LetterError` when they cannot be read."""
    try:
        return ReplayMarks(directory).read()
    except OSError as error:
        raise LetterError(f"{error.filename or directory}: {error.strerror}") from error
    except ValueError as error:
        raise LetterError(f"{directory}: the file `{REPLAYED}` is no text: {error}") from error


async def each_letter(
    config: Config, take: Callable[[Iterable[StoredLetter]], None], open_queue: OpenQueue = open_queue
) -> None:
    """Hand every letter to `take`: those in files, then those in the queue, which keeps them."""
    take(letters_in(config.dead_letter.directory))
    queue = open_queue(config)
    if queue is None:
        return
    async with open_letter_queue(*queue) as letters:
        while found := await letters.receive():
            take(found)


async def replay(
    config: Config,
    choice: Choice,
    *,
    is_forced: bool,
    is_dry: bool,
    out: TextIO,
    open_sink: Callable[[Kinesis], Sink] = open_sink,
    open_queue: OpenQueue = open_queue,
) -> int:
    """Send letters again, those in files, then those in the queue; 0 if each one that is meant has been, now or before.

    Ended half-way, it goes on from there the next time. `is_dry` says what would happen. Raises `SinkError` when
    Kinesis does not take them, or the queue cannot be read.
    """
    run = Replay(config, is_forced=is_forced, sink=None if is_dry else open_sink(config.kinesis), out=out)
    await run.send(list(filter(choice.takes, letters_in(config.dead_letter.directory))))
    queue = open_queue(config)
    if queue is not None:
        async with open_letter_queue(*queue) as letters:
            while found := await gather(letters):
                await run.send(list(filter(choice.takes, found)), letters)
    run.refuse_unknown(choice.ids)
    return run.report()


async def gather(letters: LetterQueue) -> list[StoredLetter]:
    """Receive about a batch of letters, oldest first: a queue gives them in any order."""
    gathered: list[StoredLetter] = []
    while len(gathered) < BATCH_LETTERS and (found := await letters.receive()):
        gathered += found
    return sorted(gathered, key=lambda stored: (stored.letter.first_seen_ms, stored.letter.written_ms))


class Replay:
    """One run of `replay`: what it has sent and refused so far. Without a sink it only says what it would do."""

    def __init__(self, config: Config, *, is_forced: bool, sink: Sink | None, out: TextIO) -> None:
        self._revival = Revival(open_serializer(config), config, is_forced=is_forced)
        self._marks = ReplayMarks(config.dead_letter.directory)
        self._replayed = read_marks(config.dead_letter.directory)
        self._met: set[str] = set()
        self._sink = sink
        self._out = out
        self._sent = self._before = self._refused = 0

    async def send(self, letters: Sequence[StoredLetter], queue: LetterQueue | None = None) -> None:
        """Send those that were not sent yet, in their order, each once; the sent ones are deleted from their queue."""
        named = {each.id: each for each in letters}
        old = named.keys() & self._replayed
        self._before += len(old - self._met)
        new = named.keys() - old - self._met
        ready = self._revive([stored for name, stored in named.items() if name in new])
        self._met |= named.keys()
        if self._sink is None:
            self._sent += len(ready)
            self._out.writelines(f"{stored.id}  would be sent\n" for stored, _ in ready)
            return
        if queue is not None and old:
            await queue.delete(list(old))
        if ready:
            self._mark([])  # what cannot be marked must not be sent: it would be sent again

        async def note(accepted: list[StoredLetter]) -> None:
            self._note_sent([stored.id for stored in accepted])
            if queue is not None:
                await queue.delete([stored.id for stored in accepted])
                await queue.keep()

        for batch in batches(ready):
            try:
                await send(self._sink, batch, note)
            except SinkError as error:
                if error.failure != "poison" or len(batch) > 1:
                    raise
                self._note_refused(batch[0].stored, str(error))

    def refuse_unknown(self, names: Iterable[str]) -> None:
        """Note names that begin no letter, neither one that was met nor one that was sent before."""
        known = self._met | self._replayed
        for name in names:
            if not any(each.startswith(name) for each in known):
                self._refused += 1
                self._out.write(printable(f"{name}  refused: no letter that is meant begins with it") + "\n")

    def report(self) -> int:
        """Write the sums; return the exit code."""
        verb = "to send" if self._sink is None else "sent"
        self._out.write(f"{self._sent} {verb}, {self._before} sent before, {self._refused} refused\n")
        return 1 if self._refused else 0

    def _revive(self, letters: Iterable[StoredLetter]) -> list[Ready]:
        ready: list[Ready] = []
        for stored in letters:
            try:
                ready.append(Ready(stored, self._revival.record_of(stored)))
            except RefusedError as error:
                self._note_refused(stored, f"{error}{'; --force sends it all the same' if error.is_forcible else ''}")
        return ready

    def _note_sent(self, ids: list[str]) -> None:
        """Mark letters that Kinesis has, durably and before anything else; nobody else waits for this loop."""
        self._mark(ids)
        self._replayed.update(ids)
        self._sent += len(ids)
        self._out.writelines(f"{each}  sent\n" for each in ids)

    def _mark(self, ids: list[str]) -> None:
        try:
            self._marks.add(ids)
        except OSError as error:
            sent = f"; sent and not marked: {' '.join(ids)}" if ids else ""
            raise LetterError(
                f"{error.filename or REPLAYED}: letters cannot be marked ({error.strerror}){sent}"
            ) from error

    def _note_refused(self, stored: StoredLetter, why: str) -> None:
        self._refused += 1
        self._out.write(printable(f"{stored.id}  refused: {why}") + "\n")


class Revival:
    """Makes records of letters, by today's code and for what is configured today."""

    def __init__(self, serializer: Serializer, config: Config, *, is_forced: bool) -> None:
        self._serializer = serializer
        self._is_forced = is_forced
        binance = config.binance
        self._symbols = {symbol for symbol in binance.symbols if not symbol.startswith("all:")}
        bars = [f"kline_{interval}" for interval in binance.kline_intervals]
        self._kinds = {kind for stream in binance.streams for kind in (bars if stream == "kline" else [stream])}
        self._takes_all = len(self._symbols) < len(binance.symbols)

    def record_of(self, stored: StoredLetter) -> EncodedRecord:
        """Return the record to send; raises `RefusedError`."""
        reason = stored.letter.reason
        if reason == "rejected" and not self._is_forced:
            raise RefusedError("Kinesis refused the record itself", is_forcible=True)
        record = self._decoded(stored) if reason in OF_RECORDS else self._understood(stored)
        try:
            encoded = self._serializer.pack(record)
        except EncodeError as error:
            raise RefusedError(f"it still does not fit the schema: {error}") from error
        size = len(encoded.data) + len(encoded.partition_key.encode())
        if size > MAX_RECORD_BYTES and not self._is_forced:
            raise RefusedError(f"{size} bytes are more than a record may have", is_forcible=True)
        return encoded

    def _decoded(self, stored: StoredLetter) -> MarketData:
        try:
            return self._serializer.decode(stored.raw)
        except DecodeError as error:
            raise RefusedError(f"its bytes are no record: {error}") from error

    def _understood(self, stored: StoredLetter) -> MarketData:
        try:
            event = decode_message(stored.raw).data
        except REFUSALS as error:
            raise RefusedError(f"it still is no message that we know: {error}") from error
        subscription = subscription_of(event)
        is_ours = (self._takes_all or subscription.symbol in self._symbols) and subscription.kind in self._kinds
        if not is_ours and not self._is_forced:
            raise RefusedError(f"{subscription.stream_name} is not configured", is_forcible=True)
        return record_of(event, stored.letter.first_seen_ms * 1000)


def subscription_of(event: Event) -> Subscription:
    """Return what an event belongs to."""
    if isinstance(event, KlineEvent):
        return Subscription(event.symbol, f"kline_{event.bar.interval}")
    return Subscription(event.symbol, "trade" if isinstance(event, TradeEvent) else "depth")


def record_of(event: Event, received_us: int) -> MarketData:
    """Make the record of an event; an order book change has no best prices, as the book of then is gone."""
    if isinstance(event, TradeEvent):
        return trade_record(event.symbol, event, received_us)
    if isinstance(event, DepthEvent):
        return depth_record(event.symbol, event, received_us, None, None)
    return kline_record(event.symbol, event, received_us)


async def send(
    sink: Sink, batch: Sequence[Ready], on_accepted: Callable[[list[StoredLetter]], Awaitable[None]]
) -> None:
    """Put records and return when all are accepted; what fails is sent again a few times, then it raises `SinkError`.

    `on_accepted` is awaited with the letters that a call delivered before the next call is made.
    """
    left = list(batch)
    backoff = Backoff(initial_s=0.2, max_s=10.0, multiplier=2.0, jitter=Random())  # noqa: S311 - keeps no secret
    failure = SinkError("transient", "NotSent", "nothing was tried")
    for _ in range(ATTEMPTS):
        try:
            answer = await sink.put([PutEntry(record.data, record.partition_key, None) for _, record in left])
        except SinkError as error:
            if error.failure in ("configuration", "poison"):
                raise
            failure = error
        else:
            results = list(zip(left, answer, strict=True))
            if accepted := [ready.stored for ready, result in results if not isinstance(result, EntryFailure)]:
                await on_accepted(accepted)
            refused = [(ready, result) for ready, result in results if isinstance(result, EntryFailure)]
            if not refused:
                return
            left = [ready for ready, _ in refused]
            failure = SinkError("transient", refused[0][1].code, refused[0][1].text)
        await trio.sleep(backoff.next_delay())
    raise failure


def batches(letters: Iterable[Ready]) -> Iterator[list[Ready]]:
    """Divide letters over calls, never two records of one key in one: Kinesis promises no order inside a call.

    What Kinesis refused once goes alone, or it would have a whole call refused again.
    """
    batch: list[Ready] = []
    keys: set[str] = set()
    size = 0
    for stored, record in letters:
        is_full = len(batch) == BATCH_LETTERS or size + len(record.data) > BATCH_BYTES
        is_alone = "rejected" in (stored.letter.reason, batch[-1].stored.letter.reason if batch else None)
        if batch and (is_full or is_alone or record.partition_key in keys):
            yield batch
            batch, keys, size = [], set(), 0
        batch.append(Ready(stored, record))
        keys.add(record.partition_key)
        size += len(record.data)
    if batch:
        yield batch


def _clock(at_ms: int) -> str:
    return f"{dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _plain(value: object) -> str:
    """Write a value on one line of a terminal, whatever characters a stranger put into it."""
    return printable(value if isinstance(value, str) else json.dumps(value))
