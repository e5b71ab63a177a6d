"""The layout of the venue's public archive (data.binance.vision), and the rows inside of its files.

A day or a month of one symbol is a zip with one CSV (facts/binance.md §12): the columns are those of the REST answers,
without a header line, though one is tolerated; times are milliseconds before 2025 and microseconds from then on, and
are left as they are, because every reader of a row tells them apart by their size.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from ingestor.core.binance import REFUSALS, Natural, NaturalOrNone, RestKline
from ingestor.core.errors import IngestorError
from ingestor.core.model import DecimalText  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ArchiveKind: TypeAlias = Literal["trades", "aggTrades", "klines"]

LONGEST_LINE_BYTES = 4_096  # a row has some hundred bytes; without an end it would be gathered for ever

_DAY = timedelta(days=1)


class BadRowError(IngestorError):
    """A line that is none of the file's kind."""


class ArchiveTrade(Struct, frozen=True, gc=False, array_like=True):
    """A line of a trades file, by position; `time` in milliseconds or microseconds."""

    trade_id: Natural
    price: DecimalText
    quantity: DecimalText
    quote_quantity: DecimalText
    time: Natural
    buyer_is_maker: bool


class ArchiveAggTrade(Struct, frozen=True, gc=False, array_like=True):
    """A line of an aggTrades file, by position."""

    aggregate_id: Natural
    price: DecimalText
    quantity: DecimalText
    first_trade_id: NaturalOrNone
    last_trade_id: NaturalOrNone
    time: Natural
    buyer_is_maker: bool


class ArchiveFile(NamedTuple):
    """One zip: a day, or the month that `day` (its first) begins. `interval` is for klines only, as REST writes it."""

    symbol: str
    kind: ArchiveKind
    interval: str
    day: date
    is_month: bool

    @property
    def name(self) -> str:
        """Its name, such as `BTCUSDT-1m-2020-01-01.zip`."""
        what = self.interval.replace("1M", "1mo") if self.kind == "klines" else self.kind
        return f"{self.symbol}-{what}-{self.day:{'%Y-%m' if self.is_month else '%Y-%m-%d'}}.zip"

    @property
    def path(self) -> str:
        """Where it is on the archive's host."""
        span = "monthly" if self.is_month else "daily"
        folder = f"{self.symbol}/{self.interval.replace('1M', '1mo')}" if self.kind == "klines" else self.symbol
        return f"/data/spot/{span}/{self.kind}/{folder}/{self.name}"

    def days(self) -> list[ArchiveFile]:
        """Return the files of the single days of a month."""
        days, day = [], self.day
        while day.month == self.day.month:
            days.append(self._replace(day=day, is_month=False))
            day += _DAY
        return days


def days_ended(now_ms: int) -> int:
    """Return the end of the last day that is over at `now_ms`."""
    return now_ms - now_ms % 86_400_000


def files_between(
    symbol: str, kind: ArchiveKind, interval: str, start_ms: int, end_ms: int, *, now_ms: int
) -> list[ArchiveFile]:
    """Return the files that hold what happened from `start_ms` on and before `end_ms`, oldest first.

    A month that lies inside as a whole is one file. Days that are not over at `now_ms` have none.
    """
    first = _day_of(start_ms)
    after = min(_day_of(end_ms - 1) + _DAY, _day_of(now_ms))
    files = []
    while first < after:
        next_month = (first.replace(day=1) + 32 * _DAY).replace(day=1)
        is_month = first.day == 1 and next_month <= after
        files.append(ArchiveFile(symbol, kind, interval, first, is_month))
        first = next_month if is_month else first + _DAY
    return files


def lines_of(chunks: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Cut the bytes of a CSV into lists of whole lines, one list a chunk; a header line is left out.

    Raises `BadRowError` for a line without an end.
    """
    rest = b""
    is_begun = False
    for chunk in chain(chunks, (b"\n",)):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE_BYTES:
            raise BadRowError(f"{rest[:120]!r} begins a line of more than {LONGEST_LINE_BYTES} bytes")
        lines = [line for line in whole if line]
        if lines and not is_begun:
            is_begun = True
            lines = lines if lines[0][:1].isdigit() else lines[1:]
        yield lines


def parse(kind: ArchiveKind, lines: Sequence[bytes]) -> list[Any]:
    """Make rows of the lines of a file: `ArchiveTrade`, `ArchiveAggTrade` or `RestKline`.

    Raises `BadRowError` naming the first line that is none of `kind`.
    """
    decode = _DECODERS[kind].decode
    foreign = next((line for line in lines if b'"' in line or b"\\" in line), None)
    if foreign is not None:  # with quotes of its own, a line could be read as several rows, or as none
        raise BadRowError(f"{foreign[:120]!r} is no row of {kind}: a quote or a backslash")
    try:
        return decode(_as_json(lines))
    except REFUSALS as error:
        raise BadRowError(f"{_first_bad(decode, lines)[:120]!r} is no row of {kind}: {error}") from error


def _as_json(lines: Sequence[bytes]) -> bytes:
    """Quote every column: one typed decode in C then reads them all, several times faster than `split` and `int`."""
    columns = b"\n".join(lines).replace(b",", b'","')
    return b'[["' + columns.replace(b"\n", b'"],["') + b'"]]' if lines else b"[]"


def _first_bad(decode: Callable[[bytes], object], lines: Sequence[bytes]) -> bytes:
    for line in lines:
        try:
            decode(_as_json([line]))
        except REFUSALS:
            return line
    return b""  # only together are they bad: a quote in one that another closes


_DECODERS: dict[ArchiveKind, msgspec.json.Decoder[list[Any]]] = {
    "trades": msgspec.json.Decoder(list[ArchiveTrade], strict=False),
    "aggTrades": msgspec.json.Decoder(list[ArchiveAggTrade], strict=False),
    "klines": msgspec.json.Decoder(list[RestKline], strict=False),
}


def _day_of(at_ms: int) -> date:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date()
