"""What travels along the line: the record, its encoded form, the batches of both, and what is said about loss.

Decimals travel as the venue's own text (`"61837.64000000"`), from the wire to the encoder: they never pass through a
binary float, and no `Decimal` object is made on the hot path. Absent is `None`, never zero. The order of fields is
that of `schemas/avro/market_data.avsc`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

DecimalText: TypeAlias = str
Level: TypeAlias = tuple[DecimalText, DecimalText]  # price, quantity (absolute; zero removes the level)
Source: TypeAlias = Literal["websocket", "rest", "unknown"]
EventType: TypeAlias = Literal["trade", "depth", "kline", "hole", "unknown"]

HoleReason: TypeAlias = Literal[
    "disconnected", "venue_forgot", "venue_has_none", "repair_limit", "poison", "id_restart", "first_start"
]
PoisonReason: TypeAlias = Literal[
    "invalid_json",
    "unexpected_shape",
    "unknown_event",
    "unknown_subscription",
    "encoding",
    "too_large",
    "rejected",
    "gave_up",
]


class Subscription(NamedTuple):
    """One (symbol, kind); `kind` is `trade`, `depth` or `kline_<interval>`, `symbol` is upper case."""

    symbol: str
    kind: str

    @property
    def stream_name(self) -> str:
        """The venue's name for it, such as `btcusdt@trade`, `btcusdt@depth@100ms` or `btcusdt@kline_1m`."""
        suffix = "depth@100ms" if self.kind == "depth" else self.kind
        return f"{self.symbol.lower()}@{suffix}"


class Trade(Struct, frozen=True, gc=False):
    """What only a trade says."""

    trade_id: int
    buyer_is_maker: bool


class Depth(Struct, frozen=True):
    """A change of the order book, or (snapshot) all of it, best price first as the venue sends it."""

    first_update_id: int
    final_update_id: int
    snapshot: bool
    bids: list[Level]
    asks: list[Level]


class Kline(Struct, frozen=True, gc=False):
    """A bar; times in milliseconds. `first_trade_id` and `last_trade_id` are None without trades and over REST."""

    interval: str
    open_time: int
    close_time: int
    open: DecimalText
    high: DecimalText
    low: DecimalText
    close: DecimalText
    volume: DecimalText
    quote_volume: DecimalText
    trade_count: int
    taker_buy_volume: DecimalText
    taker_buy_quote_volume: DecimalText
    first_trade_id: int | None
    last_trade_id: int | None
    closed: bool


class Hole(Struct, frozen=True, gc=False):
    """Ids `first` to `last` (inclusive) of subscription kind `stream` that this task did not deliver, and why."""

    stream: str
    first: int
    last: int
    reason: HoleReason
    detected_ms: int


class MarketData(Struct):
    """The one record of the service; architecture.md §4 says what each event type puts where."""

    symbol: str
    timestamp: int  # ms since the epoch, the venue's clock
    price: DecimalText | None
    volume: DecimalText | None
    bid_price: DecimalText | None
    ask_price: DecimalText | None
    source: Source
    event_type: EventType
    sequence: int
    received_at: int  # microseconds since the epoch, our clock
    trade: Trade | None = None
    depth: Depth | None = None
    kline: Kline | None = None
    hole: Hole | None = None


class RecordBatch(Struct, frozen=True):
    """Records that arrived together, each beside the raw message it came from; one receive time, one channel hop.

    `received_s` is the monotonic clock when the bytes arrived; `size_bytes` is what the batch counts for in a
    bounded channel.
    """

    records: list[MarketData]
    raws: list[bytes]
    received_s: float
    size_bytes: int


class Claim(Struct, frozen=True, gc=False, order=True, array_like=True):
    """Ids `first` to `last` (inclusive) of a subscription that a record stands for (completeness.md §1)."""

    subscription: Subscription
    first: int
    last: int


class EncodedRecord(Struct, frozen=True, gc=False):
    """Avro single-object bytes, the key they go under, and what their acknowledgement proves (None: nothing)."""

    partition_key: str
    data: bytes
    claim: Claim | None


class EncodedBatch(Struct, frozen=True):
    """Encoded records that were received together."""

    records: list[EncodedRecord]
    received_s: float
    size_bytes: int


class Gap(NamedTuple):
    """Ids `first` to `last` (inclusive) that were not seen live."""

    subscription: Subscription
    first: int
    last: int
    detected_ms: int


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A message or record that is given up, with all that is needed to look into it or send it again."""

    reason: PoisonReason
    detail: str
    raw: bytes
    at_ms: int
    symbol: str | None = None
    event_type: EventType | None = None
    partition_key: str | None = None
    claim: Claim | None = None
    attempts: int = 0
    may_have_landed: bool = False


class PutEntry(NamedTuple):
    """One entry of a PutRecords call; `explicit_hash_key` (decimal text of 128 bits) overrides the hash of the key."""

    data: bytes
    partition_key: str
    explicit_hash_key: str | None


class EntryFailure(NamedTuple):
    """Why Kinesis refused one entry of a call that it otherwise answered."""

    code: str
    text: str


EntryResult: TypeAlias = EntryFailure | str | None  # refused, or accepted by the shard of that id (None: not told)
