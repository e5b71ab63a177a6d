"""A health board, metrics and rates with everything in order, for a test to spoil."""

from __future__ import annotations

import trio
from prometheus_client import CollectorRegistry

from ingestor.core.health import ConnectionFact, HealthBoard, SinkFact
from ingestor.core.rates import RollingRates
from ingestor.health_check import Observed
from ingestor.metrics import Metrics


def healthy_board(now: float = 100.0) -> HealthBoard:
    """Make a board of a service that has run for a while and lacks nothing at `now`."""
    connection = ConnectionFact("live", since_s=now - 90, last_message_s=now - 1, subscriptions=3, acknowledged=3)
    return HealthBoard(
        since_s=now - 100.0,
        connections={"ws-0": connection},
        sink=SinkFact(last_success_s=now - 1),
        heartbeat_acknowledged_s=now - 5,
    )


def observed(board: HealthBoard, now: float | None = 100.0) -> Observed:
    """Make what the handlers read, at a clock that stands still; `now` None is Trio's, as in the service."""
    hole = {"symbol": "BTCUSDT", "stream": "trade", "first": 1, "last": 2, "reason": "venue_forgot", "detected_ms": 5}
    return Observed(
        board,
        Metrics(CollectorRegistry()),
        RollingRates(),
        details=lambda: {"holes": [hole], "line": {"symbols": 1, "watermarks": {"btcusdt@trade": 7}}},
        now=trio.current_time if now is None else lambda: now,
    )
