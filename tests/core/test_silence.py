"""What silence is usual, and when it becomes suspicious."""

from __future__ import annotations

import json
from itertools import pairwise

from ingestor.core.intake import Intake
from ingestor.core.model import Subscription
from ingestor.core.silence import LONGEST_WAIT_S, PATIENCE_S, SWEEP_S, UNKNOWN_S, Hearing, Usual, limit_s

TRADES = Subscription("BTCUSDT", "trade")
DEPTH = Subscription("BTCUSDT", "depth")


class Bench:
    """One feed with two subscriptions, swept by the clock."""

    def __init__(self, *, first_id: int | None = None) -> None:
        self.intake = Intake([TRADES, DEPTH])
        self.inlet = self.intake.open([TRADES, DEPTH])
        self.usual: Usual = {}
        self.now = 0.0
        self.next_id = 100
        if first_id is not None:
            self.trade(first_id)
        self.hearing = Hearing(self.inlet, self.usual, self.intake, self.now)

    def trade(self, trade_id: int | None = None) -> None:
        self.next_id = (trade_id or self.next_id) + 1
        data = {"e": "trade", "E": 1, "s": "BTCUSDT", "t": self.next_id - 1, "p": "1", "q": "1", "T": 1, "m": True}
        message = json.dumps({"stream": TRADES.stream_name, "data": data}).encode()
        assert not self.intake.accept(self.inlet, [message], self.now, 1).poison

    def sweep(self) -> list[Subscription]:
        self.now += SWEEP_S
        self.suspects = self.hearing.sweep(self.now)
        return [ear.subscription for ear in self.suspects]


def test_a_stream_that_flows_is_not_suspected() -> None:
    """Not the other one either, before what is usual for an unknown one has passed."""
    bench = Bench()
    for _ in range(5):
        bench.trade()
        assert bench.sweep() == []


def test_a_busy_stream_that_falls_silent_is_suspected_soon() -> None:
    """What is usual for it was learned, and what was not known of it is forgotten slowly."""
    bench = Bench()
    for _ in range(400):
        bench.trade()
        bench.sweep()
    silent_since_s = bench.now
    while TRADES not in bench.sweep():
        assert bench.now - silent_since_s < 20
    assert bench.now - silent_since_s >= PATIENCE_S


def test_silences_that_are_usual_are_not_suspected() -> None:
    """Half a minute between two trades is learned; only three times as long is more than usual."""
    bench = Bench()
    for _ in range(10):
        bench.trade()
        assert not any(TRADES in bench.sweep() for _ in range(6))
    assert bench.usual[TRADES] == 30.0
    seen = [bench.sweep() for _ in range(12)]
    assert not any(TRADES in each for each in seen)
    assert TRADES in bench.sweep()


def test_a_quiet_stream_is_asked_about_ever_more_seldom() -> None:
    """The silence doubles from one suspicion to the next; an hour is the longest wait."""
    bench = Bench()
    bench.trade()
    suspected = []
    for _ in range(4_000):
        if TRADES in bench.sweep():
            suspected.append(bench.now)
            bench.suspects[0].wait_longer(bench.now)
    assert len(suspected) < 14
    waits = [after - before for before, after in pairwise(suspected)]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_S


def test_the_head_of_a_quiet_symbol_is_looked_at_once_after_every_connect() -> None:
    """The last trade before the connect may have been missed; ten seconds of silence are enough to ask."""
    bench = Bench(first_id=7)
    assert [bench.sweep(), bench.sweep()] == [[], [TRADES]]
    assert bench.suspects[0].is_new
    bench.suspects[0].acquit(bench.now)
    assert (bench.suspects[0].is_new, bench.sweep(), bench.sweep()) == (False, [], [TRADES])


def test_what_nothing_is_known_of_has_more_time() -> None:
    """A depth stream without a single diff is asked about after three times what is usual for the unknown."""
    bench = Bench()
    while DEPTH not in bench.sweep():
        pass
    assert bench.now == limit_s(UNKNOWN_S)


def test_a_silence_that_was_a_fault_teaches_nothing() -> None:
    """After a stream was dead and subscribed to again, what is usual for it is what it was before."""
    bench = Bench()
    for _ in range(400):
        bench.trade()
        bench.sweep()
    before = bench.usual[TRADES]
    while TRADES not in bench.sweep():
        pass
    (ear,) = [ear for ear in bench.suspects if ear.subscription == TRADES]
    assert ear.is_silent
    ear.begin_anew(bench.intake.position(TRADES), bench.now)
    bench.sweep()
    bench.trade()
    assert not ear.is_silent
    bench.sweep()
    assert bench.usual[TRADES] <= before


def test_what_a_feed_carries_more_or_less_is_heard_more_or_less() -> None:
    """The other ears keep what they have learned."""
    bench = Bench()
    other = Subscription("ETHUSDT", "trade")
    for _ in range(5):
        bench.trade()
        bench.sweep()
    bench.intake.add([other])
    bench.intake.join(bench.inlet, [other])
    bench.intake.leave(bench.inlet, [DEPTH], bench.now)
    joined_s = bench.now
    suspected: list[Subscription] = []
    while not suspected:
        bench.trade()
        suspected = bench.sweep()
    assert suspected == [other]
    assert bench.now - joined_s >= limit_s(UNKNOWN_S)
    assert TRADES in bench.usual
