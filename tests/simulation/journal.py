"""Everything that went into the two streams of a simulated run, with what has to hold at that very moment."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestor.core.claims import COVERED_LIMIT, Intervals, claim_of
from ingestor.core.kpl import disaggregate
from ingestor.core.model import Claim, EntryFailure, Subscription
from ingestor.core.resume import beat_from_avro
from ingestor.serializer import Serializer, decode_heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingestor.aws import StoredRecord
    from ingestor.core.claims import Entry
    from ingestor.core.model import EntryResult, MarketData, PutEntry
    from ingestor.core.resume import Beat


RESTARTED_BELOW: Final = 1_000_000  # the market begins far above, and again at 0


def is_restarted(subscription: Subscription, number: int) -> bool:
    """Say whether an id is of the second generation: bars have but one, and a run restarts ids once at most."""
    return not subscription.kind.startswith("kline") and number < RESTARTED_BELOW


class Stored(NamedTuple):
    """A record in the data stream: in which shard, by which life, at which virtual second."""

    shard: int
    life: int
    at_s: float
    record: MarketData
    claim: Claim | None

    @property
    def ids(self) -> Claim | None:
        """What it delivers or declares, whether it claims that or not."""
        hole = self.record.hole
        if hole is None:
            return self.claim
        return Claim(Subscription(self.record.symbol, hole.stream), hole.first, hole.last)


class Journal:
    """Reads along, and notes in `problems` what must never be."""

    def __init__(self, now: Callable[[], float], is_origin_excused: Callable[[], bool]) -> None:
        self.problems: list[str] = []
        self.stored: list[Stored] = []
        self.beats: list[tuple[int, Beat]] = []
        self.acknowledged: dict[Subscription, Intervals] = {}
        self.origins: dict[tuple[Subscription, bool], int] = {}  # by generation
        self._claimed: dict[tuple[Subscription, int], Intervals] = {}  # by generation
        self._claimed_before: dict[int, dict[tuple[Subscription, int], Intervals]] = {}  # by life
        self._claims: dict[bytes, list[Claim]] = {}
        self._decode = Serializer().decode
        self._digest = blake2b(digest_size=8)
        self._now = now
        self._is_origin_excused = is_origin_excused

    @property
    def digest(self) -> str:
        """Name all that was stored, and when, to the last byte."""
        return self._digest.hexdigest()

    def begin_life(self, life: int) -> None:
        """Note what is claimed when a life begins: it inherits all of that."""
        self._claimed_before[life] = {key: covered.copy() for key, covered in self._claimed.items()}

    def claimed_before_restart(self, subscription: Subscription) -> Intervals:
        """Return what any beat ever claimed of the first ids of a subscription."""
        claimed = self._claimed.get((subscription, 0), Intervals())
        return claimed.within(RESTARTED_BELOW, 1 << 62)

    def take_record(self, shard: int, entry: StoredRecord, life: int) -> None:
        """Note what the data stream has stored."""
        self._digest.update(b"%d %d %d %b" % (shard, life, entry.arrival_ms, entry.data))
        claims = self._claims[entry.data] = []
        for _, _, data in disaggregate(entry.data, entry.partition_key):
            record = self._decode(data)
            claim = claim_of(record)
            self.stored.append(Stored(shard, life, self._now(), record, claim))
            if claim is not None:
                claims.append(claim)
                self._check_origin(claim)
                if record.source == "rest":
                    self._check_need(claim, life)

    def take_answer(self, entries: Sequence[PutEntry], answer: Sequence[EntryResult]) -> None:
        """Note what a life was told of its entries."""
        for entry, result in zip(entries, answer, strict=True):
            if not isinstance(result, EntryFailure):
                for claim in self._claims[entry.data]:
                    self.acknowledged.setdefault(claim.subscription, Intervals()).add(claim.first, claim.last)

    def take_beat(self, _shard: int, entry: StoredRecord, life: int) -> None:
        """Note a heartbeat, which may claim nothing that was not acknowledged."""
        beat = beat_from_avro(decode_heartbeat(entry.data))
        entries = sorted(map(repr, beat.entries))  # a set of names decides their order, and means nothing by it
        self._digest.update(f"beat {life} {entry.arrival_ms} {beat.beat} {entries}".encode())
        self.beats.append((life, beat))
        for subscription, claimed in beat.coverage():
            of = subscription, is_restarted(subscription, claimed.origin)
            self.origins[of] = min(self.origins.get(of, claimed.origin), claimed.origin)
            ahead = claimed.covered.copy()
            ahead.subtract(self.acknowledged.get(subscription, Intervals()))
            if ahead:
                self._complain(f"life {life} claims {ahead} of {subscription.stream_name}, never acknowledged")
            self._check_inheritance(life, subscription, claimed)

    def _check_inheritance(self, life: int, subscription: Subscription, entry: Entry) -> None:
        """Once its search is over, a life claims all that was claimed before it, as long as a beat can carry that."""
        key = subscription, entry.generation
        self._claimed.setdefault(key, Intervals()).update(entry.covered)
        lost = self._claimed_before[life].get(key, Intervals()).copy()
        lost.subtract(entry.covered)
        if lost and entry.settled and len(entry.covered) < COVERED_LIMIT:
            self._complain(f"life {life} has forgotten {lost} of {subscription.stream_name}")

    def _check_origin(self, claim: Claim) -> None:
        is_new = is_restarted(claim.subscription, claim.last)  # then everything from 0 on is owed
        origin = self.origins.get((claim.subscription, is_new))
        if (origin is None or (claim.last < origin and not is_new)) and not self._is_origin_excused():
            self._complain(f"{claim} is stored before its origin {origin} is written")

    def _check_need(self, claim: Claim, life: int) -> None:
        """Fetch nothing again that was claimed before this life began, as long as a beat can carry that."""
        for (subscription, _), claimed in self._claimed_before[life].items():
            is_known = subscription == claim.subscription and claimed.covers(claim.first, claim.last)
            if is_known and len(claimed) < COVERED_LIMIT:
                self._complain(f"life {life} has fetched {claim} again")

    def _complain(self, text: str) -> None:
        self.problems.append(f"{self._now():.3f} s: {text}")
