"""Framing, decoding, batches with bad records in them, and the task on the line."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import fastavro
import msgspec
import pytest
import trio
from fastavro.schema import fingerprint, to_parsing_canonical_form
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from prometheus_client import CollectorRegistry

from ingestor.channels import open_batch_channel
from ingestor.core.errors import DecodeError, EncodeError
from ingestor.core.model import (
    Claim,
    DeadLetter,
    Depth,
    EncodedBatch,
    Hole,
    Kline,
    MarketData,
    RecordBatch,
    Subscription,
    Trade,
)
from ingestor.core.partition import key_rule
from ingestor.metrics import Metrics
from ingestor.resources import read_schema
from ingestor.serializer import (
    ContainerFile,
    DecimalTexts,
    OutputError,
    Serializer,
    decode_heartbeat,
    encode_heartbeat,
    serialize,
)
from tests.fakes.market_records import MARKET_DATA, PATIENT, canonical, market_record, records
from tests.fakes.records import bar, hole, trade

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingestor.channels import BatchReceiver, BatchSender

AVRO = Serializer()
VERSION_ID = UUID("b7b4a7f0-9c96-4e4a-a687-fb5de9ef0c63")
GLUE = Serializer(framing="glue", schema_version_id=VERSION_ID)
NOW_MS = 1_790_000_001_000
DEPTH = market_record(
    event_type="depth", trade=None, depth=Depth(1, 2, False, [("1.5", "0")], [("2.00000000", "3.25"), ("-1", "1")])
)


def make_serializer() -> Serializer:
    return Serializer(key_of=key_rule("symbol_event_type", 1), wall_ns=lambda: NOW_MS * 1_000_000)


def open_line() -> tuple[BatchSender[RecordBatch], BatchReceiver[RecordBatch]]:
    return open_batch_channel(10, 1_000_000)


def open_outbox(max_batches: int) -> tuple[BatchSender[EncodedBatch], BatchReceiver[EncodedBatch]]:
    return open_batch_channel(max_batches, 1_000_000)


def batch_of(*batch: MarketData) -> RecordBatch:
    raws = [f"raw {index}".encode() for index in range(len(batch))]
    return RecordBatch(list(batch), raws, received_s=5.0, size_bytes=100)


def in_canonical_decimals(record: MarketData) -> MarketData:
    def levels(side: list[Any]) -> list[Any]:
        return [(canonical(price), canonical(quantity)) for price, quantity in side]

    tops = {name: canonical(getattr(record, name)) for name in ("price", "volume", "bid_price", "ask_price")}
    depth, kline = record.depth, record.kline
    if depth is not None:
        depth = msgspec.structs.replace(depth, bids=levels(depth.bids), asks=levels(depth.asks))
    if kline is not None:
        names = ["open", "high", "low", "close", "volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume"]
        kline = msgspec.structs.replace(kline, **{name: canonical(getattr(kline, name)) for name in names})
    return msgspec.structs.replace(record, **tops, depth=depth, kline=kline)


@PATIENT
@given(records)
def test_what_is_decoded_is_what_was_encoded(record: MarketData) -> None:
    """Every value of every record comes back, decimals with all their eight places."""
    assert AVRO.decode(AVRO.encode(record)) == in_canonical_decimals(record)


def test_the_header_is_marker_and_fingerprint() -> None:
    """Avro single-object encoding: C3 01, then CRC-64-AVRO of the canonical form, little endian."""
    crc = fingerprint(to_parsing_canonical_form(MARKET_DATA), "CRC-64-AVRO")
    assert AVRO.encode(market_record())[:10] == b"\xc3\x01" + bytes.fromhex(crc)


def test_the_glue_header_is_the_id_of_the_schema_version() -> None:
    """03 00 and sixteen bytes; the body is the same, and our own decoder reads both framings."""
    data = GLUE.encode(DEPTH)
    assert data[:18] == b"\x03\x00" + VERSION_ID.bytes
    assert data[18:] == AVRO.encode(DEPTH)[10:]
    assert GLUE.decode(data) == GLUE.decode(AVRO.encode(DEPTH)) == in_canonical_decimals(DEPTH)


def test_glue_needs_a_schema_version() -> None:
    """A header without an id could never be read back."""
    with pytest.raises(ValueError, match="schema version"):
        Serializer(framing="glue")


@pytest.mark.parametrize("serializer", [AVRO, GLUE])
@pytest.mark.parametrize("record", [market_record(), DEPTH])
def test_truncated_bytes_are_refused_at_every_length(serializer: Serializer, record: MarketData) -> None:
    """No prefix of a record passes for a record."""
    data = serializer.encode(record)
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            serializer.decode(data[:length])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "begins with nothing"),
        (b"{}", "begins with 7b7d"),
        (b"\xc3\x01" + b"\x00" * 8, "fingerprint 0000000000000000"),
        (AVRO.encode(market_record()) + b"\x00", "1 bytes follow"),
        (GLUE.encode(market_record()), "begins with 0300"),
        (AVRO.encode(market_record())[:10] + b"\xff" * 40, "broken Avro bytes"),
    ],
)
def test_what_is_not_ours_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    """An audit meets records of other writers, and says so."""
    with pytest.raises(DecodeError, match=reason):
        AVRO.decode(data)


@PATIENT
@given(st.binary(max_size=60))
def test_noise_behind_a_good_header_never_raises_anything_else(noise: bytes) -> None:
    """The reader of a stream catches one error."""
    with suppress(DecodeError):
        AVRO.decode(AVRO.encode(market_record())[:10] + noise)


@pytest.mark.parametrize("octets", [b"", (10**38).to_bytes(17, "big")])
def test_a_decimal_of_a_foreign_writer_is_never_rounded(octets: bytes) -> None:
    """More digits than the precision is broken input."""
    with pytest.raises(DecodeError, match="no decimal"):
        DecimalTexts()[octets]


def test_the_memory_of_decimals_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit of a day must not remember every quantity of the day."""
    monkeypatch.setattr("ingestor.serializer.TABLE_LIMIT", 2)
    texts = DecimalTexts()
    assert [texts[bytes([number])] for number in (0, 1, 2, 255)] == [
        "0.00000000",
        "0.00000001",
        "0.00000002",
        "-0.00000001",
    ]
    assert len(texts) == 2


def test_a_batch_keeps_its_order_and_carries_keys_and_claims() -> None:
    """Each record of the batch becomes bytes under a key, with the ids that its acknowledgement will prove."""
    encoded, letters = make_serializer().encode_batch(batch_of(market_record(), DEPTH))
    assert letters == []
    assert [record.partition_key for record in encoded.records] == ["BTCUSDT:trade", "BTCUSDT:depth"]
    assert [record.data for record in encoded.records] == [AVRO.encode(market_record()), AVRO.encode(DEPTH)]
    assert [record.claim for record in encoded.records] == [
        Claim(Subscription("BTCUSDT", "trade"), 6_400_000_001, 6_400_000_001),
        Claim(Subscription("BTCUSDT", "depth"), 1, 2),
    ]
    assert encoded.received_s == 5.0
    assert encoded.size_bytes > sum(len(record.data) for record in encoded.records)


def test_a_record_that_does_not_fit_leaves_a_letter_and_a_hole_in_its_place() -> None:
    """The letter has all that is needed to look into it; the hole has its ids, its key and its claim."""
    bad = market_record(price="1.123456789012", sequence=7, trade=Trade(7, buyer_is_maker=True))
    claim = Claim(Subscription("BTCUSDT", "trade"), 7, 7)
    encoded, letters = make_serializer().encode_batch(batch_of(market_record(), bad, market_record()))
    assert letters == [
        DeadLetter(
            reason="encoding",
            detail="record.price: '1.123456789012' has more than 8 decimals",
            raw=b"raw 1",
            at_ms=NOW_MS,
            symbol="BTCUSDT",
            event_type="trade",
            partition_key="BTCUSDT:trade",
            claim=claim,
        )
    ]
    assert len(encoded.records) == 3
    hole = encoded.records[1]
    assert (hole.partition_key, hole.claim) == ("BTCUSDT:trade", claim)
    decoded = AVRO.decode(hole.data)
    assert decoded.hole == Hole("trade", 7, 7, "poison", NOW_MS)
    assert (decoded.event_type, decoded.sequence, decoded.trade, decoded.price) == ("hole", 7, None, None)


def test_a_record_without_a_claim_leaves_only_a_letter() -> None:
    """An interim bar stands for nothing, so nothing is declared missing."""
    bar = Kline("1m", 0, 59_999, "x", "1", "1", "1", "1", "1", 1, "1", "1", 1, 2, closed=False)
    encoded, letters = make_serializer().encode_batch(
        batch_of(market_record(event_type="kline", trade=None, kline=bar))
    )
    assert encoded.records == []
    assert [letter.claim for letter in letters] == [None]


def test_ids_that_no_hole_can_hold_leave_only_a_letter() -> None:
    """A trade id beyond 64 bits cannot be declared in a schema of 64 bits."""
    encoded, letters = make_serializer().encode_batch(batch_of(market_record(trade=Trade(2**63, buyer_is_maker=True))))
    assert encoded.records == []
    assert letters[0].claim is None
    assert letters[0].detail == "record.trade.trade_id: 9223372036854775808 does not fit 64 bits"


ENCODE = partial(serialize, on_hole=lambda *_: None)
BEAT: dict[str, Any] = {
    **dict.fromkeys(["service", "environment", "rest_host", "data_stream", "instance", "version"], "x"),
    **dict.fromkeys(["started_ms", "sent_ms", "beat", "part", "parts"], 1),
    "interval_ms": 5000,
    "final": True,
    "counters": {"records": 5},
    "components": {"kinesis": "up"},
    "entries": [
        {
            "symbol": "BTCUSDT",
            "kind": "trade",
            "generation": 0,
            "origin": 1,
            "settled": True,
            "covered": [{"first": 1, "last": 9}],
            "last_event_ms": 3,
            "origin_ms": 2,
        }
    ],
}


def test_a_heartbeat_comes_back_as_it_was() -> None:
    """One part of a beat, single-object encoded like the data."""
    data = encode_heartbeat(BEAT)
    assert data[:2] == b"\xc3\x01"
    assert decode_heartbeat(data) == BEAT


def test_a_heartbeat_may_leave_out_what_has_a_default() -> None:
    """The schema says which."""
    required = {field["name"] for field in json.loads(read_schema("heartbeat"))["fields"] if "default" not in field}
    decoded = decode_heartbeat(encode_heartbeat({name: BEAT[name] for name in required}))
    assert (decoded["final"], decoded["entries"]) == (False, [])


@pytest.mark.parametrize("change", [{"beat": "one"}, {"unknown": 1}, {"entries": [{}]}])
def test_a_heartbeat_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    """Coverage that nobody can read back is worse than a loud error."""
    with pytest.raises(EncodeError, match="heartbeat"):
        encode_heartbeat(BEAT | change)


def test_data_is_no_heartbeat() -> None:
    """The fingerprints differ, so a stream that holds both is no danger."""
    with pytest.raises(DecodeError, match="fingerprint"):
        decode_heartbeat(AVRO.encode(market_record()))
    with pytest.raises(DecodeError, match="fingerprint"):
        AVRO.decode(encode_heartbeat(BEAT))


class Letters:
    """Keeps what is written to it; notes how many batches were out by then."""

    def __init__(self) -> None:
        self.written: list[DeadLetter] = []

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        await trio.lowlevel.checkpoint()
        self.written += letters


async def test_the_task_encodes_until_the_input_ends(autojump_clock: trio.testing.MockClock) -> None:
    """Batch in, batch out, in order; letters written, holes counted, latency observed once a batch, channel closed."""
    line, intake = open_line()
    outbox, encoded = open_outbox(10)
    letters, registry = Letters(), CollectorRegistry()
    bad = market_record(price="1.123456789")
    hopeless = market_record(price="x", event_type="depth", trade=None, depth=Depth(1, 1, True, [], []))
    with line:
        for batch in (batch_of(market_record()), batch_of(bad, DEPTH), batch_of(hopeless)):
            await line.send(batch)
    holes: list[tuple[str, Hole]] = []
    metrics = Metrics(registry)
    await serialize(intake, outbox, letters, make_serializer(), metrics, on_hole=lambda *told: holes.append(told))
    assert [len((await encoded.receive()).records) for _ in range(2)] == [1, 2]
    with pytest.raises(trio.EndOfChannel):
        await encoded.receive()
    assert [letter.detail for letter in letters.written] == [
        "record.price: '1.123456789' has more than 8 decimals",
        "record.price: 'x' is not a decimal",
    ]
    [(symbol, hole)] = holes
    assert bad.trade is not None
    trade_id = bad.trade.trade_id
    assert (symbol, hole.stream, hole.first, hole.last, hole.reason) == (
        "BTCUSDT",
        "trade",
        trade_id,
        trade_id,
        "poison",
    )
    assert registry.get_sample_value("message_processing_latency_seconds_count", {"stage": "encoded"}) == 4


async def test_a_full_outbox_holds_the_task_up_and_nothing_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    """A slow producer stalls the line; it never grows it."""
    line, intake = open_line()
    outbox, encoded = open_outbox(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ENCODE, intake, outbox, Letters(), make_serializer(), Metrics(CollectorRegistry()))
        with line:
            for number in range(5):
                await line.send(batch_of(market_record(sequence=number)))
        await trio.testing.wait_all_tasks_blocked()
        assert intake.fill()[0] == 3
        decoded = [AVRO.decode((await encoded.receive()).records[0].data).sequence for _ in range(5)]
    assert decoded == [0, 1, 2, 3, 4]


async def test_a_cancelled_task_claims_nothing_and_hangs_up(autojump_clock: trio.testing.MockClock) -> None:
    """What it held was never acknowledged; the next task fetches it."""
    line, intake = open_line()
    outbox, encoded = open_outbox(1)
    await line.send(batch_of(market_record()))
    await line.send(batch_of(market_record()))
    with trio.move_on_after(1):
        await ENCODE(intake, outbox, Letters(), make_serializer(), Metrics(CollectorRegistry()))
    assert len((await encoded.receive()).records) == 1
    with pytest.raises(trio.EndOfChannel):
        await encoded.receive()


def read_container(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return list(fastavro.reader(file))


def test_a_container_file_is_read_by_any_avro_reader(tmp_path: Path) -> None:
    """The records come back by fastavro, decimals and all; the schema stands in the header."""
    path = tmp_path / "trades.avro"
    container = ContainerFile(path)
    records = [market_record(sequence=number) for number in range(3)]
    container.append([AVRO.pack(record) for record in records[:2]])
    assert container.append([AVRO.pack(records[2])]) == path.stat().st_size
    container.close()
    found = read_container(path)
    assert [fields["sequence"] for fields in found] == [0, 1, 2]
    assert records[0].price is not None
    assert found[0]["price"] == Decimal(records[0].price)


def test_a_container_file_goes_on_where_it_was_good(tmp_path: Path) -> None:
    """A block that a crash cut short, or that nobody noted, is cut off."""
    path = tmp_path / "trades.avro"
    container = ContainerFile(path)
    good_bytes = container.append([AVRO.pack(market_record(sequence=1))])
    container.append([AVRO.pack(market_record(sequence=2))])
    container.close()
    again = ContainerFile(path, good_bytes)
    again.append([AVRO.pack(market_record(sequence=3))])
    again.close()
    assert [fields["sequence"] for fields in read_container(path)] == [1, 3]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content[:-1], "is shorter than it was"),
        (lambda content: content.replace(b"quote_volume", b"quota_volume"), "is not the file that was begun"),
        (lambda content: content[:0], "is not the file that was begun"),
        (None, "is gone"),
    ],
)
def test_a_container_file_that_is_not_what_it_was_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes] | None, text: str
) -> None:
    """Cut by a crash of the machine, of another schema, emptied, removed: going on would make it unreadable."""
    path = tmp_path / "trades.avro"
    container = ContainerFile(path)
    good_bytes = container.append([AVRO.pack(market_record(sequence=1))])
    container.close()
    content = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(content))
    with pytest.raises(OutputError, match=text):
        ContainerFile(path, good_bytes)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """With the words of the system: a folder that is not there, a disk that is full."""
    with pytest.raises(OutputError, match=r"trades.avro: No such file"):
        ContainerFile(tmp_path / "nowhere" / "trades.avro")
    full = Path("/dev/full")
    if full.exists():  # on Linux
        with pytest.raises(OutputError, match="No space left"):
            ContainerFile(full)


class TestStrangersRecords:
    """What anybody may have put into the stream."""

    @pytest.mark.parametrize("octets", [b"\x7f" + b"\xff" * 16, b"\x01" + bytes(100_000), b""])
    def test_a_decimal_is_of_38_digits(self, octets: bytes) -> None:
        """A longer one is not written out: it would take seconds, or more digits than Python writes."""
        with pytest.raises(DecodeError, match="no decimal of 38 digits"):
            DecimalTexts()[octets]

    def test_a_decimal_with_leading_zeros_is_read(self) -> None:
        """Another writer may not have cut them."""
        assert DecimalTexts()[bytes(10) + b"\x05\xf5\xe1\x00"] == "1.00000000"

    @pytest.mark.parametrize("field", ["symbol", "interval", "stream"])
    def test_names_are_short(self, field: str) -> None:
        """Whoever reads keeps them."""
        record = hole(1, 2) if field == "stream" else bar(7)
        if field == "symbol":
            record.symbol = "S" * 1_000
        elif record.kline is not None:
            record.kline = structs.replace(record.kline, interval="i" * 1_000)
        else:
            record.hole = structs.replace(record.hole, stream="s" * 1_000)  # type: ignore[type-var]
        serializer = Serializer()
        with pytest.raises(DecodeError, match="a name of 1000 characters"):
            serializer.decode(serializer.encode(record))

    def test_a_record_is_no_larger_than_kinesis_took_from_us(self) -> None:
        """Millions of empty levels fit into ten megabytes, and take a gigabyte to read."""
        with pytest.raises(DecodeError, match="bytes, and ours are at most"):
            Serializer().decode(Serializer().encode(trade(1)) + bytes(2_000_000))
