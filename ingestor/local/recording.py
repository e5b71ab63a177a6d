"""A recording of the real venue, replayed as a market: recorded bytes in recorded order, and REST that fits them.

Playback waits until the recorded streams are subscribed, or, when no more subscriptions come, `settle_ms` after the
last one; so a client misses nothing at the head. The files stay with `open_recording`; `Recording` itself is pure.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from ingestor.core.claims import kline_ordinal, subscription_of
from ingestor.core.errors import IngestorError
from ingestor.local.history import Bar, Book, Fill, History, Message, units

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ingestor.core.model import Level

_BATCH_MESSAGES: Final = 2_000  # handed out at once when there is no pace
# What a broken line or snapshot raises: bad JSON or UTF-8, no number where one belongs, no interval of the venue.
_BROKEN: Final = (msgspec.MsgspecError, ValueError, KeyError, RecursionError)


class RecordingError(IngestorError):
    """The file is no recording of the venue's stream; the text says which line and why."""


class _Envelope(Struct):
    stream: str
    data: msgspec.Raw


class _Body(Struct, frozen=True, gc=False):
    """All that the event kinds of interest say, one shape for all of them."""

    e: str = ""
    E: int = 0
    s: str = ""
    t: int = 0
    p: str = "0"
    q: str = "0"
    T: int = 0
    m: bool = False
    U: int = 0
    u: int = 0
    b: list[tuple[str, str]] | str | int = 0
    a: list[tuple[str, str]] | str | int = 0
    k: msgspec.Raw = msgspec.Raw(b"null")


class _Candle(Struct):
    t: int
    i: str
    f: int
    L: int
    o: str
    c: str
    h: str
    l: str  # noqa: E741 - the venue's own key
    v: str
    n: int
    x: bool
    q: str
    V: str
    Q: str


class _Snapshot(Struct):
    lastUpdateId: int  # noqa: N815 - the venue's own key
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


class _Recorded(Struct, frozen=True, gc=False):
    message: Message
    symbol: str
    fill: Fill | None = None
    diff: tuple[list[Level], list[Level], int] | None = None
    bar: tuple[str, Bar] | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether it is of a kind that the service takes, so that playback waits for somebody to listen."""
        return bool(self.fill or self.diff or self.bar)


class Recording:
    """Recorded `lines` as a market; `snapshots` are raw REST depth bodies by symbol ("" for the only one there is).

    `speed` 1 plays at the recorded event times, 2 twice as fast, 0 as fast as the reader takes it. Lines that name no
    stream (a REST body among the messages) are left out and counted in `skipped_lines`. Raises RecordingError when
    nothing is left.
    """

    def __init__(
        self,
        lines: Iterable[bytes],
        *,
        snapshots: Mapping[str, bytes] | None = None,
        speed: float = 1.0,
        settle_ms: int = 1_500,
    ) -> None:
        self.skipped_lines = 0
        self.paced = speed > 0
        self._speed = speed
        self._settle_ms = settle_ms
        self._histories: dict[str, History] = {}
        self._recorded = self._read(lines)
        self._snapshots = {
            name: _snapshot(name, body)
            for name, body in ((symbol or self.symbols[0], body) for symbol, body in (snapshots or {}).items())
        }
        self._seeded: set[str] = set()
        self._position = 0
        self._origin_ms = self._recorded[0].message.at_ms
        self._now_ms = self._origin_ms
        self._unwatched = {one.message.stream for one in self._recorded if one.is_wanted}
        self._watched: set[str] = set()
        self._settled: tuple[int, int] | None = None  # how many streams were watched, and since when
        self._started_at_ms: int | None = None

    @property
    def symbols(self) -> tuple[str, ...]:
        """All symbols that were recorded, upper case."""
        return tuple(self._histories)

    @property
    def streams(self) -> tuple[str, ...]:
        """All streams that were recorded."""
        return tuple(dict.fromkeys(one.message.stream for one in self._recorded))

    @property
    def now_ms(self) -> int:
        """The venue's clock: the event time that playback has reached."""
        return self._now_ms

    @property
    def finished(self) -> bool:
        """Whether all of it was played."""
        return self._position == len(self._recorded)

    def watch(self, stream: str) -> None:
        """Play `stream` too; streams that nobody watches pass unseen."""
        self._watched.add(stream)
        self._unwatched.discard(stream)

    def history(self, symbol: str) -> History | None:
        """Return what was played of `symbol` so far, or None."""
        return self._histories.get(symbol)

    def depth(self, symbol: str, limit: int) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        """Return id, bids and asks: the recorded snapshot until the diffs pass it, then what they add up to."""
        book = self._histories[symbol].book
        snapshot = self._snapshots.get(symbol)
        if snapshot and book.update_id <= snapshot.lastUpdateId:
            book = Book()
            book.apply(snapshot.bids, snapshot.asks, snapshot.lastUpdateId)
        return (book.update_id, *book.top(limit))

    def advance(self, to_ms: int) -> list[Message]:
        """Play until the wall clock says `to_ms`; returns the messages of watched streams in recorded order."""
        if self._started_at_ms is None and not self._may_start(to_ms):
            return []
        end = self._end_of_turn(to_ms)
        turn = self._recorded[self._position : end]
        self._position = end
        for one in turn:
            self._remember(one)
        if turn:
            self._now_ms = max(self._now_ms, turn[-1].message.at_ms)
        return [one.message for one in turn if one.message.stream in self._watched]

    def _may_start(self, now_ms: int) -> bool:
        if not self._watched:
            return False
        if self._settled is None or self._settled[0] != len(self._watched):
            self._settled = len(self._watched), now_ms
        if self._unwatched and now_ms - self._settled[1] < self._settle_ms:
            return False
        self._started_at_ms = now_ms
        return True

    def _end_of_turn(self, now_ms: int) -> int:
        if not self.paced:
            return min(self._position + _BATCH_MESSAGES, len(self._recorded))
        started_at_ms = self._started_at_ms if self._started_at_ms is not None else now_ms
        until_ms = self._origin_ms + (now_ms - started_at_ms) * self._speed
        end = self._position
        while end < len(self._recorded) and self._recorded[end].message.at_ms <= until_ms:
            end += 1
        return end

    def _remember(self, one: _Recorded) -> None:
        history = self._histories[one.symbol]
        if one.fill:
            history.add_fill(one.fill)
        elif one.bar:
            history.add_bar(*one.bar)
        elif one.diff:
            self._apply(history, *one.diff)

    def _apply(self, history: History, bids: list[Level], asks: list[Level], update_id: int) -> None:
        snapshot = self._snapshots.get(history.symbol)
        if snapshot and update_id > snapshot.lastUpdateId and history.symbol not in self._seeded:
            history.book = Book()  # what earlier diffs said is in the snapshot, or gone
            history.book.apply(snapshot.bids, snapshot.asks, snapshot.lastUpdateId)
            self._seeded.add(history.symbol)
        history.book.apply(bids, asks, update_id)

    def _read(self, lines: Iterable[bytes]) -> list[_Recorded]:
        recorded: list[_Recorded] = []
        at_ms = 0
        for number, line in enumerate(lines, 1):
            try:
                stream, payload, body = _parse(line.strip())
                if not stream or not body.s:
                    self.skipped_lines += 1
                    continue
                at_ms = max(at_ms, _ms(body.E))  # some events carry no time, and across streams it goes back (facts §4)
                one = _recorded(stream, payload, body, at_ms)
            except _BROKEN as error:
                raise RecordingError(f"line {number} is no message of the venue: {error}") from error
            history = self._histories.setdefault(body.s, History(body.s))
            if one.diff and not history.book.update_id:
                history.book.update_id = one.message.first - 1  # an empty book that the first diff continues
            recorded.append(one)
        if not recorded:
            raise RecordingError("the recording holds no message of the venue's streams")
        return recorded


def open_recording(path: Path, *, speed: float = 1.0) -> Recording:
    """Load the recording `path` (`.jsonl` or `.jsonl.gz`) and the `depth_snapshot*.json[.gz]` beside it.

    A snapshot named after a symbol is that symbol's; one without a name belongs to a recording of a single symbol.
    Raises RecordingError.
    """
    try:
        snapshots = {
            file.name.removeprefix("depth_snapshot").split(".")[0].lstrip("_"): _content(file)
            for file in sorted(path.parent.glob("depth_snapshot*.json*"))
            if not file.name.endswith(".meta.json")
        }
        lines = _content(path).splitlines()
    except (OSError, EOFError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error
    return Recording(lines, snapshots=snapshots, speed=speed)


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode
_decode_body: Final = msgspec.json.Decoder(_Body).decode


def _parse(line: bytes) -> tuple[str, bytes, _Body]:
    """Return stream, bare payload and content of one line; an empty stream where none can be told."""
    if not line.startswith(b'{"stream"'):
        body = _decode_body(line)
        return _stream_of(body), line, body
    envelope = _decode_envelope(line)
    payload = bytes(envelope.data)
    body = _decode_body(payload) if payload.startswith(b"{") else _Body()
    return envelope.stream, payload, body


def _snapshot(symbol: str, body: bytes) -> _Snapshot:
    try:
        snapshot = msgspec.json.decode(body, type=_Snapshot)
        Book().apply(snapshot.bids, snapshot.asks, snapshot.lastUpdateId)
    except _BROKEN as error:
        raise RecordingError(f"the snapshot of {symbol} is none: {error}") from error
    return snapshot


def _stream_of(body: _Body) -> str:
    """Name the stream of a raw message by its content."""
    name = body.s.lower()
    if body.e == "kline":
        return f"{name}@kline_{msgspec.json.decode(body.k, type=_Candle).i}"
    suffixes = {"trade": "trade", "aggTrade": "aggTrade", "depthUpdate": "depth@100ms"}
    suffix = suffixes.get(body.e, "bookTicker" if body.u and not body.e else "")
    return f"{name}@{suffix}" if suffix else ""


def _ms(at: int) -> int:
    return at // 1_000 if at >= 10**15 else at  # recorded with timeUnit=MICROSECOND (facts §9)


def _recorded(stream: str, payload: bytes, body: _Body, at_ms: int) -> _Recorded:
    symbol = body.s
    if body.e == "trade":
        fill = Fill(body.t, units(body.p), units(body.q), _ms(body.T), body.m, body.t)
        message = Message(stream, payload, at_ms, subscription_of(symbol, "trade"), body.t, body.t)
        return _Recorded(message, symbol, fill=fill)
    if body.e == "depthUpdate" and isinstance(body.b, list) and isinstance(body.a, list):
        Book().apply(body.b, body.a, body.u)  # a level that is none is told now, and not when its turn comes
        message = Message(stream, payload, at_ms, subscription_of(symbol, "depth"), body.U, body.u)
        return _Recorded(message, symbol, diff=(body.b, body.a, body.u))
    if body.e == "kline":
        candle = msgspec.json.decode(body.k, type=_Candle)
        kept = (candle.i, _bar(candle))
        if not candle.x:
            return _Recorded(Message(stream, payload, at_ms), symbol, bar=kept)
        ordinal = kline_ordinal(candle.i, candle.t)
        subscription = subscription_of(symbol, f"kline_{candle.i}")
        return _Recorded(Message(stream, payload, at_ms, subscription, ordinal, ordinal), symbol, bar=kept)
    return _Recorded(Message(stream, payload, at_ms), symbol)


def _bar(candle: _Candle) -> Bar:
    return Bar(
        open_ms=candle.t,
        open=units(candle.o),
        high=units(candle.h),
        low=units(candle.l),
        close=units(candle.c),
        volume=units(candle.v),
        quote=units(candle.q),
        taker=units(candle.V),
        taker_quote=units(candle.Q),
        count=candle.n,
        first_id=candle.f,
        last_id=candle.L,
    )
