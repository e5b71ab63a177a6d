"""The receive lane: whole data messages out of the byte stream, in lists; everything else to trio-websocket.

A message that goes through a WebSocket library costs some 70 µs here, nearly all of it in objects and task switches per
message (architecture.md §9). The lane wraps the (TLS) stream and stands under trio-websocket: it cuts the data frames
of one read out of the buffer in one loop and hands them on as one list. The opening handshake and the control frames
pass to trio-websocket, which answers pings and closes. A peer that breaks the protocol costs the connection, never the
process.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import trio

from ingestor.core.errors import DisconnectedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Final, TypeAlias

    Deliver: TypeAlias = "Callable[[list[bytes], float], Awaitable[None]]"  # messages, receive time (trio clock)

# Takes the burst of 520 messages in 10 ms that was measured (facts/binance.md §14), and stays below the size from which
# malloc maps every buffer anew: a small read into 256 KiB cost 16 µs, into this 2.5 µs (glibc 2.36,
# measured 2026-11-23).
READ_BYTES: Final = 120 * 1024
# A consumer that took so long is full: what it has no room for stays with the network, and is not read into memory.
HELD_UP_S: Final = 1.0
HELD_UP_READ_BYTES: Final = 16 * 1024
# The largest real frame is 35 kB; a megabyte is room for what the venue may invent, and a bound on what a broken peer
# costs.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
MAX_HEAD_BYTES: Final = 16 * 1024  # of the HTTP answer; the HTTP library below has the same limit

# First byte of a frame: FIN bit, three reserved bits, opcode (RFC 6455 §5.2).
FIN: Final = 0x80
RESERVED_BITS: Final = 0x70
CONTINUATION: Final = 0x00
TEXT: Final = 0x01
BINARY: Final = 0x02
CLOSE: Final = 0x88
CONTROL: Final = frozenset({CLOSE, 0x89, 0x8A})
# Second byte: mask bit, then a length below 126 or the width of the length that follows.
LENGTH_16: Final = 126
LENGTH_64: Final = 127
LONGEST_16: Final = 0xFFFF
# The head of nearly every frame: a whole text message, and a length of two bytes.
WHOLE_TEXT_16: Final = (FIN | TEXT) << 8 | LENGTH_16
read_head: Final = Struct(">HH").unpack_from

LONGEST_WAIT_S: Final = 3 * 86_400.0  # the longest ban of the venue (facts/binance.md §7); more is not waited for
REFUSALS: Final = {
    403: "the venue's firewall refused it",
    418: "this IP address is banned for exceeding limits",
    429: "too many requests",
    451: "the venue does not serve this location",
}


class HandshakeRefusedError(DisconnectedError):
    """The venue answered the handshake with another status than 101, and asked to wait `retry_after_s` (0: did not)."""

    def __init__(self, status: int, detail: str, retry_after_s: float) -> None:
        meaning = REFUSALS.get(status, "unexpected answer")
        super().__init__(f"handshake answered with HTTP {status}: {meaning}{f' ({detail})' if detail else ''}")
        self.status = status
        self.retry_after_s = retry_after_s


class Sliced(NamedTuple):
    """What one feed gave: whole messages in order, bytes for trio-websocket, and what is wrong with the peer."""

    messages: list[bytes]
    passthrough: bytes
    error: DisconnectedError | None = None


class Frame(NamedTuple):
    """Where the payload of a frame begins and ends, and how many bytes are missing that are known of."""

    start: int
    stop: int
    missing: int


def cut_texts(data: bytes, position: int, longest: int, messages: list[bytes]) -> int:
    """Cut out the run of whole text messages, each of 126 to `longest` bytes, at `position`; return where it ends.

    Nearly every message of the venue is one, and this loop is what it costs.
    """
    end = len(data)
    while position + 4 <= end:
        head, length = read_head(data, position)
        start = position + 4
        stop = start + length
        if head != WHOLE_TEXT_16 or stop > end or not LENGTH_16 <= length <= longest:
            break
        messages.append(data[start:stop])
        position = stop
    return position


class FrameSlicer:
    """Cuts the bytes a WebSocket server sends into data messages and the rest; feed it whatever arrived.

    Reserved bits and masks are errors because no extension is negotiated and servers do not mask. The text of a message
    is not checked: who decodes it will, and one bad message should not cost the connection. After an error nothing more
    is cut.
    """

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.is_open = False  # the handshake is over
        self._max_message_bytes = max_message_bytes
        self._held: list[bytes] = []  # the start of a frame; joined only when the rest is there
        self._missing_bytes = 0
        self._fragments: list[bytes] | None = None
        self._fragments_bytes = 0
        self._is_closed = False

    def feed(self, data: bytes) -> Sliced:
        """Take bytes as they arrived, in any cut."""
        if len(data) < self._missing_bytes:
            self._held.append(data)
            self._missing_bytes -= len(data)
            return Sliced([], b"")
        if self._held:
            data = b"".join([*self._held, data])
            self._held = []
        self._missing_bytes = 0
        if self._is_closed:
            return Sliced([], data)
        return self._slice(data, 0) if self.is_open else self._shake_hands(data)

    def _hold(self, rest: bytes, missing_bytes: int) -> None:
        if rest:
            self._held.append(rest)
            self._missing_bytes = missing_bytes

    def _shake_hands(self, data: bytes) -> Sliced:
        """Let the head of the HTTP answer pass when it says 101; what follows it may be frames already."""
        end = data.find(b"\r\n\r\n") + 4
        if not data.startswith(b"HTTP/1."[: len(data)]):
            return Sliced([], b"", DisconnectedError("handshake answered with something that is not HTTP"))
        is_whole = end >= 4
        if (end if is_whole else len(data)) > MAX_HEAD_BYTES:
            return Sliced(
                [], b"", DisconnectedError(f"handshake answered with more than {MAX_HEAD_BYTES} bytes of head")
            )
        if not is_whole:
            self._hold(data, 1)
            return Sliced([], b"")
        if data[8:13] != b" 101 ":
            return Sliced([], b"", refusal(data[:end], data[end:]))
        self.is_open = True
        return self._slice(data, end)

    def _slice(self, data: bytes, position: int) -> Sliced:
        """Cut every whole frame from `position` on: most of them in runs, the others one by one."""
        messages: list[bytes] = []
        passed = [data[:position]]
        missing = 1
        while True:
            if self._fragments is None:  # inside a fragmented message no other one may begin
                position = cut_texts(data, position, min(self._max_message_bytes, LONGEST_16), messages)
            frame = self._frame(data, position)
            if isinstance(frame, str):
                return self._fail(messages, passed, frame)
            if frame.missing:
                missing = frame.missing
                break
            first = data[position]
            if first in CONTROL:
                passed.append(data[position : frame.stop])
                if first == CLOSE:  # what follows a close frame means nothing (RFC 6455 §5.5.1)
                    self._is_closed = True
                    position = len(data)
                    break
            else:
                messages += self._put_together(first, data[frame.start : frame.stop])
            position = frame.stop
        self._hold(data[position:], missing)
        return Sliced(messages, b"".join(passed))

    def _frame(self, data: bytes, position: int) -> Frame | str:
        """Read the head of the frame at `position`, of any kind; a text says what is wrong with it."""
        start = position + 2
        if start > len(data):
            return Frame(start, start, start - len(data))
        first, length = data[position], data[position + 1]
        if length >= LENGTH_16:
            if length > LENGTH_64:
                return "masked frame from the server"
            start += 2 if length == LENGTH_16 else 8
            if start > len(data):
                return Frame(start, start, start - len(data))
            shortest = LENGTH_16 if length == LENGTH_16 else LONGEST_16 + 1
            length = int.from_bytes(data[position + 2 : start])
            if length < shortest:
                return "frame length not in its shortest form"
            if length > self._max_message_bytes:
                return f"message of more than {self._max_message_bytes} bytes"
        stop = start + length
        return self._flaw(first, length) or Frame(start, stop, max(0, stop - len(data)))

    def _flaw(self, first: int, length: int) -> str | None:
        """Say what is wrong with a frame by its first byte and its length; None if nothing is."""
        if first in CONTROL:
            return "control frame longer than 125 bytes" if length >= LENGTH_16 else None
        if first & RESERVED_BITS:
            return "reserved bits without an extension"
        opcode = first & ~FIN
        if opcode not in {CONTINUATION, TEXT, BINARY}:
            return "fragmented control frame" if first | FIN in CONTROL else f"unknown opcode {opcode:#x}"
        if (opcode == CONTINUATION) != (self._fragments is not None):
            return "continuation of nothing" if opcode == CONTINUATION else "new message inside a fragmented one"
        if self._fragments_bytes + length > self._max_message_bytes:
            return f"message of more than {self._max_message_bytes} bytes"
        return None

    def _put_together(self, first: int, payload: bytes) -> list[bytes]:
        """Keep a fragment; return the message that it completes, or nothing. A binary message completes itself."""
        fragments = [] if self._fragments is None else self._fragments
        if payload:  # empty ones count for nothing, and may come without end
            fragments.append(payload)
        if first & FIN:
            self._fragments, self._fragments_bytes = None, 0
            return [b"".join(fragments)]
        self._fragments = fragments
        self._fragments_bytes += len(payload)
        return []

    def _fail(self, messages: list[bytes], passed: list[bytes], flaw: str) -> Sliced:
        self._is_closed = True
        return Sliced(messages, b"".join(passed), DisconnectedError(f"protocol broken by the venue: {flaw}"))


def refusal(head: bytes, body: bytes) -> DisconnectedError:
    """Read an HTTP answer that is no 101, as far as it is readable; `body` is what came along with the head."""
    status_line, *lines = head.decode("latin-1").splitlines()
    status = status_line[9:12]
    if not status.isdecimal():
        return DisconnectedError("handshake answered with something that is not HTTP")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    retry_after = headers.get("retry-after", "")
    detail = " ".join(body[:200].decode("utf-8", errors="replace").split())
    wait_s = float(retry_after) if retry_after.isdecimal() else 0.0
    return HandshakeRefusedError(int(status), detail, min(wait_s, LONGEST_WAIT_S))


class ReceiveLane(trio.abc.Stream):
    """A stream under trio-websocket that keeps the data messages for `deliver` and passes on the rest.

    `deliver(messages, received_s)` is awaited within `receive_some`, before the next read, so that a slow consumer
    stalls the reader. It is called once for each list, in order; a list it was not yet called with stays and is had
    from `take_pending`. Control frames that arrived with messages are passed on first: a ping is answered even while
    the consumer is full.

    `error` is what ended it. It is raised to trio-websocket as well, but its reader may lose it on its way out: there
    is a checkpoint, and a cancellation that arrives at it takes the place of the error. So whoever ends the connection
    looks here.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        deliver: Deliver,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        count_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """`count_bytes` is told how much each read brought, of whatever kind."""
        self.error: Exception | None = None
        self._count_bytes = count_bytes
        self._stream = stream
        self._deliver = deliver
        self._slicer = FrameSlicer(max_message_bytes)
        self._pending: list[bytes] = []
        self._pending_received_s = 0.0
        self._blocked_since_s: float | None = None
        self._blocked_s = 0.0
        self._read_bytes = READ_BYTES
        self._last_byte_s = self.listened_s(trio.current_time())

    def listened_s(self, now: float) -> float:
        """Read a clock that stands still while we wait for the consumer, because nothing is read then."""
        return (now if self._blocked_since_s is None else self._blocked_since_s) - self._blocked_s

    def silent_s(self, now: float) -> float:
        """Return for how long we listened and not one byte came."""
        return self.listened_s(now) - self._last_byte_s

    def take_pending(self) -> tuple[list[bytes], float]:
        """Return the messages that were read and not handed on yet, with their receive time, and forget them."""
        pending, self._pending = self._pending, []
        return pending, self._pending_received_s

    async def flush(self) -> None:
        """Hand on what is pending."""
        if not self._pending:
            return
        self._blocked_since_s = trio.current_time()
        try:
            await self._deliver(*self.take_pending())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            # trio-websocket would take it for a broken connection and keep it to itself.
            raise RuntimeError("the consumer of the receive lane is gone") from error
        finally:
            blocked_s = trio.current_time() - self._blocked_since_s
            self._blocked_s += blocked_s
            self._blocked_since_s = None
            self._read_bytes = HELD_UP_READ_BYTES if blocked_s > HELD_UP_S else READ_BYTES

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes for trio-websocket: handshake and control frames, whole ones; b"" at the end of the stream.

        `max_bytes` is not looked at: what is left of a large read is small, and cutting it would help nobody. Raises
        DisconnectedError when the venue refuses the handshake or breaks the protocol, and what `deliver` raises.
        """
        del max_bytes
        try:
            return await self._receive()
        except Exception as error:
            self.error = error
            raise

    async def _receive(self) -> bytes:
        while True:
            await self.flush()
            data = await self._read()
            if not data:
                return data
            if self._count_bytes is not None:
                self._count_bytes(len(data))
            now = trio.current_time()
            self._last_byte_s = self.listened_s(now)
            self._pending, passthrough, error = self._slicer.feed(data)
            self._pending_received_s = now
            if error is not None:
                raise error
            if passthrough:
                return passthrough

    async def _read(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(self._read_bytes))
        except trio.BrokenResourceError as error:
            if self._slicer.is_open:
                raise
            raise DisconnectedError("connection lost during the handshake") from error
        if not data and not self._slicer.is_open:  # trio-websocket would wait for ever
            raise DisconnectedError("connection closed during the handshake")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send as the stream below does."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream below does."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream below."""
        await self._stream.aclose()
