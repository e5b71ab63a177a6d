"""Runs that once failed, each as the smallest plan that shows it; they are played first when anything is suspected."""

from __future__ import annotations

import pytest

from tests.simulation.line import play
from tests.simulation.plan import IdRestart, Plan, Trouble, Turn, calm
from tests.simulation.verdict import judge

BTC = "BTCUSDT"
KEPT: dict[str, Plan] = {
    # Seeds 1008, 1088, 1336: the last heartbeat of a stop began in time and was then waited for, a socket timeout long.
    "a stop while the heartbeat stream hangs": calm(
        80, troubles=[Trouble(20, 45, "beats", "timeouts")], turns=[Turn(33, "stop", 1.0)]
    ),
    # Its old ids are declared by a task that is killed before the hole is in the stream: the next one finds 0 missing.
    "a kill while a restart of ids is not declared yet": calm(
        120, troubles=[Trouble(15, 40, "data", "down")], turns=[Turn(45, "kill", 5)], id_restarts=[IdRestart(25, BTC)]
    ),
    # The venue was wiped between two tasks: what is behind the first new ids in the stream is no hole of the old ones.
    "ids that begin again while nobody runs": calm(
        90, turns=[Turn(20, "kill", 14)], id_restarts=[IdRestart(21, BTC)], has_disk=True
    ),
    # Seed 7071: an old origin that was written, and nothing acknowledged, hid all new ids below it for ever.
    "ids that begin again before anything was acknowledged": calm(
        90, troubles=[Trouble(0, 12, "data", "down")], turns=[Turn(8, "kill", 20)], id_restarts=[IdRestart(10, BTC)]
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_failed_once_is_good_now(name: str) -> None:
    """For the promise that it broke, and for all others."""
    assert judge(play(KEPT[name])) == []


def test_a_kill_before_any_heartbeat_could_be_written_is_no_secret() -> None:
    """Seed 6211, and the one promise that is not given (completeness.md §3: a first record waits 10 s at most).

    Data went on without an origin, so the next task cannot know what the kill lost; whoever audits sees it.
    """
    plan = calm(70, troubles=[Trouble(0, 26, "beats", "down")], turns=[Turn(18, "kill", 5)])
    problems = judge(play(plan))
    assert problems
    assert [problem for problem in problems if not problem.startswith("the audit lacks ")] == []
