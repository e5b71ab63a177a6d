"""The whole line under sixty seeded schedules of faults: nothing missing, nothing made up, nothing out of order."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Literal

import pytest

from tests.simulation.line import play
from tests.simulation.plan import Trouble, calm, draw
from tests.simulation.verdict import judge

SEEDS = 60
GROUP = 10
MINUTES = 5.0


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_every_promise_holds_whatever_fails(first: int) -> None:
    """Ten seeds of five simulated minutes and two symbols; a seed that fails is named, and replays exactly."""
    problems = {seed: judge(play(draw(seed, MINUTES))) for seed in range(first, first + GROUP)}
    failed = {seed: found[:5] for seed, found in problems.items() if found}
    assert not failed, f"again with: python -m tests.simulation --seed {next(iter(failed))}"


@pytest.mark.parametrize("adaptive", [False, True], ids=["interval", "adaptive"])
@pytest.mark.parametrize("aggregation", ["kpl", "none"])
def test_shards_are_hardly_ever_sent_more_than_they_take(aggregation: Literal["kpl", "none"], adaptive: bool) -> None:
    """Not even what gathered in an outage: it drains at the pace of the shards, and all of it is made good.

    Without budgets the same run meets refusals; the mutant that ignores them shows it.
    """
    troubles = [Trouble(10, 20, "data", "down"), Trouble(40, 10, "data", "lost_answers", 0.6)]
    shape: dict[str, Any] = {"aggregation": aggregation, "adaptive": adaptive, "lanes": 8, "flush_interval_s": 0.2}
    simulation = play(calm(80, narrow_shards=True, troubles=troubles, **shape))
    assert judge(simulation) == []
    assert simulation.data_weather.over_limit == 0 < simulation.data_weather.entries


def test_a_seed_replays_exactly() -> None:
    """Two processes with other hashes of strings store the same bytes at the same virtual times."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", "4", "--minutes", "1", "--digest"]
    digests = {
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": salt}, check=True, capture_output=True).stdout
        for salt in ("1", "2")
    }
    assert len(digests) == 1
