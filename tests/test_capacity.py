"""The sheet about capacity and cost: what it reads, and what it makes of it."""

from __future__ import annotations

import pytest

from tests.benchmarks.capacity import Measured, measured, size

FOUND = Measured(cpu_us=20.0, units_a_million=4_000.0, memory_mb=120.0)
PUBLISHED = {
    "line": {"results": {"ours, aggregated, market mix": {"cpu_us": 19.4504, "payload_units_per_million": 4_947.3}}},
    "memory": {"results": {"ours, aggregated": {"rss_mb_idle": 95.0, "rss_mb_end": 127.4}}},
}


def test_what_was_measured_is_told_as_it_is_shown() -> None:
    """The market mix, and the memory at the end of a million messages, as precisely as the tables have them."""
    assert measured(PUBLISHED) == Measured(19.5, 4_947, 127)


def test_full_blobs_at_a_high_rate_are_paid_by_their_bytes() -> None:
    """30,000 messages of 100 bytes: 3 MB/s, so four shards with headroom, fifteen units for each lane every second."""
    sizing = size(30_000, FOUND)
    assert sizing.cores == pytest.approx(0.6)
    assert (sizing.tasks, sizing.vcpu, sizing.shards) == (1, 1.0, 4)
    units = 8 * 15 * 730 * 3_600 / 1e6 * 0.014
    assert sizing.dollars == pytest.approx(units + (4 + 1) * 730 * 0.015)
    assert sizing.dollars_on_demand == pytest.approx(0.04 * 730 + 0.08 * 3e6 * 730 * 3_600 / 1e9 + 730 * 0.015)
    assert sizing.dollars_plain == pytest.approx(30_000 * 730 * 3_600 / 1e6 * 0.014 + (39 + 1) * 730 * 0.015)


def test_the_smallest_blob_is_a_unit() -> None:
    """However little comes, every lane pays for one at every flush."""
    assert (
        size(100, FOUND).dollars
        == size(1_000, FOUND).dollars
        == pytest.approx(8 * 730 * 3_600 / 1e6 * 0.014 + 2 * 730 * 0.015)
    )


def test_what_one_core_cannot_carry_is_shared_among_tasks() -> None:
    """No task may need more than its share of a core, and none has more than one."""
    sizing = size(100_000, FOUND)
    assert (sizing.tasks, sizing.vcpu) == (4, 1.0)
    assert sizing.cores / sizing.tasks <= 0.6
