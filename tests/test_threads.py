"""The crossing into threads: who is cancelled waits for the end of a call, unless nobody needs to know it."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
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


ALLOCATE_IN_THREADS = """
import ctypes, sys
from threading import Barrier, Thread
from ingestor.threads import share_one_heap

if sys.argv[1] == "one":
    assert share_one_heap()
c = ctypes.CDLL(None)
c.malloc.restype = c.fopen.restype = ctypes.c_void_p
together = Barrier(8)

def allocate():
    together.wait()
    c.malloc(50_000)
    together.wait()

threads = [Thread(target=allocate) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
stream = ctypes.c_void_p(c.fopen(b"/dev/stdout", b"w"))
c.malloc_info(0, stream)
c.fflush(stream)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has a heap for each thread")
@pytest.mark.parametrize(("heaps", "is_one"), [("many", False), ("one", True)])
def test_all_threads_share_one_heap(heaps: str, is_one: bool) -> None:
    """As the C library itself tells it; memory grew with every thread that once took a large answer apart."""
    command = [sys.executable, "-c", ALLOCATE_IN_THREADS, heaps]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (len(re.findall(r"<heap nr=", told)) == 1) is is_one
