"""The real service, stopped at the worst moments, and the next one that makes it good (the soak: at full rate)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from ingestor.core.audit import AuditReport
from ingestor.local.proof import prove
from tests.benchmarks.children import fetch, run_child
from tests.fakes.fault_proxy import open_fault_proxy
from tests.integration.service import configuration, new_venue, open_venue, produced_by
from tests.soak.stops import HARDSHIPS, Scene, catch_up, live_through

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

STREAM = "stops"
DEADLINE_S = 120.0
GRACE_S = 4.0
LIMIT_S = 20.0  # on a machine that does other things as well


async def test_a_stop_at_any_moment_is_clean_and_the_next_task_makes_it_good(tmp_path: Path) -> None:
    """Kinesis slow or down, during a reconnect, during start-up, twice in a row: each life ends in time.

    It ends with 0 (killed by a second signal: 143), and of all that the venue produced from the first record on nothing
    is missing in the end; only changes of the book may be declared.
    """
    venue = new_venue()
    with (
        trio.fail_after(DEADLINE_S),
        run_child("tests.soak.verifier", STREAM) as verifying,
    ):
        port = int(verifying.first_line())
        async with open_fault_proxy(f"http://127.0.0.1:{port}") as proxy, open_venue(venue) as urls:
            settings = partial(impatient, urls, proxy.url)
            scene = Scene(venue, proxy, settings, tmp_path, limit_s=LIMIT_S, flow_s=0.5)
            await live_through(scene, [case for case in HARDSHIPS if case != "Kinesis hanging"])
            assert not all(row.is_proven for row in prove(produced_by(venue), account(port)))  # they left something
            produced = await catch_up(scene)
        report = account(port)
    rows = prove(produced, report)
    assert {row.kind for row in rows} >= {"trade", "depth"}
    for row in rows:
        assert row.is_proven, row
        assert row.declared == 0 or row.kind == "depth", row
        assert row.delivered > 0 or row.kind.startswith("kline"), row
    assert report.undecodable == 0
    assert [each.unseeded for each in report.streams] == [[] for _ in report.streams]


def account(port: int) -> AuditReport:
    """Return what the endpoint has verified so far."""
    return msgspec.json.decode(fetch(port, "/report"), type=AuditReport)


def impatient(urls: Any, kinesis_url: str, folder: Path) -> dict[str, Any]:
    """Return settings with short waits."""
    return configuration(
        urls,
        kinesis_url,
        STREAM,
        folder,
        service={"shutdown_grace_s": GRACE_S},
        kinesis={"timeouts": {"connect_s": 0.5, "read_s": 1}},
        heartbeat={"interval_s": 0.5},
        spool={"directory": str(folder / "spool")},
    )
