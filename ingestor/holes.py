"""Says every declared hole where a person looks: a log line, a counter, and the newest ones for `/status`.

One that was only too long to be repaired comes with the command that fills it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from ingestor.config import moment_text
from ingestor.core.claims import kline_open_ms

if TYPE_CHECKING:
    from ingestor.core.model import Hole
    from ingestor.metrics import Metrics

log = structlog.get_logger()

NEWEST = 100


class HoleBook:
    """What this task has declared; the holes themselves are records in the stream."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._newest: deque[dict[str, Any]] = deque(maxlen=NEWEST)

    def note(self, symbol: str, hole: Hole) -> None:
        """Note a hole that goes into the stream now."""
        self._metrics.holes_declared.labels(hole.stream.partition("_")[0], hole.reason).inc()
        filling = {"fill_with": backfill_command(symbol, hole)} if hole.reason == "repair_limit" else {}
        log.warning(
            "hole_declared",
            symbol=symbol,
            stream=hole.stream,
            first=hole.first,
            last=hole.last,
            reason=hole.reason,
            **filling,
        )
        self._newest.append({"symbol": symbol, **msgspec.structs.asdict(hole), **filling})

    def newest(self) -> list[dict[str, Any]]:
        """Return the newest holes, oldest first."""
        return list(self._newest)


def backfill_command(symbol: str, hole: Hole) -> str:
    """Write the command that loads the trades or bars of a hole."""
    kind, _, interval = hole.stream.partition("_")
    command = f"ingestor backfill --symbol {symbol} --stream {kind}"
    if not interval:
        return f"{command} --from-id {hole.first} --to-id {hole.last}"
    start, end = (moment_text(kline_open_ms(interval, ordinal)) for ordinal in (hole.first, hole.last + 1))
    return f"{command} --interval {interval} --start {start} --end {end}"
