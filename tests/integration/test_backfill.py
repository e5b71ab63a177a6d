"""The backfill command as a process that is killed: what the engine holds in the end is what the venue has."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
import yaml

from ingestor.config import Kinesis
from ingestor.inspection import open_reader, prove
from ingestor.loading import INTERRUPTED
from ingestor.serializer import Serializer
from tests.fakes.past import history_of
from tests.integration.engines import CREDENTIALS, clean_environment, client_of, create_stream, stream_name_of
from tests.integration.service import NOWHERE, configuration, new_venue, open_venue

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

TRADES = 30_000
KILLS = 4
LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


async def test_killed_again_and_again_it_delivers_the_exact_set(moto_url: str, tmp_path: Path) -> None:
    """SIGKILL at random instants, then SIGINT, then to the end: nothing missing, a page twice for each kill at most."""
    stream = stream_name_of("backfill-killed")
    await trio.to_thread.run_sync(create_stream, client_of(moto_url), stream, 1)
    venue = new_venue()
    market = venue.desk._answers._source.history("BTCUSDT")
    assert market is not None
    start_ms = time.time_ns() // 1_000_000 - 36_000_000
    market.fills[:] = history_of("BTCUSDT", trades=range(TRADES), step_ms=1_000, start_ms=start_ms).fills
    random = Random(3)
    async with open_venue(venue) as urls:
        sections = configuration(urls, moto_url, stream, tmp_path)
        config = tmp_path / "config.yaml"
        await trio.Path(config).write_text(yaml.safe_dump(sections))
        progress = tmp_path / "state.json"
        for number in (*[signal.SIGKILL] * KILLS, signal.SIGINT):
            seen = read(progress)
            process = await start(config, tmp_path)
            with trio.fail_after(LIMIT_S):
                await wait_for_news(progress, seen)
                await trio.sleep(random.uniform(0, 0.1))
                process.send_signal(number)
                assert await process.wait() in (-signal.SIGKILL, INTERRUPTED)
        process = await start(config, tmp_path)
        with trio.fail_after(LIMIT_S):
            assert await process.wait() == 0
    report = await prove(open_reader(Kinesis.model_validate(sections["kinesis"]), stream), Serializer().decode)
    [trades] = report.streams
    assert [(run.first, run.last) for run in trades.delivered] == [(0, TRADES - 1)]
    assert trades.duplicates <= 1_000 * KILLS
    assert trades.conflicts == []


async def wait_for_news(progress: Path, seen: bytes) -> None:
    """Wait until more is acknowledged than the file said when it held `seen`."""
    while read(progress) == seen or b'"done":[]' in read(progress):  # noqa: ASYNC110 - another process writes it
        await trio.sleep(0.005)


def read(progress: Path) -> bytes:
    return progress.read_bytes() if progress.exists() else b""


async def start(config: Path, folder: Path) -> trio.Process:
    """Start the command, always the same."""
    options = ("--symbol", "BTCUSDT", "--stream", "trade", "--from-id", "0", "--to-id", str(TRADES - 1), "--plain")
    command = [sys.executable, "-m", "ingestor", "backfill", "--config", str(config), "--state", f"{folder}/state.json"]
    return await trio.lowlevel.open_process(
        [*command, *options], env=clean_environment(**CREDENTIALS, **NOWHERE), stderr=subprocess.DEVNULL
    )
