from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from ingestor.core.claims import Coverage, Entry, Intervals
from ingestor.core.errors import SinkError
from ingestor.core.health import HealthBoard
from ingestor.core.intake import Begin
from ingestor.core.model import Claim, Subscription
from ingestor.core.resume import Beat, Resume, Resumed, beat_from_avro
from ingestor.heartbeat import LARGEST_PART_BYTES, Author, HeartbeatWriter, ReadBack
from ingestor.metrics import Metrics
from ingestor.reader import StreamReader
from ingestor.serializer import decode_heartbeat, encode_heartbeat
from tests.fakes.beats import TRADES, US, stored_beat
from tests.fakes.kinesis import INTERNAL, NO_STREAM, UNAVAILABLE, FakeKinesis, refuse
from tests.fakes.stream import EPOCH_MS, THROTTLED, FakeShard, FakeStream, wall_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trio.testing import MockClock

DEPTH = Subscription("BTCUSDT", "depth")


class Writing:
    """A writer with a scripted sink, and everything it touches."""

    def __init__(self, sink: FakeKinesis | None = None, subscriptions: int = 0) -> None:
        self.sink = sink or FakeKinesis()
        names = [Subscription(f"S{number:04d}", "trade") for number in range(subscriptions)]
        self.coverage = Coverage({name: Entry(1, Intervals()) for name in names})
        self.board = HealthBoard()
        self.metrics = Metrics(CollectorRegistry())
        self.event_ms: dict[Subscription, int] = {}
        self.writer = HeartbeatWriter(
            self.sink,
            encode_heartbeat,
            author=Author(US, "task-1", "1.2.3", EPOCH_MS),
            coverage=self.coverage,
            interval_s=5.0,
            counters=lambda: {"records": 7},
            components=lambda: {"websocket": "live"},
            event_ms=lambda name: self.event_ms.get(name, 0),
            board=self.board,
            metrics=self.metrics,
            wall_ns=wall_ns,
        )

    def beats(self) -> list[Beat]:
        """Every part that was sent, accepted or not, in order."""
        return [beat_from_avro(decode_heartbeat(entry.data)) for put in self.sink.puts for entry in put.entries]

    def accepted(self) -> Coverage:
        """Find what a reader of the stream would."""
        found = Coverage()
        for inner in self.sink.stored():
            found.merge(dict(beat_from_avro(decode_heartbeat(inner.data)).coverage()))
        return found

    def outcomes(self) -> Mapping[str, float]:
        """How many puts of beats ended how."""
        return {name: self.metrics.beats.labels(name)._value.get() for name in ("acknowledged", "failed")}


class TestWriting:
    async def test_a_beat_leaves_at_once_and_every_interval(self, autojump_clock: MockClock) -> None:
        """Numbered, and with who it is, how it is and what is acknowledged."""
        writing = Writing(subscriptions=1)
        with trio.move_on_after(11):
            await writing.writer.run()
        assert writing.sink.times == [0.0, 5.0, 10.0]
        beats = writing.beats()
        assert [beat.beat for beat in beats] == [0, 1, 2]
        assert [beat.sent_ms - EPOCH_MS for beat in beats] == [0, 5_000, 10_000]
        first = beats[0]
        assert (first.identity, first.instance, first.version, first.started_ms) == (US, "task-1", "1.2.3", EPOCH_MS)
        assert (first.counters, first.components) == ({"records": 7}, {"websocket": "live"})
        assert (first.interval_ms, first.final, first.part, first.parts) == (5_000, False, 0, 1)
        assert writing.board.heartbeat_acknowledged_s == 10.0

    async def test_only_acknowledged_ids_are_carried(self, autojump_clock: MockClock) -> None:
        """With the newest event time seen, which may be ahead of them."""
        writing = Writing()
        writing.coverage.originate(TRADES, 5)
        writing.coverage.acknowledge([Claim(TRADES, 5, 8)])
        writing.event_ms[TRADES] = 99
        await writing.writer.final_beat(10.0)
        assert dict(writing.accepted().items()) == {TRADES: Entry(5, Intervals([(5, 8)]), last_event_ms=99)}

    async def test_many_subscriptions_leave_in_parts_and_several_calls(self, autojump_clock: MockClock) -> None:
        """200 a part, 40 parts a call, every part with its own partition key and valid alone."""
        writing = Writing(subscriptions=9_000)
        await writing.writer.final_beat(10.0)
        assert [len(put.entries) for put in writing.sink.puts] == [40, 5]
        assert len({entry.partition_key for put in writing.sink.puts for entry in put.entries}) == 45
        assert all(len(entry.data) < 1_048_576 for put in writing.sink.puts for entry in put.entries)
        beats = writing.beats()
        assert {(beat.beat, beat.parts, beat.final) for beat in beats} == {(0, 45, True)}
        assert [beat.part for beat in beats] == list(range(45))
        assert len(writing.accepted()) == 9_000
        assert writing.outcomes() == {"acknowledged": 1, "failed": 0}

    async def test_a_failed_beat_is_followed_by_a_fresh_one(self, autojump_clock: MockClock) -> None:
        """With the next interval; one log line for the outage, one for its end, and the age tells the rest."""
        writing = Writing(FakeKinesis([NO_STREAM, UNAVAILABLE]))
        with capture_logs() as logs, trio.move_on_after(14):
            await writing.writer.run()
        assert writing.sink.times == [0.0, 5.0, 10.0]
        assert writing.outcomes() == {"acknowledged": 1, "failed": 2}
        assert [line["event"] for line in logs] == ["heartbeat_failed", "heartbeat_recovered"]
        assert writing.board.heartbeat_acknowledged_s == 10.0

    async def test_a_part_that_was_refused_goes_again_alone_and_soon(self, autojump_clock: MockClock) -> None:
        """A throttled stream would never take a whole beat of many parts; later calls go on behind what is refused."""
        writing = Writing(
            FakeKinesis([refuse(INTERNAL, 1, 3), refuse(INTERNAL, 99), refuse(INTERNAL, 0)]), subscriptions=9_000
        )
        with trio.move_on_after(4):
            await writing.writer.run()
        assert [len(put.entries) for put in writing.sink.puts] == [40, 5, 2, 1]
        assert writing.sink.times == pytest.approx([0.0, 0.0, 0.2, 0.6])
        assert len(writing.accepted()) == 9_000
        assert writing.board.heartbeat_acknowledged_s == pytest.approx(0.6)
        keys = [entry.partition_key for put in writing.sink.puts for entry in put.entries]
        assert keys[45:] == ["task-1/1/0", "task-1/1/1", "task-1/2/0"]

    async def test_of_the_final_beat_too_only_what_was_refused_goes_again(self, autojump_clock: MockClock) -> None:
        """Under keys that no other part has, or a reader would take the last one for all of them."""
        writing = Writing(FakeKinesis([refuse(INTERNAL, 0, 2), UNAVAILABLE]), subscriptions=700)
        assert await writing.writer.final_beat(10.0)
        assert [len(put.entries) for put in writing.sink.puts] == [4, 2, 2]
        assert len(writing.accepted()) == 700
        stored = [inner.partition_key for inner in writing.sink.stored()]
        assert len(set(stored)) == len(stored) == 4

    async def test_the_final_beat_is_tried_until_it_is_written(self, autojump_clock: MockClock) -> None:
        """All of its parts say that it is the last."""
        writing = Writing(FakeKinesis([UNAVAILABLE, UNAVAILABLE]))
        assert await writing.writer.final_beat(10.0)
        assert all(beat.final for beat in writing.beats())
        assert writing.sink.times == pytest.approx([0.0, 0.2, 0.6])

    async def test_the_final_beat_ends_at_its_deadline(self, autojump_clock: MockClock) -> None:
        """A stop is not held up by a heartbeat stream that is away."""
        writing = Writing(FakeKinesis(always=UNAVAILABLE))
        assert not await writing.writer.final_beat(3.0)
        assert trio.current_time() == 3.0


class TestAdmission:
    """The first record of a subscription waits for its origin."""

    async def test_the_origin_is_written_before_the_first_record_goes_on(
        self, autojump_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        """At once, not with the next interval, and alone."""
        writing = Writing(FakeKinesis(latency_s=0.03), subscriptions=300)
        await nursery.start(writing.writer.run)
        await trio.sleep(1)
        await writing.writer.admit([Begin(TRADES, 31, 1_000)])
        assert trio.current_time() == 1.03
        assert writing.accepted()[TRADES] == Entry(31, Intervals(), origin_ms=1_000)
        keys = [entry.partition_key for put in writing.sink.puts for entry in put.entries]
        assert keys == ["task-1/0", "task-1/1", "task-1/1/0"]
        [origin] = [beat for beat in writing.beats() if beat.beat == 1]
        assert [(entry.symbol, entry.origin) for entry in origin.entries] == [("BTCUSDT", 31)]
        await trio.sleep(5)
        assert writing.sink.times == [0.0, 1.0, 5.0]
        nursery.cancel_scope.cancel()

    async def test_origins_that_come_together_share_a_beat(
        self, autojump_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        """While one beat is under way the next ones gather."""
        writing = Writing(FakeKinesis(latency_s=0.1))
        await nursery.start(writing.writer.run)
        await trio.sleep(1)
        async with trio.open_nursery() as admitting:
            for number in range(5):
                admitting.start_soon(writing.writer.admit, [Begin(Subscription(f"S{number}", "trade"), 1, 1)])
                await trio.sleep(0.01)
        assert trio.current_time() == pytest.approx(1.2)
        assert writing.sink.times == [0.0, 1.0, 1.1]
        nursery.cancel_scope.cancel()

    async def test_an_origin_in_an_accepted_part_is_written_whatever_else_is_refused(
        self, autojump_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        """Its data goes on; the others wait for theirs."""
        names = [Subscription(f"S{number:04d}", "trade") for number in range(300)]
        writing = Writing(FakeKinesis([refuse(INTERNAL, 99), refuse(INTERNAL, 1)]))
        await nursery.start(writing.writer.run)
        await trio.sleep(1)
        done: list[float] = []

        async def admit(name: Subscription) -> None:
            await writing.writer.admit([Begin(name, 1, 1)])
            done.append(trio.current_time())

        for name in names:
            nursery.start_soon(admit, name)
        await trio.sleep(3)
        assert done == [1.0] * 200 + [1.2] * 100
        nursery.cancel_scope.cancel()

    async def test_data_waits_ten_seconds_at_most(self, autojump_clock: MockClock, nursery: trio.Nursery) -> None:
        """Counted once: while beats go on failing later subscriptions do not wait again. The writer keeps trying."""
        writing = Writing(FakeKinesis(always=UNAVAILABLE))
        await nursery.start(writing.writer.run)
        await trio.sleep(1)
        await writing.writer.admit([Begin(TRADES, 31, 1_000)])
        assert trio.current_time() == 11.0
        await writing.writer.admit([Begin(DEPTH, 5, 1_000)])
        assert trio.current_time() == 11.0
        writing.sink.always = None
        await trio.sleep(5)
        assert set(writing.accepted()) == {TRADES, DEPTH}
        writing.sink.latency_s = 0.5
        await writing.writer.admit([Begin(Subscription("X", "trade"), 5, 1_000)])
        assert trio.current_time() == 16.5
        nursery.cancel_scope.cancel()

    async def test_a_restart_of_ids_begins_a_new_generation(
        self, autojump_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        """Its origin is written before the first new record, like that of a new subscription."""
        writing = Writing()
        writing.coverage.merge({TRADES: Entry(1, Intervals([(1, 900)]))})
        await nursery.start(writing.writer.run)
        await writing.writer.admit([Begin(TRADES, 4, 1_000, is_restart=True)])
        assert writing.accepted()[TRADES] == Entry(0, Intervals(), generation=1, settled=True, origin_ms=1_000)
        nursery.cancel_scope.cancel()


def ago(seconds: float) -> int:
    return EPOCH_MS - round(seconds * 1000)


class Reading:
    """A new task that reads beats back; its live trades begin at 31."""

    def __init__(self, stream: FakeStream, decode: Callable[[bytes], Mapping[str, Any]] = decode_heartbeat) -> None:
        self.stream = stream
        self.decode = decode
        self.coverage = Coverage()
        self.coverage.originate(TRADES, 31)
        self.resume = Resume(self.coverage, [TRADES], identity=US, instance="new", lookback_s=86_400.0)
        self.resume.begin(TRADES, 31, 1_000)
        self.answers: list[tuple[float, Resumed]] = []

    async def run(self) -> None:
        """Read back to the end."""
        reader = StreamReader(self.stream, "beats", is_patient=True, jitter=Random(1))
        read_back = ReadBack(reader, self.resume, self.decode, started_ms=wall_ns() // 1_000_000, wall_ns=wall_ns)
        await read_back.run(lambda answer: self.answers.append((trio.current_time(), answer)))

    @property
    def missing(self) -> list[tuple[int, int]]:
        """What the one answer says."""
        [(_, answer)] = self.answers
        return list(answer.missing)


class TestReadingBack:
    async def test_a_clean_restart_reads_ten_minutes(self, autojump_clock: MockClock) -> None:
        """The missing range is between the last beat and the first live id; older beats are not read."""
        stream = FakeStream()
        stream.store(stored_beat((1, 5)), arrival_ms=ago(3_000))
        stream.store(stored_beat((1, 15)), arrival_ms=ago(40))
        stream.store(stored_beat((1, 20), final=True), arrival_ms=ago(30))
        reading = Reading(stream)
        await reading.run()
        assert reading.missing == [(21, 30)]
        assert len(stream.times_of("iterator AT_TIMESTAMP")) == 1
        assert trio.current_time() <= 2

    async def test_all_shards_are_read_the_closed_ones_too(self, autojump_clock: MockClock) -> None:
        """Several writers, their beats spread over a stream that was split, with pages that are empty."""
        stream = FakeStream(
            {"s0": FakeShard(closed=True, empty_reads=3), "s1": FakeShard(parent="s0"), "s2": FakeShard(parent="s0")}
        )
        stream.store(stored_beat((1, 10)), shard="s0", arrival_ms=ago(300))
        stream.store(stored_beat((5, 18), instance="b"), shard="s1", arrival_ms=ago(200))
        stream.store(stored_beat((22, 24), instance="c"), shard="s2", arrival_ms=ago(100))
        reading = Reading(stream)
        await reading.run()
        assert reading.missing == [(19, 21), (25, 30)]

    async def test_older_windows_are_read_while_nothing_is_found(self, autojump_clock: MockClock) -> None:
        """A task that was away for five hours."""
        stream = FakeStream()
        stream.store(stored_beat((1, 20)), arrival_ms=ago(5 * 3_600))
        reading = Reading(stream)
        with capture_logs() as logs:
            await reading.run()
        assert reading.missing == [(21, 30)]
        assert len(stream.times_of("iterator AT_TIMESTAMP")) == 3
        assert [line["event"] for line in logs] == ["resumed", "resume_over"]
        assert logs[0]["missing_ids"] == 10

    async def test_errors_are_never_taken_for_nothing(self, autojump_clock: MockClock) -> None:
        """Minutes of failing reads only delay the answer."""
        stream = FakeStream()
        stream.store(stored_beat((1, 20)), arrival_ms=ago(60))
        stream.errors.extend([THROTTLED, SinkError("configuration", "AccessDeniedException", "no")] * 20)
        reading = Reading(stream)
        await reading.run()
        assert reading.missing == [(21, 30)]
        assert trio.current_time() > 60

    async def test_a_first_start_ever_reads_the_whole_lookback_and_finds_nothing(
        self, autojump_clock: MockClock
    ) -> None:
        """Its own origin beat does not mislead it."""
        stream = FakeStream()
        stream.store(stored_beat((31, 31), instance="new"))
        reading = Reading(stream)
        await reading.run()
        [(_, answer)] = reading.answers
        assert answer.is_first_start
        assert len(stream.times_of("iterator AT_TIMESTAMP")) == 4
        assert reading.coverage[TRADES] == Entry(31, Intervals(), settled=True)

    async def test_a_task_that_still_runs_is_followed_until_it_covers_the_rest(
        self, autojump_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        """A deploy fetches nothing that the old task delivers."""
        stream = FakeStream()
        stream.store(stored_beat((1, 20)), arrival_ms=ago(3))
        reading = Reading(stream)
        nursery.start_soon(reading.run)
        await trio.sleep(2)
        stream.store(stored_beat((1, 28)))
        await trio.sleep(5)
        assert reading.answers == []
        stream.store(stored_beat((1, 34)))
        await trio.sleep(3)
        assert reading.missing == []
        nursery.cancel_scope.cancel()

    async def test_a_quiet_symbol_is_answered_when_it_speaks(
        self, autojump_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        """Meanwhile the stream is no longer read."""
        stream = FakeStream()
        stream.store(stored_beat((1, 20)), arrival_ms=ago(60))
        reading = Reading(stream)
        reading.resume._live.clear()
        nursery.start_soon(reading.run)
        await trio.sleep(5)
        reads = len(stream.calls)
        await trio.sleep(3_600)
        assert len(stream.calls) == reads
        reading.resume.begin(TRADES, 31, 1_000)
        await trio.sleep(2)
        assert reading.missing == [(21, 30)]
        nursery.cancel_scope.cancel()

    async def test_only_the_newest_beat_of_a_key_is_decoded(self, autojump_clock: MockClock) -> None:
        """It says all that the earlier ones said, and ten minutes of a whole market are thousands of them."""
        stream, decoded = FakeStream(), list[bytes]()
        for last in range(1, 21):
            stream.store(stored_beat((1, last)), key="old/0", arrival_ms=ago(60))

        def decode(data: bytes) -> Mapping[str, Any]:
            decoded.append(data)
            return decode_heartbeat(data)

        reading = Reading(stream, decode)
        await reading.run()
        assert reading.missing == [(21, 30)]
        assert len(decoded) == 1

    async def test_what_is_no_beat_is_passed_over(self, autojump_clock: MockClock) -> None:
        """With one line in the log, however much of it there is."""
        stream = FakeStream()
        large = stored_beat((1, 9)) + bytes(LARGEST_PART_BYTES)  # to read it would stall the loop
        for number, foreign in enumerate([b"not ours", large, b"\xf3\x89\x9a\xc2" + bytes(40)]):
            stream.store(foreign, key=f"{number}", arrival_ms=ago(60))
        stream.store(stored_beat((1, 20)), arrival_ms=ago(60))
        reading = Reading(stream)
        with capture_logs() as logs:
            await reading.run()
        assert reading.missing == [(21, 30)]
        assert [line["event"] for line in logs] == ["heartbeat_unreadable", "resumed", "resume_over"]

    async def test_without_subscriptions_there_is_nothing_to_read(self, autojump_clock: MockClock) -> None:
        """A task whose share of the symbols is empty."""
        reading = Reading(FakeStream())
        reading.resume = Resume(reading.coverage, [], identity=US, instance="new", lookback_s=60.0)
        await reading.run()
        assert reading.answers == []


async def test_what_one_task_writes_the_next_one_resumes_from(autojump_clock: MockClock) -> None:
    """Through the real bytes: write, die without a word, read back."""
    stream = FakeStream()
    writing = Writing()
    writing.writer._sink = stream
    with trio.move_on_after(600):
        async with trio.open_nursery() as nursery:
            await nursery.start(writing.writer.run)
            await writing.writer.admit([Begin(TRADES, 11, 1_000)])
            writing.coverage.acknowledge([Claim(TRADES, 11, 20)])
    await trio.sleep(20)
    reading = Reading(stream)
    await reading.run()
    [(_, answer)] = reading.answers
    assert list(answer.missing) == [(21, 30)]
