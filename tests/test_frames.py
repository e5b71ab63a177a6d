"""The receive lane: what is cut out of the bytes, what is passed on, and what a broken or slow peer leads to."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from ingestor.core.errors import DisconnectedError
from ingestor.frames import MAX_HEAD_BYTES, FrameSlicer, HandshakeRefusedError, ReceiveLane, Sliced
from tests.fakes.venue import BINARY, CLOSE, PING, PONG, TEXT, frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
FIN = 0x80


def slice_all(chunks: Iterable[bytes], *, max_message_bytes: int = 200_000, head: bytes = HEAD) -> Sliced:
    """Feed the chunks to a fresh slicer after the handshake; return all that came out, up to the first error."""
    slicer = FrameSlicer(max_message_bytes)
    messages: list[bytes] = []
    passed = b""
    for chunk in ([head] if head else []) + list(chunks):
        sliced = slicer.feed(chunk)
        messages += sliced.messages
        passed += sliced.passthrough
        if sliced.error is not None:
            return Sliced(messages, passed.removeprefix(head), sliced.error)
    return Sliced(messages, passed.removeprefix(head))


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut the bytes at the given places."""
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[first:end] for first, end in pairwise(bounds) if first < end]


def as_wsproto_reads(data: bytes) -> tuple[list[bytes], list[tuple[type, bytes]]]:
    """Tell what the reference parser makes of the same bytes: data messages, and control frames."""
    connection = Connection(ConnectionType.CLIENT, [], data)
    messages: list[bytes] = []
    controls: list[tuple[type, bytes]] = []
    parts: list[bytes] = []
    for event in connection.events():
        if isinstance(event, TextMessage | BytesMessage):
            parts.append(event.data.encode() if isinstance(event, TextMessage) else bytes(event.data))
            if event.message_finished:
                messages.append(b"".join(parts))
                parts = []
        elif isinstance(event, Ping | Pong):
            controls.append((type(event), bytes(event.payload)))
        elif isinstance(event, CloseConnection):
            controls.append((CloseConnection, str(int(event.code)).encode()))
    return messages, controls


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Frames as a server may send them: whole, fragmented with control frames between, of every length class."""
    lengths = st.one_of(st.integers(0, 130), st.sampled_from([125, 126, 127, 65535, 65536, 70000]))
    controls = st.builds(frame, st.binary(max_size=125), st.sampled_from([PING, PONG]))
    wire, messages = b"", []
    for _ in range(draw(st.integers(0, 8))):
        text = ("aé" * draw(lengths)).encode()[: draw(lengths)].decode(errors="ignore").encode()
        first = draw(st.sampled_from([TEXT, BINARY]))
        parts = cut(text, draw(st.lists(st.integers(0, 70000), max_size=4))) or [text]
        for index, part in enumerate(parts):
            opcode = (first & ~FIN) if index == 0 else 0
            wire += frame(part, opcode | (FIN if index == len(parts) - 1 else 0))
            wire += draw(st.one_of(st.just(b""), controls))
        messages.append(text)
    return wire, messages


@settings(max_examples=60, deadline=None)
@given(conversations(), st.lists(st.integers(0, 100_000), max_size=12))
def test_any_cut_of_any_conversation_reads_as_the_reference_parser_reads_it(
    conversation: tuple[bytes, list[bytes]], places: list[int]
) -> None:
    """Messages in order, and exactly the control frames left over, compared with wsproto on the whole bytes."""
    wire, messages = conversation
    sliced = slice_all(cut(wire, places))
    reference_messages, reference_controls = as_wsproto_reads(wire)
    assert sliced.messages == messages == reference_messages
    assert as_wsproto_reads(sliced.passthrough) == ([], reference_controls)
    assert sliced.error is None


def test_a_conversation_cut_at_every_byte_reads_the_same() -> None:
    """Every kind of frame behind the handshake, in two pieces at each boundary, and byte by byte."""
    wire = (
        HEAD
        + frame(b"one")
        + frame(b"hi", PING)
        + frame(b"x" * 300, BINARY)
        + frame(b"begin", 0x01)
        + frame(b"", PONG)
        + frame(b"", 0x00)
        + frame(b"end", 0x80)
        + frame(b"")
        + frame(b"\x03\xe8bye", CLOSE)
    )
    expected = Sliced(
        [b"one", b"x" * 300, b"beginend", b""],
        HEAD + frame(b"hi", PING) + frame(b"", PONG) + frame(b"\x03\xe8bye", CLOSE),
    )
    assert all(slice_all([wire[:place], wire[place:]], head=b"") == expected for place in range(1, len(wire)))
    assert slice_all([wire[place : place + 1] for place in range(len(wire))], head=b"") == expected


def test_a_large_frame_in_many_small_reads_is_joined_once() -> None:
    """Pieces are kept as they came, so that a megabyte in 700 reads is not copied 700 times."""
    slicer, wire = FrameSlicer(), HEAD + frame(b"y" * 1_000_000)
    outcomes = [slicer.feed(wire[place : place + 1400]) for place in range(0, len(wire), 1400)]
    assert len(slicer._held) == 0
    assert [len(message) for outcome in outcomes for message in outcome.messages] == [1_000_000]
    assert {outcome.passthrough for outcome in outcomes} == {HEAD, b""}


def test_frames_that_arrive_with_the_handshake_are_not_lost() -> None:
    """The rest of the segment behind the blank line is cut like any other."""
    sliced = FrameSlicer().feed(HEAD + frame(b"early") + frame(b"p", PING) + frame(b"half")[:3])
    assert sliced == Sliced([b"early"], HEAD + frame(b"p", PING))


def test_what_follows_a_close_frame_means_nothing() -> None:
    """No message after it, in the same read or a later one."""
    close = frame(b"\x03\xe8", CLOSE)
    sliced = slice_all([frame(b"a") + close + frame(b"b"), frame(b"c")])
    assert sliced.messages == [b"a"]
    assert sliced.passthrough.startswith(close)


def test_empty_fragments_without_end_take_no_memory() -> None:
    """The bound on a message counts bytes, so what has none is not kept."""
    slicer = FrameSlicer()
    slicer.feed(HEAD + frame(b"a", 0x01) + frame(b"", 0x00) * 10_000)
    assert slicer._fragments == [b"a"]
    assert slicer.feed(frame(b"b", 0x80)).messages == [b"ab"]


def test_text_that_is_not_utf8_is_a_message_like_any_other() -> None:
    """Whoever decodes it finds out; the connection goes on."""
    assert slice_all([frame(b"\xff\xfe") + frame(b"next")]) == Sliced([b"\xff\xfe", b"next"], b"")


VIOLATIONS = {
    "masked": (b"\x81\x85abcdhello", "masked frame"),
    "masked long": (b"\x81\xfe\x01\x00", "masked frame"),
    "reserved bit": (frame(b"x", 0xC1), "reserved bits"),
    "reserved bit on a ping": (frame(b"x", 0xA9), "reserved bits"),
    "unknown data opcode": (frame(b"x", 0x83), "unknown opcode 0x3"),
    "unknown control opcode": (frame(b"x", 0x8B), "unknown opcode 0xb"),
    "fragmented ping": (frame(b"x", 0x09), "fragmented control frame"),
    "long ping": (frame(b"x" * 126, PING), "control frame longer than 125"),
    "continuation of nothing": (frame(b"x", 0x80), "continuation of nothing"),
    "text inside a fragmented message": (frame(b"x", 0x01) + frame(b"y"), "new message inside a fragmented one"),
    "binary inside a fragmented message": (frame(b"x", 0x01) + frame(b"y", BINARY), "new message inside"),
    "short length in 16 bits": (b"\x81\x7e\x00\x7d" + b"x" * 125, "shortest form"),
    "short length in 64 bits": (b"\x81\x7f" + (0xFFFF).to_bytes(8) + b"x" * 10, "shortest form"),
    "oversize": (frame(b"x" * 1001)[:4], "message of more than 1000 bytes"),
    "oversize in 64 bits": (b"\x82\x7f" + (1 << 63).to_bytes(8), "message of more than 1000 bytes"),
    "oversize in fragments": (frame(b"x" * 600, 0x01) + frame(b"x" * 401, 0x00)[:4], "message of more than 1000 bytes"),
}


@pytest.mark.parametrize(("wire", "text"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
@pytest.mark.parametrize("step", [1, 1000])
def test_a_peer_that_breaks_the_protocol_is_named_and_what_came_before_is_kept(
    wire: bytes, text: str, step: int
) -> None:
    """The header alone decides, so nothing oversize is ever held; messages and pings before it still count."""
    wire = frame(b"good") + frame(b"p", PING) + wire + frame(b"never")
    sliced = slice_all([wire[place : place + step] for place in range(0, len(wire), step)], max_message_bytes=1000)
    assert isinstance(sliced.error, DisconnectedError)
    assert text in str(sliced.error)
    assert (sliced.messages, sliced.passthrough) == ([b"good"], frame(b"p", PING))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 99))
def test_garbage_never_raises_and_never_depends_on_the_cut(garbage: bytes, seed: int) -> None:
    """Random bytes give the same messages and the same verdict however they arrive."""
    places = [random.Random(seed).randrange(201) for _ in range(5)]
    whole, pieces = slice_all([garbage] if garbage else []), slice_all(cut(garbage, places))
    assert (whole.messages, str(whole.error)) == (pieces.messages, str(pieces.error))


@pytest.mark.parametrize(
    ("status", "meaning"),
    [(451, "does not serve this location"), (403, "firewall"), (429, "too many"), (200, "unexpected")],
)
def test_a_refused_handshake_says_why(status: int, meaning: str) -> None:
    """Status, its meaning at this venue, and the beginning of the body."""
    answer = f"HTTP/1.1 {status} X\r\nContent-Length: 17\r\n\r\n".encode() + b'{"code":0,\n"a":1}'
    sliced = FrameSlicer().feed(answer)
    assert isinstance(sliced.error, HandshakeRefusedError)
    assert f"HTTP {status}" in str(sliced.error)
    assert meaning in str(sliced.error)
    assert str(sliced.error).endswith('({"code":0, "a":1})')
    assert (sliced.error.status, sliced.error.retry_after_s, sliced.passthrough) == (status, 0.0, b"")


def test_a_refusal_tells_how_long_the_venue_wants_to_be_left_alone() -> None:
    """Retry-After in seconds; a date is not what this venue sends."""
    first, second = (
        FrameSlicer().feed(b"HTTP/1.1 418 I'm a teapot\r\nRetry-After: " + value + b"\r\n\r\n").error
        for value in (b"120", b"Wed, 21 Oct 2026 07:28:00 GMT")
    )
    assert isinstance(first, HandshakeRefusedError)
    assert isinstance(second, HandshakeRefusedError)
    assert (first.retry_after_s, second.retry_after_s) == (120.0, 0.0)


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x15\x03\x01", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/2\r\n\r\n"]
)
def test_an_answer_that_is_not_http_is_refused_at_once(answer: bytes) -> None:
    """Nobody waits for a blank line that never comes."""
    error = FrameSlicer().feed(answer).error
    assert error is not None
    assert "not HTTP" in str(error)


def test_an_endless_head_is_refused() -> None:
    """The head of the answer is bounded."""
    slicer, error = FrameSlicer(), None
    for _ in range(MAX_HEAD_BYTES // 100 + 2):
        error = error or slicer.feed(b"HTTP/1.1 101 X\r\n".ljust(100, b"x")).error
    assert error is not None
    assert "bytes of head" in str(error)


class Consumer:
    """Keeps what it is given; waits while `room` is not set."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[bytes], float]] = []
        self.room = trio.Event()
        self.room.set()
        self.waiting = 0

    async def deliver(self, messages: list[bytes], received_s: float) -> None:
        self.waiting += 1
        await self.room.wait()
        self.waiting -= 1
        self.batches.append((messages, received_s))


async def open_lane(consumer: Consumer, first: Sequence[bytes] = ()) -> tuple[ReceiveLane, trio.abc.Stream]:
    """Return a lane past its handshake, with `first` already sent in one segment, and the venue's end of it."""
    ours, theirs = trio.testing.memory_stream_pair()
    lane = ReceiveLane(ours, consumer.deliver)
    await theirs.send_all(HEAD)
    assert await lane.receive_some(4096) == HEAD
    if first:
        await theirs.send_all(b"".join(first))
    return lane, theirs


async def test_messages_of_one_read_are_delivered_as_one_list_with_the_time_of_the_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One list, one receive time; only the control frame comes out of the stream."""
    consumer = Consumer()
    lane, venue = await open_lane(consumer)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            await trio.sleep(5)
            await venue.send_all(frame(b"a") + frame(b"b"))
            await trio.sleep(2)
            await venue.send_all(frame(b"c") + frame(b"!", PING))

        start_s = trio.current_time()
        assert await lane.receive_some() == frame(b"!", PING)
        assert consumer.batches == [([b"a", b"b"], start_s + 5)]
        await venue.send_all(frame(b"", PONG))
        assert await lane.receive_some() == frame(b"", PONG)
        assert consumer.batches[1:] == [([b"c"], start_s + 7)]


async def test_what_each_read_brings_is_counted() -> None:
    """Whatever it is: the handshake, messages, control frames."""
    ours, theirs = trio.testing.memory_stream_pair()
    counted: list[int] = []
    lane = ReceiveLane(ours, Consumer().deliver, count_bytes=counted.append)
    for sent in (HEAD, frame(b"a") + frame(b"b") + frame(b"!", PING)):
        await theirs.send_all(sent)
        await lane.receive_some()
        assert counted.pop() == len(sent)
    await theirs.aclose()
    assert await lane.receive_some() == b""
    assert counted == []


async def test_a_ping_is_passed_on_before_anyone_waits_for_room() -> None:
    """The batch of the same read stays pending, and is flushed before the next read."""
    consumer = Consumer()
    consumer.room = trio.Event()
    lane, venue = await open_lane(consumer, [frame(b"a"), frame(b"!", PING), frame(b"b")])
    assert await lane.receive_some() == frame(b"!", PING)
    assert consumer.waiting == 0
    consumer.room.set()
    await venue.send_all(frame(b"?", PING))
    assert await lane.receive_some() == frame(b"?", PING)
    assert [messages for messages, _ in consumer.batches] == [[b"a", b"b"]]


async def test_a_pending_batch_can_be_taken_after_the_reader_is_gone() -> None:
    """What was read with a control frame and not handed on yet is not lost with the reader; it is had once."""
    lane, _ = await open_lane(Consumer(), [frame(b"a"), frame(b"\x03\xe8", CLOSE)])
    received_s = trio.current_time()
    await lane.receive_some()
    messages, at_s = lane.take_pending()
    assert messages == [b"a"]
    assert at_s == pytest.approx(received_s, abs=1.0)
    assert lane.take_pending()[0] == []


async def test_messages_before_a_violation_stay_pending() -> None:
    """The error ends the connection, not what was good before it."""
    lane, _ = await open_lane(Consumer(), [frame(b"good"), frame(b"x", 0xC1)])
    with pytest.raises(DisconnectedError, match="reserved bits"):
        await lane.receive_some()
    assert lane.take_pending()[0] == [b"good"]


async def test_the_silence_clock_counts_any_byte_and_stands_still_while_the_consumer_is_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Half a frame is a sign of life; forty seconds in front of a full consumer are no silence of the venue."""
    consumer = Consumer()
    lane, venue = await open_lane(consumer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.receive_some)
        await trio.sleep(10)
        assert lane.silent_s(trio.current_time()) == 10
        await venue.send_all(frame(b"ab")[:3])
        await trio.sleep(4)
        assert lane.silent_s(trio.current_time()) == 4
        consumer.room = trio.Event()
        await venue.send_all(frame(b"ab")[3:])
        await trio.sleep(40)
        assert (consumer.waiting, lane.silent_s(trio.current_time())) == (1, 0)
        consumer.room.set()
        await trio.sleep(7)
        assert lane.silent_s(trio.current_time()) == 7
        nursery.cancel_scope.cancel()


async def test_little_is_read_for_a_consumer_that_was_full(autojump_clock: trio.testing.MockClock) -> None:
    """What came meanwhile waits with the network and not in memory; once it has room, a read takes all again."""
    consumer = Consumer()
    lane, venue = await open_lane(consumer)
    backlog = frame(bytes(1_000)) * 50
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.receive_some)
        consumer.room = trio.Event()
        await venue.send_all(frame(b"first"))
        await trio.sleep(2)
        await venue.send_all(backlog)
        await trio.sleep(1)
        consumer.room.set()
        await trio.sleep(1)
        await venue.send_all(backlog)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [len(messages) for messages, _ in consumer.batches] == [1, 16, 34, 50]


async def test_a_consumer_whose_channel_is_closed_is_a_bug_and_no_lost_connection() -> None:
    """trio-websocket keeps broken-resource errors to itself, so they are renamed."""

    async def deliver(messages: list[bytes], received_s: float) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    ours, theirs = trio.testing.memory_stream_pair()
    lane = ReceiveLane(ours, deliver)
    await theirs.send_all(HEAD + frame(b"a"))
    assert await lane.receive_some() == HEAD
    with pytest.raises(RuntimeError, match="consumer"):
        await lane.receive_some()


@pytest.mark.parametrize("bytes_before", [b"", HEAD[:20]])
async def test_an_end_before_the_handshake_is_over_is_a_lost_connection(bytes_before: bytes) -> None:
    """trio-websocket would wait for ever."""
    ours, theirs = trio.testing.memory_stream_pair()
    lane = ReceiveLane(ours, Consumer().deliver)
    await theirs.send_all(bytes_before)
    await theirs.aclose()
    with pytest.raises(DisconnectedError, match="during the handshake"):
        await lane.receive_some()


async def test_a_broken_stream_is_a_lost_connection_before_the_handshake_and_trio_websockets_matter_after_it() -> None:
    """Both ways end in DisconnectedError, this one at once."""

    async def break_off() -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    for head, seen_as in ((b"", DisconnectedError), (HEAD, trio.BrokenResourceError)):
        ours, theirs = trio.testing.memory_stream_pair()
        lane = ReceiveLane(ours, Consumer().deliver)
        if head:
            await theirs.send_all(head)
            await lane.receive_some()
        ours.receive_stream.receive_some_hook = break_off
        with pytest.raises(seen_as):
            await lane.receive_some()
        assert isinstance(lane.error, seen_as)


async def test_an_end_of_the_stream_and_everything_sent_pass_through() -> None:
    """The rest of the stream interface is that of the stream below."""
    lane, venue = await open_lane(Consumer())
    await lane.wait_send_all_might_not_block()
    await lane.send_all(b"out")
    assert await venue.receive_some() == b"out"
    await venue.aclose()
    assert await lane.receive_some() == b""
    await lane.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await lane.send_all(b"out")


def test_a_head_that_comes_at_once_is_no_longer_than_one_that_does_not() -> None:
    """The bound does not depend on the cut."""
    head = b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n"
    for chunks in ([head], [head[:9_000], head[9_000:]]):
        sliced = slice_all(chunks, head=b"")
        assert "bytes of head" in str(sliced.error)


@pytest.mark.parametrize("seconds", [b"9" * 400, b"99999999999", b"\xb2", b"1e9", b"-5"])
def test_a_refusal_is_not_obeyed_for_longer_than_the_longest_ban(seconds: bytes) -> None:
    """Three days; and what is no number says nothing."""
    error = slice_all([b"HTTP/1.1 429 Too Many\r\nRetry-After: " + seconds + b"\r\n\r\n"], head=b"").error
    assert isinstance(error, HandshakeRefusedError)
    assert 0 <= error.retry_after_s <= 3 * 86_400
