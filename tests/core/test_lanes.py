"""Which records travel together, in which order, and what a refusal leaves behind."""

from __future__ import annotations

import math
from bisect import bisect
from hashlib import md5
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.backoff import Backoff
from ingestor.core.kpl import aggregate, disaggregate
from ingestor.core.lanes import (
    Arrival,
    LaneLimits,
    Lanes,
    Parcel,
    arrivals_of,
    claims_of,
    lane_index,
    lane_point,
)
from ingestor.core.model import Claim, EncodedRecord, Subscription
from ingestor.core.shards import HOT_AFTER_S, ShardInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestor.core.delivery import Verdict

LIMITS: dict[str, Any] = {
    "max_entries": 500,
    "max_bytes": 4_000_000,
    "blob_bytes": 1000,
    "flush_interval_s": 1.0,
    "adaptive": False,
    "shard_share": 1.0,
}
BTC, ETH = "BTCUSDT", "ETHUSDT"  # lanes 2 and 0 of 4, in the upper and the lower half: a property of MD5
HALF = 1 << 127
ONE_SHARD = [ShardInfo("one", None, None, 0, 2 * HALF - 1, closed=False)]
TWO_SHARDS = [
    ShardInfo("lower", None, None, 0, HALF - 1, closed=False),
    ShardInfo("upper", None, None, HALF, 2 * HALF - 1, closed=False),
]
NARROW = 0.004  # of what a shard takes: 4000 bytes and 4 records a second


def make_lanes(count: int = 4, *, plain: bool = False, **limits: Any) -> Lanes:
    def new_delays() -> Backoff:
        return Backoff(initial_s=0.5, max_s=8.0, multiplier=2.0, jitter=None)

    return Lanes(count, LaneLimits(**{**LIMITS, **limits}), new_delays, None if plain else aggregate)


def records(key: str, *numbers: int, size: int = 8) -> list[EncodedRecord]:
    claims = [Claim(Subscription(key, "trade"), number, number) for number in numbers]
    return [
        EncodedRecord(key, str(number).encode().rjust(size, b"0"), claim)
        for number, claim in zip(numbers, claims, strict=True)
    ]


def numbers(call: Sequence[Parcel]) -> list[list[int]]:
    """Read what a call carries, entry by entry, out of the bytes that would be sent."""
    return [
        [int(inner.data) for inner in disaggregate(parcel.entry.data, parcel.entry.partition_key)] for parcel in call
    ]


def flat(entries: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(entries))


def bring_back(lanes: Lanes, call: list[Parcel], verdict: Verdict, now: float = 0.0) -> None:
    lanes.settle(call, [verdict for _ in call], now)
    lanes.release(call)


def departures(lanes: Lanes, until: float, now: float = 0.0) -> list[tuple[float, list[list[int]]]]:
    """Take and deliver what leaves up to a moment, each call at the moment when it is due."""
    seen = []
    while (due_at := lanes.due_at(now)) <= until:
        now = max(now, due_at)
        if call := lanes.take(now):
            seen.append((round(now, 6), numbers(call)))
            bring_back(lanes, call, "delivered", now)
    return seen


def test_a_lone_record_leaves_when_it_is_old_enough() -> None:
    """The flush interval counts from its arrival."""
    lanes = make_lanes()
    lanes.add(records(BTC, 1), received_s=4.0, now=5.0)
    assert lanes.due_at(5.0) == 6.0
    assert lanes.take(5.9) == []
    assert numbers(lanes.take(6.0)) == [[1]]
    assert lanes.triggers == {"age": 1}


def test_an_adaptive_lane_sends_at_once_when_it_is_idle() -> None:
    """The interval is only a cap then."""
    lanes = make_lanes(adaptive=True)
    lanes.add(records(BTC, 1), 0.0, 0.0)
    assert lanes.due_at(0.0) == -math.inf
    assert numbers(lanes.take(0.0)) == [[1]]
    assert lanes.triggers == {"idle": 1}


def test_what_comes_while_a_lane_is_busy_leaves_together_afterwards() -> None:
    """Under load a call carries what gathered during the one before it."""
    lanes = make_lanes(adaptive=True)
    lanes.add(records(BTC, 1), 0.0, 0.0)
    call = lanes.take(0.0)
    lanes.add(records(BTC, 2), 0.1, 0.1)
    lanes.add(records(BTC, 3), 0.2, 0.2)
    assert lanes.due_at(0.2) == math.inf
    assert lanes.take(0.2) == []
    bring_back(lanes, call, "delivered")
    assert numbers(lanes.take(0.3)) == [[2, 3]]


def test_a_full_blob_waits_a_little_for_others_and_leaves_without_the_rest() -> None:
    """A tenth of the interval; half-empty blobs of other lanes stay, because Kinesis bills by 25 KB."""
    lanes = make_lanes()
    lanes.add(records(ETH, 1), 0.0, 0.0)
    lanes.add(records(BTC, *range(10), size=150), 0.0, 0.25)
    assert lanes.due_at(0.25) == 0.35
    [parcel] = call = lanes.take(0.35)
    assert numbers(call) == [[0, 1, 2, 3, 4]]
    assert parcel.size_bytes <= 1000
    assert lanes.triggers == {"bytes": 1}
    bring_back(lanes, call, "delivered")
    assert lanes.due_at(0.35) == 1.0


def test_two_blobs_of_one_lane_or_full_blobs_of_half_the_lanes_leave_at_once() -> None:
    """Waiting longer would only hold up the next ones."""
    for loads in ({BTC: 14}, {BTC: 7, ETH: 7}):
        lanes = make_lanes()
        for key, count in loads.items():
            lanes.add(records(key, *range(count), size=150), 0.0, 0.0)
        assert lanes.due_at(0.0) == -math.inf
        assert len(lanes.take(0.0)) == len(loads)


def test_age_takes_every_lane_along() -> None:
    """One call an interval serves all lanes, at most one blob of each."""
    lanes = make_lanes()
    lanes.add(records(BTC, 1), 0.0, 0.0)
    lanes.add(records(ETH, 2), 0.5, 0.5)
    assert sorted(numbers(lanes.take(1.0))) == [[1], [2]]


def test_full_blobs_of_busy_lanes_never_starve_a_quiet_one() -> None:
    """Once a record is old enough it leaves with the next call, however full the others are."""
    lanes = make_lanes()
    lanes.add(records(ETH, 1), 0.0, 0.0)
    lanes.add(records(BTC, *range(100), size=150), 0.0, 0.9)
    assert len(lanes.take(1.0)) == 2


def test_at_the_end_everything_leaves() -> None:
    """Age does not matter any more."""
    lanes = make_lanes()
    lanes.add(records(BTC, 1), 0.0, 0.0)
    assert lanes.due_at(0.0, at_once=True) == -math.inf
    assert numbers(lanes.take(0.0, at_once=True)) == [[1]]
    assert lanes.due_at(0.0, at_once=True) == math.inf


@pytest.mark.parametrize(("limits", "trigger"), [({"max_entries": 3}, "records"), ({"max_bytes": 50}, "bytes")])
def test_plain_records_leave_when_a_call_is_full(limits: dict[str, int], trigger: str) -> None:
    """By records or by bytes, whichever comes first."""
    lanes = make_lanes(plain=True, **limits)
    lanes.add(records(BTC, 1, 2, 3, 4), 0.0, 0.0)
    call = lanes.take(0.0)
    assert numbers(call) == [[1], [2], [3]]
    assert [parcel.entry.explicit_hash_key for parcel in call] == [None] * 3
    assert lanes.triggers == {trigger: 1}


def test_a_record_larger_than_a_blob_travels_alone_raw_and_in_its_place() -> None:
    """No magic bytes, the lane's hash key, after what came before it and before what came after it."""
    lanes = make_lanes()
    lanes.add([*records(BTC, 1, 2), *records(BTC, 3, size=2000), *records(BTC, 4)], 0.0, 0.0)
    seen = []
    for _ in range(3):
        [parcel] = call = lanes.take(0.0, at_once=True)
        assert parcel.entry.explicit_hash_key == str(lane_point(lane_index(BTC, 4), 4))
        seen += numbers(call)
        bring_back(lanes, call, "delivered")
    assert seen == [[1, 2], [3], [4]]
    assert lanes.held_bytes == 0


def test_a_throttled_lane_waits_longer_each_time_and_holds_up_nobody_else() -> None:
    """Its own delays, reset by its own success."""
    lanes = make_lanes(adaptive=True)
    now = 0.0
    waits = []
    for _ in range(3):
        lanes.add(records(BTC, 1), now, now)
        call = lanes.take(now)
        bring_back(lanes, call, "again", now)
        lanes.add(records(ETH, 7), now, now)
        [parcel] = others = lanes.take(now)
        assert parcel.records[0].partition_key == ETH
        bring_back(lanes, others, "delivered", now)
        waits.append(lanes.due_at(now) - now)
        now = lanes.due_at(now)
    assert waits == [0.5, 1.0, 2.0]
    call = lanes.take(now)
    assert lanes.triggers["retry"] == 3
    bring_back(lanes, call, "delivered", now)
    assert numbers(lanes.take(now)) == [[1, 1]]


def test_a_failed_plain_record_goes_again_before_anything_newer() -> None:
    """What was delivered beside it is not sent again, what came later waits."""
    lanes = make_lanes(plain=True, adaptive=True)
    lanes.add(records(BTC, 1, 2, 3), 0.0, 0.0)
    call = lanes.take(0.0)
    lanes.add(records(BTC, 4), 0.0, 0.0)
    lanes.settle(call, ["delivered", "again", "delivered"], 0.0)
    lanes.release(call)
    call = lanes.take(0.5)
    assert numbers(call) == [[2]]
    assert [parcel.attempts for parcel in call] == [2]
    bring_back(lanes, call, "delivered", 0.5)
    assert numbers(lanes.take(0.5)) == [[4]]


def test_a_call_that_came_back_without_an_answer_goes_again_as_it_was() -> None:
    """The same entries, in the same order."""
    lanes = make_lanes(adaptive=True)
    lanes.add(records(BTC, 1, 2), 0.0, 0.0)
    first = lanes.take(0.0)
    lanes.release(first)
    assert lanes.take(0.0) == first


def test_a_call_over_its_bytes_leaves_a_lane_for_the_next_one() -> None:
    """And lanes take turns to be the first."""
    lanes = make_lanes(max_bytes=600)
    lanes.add(records(BTC, 1, size=500), 0.0, 0.0)
    lanes.add(records(ETH, 2, size=500), 0.0, 0.0)
    calls = [numbers(lanes.take(1.0)), numbers(lanes.take(1.0))]
    assert sorted(calls) == [[[1]], [[2]]]


def test_a_refused_call_is_halved_until_the_bad_record_stands_alone() -> None:
    """Blobs first, then the records of the bad blob; everything else is delivered."""
    lanes = make_lanes(adaptive=True)
    lanes.add(records(BTC, *range(8)), 0.0, 0.0)
    lanes.add(records(ETH, 50, 51), 0.0, 0.0)
    delivered: list[int] = []
    proven = None
    while proven is None:
        call = lanes.take(0.0)
        carried = flat(numbers(call))
        if 5 in carried:
            proven = lanes.refuse(call)
        else:
            delivered += carried
            lanes.settle(call, ["delivered" for _ in call], 0.0)
        lanes.release(call)
    assert [int(record.data) for record in proven.records] == [5]
    lanes.replace(proven, records(BTC, 500))
    while call := lanes.take(0.0):
        delivered += flat(numbers(call))
        bring_back(lanes, call, "delivered")
    assert [number for number in delivered if number not in {50, 51}] == [0, 1, 2, 3, 4, 500, 6, 7]
    assert lanes.held_bytes == lanes.held_records == 0


def test_plain_entries_of_a_refused_call_never_mix_with_what_failed_since() -> None:
    """An older record that failed again goes alone, before those that only waited."""
    lanes = make_lanes(plain=True, adaptive=True)
    lanes.add(records(BTC, 1, 2, 3, 4), 0.0, 0.0)
    call = lanes.take(0.0)
    assert lanes.refuse(call) is None
    lanes.release(call)
    call = lanes.take(0.0)
    assert numbers(call) == [[1], [2]]
    bring_back(lanes, call, "again")
    assert numbers(lanes.take(0.5)) == [[1], [2]]


def test_a_given_up_record_may_leave_nothing_behind() -> None:
    """When there is no claim to declare, the lane just goes on."""
    lanes = make_lanes(adaptive=True)
    lanes.add(records(BTC, 1), 0.0, 0.0)
    call = lanes.take(0.0)
    lanes.add(records(BTC, 2), 0.0, 0.0)
    lanes.settle(call, ["never"], 0.0)
    assert lanes.take(0.0) == []
    lanes.replace(call[0], [])
    lanes.release(call)
    assert numbers(lanes.take(0.0)) == [[2]]


def test_claims_of_neighbouring_ids_are_joined_by_subscription() -> None:
    """A record without a claim proves nothing, a jump begins another claim."""
    lanes = make_lanes(adaptive=True)
    snapshot = EncodedRecord(BTC, b"0", None)
    lanes.add([*records(BTC, 1, 2), *records(ETH, 9), snapshot, *records(BTC, 3, 2, 7, 8)], 0.0, 0.0)
    claims = claims_of(lanes.take(0.0))
    btc, eth = Subscription(BTC, "trade"), Subscription(ETH, "trade")
    assert sorted(claims) == [Claim(btc, 1, 3), Claim(btc, 7, 8), Claim(eth, 9, 9)]


def test_every_record_keeps_its_time_of_receipt() -> None:
    """Through blobs that hold parts of several arrivals, and through their halves."""
    lanes = make_lanes(adaptive=True)
    lanes.add(records(BTC, *range(4), size=150), 1.0, 1.5)
    lanes.add(records(BTC, *range(4, 10), size=150), 2.0, 2.5)
    [blob] = call = lanes.take(3.0)
    assert blob.arrivals == [Arrival(1.0, 1.5, 4), Arrival(2.0, 2.5, 1)]
    lanes.refuse(call)
    lanes.release(call)
    assert [lane_parcel.arrivals for lane_parcel in blob.lane.parcels] == [
        [Arrival(1.0, 1.5, 2)],
        [Arrival(1.0, 1.5, 2), Arrival(2.0, 2.5, 1)],
    ]
    assert arrivals_of(blob.lane.parcels) == {1.0: 4, 2.0: 1}


@given(count=st.integers(1, 256))
def test_lane_points_are_spread_evenly_and_no_shard_ends_there(count: int) -> None:
    """Each point lies in the middle of its lane; shards of an even split end elsewhere."""
    points = [lane_point(index, count) for index in range(count)]
    assert [point * count >> 128 for point in points] == list(range(count))
    ends = {((shard + 1) << 128) // shards - 1 for shards in range(1, 65) for shard in range(shards)}
    assert not ends & set(points)


@given(
    cuts=st.sets(st.integers(1, (1 << 128) - 1), max_size=20),
    keys=st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=30),
    count=st.integers(1, 16),
)
def test_no_split_of_the_stream_makes_a_consumer_throw_a_blob_away(cuts: set[int], keys: list[str], count: int) -> None:
    """KCL drops a blob if one record inside hashes to another shard; here all hash to where the blob went."""
    lanes = make_lanes(count, adaptive=True)
    lanes.add([EncodedRecord(key, b"data", None) for key in keys], 0.0, 0.0)
    ends = sorted(cuts)
    for parcel in lanes.take(0.0):
        shard = bisect(ends, int(parcel.entry.explicit_hash_key or ""))
        for record in disaggregate(parcel.entry.data, parcel.entry.partition_key):
            if len(parcel.records) > 1:  # a lone one travels raw, and nobody asks what it hashes to
                assert bisect(ends, int(record.explicit_hash_key or "")) == shard


@given(key=st.text(min_size=1), count=st.integers(1, 256))
def test_a_key_always_has_the_same_lane(key: str, count: int) -> None:
    """In every task: its MD5, which is also what Kinesis takes, lies in that lane's part of the hash space."""
    index, hash_key = lane_index(key, count), int(md5(key.encode(), usedforsecurity=False).hexdigest(), 16)
    assert 0 <= index < count
    assert index << 128 <= hash_key * count < (index + 1) << 128


def test_remembered_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for every record must not fill the memory."""
    monkeypatch.setattr("ingestor.core.lanes.KEYS_REMEMBERED", 2)
    lanes = make_lanes()
    for key in "abcde":
        lanes.add(records(key, 1), 0.0, 0.0)
    assert len(lanes._lane_by_key) <= 2
    assert repr(lanes) == f"<Lanes 4, 5 records, {lanes.held_bytes} bytes>"


def test_a_lane_waits_until_its_shard_has_room_and_holds_up_nobody_else() -> None:
    """A second's worth at once, then entry by entry; a quiet lane of another shard keeps its own time."""
    lanes = make_lanes(shard_share=NARROW)
    lanes.learn(TWO_SHARDS)
    lanes.add(records(BTC, *range(40), size=150), 0.0, 0.0)
    lanes.add(records(ETH, 100), 0.0, 0.0)
    at_once = [(0.0, [list(range(start, start + 5))]) for start in range(0, 20, 5)]
    assert departures(lanes, 0.0) == at_once
    assert lanes.due_at(0.0) == 0.25
    assert lanes.take(0.2) == []
    assert departures(lanes, 2.0) == [
        (0.25, [[20, 21, 22, 23, 24]]),
        (0.5, [[25, 26, 27, 28, 29]]),
        (0.75, [[30, 31, 32, 33, 34]]),
        (1.0, [[100], [35, 36, 37, 38, 39]]),
    ]


def test_a_blob_that_waits_for_its_shard_takes_no_half_empty_ones_along() -> None:
    """Or every lane of the stream would send several times an interval, and Kinesis bills by 25 KB."""
    lanes = make_lanes(shard_share=NARROW)
    lanes.learn(TWO_SHARDS)
    lanes.add(records(BTC, *range(80), size=150), 0.0, 0.0)
    departures(lanes, 1.5)
    lanes.add(records(ETH, 100), 0.0, 1.5)
    left = departures(lanes, 2.4, 1.5)
    assert [at_s for at_s, _ in left] == [1.75, 2.0, 2.25]
    assert 100 not in flat([flat(call) for _, call in left])


def test_without_a_map_nothing_is_held_up() -> None:
    """Not known yet, or not any more."""
    lanes = make_lanes(shard_share=NARROW)
    lanes.add(records(BTC, *range(40), size=150), 0.0, 0.0)
    assert len(departures(lanes, 0.1)) == 7
    lanes.learn(ONE_SHARD)
    lanes.add(records(BTC, *range(40), size=150), 0.0, 0.0)
    assert len(departures(lanes, 0.1)) == 4
    lanes.learn([])
    assert len(departures(lanes, 0.1)) == 4


def test_an_adaptive_lane_sends_as_soon_as_its_shard_has_room() -> None:
    """And what gathered meanwhile leaves in one entry."""
    lanes = make_lanes(adaptive=True, shard_share=NARROW)
    lanes.learn(ONE_SHARD)
    for number in range(4):
        lanes.add(records(BTC, number), 0.0, 0.0)
        assert departures(lanes, 0.0) == [(0.0, [[number]])]
    for number in (4, 5):
        lanes.add(records(BTC, number), 0.0, 0.1)
        assert lanes.take(0.1) == []
    assert lanes.waiting_for_shards(0.1) == 1
    assert departures(lanes, 9.0, 0.1) == [(0.25, [[4, 5]])]


def test_lanes_of_one_shard_take_turns() -> None:
    """Neither a place in the list nor smaller entries is an advantage."""
    lanes = make_lanes(8, shard_share=NARROW, adaptive=True)
    lanes.learn(ONE_SHARD)
    for key, size in ((BTC, 900), (ETH, 300), ("BNBUSDT", 300)):  # each has a lane of its own
        lanes.add(records(key, *range(40), size=size), 0.0, 0.0)
    keys: list[str] = []
    now = 0.0
    while len(keys) < 24:
        if call := lanes.take(now):
            keys += [parcel.records[0].partition_key for parcel in call]
            bring_back(lanes, call, "delivered", now)
        now = max(now, lanes.due_at(now))
    assert {key: keys.count(key) for key in (BTC, ETH, "BNBUSDT")} == dict.fromkeys((BTC, ETH, "BNBUSDT"), 8)


def test_what_is_sent_again_is_taken_out_of_the_budget_again() -> None:
    """A refusal costs the shard nothing, and trying again at full rate would have more of them."""
    lanes = make_lanes(adaptive=True, shard_share=NARROW)
    lanes.learn(ONE_SHARD)
    lanes.add(records(BTC, 1), 0.0, 0.0)
    tries = []
    now = 0.0
    for _ in range(6):
        now = max(now, lanes.due_at(now))
        call = lanes.take(now)
        tries.append(now)
        lanes.release(call)  # without an answer: at once again
    assert tries == [0.0, 0.0, 0.0, 0.0, 0.25, 0.5]
    call = lanes.take(0.75)
    bring_back(lanes, call, "again", 0.75)
    assert (lanes.waiting_for_shards(0.8), lanes.due_at(0.8)) == (0, 1.25)  # its own delay is longer


def test_a_plain_record_is_budgeted_where_its_own_key_goes() -> None:
    """A lane may reach over the end of a shard; its order is kept, so the first that has to wait holds up the rest."""
    lanes = make_lanes(1, plain=True, adaptive=True, shard_share=NARROW)
    lanes.learn(TWO_SHARDS)
    lanes.add([*records(BTC, *range(4)), *records(ETH, 10), *records(BTC, 4, 5), *records(ETH, 11)], 0.0, 0.0)
    assert departures(lanes, 1.0) == [
        (0.0, [[0], [1], [2], [3], [10]]),
        (0.25, [[4]]),
        (0.5, [[5], [11]]),
    ]


def test_a_reshard_gives_room_at_once() -> None:
    """Children owe nothing of what their parent was sent."""
    lanes = make_lanes(adaptive=True, shard_share=NARROW)
    lanes.learn(ONE_SHARD)
    lanes.add(records(BTC, *range(40), size=150), 0.0, 0.0)
    assert len(departures(lanes, 0.1)) == 4
    lanes.learn([ONE_SHARD[0]._replace(closed=True), *TWO_SHARDS])
    assert len(departures(lanes, 0.1)) == 4


def test_a_key_that_is_too_much_for_its_shard_is_named() -> None:
    """In the entries that leave, one of which is looked into each second."""
    lanes = make_lanes(adaptive=True, shard_share=0.001)
    lanes.learn(TWO_SHARDS)
    now = 0.0
    while now < HOT_AFTER_S + 3:
        lanes.add(records(BTC, *range(6), size=150), now, now)
        if now % 2 == 0:
            lanes.add(records(ETH, 1), now, now)
        now += 0.5
        departures(lanes, now, now - 0.5)
    assert lanes.hot_keys == {BTC: "upper"}


class RoughDay:
    """Feeds lanes at random, and plays a Kinesis at which everything fails now and then."""

    keys = ("A", "B", "C", "D")

    def __init__(self, seed: int, *, plain: bool, adaptive: bool) -> None:
        self.rng = Random(seed)
        count = self.rng.choice([1, 3])
        self.lanes = make_lanes(
            count, plain=plain, adaptive=adaptive, max_entries=5, max_bytes=2500, shard_share=NARROW
        )
        self.sent: dict[str, list[int]] = {key: [] for key in self.keys}
        self.landed: dict[str, list[int]] = {key: [] for key in self.keys}
        self.first_call: dict[tuple[str, int], int] = {}
        self.calls = 0
        self.flying: list[list[Parcel]] = []
        self.now = 0.0

    def arrive(self) -> None:
        key = self.rng.choice(self.keys)
        fresh = [len(self.sent[key]) + index for index in range(self.rng.randrange(4))]
        self.lanes.add(records(key, *fresh, size=self.rng.choice([8, 150, 1500])), self.now, self.now)
        self.sent[key] += fresh

    def depart(self, *, at_once: bool) -> None:
        is_due = self.lanes.due_at(self.now, at_once=at_once) <= self.now
        call = self.lanes.take(self.now, at_once=at_once)
        assert is_due == bool(call)
        if not call:
            return
        self.calls += 1
        assert len(call) <= 5
        assert len(call) == 1 or sum(parcel.size_bytes for parcel in call) <= 2500
        self.flying.append(call)
        for record in chain.from_iterable(parcel.records for parcel in call):
            self.first_call.setdefault((record.partition_key, int(record.data)), self.calls)

    def come_back(self, failing: float) -> None:
        if not self.flying:
            return
        call = self.flying.pop(self.rng.randrange(len(self.flying)))
        fate = self.rng.random()
        if fate < failing / 4 and (len(call) > 1 or len(call[0].records) > 1):
            self.lanes.refuse(call)
        elif fate > failing / 2:
            verdicts: list[Verdict] = ["again" if self.rng.random() < failing else "delivered" for _ in call]
            self.store([parcel for parcel, verdict in zip(call, verdicts, strict=True) if verdict == "delivered"])
            self.lanes.settle(call, verdicts, self.now)
        self.lanes.release(call)

    def store(self, parcels: list[Parcel]) -> None:
        self.rng.shuffle(parcels)
        for parcel in parcels:
            for inner in disaggregate(parcel.entry.data, parcel.entry.partition_key):
                self.landed[inner.partition_key].append(int(inner.data))

    def run(self) -> None:
        for _ in range(30):
            self.arrive()
            self.depart(at_once=False)
            self.depart(at_once=False)
            self.come_back(failing=0.4)
            if self.rng.random() < 0.2:
                self.lanes.learn(self.rng.choice([ONE_SHARD, TWO_SHARDS, []]))
            self.now += self.rng.choice([0.0, 0.3, 10.0])
        while self.flying or self.lanes.held_bytes:
            if not self.flying:
                self.now = max(self.now, self.lanes.due_at(self.now, at_once=True))
            self.depart(at_once=True)
            self.come_back(failing=0.1)


@given(seed=st.integers(0, 2**32), adaptive=st.booleans())
def test_no_record_is_lost_doubled_or_overtaken_whatever_fails(seed: int, *, adaptive: bool) -> None:
    """Random arrivals, refusals of entries and of whole calls: every key lands in its order."""
    day = RoughDay(seed, plain=False, adaptive=adaptive)
    day.run()
    assert day.landed == day.sent
    assert day.lanes.held_bytes == day.lanes.held_records == 0


@given(seed=st.integers(0, 2**32), adaptive=st.booleans())
def test_a_later_plain_call_never_overtakes_an_earlier_one(seed: int, *, adaptive: bool) -> None:
    """Inside a call Kinesis stores in any order; across calls every key lands in its order."""
    day = RoughDay(seed, plain=True, adaptive=adaptive)
    day.run()
    for key, order in day.landed.items():
        assert sorted(order) == day.sent[key]
        calls = [day.first_call[key, number] for number in order]
        assert calls == sorted(calls)
    assert day.lanes.held_bytes == day.lanes.held_records == 0
