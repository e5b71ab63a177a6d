"""A venue that only sends, as fast as it is read or at a given rate; a process of its own, which costs nobody else.

One port for everything. WebSocket: the handshake, an acknowledgement for every SUBSCRIBE, then messages. HTTP: the
little REST that the service asks for, `/state` (how many streams were subscribed, how many messages were sent) and
`/go?messages=N&rate=R`, which starts the sending, now or as soon as somebody has subscribed. Connections share the
messages and the rate by their streams. With `--blast KIND` the same prepared frames of trades or aggregate trades are
sent again and again from the handshake on: for receivers that only count.

Order books are real: diffs follow on from the snapshot that REST gives, so a book that is kept stays synchronised.

Run it as `python -m tests.benchmarks.feed [--blast KIND]`; its first line of output is the port. Standard library only:
peers run in environments of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import time
from contextlib import suppress
from itertools import cycle, islice
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HANDSHAKE_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
SYMBOLS = tuple(f"COIN{n}USDT" for n in range(1000))  # what is traded here
BLAST_SYMBOLS = 10
CHUNK_MESSAGES = 200
LEVELS = 6  # of a depth event, both sides together (architecture.md §9)
BOOK_LEVELS = 1000  # of a side, where nobody asks for fewer
WEIGHT_PER_MINUTE = 1_000_000  # published instead of the venue's 6 000, so that all books are full at once
ZERO = b"0.00000000"  # the quantity of a level that is gone
USUAL_QUANTITIES = 300  # round lots, again and again
UNUSUAL = 0.35  # the share of quantities never seen before, as in the recordings of the real venue (24 to 46 %)
FIRST_ID = 1_000_000_000
TRADE = b'{"stream":"%b@trade","data":{"e":"trade","E":%d,"s":"%b","t":%d,"p":"%b","q":"%b","T":%d,"m":true,"M":true}}'
AGG_TRADE = (
    b'{"stream":"%b@aggTrade","data":{"e":"aggTrade","E":%d,"s":"%b","a":%d,"p":"%b","q":"%b","f":%d,"l":%d,"T":%d,'
    b'"m":true,"M":true}}'
)
DEPTH = b'{"stream":"%b@depth@100ms","data":{"e":"depthUpdate","E":%d,"s":"%b","U":%d,"u":%d,"b":[%b],"a":[%b]}}'
KLINE = (
    b'{"stream":"%b@kline_1m","data":{"e":"kline","E":%d,"s":"%b","k":{"t":%d,"T":%d,"s":"%b","i":"1m","f":%d,"L":%d,'
    b'"o":"%b","c":"%b","h":"%b","l":"%b","v":"1093.58000000","n":%d,"x":%b,"q":"10870.17000000",'
    b'"V":"531.14000000","Q":"5279.41000000","B":"0"}}}'
)


def frame(payload: bytes) -> bytes:
    """Wrap a text message as a server does: not masked."""
    if len(payload) < 126:
        return bytes((0x81, len(payload))) + payload
    return b"\x81\x7e" + len(payload).to_bytes(2) + payload


class Stream:
    """One stream of one symbol: ids without a hole, a price that walks in ticks, usual and unusual quantities."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        symbol, _, self.kind = name.partition("@")
        self._stream_symbol, self.symbol = symbol.encode(), symbol.upper().encode()
        self._random = Random(seed).random
        self._ticks = 6_000_000 + 10_000 * seed  # the last price, and the best ask
        self._seed = seed
        self._usual = [b"%d.%05d000" % (seed, 10 * n) for n in range(1, USUAL_QUANTITIES)]
        self.id = FIRST_ID
        self._opened = 0
        self._bar_trades = 0

    def message(self, now_ms: int) -> bytes:
        """Return the next message of this stream."""
        self.id += 1
        if self.kind == "trade":
            price, quantity = self._price(), self._quantity()
            return TRADE % (self._stream_symbol, now_ms, self.symbol, self.id, price, quantity, now_ms)
        if self.kind == "aggTrade":
            price, quantity = self._price(), self._quantity()
            ids = (self.id, self.id)
            return AGG_TRADE % (self._stream_symbol, now_ms, self.symbol, self.id, price, quantity, *ids, now_ms)
        if self.kind.startswith("depth"):
            bids, asks = self._change_book()
            return DEPTH % (self._stream_symbol, now_ms, self.symbol, self.id, self.id, bids, asks)
        opened, self._opened = self._opened, now_ms - now_ms % 60_000
        is_closed = b"true" if 0 < opened < self._opened else b"false"
        opened = opened or self._opened
        ids = (self.id, self.id + 9)
        prices = [self._price() for _ in range(4)]
        # An update that adds no trade says nothing.
        self._bar_trades = self._bar_trades + 1 if opened == self._opened else 1
        bar = (opened, opened + 59_999, self.symbol, *ids, *prices, self._bar_trades, is_closed)
        return KLINE % (self._stream_symbol, now_ms, self.symbol, *bar)

    def snapshot(self, levels: int) -> dict[str, Any]:
        """Return the order book after the newest message: there is something at every tick, on both sides."""
        best_ask = self._ticks
        sides = {"bids": range(best_ask - 1, best_ask - 1 - levels, -1), "asks": range(best_ask, best_ask + levels)}
        return {"lastUpdateId": self.id} | {
            side: [[spell(price).decode(), "1.00000000"] for price in prices] for side, prices in sides.items()
        }

    def _price(self) -> bytes:
        self._ticks += int(self._random() * 3) - 1
        return spell(self._ticks)

    def _quantity(self) -> bytes:
        chance = self._random()
        if chance < UNUSUAL:
            return b"%d.%08d" % (self._seed, 1 + int(chance * 1e9 / UNUSUAL) % 99_999_999)
        return self._usual[int(chance * 1e6) % len(self._usual)]

    def _change_book(self) -> tuple[bytes, bytes]:
        """Let the price go a tick up, down or nowhere, and quantities change near the top of both sides."""
        ask = self._ticks
        self._ticks += int(self._random() * 3) - 1
        if self._ticks > ask:
            return self._levels(ask, -1, self._quantity()), self._levels(ask, 1, ZERO)
        if self._ticks < ask:
            return self._levels(ask - 1, -1, ZERO), self._levels(ask - 1, 1, self._quantity())
        return self._levels(ask - 1, -1, self._quantity()), self._levels(ask, 1, self._quantity())

    def _levels(self, best: int, step: int, quantity: bytes) -> bytes:
        """Spell a side: what becomes of its first level, then others behind it."""
        levels = [b'["%b","%b"]' % (spell(best), quantity)]
        for _ in range(LEVELS // 2 - 1):
            best += step * (1 + int(self._random() * 12))
            levels.append(b'["%b","%b"]' % (spell(best), self._quantity()))
        return b",".join(levels)


def spell(ticks: int) -> bytes:
    """Return a price as the venue writes it."""
    return b"%d.%02d000000" % divmod(ticks, 100)


def in_turn(streams: Sequence[Stream]) -> Iterator[Stream]:
    """Yield streams for ever: in turn if a kind is lacking, else 40 % trades, 45 % depth events, 15 % bars."""
    kinds = {kind: [each for each in streams if each.kind.startswith(kind)] for kind in ("trade", "depth", "kline")}
    if not all(kinds.values()):
        return cycle(streams)
    turns = {kind: cycle(members) for kind, members in kinds.items()}
    pattern = ["trade"] * 8 + ["depth"] * 9 + ["kline"] * 3
    Random(1).shuffle(pattern)
    return (next(turns[kind]) for kind in cycle(pattern))


class Feed:
    """Everything that the connections share."""

    def __init__(self, blast: str | None) -> None:
        self._blast = blast_frames(blast) if blast else b""
        self._streams: dict[str, Stream] = {}
        self._carried: set[str] = set()
        self._go: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()
        self._dealt_streams = self._dealt_messages = 0
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, whichever kind it is."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ", 2)[1].decode()
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                if fields.get(b"upgrade", b"") == b"websocket":
                    return await self._serve_websocket(reader, writer, target, head)
                body = json.dumps(self._rest(target)).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                )
                writer.write(body)
                await writer.drain()

    def _rest(self, target: str) -> Any:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        match parts.path:
            case "/go":
                self._go.set_result((int(query["messages"]), float(query["rate"])))
                return {}
            case "/state":
                return {"streams": len(self._streams), "sent": self.sent}
            case "/api/v3/depth":
                levels = min(BOOK_LEVELS, int(query.get("limit", BOOK_LEVELS)))
                return self._streams[f"{query['symbol'].lower()}@depth@100ms"].snapshot(levels)
            case "/api/v3/exchangeInfo":
                return {"symbols": [symbol_info(symbol) for symbol in SYMBOLS], "rateLimits": [WEIGHT_LIMIT]}
            case "/api/v3/time":
                return {"serverTime": time.time_ns() // 1_000_000}
            case _:
                return []

    async def _serve_websocket(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str, head: bytes
    ) -> None:
        lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        key = next(value for name, value in lines.items() if name.lower() == b"sec-websocket-key")
        accept = base64.b64encode(hashlib.sha1(key + HANDSHAKE_KEY, usedforsecurity=False).digest())
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(answer + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        wanted: list[str] = []
        sending = asyncio.create_task(self._send(writer, wanted))
        if names := parse_qs(urlsplit(target).query).get("streams"):
            self._subscribe(names[0].split("/"), wanted)
        try:
            while True:
                await self._obey(reader, writer, wanted)
        finally:
            sending.cancel()
            writer.close()

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wanted: list[str]) -> None:
        """Read one frame of the client and answer it."""
        first, second = await reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2))
        mask = await reader.readexactly(4)
        payload = bytes(octet ^ key for octet, key in zip(await reader.readexactly(size), cycle(mask), strict=False))
        if first == 0x81:
            request = json.loads(payload)
            self._subscribe(request["params"], wanted)
            writer.write(frame(json.dumps({"result": None, "id": request["id"]}).encode()))
        elif first == 0x89:
            writer.write(bytes((0x8A, len(payload))) + payload)
        elif first == 0x88:
            raise ConnectionResetError

    def _subscribe(self, names: Sequence[str], wanted: list[str]) -> None:
        """Take streams in, once: what a lost connection carried stays lost, and the benchmark says so."""
        for name in names:
            if name not in self._carried:
                self._carried.add(name)
                self._streams[name] = Stream(name, seed=len(self._streams))
                wanted.append(name)

    async def _send(self, writer: asyncio.StreamWriter, wanted: list[str]) -> None:
        while self._blast:
            writer.write(self._blast)
            await writer.drain()
        messages, rate = await asyncio.shield(self._go)
        while not wanted:  # noqa: ASYNC110 - twenty times at the most
            await asyncio.sleep(0.01)
        messages, rate = self._share(len(wanted), messages, rate)
        turns = in_turn([self._streams[name] for name in wanted])
        started_s = time.monotonic()
        chunk_messages = min(CHUNK_MESSAGES, max(1, int(rate / 100))) if rate else CHUNK_MESSAGES
        for first in range(0, messages, chunk_messages):
            if rate:
                await asyncio.sleep(started_s + first / rate - time.monotonic())
            now_ms = time.time_ns() // 1_000_000
            now = min(chunk_messages, messages - first)
            writer.write(b"".join([frame(stream.message(now_ms)) for stream in islice(turns, now)]))
            await writer.drain()
            await asyncio.sleep(0)  # REST is answered beside it
            self.sent += now

    def _share(self, streams: int, messages: int, rate: float) -> tuple[int, float]:
        """Return the messages and the rate of a connection with so many streams; all shares make up the whole."""
        self._dealt_streams += streams
        until = messages * self._dealt_streams // len(self._streams)
        share, self._dealt_messages = until - self._dealt_messages, until
        return share, rate * streams / len(self._streams)


WEIGHT_LIMIT = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": WEIGHT_PER_MINUTE}


def symbol_info(symbol: str) -> dict[str, Any]:
    """Return what exchangeInfo says of a symbol."""
    return {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": symbol.removesuffix("USDT"),
        "quoteAsset": "USDT",
        "filters": [{"filterType": "PRICE_FILTER", "tickSize": "0.01000000"}],
    }


def blast_frames(kind: str) -> bytes:
    """Return about a megabyte of frames."""
    streams = [Stream(f"{symbol.lower()}@{kind}", n) for n, symbol in enumerate(SYMBOLS[:BLAST_SYMBOLS])]
    now_ms = time.time_ns() // 1_000_000
    return b"".join([frame(stream.message(now_ms)) for stream in islice(cycle(streams), 7000)])


async def main(blast: str | None) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Feed(blast).serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - how the parent learns the port
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blast", choices=("trade", "aggTrade"))
    asyncio.run(main(parser.parse_args().blast))
