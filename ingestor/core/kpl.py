"""The aggregation format of the Kinesis Producer Library: many records in one, and back.

A blob is four magic bytes, a protobuf message (1: partition keys, 2: explicit hash keys, 3: records of 1: key index,
2: hash key index, 3: data) and the MD5 of the message (awslabs/amazon-kinesis-producer `aggregation-format.md`, read
2026-11-22). **Every inner record carries the same explicit hash key, that of the entry it travels in**: KCL throws a
whole blob away when the hash of one inner record lies outside the shard (facts/aws.md §2.3), so with one hash for all a
reshard can move a blob and never lose it. The records' own partition keys stay readable in the key table.

Written by hand because the message is three fields, and the tables below make it several times faster than a runtime.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import md5
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestor.core.errors import DecodeError
from ingestor.core.model import PutEntry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ingestor.core.model import EncodedRecord

MAGIC: Final = b"\xf3\x89\x9a\xc2"
OUTER_KEY: Final = "a"  # what the KPL itself uses; the explicit hash key decides, so it only costs its one byte
_DIGEST_BYTES: Final = 16
_ENVELOPE_BYTES: Final = len(MAGIC) + _DIGEST_BYTES + len(OUTER_KEY)
_KEYS: Final = 1 << 14  # keys in one blob; their indexes fit into two bytes
_KEPT_INDEXES: Final = 256  # keys of a blob whose prefixes are kept
_KEPT_BELOW: Final = 512  # data bytes; for longer ones a prefix costs little beside the record itself
RECORDS: Final = 1 << 16  # in a blob, written or read: a stranger's may hold many empty ones, and each costs memory
_VARINT_BYTES: Final = 10  # of 64 bits


class InnerRecord(NamedTuple):
    """A record out of a blob; `explicit_hash_key` is None where the blob names none."""

    partition_key: str
    explicit_hash_key: str | None
    data: bytes


def varint(number: int) -> bytes:
    """Encode a whole number the protobuf way, seven bits a byte, lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class _Prefixes(dict[int, bytes]):
    """What stands before the data of a record under one key, by the length of the data."""

    def __init__(self, key_index: int) -> None:
        super().__init__()
        self._header = b"\x08" + varint(key_index) + b"\x10\x00\x1a"  # key index, hash key 0, and the data's tag

    def __missing__(self, length: int) -> bytes:
        inside = self._header + varint(length)
        made = b"\x1a" + varint(len(inside) + length) + inside
        if length < _KEPT_BELOW:
            self[length] = made
        return made


_prefixes: Final = lru_cache(maxsize=_KEPT_INDEXES)(_Prefixes)


def aggregate(records: Iterable[EncodedRecord], explicit_hash_key: str, max_bytes: int) -> tuple[PutEntry, int]:
    """Pack records into one blob, in order, until the next one would not fit.

    Returns the blob as an entry and how many records it took (perhaps none). `max_bytes` bounds the blob with the outer
    partition key beside it, which is what Kinesis counts and bills.
    """
    hash_key = explicit_hash_key.encode()
    hash_table = b"\x12" + varint(len(hash_key)) + hash_key
    size = _ENVELOPE_BYTES + len(hash_table)
    key_table: list[bytes] = []
    keys: dict[str, _Prefixes] = {}
    newest_key_at = -1
    parts: list[bytes] = []
    for record in islice(records, RECORDS):
        data, partition_key = record.data, record.partition_key
        prefixes = keys.get(partition_key)
        if prefixes is None:
            if len(keys) == _KEYS:
                break
            prefixes = keys[partition_key] = _prefixes(len(keys))
            text = partition_key.encode()
            key_table.append(b"\x0a" + varint(len(text)) + text)
            size += len(key_table[-1])
            newest_key_at = len(parts)
        length = len(data)
        prefix = prefixes[length]
        size += length + len(prefix)
        if size > max_bytes:
            if newest_key_at == len(parts):
                key_table.pop()
            break
        parts += (prefix, data)
    message = b"".join((*key_table, hash_table, *parts))
    blob = b"".join((MAGIC, message, md5(message, usedforsecurity=False).digest()))
    return PutEntry(blob, OUTER_KEY, explicit_hash_key), len(parts) // 2


def disaggregate(data: bytes, partition_key: str) -> list[InnerRecord]:
    """Return the records inside a stored record, in order; a plain one is its own only one.

    Plain is, as in KCL, whatever has no magic bytes or a wrong digest. Raises `DecodeError` when the digest is right
    and the message is not, or holds more than `RECORDS`.
    """
    message = data[len(MAGIC) : -_DIGEST_BYTES]
    if not data.startswith(MAGIC) or md5(message, usedforsecurity=False).digest() != data[-_DIGEST_BYTES:]:
        return [InnerRecord(partition_key, None, data)]
    keys: list[str] = []
    hash_keys: list[str] = []
    inner: list[bytes] = []
    try:
        for field, value in _fields(message):
            if field == 1:
                keys.append(_text(value))
            elif field == 2:
                hash_keys.append(_text(value))
            elif field == 3:
                inner.append(_bytes(value))
                if len(inner) > RECORDS:
                    raise DecodeError(f"a blob of more than {RECORDS} records")
        return [_inner_record(body, keys, hash_keys) for body in inner]
    except (IndexError, UnicodeDecodeError) as error:
        raise DecodeError(f"a blob of {len(data)} bytes with a right digest and a wrong inside: {error}") from error


def _inner_record(body: bytes, keys: list[str], hash_keys: list[str]) -> InnerRecord:
    partition_key, explicit_hash_key, data = None, None, None
    for field, value in _fields(body):
        if field == 1:
            partition_key = keys[_int(value)]
        elif field == 2:
            explicit_hash_key = hash_keys[_int(value)]
        elif field == 3:
            data = _bytes(value)
    if partition_key is None or data is None:
        raise DecodeError("a record without a key or without data")
    return InnerRecord(partition_key, explicit_hash_key, data)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Walk over a protobuf message; only the two wire types that the format uses are known."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _read_varint(message, position)
        number, position = _read_varint(message, position)
        wire_type = tag & 7
        if wire_type == 0:
            yield tag >> 3, number
        elif wire_type == 2 and position + number <= end:
            yield tag >> 3, message[position : position + number]
            position += number
        else:
            raise DecodeError(f"wire type {wire_type} with length {number} at byte {position} of {end}")


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    number = 0
    for index in range(_VARINT_BYTES):
        byte = message[position + index]
        number |= (byte & 0x7F) << 7 * index
        if byte <= 0x7F:
            return number, position + index + 1
    raise DecodeError(f"a number of more than {_VARINT_BYTES} bytes at byte {position}")


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise DecodeError("bytes where a number belongs")
    return value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise DecodeError("a number where bytes belong")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode()
