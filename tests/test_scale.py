"""A thousand symbols on one task, on virtual time: what a start and a mass reconnect cost, by the venue's own count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import trio

from ingestor import app
from ingestor.config import Heartbeat
from ingestor.local.faults import Disconnect, Refuse
from ingestor.local.market import Market
from tests.fakes.world import BEATS, START_MS, MemoryWorld, config_for
from tests.simulation.determinism import quiet

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client.samples import Sample
    from trio.testing import MockClock

    from ingestor.local.faults import Fault

SYMBOLS = tuple(f"S{number:03}USDT" for number in range(1000))
LOST_S, AWAY_S = 30.0, 8.0  # all connections at once, and for so long no new ones
BUDGET = 4800  # our share of the venue's 6000 a minute


def levels_asked_for(world: MemoryWorld) -> list[int]:
    """Return how many levels every snapshot was asked for with, in order."""
    requests = [urlsplit(request) for request in world.rest_requests]
    return [int(parse_qs(each.query)["limit"][0]) for each in requests if each.path.endswith("/depth")]


def watch_weights(world: MemoryWorld) -> list[int]:
    """Note what the venue says is used of the minute, in every answer that it gives from now on."""
    answer, used = world.venue.desk.answer, list[int]()

    def noting(*request: Any) -> Any:
        given = answer(*request)
        used.append(int(dict(given.headers)["x-mbx-used-weight-1m"]))
        return given

    world.venue.desk.answer = noting  # type: ignore[assignment]  # it is asked all the same
    return used


def samples_of(service: app.Service) -> list[Sample]:
    return [sample for family in service.metrics.registry.collect() for sample in family.samples]


async def test_a_thousand_symbols_start_and_come_back_within_the_weight_budget(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Every book answers soon, from few levels; what would only make answers better waits until all had their turn.

    When all connections are lost at once, everything of that comes again, with the gaps of that time beside it.
    """
    market = Market(SYMBOLS, start_ms=START_MS, orders_per_s=0.002, updates_per_s=0.1, levels=100)
    script: list[Fault] = [Disconnect(LOST_S), Refuse(LOST_S, AWAY_S)]
    world = MemoryWorld(SYMBOLS, source=market, tick_s=0.5, script=script)
    config = config_for(world, tmp_path)
    config = config.model_copy(update={"heartbeat": Heartbeat(stream_name=BEATS, resume=False, interval_s=60.0)})
    used, stop = watch_weights(world), trio.Event()
    service = app.Service(config, world.as_seen_by_a_service())
    with quiet():
        async with world.alive(), service.rest, trio.open_nursery() as nursery:
            line = app.Line(service, await service.find_subscriptions(stop))
            assert len(line.subscriptions) == 3000
            nursery.start_soon(line.run, stop)

            await trio.sleep(LOST_S - 1)
            synchronised, _ = line.intake.synchronised()
            at_start = levels_asked_for(world)
            assert synchronised > 500
            assert len(at_start) > 600
            assert set(at_start) == {100}

            await trio.sleep(AWAY_S)
            assert line.intake.in_doubt() == 1000
            before = len(levels_asked_for(world))
            await trio.sleep(35)
            again = levels_asked_for(world)[before:]
            assert len(again) > 500
            assert set(again) == {100}
            assert line.intake.in_doubt() < 400  # of which many have not spoken since
            stop.set()
    assert service.metrics.reconnections.value >= 15
    assert 4500 < max(used) <= BUDGET
    outcomes = {sample.labels["outcome"] for sample in samples_of(service) if sample.name == "rest_requests_total"}
    assert outcomes == {"ok"}
