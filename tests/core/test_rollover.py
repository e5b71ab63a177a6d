"""When a new feed may take the place of an old one."""

from __future__ import annotations

from random import Random
from typing import Any

from ingestor.core.intake import Inlet
from ingestor.core.model import Subscription
from ingestor.core.rollover import MAX_OVERLAP_S, QUIET_S, Overlap, lifetime_s

BUSY, QUIET = Subscription("BTCUSDT", "trade"), Subscription("DOGEBTC", "trade")


class Voice:
    """What a feed says of one subscription, told by the test."""

    def __init__(self) -> None:
        self.received = 0
        self.has_joined = False

    def accept(self, *_: object) -> bool:
        raise AssertionError


def a_feed() -> tuple[Inlet, dict[Subscription, Voice]]:
    inlet = Inlet([BUSY, QUIET])
    voices = {each: Voice() for each in inlet.subscriptions}
    streams: Any = inlet.streams  # of them only the two facts of a `Voice` are asked for
    streams.update({each.stream_name: voice for each, voice in voices.items()})
    return inlet, voices


def test_an_overlap_is_over_when_everything_has_been_seen_on_the_new_feed() -> None:
    """One after the other; what was carried over once stays so."""
    (old, _), (new, said) = a_feed(), a_feed()
    overlap = Overlap(old, new, 100.0)
    assert not overlap.is_over(100.1)
    said[BUSY].has_joined = True
    assert not overlap.is_over(100.2)
    assert overlap.missing == [QUIET.stream_name]
    said[BUSY].has_joined, said[QUIET].has_joined = False, True
    assert overlap.is_over(100.3)
    assert overlap.missing == []


def test_a_subscription_that_is_quiet_on_both_feeds_is_not_waited_for() -> None:
    """Five seconds without anything on the old one; each message on it begins them anew."""
    (old, heard), (new, said) = a_feed(), a_feed()
    overlap = Overlap(old, new, 100.0)
    said[BUSY].has_joined = True
    assert not overlap.is_over(100.0 + QUIET_S - 0.1)
    heard[QUIET].received += 1
    assert not overlap.is_over(100.0 + QUIET_S)
    assert not overlap.is_over(100.0 + 2 * QUIET_S - 0.1)
    assert overlap.is_over(100.0 + 2 * QUIET_S)


def test_an_overlap_has_an_end() -> None:
    """A stream that flows on the old feed and is dead on the new one does not keep both for ever."""
    (old, heard), (new, _) = a_feed(), a_feed()
    overlap = Overlap(old, new, 0.0)
    for tenth in range(round(MAX_OVERLAP_S * 10)):
        heard[BUSY].received += 1
        assert not overlap.is_over(tenth / 10)
    assert overlap.is_over(MAX_OVERLAP_S)
    assert overlap.missing == [BUSY.stream_name]


def test_connections_that_were_opened_together_are_replaced_at_times_of_their_own() -> None:
    """Within the last tenth of what is configured, and never later."""
    dice = Random(7)
    times = [lifetime_s(82_800.0, dice) for _ in range(50)]
    assert len(set(times)) == 50
    assert all(74_520.0 <= each <= 82_800.0 for each in times)


def test_what_is_added_during_an_overlap_is_waited_for_and_what_is_ended_is_not() -> None:
    """The old feed may not go before the new one has brought what both began meanwhile."""
    added = Subscription("ETHUSDT", "trade")
    (old, heard), (new, said) = a_feed(), a_feed()
    overlap = Overlap(old, new, 100.0)
    said[BUSY].has_joined = True
    streams: Any = new.streams
    del streams[QUIET.stream_name]  # it was ended before the new feed began
    for inlet, voices in ((old, heard), (new, said)):
        streams = inlet.streams
        streams[added.stream_name] = voices[added] = Voice()
    heard[added].received += 1
    assert not overlap.is_over(104.0)
    assert overlap.missing == [added.stream_name]
    assert not overlap.is_over(104.0 + QUIET_S - 0.1)
    said[added].has_joined = True
    assert overlap.is_over(104.0 + QUIET_S - 0.05)
