"""Part (a): receiving. CPU time per message of four ways to read the same frames from a WebSocket, each in a process.

All of them only count, and all of them get every message as `bytes` (or `str`, where a library gives nothing else).
Run one alone as `python -m tests.benchmarks.receive WAY URL SECONDS`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import trio_websocket

from ingestor.core.binance import decode_message
from ingestor.frames import ReceiveLane
from ingestor.websocket_client import open_stream, parse_url
from tests.benchmarks.children import run_child
from tests.benchmarks.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Callable


def with_lane(url: str, seconds: float) -> None:
    """Use the receive lane of this project, over the stream that the service opens."""

    async def main() -> None:
        venue = parse_url(url)
        stream = await open_stream(venue)
        meter = Meter(seconds)
        async with trio.open_nursery() as nursery:

            async def deliver(messages: list[bytes], received_s: float) -> None:
                del received_s
                await trio.lowlevel.checkpoint()
                if meter.is_over(len(messages)):
                    nursery.cancel_scope.cancel()

            lane: Any = ReceiveLane(stream, deliver)  # any stream will do, but the annotation below is narrower
            await trio_websocket.wrap_client_stream(nursery, lane, venue.host_header, venue.path)
            await trio.sleep_forever()

    trio.run(main)


def with_trio_websocket(url: str, seconds: float) -> None:
    """Use `get_message` in a loop."""

    async def main() -> None:
        async with trio_websocket.open_websocket_url(url, disconnect_timeout=0.1) as connection:
            meter = Meter(seconds)
            while True:
                await connection.get_message()
                if meter.is_over(1):
                    return

    trio.run(main)


def with_picows(url: str, seconds: float, take: Callable[[bytes], object] | None = None) -> None:
    """Use picows on uvloop, every payload copied out into bytes, and given to `take`."""
    import picows  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - only `nox -s bench` installs it
    import uvloop  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - likewise

    meter = Meter(seconds)
    over = False

    class Listener(picows.WSListener):  # type: ignore[misc,unused-ignore]  # has no types where it is not installed
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            nonlocal over
            payload = frame.get_payload_as_bytes()
            if take is not None:
                take(payload)
            if not over and meter.is_over(1):
                over = True
                transport.disconnect()

    async def main() -> None:
        transport, _ = await picows.ws_connect(Listener, url)
        await transport.wait_disconnected()

    uvloop.run(main())


def with_websockets(url: str, seconds: float) -> None:
    """Use websockets on asyncio, as bytes."""
    from websockets.asyncio.client import (  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - likewise
        connect,
    )

    async def main() -> None:
        async with connect(url, compression=None, ping_interval=None, close_timeout=0.1) as connection:
            meter = Meter(seconds)
            while not meter.is_over(1):
                await connection.recv(decode=False)

    asyncio.run(main())


WAYS: dict[str, Callable[[str, float], None]] = {
    "receive lane (ours)": with_lane,
    "picows, uvloop": with_picows,
    "websockets, asyncio": with_websockets,
    "trio-websocket get_message": with_trio_websocket,
}


# Not in the table of receivers, because it does more; beside the peers (`peers.py`).
DECODED = "picows on uvloop, decoded by msgspec"
DECODING = {DECODED: partial(with_picows, take=decode_message)}


def measure(seconds: float) -> dict[str, dict[str, float]]:
    """Return CPU microseconds per message and messages per second of every way that is installed."""
    results = {}
    for way in WAYS:
        with run_child("tests.benchmarks.feed", "--blast", "trade") as feed:
            url = f"ws://127.0.0.1:{feed.first_line()}/stream"
            with run_child("tests.benchmarks.receive", way, url, str(seconds)) as receiver:
                results[way] = json.loads(receiver.first_line())
    return results


if __name__ == "__main__":
    (WAYS | DECODING)[sys.argv[1]](sys.argv[2], float(sys.argv[3]))
