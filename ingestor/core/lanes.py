"""Lanes: what keeps records in order on the way into Kinesis, and decides which of them travel in the next call.

A record's partition key decides its lane for good. A lane has at most one put in flight, and what failed goes again
before anything newer, so a later call never overtakes an earlier one of the same key. PutRecords promises no order
*inside* a call (facts/aws.md §1.3). Aggregated, that costs nothing: a call carries at most one blob of a lane, and
inside a blob the order is fixed. Plain (no aggregation), a call carries many records of a lane, so **order by key holds
only across calls**: records of one call that were refused go again together, and may land in any order then.

An entry takes its share of what its shard may be sent (`core/shards.py`); a lane whose shard has no room waits, and
holds up nobody but the other lanes of that shard, which take turns with it.

`add` is the only door in. A lane that refills from elsewhere (a disk, while the sink is away) is one that `add` feeds
later, from what was kept for it. For whoever keeps it, every record of a lane has a position, counted from the first
one added: `settled_until` says below which position nothing is owed any more, `records_from` what is owed above one.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from hashlib import md5
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias

from ingestor.core.model import Claim, EncodedRecord, PutEntry
from ingestor.core.shards import Shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ingestor.core.delivery import Verdict
    from ingestor.core.model import Subscription
    from ingestor.core.shards import ShardBudget, ShardInfo

Trigger: TypeAlias = Literal["records", "bytes", "age", "idle", "end", "retry"]

# What a held record costs beside its bytes: the struct, the headers of its objects, its claim and a place in a queue
# (sys.getsizeof on CPython 3.11, rounded up).
RECORD_COST_BYTES: Final = 256
# The least that a record adds to a blob beside its data: two tags, two lengths and four bytes of indexes. Being the
# least, it makes a lane count as full only when it really fills a blob.
BLOB_OVERHEAD_BYTES: Final = 8
# A full blob waits this share of the flush interval for full blobs of other lanes: a call costs the client as much as
# two blobs inside it, so eight blobs in one call cost less than half of eight calls (facts/aws.md §1.8).
LINGER_SHARE: Final = 0.1
KEYS_REMEMBERED: Final = 100_000
ANY_COMPANY: Final = sys.maxsize


class Delays(Protocol):
    """How long a lane waits before it tries again (`core/backoff.py`)."""

    def next_delay(self) -> float:
        """Return the seconds to wait now."""
        ...

    def reset(self) -> None:
        """Start again from the shortest delay."""
        ...


class Aggregate(Protocol):
    """Packs records into one entry, in order, until the next would not fit (`core/kpl.py`)."""

    def __call__(
        self, records: Iterable[EncodedRecord], explicit_hash_key: str, max_bytes: int, /
    ) -> tuple[PutEntry, int]:
        """Return the entry and how many records it took, perhaps none."""
        ...


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """How full a call and a blob may be, and how long a record may wait for company. `adaptive`: not at all.

    `shard_share` is how much of the limits of a shard may be used.
    """

    max_entries: int
    max_bytes: int
    blob_bytes: int
    flush_interval_s: float
    adaptive: bool
    shard_share: float


class Arrival(NamedTuple):
    """How many records came together, and when; all times are of the monotonic clock."""

    received_s: float
    arrived_s: float
    records: int


@dataclass(slots=True, eq=False)
class Parcel:
    """One entry of a put, with the records in it until Kinesis has them."""

    lane: Lane
    position: int  # of its first record in the lane
    entry: PutEntry
    records: list[EncodedRecord]
    arrivals: list[Arrival]
    attempts: int = 0
    refusals: int = 0
    company: int = ANY_COMPANY  # entries a call with this one may carry; lower once such a call was refused as a whole
    may_have_landed: bool = False
    declares: bool = False  # it holds what `replace` put there: holes for what was given up
    data_bytes: int = field(init=False)
    claims: list[Claim] = field(init=False)  # what its acknowledgement proves

    def __post_init__(self) -> None:
        """Add up the records while they are at hand: once the answer has come, each has to be fetched from memory."""
        self.data_bytes = sum([len(record.data) for record in self.records])
        self.claims = joined_claims([record.claim for record in self.records])

    @property
    def size_bytes(self) -> int:
        """What Kinesis counts: the data and the partition key."""
        return len(self.entry.data) + len(self.entry.partition_key.encode())

    @property
    def held_bytes(self) -> int:
        """What it costs to hold."""
        return self.data_bytes + RECORD_COST_BYTES * len(self.records)


@dataclass(slots=True, eq=False)
class Lane:
    """Records of some keys, oldest first: `parcels` (of which the first `in_flight` are in a call), then `waiting`."""

    index: int
    hash_key: str
    delays: Delays
    added: int = 0  # records that ever came, and so the position of the next one
    waiting: deque[EncodedRecord] = field(default_factory=deque[EncodedRecord])
    waiting_bytes: int = 0
    arrivals: deque[Arrival] = field(default_factory=deque[Arrival])
    arrived: int = 0  # records that `arrivals` speaks of
    parcels: list[Parcel] = field(default_factory=list[Parcel])
    in_flight: int = 0
    retry_at: float = -math.inf
    full_since: float = math.inf  # when a whole blob was waiting for the first time
    turn: int = 0  # the number of the last call that took it along
    budget: ShardBudget | None = None  # of the shard that all its blobs go to

    @property
    def waiting_cost_bytes(self) -> int:
        """What it costs to hold the records that are in no parcel yet, about."""
        return self.waiting_bytes + RECORD_COST_BYTES * len(self.waiting)

    @property
    def waiting_position(self) -> int:
        """The position of the oldest record that is in no parcel yet."""
        return self.added - len(self.waiting)

    def pack(self, entry: PutEntry, count: int) -> Parcel:
        """Take out the oldest `count` waiting records, which `entry` is made of."""
        popleft = self.waiting.popleft
        position = self.waiting_position
        records = [popleft() for _ in range(count)]
        parcel = Parcel(self, position, entry, records, take_arrivals(self.arrivals, count))
        self.waiting_bytes -= parcel.data_bytes + BLOB_OVERHEAD_BYTES * count
        self.arrived -= count
        return parcel


class Lanes:
    """All lanes of a stream. Every method decides and returns at once; `now` is the caller's monotonic clock.

    A call that `take` returned is brought back with `settle`, `refuse` or neither (all of it goes again), and then in
    any case with `release`, which sets its lanes free.
    """

    def __init__(
        self, count: int, limits: LaneLimits, new_delays: Callable[[], Delays], aggregate: Aggregate | None
    ) -> None:
        """Make `count` lanes, each with its point of the hash space; without `aggregate` a record is an entry."""
        self.triggers: Counter[Trigger] = Counter()
        self.held_bytes = 0
        self.shards = Shards(limits.shard_share, 0 if aggregate is None else limits.blob_bytes)
        self.hot_keys: dict[str, str] = {}  # those that one shard is too small for, with its id
        self._limits = limits
        self._aggregate = aggregate
        self._lanes = [Lane(index, str(lane_point(index, count)), new_delays()) for index in range(count)]
        self._lane_by_key: dict[str, Lane] = {}
        self._budget_by_key: dict[str, ShardBudget | None] = {}  # where records travel one by one
        self._calls = 0

    def __repr__(self) -> str:
        return f"<Lanes {len(self._lanes)}, {self.held_records} records, {self.held_bytes} bytes>"

    @property
    def held_records(self) -> int:
        """Records that are here, in flight or not."""
        return sum(len(lane.waiting) + sum(len(parcel.records) for parcel in lane.parcels) for lane in self._lanes)

    @property
    def count(self) -> int:
        """How many lanes there are."""
        return len(self._lanes)

    def __getitem__(self, index: int) -> Lane:
        return self._lanes[index]

    def sort(self, records: Iterable[EncodedRecord]) -> dict[int, list[EncodedRecord]]:
        """Divide records by the lane that their key belongs to, in order."""
        lane_by_key = self._lane_by_key
        by_lane: dict[int, list[EncodedRecord]] = {}
        for record in records:
            lane = lane_by_key.get(record.partition_key) or self._find_lane(record.partition_key)
            by_lane.setdefault(lane.index, []).append(record)
        return by_lane

    def settled_until(self, index: int) -> int:
        """Return the position in lane `index` below which every record was delivered, or declared in its place."""
        lane = self._lanes[index]
        return lane.parcels[0].position if lane.parcels else lane.waiting_position

    def records_from(self, index: int, position: int) -> list[EncodedRecord]:
        """Return what lane `index` still owes from `position` on, in order; it stays there.

        Holes in the place of what stood below `position` are left out with it.
        """
        lane = self._lanes[index]
        records: list[EncodedRecord] = []
        for parcel in lane.parcels:
            if parcel.position >= position:
                records += parcel.records
            elif not parcel.declares:
                records += parcel.records[position - parcel.position :]
        records += islice(lane.waiting, max(0, position - lane.waiting_position), None)
        return records

    def add(self, records: Sequence[EncodedRecord], received_s: float, now: float) -> None:
        """Take over records that were received together."""
        lane_by_key = self._lane_by_key
        size = 0
        for record in records:
            lane = lane_by_key.get(record.partition_key) or self._find_lane(record.partition_key)
            length = len(record.data)
            lane.waiting.append(record)
            lane.waiting_bytes += length + BLOB_OVERHEAD_BYTES
            size += length
        self.held_bytes += size + RECORD_COST_BYTES * len(records)
        for lane in self._lanes:
            if count := len(lane.waiting) - lane.arrived:
                lane.arrivals.append(Arrival(received_s, now, count))
                lane.arrived += count
                lane.added += count
                if lane.waiting_bytes >= self._limits.blob_bytes:
                    lane.full_since = min(lane.full_since, now)

    def learn(self, shards: Iterable[ShardInfo]) -> None:
        """Take over the map of the stream; with no shard in it there is no budget."""
        self.shards.learn(shards)
        self._budget_by_key.clear()
        if self._aggregate is not None:
            for lane in self._lanes:
                lane.budget = self.shards.budget_at(int(lane.hash_key))

    def due_at(self, now: float, *, at_once: bool = False) -> float:
        """When to look at `take`: it has something if that is not after `now`.

        -inf for long since, inf for not before a record comes or a call returns.
        """
        ready, opens_at = self._ready(now)
        fresh = _fresh(ready)
        if at_once and fresh:
            return -math.inf
        retry_at = min((lane.retry_at for lane in ready if lane.parcels), default=math.inf)
        return min(retry_at, opens_at, self._fresh_due(fresh)[0])

    def waiting_for_shards(self, now: float) -> int:
        """How many lanes would send now, and have to wait until their shard has room."""
        held_up = (lane for lane in self._lanes if not lane.in_flight and self._opens_at(lane) > now)
        return sum(self._ripe_at(lane) <= now for lane in held_up)

    def take(self, now: float, *, at_once: bool = False) -> list[Parcel]:
        """Form the next call, in the order of its entries; empty when nothing is due (`at_once`: everything is).

        What goes again goes first; entries of a call that was refused as a whole travel apart from all others.
        """
        ready = sorted(self._ready(now)[0], key=attrgetter("turn"))
        again = [lane for lane in ready if lane.parcels and lane.retry_at <= now]
        suspects = [lane for lane in again if lane.parcels[0].company < ANY_COMPANY]
        fresh, trigger = self._leaving(_fresh(ready), now, at_once=at_once)
        call = Call(self._limits.max_entries, self._limits.max_bytes)
        for lane in suspects or [*again, *fresh]:
            self._board(lane, call, now)
        if call.parcels:
            self.triggers["retry" if suspects or not fresh else trigger] += 1
            self._calls += 1
            for lane in lanes_of(call.parcels):
                lane.turn = self._calls
        return call.parcels

    def settle(self, call: Sequence[Parcel], verdicts: Sequence[Verdict], now: float) -> None:
        """Let go what was delivered; hold up each lane that has an entry to send again. `never` waits for `replace`."""
        judged = dict(zip(call, verdicts, strict=True))
        for lane in lanes_of(call):
            lane.parcels = [parcel for parcel in lane.parcels if judged.get(parcel) != "delivered"]
        self.held_bytes -= sum(parcel.held_bytes for parcel, verdict in judged.items() if verdict == "delivered")
        failed = lanes_of([parcel for parcel, verdict in judged.items() if verdict == "again"])
        for lane in lanes_of(call):
            if lane in failed:
                lane.retry_at = now + lane.delays.next_delay()
            else:
                lane.retry_at = -math.inf
                lane.delays.reset()

    def refuse(self, call: Sequence[Parcel]) -> Parcel | None:
        """Narrow down which record made Kinesis refuse a call as a whole; return the parcel once it is proven.

        Half as many entries travel together the next time, and the halves of a lone blob travel alone, until one record
        stands alone; it waits for `replace`.
        """
        if len(call) > 1:
            for parcel in call:
                parcel.company = len(call) // 2
            return None
        [parcel] = call
        if len(parcel.records) == 1:
            return parcel
        middle = len(parcel.records) // 2
        later = deque(parcel.arrivals)
        halves = self._pack(parcel, parcel.records[:middle], take_arrivals(later, middle))
        halves += self._pack(parcel, parcel.records[middle:], later, skipped=middle)
        for half in halves:
            half.company = 1
            half.attempts = parcel.attempts
        self._put_in_place(parcel, halves)
        return None

    def replace(self, parcel: Parcel, records: Sequence[EncodedRecord]) -> None:
        """Put `records`, holes, where a parcel was that is given up; none at all just lets it go."""
        arrivals = [parcel.arrivals[0]._replace(records=len(records))]
        declarations = self._pack(parcel, records, arrivals)
        for declaration in declarations:
            declaration.declares = True
        self._put_in_place(parcel, declarations)

    def release(self, call: Sequence[Parcel]) -> None:
        """Set the lanes of a call free for the next one."""
        for lane in lanes_of(call):
            lane.in_flight = 0

    def _find_lane(self, partition_key: str) -> Lane:
        if len(self._lane_by_key) >= KEYS_REMEMBERED:
            self._lane_by_key.clear()
        lane = self._lanes[lane_index(partition_key, len(self._lanes))]
        self._lane_by_key[partition_key] = lane
        return lane

    def _ready(self, now: float) -> tuple[list[Lane], float]:
        """Return the idle lanes whose shard has room, and when the first one of the others may have some."""
        idle = [lane for lane in self._lanes if not lane.in_flight]
        if not self.shards:
            return idle, math.inf
        ready: list[Lane] = []
        next_at = math.inf
        for lane in idle:
            opens_at = self._opens_at(lane)
            if opens_at <= now:
                ready.append(lane)
            else:
                next_at = min(next_at, max(opens_at, lane.retry_at) if lane.parcels else opens_at)
        return ready, next_at

    def _opens_at(self, lane: Lane) -> float:
        """From when on there is room for the next entry of a lane; whoever has none waits for nothing."""
        budget = self._next_budget(lane)
        return -math.inf if budget is None else budget.opens_at

    def _next_budget(self, lane: Lane) -> ShardBudget | None:
        """Return what the next entry of a lane will be taken from; None without an entry, or without a map."""
        is_packed = lane.in_flight < len(lane.parcels)
        if not self.shards or not (is_packed or lane.waiting):
            return None
        if self._aggregate is not None:
            return lane.budget
        key = lane.parcels[lane.in_flight].entry.partition_key if is_packed else lane.waiting[0].partition_key
        return self._budget_by_key.get(key) or self._find_budget(key)

    def _find_budget(self, partition_key: str) -> ShardBudget | None:
        if len(self._budget_by_key) >= KEYS_REMEMBERED:
            self._budget_by_key.clear()
        budget = self._budget_by_key[partition_key] = self.shards.budget_at(hash_of(partition_key))
        return budget

    def _spend(self, budget: ShardBudget, parcel: Parcel, now: float) -> None:
        budget.spend(parcel.size_bytes, now)
        if budget.sample_at <= now:
            bytes_by_key: Counter[str] = Counter()
            for record in parcel.records:
                bytes_by_key[record.partition_key] += len(record.data)
            key = budget.sample(bytes_by_key, now)
            if key is not None:
                self.hot_keys[key] = budget.shard_id

    def _fresh_due(self, fresh: Sequence[Lane]) -> tuple[float, Trigger]:
        """When lanes with nothing but new records want to leave, and why."""
        if not fresh:
            return math.inf, "age"
        if self._limits.adaptive:
            return -math.inf, "idle"
        age_due_at = self._age_due(fresh)
        full_due_at, trigger = self._plain_due(fresh) if self._aggregate is None else self._blobs_due(fresh)
        return (full_due_at, trigger) if full_due_at < age_due_at else (age_due_at, "age")

    def _age_due(self, fresh: Sequence[Lane]) -> float:
        """When age takes all lanes along; full blobs go by themselves, or one that waits for its shard would do so."""
        patient = (lane for lane in fresh if self._aggregate is None or lane.full_since == math.inf)
        return min((lane.arrivals[0].arrived_s for lane in patient), default=math.inf) + self._limits.flush_interval_s

    def _ripe_at(self, lane: Lane) -> float:
        """When a lane that has something would send it, if it were alone."""
        if lane.parcels:
            return lane.retry_at
        patience_s = 0.0 if self._limits.adaptive else self._limits.flush_interval_s
        return min(lane.full_since, lane.arrivals[0].arrived_s + patience_s)

    def _plain_due(self, fresh: Sequence[Lane]) -> tuple[float, Trigger]:
        if sum(len(lane.waiting) for lane in fresh) >= self._limits.max_entries:
            return -math.inf, "records"
        is_full = sum(lane.waiting_bytes for lane in fresh) >= self._limits.max_bytes
        return (-math.inf if is_full else math.inf), "bytes"

    def _blobs_due(self, fresh: Sequence[Lane]) -> tuple[float, Trigger]:
        """Full blobs leave when half of the lanes have one, when one lane has two, or after a short wait for that."""
        full = [lane for lane in fresh if lane.full_since < math.inf]
        if not full:
            return math.inf, "bytes"
        if 2 * len(full) >= len(self._lanes) or any(lane.waiting_bytes >= 2 * self._limits.blob_bytes for lane in full):
            return -math.inf, "bytes"
        return min(lane.full_since for lane in full) + LINGER_SHARE * self._limits.flush_interval_s, "bytes"

    def _leaving(self, fresh: list[Lane], now: float, *, at_once: bool) -> tuple[list[Lane], Trigger]:
        """Choose among lanes with nothing but new records: full blobs leave without the others, age takes all along.

        Taken along, lanes age together from then on, and one call an interval serves them all.
        """
        due_at, trigger = self._fresh_due(fresh)
        if at_once:
            return fresh, "end"
        if not fresh or due_at > now:
            return [], trigger
        if trigger == "bytes" and self._aggregate is not None and self._age_due(fresh) > now:
            return [lane for lane in fresh if lane.full_since < math.inf], trigger
        return fresh, trigger

    def _board(self, lane: Lane, call: Call, now: float) -> None:
        """Put entries of `lane` into `call` as far as call and shard have room: what goes again, or what is new."""
        is_fresh = not lane.parcels
        attempts = 0 if is_fresh else lane.parcels[0].attempts
        most = 1 if self._aggregate is not None else self._limits.max_entries
        while lane.in_flight < most:
            budget = self._next_budget(lane)
            if budget is not None and budget.opens_at > now:
                return
            if is_fresh and lane.waiting and call.admits(plain_size_bytes(lane.waiting[0]), ANY_COMPANY):
                lane.parcels.append(self._next_parcel(lane))
            if lane.in_flight == len(lane.parcels):
                return
            parcel = lane.parcels[lane.in_flight]
            if parcel.attempts != attempts:
                return  # it has not been in the same calls as the first one, so it may not be in this one either
            if not call.admits(parcel.size_bytes, parcel.company):
                return
            call.add(parcel)
            parcel.attempts += 1
            lane.in_flight += 1
            if budget is not None:
                self._spend(budget, parcel, now)

    def _next_parcel(self, lane: Lane) -> Parcel:
        entry, count = self._wrap(lane, lane.waiting)
        parcel = lane.pack(entry, count)
        if lane.waiting_bytes < self._limits.blob_bytes:
            lane.full_since = math.inf
        return parcel

    def _pack(
        self, old: Parcel, records: Sequence[EncodedRecord], arrivals: Iterable[Arrival], skipped: int = 0
    ) -> list[Parcel]:
        """Make parcels that take the place of `old`, or of its records behind the first `skipped` ones."""
        lane = old.lane
        parcels: list[Parcel] = []
        left = deque(arrivals)
        done = 0
        while done < len(records):
            entry, count = self._wrap(lane, islice(records, done, None))
            taken = take_arrivals(left, count)
            position = old.position + skipped + done
            parcels.append(Parcel(lane, position, entry, list(records[done : done + count]), taken))
            done += count
        return parcels

    def _wrap(self, lane: Lane, records: Iterable[EncodedRecord]) -> tuple[PutEntry, int]:
        """Make the next entry of a lane out of at least the first record; returns how many records it took.

        A record that is alone (no second one waits, or it is larger than a blob) goes raw, as with the KPL: any reader
        can read it, and it is smaller. It keeps the lane's hash key, or it could land in another shard than the blobs
        before it and be read out of order.
        """
        if self._aggregate is not None:
            remaining = iter(records)
            first = list(islice(remaining, 1))
            entry, count = self._aggregate(chain(first, remaining), lane.hash_key, self._limits.blob_bytes)
            if count > 1:
                return entry, count
            return PutEntry(first[0].data, first[0].partition_key, lane.hash_key), 1
        [record] = islice(records, 1)
        return PutEntry(record.data, record.partition_key, None), 1

    def _put_in_place(self, parcel: Parcel, parcels: list[Parcel]) -> None:
        place = parcel.lane.parcels.index(parcel)
        parcel.lane.parcels[place : place + 1] = parcels
        self.held_bytes += sum(new.held_bytes for new in parcels) - parcel.held_bytes


@dataclass(slots=True)
class Call:
    """The entries of a call while it is formed; the first one always has room, or it could never leave."""

    room_entries: int
    room_bytes: int
    parcels: list[Parcel] = field(default_factory=list[Parcel])

    def admits(self, size_bytes: int, company: int) -> bool:
        """Say whether an entry that tolerates `company` entries beside and with it still fits."""
        if not self.parcels:
            return True
        return size_bytes <= self.room_bytes and self.room_entries > 0 and len(self.parcels) < company

    def add(self, parcel: Parcel) -> None:
        """Take an entry in."""
        self.parcels.append(parcel)
        self.room_entries = min(self.room_entries - 1, parcel.company - len(self.parcels))
        self.room_bytes -= parcel.size_bytes


def _fresh(lanes: Iterable[Lane]) -> list[Lane]:
    return [lane for lane in lanes if lane.waiting and not lane.parcels]


def lanes_of(parcels: Iterable[Parcel]) -> list[Lane]:
    """Return the lanes of some parcels, each once, in order."""
    return list({id(parcel.lane): parcel.lane for parcel in parcels}.values())


def hash_of(partition_key: str) -> int:
    """Return the hash key that Kinesis gives to a partition key."""
    return int.from_bytes(md5(partition_key.encode(), usedforsecurity=False).digest(), "big")


def lane_index(partition_key: str, count: int) -> int:
    """Return the lane of a key: its 128-bit hash in `count` equal parts."""
    return hash_of(partition_key) * count >> 128


def lane_point(index: int, count: int) -> int:
    """Return the middle of lane `index`'s part of the hash space.

    The middle, because the ends are where shards begin and end, and a shard's very last key has puzzled consumers.
    """
    return ((2 * index + 1) << 127) // count


def plain_size_bytes(record: EncodedRecord) -> int:
    """Return what Kinesis counts for a record that travels as its own entry."""
    return len(record.data) + len(record.partition_key.encode())


def take_arrivals(arrivals: deque[Arrival], count: int) -> list[Arrival]:
    """Take the arrivals of the oldest `count` records out, in order."""
    taken: list[Arrival] = []
    while count:
        oldest = arrivals.popleft()
        if oldest.records > count:
            arrivals.appendleft(Arrival(oldest.received_s, oldest.arrived_s, oldest.records - count))
            oldest = Arrival(oldest.received_s, oldest.arrived_s, count)
        taken.append(oldest)
        count -= oldest.records
    return taken


def claims_of(parcels: Iterable[Parcel]) -> list[Claim]:
    """Return what the acknowledgement of `parcels` proves, neighbouring ids of a subscription joined."""
    return joined_claims(chain.from_iterable(parcel.claims for parcel in parcels))


def joined_claims(claims: Iterable[Claim | None]) -> list[Claim]:
    """Return claims with neighbouring ids of a subscription joined."""
    joined: list[Claim] = []
    runs: dict[Subscription, list[int]] = {}
    for claim in claims:
        if claim is None:
            continue
        subscription, first, last = claim.subscription, claim.first, claim.last
        run = runs.get(subscription)
        if run is None:
            runs[subscription] = [first, last]
        elif run[0] <= first <= run[1] + 1:
            if last > run[1]:  # noqa: PLR1730 - max() would be a call for every record
                run[1] = last
        else:
            joined.append(Claim(subscription, *run))
            run[:] = first, last
    return joined + [Claim(subscription, *run) for subscription, run in runs.items()]


def arrivals_of(parcels: Iterable[Parcel]) -> dict[float, int]:
    """Return how many records of `parcels` were received at each moment, which is what a histogram takes."""
    counts: dict[float, int] = {}
    for parcel in parcels:
        for arrival in parcel.arrivals:
            counts[arrival.received_s] = counts.get(arrival.received_s, 0) + arrival.records
    return counts
