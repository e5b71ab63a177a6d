"""The open shards of a stream, and what each of them may still be sent: budgeted before the call, not after a refusal.

What exceeds the limits of a shard is refused, and goes again later, while everything newer of its lane waits. So each
shard has a budget: a bucket of one second's worth that refills all the time. An entry leaves when there is room for a
usual one, or the bucket is full, and takes what it really weighs: a larger one leaves a debt, which those behind it
wait out. As nobody looks at the size of the next entry, lanes of a shard go strictly in turn, and none starves.

The map is for budgets alone: without one nothing is held up, and nothing else changes (architecture.md §10).
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Of every shard, whatever the mode of the stream. AWS writes MB and MiB interchangeably (facts/aws.md §1.1, read
# 2026-11-22): the smaller one is safe.
SHARD_BYTES_PER_S: Final = 1_000_000
SHARD_RECORDS_PER_S: Final = 1_000
BURST_S: Final = 1.0

# A key that has used a busy shard nearly alone for so long outgrows it. Busy is one that was never open for longer than
# a moment before the next entry left.
HOT_AFTER_S: Final = 60.0
HOT_SHARE: Final = 0.8
MOMENT_S: Final = 0.5
HOT_KEY_ADVICE: Final = (
    "more shards do not help; kinesis.partition_key symbol_event_type divides a symbol, spread gives up its order"
)
SAMPLE_EVERY_S: Final = 1.0  # to look into an entry takes a loop over its records, so only one a second is looked into


class ShardInfo(NamedTuple):
    """One shard; `closed` ones take no more records but may still hold some. Hash keys are inclusive."""

    shard_id: str
    parent_id: str | None
    adjacent_parent_id: str | None
    first_hash_key: int
    last_hash_key: int
    closed: bool


@dataclass(slots=True, eq=False)
class ShardBudget:
    """What one shard may be sent: `opens_at` is when the next entry may leave. `now` is the caller's monotonic clock.

    Both limits are kept as the time until which what was sent keeps them busy, so that nothing has to be refilled.
    """

    shard_id: str
    bytes_per_s: float
    records_per_s: float
    room_bytes: int
    opens_at: float = -math.inf
    busy_since: float = math.inf
    sample_at: float = math.inf
    _bytes_until: float = -math.inf
    _records_until: float = -math.inf
    _bytes_by_key: Counter[str] = field(default_factory=Counter[str])

    def spend(self, size_bytes: int, now: float) -> None:
        """Take an entry out of the budget; one that is sent again is taken again."""
        if self.opens_at + MOMENT_S < now:
            self.busy_since = now
            self.sample_at = now + SAMPLE_EVERY_S
            self._bytes_by_key.clear()
        self._bytes_until = max(self._bytes_until, now) + size_bytes / self.bytes_per_s
        self._records_until = max(self._records_until, now) + 1 / self.records_per_s
        kept_s = max(0.0, BURST_S - self.room_bytes / self.bytes_per_s)
        self.opens_at = max(self._bytes_until - kept_s, self._records_until - BURST_S + 1 / self.records_per_s)

    def sample(self, bytes_by_key: Mapping[str, int], now: float) -> str | None:
        """Note whose bytes an entry carried; return the key that has had nearly all of a busy shard for long."""
        self.sample_at = now + SAMPLE_EVERY_S
        self._bytes_by_key.update(bytes_by_key)
        [(key, most)] = self._bytes_by_key.most_common(1)
        is_hot = now - self.busy_since >= HOT_AFTER_S and most >= HOT_SHARE * self._bytes_by_key.total()
        return key if is_hot else None


class Shards:
    """The map: which shard a hash key falls into, and the budget of that shard. Empty until `learn` is told one."""

    def __init__(self, share: float, room_bytes: int) -> None:
        """Budget `share` of every limit; `room_bytes` is what a usual entry weighs."""
        self._share = share
        self._room_bytes = room_bytes
        self._known: set[str] = set()
        self._starts: list[int] = []
        self._budgets: list[ShardBudget] = []

    def __len__(self) -> int:
        return len(self._budgets)

    def learn(self, shards: Iterable[ShardInfo]) -> None:
        """Take over all shards of the stream; those that are new begin with a full budget, the others keep theirs."""
        shards = list(shards)
        budgets = {budget.shard_id: budget for budget in self._budgets}
        still_open = sorted((shard.first_hash_key, shard.shard_id) for shard in shards if not shard.closed)
        self._known = {shard.shard_id for shard in shards}
        self._starts = [start for start, _ in still_open]
        self._budgets = [budgets.get(shard_id) or self._new_budget(shard_id) for _, shard_id in still_open]

    def budget_at(self, hash_key: int) -> ShardBudget | None:
        """Return the budget of the shard that owns `hash_key`; None without a map.

        The owner is the last shard that begins at or before the key: an emulator's ends are one off.
        """
        return self._budgets[max(0, bisect(self._starts, hash_key) - 1)] if self._budgets else None

    def knows(self, shard_id: str) -> bool:
        """Say whether a shard was among those learned, open or closed; an empty map lacks none."""
        return not self._budgets or shard_id in self._known

    def _new_budget(self, shard_id: str) -> ShardBudget:
        share = self._share
        return ShardBudget(shard_id, share * SHARD_BYTES_PER_S, share * SHARD_RECORDS_PER_S, self._room_bytes)
