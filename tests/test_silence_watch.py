"""Dead streams are found and subscribed to again; quiet ones cost little; what a connect missed is fetched."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import trio

from ingestor.core.binance import DepthSnapshot, RestKline, RestTrade, Ticker
from ingestor.core.intake import Inlet, Intake
from ingestor.core.model import Gap, Subscription
from ingestor.rest_client import UnavailableError
from ingestor.silence_watch import GRACE_S, SilenceWatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trio.testing import MockClock

MINUTE = 60_000
BAR = 1_790_000_000_000 // MINUTE
SYMBOLS = tuple(f"S{number}USDT" for number in range(8))
TRADES = tuple(Subscription(symbol, "trade") for symbol in SYMBOLS)
DEPTH = Subscription("S0USDT", "depth")
KLINES = Subscription("S0USDT", "kline_1m")


class Venue:
    """What REST says: the newest of everything; keeps what it was asked."""

    def __init__(self) -> None:
        self.last_ids = dict.fromkeys(SYMBOLS, 100)
        self.update_id = 100
        self.bars: list[tuple[int, int]] = [(BAR, 5)]
        self.asked: list[str] = []
        self.is_away = False

    async def _answer(self, what: str) -> None:
        await trio.sleep(0.01)
        self.asked.append(what)
        if self.is_away:
            raise UnavailableError("away")

    async def tickers(self) -> list[Ticker]:
        await self._answer("tickers")
        return [Ticker(symbol, last_id) for symbol, last_id in self.last_ids.items()]

    async def trades(self, symbol: str, limit: int) -> list[RestTrade]:
        await self._answer(f"trades {symbol}")
        last_id = self.last_ids[symbol]
        return [RestTrade(last_id, "1", "1", 1_790_000_000_000 + last_id, True)] if last_id >= 0 else []

    async def depth(self, symbol: str, levels: int, *, purpose: str) -> DepthSnapshot:
        await self._answer(f"depth {symbol}")
        return DepthSnapshot(self.update_id, [], [])

    async def klines(self, symbol: str, interval: str, *, limit: int, purpose: str) -> list[RestKline]:
        await self._answer(f"klines {symbol}")
        bars = [(ordinal * MINUTE, count) for ordinal, count in self.bars]
        return [
            RestKline(open_ms, "1", "1", "1", "1", "1", open_ms + 59_999, "1", count, "1", "1")
            for open_ms, count in bars
        ]


class Feed:
    """A connection that is live; keeps what it is told to do."""

    def __init__(self, intake: Intake, subscriptions: Sequence[Subscription]) -> None:
        self.inlet: Inlet | None = intake.open(subscriptions)
        self.is_live = True
        self.held_up_at_s: float | None = None
        self.resubscribed: list[Subscription] = []
        self.replaced: list[str] = []

    def listened_s(self, now: float) -> float:
        return now if self.held_up_at_s is None else self.held_up_at_s

    def resubscribe(self, subscriptions: Iterable[Subscription]) -> None:
        self.resubscribed += subscriptions

    def replace(self, reason: str) -> None:
        self.replaced.append(reason)
        self.is_live = False


class Connection:
    def __init__(self, name: str, feed: Feed | None) -> None:
        self.name = name
        self.feed = feed


class Bench:
    """A watch over one connection, or two for the same subscriptions."""

    def __init__(self, *subscriptions: Subscription, feeds: int = 1) -> None:
        self.venue = Venue()
        self.intake = Intake(subscriptions)
        self.feeds = [Feed(self.intake, subscriptions) for _ in range(feeds)]
        self.connections = [Connection(f"ws-{number}", feed) for number, feed in enumerate(self.feeds)]
        self.gaps: list[Gap] = []
        rest: Any = self.venue
        self.watch = SilenceWatch(
            self.connections, self.intake, rest, report_gap=self.gaps.append, wall_ns=lambda: 1_790_000_000_000_000_000
        )

    def say(self, subscription: Subscription, number: int, feed: int = 0, at_ms: int = 0) -> None:
        inlet = self.feeds[feed].inlet
        assert inlet is not None
        data: dict[str, Any] = {"s": subscription.symbol, "E": 1}
        if subscription.kind == "trade":
            at_ms = at_ms or 1_790_000_000_000 + number
            data |= {"e": "trade", "t": number, "p": "1", "q": "1", "T": at_ms, "m": True}
        elif subscription.kind == "depth":
            data |= {"e": "depthUpdate", "U": number, "u": number, "b": [], "a": []}
        else:
            open_ms = BAR * MINUTE
            k = {"t": open_ms, "T": open_ms + 59_999, "i": "1m", "f": 1, "L": 1, "n": number, "x": False}
            data |= {"e": "kline", "k": {**k, **dict.fromkeys("ochlvqVQB", "1")}}
        message = json.dumps({"stream": subscription.stream_name, "data": data}).encode()
        assert not self.intake.accept(inlet, [message], trio.current_time(), 1).poison


async def run(nursery: trio.Nursery, bench: Bench, seconds: float = 0) -> None:
    nursery.start_soon(bench.watch.run)
    await trio.sleep(seconds)


async def test_a_dead_trade_stream_is_subscribed_to_again_and_its_trades_are_fetched(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It flowed, then the venue went on without us; what comes late after all is a duplicate, and no restart of ids."""
    bench = Bench(TRADES[0])
    await run(nursery, bench)
    for number in range(90, 101):
        bench.say(TRADES[0], number)
        await trio.sleep(1)
    bench.venue.last_ids["S0USDT"] = 130
    await trio.sleep(60)
    assert bench.feeds[0].resubscribed == [TRADES[0]]
    assert [gap[:3] for gap in bench.gaps] == [(TRADES[0], 101, 130)]
    bench.say(TRADES[0], 129)
    bench.say(TRADES[0], 131)
    await trio.sleep(5)
    assert (len(bench.gaps), bench.intake.next_ids()) == (1, {TRADES[0]: 132})


async def test_a_feed_that_a_full_line_holds_up_is_not_taken_for_dead(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """What it has to say waits unread, and comes; a stream that is dead behind that is found once it is read again."""
    bench = Bench(TRADES[0])
    await run(nursery, bench)
    bench.say(TRADES[0], 100)
    await trio.sleep(7)
    bench.feeds[0].held_up_at_s = trio.current_time()
    bench.venue.last_ids["S0USDT"] = 130
    await trio.sleep(120)
    assert (bench.venue.asked, bench.gaps, bench.feeds[0].resubscribed) == ([], [], [])
    bench.feeds[0].held_up_at_s = None
    await trio.sleep(30)
    assert [gap[:3] for gap in bench.gaps] == [(TRADES[0], 101, 130)]


async def test_a_feed_that_is_held_up_while_the_venue_answers_is_not_judged(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It was silent and behind, but what it had to say within the grace may wait unread."""
    bench = Bench(TRADES[0])
    await run(nursery, bench)
    bench.say(TRADES[0], 100)
    bench.venue.last_ids["S0USDT"] = 130
    while not bench.venue.asked:  # noqa: ASYNC110 - seen from outside
        await trio.sleep(0.01)
    bench.feeds[0].held_up_at_s = trio.current_time()
    await trio.sleep(60)
    assert (bench.gaps, bench.feeds[0].resubscribed) == ([], [])


async def test_a_dead_stream_that_stays_dead_is_tried_again_ever_more_seldom(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Each time what the venue has meanwhile is fetched."""
    bench = Bench(TRADES[0])
    await run(nursery, bench)
    bench.say(TRADES[0], 100)
    for _ in range(1_000):
        await trio.sleep(1)
        bench.venue.last_ids["S0USDT"] += 1
    assert 4 <= len(bench.feeds[0].resubscribed) <= 8
    assert [after.first - before.last for before, after in pairwise(bench.gaps)] == [1] * (len(bench.gaps) - 1)


async def test_a_quiet_symbol_is_left_alone_and_asked_about_ever_more_seldom(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Two hours of silence cost a dozen cheap requests."""
    bench = Bench(TRADES[0])
    bench.say(TRADES[0], 100)
    await run(nursery, bench, 7_200)
    assert 5 <= len(bench.venue.asked) <= 14
    assert (bench.feeds[0].resubscribed, bench.gaps) == ([], [])


async def test_many_suspects_are_asked_about_in_one_request(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Weight 80 for all; those that are not behind are quiet, and so is one that the venue does not know."""
    bench = Bench(*TRADES)
    for subscription in TRADES:
        bench.say(subscription, 100)
    del bench.venue.last_ids["S1USDT"]
    bench.venue.last_ids["S2USDT"] = -1
    await run(nursery, bench, 16)
    assert bench.venue.asked == ["tickers"]


async def test_a_trade_that_a_connect_missed_is_fetched_without_waiting_for_the_next_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The first look finds the head of quiet symbols; it is no sign against the connection, however many they are."""
    bench = Bench(*TRADES)
    for subscription in TRADES:
        bench.say(subscription, 100)
    bench.venue.last_ids = dict.fromkeys(SYMBOLS, 103)
    await run(nursery, bench, 25)
    assert sorted(gap[:3] for gap in bench.gaps) == [(subscription, 101, 103) for subscription in TRADES]
    assert (bench.feeds[0].resubscribed, bench.feeds[0].replaced) == ([], [])


async def test_five_dead_streams_at_once_cost_the_connection(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Then it is not the streams."""
    bench = Bench(*TRADES)
    await run(nursery, bench)
    for number in range(90, 101):
        for subscription in TRADES:
            bench.say(subscription, number)
        await trio.sleep(5)
    bench.venue.last_ids = dict.fromkeys(SYMBOLS, 130)
    await trio.sleep(60)
    assert (bench.feeds[0].replaced, bench.feeds[0].resubscribed) == (["dead streams"], [])


async def test_what_arrives_while_the_venue_is_asked_is_not_dead(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Two seconds are left for what was under way."""
    bench = Bench(TRADES[0])
    await run(nursery, bench)
    bench.say(TRADES[0], 100)
    await trio.sleep(6)
    bench.venue.last_ids["S0USDT"] = 101
    while not bench.venue.asked:  # noqa: ASYNC110 - asked from outside
        await trio.sleep(0.1)
    await trio.sleep(GRACE_S / 2)
    bench.say(TRADES[0], 101)
    await trio.sleep(GRACE_S)
    assert (bench.feeds[0].resubscribed, bench.gaps) == ([], [])


async def test_a_dead_depth_stream_is_subscribed_to_again(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """The book of the venue moved on; the hole is declared by the first diff that follows, not here."""
    bench = Bench(DEPTH)
    await run(nursery, bench)
    for number in range(90, 101):
        bench.say(DEPTH, number)
        await trio.sleep(1)
    bench.venue.update_id = 150
    await trio.sleep(60)
    assert (bench.feeds[0].resubscribed, bench.gaps) == ([DEPTH], [])


@pytest.mark.parametrize(
    ("bars", "dead", "missing"),
    [([(BAR, 5)], 0, []), ([(BAR, 9)], 1, []), ([(BAR + 2, 1)], 1, [(BAR, BAR + 1)]), ([], 0, [])],
)
async def test_a_dead_stream_of_bars_is_known_by_the_trades_of_the_running_bar(
    bars: list[tuple[int, int]],
    dead: int,
    missing: list[tuple[int, int]],
    nursery: trio.Nursery,
    autojump_clock: MockClock,
) -> None:
    """A bar without new trades is quiet; closed bars that were missed are fetched."""
    bench = Bench(KLINES)
    await run(nursery, bench)
    for count in range(1, 6):
        bench.say(KLINES, count)
        await trio.sleep(2)
    bench.venue.bars = bars
    await trio.sleep(60)
    assert len(bench.feeds[0].resubscribed) == dead
    assert [gap[1:3] for gap in bench.gaps] == missing


async def test_a_stream_that_was_dead_from_the_start_is_found_once_the_venue_moves(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Nothing was ever seen of it: what the venue had at first proves nothing, what it has later does."""
    bench = Bench(TRADES[0])
    await run(nursery, bench, 60)
    assert bench.feeds[0].resubscribed == []
    bench.venue.last_ids["S0USDT"] = 101
    await trio.sleep(120)
    assert bench.feeds[0].resubscribed[:1] == [TRADES[0]]
    assert bench.gaps == []


async def test_a_stream_that_is_dead_on_one_of_two_feeds_needs_no_question(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The other feed proves it; nothing is missing."""
    bench = Bench(TRADES[0], feeds=2)
    await run(nursery, bench)
    for number in range(1, 60):
        bench.say(TRADES[0], number, feed=0)
        if number < 20:
            bench.say(TRADES[0], number, feed=1)
        await trio.sleep(1)
    assert (bench.feeds[0].resubscribed, bench.feeds[1].resubscribed) == ([], [TRADES[0]])
    assert (bench.venue.asked, bench.gaps) == ([], [])


async def test_a_venue_that_does_not_answer_is_asked_later(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Neither proof nor harm: one by one, all at once, and while catching up."""
    bench = Bench(*TRADES, DEPTH, KLINES)
    for subscription in TRADES:
        bench.say(subscription, 100)
    bench.venue.last_ids = dict.fromkeys(SYMBOLS, 103)
    bench.venue.is_away = True
    await run(nursery, bench, 40)
    assert bench.gaps == []
    bench.venue.is_away = False
    await trio.sleep(120)
    assert len(bench.gaps) == len(TRADES)


async def test_a_symbol_without_any_trade_is_no_riddle(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """The venue has none, we have none."""
    bench = Bench(TRADES[0])
    bench.venue.last_ids["S0USDT"] = -1
    await run(nursery, bench, 300)
    assert (bench.feeds[0].resubscribed, bench.gaps) == ([], [])


async def test_only_live_feeds_are_watched_and_each_from_its_own_beginning(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Nothing is said of one that is being opened or replaced; the next one has new ears."""
    bench = Bench(TRADES[0])
    bench.say(TRADES[0], 100)
    bench.connections[0].feed = None
    await run(nursery, bench, 60)
    bench.connections[0].feed = bench.feeds[0]
    bench.feeds[0].is_live = False
    await trio.sleep(60)
    bench.feeds[0].is_live = True
    bench.feeds[0].inlet = None
    await trio.sleep(60)
    assert bench.venue.asked == []
    bench.feeds[0].inlet = bench.intake.open([TRADES[0]])
    await trio.sleep(20)
    assert bench.venue.asked == ["trades S0USDT"]
