"""Encoded records in, acknowledged claims out: forms calls of lanes, puts them, sends again only the part that failed.

At-least-once, in order per partition key (`core/lanes.py` says how far), bounded in memory: beyond that records go to
disk, if there is a spool. While it holds `held_max_bytes` and the disk takes no more it does not receive, so the
channels fill and the reader stalls. Nothing is claimed before Kinesis acknowledged it. What can never be delivered goes
to the dead letter and leaves a `poison` hole in its place; what is still held when time is up stays on disk for the
next task, or else is counted and left unclaimed, so that the next task fetches it.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog
import trio

from ingestor.core import kpl
from ingestor.core.backoff import Backoff
from ingestor.core.circuit_breaker import CircuitBreaker
from ingestor.core.delivery import judge, retry_reason
from ingestor.core.errors import SinkError
from ingestor.core.lanes import LaneLimits, Lanes, arrivals_of, claims_of
from ingestor.core.model import Claim, DeadLetter, EncodedBatch, EncodedRecord, EntryFailure, PutEntry
from ingestor.core.shards import HOT_KEY_ADVICE
from ingestor.core.wording import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from ingestor.channels import BatchReceiver
    from ingestor.config import Kinesis
    from ingestor.core.claims import Intervals
    from ingestor.core.health import SinkFact
    from ingestor.core.lanes import Parcel
    from ingestor.core.model import EntryResult, EventType, HoleReason, PoisonReason, Subscription
    from ingestor.core.shards import ShardInfo
    from ingestor.dead_letter import DeadLetterSink
    from ingestor.metrics import Metrics, Stage
    from ingestor.spool import OpenSpool, Spool

log = structlog.get_logger()

MAX_RECORD_BYTES = 1_048_576  # data and partition key, unless the stream was opted in for more (facts/aws.md §1.1)
# Two overlap the network wait of one call with the work of the other; boto3 holds the GIL while it works, so more only
# make the calls smaller and the loop slower (architecture.md §9). One that is out for longer works no more: it waits,
# perhaps for its timeout, and idle lanes do not wait with it.
CALLS_AT_WORK = 2
AT_WORK_S = 0.5
CALLS_IN_FLIGHT = 8
BREAKER_VALUES = {"closed": 0, "half_open": 1, "open": 2}


class Sink(Protocol):
    """Where entries are put: `aws.KinesisSink`."""

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryResult]:
        """Put entries in one call; the answer is aligned with them. Raises `SinkError`."""
        ...


class Hopeless(NamedTuple):
    """A parcel that will never be sent again, and why."""

    parcel: Parcel
    reason: PoisonReason
    detail: str


class KinesisProducer:
    """The last task of the line; one run, then it is used up."""

    def __init__(
        self,
        settings: Kinesis,
        sink: Sink,
        *,
        dead_letters: DeadLetterSink,
        encode_hole: Callable[[Claim, HoleReason], EncodedRecord],
        on_acknowledged: Callable[[Sequence[Claim]], None],
        on_given_up: Callable[[Sequence[EncodedRecord]], None] | None = None,
        metrics: Metrics,
        fact: SinkFact,
        wall_ns: Callable[[], int],
        jitter: Random | None,
        held_max_bytes: int,
        farewell_s: float,
        open_spool: OpenSpool | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        """`on_given_up` is told which records will never be delivered, once their holes are in place.

        `farewell_s` bounds what is still done for held records when the task is cancelled before its input ended.

        Without `open_spool` there is no disk.
        """
        self._sink = sink
        self._dead_letters = dead_letters
        self._encode_hole = encode_hole
        self._on_acknowledged = on_acknowledged
        self._on_given_up = on_given_up
        self._metrics = metrics
        self._fact = fact
        self._wall_ns = wall_ns
        self._held_max_bytes = held_max_bytes
        self._farewell_s = farewell_s
        self._max_record_bytes = max_record_bytes
        self._retry = settings.retry

        def new_delays() -> Backoff:
            retry = settings.retry
            return Backoff(initial_s=retry.initial_s, max_s=retry.max_s, multiplier=2.0, jitter=jitter)

        self._lanes = Lanes(
            settings.lanes,
            LaneLimits(
                max_entries=settings.batch.max_records,
                max_bytes=settings.batch.max_bytes,
                blob_bytes=settings.blob_bytes,
                flush_interval_s=settings.batch.flush_interval_s,
                adaptive=settings.batch.flush == "adaptive",
                shard_share=settings.shard_budget_share,
            ),
            new_delays,
            kpl.aggregate if settings.aggregation == "kpl" else None,
        )
        self._breaker = CircuitBreaker(
            settings.circuit_breaker.failure_threshold, settings.circuit_breaker.reset_timeout_s
        )
        self._spool = None if open_spool is None else open_spool(self._lanes, memory_max_bytes=held_max_bytes)
        self._delays = new_delays()
        self._paused_until = -math.inf
        self._calls: list[float] = []  # when those that are out began
        self._ended = False
        self._last_put_at = math.inf
        self._waiting = trio.CancelScope()
        self._unknown_shard = trio.Event()
        metrics.watch_shards(lambda: (len(self._lanes.shards), self._lanes.waiting_for_shards(trio.current_time())))

    def learn_shards(self, shards: Sequence[ShardInfo]) -> None:
        """Take over all shards of the stream, and budget what each of them is sent; none at all means no budget."""
        self._lanes.learn(shards)
        self._fact.is_found |= bool(shards)
        self._unknown_shard = trio.Event()
        self._wake()

    async def wait_unknown_shard(self) -> None:
        """Wait until an answer names a shard that was not among those learned: the stream has another shape by now."""
        await self._unknown_shard.wait()

    def last_put_at(self, moment: float) -> None:
        """Start no put after `moment` (of the loop's clock), so that a slow one still ends within the grace."""
        self._last_put_at = moment
        self._wake()

    async def take_over(self) -> dict[Subscription, Intervals]:
        """Take over what earlier tasks left on disk, to be delivered first; returns which ids that is.

        Called before `run`, if at all.
        """
        held = {} if self._spool is None else await self._spool.open()
        self._note_held()
        return held

    async def run(
        self,
        intake: BatchReceiver[EncodedBatch],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Deliver until every sender has hung up and nothing is held, or no put may start any more.

        Cancelled or broken before that, it takes what is left in the channel and has `farewell_s` to deliver it. In any
        case it has as long again to leave the rest on disk.
        """
        with intake, ExitStack() as at_the_end:
            at_the_end.callback(self._report_end)
            task_status.started()
            try:
                await self._pump(intake)
            finally:
                if not self._ended:
                    with trio.move_on_after(self._farewell_s, shield=True):
                        self._ended = True
                        self._admit_waiting(intake, to_the_end=True)
                        await self._pump(intake)
                with trio.move_on_after(self._farewell_s, shield=True):  # its own, for what could not be delivered
                    await self._leave()

    async def _pump(self, intake: BatchReceiver[EncodedBatch]) -> None:
        async with trio.open_nursery() as calls:
            while True:
                if self._spool is not None:
                    await self._use_spool(self._spool)
                now = trio.current_time()
                due_at = self._start_calls(calls, now)
                if self._ended and not self._calls and self._is_over(now):
                    break
                if self._spool is not None:
                    due_at = min(due_at, self._spool.due_at)
                batch: EncodedBatch | None = None
                with trio.CancelScope(deadline=due_at) as self._waiting:
                    batch = await self._receive(intake)
                if batch is not None:
                    self._admit(batch, trio.current_time())
                    self._admit_waiting(intake)

    async def _use_spool(self, spool: Spool) -> None:
        spool.is_sink_away = self._breaker.state != "closed"
        await spool.work()
        self._note_held()

    async def _receive(self, intake: BatchReceiver[EncodedBatch]) -> EncodedBatch | None:
        """Wait for a batch, as long as there is room for one; a call that returns ends the wait in any case."""
        if self._ended or not self._has_room():
            await trio.sleep_forever()
        try:
            return await intake.receive()
        except trio.EndOfChannel:
            self._ended = True
            return None

    def _has_room(self) -> bool:
        return self._lanes.held_bytes < self._held_max_bytes if self._spool is None else self._spool.has_room

    def _admit(self, batch: EncodedBatch, now: float) -> None:
        if self._spool is None:
            self._lanes.add(batch.records, batch.received_s, now)
        else:
            self._spool.admit(batch, now)

    def _admit_waiting(self, intake: BatchReceiver[EncodedBatch], *, to_the_end: bool = False) -> None:
        """Take what is in the channel already, as far as there is room: one look at what can start serves it all."""
        now = trio.current_time()
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while to_the_end or self._has_room():
                self._admit(intake.receive_nowait(), now)
        self._note_held()

    def _start_calls(self, calls: trio.Nursery, now: float) -> float:
        """Start what can start now; return when the next one can, unless a batch or a call comes before."""
        while (due_at := self._due_at(now)) <= now:
            self._breaker.start()
            self._note_breaker()
            self._calls.append(now)
            calls.start_soon(self._carry, self._lanes.take(now, at_once=self._ended), now)
            self._note_hot_keys()
        return due_at

    def _due_at(self, now: float) -> float:
        if len(self._calls) == CALLS_IN_FLIGHT or now >= self._last_put_at:
            return math.inf
        due_at = max(self._lanes.due_at(now, at_once=self._ended), self._breaker.allows_at, self._paused_until)
        if len(self._calls) >= CALLS_AT_WORK:
            due_at = max(due_at, self._calls[-CALLS_AT_WORK] + AT_WORK_S)
        return min(due_at, self._last_put_at) if self._ended else due_at

    def _is_over(self, now: float) -> bool:
        """Nothing is held, or nothing more may be tried: an open breaker is not waited for at the end."""
        is_empty = not self._lanes.held_bytes and (self._spool is None or self._spool.is_drained)
        return is_empty or now >= self._last_put_at or self._breaker.state == "open"

    async def _carry(self, call: list[Parcel], began_s: float) -> None:
        """Bring one call to its end; cancelled half-way, its entries stay with their lanes, unclaimed."""
        try:
            too_large = [parcel for parcel in call if parcel.size_bytes > self._max_record_bytes]
            hopeless = [Hopeless(parcel, "too_large", f"{parcel.size_bytes} bytes") for parcel in too_large]
            if fitting := [parcel for parcel in call if parcel not in too_large]:
                hopeless += await self._put(fitting)
            else:
                self._breaker.withdraw()  # no call, so no probe
            if hopeless:
                await self._give_up(hopeless)
        finally:
            self._calls.remove(began_s)
            self._lanes.release(call)
            if self._spool is not None:
                self._spool.settle({parcel.lane.index for parcel in call})
            self._note_held()
            self._wake()

    async def _put(self, call: list[Parcel]) -> list[Hopeless]:
        self._observe("put", [parcel for parcel in call if parcel.attempts == 1])
        self._metrics.batch_size.observe(sum(len(parcel.records) for parcel in call))
        self._metrics.possible_duplicates.inc(sum(len(p.records) for p in call if p.may_have_landed))
        try:
            answer = await self._sink.put([parcel.entry for parcel in call])
            if len(answer) != len(call):
                text = f"{len(answer)} results for {len(call)} entries"
                raise SinkError("transient", "MisalignedAnswer", text, may_have_landed=True)  # noqa: TRY301 - one path
        except SinkError as error:
            return self._take_failure(call, error)
        except BaseException:
            self._breaker.withdraw()
            for parcel in call:
                parcel.may_have_landed = True
            raise
        return self._take_answer(call, answer)

    def _take_answer(self, call: list[Parcel], answer: Sequence[EntryResult]) -> list[Hopeless]:
        now = trio.current_time()
        self._recover(configuration_error_in(answer))
        self._note_shards({result for result in answer if isinstance(result, str)})
        hopeless: list[Hopeless] = []
        verdicts = []
        for parcel, result in zip(call, answer, strict=True):
            failure = result if isinstance(result, EntryFailure) else None
            reason = None if failure is None else retry_reason(failure)
            # A hole is sent for ever: given up too, its ids would be missing and nobody would know. No code that speaks
            # of one entry is about what is in a hole; a call that is refused because of it still ends it.
            parcel.refusals += reason == "other" and not parcel.declares
            verdict = judge(failure, parcel.refusals, self._retry.max_attempts)
            verdicts.append(verdict)
            if failure is not None and verdict == "never":
                hopeless.append(Hopeless(parcel, "gave_up", redacted(f"{failure.code}: {failure.text}")))
            elif reason is not None:
                self._metrics.entries_retried.labels(reason).inc()
        delivered = [parcel for parcel, verdict in zip(call, verdicts, strict=True) if verdict == "delivered"]
        self._metrics.puts.labels("accepted" if len(delivered) == len(call) else "partial").inc()
        self._lanes.settle(call, verdicts, now)
        if delivered:
            self._acknowledge(delivered, now)
        return hopeless

    def _acknowledge(self, delivered: list[Parcel], now: float) -> None:
        self._fact.last_success_s = now
        self._metrics.records_delivered.inc(sum(len(parcel.records) for parcel in delivered))
        self._metrics.bytes_delivered.inc(sum(parcel.size_bytes for parcel in delivered))
        self._observe("acknowledged", delivered)
        if claims := claims_of(delivered):
            self._on_acknowledged(claims)

    def _take_failure(self, call: list[Parcel], error: SinkError) -> list[Hopeless]:
        """Answer the failure of a whole call: narrow a poison down, wait for everything else (facts/aws.md §1.6)."""
        now = trio.current_time()
        self._metrics.puts.labels(error.failure).inc()
        self._fact.last_failure_s = now
        for parcel in call:
            parcel.may_have_landed |= error.may_have_landed
        if error.failure == "poison":
            self._recover()  # the service answers; it is the records that are refused
            refused = self._lanes.refuse(call)
            return [] if refused is None else [Hopeless(refused, "rejected", str(error))]
        if error.failure != "configuration" and self._breaker.state == "closed":
            log.warning("kinesis_call_failed", failure=error.failure, error=str(error))
        self._note_configuration(str(error) if error.failure == "configuration" else None)
        self._breaker.fail(now)
        delay_s = self._retry.max_s if error.failure == "configuration" else self._delays.next_delay()
        self._paused_until = now + delay_s
        self._note_breaker()
        return []

    def _recover(self, configuration_error: str | None = None) -> None:
        """Note that the service answers, perhaps to complain of the configuration."""
        if self._breaker.state != "closed":
            log.info("kinesis_is_back")
        self._breaker.succeed()
        self._delays.reset()
        self._paused_until = -math.inf
        self._note_configuration(configuration_error)
        self._note_breaker()

    def _note_configuration(self, error: str | None) -> None:
        if error is not None and self._fact.configuration_error is None:
            log.error("kinesis_misconfigured", error=error)
        self._fact.configuration_error = error

    async def _give_up(self, hopeless: list[Hopeless]) -> None:
        """Write dead letters, and only then put the holes that declare them into their places."""
        await self._dead_letters.write([letter for each in hopeless for letter in self._letters(each)])
        for parcel, reason, detail in hopeless:
            holes = [] if parcel.declares else self._holes(parcel)
            log.error("records_given_up", reason=reason, detail=detail, records=len(parcel.records), holes=len(holes))
            self._lanes.replace(parcel, holes)
            if self._on_given_up is not None:
                self._on_given_up(parcel.records)

    def _letters(self, hopeless: Hopeless) -> list[DeadLetter]:
        parcel = hopeless.parcel
        at_ms = self._wall_ns() // 1_000_000
        return [
            DeadLetter(
                reason=hopeless.reason,
                detail=hopeless.detail,
                raw=record.data,
                at_ms=at_ms,
                symbol=None if record.claim is None else record.claim.subscription.symbol,
                event_type=None if record.claim is None else event_type_of(record.claim),
                partition_key=record.partition_key,
                claim=record.claim,
                attempts=parcel.attempts,
                may_have_landed=parcel.may_have_landed,
            )
            for record in parcel.records
        ]

    def _holes(self, parcel: Parcel) -> list[EncodedRecord]:
        """Declare what a given-up parcel claimed, under the keys of the records it stands for."""
        keys = {
            record.claim.subscription: record.partition_key for record in parcel.records if record.claim is not None
        }
        holes = []
        for claim in claims_of([parcel]):
            data = self._encode_hole(claim, "poison").data
            holes.append(EncodedRecord(keys[claim.subscription], data, claim))
        return holes

    def _observe(self, stage: Stage, parcels: list[Parcel]) -> None:
        now = trio.current_time()
        for received_s, records in arrivals_of(parcels).items():
            self._metrics.latency.observe(stage, now - received_s, records)

    def _note_held(self) -> None:
        held_bytes, spooled_bytes = self._lanes.held_bytes, 0
        if self._spool is not None:
            held_bytes += self._spool.held_bytes
            spooled_bytes = self._spool.spooled_bytes
            self._fact.spool_trouble = self._spool.trouble
            self._metrics.spool_bytes.set(spooled_bytes)
        self._fact.hold(held_bytes, spooled_bytes, trio.current_time())
        self._metrics.held_bytes.set(held_bytes)

    def _note_shards(self, shard_ids: set[str]) -> None:
        if not all(map(self._lanes.shards.knows, shard_ids)):
            self._unknown_shard.set()

    def _note_hot_keys(self) -> None:
        """Say once which key one shard is too small for: nothing is lost, but it falls behind."""
        told = self._fact.hot_keys
        for key, shard_id in self._lanes.hot_keys.items() - told.items():
            log.warning("hot_key", key=key, shard=shard_id, advice=HOT_KEY_ADVICE)
        told |= self._lanes.hot_keys

    def _note_breaker(self) -> None:
        if self._fact.breaker != self._breaker.state:
            log.info("kinesis_breaker", state=self._breaker.state)
        self._fact.breaker = self._breaker.state
        self._metrics.breaker_state.set(BREAKER_VALUES[self._breaker.state])

    def _wake(self) -> None:
        """Have the pump look again at what can start."""
        self._waiting.deadline = -math.inf

    async def _leave(self) -> None:
        """Have what is left written to disk, if there is one."""
        if self._spool is not None:
            await self._spool.leave()
            self._note_held()

    def _report_end(self) -> None:
        """Count what is let go here: unclaimed, so the next task repairs it."""
        left = self._lanes.held_records if self._spool is None else self._spool.unsaved_records
        if left:
            reason = "breaker_open" if self._breaker.state == "open" else "out_of_time"
            self._metrics.abandoned.labels(reason).inc(left)
            log.warning("records_abandoned", reason=reason, records=left)
        spooled_bytes = self._fact.spooled_bytes
        log.info("producer_ended", calls=dict(self._lanes.triggers), abandoned=left, spooled_bytes=spooled_bytes)


def configuration_error_in(answer: Sequence[EntryResult]) -> str | None:
    """Return what an answer says against the configuration, None for nothing."""
    for result in answer:
        if isinstance(result, EntryFailure) and retry_reason(result) == "configuration":
            return redacted(f"{result.code}: {result.text}")
    return None


def event_type_of(claim: Claim) -> EventType:
    """Return the event type of the records that a claim stands for: `kline` for `kline_1m`."""
    kind = claim.subscription.kind
    return "trade" if kind == "trade" else "depth" if kind == "depth" else "kline"
