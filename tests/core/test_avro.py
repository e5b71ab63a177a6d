"""The compiled encoder: the bytes of fastavro for everything that fits, a named field for everything that does not."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core import avro
from ingestor.core.avro import Encoder, explain, read_shape
from ingestor.core.errors import EncodeError
from ingestor.core.model import Claim, Depth, Hole, Kline, MarketData, Subscription, Trade
from tests.fakes.market_records import (
    MARKET_DATA,
    PATIENT,
    depths,
    fastavro_bytes,
    holes,
    klines,
    market_record,
    plain,
    records,
    trades,
)

SHAPE = read_shape(MARKET_DATA, positional=frozenset({"Level"}))
ENCODER = Encoder(SHAPE, repeats="sequence", unique=frozenset({"volume", "quote_volume"}))
ENCODE = ENCODER.encode


@PATIENT
@given(records)
def test_every_record_has_the_bytes_of_fastavro(record: MarketData) -> None:
    """Over the whole schema: every nested record, long, decimal, sign, text and array."""
    assert ENCODE(record) == fastavro_bytes(MARKET_DATA, plain(record))


few_longs = st.sampled_from([0, 1, 70_000, -70_000, 2**40, 2**40 + 1])  # so that neighbours are often equal
pairs = st.lists(st.tuples(st.sampled_from(["1", "2.50000000"]), st.sampled_from(["1", "y"])), max_size=2)
neighbours = st.builds(
    MarketData,
    st.sampled_from(["BTCUSDT", "é", ""]),
    few_longs,
    st.none() | st.sampled_from(["1.00000000", "0.00000001", "-1", "1"]),
    st.none() | st.sampled_from(["1.00000000", "0.00000001", "-1", "1", "x"]),
    st.none(),
    st.none() | st.just("5.00000000"),
    st.sampled_from(["websocket", "rest"]),
    st.just("trade"),
    few_longs | st.sampled_from([True, 1.0, 2**63]),
    few_longs,
    st.none() | st.builds(Trade, few_longs | st.just(True), st.booleans() | st.just(1)),
    st.none() | st.builds(Depth, few_longs, few_longs, st.booleans(), pairs, pairs),
    st.none(),
    st.none() | st.builds(Hole, st.just("trade"), few_longs, few_longs, st.just("poison"), few_longs),
)


@PATIENT
@given(st.lists(neighbours, max_size=8))
def test_a_record_is_encoded_as_if_it_were_alone(batch: list[MarketData]) -> None:
    """What is remembered of the record before helps only where both say the same, and a wrong one spoils no other."""
    encoded, refusals = ENCODER.encode_all(batch)
    for position, record in enumerate(batch):
        problems = list(explain(SHAPE, record))
        assert encoded[position] == (b"" if problems else fastavro_bytes(MARKET_DATA, plain(record)))
        assert [str(refusals[position])] == problems[:1] if problems else position not in refusals


@pytest.mark.parametrize("number", [0, 63, 64, 8191, 8192, 16383, 16384, 2**31, 2**50 - 1, 2**50, 2**63 - 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_longs_are_right_around_every_table(number: int, sign: int) -> None:
    """The ends of the tables for small numbers, and the largest numbers there are."""
    record = market_record(sequence=sign * number)
    assert ENCODE(record) == fastavro_bytes(MARKET_DATA, plain(record))


@pytest.mark.parametrize("text", ["0", "-0", "1.27", "0.00000127", "0.00000128", "-0.00000128", "-0.00000129"])
def test_decimals_are_right_around_the_sign_bit(text: str) -> None:
    """The authority writes -128 in two octets although one would do, and so do we."""
    record = market_record(price=text)
    assert ENCODE(record) == fastavro_bytes(MARKET_DATA, plain(record))


def test_zeros_beyond_the_scale_change_nothing() -> None:
    """`1.100000000` is exact in eight decimals."""
    assert ENCODE(market_record(price="1.100000000")) == ENCODE(market_record(price="1.1"))


def test_the_prefix_stands_before_the_record() -> None:
    """A framing costs no copy of the record."""
    assert Encoder(SHAPE, prefix=b"\xc3\x01").encode(market_record()) == b"\xc3\x01" + ENCODE(market_record())


BAD_DECIMALS: list[Any] = [
    *(1, 1.0, True, Decimal("1.5"), b"1.50000000", ["1"], ("1",)),
    *("", "-", ".", "1.", ".5", ".12345678", "+1", "--1", " 1", "1 ", "1_0", "1e5", "NaN", "Infinity", "0x1"),
    *(
        "1\n",
        "1.00000000\n",
        "1.123456789",
        "\u0663.00000000",
        "\uff11.00000000",
        "1.0000000\u00b2",
        "1" + "0" * 30,
        "9" * 5000,
    ),
]
BAD_LONGS: list[Any] = [None, True, 1.0, "1", b"1", Decimal(1), 2**63, -(2**63) - 1, [1]]
BAD_FLAGS: list[Any] = [None, 0, 1, 1.0, "true"]
BAD_TEXTS: list[Any] = [None, 1, True, 1.5, b"BTCUSDT", ["BTCUSDT"], "\ud800"]
BAD_CHOICES: list[Any] = [None, 0, True, "", "websocket ", "Trade", b"trade", ["trade"]]
BAD_LEVELS: list[Any] = [
    *(None, (), "12", {"price": "1"}, [None], ["12"], [["1", "2"]], [("1",)], [("1", "2", "3")]),
    *([("1", "2"), ("1", None)], [("1", "1.123456789")], [(1.5, "2")], [("1", "2"), {"price": "1", "quantity": "2"}]),
]
_BAD_BY_FIELDS: dict[str, list[Any]] = {
    "symbol interval stream": BAD_TEXTS,
    "timestamp sequence received_at trade_id open_time close_time trade_count": BAD_LONGS,
    "first_update_id final_update_id first last detected_ms": BAD_LONGS,
    "first_trade_id last_trade_id": BAD_LONGS[1:],
    "price volume bid_price ask_price": BAD_DECIMALS,
    "open high low close quote_volume taker_buy_volume taker_buy_quote_volume": [None, *BAD_DECIMALS],
    "buyer_is_maker snapshot closed": BAD_FLAGS,
    "source event_type reason": BAD_CHOICES,
    "bids asks": BAD_LEVELS,
    "trade depth kline hole": [0, "", (), SimpleNamespace()],
}
BAD = {field: values for fields, values in _BAD_BY_FIELDS.items() for field in fields.split()}


@PATIENT
@given(st.data())
def test_a_record_with_one_wrong_field_is_refused_by_name(data: st.DataObject) -> None:
    """Whatever is wrong anywhere, it is never written, and the error says where it is."""
    record = data.draw(records)
    part = data.draw(st.sampled_from(["", "trade", "depth", "kline", "hole"]))
    broken: Any = record
    if part:
        broken = data.draw({"trade": trades, "depth": depths, "kline": klines, "hole": holes}[part])
    field = data.draw(st.sampled_from(broken.__struct_fields__))
    broken = msgspec.structs.replace(broken, **{field: data.draw(st.sampled_from(BAD[field]))})
    if part:
        broken = msgspec.structs.replace(record, **{part: broken})
    with pytest.raises(EncodeError) as refusal:
        ENCODE(broken)
    assert str(refusal.value).startswith(f"record.{part}.{field}" if part else f"record.{field}")


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (market_record(price="1.123456789"), "record.price: '1.123456789' has more than 8 decimals"),
        (market_record(price="9" * 31), f"record.price: '{'9' * 31}' has more than 38 digits"),
        (market_record(volume="1e5"), "record.volume: '1e5' is not a decimal"),
        (market_record(volume=0.5), "record.volume: 0.5 is not text"),
        (market_record(symbol=None), "record.symbol: None is not text"),
        (market_record(symbol="\ud800"), "record.symbol: '\\ud800' is not Unicode text: surrogates not allowed"),
        (market_record(timestamp=1.5), "record.timestamp: 1.5 is not an int"),
        (market_record(timestamp=True), "record.timestamp: True is not an int"),
        (market_record(timestamp=2**63), "record.timestamp: 9223372036854775808 does not fit 64 bits"),
        (market_record(source="file"), "record.source: 'file' is none of websocket, rest, unknown"),
        (market_record(trade=Hole("trade", 1, 1, "poison", 1)), "record.trade: Hole has no trade_id"),
        (
            market_record(depth=Depth(1, 2, False, [("1", "2"), ("1", "x")], [])),
            "record.depth.bids[1].quantity: 'x' is not a decimal",
        ),
        (
            market_record(depth=Depth(1, 2, False, [], ["12"])),  # type: ignore[list-item]  # what is tested
            "record.depth.asks[0]: '12' is not a tuple of 2",
        ),
        (market_record(depth=Depth(1, 2, False, None, [])), "record.depth.bids: None is not a list"),  # type: ignore[arg-type]
        (SimpleNamespace(timestamp=1), "record: SimpleNamespace has no symbol"),
    ],
)
def test_a_refusal_names_field_value_and_reason(record: Any, problem: str) -> None:
    """Good enough to find the cause in a dead letter, without a debugger."""
    with pytest.raises(EncodeError) as refusal:
        ENCODE(record)
    assert str(refusal.value) == problem


@pytest.mark.parametrize("rubbish", [["x" * 1_000_000], 10**5000, [10**5000]], ids=["text", "int", "list"])
def test_a_long_value_is_cut_in_the_text_of_the_error(rubbish: object) -> None:
    """A megabyte of rubbish must not become a megabyte of log, nor an error inside the error."""
    for field in ("symbol", "timestamp", "price", "source"):
        with pytest.raises(EncodeError) as refusal:
            ENCODE(market_record(**{field: rubbish}))
        assert len(str(refusal.value)) < 120


def test_levels_of_another_kind_of_tuple_are_refused_as_such() -> None:
    """What the fast path refuses, the explanation refuses too: it must never pass for a bug of ours."""
    levels: Any = [Claim(Subscription("1", "1"), 1, 1)]
    with pytest.raises(EncodeError, match=r"bids\[0\]: .* is not a tuple of 2"):
        ENCODE(market_record(depth=Depth(1, 2, False, levels, [])))
    pair: Any = [Subscription("1", "1")]
    with pytest.raises(EncodeError, match=r"bids\[0\]: .* is not a tuple of 2"):
        ENCODE(market_record(depth=Depth(1, 2, False, pair, [])))


def test_all_problems_of_a_record_are_found() -> None:
    """`explain` does not stop at the first."""
    levels: Any = [("1", "1"), ("1",)]
    record = market_record(price="x", sequence=None, source="", depth=Depth(1, 2, False, levels, []))
    assert [problem.partition(":")[0] for problem in explain(SHAPE, record)] == [
        "record.price",
        "record.source",
        "record.sequence",
        "record.depth.bids[1]",
    ]


class _Fickle:
    """A record that answers differently the second time, so that nothing is found wrong with it."""

    def __init__(self) -> None:
        self.asked = 0

    @property
    def price(self) -> int:
        self.asked += 1
        if self.asked == 1:
            raise LookupError
        return 1


def test_an_error_that_the_record_does_not_explain_is_a_bug_and_stays_one() -> None:
    """A fault of the encoder must not pass for poison."""
    encode = Encoder(read_shape({"type": "record", "name": "A", "fields": [{"name": "price", "type": "long"}]})).encode
    with pytest.raises(LookupError):
        encode(_Fickle())


EVERYTHING = {
    "type": "record",
    "name": "Everything",
    "fields": [
        {"name": "number", "type": "int"},
        {"name": "wrapped", "type": {"type": "long"}},
        {"name": "numbers", "type": {"type": "array", "items": "long"}},
        {"name": "rows", "type": {"type": "array", "items": {"type": "array", "items": "string"}}},
        {"name": "text_or_null", "type": ["string", "null"]},
        {"name": "null_or_flag", "type": ["null", "boolean"]},
        {"name": "enum", "type": ["null", {"type": "enum", "name": "Colour", "symbols": ["red", "blue"]}]},
        {"name": "again", "type": ["Colour", "null"]},
        {
            "name": "pairs",
            "type": {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "Pair",
                    "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": "string"}],
                },
            },
        },
        {"name": "small", "type": {"type": "bytes", "logicalType": "decimal", "precision": 1, "scale": 0}},
    ],
}
SOUND: dict[str, Any] = {
    "number": -(2**31),
    "wrapped": 5,
    "numbers": [1, -70000],
    "rows": [[], ["a", "b"]],
    "text_or_null": "é",
    "null_or_flag": True,
    "enum": "blue",
    "again": None,
    "pairs": [(1, "one"), (2, "two")],
    "small": "9",
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"number": 2**31 - 1, "numbers": [], "rows": [], "pairs": []},
        {"text_or_null": None, "null_or_flag": None, "enum": None, "again": "red", "small": "-9"},
        {"null_or_flag": False},
    ],
)
def test_the_generator_is_not_written_for_one_schema(change: dict[str, Any]) -> None:
    """Other types, unions the other way round, arrays of anything, names used again: still the bytes of fastavro."""
    fields = SOUND | change
    encode = Encoder(read_shape(EVERYTHING, positional=frozenset({"Pair"}))).encode
    pairs = [{"id": number, "name": name} for number, name in fields["pairs"]]
    reference = fields | {"pairs": pairs, "small": Decimal(fields["small"])}
    assert encode(SimpleNamespace(**fields)) == fastavro_bytes(EVERYTHING, reference)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2**31},
        {"number": -(2**31) - 1},
        {"numbers": [True]},
        {"rows": ["ab"]},
        {"pairs": [[1, "one"]]},
        {"pairs": [(1, "one", 1)]},
        {"small": "10"},
        {"small": "0.5"},
    ],
)
def test_other_schemas_refuse_too(change: dict[str, Any]) -> None:
    """The same strictness everywhere."""
    encode = Encoder(read_shape(EVERYTHING, positional=frozenset({"Pair"}))).encode
    (field,) = change
    with pytest.raises(EncodeError, match=field):
        encode(SimpleNamespace(**(SOUND | change)))


@pytest.mark.parametrize("type_", ["double", {"type": "map", "values": "long"}, ["null", "int", "long"], "Unknown", 5])
def test_a_type_that_the_encoder_does_not_know_is_refused_when_compiling(type_: object) -> None:
    """A schema that grows beyond the encoder fails at start, not in the middle of the line."""
    with pytest.raises(ValueError, match="does not know"):
        read_shape({"type": "record", "name": "A", "fields": [{"name": "a", "type": type_}]})


def test_only_records_are_compiled() -> None:
    """The top of a schema is what the line carries."""
    with pytest.raises(ValueError, match="is a record"):
        read_shape("string")


def test_tables_start_over_when_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded whatever the venue sends, and the bytes stay right."""
    monkeypatch.setattr(avro, "TABLE_LIMIT", 3)
    encode = Encoder(SHAPE).encode
    for number in range(40):
        record = market_record(price=f"{number}.5", bid_price=None, sequence=number << 20, symbol=f"S{number % 9}")
        assert encode(record) == fastavro_bytes(MARKET_DATA, plain(record))


def test_huge_values_are_encoded_but_not_kept() -> None:
    """A table of texts cannot be filled with megabytes."""
    table = avro._text_table(b"", {})
    assert len(table["x" * 1000]) == 1002
    assert not table
    assert table["BTCUSDT"] == b"\x0eBTCUSDT"
    assert list(table) == ["BTCUSDT"]


def test_a_bar_of_numbers_is_refused() -> None:
    """A float price is what this project exists to avoid."""
    bar = Kline("1m", 1, 2, 1.5, "1", "1", "1", "1", "1", 1, "1", "1", None, None, closed=True)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(EncodeError, match=r"record\.kline\.open: 1\.5 is not text"):
        ENCODE(market_record(kline=bar))
