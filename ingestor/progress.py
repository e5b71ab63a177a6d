"""How far a backfill has come, in a small file: what was asked for, as ids, and what of it was acknowledged.

The file is replaced as a whole at every acknowledgement, so it never claims what Kinesis has not, and is behind by no
more than the put that is under way. It is not synced to disk each time: after a crash of the machine it may be older
than it was, which costs duplicates, or empty, which is refused with a clear text.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from ingestor.core.claims import Intervals, Range
from ingestor.core.errors import IngestorError
from ingestor.core.model import Claim, Hole, Subscription

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ingestor.core.paging import Page

VERSION = 1


class ProgressError(IngestorError):
    """The file of an earlier run cannot be continued."""


class SpanLine(Struct, frozen=True):
    """One subscription as it stands in the file; ids are inclusive, `first` > `last` where there is nothing."""

    subscription: Subscription
    first: int
    last: int
    done: list[Range]
    declared: list[Range]


class ProgressFile(Struct, frozen=True):
    """The whole file; `file_bytes` is the good part of the output file, when there is one."""

    version: int
    request: str
    file_bytes: int
    spans: list[SpanLine]


class Span(Struct):
    """The ids `first` to `last` of a subscription: which are done, and which of those only as holes."""

    first: int
    last: int
    done: Intervals
    declared: Intervals

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self.last - self.first + 1

    def missing(self) -> Intervals:
        """Return what is not done."""
        return self.done.missing(self.first, self.last)

    def holes(self) -> Intervals:
        """Return the holes that were acknowledged."""
        found = Intervals()
        for first, last in self.done:
            found.update(self.declared.within(first, last))
        return found


class Progress:
    """What the file says, and the way to change it; `request` names the command, so that no other one continues it.

    Raises `ProgressError` when there is a file that is damaged, or of another request.
    """

    def __init__(self, path: Path, request: str) -> None:
        self.path = path
        self.request = request
        self.file_bytes = 0
        self.spans: dict[Subscription, Span] = {}
        if path.exists():
            self._load()

    def begin(self, subscription: Subscription, page: Page | None) -> None:
        """Note what a range was resolved to, so that it stays the same when it is continued."""
        first, last = page or (0, -1)
        self.spans[subscription] = Span(first, last, Intervals(), Intervals())

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
        self.spans[Subscription(symbol, hole.stream)].declared.add(hole.first, hole.last)

    def save(self) -> None:
        """Replace the file; it is the old one or the new one at every instant."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.new")
        fresh.write_bytes(msgspec.json.encode(self._state()))
        os.replace(fresh, self.path)  # noqa: PTH105 - the atomic one, by its own name

    def _state(self) -> ProgressFile:
        spans = [
            SpanLine(subscription, span.first, span.last, span.done.ranges(), span.declared.ranges())
            for subscription, span in self.spans.items()
        ]
        return ProgressFile(VERSION, self.request, self.file_bytes, spans)

    def _load(self) -> None:
        try:
            state = msgspec.json.decode(self.path.read_bytes(), type=ProgressFile)
        except (OSError, msgspec.DecodeError) as error:
            raise ProgressError(f"{self.path}: cannot be read ({error}); remove it to begin anew") from error
        if (state.version, state.request) != (VERSION, self.request):
            raise ProgressError(
                f"{self.path}: belongs to another command ({state.request}); give this one its own --state"
            )
        self.file_bytes = state.file_bytes
        for line in state.spans:
            self.spans[line.subscription] = Span(line.first, line.last, _set(line.done), _set(line.declared))


def _set(ranges: list[Range]) -> Intervals:
    return Intervals((each.first, each.last) for each in ranges)
