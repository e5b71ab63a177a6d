"""A real Prometheus beside real services: every alert fires where the world causes it, the demo fills the dashboard.

A minute of the rules is a second here. Several tasks suffer at the same time, each from other causes, because most of
the time goes into waiting for windows to fill.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import yaml

from ingestor.local.faults import Disconnect, FailRest, Inject, Refuse, Skip
from ingestor.local.market import Market
from ingestor.local.venue import Venue
from tests.fakes.fault_proxy import Faults, open_fault_proxy
from tests.integration.engines import CREDENTIALS, clean_environment, client_of, create_stream, free_port
from tests.integration.prometheus import (
    FOLDER,
    POLL_S,
    Firing,
    Prometheus,
    open_prometheus,
    panel_queries,
    quicker_expression,
    quicker_rules,
)
from tests.integration.service import (
    SYMBOLS,
    Running,
    configuration,
    heartbeats_of,
    new_venue,
    open_venue,
    run_service,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from typing import TypeAlias

    from ingestor.local.venue import VenueUrls

    Scenario: TypeAlias = Callable[["World"], Awaitable[None]]

pytestmark = pytest.mark.integration

A_MINUTE_IS_A_SECOND: Final = 60.0
PATIENT: Final = {"IngestorRestarting": 15.0}  # three restarts take a while on a busy machine
DEADLINE_S: Final = 240.0
ALERTS: Final = {
    rule["alert"]
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
DASHBOARD: Final = json.loads((FOLDER.parent / "grafana" / "ingestor.json").read_text())
# What a machine that is merely slow may cause, at sixty times the pace.
BY_SLOWNESS: Final = {
    *("IngestorDown", "IngestorNothingReceived", "IngestorNothingDelivered", "IngestorWatermarkBehind"),
    *("IngestorHeartbeatsFailing", "IngestorLatencyHigh", "IngestorVenueLagHigh", "IngestorLoopStalls"),
}


def test_only_durations_become_shorter() -> None:
    """Windows, offsets, waits and minutes of a metric in seconds; neither names nor labels nor other thresholds."""
    text = 'max(a_seconds{x="5m"}) + rate(b[5m] offset 10m) > 300'
    assert quicker_expression(text, 60) == 'max(a_seconds{x="5m"}) + rate(b[5000ms] offset 10000ms) > 5'
    assert quicker_expression("a_seconds[30m] > 2", 60) == "a_seconds[30000ms] > 2"
    assert quicker_expression("a_bytes > 300", 60) == "a_bytes > 300"
    rules = {"groups": [{"interval": "30s", "rules": [{"alert": "A", "expr": "b > 5", "for": "2m"}]}]}
    faster = {"interval": "500ms", "rules": [{"alert": "A", "expr": "b > 5", "for": "2000ms"}]}
    assert quicker_rules(rules, 60) == {"groups": [faster]}


class World:
    """What the scenarios share: an engine, a Prometheus, and which tasks it watches."""

    def __init__(self, prometheus: Prometheus, engine_url: str, folder: Path) -> None:
        self.prometheus = prometheus
        self.engine_url = engine_url
        self.folder = folder
        self.expected: set[Firing] = set()
        self.missing: set[Firing] = set()
        self._watched: list[str] = []

    async def watch(self, instance: str) -> None:
        """Have a task scraped; returns once it was."""
        self._watched.append(instance)
        self.prometheus.watch(self._watched)
        await self.prometheus.wait_for(f'up{{instance="{instance}"}} == 1')

    async def wait_fired(self, instance: str, *alerts: str, since_s: float = 0.0) -> None:
        """Wait until these alerts have fired for a task."""
        firings = {Firing(alert, instance) for alert in alerts}
        self.expected |= firings
        self.missing |= firings
        while firings - await self.prometheus.fired(since_s):  # noqa: ASYNC110 - another process
            await trio.sleep(POLL_S)
        self.missing -= firings

    async def task(self, name: str, urls: VenueUrls, kinesis_url: str, **sections: Any) -> Task:
        """Prepare a task with streams and a folder of its own."""
        folder = self.folder / name
        folder.mkdir()
        client = client_of(self.engine_url)
        for stream in (name, heartbeats_of(name)):
            await trio.to_thread.run_sync(create_stream, client, stream)
        return Task(configuration(urls, kinesis_url, name, folder, **sections), folder)


class Task:
    """One place where a service runs, again and again if need be."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self.instance = f"127.0.0.1:{settings['health']['port']}"

    @asynccontextmanager
    async def running(self, **environment: str) -> AsyncIterator[Running]:
        """Run it for the length of this block."""
        async with run_service(self._settings, self._folder, CREDENTIALS | environment) as service:
            yield service

    @asynccontextmanager
    async def watched(self, world: World, **environment: str) -> AsyncIterator[Running]:
        """Run it for the length of this block, which begins when all is well and was scraped."""
        async with self.running(**environment) as service:
            await service.wait_ready()
            await world.watch(self.instance)
            yield service


async def suffer(scenarios: Sequence[Scenario], moto_url: str, folder: Path) -> set[str]:
    """Let these happen at the same time, and then nothing be there any more; return which alerts had to fire, and did.

    Each of them fired for the task that the cause was meant for.
    """
    async with open_prometheus(folder, A_MINUTE_IS_A_SECOND, PATIENT) as prometheus:
        world = World(prometheus, moto_url, folder)
        with trio.move_on_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for scenario in scenarios:
                    nursery.start_soon(scenario, world)
            prometheus.watch([])
            await world.wait_fired("", "IngestorMissing", since_s=trio.current_time())
    assert world.missing == set()
    return {firing.alert for firing in world.expected}


async def test_alerts_fire_and_every_panel_has_data(moto_url: str, tmp_path: Path) -> None:
    """Kinesis is away, the venue fails, and beside them the demo runs as a person starts it.

    It is the cheap half of the test below.
    """
    fired = await suffer((kinesis_goes_away, the_venue_fails, the_demo), moto_url, tmp_path)
    assert fired < ALERTS


@pytest.mark.alerts
async def test_every_alert_fires(moto_url: str, tmp_path: Path) -> None:
    """Kinesis away and throttled, the venue gone and late, the machine too small, tasks dead: each has its alert."""
    everything = (
        *(kinesis_goes_away, kinesis_throttles, the_shards_are_full),
        *(the_venue_fails, the_machine_fails, the_demo),
    )
    assert await suffer(everything, moto_url, tmp_path) == ALERTS


async def kinesis_goes_away(world: World) -> None:
    """Cut every call; CloudWatch was never there, and the spool is small."""
    async with open_fault_proxy(world.engine_url) as proxy, open_venue(new_venue()) as urls:
        task = await world.task(
            "away",
            urls,
            proxy.url,
            spool={"directory": str(world.folder / "spool"), "max_bytes": 60_000},
            metrics={"cloudwatch": {"mode": "api", "interval_s": 1}},
        )
        async with task.watched(world, AWS_ENDPOINT_URL_CLOUDWATCH=f"http://127.0.0.1:{free_port()}"):
            proxy.set(outage="cut")
            await world.wait_fired(
                task.instance,
                *("IngestorBreakerOpen", "IngestorNothingDelivered", "IngestorHeartbeatsFailing"),
                *("IngestorSpoolFilling", "IngestorCloudWatchFailing"),
            )


async def kinesis_throttles(world: World) -> None:
    """Let the shards take a part of what comes, for long; and the process open few files."""
    async with open_fault_proxy(world.engine_url) as proxy, open_venue(new_venue()) as urls:
        task = await world.task("throttled", urls, proxy.url)
        async with task.watched(world) as service:
            allow_few_files(service.pid)
            proxy.faults = Faults(shard_share=0.0007)
            await world.wait_fired(
                task.instance, "IngestorPutsNotAccepted", "IngestorLatencyHigh", "IngestorFilesRunOut"
            )


async def the_shards_are_full(world: World) -> None:
    """Budget so little for them that lanes wait all the time, before anything is throttled."""
    async with open_venue(new_venue()) as urls:
        task = await world.task("full", urls, world.engine_url, kinesis={"shard_budget_share": 0.0007})
        async with task.watched(world):
            await world.wait_fired(task.instance, "IngestorShardsFull")


def allow_few_files(pid: int) -> None:
    """Lower the limit of a process to little more than it has open."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    is_open = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (is_open * 6 // 5, hard))


async def the_venue_fails(world: World) -> None:
    """Lose trades, send no JSON, ban us from REST, cut connections again and again, then take none at all."""
    venue = new_venue()
    async with open_venue(venue) as urls:
        task = await world.task("venue", urls, world.engine_url, repair={"max_trades_per_gap": 5})
        async with task.watched(world):
            venue.suffer(Skip(0, "btcusdt@trade", 20))
            venue.suffer(Inject(0, "invalid_json"))
            await world.wait_fired(task.instance, "IngestorHolesDeclared", "IngestorDeadLetters")
            venue.suffer(FailRest(0, 600.0, "banned"))
            venue.suffer(Skip(0, "btcusdt@trade", 3))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut_connections, venue)
                await world.wait_fired(task.instance, "IngestorRestLimited", "IngestorReconnecting")
                nursery.cancel_scope.cancel()
            venue.suffer(Refuse(0, 600.0))
            venue.suffer(Disconnect(0))
            await world.wait_fired(task.instance, "IngestorNothingReceived", "IngestorWatermarkBehind")


async def cut_connections(venue: Venue) -> None:
    """Cut all connections once a second, until cancelled."""
    while True:
        venue.suffer(Disconnect(0))
        await trio.sleep(1)


async def the_machine_fails(world: World) -> None:
    """Let the venue's clock be late, take the CPU away again and again, kill the process three times and for good."""
    start_ms = late_ns() // 1_000_000
    market = Market(SYMBOLS, seed=6, start_ms=start_ms, orders_per_s=8.0, updates_per_s=10.0)
    async with open_venue(Venue(market, wall_ns=late_ns)) as urls:
        task = await world.task("machine", urls, world.engine_url)
        async with task.watched(world) as service, trio.open_nursery() as nursery:
            nursery.start_soon(throttle, service)
            await world.wait_fired(task.instance, "IngestorVenueLagHigh", "IngestorLoopStalls")
            nursery.cancel_scope.cancel()
        started = f'process_start_time_seconds{{instance="{task.instance}"}}'
        for starts in range(1, 4):
            async with task.running():
                await world.prometheus.wait_for(f"changes({started}[1h]) >= {starts}")
        await world.wait_fired(task.instance, "IngestorRestarting")
        await world.wait_fired(task.instance, "IngestorDown", since_s=trio.current_time())


def late_ns() -> int:
    """Tell the time by a clock that is late."""
    return time.time_ns() - 10_000_000_000


async def throttle(service: Running) -> None:
    """Freeze a process for 0.7 s in every 1.2 s, until cancelled."""
    while True:
        await service.freeze(0.7)
        await trio.sleep(0.5)


async def the_demo(world: World) -> None:
    """Look at every panel while the demo runs, which has to end with its proof."""
    port = free_port()
    instance = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "ingestor", "demo", "--seconds", "12", "--port", str(port)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_at_every_panel, world, instance)
        await trio.run_process(command, env=clean_environment(), capture_stdout=True, capture_stderr=True)
    fired = {firing.alert for firing in await world.prometheus.fired() if firing.instance == instance}
    assert fired - BY_SLOWNESS == set()


async def look_at_every_panel(world: World, instance: str) -> None:
    """Wait until there is data for each of them."""
    await world.watch(instance)
    for query in panel_queries(DASHBOARD, instance):
        await world.prometheus.wait_for(query)
