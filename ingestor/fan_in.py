"""The one door into the line for all feeds: what was read at once is decided on by the intake and handed on.

Order is that of arrival, across feeds too. Whoever calls must let a hand-over finish once it has begun (the feed
shields it), because its ids are counted as seen from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from ingestor.channels import BatchSender
    from ingestor.core.binance import Control
    from ingestor.core.intake import Accepted, Begin, Inlet, Intake
    from ingestor.core.model import Gap, Hole, RecordBatch, Subscription
    from ingestor.dead_letter import DeadLetterSink
    from ingestor.metrics import Metrics

LOOK_EVERY_S: Final = 0.05  # at what waits for another feed, for 0.2 s at least
STALL_S: Final = 0.05  # a line that is full for longer has stalled the other feed as well


class FanIn:
    """Takes messages in, sends batches on, tells others what happened.

    `admit` is awaited before the first record of a subscription goes on; all the other callables never block.
    """

    def __init__(
        self,
        intake: Intake,
        line: BatchSender[RecordBatch],
        dead_letters: DeadLetterSink,
        *,
        admit: Callable[[Sequence[Begin]], Awaitable[None]],
        report_gap: Callable[[Gap], None],
        request_snapshot: Callable[[str], None],
        on_hole: Callable[[str, Hole], None],
        metrics: Metrics,
        wall_ns: Callable[[], int],
    ) -> None:
        self._intake = intake
        self._line = line
        self._dead_letters = dead_letters
        self._admit = admit
        self._report_gap = report_gap
        self._request_snapshot = request_snapshot
        self._on_hole = on_hole
        self._metrics = metrics
        self._wall_ns = wall_ns
        self._turn = trio.Lock()  # fair, so that batches enter the line in the order in which they were decided on

    def open(self, subscriptions: Sequence[Subscription]) -> Inlet:
        """Let one more feed in."""
        return self._intake.open(subscriptions)

    def join(self, inlet: Inlet, subscriptions: Iterable[Subscription]) -> None:
        """Have a feed carry `subscriptions` too."""
        self._intake.join(inlet, subscriptions)

    async def leave(self, inlet: Inlet, subscriptions: Iterable[Subscription]) -> None:
        """Have a feed carry `subscriptions` no longer, after its last hand-over of them."""
        await self._hand_on(self._intake.leave(inlet, subscriptions, trio.current_time()))

    async def consume(self, inlet: Inlet, messages: list[bytes], received_s: float) -> Sequence[Control]:
        """Take what one feed read at once; return the control messages found among it.

        Waits while the line is full, which is how a slow Kinesis stalls the reader.
        """
        age_s = trio.current_time() - received_s
        received_us = (self._wall_ns() - round(age_s * 1e9)) // 1000
        accepted = self._intake.accept(inlet, messages, received_s, received_us)
        await self._hand_on(accepted)
        return accepted.controls

    async def begin_behind(self, heads: Sequence[tuple[Subscription, int, int]]) -> None:
        """Count quiet symbols from behind the venue's newest trade on; the origins are written before more goes on."""
        await self._hand_on(self._intake.begin_behind(heads, trio.current_time()))

    async def give_up_waiting(self) -> NoReturn:
        """Let go on what waited in vain for another feed, until cancelled.

        What a stop finds on its way here claims nothing, so it belongs to the next task.
        """
        while True:
            await trio.sleep(LOOK_EVERY_S)
            if self._intake.is_waiting and await self._has_room():
                await self._hand_on(self._intake.settle(trio.current_time()))

    async def _has_room(self) -> bool:
        """Say whether the line takes records at once: the time in which nobody could hand on is no time of waiting."""
        asked_s = trio.current_time()
        async with self._turn:
            return trio.current_time() - asked_s < STALL_S

    async def _hand_on(self, accepted: Accepted) -> None:
        """Send what was decided on, in the order of the decisions: call without a checkpoint after deciding."""
        self._report(accepted)
        async with self._turn:
            if accepted.begins:
                await self._admit(accepted.begins)
            for gap in accepted.gaps:  # of ids that may have begun again just now: what was owed before is given up
                self._report_gap(gap)
            if accepted.poison:
                await self._dead_letters.write(accepted.poison)
            if accepted.batch is not None:
                await self._line.send(accepted.batch)

    def _report(self, accepted: Accepted) -> None:
        for symbol, hole in accepted.holes:
            self._on_hole(symbol, hole)
        for symbol in accepted.resyncs:
            self._request_snapshot(symbol)
        for stream_type, count in accepted.duplicates.items():
            self._metrics.duplicates_dropped.labels(stream_type).inc(count)
        if accepted.batch is not None:
            age_s = trio.current_time() - accepted.batch.received_s
            self._metrics.latency.observe("decoded", age_s, len(accepted.batch.records))
            newest = accepted.batch.records[-1]  # one look a batch: the lag is the venue's and the network's, not ours
            if newest.event_type != "hole":
                lag_s = newest.received_at / 1e6 - newest.timestamp / 1e3
                self._metrics.venue_lag.observe(newest.event_type, lag_s)
