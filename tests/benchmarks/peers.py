"""Part (c), peers: what libraries from the package index do with the same trades, while they only count them.

Each runs in a process and an environment of its own, which is made under `.nox/peers` and kept. One that cannot be
installed, or not be pointed at loopback, is skipped, and the reason is told. Beside them: the whole line of ours, which
does all of its work, and picows on uvloop that decodes every message with msgspec and does nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks import line
from tests.benchmarks.children import REPOSITORY, run_child
from tests.benchmarks.counters import PEERS
from tests.benchmarks.receive import DECODED

if TYPE_CHECKING:
    from tests.benchmarks.counters import Peer

ENVIRONMENTS = REPOSITORY / ".nox" / "peers"
OURS = "ingestor, the whole line"
PATIENCE_S = 30.0


class SkippedError(Exception):
    """A peer cannot be measured here; the text says why."""


def measure(seconds: float, messages: int) -> dict[str, dict[str, Any]]:
    """Return messages per second and CPU microseconds per message of each; `skipped` says why there are none."""
    results: dict[str, dict[str, Any]] = {OURS: dict(line.measure(line.Setup(), messages)), DECODED: decoded(seconds)}
    for name, peer in PEERS.items():
        try:
            results[name] = count(name, peer, seconds)
        except SkippedError as reason:
            print(f"{name} is skipped: {reason}")  # noqa: T201 - a person waits for it
            results[name] = {"skipped": str(reason)}
    return results


def decoded(seconds: float) -> dict[str, Any]:
    """Measure what picows on uvloop can do when each message is decoded and that is all."""
    with run_child("tests.benchmarks.feed", "--blast", "trade") as feed:
        url = f"ws://127.0.0.1:{feed.first_line()}/stream"
        with run_child("tests.benchmarks.receive", DECODED, url, str(seconds)) as receiver:
            measured: dict[str, Any] = json.loads(receiver.first_line())
            return measured


def count(name: str, peer: Peer, seconds: float) -> dict[str, Any]:
    """Have one peer count in its own environment; raises SkippedError."""
    python = environment_of(peer)
    with run_child("tests.benchmarks.feed", "--blast", peer.kind) as feed, tempfile.TemporaryDirectory() as folder:
        port, log = feed.first_line(), Path(folder, "log")
        arguments = (name, port, str(seconds))
        with (
            log.open("w") as complaints,
            run_child(
                "tests.benchmarks.counters", *arguments, python=python, folder=folder, errors=complaints
            ) as child,
        ):
            try:
                version = child.next_line(PATIENCE_S)
                while not (text := child.next_line(PATIENCE_S + seconds)).startswith('{"cpu_us"'):
                    pass  # some talk
            except RuntimeError:
                raise SkippedError(last_line(log.read_text()) or "it counted nothing") from None
    measured: dict[str, Any] = json.loads(text)
    return measured | {"version": version}


def environment_of(peer: Peer) -> Path:
    """Return the Python of an environment that holds a peer, making it the first time; raises SkippedError."""
    folder = ENVIRONMENTS / "-".join((peer.package, *peer.extras))
    python, is_whole = folder / "bin" / "python", folder / "installed"
    if not is_whole.exists():
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", peer.package, *peer.extras, "uvloop"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
            if done.returncode:
                raise SkippedError(f"it could not be installed: {last_line(done.stderr)}")
        is_whole.touch()
    return python


def last_line(text: str) -> str:
    """Return the last line that says something, shortened."""
    lines = [each.strip() for each in text.splitlines() if each.strip()]
    return lines[-1][:200] if lines else ""
