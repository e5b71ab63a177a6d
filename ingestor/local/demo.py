"""`ingestor demo`: a simulated venue, an embedded Kinesis and the real service between them, watched and then proven.

The service is watched as an operator would, through its own `/status`, and judged from outside: everything is read back
from the stream and held against what the venue produced.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ingestor import app, logs
from ingestor.config import BatchLimits, Binance, Config, DeadLetters, Health, Heartbeat, Kinesis, Logging, Spool
from ingestor.health_check import BindError, bind
from ingestor.inspection import open_reader
from ingestor.inspection import prove as read_back
from ingestor.local.faults import chaos as draw_faults
from ingestor.local.kinesis import embedded_kinesis
from ingestor.local.market import Market
from ingestor.local.proof import as_table, prove, verdict
from ingestor.local.recording import Recording, RecordingError, open_recording
from ingestor.local.venue import Venue
from ingestor.serializer import Serializer
from ingestor.world import open_world

if TYPE_CHECKING:
    from ingestor.core.claims import Intervals
    from ingestor.core.model import Subscription
    from ingestor.local.venue import VenueUrls

SYMBOLS: Final = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
SEED: Final = 7
DATA_STREAM: Final = "bitcoin-market-data"
HEARTBEAT_STREAM: Final = "ingestor-heartbeat"
SHARDS: Final = 2
REFRESH_S: Final = 0.5
SETTLE_LIMIT_S: Final = 60.0  # repairs after chaos wait for the venue's budget and for its bans
PREFERRED_PORT: Final = 8080
FAKE_CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo"}


def run_demo(*, seconds: float, replay: Path | None, chaos: bool, port: int | None = None) -> int:
    """Run the demo for `seconds`, or until a recording is played; return 1 if anything is missing.

    The page is on `port`, or on the usual one if that is free.
    """
    os.environ.update(FAKE_CREDENTIALS)  # the embedded Kinesis takes any, and real ones have no business here
    os.environ.pop("AWS_SESSION_TOKEN", None)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="ingestor-demo-") as scratch:
        return trio.run(partial(Demo(console, Path(scratch), replay, chaos=chaos, port=port).run, seconds))


class Demo:
    """One run of everything on this machine."""

    def __init__(self, console: Console, scratch: Path, replay: Path | None, *, chaos: bool, port: int | None) -> None:
        self._console = console
        self._scratch = scratch
        self._source, self._streams = open_source(replay)
        self._is_replay = replay is not None
        self._chaos = chaos
        self._port = preferred_port() if port is None else port

    async def run(self, seconds: float) -> int:
        """Run it and print the proof; return the exit code."""
        script = draw_faults(SEED, self._streams, seconds) if self._chaos else ()
        venue = Venue(self._source, script=script)
        self._console.print("starting the venue and the embedded Kinesis ...")
        async with (
            embedded_kinesis([(DATA_STREAM, SHARDS), (HEARTBEAT_STREAM, 1)]) as endpoint_url,
            trio.open_nursery() as nursery,
        ):
            urls = await nursery.start(venue.serve)
            config = configure(urls, endpoint_url, self._streams, self._scratch, self._port)
            produced = await self._serve(config, venue, seconds)
            is_proven = await self._prove(config, produced, sorted(set(self._streams) - venue.subscribed))
            nursery.cancel_scope.cancel()
        return 0 if is_proven else 1

    async def _serve(self, config: Config, venue: Venue, seconds: float) -> dict[Subscription, Intervals]:
        """Let the service run and stop; return what the venue had produced when it was asked to stop."""
        stop = trio.Event()
        async with trio.open_nursery() as guard:
            guard.start_soon(interrupt, stop)
            with Live(console=self._console, refresh_per_second=4) as live:
                logs.set_up(config.logging.level, config.logging.format)
                async with trio.open_nursery() as service:
                    url = await service.start(app.serve, config, open_world(config), stop)
                    async with trio.open_nursery() as viewers:
                        viewers.start_soon(self._watch, live, url, venue)
                        await self._wait_for_end(venue, seconds, stop)
                        produced = {name: account.produced.copy() for name, account in venue.ledger.items()}
                        await self._wait_until_covered(url, produced, stop)
                        viewers.cancel_scope.cancel()
                    stop.set()
            guard.cancel_scope.cancel()
        return produced

    async def _wait_for_end(self, venue: Venue, seconds: float, stop: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.cancel_at, stop, nursery.cancel_scope)
            if self._is_replay:
                await venue.finished.wait()
            else:
                await trio.sleep(seconds)
            nursery.cancel_scope.cancel()

    async def _wait_until_covered(self, url: str, produced: dict[Subscription, Intervals], stop: trio.Event) -> None:
        """Wait until the service itself says that all of it is acknowledged; repairs may still be under way."""
        goals = {name.stream_name: ids.highest for name, ids in produced.items() if ids}
        async with httpx.AsyncClient(base_url=url) as http:
            with trio.move_on_after(SETTLE_LIMIT_S):
                while not stop.is_set():
                    marks = (await http.get("/status")).json()["details"]["line"]["watermarks"]
                    if all(marks.get(name, -1) >= goal for name, goal in goals.items()):
                        return
                    await trio.sleep(REFRESH_S)

    async def _watch(self, live: Live, url: str, venue: Venue) -> None:
        async with httpx.AsyncClient(base_url=url) as http:
            while True:
                live.update(picture((await http.get("/status")).json(), url, venue.messages_sent))
                await trio.sleep(REFRESH_S)

    async def _prove(self, config: Config, produced: dict[Subscription, Intervals], unheard: list[str]) -> bool:
        report = await read_back(open_reader(config.kinesis, DATA_STREAM), Serializer().decode)
        rows = prove(produced, report)
        self._console.print(as_table(rows))
        is_proven, words = verdict(rows, report.undecodable, unheard)
        self._console.print(Text(words, "bold green" if is_proven else "bold red"))
        return is_proven


def open_source(replay: Path | None) -> tuple[Market | Recording, list[str]]:
    """Return what the venue plays, a recording as fast as it is read or a seeded market, and its streams for us."""
    if replay is not None:
        recording = open_recording(replay, speed=0)
        streams = [stream for stream in recording.streams if is_ours(stream)]
        if not streams:
            raise RecordingError(f"{replay} holds neither trades nor changes of a book nor bars")
        return recording, streams
    market = Market(SYMBOLS, seed=SEED, start_ms=time.time_ns() // 1_000_000, orders_per_s=40.0)
    return market, [f"{symbol.lower()}@{kind}" for symbol in SYMBOLS for kind in ("trade", "depth@100ms", "kline_1m")]


def is_ours(stream: str) -> bool:
    """Whether the service subscribes to streams of this kind."""
    kind = stream.partition("@")[2]
    return kind in ("trade", "depth@100ms") or (kind.startswith("kline_") and "@" not in kind)


def configure(urls: VenueUrls, endpoint_url: str, streams: list[str], scratch: Path, port: int) -> Config:
    """Make the configuration that points the service at everything embedded."""
    kinds = {stream.partition("@")[2].partition("@")[0] for stream in streams}
    intervals = sorted(kind.removeprefix("kline_") for kind in kinds if kind.startswith("kline_"))
    return Config(
        logging=Logging(level="warning", format="console"),
        binance=Binance.model_validate(
            {
                "websocket_url": urls.websocket_url,
                "rest_url": urls.rest_url,
                "symbols": sorted({stream.partition("@")[0].upper() for stream in streams}),
                "streams": sorted({kind.partition("_")[0] for kind in kinds}),
                "kline_intervals": intervals,
            }
        ),
        kinesis=Kinesis(stream_name=DATA_STREAM, endpoint_url=endpoint_url, batch=BatchLimits(flush_interval_s=0.5)),
        heartbeat=Heartbeat(stream_name=HEARTBEAT_STREAM, interval_s=2.0),
        spool=Spool(directory=scratch / "spool"),
        dead_letter=DeadLetters(directory=scratch / "dead-letter"),
        health=Health(host="127.0.0.1", port=port),
    )


def preferred_port() -> int:
    """Return the usual port, so that the page is where people look for it; 0 (any) when somebody else has it."""
    try:
        bind("127.0.0.1", PREFERRED_PORT).close()
    except BindError:
        return 0
    return PREFERRED_PORT


async def interrupt(stop: trio.Event) -> None:
    """End the demo early, and still prove what was delivered, at Ctrl-C."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            stop.set()
            return


def picture(status: dict[str, Any], url: str, sent: int) -> Group:
    """Draw what the service says of itself."""
    table = Table.grid(padding=(0, 3))
    rates, losses, line = status["rates"], status["losses"], status["details"]["line"]
    latency = status["latency"]["acknowledged"]
    table.add_row("page", url)
    table.add_row("status", f"{status['status']}{', ready' if status['ready'] else ''}")
    table.add_row("venue sent", f"{sent:,} messages")
    table.add_row("received", f"{status['totals']['messages']:,.0f}  ({rates.get('messages', 0):,.0f}/s)")
    table.add_row("delivered", f"{status['totals']['records']:,.0f}  ({rates.get('records', 0):,.0f}/s)")
    table.add_row("latency", "  ".join(f"{name} {show_ms(value)}" for name, value in latency.items()))
    table.add_row("books", f"{line['books']['synchronised']} of {line['books']['all']} synchronised")
    table.add_row("losses", "  ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in losses.items()))
    complaints = [Text(f"  {each['component']}: {each['text']}", "yellow") for each in status["complaints"]]
    return Group(Text("Ingestor", "bold"), table, *complaints)


def show_ms(seconds: float | None) -> str:
    """Write a time that may not be known yet."""
    return "-" if seconds is None else f"{seconds * 1000:,.0f} ms"
