"""Repair against a model of the venue: forgotten ids, lag, missing bars, refusals, books; on a clock that jumps."""

from __future__ import annotations

from collections import Counter, deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from prometheus_client import CollectorRegistry

from ingestor import config
from ingestor.channels import BatchReceiver, BatchSender, open_batch_channel
from ingestor.core.binance import snapshot_record
from ingestor.core.claims import kline_open_ms, kline_ordinal
from ingestor.core.intake import Intake
from ingestor.core.model import Claim, DeadLetter, Gap, Hole, MarketData, RecordBatch, Subscription
from ingestor.fan_in import FanIn
from ingestor.metrics import Metrics
from ingestor.repair import Repair
from ingestor.rest_client import RestClient, RestrictedLocationError, depth_weight
from tests.core.test_intake import diff, trade
from tests.fakes.rest import START_MS, Answer, FakeRest, Market, rows_of, wall_ns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from trio.testing import MockClock

    from ingestor.core.binance import DepthSnapshot
    from ingestor.core.intake import Begin

BTC = Subscription("BTCUSDT", "trade")
ETH = Subscription("ETHUSDT", "trade")
BARS = Subscription("BTCUSDT", "kline_1m")
NOW_BAR = kline_ordinal("1m", START_MS)  # the bar that opens when the trio clock is 0
BOOK = (100, [["10.0", "1.0"]], [["11.0", "1.0"]])


@dataclass
class FakeBooks:
    """Books that refuse as many snapshots as told; `calls` is what they were asked, and when."""

    refusals: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[float, str, str, int]] = field(default_factory=list)
    others: int = 0  # books that may ask for a snapshot yet

    def begin_buffering(self, symbol: str) -> None:
        self.calls.append((trio.current_time(), "buffer", symbol, 0))

    def end_buffering(self, symbol: str) -> None:
        self.calls.append((trio.current_time(), "let go", symbol, 0))

    def load_snapshot(self, symbol: str, snapshot: DepthSnapshot, levels: int, received_us: int) -> MarketData | None:
        self.calls.append((trio.current_time(), "load", symbol, levels))
        left = self.refusals.get(symbol, 0)
        self.refusals[symbol] = max(0, left - 1)
        return None if left else snapshot_record(symbol, snapshot, received_us, "10.0", "11.0")

    def in_doubt(self) -> int:
        return self.others

    def loads(self, symbol: str) -> list[tuple[float, int]]:
        return [(at_s, levels) for at_s, what, name, levels in self.calls if (what, name) == ("load", symbol)]


class Middle(Random):
    """No jitter: always the middle of the range."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Letters:
    """Remembers dead letters."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        await trio.lowlevel.checkpoint()
        self.letters += letters


@dataclass
class Bench:
    """A running repair, and what comes out of it."""

    venue: FakeRest
    books: FakeBooks
    repair: Repair
    line: BatchReceiver[RecordBatch]
    metrics: Metrics
    declared: list[tuple[str, Hole]]
    letters: list[DeadLetter]

    def drain(self) -> list[MarketData]:
        """Everything on the line, in order."""
        records: list[MarketData] = []
        while True:
            try:
                batch = self.line.receive_nowait()
            except trio.WouldBlock:
                return records
            assert len(batch.records) == len(batch.raws)
            records += batch.records

    async def told_after(self, seconds: float) -> list[object]:
        """Wait, then return in short what came: ids of trades and bars, and holes as tuples."""
        await trio.sleep(seconds)
        return [short(record) for record in self.drain()]


def short(record: MarketData) -> object:
    if record.hole is not None:
        return record.hole.stream, record.hole.first, record.hole.last, record.hole.reason
    if record.kline is not None:
        return kline_ordinal(record.kline.interval, record.kline.open_time)
    return record.sequence


@asynccontextmanager
async def bench(
    venue: FakeRest,
    *,
    books: FakeBooks | None = None,
    repair: config.Repair | None = None,
    book: config.Book | None = None,
    rest: config.Rest | None = None,
    max_batches: int = 1_000,
) -> AsyncIterator[Bench]:
    """Run a repair in the background, against `venue`."""
    metrics, declared, books = Metrics(CollectorRegistry()), list[tuple[str, Hole]](), books or FakeBooks()
    letters = Letters()
    ends: tuple[BatchSender[RecordBatch], BatchReceiver[RecordBatch]] = open_batch_channel(max_batches, 10**9)
    sender, line = ends
    async with (
        RestClient(
            "https://venue.test",
            rest or config.Rest(max_attempts=2),
            metrics=metrics,
            wall_ns=wall_ns,
            random=Middle(),
            transport=venue,
        ) as client,
        trio.open_nursery() as nursery,
    ):
        task = Repair(
            client,
            books,
            sender,
            repair or config.Repair(),
            book or config.Book(),
            metrics=metrics,
            wall_ns=wall_ns,
            random=Middle(),
            on_hole=lambda symbol, hole: declared.append((symbol, hole)),
            dead_letters=letters,
        )
        nursery.start_soon(task.run)
        yield Bench(venue, books, task, line, metrics, declared, letters.letters)
        nursery.cancel_scope.cancel()
    with suppress(trio.EndOfChannel):  # its sender is closed: the line ends, or WouldBlock would be raised here
        while True:
            line.receive_nowait()


def venue_with(market: Market) -> FakeRest:
    return FakeRest(markets={"BTCUSDT": market})


# --- trades -----------------------------------------------------------------------------------------------------------


async def test_missing_trades_are_fetched_page_by_page_and_in_order(autojump_clock: MockClock) -> None:
    """Exactly the ids that are missing, asked for from the first; the records say that they come from REST."""
    async with bench(venue_with(Market(newest_id=10_000))) as on:
        on.repair.report_gap(Gap(BTC, 100, 2_349, 1))
        assert on.repair.pending() == {"trades": 2_250, "bars": 0, "books": 0}
        await trio.sleep(1)
        records = on.drain()
        assert [record.sequence for record in records] == list(range(100, 2_350))
        assert {record.source for record in records} == {"rest"}
        assert [(a.params["fromId"], a.params["limit"]) for a in on.venue.asked] == [
            ("100", "1000"), ("1100", "1000"), ("2100", "250"),
        ]  # fmt: skip
        assert on.repair.pending() == {"trades": 0, "bars": 0, "books": 0}
        assert on.metrics.ids_repaired.labels("trade")._value.get() == 2_250
        assert on.metrics.gaps_detected.labels("trade")._value.get() == 1


async def test_ids_that_the_venue_forgot_are_declared_and_the_rest_fetched(autojump_clock: MockClock) -> None:
    """It answers with the oldest that it keeps, without a word; the hole comes before what follows it."""
    async with bench(venue_with(Market(oldest_id=150, newest_id=10_000))) as on:
        on.repair.report_gap(Gap(BTC, 100, 152, 77))
        assert await on.told_after(1) == [("trade", 100, 149, "venue_forgot"), 150, 151, 152]
        assert on.declared == [("BTCUSDT", Hole("trade", 100, 149, "venue_forgot", 77))]


async def test_a_whole_range_that_was_forgotten_costs_one_request(autojump_clock: MockClock) -> None:
    """Every run below the oldest kept id is known to be gone."""
    async with bench(venue_with(Market(oldest_id=900_000, newest_id=1_000_000))) as on:
        on.repair.report_gap(Gap(BTC, 0, 799_999, 1))
        assert await on.told_after(1) == [("trade", 0, 799_999, "venue_forgot")]
        assert len(on.venue.asked) == 1


async def test_ids_that_the_database_lost_in_between_are_declared(autojump_clock: MockClock) -> None:
    """Asked for alone they are answered with a later one."""
    async with bench(venue_with(Market(newest_id=1_000, lost_ids={12, 13}))) as on:
        on.repair.report_gap(Gap(BTC, 10, 15, 1))
        assert await on.told_after(1) == [10, 11, 14, 15, ("trade", 12, 13, "venue_forgot")]


@pytest.mark.parametrize(
    ("spoil", "known"), [({"price": None}, True), ({"id": "seven", "price": 1}, False)], ids=["id known", "id unknown"]
)
async def test_a_row_that_cannot_be_read_spoils_no_other(
    spoil: dict[str, Any], known: bool, autojump_clock: MockClock
) -> None:
    """A letter with its bytes and a hole for its id; without an id it is asked for once more, alone."""
    venue = venue_with(Market(newest_id=20))
    answer = venue._historical_trades

    def spoiled(params: dict[str, str]) -> list[dict[str, Any]]:
        return [row | spoil if row["id"] == 7 else row for row in answer(params)]

    venue._historical_trades = spoiled  # type: ignore[method-assign]
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 5, 9, 1))
        told = await on.told_after(30)
        assert sorted(told, key=str) == sorted([5, 6, 8, 9, ("trade", 7, 7, "poison")], key=str)
        assert len(on.venue.asked) == (1 if known else 2)
        assert {each.claim for each in on.letters} == ({Claim(BTC, 7, 7)} if known else {None, Claim(BTC, 7, 7)})
        assert b"0.50000000" in on.letters[0].raw
        assert on.repair.pending()["trades"] == 0


@pytest.mark.parametrize("rows", [1, 2])
async def test_pages_of_which_nothing_can_be_read_are_not_given_up(rows: int, autojump_clock: MockClock) -> None:
    """Another language is no poison: a person, or a new version, will see to it."""
    venue = venue_with(Market(newest_id=20))

    def strange(params: dict[str, str]) -> list[dict[str, Any]]:
        del params
        return [{"strange": 1}] * rows

    venue._historical_trades = strange  # type: ignore[method-assign]
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 5, 9, 1))
        assert await on.told_after(300) == []
        assert on.letters == []
        assert len(venue.asked) <= 2 * 300 / 5
        assert on.repair.pending()["trades"] == 5


async def test_a_bar_that_cannot_be_read_spoils_no_other(autojump_clock: MockClock) -> None:
    """Its open time says which one it is."""
    venue = venue_with(Market())
    answer = venue._klines
    spoiled_ms = kline_open_ms("1m", NOW_BAR - 3)

    def spoiled(params: dict[str, str]) -> list[list[Any]]:
        return [[row[0], None, *row[2:]] if row[0] == spoiled_ms else row for row in answer(params)]

    venue._klines = spoiled  # type: ignore[method-assign]
    async with bench(venue) as on:
        on.repair.report_gap(Gap(Subscription("BTCUSDT", "kline_1m"), NOW_BAR - 4, NOW_BAR - 2, 1))
        hole = ("kline_1m", NOW_BAR - 3, NOW_BAR - 3, "poison")
        assert await on.told_after(1) == [hole, NOW_BAR - 4, NOW_BAR - 2]


async def test_a_database_that_lags_is_waited_for(autojump_clock: MockClock) -> None:
    """An empty or short page right after an outage proves nothing; what is there is taken at once."""
    async with bench(venue_with(Market(newest_id=1_000, lag_id=102, lag_until_s=5.0))) as on:
        on.repair.report_gap(Gap(BTC, 100, 105, 1))
        assert await on.told_after(1) == [100, 101, 102]
        assert await on.told_after(10) == [103, 104, 105]
        assert on.venue.times("historicalTrades") == [0, 0, 0.5, 1.5, 3.5, 7.5]


async def test_what_the_venue_never_has_is_declared_after_bounded_patience(autojump_clock: MockClock) -> None:
    """Nine questions in a minute and a half, then a hole."""
    async with bench(venue_with(Market(newest_id=99))) as on:
        on.repair.report_gap(Gap(BTC, 100, 105, 1))
        assert await on.told_after(600) == [("trade", 100, 105, "venue_has_none")]
        assert on.venue.times("historicalTrades") == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5]


async def test_a_lagging_symbol_does_not_hold_up_another(autojump_clock: MockClock) -> None:
    """Each subscription waits for itself."""
    venue = FakeRest(markets={"BTCUSDT": Market(newest_id=99), "ETHUSDT": Market(newest_id=500)})
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 100, 105, 1))
        on.repair.report_gap(Gap(ETH, 7, 8, 1))
        assert await on.told_after(0.25) == [7, 8]


async def test_subscriptions_take_turns_page_by_page(autojump_clock: MockClock) -> None:
    """A long gap of one symbol does not keep a short one of another waiting."""
    venue = FakeRest(markets={"BTCUSDT": Market(newest_id=10_000), "ETHUSDT": Market(newest_id=500)})
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 0, 4_999, 1))
        on.repair.report_gap(Gap(ETH, 7, 8, 1))
        await trio.sleep(1)
        assert [asked.params["symbol"] for asked in on.venue.asked][:3] == ["BTCUSDT", "ETHUSDT", "BTCUSDT"]


async def test_a_gap_above_the_limit_is_declared_at_once(autojump_clock: MockClock) -> None:
    """It is for the backfill command."""
    async with bench(venue_with(Market(newest_id=10_000)), repair=config.Repair(max_trades_per_gap=10)) as on:
        on.repair.report_gap(Gap(BTC, 100, 110, 1))
        on.repair.report_gap(Gap(BTC, 200, 209, 1))
        assert await on.told_after(1) == [("trade", 100, 110, "repair_limit"), *range(200, 210)]


async def test_without_repair_every_gap_is_declared(autojump_clock: MockClock) -> None:
    """Switched off it still says what is missing; nothing is asked."""
    async with bench(venue_with(Market()), repair=config.Repair(enabled=False)) as on:
        on.repair.report_gap(Gap(BTC, 100, 100, 1))
        on.repair.report_gap(Gap(BARS, 5, 6, 1))
        told = await on.told_after(1)
        assert set(told) == {("trade", 100, 100, "repair_limit"), ("kline_1m", 5, 6, "repair_limit")}
        assert on.venue.asked == []


async def test_a_venue_that_is_away_is_asked_again_for_ever(autojump_clock: MockClock) -> None:
    """Nobody said that the ids do not exist, so nothing is declared."""
    venue = venue_with(Market(newest_id=1_000))
    venue.refused["historicalTrades"] = Answer(503, {"code": -1001, "msg": "down"})
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 100, 101, 1))
        assert await on.told_after(300) == []
        venue.refused.clear()
        assert await on.told_after(60) == [100, 101]


async def test_a_ban_silences_every_job(autojump_clock: MockClock) -> None:
    """Trades, bars and books: nothing is sent until the venue's time is over, and nothing is lost."""
    venue = venue_with(Market(newest_id=1_000, books=deque([BOOK])))
    venue.script.append(Answer(418, {"code": -1003, "msg": "banned"}, {"Retry-After": "600"}))
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 100, 101, 1))
        await trio.sleep(0.1)
        on.repair.report_gap(Gap(BARS, NOW_BAR - 2, NOW_BAR - 2, 1))
        on.repair.request_snapshot("BTCUSDT")
        told = await on.told_after(700)
        assert sorted(map(str, told)) == sorted(["100", "101", str(NOW_BAR - 2), "100"])
        assert [asked.at_s >= 600 for asked in venue.asked] == [False] + [True] * (len(venue.asked) - 1)


async def test_a_delisted_symbol_is_declared_at_once(autojump_clock: MockClock) -> None:
    """Asking again could not help."""
    async with bench(FakeRest()) as on:
        on.repair.report_gap(Gap(BTC, 100, 101, 1))
        assert await on.told_after(1) == [("trade", 100, 101, "venue_has_none")]
        assert len(on.venue.asked) == 1


@pytest.mark.parametrize("status", [302, 400, 404])
async def test_a_refusal_without_the_venues_words_declares_nothing_at_once(
    status: int, autojump_clock: MockClock
) -> None:
    """A page of whoever stands between proves nothing of the ids; for good, it is believed."""
    venue = venue_with(Market(newest_id=1_000, books=deque([BOOK])))
    venue.script.extend([Answer(status, b"<html>")] * 4)
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 100, 101, 1))
        on.repair.request_snapshot("BTCUSDT")
        assert sorted(map(str, await on.told_after(70))) == ["100", "100", "101"]
        venue.refused |= {"klines": Answer(status, b"<html>")}
        on.repair.report_gap(Gap(BARS, NOW_BAR - 2, NOW_BAR - 2, 1))
        assert await on.told_after(120) == [("kline_1m", NOW_BAR - 2, NOW_BAR - 2, "venue_has_none")]


async def test_without_historical_trades_the_newest_come_from_memory(autojump_clock: MockClock) -> None:
    """The market-data-only host refuses historicalTrades: older ids are bridged by aggTrades and declared."""
    venue = venue_with(Market(newest_id=5_000))
    venue.refused["historicalTrades"] = Answer(404, b"<html>")
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 3_990, 4_003, 55))
        assert await on.told_after(1) == [("trade", 3_990, 4_000, "venue_forgot"), 4_001, 4_002, 4_003]
        assert venue.asked[-1].params == {"symbol": "BTCUSDT", "limit": "1000", "endTime": "55"}


async def test_what_no_aggregate_trade_holds_never_was(autojump_clock: MockClock) -> None:
    """The ids that the chain of aggregates proves are told from those that it does not reach."""
    venue = venue_with(Market(oldest_id=1_000, newest_id=20_000))
    venue.refused["historicalTrades"] = Answer(404, b"<html>")
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 9_991, 10_010, 55))
        told = await on.told_after(1)
        assert told == [("trade", 10_001, 10_010, "venue_forgot"), ("trade", 9_991, 10_000, "venue_has_none")]


async def test_memory_that_is_behind_or_empty_is_asked_again(autojump_clock: MockClock) -> None:
    """The fallback has the same patience."""
    venue = venue_with(Market(newest_id=50))
    venue.refused["historicalTrades"] = Answer(404, b"<html>")
    venue.script.extend([Answer(404, b"<html>"), Answer(200, [])])
    async with bench(venue) as on:
        on.repair.report_gap(Gap(BTC, 60, 61, 55))
        assert await on.told_after(3) == []
        venue.markets["BTCUSDT"].newest_id = 70
        assert await on.told_after(3) == [60, 61]


async def test_a_restricted_location_ends_the_service(autojump_clock: MockClock) -> None:
    """A configuration error: no retry can help, so it is not hidden."""
    venue = venue_with(Market())
    venue.refused["historicalTrades"] = Answer(451, {"code": 0, "msg": "restricted location"})
    with pytest.RaisesGroup(pytest.RaisesExc(RestrictedLocationError), flatten_subgroups=True):
        async with bench(venue) as on:
            on.repair.report_gap(Gap(BTC, 1, 2, 1))
            await trio.sleep(1)


async def test_a_page_is_fetched_only_when_the_line_has_room(autojump_clock: MockClock) -> None:
    """A stalled sink stops repair at one page in hand, and the live reader keeps the other half of the line."""
    async with bench(venue_with(Market(newest_id=100_000)), max_batches=4) as on:
        on.repair.report_gap(Gap(BTC, 0, 9_999, 1))
        await trio.sleep(60)
        assert len(on.venue.asked) == 3
        await on.line.receive()
        await trio.sleep(60)
        assert len(on.venue.asked) == 4


@pytest.mark.parametrize("seed", range(20))
async def test_every_missing_id_is_delivered_or_declared_once(seed: int, autojump_clock: MockClock) -> None:
    """Whatever the venue forgot, lost, is late with or refuses for a while: nothing is left out."""
    chance = Random(seed)
    faults: list[Answer | Exception] = [
        Answer(503, b"<html>"),
        Answer(429, None, {"Retry-After": "20"}),
        Answer(200, b"[{"),
        httpx.ReadTimeout("late"),
    ]
    venue = FakeRest(script=deque(chance.choices(faults, k=chance.randrange(6))), latency_s=chance.random())
    for symbol in ("BTCUSDT", "ETHUSDT"):
        newest = chance.randrange(1_000, 6_000)
        venue.markets[symbol] = Market(
            oldest_id=chance.choice([0, chance.randrange(3_000)]),
            newest_id=newest,
            lost_ids=set(chance.sample(range(newest), chance.randrange(20))),
            lag_id=chance.randrange(newest),
            lag_until_s=chance.choice([0.0, 10.0, 1_000.0]),
        )
    owed: set[tuple[str, int]] = set()
    reported = 0
    paid: list[tuple[str, int]] = []
    async with bench(venue, repair=config.Repair(max_trades_per_gap=3_000)) as on:
        for _ in range(chance.randrange(1, 8)):
            symbol, first, more = chance.choice(list(venue.markets)), chance.randrange(5_500), chance.randrange(1_500)
            owed.update((symbol, each) for each in range(first, first + more + 1))
            reported += more + 1
            on.repair.report_gap(Gap(Subscription(symbol, "trade"), first, first + more, 1))
            await trio.sleep(chance.choice([0.0, 3.0]))
        await trio.sleep(3_000)
        assert on.repair.pending()["trades"] == 0
        for record in on.drain():
            ids = (record.sequence,) if record.hole is None else range(record.hole.first, record.hole.last + 1)
            paid += [(record.symbol, each) for each in ids]
    assert set(paid) == owed
    assert len(paid) == len(owed) or reported > len(owed)  # what is reported again after its repair is fetched again


# --- bars -------------------------------------------------------------------------------------------------------------


async def test_missing_bars_are_fetched(autojump_clock: MockClock) -> None:
    """By open time, as closed bars."""
    async with bench(venue_with(Market())) as on:
        on.repair.report_gap(Gap(BARS, NOW_BAR - 5, NOW_BAR - 2, 1))
        await trio.sleep(3)
        records = on.drain()
        assert [short(record) for record in records] == list(range(NOW_BAR - 5, NOW_BAR - 1))
        assert all(record.kline is not None and record.kline.closed for record in records)
        assert on.metrics.ids_repaired.labels("kline")._value.get() == 4


async def test_a_bar_is_not_taken_before_it_is_over(autojump_clock: MockClock) -> None:
    """The newest row is unfinished and not marked: only the server's time tells, with two seconds for late trades."""
    async with bench(venue_with(Market())) as on:
        on.repair.report_gap(Gap(BARS, NOW_BAR - 1, NOW_BAR, 1))
        assert await on.told_after(1.9) == []
        assert await on.told_after(1) == [NOW_BAR - 1]
        assert await on.told_after(59) == []
        assert await on.told_after(1) == [NOW_BAR]
        assert len(on.venue.times("klines")) == 2


async def test_more_bars_than_a_page_holds(autojump_clock: MockClock) -> None:
    """`limit` cuts silently, so each page asks for what it can hold."""
    async with bench(venue_with(Market())) as on:
        on.repair.report_gap(Gap(BARS, NOW_BAR - 2_502, NOW_BAR - 3, 1))
        assert await on.told_after(1) == list(range(NOW_BAR - 2_502, NOW_BAR - 2))
        assert len(on.venue.times("klines")) == 3


async def test_bars_that_never_existed_are_declared(autojump_clock: MockClock) -> None:
    """In a trading halt there are no rows; patience is bounded, and the bars around them are delivered at once."""
    missing = {NOW_BAR - 8, NOW_BAR - 7}
    async with bench(venue_with(Market(missing_bars=missing))) as on:
        on.repair.report_gap(Gap(BARS, NOW_BAR - 9, NOW_BAR - 5, 1))
        assert await on.told_after(1) == [NOW_BAR - 9, NOW_BAR - 6, NOW_BAR - 5]
        assert await on.told_after(120) == [("kline_1m", NOW_BAR - 8, NOW_BAR - 7, "venue_has_none")]


async def test_a_late_database_is_waited_for_with_bars_too(autojump_clock: MockClock) -> None:
    """An empty page is no proof."""
    async with bench(venue_with(Market(bars_from_s=20.0))) as on:
        on.repair.report_gap(Gap(BARS, NOW_BAR - 5, NOW_BAR - 5, 1))
        assert await on.told_after(60) == [NOW_BAR - 5]


# --- depth ------------------------------------------------------------------------------------------------------------


async def test_lost_diffs_are_declared_never_asked_for(autojump_clock: MockClock) -> None:
    """No endpoint has them."""
    async with bench(venue_with(Market())) as on:
        on.repair.report_gap(Gap(Subscription("BTCUSDT", "depth"), 5, 9, 1))
        assert await on.told_after(1) == [("depth", 5, 9, "disconnected")]
        assert on.venue.asked == []


async def test_ids_that_began_again_while_nobody_looked_are_declared(autojump_clock: MockClock) -> None:
    """What the venue did between the wipe and our first live id is not fetched under the old numbers."""
    async with bench(venue_with(Market())) as on:
        trades = Subscription("BTCUSDT", "trade")
        on.repair.report_lost([Gap(trades, 700, 701, 1)])
        on.repair.report_restart(Gap(trades, 0, 41, 1))
        on.repair.report_restart(Gap(trades, 0, -1, 1))
        holes = [("trade", 700, 701), ("trade", 0, 41), ("trade", 0, -1)]
        assert await on.told_after(1) == [(*hole, "id_restart") for hole in holes]
        assert on.venue.asked == []


async def test_what_is_owed_when_the_ids_begin_again_is_declared_not_fetched(autojump_clock: MockClock) -> None:
    """The same numbers are other trades then; an answer that is under way finds nothing owed any more."""
    async with bench(venue_with(Market())) as on:
        on.repair.report_gap(Gap(BTC, 1, 1_500, 1))
        await trio.sleep(0.001)  # the first page is asked for
        await on.repair.give_up(BTC)
        assert await on.told_after(60) == [("trade", 1, 1_500, "id_restart")]
        assert len(on.venue.asked) == 1
        assert on.repair.pending()["trades"] == 0


async def test_what_is_missed_behind_a_restart_is_fetched(autojump_clock: MockClock) -> None:
    """In the same read, and while what was owed before is being declared: only old ids are given up."""
    async with bench(venue_with(Market(newest_id=1_000))) as on:

        async def admit(begins: Sequence[Begin]) -> None:
            for each in begins:
                if each.is_restart:
                    await on.repair.give_up(each.subscription)
                    on.repair.report_gap(Gap(BTC, 7, 7, 1))

        fan_in = FanIn(
            Intake([BTC]),
            on.repair._outlet.records,
            Letters(),
            admit=admit,
            report_gap=on.repair.report_gap,
            request_snapshot=on.repair.request_snapshot,
            on_hole=lambda *_: None,
            metrics=on.metrics,
            wall_ns=wall_ns,
        )
        inlet = fan_in.open([BTC])
        on.repair.report_gap(Gap(BTC, 4_000, 4_001, 1))
        read = [trade(5_000), trade(3, at_ms=1_790_000_009_000), trade(6, at_ms=1_790_000_009_001)]
        await fan_in.consume(inlet, read, trio.current_time())
        holes = [("trade", 4_000, 4_001, "id_restart"), ("trade", 0, 2, "id_restart")]
        assert await on.told_after(60) == [holes[0], 5_000, holes[1], 3, 6, 4, 5, 7]


async def test_a_book_is_seeded_and_its_snapshot_recorded(autojump_clock: MockClock) -> None:
    """Buffering begins before the request leaves; the record goes on the line after the book is loaded."""
    venue = venue_with(Market(books=deque([BOOK])))
    venue.latency_s = 0.25
    async with bench(venue) as on:
        on.repair.request_snapshot("BTCUSDT")
        on.repair.request_snapshot("BTCUSDT")
        assert on.repair.pending()["books"] == 1
        await trio.sleep(1)
        [record] = on.drain()
        assert record.depth is not None
        assert (record.depth.snapshot, record.sequence, record.source) == (True, 100, "rest")
        assert on.books.calls == [(0, "buffer", "BTCUSDT", 0), (0.25, "load", "BTCUSDT", 1000)]
        assert on.repair.pending()["books"] == 0
        assert on.metrics.snapshots.labels("loaded")._value.get() == 1


async def test_a_snapshot_that_is_too_old_is_fetched_again_slower_each_time(autojump_clock: MockClock) -> None:
    """A server behind the stream must not cost the budget."""
    venue = venue_with(Market(books=deque([BOOK])))
    async with bench(venue, books=FakeBooks(refusals={"BTCUSDT": 4})) as on:
        on.repair.request_snapshot("BTCUSDT")
        assert await on.told_after(60) == [100]
        assert [at_s for at_s, _ in on.books.loads("BTCUSDT")] == [0, 0.5, 1.5, 3.5, 7.5]


async def test_a_book_that_is_lost_again_and_again_waits_longer_each_time(autojump_clock: MockClock) -> None:
    """The first loss after a quiet time is answered at once."""
    venue = venue_with(Market(books=deque([BOOK])))
    async with bench(venue) as on:
        for _ in range(4):
            on.repair.request_snapshot("BTCUSDT")
            await trio.sleep(10)
        await trio.sleep(100)
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(1)
        assert [at_s for at_s, _ in on.books.loads("BTCUSDT")] == [0, 10.5, 21, 32, 140]


async def test_requests_while_a_snapshot_is_under_way_are_one(autojump_clock: MockClock) -> None:
    """Its answer holds, or is asked for again."""
    venue = venue_with(Market(books=deque([BOOK])))
    venue.latency_s = 1
    async with bench(venue) as on:
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(0.5)
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(60)
        assert len(on.books.loads("BTCUSDT")) == 1


async def test_a_book_that_is_lost_during_its_refresh_does_not_wait_for_it(autojump_clock: MockClock) -> None:
    """A refresh lives on what is left of the budget, which may be nothing; a lost book has a part of its own."""
    venue = venue_with(Market(books=deque([BOOK])))
    async with bench(venue, book=config.Book(resnapshot_s=100)) as on:
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(99)
        venue.latency_s = 9
        await trio.sleep(3)
        venue.latency_s = 0
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(1)
        assert venue.times("depth") == [0, 100, 102]
        assert [at_s for at_s, _ in on.books.loads("BTCUSDT")] == [0, 102]
        assert on.metrics.snapshots.labels("overtaken")._value.get() == 1


async def test_books_are_refreshed_periodically(autojump_clock: MockClock) -> None:
    """Late joiners find a start, and drift ends; the times are spread."""
    venue = venue_with(Market(books=deque([BOOK])))
    async with bench(venue, book=config.Book(resnapshot_s=100)) as on:
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(250)
        assert [at_s for at_s, _ in on.books.loads("BTCUSDT")] == [0, 100, 200]


async def test_many_books_start_shallow_and_are_deepened_later(autojump_clock: MockClock) -> None:
    """100 levels cost a tenth of 1000: all can answer within the first minute, and all are deep in the end."""
    symbols = [f"S{number}USDT" for number in range(100)]
    venue = FakeRest(markets={symbol: Market(books=deque([BOOK])) for symbol in symbols})
    async with bench(venue) as on:
        for symbol in symbols:
            on.repair.request_snapshot(symbol)
        await trio.sleep(50)
        on.drain()
        assert on.repair.pending()["books"] == 0
        assert on.books.loads(symbols[0])[0] == (0, 100)
        await trio.sleep(400)
        assert all(on.books.loads(symbol)[-1][1] == 1000 for symbol in symbols)
        assert all(len(on.books.loads(symbol)) <= 2 for symbol in symbols)


async def test_a_thousand_books_never_exceed_the_budget_and_are_all_deep_in_the_end(autojump_clock: MockClock) -> None:
    """As completeness.md §7 says: 5000 weight for a start, and then more than ten minutes for all levels."""
    symbols = [f"S{number}USDT" for number in range(1000)]
    venue = FakeRest(markets={symbol: Market(books=deque([BOOK])) for symbol in symbols})
    async with bench(venue, max_batches=10_000) as on:
        for symbol in symbols:
            on.repair.request_snapshot(symbol)
        await trio.sleep(61)
        assert on.repair.pending()["books"] == 0
        assert [asked.params["limit"] for asked in venue.asked[:960]] == ["100"] * 960  # all of the first minute
        await trio.sleep(12 * 60)
    deep = [asked.at_s for asked in venue.asked if asked.params["limit"] == "1000"]
    assert len(deep) == 1000
    assert 10 * 60 < deep[-1] < 12 * 60
    by_minute = Counter[int]()
    for asked in venue.asked:
        by_minute[int(asked.at_s // 60)] += depth_weight(int(asked.params["limit"]))
    assert max(by_minute.values()) <= 0.8 * 6000


async def test_books_that_may_yet_ask_are_thought_of(autojump_clock: MockClock) -> None:
    """The first to speak of a thousand gets few levels, and not more before the others had their turn.

    Not for ever, because some never speak.
    """
    venue = venue_with(Market(books=deque([BOOK])))
    async with bench(venue, books=FakeBooks(others=1000)) as on:
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(299)
        assert on.books.loads("BTCUSDT") == [(0, 100)]
        await trio.sleep(2)
        assert on.books.loads("BTCUSDT") == [(0, 100), (300, 1000)]
        on.books.others = 0
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(60)
        assert on.books.loads("BTCUSDT")[2:] == [(301.5, 1000)]


async def test_a_lost_book_overtakes_the_deepening_of_others(autojump_clock: MockClock) -> None:
    """What only makes answers better waits for what is left of the budget."""
    symbols = [f"S{number}USDT" for number in range(100)]
    venue = FakeRest(markets={symbol: Market(books=deque([BOOK])) for symbol in symbols})
    async with bench(venue) as on:
        for symbol in symbols:
            on.repair.request_snapshot(symbol)
        await trio.sleep(5)
        assert len(venue.times("depth")) < 200
        on.repair.request_snapshot(symbols[-1])
        await trio.sleep(5)
        assert [at_s for at_s, _ in on.books.loads(symbols[-1])] == [0, 5.5]


async def test_a_venue_that_is_away_keeps_the_books_request(autojump_clock: MockClock) -> None:
    """It is asked again until it answers."""
    venue = venue_with(Market(books=deque([BOOK])))
    venue.refused["depth"] = Answer(500, b"")
    async with bench(venue) as on:
        on.repair.request_snapshot("BTCUSDT")
        assert await on.told_after(100) == []
        venue.refused.clear()
        assert await on.told_after(30) == [100]
        assert on.metrics.snapshots.labels("unavailable")._value.get() > 5


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, b""),
        Answer(400, {"code": -1121, "msg": ""}),
        Answer(200, {"lastUpdateId": 8, "bids": [], "asks": []}),
    ],
    ids=["away", "refused", "too old"],
)
async def test_no_diffs_are_kept_for_a_snapshot_that_does_not_come(answer: Answer, autojump_clock: MockClock) -> None:
    """While the venue is away, one book after the other would fill its buffer: a gigabyte and more at a thousand."""
    intake: Any = Intake([Subscription("BTCUSDT", "depth")])
    inlet = intake.open(intake.subscriptions())
    intake.accept(inlet, [diff(98, 99)], 1.0, 1)
    venue = FakeRest(markets={"BTCUSDT": Market()}, refused={"depth": answer}, latency_s=0.1)
    async with bench(venue, books=intake) as on:
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(0.05)
        intake.accept(inlet, [diff(100, 101)], 1.0, 1)
        book = intake._depths["BTCUSDT"].book
        assert book._buffer
        await trio.sleep(0.45)  # two attempts have failed, and the next one is not due
        assert book._buffer is None


async def test_a_refused_book_is_left_until_the_next_refresh(autojump_clock: MockClock) -> None:
    """A delisted symbol is not asked for all the time."""
    async with bench(FakeRest(), book=config.Book(resnapshot_s=100)) as on:
        on.repair.request_snapshot("BTCUSDT")
        await trio.sleep(150)
        assert on.venue.times("depth") == [0, 100]
        assert on.metrics.snapshots.labels("refused")._value.get() == 2


async def test_a_book_that_is_gone_is_not_fetched_any_more(autojump_clock: MockClock) -> None:
    """Neither what is under way nor a refresh; wanted again, it begins from the beginning."""
    venue = venue_with(Market(books=deque([BOOK])))
    venue.latency_s = 1.0
    async with bench(venue, book=config.Book(resnapshot_s=100.0)) as it:
        it.repair.request_snapshot("BTCUSDT")
        await trio.sleep(0.5)
        it.repair.forget_book("BTCUSDT")
        it.repair.forget_book("ETHUSDT")
        await trio.sleep(500)
        assert (it.books.loads("BTCUSDT"), it.repair.pending()["books"], len(venue.times("depth"))) == ([], 0, 1)
        it.repair.request_snapshot("BTCUSDT")
        await trio.sleep(0.5)
        it.repair.forget_book("BTCUSDT")
        it.repair.request_snapshot("BTCUSDT")
        await trio.sleep(5)
        assert len(it.books.loads("BTCUSDT")) == 1
        it.repair.forget_book("BTCUSDT")
        await trio.sleep(500)
        assert len(it.books.loads("BTCUSDT")) == 1


@pytest.mark.parametrize("ids", [(99, 201), (201, 99), (50, 50, 50), (99,)])
async def test_an_answer_that_says_nothing_of_what_was_asked_is_not_asked_for_without_end(
    ids: tuple[int, ...], autojump_clock: MockClock
) -> None:
    """Whatever the venue sends instead: it is given its time, and then the ids are a hole."""
    venue = FakeRest(markets={"BTCUSDT": Market()}, refused={"historicalTrades": Answer(200, rows_of(ids))})
    async with bench(venue) as it:
        it.repair.report_gap(Gap(BTC, 100, 200, 5))
        told = await it.told_after(300)
    assert told in ([("trade", 100, 200, "venue_has_none")], [("trade", 100, 200, "venue_forgot")])
    assert len(venue.times("historicalTrades")) <= 9


@pytest.mark.parametrize(
    ("gap", "endpoint", "row"),
    [
        (Gap(BTC, 100, 200, 5), "historicalTrades", {"id": 50, "price": None}),
        (Gap(BARS, NOW_BAR - 5, NOW_BAR - 2, 5), "klines", [1_000, None]),
    ],
)
async def test_a_row_that_cannot_be_read_and_was_not_asked_for_is_not_asked_for_without_end(
    gap: Gap, endpoint: str, row: Any, autojump_clock: MockClock
) -> None:
    """A letter each time would fill the disk as fast as the budget lasts."""
    venue = FakeRest(markets={"BTCUSDT": Market()}, refused={endpoint: Answer(200, [row])})
    async with bench(venue) as it:
        it.repair.report_gap(gap)
        kind, first, last = gap.subscription.kind, gap.first, gap.last
        assert await it.told_after(300) == [(kind, first, last, "venue_has_none")]
        assert len(venue.times(endpoint)) == len(it.letters) == 9
