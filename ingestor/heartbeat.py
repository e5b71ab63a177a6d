"""Writes heartbeats, which are also the checkpoint, and reads those of earlier tasks back (completeness.md §1, §3).

Every interval the acknowledged coverage goes to the heartbeat stream. A beat that fails is not sent again: the next
one says more. A part that was refused alone is, as it is by then: a stream that is always throttled would otherwise
never take a whole beat of many parts. Data does not wait for beats, with one exception: the first record of a
subscription waits until its origin is written, so that a task killed in its first second leaves a trace for the next.

The partition key of part 3 is `<instance>/3`: coverage only grows and keeps its order, so a record says all that an
earlier one of the same key said, and whoever reads a page of them decodes the last of each key. A beat about some
subscriptions alone has keys of its own, and so has the last beat: one that a stop did not wait for may land behind it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol
from urllib.parse import urlsplit

import msgspec
import structlog
import trio

from ingestor.core.backoff import Backoff
from ingestor.core.errors import DecodeError, SinkError
from ingestor.core.model import EntryFailure, PutEntry
from ingestor.core.resume import Beat, Identity, beat_from_avro, beat_to_avro, carried, split
from ingestor.reader import since

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingestor.config import Config
    from ingestor.core.claims import Coverage
    from ingestor.core.health import HealthBoard
    from ingestor.core.intake import Begin
    from ingestor.core.model import EntryResult, Subscription
    from ingestor.core.resume import Resume, Resumed, Window
    from ingestor.metrics import Metrics
    from ingestor.reader import ShardPage, Start, StreamReader

log = structlog.get_logger()

ORIGIN_LIMIT_S: Final = 10.0  # the longest that data waits for its origin to be written
LARGEST_PART_BYTES: Final = 262_144  # to be read: ours are at most half of it, and a larger one would stall the loop
PARTS_PER_PUT: Final = 40  # of at most 80 kB: below the 5 MB that a call may carry
RETRY_S: Final = 0.2
TICK_S: Final = 1.0
HOT_KEYS: Final = "hot_keys"  # among the components: partition keys that are too much for one shard, between commas


class Sink(Protocol):
    """Where beats go; `aws.KinesisSink` of the heartbeat stream fits."""

    async def put(self, entries: Sequence[PutEntry]) -> Sequence[EntryResult]:
        """Send one call; raises `SinkError`."""
        ...


def identity_of(config: Config) -> Identity:
    """Say whose ids the beats of a service with this configuration speak of."""
    data_stream = f"{config.kinesis.region}/{config.kinesis.stream_name}"
    host = urlsplit(config.binance.rest_url).netloc
    return Identity(config.service.name, config.service.environment, host, data_stream)


class Author(msgspec.Struct, frozen=True):
    """Who writes: whose ids, and which run of which version."""

    identity: Identity
    instance: str
    version: str
    started_ms: int


class HeartbeatWriter:
    """Writes what is acknowledged, every `interval_s`; `coverage` belongs to the line, this only begins its entries.

    `counters` and `components` are read for every beat. `event_ms` tells the newest venue time seen of a subscription
    (0: none), by which a later task tells an id restart from a duplicate. `encode` is `serializer.encode_heartbeat`.
    """

    def __init__(
        self,
        sink: Sink,
        encode: Callable[[Mapping[str, Any]], bytes],
        *,
        author: Author,
        coverage: Coverage,
        interval_s: float,
        counters: Callable[[], Mapping[str, int]],
        components: Callable[[], Mapping[str, str]],
        event_ms: Callable[[Subscription], int],
        board: HealthBoard,
        metrics: Metrics,
        wall_ns: Callable[[], int],
    ) -> None:
        self._sink = sink
        self._encode = encode
        self._author = author
        self._coverage = coverage
        self._interval_s = interval_s
        self._counters = counters
        self._components = components
        self._event_ms = event_ms
        self._board = board
        self._metrics = metrics
        self._wall_ns = wall_ns
        self._number = 0
        self._is_failing = False
        self._origins: dict[Subscription, int] = {}  # begun and not written yet, and at which turn
        self._turns = 0
        self._refused: set[Subscription] = set()  # in a part of the newest beat that was not accepted
        self._origins_due_s = 0.0
        self._asked = trio.Event()
        self._written = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write beats until cancelled; the last one is `final_beat`."""
        task_status.started()
        backoff = Backoff(initial_s=RETRY_S, max_s=self._interval_s, multiplier=2.0, jitter=None)
        due_s = trio.current_time()
        while True:
            is_due = trio.current_time() >= due_s
            due_s = trio.current_time() + self._interval_s if is_due else due_s
            is_written = await (self._beat() if is_due else self._beat(self._unwritten()))
            if is_written:
                backoff.reset()
            else:
                await trio.sleep(backoff.next_delay())
            await self._pause_until(due_s)

    async def admit(self, begins: Sequence[Begin]) -> None:
        """Begin to count subscriptions and wait until that is written; called before their first records go on.

        Waits 10 s at most, counted from the first origin that could not be written: after that data goes first.
        """
        for begin in begins:
            if begin.is_restart:
                self._coverage.restart(begin.subscription, begin.event_ms)
            else:
                self._coverage.originate(begin.subscription, begin.first_id, begin.event_ms)
        if not self._origins:
            self._origins_due_s = trio.current_time() + ORIGIN_LIMIT_S
        awaited = {begin.subscription for begin in begins}
        self._turns += 1
        self._origins |= dict.fromkeys(awaited, self._turns)
        self._asked.set()
        with trio.move_on_at(self._origins_due_s):
            while not self._origins.keys().isdisjoint(awaited):
                await self._written.wait()

    async def final_beat(self, deadline_s: float) -> bool:
        """Write the last beat of a clean stop, once `run` has ended; return whether it was written by `deadline_s`."""
        backoff = Backoff(initial_s=RETRY_S, max_s=1.0, multiplier=2.0, jitter=None)
        self._refused.clear()
        with trio.move_on_at(deadline_s):
            while True:
                if await self._beat(list(self._refused) or None, final=True):
                    return True
                await trio.sleep(backoff.next_delay())
        return False

    def _unwritten(self) -> list[Subscription]:
        """Return what is not to wait for the next interval."""
        return list(self._origins.keys() | self._refused)

    async def _pause_until(self, due_s: float) -> None:
        with trio.move_on_at(due_s):
            while not self._unwritten():
                await self._asked.wait()
                self._asked = trio.Event()

    async def _beat(self, names: Sequence[Subscription] | None = None, *, final: bool = False) -> bool:
        """Write one beat about everything, or about `names` alone; return whether all of it was accepted."""
        number, self._number = self._number, self._number + 1
        parts = split(list(self._coverage) if names is None else names)
        beat = f"{number}/" if final or names is not None else ""
        if names is None:
            self._refused.clear()
        is_whole = True
        for start in range(0, len(parts), PARTS_PER_PUT):
            speaking = parts[start : start + PARTS_PER_PUT]
            begun = dict(self._origins)  # what begins from now on is not in it
            entries = []
            for part, of_part in enumerate(speaking, start):
                data = self._encode(beat_to_avro(self._part(of_part, number, part, len(parts), final=final)))
                entries.append(PutEntry(data, f"{self._author.instance}/{beat}{part}", None))
                await trio.lowlevel.checkpoint()  # a part takes milliseconds, and the whole market has many
            answers = await self._put(entries)
            if answers is None:
                return False
            for of_part, is_accepted in zip(speaking, answers, strict=True):
                self._note_part(of_part, begun, is_accepted=is_accepted)
            is_whole = is_whole and all(answers)
        if is_whole:
            self._note_beat()
        return is_whole

    def _part(self, names: Sequence[Subscription], number: int, part: int, parts: int, *, final: bool) -> Beat:
        author, identity = self._author, self._author.identity
        for name in names:
            self._coverage.observe(name, self._event_ms(name))
        return Beat(
            service=identity.service,
            environment=identity.environment,
            rest_host=identity.rest_host,
            data_stream=identity.data_stream,
            instance=author.instance,
            version=author.version,
            started_ms=author.started_ms,
            sent_ms=self._wall_ns() // 1_000_000,
            beat=number,
            part=part,
            parts=parts,
            interval_ms=round(self._interval_s * 1000),
            final=final,
            counters=dict(self._counters()),
            components=dict(self._components()),
            entries=[carried(name, self._coverage[name]) for name in names],
        )

    async def _put(self, entries: Sequence[PutEntry]) -> list[bool] | None:
        """Return which entries were accepted; None if the call failed."""
        try:
            answers = await self._sink.put(entries)
        except SinkError as error:
            self._note_failure(error.code, str(error))
            return None
        refusals = [result for result in answers if isinstance(result, EntryFailure)]
        if refusals:
            self._note_failure(refusals[0].code, refusals[0].text)
        return [not isinstance(result, EntryFailure) for result in answers]

    def _note_part(
        self, names: Sequence[Subscription], begun: Mapping[Subscription, int], *, is_accepted: bool
    ) -> None:
        """Note what is written down, and let go on what waited for that."""
        if not is_accepted:
            self._refused.update(names)
            return
        self._refused.difference_update(names)
        for name in begun.keys() & names:
            if self._origins.get(name) == begun[name]:
                del self._origins[name]
        self._written.set()
        self._written = trio.Event()

    def _note_beat(self) -> None:
        self._metrics.beats.labels("acknowledged").inc()
        if self._refused:
            return
        self._board.heartbeat_acknowledged_s = trio.current_time()
        if self._is_failing:
            self._is_failing = False
            log.info("heartbeat_recovered")

    def _note_failure(self, code: str, text: str) -> None:
        self._metrics.beats.labels("failed").inc()
        if not self._is_failing:  # one line for an outage, not one for every beat
            self._is_failing = True
            log.warning("heartbeat_failed", code=code, error=text)


class ReadBack:
    """Feeds `resume` with the beats of earlier tasks and hands its answers on; errors are retried for ever.

    `reader` is a patient reader of the heartbeat stream; with None only what this task itself carried before counts.
    `decode` is `serializer.decode_heartbeat`, and `started_ms` the wall clock at the start of the search, from which
    its windows count back.
    """

    def __init__(
        self,
        reader: StreamReader | None,
        resume: Resume,
        decode: Callable[[bytes], Mapping[str, Any]],
        *,
        started_ms: int,
        wall_ns: Callable[[], int],
    ) -> None:
        self._reader = reader
        self._resume = resume
        self._decode = decode
        self._started_ms = started_ms
        self._wall_ns = wall_ns
        self._has_complained = False

    async def run(
        self, deliver: Callable[[Resumed], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Search, then follow tasks that still run as long as that can help; returns when everything is answered."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            if self._reader is None:
                self._skip_search()
            else:
                nursery.start_soon(self._search, self._reader)
            while self._resume.is_listening(trio.current_time()):
                self._answer(deliver)
                await trio.sleep(TICK_S)
            nursery.cancel_scope.cancel()
        while not self._resume.is_over:  # subscriptions whose first live record is yet to come
            self._answer(deliver)
            await trio.sleep(TICK_S)
        log.info("resume_over")

    def _skip_search(self) -> None:
        while self._resume.next_window() is not None:
            self._resume.window_read(trio.current_time())

    async def _search(self, reader: StreamReader) -> None:
        """Read the newest window and stay at its end, and meanwhile the older ones."""
        newest = self._resume.next_window()
        if newest is None:
            return
        caught_up = trio.Event()
        follow = partial(reader.read, self._start(newest), self._hear, follow=True, on_caught_up=caught_up.set)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await caught_up.wait()
            self._resume.window_read(trio.current_time())
            while (window := self._resume.next_window()) is not None:
                until_ms = self._started_ms - round(window.to_s * 1000)
                await reader.read(self._start(window), self._hear, until_ms=until_ms)
                self._resume.window_read(trio.current_time())

    def _start(self, window: Window) -> Start:
        return since(self._started_ms - round(window.from_s * 1000))

    async def _hear(self, page: ShardPage) -> None:
        newest = {payload.partition_key: payload for payload in page.payloads}
        for payload in newest.values():
            await trio.lowlevel.checkpoint()  # decoding a part takes milliseconds
            try:
                if len(payload.data) > LARGEST_PART_BYTES:
                    raise DecodeError(f"{len(payload.data)} bytes")  # noqa: TRY301 - one path for all of them
                beat = beat_from_avro(self._decode(payload.data))
            except (DecodeError, msgspec.ValidationError) as error:
                self._complain(error)
                continue
            age_s = max(0.0, self._wall_ns() / 1e9 - payload.arrival_ms / 1e3)
            self._resume.hear(beat, age_s, trio.current_time())

    def _complain(self, error: Exception) -> None:
        if not self._has_complained:  # a foreign record in the stream is no reason for a line a page
            self._has_complained = True
            log.warning("heartbeat_unreadable", error=str(error))

    def _answer(self, deliver: Callable[[Resumed], None]) -> None:
        answers = self._resume.take(trio.current_time())
        for answer in answers:
            deliver(answer)
        if answers:
            log.info(
                "resumed",
                subscriptions=len(answers),
                first_starts=sum(answer.is_first_start for answer in answers),
                id_restarts=sum(answer.is_restarted for answer in answers),
                missing_ids=sum(answer.missing.count() for answer in answers),
            )
