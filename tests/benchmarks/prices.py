"""What Kinesis costs and what a shard takes: us-east-1, facts of 2026-11-22."""

from __future__ import annotations

import math
from typing import Final

DOLLARS_A_SHARD_HOUR: Final = 0.015
DOLLARS_A_MILLION_UNITS: Final = 0.014
DOLLARS_AN_ON_DEMAND_HOUR: Final = 0.04
DOLLARS_AN_ON_DEMAND_GB: Final = 0.08
UNIT_BYTES: Final = 25_000  # a PUT payload unit is up to so much of one record
SHARD_BYTES_A_S: Final = 1_000_000
SHARD_RECORDS_A_S: Final = 1_000
HEADROOM: Final = 1.3
HOURS_A_MONTH: Final = 730


def shards_for(records_a_s: float, bytes_a_s: float) -> int:
    """Return how many shards take that, with headroom."""
    full = max(records_a_s / SHARD_RECORDS_A_S, bytes_a_s / SHARD_BYTES_A_S)
    return math.ceil(round(HEADROOM * full, 3))


def month(units_a_s: float, shards: int) -> float:
    """Return dollars a month of a stream with so many shards."""
    units = units_a_s * HOURS_A_MONTH * 3_600
    return units / 1e6 * DOLLARS_A_MILLION_UNITS + shards * HOURS_A_MONTH * DOLLARS_A_SHARD_HOUR


def month_on_demand(bytes_a_s: float) -> float:
    """Return dollars a month of a stream on demand."""
    gb = bytes_a_s * HOURS_A_MONTH * 3_600 / 1e9
    return HOURS_A_MONTH * DOLLARS_AN_ON_DEMAND_HOUR + gb * DOLLARS_AN_ON_DEMAND_GB
