"""Blocking work beside the loop, and what a cancellation does to it."""

from __future__ import annotations

import threading

import trio

from ingestor.threads import open_threads


async def test_a_call_that_only_reads_does_not_hold_up_a_stop() -> None:
    """A disk may hang for minutes."""
    answer = threading.Event()
    try:
        with trio.fail_after(5), trio.move_on_after(0.01) as scope:
            await open_threads(1, only_read=True)(answer.wait)
        assert scope.cancelled_caught
    finally:
        answer.set()


async def test_a_call_that_may_have_landed_is_waited_for() -> None:
    """Its answer counts, although somebody wanted to stop."""
    answers: list[bool] = []
    began, go_on = threading.Event(), threading.Event()

    def call() -> bool:
        began.set()
        return go_on.wait(5)

    async def wait() -> None:
        answers.append(await open_threads(1)(call))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with trio.fail_after(5):
            while not began.is_set():  # noqa: ASYNC110 - a thread has no way to tell
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
        go_on.set()
    assert answers == [True]
