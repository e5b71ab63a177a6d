"""Two feeds of the same subscriptions: one record goes on, in order, whoever brings it first."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from ingestor.core.intake import Accepted, Inlet, Intake
from ingestor.core.model import Gap, Subscription

TRADES = Subscription("BTCUSDT", "trade")
DEPTH = Subscription("BTCUSDT", "depth")
KLINES = Subscription("BTCUSDT", "kline_1m")
ALL = (TRADES, DEPTH, KLINES)
MINUTE = 60_000
BAR = 1_790_000_000_000 // MINUTE


def message(subscription: Subscription, **data: Any) -> bytes:
    return json.dumps({"stream": subscription.stream_name, "data": {"s": "BTCUSDT", **data}}).encode()


def trade(trade_id: int, at_ms: int = 0) -> bytes:
    at_ms = at_ms or 1_790_000_000_000 + trade_id
    return message(TRADES, e="trade", E=at_ms, t=trade_id, p="1.00000000", q="1.00000000", T=at_ms, m=False)


def diff(first: int, final: int, at_ms: int = 1_790_000_000_000) -> bytes:
    return message(DEPTH, e="depthUpdate", E=at_ms, U=first, u=final, b=[], a=[])


def bar(ordinal: int, trades: int = 1, *, closed: bool = False) -> bytes:
    open_ms = ordinal * MINUTE
    k = {"t": open_ms, "T": open_ms + 59_999, "s": "BTCUSDT", "i": "1m", "f": 1, "L": 1, "n": trades, "x": closed}
    return message(KLINES, e="kline", E=open_ms, k={**k, **dict.fromkeys("ochlvqVQB", "1.00000000")})


class Two:
    """An intake with an old feed, and a new one that is opened later; keeps all that went on."""

    def __init__(self) -> None:
        self.intake = Intake(ALL)
        self.old = self.intake.open(ALL)
        self.new: Inlet
        self.now = 0.0
        self.sequences: list[int] = []
        self.gaps: list[Gap] = []
        self.declared: list[tuple[int, int]] = []
        self.duplicates = 0

    def open_new(self) -> None:
        self.new = self.intake.open(ALL)

    def say(self, inlet: Inlet, *messages: bytes) -> None:
        accepted = self.intake.accept(inlet, list(messages), self.now, 1)
        assert not accepted.poison
        self.keep(accepted)

    def keep(self, accepted: Accepted) -> None:
        self.sequences += [record.sequence for record in accepted.records if record.event_type != "hole"]
        self.gaps += accepted.gaps
        self.declared += [(hole.first, hole.last) for _, hole in accepted.holes]
        self.duplicates += sum(accepted.duplicates.values())

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.keep(self.intake.settle(self.now))


def test_a_feed_that_is_alone_goes_straight_to_the_live_state() -> None:
    """Redundancy costs nothing while there is none: before the second feed, and after it."""
    two = Two()
    live = dict(two.old.streams)
    two.open_new()
    assert all(two.old.streams[name] is not live[name] for name in live)
    two.keep(two.intake.close(two.new, 0.0))
    assert two.old.streams == live
    assert not two.intake.is_waiting


def test_trades_of_two_feeds_go_on_once_and_in_order() -> None:
    """The first arrival wins, what is ahead waits for the other feed, nothing is reported missing."""
    two = Two()
    two.say(two.old, trade(1))
    two.open_new()
    two.say(two.new, trade(4), trade(5))
    assert (two.sequences, two.intake.is_waiting) == ([1], True)
    two.say(two.new, trade(5))
    two.say(two.old, trade(2), trade(3), trade(4), trade(5), trade(6))
    two.say(two.new, trade(6), trade(7))
    assert two.sequences == [1, 2, 3, 4, 5, 6, 7]
    assert (two.gaps, two.duplicates) == ([], 4)
    assert two.intake.received() == {("BTCUSDT", "trade"): 11, ("BTCUSDT", "depth"): 0, ("BTCUSDT", "kline"): 0}


def test_trades_that_no_feed_brings_are_a_gap_after_200_ms() -> None:
    """The others go on then; what comes even later is a duplicate of the repair."""
    two = Two()
    two.say(two.old, trade(1))
    two.open_new()
    two.say(two.new, trade(4))
    two.wait(0.15)
    assert two.sequences == [1]
    two.wait(0.1)
    assert (two.sequences, [gap[1:3] for gap in two.gaps]) == ([1, 4], [(2, 3)])
    assert not two.intake.is_waiting
    two.say(two.old, trade(2), trade(3))
    assert (two.sequences, two.duplicates) == ([1, 4], 2)


def test_closed_bars_of_two_feeds_wait_for_each_other_too() -> None:
    """A bar above a jump is held, its repetition dropped, interim ones never wait."""
    two = Two()
    two.say(two.old, bar(BAR, closed=True))
    two.open_new()
    two.say(two.new, bar(BAR + 2, closed=True), bar(BAR + 2, closed=True), bar(BAR + 3))
    two.say(two.old, bar(BAR + 1, closed=True), bar(BAR + 2, closed=True))
    assert [(each - BAR * MINUTE) // MINUTE for each in two.sequences] == [0, 3, 1, 2]
    assert (two.gaps, two.duplicates) == ([], 2)


def test_a_restart_of_the_ids_is_told_once_by_whichever_feed_sees_it_first() -> None:
    """What the other feed still brings of the old generation is past: no gap of thousands of ids."""
    two = Two()
    two.say(two.old, trade(5_000))
    two.open_new()
    two.say(two.old, trade(5_002))
    two.say(two.new, trade(0, 1_790_000_900_000))
    two.say(two.old, trade(5_003))
    two.wait(1.0)
    two.say(two.old, trade(0, 1_790_000_900_000), trade(1, 1_790_000_900_001))
    assert two.sequences == [5_000, 0, 1]
    assert two.gaps == []


def test_diffs_of_two_feeds_are_those_of_the_leader() -> None:
    """Windows cut differently on the standby change nothing."""
    two = Two()
    two.say(two.old, diff(1, 5))
    two.open_new()
    for number in range(1, 9):
        two.say(two.new, diff(number * 10 - 4, number * 10 + 5))
        two.say(two.old, diff(number * 10 - 4, number * 10), diff(number * 10 + 1, number * 10 + 5))
    assert two.sequences == [5, *(each for number in range(1, 9) for each in (number * 10, number * 10 + 5))]
    assert (two.declared, two.duplicates) == ([], 8)


def test_the_standby_goes_on_where_the_leader_stopped() -> None:
    """The first diff taken from it overlaps what was taken; nothing is declared."""
    two = Two()
    two.say(two.old, diff(1, 5))
    two.open_new()
    two.say(two.new, diff(3, 10), diff(11, 20))
    two.keep(two.intake.close(two.old, 0.0))
    two.say(two.new, diff(21, 30))
    assert (two.sequences, two.declared) == ([5, 10, 20, 30], [])


def test_a_standby_takes_over_from_a_leader_that_says_nothing_for_a_second() -> None:
    """Nobody has to wait for the next diff: time is enough."""
    two = Two()
    two.say(two.old, diff(1, 5))
    two.open_new()
    two.say(two.new, diff(6, 10))
    two.wait(0.9)
    assert two.sequences == [5]
    two.wait(0.2)
    assert two.sequences == [5, 10]
    two.say(two.new, diff(11, 12))
    two.say(two.old, diff(6, 12))
    assert (two.sequences, two.declared, two.intake.is_waiting) == ([5, 10, 12], [], False)


def test_diffs_that_no_feed_has_are_declared_when_the_wait_is_over() -> None:
    """Or at once, when nobody is left to wait for."""
    for ends in (False, True):
        two = Two()
        two.say(two.old, diff(1, 5))
        two.open_new()
        two.say(two.old, diff(9, 10))
        assert two.declared == []
        if ends:
            two.keep(two.intake.close(two.new, 0.0))
        else:
            two.wait(0.3)
        assert (two.sequences, two.declared) == ([5, 10], [(6, 8)])


def test_update_ids_that_begin_again_on_one_feed_make_it_the_leader() -> None:
    """What the other one brings of the old generation is not mixed in."""
    two = Two()
    two.say(two.old, diff(9_000, 9_010))
    two.open_new()
    two.say(two.new, diff(5, 6, at_ms=1_790_000_100_000))
    two.say(two.old, diff(9_011, 9_012))
    two.say(two.new, diff(7, 8, at_ms=1_790_000_100_100))
    assert two.sequences == [9_010, 6, 8]


def test_the_first_messages_may_come_over_any_of_two_feeds() -> None:
    """Both are opened before anything came."""
    two = Two()
    two.open_new()
    two.say(two.new, trade(7), diff(1, 5), bar(BAR))
    two.say(two.old, trade(7), trade(8), diff(1, 5), diff(6, 7), bar(BAR))
    two.say(two.new, diff(6, 7))
    assert two.sequences == [7, 5, BAR * MINUTE, 8, 7]
    assert two.duplicates == 4


def test_three_feeds_can_overlap_and_leave_in_any_order() -> None:
    """Two connections for the same subscriptions, one of them being replaced."""
    two = Two()
    two.say(two.old, trade(1), diff(1, 5))
    two.open_new()
    third = two.intake.open(ALL)
    two.say(third, trade(2), trade(4), diff(6, 9))
    two.keep(two.intake.close(two.old, 0.0))
    assert two.sequences == [1, 5, 2, 9]
    two.say(two.new, trade(3), diff(6, 12))
    two.keep(two.intake.close(third, 0.0))
    two.say(two.new, diff(13, 14), trade(5))
    assert two.sequences == [1, 5, 2, 9, 3, 4, 12, 14, 5]
    assert (two.gaps, two.declared) == ([], [])


@pytest.mark.parametrize("kind", ["trade", "depth", "kline_1m"])
def test_a_feed_has_joined_when_nothing_would_be_missing_without_the_other(kind: str) -> None:
    """Not before its first message, and not while it is ahead of what was taken."""
    first, ahead, between = {
        "trade": (trade(1), trade(4), (trade(2), trade(3))),
        "depth": (diff(1, 5), diff(9, 10), (diff(6, 8),)),
        "kline_1m": (bar(BAR), bar(BAR, 2), ()),
    }[kind]
    two = Two()
    two.say(two.old, first)
    two.open_new()
    name = Subscription("BTCUSDT", kind).stream_name
    assert (two.old.streams[name].has_joined, two.new.streams[name].has_joined) == (True, False)
    two.say(two.new, ahead)
    assert two.new.streams[name].has_joined is not bool(between)
    two.say(two.old, *between)
    assert two.new.streams[name].has_joined


def test_messages_that_are_not_what_their_stream_promises_are_poison_on_two_feeds_as_well() -> None:
    """A shared stream judges no milder."""
    two = Two()
    two.open_new()
    strays = [
        trade(1).replace(b"btcusdt@trade", b"btcusdt@depth@100ms"),
        diff(1, 2).replace(b"btcusdt@depth@100ms", b"btcusdt@trade"),
        trade(1).replace(b"btcusdt@trade", b"btcusdt@kline_1m"),
    ]
    accepted = two.intake.accept(two.new, strays, 0.0, 1)
    assert [letter.raw for letter in accepted.poison] == strays


def play(two: Two, seed: int, brought: dict[str, list[bytes]]) -> None:
    """Let both feeds say what they bring, each at a pace of its own, and wait until nothing waits any more."""
    dice = Random(seed)
    feeds = {"old": two.old, "new": two.new}
    while any(brought.values()):
        name = dice.choice(["old", "new"])
        count = dice.randrange(4)
        two.say(feeds[name], *brought[name][:count])
        del brought[name][:count]
    while two.intake.is_waiting:
        two.wait(1.1)


@pytest.mark.parametrize("seed", range(20))
def test_trades_that_any_of_two_feeds_has_go_on_once_and_in_order(seed: int) -> None:
    """Each feed loses its own tenth and lags as it likes; only what both lost is missing."""
    two = Two()
    two.say(two.old, trade(0))
    two.open_new()
    lost = {name: set(Random(f"{seed}/{name}").sample(range(1, 200), 20)) for name in ("old", "new")}
    play(two, seed, {name: [trade(each) for each in range(1, 200) if each not in lost[name]] for name in lost})
    gone = {each for gap in two.gaps for each in range(gap.first, gap.last + 1)}
    assert two.sequences == [each for each in range(200) if each not in gone]
    both = lost["old"] & lost["new"]
    assert gone == {each for each in both if each < max(two.sequences)}


@pytest.mark.parametrize("seed", range(20))
def test_diffs_that_any_of_two_feeds_has_go_on_contiguously(seed: int) -> None:
    """Windows are cut at random, a tenth of them lost: each diff reaches back to the last one, or a hole says why."""
    two = Two()
    two.say(two.old, diff(0, 9))
    two.open_new()
    brought = {}
    for name in ("old", "new"):
        dice = Random(f"{seed}/{name}")
        cuts = [9, *sorted(dice.sample(range(10, 1_000), 100)), 1_000]
        windows = [(first + 1, final) for first, final in pairwise(cuts)]
        brought[name] = [diff(*window) for window in windows if dice.random() > 0.1]
    taken: list[tuple[int, int]] = [(0, 9)]
    keep = two.keep

    def note(accepted: Accepted) -> None:
        taken.extend((r.depth.first_update_id, r.depth.final_update_id) for r in accepted.records if r.depth)
        taken.extend((r.hole.first, r.hole.last) for r in accepted.records if r.hole)
        keep(accepted)

    two.keep = note  # type: ignore[method-assign]
    play(two, seed, brought)
    ranges = sorted(taken, key=lambda each: each[1])
    for before, after in pairwise(ranges):
        assert after[0] <= before[1] + 1
    assert two.sequences == sorted(two.sequences)
    switches = sum(after[0] <= before[1] for before, after in pairwise(ranges))
    assert switches < 30  # an overlap is a change of the leader, and those are rare
