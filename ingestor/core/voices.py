"""A subscription that several feeds carry: each feed is a voice of it, and one record goes on for what all of them say.

A feed that is alone has no voice; its messages go straight to the live state of `intake`. So what redundancy and
overlaps cost is paid only while there are any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ingestor.core.redundancy import Diff, Holdback, Relay

if TYPE_CHECKING:
    from ingestor.core.binance import DepthEvent, Event
    from ingestor.core.intake import Accepted, LiveDepth, LiveKlines, LiveTrades

NEVER: Final = 2**63  # above any id


class Heard(NamedTuple):
    """An event as a feed brought it."""

    event: Event
    raw: bytes
    received_us: int


class Voice(Protocol):
    """What one feed says of one subscription; `received` never falls."""

    received: int

    def __hash__(self) -> int: ...

    @property
    def has_joined(self) -> bool:
        """Whether nothing would be missing if all other feeds ended now."""
        ...

    def accept(self, event: Event, raw: bytes, received_us: int, accepted: Accepted) -> bool:
        """Take one event; False if this is not the event that the stream's name promises."""
        ...


class _Ended:
    """What one feed says of a subscription that it was told to end: it may come late, and is not ours any more."""

    received = 0
    has_joined = True

    def accept(self, event: Event, raw: bytes, received_us: int, accepted: Accepted) -> bool:
        """Let it go."""
        del event, raw, received_us, accepted
        return True


ENDED: Final = _Ended()


class Shared(Protocol):
    """What the voices of one subscription have in common."""

    def join(self, *, has_all: bool) -> Voice:
        """Return the voice of one more feed; `has_all`: it brought all there is so far."""
        ...

    def leave(self, voice: Voice, accepted: Accepted) -> None:
        """Go on without `voice`."""
        ...

    def settle(self, accepted: Accepted) -> bool:
        """Go on with what has waited for long enough; return whether something waits still."""
        ...

    def end(self, voice: Voice, accepted: Accepted) -> None:
        """Go on with all that waits: `voice` is the only one left."""
        ...


class FirstCome:
    """Trades or bars of several feeds: the first arrival of an id is taken, and one above a jump waits a little."""

    def __init__(self, live: LiveTrades | LiveKlines, waiting: dict[Shared, None]) -> None:
        self._live = live
        self._waiting = waiting
        self._held = Holdback[Heard]()

    def join(self, *, has_all: bool) -> Voice:
        """Return the voice of one more feed."""
        return _FirstComeVoice(self, self._live, has_all=has_all)

    def leave(self, voice: Voice, accepted: Accepted) -> None:
        """Keep what the feed brought: its ids count whoever brought them."""

    def accept(self, heard: Heard, jump: int | None, accepted: Accepted) -> bool:
        """Take an event; `jump` is its id if that lies above what is expected."""
        live = self._live
        if jump is None:
            is_ours = live.accept(*heard, accepted)
        else:
            is_ours = True
            if self._held.hold(jump, heard, accepted.received_s):
                self._waiting[self] = None
            else:
                live.drop(1, accepted)
        if self._held:
            self.settle(accepted)
        return is_ours

    def settle(self, accepted: Accepted) -> bool:
        """Go on with what follows on or has waited for long enough."""
        live = self._live
        while (heard := self._held.next(live.tracker.expected, accepted.received_s)) is not None:
            self._go_on(heard, accepted)
        return bool(self._held)

    def end(self, voice: Voice, accepted: Accepted) -> None:
        """Go on with all that waits, whoever brought it."""
        del voice
        for heard in self._held.take_all():
            self._go_on(heard, accepted)

    def _go_on(self, heard: Heard, accepted: Accepted) -> None:
        """Have an event judged, unless the ids began again on another feed meanwhile."""
        if self._live.is_past(heard.event):
            self._live.drop(1, accepted)
        else:
            self._live.accept(*heard, accepted)


class _FirstComeVoice:
    __slots__ = ("_first_id", "_live", "_shared", "received")

    def __init__(self, shared: FirstCome, live: LiveTrades | LiveKlines, *, has_all: bool) -> None:
        self.received = live.received
        self._first_id = 0 if has_all else NEVER
        self._live = live
        self._shared = shared

    @property
    def has_joined(self) -> bool:
        return self._first_id < self._live.tracker.expected

    def accept(self, event: Event, raw: bytes, received_us: int, accepted: Accepted) -> bool:
        live = self._live
        is_ours = self._shared.accept(Heard(event, raw, received_us), live.jump_to(event), accepted)
        if is_ours:
            self.received += 1
            if self._first_id == NEVER:
                self._first_id = live.id_of(event)
        return is_ours


class Led:
    """Diffs of several feeds: one leads, the others stand by."""

    def __init__(self, live: LiveDepth, waiting: dict[Shared, None]) -> None:
        self._live = live
        self._waiting = waiting
        self._relay = Relay[Heard]()

    def join(self, *, has_all: bool) -> Voice:
        """Return the voice of one more feed; one that brought all so far leads."""
        voice = _LedVoice(self, self._live, has_all=has_all)
        self._relay.join(voice)
        if has_all:
            self._relay.lead(voice)
        return voice

    def leave(self, voice: Voice, accepted: Accepted) -> None:
        """Go on with what another feed has, if it has what follows on."""
        self._relay.leave(voice)
        self.settle(accepted)

    def accept(self, voice: _LedVoice, heard: Heard, event: DepthEvent, accepted: Accepted) -> None:
        """Take a diff, or let it stand by."""
        live, relay = self._live, self._relay
        expected = live.tracker.expected
        if expected < 0 or event.final_update_id < expected:
            live.accept(*heard, accepted)
            if live.tracker.expected != expected:  # the ids began, or began again
                relay.lead(voice)
            return
        relay.offer(voice, Diff(event.first_update_id, event.final_update_id, heard, accepted.received_s))
        if self.settle(accepted):
            self._waiting[self] = None

    def settle(self, accepted: Accepted) -> bool:
        """Go on with what the leader has, or with what has waited for long enough."""
        live, relay = self._live, self._relay
        while (heard := relay.next(live.tracker.expected, accepted.received_s)) is not None:
            live.accept(*heard, accepted)
        if relay.dropped:
            live.drop(relay.dropped, accepted)
            relay.dropped = 0
        return bool(relay)

    def end(self, voice: Voice, accepted: Accepted) -> None:
        """Go on with all that the last feed has."""
        for heard in self._relay.take_all(voice, self._live.tracker.expected):
            self._live.accept(*heard, accepted)


class _LedVoice:
    __slots__ = ("_first_id", "_live", "_shared", "received")

    def __init__(self, shared: Led, live: LiveDepth, *, has_all: bool) -> None:
        self.received = live.received
        self._first_id = 0 if has_all else NEVER
        self._live = live
        self._shared = shared

    @property
    def has_joined(self) -> bool:
        return self._first_id <= self._live.tracker.expected

    def accept(self, event: Event, raw: bytes, received_us: int, accepted: Accepted) -> bool:
        diff = self._live.own(event)
        if diff is None:
            return False
        self.received += 1
        if self._first_id == NEVER:
            self._first_id = diff.first_update_id
        self._shared.accept(self, Heard(event, raw, received_us), diff, accepted)
        return True
