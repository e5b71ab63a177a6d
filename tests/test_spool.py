"""The spool: records on disk while Kinesis is away, in order, whatever the disk and the process do."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from trio.testing import MockClock

from ingestor import spool
from ingestor.channels import BatchReceiver, BatchSender, open_batch_channel
from ingestor.config import BatchLimits, CircuitBreakerLimits, Kinesis, Retry
from ingestor.core.claims import Intervals
from ingestor.core.health import HealthBoard, SinkFact
from ingestor.core.lanes import lane_index
from ingestor.core.model import Claim, EncodedBatch, EncodedRecord, EntryFailure, PutEntry, Subscription
from ingestor.core.spool_format import HEADER
from ingestor.kinesis_producer import KinesisProducer
from ingestor.metrics import Metrics
from ingestor.spool import Place, Spool, SpoolFiles, Write, segments_in
from tests.fakes.kinesis import THROTTLED, UNAVAILABLE, FakeKinesis, LandedThenFailed, Step, refuse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ingestor.core.model import DeadLetter, HoleReason

T = TypeVar("T")

LANES = 4
GRACE_S = 20.0
KEYS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "XRPUSDT", "ADAUSDT", "SOLUSDT")
WALL_MS = 1_790_000_000_000


def record(number: int, key: str = "BTCUSDT", size: int = 0) -> EncodedRecord:
    return EncodedRecord(key, b"%d;" % number + bytes(size), Claim(Subscription(key, "trade"), number, number))


def records(*numbers: int, key: str = "BTCUSDT", size: int = 0) -> list[EncodedRecord]:
    return [record(number, key, size) for number in numbers]


def open_files(
    directory: Path, *, identity: str = "me", lanes: int = LANES, max_bytes: int = 1 << 30
) -> tuple[SpoolFiles, dict[Subscription, Intervals]]:
    ticks = count(WALL_MS)
    files = SpoolFiles(directory, identity, lanes=lanes, max_bytes=max_bytes, wall_ns=lambda: next(ticks) * 1_000_000)
    return files, files.open()


def die(files: SpoolFiles) -> None:
    """Let go of the locks, as the kernel does for a killed process."""
    for lock in files._locks:
        os.close(lock)


def read_all(files: SpoolFiles, lane: int = 0) -> tuple[list[int], list[Place]]:
    read = files.read({lane: 1 << 40})
    assert read.error is None
    frames = read.frames.get(lane, [])
    numbers = [int(each.data.split(b";")[0]) for frame in frames for each in frame.content.records]
    return numbers, [frame.place for frame in frames]


def lives(directory: Path) -> list[Path]:
    """Return the folders of processes that left something."""
    return list(directory.iterdir())


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """Have no file grow beyond `limit_bytes`: a write is cut there, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- the files --------------------------------------------------------------------------------------------------------


def test_records_come_back_in_order_and_files_go_when_delivered(tmp_path: Path) -> None:
    """Every byte of it is counted, from the first to the last."""
    files, _ = open_files(tmp_path)
    files.append([Write(0, 5, records(1, 2)), Write(2, 5, records(7))], 0.0)
    files.append([Write(0, 6, records(3))], 0.5)
    on_disk = sum(name.path.stat().st_size for life in tmp_path.iterdir() for name in segments_in(life))
    assert files.size_bytes == on_disk > 0
    numbers, places = read_all(files)
    assert numbers == [1, 2, 3]
    assert not files.holds(0)
    assert files.holds(2)
    files.tidy([*places, *read_all(files, 2)[1]])
    assert files.size_bytes == 0
    files.close([])
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_in_memory_is_not_read_back_but_survives(tmp_path: Path) -> None:
    """It stands in front of the rest for whoever comes next."""
    files, _ = open_files(tmp_path)
    places = files.append([Write(0, 5, records(1, 2, 3), kept=2)], 0.0)
    assert places is not None
    assert read_all(files)[0] == [3]
    die(files)
    again, held = open_files(tmp_path)
    assert held == {Subscription("BTCUSDT", "trade"): Intervals([(1, 3)])}
    assert read_all(again)[0] == [1, 2, 3]


def test_what_was_delivered_before_a_stop_is_not_delivered_again(tmp_path: Path) -> None:
    """The mark in the header says how far it was."""
    files, _ = open_files(tmp_path)
    files.append([Write(0, 5, records(1))], 0.0)
    files.append([Write(0, 5, records(2))], 0.0)
    files.close(read_all(files)[1][:1])
    again, held = open_files(tmp_path)
    assert held == {Subscription("BTCUSDT", "trade"): Intervals([(2, 2)])}
    assert read_all(again)[0] == [2]


def test_a_torn_tail_is_cut(tmp_path: Path) -> None:
    """What came before it is delivered, and a file without a header is nothing at all."""
    files, _ = open_files(tmp_path)
    files.append([Write(0, 5, records(1)), Write(1, 5, records(9))], 0.0)
    files.append([Write(0, 5, records(2))], 0.0)
    first, second = (segments[-1].path for segments in files._segments[:2])
    with first.open("r+b") as file:
        file.truncate(first.stat().st_size - 3)
    second.write_bytes(b"ing")
    die(files)
    with capture_logs() as logs:
        again, _ = open_files(tmp_path)
    assert read_all(again)[0] == [1]
    assert not again.holds(1)
    assert [line["event"] for line in logs] == ["spool_tail_cut", "spool_segment_lost", "spool_recovered"]
    again.append([Write(0, 5, records(3))], 0.0)
    assert read_all(again)[0] == [3]


def test_the_spool_of_another_service_is_left_alone(tmp_path: Path) -> None:
    """Even in the same directory; so is that of a task of ours that still runs."""
    for identity, event in (("another", "spool_of_another_service"), ("me", "spool_in_use")):
        files, _ = open_files(tmp_path / identity, identity=identity)
        files.append([Write(0, 5, records(1))], 0.0)
        with capture_logs() as logs:
            mine, held = open_files(tmp_path / identity)
        assert (held, mine.size_bytes) == ({}, 0)
        assert [line["event"] for line in logs] == [event]
        assert read_all(files)[0] == [1]


def test_other_lanes_take_records_over_by_their_keys(tmp_path: Path) -> None:
    """In order, and behind nothing that is newer."""
    files, _ = open_files(tmp_path, lanes=2)
    for number in range(3):
        writes = {lane: [each for key in KEYS for each in records(number, key=key)] for lane in (0, 1)}
        files.append(
            [
                Write(lane, 5, [each for each in of_lane if lane_index(each.partition_key, 2) == lane])
                for lane, of_lane in writes.items()
            ],
            0.0,
        )
    die(files)
    again, held = open_files(tmp_path, lanes=7, max_bytes=1)
    assert held == {Subscription(key, "trade"): Intervals([(0, 2)]) for key in KEYS}
    seen: dict[str, list[bytes]] = {}
    for lane in range(7):
        for frame in again.read({lane: 1 << 40}).frames.get(lane, []):
            for each in frame.content.records:
                assert lane_index(each.partition_key, 7) == lane
                seen.setdefault(each.partition_key, []).append(each.data)
    assert seen == {key: [b"0;", b"1;", b"2;"] for key in KEYS}
    assert len(list(tmp_path.iterdir())) == 2
    again.close([])
    assert len(list(tmp_path.iterdir())) == 1


def test_it_never_takes_more_than_it_may(tmp_path: Path) -> None:
    """All of a write or nothing; delivered records make room."""
    files, _ = open_files(tmp_path, max_bytes=3000)
    assert files.append([Write(0, 5, records(1, 2, size=1000))], 0.0) is not None
    before = files.size_bytes
    assert files.append([Write(1, 5, records(3, size=1000))], 0.0) is None
    assert files.size_bytes == before
    files.tidy(read_all(files)[1])
    assert files.append([Write(1, 5, records(3, size=1000))], 0.0) is not None


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """Not in its own lane, not in those before it; the next write takes its place."""
    files, _ = open_files(tmp_path)
    files.append([Write(0, 5, records(1)), Write(1, 5, records(1))], 0.0)
    with full_disk(4096), pytest.raises(OSError, match="too large"):
        files.append([Write(0, 5, records(2)), Write(1, 5, records(2, size=8192))], 0.0)
    files.append([Write(0, 5, records(3))], 0.0)
    die(files)
    again, _ = open_files(tmp_path)
    assert read_all(again)[0] == [1, 3]
    assert read_all(again, 1)[0] == [1]


def test_a_folder_that_vanished_is_made_again_and_what_was_in_it_is_lost(tmp_path: Path) -> None:
    """Once, and said so."""
    files, _ = open_files(tmp_path / "spool")
    files.append([Write(0, 5, records(1))], 0.0)
    shutil.rmtree(tmp_path / "spool")
    files.append([Write(0, 5, records(2))], 0.0)
    with capture_logs() as logs:
        assert read_all(files)[0] == [2]
    assert files.is_lossy
    assert [line["event"] for line in logs] == ["spool_segment_lost"]
    assert files.probe()


def test_damage_on_disk_is_never_delivered(tmp_path: Path) -> None:
    """The rest of that file is lost, the files behind it are not."""
    files, _ = open_files(tmp_path)
    files.append([Write(0, 5, records(1))], 0.0)
    first = files._segments[0][-1]
    first.end += spool.SEGMENT_BYTES  # as if it was full
    files.append([Write(0, 5, records(2))], 0.0)
    first.end -= spool.SEGMENT_BYTES
    with first.path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert read_all(files)[0] == [2]
    assert files.is_lossy


def test_an_unreadable_file_is_tried_again_before_it_is_given_up(tmp_path: Path) -> None:
    """A directory in its place stands in for a disk that answers with errors."""
    files, _ = open_files(tmp_path)
    files.append([Write(0, 5, records(1)), Write(1, 5, records(5))], 0.0)
    path = files._segments[0][0].path
    path.rename(path.with_suffix(".aside"))
    path.mkdir()
    for _ in range(spool.READ_TRIES - 1):
        read = files.read({1: 1, 0: 1})
        assert isinstance(read.error, OSError)
    assert not files.is_lossy
    assert files.read({0: 1}) == ({}, None)
    assert files.is_lossy


def test_a_folder_that_cannot_be_opened_is_passed_over(tmp_path: Path) -> None:
    """A directory where the lock should be is nobody's spool."""
    (tmp_path / "0-x" / "identity").mkdir(parents=True)
    with capture_logs() as logs:
        open_files(tmp_path)
    assert [line["event"] for line in logs] == ["spool_folder_unreadable"]


def test_a_folder_whose_process_ends_this_moment_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are gone with it; those of others are taken over all the same."""
    for name in (1, 2):
        files, _ = open_files(tmp_path / str(name))
        files.append([Write(0, 5, records(name))], 0.0)
        die(files)
        [life] = lives(tmp_path / str(name))
        (tmp_path / "spool").mkdir(exist_ok=True)
        life.rename(tmp_path / "spool" / str(name))
    gone, left = sorted(lives(tmp_path / "spool"))
    lock = spool.is_locked

    def end(file: int) -> bool:
        if gone.exists():
            shutil.rmtree(gone)
        return lock(file)

    monkeypatch.setattr("ingestor.spool.is_locked", end)
    _, held = open_files(tmp_path / "spool")
    assert list(held.values()) == [Intervals([(2, 2)])]
    assert left.exists()


def test_a_file_that_a_full_disk_did_not_begin_is_no_loss(tmp_path: Path) -> None:
    """It leaves nothing behind that the next start would complain of."""
    files, _ = open_files(tmp_path)
    with full_disk(4), pytest.raises(OSError, match="File too large"):
        files.append([Write(0, 5, records(1))], 0.0)
    files.close([])
    assert lives(tmp_path) == []


def test_it_syncs_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for every batch; what was written since is synced at the end."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    files, _ = open_files(tmp_path)
    for now in (10.0, 10.5, 10.9):
        files.append([Write(0, 5, records(1))], now)
    assert len(synced) == 2  # the file and its folder
    files.append([Write(0, 5, records(1))], 11.0)
    assert len(synced) == 4
    files.append([Write(0, 5, records(1))], 11.5)
    files.close([])
    assert len(synced) == 6


# --- the producer -----------------------------------------------------------------------------------------------------


class Disk:
    """Runs what it is given at once, or refuses like a disk in trouble; `refuses` names the functions it fails."""

    def __init__(self) -> None:
        self.is_broken = False
        self.hangs = False
        self.uses = 0

    async def __call__(self, fn: Callable[[], T], /) -> T:
        await trio.lowlevel.checkpoint()
        self.uses += 1
        if self.hangs:
            await trio.sleep_forever()
        if self.is_broken:
            raise OSError(errno.EROFS, "Read-only file system")
        return fn()


class NoDeadLetters:
    """Refuses letters: there is nothing to give up here."""

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError(letters)


def no_holes(claim: Claim, reason: HoleReason) -> EncodedRecord:
    raise AssertionError(claim)


class Task:
    """A producer with a spool, and everything around it."""

    def __init__(
        self,
        directory: Path,
        kinesis: FakeKinesis,
        *,
        disk: Disk | None = None,
        memory: int = 100_000,
        max_bytes: int = 1 << 30,
        lanes: int = LANES,
        **section: Any,
    ) -> None:
        self.kinesis = kinesis
        self.disk = disk or Disk()
        self.claims: list[Claim] = []
        self.lost = 0
        self.lost_until: dict[Subscription, int] = {}
        self.fact = SinkFact()
        self.metrics = Metrics(CollectorRegistry())
        self.files = SpoolFiles(directory, "me", lanes=lanes, max_bytes=max_bytes, wall_ns=self.wall_ns)
        settings = {
            "lanes": lanes,
            "batch": BatchLimits(flush="adaptive"),
            "circuit_breaker": CircuitBreakerLimits(failure_threshold=2, reset_timeout_s=10),
            "retry": Retry(initial_s=0.1, max_s=1),
            "blob_bytes": 1000,
            **section,
        }
        self.producer = KinesisProducer(
            Kinesis.model_validate(settings),
            kinesis,
            dead_letters=NoDeadLetters(),
            encode_hole=no_holes,
            on_acknowledged=self.claims.extend,
            metrics=self.metrics,
            fact=self.fact,
            wall_ns=self.wall_ns,
            jitter=None,
            held_max_bytes=memory,
            farewell_s=5.0,
            open_spool=partial(
                Spool, files=self.files, run_blocking=self.disk, wall_ns=self.wall_ns, on_lost=self.note_loss
            ),
        )
        self.sender: BatchSender[EncodedBatch]
        self.intake: BatchReceiver[EncodedBatch]
        self.sender, self.intake = open_batch_channel(4, 1 << 30)
        self.held: dict[Subscription, Intervals] = {}

    def wall_ns(self) -> int:
        return WALL_MS * 1_000_000 + round(trio.current_time() * 1e9)

    def note_loss(self, spooled: Mapping[Subscription, int]) -> None:
        self.lost += 1
        self.lost_until |= spooled

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run until what was sent inside is delivered, or left on disk when a stop takes too long."""
        self.held = await self.producer.take_over()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.producer.run, self.intake)
            with self.sender:
                yield
            self.producer.last_put_at(trio.current_time() + GRACE_S)
            nursery.cancel_scope.deadline = trio.current_time() + GRACE_S + 1

    async def send(self, *numbers: int, key: str = "BTCUSDT", size: int = 0) -> None:
        sent = records(*numbers, key=key, size=size)
        await self.sender.send(EncodedBatch(sent, trio.current_time(), sum(len(each.data) for each in sent)))

    def stored(self, key: str = "BTCUSDT") -> list[int]:
        return [int(data.split(b";")[0]) for data in self.kinesis.stored_by_key().get(key, [])]


def down() -> FakeKinesis:
    return FakeKinesis(always=UNAVAILABLE)


async def test_records_go_to_disk_while_the_breaker_is_open_and_drain_in_order(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Memory stays below its bound, the sender is never held up, and every id is claimed once it is delivered."""
    task = Task(tmp_path, down())
    async with task.running():
        for number in range(1000):
            with trio.fail_after(2):
                await task.send(number, size=1000)
            await trio.sleep(0.1)
            assert task.fact.held_bytes <= 100_000
        assert task.fact.breaker == "open"
        assert task.fact.spooled_bytes > 900_000
        assert task.claims == []
        assert task.metrics.registry.get_sample_value("spool_bytes") == task.fact.spooled_bytes
        task.kinesis.always = None
        await trio.sleep(60)
    assert task.stored() == list(range(1000))
    assert Intervals((claim.first, claim.last) for claim in task.claims) == Intervals([(0, 999)])
    assert task.fact.spooled_bytes == 0
    assert lives(tmp_path) == []


async def test_without_trouble_the_disk_is_not_touched(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It is opened and closed, and that is all."""
    task = Task(tmp_path, FakeKinesis(latency_s=0.01))
    async with task.running():
        for number in range(100):
            await task.send(number)
    assert task.stored() == list(range(100))
    assert task.disk.uses == 2


async def test_a_throttled_lane_goes_to_disk_and_the_others_do_not(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Its share of the memory is used up; another lane goes on as ever."""
    [hot, cold] = ["BTCUSDT", next(key for key in KEYS if lane_index(key, LANES) != lane_index("BTCUSDT", LANES))]
    kinesis = FakeKinesis(
        always=lambda entries: [THROTTLED if b"hot" in entry.data else None for entry in entries], latency_s=0.01
    )
    task = Task(tmp_path, kinesis, memory=80_000)
    async with task.running():
        for number in range(300):
            data = [EncodedRecord(hot, b"%d;hot" % number + bytes(1000), None)]
            await task.sender.send(EncodedBatch(data, trio.current_time(), 1000))
            await task.send(number, key=cold)
            await trio.sleep(0.05)
        assert task.fact.spooled_bytes > 200_000
        assert task.stored(cold)[-1] > 290
        assert task.fact.breaker == "closed"
        kinesis.always = None
    assert task.stored(hot) == task.stored(cold) == list(range(300))


async def test_a_full_spool_stalls_the_line_and_goes_on_when_there_is_room(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """First the disk, then memory, then the sender waits; nothing is dropped."""
    task = Task(tmp_path, down(), memory=20_000, max_bytes=50_000)
    sent = 0
    async with task.running():
        with trio.move_on_after(300):
            for sent in range(1000):
                await task.send(sent, size=1000)
        assert 40 < sent < 100
        assert task.fact.held_bytes < 25_000
        task.kinesis.always = None
    assert task.stored() == list(range(sent))


async def test_a_restart_delivers_what_was_left_first(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Its ids count as held from the start, and as delivered only when they are."""
    first = Task(tmp_path, down())
    async with first.running():
        for number in range(50):
            await first.send(number, size=500)
        await trio.sleep(5)
    assert first.metrics.losses()["abandoned"] == 0
    second = Task(tmp_path, FakeKinesis(latency_s=0.1))
    async with second.running():
        assert second.held == {Subscription("BTCUSDT", "trade"): Intervals([(0, 49)])}
        assert second.claims == []
        await second.send(50, 51)
    assert second.stored() == list(range(52))
    assert Intervals((claim.first, claim.last) for claim in second.claims) == Intervals([(0, 51)])
    assert lives(tmp_path) == []


async def test_a_kill_during_an_outage_loses_nothing_that_was_written(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The process gets no chance to do anything; what it held when the breaker opened was written then."""
    first = Task(tmp_path, down())
    first.held = await first.producer.take_over()
    async with trio.open_nursery() as nursery:
        await nursery.start(first.producer.run, first.intake)
        for number in range(20):
            await first.send(number)
            await trio.sleep(1)
        die(first.files)
        first.disk.is_broken = True  # a dead process writes nothing
        nursery.cancel_scope.cancel()
    second = Task(tmp_path, FakeKinesis())
    async with second.running():
        pass
    assert second.stored() == list(range(20))


async def test_a_disk_that_fails_makes_it_a_spool_in_memory(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Degraded and said so, bounded as without a disk, in order behind what is on disk; and it comes back."""
    task = Task(tmp_path, down(), memory=30_000)
    sent = 0
    with capture_logs() as logs:
        async with task.running():
            for number in range(60):
                await task.send(number, size=1000)
                await trio.sleep(0.2)
            task.disk.is_broken = True
            with trio.move_on_after(100):
                for sent in range(60, 1000):
                    await task.send(sent, size=1000)
            assert 60 < sent < 100
            assert task.fact.spool_trouble == "[Errno 30] Read-only file system"
            board = HealthBoard(sink=task.fact)
            assert "spool" in {complaint.component for complaint in board.report(trio.current_time()).complaints}
            task.disk.is_broken = False
            await trio.sleep(10)
            assert task.fact.spool_trouble is None
            task.kinesis.always = None
            await trio.sleep(30)
    assert task.stored() == list(range(sent))
    events = [line["event"] for line in logs]
    assert (events.count("spool_failed"), events.count("spool_is_back")) == (1, 1)


async def test_without_any_disk_it_works_as_if_none_was_configured(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Memory, then stall; what is left at the end is counted."""
    disk = Disk()
    disk.is_broken = True
    task = Task(tmp_path, down(), disk=disk, memory=30_000)
    sent = 0
    async with task.running():
        with trio.move_on_after(60):
            for sent in range(1000):
                await task.send(sent, size=1000)
    assert 20 < sent < 40
    assert task.metrics.registry.get_sample_value("records_abandoned_total", {"reason": "breaker_open"}) == sent


async def test_what_the_disk_lost_is_said_once_all_else_is_delivered(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Somebody took the files away: the ids are missing, and whoever repairs is told."""
    task = Task(tmp_path, down(), memory=10_000)
    async with task.running():
        for number in range(100):
            await task.send(number, size=1000)
            await trio.sleep(0.1)
        for life in lives(tmp_path):
            shutil.rmtree(life)
        task.kinesis.always = None
        await trio.sleep(30)
        assert task.lost == 1
        assert task.lost_until == {Subscription("BTCUSDT", "trade"): 99}
        await task.send(100)
    assert task.stored()[-1] == 100
    assert task.stored() == sorted(task.stored())
    assert 0 < len(task.stored()) < 100
    covered = Intervals((claim.first, claim.last) for claim in task.claims)
    assert {int(number) for number in task.stored()} == {n for n in range(101) if n in covered}


async def test_files_that_vanish_from_a_full_spool_do_not_stop_the_line(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whoever makes room by hand loses what was on disk; what waits in memory for room goes on."""
    task = Task(tmp_path, down(), memory=20_000, max_bytes=50_000)
    sent = 0
    async with task.running():
        with trio.move_on_after(300):
            for sent in range(1000):
                await task.send(sent, size=1000)
        for life in lives(tmp_path):
            shutil.rmtree(life)
        task.kinesis.always = None
        with trio.fail_after(60):
            await task.send(sent)
        await trio.sleep(30)
        assert task.stored()[-1] == sent
        assert task.lost == 1
        assert task.fact.held_bytes == 0


async def test_a_folder_that_vanished_keeps_the_disk_in_no_trouble(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What was not synced yet and is gone need not be synced any more."""
    task = Task(tmp_path, down(), memory=30_000)
    async with task.running():
        for number in range(20):
            await task.send(number, size=1000)
        await trio.sleep(5)
        for life in lives(tmp_path):
            shutil.rmtree(life)
        for number in range(20, 100):
            with trio.fail_after(20):
                await task.send(number, size=1000)
            await trio.sleep(0.5)
        assert task.fact.spool_trouble is None
        task.kinesis.always = None
        for _ in range(30):
            await trio.sleep(1)
            assert task.fact.spool_trouble is None
    assert task.stored()[-1] == 99


async def test_a_file_that_cannot_be_read_now_is_read_later(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Nothing newer of its lane overtakes it meanwhile."""
    task = Task(tmp_path, down(), memory=10_000)
    async with task.running():
        for number in range(100):
            await task.send(number, size=1000)
            await trio.sleep(0.1)
        [path] = [name.path for life in lives(tmp_path) for name in segments_in(life)]
        path.rename(path.with_suffix(".aside"))
        path.mkdir()
        task.kinesis.always = None
        await trio.sleep(spool.RETRY_S)
        await task.send(100)
        path.rmdir()
        path.with_suffix(".aside").rename(path)
    assert task.stored() == list(range(101))
    assert task.lost == 0


async def test_a_spool_too_small_for_anything_does_no_harm(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Everything waits in memory."""
    task = Task(tmp_path, down(), max_bytes=10)
    async with task.running():
        await task.send(1)
        await trio.sleep(5)
        task.kinesis.always = None
        await trio.sleep(30)
        await task.send(2)
    assert task.stored() == [1, 2]


async def test_what_a_farewell_cannot_deliver_is_left_on_disk(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A bug ends the task while Kinesis hangs: the next one has all of it, and nothing is counted as abandoned."""

    def stumble(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        raise ZeroDivisionError

    first = Task(tmp_path, FakeKinesis([stumble], latency_s=100.0))
    first.held = await first.producer.take_over()
    await first.send(*range(10))
    with pytest.RaisesGroup(ZeroDivisionError):
        await first.producer.run(first.intake)
    assert first.metrics.losses()["abandoned"] == 0
    second = Task(tmp_path, FakeKinesis())
    async with second.running():
        pass
    assert second.stored() == list(range(10))


async def test_what_is_not_on_disk_at_the_end_is_counted(autojump_clock: MockClock, tmp_path: Path) -> None:
    """That and no more, also when the disk hangs until nobody waits for it any longer."""
    first = Task(tmp_path, down(), memory=20_000, max_bytes=50_000)
    sent = 0
    async with first.running():
        with trio.move_on_after(300):
            for sent in range(1000):
                await first.send(sent, size=1000)
        first.disk.hangs = True
    die(first.files)
    second = Task(tmp_path, FakeKinesis())
    async with second.running():
        pass
    assert second.stored()
    assert first.metrics.losses()["abandoned"] == sent - len(second.stored()) > 0


class RoughTask:
    """Random arrivals at a producer whose Kinesis and disk fail at random, and which is stopped and killed."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.rng = Random(seed)
        self.directory = directory
        self.kinesis = FakeKinesis(rng=Random(seed), latency_s=0.05)  # one shard: its order is that of time
        self.sent = dict.fromkeys(KEYS, 0)
        self.plain: dict[str, Any] = {"aggregation": self.rng.choice(["kpl", "none"])}

    def step(self) -> Step | None:
        roll = self.rng.random()
        if roll < 0.3:
            return UNAVAILABLE
        if roll < 0.4:
            return LandedThenFailed(UNAVAILABLE)
        return refuse(THROTTLED, *self.rng.choices(range(6), k=2)) if roll < 0.6 else None

    async def live(self) -> Task:
        lanes = self.rng.choice([1, 3, LANES])
        task = Task(self.directory, self.kinesis, memory=4_000, max_bytes=40_000, lanes=lanes, **self.plain)
        async with task.running():
            for _ in range(60):
                self.kinesis.always = self.step()
                task.disk.is_broken = self.rng.random() < 0.1
                key = self.rng.choice(KEYS)
                numbers = range(self.sent[key], self.sent[key] + self.rng.randrange(4))
                with trio.move_on_after(20) as stalled:
                    await task.send(*numbers, key=key, size=self.rng.choice([1, 300]))
                if not stalled.cancelled_caught:
                    self.sent[key] = numbers.stop
                await trio.sleep(self.rng.choice([0.0, 0.1, 3.0]))
            task.disk.is_broken = False
            self.kinesis.always = self.rng.choice([None, UNAVAILABLE])
            await trio.sleep(6)
        assert task.metrics.losses()["abandoned"] == 0
        return task

    async def run(self) -> None:
        claimed: dict[Subscription, Intervals] = {}
        tasks = [await self.live() for _ in range(3)]
        self.kinesis.always = None
        last = Task(self.directory, self.kinesis, **self.plain)
        async with last.running():
            pass
        for claim in (claim for task in [*tasks, last] for claim in task.claims):
            claimed.setdefault(claim.subscription, Intervals()).add(claim.first, claim.last)
        assert lives(self.directory) == []
        for key, total in self.sent.items():
            landed = [int(data.split(b";")[0]) for data in self.kinesis.stored_by_key().get(key, [])]
            firsts = list(dict.fromkeys(landed))
            assert sorted(firsts) == list(range(total))
            if self.plain["aggregation"] == "kpl":
                assert firsts == list(range(total))
            if total:
                assert claimed[Subscription(key, "trade")] == Intervals([(0, total - 1)])


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_no_record_is_lost_or_overtaken_whatever_fails(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Outages, refusals, a disk that fails now and then, restarts with other lanes: every key lands in its order."""
    task = RoughTask(seed, tmp_path_factory.mktemp("spool"))
    trio.run(task.run, clock=MockClock(autojump_threshold=0))


def test_a_frame_that_says_it_is_endless_is_not_asked_for(tmp_path: Path) -> None:
    """A disk that changed its mind after it was looked through: eight gigabytes would be reserved to read it."""
    files, _ = open_files(tmp_path)
    files.append([Write(0, 5, records(1))], 0.0)
    spool.write_at(files._segments[0][0].path, b"\xff" * 8, HEADER.size)
    with capture_logs() as logs:
        assert read_all(files)[0] == []
    assert [line["event"] for line in logs] == ["spool_segment_lost"]
    assert files.is_lossy
