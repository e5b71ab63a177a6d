"""The last stop of a message or record that nobody will try again: durable before `write` returns.

In a directory a letter is one JSON line, in an SQS queue it is one message with the same JSON; what the queue does not
take, because it is too large or the queue is away, goes into the directory.

A directory that cannot be written (a full disk, a read-only file system) must not stop the line, nor lose a letter
silently: letters are then kept in memory and written later, every failure is an ERROR in the log, and what memory can
not keep goes into the log whole, which is the last durable place left.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
from collections import deque
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, NoReturn, Protocol, TypeAlias

import msgspec
import structlog
import trio
from msgspec import Meta, Struct

from ingestor import __version__
from ingestor.core.backoff import Backoff
from ingestor.core.errors import IngestorError, SinkError
from ingestor.core.model import EventType, PoisonReason  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ingestor.core.model import Claim, DeadLetter, EntryFailure
    from ingestor.metrics import Metrics
    from ingestor.threads import RunBlocking

log = structlog.get_logger()

FILE_MAX_BYTES = 64 * 1024 * 1024
KEPT_MAX_BYTES = 16 * 1024 * 1024
RETRY_S = 30.0
# SQS: for one message and for all of a call (facts/aws.md §7, read 2026-11-22; it was 256 KiB until August 2025).
QUEUE_MAX_BYTES: Final = 1_048_576
QUEUE_MAX_MESSAGES: Final = 10
QUEUE_ATTEMPTS: Final = 3
LINES: Final = "*.jsonl"
LINE_MAX_BYTES: Final = 64 * 1024 * 1024  # what is read back may be anybody's; ours are a few megabytes at most
REPLAYED: Final = "replayed"  # a line with the id of every letter that was sent again


class DeadLetterSink(Protocol):
    """Where dead letters go."""

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Take letters over for good; durable on return wherever anything durable is left."""
        ...


Milliseconds: TypeAlias = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]  # up to the year 9999
Id: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class ClaimLine(Struct, frozen=True):
    """The ids a letter stood for."""

    symbol: str
    kind: str
    first: Id
    last: Id


class LetterLine(Struct, frozen=True, omit_defaults=True):
    """A dead letter as it stands in a file; times are milliseconds since the epoch, `text` only if `raw` is UTF-8."""

    reason: PoisonReason
    detail: str
    first_seen_ms: Milliseconds
    written_ms: Milliseconds
    version: str
    raw_base64: str
    text: str | None = None
    symbol: str | None = None
    event_type: EventType | None = None
    partition_key: str | None = None
    claim: ClaimLine | None = None
    attempts: int = 0
    may_have_landed: bool = False


class LetterFiles:
    """Appends whole lines to a file of its own in `directory`, durably, and starts another one when it is full.

    A process never appends to the file of another, so a line that a crash cut short is the last of its file. Blocks:
    call it in a thread.
    """

    def __init__(self, directory: Path, wall_ns: Callable[[], int], file_max_bytes: int = FILE_MAX_BYTES) -> None:
        self._directory = directory
        self._wall_ns = wall_ns
        self._file_max_bytes = file_max_bytes
        self._file: int | None = None
        self._size_bytes = 0

    def append(self, lines: bytes) -> None:
        """Write `lines` and sync them to disk. Raises `OSError`, and then none of them counts as written."""
        if self._file is None or self._size_bytes + len(lines) > self._file_max_bytes:
            self._start_file()
        assert self._file is not None  # noqa: S101 - for the type checker
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError:
            try:
                os.ftruncate(self._file, self._size_bytes)
            except OSError:
                self.close()  # half a line may stand there, so nothing may follow it
            raise
        self._size_bytes += len(lines)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _start_file(self) -> None:
        self.close()
        self._directory.mkdir(parents=True, exist_ok=True)
        moment = dt.datetime.fromtimestamp(self._wall_ns() / 1e9, dt.UTC)
        path = self._directory / f"{moment:%Y%m%dT%H%M%S.%f}-{os.getpid()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size_bytes = os.fstat(self._file).st_size
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)  # or the name of the file may be gone after a crash of the machine
        finally:
            os.close(directory)


class FileDeadLetters:
    """Dead letters as lines in files, for several writers at once."""

    def __init__(
        self,
        files: LetterFiles,
        run_blocking: RunBlocking,
        wall_ns: Callable[[], int],
        metrics: Metrics,
        kept_max_bytes: int = KEPT_MAX_BYTES,
    ) -> None:
        """`kept_max_bytes` bounds what waits in memory while the directory cannot be written."""
        self._files = files
        self._run_blocking = run_blocking
        self._wall_ns = wall_ns
        self._metrics = metrics
        self._kept_max_bytes = kept_max_bytes
        self._kept: deque[bytes] = deque()
        self._one_at_a_time = trio.Lock()

    @property
    def kept(self) -> int:
        """Letters that wait in memory, because they could not be written yet."""
        return len(self._kept)

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Count letters and write them, after those that could not be written before."""
        for letter in letters:
            self._metrics.dead_letters.labels(letter.reason).inc()
        await self.store(letters)

    async def store(self, letters: Sequence[DeadLetter]) -> None:
        """Write letters that are counted already."""
        written_ms = self._wall_ns() // 1_000_000
        self._kept.extend(encode(letter, written_ms) for letter in letters)
        await self.flush()

    async def flush(self) -> None:
        """Write what is kept; what fails stays kept, as far as there is room."""
        async with self._one_at_a_time:
            count = len(self._kept)
            if not count:
                return
            lines = b"".join(self._kept)
            try:
                await self._run_blocking(partial(self._files.append, lines))
            except OSError as error:
                log.error("dead_letters_unwritable", error=str(error), kept=count)  # noqa: TRY400 - no bug of ours
                self._spill(self._kept_max_bytes)
                return
            for _ in range(min(count, len(self._kept))):  # none, if the end did not wait for this disk
                self._kept.popleft()

    async def keep_trying(self, every_s: float = RETRY_S) -> NoReturn:
        """Write what is kept, again and again, until cancelled."""
        while True:
            await trio.sleep(every_s)
            await self.flush()

    async def close(self) -> None:
        """Write what is kept for the last time; what still fails, or what nobody can wait for, goes into the log."""
        try:
            await self.flush()
        finally:
            self._spill(0)
        self._files.close()

    def _spill(self, keep_bytes: int) -> None:
        held = sum(map(len, self._kept))
        while held > keep_bytes:
            line = self._kept.popleft()
            held -= len(line)
            log.error("dead_letter", letter=line.decode().rstrip())


class Queue(Protocol):
    """Where messages are sent: `aws.QueueClient`."""

    async def send(self, queue_url: str, bodies: Sequence[str]) -> Sequence[EntryFailure | None]:
        """Send messages in one call; the answer is aligned with them, None for an accepted one. Raises `SinkError`."""
        ...


class QueueDeadLetters:
    """Dead letters as messages in a queue; what does not get there goes into files, which is durable as well."""

    def __init__(
        self, queue: Queue, queue_url: str, files: FileDeadLetters, wall_ns: Callable[[], int], metrics: Metrics
    ) -> None:
        self._queue = queue
        self._queue_url = queue_url
        self._files = files
        self._wall_ns = wall_ns
        self._metrics = metrics

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Count letters and send them; a queue that is away holds nobody up for longer than a few tries."""
        for letter in letters:
            self._metrics.dead_letters.labels(letter.reason).inc()
        written_ms = self._wall_ns() // 1_000_000
        left = []
        for batch in packed([(letter, message(letter, written_ms)) for letter in letters]):
            left += await self._send(batch)
        if left:
            await self._files.store(left)

    async def keep_trying(self, every_s: float = RETRY_S) -> NoReturn:
        """Write what the files could not take, again and again, until cancelled."""
        await self._files.keep_trying(every_s)

    async def close(self) -> None:
        """Write what is kept for the last time."""
        await self._files.close()

    async def _send(self, batch: Sequence[Message]) -> list[DeadLetter]:
        """Send letters, the refused ones again; return those that are not in the queue."""
        backoff = Backoff(initial_s=0.1, max_s=1.0, multiplier=3.0, jitter=None)
        left, text = list(batch), "too large for a queue"
        if len(batch[0].body) <= QUEUE_MAX_BYTES:
            for attempt in range(QUEUE_ATTEMPTS):
                if attempt:
                    await trio.sleep(backoff.next_delay())
                try:
                    answer = await self._queue.send(self._queue_url, [each.body for each in left])
                except SinkError as error:
                    text = str(error)
                    continue
                refused = [(each, failure) for each, failure in zip(left, answer, strict=True) if failure is not None]
                left = [each for each, _ in refused]
                if not left:
                    return []
                text = f"{refused[0][1].code}: {refused[0][1].text}"
        log.error("dead_letters_not_queued", error=text, letters=len(left))
        return [each.letter for each in left]


class Message(NamedTuple):
    """A letter and the body of its message."""

    letter: DeadLetter
    body: str


def message(letter: DeadLetter, written_ms: int) -> str:
    """Make the body of a letter's message: its JSON in ASCII, because SQS refuses some characters; raw as base64."""
    fields = msgspec.to_builtins(line_of(letter, written_ms))
    fields.pop("text", None)  # it is in `raw_base64`
    return json.dumps(fields, separators=(",", ":"))


def packed(messages: Sequence[tuple[DeadLetter, str]]) -> Iterator[list[Message]]:
    """Divide messages over calls; one that is too large for any stands alone."""
    batch: list[Message] = []
    size = 0
    for letter, body in messages:
        if batch and (len(batch) == QUEUE_MAX_MESSAGES or size + len(body) > QUEUE_MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(Message(letter, body))
        size += len(body)
    if batch:
        yield batch


class StoredLetter(NamedTuple):
    """A letter in a file, or in a queue. `id` is made of what was given up, so that it is the same wherever it lies."""

    id: str
    letter: LetterLine
    file: str

    @property
    def raw(self) -> bytes:
        """The bytes that could not be delivered."""
        return base64.b64decode(self.letter.raw_base64)


class LetterLineError(IngestorError):
    """A line that is no letter of ours."""


def read_letters(directory: Path) -> Iterator[StoredLetter]:
    """Give the letters in a directory, oldest file first; a line that is none, or cut short, is logged and passed over.

    A directory that is not there holds none. Blocks. Raises OSError for what cannot be read.
    """
    for path in sorted(path for path in _content(directory) if path.match(LINES)):
        with path.open("rb") as lines:
            for number, line in enumerate(iter(partial(lines.readline, LINE_MAX_BYTES), b""), 1):
                try:
                    letter = parse_line(line)
                except LetterLineError as error:
                    log.warning("dead_letter_unreadable", file=path.name, line=number, error=str(error))
                    continue
                yield stored_letter(letter, path.name)


def _content(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())  # `glob` passes over a directory that may not be read
    except FileNotFoundError:
        return []


def stored_letter(letter: LetterLine, place: str) -> StoredLetter:
    """Name a letter: one that is in the queue and in a file, because an answer was lost, has one name."""
    content = msgspec.structs.replace(letter, written_ms=0, version="", text=None)
    return StoredLetter(sha256(msgspec.json.encode(content)).hexdigest()[:12], letter, place)


def parse_line(line: bytes | str) -> LetterLine:
    """Read a line of a file, or what a message holds; raises `LetterLineError` for whatever is no letter."""
    try:
        letter = msgspec.json.decode(line, type=LetterLine)
        base64.b64decode(letter.raw_base64, validate=True)
    except (ValueError, RecursionError) as error:  # msgspec's errors, bytes that are not UTF-8, text that is not base64
        raise LetterLineError(str(error)) from error
    return letter


class ReplayMarks:
    """Which letters of a directory were sent again; a mark is durable when `add` returns. Blocks."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / REPLAYED

    def read(self) -> set[str]:
        """Return their ids; raises OSError, and ValueError for what is no text."""
        try:
            return set(self._path.read_text().split())
        except FileNotFoundError:
            return set()

    def add(self, ids: Sequence[str]) -> None:
        """Note ids; raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as marks:
            marks.write("".join(f"{each}\n" for each in ids))
            marks.flush()
            os.fsync(marks.fileno())


def encode(letter: DeadLetter, written_ms: int) -> bytes:
    """Make the line of a letter."""
    return msgspec.json.encode(line_of(letter, written_ms)) + b"\n"


def line_of(letter: DeadLetter, written_ms: int) -> LetterLine:
    """Make what is written of a letter."""
    return LetterLine(
        reason=letter.reason,
        detail=letter.detail,
        first_seen_ms=letter.at_ms,
        written_ms=written_ms,
        version=__version__,
        raw_base64=base64.b64encode(letter.raw).decode(),
        text=readable(letter.raw),
        symbol=letter.symbol,
        event_type=letter.event_type,
        partition_key=letter.partition_key,
        claim=_claim_line(letter.claim),
        attempts=letter.attempts,
        may_have_landed=letter.may_have_landed,
    )


def _claim_line(claim: Claim | None) -> ClaimLine | None:
    return None if claim is None else ClaimLine(*claim.subscription, claim.first, claim.last)


def readable(raw: bytes) -> str | None:
    """Return bytes as text, None if they are none."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
