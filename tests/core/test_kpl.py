"""The aggregation format, against itself, against an independent reader, and against damage."""

from __future__ import annotations

import warnings
from base64 import b64decode, b64encode
from hashlib import md5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.config import Kinesis
from ingestor.core.errors import DecodeError
from ingestor.core.kpl import MAGIC, RECORDS, InnerRecord, aggregate, disaggregate, varint
from ingestor.core.model import EncodedRecord
from tests.benchmarks.prices import UNIT_BYTES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its protobuf code of 2022 uses is deprecated since
    from aws_kinesis_agg.deaggregator import deaggregate_records

POINT = str(1 << 127)

records_of_some_keys = st.lists(
    st.builds(
        EncodedRecord,
        partition_key=st.sampled_from(["BTCUSDT", "ETHUSDT", "ÄÖ", "x" * 256]) | st.text(min_size=1, max_size=9),
        data=st.binary(max_size=300) | st.binary(min_size=2000, max_size=2100),
        claim=st.none(),
    ),
    max_size=60,
)


def sealed(message: bytes) -> bytes:
    return MAGIC + message + md5(message, usedforsecurity=False).digest()


@given(records=records_of_some_keys, max_bytes=st.integers(200, 8000))
def test_blobs_one_after_the_other_give_the_records_back(records: list[EncodedRecord], max_bytes: int) -> None:
    """Nothing is lost, doubled or reordered, no blob is over its limit, and every record has the blob's hash key."""
    back: list[InnerRecord] = []
    done = 0
    while done < len(records):
        entry, count = aggregate(records[done:], POINT, max_bytes)
        if not count:  # larger than a blob
            back.append(InnerRecord(records[done].partition_key, POINT, records[done].data))
            count = 1
        else:
            assert len(entry.data) + len(entry.partition_key) <= max_bytes
            assert entry.explicit_hash_key == POINT
            back += disaggregate(entry.data, entry.partition_key)
        done += count
    assert back == [InnerRecord(record.partition_key, POINT, record.data) for record in records]


@given(records=records_of_some_keys)
def test_an_independent_reader_agrees(records: list[EncodedRecord]) -> None:
    """PyPI's aws-kinesis-agg takes our blobs apart into the same records."""
    entry, count = aggregate(records, POINT, 1_000_000)
    stored = {
        "kinesis": {
            "data": b64encode(entry.data),
            "partitionKey": entry.partition_key,
            "kinesisSchemaVersion": "1.0",
            "sequenceNumber": "1",
            "approximateArrivalTimestamp": 0.0,
        }
    }
    theirs = [
        (inner["partitionKey"], inner["explicitHashKey"], b64decode(inner["data"]))
        for inner in (record["kinesis"] for record in deaggregate_records([stored]))
        if inner.get("aggregated")
    ]
    assert count == len(records)
    assert theirs == [(record.partition_key, POINT, record.data) for record in records]


def test_a_blob_that_is_full_names_no_key_it_does_not_use() -> None:
    """A record that does not fit any more takes its key along to the next blob."""
    records = [EncodedRecord("A", bytes(50), None), EncodedRecord("UNUSED", bytes(100), None)]
    entry, count = aggregate(records, POINT, 180)
    assert count == 1
    assert b"UNUSED" not in entry.data


def test_a_full_blob_leaves_little_of_what_is_paid_for_empty() -> None:
    """By the default size: two PUT payload units of 25 KB, of which less than 1 % is unused, and never a third one."""
    records = [EncodedRecord(f"S{number % 20}USDT", bytes(60 + number % 20), None) for number in range(2_000)]
    entry, count = aggregate(records, POINT, Kinesis().blob_bytes)
    assert count < len(records)
    assert 0.99 * 2 * UNIT_BYTES < len(entry.data) + len(entry.partition_key) <= 2 * UNIT_BYTES


def test_a_blob_has_at_most_so_many_keys_as_two_bytes_can_name() -> None:
    """The next key begins another blob."""
    records = [EncodedRecord(str(number), b"x", None) for number in range(16_390)]
    entry, count = aggregate(records, POINT, 1_000_000)
    assert count == 16_384
    assert disaggregate(entry.data, "a")[-1] == InnerRecord("16383", POINT, b"x")


def test_a_plain_record_is_its_own_only_one() -> None:
    """Whatever is no blob comes back as it is."""
    assert disaggregate(b"\xc3\x01plain", "KEY") == [InnerRecord("KEY", None, b"\xc3\x01plain")]


def test_a_blob_with_a_wrong_digest_is_a_plain_record() -> None:
    """As KCL has it: the magic alone proves nothing."""
    blob = aggregate([EncodedRecord("A", b"data", None)], POINT, 1000)[0].data
    damaged = blob[:-1] + bytes([blob[-1] ^ 1])
    assert disaggregate(damaged, "a") == [InnerRecord("a", None, damaged)]


def test_what_others_may_write_is_understood() -> None:
    """Records without hash key, tags and unknown fields are read over."""
    body = b"\x08\x00" + b"\x1a\x02hi" + b"\x22\x00"
    message = b"\x0a\x01K" + b"\x1a" + varint(len(body)) + body + b"\x28\x07"
    assert disaggregate(sealed(message), "a") == [InnerRecord("K", None, b"hi")]


@pytest.mark.parametrize(
    "message",
    [
        b"\x1a\x02\x08\x05",  # a key that is not in the table
        b"\x1a\x09\x08",  # longer than the message
        b"\x0d\x00\x00\x00\x00",  # a wire type the format does not use
        b"\x08\x01",  # a number where a key belongs
        b"\x0a\x01\xff",  # a key that is no text
        b"\x1a\x03\x0a\x01K",  # bytes where an index belongs
        b"\x1a",  # cut short
    ],
)
def test_a_blob_with_a_right_digest_and_a_wrong_inside_is_refused(message: bytes) -> None:
    """Damage that was sealed in is an error, never a guess."""
    with pytest.raises(DecodeError):
        disaggregate(sealed(message), "a")


@pytest.mark.parametrize(
    ("number", "encoded"),
    [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"), (1 << 14, b"\x80\x80\x01")],
)
def test_numbers_are_written_seven_bits_a_byte(number: int, encoded: bytes) -> None:
    """The protobuf varint, with its documented example 300."""
    assert varint(number) == encoded


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(b"\x1a" + b"\xff" * 100_000, "a number of more than 10 bytes", id="a length without an end"),
        pytest.param(b"\xff" * 100_000, "a number of more than 10 bytes", id="a tag without an end"),
        pytest.param(b"\x0a\x01k" + b"\x1a\x04\x08\x00\x1a\x00" * (RECORDS + 1), "more than 65536", id="many records"),
        pytest.param(b"\x1a\x00" * 10, "without a key or without data", id="nothing in them"),
        pytest.param(b"\x0a\x01k" + b"\x1a\x02\x08\x00", "without a key or without data", id="no data"),
        pytest.param(b"\x1a\x02\x1a\x00", "without a key or without data", id="no key"),
        pytest.param(b"\x1a\x06\x08\xff\xff\xff\xff\x7f", "index out of range", id="a key that is not there"),
        pytest.param(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "wire type 2", id="longer than the blob"),
    ],
)
def test_a_blob_costs_no_more_than_it_could_hold(message: bytes, reason: str) -> None:
    """Anybody who may write to the stream may write blobs; numbers have an end, and records are counted."""
    with pytest.raises(DecodeError, match=reason):
        disaggregate(sealed(message), "k")


def test_a_blob_of_ours_is_never_larger_than_may_be_read() -> None:
    """However small the records are."""
    records = [EncodedRecord("k", b"", None)] * (RECORDS + 10)
    entry, count = aggregate(records, POINT, 10_000_000)
    assert count == len(disaggregate(entry.data, "a")) == RECORDS
