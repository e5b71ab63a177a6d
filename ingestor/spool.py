"""Keeps encoded records on disk while Kinesis is away, lane by lane, and gives them back in order.

Once one record of a lane is on disk, later ones of that lane follow it there until it is drained; what the lane holds
in memory at that moment is written in front of them. So the files of a lane are always a gapless end of it, in order.
They stay until Kinesis has acknowledged what is in them, and a process that is killed leaves them to the next one.

Correctness does not need any of it: what a disk loses was never claimed, and is repaired. Therefore a batch is written
without `fsync` (the kernel keeps what a killed process wrote), and synced once a second, because diffs of an order book
that a crash of the machine takes away cannot be fetched again. A disk that fails makes this a spool in memory, within
the bound that holds without a disk.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import tempfile
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import structlog
import trio

from ingestor.core.claims import Intervals
from ingestor.core.lanes import RECORD_COST_BYTES, joined_claims, lane_index
from ingestor.core.spool_format import (
    DONE_AT,
    FRAME,
    FRAME_BYTES,
    HEADER,
    BrokenFrameError,
    Content,
    decode_frame,
    done_mark,
    encode_frame,
    frame_length,
    header,
    scan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ingestor.core.lanes import Lanes
    from ingestor.core.model import Claim, EncodedBatch, EncodedRecord, Subscription
    from ingestor.threads import RunBlocking

log = structlog.get_logger()

T = TypeVar("T")

SEGMENT_BYTES: Final = 4 * 1024 * 1024
SYNC_EVERY_S: Final = 1.0
RETRY_S: Final = 5.0
READ_TRIES: Final = 3
TAIL_MAX_BYTES: Final = 4 * 1024 * 1024  # what is gathered for one write
IDENTITY: Final = "identity"  # says whose a folder is; locked while the process that writes there runs
NAME: Final = re.compile(r"(\d{10})-(\d{3})-of-(\d{3})\.spool")


class OpenSpool(Protocol):
    """Makes the spool of a producer: `Spool` with all but the lanes and their memory filled in."""

    def __call__(self, lanes: Lanes, *, memory_max_bytes: int) -> Spool:
        """Make it."""
        ...


class SegmentName(NamedTuple):
    """What the name of a file says: its turn, its lane, and how many lanes there were."""

    path: Path
    lane: int
    lanes: int


@dataclass(slots=True, eq=False)
class Segment:
    """One file of a lane: delivered up to `done`, in memory up to `read_until`, valid up to `end`."""

    path: Path
    end: int = HEADER.size
    read_until: int = HEADER.size
    done: int = HEADER.size
    failures: int = 0


class Place(NamedTuple):
    """An offset in a segment: it is done up to there once the records before it are delivered."""

    segment: Segment
    end: int


class Write(NamedTuple):
    """Records for the end of a lane; the first `kept` ones stay in memory too, and are not read back."""

    lane: int
    received_ms: int
    records: Sequence[EncodedRecord]
    kept: int = 0


class Loaded(NamedTuple):
    """A frame that was read back, and where it ends."""

    content: Content
    place: Place


class Read(NamedTuple):
    """What came back, oldest first, lane by lane, and the error that kept the rest from coming."""

    frames: dict[int, list[Loaded]]
    error: OSError | None


class SpoolFiles:
    """The files of a spool. Blocks: call it in a thread, one call at a time; what only looks may be called anywhere.

    Every process has a folder of its own in `directory`. At its start it takes over the folders of earlier ones, as far
    as they are of the same `identity` and their process has ended (its lock is free).
    """

    def __init__(
        self, directory: Path, identity: str, *, lanes: int, max_bytes: int, wall_ns: Callable[[], int]
    ) -> None:
        self.size_bytes = 0
        self.is_lossy = False  # something could not be read back, and nobody was told yet
        self.highest: dict[Subscription, int] = {}  # ids that stood here since it was last empty, or was lossy
        self._directory = directory
        self._identity = identity
        self._lanes = lanes
        self._max_bytes = max_bytes
        self._wall_ns = wall_ns
        self._life: Path | None = None
        self._earlier: list[Path] = []
        self._locks: list[int] = []
        self._segments: list[deque[Segment]] = [deque() for _ in range(lanes)]
        self._number = 0
        self._unsynced: set[Path] = set()
        self._synced_s = -math.inf

    def open(self) -> dict[Subscription, Intervals]:
        """Make a folder, take over what earlier processes left, return the ids that stand there; raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        lives = sorted(path.parent for path in self._directory.glob(f"*/{IDENTITY}"))
        self._begin_life()
        left = [name for life in lives if self._take_over(life) for name in segments_in(life)]
        # All of them or none: what is moved comes to stand behind what is not.
        move = any(name.lanes != self._lanes for name in left)
        held: dict[Subscription, Intervals] = {}
        for name in left:
            try:
                self._recover(name, held, move=move)
            except (OSError, BrokenFrameError) as error:
                log.error("spool_segment_lost", segment=name.path.name, error=str(error))  # noqa: TRY400 - it is the disk's
        if self.size_bytes:
            log.info("spool_recovered", spooled_bytes=self.size_bytes, ids=sum(map(Intervals.count, held.values())))
        return held

    def probe(self) -> bool:
        """Find out whether the disk takes anything; returns True, or raises OSError."""
        path = self._own_folder() / "probe"
        path.write_bytes(bytes(FRAME_BYTES))
        path.unlink()
        return True

    def holds(self, lane: int) -> bool:
        """Say whether there are records of `lane` that are here and not in memory."""
        return any(segment.read_until < segment.end for segment in self._segments[lane])

    def append(self, writes: Sequence[Write], now: float) -> dict[int, Place] | None:
        """Write records behind those of their lanes, at most one write a lane, each with one call of the system.

        Returns where the kept records of a lane end. None, and nothing is written, when there would be more than
        `max_bytes`; raises OSError, and then nothing counts as written.
        """
        frames = [encode_frames(write.received_ms, write.records, write.kept) for write in writes]
        size = sum(len(kept) + len(rest) + HEADER.size for kept, rest in frames)
        if self.size_bytes + size > self._max_bytes:
            return None
        places = self._append([write.lane for write in writes], frames, now)
        for claim in joined_claims(record.claim for write in writes for record in write.records):
            self._note(claim)
        return places

    def read(self, wanted: Mapping[int, int]) -> Read:
        """Bring back about so many bytes of these lanes, counted as memory counts them."""
        frames: dict[int, list[Loaded]] = {}
        try:
            for lane, wanted_bytes in wanted.items():
                taken = 0
                while taken < wanted_bytes and (frame := self._next_frame(lane)) is not None:
                    frames.setdefault(lane, []).append(frame)
                    taken += sum(len(record.data) + RECORD_COST_BYTES for record in frame.content.records)
        except OSError as error:
            return Read(frames, error)
        return Read(frames, None)

    def tidy(self, delivered: Sequence[Place]) -> None:
        """Note what was delivered, and delete the files that are done with; raises OSError."""
        for segment, end in delivered:
            segment.done = max(segment.done, end)
        for segments in self._segments:
            while segments and segments[0].done == segments[0].end:
                segments[0].path.unlink(missing_ok=True)
                self._unsynced.discard(segments[0].path)
                self.size_bytes -= segments.popleft().end
        if not self.is_lossy and not any(self._segments):
            self.highest.clear()
        for segment in {place.segment for place in delivered if place.segment.done < place.segment.end}:
            write_at(segment.path, done_mark(segment.done), DONE_AT)

    def close(self, delivered: Sequence[Place]) -> None:
        """Leave everything to the next process: what was delivered is noted, empty folders go; raises OSError."""
        try:
            self.tidy(delivered)
            self._sync()
            for life in filter(None, [*self._earlier, self._life]):
                if not segments_in(life):
                    (life / IDENTITY).unlink(missing_ok=True)
                    life.rmdir()
        finally:
            for lock in self._locks:
                os.close(lock)
            self._locks.clear()

    def _note(self, claim: Claim) -> None:
        self.highest[claim.subscription] = max(claim.last, self.highest.get(claim.subscription, -1))

    def _own_folder(self) -> Path:
        """Return our folder, made again if somebody took it away."""
        if self._life is None or not self._life.is_dir():
            self._begin_life()
        assert self._life is not None  # noqa: S101 - for the type checker
        return self._life

    def _begin_life(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        # The wall clock in front, so that lives sort by age; the chance behind it keeps two of one millisecond apart.
        life = Path(tempfile.mkdtemp(prefix=f"{self._wall_ns() // 1_000_000:013}-", dir=self._directory))
        lock = os.open(life / IDENTITY, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._locks.append(lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, self._identity.encode())  # only now: whoever looks before sees a folder of nobody
        self._life = life

    def _take_over(self, life: Path) -> bool:
        """Lock the folder of an earlier process; False if it is not ours to take."""
        try:
            lock = os.open(life / IDENTITY, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            log.error("spool_folder_unreadable", folder=life.name, error=str(error))  # noqa: TRY400 - no bug of ours
            return False
        if os.read(lock, 4096) != self._identity.encode():
            log.warning("spool_of_another_service", folder=life.name)
        elif not is_locked(lock):
            log.info("spool_in_use", folder=life.name)  # a deploy: the task before us has not ended
        elif not (life / IDENTITY).exists():
            log.info("spool_left", folder=life.name)  # it has ended since we looked, and left nothing
        else:
            self._locks.append(lock)
            self._earlier.append(life)
            return True
        os.close(lock)
        return False

    def _recover(self, name: SegmentName, held: dict[Subscription, Intervals], *, move: bool) -> None:
        """Take a file of an earlier process in; what follows its last whole frame is cut."""
        data = name.path.read_bytes()
        found = scan(data)
        if found.end < len(data):
            log.warning("spool_tail_cut", segment=name.path.name, cut_bytes=len(data) - found.end)
            os.truncate(name.path, found.end)
        left = [frame for frame in found.frames if frame.end > found.done]
        segment = Segment(name.path, found.end, found.done, found.done)
        if left and not move:
            self._segments[name.lane].append(segment)
            self.size_bytes += segment.end
        else:
            self._move(segment)
        for claim in chain.from_iterable(frame.claims for frame in left):
            held.setdefault(claim.subscription, Intervals()).add(claim.first, claim.last)
            self._note(claim)

    def _move(self, segment: Segment) -> None:
        """Write what is left of a file where its keys belong now that there are more or fewer lanes, and delete it."""
        while segment.read_until < segment.end:
            received_ms, records = self._read_frame(segment).content
            by_lane: dict[int, list[EncodedRecord]] = {}
            for record in records:
                by_lane.setdefault(lane_index(record.partition_key, self._lanes), []).append(record)
            frames = [encode_frames(received_ms, of_lane, 0) for of_lane in by_lane.values()]
            self._append(list(by_lane), frames)  # it was admitted once, whatever the limit is now
        segment.path.unlink()

    def _append(
        self, lanes: Sequence[int], frames: Sequence[tuple[bytes, bytes]], now: float | None = None
    ) -> dict[int, Place]:
        segments: list[Segment] = []
        try:
            for lane, data in zip(lanes, frames, strict=True):
                segments.append(self._last_segment(lane))
                write_at(segments[-1].path, b"".join(data), segments[-1].end)
                self._unsynced.add(segments[-1].path)
            if now is not None and now - self._synced_s >= SYNC_EVERY_S:
                self._sync()
                self._synced_s = now
        except OSError:
            for segment in segments:
                with suppress(OSError):  # what stays behind is overwritten, or delivered twice
                    os.truncate(segment.path, segment.end)
            raise
        places: dict[int, Place] = {}
        for lane, segment, (kept, rest) in zip(lanes, segments, frames, strict=True):
            if kept:
                segment.read_until = segment.end + len(kept)
                places[lane] = Place(segment, segment.read_until)
            segment.end += len(kept) + len(rest)
            self.size_bytes += len(kept) + len(rest)
        return places

    def _last_segment(self, lane: int) -> Segment:
        """Return the file that `lane` grows in."""
        folder, segments = self._own_folder(), self._segments[lane]
        if segments:
            last = segments[-1]
            if last.path.parent == folder and last.end < SEGMENT_BYTES and last.path.exists():
                return last
        self._number += 1
        path = folder / f"{self._number:010}-{lane:03}-of-{self._lanes:03}.spool"
        try:
            path.write_bytes(header(HEADER.size))
        except OSError:
            with suppress(OSError):
                path.unlink()  # or the next start takes half a header for a file that was lost
            raise
        segments.append(Segment(path))
        self.size_bytes += HEADER.size
        return segments[-1]

    def _next_frame(self, lane: int) -> Loaded | None:
        for segment in self._segments[lane]:
            if segment.read_until < segment.end:
                try:
                    return self._read_frame(segment)
                except (OSError, BrokenFrameError) as error:
                    segment.failures += 1
                    can_recover = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
                    if can_recover and segment.failures < READ_TRIES:
                        raise
                    self._give_up(segment, error)
        return None

    def _read_frame(self, segment: Segment) -> Loaded:
        file = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            length = frame_length(os.pread(file, FRAME.size, segment.read_until))
            if length > segment.end - segment.read_until:
                raise BrokenFrameError("the frame is longer than its segment")
            content = decode_frame(os.pread(file, length, segment.read_until))
        finally:
            os.close(file)
        segment.read_until += length
        segment.failures = 0
        return Loaded(content, Place(segment, segment.read_until))

    def _give_up(self, segment: Segment, error: Exception) -> None:
        lost_bytes = segment.end - segment.read_until
        log.error("spool_segment_lost", segment=segment.path.name, lost_bytes=lost_bytes, error=str(error))
        segment.end = segment.read_until
        self.size_bytes -= lost_bytes
        self.is_lossy = True

    def _sync(self) -> None:
        for path in [*self._unsynced, *{path.parent for path in self._unsynced}]:
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # taken away: that is found out when it is read, and no reason to refuse what comes now
            try:
                os.fsync(file)
            finally:
                os.close(file)
        self._unsynced.clear()


def is_locked(file: int) -> bool:
    """Lock an open file for this process, until it is closed; False if another one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def segments_in(life: Path) -> list[SegmentName]:
    """Return the segments in a folder, oldest first."""
    names = ((path, NAME.fullmatch(path.name)) for path in sorted(life.iterdir()))
    return [SegmentName(path, int(match[2]), int(match[3])) for path, match in names if match is not None]


def encode_frames(received_ms: int, records: Sequence[EncodedRecord], kept: int) -> tuple[bytes, bytes]:
    """Make the frames of the first `kept` records, and those of the others."""
    halves = (records[:kept], records[kept:])
    kept_frames, frames = (
        b"".join(
            encode_frame(received_ms, joined_claims(record.claim for record in part), part) for part in portions(half)
        )
        for half in halves
    )
    return kept_frames, frames


def portions(records: Sequence[EncodedRecord]) -> Iterator[Sequence[EncodedRecord]]:
    """Cut records into portions of about one frame."""
    start = size = 0
    for position, record in enumerate(records, 1):
        size += len(record.data)
        if size >= FRAME_BYTES or position == len(records):
            yield records[start:position]
            start, size = position, 0


def write_at(path: Path, data: bytes, offset: int) -> None:
    """Write all of `data` into an existing file; raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(file, rest, offset)
            rest, offset = rest[written:], offset + written
    finally:
        os.close(file)


class Tail:
    """Records of a lane that came after those on disk, until they are written there as well."""

    def __init__(self, received_s: float) -> None:
        self.received_s = received_s
        self.records: list[EncodedRecord] = []
        self.held_bytes = 0

    def add(self, records: Sequence[EncodedRecord]) -> None:
        """Take records over."""
        self.records += records
        self.held_bytes += sum([len(record.data) for record in records]) + RECORD_COST_BYTES * len(records)


class Spool:
    """Decides which records of a producer's lanes go to disk and come back; the producer is the only one to call it.

    A lane goes to disk while Kinesis is away (`is_sink_away`), or when memory is half full and it has more than its
    share of that. Whatever the disk does, records keep their order: while it refuses, the tail of a lane that is partly
    on disk waits in memory. `trouble` is what is wrong with the disk, None for nothing.
    """

    def __init__(
        self,
        lanes: Lanes,
        *,
        memory_max_bytes: int,
        files: SpoolFiles,
        run_blocking: RunBlocking,
        wall_ns: Callable[[], int],
        on_lost: Callable[[Mapping[Subscription, int]], None],
    ) -> None:
        """`on_lost` is called when the disk lost records, after all others were delivered: their ids are missing.

        It is told the highest id that was on disk of each subscription: what is lost may be above all that was ever
        acknowledged.
        """
        self.is_sink_away = False
        self.trouble: str | None = None
        self._files = files
        self._lanes = lanes
        self._run_blocking = run_blocking
        self._memory_max_bytes = memory_max_bytes
        self._mark_bytes = memory_max_bytes // 2
        self._share_bytes = max(1, self._mark_bytes // lanes.count)
        self._wall_ns = wall_ns
        self._on_lost = on_lost
        self._probe_at = math.inf
        self._read_again_at = math.inf
        self._is_full = False
        self._holding: set[int] = set()  # lanes whose end is not in memory
        self._saved = [0] * lanes.count  # the position in a lane below which all of it is on disk, or delivered
        self._loaded: list[deque[tuple[int, Place]]] = [deque() for _ in range(lanes.count)]  # with their positions
        self._tails: dict[int, Tail] = {}
        self._delivered: list[Place] = []

    async def open(self) -> dict[Subscription, Intervals]:
        """Take over what earlier processes left, and return which ids that is."""
        held = await self._use_disk(self._files.open)
        self._holding = set(filter(self._files.holds, range(self._lanes.count)))
        return held or {}

    @property
    def spooled_bytes(self) -> int:
        """What is on disk."""
        return self._files.size_bytes

    @property
    def held_bytes(self) -> int:
        """What waits in memory to be written."""
        return sum(tail.held_bytes for tail in self._tails.values())

    @property
    def unsaved_records(self) -> int:
        """How many records are owed and not on disk."""
        unsaved = sum(len(self._unsaved(index)) for index in range(self._lanes.count))
        return unsaved + sum(len(tail.records) for tail in self._tails.values())

    @property
    def has_room(self) -> bool:
        """Say whether more records may come; if the disk does not take them, memory must."""
        if self._takes:
            return self.held_bytes < TAIL_MAX_BYTES
        return self._lanes.held_bytes + self.held_bytes < self._memory_max_bytes

    @property
    def is_drained(self) -> bool:
        """Say whether no lane waits for the disk."""
        return not self._holding and not self._tails

    @property
    def due_at(self) -> float:
        """When `work` has something to do that no batch and no call announces (monotonic); inf for never."""
        if any(self._takes or index not in self._holding for index in self._tails):
            return -math.inf  # there is room for it by now, on disk or in memory
        return min(self._probe_at, self._read_again_at)

    def admit(self, batch: EncodedBatch, now: float) -> None:
        """Take records over: into memory, or behind those of their lane that are on disk."""
        lanes = self._lanes
        if self.is_drained and not self.is_sink_away and lanes.held_bytes < self._mark_bytes:
            lanes.add(batch.records, batch.received_s, now)
            return
        for index, records in lanes.sort(batch.records).items():
            if index in self._tails or self._diverts(index):
                self._tails.setdefault(index, Tail(batch.received_s)).add(records)
            else:
                lanes.add(records, batch.received_s, now)

    def settle(self, indexes: Iterable[int]) -> None:
        """Look how far these lanes were delivered."""
        for index in indexes:
            loaded, settled = self._loaded[index], self._lanes.settled_until(index)
            while loaded and loaded[0][0] <= settled:
                self._delivered.append(loaded.popleft()[1])

    async def work(self) -> None:
        """Do what is to be done on disk now: write, read, delete."""
        if trio.current_time() >= self._probe_at:
            await self._recover()
        if self._takes:
            await self._write(self._due_writes())
        self._fall_back()
        await self._refill()
        await self._tidy()
        if self._files.is_lossy and self.is_drained and not any(self._loaded):
            self._files.is_lossy = False
            self._on_lost(self._files.highest.copy())

    async def leave(self) -> None:
        """Write down all that is held, for the next process."""
        for index in range(self._lanes.count):
            await self._write([self._write_of(index)])  # one by one, so that a little room is used
        await self._use_disk(partial(self._files.close, self._delivered))

    @property
    def _takes(self) -> bool:
        return self.trouble is None and not self._is_full

    def _diverts(self, index: int) -> bool:
        if index in self._holding:
            return True
        held_bytes = self._lanes.held_bytes
        is_crowded = held_bytes >= self._mark_bytes and self._lanes[index].waiting_cost_bytes >= self._share_bytes
        return self._takes and (self.is_sink_away or is_crowded or held_bytes >= self._memory_max_bytes)

    def _unsaved(self, index: int) -> list[EncodedRecord]:
        """Return what a lane holds in memory only; all of it comes before what is on disk only."""
        if self._saved[index] == self._lanes[index].added:
            return []
        return self._lanes.records_from(index, self._saved[index])

    def _due_writes(self) -> list[Write]:
        indexes = range(self._lanes.count) if self.is_sink_away else self._tails
        return [self._write_of(index) for index in indexes]

    def _write_of(self, index: int) -> Write:
        kept, tail = self._unsaved(index), self._tails.get(index)
        age_s = 0.0 if tail is None else trio.current_time() - tail.received_s
        received_ms = self._wall_ns() // 1_000_000 - round(age_s * 1000)
        return Write(index, received_ms, kept if tail is None else kept + tail.records, len(kept))

    async def _write(self, writes: Sequence[Write]) -> None:
        writes = [write for write in writes if write.records]
        if not writes:
            return
        now = trio.current_time()
        places = await self._use_disk(lambda: self._files.append(writes, now))
        if places is None:
            self._is_full = self._is_full or self.trouble is None
            return
        for write in writes:
            self._saved[write.lane] = added = self._lanes[write.lane].added
            if write.kept:
                self._loaded[write.lane].append((added, places[write.lane]))
            if self._tails.pop(write.lane, None) is not None:
                self._holding.add(write.lane)
        self.settle(write.lane for write in writes)  # calls may have ended meanwhile

    def _fall_back(self) -> None:
        """Move the tails of lanes that have nothing on disk into memory: the disk does not take them."""
        if self._takes:
            return
        now = trio.current_time()
        for index in [index for index in self._tails if index not in self._holding]:
            tail = self._tails.pop(index)
            self._lanes.add(tail.records, tail.received_s, now)

    async def _refill(self) -> None:
        """Read lanes back that run short in memory."""
        if trio.current_time() < self._read_again_at < math.inf:
            return
        self._read_again_at = math.inf
        if self._lanes.held_bytes >= self._memory_max_bytes:
            return
        costs = {index: self._lanes[index].waiting_cost_bytes for index in self._holding}
        wanted = {index: self._share_bytes - cost for index, cost in costs.items() if 2 * cost < self._share_bytes}
        if not wanted:
            return
        try:
            read = await self._run_blocking(lambda: self._files.read(wanted))
        except OSError as error:
            read = Read({}, error)
        now, wall_ms = trio.current_time(), self._wall_ns() // 1_000_000
        for index, frames in read.frames.items():
            for (received_ms, records), place in frames:
                received_s = now - max(0, wall_ms - received_ms) / 1000
                self._lanes.add(records, received_s, received_s)  # they have waited, and wait for no company now
                self._saved[index] = self._lanes[index].added
                self._loaded[index].append((self._saved[index], place))
        self._holding = set(filter(self._files.holds, self._holding))
        if read.error is not None:
            self._read_again_at = now + RETRY_S
            log.warning("spool_unreadable", error=str(read.error))

    async def _tidy(self) -> None:
        """Let go of what was delivered; a disk that was full has room again."""
        if self._delivered:
            delivered, self._delivered = self._delivered, []
            await self._use_disk(lambda: self._files.tidy(delivered))
            self._is_full = False
        elif self.is_drained and not self.is_sink_away:
            self._is_full = False

    async def _recover(self) -> None:
        """Find out whether the disk works again."""
        self._probe_at = math.inf
        if await self._use_disk(self._files.probe):
            log.info("spool_is_back")
            self.trouble = None

    async def _use_disk(self, fn: Callable[[], T]) -> T | None:
        """Do disk work; None when it fails, and then `trouble` says how, until a probe has found the disk well."""
        try:
            return await self._run_blocking(fn)
        except OSError as error:
            if self.trouble is None:
                log.error("spool_failed", error=str(error), spooled_bytes=self.spooled_bytes)  # noqa: TRY400 - no bug of ours
            self.trouble = str(error)
            self._probe_at = min(self._probe_at, trio.current_time() + RETRY_S)
            return None
