"""Records to Avro and back: single-object bytes that any reader can decode, and the task that makes them on the line.

Encoding is the compiled encoder of `core/avro.py`; fastavro parses the schemas, finds fingerprints and decodes, and
this is its only home. Decoding finds the writer's schema among today's and every released one, resolves to today's, and
answers any broken input with DecodeError. A record that does not fit the schema goes to the dead letter with its raw
message, and a `poison` hole takes its place in the stream, so that its ids stay accounted for.
"""

from __future__ import annotations

import io
import json
import os
import time
import zlib
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

import fastavro
import trio
from fastavro.schema import fingerprint, to_parsing_canonical_form

from ingestor.core.avro import TABLE_LIMIT, Encoder, read_shape
from ingestor.core.claims import claim_of
from ingestor.core.errors import DecodeError, EncodeError, IngestorError
from ingestor.core.model import (
    Claim,
    DeadLetter,
    Depth,
    EncodedBatch,
    EncodedRecord,
    Hole,
    Kline,
    Level,
    MarketData,
    RecordBatch,
    Trade,
)
from ingestor.core.partition import key_rule
from ingestor.resources import read_schema, released_schemas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from uuid import UUID

    from ingestor.channels import BatchReceiver, BatchSender
    from ingestor.core.partition import KeyOf
    from ingestor.dead_letter import DeadLetterSink
    from ingestor.metrics import Metrics

SINGLE_OBJECT = b"\xc3\x01"  # Avro 1.8 and later; the 8 bytes behind it are the CRC-64-AVRO fingerprint, little endian
SINGLE_OBJECT_HEADER_BYTES = 10
SYNC_BYTES = 16  # of an object container file
GLUE = b"\x03\x00"  # AWS Glue Schema Registry: header version 3, not compressed; a 16-byte schema version id follows

RECORD_OVERHEAD_BYTES = 200  # what the objects around the bytes of one encoded record cost, about
LEVEL_NAMES = frozenset({"Level"})  # the records that our model holds as tuples
# Every third quantity of a trade was never seen before (recordings: 24 to 46 %), and every volume of a bar.
UNIQUE_NAMES = frozenset({"volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume"})
# What is read back may be anybody's. Our records are smaller; one that is not costs a hundred times its size to read.
LARGEST_BYTES = 1_048_576
LONGEST_NAME = 128  # of a symbol (the venue: 50), an interval, a stream
LONGEST_DECIMAL_BYTES = 32  # 38 digits are 16 bytes; another writer may have led them with zeros


class Schemas:
    """Today's schema of one name and every released one, by fingerprint, prepared for reading.

    Decimals are read as the bytes that they are: fastavro would make a Decimal of each and round it to the precision.
    """

    def __init__(self, name: str) -> None:
        self.text = read_schema(name)
        current = json.loads(self.text)
        self.current = _prepare(current)
        self.fingerprint = _fingerprint(current)
        self._writers = {self.fingerprint: self.current}
        for text in released_schemas(name).values():
            released = json.loads(text)
            self._writers.setdefault(_fingerprint(released), _prepare(released))

    def read(self, data: bytes) -> dict[str, Any]:
        """Return the fields of single-object `data` in today's shape, or raise DecodeError."""
        if data[:2] != SINGLE_OBJECT:
            raise DecodeError(f"not an Avro single-object: it begins with {data[:2].hex() or 'nothing'}")
        writer = self._writers.get(data[2:10])
        if writer is None:
            raise DecodeError(f"no schema is known by the fingerprint {data[2:10].hex()}")
        return self.read_body(data, 10, writer)

    def read_body(self, data: bytes, offset: int, writer: Any) -> dict[str, Any]:
        """Return the fields of the bare Avro bytes behind `offset`, or raise DecodeError."""
        if len(data) > LARGEST_BYTES:
            raise DecodeError(f"{len(data)} bytes, and ours are at most {LARGEST_BYTES}")
        body = io.BytesIO(data)
        body.seek(offset)
        reader = None if writer is self.current else self.current  # resolving what is equal would halve the speed
        try:
            fields = fastavro.schemaless_reader(body, writer, reader)
        except Exception as error:  # fastavro has no error of its own: a truncated record is an IndexError
            raise DecodeError(f"broken Avro bytes: {error!r}") from error
        if body.tell() != len(data):
            raise DecodeError(f"{len(data) - body.tell()} bytes follow the record")
        return cast("dict[str, Any]", fields)


def _fingerprint(schema: Any) -> bytes:
    crc = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    return bytes.fromhex(crc)  # already in the little-endian order of the header (facts/aws.md §3.2)


def _prepare(schema: Any) -> Any:
    return fastavro.parse_schema(_without_logical_types(schema), named_schemas={})


def _without_logical_types(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_logical_types(item) for item in schema]
    if isinstance(schema, dict):
        return {key: _without_logical_types(value) for key, value in schema.items() if key != "logicalType"}
    return schema


class Serializer:
    """Encodes records under one framing, decodes both; `key_of` gives the partition key of a record.

    `schema_version_id` is what the Glue Schema Registry calls our current schema; framing `glue` needs it.
    """

    def __init__(
        self,
        *,
        framing: Literal["avro", "glue"] = "avro",
        schema_version_id: UUID | None = None,
        key_of: KeyOf | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if framing == "glue" and schema_version_id is None:
            raise ValueError("the Glue header carries the id of a schema version")
        self._schemas = Schemas("market_data")
        self._glue_header = None if schema_version_id is None else GLUE + schema_version_id.bytes
        header = self._glue_header if framing == "glue" else SINGLE_OBJECT + self._schemas.fingerprint
        shape = read_shape(json.loads(self._schemas.text), positional=LEVEL_NAMES)
        self._encoder = Encoder(shape, prefix=header or b"", repeats="sequence", unique=UNIQUE_NAMES)
        self._key_of = key_of or key_rule("symbol", 1)
        self._wall_ns = wall_ns
        self._text_of = DecimalTexts()

    def decode(self, data: bytes) -> MarketData:
        """Return the record in `data`, decimals with all their 8 places, or raise DecodeError."""
        header = self._glue_header
        if header is not None and data.startswith(header):
            fields = self._schemas.read_body(data, len(header), self._schemas.current)
        else:
            fields = self._schemas.read(data)
        return _record(fields, self._text_of)

    def encode(self, record: MarketData) -> bytes:
        """Return the framed Avro bytes of a record, or raise EncodeError naming the field that does not fit."""
        return self._encoder.encode(record)

    def pack(self, record: MarketData) -> EncodedRecord:
        """Return one record ready for a put; EncodeError if it does not fit."""
        return EncodedRecord(self._key_of(record), self.encode(record), claim_of(record))

    def encode_batch(self, batch: RecordBatch) -> tuple[EncodedBatch, list[DeadLetter]]:
        """Encode every record, in order; one that does not fit becomes a dead letter, and a hole if it claimed ids."""
        records = batch.records
        data, refusals = self._encoder.encode_all(records)
        encoded = list(map(EncodedRecord, map(self._key_of, records), data, map(claim_of, records)))
        letters: list[DeadLetter] = []
        for position in sorted(refusals, reverse=True):
            letter, hole = self._give_up(records[position], batch.raws[position], refusals[position])
            letters.insert(0, letter)
            encoded[position : position + 1] = hole
        size_bytes = sum(map(len, data)) + RECORD_OVERHEAD_BYTES * len(encoded)  # a hole is nearly all overhead
        return EncodedBatch(encoded, batch.received_s, size_bytes), letters

    def _give_up(self, record: MarketData, raw: bytes, error: EncodeError) -> tuple[DeadLetter, list[EncodedRecord]]:
        at_ms = self._wall_ns() // 1_000_000
        key = self._key_of(record)
        hole = self._declare(record, key, at_ms)
        letter = DeadLetter(
            reason="encoding",
            detail=str(error),
            raw=raw,
            at_ms=at_ms,
            symbol=record.symbol,
            event_type=record.event_type,
            partition_key=key,
            claim=hole[0].claim if hole else None,
        )
        return letter, hole

    def _declare(self, record: MarketData, key: str, at_ms: int) -> list[EncodedRecord]:
        """Return the hole that takes the place of `record`; none where it claimed nothing."""
        claim = claim_of(record)
        if claim is None:
            return []
        try:
            return [EncodedRecord(key, self.encode(_poison_hole(record, claim, at_ms)), claim)]
        except EncodeError:  # its ids or its symbol are what does not fit; nobody can declare those
            return []


def _poison_hole(record: MarketData, claim: Claim, at_ms: int) -> MarketData:
    return MarketData(
        symbol=record.symbol,
        timestamp=at_ms,
        price=None,
        volume=None,
        bid_price=None,
        ask_price=None,
        source=record.source,
        event_type="hole",
        sequence=claim.first,
        received_at=record.received_at,
        hole=Hole(claim.subscription.kind, claim.first, claim.last, "poison", at_ms),
    )


# --- from the wire back to the model ----------------------------------------------------------------------------------


class DecimalTexts(dict[bytes, str]):
    """A bounded memory from the bytes of a decimal to its text with 8 places; DecodeError above 38 digits."""

    def __missing__(self, octets: bytes) -> str:
        number = int.from_bytes(octets[:LONGEST_DECIMAL_BYTES], "big", signed=True)
        digits = f"{abs(number):09d}"
        if len(digits) > 38 or not 0 < len(octets) <= LONGEST_DECIMAL_BYTES:
            raise DecodeError(f"{octets[:40].hex()!r} is no decimal of 38 digits")
        text = f"{'-' if number < 0 else ''}{digits[:-8]}.{digits[-8:]}"
        if len(self) >= TABLE_LIMIT:
            self.clear()
        self[octets] = text
        return text


def _record(fields: dict[str, Any], text_of: DecimalTexts) -> MarketData:
    _check_name(fields["symbol"])
    for name in ("price", "volume", "bid_price", "ask_price"):
        if fields[name] is not None:
            fields[name] = text_of[fields[name]]
    if fields["trade"] is not None:
        fields["trade"] = Trade(**fields["trade"])
    if fields["depth"] is not None:
        fields["depth"] = _depth(fields["depth"], text_of)
    if fields["kline"] is not None:
        kline: dict[str, Any] = fields["kline"]
        _check_name(kline["interval"])
        kline |= {name: text_of[value] for name, value in kline.items() if isinstance(value, bytes)}
        fields["kline"] = Kline(**kline)
    if fields["hole"] is not None:
        _check_name(fields["hole"]["stream"])
        fields["hole"] = Hole(**fields["hole"])
    return MarketData(**fields)


def _check_name(name: str) -> None:
    """Refuse a name that is none: whoever reads keeps names, and a stream can hold any number of long ones."""
    if len(name) > LONGEST_NAME:
        raise DecodeError(f"a name of {len(name)} characters")


def _depth(fields: dict[str, Any], text_of: DecimalTexts) -> Depth:
    for side in ("bids", "asks"):
        levels: list[Level] = [(text_of[level["price"]], text_of[level["quantity"]]) for level in fields[side]]
        fields[side] = levels
    return Depth(**fields)


# --- files ------------------------------------------------------------------------------------------------------------


class OutputError(IngestorError):
    """A file that cannot be written, or not be continued."""


class ContainerFile:
    """An Avro object container file that grows block by block; any Avro reader opens it.

    `good_bytes` is the length up to which an earlier run is known to have written it; what lies behind is cut off. A
    file of length 0 begins with the header. Blocks: call it in a thread. Raises `OutputError`.
    """

    def __init__(self, path: Path, good_bytes: int = 0) -> None:
        self._path = path
        if good_bytes and not path.exists():
            raise OutputError(f"{path}: is gone; remove its progress too to begin anew")
        header = io.BytesIO()
        fastavro.writer(header, json.loads(read_schema("market_data")), [], codec="deflate")
        with self._worded():
            self._file = path.open("r+b" if good_bytes else "wb")
        try:
            with self._worded():
                self._marker = self._continue(header.getvalue(), good_bytes) if good_bytes else self._begin(header)
        except OutputError:
            self.close()
            raise

    def append(self, records: Sequence[EncodedRecord]) -> int:
        """Write records of a `Serializer` with framing `avro` as one block; return the length of the file after it."""
        body = b"".join([record.data[SINGLE_OBJECT_HEADER_BYTES:] for record in records])
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)  # codec `deflate`: no zlib header
        packed = packer.compress(body) + packer.flush()
        with self._worded():
            self._file.write(_long(len(records)) + _long(len(packed)) + packed + self._marker)
            self._file.flush()
        return self._file.tell()

    def sync(self) -> None:
        """Have on disk what was appended."""
        with self._worded():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file; only what was synced is sure to be there."""
        with suppress(OSError):  # a full disk has been told of already
            self._file.close()

    def _begin(self, header: io.BytesIO) -> bytes:
        """Write the header; return the marker that ends it and every block."""
        self._file.write(header.getvalue())
        self._file.flush()
        return header.getvalue()[-SYNC_BYTES:]

    def _continue(self, header: bytes, good_bytes: int) -> bytes:
        """Cut off what is not known to be good; return the marker of the header."""
        found = self._file.read(len(header))
        if found[:-SYNC_BYTES] != header[:-SYNC_BYTES]:  # of another version of the schema, or of another program
            raise OutputError(f"{self._path}: is not the file that was begun; remove it and its progress to begin anew")
        if self._file.seek(0, io.SEEK_END) < good_bytes:
            raise OutputError(f"{self._path}: is shorter than it was; remove it and its progress to begin anew")
        self._file.truncate(good_bytes)
        self._file.seek(good_bytes)
        return found[-SYNC_BYTES:]

    @contextmanager
    def _worded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from error


def _long(number: int) -> bytes:
    """Encode a count as an Avro long."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "long", number)
    return out.getvalue()


# --- heartbeats -------------------------------------------------------------------------------------------------------


@cache
def _heartbeats() -> tuple[Schemas, Any]:
    schemas = Schemas("heartbeat")
    return schemas, fastavro.parse_schema(json.loads(schemas.text), named_schemas={})


def encode_heartbeat(part: Mapping[str, Any]) -> bytes:
    """Return one part of a beat as single-object bytes; EncodeError if it does not fit the schema."""
    schemas, writer = _heartbeats()
    out = io.BytesIO(SINGLE_OBJECT + schemas.fingerprint)
    out.seek(0, io.SEEK_END)
    try:
        fastavro.schemaless_writer(out, writer, part, strict_allow_default=True)
    except Exception as error:  # fastavro has no error of its own
        raise EncodeError(f"heartbeat: {error}") from error
    return out.getvalue()


def decode_heartbeat(data: bytes) -> dict[str, Any]:
    """Return the fields of one part of a beat, whichever of our versions wrote it; DecodeError for anything else."""
    return _heartbeats()[0].read(data)


# --- the task ---------------------------------------------------------------------------------------------------------


async def serialize(
    intake: BatchReceiver[RecordBatch],
    outbox: BatchSender[EncodedBatch],
    dead_letters: DeadLetterSink,
    serializer: Serializer,
    metrics: Metrics,
    *,
    on_hole: Callable[[str, Hole], None],
) -> None:
    """Encode batch after batch until every sender has hung up; then hang up too.

    Dead letters are durable before their hole can be delivered; `on_hole` is told of it, with its symbol. Cancelled
    while it holds a batch, it lets go of it: what was not acknowledged is claimed by nobody, and the next task fetches
    it (completeness.md §7).
    """
    with intake, outbox:
        while True:  # noqa: ASYNC913 - every round receives
            try:
                batch = await intake.receive()
            except trio.EndOfChannel:
                return
            encoded, letters = serializer.encode_batch(batch)
            metrics.latency.observe("encoded", trio.current_time() - batch.received_s, len(batch.records))
            if letters:
                await dead_letters.write(letters)
                _tell_holes(letters, on_hole)
            if encoded.records:
                await outbox.send(encoded)


def _tell_holes(letters: list[DeadLetter], on_hole: Callable[[str, Hole], None]) -> None:
    for letter in letters:
        if (claim := letter.claim) is not None:
            hole = Hole(claim.subscription.kind, claim.first, claim.last, "poison", letter.at_ms)
            on_hole(claim.subscription.symbol, hole)
