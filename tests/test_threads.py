"""The crossing into threads: who is cancelled waits for the end of a call, unless nobody needs to know it."""

from __future__ import annotations

from threading import Event

import pytest
import trio

from ingestor.threads import open_threads


@pytest.mark.parametrize("may_abandon", [False, True])
async def test_a_cancelled_call_is_waited_for_or_left_to_itself(may_abandon: bool) -> None:
    """Calls that may be left to themselves do not hold up a stop."""
    run_blocking = open_threads(1, may_abandon=may_abandon)
    started, may_end, ended = trio.Event(), Event(), Event()

    def call() -> None:
        trio.from_thread.run_sync(started.set)
        may_end.wait(10)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_blocking, call)
        await started.wait()
        nursery.cancel_scope.cancel()
        if not may_abandon:
            may_end.set()
    was_waited_for = ended.is_set()
    may_end.set()
    assert was_waited_for is not may_abandon
