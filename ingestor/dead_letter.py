"""The last stop of a message or record that nobody will try again: one JSON line each, on disk before `write` returns.

A directory that cannot be written (a full disk, a read-only file system) must not stop the line, nor lose a letter
silently: letters are then kept in memory and written later, every failure is an ERROR in the log, and what memory can
not keep goes into the log whole, which is the last durable place left.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Protocol

import msgspec
import structlog
import trio
from msgspec import Struct

from ingestor import __version__
from ingestor.core.model import EventType, PoisonReason  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ingestor.core.model import Claim, DeadLetter
    from ingestor.metrics import Metrics
    from ingestor.threads import RunBlocking

log = structlog.get_logger()

FILE_MAX_BYTES = 64 * 1024 * 1024
KEPT_MAX_BYTES = 16 * 1024 * 1024
RETRY_S = 30.0


class DeadLetterSink(Protocol):
    """Where dead letters go."""

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Take letters over for good; durable on return wherever anything durable is left."""
        ...


class ClaimLine(Struct, frozen=True):
    """The ids a letter stood for."""

    symbol: str
    kind: str
    first: int
    last: int


class LetterLine(Struct, frozen=True, omit_defaults=True):
    """A dead letter as it stands in a file; times are milliseconds since the epoch, `text` only if `raw` is UTF-8."""

    reason: PoisonReason
    detail: str
    first_seen_ms: int
    written_ms: int
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
        """Write `lines` and sync them to disk. Raises `OSError`, and then none of them is in the file."""
        if self._file is None or self._size_bytes + len(lines) > self._file_max_bytes:
            self._start_file()
        assert self._file is not None  # noqa: S101 - for the type checker
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size_bytes)
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
        written_ms = self._wall_ns() // 1_000_000
        for letter in letters:
            self._metrics.dead_letters.labels(letter.reason).inc()
            self._kept.append(encode(letter, written_ms))
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
            for _ in range(count):
                self._kept.popleft()

    async def keep_trying(self, every_s: float = RETRY_S) -> NoReturn:
        """Write what is kept, again and again, until cancelled."""
        while True:
            await trio.sleep(every_s)
            await self.flush()

    async def close(self) -> None:
        """Write what is kept for the last time; what still fails goes into the log."""
        await self.flush()
        self._spill(0)
        self._files.close()

    def _spill(self, keep_bytes: int) -> None:
        held = sum(map(len, self._kept))
        while held > keep_bytes:
            line = self._kept.popleft()
            held -= len(line)
            log.error("dead_letter", letter=line.decode().rstrip())


def encode(letter: DeadLetter, written_ms: int) -> bytes:
    """Make the line of a letter."""
    line = LetterLine(
        reason=letter.reason,
        detail=letter.detail,
        first_seen_ms=letter.at_ms,
        written_ms=written_ms,
        version=__version__,
        raw_base64=base64.b64encode(letter.raw).decode(),
        text=_text(letter.raw),
        symbol=letter.symbol,
        event_type=letter.event_type,
        partition_key=letter.partition_key,
        claim=_claim_line(letter.claim),
        attempts=letter.attempts,
        may_have_landed=letter.may_have_landed,
    )
    return msgspec.json.encode(line) + b"\n"


def _claim_line(claim: Claim | None) -> ClaimLine | None:
    return None if claim is None else ClaimLine(*claim.subscription, claim.first, claim.last)


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
