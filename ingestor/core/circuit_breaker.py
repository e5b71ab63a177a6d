"""Stops calling a service that fails, and finds out with single probes when it is back."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

BreakerState: TypeAlias = Literal["closed", "half_open", "open"]


class CircuitBreaker:
    """Closed; open after `failure_threshold` failed calls in a row; `reset_timeout_s` later half-open, for one probe.

    Only calls that failed as a whole are told to it: a throttled entry slows its own lane and nothing else.
    """

    def __init__(self, failure_threshold: int, reset_timeout_s: float) -> None:
        self._failure_threshold = failure_threshold
        self._reset_timeout_s = reset_timeout_s
        self._failures = 0
        self._probe_at = -math.inf
        self._probing = False

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.state} after {self._failures} failures>"

    @property
    def state(self) -> BreakerState:
        """Half-open only while the probe is under way."""
        if self._probing:
            return "half_open"
        return "open" if self._failures >= self._failure_threshold else "closed"

    @property
    def allows_at(self) -> float:
        """When the next call may start: -inf while closed, inf while a probe is under way."""
        return math.inf if self._probing else self._probe_at

    def start(self) -> None:
        """Note that a call starts; the first one after an opening is the probe."""
        self._probing = self.state == "open"

    def succeed(self) -> None:
        """Close: the service answered."""
        self._failures, self._probe_at, self._probing = 0, -math.inf, False

    def fail(self, now: float) -> None:
        """Count a failed call; the last straw, or a failed probe, opens for a whole timeout."""
        self._failures += 1
        self._probing = False
        if self.state == "open":
            self._probe_at = now + self._reset_timeout_s

    def withdraw(self) -> None:
        """Note that a call was cancelled and taught nothing; the next one may be the probe."""
        self._probing = False
