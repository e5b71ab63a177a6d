"""Downloads from a scripted archive: cut off, damaged, missing, away; and the real files, the damaged one too."""

from __future__ import annotations

import hashlib
import io
import os
import tracemalloc
import zipfile
from collections import deque
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from ingestor import archive_client
from ingestor.archive_client import (
    ArchiveAwayError,
    ArchiveClient,
    DamagedFileError,
    FolderError,
    find_damage,
    read_lines,
)
from ingestor.config import Rest
from ingestor.core.archive import ArchiveFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import TypeVar

    from trio.testing import MockClock

    T = TypeVar("T")

REAL = Path(__file__).parents[2] / "shared" / "data" / "binance" / "archive"
FILE = ArchiveFile("BTCUSDT", "trades", "", date(2024, 1, 2), is_month=False)


def zipped(*texts: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, text in enumerate(texts):
            archive.writestr(f"{number}.csv", text)
    return content.getvalue()


CONTENT = zipped("".join(f"{number},1,2,3,4,True,True\n" for number in range(10_000)))


async def run_inline(fn: Callable[[], T], /) -> T:
    await trio.lowlevel.checkpoint()
    return fn()


class Archive(httpx.AsyncBaseTransport):
    """Has one file. `script` is what the next downloads get instead: a status, an error, or (bytes, error) in turn."""

    def __init__(self, content: bytes | None = CONTENT, digest: str | None = "", *, takes_ranges: bool = True) -> None:
        self.content = content
        self.digest = hashlib.sha256(content or b"").hexdigest() if digest == "" else digest
        self.script: deque[int | Exception | tuple[bytes, Exception]] = deque()
        self.ranges: list[str] = []
        self.asked = 0
        self.headers: dict[str, str] = {}
        self._takes_ranges = takes_ranges

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if request.url.path == f"{FILE.path}.CHECKSUM":
            return self._answer(None if self.digest is None else f"{self.digest}  {FILE.name}\n".encode())
        assert request.url.path == FILE.path
        self.ranges.append(request.headers.get("range", ""))
        step = self.script.popleft() if self.script else 200
        if isinstance(step, Exception):
            raise step
        if isinstance(step, tuple):
            return httpx.Response(200, stream=Breaking(*step))
        return self._answer(self.content, request.headers.get("range", "")) if step == 200 else httpx.Response(step)

    def _answer(self, content: bytes | None, wanted: str = "") -> httpx.Response:
        if content is None:
            return httpx.Response(404)
        if not wanted or not self._takes_ranges:
            return httpx.Response(200, headers=self.headers, stream=Breaking(content))
        begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        return httpx.Response(206, content=content[begin:]) if begin < len(content) else httpx.Response(416)


class Breaking(httpx.AsyncByteStream):
    """Gives some bytes and then fails, or ends."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self._parts: deque[bytes | Exception] = deque([content, error or StopAsyncIteration()])

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        part = self._parts.popleft()
        if isinstance(part, Exception):
            raise part
        return part


@asynccontextmanager
async def client_of(archive: Archive, folder: Path, max_attempts: int = 3) -> AsyncIterator[ArchiveClient]:
    settings = Rest(max_attempts=max_attempts)
    client = ArchiveClient(
        "http://archive/", settings, folder, run_blocking=run_inline, random=Random(1), transport=archive
    )
    async with client:
        yield client


async def test_a_file_is_fetched_checked_and_read(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Every line of it, in order."""
    async with client_of(Archive(), tmp_path / "files") as client:
        path = await client.fetch(FILE)
    assert path is not None
    assert path.name == FILE.name
    parts = list(read_lines(path))
    assert len(parts) > 2
    lines = [line for part in parts for line in part]
    assert lines == [f"{number},1,2,3,4,True,True".encode() for number in range(10_000)]


async def test_what_the_archive_does_not_have_is_none(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A day that was not published yet is no error."""
    async with client_of(Archive(None, None), tmp_path) as client:
        assert await client.fetch(FILE) is None


async def test_a_cut_download_goes_on_where_it_stopped(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Only the rest is asked for; it begins anew where the server gives no parts."""
    for archive in (Archive(), Archive(takes_ranges=False)):
        archive.script += [(CONTENT[:1_000], httpx.ReadError("cut")), httpx.ConnectError("down"), 503]
        folder = tmp_path / str(archive.asked + id(archive))
        async with client_of(archive, folder, max_attempts=4) as client:
            path = await client.fetch(FILE)
        assert path is not None
        assert find_damage(path, archive.digest) is None
        assert archive.ranges == ["", "bytes=1000-", "bytes=1000-", "bytes=1000-"]


async def test_a_file_that_is_here_already_is_not_fetched_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It is checked as ever; the archive only says that there is nothing more."""
    (tmp_path / FILE.name).write_bytes(CONTENT)
    archive = Archive()
    async with client_of(archive, tmp_path) as client:
        assert await client.fetch(FILE) is not None
    assert archive.ranges == [f"bytes={len(CONTENT)}-"]


async def test_a_damaged_file_is_fetched_anew_and_then_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The error names the file and what is wrong; nothing stays behind, not even the folder."""
    archive = Archive(CONTENT, "00ff")
    async with client_of(archive, tmp_path / "files") as client:
        with pytest.raises(DamagedFileError, match=f"{FILE.name}: SHA-256 is .* and should be 00ff; fetched 3 times"):
            await client.fetch(FILE)
    assert archive.ranges == ["", "", ""]
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - no blocking pathlib in async functions, says ASYNC240


async def test_a_damaged_copy_is_replaced(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What an earlier run left may be of a file that was published anew."""
    (tmp_path / FILE.name).write_bytes(b"x" * 5_000)
    async with client_of(Archive(), tmp_path) as client:
        path = await client.fetch(FILE)
    assert path is not None
    assert path.read_bytes() == CONTENT


async def test_without_a_checksum_the_zip_has_to_be_whole(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Its own checksums decide, before a single row is read."""
    async with client_of(Archive(CONTENT, None), tmp_path) as client:
        assert await client.fetch(FILE) is not None
    async with client_of(Archive(CONTENT[:-1], None), tmp_path / "other") as client:
        with pytest.raises(DamagedFileError, match="not a whole zip"):
            await client.fetch(FILE)


async def test_an_archive_that_is_away_is_said_to_be(tmp_path: Path, autojump_clock: MockClock) -> None:
    """After all attempts, each later than the one before."""
    archive = Archive()
    archive.script += [500, 500, httpx.ConnectError("down")]
    async with client_of(archive, tmp_path) as client:
        with pytest.raises(ArchiveAwayError, match="down"):
            await client.fetch(FILE)
    assert 0 < trio.current_time() < 5


async def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With the words of the system, as soon as something is to be written."""
    (tmp_path / "files").touch()
    async with client_of(Archive(), tmp_path / "files") as client:
        with pytest.raises(FolderError, match="files: File exists"):
            await client.fetch(FILE)


def test_damage_has_a_name(tmp_path: Path) -> None:
    """A flipped byte inside, two tables, none."""
    path = tmp_path / "x.zip"
    content = bytearray(CONTENT)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert find_damage(path, None) is not None
    path.write_bytes(zipped("1", "2"))
    assert find_damage(path, None) == "2 files in it, and one is expected"
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("a.csv", "1,2,3\n")
    path.write_bytes(stored.getvalue().replace(b"1,2,3", b"1,2,4"))
    assert find_damage(path, None) == "a.csv is broken in it"


def test_a_zip_that_contradicts_itself_is_damaged_where_it_does(tmp_path: Path) -> None:
    """Published broken, with a checksum of the broken file: what was read before stays, the rest is refused."""
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("a.csv", "1,2,3\n")
    path = tmp_path / "x.zip"
    path.write_bytes(stored.getvalue().replace(b"1,2,3", b"1,2,4"))
    assert find_damage(path, hashlib.sha256(path.read_bytes()).hexdigest()) is None
    with pytest.raises(DamagedFileError, match=r"x.zip: not a whole zip: Bad CRC-32"):
        list(read_lines(path))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real archive files are not beside this repository")
def test_real_files_are_whole_and_the_damaged_one_is_not() -> None:
    """The venue's own zips with their CHECKSUM files, and one that somebody stored a byte short."""
    for path in REAL.glob("BTCUSDT-*.zip"):
        digest = path.with_name(f"{path.name}.CHECKSUM").read_text().partition(" ")[0]
        assert find_damage(path, digest) is None
        assert sum(map(len, read_lines(path))) == 1_440
    [damaged] = REAL.glob("*.DAMAGED.zip")
    assert (find_damage(damaged, None) or "").startswith("not a whole zip")


def bomb(size: int) -> bytes:
    return zipped("0" * size)


def with_directory_of(size: int) -> bytes:
    """Change a zip so that it says its directory is that large, and make it so."""
    content = bytearray(zipped("1,2\n"))
    at = content.rfind(b"PK\x05\x06")
    start = int.from_bytes(content[at + 16 : at + 20], "little")
    content[at:at] = bytes(size)
    at += size
    content[at + 12 : at + 16] = (at - start).to_bytes(4, "little")
    return bytes(content)


def packed_otherwise() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.csv", "1,2,3\n")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        pytest.param(bomb(4_000_000), "bytes that unpack to 4000000", id="unpacks to a thousand times its size"),
        pytest.param(packed_otherwise(), "packed by method 14", id="a method that may ask for gigabytes"),
        pytest.param(with_directory_of(1 << 20), "a directory of 104", id="a directory of many files"),
        pytest.param(zipped(), "0 files in it", id="nothing in it"),
    ],
)
def test_a_zip_that_would_cost_too_much_is_not_opened(content: bytes, damage: str, tmp_path: Path) -> None:
    """Not even if the archive's own checksum vouches for it."""
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    for digest in (None, hashlib.sha256(content).hexdigest()):
        tracemalloc.start()
        assert damage in (find_damage(path, digest) or "")
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 1 << 20
    with pytest.raises(DamagedFileError, match=damage):
        list(read_lines(path))


def list_of(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_file_that_does_not_end_is_not_stored(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is everybody's."""
    monkeypatch.setattr(archive_client, "_LARGEST_FILE_BYTES", 1_000)
    async with client_of(Archive(bytes(5_000)), tmp_path / "files", max_attempts=2) as client:
        with pytest.raises(DamagedFileError, match="more than 1000 bytes"):
            await client.fetch(FILE)
    assert list_of(tmp_path) == []


async def test_a_checksum_that_does_not_end_is_not_read(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Nor is one taken that is no checksum."""
    async with client_of(Archive(digest="a" * 100_000), tmp_path, max_attempts=2) as client:
        with pytest.raises(ArchiveAwayError, match="a CHECKSUM of more than 4096 bytes"):
            await client.fetch(FILE)
    async with client_of(Archive(digest="\x1b[2J" * 500), tmp_path, max_attempts=2) as client:
        with pytest.raises(DamagedFileError) as caught:
            await client.fetch(FILE)
    assert len(str(caught.value)) < 400


async def test_an_answer_that_unpacks_itself_is_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It was not asked for, and a little of it can be very much."""
    archive = Archive()
    archive.headers = {"content-encoding": "gzip"}
    async with client_of(archive, tmp_path, max_attempts=2) as client:
        with pytest.raises(ArchiveAwayError, match="packed answer"):
            await client.fetch(FILE)


async def test_a_redirection_is_not_followed(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It could lead anywhere, also to plain text."""
    archive = Archive(digest=None)
    archive.script.extend([302, 302])
    async with client_of(archive, tmp_path, max_attempts=2) as client:
        with pytest.raises(ArchiveAwayError, match="HTTP 302"):
            await client.fetch(FILE)
