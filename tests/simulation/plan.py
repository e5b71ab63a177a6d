"""What happens in one simulated run, as plain data drawn from a seed: the faults of the venue and of AWS, and deaths.

`at_s` counts from the start of the run. The end of a run is calm, so that everything that can be made good is.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

from msgspec import Struct

from ingestor.local import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingestor.local.faults import Fault

T = TypeVar("T")
SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
STREAMS: Final = tuple(
    f"{symbol.lower()}@{kind}" for symbol in SYMBOLS for kind in ("trade", "depth@100ms", "kline_1m")
)
CALM_SHARE: Final = 0.25  # of a run, at its end
FIRST_FAULT_S: Final = 2.0
FIRST_TURN_S: Final = 0.2  # a kill within the first second is the hardest one
TIGHT_BYTES: Final = 30_000
ROOMY_BYTES: Final = 1 << 20
NARROW: Final = {"kpl": 0.002, "none": 0.005}  # of what a real shard takes: some two or three times the traffic here

Place: TypeAlias = Literal["data", "beats"]
What: TypeAlias = Literal["down", "late", "lost_answers", "timeouts", "throttled", "call_throttled", "denied", "odd"]


class Trouble(Struct, frozen=True):
    """One stream of Kinesis from `at_s` on for `for_s`; `share` of the entries or calls meet it.

    `down`: calls fail at once. `late`: they take up to 5 s. `lost_answers`: they are stored, then fail. `timeouts`:
    they fail after 9 s, half of them stored. `throttled`: entries are refused one by one. `call_throttled`: whole calls
    are. `denied`: a mistake of configuration. `odd`: entries are refused with a code that nobody knows.
    """

    at_s: float
    for_s: float
    place: Place
    what: What
    share: float = 1.0


class Unreadable(Struct, frozen=True):
    """Reading streams back from `at_s` on for `for_s`: `share` of the calls fail, or pages come empty."""

    at_s: float
    for_s: float
    share: float
    empty_pages: bool = False


class Turn(Struct, frozen=True):
    """The running task ends and another one begins, with an empty disk.

    `kill` is SIGKILL, `stop` is SIGTERM, each followed by `pause_s` of nothing. `deploy` starts the new task first, and
    stops the old one `pause_s` later.
    """

    at_s: float
    how: Literal["kill", "stop", "deploy"]
    pause_s: float


class IdRestart(Struct, frozen=True):
    """The venue begins all ids of `symbol` anew."""

    at_s: float
    symbol: str


class ClockStep(Struct, frozen=True):
    """Our wall clock is put forward (or back) by so much: it was wrong before, or is from then on."""

    at_s: float
    by_s: float


class Plan(Struct, frozen=True, kw_only=True):
    """A whole run."""

    seed: int
    duration_s: float
    venue: list[Fault]
    troubles: list[Trouble]
    unreadable: list[Unreadable]
    turns: list[Turn]
    id_restarts: list[IdRestart]
    clock_steps: list[ClockStep] = []
    has_disk: bool = False  # for a spool; an empty one for every life
    late_close_ms: int = 0
    windows_differ: bool = False
    redundancy: int = 1
    rollover_after_s: float = 82_800.0
    aggregation: Literal["kpl", "none"] = "kpl"
    lanes: int = 4
    held_max_bytes: int = 1 << 20
    channel_bytes: int = 1 << 20
    channel_batches: int = 256
    flush_interval_s: float = 1.0
    adaptive: bool = False
    narrow_shards: bool = False  # shards take so little that budgets matter, as with a thousand times the traffic
    patience_s: float = 240.0  # for everything to be made good, once all is calm

    @property
    def calm_s(self) -> float:
        """From when on nothing fails any more."""
        return self.duration_s * (1 - CALM_SHARE)

    @property
    def is_undisturbed(self) -> bool:
        """Whether nothing happens that could cost a change of the book, which nobody can fetch again."""
        return not (self.venue or self.troubles or self.turns or self.id_restarts)

    @property
    def shard_share(self) -> float:
        """What each shard takes, of what a real one does."""
        return NARROW[self.aggregation] if self.narrow_shards else 1.0

    @property
    def may_throttle(self) -> bool:
        """Whether anything happens that no budget can foresee: another writer, or calls that arrive later than sent."""
        late = {"late", "timeouts"}
        return bool(self.turns) or any(each.what in late for each in self.troubles if each.place == "data")

    @property
    def may_repeat(self) -> bool:
        """Whether anything happens after which a record may rightly be in the stream twice."""
        doubts = {"lost_answers", "timeouts", "late"}
        return bool(self.turns or self.id_restarts) or any(
            each.what in doubts for each in self.troubles if each.place == "data"
        )


def calm(duration_s: float, **happens: Any) -> Plan:
    """Make a plan in which nothing happens but what is given."""
    nothing: dict[str, Any] = {"venue": [], "troubles": [], "unreadable": [], "turns": [], "id_restarts": []}
    return Plan(**{"seed": 0, "duration_s": duration_s} | nothing | happens)


def draw(seed: int, minutes: float = 5.0) -> Plan:
    """Draw the plan of a seed. Kinds of faults are dealt like cards, so that a few runs see all of them."""
    rng = Random(f"plan/{seed}")
    duration_s = minutes * 60
    end_s = duration_s * (1 - CALM_SHARE)
    is_tight = rng.random() < 0.3
    more = Random(f"plan/{seed}/more")  # of its own, so that what was drawn before stays what it was
    return Plan(
        seed=seed,
        duration_s=duration_s,
        venue=_deal(rng, end_s, rng.choice((6.0, 12.0, 25.0)), _VENUE),
        troubles=[
            *_deal(rng, end_s, rng.choice((20.0, 40.0, 80.0)), _DATA_TROUBLES),
            *_deal(rng, end_s, 50.0, _BEAT_TROUBLES),
        ],
        unreadable=_deal(rng, end_s, 60.0, _READING),
        turns=_deal(rng, end_s, rng.choice((15.0, 40.0, 80.0)), _TURNS, FIRST_TURN_S),
        id_restarts=[IdRestart(more.uniform(FIRST_FAULT_S, end_s), more.choice(SYMBOLS))] * (more.random() < 0.2),
        clock_steps=[
            ClockStep(more.uniform(0, end_s), more.choice((-3_600.0, -60.0, -5.0, 5.0, 60.0, 3_600.0)))
            for _ in range(more.choice((0, 0, 0, 1, 3)))
        ],
        has_disk=more.random() < 0.3,
        late_close_ms=rng.choice((0, 0, 300, 1_800)),
        windows_differ=rng.random() < 0.3,
        redundancy=2 if rng.random() < 0.25 else 1,
        rollover_after_s=rng.choice((82_800.0, 82_800.0, 70.0)),
        aggregation="none" if rng.random() < 0.15 else "kpl",
        lanes=rng.choice((1, 4, 8)),
        held_max_bytes=TIGHT_BYTES if is_tight else ROOMY_BYTES,
        channel_bytes=TIGHT_BYTES if is_tight else ROOMY_BYTES,
        channel_batches=8 if is_tight else 256,
        flush_interval_s=rng.choice((0.2, 1.0)),
        adaptive=rng.random() < 0.2,
        narrow_shards=rng.random() < 0.5,
    )


class Moment(Struct, frozen=True):
    """A place in a plan that a card fills; nothing that it draws lasts beyond the calm."""

    rng: Random
    at_s: float
    end_s: float

    def lasting(self, least_s: float, most_s: float) -> float:
        """Draw how long."""
        return min(self.rng.uniform(least_s, most_s), max(0.1, self.end_s - self.at_s))

    def stream(self) -> str:
        """Draw a stream of the venue."""
        return self.rng.choice(STREAMS)

    def share(self) -> float:
        """Draw how many suffer."""
        return self.rng.choice((0.2, 0.6, 1.0))


_Card: TypeAlias = "Callable[[Moment], T]"


def _deal(rng: Random, end_s: float, every_s: float, cards: Sequence[_Card[T]], at_s: float = FIRST_FAULT_S) -> list[T]:
    drawn: list[T] = []
    deck: list[_Card[T]] = []
    at_s += rng.random() * every_s
    while at_s < end_s:
        deck = deck or rng.sample(cards, len(cards))
        drawn.append(deck.pop()(Moment(rng, at_s, end_s)))
        at_s += rng.uniform(0.2, 1.8) * every_s
    return drawn


_VENUE: Final[Sequence[_Card[Fault]]] = (
    lambda now: faults.Disconnect(now.at_s),
    lambda now: faults.Disconnect(now.at_s),
    lambda now: faults.Disconnect(now.at_s, "oldest"),
    lambda now: faults.Refuse(now.at_s, now.lasting(1, 20), mute=now.rng.random() < 0.3),
    lambda now: faults.Stall(now.at_s, now.lasting(1, 40)),
    lambda now: faults.Deafen(now.at_s, now.stream()),
    lambda now: faults.Skip(now.at_s, now.stream(), now.rng.randint(1, 20)),
    lambda now: faults.Skip(now.at_s, now.stream(), now.rng.randint(1, 5)),
    lambda now: faults.Repeat(now.at_s, now.stream(), now.rng.randint(1, 20)),
    lambda now: faults.Repeat(now.at_s, now.stream(), now.rng.randint(1, 20)),
    lambda now: faults.Fragment(now.at_s, now.rng.randint(1, 5)),
    lambda now: faults.Inject(now.at_s, now.rng.choice(("invalid_json", "unknown_event", "reserved_bits"))),
    lambda now: faults.Shutdown(now.at_s, now.lasting(1, 10)),
    lambda now: faults.FailRest(now.at_s, now.lasting(1, 20), now.rng.choice(("internal", "busy", "timeout"))),
    lambda now: faults.FailRest(now.at_s, now.lasting(1, 20), now.rng.choice(("limited", "banned"))),
    lambda now: faults.FailRest(now.at_s, now.lasting(1, 20), "mute"),
    lambda now: faults.Lag(now.at_s, now.lasting(1, 20), now.rng.randint(200, 8_000)),
    lambda now: faults.StaleBooks(now.at_s, now.lasting(1, 20)),
)

_DATA_TROUBLES: Final[Sequence[_Card[Trouble]]] = (
    lambda now: Trouble(now.at_s, now.lasting(2, 60), "data", "down", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 20), "data", "late", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 20), "data", "lost_answers", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 30), "data", "timeouts", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 30), "data", "throttled", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 30), "data", "throttled", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 20), "data", "call_throttled", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 20), "data", "denied"),
    lambda now: Trouble(now.at_s, now.lasting(2, 40), "data", "odd", now.share()),
)

_BEAT_TROUBLES: Final[Sequence[_Card[Trouble]]] = (
    lambda now: Trouble(now.at_s, now.lasting(2, 40), "beats", "down", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 20), "beats", "late"),
    lambda now: Trouble(now.at_s, now.lasting(2, 20), "beats", "lost_answers", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 20), "beats", "timeouts", now.share()),
    lambda now: Trouble(now.at_s, now.lasting(2, 20), "beats", "throttled", now.share()),
)

_READING: Final[Sequence[_Card[Unreadable]]] = (
    lambda now: Unreadable(now.at_s, now.lasting(2, 40), now.share()),
    lambda now: Unreadable(now.at_s, now.lasting(2, 20), 0.7, empty_pages=True),
)

_TURNS: Final[Sequence[_Card[Turn]]] = (
    lambda now: Turn(now.at_s, "kill", now.lasting(0, 20)),
    lambda now: Turn(now.at_s, "kill", now.lasting(0, 2)),
    lambda now: Turn(now.at_s, "stop", now.lasting(0, 20)),
    lambda now: Turn(now.at_s, "deploy", now.lasting(0.5, 20)),
)
