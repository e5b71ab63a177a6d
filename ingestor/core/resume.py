"""What a heartbeat says, and how a new task learns from old ones what is missing (completeness.md §3, steps 2 to 6).

The shell reads beats back and tells `Resume` what it heard, which window was read to its end, and which live ids came
first; `Resume` answers what each subscription still lacks. A read that failed is simply not told: only a window that
was read to its end can be evidence that nothing is there.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

from msgspec import Meta, Struct, convert, to_builtins

from ingestor.core.claims import COVERED_LIMIT, Coverage, Entry, Intervals, Range
from ingestor.core.model import Subscription

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

WINDOWS_S: Final = (600.0, 3_600.0, 21_600.0)  # then the whole lookback
PART_SUBSCRIPTIONS: Final = 200  # at worst about 80 kB, far below the 1 MiB that a Kinesis record may have
PREDECESSOR_INTERVALS: Final = 3  # silent for longer than so many of its intervals: it has stopped
PREDECESSOR_LIMIT_S: Final = 60.0
NOTHING: Final = Intervals()
DEPTH_RESTART_MS: Final = (
    10_000  # every connection cuts its diffs differently: one id has two event times, close together
)


# A beat that says anything else was written by nobody of ours: carried on, it would not fit the schema one day.
Natural: TypeAlias = Annotated[int, Meta(ge=0)]
Generation: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000)]  # it grows when the venue begins its ids again
Covered: TypeAlias = Annotated[list[Range], Meta(max_length=1_024)]  # `COVERED_LIMIT` and room for what may come
Milliseconds: TypeAlias = Annotated[int, Meta(gt=0, le=86_400_000)]


class Identity(NamedTuple):
    """Whose ids a beat speaks of: beats of another identity are ignored. `data_stream` is an ARN, or region/name."""

    service: str
    environment: str
    rest_host: str
    data_stream: str


class CoverageEntry(Struct, frozen=True, kw_only=True):
    """An `Entry` as a beat carries it."""

    symbol: str
    kind: str
    origin: Natural
    settled: bool
    covered: Covered
    generation: Generation = 0
    last_event_ms: Natural = 0
    origin_ms: Natural = 0


class Beat(Struct, frozen=True, kw_only=True):
    """One part of one beat, field by field as `schemas/avro/heartbeat.avsc`; valid without its other parts."""

    service: str
    environment: str
    rest_host: str
    data_stream: str
    instance: str
    version: str
    started_ms: int
    sent_ms: int
    beat: int
    part: int
    parts: int
    interval_ms: Milliseconds = 5_000
    final: bool = False
    counters: dict[str, int] = {}
    components: dict[str, str] = {}
    entries: list[CoverageEntry] = []

    @property
    def identity(self) -> Identity:
        """Whose ids it speaks of."""
        return Identity(self.service, self.environment, self.rest_host, self.data_stream)

    def coverage(self) -> Iterator[tuple[Subscription, Entry]]:
        """Give what it carries as entries to merge."""
        for entry in self.entries:
            covered = Intervals((pair.first, pair.last) for pair in entry.covered)
            yield (
                Subscription(entry.symbol, entry.kind),
                Entry(entry.origin, covered, entry.generation, entry.settled, entry.last_event_ms, entry.origin_ms),
            )


def beat_to_avro(beat: Beat) -> dict[str, Any]:
    """Turn a beat into the plain value that the Avro encoder takes."""
    value: dict[str, Any] = to_builtins(beat)
    return value


def beat_from_avro(value: Mapping[str, Any]) -> Beat:
    """Read the plain value that the Avro decoder gives; raises `msgspec.ValidationError` for any other shape."""
    return convert(value, Beat)


def split(subscriptions: Sequence[Subscription]) -> list[Sequence[Subscription]]:
    """Cut what a beat speaks of into parts; there is always one, even if it is empty."""
    size = PART_SUBSCRIPTIONS
    return [subscriptions[start : start + size] for start in range(0, max(len(subscriptions), 1), size)]


def carried(subscription: Subscription, entry: Entry) -> CoverageEntry:
    """Write down an entry with as many intervals as a beat carries; the entry itself forgets nothing."""
    kept = entry
    if len(entry.covered) > COVERED_LIMIT:
        kept = entry.copy()
        kept.forget(COVERED_LIMIT)
    return CoverageEntry(
        symbol=subscription.symbol,
        kind=subscription.kind,
        origin=kept.origin,
        settled=kept.settled,
        covered=kept.covered.ranges(),
        generation=kept.generation,
        last_event_ms=kept.last_event_ms,
        origin_ms=kept.origin_ms,
    )


class Window(NamedTuple):
    """A stretch of the heartbeat stream to read, in seconds before the start; `from_s` is the older end."""

    from_s: float
    to_s: float


def windows(lookback_s: float) -> list[Window]:
    """Cut the lookback into stretches, newest first, so that the usual restart reads minutes and not a day."""
    edges = [0.0, *(edge for edge in WINDOWS_S if edge < lookback_s), lookback_s]
    return [Window(older, newer) for newer, older in pairwise(edges)]


class Resumed(NamedTuple):
    """The answer for one subscription: the ids it lacks below its first live one.

    `is_first_start`: no task of this identity ever counted it. `is_restarted`: the venue began its ids again since, and
    nobody has seen the missing ones. `lost` are ids from before a restart that no task delivered, and that nobody can
    fetch any more.
    """

    subscription: Subscription
    missing: Intervals
    is_first_start: bool
    is_restarted: bool
    lost: Intervals = NOTHING


class _Live(NamedTuple):
    first_id: int
    event_ms: int


class _Account(NamedTuple):
    """What all tasks before us say of a subscription, and what of an older generation nobody delivered."""

    entry: Entry
    lost: Intervals


class _Writer(Struct):
    """A task whose beats were heard, and when it was last heard of."""

    heard_s: float
    patience_s: float
    is_final: bool
    subscriptions: set[Subscription]


class Resume:
    """Decides what a start must fetch. Fed with beats, ends of windows, first live ids and the time; never waits.

    Answers are merged into `coverage`, which the live line fills at the same time. What was found of a subscription
    that is quiet is merged too, so that this task's beats carry it on. What this task itself carried before counts like
    what another one did. `now` is monotonic seconds.

    A task whose search was not over did not know of which generation its ids are: its account is held against the
    settled ones by the same rule as our own first live id, before it is joined with them.
    """

    def __init__(
        self,
        coverage: Coverage,
        subscriptions: Iterable[Subscription],
        *,
        identity: Identity,
        instance: str,
        lookback_s: float,
    ) -> None:
        self._coverage = coverage
        self._identity = identity
        self._instance = instance
        self._windows = windows(lookback_s)
        self._open = set(subscriptions)
        self._live: dict[Subscription, _Live] = {}
        self._found = Coverage()
        self._unsettled: dict[Subscription, dict[str, Entry]] = {}  # by the instance that wrote it
        self._settled_by: dict[Subscription, set[str]] = {}
        self._writers: dict[str, _Writer] = {}
        self._read_at: dict[Subscription, float] = {}  # since when all older beats that matter are known
        self._carried: set[Subscription] = set()  # merged into `coverage` before their first live id came
        self._restarted: set[Subscription] = set()
        for subscription in self._open:
            entry = coverage.get(subscription)
            if entry is not None and entry.settled:
                self._found.merge({subscription: entry})
                self._carried.add(subscription)

    def hear(self, beat: Beat, age_s: float, now: float) -> None:
        """Take in a beat that was written `age_s` seconds ago; our own and those of another identity say nothing."""
        if beat.identity != self._identity or beat.instance == self._instance:
            return
        entries = dict(beat.coverage())
        for subscription, entry in entries.items():
            if subscription in self._open:
                self._take_in(beat.instance, subscription, entry)
        patience_s = PREDECESSOR_INTERVALS * beat.interval_ms / 1000
        writer = self._writers.setdefault(beat.instance, _Writer(now - age_s, patience_s, beat.final, set()))
        writer.heard_s = max(writer.heard_s, now - age_s)
        writer.is_final |= beat.final
        writer.subscriptions |= entries.keys() & self._open

    def begin(self, subscription: Subscription, first_live_id: int, event_ms: int) -> None:
        """Say which id the live line starts with: seen, or known to be the venue's next one; the lowest counts.

        Called before the record with this id goes on: if the ids began again, `coverage` has to know before its claim.
        """
        if subscription not in self._open:
            return
        known = self._live.get(subscription)
        if known is None or first_live_id < known.first_id:
            self._live[subscription] = live = _Live(first_live_id, event_ms)
            found = self._account(subscription) if subscription in self._carried else None
            if found is not None and _is_restart(subscription, live, found.entry):
                self._coverage.restart(subscription, event_ms, is_under_way=False)  # we took none of the old ids
                self._restarted.add(subscription)

    def drop(self, subscriptions: Iterable[Subscription]) -> None:
        """Look for `subscriptions` no longer, whatever is missing of them."""
        self._open.difference_update(subscriptions)

    def drop_unseen(self, subscriptions: Iterable[Subscription]) -> None:
        """Look no longer for those of `subscriptions` of which no live id came; of the others the answer is owed."""
        self.drop([each for each in subscriptions if each not in self._live])

    def knows(self, subscription: Subscription) -> bool:
        """Say whether all that earlier tasks wrote of `subscription` was read, as far as it matters."""
        return subscription in self._read_at or subscription not in self._open

    def next_window(self) -> Window | None:
        """Return the stretch to read now; None when the search is over."""
        if not self._windows or not self._unread():
            return None
        return self._windows[0]

    def window_read(self, now: float) -> None:
        """Say that the window of `next_window` was read to its end, in all shards."""
        self._windows.pop(0)
        for subscription in self._unread():
            found = self._account(subscription)
            if not self._windows or (found is not None and found.entry.settled):
                self._read_at[subscription] = now
                if found is not None and subscription not in self._live:
                    self._coverage.merge({subscription: found.entry})
                    self._coverage.settle(subscription)
                    self._carried.add(subscription)

    def take(self, now: float) -> list[Resumed]:
        """Return the answers that are ready, each once."""
        ready = [subscription for subscription in sorted(self._open) if self._is_ready(subscription, now)]
        self._open.difference_update(ready)
        return [self._settle(subscription) for subscription in ready]

    def is_listening(self, now: float) -> bool:
        """Say whether a further beat could change an answer, so that somebody must go on reading."""
        return any(
            subscription not in self._read_at or self._awaits(subscription, self._read_at[subscription], now)
            for subscription in self._open
        )

    @property
    def is_over(self) -> bool:
        """Every subscription has its answer."""
        return not self._open

    def _unread(self) -> set[Subscription]:
        return self._open - self._read_at.keys()

    def _is_ready(self, subscription: Subscription, now: float) -> bool:
        read_at_s = self._read_at.get(subscription)
        if read_at_s is None or subscription not in self._live:
            return False
        return not self._awaits(subscription, read_at_s, now)

    def _awaits(self, subscription: Subscription, read_at_s: float, now: float) -> bool:
        """Whether a task that still runs will probably cover what is missing (a deploy)."""
        if now - read_at_s >= PREDECESSOR_LIMIT_S or not self._is_missing_some(subscription):
            return False
        return any(
            not writer.is_final and subscription in writer.subscriptions and now - writer.heard_s <= writer.patience_s
            for writer in self._writers.values()
        )

    def _is_missing_some(self, subscription: Subscription) -> bool:
        live, account = self._live.get(subscription), self._account(subscription)
        if live is None or account is None:
            return True
        found = account.entry
        is_restarted = subscription in self._restarted or _is_restart(subscription, live, found)
        return not is_restarted and not found.covered.covers(found.origin, live.first_id - 1)

    def _take_in(self, instance: str, subscription: Subscription, entry: Entry) -> None:
        if entry.settled:
            self._found.merge({subscription: entry})
            self._settled_by.setdefault(subscription, set()).add(instance)
            return
        accounts = self._unsettled.setdefault(subscription, {})
        known = accounts.get(instance)
        accounts[instance] = entry if known is None else known.merge(entry)

    def _account(self, subscription: Subscription) -> _Account | None:
        """Join the settled accounts with those of tasks that never got to be settled, in the order of their starts."""
        joined = self._found.get(subscription)
        lost = NOTHING
        settled_by = self._settled_by.get(subscription, ())
        unsettled = [
            entry
            for instance, entry in self._unsettled.get(subscription, {}).items()
            if instance not in settled_by  # it knew better later
        ]
        for entry in sorted(unsettled, key=_start):
            if joined is None:
                joined = entry.copy()
            elif _is_restart(subscription, _Live(entry.origin, entry.origin_ms), joined):
                before, joined = joined, entry.copy()
                lost = before.missing(before.bound - 1)
                joined.origin, joined.generation, joined.settled = 0, before.generation + 1, before.settled
            elif entry.origin_ms >= joined.origin_ms or not joined.generation:  # else it is of the ids before those
                known = entry.copy()
                known.generation = joined.generation
                joined = joined.merge(known)
        return None if joined is None else _Account(joined, lost)

    def _settle(self, subscription: Subscription) -> Resumed:
        live, account = self._live[subscription], self._account(subscription)
        self._coverage.originate(subscription, live.first_id, live.event_ms)
        if account is None:
            self._coverage.settle(subscription)
            missing = self._coverage[subscription].missing(live.first_id - 1)  # if this task carried it before
            return Resumed(subscription, missing, is_first_start=not missing, is_restarted=False)
        found, lost = account
        if subscription in self._carried:
            is_restarted = subscription in self._restarted
            self._coverage.merge({subscription: found})
        else:
            is_restarted = _is_restart(subscription, live, found)
            self._coverage.inherit(subscription, found, is_restarted=is_restarted)
        entry = self._coverage[subscription]
        is_same = entry.generation == found.generation  # ids may also have begun again while this task searched
        if is_same:
            missing = entry.missing(live.first_id - 1)
            return Resumed(subscription, missing, is_first_start=False, is_restarted=is_restarted, lost=lost)
        # If the restart was seen live, our first live id was one of the old ones too.
        newest = found.bound - 1 if is_restarted else max(found.bound, live.first_id) - 1
        lost = lost.copy()
        lost.update(found.missing(newest))
        unseen = Intervals([(0, live.first_id - 1)]) if is_restarted else NOTHING
        return Resumed(subscription, unseen, is_first_start=False, is_restarted=is_restarted, lost=lost)


def _start(entry: Entry) -> tuple[int, int]:
    return entry.origin_ms, entry.origin


class Resumes:
    """All searches of one task: one for what it begins with, one for whatever is added to that each time.

    What is added has the same start as everything had: an earlier task may have carried it, another one may still.
    """

    def __init__(self, coverage: Coverage, *, identity: Identity, instance: str, lookback_s: float) -> None:
        self._make = partial(Resume, coverage, identity=identity, instance=instance, lookback_s=lookback_s)
        self._searches: list[Resume] = []

    def open(self, subscriptions: Iterable[Subscription]) -> Resume:
        """Return the search for `subscriptions`; an earlier one leaves them to it."""
        added = set(subscriptions)
        for search in self._searches:
            search.drop(added)
        self._searches = [search for search in self._searches if not search.is_over]
        self._searches.append(self._make(added))
        return self._searches[-1]

    def begin(self, subscription: Subscription, first_live_id: int, event_ms: int) -> None:
        """Say which id the live line starts with."""
        for search in self._searches:
            search.begin(subscription, first_live_id, event_ms)

    def drop_unseen(self, subscriptions: Iterable[Subscription]) -> None:
        """Look no longer for those of `subscriptions` of which no live id came."""
        for search in self._searches:
            search.drop_unseen(subscriptions)

    @property
    def is_over(self) -> bool:
        """Every subscription has its answer."""
        return all(search.is_over for search in self._searches)


def _is_restart(subscription: Subscription, live: _Live, found: Entry) -> bool:
    """Whether the venue began its ids again while no task ran: old numbers, new times.

    A task that covers our first live id has seen a venue time at least as new as ours, diffs apart. Bars are numbered
    by the clock and cannot begin again.
    """
    if subscription.kind.startswith("kline_") or not found.last_event_ms:
        return False
    tolerance_ms = DEPTH_RESTART_MS if subscription.kind == "depth" else 0
    return live.first_id < found.bound and live.event_ms > found.last_event_ms + tolerance_ms
