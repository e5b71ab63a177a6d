"""The venue's wire shapes and what they mean to us: bytes become typed events, events become records.

`decode_message` is one typed decode and refuses with one of `REFUSALS`; `classify` then says what the refused message
was: a control message, or poison. The `*_record` functions are total: every event of a shape has a record. Shapes are
those of facts/binance.md §3, §4, §7; fields we do not use, and fields that will be added, are skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from ingestor.core.model import DeadLetter, DecimalText, Depth, Kline, Level, MarketData, PoisonReason, Trade
from ingestor.core.wording import shortened

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestor.core.model import Claim, Subscription

Row = TypeVar("Row")

REFUSALS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that a decode raises for bad bytes: msgspec 0.22 lets invalid UTF-8 and deep nesting out as Python's errors."""

LONGEST_SYMBOL = 50
"""Characters that the venue's symbols have at most; a longer one names nothing."""

MICROSECONDS_FROM = 10**15
"""A venue time from here on is in microseconds, below it in milliseconds (facts/binance.md §9)."""

Natural: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""An id, a time or a count. The bound costs nothing, and keeps a number that no schema can hold out of the ledgers."""

NaturalOrNone: TypeAlias = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
"""A trade id, or the venue's -1 where there was no trade."""


# --- events of the WebSocket streams ----------------------------------------------------------------------------------


class TradeEvent(
    Struct,
    frozen=True,
    gc=False,
    tag_field="e",
    tag="trade",
    rename={"symbol": "s", "trade_id": "t", "price": "p", "quantity": "q", "trade_time": "T", "buyer_is_maker": "m"},
):
    """`<symbol>@trade`: one trade."""

    symbol: str
    trade_id: Natural
    price: DecimalText
    quantity: DecimalText
    trade_time: Natural
    buyer_is_maker: bool


class DepthEvent(
    Struct,
    frozen=True,
    tag_field="e",
    tag="depthUpdate",
    rename={
        "event_time": "E",
        "symbol": "s",
        "first_update_id": "U",
        "final_update_id": "u",
        "bids": "b",
        "asks": "a",
    },
):
    """`<symbol>@depth@100ms`: levels that changed between two update ids, quantities absolute."""

    event_time: Natural
    symbol: str
    first_update_id: Natural
    final_update_id: Natural
    bids: list[Level]
    asks: list[Level]


class Bar(
    Struct,
    frozen=True,
    gc=False,
    rename={
        "open_time": "t",
        "close_time": "T",
        "interval": "i",
        "first_trade_id": "f",
        "last_trade_id": "L",
        "open": "o",
        "close": "c",
        "high": "h",
        "low": "l",
        "volume": "v",
        "trade_count": "n",
        "closed": "x",
        "quote_volume": "q",
        "taker_buy_volume": "V",
        "taker_buy_quote_volume": "Q",
    },
):
    """The inner object of a kline event; both trade ids are -1 while the bar has no trade."""

    open_time: Natural
    close_time: Natural
    interval: str
    first_trade_id: NaturalOrNone
    last_trade_id: NaturalOrNone
    open: DecimalText
    close: DecimalText
    high: DecimalText
    low: DecimalText
    volume: DecimalText
    trade_count: Natural
    closed: bool
    quote_volume: DecimalText
    taker_buy_volume: DecimalText
    taker_buy_quote_volume: DecimalText


class KlineEvent(
    Struct,
    frozen=True,
    gc=False,
    tag_field="e",
    tag="kline",
    rename={"event_time": "E", "symbol": "s", "bar": "k"},
):
    """`<symbol>@kline_<interval>`: the state of one bar."""

    event_time: Natural
    symbol: str
    bar: Bar


Event: TypeAlias = TradeEvent | DepthEvent | KlineEvent


class Combined(Struct, frozen=True, gc=False):
    """A message of a combined connection: the event, wrapped with the name of its stream."""

    stream: str
    data: Event


decode_message: Callable[[bytes], Combined] = msgspec.json.Decoder(Combined).decode
"""Read one message of a combined connection (`/stream`); raises one of `REFUSALS`."""

decode_payload: Callable[[bytes], Event] = msgspec.json.Decoder(Event).decode
"""Read one message of a raw connection (`/ws/...`), which comes without the wrapper; raises one of `REFUSALS`."""


# --- everything else that a connection says ---------------------------------------------------------------------------


class Ack(Struct, frozen=True):
    """The venue read request `id`; that proves its syntax and nothing else (facts/binance.md §3)."""

    id: int | str | None


class StreamError(Struct, frozen=True):
    """The venue refused a request; `id` is None when it did not say which."""

    code: int
    text: str
    id: int | str | None = None


class ServerShutdown(Struct, frozen=True):
    """This server is about to go away; the answer is a new connection at once (facts/binance.md §2)."""


class Poison(Struct, frozen=True):
    """A message that says nothing we can use; it belongs to the dead letter."""

    reason: PoisonReason
    detail: str
    symbol: str | None = None


Control: TypeAlias = Ack | StreamError | ServerShutdown

_EVENT_TAGS = frozenset({"trade", "depthUpdate", "kline"})


def classify(message: bytes) -> Control | Poison:
    """Say what a message is that `decode_message` refused; never raises, whatever the bytes."""
    try:
        fields = msgspec.json.decode(message)
    except REFUSALS as error:
        return Poison("invalid_json", shortened(str(error)))
    if not isinstance(fields, dict):
        return Poison("unexpected_shape", f"a message is an object, not {type(fields).__name__}")
    return _control(fields) or _poison(message, fields)


def _control(fields: dict[str, Any]) -> Control | None:
    request = fields.get("id")
    request_id = request if isinstance(request, int | str) else None
    error = fields.get("error", fields)  # the server nests what the documentation shows flat
    if isinstance(error, dict) and isinstance(error.get("code"), int):
        text = error.get("msg", "")
        return StreamError(error["code"], shortened(text) if isinstance(text, str) else "", request_id)
    if "result" in fields:
        return Ack(request_id)
    if _payload(fields).get("e") == "serverShutdown":
        return ServerShutdown()
    return None


def _poison(message: bytes, fields: dict[str, Any]) -> Poison:
    payload = _payload(fields)
    symbol = payload.get("s")
    tag = payload.get("e")
    if tag in _EVENT_TAGS if isinstance(tag, str) else not _is_foreign(fields.get("stream")):
        reason, detail = _what_is_wrong(message)
    else:
        reason, detail = "unknown_event", f"event {_named(tag)} of stream {_named(fields.get('stream'))}"
    is_symbol = isinstance(symbol, str) and len(symbol) <= LONGEST_SYMBOL
    return Poison(reason, shortened(detail), symbol if is_symbol else None)


def _named(name: object) -> str:
    """Write a name, or what stands in its place: written out, something deep would exhaust the stack."""
    return repr(name) if isinstance(name, str) or name is None else f"a {type(name).__name__}"


def _payload(fields: dict[str, Any]) -> dict[str, Any]:
    data = fields.get("data", fields)
    return data if isinstance(data, dict) else {}


def _is_foreign(stream: object) -> bool:
    """Whether the stream's name tells that it is none of ours; book tickers and partial books have no event type."""
    kind = stream.partition("@")[2] if isinstance(stream, str) else ""
    return isinstance(stream, str) and kind not in {"trade", "depth", "depth@100ms"} and not kind.startswith("kline_")


def _what_is_wrong(message: bytes) -> tuple[PoisonReason, str]:
    try:
        decode_message(message)
    except REFUSALS as error:
        return "unexpected_shape", str(error)
    return "unexpected_shape", "a message that was refused, and then was not"


# --- answers of the REST endpoints ------------------------------------------------------------------------------------


class RestTrade(
    Struct, frozen=True, gc=False, rename={"trade_id": "id", "quantity": "qty", "buyer_is_maker": "isBuyerMaker"}
):
    """A row of /api/v3/trades and /api/v3/historicalTrades."""

    trade_id: Natural
    price: DecimalText
    quantity: DecimalText
    time: Natural
    buyer_is_maker: bool


class RestAggTrade(
    Struct,
    frozen=True,
    gc=False,
    rename={
        "aggregate_id": "a",
        "price": "p",
        "quantity": "q",
        "first_trade_id": "f",
        "last_trade_id": "l",
        "time": "T",
        "buyer_is_maker": "m",
    },
):
    """A row of /api/v3/aggTrades; maps a time to trade ids. Invalidated rows have -1 for both (facts/binance.md §7)."""

    aggregate_id: Natural
    price: DecimalText
    quantity: DecimalText
    first_trade_id: NaturalOrNone
    last_trade_id: NaturalOrNone
    time: Natural
    buyer_is_maker: bool


class RestKline(Struct, frozen=True, gc=False, array_like=True):
    """A row of /api/v3/klines, by position (open, high, low, close); the newest one is usually unfinished."""

    open_time: Natural
    open: DecimalText
    high: DecimalText
    low: DecimalText
    close: DecimalText
    volume: DecimalText
    close_time: Natural
    quote_volume: DecimalText
    trade_count: Natural
    taker_buy_volume: DecimalText
    taker_buy_quote_volume: DecimalText


class DepthSnapshot(Struct, frozen=True, rename={"last_update_id": "lastUpdateId"}):
    """The answer of /api/v3/depth: best price first on both sides; no symbol, no time."""

    last_update_id: Natural
    bids: list[Level]
    asks: list[Level]


class SymbolInfo(Struct, frozen=True, gc=False):
    """What exchangeInfo says of one symbol; only status `TRADING` has events."""

    symbol: str
    status: str
    quote_asset: str = msgspec.field(default="", name="quoteAsset")


class RateLimit(
    Struct,
    frozen=True,
    gc=False,
    rename={"kind": "rateLimitType", "interval_count": "intervalNum"},
):
    """One limit of exchangeInfo: `limit` of `kind` in `interval_count` times `interval` (SECOND, MINUTE, DAY)."""

    kind: str
    interval: str
    interval_count: int
    limit: int


class ExchangeInfo(Struct, frozen=True, rename={"rate_limits": "rateLimits"}):
    """The answer of /api/v3/exchangeInfo."""

    symbols: list[SymbolInfo]
    rate_limits: list[RateLimit] = []


class ServerTime(Struct, frozen=True, rename={"server_time": "serverTime"}):
    """The answer of /api/v3/time."""

    server_time: Natural


class Ticker(Struct, frozen=True, gc=False, rename={"last_trade_id": "lastId", "close_ms": "closeTime"}):
    """A row of /api/v3/ticker/24hr up to `close_ms`; `last_trade_id` is -1 when nothing was traded for a day."""

    symbol: str
    last_trade_id: NaturalOrNone
    close_ms: Natural = 0


class VenueRefusal(Struct, frozen=True, rename={"text": "msg"}):
    """The body of a refused REST request; codes are stable, texts are not."""

    code: int
    text: str = ""


def readable_rows(
    body: bytes, decode: Callable[[bytes], list[Row]], on_unreadable: Callable[[list[bytes]], None]
) -> list[Row]:
    """Read a page of which single rows may be poison, which `on_unreadable` is told; raises one of `REFUSALS`.

    Several rows of which none can be read are no poison: the venue, or what stands between, speaks another language.
    """
    try:
        return decode(body)
    except REFUSALS:
        raws = _decode_raws(body)
    rows: list[Row] = []
    unreadable: list[bytes] = []
    for raw in map(bytes, raws):
        try:
            rows += decode(b"[%b]" % raw)
        except REFUSALS:
            unreadable.append(raw)
    if not rows and len(unreadable) > 1:
        return decode(body)
    on_unreadable(unreadable)
    return rows


def unreadable_row(raw: bytes, at_ms: int, subscription: Subscription, claim: Claim | None) -> DeadLetter:
    """Make the letter of a row that cannot be read; `claim` is the id that it stands for, if that is known."""
    return DeadLetter(
        reason="unexpected_shape",
        detail="a row of REST that cannot be read",
        raw=raw,
        at_ms=at_ms,
        symbol=subscription.symbol,
        event_type="trade" if subscription.kind == "trade" else "kline",
        claim=claim,
    )


def number_in(row: bytes) -> int | None:
    """Return the id of a trade's row, or the open time of a bar's, although the row as a whole cannot be read."""
    try:
        fields = msgspec.json.decode(row)
    except REFUSALS:
        return None
    number = (
        fields.get("id") if isinstance(fields, dict) else fields[0] if isinstance(fields, list) and fields else None
    )
    return number if type(number) is int else None


_decode_raws: Callable[[bytes], list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw]).decode
decode_trades: Callable[[bytes], list[RestTrade]] = msgspec.json.Decoder(list[RestTrade]).decode
decode_agg_trades: Callable[[bytes], list[RestAggTrade]] = msgspec.json.Decoder(list[RestAggTrade]).decode
decode_klines: Callable[[bytes], list[RestKline]] = msgspec.json.Decoder(list[RestKline]).decode
decode_depth: Callable[[bytes], DepthSnapshot] = msgspec.json.Decoder(DepthSnapshot).decode
decode_exchange_info: Callable[[bytes], ExchangeInfo] = msgspec.json.Decoder(ExchangeInfo).decode
decode_server_time: Callable[[bytes], ServerTime] = msgspec.json.Decoder(ServerTime).decode
decode_tickers: Callable[[bytes], list[Ticker]] = msgspec.json.Decoder(list[Ticker]).decode
decode_refusal: Callable[[bytes], VenueRefusal] = msgspec.json.Decoder(VenueRefusal).decode


# --- events to records ------------------------------------------------------------------------------------------------
# Records are built by position, and `milliseconds` is written out where trades are made: a keyword or a call costs a
# twentieth of a microsecond and more, and these lines run for every message, those of files for millions of rows. The
# symbol is given: one object that all records share is looked up faster, everywhere below, than the text of each event.


def milliseconds(venue_time: int) -> int:
    """Return a venue time in milliseconds, whichever of its two units it came in."""
    return venue_time // 1000 if venue_time >= MICROSECONDS_FROM else venue_time


def trade_record(symbol: str, event: TradeEvent, received_us: int) -> MarketData:
    """Make the record of a live trade."""
    trade_id, time = event.trade_id, event.trade_time
    return MarketData(
        symbol,
        time // 1000 if time >= MICROSECONDS_FROM else time,  # `milliseconds`
        event.price,
        event.quantity,
        None,
        None,
        "websocket",
        "trade",
        trade_id,
        received_us,
        Trade(trade_id, event.buyer_is_maker),
    )


def depth_record(
    symbol: str, event: DepthEvent, received_us: int, bid: DecimalText | None, ask: DecimalText | None
) -> MarketData:
    """Make the record of an order book change; `bid`, `ask`: best of the synchronised book after it, or None."""
    final_id = event.final_update_id
    return MarketData(
        symbol,
        milliseconds(event.event_time),
        None,
        None,
        bid,
        ask,
        "websocket",
        "depth",
        final_id,
        received_us,
        None,
        Depth(event.first_update_id, final_id, False, event.bids, event.asks),
    )


def kline_record(symbol: str, event: KlineEvent, received_us: int) -> MarketData:
    """Make the record of a live bar, closed or interim."""
    bar = event.bar
    open_ms = milliseconds(bar.open_time)
    return MarketData(
        symbol,
        milliseconds(event.event_time),
        bar.close,
        bar.volume,
        None,
        None,
        "websocket",
        "kline",
        open_ms,
        received_us,
        None,
        None,
        Kline(
            bar.interval,
            open_ms,
            milliseconds(bar.close_time),
            bar.open,
            bar.high,
            bar.low,
            bar.close,
            bar.volume,
            bar.quote_volume,
            bar.trade_count,
            bar.taker_buy_volume,
            bar.taker_buy_quote_volume,
            _id_or_none(bar.first_trade_id),
            _id_or_none(bar.last_trade_id),
            bar.closed,
        ),
    )


def snapshot_record(
    symbol: str, snapshot: DepthSnapshot, received_us: int, bid: DecimalText | None, ask: DecimalText | None
) -> MarketData:
    """Make the record of a whole order book; the venue gives no time with it, so its time is when it was received."""
    last_id = snapshot.last_update_id
    return MarketData(
        symbol=symbol,
        timestamp=received_us // 1000,
        price=None,
        volume=None,
        bid_price=bid,
        ask_price=ask,
        source="rest",
        event_type="depth",
        sequence=last_id,
        received_at=received_us,
        depth=Depth(last_id, last_id, snapshot=True, bids=snapshot.bids, asks=snapshot.asks),
    )


class TradeRow(Protocol):
    """What a fetched trade says, wherever it was fetched from."""

    @property
    def trade_id(self) -> int:
        """Its number."""
        ...

    @property
    def price(self) -> DecimalText:
        """What was paid for one."""
        ...

    @property
    def quantity(self) -> DecimalText:
        """How many."""
        ...

    @property
    def time(self) -> int:
        """When, in either of the venue's units."""
        ...

    @property
    def buyer_is_maker(self) -> bool:
        """Whether the seller came later."""
        ...


def rest_trade_record(symbol: str, row: TradeRow, received_us: int) -> MarketData:
    """Make the record of a trade that was fetched; equal to the live one but for its source and times of receipt."""
    trade_id, time = row.trade_id, row.time
    return MarketData(
        symbol,
        time // 1000 if time >= MICROSECONDS_FROM else time,  # `milliseconds`
        row.price,
        row.quantity,
        None,
        None,
        "rest",
        "trade",
        trade_id,
        received_us,
        Trade(trade_id, row.buyer_is_maker),
    )


def rest_kline_record(symbol: str, interval: str, row: RestKline, received_us: int, *, closed: bool) -> MarketData:
    """Make the record of a fetched bar; only the caller knows whether it is over (close time < the server's time)."""
    open_ms = milliseconds(row.open_time)
    close_ms = milliseconds(row.close_time)
    return MarketData(
        symbol=symbol,
        timestamp=close_ms,
        price=row.close,
        volume=row.volume,
        bid_price=None,
        ask_price=None,
        source="rest",
        event_type="kline",
        sequence=open_ms,
        received_at=received_us,
        kline=Kline(
            interval=interval,
            open_time=open_ms,
            close_time=close_ms,
            open=row.open,
            high=row.high,
            low=row.low,
            close=row.close,
            volume=row.volume,
            quote_volume=row.quote_volume,
            trade_count=row.trade_count,
            taker_buy_volume=row.taker_buy_volume,
            taker_buy_quote_volume=row.taker_buy_quote_volume,
            first_trade_id=None,
            last_trade_id=None,
            closed=closed,
        ),
    )


def _id_or_none(trade_id: int) -> int | None:
    return None if trade_id < 0 else trade_id
