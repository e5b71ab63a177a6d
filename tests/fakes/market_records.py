"""Any record of the model, for property tests, and the same record as fastavro wants it."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from typing import Any, get_args

import fastavro
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from msgspec import structs

from ingestor.core.model import Depth, EventType, Hole, HoleReason, Kline, MarketData, Source, Trade
from ingestor.resources import read_schema

MARKET_DATA: dict[str, Any] = json.loads(read_schema("market_data"))
LARGEST = 10**38 - 1
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine proves nothing


def decimal_text(unscaled: int, padding: str = "") -> str:
    """Return `unscaled` * 10**-8 as text with 8 decimals and `padding` behind them."""
    digits = f"{abs(unscaled):09d}"
    return f"{'-' if unscaled < 0 else ''}{digits[:-8]}.{digits[-8:]}{padding}"


def canonical(text: str | None) -> str | None:
    """Return a decimal as decoding gives it back: all 8 places and no more, no negative zero."""
    if text is None:
        return None
    whole, _, fraction = text.partition(".")
    exact = f"{'-' if whole.startswith('-') else ''}{int(whole.lstrip('-'))}.{fraction.ljust(8, '0')[:8]}"
    return exact if exact.strip("-0.") else "0.00000000"


longs = st.integers(-(2**63), 2**63 - 1)
unscaled = st.integers(-LARGEST, LARGEST) | st.integers(-300, 300) | st.integers(0, 10**14)
padded = st.builds(decimal_text, unscaled, st.sampled_from(["", "", "0", "000"]))
bare = st.integers(-(10**30) + 1, 10**30 - 1).map(str) | st.just("-0") | st.just("007.5")
decimals = padded | bare
levels = st.lists(st.tuples(decimals, decimals), max_size=4)
trades = st.builds(Trade, longs, st.booleans())
depths = st.builds(Depth, longs, longs, st.booleans(), levels, levels)
klines = st.builds(
    Kline,
    st.text(max_size=5),
    longs,
    longs,
    *[decimals] * 6,
    longs,
    decimals,
    decimals,
    st.none() | longs,
    st.none() | longs,
    st.booleans(),
)
holes = st.builds(Hole, st.text(max_size=5), longs, longs, st.sampled_from(get_args(HoleReason)), longs)
records = st.builds(
    MarketData,
    st.text(max_size=12),
    longs,
    *[st.none() | decimals] * 4,
    st.sampled_from(get_args(Source)),
    st.sampled_from(get_args(EventType)),
    longs,
    longs,
    st.none() | trades,
    st.none() | depths,
    st.none() | klines,
    st.none() | holes,
)

_DECIMAL_NAMES = {"price", "volume", "bid_price", "ask_price", "quantity", "open", "high", "low", "close"}
_DECIMAL_NAMES |= {"quote_volume", "taker_buy_volume", "taker_buy_quote_volume"}


def plain(value: Any) -> Any:
    """Return a record as the dictionaries and Decimals that fastavro takes."""
    if isinstance(value, list):
        return [{"price": _decimal(price), "quantity": _decimal(quantity)} for price, quantity in value]
    if not hasattr(value, "__struct_fields__"):
        return value
    fields = structs.asdict(value)
    return {name: _decimal(item) if name in _DECIMAL_NAMES else plain(item) for name, item in fields.items()}


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(canonical(text) or "")


def fastavro_bytes(schema: Any, fields: Any) -> bytes:
    """Return the bare Avro bytes that the authority writes."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas={}), fields)
    return out.getvalue()


def market_record(**fields: Any) -> MarketData:
    """Return a sound trade with some fields of another value."""
    defaults: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "timestamp": 1_790_000_000_122,
        "price": "86412.57000000",
        "volume": "0.00120000",
        "bid_price": None,
        "ask_price": None,
        "source": "websocket",
        "event_type": "trade",
        "sequence": 6_400_000_001,
        "received_at": 1_790_000_000_150_000,
        "trade": Trade(6_400_000_001, buyer_is_maker=False),
    }
    return MarketData(**(defaults | fields))
