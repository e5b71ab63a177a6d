"""The backfill command as a process that is killed: what the engine or the file holds in the end is what the venue has.

Processes are forked from one that has imported everything, so that ten lives cost little more than one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from random import Random
from typing import TYPE_CHECKING, Any

import fastavro
import pytest
import trio
import yaml

from ingestor.cli import main
from ingestor.config import Kinesis
from ingestor.inspection import open_reader, prove
from ingestor.loading import INTERRUPTED
from ingestor.local.market import Market
from ingestor.local.protocol import Rules
from ingestor.local.venue import Venue
from ingestor.serializer import Serializer
from tests.fakes.past import history_of
from tests.integration.engines import CREDENTIALS, clean_environment, client_of, create_stream, stream_name_of
from tests.integration.service import NOWHERE, configuration, open_venue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from ingestor.local.rest import Response

pytestmark = pytest.mark.integration

TRADES = 30_000
KILLS = 10
LIMIT_S = 60.0
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ingestor.loading", "ingestor.cli"])


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def new_venue(page_s: float = 0.0) -> Venue:
    """Return a venue with a past that takes `page_s` for a page; a minute's budget is not what a life waits for."""
    now_ms = time.time_ns() // 1_000_000
    market = Market(("BTCUSDT",), start_ms=now_ms, orders_per_s=1.0, updates_per_s=1.0, levels=100)
    history = market.history("BTCUSDT")
    assert history is not None
    past = history_of("BTCUSDT", trades=range(TRADES), step_ms=1_000, start_ms=now_ms - 36_000_000)
    history.fills[:] = past.fills
    venue = Venue(market, rules=Rules(weight_per_minute=200_000))
    answer = venue.desk.answer

    def slow_answer(path: str, params: Sequence[tuple[str, str]], now_ms: int) -> Response:
        time.sleep(page_s if path.endswith("historicalTrades") else 0.0)
        return answer(path, params, now_ms)

    venue.desk.answer = slow_answer  # type: ignore[method-assign]  # one method of the desk is the script
    return venue


class Lives:
    """One run of the command after the other, always the same command."""

    def __init__(self, folder: Path, sections: dict[str, Any], *options: str) -> None:
        self._config = folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(sections))
        self._progress = folder / "state.json"
        ids = ("--from-id", "0", "--to-id", str(TRADES - 1))
        fixed = ("--config", str(self._config), "--state", str(self._progress), "--plain")
        self._arguments = ("backfill", "--symbol", "BTCUSDT", "--stream", "trade", *ids, *fixed, *options)
        self._random = Random(3)

    async def interrupt(self, number: signal.Signals) -> None:
        """Begin a life, and end it by a signal at a random instant after it delivered something."""
        seen = self._noted()
        process = self._begin()
        with trio.fail_after(LIMIT_S):
            while self._noted() == seen or b'"done":[]' in self._noted():  # noqa: ASYNC110 - another process writes it
                await trio.sleep(0.002)
            await trio.sleep(self._random.uniform(0, 0.05))
            assert process.pid is not None
            os.kill(process.pid, number)
            assert await trio.to_thread.run_sync(join, process) in (-signal.SIGKILL, INTERRUPTED)

    async def finish(self) -> None:
        """Begin a life, and let it come to its end."""
        with trio.fail_after(LIMIT_S):
            assert await trio.to_thread.run_sync(join, self._begin()) == 0

    def _begin(self) -> ForkServerProcess:
        process = FORKS.Process(target=live, args=(self._arguments, clean_environment(**CREDENTIALS, **NOWHERE)))
        process.start()
        return process

    def _noted(self) -> bytes:
        return self._progress.read_bytes() if self._progress.exists() else b""


def live(arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Be the command."""
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for as long as the process lives
    main(arguments)


def join(process: ForkServerProcess) -> int | None:
    process.join()
    return process.exitcode


async def test_killed_again_and_again_it_delivers_the_exact_set(moto_url: str, tmp_path: Path) -> None:
    """SIGKILL at ten random instants, then SIGINT, then to the end: nothing missing, a page twice for each at most."""
    stream = stream_name_of("backfill-killed")
    await trio.to_thread.run_sync(create_stream, client_of(moto_url), stream, 1)
    async with open_venue(new_venue()) as urls:
        sections = configuration(urls, moto_url, stream, tmp_path, kinesis={"blob_bytes": 20_000})
        lives = Lives(tmp_path, sections)
        for number in (*[signal.SIGKILL] * KILLS, signal.SIGINT):
            await lives.interrupt(number)
        await lives.finish()
    report = await prove(open_reader(Kinesis.model_validate(sections["kinesis"]), stream), Serializer().decode)
    [trades] = report.streams
    assert [(run.first, run.last) for run in trades.delivered] == [(0, TRADES - 1)]
    assert trades.duplicates <= 1_000 * KILLS
    assert trades.conflicts == []


async def test_a_file_that_was_written_in_many_lives_is_exact(tmp_path: Path) -> None:
    """Every trade once and in order: what a killed one wrote and did not note is cut off."""
    output = tmp_path / "trades.avro"
    async with open_venue(new_venue(page_s=0.06)) as urls:
        lives = Lives(tmp_path, configuration(urls, "http://127.0.0.1:1", "none", tmp_path), "--to", str(output))
        for _ in range(3):
            await lives.interrupt(signal.SIGKILL)
        await lives.finish()
    with output.open("rb") as content:
        records: list[Any] = list(fastavro.reader(content))
    assert [record["sequence"] for record in records] == list(range(TRADES))
