"""The processes of a benchmark: what they print first, what they answer over HTTP, what they cost the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import ProxyHandler, build_opener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
REPOSITORY = Path(__file__).parents[2]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
DIRECT = build_opener(ProxyHandler({}))


class Cost(NamedTuple):
    """What a process has used so far: CPU seconds of all its threads, and resident bytes right now."""

    cpu_s: float
    rss_bytes: int


class Child:
    """A process of ours."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def cost(self) -> Cost:
        """Look into /proc; the resolution of CPU time is ten milliseconds."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # utime and stime, fields 14 and 15 of proc(5)
        return Cost(ticks / TICKS_PER_S, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))

    def first_line(self) -> str:
        """Wait for the first line of its output."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()} before it said anything")
        return line

    def is_running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None


@contextmanager
def run_child(module: str, *arguments: str, output: int = subprocess.PIPE) -> Iterator[Child]:
    """Run `python -m module` for the length of this block."""
    command = [sys.executable, "-m", module, *arguments]
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | CREDENTIALS
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, text=True)
    try:
        yield Child(process)
    finally:
        process.kill()
        process.communicate()


def ask(port: int, path: str) -> Any:
    """GET a JSON document from a child."""
    with DIRECT.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.load(answer)


def wait_for(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    """Poll until `condition` holds; TimeoutError says `what` did not happen."""
    give_up_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"{what} did not happen within {limit_s:g} s")
        time.sleep(0.05)


def report(measured: Sequence[float] | dict[str, float]) -> None:
    """Hand a result to the parent: the last line of a child's output."""
    print(json.dumps(measured), flush=True)  # noqa: T201 - how the parent learns it
