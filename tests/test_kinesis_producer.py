"""The producer against a Kinesis that throttles, fails, hangs, refuses and comes back."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from ingestor.channels import BatchReceiver, BatchSender, open_batch_channel
from ingestor.config import BatchLimits, CircuitBreakerLimits, Kinesis, Retry
from ingestor.core.health import SinkFact
from ingestor.core.kpl import disaggregate
from ingestor.core.model import Claim, DeadLetter, EncodedBatch, EncodedRecord, EntryFailure, PutEntry, Subscription
from ingestor.core.shards import ShardInfo
from ingestor.kinesis_producer import CALLS_IN_FLIGHT, KinesisProducer, event_type_of
from ingestor.metrics import Metrics
from tests.fakes.board import healthy_board
from tests.fakes.fault_proxy import ShardLimit
from tests.fakes.kinesis import (
    INTERNAL,
    INVALID,
    NO_STREAM,
    ODD,
    OVERALL_THROTTLE,
    THROTTLED,
    UNAVAILABLE,
    FakeKinesis,
    LandedThenFailed,
    invalid_with,
    refuse,
    refuse_data,
    shard_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ingestor.core.model import EntryResult, HoleReason

TRADES = Subscription("BTCUSDT", "trade")
NEVER_FULL = 1 << 30


class DeadLetters:
    """Remembers letters; how long it takes can be set."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        await trio.lowlevel.checkpoint()
        self.letters += letters


def encode_hole(claim: Claim, reason: HoleReason) -> EncodedRecord:
    return EncodedRecord("whatever", f"hole {reason} {claim.first}-{claim.last}".encode(), claim)


class Witness(FakeKinesis):
    """A Kinesis that remembers which records it has said to have, by key and number."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.answered: set[tuple[str, int]] = set()

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryResult]:
        answer = await super().put(entries)
        for entry, result in zip(entries, answer, strict=True):
            if not isinstance(result, EntryFailure):
                inner = disaggregate(entry.data, entry.partition_key)
                self.answered |= {(key, int(data.split(b";")[0])) for key, _, data in inner if b";" in data}
        return answer


class Bench:
    """A producer with everything around it."""

    def __init__(
        self, kinesis: FakeKinesis, *, held_max_bytes: int = NEVER_FULL, farewell_s: float = 5.0, **section: Any
    ) -> None:
        self.kinesis = kinesis
        self.dead_letters = DeadLetters()
        self.claims: list[Claim] = []
        self.ahead: list[Claim] = []  # claimed, and Kinesis had not said that it has all of it
        self.given_up: list[EncodedRecord] = []
        self.fact = SinkFact()
        self.metrics = Metrics(CollectorRegistry())
        self.producer = KinesisProducer(
            Kinesis(**section),
            kinesis,
            dead_letters=self.dead_letters,
            encode_hole=encode_hole,
            on_acknowledged=self.note_claims,
            on_given_up=self.given_up.extend,
            metrics=self.metrics,
            fact=self.fact,
            wall_ns=lambda: 1_000_000_000,
            jitter=None,
            held_max_bytes=held_max_bytes,
            farewell_s=farewell_s,
        )
        self.sender: BatchSender[EncodedBatch]
        self.intake: BatchReceiver[EncodedBatch]
        self.sender, self.intake = open_batch_channel(4, 1 << 30)

    def note_claims(self, claims: Sequence[Claim]) -> None:
        self.claims += claims
        self.ahead += [
            claim
            for claim in claims
            for number in range(claim.first, claim.last + 1)
            if isinstance(self.kinesis, Witness) and (claim.subscription.symbol, number) not in self.kinesis.answered
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[BatchSender[EncodedBatch]]:
        """Run the producer until it has delivered what was sent inside."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.producer.run, self.intake)
            with self.sender:
                yield self.sender

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def record(number: int, key: str = "BTCUSDT", data: bytes | None = None) -> EncodedRecord:
    return EncodedRecord(key, data or b"%d;" % number, Claim(Subscription(key, "trade"), number, number))


def batch(*numbers: int, key: str = "BTCUSDT", size: int | None = None) -> EncodedBatch:
    records = [record(number, key, None if size is None else b"%d;" % number + bytes(size)) for number in numbers]
    return EncodedBatch(records, trio.current_time(), sum(len(record.data) for record in records))


def stored(bench: Bench, key: str = "BTCUSDT") -> list[int]:
    return [int(data.split(b";")[0]) for data in bench.kinesis.stored_by_key().get(key, [])]


def verdict(bench: Bench) -> str:
    """Return what `/health` says of a service whose producer this is, and whose all else is well."""
    now = trio.current_time()
    board = healthy_board(now)
    board.sink = bench.fact
    return board.report(now).status


ADAPTIVE: dict[str, Any] = {"batch": BatchLimits(flush="adaptive")}


async def test_records_leave_after_the_interval_and_are_claimed_when_acknowledged(autojump_clock: MockClock) -> None:
    """One blob, one claim for all of it, and the facts and figures of a delivery."""
    bench = Bench(FakeKinesis(latency_s=0.25))
    async with bench.running() as sender:
        await sender.send(batch(1, 2, 3))
        await trio.sleep(1.1)
        assert (bench.kinesis.times, bench.claims) == ([1.0], [])
        await trio.sleep(0.2)
        assert bench.claims == [Claim(TRADES, 1, 3)]
        assert (bench.fact.last_success_s, bench.fact.held_bytes, bench.fact.breaker) == (1.25, 0, "closed")
    assert stored(bench) == [1, 2, 3]
    assert bench.sample("records_delivered_total") == 3
    assert bench.sample("kinesis_puts_total", outcome="accepted") == 1
    assert bench.sample("message_processing_latency_seconds_sum", stage="acknowledged") == 3.75
    assert bench.sample("message_processing_latency_seconds_sum", stage="put") == 3.0


async def test_a_record_after_a_long_quiet_is_no_outage(autojump_clock: MockClock) -> None:
    """What waits for its interval has not waited since the last delivery; an outage is as long as records wait."""
    kinesis = FakeKinesis()
    bench = Bench(kinesis, circuit_breaker=CircuitBreakerLimits(failure_threshold=1, reset_timeout_s=3.0))
    async with bench.running() as sender:
        await sender.send(batch(1))
        await trio.sleep(3_600)
        await sender.send(batch(2))
        await trio.sleep(0.5)
        assert verdict(bench) == "healthy"
        await trio.sleep(3_600)
        kinesis.always = UNAVAILABLE
        await sender.send(batch(3))
        await trio.sleep(30)
        assert (bench.fact.breaker != "closed", verdict(bench)) == (True, "degraded")
        await trio.sleep(40)
        assert verdict(bench) == "unhealthy"
        kinesis.always = None
        await trio.sleep(10)
        assert verdict(bench) == "healthy"


async def test_the_end_of_input_sends_everything_at_once(autojump_clock: MockClock) -> None:
    """Nothing waits for its interval, and the task returns when all is acknowledged."""
    bench = Bench(FakeKinesis(latency_s=0.5))
    async with bench.running() as sender:
        await sender.send(batch(1))
    assert trio.current_time() == 0.5
    assert bench.claims == [Claim(TRADES, 1, 1)]


async def test_a_record_that_proves_nothing_is_delivered_without_a_claim(autojump_clock: MockClock) -> None:
    """A snapshot, or a bar that is not closed yet."""
    acknowledged: list[Sequence[Claim]] = []
    bench = Bench(FakeKinesis())
    bench.producer._on_acknowledged = acknowledged.append
    async with bench.running() as sender:
        await sender.send(EncodedBatch([EncodedRecord("BTCUSDT", b"snapshot", None)], 0.0, 8))
    assert bench.kinesis.stored_by_key() == {"BTCUSDT": [b"snapshot"]}
    assert acknowledged == []


async def test_under_load_few_big_calls_are_under_way(autojump_clock: MockClock) -> None:
    """What gathers while the calls are out goes into the next ones, and a lane is never in two.

    Two that are young are never joined by a third: boto3 works on them.
    """
    bench = Bench(FakeKinesis(latency_s=1.0), **ADAPTIVE, lanes=8)
    async with bench.running() as sender:
        for number in range(100):
            for key in "ABCDEFGH":
                await sender.send(batch(number, key=key))
            await trio.sleep(0.1)
    times = bench.kinesis.times
    assert all(third - first >= 0.5 for first, third in zip(times, times[2:], strict=False))
    assert len(times) <= 24
    for put in bench.kinesis.puts:
        assert len({entry.explicit_hash_key for entry in put.entries}) == len(put.entries)
    assert all(stored(bench, key) == list(range(100)) for key in "ABCDEFGH")


async def test_an_idle_lane_sends_at_once_and_a_busy_one_what_gathered(autojump_clock: MockClock) -> None:
    """`adaptive`: the first record leaves when it comes, the others with the next blob, the moment the put is back."""
    bench = Bench(FakeKinesis(latency_s=0.03), **ADAPTIVE)
    async with bench.running() as sender:
        for number, at_s in enumerate((1.0, 1.01, 1.02, 1.06, 1.5)):
            await trio.sleep_until(at_s)
            await sender.send(batch(number))
    assert bench.kinesis.times == [1.0, 1.03, 1.06, 1.5]
    assert [len(disaggregate(*entry[:2])) for put in bench.kinesis.puts for entry in put.entries] == [1, 2, 1, 1]
    assert bench.sample("message_processing_latency_seconds_sum", stage="put") == pytest.approx(0.02 + 0.01)


async def test_the_interval_is_no_more_than_a_cap(autojump_clock: MockClock) -> None:
    """`interval`: a record waits for company so long and no longer; `adaptive`: not at all, whatever the interval."""
    times = {}
    for flush in ("interval", "adaptive"):
        bench = Bench(FakeKinesis(), batch=BatchLimits(flush=flush, flush_interval_s=5.0))
        began = trio.current_time()
        async with bench.running() as sender:
            await sender.send(batch(1))
            await trio.sleep(2)
            await sender.send(batch(2))
            await trio.sleep(10)
        times[flush] = [at_s - began for at_s in bench.kinesis.times]
    assert times == {"interval": [5.0], "adaptive": [0.0, 2.0]}


async def test_idle_lanes_do_not_wait_with_puts_that_hang(autojump_clock: MockClock) -> None:
    """Two calls are at work for half a second at most; who waits longer waits for the network, and alone."""
    bench = Bench(FakeKinesis(latency_s=6.0), **ADAPTIVE)
    async with bench.running() as sender:
        for number, key in enumerate("ABCDE"):  # a lane each
            await trio.sleep_until(number / 100)
            await sender.send(batch(1, key=key))
        await trio.sleep_until(1.5)
        await sender.send(batch(1, key="G"))
        await sender.send(batch(1, key="F"))  # the lane of B
        await trio.sleep(10)
    assert bench.kinesis.times == [0.0, 0.01, 0.5, 1.5, 6.01]
    assert [[entry.data for entry in put.entries] for put in bench.kinesis.puts] == [
        [b"1;"] * n for n in (1, 1, 3, 1, 1)
    ]


async def test_calls_are_bounded_however_many_hang(autojump_clock: MockClock) -> None:
    """Each has a thread of its own."""
    bench = Bench(FakeKinesis(latency_s=60.0), **ADAPTIVE, lanes=64)
    async with bench.running() as sender:
        for number in range(64):
            await sender.send(batch(1, key=f"K{number}"))
            await trio.sleep(1)
    assert bench.kinesis.most_in_flight == CALLS_IN_FLIGHT == 8


async def test_only_the_refused_part_is_sent_again_and_only_then_claimed(autojump_clock: MockClock) -> None:
    """The other lane's blob is acknowledged at once."""
    bench = Bench(FakeKinesis([refuse(THROTTLED, 0)]), **ADAPTIVE, retry=Retry(initial_s=0.5))
    async with bench.running() as sender:
        await sender.send(EncodedBatch([record(1, "BTCUSDT"), record(2, "ETHUSDT")], 0.0, 4))
        await wait_all_tasks_blocked()
        assert len(bench.claims) == 1
        await trio.sleep(1.0)
    assert [len(put.entries) for put in bench.kinesis.puts] == [2, 1]
    assert bench.kinesis.times == [0.0, 0.5]
    assert len(bench.claims) == 2
    assert bench.sample("kinesis_entries_retried_total", reason="throttled") == 1
    assert bench.sample("kinesis_puts_total", outcome="partial") == 1


@pytest.mark.parametrize("failure", [THROTTLED, INTERNAL])
async def test_a_throttled_lane_is_tried_for_ever_and_opens_no_breaker(
    failure: EntryFailure, autojump_clock: MockClock
) -> None:
    """Slower each time, far beyond max_attempts, with later records behind."""
    script = [refuse(failure)] * 30
    bench = Bench(FakeKinesis(script), **ADAPTIVE, retry=Retry(max_attempts=3, initial_s=0.1, max_s=0.4))
    async with bench.running() as sender:
        await sender.send(batch(1, 2))
        await trio.sleep(0.05)
        await sender.send(batch(3))
        assert bench.fact.breaker == "closed"
    assert [round(time, 6) for time in bench.kinesis.times[:5]] == [0.0, 0.1, 0.3, 0.7, 1.1]
    assert stored(bench) == [1, 2, 3]
    assert bench.dead_letters.letters == []


async def test_an_entry_that_keeps_failing_alone_becomes_a_letter_and_a_hole_in_its_place(
    autojump_clock: MockClock,
) -> None:
    """After max_attempts answers with a code of its own; its neighbours are delivered, and its ids are declared."""
    kinesis = FakeKinesis(always=refuse_data(ODD, b"2;"))
    bench = Bench(kinesis, aggregation="none", batch=BatchLimits(flush="adaptive"), retry=Retry(max_attempts=3))
    async with bench.running() as sender:
        await sender.send(batch(1, 2, 3))
        await trio.sleep(0.01)
        await sender.send(batch(4))
    [letter] = bench.dead_letters.letters
    assert letter == DeadLetter(
        reason="gave_up",
        detail="OddException: nobody knows",
        raw=b"2;",
        at_ms=1000,
        symbol="BTCUSDT",
        event_type="trade",
        partition_key="BTCUSDT",
        claim=Claim(TRADES, 2, 2),
        attempts=3,
    )
    in_order = kinesis.stored_by_key()["BTCUSDT"]
    assert sorted(in_order[:2]) == [b"1;", b"3;"]
    assert in_order[2:] == [b"hole poison 2-2", b"4;"]
    assert sorted(bench.claims) == [Claim(TRADES, 1, 1), Claim(TRADES, 2, 2), Claim(TRADES, 3, 3), Claim(TRADES, 4, 4)]


async def test_one_bad_record_in_a_blob_takes_no_other_with_it(autojump_clock: MockClock) -> None:
    """A refused call is narrowed down to the record, which alone is given up."""
    kinesis = FakeKinesis(always=invalid_with(b"13;"))
    bench = Bench(kinesis, **ADAPTIVE)
    async with bench.running() as sender:
        await sender.send(batch(*range(10, 20)))
        await sender.send(batch(1, 2, key="ETHUSDT"))
    assert [letter.raw for letter in bench.dead_letters.letters] == [b"13;"]
    assert bench.dead_letters.letters[0].reason == "rejected"
    expected = [b"%d;" % number for number in range(10, 20)]
    expected[3] = b"hole poison 13-13"
    assert kinesis.stored_by_key()["BTCUSDT"] == expected
    assert kinesis.stored_by_key()["ETHUSDT"] == [b"1;", b"2;"]
    assert bench.fact.breaker == "closed"


async def test_a_record_over_the_limit_is_given_up_without_a_call(autojump_clock: MockClock) -> None:
    """1 MiB with its key; a record just within it travels raw and alone."""
    bench = Bench(FakeKinesis(), **ADAPTIVE)
    within = record(1, data=b"1;" + bytes(1_048_576 - 2 - len("BTCUSDT")))
    above = record(2, data=b"2;" + bytes(1_048_576 - 1 - len("BTCUSDT")))
    async with bench.running() as sender:
        await sender.send(EncodedBatch([within, above, record(3)], 0.0, 1))
    assert [letter.reason for letter in bench.dead_letters.letters] == ["too_large"]
    assert bench.dead_letters.letters[0].detail == "1048577 bytes"
    assert [data[:15] for data in bench.kinesis.stored_by_key()["BTCUSDT"]] == [
        within.data[:15],
        b"hole poison 2-2",
        b"3;",
    ]


async def test_a_hole_that_is_refused_too_leaves_nothing_and_claims_nothing(autojump_clock: MockClock) -> None:
    """Or it would go round for ever; the next task asks for those ids again."""
    bench = Bench(FakeKinesis(always=INVALID), **ADAPTIVE)
    snapshot = EncodedRecord("BTCUSDT", b"snapshot", None)
    async with bench.running() as sender:
        await sender.send(EncodedBatch([record(1), snapshot], 0.0, 1))
    assert [letter.raw for letter in bench.dead_letters.letters] == [b"1;", b"hole poison 1-1", b"snapshot"]
    assert [letter.symbol for letter in bench.dead_letters.letters] == ["BTCUSDT", "BTCUSDT", None]
    assert [given_up.data for given_up in bench.given_up] == [b"1;", b"hole poison 1-1", b"snapshot"]
    assert bench.claims == []


async def test_a_hole_that_is_refused_with_an_odd_code_is_sent_until_it_lands(autojump_clock: MockClock) -> None:
    """Given up, it would leave ids that are neither delivered nor declared, for as long as the task lives."""

    def odd(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        return [ODD] * len(entries)

    bench = Bench(FakeKinesis([odd] * 20), **ADAPTIVE, retry=Retry(max_attempts=3, initial_s=0.1, max_s=1.0))
    async with bench.running() as sender:
        await sender.send(batch(1))
        await trio.sleep(60.0)
    assert [letter.raw for letter in bench.dead_letters.letters] == [b"1;"]
    assert bench.kinesis.stored_by_key()["BTCUSDT"] == [b"hole poison 1-1"]
    assert bench.claims == [Claim(TRADES, 1, 1)]


async def test_an_outage_opens_the_breaker_which_probes_until_it_is_over(autojump_clock: MockClock) -> None:
    """Back-off, then one probe a timeout; everything is delivered in order afterwards."""
    kinesis = FakeKinesis([UNAVAILABLE] * 5, latency_s=0.5)
    bench = Bench(
        kinesis,
        **ADAPTIVE,
        retry=Retry(initial_s=1.0),
        circuit_breaker=CircuitBreakerLimits(failure_threshold=3, reset_timeout_s=30.0),
    )
    async with bench.running() as sender:
        await sender.send(batch(1))
        await trio.sleep(10.0)
        assert (bench.fact.breaker, bench.sample("kinesis_breaker_state")) == ("open", 2)
        await sender.send(batch(2))
        await sender.send(batch(3, key="ETHUSDT"))
        await trio.sleep(24.7)
        assert (bench.fact.breaker, bench.sample("kinesis_breaker_state")) == ("half_open", 1)
        await trio.sleep(100.0)
        assert (bench.fact.breaker, bench.sample("kinesis_breaker_state")) == ("closed", 0)
    assert kinesis.times == [0.0, 1.5, 4.0, 34.5, 65.0, 95.5, 96.0]
    assert [len(put.entries) for put in kinesis.puts] == [1, 1, 1, 2, 2, 2, 1]
    assert stored(bench) == [1, 2]
    assert bench.sample("kinesis_possible_duplicates_total") == 1 + 1 + 1 + 2 + 2
    assert bench.sample("kinesis_puts_total", outcome="transient") == 5


async def test_throttling_of_whole_calls_slows_everything(autojump_clock: MockClock) -> None:
    """The whole client backs off; the first success resets the delays."""
    script = [OVERALL_THROTTLE, OVERALL_THROTTLE, None, OVERALL_THROTTLE]
    bench = Bench(
        FakeKinesis([step or refuse(THROTTLED, 99) for step in script]), **ADAPTIVE, retry=Retry(initial_s=1.0)
    )
    async with bench.running() as sender:
        await sender.send(batch(1))
        await trio.sleep(10.0)
        await sender.send(batch(2))
    assert bench.kinesis.times == [0.0, 1.0, 3.0, 10.0, 11.0]
    assert bench.sample("kinesis_possible_duplicates_total") == 0


async def test_a_configuration_error_is_shown_and_tried_again_slowly(autojump_clock: MockClock) -> None:
    """Until a person has mended it; then it is forgotten and nothing is lost."""
    bench = Bench(FakeKinesis([NO_STREAM] * 2), **ADAPTIVE, retry=Retry(max_s=7.0))
    async with bench.running() as sender:
        await sender.send(batch(1))
        await trio.sleep(1.0)
        assert bench.fact.configuration_error == str(NO_STREAM)
        await trio.sleep(20.0)
        assert bench.fact.configuration_error is None
    assert bench.kinesis.times == [0.0, 7.0, 14.0]
    assert stored(bench) == [1]


async def test_an_entry_that_is_refused_for_the_configuration_is_never_given_up(autojump_clock: MockClock) -> None:
    """A disabled key is no fault of the records; whoever must mend it is told once, and the service is not ready."""
    disabled = EntryFailure("KMSDisabledException", "The key is disabled.")
    bench = Bench(FakeKinesis(always=refuse(disabled)), **ADAPTIVE, retry=Retry(max_attempts=3, max_s=1))
    with capture_logs() as logs:
        async with bench.running() as sender:
            await sender.send(batch(1))
            await trio.sleep(60)
            assert bench.fact.configuration_error == "KMSDisabledException: The key is disabled."
            bench.kinesis.always = None
            await trio.sleep(2)
            assert bench.fact.configuration_error is None
    assert (stored(bench), bench.dead_letters.letters) == ([1], [])
    assert [line["event"] for line in logs].count("kinesis_misconfigured") == 1


async def test_a_call_that_landed_without_an_answer_is_sent_again_and_counted(autojump_clock: MockClock) -> None:
    """At least once, and a possible duplicate is never silent."""
    bench = Bench(FakeKinesis([LandedThenFailed(UNAVAILABLE)]), **ADAPTIVE)
    async with bench.running() as sender:
        await sender.send(batch(1, 2))
    assert stored(bench) == [1, 2, 1, 2]
    assert bench.sample("kinesis_possible_duplicates_total") == 2
    assert bench.claims == [Claim(TRADES, 1, 2)]


async def test_an_answer_of_the_wrong_length_counts_as_none(autojump_clock: MockClock) -> None:
    """What is acknowledged cannot be known then."""

    def answer(_: Sequence[PutEntry]) -> list[EntryFailure | None]:
        return []

    class Careless(FakeKinesis):
        async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryFailure | None]:
            self.puts.append((trio.current_time(), list(entries)))  # type: ignore[arg-type]  # only its length matters
            return answer(entries) if len(self.puts) == 1 else [None] * len(entries)

    bench = Bench(Careless(), **ADAPTIVE)
    async with bench.running() as sender:
        await sender.send(batch(1))
    assert len(bench.kinesis.puts) == 2
    assert bench.claims == [Claim(TRADES, 1, 1)]


async def test_a_full_producer_stops_receiving_and_goes_on_when_there_is_room(autojump_clock: MockClock) -> None:
    """During an outage the channel fills and its sender stalls; nothing grows, nothing is lost."""
    kinesis = FakeKinesis([UNAVAILABLE] * 6)
    bench = Bench(kinesis, **ADAPTIVE, held_max_bytes=10_000, lanes=1)
    sent = 0

    async def produce() -> None:
        nonlocal sent
        with bench.sender as sender:
            for number in range(100):
                await sender.send(batch(number, size=1000))
                sent += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(bench.producer.run, bench.intake)
        nursery.start_soon(produce)
        await trio.sleep(20.0)
        assert sent == 8 + 4  # held, and in the channel
        assert bench.fact.held_bytes == 8 * (1002 + 256)
    assert stored(bench) == list(range(100))


async def test_no_put_starts_after_the_last_moment(autojump_clock: MockClock) -> None:
    """What is left is counted and not claimed; the put that is out is waited for."""
    bench = Bench(FakeKinesis(latency_s=3.0), **ADAPTIVE)
    with bench.sender as sender:
        await sender.send(batch(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.producer.run, bench.intake)
        bench.producer.last_put_at(2.0)
    assert (trio.current_time(), bench.claims) == (3.0, [Claim(TRADES, 1, 1)])

    late = Bench(FakeKinesis([refuse(THROTTLED)] * 9), **ADAPTIVE, retry=Retry(initial_s=1.0))
    with late.sender as sender:
        await sender.send(batch(1, 2))
    async with trio.open_nursery() as nursery:
        await nursery.start(late.producer.run, late.intake)
        late.producer.last_put_at(trio.current_time() + 5.0)
    assert (trio.current_time(), late.claims) == (8.0, [])
    assert late.sample("records_abandoned_total", reason="out_of_time") == 2


async def test_after_the_last_moment_nothing_starts_though_the_input_goes_on(autojump_clock: MockClock) -> None:
    """The sources may take longer to close than puts may start."""
    bench = Bench(FakeKinesis(), **ADAPTIVE)
    bench.producer.last_put_at(1.0)
    async with bench.running() as sender:
        await trio.sleep(2.0)
        await sender.send(batch(1))
        await trio.sleep(2.0)
    assert bench.kinesis.puts == []
    assert bench.sample("records_abandoned_total", reason="out_of_time") == 1


async def test_an_open_breaker_is_not_waited_for_at_the_end(autojump_clock: MockClock) -> None:
    """The records belong to the next task."""
    bench = Bench(
        FakeKinesis(always=UNAVAILABLE), **ADAPTIVE, circuit_breaker=CircuitBreakerLimits(failure_threshold=1)
    )
    async with bench.running() as sender:
        await sender.send(batch(1))
        await trio.sleep(1.0)
    assert trio.current_time() == 1.0
    assert bench.sample("records_abandoned_total", reason="breaker_open") == 1


NARROW = 0.004  # of what a shard takes: 4 entries a second
LOWER, UPPER = (
    ShardInfo(str(index), None, None, index << 127, (index + 1 << 127) - 1, closed=False) for index in range(2)
)


async def test_a_hot_shard_holds_up_its_own_lanes_alone(autojump_clock: MockClock) -> None:
    """What exceeds its budget waits before the call and gathers; the other shard's lanes do not notice."""
    bench = Bench(FakeKinesis(shards=2), **ADAPTIVE, shard_budget_share=NARROW, blob_bytes=1_000)
    bench.producer.learn_shards([LOWER, UPPER])
    async with bench.running() as sender:
        for number in range(6):
            await sender.send(batch(number, key="BTCUSDT"))
            await sender.send(batch(number, key="ETHUSDT"))
            await trio.sleep(0.001)
        assert bench.sample("kinesis_lanes_waiting") == 2
        await sender.send(batch(6, key="BTCUSDT"))
        await trio.sleep(0.5)
        await sender.send(batch(7, key="ETHUSDT"))
    by_time = {
        symbol: [
            round(put.at_s, 3)
            for put in bench.kinesis.puts
            for entry in put.entries
            if shard_of(entry, 2) == (symbol == "BTCUSDT")
        ]
        for symbol in ("BTCUSDT", "ETHUSDT")
    }
    assert by_time["BTCUSDT"] == [0.0, 0.001, 0.002, 0.003, 0.25]
    assert by_time["ETHUSDT"] == [0.0, 0.001, 0.002, 0.003, 0.25, 0.506]
    assert stored(bench) == list(range(7))
    assert (bench.sample("kinesis_shards"), bench.sample("kinesis_lanes_waiting")) == (2, 0)


class RealShards:
    """Throttles entries as shards do that take `share` of what real ones take."""

    def __init__(self, share: float, shards: int) -> None:
        self.limits = [ShardLimit(share) for _ in range(shards)]
        self.throttled = 0

    def __call__(self, entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        limits = [self.limits[shard_of(entry, len(self.limits))] for entry in entries]
        now = trio.current_time()
        answers = [
            None if limit.admits(len(entry.data) + len(entry.partition_key), now) else THROTTLED
            for limit, entry in zip(limits, entries, strict=True)
        ]
        self.throttled += sum(answer is not None for answer in answers)
        return answers


@pytest.mark.parametrize("aggregation", ["kpl", "none"])
async def test_what_is_budgeted_is_hardly_ever_throttled(aggregation: str, autojump_clock: MockClock) -> None:
    """Twice what the shards take for ten seconds: with their map not one refusal, without it many."""
    throttled: dict[bool, int] = {}
    for is_known in (True, False):
        shards = RealShards(0.02, 2)
        bench = Bench(
            FakeKinesis(always=shards, shards=2, latency_s=0.02),
            **ADAPTIVE,
            aggregation=aggregation,
            blob_bytes=1_000,
            shard_budget_share=0.9 * 0.02,
        )
        if is_known:
            bench.producer.learn_shards([LOWER, UPPER])
        async with bench.running() as sender:
            for number in range(100):
                for key in ("BTCUSDT", "ETHUSDT"):
                    await sender.send(
                        batch(4 * number, 4 * number + 1, 4 * number + 2, 4 * number + 3, key=key, size=1000)
                    )
                await trio.sleep(0.1)
        assert sorted(stored(bench)) == sorted(stored(bench, "ETHUSDT")) == list(range(400))
        throttled[is_known] = shards.throttled
    assert throttled[True] == 0
    assert throttled[False] > 50


async def test_a_stop_does_not_wait_for_budgets(autojump_clock: MockClock) -> None:
    """What there was no room for by the last moment is counted and left unclaimed, as with a Kinesis that is away."""
    bench = Bench(FakeKinesis(shards=2), **ADAPTIVE, shard_budget_share=NARROW, blob_bytes=1_000)
    bench.producer.learn_shards([LOWER, UPPER])
    with bench.sender as sender:
        await sender.send(batch(*range(20), size=900))
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.producer.run, bench.intake)
        bench.producer.last_put_at(2.0)
    assert trio.current_time() == 2.0
    assert [round(at_s, 2) for at_s in bench.kinesis.times] == [
        0.0,
        0.0,
        0.0,
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        1.25,
        1.5,
        1.75,
    ]
    assert bench.claims == [Claim(TRADES, number, number) for number in range(11)]
    assert bench.sample("records_abandoned_total", reason="out_of_time") == 9


async def test_a_shard_that_is_not_on_the_map_is_told(autojump_clock: MockClock) -> None:
    """Once; until then the old budgets hold, and with the new map the new ones do."""
    bench = Bench(FakeKinesis(shards=2), **ADAPTIVE, shard_budget_share=NARROW, blob_bytes=1_000)
    told: list[float] = []

    async def listen() -> None:
        while True:
            await bench.producer.wait_unknown_shard()
            told.append(trio.current_time())
            bench.producer.learn_shards([LOWER._replace(closed=True), LOWER._replace(shard_id="2"), UPPER])

    bench.producer.learn_shards([LOWER])
    async with bench.running() as sender, trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await sender.send(batch(1, key="ETHUSDT"))
        await trio.sleep(1)
        for number in range(2, 8):
            await sender.send(batch(number, key="BTCUSDT"))
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert told == [1.0]
    assert [round(at_s, 3) for at_s in bench.kinesis.times] == [0.0, 1.0, 1.01, 1.02, 1.03, 1.04, 1.26]


async def test_a_key_that_outgrows_its_shard_is_told_once(autojump_clock: MockClock) -> None:
    """In the log, with what helps."""
    bench = Bench(FakeKinesis(shards=2), **ADAPTIVE, shard_budget_share=0.002, blob_bytes=1_000)
    bench.producer.learn_shards([LOWER, UPPER])
    with capture_logs() as logs:
        async with bench.running() as sender:
            for number in range(200):
                await sender.send(batch(number, key="BTCUSDT", size=900))
                await trio.sleep(0.5)
    [line] = [line for line in logs if line["event"] == "hot_key"]
    assert (line["key"], line["shard"]) == ("BTCUSDT", "1")
    assert "spread" in line["advice"]
    assert bench.fact.hot_keys == {"BTCUSDT": "1"}


async def test_cancelled_it_still_delivers_what_it_holds_and_what_waits(autojump_clock: MockClock) -> None:
    """The farewell is shielded and bounded; a put that was cancelled half-way is sent again."""
    bench = Bench(FakeKinesis(latency_s=1.0), **ADAPTIVE, lanes=1, held_max_bytes=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.producer.run, bench.intake)
        await bench.sender.send(batch(1))
        await wait_all_tasks_blocked()
        for number in (2, 3):
            await bench.sender.send(batch(number))
        assert bench.intake.fill()[0] == 2
        nursery.cancel_scope.cancel()
    assert stored(bench) == [1, 2, 3]
    assert bench.claims == [Claim(TRADES, 1, 1), Claim(TRADES, 2, 3)]
    assert bench.sample("kinesis_possible_duplicates_total") == 1
    assert trio.current_time() == 2.0


async def test_a_bug_ends_the_run_but_not_before_what_is_held_is_delivered(autojump_clock: MockClock) -> None:
    """It is raised, whatever else still went well."""

    def stumble(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        raise ZeroDivisionError

    bench = Bench(FakeKinesis([stumble]), **ADAPTIVE)
    await bench.sender.send(batch(1))
    with pytest.RaisesGroup(ZeroDivisionError):
        await bench.producer.run(bench.intake)
    assert (stored(bench), bench.claims) == ([1], [Claim(TRADES, 1, 1)])
    with pytest.raises(trio.BrokenResourceError):
        await bench.sender.send(batch(2))


async def test_what_a_bug_leaves_behind_is_counted(autojump_clock: MockClock) -> None:
    """Even when it strikes again in the farewell."""

    def stumble(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        raise ZeroDivisionError

    bench = Bench(FakeKinesis(always=stumble), **ADAPTIVE)
    await bench.sender.send(batch(1))
    with pytest.RaisesGroup(ZeroDivisionError):
        await bench.producer.run(bench.intake)
    assert bench.sample("records_abandoned_total", reason="out_of_time") == 1


async def test_the_farewell_ends_in_time(autojump_clock: MockClock) -> None:
    """What it could not deliver is counted, unclaimed."""
    bench = Bench(FakeKinesis(latency_s=100.0), **ADAPTIVE, farewell_s=4.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.producer.run, bench.intake)
        await bench.sender.send(batch(1))
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 5.0
    assert bench.claims == []
    assert bench.sample("records_abandoned_total", reason="out_of_time") == 1


async def test_a_letter_that_is_cut_off_is_written_in_the_farewell(autojump_clock: MockClock) -> None:
    """The hole never goes out before its letter is written."""
    bench = Bench(FakeKinesis(always=invalid_with(b"1;")), **ADAPTIVE)
    write = bench.dead_letters.write
    slow = trio.Event()

    async def write_slowly(letters: Sequence[DeadLetter]) -> None:
        if not slow.is_set():
            slow.set()
            await trio.sleep_forever()
        await write(letters)

    bench.dead_letters.write = write_slowly  # type: ignore[method-assign]  # the first letter hangs
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.producer.run, bench.intake)
        await bench.sender.send(batch(1))
        await slow.wait()
        nursery.cancel_scope.cancel()
    assert [letter.raw for letter in bench.dead_letters.letters] == [b"1;"]
    assert bench.kinesis.stored_by_key() == {"BTCUSDT": [b"hole poison 1-1"]}


@pytest.mark.parametrize(("kind", "event_type"), [("trade", "trade"), ("depth", "depth"), ("kline_1m", "kline")])
def test_a_claim_knows_its_event_type(kind: str, event_type: str) -> None:
    """By the kind of its subscription."""
    assert event_type_of(Claim(Subscription("BTCUSDT", kind), 1, 1)) == event_type


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), aggregation=st.sampled_from(["kpl", "none"]))
def test_whatever_kinesis_does_everything_lands_and_only_that_is_claimed(seed: int, aggregation: str) -> None:
    """Random failures of entries and calls, lost answers, latency: aggregated, no later record ever overtakes.

    Nothing is claimed at any moment before Kinesis has said that it has it.
    """
    rng = Random(seed)
    numbers = {key: list(range(rng.randrange(40))) for key in "ABCD"}

    def misbehave(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        fate = rng.random()
        if fate < 0.15:
            raise rng.choice([UNAVAILABLE, OVERALL_THROTTLE, NO_STREAM])
        return [rng.choice([THROTTLED, INTERNAL]) if rng.random() < 0.2 else None for _ in entries]

    async def play() -> Bench:
        steps: list[Any] = [misbehave if rng.random() < 0.9 else LandedThenFailed(UNAVAILABLE) for _ in range(60)]
        kinesis = Witness(steps, latency_s=0.05, shards=2, rng=rng)
        bench = Bench(
            kinesis,
            aggregation=aggregation,
            blob_bytes=1000,
            lanes=rng.choice([1, 4]),
            batch=BatchLimits(flush="adaptive", max_records=6),
            circuit_breaker=CircuitBreakerLimits(failure_threshold=1000),  # open at the end, it would not be waited for
        )
        left = {key: list(values) for key, values in numbers.items()}
        async with bench.running() as sender:
            while left:
                key = rng.choice(sorted(left))
                share = [left[key].pop(0) for _ in range(min(len(left[key]), rng.randrange(1, 9)))]
                await sender.send(batch(*share, key=key, size=rng.choice([1, 300])))
                if not left[key]:
                    del left[key]
                await trio.sleep(rng.choice([0.0, 0.1]))
        return bench

    bench = trio.run(partial(play), clock=MockClock(autojump_threshold=0.0))
    for key, expected in numbers.items():
        order = stored(bench, key)
        assert sorted(set(order)) == expected
        if aggregation == "kpl":
            assert list(dict.fromkeys(order)) == expected
    claimed = sorted(
        (claim.subscription.symbol, n) for claim in bench.claims for n in range(claim.first, claim.last + 1)
    )
    assert claimed == sorted((key, number) for key, expected in numbers.items() for number in expected)
    assert bench.ahead == []
    assert bench.fact.held_bytes == 0
