"""The lock that the container is installed from, read line by line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from packaging.markers import Marker

LOCK: Final = Path(__file__).parents[2] / "config" / "requirements.txt"
PINNED: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>[^\\]+?))?\s*\\?")
HASHED: Final = re.compile(r"\s+--hash=sha256:(?P<digest>[0-9a-f]{64})\s*\\?")
# What the image is: the markers of the lock are judged for it, wherever this runs.
IMAGE: Final = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.0",
    "python_version": "3.11",
    "sys_platform": "linux",
}


class Locked(NamedTuple):
    """One package as it is pinned; `marker` says where it is installed, "" everywhere."""

    name: str
    version: str
    marker: str
    digests: tuple[str, ...]


def read_lock(text: str) -> list[Locked]:
    """Read the lines of a lock; ValueError for one that is no pin and no hash, because nothing may be overlooked."""
    found: list[Locked] = []
    for number, line in enumerate(text.splitlines(), 1):
        if pinned := PINNED.fullmatch(line):
            found.append(Locked(pinned["name"].lower(), pinned["version"], (pinned["marker"] or "").strip(), ()))
        elif (hashed := HASHED.fullmatch(line)) and found:
            found[-1] = found[-1]._replace(digests=(*found[-1].digests, hashed["digest"]))
        elif line.strip():
            raise ValueError(f"line {number} is neither a pin nor a hash: {line[:80]!r}")
    return found


def is_in_image(locked: Locked) -> bool:
    """Tell whether the image installs it."""
    return not locked.marker or Marker(locked.marker).evaluate(dict(IMAGE))
