"""Peers from the package index, each at its cheapest: it subscribes to the trades of ten symbols and counts them.

Run one as `python -m tests.benchmarks.counters PEER PORT SECONDS` in an environment that has it; nothing else of this
project is needed there. asyncio is uvloop's for all of them, which no peer asks for but one.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.benchmarks.feed import BLAST_SYMBOLS, SYMBOLS
from tests.benchmarks.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

TRADED = SYMBOLS[:BLAST_SYMBOLS]
STREAMS = [f"{symbol.lower()}@trade" for symbol in TRADED]
FOREVER_S = 3600.0


class Counting:
    """Counts, and ends the process when the time is up: some peers have threads that nobody can stop."""

    def __init__(self, seconds: float) -> None:
        self._meter = Meter(seconds)

    def one(self, *_: object) -> None:
        """Count one message."""
        if self._meter.is_over(1):
            sys.stdout.flush()
            os._exit(0)


def with_cryptofeed(port: int, counting: Counting) -> None:
    """Cryptofeed: JSON by yapic, a Trade object with Decimals for each (aggregate trades, it takes no others)."""
    connection: Any = import_module("cryptofeed.connection")
    trades = import_module("cryptofeed.defines").TRADES
    connect = connection.connect
    connection.connect = lambda address, **options: connect(address.replace("wss://", "ws://"), **options)
    # It takes no other scheme than wss, and it would read ahead without bound.
    websocket = connection.WebsocketEndpoint(f"wss://127.0.0.1:{port}", options={"max_queue": 1000})
    rest = connection.RestEndpoint(f"http://127.0.0.1:{port}", routes=connection.Routes("/api/v3/exchangeInfo"))
    binance = import_module("cryptofeed.exchanges").Binance
    loopback: Any = type("Loopback", (binance,), {"websocket_endpoints": [websocket], "rest_endpoints": [rest]})

    async def count(*_: object) -> None:
        counting.one()

    asyncio.set_event_loop(asyncio.new_event_loop())  # it wants to find one
    handler = import_module("cryptofeed").FeedHandler(config={"log": {"disabled": True}})
    symbols = [f"{symbol.removesuffix('USDT')}-USDT" for symbol in TRADED]
    handler.add_feed(loopback(symbols=symbols, channels=[trades], callbacks={trades: count}))
    handler.run()


def with_unicorn(port: int, counting: Counting, library: str = "websockets") -> None:
    """unicorn-binance-websocket-api: raw texts to a callback, which is the least that it does."""
    manager = import_module("unicorn_binance_websocket_api").BinanceWebSocketApiManager(
        exchange="binance.com",
        websocket_base_uri=f"ws://127.0.0.1:{port}/",
        output_default="raw_data",
        process_stream_data=counting.one,
        warn_on_update=False,
        websocket_library=library,
    )
    manager.create_stream(["trade"], [symbol.lower() for symbol in TRADED])
    time.sleep(FOREVER_S)


def with_unicorn_on_picows(port: int, counting: Counting) -> None:
    """unicorn-binance-websocket-api, with the faster of its two WebSocket libraries."""
    with_unicorn(port, counting, "picows")


def with_python_binance(port: int, counting: Counting) -> None:
    """python-binance: JSON, a queue, a dict for each."""
    binance = import_module("binance")

    async def main() -> None:
        sockets = binance.BinanceSocketManager(binance.AsyncClient(), max_queue_size=1_000_000)
        sockets.STREAM_URL = f"ws://127.0.0.1:{port}/"
        async with sockets.multiplex_socket(STREAMS) as socket:
            while "data" in await socket.recv():
                counting.one()
        raise RuntimeError("it gave up")

    asyncio.run(main())


def with_official_sdk(port: int, counting: Counting) -> None:
    """binance-sdk-spot: JSON twice and a pydantic model for each."""
    configuration, spot = import_module("binance_common.configuration"), import_module("binance_sdk_spot.spot")

    async def main() -> None:
        streams = configuration.ConfigurationWebSocketStreams(stream_url=f"ws://127.0.0.1:{port}")
        connection = await spot.Spot(config_ws_streams=streams).websocket_streams.create_connection()
        for symbol in TRADED:
            (await connection.trade(symbol=symbol.lower())).on("message", counting.one)
        await asyncio.sleep(FOREVER_S)

    asyncio.run(main())


def with_official_connector(port: int, counting: Counting) -> None:
    """binance-connector: texts to a callback, from a thread that reads a blocking socket."""
    streams = import_module("binance.websocket.spot.websocket_stream")
    client = streams.SpotWebsocketStreamClient(f"ws://127.0.0.1:{port}", on_message=counting.one, is_combined=True)
    client.subscribe(STREAMS)


class Peer(NamedTuple):
    """One peer: what to install for it, which messages it takes, and how it counts them."""

    package: str
    run: Callable[[int, Counting], None]
    extras: tuple[str, ...] = ()
    kind: str = "trade"


PEERS: dict[str, Peer] = {
    "cryptofeed": Peer("cryptofeed", with_cryptofeed, kind="aggTrade"),
    "unicorn-binance-websocket-api": Peer("unicorn-binance-websocket-api", with_unicorn),
    "unicorn-binance-websocket-api, picows": Peer("unicorn-binance-websocket-api", with_unicorn_on_picows, ("picows",)),
    "python-binance": Peer("python-binance", with_python_binance, ("orjson",)),
    "binance-sdk-spot": Peer("binance-sdk-spot", with_official_sdk),
    "binance-connector": Peer("binance-connector", with_official_connector),
}


def main() -> None:
    """Count with one of them."""
    name, port, seconds = sys.argv[1:]
    peer = PEERS[name]
    print(version(peer.package), flush=True)  # noqa: T201 - how the parent learns it
    import_module("uvloop").install()
    peer.run(int(port), Counting(float(seconds)))


if __name__ == "__main__":
    main()
