"""Files of the venue's public archive: downloaded, checked, and read line by line.

A download that was cut off goes on where it stopped. Nothing is read of a file before all of it was checked: against
the CHECKSUM beside it or, where there is none, against the checksums inside of the zip. A damaged one is fetched anew a
few times and then refused. Memory is constant, whatever the size of a file.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar, cast

import httpx
import structlog
import trio

from ingestor.bodies import read_until
from ingestor.config import is_plain_and_local
from ingestor.core.archive import lines_of
from ingestor.core.backoff import Backoff
from ingestor.core.errors import IngestorError
from ingestor.core.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator
    from pathlib import Path
    from random import Random
    from types import TracebackType
    from typing import IO, Self

    from ingestor.config import Rest
    from ingestor.core.archive import ArchiveFile
    from ingestor.threads import RunBlocking

T = TypeVar("T")

log = structlog.get_logger()

DAMAGED_ATTEMPTS: Final = 3
_DIGEST_CHARACTERS: Final = 64
_READ_BYTES: Final = 1 << 16  # some 900 trades
_RETRY_INITIAL_S: Final = 0.5
_RETRY_MAX_S: Final = 30.0
# What an archive may cost us, whoever it is: the largest months have some gigabytes, and their rows shrink to a tenth.
_LARGEST_FILE_BYTES: Final = 1 << 34
_CHECKSUM_BYTES: Final = 4_096
_DIRECTORY_BYTES: Final = 1 << 16  # of one file
_SHRINKS_AT_MOST: Final = 300
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})  # others may ask for gigabytes to unpack
# What `zipfile` raises for a zip that was made to break it goes well beyond its own error.
_BROKEN_ZIP: Final = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, RuntimeError),
    *(ValueError, OverflowError, LookupError),
)


class ArchiveError(IngestorError):
    """The archive did not give what was asked for."""


class DamagedFileError(ArchiveError):
    """A file is not what its checksums say, each time it was fetched."""


class ArchiveAwayError(ArchiveError):
    """No usable answer in all attempts; later may be better."""


class FolderError(ArchiveError):
    """The folder where files are kept on the way cannot be used."""


class ArchiveClient:
    """Downloads from one archive into `folder`; a context manager that owns the connections.

    `transport` replaces the network, `run_blocking` is where the disk is used. Errors: `DamagedFileError`,
    `ArchiveAwayError`, `FolderError`.
    """

    def __init__(
        self,
        base_url: str,
        settings: Rest,
        folder: Path,
        *,
        run_blocking: RunBlocking,
        random: Random,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._run_blocking = run_blocking
        self._random = random
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            timeout=settings.timeout_s,
            transport=transport,
            trust_env=not is_plain_and_local(base_url),
            headers={"Accept-Encoding": "identity"},
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # it never was, or something waits in it for the next run
            self._folder.rmdir()
        with trio.move_on_after(1, shield=True):  # closing sockets; a cancelled task closes them too
            await self._http.__aexit__(kind, error, trace)

    async def fetch(self, file: ArchiveFile) -> Path | None:
        """Return where the checked file is now; None when the archive does not have it (yet)."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return await self._fetch(file, self._folder / file.name)
        except OSError as error:
            raise FolderError(f"{self._folder}: {error.strerror}") from error

    async def forget(self, file: ArchiveFile) -> None:
        """Remove what is here of a file."""
        await self._run_blocking(partial((self._folder / file.name).unlink, missing_ok=True))

    async def _fetch(self, file: ArchiveFile, path: Path) -> Path | None:
        damage: str | None = None
        for attempts_left in reversed(range(DAMAGED_ATTEMPTS)):
            digest = await self._patiently(partial(self._checksum, file))
            if not await self._patiently(partial(self._download, file, path)):
                return None
            damage = await self._run_blocking(partial(find_damage, path, digest))
            if damage is None:
                return path
            await self.forget(file)
            log.warning("archive_file_damaged", file=file.name, damage=damage, attempts_left=attempts_left)
        raise DamagedFileError(f"{file.name}: {damage}; fetched {DAMAGED_ATTEMPTS} times")

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is a usable answer, slower each time."""
        backoff = Backoff(initial_s=_RETRY_INITIAL_S, max_s=_RETRY_MAX_S, multiplier=2, jitter=self._random)
        attempts_left = self._settings.max_attempts
        while True:
            try:
                return await ask()
            except (httpx.RequestError, ArchiveAwayError) as failure:
                attempts_left -= 1
                reason = reason_of(failure)
                if not attempts_left:
                    raise ArchiveAwayError(reason) from failure
            log.info("archive_retry", reason=reason, attempts_left=attempts_left)
            await trio.sleep(backoff.next_delay())

    async def _checksum(self, file: ArchiveFile) -> str | None:
        """Return the SHA-256 that the archive says the file has; None where it says nothing."""
        async with self._http.stream("GET", f"{file.path}.CHECKSUM") as response:
            if response.status_code == HTTPStatus.NOT_FOUND:
                return None
            _require(response, HTTPStatus.OK)
            text = bytearray()

            async def take(chunk: bytes) -> bool:
                text.extend(chunk)
                return len(text) > _CHECKSUM_BYTES

            await read_until(response.aiter_bytes(), take)
        if len(text) > _CHECKSUM_BYTES:
            raise ArchiveAwayError(f"a CHECKSUM of more than {_CHECKSUM_BYTES} bytes for {file.name}")
        return text.partition(b" ")[0].strip().lower().decode("latin-1")[:_DIGEST_CHARACTERS]

    async def _download(self, file: ArchiveFile, path: Path) -> bool:
        """Bring the file to `path`, from where an earlier attempt stopped; False when the archive does not have it."""
        size_bytes = await self._run_blocking(partial(_size_of, path))
        headers = {"Range": f"bytes={size_bytes}-"} if size_bytes else {}
        async with self._http.stream("GET", file.path, headers=headers) as response:
            if response.status_code == HTTPStatus.NOT_FOUND:
                return False
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return True  # all of it is here
            is_rest = response.status_code == HTTPStatus.PARTIAL_CONTENT
            _require(response, HTTPStatus.PARTIAL_CONTENT if is_rest else HTTPStatus.OK)
            with path.open("ab" if is_rest else "wb") as target:

                async def take(chunk: bytes) -> bool:
                    return await self._run_blocking(partial(_append, target, chunk)) > _LARGEST_FILE_BYTES

                await read_until(response.aiter_bytes(), take)
                is_too_large = target.tell() > _LARGEST_FILE_BYTES
        if is_too_large:
            await self._run_blocking(path.unlink)
            raise DamagedFileError(f"{file.name}: more than {_LARGEST_FILE_BYTES} bytes")
        return True


def find_damage(path: Path, digest: str | None) -> str | None:
    """Say what is wrong with a zip, or None; `digest` is the SHA-256 it should have. Blocks."""
    if digest is not None:
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != digest:
            return f"SHA-256 is {found} and should be {digest}"
    try:
        with open_zip(path) as archive:
            broken = archive.testzip() if digest is None else None  # SHA-256 said that every byte is the venue's
    except _UnfitError as error:
        return str(error)
    except _BROKEN_ZIP as error:
        return f"not a whole zip: {error}"
    return f"{broken} is broken in it" if broken is not None else None


class _UnfitError(zipfile.BadZipFile):
    """A whole zip that is no table of the archive."""


class _Guarded:
    """A file that `zipfile` reads no large piece of: it takes a directory whole, however large it says it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY_BYTES:
            raise _UnfitError(f"a directory of {size} bytes, and one file is expected")
        return self._read(size)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip with one file that can be read without much memory. Raises one of `_BROKEN_ZIP`. Blocks."""
    with path.open("rb") as content, zipfile.ZipFile(cast("IO[bytes]", _Guarded(content))) as archive:
        members = archive.infolist()
        if len(members) != 1:
            raise _UnfitError(f"{len(members)} files in it, and one is expected")
        [member] = members
        if member.compress_type not in _METHODS:
            raise _UnfitError(f"packed by method {member.compress_type}")
        if member.file_size > _SHRINKS_AT_MOST * member.compress_size:
            raise _UnfitError(f"{member.compress_size} bytes that unpack to {member.file_size}")
        yield archive


def read_lines(path: Path) -> Generator[list[bytes]]:
    """Give the lines of the CSV in a checked zip, some hundred at a time. Blocks at every step.

    Raises `DamagedFileError` where the zip contradicts itself although its checksum was right.
    """
    try:
        with open_zip(path) as archive, archive.open(archive.infolist()[0]) as table:
            yield from lines_of(iter(partial(table.read, _READ_BYTES), b""))
    except _BROKEN_ZIP as error:
        raise DamagedFileError(f"{path.name}: not a whole zip: {error}") from error


def _append(target: IO[bytes], chunk: bytes) -> int:
    target.write(chunk)
    return target.tell()


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require(response: httpx.Response, status: HTTPStatus) -> None:
    if response.status_code != status:
        raise ArchiveAwayError(f"HTTP {response.status_code} for {response.url}")
    if "content-encoding" in response.headers:  # it would unpack itself, without a bound, and was not asked to
        raise ArchiveAwayError(f"packed answer for {response.url}")
