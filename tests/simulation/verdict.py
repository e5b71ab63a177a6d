"""What must hold after a run, whatever happened in it (completeness.md); every breach becomes one line of text."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from ingestor.core.audit import Audit
from ingestor.core.claims import Intervals
from ingestor.core.model import Subscription
from ingestor.local.history import units
from ingestor.local.proof import minus
from tests.simulation.journal import is_restarted
from tests.simulation.plan import STREAMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ingestor.core.model import Gap, MarketData
    from ingestor.local.history import Message
    from tests.simulation.journal import Stored
    from tests.simulation.line import Running, Simulation

RARE: Final = 0.01  # of all entries
Told: TypeAlias = "Mapping[tuple[Subscription, int], Message]"


def judge(simulation: Simulation) -> list[str]:
    """Return every breach of a promise in a run that is over."""
    journal = simulation.journal
    found = list(simulation.problems)
    found += _unheard(simulation)
    found += _missing(simulation)
    found += _audited(simulation)
    found += _wrong_values(journal.stored, simulation.market.told)
    if simulation.plan.aggregation == "kpl":  # plain entries of one call may land in any order
        found += _disordered(journal.stored)
        found += _disordered_repairs(simulation)
    found += _undeserved_holes(simulation)
    found += _unfinished_business(simulation)
    found += _throttled(simulation)
    if not simulation.plan.may_repeat:
        found += _repeated(journal.stored)
    return found


def delivered_and_declared(
    stored: Sequence[Stored],
) -> tuple[dict[Subscription, Intervals], dict[Subscription, Intervals]]:
    """Return the ids that came as data, and those that a hole declares."""
    delivered: dict[Subscription, Intervals] = {}
    declared: dict[Subscription, Intervals] = {}
    for each in stored:
        if (ids := each.ids) is not None:
            into = delivered if each.record.hole is None else declared
            into.setdefault(ids.subscription, Intervals()).add(ids.first, ids.last)
    return delivered, declared


def _unheard(simulation: Simulation) -> Iterator[str]:
    """Find streams that nobody subscribed to: the venue has no account of what they owe."""
    for stream in STREAMS:
        if stream not in simulation.world.venue.subscribed:
            yield f"{stream} was never subscribed to"


def _missing(simulation: Simulation) -> Iterator[str]:
    """Every id since the first origin that was written down is delivered or declared, up to the end."""
    journal = simulation.journal
    delivered, declared = delivered_and_declared(journal.stored)
    last_line = simulation.lives[-1].line
    ends = {} if last_line is None else last_line.intake.next_ids()
    for subscription, account in sorted(simulation.world.venue.ledger.items()):
        origin = journal.origins.get((subscription, is_restarted(subscription, ends.get(subscription, 0))))
        if origin is None or subscription not in ends:
            yield f"{subscription.stream_name} was never counted"
            continue
        here, holes = (each.get(subscription, Intervals()) for each in (delivered, declared))
        owed = account.produced.within(origin, ends[subscription] - 1)
        if is_restarted(subscription, ends[subscription]):
            owed = _owed_of_two_generations(simulation, subscription, ends[subscription])
        missing = minus(minus(owed, here), holes)
        if missing:
            yield f"{subscription.stream_name} lacks {missing}"


def _owed_of_two_generations(simulation: Simulation, subscription: Subscription, end: int) -> Intervals:
    """Return all new ids, if any task knew old ones, and of the old ones those that can be declared."""
    produced, origins = simulation.world.venue.ledger[subscription].produced, simulation.journal.origins
    old_origin = origins.get((subscription, False))
    if old_origin is None:
        return produced.within(origins[subscription, True], end - 1)
    owed = produced.within(0, end - 1)
    owed.update(produced.within(old_origin, _declarable_until(simulation, subscription)))
    return owed


def _declarable_until(simulation: Simulation, subscription: Subscription) -> int:
    """Return up to where it can be known which of the old ids are lost, once the venue has begun again.

    Up to what any beat claimed: of more nobody knows. And a task that ends before its holes are in the stream has said
    already that other ids count; then the audit names them, and nobody else.
    """
    plan = simulation.plan
    restarted_s = min((each.at_s for each in plan.id_restarts if each.symbol == subscription.symbol), default=0.0)
    if any(turn.at_s > restarted_s for turn in plan.turns):
        return -1
    claimed = simulation.journal.claimed_before_restart(subscription)
    return claimed.highest if claimed else -1


def _audited(simulation: Simulation) -> Iterator[str]:
    """Have the stream proven as `ingestor audit` does."""
    audit = Audit()
    for each in simulation.journal.stored:
        audit.add(each.record)
    restarted = {restart.symbol for restart in simulation.plan.id_restarts}
    for report in audit.report().streams:
        undeclared = Intervals((hole.first, hole.last) for hole in report.undeclared)
        if report.symbol in restarted and not report.kind.startswith("kline") and not report.generation:
            until = _declarable_until(simulation, Subscription(report.symbol, report.kind))
            undeclared = undeclared.within(0, until)
        if undeclared:
            yield f"the audit lacks {undeclared} of {report.symbol} {report.kind} ({report.generation})"
        is_over = report.symbol in restarted and not report.generation  # a book that ended with the ids it had
        if report.unseeded and not is_over:
            yield f"no snapshot after {report.unseeded} of {report.symbol}"
        if report.conflicts:
            yield f"{report.symbol} {report.kind} came with two values: {report.conflicts}"


def _wrong_values(stored: Sequence[Stored], told: Told) -> Iterator[str]:
    """Hold what is delivered against what the venue told."""
    payloads: dict[tuple[Subscription, int], Any] = {}
    firsts: dict[tuple[Subscription, int], int] = {key: message.first for key, message in told.items()}
    for each in stored:
        if each.claim is None or each.record.hole is not None:
            continue
        key = each.claim.subscription, each.claim.last
        if key not in told:
            yield f"{each.claim} was never told"
            continue
        payload = payloads.get(key)
        if payload is None:
            payload = payloads[key] = msgspec.json.decode(told[key].payload)
        expected = _depth_values(each, payloads, firsts, told) if each.record.depth else _values_told(payload)
        if _values(each.record) != expected:
            yield f"{each.claim} has other values than the venue: {_values(each.record)} for {expected}"


def _values(record: MarketData) -> Any:
    if record.trade is not None:
        return (units(record.price or ""), units(record.volume or ""), record.timestamp, record.trade.buyer_is_maker)
    bar = record.kline
    if bar is not None:
        texts = (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.quote_volume)
        return (bar.open_time, bar.close_time, bar.trade_count, *map(units, texts))
    assert record.depth is not None
    return _sides(record.depth.bids, record.depth.asks)


def _values_told(payload: dict[str, Any]) -> Any:
    if payload["e"] == "trade":
        return (units(payload["p"]), units(payload["q"]), payload["T"], payload["m"])
    bar = payload["k"]
    return (bar["t"], bar["T"], bar["n"], *(units(bar[name]) for name in ("o", "h", "l", "c", "v", "q")))


def _depth_values(
    each: Stored, payloads: dict[tuple[Subscription, int], Any], firsts: dict[tuple[Subscription, int], int], told: Told
) -> Any:
    """Join the windows that a diff covers: connections cut them differently."""
    assert each.claim is not None
    subscription, first, last = each.claim.subscription, each.claim.first, each.claim.last
    windows = []
    while True:
        key = subscription, last
        if key not in told:
            return f"no window ends at {last}"
        payload = payloads.setdefault(key, msgspec.json.decode(told[key].payload))
        windows.append(payload)
        if firsts[key] <= first:
            break
        last = firsts[key] - 1
    bids: dict[str, str] = {}
    asks: dict[str, str] = {}
    for window in reversed(windows):
        bids |= dict(window["b"])
        asks |= dict(window["a"])
    return _sides(bids.items(), asks.items())


def _sides(bids: Any, asks: Any) -> tuple[dict[int, int], dict[int, int]]:
    return tuple({units(price): units(quantity) for price, quantity in side} for side in (bids, asks))  # type: ignore[return-value]


def _disordered(stored: Sequence[Stored]) -> Iterator[str]:
    """Live records of a life are in order per subscription, except what had been there already."""
    highest: dict[tuple[int, Subscription, bool], int] = {}
    seen: dict[tuple[int, Subscription, bool], Intervals] = {}
    for each in stored:
        if each.claim is None or each.record.source != "websocket" or each.record.hole is not None:
            continue
        key = each.life, each.claim.subscription, is_restarted(each.claim.subscription, each.claim.last)
        before = seen.setdefault(key, Intervals())
        if before.covers(each.claim.first, each.claim.last):
            continue
        before.add(each.claim.first, each.claim.last)
        if each.claim.last < highest.get(key, -1):
            yield f"{each.claim} of life {each.life} came after {highest[key]}"
        highest[key] = max(each.claim.last, highest.get(key, -1))


def _disordered_repairs(simulation: Simulation) -> Iterator[str]:
    """Within a gap that was repaired, ids are in order the first time they come."""
    places: dict[tuple[int, Subscription], dict[int, int]] = {}
    for place, each in enumerate(simulation.journal.stored):
        if each.claim is not None and each.record.source == "rest" and each.record.hole is None:
            of_life = places.setdefault((each.life, each.claim.subscription), {})
            of_life.setdefault(each.claim.first, place)
    for running in simulation.lives:
        for gap in _gaps_of(running):
            of_gap = places.get((running.life.number, gap.subscription), {})
            ids = [number for number in sorted(of_gap) if gap.first <= number <= gap.last]
            for earlier, later in pairwise(ids):
                if of_gap[earlier] > of_gap[later]:
                    yield f"repaired {later} of {gap.subscription.stream_name} came before {earlier}"


def _undeserved_holes(simulation: Simulation) -> Iterator[str]:
    """Find holes without need: the venue forgets nothing here, so few things may have one.

    Those are diffs that something cost us, and what Kinesis refused.
    """
    restarted = {restart.symbol for restart in simulation.plan.id_restarts}
    may_poison = any(trouble.what == "odd" for trouble in simulation.plan.troubles)
    for each in simulation.journal.stored:
        hole = each.record.hole
        if hole is None or (hole.reason == "poison" and may_poison):
            continue
        if hole.reason == "id_restart" and each.record.symbol in restarted:
            produced = simulation.world.venue.ledger[Subscription(each.record.symbol, hole.stream)].produced
            if made_up := produced.missing(max(1, hole.first), hole.last):
                yield f"{each.ids} is declared, but the venue never had {made_up}"
            continue
        may_break = hole.stream == "depth" and not simulation.plan.is_undisturbed
        if not (may_break and hole.reason == "disconnected"):
            yield f"{each.ids} is declared as {hole.reason}"


def _unfinished_business(simulation: Simulation) -> Iterator[str]:
    """See that the last life, which stopped cleanly, claims what it took, and says so in its last beat."""
    running = simulation.lives[-1]
    if running.line is None:
        return
    marks = running.line.coverage.watermarks()
    for subscription, next_id in running.line.intake.next_ids().items():
        if marks.get(subscription, -1) < next_id - 1:
            yield f"{subscription.stream_name} is complete up to {marks.get(subscription)}, but {next_id - 1} was taken"
    # One that the stop did not wait for may land behind it.
    beats = [beat for life, beat in simulation.journal.beats if life == running.life.number and beat.final]
    if not beats:
        yield "the last life has written no last beat"
        return
    for subscription, entry in beats[-1].coverage():
        if entry.watermark != marks[subscription]:
            yield f"the last beat says {entry.watermark} of {subscription.stream_name}, known is {marks[subscription]}"


def _throttled(simulation: Simulation) -> Iterator[str]:
    """Find entries that were tried although their shard had no room: they are to be held back."""
    weather = simulation.data_weather
    if not simulation.plan.may_throttle and weather.over_limit > RARE * weather.entries:
        yield f"shards had no room for {weather.over_limit} of {weather.entries} entries"


def _repeated(stored: Sequence[Stored]) -> Iterator[str]:
    """Nothing comes twice where nothing was in doubt."""
    seen: dict[Subscription, Intervals] = {}
    for each in stored:
        if each.claim is None:
            continue
        before = seen.setdefault(each.claim.subscription, Intervals())
        if before.covers(each.claim.first, each.claim.last):
            yield f"{each.claim} came twice"
        before.add(each.claim.first, each.claim.last)


def _gaps_of(running: Running) -> list[Gap]:
    return getattr(running.line.repair, "reported", []) if running.line is not None else []
