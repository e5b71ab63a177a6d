"""What becomes of letters: lines on disk, and nothing silent when the disk refuses."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from ingestor import __version__
from ingestor.core.model import Claim, DeadLetter, Subscription
from ingestor.dead_letter import ClaimLine, FileDeadLetters, LetterFiles, LetterLine
from ingestor.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")

LETTER = DeadLetter(
    reason="too_large",
    detail="1048577 bytes",
    raw=b'{"e":"trade"}',
    at_ms=1_700_000_000_000,
    symbol="BTCUSDT",
    event_type="trade",
    partition_key="BTCUSDT",
    claim=Claim(Subscription("BTCUSDT", "trade"), 7, 9),
    attempts=3,
    may_have_landed=True,
)
PLAIN = DeadLetter(reason="invalid_json", detail="?", raw=b"\xff\x00", at_ms=5)


class Disk:
    """Runs what it is given at once, or fails like a full disk."""

    def __init__(self) -> None:
        self.is_full = False

    async def __call__(self, fn: Callable[[], T], /) -> T:
        await trio.lowlevel.checkpoint()
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fn()


def wall_ns() -> int:
    return 1_700_000_001_000_000_000


def read(directory: Path) -> list[LetterLine]:
    lines = [line for path in sorted(directory.iterdir()) for line in path.read_bytes().splitlines(keepends=True)]
    assert all(line.endswith(b"\n") for line in lines)
    return [msgspec.json.decode(line, type=LetterLine) for line in lines]


def open_letters(directory: Path, disk: Disk, **limits: int) -> tuple[FileDeadLetters, Metrics]:
    metrics = Metrics(CollectorRegistry())
    return FileDeadLetters(LetterFiles(directory, wall_ns), disk, wall_ns, metrics, **limits), metrics


async def test_a_letter_is_one_line_with_all_that_is_needed(tmp_path: Path) -> None:
    """Raw bytes, text when there is some, why, whose, which ids, how often tried."""
    letters, metrics = open_letters(tmp_path / "new" / "place", Disk())
    await letters.write([LETTER, PLAIN])
    await letters.close()
    assert read(tmp_path / "new" / "place") == [
        LetterLine(
            reason="too_large",
            detail="1048577 bytes",
            first_seen_ms=1_700_000_000_000,
            written_ms=1_700_000_001_000,
            version=__version__,
            raw_base64="eyJlIjoidHJhZGUifQ==",
            text='{"e":"trade"}',
            symbol="BTCUSDT",
            event_type="trade",
            partition_key="BTCUSDT",
            claim=ClaimLine("BTCUSDT", "trade", 7, 9),
            attempts=3,
            may_have_landed=True,
        ),
        LetterLine("invalid_json", "?", 5, 1_700_000_001_000, __version__, "/wA="),
    ]
    assert metrics.registry.get_sample_value("dead_letters_total", {"reason": "too_large"}) == 1


async def test_what_a_full_disk_refuses_is_written_later(tmp_path: Path) -> None:
    """An ERROR in the log, the letters in memory, and in order on disk when there is room again."""
    disk = Disk()
    letters, _ = open_letters(tmp_path, disk)
    disk.is_full = True
    with capture_logs() as logs:
        await letters.write([LETTER])
    assert [(line["event"], line["log_level"], line["kept"]) for line in logs] == [
        ("dead_letters_unwritable", "error", 1)
    ]
    assert letters.kept == 1
    disk.is_full = False
    await letters.write([PLAIN])
    assert [line.reason for line in read(tmp_path)] == ["too_large", "invalid_json"]
    assert letters.kept == 0
    await letters.close()


async def test_what_memory_cannot_keep_goes_into_the_log_whole(tmp_path: Path) -> None:
    """The oldest first; at the end, all of it."""
    disk = Disk()
    letters, _ = open_letters(tmp_path, disk, kept_max_bytes=500)
    disk.is_full = True
    with capture_logs() as logs:
        await letters.write([LETTER, LETTER, PLAIN])
        spilled = [line["letter"] for line in logs if line["event"] == "dead_letter"]
        assert [msgspec.json.decode(line)["reason"] for line in spilled] == ["too_large"]
        await letters.close()
    spilled = [line["letter"] for line in logs if line["event"] == "dead_letter"]
    assert [msgspec.json.decode(line)["reason"] for line in spilled] == ["too_large", "too_large", "invalid_json"]


async def test_kept_letters_are_tried_again_without_a_new_one(tmp_path: Path, autojump_clock: object) -> None:
    """Every so many seconds."""
    disk = Disk()
    letters, _ = open_letters(tmp_path, disk)
    disk.is_full = True
    await letters.write([LETTER])
    disk.is_full = False
    with trio.move_on_after(10.5):
        await letters.keep_trying(every_s=10.0)
    assert [line.reason for line in read(tmp_path)] == ["too_large"]
    await letters.close()


async def test_letters_of_two_writers_do_not_mix(tmp_path: Path) -> None:
    """One append at a time, and each line once."""
    letters, _ = open_letters(tmp_path, Disk())
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(letters.write, [LETTER])
    assert len(read(tmp_path)) == 5
    await letters.close()


def test_a_full_file_is_followed_by_another(tmp_path: Path) -> None:
    """Whole lines in each, the names in the order of time."""
    moments = iter(range(1, 10))
    files = LetterFiles(tmp_path, lambda: next(moments) * 1_000_000_000, file_max_bytes=10)
    for line in (b"first\n", b"second\n", b"3\n"):
        files.append(line)
    files.close()
    files.close()
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"first\n", b"second\n3\n"]


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fills up inside a line, the file ends where it ended before."""
    files = LetterFiles(tmp_path, wall_ns)
    files.append(b"whole\n")
    real_write = os.write

    def fill_up(file: int, lines: memoryview) -> int:
        if len(lines) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(file, lines[:2])

    monkeypatch.setattr("ingestor.dead_letter.os.write", fill_up)
    with pytest.raises(OSError, match="No space left"):
        files.append(b"broken\n")
    monkeypatch.undo()
    files.append(b"after\n")
    files.close()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole\nafter\n"]


def test_a_directory_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    """As on a read-only file system; the next try begins anew."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        LetterFiles(tmp_path / "file" / "letters", wall_ns).append(b"line\n")
