"""Runs that once failed, each as the smallest plan that shows it; they are played first when anything is suspected."""

from __future__ import annotations

import pytest

from tests.simulation.line import play
from tests.simulation.plan import Plan, Trouble, Turn, calm
from tests.simulation.verdict import judge

KEPT: dict[str, Plan] = {
    # Seeds 1008, 1088, 1336: the last heartbeat of a stop began in time and was then waited for, a socket timeout long.
    "a stop while the heartbeat stream hangs": calm(
        80, troubles=[Trouble(20, 45, "beats", "timeouts")], turns=[Turn(33, "stop", 1.0)]
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_failed_once_is_good_now(name: str) -> None:
    """For the promise that it broke, and for all others."""
    assert judge(play(KEPT[name])) == []
