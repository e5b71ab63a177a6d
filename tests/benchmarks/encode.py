"""Part (b): encoding. CPU time per record of the compiled encoder and of fastavro, for the same records.

Ours encodes as it does on the line, what one read brought at a time. fastavro is measured twice: as one would write it,
with a Decimal made of every text, and in its best case, with dicts made beforehand whose decimals are bytes already, so
that nothing but its writer is timed.
"""

from __future__ import annotations

import io
import json
import time
from decimal import Decimal
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

import fastavro

from ingestor.core.binance import DepthEvent, TradeEvent, decode_message, depth_record, kline_record, trade_record
from ingestor.resources import read_schema
from ingestor.serializer import SINGLE_OBJECT, Serializer
from tests.benchmarks.feed import SYMBOLS, Stream, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingestor.core.model import MarketData

RECORDS = 2_000
ROUNDS = 7
READ = 50  # records of one read: a tenth of a full one
Way: TypeAlias = "tuple[Callable[[Sequence[Any]], object], Sequence[Any]]"
MIX = ("trade", "depth", "kline")
NAMES = {"trade": "trade", "depth": "depth@100ms", "kline": "kline_1m"}


def records_of(kinds: Sequence[str]) -> list[MarketData]:
    """Return records for all rounds, as the line makes them out of messages of the feed."""
    names = [f"{symbol.lower()}@{NAMES[kind]}" for kind in kinds for symbol in SYMBOLS[:20]]
    streams = [Stream(name, seed) for seed, name in enumerate(names)]
    turns = in_turn(streams) if len(kinds) > 1 else cycle(streams)
    now_ms = time.time_ns() // 1_000_000
    return [record_of(stream.message(now_ms), now_ms * 1000) for stream in islice(turns, RECORDS * ROUNDS)]


def record_of(message: bytes, received_us: int) -> MarketData:
    """Return the record of one message."""
    event = decode_message(message).data
    if isinstance(event, TradeEvent):
        return trade_record(event.symbol, event, received_us)
    if isinstance(event, DepthEvent):
        return depth_record(event.symbol, event, received_us, event.bids[0][0], event.asks[0][0])
    return kline_record(event.symbol, event, received_us)


def fields_of(record: MarketData, decimal: Callable[[str], Any]) -> dict[str, Any]:
    """Return what fastavro wants: dicts, with every decimal made by `decimal`."""
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    for name in ("price", "volume", "bid_price", "ask_price"):
        if fields[name] is not None:
            fields[name] = decimal(fields[name])
    if record.trade is not None:
        fields["trade"] = {"trade_id": record.trade.trade_id, "buyer_is_maker": record.trade.buyer_is_maker}
    if record.depth is not None:
        sides = {side: getattr(record.depth, side) for side in ("bids", "asks")}
        fields["depth"] = {name: getattr(record.depth, name) for name in record.depth.__struct_fields__} | {
            side: [{"price": decimal(price), "quantity": decimal(quantity)} for price, quantity in levels]
            for side, levels in sides.items()
        }
    if record.kline is not None:
        bar = {name: getattr(record.kline, name) for name in record.kline.__struct_fields__}
        texts = ("open", "high", "low", "close", "volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")
        fields["kline"] = bar | {name: decimal(bar[name]) for name in texts}
    return fields


def unscaled_bytes(text: str) -> bytes:
    """Return the bytes of a decimal of scale 8, as short as they can be."""
    number = int(Decimal(text).scaleb(8))
    return number.to_bytes(number.bit_length() // 8 + 1, signed=True)


def without_logical_types(schema: Any) -> Any:
    """Return the schema with plain bytes in the place of decimals."""
    if isinstance(schema, list):
        return [without_logical_types(each) for each in schema]
    if isinstance(schema, dict):
        return {name: without_logical_types(each) for name, each in schema.items() if name != "logicalType"}
    return schema


def write(schema: Any, fields: dict[str, Any]) -> bytes:
    """Encode with fastavro."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, fields)
    return out.getvalue()


def write_all(schema: Any, records: Sequence[dict[str, Any]]) -> list[bytes]:
    """Encode what is ready for it with fastavro."""
    return [write(schema, fields) for fields in records]


def make_and_write_all(schema: Any, records: Sequence[MarketData]) -> list[bytes]:
    """Encode our records with fastavro."""
    return [write(schema, fields_of(record, Decimal)) for record in records]


def measure() -> dict[str, dict[str, float]]:
    """Return CPU microseconds per record: by kind of record, then by way."""
    text = read_schema("market_data")
    with_decimals = fastavro.parse_schema(json.loads(text), named_schemas={})
    with_bytes = fastavro.parse_schema(without_logical_types(json.loads(text)), named_schemas={})
    results = {}
    for name, kinds in {**{kind: (kind,) for kind in MIX}, "market mix": MIX}.items():
        records = records_of(kinds)
        prepared = [fields_of(record, unscaled_bytes) for record in records]
        encoded, _ = Serializer()._encoder.encode_all(records)
        assert [each[len(SINGLE_OBJECT) + 8 :] for each in encoded] == write_all(with_bytes, prepared)
        results[name] = median_cpu_us(
            {
                "compiled encoder (ours)": (Serializer()._encoder.encode_all, records),
                "fastavro, ready-made bytes": (partial(write_all, with_bytes), prepared),
                "fastavro, Decimal": (partial(make_and_write_all, with_decimals), records),
            }
        )
    return results


def median_cpu_us(ways: dict[str, Way]) -> dict[str, float]:
    """Run the ways in turn, every round on records not seen before; return CPU microseconds per record."""
    cpu_us: dict[str, list[float]] = {name: [] for name in ways}
    for first in range(0, RECORDS * ROUNDS, RECORDS):
        for name, (function, items) in ways.items():
            started_s = time.process_time()
            for start in range(first, first + RECORDS, READ):
                function(items[start : start + READ])
            cpu_us[name].append((time.process_time() - started_s) / RECORDS * 1e6)
    return {name: median(rounds) for name, rounds in cpu_us.items()}
