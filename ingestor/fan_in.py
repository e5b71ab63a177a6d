"""The one door into the line for all connections: what was read at once is decided on by the intake and handed on.

Order is that of arrival, across connections too. Whoever calls must let a hand-over finish once it has begun (the feed
shields it), because its ids are counted as seen from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ingestor.channels import BatchSender
    from ingestor.core.binance import Control
    from ingestor.core.intake import Accepted, Begin, Intake
    from ingestor.core.model import Gap, Hole, RecordBatch
    from ingestor.dead_letter import DeadLetterSink
    from ingestor.metrics import Metrics


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

    async def consume(self, messages: list[bytes], received_s: float) -> Sequence[Control]:
        """Take what one connection read at once; return the control messages found among it.

        Waits while the line is full, which is how a slow Kinesis stalls the reader.
        """
        age_s = trio.current_time() - received_s
        accepted = self._intake.accept(messages, received_s, (self._wall_ns() - round(age_s * 1e9)) // 1000)
        self._report(accepted)
        async with self._turn:
            if accepted.begins:
                await self._admit(accepted.begins)
            if accepted.poison:
                await self._dead_letters.write(accepted.poison)
            if accepted.batch is not None:
                await self._line.send(accepted.batch)
        return accepted.controls

    def _report(self, accepted: Accepted) -> None:
        for gap in accepted.gaps:
            self._report_gap(gap)
        for symbol, hole in accepted.holes:
            self._on_hole(symbol, hole)
        for symbol in accepted.resyncs:
            self._request_snapshot(symbol)
        for stream_type, count in accepted.duplicates.items():
            self._metrics.duplicates_dropped.labels(stream_type).inc(count)
        if accepted.batch is not None:
            age_s = trio.current_time() - accepted.batch.received_s
            self._metrics.latency.observe("decoded", age_s, len(accepted.batch.records))
