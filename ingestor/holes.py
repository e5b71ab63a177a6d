"""Says every declared hole where a person looks: a log line, a counter, and the newest ones for `/status`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

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
        log.warning(
            "hole_declared", symbol=symbol, stream=hole.stream, first=hole.first, last=hole.last, reason=hole.reason
        )
        self._newest.append({"symbol": symbol, **msgspec.structs.asdict(hole)})

    def newest(self) -> list[dict[str, Any]]:
        """Return the newest holes, oldest first."""
        return list(self._newest)
