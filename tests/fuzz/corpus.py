"""The inputs that are kept: a folder for each target, beside this file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.fuzz.seeds import seeds

if TYPE_CHECKING:
    from collections.abc import Iterator

CORPUS: Final = Path(__file__).parent / "corpus"


def kept(target: str) -> Iterator[Path]:
    """Give the files of one target, always in the same order."""
    return iter(sorted((CORPUS / target).glob("*")))


def keep(target: str, data: bytes, name: str = "") -> Path:
    """Keep an input; one that broke something is named by its content."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name.replace(" ", "-") or f"crash-{sha256(data).hexdigest()[:12]}")
    path.write_bytes(data)
    return path


def write_seeds() -> int:
    """Write what to begin with; return how many files that is."""
    return len([keep(target, data, name) for target, name, data in seeds()])
