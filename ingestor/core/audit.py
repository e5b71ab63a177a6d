"""The proof: decoded records in; out, for every symbol and kind, what was delivered, what is declared, what is missing.

Ids are kept as intervals, so the memory of an audit grows with the number of holes and not with the number of records.
The live records of a subscription span the range that has to be complete; what came over REST (repairs, backfills)
fills it, and may lie outside. Identity is that of completeness.md §5.
"""

from __future__ import annotations

from collections import OrderedDict
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from msgspec import Struct

from ingestor.core.claims import Intervals, Range, claim_of
from ingestor.core.model import HoleReason, Subscription

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from ingestor.core.model import Hole, MarketData

DEPTH_RESTART_MS: Final = 10_000  # two connections cut windows differently, so a new time alone proves nothing
REMEMBERED: Final = 500_000  # events whose values are kept to be compared with a later duplicate; about 100 MB


class DeclaredHole(Struct, frozen=True):
    """Ids that a hole record declares and that nobody delivered."""

    first: int
    last: int
    reason: HoleReason


class StreamReport(Struct, frozen=True, kw_only=True):
    """What is proven for one subscription; all ranges are ids in its space (completeness.md §1).

    `generation` counts the times the venue began its ids again. `records` are all that were read; `interim` bars among
    them claim nothing. `disordered` live records came after one with a higher id. `conflicts` are ids that came twice
    with different values. `unseeded` are breaks of the order book that no later snapshot follows.
    """

    symbol: str
    kind: str
    generation: int
    records: int
    delivered: list[Range]
    delivered_ids: int
    declared: list[DeclaredHole]
    undeclared: list[Range]
    duplicates: int
    duplicated: list[Range]
    conflicts: list[int]
    disordered: int
    snapshots: int
    interim: int
    unseeded: list[Range]

    @property
    def declared_ids(self) -> int:
        """How many ids are missing and declared."""
        return sum(hole.last - hole.first + 1 for hole in self.declared)

    @property
    def undeclared_ids(self) -> int:
        """How many ids are missing and not declared."""
        return sum(hole.last - hole.first + 1 for hole in self.undeclared)


class AuditReport(Struct, frozen=True):
    """The whole proof. `undecodable` entries of the stream are not ours, not readable, or cannot be counted."""

    streams: list[StreamReport]
    undecodable: int

    @property
    def is_complete(self) -> bool:
        """Every id in the span of every subscription is delivered or declared, and none came with two values.

        Without any id nothing is proven, so that a mistyped symbol or time does not look well.
        """
        return self.is_about_something and not any(stream.undeclared or stream.conflicts for stream in self.streams)

    @property
    def is_about_something(self) -> bool:
        """Whether there was any id to count."""
        return any(stream.delivered or stream.declared for stream in self.streams)

    def rows(self) -> list[AuditRow]:
        """Give one line for each subscription, for a table."""
        return [
            AuditRow(
                symbol=stream.symbol,
                kind=stream.kind if not stream.generation else f"{stream.kind} (restart {stream.generation})",
                records=stream.records,
                first=stream.delivered[0].first if stream.delivered else None,
                last=stream.delivered[-1].last if stream.delivered else None,
                ranges=len(stream.delivered),
                duplicates=stream.duplicates,
                declared=stream.declared_ids,
                missing=stream.undeclared_ids,
                conflicts=len(stream.conflicts),
            )
            for stream in self.streams
        ]


class AuditRow(NamedTuple):
    """One line of the table; `declared` and `missing` count ids."""

    symbol: str
    kind: str
    records: int
    first: int | None
    last: int | None
    ranges: int
    duplicates: int
    declared: int
    missing: int
    conflicts: int


class _Chain:
    """One subscription since the venue last began its ids."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.records = 0
        self.delivered = Intervals()
        self.span: tuple[int, int] | None = None
        self.live_span: tuple[int, int] | None = None
        self.declared: dict[HoleReason, Intervals] = {}
        self.late = Intervals()  # kept apart until the span is known: shards are read side by side
        self.declared_late: dict[HoleReason, Intervals] = {}
        self.duplicates = 0
        self.duplicated = Intervals()
        self.conflicts: set[int] = set()
        self.disordered = 0
        self.snapshots = 0
        self.highest_snapshot = -1
        self.interim = 0
        self.began_ms: int | None = None  # the time of the first event that was delivered live
        self.newest_ms = 0

    def deliver(self, first: int, last: int, *, is_live: bool) -> bool:
        """Take delivered ids in; return whether all of them had been delivered before."""
        is_duplicate = self.delivered.covers(first, last)
        if is_duplicate:
            self.duplicates += 1
            self.duplicated.add(first, last)
        if is_live:
            self.disordered += not is_duplicate and self.live_span is not None and last < self.live_span[1]
            self.live_span = _widened(self.live_span, first, last)
        self.span = _widened(self.span, first, last)
        self.delivered.add(first, last)
        return is_duplicate

    def is_restart(self, last: int, at_ms: int, tolerance_ms: int) -> bool:
        """Say whether a live record has an old number and a new time, so that the ids must have begun again."""
        return self.live_span is not None and last < self.live_span[1] and at_ms > self.newest_ms + tolerance_ms

    def declare(self, hole: Hole, *, is_late: bool = False) -> None:
        """Take a hole in."""
        self.records += not is_late
        holes = self.declared_late if is_late else self.declared
        holes.setdefault(hole.reason, Intervals()).add(hole.first, hole.last)

    def report(self, subscription: Subscription) -> StreamReport:
        delivered = self._all_delivered()
        declared: dict[HoleReason, Intervals] = {
            reason: _without(holes, delivered) for reason, holes in self._all_declared().items()
        }
        missing = self._missing(delivered)
        undeclared = missing.copy()
        for holes in declared.values():
            undeclared.subtract(holes)
        return StreamReport(
            symbol=subscription.symbol,
            kind=subscription.kind,
            generation=self.generation,
            records=self.records,
            delivered=delivered.ranges(),
            delivered_ids=delivered.count(),
            declared=sorted(
                (DeclaredHole(first, last, reason) for reason, holes in declared.items() for first, last in holes),
                key=lambda hole: (hole.first, hole.last),
            ),
            undeclared=undeclared.ranges(),
            duplicates=self.duplicates,
            duplicated=self.duplicated.ranges(),
            conflicts=sorted(self.conflicts),
            disordered=self.disordered,
            snapshots=self.snapshots,
            interim=self.interim,
            unseeded=self._unseeded(missing) if subscription.kind == "depth" else [],
        )

    def _all_delivered(self) -> Intervals:
        delivered = self.delivered.copy()
        delivered.update(self._in_span(self.late))
        return delivered

    def _all_declared(self) -> dict[HoleReason, Intervals]:
        declared: dict[HoleReason, Intervals] = {reason: holes.copy() for reason, holes in self.declared.items()}
        for reason, holes in self.declared_late.items():
            declared.setdefault(reason, Intervals()).update(self._in_span(holes))
        return declared

    def _in_span(self, ids: Intervals) -> Intervals:
        span = self.live_span or self.span
        return Intervals() if span is None else ids.within(*span)

    def _missing(self, delivered: Intervals) -> Intervals:
        span = self.live_span or self.span
        return Intervals() if span is None else delivered.missing(*span)

    def _unseeded(self, missing: Intervals) -> list[Range]:
        """Find breaks above the newest snapshot: until there is one, nobody can follow the book across them."""
        return [Range(first, last) for first, last in missing if last > self.highest_snapshot]


class Audit:
    """Collects records in the order in which the stream holds them, and reports at any time."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._chains: dict[Subscription, list[_Chain]] = {}
        self._restarts: set[tuple[Subscription, Hole]] = set()
        self._announced: dict[Subscription, Hole] = {}  # restarts of which no new id came yet
        self._values: OrderedDict[Hashable, int] = OrderedDict()
        self._remembered = remembered
        self._undecodable = 0

    def add(self, record: MarketData, *, is_late: bool = False) -> None:
        """Take a record in. A late one arrived after the time that is audited: it may fill the range, not widen it."""
        claim = claim_of(record)
        if record.hole is not None:
            self._declare(Subscription(record.symbol, record.hole.stream), record.hole, is_late=is_late)
        elif claim is not None:
            self._deliver(claim.subscription, claim.first, claim.last, record, is_late=is_late)
        elif record.depth is not None:
            self._see_snapshot(record, is_late=is_late)
        elif record.kline is not None and record.kline.closed:
            self._undecodable += 1  # a bar of an interval that the venue does not have
        elif record.kline is not None and not is_late:
            chain = self._chain(Subscription(record.symbol, f"kline_{record.kline.interval}"))
            chain.records += 1
            chain.interim += 1

    def add_undecodable(self) -> None:
        """Count an entry of the stream that is not a record of ours."""
        self._undecodable += 1

    def report(self) -> AuditReport:
        """Say what is proven so far."""
        streams = []
        for subscription, chains in sorted(self._chains.items()):
            streams += [chain.report(subscription) for chain in chains if chain.records]  # the others are of late ones
            if (hole := self._announced.get(subscription)) is not None:
                empty = _Chain(len(chains))
                empty.declare(hole)
                streams.append(empty.report(subscription))
        return AuditReport(streams, self._undecodable)

    def _deliver(self, subscription: Subscription, first: int, last: int, record: MarketData, *, is_late: bool) -> None:
        chain = self._chain_of(subscription, first, record)
        is_live = record.source == "websocket"
        is_restart = record.kline is None and chain.is_restart(  # bars are numbered by the clock
            last, record.timestamp, DEPTH_RESTART_MS if record.trade is None else 0
        )
        if is_late:
            if not is_restart:
                chain.late.add(first, last)
            return
        if is_live and record.kline is None:
            if is_restart:
                chain = self._begin_again(subscription)
            chain.began_ms = record.timestamp if chain.began_ms is None else min(chain.began_ms, record.timestamp)
            chain.newest_ms = max(chain.newest_ms, record.timestamp)
        chain.records += 1
        is_duplicate = chain.deliver(first, last, is_live=is_live)
        identity = (subscription, chain.generation, first, last)
        values = hash(_values(record))
        known = self._values.setdefault(identity, values)
        if known != values and is_duplicate:
            chain.conflicts.add(last)
        if len(self._values) > self._remembered:
            self._values.popitem(last=False)

    def _declare(self, subscription: Subscription, hole: Hole, *, is_late: bool) -> None:
        """Take a hole in; one that tells of a restart may come before the first new ids, behind them, or twice."""
        chain = self._chain(subscription)
        if hole.reason == "id_restart" and hole.first > 0:
            chain = self._holder(subscription, hole.first)  # lost to the restart, of the ids before it
        elif hole.reason == "id_restart" and hole.last + 1 not in chain.delivered:
            if not is_late and (subscription, hole) not in self._restarts:
                self._announced[subscription] = hole
                self._restarts.add((subscription, hole))
            return
        chain.declare(hole, is_late=is_late)

    def _chain_of(self, subscription: Subscription, first: int, record: MarketData) -> _Chain:
        """Find the chain of an event; a task that is behind still delivers old ids when another one has begun anew."""
        newest = self._chain(subscription)
        chains = self._chains[subscription]
        if len(chains) == 1 or newest.began_ms is None or record.timestamp >= newest.began_ms:
            return newest
        before = chains[-2]
        return before if before.span is not None and first >= before.span[0] else newest

    def _begin_again(self, subscription: Subscription) -> _Chain:
        chains = self._chains[subscription]
        chains.append(_Chain(len(chains)))
        if (hole := self._announced.pop(subscription, None)) is not None:
            chains[-1].declare(hole)
        return chains[-1]

    def _holder(self, subscription: Subscription, number: int) -> _Chain:
        """Find the newest chain that reaches around an id; the newest one if none does."""
        chains = self._chains[subscription]
        around = [chain for chain in chains if chain.span is not None and chain.span[0] <= number <= chain.span[1]]
        return (around or chains)[-1]

    def _see_snapshot(self, record: MarketData, *, is_late: bool) -> None:
        chain = self._chain(Subscription(record.symbol, "depth"))
        if not is_late:
            chain.records += 1
            chain.snapshots += 1
        chain.highest_snapshot = max(chain.highest_snapshot, record.sequence)

    def _chain(self, subscription: Subscription) -> _Chain:
        """Find the newest chain of a subscription."""
        chains = self._chains.setdefault(subscription, [])
        if not chains:
            chains.append(_Chain(0))
        return chains[-1]


def _values(record: MarketData) -> Hashable:
    """Return what has to be equal when an event comes again; what REST does not know is left out."""
    bar, depth = record.kline, record.depth
    if bar is not None:
        prices = (bar.open, bar.high, bar.low, bar.close)
        taker = (bar.taker_buy_volume, bar.taker_buy_quote_volume)
        return (*prices, bar.volume, bar.quote_volume, bar.trade_count, *taker)
    if depth is not None:
        return (depth.first_update_id, tuple(map(tuple, depth.bids)), tuple(map(tuple, depth.asks)))
    return (record.price, record.volume, record.timestamp, record.trade and record.trade.buyer_is_maker)


class Difference(Struct, frozen=True):
    """An id for which the stream and the venue do not agree; values as text, empty where the side has none."""

    id: int
    problem: Literal["missing", "unknown_to_venue", "differs"]
    delivered: tuple[str, ...] = ()
    venue: tuple[str, ...] = ()


def compare(delivered: Mapping[int, tuple[str, ...]], venue: Mapping[int, tuple[str, ...]]) -> list[Difference]:
    """Compare decimals by id, as numbers: `1.50` equals `1.5`. Both sides must speak of the same range of ids."""
    differences = []
    for number in sorted(delivered.keys() | venue.keys()):
        ours, theirs = delivered.get(number, ()), venue.get(number, ())
        if not ours:
            differences.append(Difference(number, "missing", ours, theirs))
        elif not theirs:
            differences.append(Difference(number, "unknown_to_venue", ours, theirs))
        elif ours != theirs and list(map(Decimal, ours)) != list(map(Decimal, theirs)):
            differences.append(Difference(number, "differs", ours, theirs))
    return differences


def _widened(span: tuple[int, int] | None, first: int, last: int) -> tuple[int, int]:
    return (first, last) if span is None else (min(span[0], first), max(span[1], last))


def _without(intervals: Intervals, other: Intervals) -> Intervals:
    rest = intervals.copy()
    rest.subtract(other)
    return rest
