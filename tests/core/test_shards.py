"""What a shard may still be sent, who owns a hash key, and which key is too much for one shard."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.shards import HOT_AFTER_S, ShardBudget, ShardInfo, Shards

MIDDLE = 1 << 127
END = (1 << 128) - 1


def shard(shard_id: str, first: int, last: int, *, closed: bool = False) -> ShardInfo:
    return ShardInfo(shard_id, None, None, first, last, closed)


def budget(*, bytes_per_s: float = 1000.0, records_per_s: float = 10.0, room_bytes: int = 0) -> ShardBudget:
    return ShardBudget("s", bytes_per_s, records_per_s, room_bytes)


def test_a_second_of_bytes_leaves_at_once_and_then_as_many_as_a_second_brings() -> None:
    """The bucket holds one second's worth, and refills all the time."""
    shard = budget(room_bytes=250)
    leaves = []
    now = 0.0
    for _ in range(7):
        now = max(now, shard.opens_at)
        shard.spend(250, now)
        leaves.append(now)
    assert leaves == [0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.75]


def test_records_are_limited_as_well() -> None:
    """Whichever limit is reached first."""
    shard = budget(records_per_s=2.0)
    leaves = []
    now = 0.0
    for _ in range(5):
        now = max(now, shard.opens_at)
        shard.spend(1, now)
        leaves.append(now)
    assert leaves == [0.0, 0.0, 0.5, 1.0, 1.5]


def test_a_usual_entry_waits_until_there_is_room_for_it() -> None:
    """Or what it exceeds the bucket by would be refused."""
    shard = budget(room_bytes=600)
    shard.spend(600, 0.0)
    assert shard.opens_at == 0.6 - 0.4


def test_an_entry_larger_than_the_bucket_leaves_when_it_is_full_and_the_next_one_waits_it_out() -> None:
    """The debt is paid by time, and the rate is kept on the average."""
    shard = budget(room_bytes=3000)
    shard.spend(3000, 5.0)
    assert shard.opens_at == 8.0
    shard.spend(3000, 8.0)
    assert shard.opens_at == 11.0


def test_a_rest_is_no_credit_beyond_the_bucket() -> None:
    """An hour of silence is followed by one second's worth, not by an hour's."""
    shard = budget(room_bytes=500)
    for _ in range(2):
        shard.spend(500, 3600.0)
    assert shard.opens_at == 3600.5


@given(seed=st.integers(0, 2**32), room_bytes=st.sampled_from([0, 50, 400]))
def test_what_leaves_within_any_time_is_bounded(seed: int, room_bytes: int) -> None:
    """Never more than the bucket, the rate times the time, and the one entry that may exceed it."""
    rng = Random(seed)
    shard = budget(room_bytes=room_bytes)
    sent: list[tuple[float, int]] = []
    now = 0.0
    for _ in range(60):
        now = max(now + rng.choice([0.0, 0.01, 0.3, 2.0]), shard.opens_at)
        sent.append((now, rng.randrange(1, 400)))
        shard.spend(sent[-1][1], now)
    for start in range(len(sent)):
        for end in range(start, len(sent)):
            time_s = sent[end][0] - sent[start][0]
            size = sum(size for _, size in sent[start : end + 1])
            assert size <= 1000 + 1000 * time_s + max(0, 400 - room_bytes) + 1e-6
            assert end + 1 - start <= 10 + 10 * time_s + 1e-6


def test_without_a_map_there_is_no_budget() -> None:
    """Nor is any shard a stranger."""
    shards = Shards(0.9, 0)
    assert (len(shards), shards.budget_at(5), shards.knows("s")) == (0, None, True)


def test_the_owner_of_a_key_is_found_and_has_its_share_of_the_limits() -> None:
    """Ends are inclusive; closed shards own nothing any more, and are known all the same."""
    shards = Shards(0.5, 7)
    shards.learn(
        [shard("right", MIDDLE, END), shard("old", 0, END, closed=True), shard("left", 0, MIDDLE - 1)],
    )
    owners = [shards.budget_at(key) for key in (0, MIDDLE - 1, MIDDLE, END)]
    assert [owner and owner.shard_id for owner in owners] == ["left", "left", "right", "right"]
    assert owners[0] is not None
    assert (owners[0].bytes_per_s, owners[0].records_per_s, owners[0].room_bytes) == (500_000, 500, 7)
    assert [shards.knows(name) for name in ("left", "old", "new")] == [True, True, False]


def test_after_a_reshard_children_begin_with_a_full_budget_and_others_keep_theirs() -> None:
    """A split shard is gone with its debt."""
    shards = Shards(1.0, 0)
    shards.learn([shard("a", 0, MIDDLE - 1), shard("b", MIDDLE, END)])
    for key in (0, MIDDLE):
        owner = shards.budget_at(key)
        assert owner is not None
        owner.spend(2_000_000, 0.0)
    kept = shards.budget_at(MIDDLE)
    quarter = MIDDLE // 2
    children = [shard("c", 0, quarter - 1), shard("d", quarter, MIDDLE - 1)]
    shards.learn([shard("a", 0, MIDDLE - 1, closed=True), *children, shard("b", MIDDLE, END)])
    assert [found.opens_at for key in (0, quarter) if (found := shards.budget_at(key))] == [-math.inf] * 2
    assert shards.budget_at(MIDDLE) is kept
    shards.learn(())
    assert shards.budget_at(MIDDLE) is None


def hot_key_after(seconds: float, bytes_by_key: dict[str, int], *, pause_at: float = math.inf) -> str | None:
    """Use all of a budget for some time, and return the key that it found."""
    shard = budget(room_bytes=200, records_per_s=100.0)
    found = None
    now = 0.0
    while now <= seconds:
        shard.spend(sum(bytes_by_key.values()), now)
        if shard.sample_at <= now:
            found = shard.sample(bytes_by_key, now)
        now = max(now, shard.opens_at)
        if now >= pause_at:
            now, pause_at = now + 5.0, math.inf
    return found


def test_a_key_that_uses_a_shard_alone_for_long_is_found() -> None:
    """Others beside it may have a little; one rest in between, and there was room after all."""
    assert hot_key_after(HOT_AFTER_S + 5, {"BTCUSDT": 180, "ETHUSDT": 20}) == "BTCUSDT"
    assert hot_key_after(HOT_AFTER_S - 5, {"BTCUSDT": 200}) is None
    assert hot_key_after(HOT_AFTER_S + 5, {"BTCUSDT": 120, "ETHUSDT": 80}) is None
    assert hot_key_after(HOT_AFTER_S + 5, {"BTCUSDT": 200}, pause_at=20.0) is None
