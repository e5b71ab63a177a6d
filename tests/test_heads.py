"""Quiet symbols: where they stand is asked once, cheaply, and only when it can be judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from ingestor.core.binance import RestTrade, Ticker
from ingestor.core.intake import Intake
from ingestor.core.model import Subscription
from ingestor.heads import Head, Heads
from ingestor.rest_client import BadRequestError, UnavailableError
from ingestor.silence_watch import SilenceWatch
from tests.test_silence_watch import Bench

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio.testing import MockClock

SYMBOLS = tuple(f"S{number}USDT" for number in range(6))
TRADES = tuple(Subscription(symbol, "trade") for symbol in SYMBOLS)
OTHERS = (Subscription("S0USDT", "depth"), Subscription("S0USDT", "kline_1m"))


class Venue:
    """What REST has; keeps what it was asked, and when."""

    def __init__(self) -> None:
        self.last_ids = {symbol: 100 + number for number, symbol in enumerate(SYMBOLS)}
        self.days = dict(self.last_ids)
        self.asked: list[tuple[float, str]] = []
        self.failures = 0

    async def _answer(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append((trio.current_time(), what))
        if self.failures:
            self.failures -= 1
            raise UnavailableError("away")

    async def tickers(self) -> list[Ticker]:
        await self._answer("tickers")
        return [Ticker(symbol, last_id, 7_000) for symbol, last_id in self.days.items()]

    async def trades(self, symbol: str, limit: int) -> list[RestTrade]:
        await self._answer(symbol)
        if symbol not in self.last_ids:
            raise BadRequestError(-1121, "Invalid symbol.")
        last_id = self.last_ids[symbol]
        return [RestTrade(last_id, "1", "1", 5_000, True)][:limit] if last_id >= 0 else []


class Desk:
    """Heads of a service that is subscribed to everything."""

    def __init__(self) -> None:
        self.venue = Venue()
        self.intake = Intake([*TRADES, *OTHERS])
        self.is_subscribed = True
        self.known = set(TRADES)
        self.found: list[Head] = []
        self.heads = Heads(
            [*TRADES, *OTHERS],
            self.intake,
            self.venue,
            is_subscribed=lambda: self.is_subscribed,
            is_known=self.known.__contains__,
            begin=self.begin,
        )

    async def begin(self, heads: Sequence[Head]) -> None:
        await trio.lowlevel.checkpoint()
        self.found += heads
        self.intake.begin_behind(heads, 0.0)

    def speak(self, subscription: Subscription) -> None:
        live: Any = self.intake._streams[subscription.stream_name]
        live.tracker.accept(5, 1)


async def test_one_request_finds_the_heads_of_all_who_are_quiet(autojump_clock: MockClock) -> None:
    """Who traded within five seconds is not asked about."""
    desk = Desk()
    desk.speak(TRADES[2])
    await desk.heads.run()
    assert desk.venue.asked == [(5.0, "tickers")]
    assert desk.found == [Head(each, 100 + number, 7_000) for number, each in enumerate(TRADES) if number != 2]
    assert desk.intake.next_ids()[TRADES[5]] == 106
    assert desk.intake.next_ids()[TRADES[2]] == 6


async def test_a_few_are_asked_about_one_by_one_and_nobody_costs_nothing(autojump_clock: MockClock) -> None:
    """Three newest trades weigh less than all tickers; a symbol that never traded has no head."""
    desk = Desk()
    desk.venue.last_ids["S1USDT"] = -1
    for each in TRADES[2:]:
        desk.speak(each)
    await desk.heads.run()
    assert [what for _, what in desk.venue.asked] == ["S0USDT", "S1USDT"]
    assert desk.found == [Head(TRADES[0], 100, 5_000)]
    busy = Desk()
    for each in TRADES:
        busy.speak(each)
    await busy.heads.run()
    assert (busy.venue.asked, busy.found) == ([], [])


async def test_who_did_not_trade_for_a_day_is_asked_alone(autojump_clock: MockClock) -> None:
    """The ticker counts no further back; a symbol that it does not have at all is left to its first trade."""
    desk = Desk()
    desk.venue.days["S3USDT"] = -1
    del desk.venue.days["S4USDT"]
    await desk.heads.run()
    assert [what for _, what in desk.venue.asked] == ["tickers", "S3USDT"]
    assert Head(TRADES[3], 103, 5_000) in desk.found
    assert TRADES[4] not in desk.intake.next_ids()


async def test_a_symbol_that_the_venue_does_not_have_holds_up_no_other(autojump_clock: MockClock) -> None:
    """A delisted one is granted like any other, and stays silent; it is asked about once."""
    desk = Desk()
    del desk.venue.last_ids["S0USDT"]
    for each in TRADES[2:]:
        desk.speak(each)
    with trio.move_on_after(600):
        await desk.heads.run()
    assert [what for _, what in desk.venue.asked] == ["S0USDT", "S1USDT"]
    assert desk.found == [Head(TRADES[1], 101, 5_000)]


async def test_a_venue_that_is_away_is_asked_again(autojump_clock: MockClock) -> None:
    """For ever; a symbol that has spoken meanwhile is not asked about any more."""
    desk = Desk()
    desk.venue.failures = 2
    await desk.heads.run()
    assert desk.venue.asked == [(5.0, "tickers"), (15.0, "tickers"), (25.0, "tickers")]
    assert len(desk.found) == 6


async def test_nobody_is_asked_about_before_it_is_known_what_earlier_tasks_covered(
    autojump_clock: MockClock,
) -> None:
    """Or new ids of a venue that was wiped would be taken for old ones; the others do not wait."""
    desk = Desk()
    desk.known -= set(TRADES[:4])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.heads.run)
        await trio.sleep(100)
        assert [head.subscription for head in desk.found] == [*TRADES[4:]]
        desk.known.update(TRADES)
        desk.speak(TRADES[0])
    assert [what for _, what in desk.venue.asked] == ["S4USDT", "S5USDT", "S1USDT", "S2USDT", "S3USDT"]


async def test_a_connection_that_is_refused_holds_the_others_up_for_a_minute(autojump_clock: MockClock) -> None:
    """Trades are asked for once their streams flow, so that nothing can happen in between."""
    desk = Desk()
    desk.is_subscribed = False
    await desk.heads.run()
    assert desk.venue.asked == [(65.0, "tickers")]


async def test_a_head_is_no_sign_against_the_feeds(autojump_clock: MockClock) -> None:
    """The watch over silent streams does not take what REST told for something that another feed brought."""
    bench = Bench(*(Subscription(f"S{number}USDT", "trade") for number in range(8)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(SilenceWatch.run, bench.watch)
        await trio.sleep(7)
        bench.intake.begin_behind([(name, 100, 7) for name in bench.feeds[0].inlet.subscriptions], 0.0)  # type: ignore[union-attr]
        await trio.sleep(120)
        assert (bench.feeds[0].replaced, bench.feeds[0].resubscribed, bench.gaps) == ([], [], [])
        bench.venue.last_ids["S3USDT"] = 103
        await trio.sleep(300)
        assert bench.feeds[0].resubscribed[0].symbol == "S3USDT"
        assert [(gap.first, gap.last) for gap in bench.gaps] == [(101, 103)]
        nursery.cancel_scope.cancel()
