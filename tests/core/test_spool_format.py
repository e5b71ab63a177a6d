"""Segments: what is written is read, and what is torn or wrong is seen."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.model import Claim, EncodedRecord, Subscription
from ingestor.core.spool_format import (
    DONE_AT,
    HEADER,
    BrokenFrameError,
    Frame,
    decode_frame,
    done_mark,
    encode_frame,
    frame_length,
    header,
    scan,
)
from ingestor.core.spool_format import FRAME as LAYOUT

TRADES = Subscription("BTCUSDT", "trade")
RECORDS = [EncodedRecord("BTCUSDT", b"\x00one", Claim(TRADES, 1, 1)), EncodedRecord("日本", b"", None)]
CLAIMS = [Claim(TRADES, 1, 1)]
FRAME = encode_frame(77, CLAIMS, RECORDS)
SEGMENT = header(HEADER.size) + FRAME + encode_frame(78, [], RECORDS[1:])


def test_a_frame_gives_back_its_records_and_when_they_came() -> None:
    """Key, data and claim, none as none."""
    assert decode_frame(FRAME) == (77, RECORDS)
    assert frame_length(FRAME[:12]) == len(FRAME)


def test_a_scan_finds_frames_and_claims_without_the_records() -> None:
    """Where each ends, and what it stands for."""
    found = scan(SEGMENT)
    assert found.frames == [Frame(HEADER.size + len(FRAME), CLAIMS), Frame(len(SEGMENT), [])]
    assert (found.done, found.end) == (HEADER.size, len(SEGMENT))


@given(length=st.integers(HEADER.size, len(SEGMENT)))
def test_a_torn_tail_is_cut_at_the_last_whole_frame(length: int) -> None:
    """Wherever the write stopped."""
    ends = [HEADER.size, HEADER.size + len(FRAME), len(SEGMENT)]
    assert scan(SEGMENT[:length]).end == max(end for end in ends if end <= length)


@given(position=st.integers(HEADER.size, HEADER.size + len(FRAME) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(position: int, bit: int) -> None:
    """In the lengths, the checksum or the content: nothing wrong is ever handed out."""
    data = bytearray(SEGMENT)
    data[position] ^= 1 << bit
    assert scan(bytes(data)).end == HEADER.size


def test_zeros_that_a_crash_left_are_no_frames() -> None:
    """A file that grew before its content came is all zeros there, and an empty frame has a checksum of zero."""
    assert scan(SEGMENT + bytes(100)).end == len(SEGMENT)


def test_the_mark_of_what_was_delivered_is_a_hint() -> None:
    """One that is at the end of a frame is believed, another one is not."""
    for mark, done in ((HEADER.size + len(FRAME), HEADER.size + len(FRAME)), (HEADER.size + 1, HEADER.size)):
        assert scan(SEGMENT[:DONE_AT] + done_mark(mark) + SEGMENT[HEADER.size :]).done == done


@pytest.mark.parametrize("data", [b"", b"ingestor", bytes(200)])
def test_another_file_is_no_segment(data: bytes) -> None:
    """Nor one whose header never got to the disk."""
    with pytest.raises(BrokenFrameError, match="not a segment"):
        scan(data)


def test_half_a_frame_is_not_decoded() -> None:
    """A file that somebody cut is found out when it is read back."""
    with pytest.raises(BrokenFrameError, match="ends inside"):
        frame_length(FRAME[:5])
    with pytest.raises(BrokenFrameError, match="checksum"):
        decode_frame(FRAME[:-1])
    with pytest.raises(BrokenFrameError, match="ends inside"):
        decode_frame(FRAME[:5])


@pytest.mark.parametrize(
    "content",
    [(b"", b""), (b"\xc1", b"\x90"), (b"\x92\x01\x90", b"\x91\x93\xa1\xff\xc4\x00\xc0"), (b"\x91" * 5_000, b"")],
)
def test_a_right_checksum_over_wrong_content_is_a_broken_frame(content: tuple[bytes, bytes]) -> None:
    """Whoever can write the disk can compute one."""
    head, body = content
    frame = LAYOUT.pack(len(head), len(body), crc32(body, crc32(head))) + head + body
    with pytest.raises(BrokenFrameError, match="the content does not"):
        decode_frame(frame)
    assert scan(header(HEADER.size) + frame).end in {HEADER.size, HEADER.size + len(frame)}
