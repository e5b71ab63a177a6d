"""The bytes of a spool segment: a header, then frames of records, each with a checksum, so that a torn tail shows.

A frame carries when its records were received and what they claim in front of them: a restart learns what is held
without decoding any record. The header carries how far the segment was delivered; it is a hint that spares duplicates,
and a wrong one is ignored.
"""

from __future__ import annotations

from struct import Struct as Layout
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

import msgspec

from ingestor.core.model import Claim, EncodedRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAGIC: Final = b"ingestor spool 1"
HEADER: Final = Layout("<16sQ")
DONE_AT: Final = len(MAGIC)  # where in the header the delivered offset stands
FRAME: Final = Layout("<III")  # bytes of the head, bytes of the records, CRC-32 of both
# Frames are what is read back at a time: small enough for 256 lanes at once, large enough to cost nothing each.
FRAME_BYTES: Final = 65_536

_encoder = msgspec.msgpack.Encoder()
_heads = msgspec.msgpack.Decoder(tuple[int, list[Claim]])
_records = msgspec.msgpack.Decoder(list[tuple[str, bytes, Claim | None]])


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class BrokenFrameError(ValueError):
    """The bytes are not a frame, or not any more what was written."""


class Content(NamedTuple):
    """What is in a frame; `received_ms` is the wall clock when the oldest record of it arrived."""

    received_ms: int
    records: list[EncodedRecord]


class Frame(NamedTuple):
    """Where a frame ends in its segment, and what its records claim."""

    end: int
    claims: list[Claim]


class Scan(NamedTuple):
    """What a segment holds: whole frames up to `end`, of which those up to `done` were delivered."""

    frames: list[Frame]
    done: int
    end: int


def header(done: int) -> bytes:
    """Make the header of a segment that was delivered up to offset `done`."""
    return HEADER.pack(MAGIC, done)


def done_mark(done: int) -> bytes:
    """Make what stands at `DONE_AT` of a segment that was delivered up to offset `done`."""
    return done.to_bytes(8, "little")


def encode_frame(received_ms: int, claims: Sequence[Claim], records: Iterable[EncodedRecord]) -> bytes:
    """Make one frame of records, when the oldest was received and what they claim together."""
    head = _encoder.encode((received_ms, claims))
    body = _encoder.encode([(record.partition_key, record.data, record.claim) for record in records])
    return FRAME.pack(len(head), len(body), crc32(body, crc32(head))) + head + body


def frame_length(start: bytes) -> int:
    """Return how long the frame is that begins with these `FRAME.size` bytes; raises `BrokenFrameError`."""
    if len(start) < FRAME.size:
        raise BrokenFrameError("the segment ends inside of a frame")
    head, body, _ = FRAME.unpack_from(start)
    return FRAME.size + int(head) + int(body)


def decode_frame(frame: bytes) -> Content:
    """Return what is in a whole frame; raises `BrokenFrameError`."""
    head, length = _checked(frame, 0)
    try:
        received_ms, _ = _heads.decode(frame[FRAME.size : FRAME.size + head])
        rows = _records.decode(frame[FRAME.size + head : length])
    except _UNREADABLE as error:
        raise BrokenFrameError(f"the checksum fits, and the content does not: {error}") from error
    return Content(received_ms, [EncodedRecord(*row) for row in rows])


def scan(data: bytes) -> Scan:
    """Find the whole frames of a segment; whatever follows the last one is cut. Raises `BrokenFrameError` at once."""
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise BrokenFrameError("this is not a segment of a spool")
    _, marked = HEADER.unpack_from(data)
    frames: list[Frame] = []
    end = HEADER.size
    view = memoryview(data)
    while end < len(data):
        try:
            head, length = _checked(view, end)
            _, claims = _heads.decode(view[end + FRAME.size : end + FRAME.size + head])
        except (BrokenFrameError, *_UNREADABLE):
            break
        end += length
        frames.append(Frame(end, claims))
    ends = {frame.end for frame in frames}
    return Scan(frames, marked if marked in ends else HEADER.size, end)


def _checked(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    """Return the bytes of the head and of the whole frame at `offset`, once its checksum is found right."""
    if len(data) < offset + FRAME.size:
        raise BrokenFrameError("the segment ends inside of a frame")
    head, body, checksum = FRAME.unpack_from(data, offset)
    start = offset + FRAME.size
    content = memoryview(data)[start : start + head + body]
    if len(content) < head + body or crc32(content) != checksum:
        raise BrokenFrameError("the checksum does not fit")
    return head, FRAME.size + head + body
