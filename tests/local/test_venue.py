"""The venue as a client meets it: over in-memory streams on a virtual clock, and once over real sockets."""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url, wrap_client_stream

from ingestor.core.claims import Intervals
from ingestor.core.model import Subscription
from ingestor.local import faults
from ingestor.local.history import Bar, Book
from ingestor.local.market import Market
from ingestor.local.protocol import Rules
from ingestor.local.recording import Recording
from ingestor.local.venue import Venue, VenueUrls

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    MemoryStream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]

BASE_MS = 1_790_000_040_000
TRADES = Subscription("BTCUSDT", "trade")


def wall_ns() -> int:
    """Tell the wall clock that goes with the virtual one."""
    return BASE_MS * 1_000_000 + round(trio.current_time() * 1e9)


class Box:
    """A venue without sockets."""

    def __init__(self, venue: Venue, nursery: trio.Nursery) -> None:
        self.venue = venue
        self._nursery = nursery

    def dial(self) -> MemoryStream:
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self.venue.handle, theirs)
        return ours

    async def connect(self, resource: str) -> WebSocketConnection:
        stream: Any = self.dial()  # annotated for sockets, good for any stream
        return await wrap_client_stream(self._nursery, stream, "venue", resource, max_message_size=1 << 26)

    async def get(self, target: str) -> tuple[int, dict[str, str], Any]:
        stream = self.dial()
        await stream.send_all(f"GET {target} HTTP/1.1\r\nhost: venue\r\nconnection: close\r\n\r\n".encode())
        head, _, body = b"".join([part async for part in stream]).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, body


@asynccontextmanager
async def open_box(
    *,
    script: Sequence[faults.Fault] = (),
    source: Any = None,
    orders_per_s: float = 20.0,
    windows_differ: bool = False,
    **rules: Any,
) -> AsyncGenerator[Box, None]:
    market = source or Market(("BTCUSDT", "ETHUSDT"), start_ms=BASE_MS, orders_per_s=orders_per_s)
    async with trio.open_nursery() as nursery:
        venue = Venue(market, script=script, rules=Rules(**rules), wall_ns=wall_ns, windows_differ=windows_differ)
        nursery.start_soon(venue.run)
        yield Box(venue, nursery)
        nursery.cancel_scope.cancel()


async def receive(client: WebSocketConnection) -> Any:
    return json.loads(await client.get_message())


async def receive_for(client: WebSocketConnection, seconds: float) -> list[Any]:
    """Everything that comes within `seconds`."""
    messages: list[Any] = []
    with trio.move_on_after(seconds):
        while True:
            messages.append(await receive(client))
    return messages


async def drain(client: WebSocketConnection, into: list[Any]) -> None:
    """Take everything, until the connection is closed."""
    while True:
        into.append(await receive(client))


async def closing(client: WebSocketConnection) -> tuple[int | None, str | None]:
    """Code and reason of the close that comes."""
    with pytest.raises(ConnectionClosed) as caught:
        await drain(client, [])
    reason = caught.value.reason
    assert reason is not None
    return reason.code, reason.reason


def ids(messages: Sequence[Any]) -> list[int]:
    return [one["data"]["t"] for one in messages if one.get("data", {}).get("e") == "trade"]


def spread(numbers: Sequence[int]) -> Intervals:
    return Intervals((number, number) for number in numbers)


async def test_raw_and_combined_connections_get_the_same_events(autojump_clock: MockClock) -> None:
    """Bare under /ws, wrapped under /stream, from the same ids."""
    async with open_box() as box:
        raw = await box.connect("/ws/btcusdt@trade/btcusdt@depth@100ms")
        wrapped = await box.connect("/stream?streams=btcusdt@trade/btcusdt@depth@100ms")
        bare = [await receive(raw) for _ in range(20)]
        assert [(await receive(wrapped))["data"] for _ in range(20)] == bare


async def test_windows_may_be_cut_differently_on_each_connection(autojump_clock: MockClock) -> None:
    """Both chains are whole and end in the same book, and hardly an event is the same."""
    async with open_box(windows_differ=True) as box:
        clients = [await box.connect("/ws/btcusdt@depth@100ms") for _ in range(2)]
        await trio.sleep(5.0)
        narrow, wide = [await receive_for(client, 0.001) for client in clients]
        assert len(wide) == len(narrow) // 2
        for rows in (narrow, wide):
            assert all(earlier["u"] + 1 == later["U"] for earlier, later in pairwise(rows))
        assert book_of(narrow[: 2 * len(wide)]) == book_of(wide)


def book_of(rows: Sequence[Any]) -> tuple[dict[int, int], dict[int, int]]:
    book = Book()
    for row in rows:
        book.apply(row["b"], row["a"], row["u"])
    return book.bids, book.asks


async def test_acks_interleave_and_the_ledger_agrees(autojump_clock: MockClock) -> None:
    """Subscribing and unsubscribing take effect; what was sent is what came; what was produced goes on."""
    async with open_box() as box:
        client = await box.connect("/stream")
        await client.send_message('{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}')
        assert await receive(client) == {"result": None, "id": 1}
        messages = await receive_for(client, 5.0)
        await client.send_message('{"method":"UNSUBSCRIBE","params":["btcusdt@trade"],"id":2}')
        messages += await receive_for(client, 5.0)
        assert {"result": None, "id": 2} in messages
        account = box.venue.ledger[TRADES]
        seen = ids(messages)
        assert account.sent == spread(seen)
        assert account.sent_messages == len(seen) == box.venue.messages_sent
        assert account.produced_messages == account.produced.count() > account.sent_messages
        assert len(account.produced) == 1


async def test_what_was_ever_subscribed_to_is_known(autojump_clock: MockClock) -> None:
    """Also once its connection is gone."""
    async with open_box() as box:
        client = await box.connect("/ws/btcusdt@trade")
        await client.aclose()
        await trio.sleep(2.0)
        assert (box.venue.connections, set(box.venue.subscribed)) == (0, {"btcusdt@trade"})


async def test_rest_and_streams_tell_the_same_trades(autojump_clock: MockClock) -> None:
    """Ids, prices and quantities of the stream are those of historicalTrades."""
    async with open_box() as box:
        client = await box.connect("/stream?streams=btcusdt@trade")
        rows = [one["data"] for one in await receive_for(client, 3.0)]
        _, headers, body = await box.get(
            f"/api/v3/historicalTrades?symbol=BTCUSDT&fromId={rows[0]['t']}&limit={len(rows)}"
        )
        assert headers["x-mbx-used-weight-1m"] == "25"
        assert [(one["id"], one["price"], one["qty"], one["time"]) for one in json.loads(body)] == [
            (row["t"], row["p"], row["q"], row["T"]) for row in rows
        ]


async def test_the_venue_pings_and_drops_who_does_not_answer(autojump_clock: MockClock) -> None:
    """A client that answers stays for its 24 hours, a mute one goes a minute after the first ping."""
    async with open_box(orders_per_s=0.01) as box:
        client = await box.connect("/ws")
        mute = box.dial()
        await mute.send_all(handshake("/ws"))
        await trio.sleep(79.0)
        assert box.venue.connections == 2
        await trio.sleep(3.0)
        assert box.venue.connections == 1
        received = b"".join([part async for part in mute])
        assert received.count(b"\x89") == 3
        assert b"Pong timeout" in received
        await client.aclose()
        await trio.sleep(1.1)
        assert box.venue.connections == 0


def handshake(target: str) -> bytes:
    return (
        f"GET {target} HTTP/1.1\r\nhost: venue\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    ).encode()


async def test_a_pong_that_echoes_no_ping_keeps_nobody(autojump_clock: MockClock) -> None:
    """The venue wants its payload back; what comes unasked counts as a message and no more (facts/binance.md §2)."""
    async with open_box(orders_per_s=0.01) as box:
        client = box.dial()
        await client.send_all(handshake("/ws"))
        for _ in range(8):
            await trio.sleep(10.0)
            await client.send_all(b"\x8a\x80\x00\x00\x00\x00")
        await trio.sleep(1.5)
        assert box.venue.connections == 0


async def test_a_day_is_a_lifetime(autojump_clock: MockClock) -> None:
    """The connection is closed by the venue when its time is over."""
    async with open_box(lifetime_s=30.0) as box:
        client = await box.connect("/ws")
        assert await closing(client) == (1001, "24 hours are over")
        assert trio.current_time() == pytest.approx(30.0, abs=0.1)


async def test_too_many_messages_are_closed_with_1008(autojump_clock: MockClock) -> None:
    """The sixth message within a second."""
    async with open_box() as box:
        client = await box.connect("/ws")
        for _ in range(6):
            await client.send_message('{"method":"LIST_SUBSCRIPTIONS","id":1}')
        assert await closing(client) == (1008, "Too many requests")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (handshake("/nowhere"), b"400"),
        (handshake("/ws/nonsense"), b"400"),
        (handshake("//["), b"400"),
        (b"GET //[ HTTP/1.1\r\nhost: venue\r\n\r\n", b"400"),
        (b"GET /api/v3/depth?limit=%b HTTP/1.1\r\nhost: venue\r\n\r\n" % (b"9" * 5_000), b"400"),
        (b"GET /data/spot/monthly/trades/A/A-trades-2024-13.zip HTTP/1.1\r\nhost: venue\r\n\r\n", b"404"),
        (b"GET /data/spot/monthly/trades/A/A-trades-0000-01.zip HTTP/1.1\r\nhost: venue\r\n\r\n", b"404"),
        (handshake("/ws").replace(b"version: 13", b"version: 99"), b"400"),
        (b"no http at all\r\n\r\n", b""),
        (b"GET /api/v3/ping HTTP/1.1\r\n", b""),
    ],
)
async def test_bad_handshakes_are_refused(request_bytes: bytes, status: bytes, autojump_clock: MockClock) -> None:
    """HTTP 400, or nothing to those who do not speak HTTP; and the venue lives on."""
    async with open_box() as box:
        stream = box.dial()
        await stream.send_all(request_bytes)
        if not status:
            await trio.sleep(1.0)
            await stream.aclose()
        else:
            assert (await stream.receive_some(100)).split()[1] == status
        assert (await box.get("/api/v3/ping"))[0] == 200


async def test_300_connects_in_five_minutes_are_enough(autojump_clock: MockClock) -> None:
    """Attempts above the limit get 429, and the window moves on."""
    async with open_box(connects=2, connect_window_s=10.0) as box:
        for _ in range(2):
            await box.connect("/ws")
        stream = box.dial()
        await stream.send_all(handshake("/ws"))
        assert b" 429 " in await stream.receive_some(100)
        await trio.sleep(11.0)
        await box.connect("/ws")


async def test_several_requests_use_one_connection(autojump_clock: MockClock) -> None:
    """Keep-alive, as HTTP/1.1 has it."""
    async with open_box() as box:
        stream = box.dial()
        for _ in range(2):
            await stream.send_all(b"GET /api/v3/ping HTTP/1.1\r\nhost: venue\r\n\r\n")
            assert (await stream.receive_some(1_000)).endswith(b"\r\n\r\n{}")


async def test_a_slow_reader_is_dropped(autojump_clock: MockClock) -> None:
    """What it does not read is bounded; then the connection is cut."""
    async with open_box(orders_per_s=2_000.0, outbound_bytes=10_000) as box:
        ours, theirs = lockstep_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.venue.handle, theirs)
            await ours.send_all(handshake("/ws/btcusdt@trade"))
            await ours.receive_some(1_000)
            assert box.venue.connections == 1
            await trio.sleep(1.0)
            assert box.venue.connections == 0


async def test_a_client_that_vanishes_takes_nobody_with_it(autojump_clock: MockClock) -> None:
    """Reading and writing both meet a broken stream; the other connections go on."""
    async with open_box() as box:
        other = await box.connect("/stream?streams=btcusdt@trade")
        for _ in range(3):
            stream = box.dial()
            await stream.send_all(handshake("/ws/btcusdt@trade/ethusdt@trade"))
            await stream.receive_some(1_000)
            await stream.aclose()
            await trio.sleep(1.0)
        assert box.venue.connections == 1
        assert await receive_for(other, 1.0)


async def test_what_comes_with_the_handshake_is_heard(autojump_clock: MockClock) -> None:
    """A client may speak before it has read the answer; binary messages mean nothing, ends of TCP are ends."""
    async with open_box(orders_per_s=0.01) as box:
        stream = box.dial()
        mask = b"\x00\x00\x00\x00"
        text = b'{"method":"GET_PROPERTY","params":["combined"],"id":1}'
        masked = bytes((0x81, 0x80 | len(text))) + mask + text
        await stream.send_all(handshake("/ws") + b"\x82\x80" + mask + b"\x89\x80" + mask + masked)
        answer = await stream.receive_some(1_000)
        assert answer is not None
        assert answer.endswith(b'\r\n\r\n\x8a\x00\x81\x17{"result":false,"id":1}')
        await stream.send_stream.aclose()
        assert await stream.receive_some(1_000) == b""
        assert box.venue.connections == 0


async def test_pings_after_a_close_are_not_answered(autojump_clock: MockClock) -> None:
    """The venue closes for too many messages; what comes later is read and ignored."""
    async with open_box(orders_per_s=0.01) as box:
        stream = box.dial()
        await stream.send_all(handshake("/ws") + b"\x89\x80\x00\x00\x00\x00" * 9)
        received = b"".join([part async for part in stream])
        assert received.count(b"\x8a\x00") == 6
        assert received.endswith(b"Too many requests")


async def test_a_client_that_breaks_the_protocol_is_left(autojump_clock: MockClock) -> None:
    """Unmasked frames are none of a client's."""
    async with open_box() as box:
        stream = box.dial()
        await stream.send_all(handshake("/ws") + b"\x81\x02{}")
        received = b"".join([part async for part in stream])
        assert received.startswith(b"HTTP/1.1 101")
        assert b"\x03\xea" in received  # 1002, protocol error


# -- faults -----------------------------------------------------------------------------------------------------------


async def test_disconnects_lose_what_happens_meanwhile_and_the_ledger_knows(autojump_clock: MockClock) -> None:
    """Cut at two seconds: the ids produced until the reconnect are in no message, and REST has them."""
    async with open_box(script=[faults.Disconnect(2.0)]) as box:
        client = await box.connect("/stream?streams=btcusdt@trade")
        messages: list[Any] = []
        with pytest.raises(ConnectionClosed):
            await drain(client, messages)
        await trio.sleep(2.0)
        again = await box.connect("/stream?streams=btcusdt@trade")
        seen = ids(messages + await receive_for(again, 2.0))
        account = box.venue.ledger[TRADES]
        assert account.sent == spread(seen)
        assert len(account.sent) == 2
        assert len(account.produced) == 1


async def test_only_the_oldest_connection_is_cut(autojump_clock: MockClock) -> None:
    """The other one stays."""
    async with open_box() as box:
        oldest, other = await box.connect("/ws"), await box.connect("/ws")
        box.venue.suffer(faults.Disconnect(0.0, "oldest"))
        with pytest.raises(ConnectionClosed):
            await oldest.get_message()
        assert box.venue.connections == 1
        await other.ping()


@pytest.mark.parametrize("mute", [False, True])
async def test_handshakes_are_refused_or_left_unanswered(mute: bool, autojump_clock: MockClock) -> None:
    """Hung up on, or a half-open connection that says nothing; afterwards all is well."""
    async with open_box() as box:
        box.venue.suffer(faults.Refuse(0.0, 5.0, mute))
        stream = box.dial()
        await stream.send_all(handshake("/ws"))
        answer = None
        with trio.move_on_after(2.0):
            answer = await stream.receive_some(100)
        assert answer == (None if mute else b"")
        await stream.aclose()
        await trio.sleep(5.0)
        await box.connect("/ws")


async def test_a_stall_is_silence_on_an_open_connection(autojump_clock: MockClock) -> None:
    """No data, no pings, no replies; and what happened is lost to that connection."""
    async with open_box() as box:
        client = await box.connect("/stream?streams=btcusdt@trade")
        before = ids(await receive_for(client, 1.0))
        box.venue.suffer(faults.Stall(0.0, 30.0))
        await client.send_message('{"method":"LIST_SUBSCRIPTIONS","id":1}')
        assert await receive_for(client, 29.9) == []
        after = ids(await receive_for(client, 1.0))
        assert after[0] > before[-1] + 100


async def test_a_deaf_subscription_is_cured_by_subscribing_again(autojump_clock: MockClock) -> None:
    """The other stream goes on; the dead one stays listed, silent, until it is named again."""
    async with open_box() as box:
        client = await box.connect("/stream?streams=btcusdt@trade/ethusdt@trade")
        await receive_for(client, 1.0)
        box.venue.suffer(faults.Deafen(0.0, "btcusdt@trade"))
        assert {one["stream"] for one in await receive_for(client, 5.0)} == {"ethusdt@trade"}
        await client.send_message('{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}')
        assert {one.get("stream") for one in await receive_for(client, 5.0)} == {"btcusdt@trade", "ethusdt@trade", None}


async def test_skipped_and_repeated_messages(autojump_clock: MockClock) -> None:
    """Skipped ones exist for REST and the ledger only; repeated ones come twice in a row."""
    script: list[faults.Fault] = [faults.Skip(1.0, "btcusdt@trade", 3), faults.Repeat(2.0, "btcusdt@trade", 2)]
    async with open_box(script=script) as box:
        client = await box.connect("/stream?streams=btcusdt@trade")
        other = await box.connect("/ws/ethusdt@trade")
        seen = ids(await receive_for(client, 4.0))
        steps = [later - earlier for earlier, later in pairwise(seen)]
        assert [step for step in steps if step != 1] == [4, 0, 0]
        account = box.venue.ledger[TRADES]
        assert account.produced.count() - account.sent.count() == 3
        assert account.sent_messages - account.sent.count() == 2
        untouched = [one["t"] for one in await receive_for(other, 4.0)]
        assert untouched == list(range(untouched[0], untouched[0] + len(untouched)))


async def test_fragments_are_put_together_again_by_a_correct_client(autojump_clock: MockClock) -> None:
    """Three fragments with a ping inside are one message."""
    async with open_box() as box:
        client = await box.connect("/stream?streams=btcusdt@trade")
        box.venue.suffer(faults.Fragment(0.0, 5))
        seen = ids(await receive_for(client, 2.0))
        assert seen == list(range(seen[0], seen[0] + len(seen)))
        assert len(seen) > 5


@pytest.mark.parametrize("what", ["invalid_json", "unknown_event", "unknown_stream", "missing_field", "oversize"])
async def test_garbage_arrives_between_events(what: faults.Garbage, autojump_clock: MockClock) -> None:
    """As it is, on a connection that goes on."""
    async with open_box() as box:
        client = await box.connect("/stream?streams=btcusdt@trade")
        box.venue.suffer(faults.Inject(0.0, what))
        while await client.get_message() != faults.garbage(what).decode():
            pass
        assert await receive_for(client, 1.0)


@pytest.mark.parametrize("what", ["invalid_utf8", "reserved_bits"])
async def test_broken_frames_break_a_correct_client(what: faults.Garbage, autojump_clock: MockClock) -> None:
    """The client closes with a protocol error, and the venue lives on."""
    async with open_box() as box:
        client = await box.connect("/stream?streams=btcusdt@trade")
        box.venue.suffer(faults.Inject(0.0, what))
        with pytest.raises(ConnectionClosed):
            await drain(client, [])
        await box.connect("/ws")


async def test_a_shutdown_is_announced_then_done(autojump_clock: MockClock) -> None:
    """The notice comes in the connection's own shape, the close later; a new connection is welcome in between."""
    async with open_box(script=[faults.Shutdown(1.0, 10.0)], orders_per_s=0.01) as box:
        raw, wrapped = await box.connect("/ws/btcusdt@trade"), await box.connect("/stream")
        assert (await receive(raw))["e"] == "serverShutdown"
        assert (await receive(wrapped))["stream"] == "!serverShutdown"
        fresh = await box.connect("/ws")
        assert await closing(raw) == (1001, "server shutdown")
        assert trio.current_time() == pytest.approx(11.0, abs=0.2)
        await fresh.ping()


async def test_rest_fails_for_a_while(autojump_clock: MockClock) -> None:
    """The scripted answer, then none at all, then lag, then all is well."""
    script: list[faults.Fault] = [
        faults.FailRest(1.0, 2.0),
        faults.FailRest(4.0, 2.0, "mute"),
        faults.Lag(7.0, 2.0, 3_000),
    ]
    async with open_box(script=script) as box:
        await box.connect("/ws/btcusdt@trade")
        await trio.sleep(1.5)
        assert (await box.get("/api/v3/ping"))[0] == 500
        await trio.sleep(2.0)
        assert (await box.get("/api/v3/ping"))[0] == 200
        await trio.sleep(1.0)
        with trio.move_on_after(1.0) as patience:
            await box.get("/api/v3/ping")
        assert patience.cancelled_caught
        await trio.sleep(2.0)
        newest = json.loads((await box.get("/api/v3/historicalTrades?symbol=BTCUSDT&limit=1"))[2])[0]
        assert newest["time"] <= BASE_MS + trio.current_time() * 1_000 - 3_000
        await trio.sleep(2.0)
        newest = json.loads((await box.get("/api/v3/historicalTrades?symbol=BTCUSDT&limit=1"))[2])[0]
        assert newest["time"] > BASE_MS + trio.current_time() * 1_000 - 1_000


async def test_the_archive_is_served_beside_rest(autojump_clock: MockClock) -> None:
    """Also while REST fails; damaged when the script says so, and from the middle when that is asked for."""
    day_ms = 86_400_000
    yesterday_ms = BASE_MS - BASE_MS % day_ms - day_ms
    market = Market(("BTCUSDT",), start_ms=BASE_MS)
    history = market.history("BTCUSDT")
    assert history
    history.add_bar("1h", Bar(yesterday_ms, 1, 1, 1, 1))
    date = time.strftime("%Y-%m-%d", time.gmtime(yesterday_ms // 1_000))
    path = f"/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-{date}.zip"
    async with open_box(source=market) as box:
        box.venue.suffer(faults.FailRest(0.0, 60.0, "mute"))
        box.venue.suffer(faults.DamageArchive(0.0))
        (_, _, damaged), (status, _, whole) = await box.get(path), await box.get(path)
        assert (status, damaged) == (200, whole[:-1])
        assert VenueUrls("ws://x", "http://x").archive_url == "http://x"


async def test_a_stale_server_catches_up(autojump_clock: MockClock) -> None:
    """The same snapshot for a while, then a fresh one."""
    async with open_box(script=[faults.StaleBooks(1.0, 5.0)]) as box:
        await box.connect("/ws/btcusdt@trade")
        await trio.sleep(2.0)
        first = (await box.get("/api/v3/depth?symbol=BTCUSDT"))[2]
        await trio.sleep(2.0)
        assert (await box.get("/api/v3/depth?symbol=BTCUSDT"))[2] == first
        await trio.sleep(3.0)
        assert (await box.get("/api/v3/depth?symbol=BTCUSDT"))[2] != first


# -- recordings and sockets -------------------------------------------------------------------------------------------


def recorded(count: int) -> list[bytes]:
    return [
        b'{"stream":"btcusdt@trade","data":{"e":"trade","E":%d,"s":"BTCUSDT","t":%d,"p":"1.0","q":"1.0","T":5,"m":true}}'
        % (number, number)
        for number in range(count)
    ]


@pytest.mark.parametrize("speed", [0.0, 10.0])
async def test_a_recording_is_played_to_its_end(speed: float, autojump_clock: MockClock) -> None:
    """Every message byte by byte, then `finished`; without pace nothing is played while nobody is connected."""
    lines = recorded(5_000)
    async with open_box(source=Recording(lines, speed=speed)) as box:
        client = await box.connect("/stream?streams=btcusdt@trade")
        texts = [await client.get_message() for _ in lines]
        assert texts == [line.decode() for line in lines]
        await box.venue.finished.wait()
        assert box.venue.ledger[TRADES].produced == Intervals([(0, 4_999)])


async def test_without_pace_a_recording_waits_for_its_reader(autojump_clock: MockClock) -> None:
    """Cut off, it stops; connected again, it goes on."""
    async with open_box(source=Recording(recorded(20_000), speed=0)) as box:
        client = await box.connect("/stream?streams=btcusdt@trade")
        await client.get_message()
        box.venue.suffer(faults.Disconnect(0.0))
        await trio.sleep(1.0)
        produced = box.venue.ledger[TRADES].produced_messages
        await trio.sleep(10.0)
        assert box.venue.ledger[TRADES].produced_messages == produced < 20_000
        assert not box.venue.finished.is_set()


async def test_over_real_sockets() -> None:
    """One port serves both protocols to the libraries that everybody uses."""
    venue = Venue(Market(("BTCUSDT",), start_ms=BASE_MS, orders_per_s=1_000), wall_ns=wall_ns_from_zero())
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            urls: VenueUrls = await nursery.start(venue.serve)
            async with httpx.AsyncClient(base_url=urls.rest_url) as rest:
                assert (await rest.get("/api/v3/time")).json()["serverTime"] >= BASE_MS
            async with open_websocket_url(f"{urls.websocket_url}/stream?streams=btcusdt@trade") as client:
                assert (await receive(client))["stream"] == "btcusdt@trade"
                for _ in range(3):
                    await reset_midway(urls.websocket_url)
                assert await receive_for(client, 0.1)
            nursery.cancel_scope.cancel()


async def reset_midway(websocket_url: str) -> None:
    """Connect, read a little, and vanish with a TCP reset."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(websocket_url.rpartition(":")[2]))
    await stream.send_all(handshake("/ws/btcusdt@trade"))
    await stream.receive_some(10)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


def wall_ns_from_zero() -> Any:
    began = trio.current_time()
    return lambda: BASE_MS * 1_000_000 + round((trio.current_time() - began) * 1e9)
