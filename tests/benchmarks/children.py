"""The processes of a benchmark: what they print first, what they answer over HTTP, what they cost the machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.request import ProxyHandler, build_opener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
REPOSITORY = Path(__file__).parents[2]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
LINE_LIMIT_S = 120.0
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
        return self.next_line()

    def next_line(self, limit_s: float = LINE_LIMIT_S) -> str:
        """Wait for a line of its output; RuntimeError when it has ended, or says nothing for `limit_s`."""
        assert self._process.stdout is not None
        giving_up = threading.Timer(limit_s, self._process.kill)
        giving_up.start()
        try:
            line = self._process.stdout.readline().strip()
        finally:
            giving_up.cancel()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()} before it said anything")
        return line

    def is_running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def stop(self, limit_s: float) -> int:
        """Ask it to end, as an orchestrator does, and wait; return the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(limit_s)


@contextmanager
def run_child(
    module: str,
    *arguments: str,
    output: int = subprocess.PIPE,
    errors: IO[str] | None = None,
    python: Path | None = None,
    folder: str | Path = REPOSITORY,
) -> Iterator[Child]:
    """Run `python -m module` for the length of this block, in `folder` and with another Python where one is given."""
    command = [str(python or sys.executable), "-m", module, *arguments]
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | CREDENTIALS
    environment["PYTHONPATH"] = str(REPOSITORY)
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=errors, text=True)
    try:
        yield Child(process)
    finally:
        process.kill()
        process.communicate()


def ask(port: int, path: str) -> Any:
    """GET a JSON document from a child."""
    return json.loads(fetch(port, path))


def fetch(port: int, path: str) -> str:
    """GET a text from a child."""
    with DIRECT.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def free_port() -> int:
    """Return a port of loopback that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


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
