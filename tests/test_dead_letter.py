"""What becomes of letters: lines on disk, and nothing silent when the disk refuses."""

from __future__ import annotations

import base64
import errno
import os
import stat
from itertools import count
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from ingestor import __version__, dead_letter
from ingestor.core.errors import SinkError
from ingestor.core.model import Claim, DeadLetter, EntryFailure, Subscription
from ingestor.dead_letter import (
    ClaimLine,
    FileDeadLetters,
    LetterFiles,
    LetterLine,
    QueueDeadLetters,
    encode,
    read_letters,
)
from ingestor.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import TypeVar

    from trio.testing import MockClock

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
        self.takes_s = 0.0

    async def __call__(self, fn: Callable[[], T], /) -> T:
        await trio.sleep(self.takes_s)
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


async def test_what_a_disk_that_hangs_holds_up_at_the_end_goes_into_the_log(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The end waits for so long and no longer, and a disk that wakes up afterwards does no harm."""
    disk = Disk()
    letters, _ = open_letters(tmp_path, disk)
    disk.is_full = True
    await letters.write([LETTER, PLAIN])
    disk.is_full, disk.takes_s = False, 10.0
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(letters.flush)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(2):
                await letters.close()
    spilled = [line["letter"] for line in logs if line["event"] == "dead_letter"]
    assert [msgspec.json.decode(line)["reason"] for line in spilled] == ["too_large", "invalid_json"]


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


def test_a_letter_is_on_disk_before_anybody_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are synced, and once for each file the folder, or the name of the file may be gone after a crash."""
    synced: list[tuple[bool, int]] = []

    def sync(file: int) -> None:
        state = os.fstat(file)
        synced.append((stat.S_ISDIR(state.st_mode), state.st_size))

    monkeypatch.setattr("ingestor.dead_letter.os.fsync", sync)
    files = LetterFiles(tmp_path, wall_ns)
    for line in (b"first\n", b"second\n"):
        files.append(line)
    files.close()
    assert [is_folder for is_folder, _ in synced] == [True, False, False]
    assert [size for is_folder, size in synced if not is_folder] == [6, 13]


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


def test_half_a_line_that_cannot_be_taken_back_is_the_last_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A letter that is written later never continues it."""
    ticks = count()
    files = LetterFiles(tmp_path, lambda: wall_ns() + next(ticks) * 1_000_000)
    real_write = os.write

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def break_down(file: int, lines: memoryview) -> int:
        monkeypatch.setattr("ingestor.dead_letter.os.write", fail)
        monkeypatch.setattr("ingestor.dead_letter.os.ftruncate", fail)
        return real_write(file, lines[:2])

    monkeypatch.setattr("ingestor.dead_letter.os.write", break_down)
    with pytest.raises(OSError, match="Input/output error"):
        files.append(b"broken\n")
    monkeypatch.undo()
    files.append(b"after\n")
    files.close()
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"br", b"after\n"]


def test_a_directory_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    """As on a read-only file system; the next try begins anew."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        LetterFiles(tmp_path / "file" / "letters", wall_ns).append(b"line\n")


class FakeQueue:
    """Answers by a script: a set of positions to refuse, or an error; then it accepts everything."""

    def __init__(self, *script: set[int] | SinkError) -> None:
        self.script = list(script)
        self.calls: list[list[str]] = []
        self.accepted: list[str] = []

    async def send(self, queue_url: str, bodies: Sequence[str]) -> Sequence[EntryFailure | None]:
        await trio.lowlevel.checkpoint()
        assert queue_url == "https://queue"
        self.calls.append(list(bodies))
        step = self.script.pop(0) if self.script else set()
        if isinstance(step, SinkError):
            raise step
        self.accepted += [body for position, body in enumerate(bodies) if position not in step]
        return [EntryFailure("InternalError", "?") if position in step else None for position in range(len(bodies))]


def open_queue(directory: Path, queue: FakeQueue) -> tuple[QueueDeadLetters, Metrics]:
    files, metrics = open_letters(directory, Disk())
    return QueueDeadLetters(queue, "https://queue", files, wall_ns, metrics), metrics


def numbered(count: int, size: int = 1) -> list[DeadLetter]:
    return [DeadLetter(reason="gave_up", detail=str(number), raw=bytes(size), at_ms=5) for number in range(count)]


def details(bodies: Sequence[str]) -> list[str]:
    return [msgspec.json.decode(body, type=LetterLine).detail for body in bodies]


AWAY = SinkError("transient", "ServiceUnavailable", "try later")


async def test_a_queued_letter_is_json_in_ascii(tmp_path: Path) -> None:
    """SQS refuses some characters; the bytes are base64, and nothing is said twice."""
    queue = FakeQueue()
    letters, metrics = open_queue(tmp_path, queue)
    strange = DeadLetter(reason="invalid_json", detail="日本\uffff\x00", raw="{\uffff".encode(), at_ms=5)
    await letters.write([strange])
    [body] = queue.accepted
    assert body.isascii()
    assert body.isprintable()
    line = msgspec.json.decode(body, type=LetterLine)
    assert (line.detail, line.text) == (strange.detail, None)
    assert base64.b64decode(line.raw_base64) == strange.raw
    assert metrics.registry.get_sample_value("dead_letters_total", {"reason": "invalid_json"}) == 1
    await letters.close()
    assert read(tmp_path) == []


async def test_calls_keep_to_the_limits_of_the_queue(tmp_path: Path) -> None:
    """Ten messages and one MiB in all; what is larger alone goes into a file."""
    queue = FakeQueue()
    letters, _ = open_queue(tmp_path, queue)
    await letters.write(numbered(12))
    assert [len(call) for call in queue.calls] == [10, 2]
    await letters.write(numbered(3, 300_000))
    assert [len(call) for call in queue.calls[2:]] == [2, 1]
    await letters.write([*numbered(1, 800_000), *numbered(1)])
    assert [len(call) for call in queue.calls[4:]] == [1]
    assert [line.detail for line in read(tmp_path)] == ["0"]


async def test_refused_messages_are_sent_again_and_only_those(autojump_clock: MockClock, tmp_path: Path) -> None:
    """An answer of success may carry failures."""
    queue = FakeQueue({1, 2}, AWAY, {0})
    letters, metrics = open_queue(tmp_path, queue)
    await letters.write(numbered(4))
    assert [details(call) for call in queue.calls] == [["0", "1", "2", "3"], ["1", "2"], ["1", "2"]]
    assert details(queue.accepted) == ["0", "3", "2"]
    assert [line.detail for line in read(tmp_path)] == ["1"]
    assert metrics.registry.get_sample_value("dead_letters_total", {"reason": "gave_up"}) == 4


async def test_a_queue_that_is_away_leaves_letters_in_files(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Soon, because the line waits; and what no disk takes is tried again later."""
    letters, _ = open_queue(tmp_path, FakeQueue(AWAY, AWAY, AWAY))
    with capture_logs() as logs:
        await letters.write(numbered(2))
    assert trio.current_time() < 1
    assert [line.detail for line in read(tmp_path)] == ["0", "1"]
    assert [line["event"] for line in logs] == ["dead_letters_not_queued"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(letters.keep_trying)
        await trio.sleep(31)
        nursery.cancel_scope.cancel()


async def test_stored_letters_are_read_back_past_torn_lines(tmp_path: Path) -> None:
    """In order; the same letter has the same id wherever it stands."""
    letters, _ = open_letters(tmp_path, Disk())
    await letters.write([LETTER, PLAIN])
    await letters.close()
    [path] = list_of(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"reason":"gave')
    with capture_logs() as logs:
        [first, second] = read_letters(tmp_path)
    assert (first.raw, second.raw) == (LETTER.raw, PLAIN.raw)
    assert first.id != second.id
    assert [(line["event"], line["line"]) for line in logs] == [("dead_letter_unreadable", 3)]


def list_of(directory: Path) -> list[Path]:
    return list(directory.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[" * 5_000,
        b"{}",
        b"null",
        b'{"reason":"gave_up","detail":"","first_seen_ms":1e400,"written_ms":1,"version":"","raw_base64":""}',
        b'{"reason":"gave_up","detail":"","first_seen_ms":-5,"written_ms":1,"version":"","raw_base64":""}',
        b'{"reason":"gave_up","detail":"","first_seen_ms":5,"written_ms":999999999999999999,"version":"","raw_base64":""}',
        b'{"reason":"gave_up","detail":"","first_seen_ms":5,"written_ms":1,"version":"","raw_base64":"a"}',
        b'{"reason":"gave_up","detail":"","first_seen_ms":5,"written_ms":1,"version":"","raw_base64":"\\u00ff"}',
        b'{"reason":"made up","detail":"","first_seen_ms":5,"written_ms":1,"version":"","raw_base64":""}',
    ],
)
def test_a_line_that_is_no_letter_is_passed_over(line: bytes, tmp_path: Path) -> None:
    """Whatever stands in the directory; the letters around it are read."""
    good = encode(LETTER, 1)
    (tmp_path / "a.jsonl").write_bytes(good + line + b"\n" + good)
    with capture_logs() as logs:
        assert [each.raw for each in read_letters(tmp_path)] == [LETTER.raw] * 2
    assert [(entry["event"], entry["line"]) for entry in logs] == [("dead_letter_unreadable", 2)]


def test_a_line_without_an_end_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of the parts is a letter."""
    monkeypatch.setattr(dead_letter, "LINE_MAX_BYTES", 1_000)
    good = encode(LETTER, 1)
    (tmp_path / "a.jsonl").write_bytes(b"{" * 2_500 + b"\n" + good)
    with capture_logs() as logs:
        assert len(list(read_letters(tmp_path))) == 1
    assert len(logs) == 3
