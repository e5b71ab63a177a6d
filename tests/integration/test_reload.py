"""A real SIGHUP to the real process: symbols come and go while everything flows, and nothing it may meet ends it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
import yaml

from ingestor.core.model import Subscription
from tests.integration.engines import CREDENTIALS, client_of, create_stream, stream_name_of
from tests.integration.service import (
    SYMBOLS,
    Running,
    configuration,
    heartbeats_of,
    new_venue,
    open_venue,
    produced_by,
    prove_from,
    run_service,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

DEADLINE_S = 45.0


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


async def test_a_hangup_changes_what_is_carried_and_never_ends_the_process(
    moto_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Before it is up, with a better file, with a broken one, and again and again while it stops."""
    stream = stream_name_of(request.node.name)
    client = client_of(moto_url)
    await trio.to_thread.run_sync(create_stream, client, stream, 2)
    await trio.to_thread.run_sync(create_stream, client, heartbeats_of(stream), 1)
    first, second = SYMBOLS
    venue = new_venue()
    with trio.fail_after(DEADLINE_S):
        async with open_venue(venue) as urls:
            settings = configuration(urls, moto_url, stream, tmp_path)
            settings["binance"]["symbols"] = [first]
            async with run_service(settings, tmp_path) as service:
                await service.wait_sheltered()
                service.hang_up()
                await wait_for(service, outcome="unchanged", subscriptions=3)
                await service.wait_ready()
                settings["binance"]["symbols"] = [first, second]
                change(tmp_path, settings)
                service.hang_up()
                await wait_for(service, outcome="applied", subscriptions=6)
                await service.wait_ready()
                change(tmp_path, settings | {"kinesis": {"lanes": 0}, "binance": {"symbol": [first]}})
                service.hang_up()
                problems = json.loads(await service.wait_error("configuration_rejected"))["problems"]
                assert [each.partition(":")[0] for each in problems] == ["binance.symbol", "kinesis.lanes"]
                while Subscription(second, "trade") not in venue.ledger:  # noqa: ASYNC110 - a venue does not tell
                    await trio.sleep(0.05)
                produced = produced_by(venue)
                await service.wait_covered(produced)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hang_up_again_and_again, service)
                    assert await service.stop() == 0, service.log()
                    nursery.cancel_scope.cancel()
                assert "connection_lost" not in service.log()
        rows, report = await prove_from(moto_url, stream, produced)
    begun = {Subscription(each.symbol, each.kind): each.delivered[0].first for each in report.streams if each.delivered}
    assert {(symbol, kind) for symbol in SYMBOLS for kind in ("trade", "depth")} <= begun.keys()
    for row in rows:
        assert row.is_proven, row
        assert row.declared == 0, row
    assert [each.undeclared for each in report.streams] == [[]] * len(report.streams)


def change(folder: Path, settings: dict[str, Any]) -> None:
    """Write the file of `run_service` anew."""
    (folder / "ingestor.yaml").write_text(yaml.safe_dump(settings))


async def wait_for(service: Running, *, outcome: str, subscriptions: int) -> None:
    """Wait until the service says what became of the file, and that it carries so much."""
    while True:
        details = (await service.get("/status")).json()["details"]
        line = details.get("line")
        if line and (details["configuration"]["outcome"], line["subscriptions"]) == (outcome, subscriptions):
            return
        await trio.sleep(0.05)


async def hang_up_again_and_again(service: Running) -> None:
    while True:
        service.hang_up()
        await trio.sleep(0.01)
