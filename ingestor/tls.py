"""TLS over a stream that gives all records which have arrived, at once.

The venue writes each message as a TLS record of its own, and `trio.SSLStream` gives one record per call: every message
would pay for its own trip through the event loop. This stream takes what the socket holds, decrypts all of it and
returns it as one piece. It ends like HTTPS does: without a farewell of its own, and an end without the peer's is an
end.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from typing import Final

READ_BYTES: Final = 120 * 1024  # below the size from which malloc maps every buffer anew, as in frames.py
RECORD_BYTES: Final = 16 * 1024  # no record holds more (RFC 8446 §5.1)


class TlsStream(trio.abc.Stream):
    """The client's end of a TLS connection, verified by `context` against `server_hostname`, which is also sent as SNI.

    `do_handshake()` comes first; it raises ssl.SSLError when the peer cannot prove who it is. Later failures are
    trio.BrokenResourceError, as streams have it.
    """

    def __init__(self, stream: trio.abc.Stream, context: ssl.SSLContext, *, server_hostname: str) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._sending = trio.StrictFIFOLock()
        self._broken: ssl.SSLError | None = None

    async def do_handshake(self) -> None:
        """Agree on keys with the peer, and know that it is who it should be."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                await self._flush()  # noqa: ASYNC120 - the alert that tells the peer why; cancelled, nobody asks
                raise
            else:
                await self._flush()
                return

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return all that has arrived, up to `max_bytes`; b"" at the end."""
        limit_bytes = READ_BYTES if max_bytes is None else max_bytes
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                plain = self._decrypt(limit_bytes)
            except ssl.SSLError as error:
                raise trio.BrokenResourceError("TLS broken by the peer") from error
            if plain is not None:
                return plain
            await self._flush()  # an answer to a change of keys; later than the data, which a failure here would lose
            await self._fill()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        with memoryview(data) as rest:
            sent_bytes = 0
            while sent_bytes < len(rest):
                sent_bytes += self._tls.write(rest[sent_bytes:])
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream below does."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream below."""
        await self._stream.aclose()

    def _decrypt(self, limit_bytes: int) -> bytes | None:
        """Return the content of all whole records held, b"" at the end, None while there is no whole record.

        What was good before an error or the end is returned first, the rest by the next call.
        """
        if self._broken is not None:
            raise self._broken
        parts: list[bytes] = []
        size_bytes = 0
        try:
            while size_bytes < limit_bytes:
                part = self._tls.read(min(RECORD_BYTES, limit_bytes - size_bytes))
                if not part:
                    break
                parts.append(part)
                size_bytes += len(part)
        except ssl.SSLWantReadError:
            if not parts:
                return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            self._broken = error  # asked again, the library would call it an end
            if not parts:
                raise
        return b"".join(parts)

    async def _fill(self) -> None:
        data = await self._stream.receive_some(READ_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        """Send what is encrypted; one at a time, because records are numbered."""
        async with self._sending:
            if self._outgoing.pending:
                await self._stream.send_all(self._outgoing.read())
