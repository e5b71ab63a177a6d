"""How far a backfill has come, in a small file: what was asked for, as ids, and what of it was acknowledged.

The file is replaced as a whole at every acknowledgement, so it never claims what Kinesis has not, and is behind by no
more than the put that is under way. It is not synced to disk each time: after a crash of the machine it may be older
than it was, which costs duplicates, or empty, which is refused with a clear text. Two runs of one command at a time
would each undo what the other notes, so a run holds a lock beside the file.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec import Struct

from ingestor.core.binance import REFUSALS
from ingestor.core.claims import Intervals, Range
from ingestor.core.errors import IngestorError
from ingestor.core.model import Claim, Hole, HoleReason, Subscription

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ingestor.core.paging import Page

VERSION = 2


class ProgressError(IngestorError):
    """The file of an earlier run cannot be continued, or progress cannot be kept."""


class Declared(NamedTuple):
    """Ids `first` to `last`, inclusive, that were sent as a hole, and why."""

    first: int
    last: int
    reason: HoleReason


class SpanLine(Struct, frozen=True):
    """One subscription as it stands in the file; ids are inclusive, `first` > `last` where there is nothing."""

    subscription: Subscription
    first: int
    last: int
    done: list[Range]
    declared: list[Declared]
    notes: list[str]
    files: dict[str, Range]


class ProgressFile(Struct, frozen=True):
    """The whole file; `file_bytes` is the good part of the output file, when there is one."""

    version: int
    request: str
    file_bytes: int
    spans: list[SpanLine]


class _Version(Struct, frozen=True):
    version: int


class Span(Struct):
    """The ids `first` to `last` of a subscription: which are done, and which of those only as holes.

    `notes` say what else a person should know of the range, `files` which files of the archive were read to their end,
    and the ids in each.
    """

    first: int
    last: int
    done: Intervals = msgspec.field(default_factory=Intervals)
    declared: dict[HoleReason, Intervals] = {}
    notes: list[str] = []
    files: dict[str, Range] = {}

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self.last - self.first + 1

    def missing(self) -> Intervals:
        """Return what is not done."""
        return self.done.missing(self.first, self.last)

    def holes(self) -> list[Declared]:
        """Return the holes that were acknowledged, in the order of their ids."""
        return sorted(
            Declared(*run, reason)
            for reason, ids in self.declared.items()
            for first, last in ids
            for run in self.done.within(first, last)
        )


class Progress:
    """What the file says, and the way to change it; `request` names the command, so that no other one continues it."""

    def __init__(self, path: Path, request: str) -> None:
        self.path = path
        self.request = request
        self.file_bytes = 0
        self.spans: dict[Subscription, Span] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs of this command away; raises `ProgressError` when one is at work, or nothing can be kept."""
        path = self.path.with_name(f"{self.path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except OSError as error:
            raise self._unkept(error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ProgressError(f"{self.path}: another run of this command is at work") from error
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def load(self) -> None:
        """Read what an earlier run left, if one did.

        Raises `ProgressError` when that is damaged, or of another request.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ProgressError(f"{self.path}: cannot be read ({error.strerror})") from error
        try:
            version = msgspec.json.decode(content, type=_Version).version
            state = msgspec.json.decode(content, type=ProgressFile) if version == VERSION else None
        except REFUSALS as error:
            raise ProgressError(f"{self.path}: holds no progress ({error}); remove it to begin anew") from error
        if state is None:
            raise ProgressError(f"{self.path}: was written by another version of this program; remove it to begin anew")
        if state.request != self.request:
            raise ProgressError(
                f"{self.path}: belongs to another command ({state.request}); give this one its own --state"
            )
        self.file_bytes = state.file_bytes
        for line in state.spans:
            self.spans[line.subscription] = _span(line)

    def begin(self, subscription: Subscription, page: Page | None, notes: Sequence[str] = ()) -> None:
        """Note what a range was resolved to, so that it stays the same when it is continued."""
        first, last = page or (0, -1)
        self.spans[subscription] = Span(first, last, notes=list(notes))

    def missing(self) -> dict[Subscription, Intervals]:
        """Return what is left to do, for every subscription where something is."""
        return {subscription: left for subscription, span in self.spans.items() if (left := span.missing())}

    def acknowledge(self, claims: Iterable[Claim], file_bytes: int = 0) -> None:
        """Note what is delivered for good, and write it down."""
        for claim in claims:
            self.spans[claim.subscription].done.add(claim.first, claim.last)
        self.file_bytes = file_bytes
        self.save()

    def note_hole(self, symbol: str, hole: Hole) -> None:
        """Note that ids were sent as a hole; it counts once that is acknowledged."""
        declared = self.spans[Subscription(symbol, hole.stream)].declared
        declared.setdefault(hole.reason, Intervals()).add(hole.first, hole.last)

    def save(self) -> None:
        """Replace the file; it is the old one or the new one at every instant."""
        fresh = self.path.with_name(f"{self.path.name}.new")
        try:
            fresh.write_bytes(msgspec.json.encode(self._state()))
            os.replace(fresh, self.path)  # noqa: PTH105 - the atomic one, by its own name
        except OSError as error:
            raise self._unkept(error) from error

    def _unkept(self, error: OSError) -> ProgressError:
        return ProgressError(
            f"{self.path}: progress cannot be kept there ({error.strerror}); choose a place with --state"
        )

    def _state(self) -> ProgressFile:
        spans = [
            SpanLine(
                subscription, span.first, span.last, span.done.ranges(), _declared(span), span.notes, span.files
            )
            for subscription, span in self.spans.items()
        ]  # fmt: skip
        return ProgressFile(VERSION, self.request, self.file_bytes, spans)


def _declared(span: Span) -> list[Declared]:
    return [Declared(first, last, reason) for reason, ids in span.declared.items() for first, last in ids]


def _span(line: SpanLine) -> Span:
    done = Intervals((each.first, each.last) for each in line.done)
    span = Span(line.first, line.last, done, {}, line.notes, line.files)
    for first, last, reason in line.declared:
        # What was sent as a hole and not acknowledged is asked for again, and may be there by then.
        span.declared.setdefault(reason, Intervals()).update(done.within(first, last))
    return span
