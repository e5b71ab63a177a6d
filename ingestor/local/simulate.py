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

CHAOS_S: Final = 86_400.0  # faults are drawn for a day ahead; who simulates longer has a calm venue from then on


class PortTakenError(IngestorError):
    """The venue's port cannot be had."""


def open_venue(
    *, symbols: Sequence[str], seed: int, replay: Path | None, speed: float, with_chaos: bool, start_ms: int
) -> Venue:
    """Make a venue that is fed by a seeded market, or by the recording `replay`."""
    source: Market | Recording
    if replay is None:
        source = Market(symbols, seed=seed, start_ms=start_ms)
        streams = [f"{symbol.lower()}@{kind}" for symbol in symbols for kind in ("trade", "depth@100ms")]
    else:
        source = open_recording(replay, speed=speed)
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
            click.echo(f"websocket_url: {urls.websocket_url}\nrest_url: {urls.rest_url}")
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
    *, symbols: Sequence[str], seed: int, replay: Path | None, speed: float, with_chaos: bool, host: str, port: int
) -> int:
    """Serve the venue until a signal; return the exit code."""
    start_ms = time.time_ns() // 1_000_000
    venue = open_venue(symbols=symbols, seed=seed, replay=replay, speed=speed, with_chaos=with_chaos, start_ms=start_ms)
    trio.run(partial(serve_venue, venue, host, port, until=asked_to_stop))
    return 0
