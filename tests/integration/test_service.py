"""The whole service as a process, from a simulated venue through the fault proxy into engines: nothing is missing."""

from __future__ import annotations

import sys
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
import yaml

from ingestor.core.model import Subscription
from ingestor.local.faults import Disconnect, Refuse
from ingestor.local.proof import prove
from tests.fakes.cloudformation import task_permissions
from tests.fakes.fault_proxy import Faults, open_fault_proxy
from tests.integration.engines import CREDENTIALS, client_of, create_stream, free_port, stream_name_of
from tests.integration.service import (
    SYMBOLS,
    configuration,
    heartbeats_of,
    new_venue,
    open_venue,
    produced_by,
    prove_from,
    run_service,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ingestor.local.faults import Fault
    from ingestor.local.proof import ProofRow
    from ingestor.local.venue import Venue

pytestmark = pytest.mark.integration

DEADLINE_S = 45.0
ROUGH = Faults(throttled_entries=0.1, failed_entries=0.1, refused_calls=0.1, cut_calls=0.1, latency_s=0.05)
NO_VENUE_FAULTS: Sequence[Fault] = ()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


async def create_streams(engine_url: str, stream: str) -> None:
    """Make a data stream and the heartbeat stream beside it."""
    client = client_of(engine_url)
    await trio.to_thread.run_sync(create_stream, client, stream, 2)
    await trio.to_thread.run_sync(create_stream, client, heartbeats_of(stream), 1)


def assert_proven(rows: list[ProofRow]) -> None:
    """Expect every id of every subscription; of the book, what was lost while disconnected may be declared."""
    assert {(row.symbol, row.kind) for row in rows} >= {
        (symbol, kind) for symbol in SYMBOLS for kind in ("trade", "depth")
    }
    for row in rows:
        assert row.is_proven, row
        assert row.declared == 0 or row.kind == "depth", row
        assert row.delivered > 0 or row.kind.startswith("kline"), row


@pytest.mark.parametrize(
    ("faults", "script"),
    [(Faults(), NO_VENUE_FAULTS), (ROUGH, (Disconnect(3.0), Refuse(3.0, 1.0)))],
    ids=["calm", "rough"],
)
async def test_everything_the_venue_produced_is_in_the_stream(
    engine_url: str, tmp_path: Path, request: pytest.FixtureRequest, faults: Faults, script: Sequence[Fault]
) -> None:
    """Seconds of a market, with failures on both sides or none: every id is delivered, and SIGTERM ends it with 0."""
    stream = stream_name_of(request.node.name)
    await create_streams(engine_url, stream)
    venue = new_venue(script)
    with trio.fail_after(DEADLINE_S):
        async with open_fault_proxy(engine_url, faults=faults, seed=2) as proxy, open_venue(venue) as urls:
            async with run_service(configuration(urls, proxy.url, stream, tmp_path), tmp_path) as service:
                await service.wait_ready()
                await trio.sleep(6)
                produced = produced_by(venue)
                await service.wait_covered(produced)
                assert await service.stop() == 0, service.log()
            assert proxy.order_of(stream).overlapping == []
            assert proxy.order_of(stream).overtaken == []
        rows, report = await prove_from(engine_url, stream, produced)
    assert_proven(rows)
    assert report.undecodable == 0
    if faults == Faults():
        assert [row.duplicates for row in rows] == [0] * len(rows)


async def test_a_killed_task_is_replaced_without_a_hole(
    moto_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """After SIGKILL a new task with an empty disk reads the heartbeats back and fetches what happened meanwhile."""
    stream = stream_name_of(request.node.name)
    await create_streams(moto_url, stream)
    venue = new_venue()
    with trio.fail_after(DEADLINE_S):
        async with open_venue(venue) as urls:
            settings = configuration(urls, moto_url, stream, tmp_path)
            async with run_service(settings, tmp_path) as first:
                await first.wait_ready()
                await trio.sleep(3)
                await first.kill()
            await trio.sleep(2)
            async with run_service(settings, tmp_path) as second:
                await second.wait_ready()
                await trio.sleep(2)
                produced = produced_by(venue)
                await second.wait_covered(produced)
                assert await second.stop() == 0, second.log()
        rows, _ = await prove_from(moto_url, stream, produced)
    assert_proven(rows)


async def test_a_deploy_leaves_no_hole(moto_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A second process starts, has delivered, and only then the first one gets SIGTERM, as ECS and Kubernetes do it.

    Nothing is missing and nothing declared, not even of the book, and what both delivered is recognised. Whatever they
    asked of Kinesis, the role of the CloudFormation template allows.
    """
    stream = stream_name_of(request.node.name)
    await create_streams(moto_url, stream)
    venue = new_venue(windows_differ=True)
    folders = [tmp_path / name for name in ("old", "new")]
    with trio.fail_after(DEADLINE_S):
        async with open_fault_proxy(moto_url) as proxy, open_venue(venue) as urls:
            settings = [configuration(urls, proxy.url, stream, folder) for folder in folders]
            for folder in folders:
                folder.mkdir()
            async with run_service(settings[0], folders[0]) as old:
                await old.wait_ready()
                await trio.sleep(1)
                async with run_service(settings[1], folders[1]) as new:
                    await new.wait_started()
                    await trio.sleep(1)
                    assert await old.stop() == 0, old.log()
                    await trio.sleep(1)
                    produced = produced_by(venue)
                    await new.wait_covered(produced)
                    assert await new.stop() == 0, new.log()
        rows, report = await prove_from(moto_url, stream, produced)
    assert_proven(rows)
    assert [each.kind for each in report.streams if each.declared] == []
    assert sum(row.duplicates for row in rows) > 0
    names = {"": "HeartbeatStream", heartbeats_of(stream): "HeartbeatStream", stream: "DataStream"}
    asked = {(f"kinesis:{operation}", names[name]) for operation, name in proxy.asked}
    assert ("kinesis:ListShards", "DataStream") in asked
    assert {operation for operation, _ in asked} == {name for name in task_permissions() if name.startswith("kinesis:")}
    assert [each for each in asked if each[1] not in task_permissions()[each[0]]] == []


KILLS_S = (0.3, *(Random(7).uniform(1, 5) for _ in range(4)))  # after a life has opened its first connection


async def test_five_kills_lost_disks_resets_and_throttling_leave_no_undeclared_hole(
    engine_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SIGKILL five times, each life on an empty disk, connections cut all the time, a fifth of the entries throttled.

    Whatever came after the first record that is in the stream is there or declared: `ingestor audit` says so itself. A
    bar closes every second.
    """
    bars = {"kline_intervals": ["1s"]}
    stream = stream_name_of(request.node.name)
    await create_streams(engine_url, stream)
    venue = new_venue([Disconnect(at_s) for at_s in range(4, 120, 4)])
    with trio.fail_after(2 * DEADLINE_S):
        async with open_fault_proxy(engine_url, faults=Faults(throttled_entries=0.2), seed=3) as proxy:
            async with open_venue(venue) as urls:
                for life, kill_after_s in enumerate(KILLS_S):
                    folder = tmp_path / f"life-{life}"
                    folder.mkdir()
                    settings = configuration(urls, proxy.url, stream, folder)
                    settings["binance"] |= bars
                    async with run_service(settings, folder) as service:
                        await wait_connected(venue)
                        await trio.sleep(kill_after_s)
                        await service.kill()
                settings = configuration(urls, proxy.url, stream, tmp_path)
                settings["binance"] |= bars
                async with run_service(settings, tmp_path) as service:
                    await service.wait_ready()
                    await trio.sleep(3)
                    produced = produced_by(venue)
                    await service.wait_covered(produced)
                    assert await service.stop() == 0, service.log()
            assert proxy.seen("ProvisionedThroughputExceededException") > 0
        _, report = await prove_from(engine_url, stream, produced)
        assert await run_audit(configuration(urls, engine_url, stream, tmp_path), tmp_path) == 0
    assert sum(each.kind == "kline_1s" and each.delivered_ids > 5 for each in report.streams) == len(SYMBOLS)
    first_ids = {Subscription(each.symbol, each.kind): each.delivered[0].first for each in report.streams}
    owed = {name: ids.within(first_ids[name], ids.highest) for name, ids in produced.items() if name in first_ids}
    assert_proven(prove(owed, report))
    assert [each.unseeded for each in report.streams] == [[] for _ in report.streams]


async def wait_connected(venue: Venue) -> None:
    """Wait until a service has a connection again."""
    while not venue.connections:  # noqa: ASYNC110 - a venue does not tell
        await trio.sleep(0.01)


async def run_audit(settings: dict[str, Any], folder: Path) -> int:
    """Return the exit code of `ingestor audit`."""
    (folder / "audit.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "ingestor", "audit", "--config", str(folder / "audit.yaml")]
    return (await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)).returncode


async def test_a_missing_stream_makes_it_not_ready_until_somebody_makes_it(
    moto_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The health report names the stream that does not exist; once it does, everything since the start is in it."""
    stream = stream_name_of(request.node.name)
    venue = new_venue()
    with trio.fail_after(DEADLINE_S):
        async with (
            open_venue(venue) as urls,
            run_service(configuration(urls, moto_url, stream, tmp_path), tmp_path) as service,
        ):
            health = ""
            while "ResourceNotFoundException" not in health:
                await trio.sleep(0.1)
                health = (await service.get("/health")).text
            assert stream in health
            assert (await service.get("/ready")).status_code == 503
            assert (await service.get("/live")).status_code == 200
            await create_streams(moto_url, stream)
            await service.wait_ready()
            produced = produced_by(venue)
            await service.wait_covered(produced)
            assert await service.stop() == 0, service.log()
        rows, _ = await prove_from(moto_url, stream, produced)
    assert_proven(rows)


async def test_without_credentials_it_stays_up_not_ready_and_says_what_to_do(
    moto_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """No crash loop: live, not ready, an error in the log that names the variables, and a clean end."""
    stream = stream_name_of(request.node.name)
    await create_streams(moto_url, stream)
    async with open_venue(new_venue()) as urls:
        settings = configuration(urls, moto_url, stream, tmp_path, service={"shutdown_grace_s": 8})
        with trio.fail_after(DEADLINE_S):
            async with run_service(settings, tmp_path, environment={}) as service:
                complaint = await service.wait_error("NoCredentials")
                assert "AWS_ACCESS_KEY_ID" in complaint
                assert (await service.get("/live")).status_code == 200
                assert (await service.get("/ready")).status_code == 503
                assert await service.stop() == 0, service.log()


async def test_a_port_in_use_ends_it_with_a_message_and_code_2(moto_url: str, tmp_path: Path) -> None:
    """Two tasks cannot share a health port; the second says which."""
    port = free_port()
    async with open_venue(new_venue()) as urls:
        settings = configuration(urls, moto_url, "any", tmp_path, health={"host": "127.0.0.1", "port": port})
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        with trio.fail_after(DEADLINE_S):
            async with run_service(settings, tmp_path) as service:
                assert await service.wait_end() == 2
                assert str(port) in service.log()
        for listener in listeners:
            await listener.aclose()


@pytest.mark.parametrize(
    ("sections", "mention"),
    [
        ({"binance": {"symbols": ["NOSUCHCOIN"]}}, "NOSUCHCOIN"),
        ({"kinesis": {"region": ""}}, "kinesis.region"),
        ({"kinesis": {"region": "not a region"}}, "kinesis.region"),
    ],
    ids=["unknown symbol", "no region", "broken region"],
)
async def test_a_configuration_that_cannot_work_ends_it_with_code_2(
    moto_url: str, tmp_path: Path, request: pytest.FixtureRequest, sections: dict[str, Any], mention: str
) -> None:
    """What no waiting can mend is said once, with its place in the file, and ends the process."""
    stream = stream_name_of(request.node.name)
    await create_streams(moto_url, stream)
    async with open_venue(new_venue()) as urls:
        settings = configuration(urls, moto_url, stream, tmp_path)
        merged = {name: section | sections.get(name, {}) for name, section in settings.items()}
        with trio.fail_after(DEADLINE_S):
            async with run_service(merged, tmp_path) as service:
                assert await service.wait_end() == 2, service.log()
                assert mention in service.log()
