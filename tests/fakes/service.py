"""Runs the real line in a world in memory, without the observers, which need real sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ingestor import app

if TYPE_CHECKING:
    from ingestor.config import Config
    from tests.fakes.world import Life, MemoryWorld


async def run_line(config: Config, world: MemoryWorld, stop: trio.Event, life: Life | None = None) -> app.Line:
    """Run the line without its observers, which need real sockets."""
    service = app.Service(config, world.as_seen_by_a_service(life))
    async with service.rest:
        line = app.Line(service, await service.find_subscriptions(stop))
        await line.run(stop)
    return line


async def run_for(seconds: float, config: Config, world: MemoryWorld) -> app.Line:
    """Run the line for some virtual seconds and drain it."""
    stop = trio.Event()
    lines: list[app.Line] = []

    async def live() -> None:
        lines.append(await run_line(config, world, stop))

    async with world.alive(), trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await trio.sleep(seconds)
        stop.set()
    return lines[0]
