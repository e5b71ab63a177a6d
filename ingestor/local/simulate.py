"""`ingestor simulate`: only the venue, for other programs, until it is told to stop."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import click
import trio

from ingestor.core.errors import IngestorError
from ingestor.local.faults import chaos
from ingestor.local.market import Market
from ingestor.local.recording import Recording, open_recording
from ingestor.local.venue import Venue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

_HOUR_MS: Final = 3_600_000
_KEEP_TRADES: Final = 100_000
_KEEP_BARS: Final = 2_000
_TRADES_OF_AN_ORDER: Final = 2.5  # 1.8 on average
CHAOS_S: Final = 86_400.0  # faults are drawn for a day ahead; who simulates longer has a calm venue from then on


class PortTakenError(IngestorError):
    """The venue's port cannot be had."""


def open_market(symbols: Sequence[str], *, seed: int, orders_per_s: float, past_h: float, start_ms: int) -> Market:
    """Make a seeded market, let it live for `past_h` hours up to `start_ms`, and have it remember all of them."""
    past_ms = round(past_h * _HOUR_MS)
    market = Market(
        symbols,
        seed=seed,
        start_ms=start_ms - past_ms,
        orders_per_s=orders_per_s,
        updates_per_s=2 * orders_per_s,
        keep_trades=_KEEP_TRADES + round(past_ms / 1_000 * orders_per_s * _TRADES_OF_AN_ORDER),
        keep_bars=_KEEP_BARS + past_ms // 60_000,
    )
    market.advance(start_ms)
    return market


def open_venue(source: Market | Recording, *, seed: int, with_chaos: bool) -> Venue:
    """Make a venue that is fed by a market, or by a recording."""
    streams = [f"{symbol.lower()}@{kind}" for symbol in source.symbols for kind in ("trade", "depth@100ms")]
    if isinstance(source, Recording):
        streams = list(source.streams)
    return Venue(source, script=chaos(seed, streams, CHAOS_S) if with_chaos else ())


async def serve_venue(
    venue: Venue,
    host: str,
    port: int,
    *,
    until: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Say where `venue` listens and serve it until `until` returns; starts with its REST address."""
    refusal: OSError | None = None
    try:
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(partial(venue.serve, host=host, port=port))
            click.echo(
                f"websocket_url: {urls.websocket_url}\nrest_url: {urls.rest_url}\narchive_url: {urls.archive_url}"
            )
            task_status.started(urls.rest_url)
            await until()
            nursery.cancel_scope.cancel()
    except* OSError as group:  # the port, or the name of the host
        refusal = first_of(group)
    if refusal is not None:
        raise PortTakenError(f"cannot listen on {host}:{port}: {refusal}") from refusal


def first_of(group: BaseExceptionGroup[OSError]) -> OSError:
    """Return the first error inside nested groups."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first


async def asked_to_stop() -> None:
    """Wait for SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            return


def run_simulator(
    *,
    symbols: Sequence[str],
    seed: int,
    orders_per_s: float,
    past_h: float,
    replay: Path | None,
    speed: float,
    with_chaos: bool,
    host: str,
    port: int,
) -> int:
    """Serve the venue until a signal; return the exit code."""
    start_ms = time.time_ns() // 1_000_000
    source: Market | Recording
    if replay is None:
        source = open_market(symbols, seed=seed, orders_per_s=orders_per_s, past_h=past_h, start_ms=start_ms)
    else:
        source = open_recording(replay, speed=speed)
    venue = open_venue(source, seed=seed, with_chaos=with_chaos)
    trio.run(partial(serve_venue, venue, host, port, until=asked_to_stop))
    return 0
