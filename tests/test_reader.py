from __future__ import annotations

from hashlib import md5
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from ingestor.core.errors import SinkError
from ingestor.core.kpl import MAGIC, aggregate
from ingestor.core.model import EncodedRecord
from ingestor.reader import (
    LATEST,
    OLDEST,
    Payload,
    ReadRecord,
    ShardPage,
    StreamReader,
    Unreadable,
    decode_page,
    since,
)
from ingestor.serializer import Serializer
from tests.fakes.records import trade
from tests.fakes.stream import EPOCH_MS, EXPIRED, NO_STREAM, THROTTLED, FakeShard, FakeStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trio.testing import MockClock


class Collected:
    """Takes pages and keeps what was in them."""

    def __init__(self) -> None:
        self.pages: list[ShardPage] = []

    async def take(self, page: ShardPage) -> None:
        await trio.lowlevel.checkpoint()
        self.pages.append(page)

    @property
    def data(self) -> list[bytes]:
        return [payload.data for page in self.pages for payload in page.payloads]


def make_reader(
    stream: FakeStream,
    *,
    is_patient: bool = True,
    page_records: int = 10,
    report_trouble: Callable[[SinkError, float], None] | None = None,
) -> StreamReader:
    return StreamReader(
        stream,
        "data",
        is_patient=is_patient,
        page_records=page_records,
        jitter=Random(1),
        report_trouble=report_trouble,
    )


def stored(data: Iterable[bytes], stream: FakeStream | None = None, shard: str = "s0") -> FakeStream:
    stream = stream or FakeStream()
    for number, item in enumerate(data):
        stream.store(item, shard=shard, arrival_ms=EPOCH_MS + 1_000 * number)
    return stream


def letters(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


class TestBounded:
    async def test_a_shard_is_read_to_its_end_in_order(self, autojump_clock: MockClock) -> None:
        """Page by page, four a second so that others can read too, and then it returns."""
        stream, collected = stored(letters(25)), Collected()
        await make_reader(stream).read(OLDEST, collected.take)
        assert collected.data == letters(25)
        assert stream.times_of("get_records") == [0.0, 0.25, 0.5]

    async def test_an_empty_page_is_not_the_end(self, autojump_clock: MockClock) -> None:
        """Only being no milliseconds behind is."""
        stream, collected = stored(letters(3)), Collected()
        stream.shards["s0"].empty_reads = 4
        await make_reader(stream).read(OLDEST, collected.take)
        assert collected.data == letters(3)

    async def test_reading_begins_at_a_time_of_arrival(self, autojump_clock: MockClock) -> None:
        """What arrived before it is left out."""
        stream, collected = stored(letters(5)), Collected()
        await make_reader(stream).read(since(EPOCH_MS + 3_000), collected.take)
        assert collected.data == letters(5)[3:]

    async def test_reading_ends_behind_a_time_of_arrival(self, autojump_clock: MockClock) -> None:
        """A page that reaches beyond it is the last."""
        stream, collected = stored(letters(50)), Collected()
        await make_reader(stream).read(OLDEST, collected.take, until_ms=EPOCH_MS + 12_000)
        assert collected.data == letters(20)

    async def test_all_shards_are_read_parents_before_children(self, autojump_clock: MockClock) -> None:
        """Closed ones too; a merged shard waits for both of its parents."""
        stream = FakeStream(
            {
                "child": FakeShard(parent="left", adjacent_parent="right"),
                "left": FakeShard(closed=True),
                "right": FakeShard(closed=True),
            }
        )
        stored([b"young"], stream, "child")
        stored(letters(15), stream, "left")
        stored([b"other"], stream, "right")
        collected = Collected()
        await make_reader(stream).read(OLDEST, collected.take)
        assert collected.data[-1] == b"young"
        assert sorted(collected.data) == sorted([*letters(15), b"other", b"young"])

    async def test_a_parent_that_is_gone_is_not_waited_for(self, autojump_clock: MockClock) -> None:
        """Shards whose records have all expired are no longer listed, and stay named as parents."""
        stream, collected = stored([b"1"], FakeStream({"s1": FakeShard(parent="expired")}), "s1"), Collected()
        await make_reader(stream).read(OLDEST, collected.take)
        assert collected.data == [b"1"]

    async def test_a_closed_shard_that_never_says_so_ends_at_its_end(self, autojump_clock: MockClock) -> None:
        """Some emulators go on giving iterators."""
        stream = FakeStream({"s0": FakeShard(closed=True), "s1": FakeShard(parent="s0")})
        stream.gives_iterators_for_ever = True
        stored([b"1"], stream)
        stored([b"2"], stream, "s1")
        collected = Collected()
        with trio.move_on_after(60):
            await make_reader(stream).read(OLDEST, collected.take, follow=True)
        assert collected.data == [b"1", b"2"]


class TestFollowing:
    async def test_new_records_are_handed_on_as_they_come(
        self, autojump_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        """From behind the newest one, once a second."""
        stream, collected = stored(letters(3)), Collected()
        nursery.start_soon(lambda: make_reader(stream).read(LATEST, collected.take, follow=True))
        await trio.sleep(2.5)
        stream.store(b"new")
        await trio.sleep(1)
        assert collected.data == [b"new"]
        assert stream.times_of("get_records") == [0.0, 1.0, 2.0, 3.0]
        nursery.cancel_scope.cancel()

    async def test_being_caught_up_is_told_once(self, autojump_clock: MockClock, nursery: trio.Nursery) -> None:
        """When every shard has been at its end, and not again when more has come."""
        stream = FakeStream({"s0": FakeShard(), "s1": FakeShard()})
        stored(letters(25), stream, "s1")
        told: list[float] = []
        reader = make_reader(stream)

        async def follow() -> None:
            await reader.read(
                OLDEST, Collected().take, follow=True, on_caught_up=lambda: told.append(trio.current_time())
            )

        nursery.start_soon(follow)
        await trio.sleep(3)
        stream.store(b"new")
        await trio.sleep(3)
        assert told == [0.5]
        nursery.cancel_scope.cancel()

    async def test_children_of_a_shard_that_splits_are_followed(
        self, autojump_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        """From their first record on, even when reading began at the newest; closed shards are then not asked."""
        stream, collected = FakeStream({"old": FakeShard(closed=True), "s0": FakeShard(parent="old")}), Collected()
        nursery.start_soon(lambda: make_reader(stream).read(LATEST, collected.take, follow=True))
        await trio.sleep(1.5)
        stream.store(b"last of the parent")
        stream.shards["s0"].closed = True
        for name in ("s1", "s2"):
            stream.shards[name] = FakeShard(parent="s0")
            stream.store(name.encode(), shard=name)
        await trio.sleep(2)
        assert collected.data[0] == b"last of the parent"
        assert sorted(collected.data[1:]) == [b"s1", b"s2"]
        assert {page.shard_id for page in collected.pages} == {"s0", "s1", "s2"}
        nursery.cancel_scope.cancel()


class TestTrouble:
    async def test_throttled_reads_back_off_and_go_on(self, autojump_clock: MockClock) -> None:
        """The place is kept, nothing is read twice, and each failure is told with its delay."""
        stream, collected = stored(letters(15)), Collected()
        stream.errors.extend([None, None, THROTTLED, THROTTLED, None, THROTTLED])
        told: list[tuple[str, float]] = []
        reader = make_reader(stream, report_trouble=lambda error, delay_s: told.append((error.code, delay_s)))
        await reader.read(OLDEST, collected.take)
        assert collected.data == letters(15)
        assert [code for code, _ in told] == [THROTTLED.code] * 3
        assert stream.times_of("iterator TRIM_HORIZON") == [0.0]
        delays = [delay_s for _, delay_s in told]
        assert autojump_clock.current_time() == pytest.approx(sum(delays) + 0.25)
        assert delays[2] <= 0.5  # a page that came reset the backoff

    async def test_an_expired_iterator_is_renewed_behind_the_last_record(self, autojump_clock: MockClock) -> None:
        """Nothing is lost and nothing is read twice."""
        stream, collected = stored(letters(15)), Collected()
        stream.errors.extend([None, None, None, EXPIRED])
        await make_reader(stream).read(OLDEST, collected.take)
        assert collected.data == letters(15)
        assert len(stream.times_of("iterator AFTER_SEQUENCE_NUMBER")) == 1

    async def test_an_iterator_that_expires_before_the_first_record_starts_over(
        self, autojump_clock: MockClock
    ) -> None:
        """There is no sequence number to go on from, so the start is looked for again."""
        stream, collected = stored(letters(5)), Collected()
        stream.errors.extend([None, None, EXPIRED])
        await make_reader(stream).read(since(EPOCH_MS + 3_000), collected.take)
        assert collected.data == letters(5)[3:]
        assert len(stream.times_of("iterator AT_TIMESTAMP")) == 2

    async def test_a_stream_that_was_made_anew_is_read_from_its_beginning(self, autojump_clock: MockClock) -> None:
        """It does not have the record that was read last; whoever waits patiently would wait for ever for it."""
        stream, collected = stored(letters(15)), Collected()
        refused = SinkError("poison", "InvalidArgumentException", "StartingSequenceNumber is invalid")
        stream.errors.extend([None, None, None, EXPIRED, refused])
        await make_reader(stream).read(OLDEST, collected.take)
        assert collected.data == [*letters(10), *letters(15)]

    async def test_a_patient_reader_waits_for_a_person(self, autojump_clock: MockClock) -> None:
        """A stream that does not exist yet is asked for again and again."""
        stream, collected = stored(letters(1)), Collected()
        stream.errors.extend([NO_STREAM] * 20)
        await make_reader(stream).read(OLDEST, collected.take)
        assert collected.data == letters(1)
        assert 20 <= autojump_clock.current_time() <= 200

    async def test_an_impatient_reader_raises_what_only_a_person_can_mend(self, autojump_clock: MockClock) -> None:
        """But sits out what passes by itself."""
        stream = stored(letters(1))
        stream.errors.extend([THROTTLED, NO_STREAM])
        with pytest.raises(SinkError, match="ResourceNotFoundException"):
            await make_reader(stream, is_patient=False).read(OLDEST, Collected().take)

    async def test_a_shard_that_may_not_be_read_ends_the_whole_reading(self, autojump_clock: MockClock) -> None:
        """The error comes as itself, not in a group, so that a command can print it."""
        stream = stored(letters(1))
        stream.errors.extend([None, None, NO_STREAM])
        with pytest.raises(SinkError, match="ResourceNotFoundException"):
            await make_reader(stream, is_patient=False).read(OLDEST, Collected().take, follow=True)


class TestContents:
    async def test_blobs_are_opened(self, autojump_clock: MockClock) -> None:
        """Aggregated or not, every record comes with its own partition key and the blob's arrival."""
        inner = [EncodedRecord("a", b"1", None), EncodedRecord("b", b"2", None)]
        blob, _ = aggregate(inner, "5", 10_000)
        stream, collected = stored([blob.data, b"plain"]), Collected()
        await make_reader(stream).read(OLDEST, collected.take)
        assert collected.pages[0].payloads == [
            Payload(b"1", "a", EPOCH_MS),
            Payload(b"2", "b", EPOCH_MS),
            Payload(b"plain", "k", EPOCH_MS + 1_000),
        ]

    async def test_a_blob_that_cannot_be_opened_is_an_item(self, autojump_clock: MockClock) -> None:
        """Right digest, wrong inside: reported, and reading goes on."""
        stream, collected = stored([broken_blob(), b"plain"]), Collected()
        await make_reader(stream).read(OLDEST, collected.take)
        broken, plain = collected.pages[0].payloads
        assert broken.problem is not None
        assert plain == Payload(b"plain", "k", EPOCH_MS + 1_000)

    def test_records_are_decoded_and_the_rest_is_handed_on_as_unreadable(self) -> None:
        """One item for each payload, in order."""
        serializer = Serializer()
        record = trade(7)
        page = ShardPage(
            "s0", [Payload(serializer.encode(record), "k", 5), Payload(b"x", "l", 6), Payload(b"y", "m", 7, "torn")], 0
        )
        read, foreign, torn = decode_page(page, serializer.decode)
        assert read == ReadRecord(record, "s0", 5, "k")
        assert isinstance(foreign, Unreadable)
        assert (foreign.data, foreign.arrival_ms) == (b"x", 6)
        assert torn == Unreadable(b"y", "torn", "s0", 7, "m")


def broken_blob() -> bytes:

    message = b"\x1a\x7f"
    return MAGIC + message + md5(message, usedforsecurity=False).digest()
