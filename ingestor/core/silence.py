"""Which streams of a feed are silent for longer than is usual for them, and so may be granted and dead.

A ping proves the socket and an acknowledgement proves syntax; neither proves a stream (facts/binance.md §2, §3). What
is usual is learned: the longest silence of a subscription lately, forgotten slowly. Nothing is done per message: a
sweep compares counters every few seconds. `now` is the monotonic clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ingestor.core.intake import Inlet, Intake, Position
    from ingestor.core.model import Subscription

SWEEP_S: Final = 5.0
PATIENCE_S: Final = 10.0  # silence that is never suspicious
LONGER_THAN_USUAL: Final = 3.0
UNKNOWN_S: Final = 10.0  # what is usual for a subscription that nothing is known of
LONGEST_WAIT_S: Final = 3600.0
_KEPT: Final = 0.99  # of what is usual, from sweep to sweep: half of it after six minutes

Usual = dict["Subscription", float]  # the longest silence lately, in seconds; outlives the feeds


class Ear:
    """What one feed lets hear of one subscription."""

    __slots__ = (
        "_due_s",
        "_heard_s",
        "_inlet",
        "_is_learning",
        "_name",
        "_received",
        "is_new",
        "position",
        "subscription",
    )

    def __init__(
        self, inlet: Inlet, subscription: Subscription, position: Position, usual_s: float, now: float
    ) -> None:
        self.subscription = subscription
        self.position = position  # of the subscription when this feed last brought some of it
        self.is_new = True  # nothing was heard on this feed yet, and the venue was not asked
        self._is_learning = False
        self._inlet = inlet
        self._name = subscription.stream_name
        self._received = inlet.streams[self._name].received
        self._heard_s = now
        # A trade that nobody saw while the connection was away is behind nothing: no later one may come for hours.
        is_head_unknown = subscription.kind == "trade" and position >= (0, 0)
        self._due_s = now + (PATIENCE_S if is_head_unknown else limit_s(usual_s))

    @property
    def is_silent(self) -> bool:
        """Whether nothing came since the last sweep that heard something."""
        return self._inlet.streams[self._name].received == self._received

    def listen(self, usual: Usual, intake: Intake, now: float) -> bool:
        """Compare with the last sweep; say whether the silence has become suspicious."""
        if self.is_silent:
            if self.position < (0, 0) and not intake.has_heard(self.subscription):
                self.position = intake.position(self.subscription)  # REST told it, and no other feed was faster
            return now >= self._due_s
        usual_s = usual.get(self.subscription, UNKNOWN_S) * _KEPT
        usual_s = usual[self.subscription] = max(usual_s, now - self._heard_s if self._is_learning else 0.0)
        self._received = self._inlet.streams[self._name].received
        self.position = intake.position(self.subscription)
        self.is_new = False
        self._is_learning = True
        self._heard_s = now
        self._due_s = now + limit_s(usual_s)
        return False

    def wait_longer(self, now: float) -> None:
        """Become suspicious again when the silence is twice as long."""
        self._due_s = now + min(max(now - self._heard_s, PATIENCE_S), LONGEST_WAIT_S)

    def acquit(self, now: float) -> None:
        """Note that there was nothing to hear."""
        self.is_new = False
        self.wait_longer(now)

    def begin_anew(self, position: Position, now: float) -> None:
        """Go on from `position`: what was missing is seen to. This silence was none to learn from."""
        self.position = position
        self._is_learning = False
        self.acquit(now)


class Hearing:
    """All ears on one feed, as it carries more or less; made when it is subscribed to everything."""

    def __init__(self, inlet: Inlet, usual: Usual, intake: Intake, now: float) -> None:
        self.inlet = inlet
        self._usual = usual
        self._intake = intake
        self._carried: tuple[Subscription, ...] = ()
        self._ears: dict[Subscription, Ear] = {}
        self._noted_s = 0.0
        self._listened_s = 0.0
        self._follow(now)

    def note_listened(self, now: float, listened_s: float) -> None:
        """Note how far the clock of the feed is, which stands still while the feed is not read."""
        self._noted_s, self._listened_s = now, listened_s

    def was_held_up(self, now: float, listened_s: float) -> bool:
        """Say whether the feed was not read for most of the time since that was noted: its silence is ours then."""
        return listened_s - self._listened_s < (now - self._noted_s) / 2

    def sweep(self, now: float) -> list[Ear]:
        """Return what is suspiciously silent; look about every `SWEEP_S`."""
        if self._carried is not self.inlet.subscriptions:
            self._follow(now)
        return [ear for ear in self._ears.values() if ear.listen(self._usual, self._intake, now)]

    def _follow(self, now: float) -> None:
        """Have an ear for each subscription that the feed carries now, and no other."""
        ears, self._carried = self._ears, self.inlet.subscriptions
        self._ears = {each: ears.get(each) or self._new_ear(each, now) for each in self._carried}

    def _new_ear(self, subscription: Subscription, now: float) -> Ear:
        usual_s = self._usual.get(subscription, UNKNOWN_S)
        return Ear(self.inlet, subscription, self._intake.position(subscription), usual_s, now)


def limit_s(usual_s: float) -> float:
    """Return how long a silence may last that is usual to last for `usual_s`."""
    return min(max(PATIENCE_S, LONGER_THAN_USUAL * usual_s), LONGEST_WAIT_S)
