"""The public archive without I/O: a path of `data.binance.vision` goes in, a zipped CSV or its checksum comes out.

Layout and quirks are facts/binance.md §12: no header line, `1mo` for `1M`, microseconds from 2025 on, files only for
days and months that are over. The same period gives the same bytes each time, so that a download can be resumed.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
import zipfile
from calendar import timegm
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from ingestor.local.history import INTERVALS, LAST_MS, Aggregate, Bar, Fill, bar_close_ms, bar_open_ms, text8
from ingestor.local.rest import Response, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ingestor.local.history import History

_PATH: Final = re.compile(
    r"/data/spot/(?P<span>daily|monthly)/(?P<kind>klines|trades|aggTrades)/(?P<symbol>[^/]+)/(?:(?P<interval>\w+)/)?"
    r"(?P<name>(?P=symbol)-(?P<what>\w+)-(?P<date>2\d{3}-(?:0[1-9]|1[0-2])(?:-\d{2})?))\.zip(?P<checksum>\.CHECKSUM)?"
)
_MICROSECONDS_SINCE_MS: Final = timegm((2025, 1, 1, 0, 0, 0)) * 1_000
_RANGE: Final = re.compile(r"bytes=(\d{1,20})-")
_NOT_FOUND: Final = Response(404, b"<Error><Code>NoSuchKey</Code></Error>", (("content-type", "application/xml"),))


class _Wanted(NamedTuple):
    name: str
    kind: Literal["klines", "trades", "aggTrades"]
    symbol: str
    interval: str
    start_ms: int
    end_ms: int
    is_checksum: bool


class ArchiveDesk:
    """Answers GET requests from what `source` remembers; the next `damaged` zips come one byte short."""

    def __init__(self, source: Source) -> None:
        self.damaged = 0
        self._source = source

    def answer(self, path: str, byte_range: str | None) -> Response:
        """Answer one request; `byte_range` is the Range header, of which `bytes=N-` is understood."""
        wanted = _parse(path)
        history = self._source.history(wanted.symbol) if wanted else None
        if wanted is None or history is None or wanted.end_ms >= self._source.now_ms:
            return _NOT_FOUND
        rows = _rows(history, wanted)
        if rows is None:
            return _NOT_FOUND
        content = _zip(wanted, rows)
        if wanted.is_checksum:
            return Response(200, f"{hashlib.sha256(content).hexdigest()}  {wanted.name}.zip".encode())
        return self._download(content, byte_range)

    def _download(self, content: bytes, byte_range: str | None) -> Response:
        if self.damaged:
            self.damaged -= 1
            content = content[:-1]
        headers = (("content-type", "application/zip"), ("accept-ranges", "bytes"))
        asked = _RANGE.fullmatch(byte_range or "")
        if not asked:
            return Response(200, content, headers)
        begin = int(asked[1])
        if begin >= len(content):
            return Response(416, b"", (("content-range", f"bytes */{len(content)}"),))
        span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return Response(206, content[begin:], (*headers, ("content-range", span)))


def _parse(path: str) -> _Wanted | None:
    match = _PATH.fullmatch(path)
    if not match or (match["span"] == "daily") != (len(match["date"]) == 10):
        return None
    kind, interval = match["kind"], (match["interval"] or "").replace("1mo", "1M")
    if match["what"] != (match["interval"] if kind == "klines" else kind) or (kind == "klines") != (
        interval in INTERVALS
    ):
        return None
    period = "1d" if match["span"] == "daily" else "1M"
    numbers = [int(part) for part in match["date"].split("-")]
    year, month, day = (*numbers, 1)[:3]
    start_ms = timegm((year, month, day, 0, 0, 0)) * 1_000
    if time.strftime("%Y-%m-%d", time.gmtime(start_ms // 1_000))[: len(match["date"])] != match["date"]:
        return None  # no such day
    return _Wanted(
        name=match["name"],
        kind=kind,  # type: ignore[arg-type]  # the pattern admits these three only
        symbol=match["symbol"],
        interval=interval,
        start_ms=start_ms,
        end_ms=bar_close_ms(period, bar_open_ms(period, start_ms)),
        is_checksum=bool(match["checksum"]),
    )


def _rows(history: History, wanted: _Wanted) -> Iterable[Sequence[object]] | None:
    """Return the rows of the period; None when its beginning was forgotten or never seen."""
    start_ms, end_ms = wanted.start_ms, wanted.end_ms
    if wanted.kind == "klines":
        bars = history.all_bars(wanted.interval)
        if not bars or bars[0].open_ms > start_ms:
            return None
        return [_bar_row(wanted.interval, bar) for bar in bars if start_ms <= bar.open_ms <= end_ms]
    if history.trades_since_ms > start_ms:
        return None
    if wanted.kind == "trades":
        return [_trade_row(fill) for fill in history.fills if start_ms <= fill.time_ms <= end_ms]
    found = history.aggregates(from_id=None, start_ms=start_ms, end_ms=end_ms, limit=LAST_MS)
    return [_aggregate_row(one) for one in found]


def _bar_row(interval: str, bar: Bar) -> Sequence[object]:
    after_ms = bar_close_ms(interval, bar.open_ms) + 1
    close = _time(after_ms) - 1 if after_ms > _MICROSECONDS_SINCE_MS else after_ms - 1
    prices = [text8(amount) for amount in (bar.open, bar.high, bar.low, bar.close, bar.volume)]
    taker = [text8(bar.taker), text8(bar.taker_quote)]
    return (_time(bar.open_ms), *prices, close, text8(bar.quote), bar.count, *taker, 0)


def _trade_row(fill: Fill) -> Sequence[object]:
    amounts = [text8(amount) for amount in (fill.price, fill.quantity, fill.quote)]
    return (fill.trade_id, *amounts, _time(fill.time_ms), fill.buyer_is_maker, True)


def _aggregate_row(one: Aggregate) -> Sequence[object]:
    ids = (one.first_id, one.last_id)
    return (one.aggregate_id, text8(one.price), text8(one.quantity), *ids, _time(one.time_ms), one.buyer_is_maker, True)


def _time(at_ms: int) -> int:
    return at_ms * 1_000 if at_ms >= _MICROSECONDS_SINCE_MS else at_ms


def _zip(wanted: _Wanted, rows: Iterable[Sequence[object]]) -> bytes:
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(f"{wanted.name}.csv"), text, zipfile.ZIP_DEFLATED)
    return packed.getvalue()
