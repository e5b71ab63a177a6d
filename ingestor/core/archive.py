"""The layout of the venue's public archive (data.binance.vision), and the rows inside of its files.

A day or a month of one symbol is a zip with one CSV (facts/binance.md §12): the columns are those of the REST answers,
without a header line, though one is tolerated; times are milliseconds before 2025 and microseconds from then on, and
are left as they are, because every reader of a row tells them apart by their size.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from ingestor.core.binance import RestAggTrade, RestKline, RestTrade
from ingestor.core.errors import IngestorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ArchiveKind: TypeAlias = Literal["trades", "aggTrades", "klines"]
Row: TypeAlias = RestTrade | RestAggTrade | RestKline

_DAY = timedelta(days=1)


class BadRowError(IngestorError):
    """A line that is none of the file's kind."""


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
    """Cut the bytes of a CSV into lists of whole lines, one list a chunk; a header line is left out."""
    rest = b""
    is_begun = False
    for chunk in chain(chunks, (b"\n",)):
        *whole, rest = (rest + chunk).split(b"\n")
        lines = [line for line in whole if line]
        if lines and not is_begun:
            is_begun = True
            lines = lines if lines[0][:1].isdigit() else lines[1:]
        yield lines


def parse(kind: ArchiveKind, lines: Sequence[bytes]) -> list[Row]:
    """Make rows of the lines of a file; raises `BadRowError` naming the first line that is none of `kind`."""
    read = _READERS[kind]
    row = b""
    try:
        return [read(row.decode("ascii").split(",")) for row in lines]
    except (ValueError, IndexError, KeyError) as error:
        raise BadRowError(f"{row[:120]!r} is no row of {kind}: {error!r}") from error


def _trade(columns: list[str]) -> RestTrade:
    return RestTrade(int(columns[0]), columns[1], columns[2], int(columns[4]), _BOOLEANS[columns[5]])


def _aggregate_trade(columns: list[str]) -> RestAggTrade:
    number, price, quantity, first, last, time, is_maker = columns[:7]
    return RestAggTrade(int(number), price, quantity, int(first), int(last), int(time), _BOOLEANS[is_maker])


def _kline(columns: list[str]) -> RestKline:
    start, opened, high, low, close, volume, end, quote, count, taker, taker_quote = columns[:11]
    return RestKline(
        int(start), opened, high, low, close, volume, int(end), quote, int(count), taker, taker_quote
    )  # fmt: skip


_BOOLEANS = {"True": True, "False": False, "true": True, "false": False}
_READERS: dict[ArchiveKind, Callable[[list[str]], Row]] = {
    "trades": _trade,
    "aggTrades": _aggregate_trade,
    "klines": _kline,
}


def _day_of(at_ms: int) -> date:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date()
