"""TLS: all records at once, against trio's own TLS stream as the peer."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
import trustme

from ingestor.tls import TlsStream

if TYPE_CHECKING:
    Peer = trio.SSLStream[trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def open_pair(
    authority: trustme.CA, *, name: str = "venue.example", version: ssl.TLSVersion | None = None
) -> tuple[TlsStream, Peer]:
    """Return our end, which trusts the authority and expects venue.example, and the peer's, certified for `name`."""
    ours, theirs = trio.testing.memory_stream_pair()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    if version is not None:
        trust.maximum_version = version
    proof = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(proof)
    stream = TlsStream(ours, trust, server_hostname="venue.example")
    return stream, trio.SSLStream(theirs, proof, server_side=True)


async def shake_hands(stream: TlsStream, peer: Peer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.do_handshake)
        nursery.start_soon(peer.do_handshake)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_all_records_that_have_arrived_come_at_once(authority: trustme.CA, version: ssl.TLSVersion) -> None:
    """A thousand small records are one piece, where trio's stream would give a thousand."""
    stream, peer = open_pair(authority, version=version)
    await shake_hands(stream, peer)
    for _ in range(1000):
        await peer.send_all(b"message;")
    assert await stream.receive_some() == b"message;" * 1000


async def test_a_limit_is_kept_and_the_rest_comes_next(authority: trustme.CA) -> None:
    """Decrypted bytes beyond `max_bytes` stay for the next call."""
    stream, peer = open_pair(authority)
    await shake_hands(stream, peer)
    await peer.send_all(b"0123456789" * 2000)
    await peer.send_all(b"abc")
    assert await stream.receive_some(15_000) == (b"0123456789" * 1500)
    assert await stream.receive_some(5_001) == (b"0123456789" * 500 + b"a")
    assert await stream.receive_some() == b"bc"


async def test_a_record_cut_in_pieces_is_waited_for(authority: trustme.CA) -> None:
    """Half a record is nothing yet."""
    stream, peer = open_pair(authority)
    await shake_hands(stream, peer)
    below = peer.transport_stream
    sent = bytearray()

    async def hold_back(data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        sent.extend(data)

    send_all, below.send_all = below.send_all, hold_back  # type: ignore[method-assign]
    await peer.send_all(b"whole")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            for byte in bytes(sent):
                await send_all(bytes([byte]))

        assert await stream.receive_some() == b"whole"


async def test_large_data_goes_out_whole(authority: trustme.CA) -> None:
    """More than one record's worth, in one call."""
    stream, peer = open_pair(authority)
    await shake_hands(stream, peer)
    received = bytearray()
    await stream.wait_send_all_might_not_block()
    await stream.send_all(b"y" * 100_000)
    await stream.send_all(b"")
    while len(received) < 100_000:
        received += await peer.receive_some()
    assert bytes(received) == b"y" * 100_000


@pytest.mark.parametrize("politely", [True, False])
async def test_data_before_the_end_comes_first_then_the_end(authority: trustme.CA, politely: bool) -> None:
    """With the peer's farewell or without, as HTTPS has it; the end stays the end."""
    stream, peer = open_pair(authority)
    await shake_hands(stream, peer)
    await peer.send_all(b"last words")
    if politely:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.aclose)
            await trio.testing.wait_all_tasks_blocked()
            assert await stream.receive_some() == b"last words"
            assert await stream.receive_some() == b""
            await stream.aclose()
    else:
        await trio.aclose_forcefully(peer)
        assert [await stream.receive_some() for _ in range(3)] == [b"last words", b"", b""]


async def test_bytes_that_are_not_tls_break_the_stream_after_what_was_good(authority: trustme.CA) -> None:
    """The record before the garbage is returned, then the error, and the error again."""
    stream, peer = open_pair(authority)
    await shake_hands(stream, peer)
    await peer.send_all(b"good")
    await peer.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert await stream.receive_some() == b"good"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="TLS broken"):
            await stream.receive_some()


async def test_bytes_that_were_never_tls_break_the_stream(authority: trustme.CA) -> None:
    """Nothing good before them: the error comes at once."""
    stream, peer = open_pair(authority)
    await shake_hands(stream, peer)
    await peer.transport_stream.send_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError, match="TLS broken"):
        await stream.receive_some()


async def test_a_peer_that_cannot_prove_its_name_is_told_and_refused(authority: trustme.CA) -> None:
    """The error names the reason; the peer learns it by an alert."""
    stream, peer = open_pair(authority, name="elsewhere.example")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            with pytest.raises(trio.BrokenResourceError) as seen:
                await peer.do_handshake()
            assert "alert" in str(seen.value.__cause__)

        with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for .venue\.example."):
            await stream.do_handshake()


async def test_a_peer_that_hangs_up_in_the_handshake_is_an_error(authority: trustme.CA) -> None:
    """The end of the stream is no handshake."""
    stream, peer = open_pair(authority)
    await peer.transport_stream.aclose()
    with pytest.raises((ssl.SSLError, trio.BrokenResourceError)):
        await stream.do_handshake()


async def test_what_the_peer_says_between_data_is_no_data(authority: trustme.CA) -> None:
    """Session tickets come after the handshake; both ways work on."""
    stream, peer = open_pair(authority)
    await shake_hands(stream, peer)
    await stream.send_all(b"ping")
    assert await peer.receive_some() == b"ping"
    await peer.send_all(b"pong")
    assert await stream.receive_some() == b"pong"
