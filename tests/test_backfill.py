"""Past ranges in the service, the lookups behind a range, and the venue's real pages through the whole way."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from ingestor import backfill
from ingestor.archive_client import read_lines
from ingestor.backfill import Backfill, BackfillError, Found, HoleWatcher, Todo, Wanted, configured, resolve
from ingestor.channels import open_batch_channel
from ingestor.config import BackfillRange, Rest, Shard
from ingestor.core.archive import ArchiveTrade, parse
from ingestor.core.binance import (
    RestAggTrade,
    decode_agg_trades,
    decode_klines,
    decode_trades,
    rest_kline_record,
    rest_trade_record,
)
from ingestor.core.claims import Intervals, kline_ordinal
from ingestor.core.model import Claim, Subscription
from ingestor.core.paging import Bounds, Page
from ingestor.local.rest import Response, error_body
from ingestor.metrics import Metrics
from ingestor.rest_client import RestClient
from ingestor.serializer import Serializer
from ingestor.threads import open_threads
from tests.fakes.past import START_MS as PAST_MS
from tests.fakes.past import PastVenue, add_bars, history_of
from tests.fakes.rest import START_MS, Answer, FakeRest, Market, wall_ns
from tests.fakes.service import run_for
from tests.fakes.world import START_MS as WORLD_START_MS
from tests.fakes.world import MemoryWorld, config_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio.testing import MockClock

    from ingestor.channels import BatchReceiver, BatchSender
    from ingestor.core.model import DeadLetter, MarketData, RecordBatch
    from ingestor.local.history import History

REAL = Path(__file__).parents[2] / "shared" / "data" / "binance"
BTC = Subscription("BTCUSDT", "trade")

needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real pages are not beside this repository")


def iso(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).isoformat()


def past(symbol: str, start_ms: int, end_ms: int, stream: Any = "trade", interval: Any = None) -> BackfillRange:
    return BackfillRange(symbol=symbol, stream=stream, interval=interval, start=iso(start_ms), end=iso(end_ms))


async def live_first(world: MemoryWorld, seconds: float) -> None:
    """Let the venue live before any service does."""
    async with world.alive():
        await trio.sleep(seconds)


def test_configured_ranges_are_shared_like_symbols() -> None:
    """Each range is loaded by one task."""
    ranges = [past(f"S{number}USDT", 0, 1_000) for number in range(8)] + [past("S1USDT", 0, 9, "kline", "1h")]
    shares = [configured(ranges, Shard(index=index, count=3)) for index in range(3)]
    assert sorted(each for share in shares for each in share) == sorted(configured(ranges, Shard()))
    assert configured(ranges, Shard())[-1] == Wanted(Subscription("S1USDT", "kline_1h"), 0, 9)
    assert all(shares)


async def test_the_service_loads_past_ranges_beside_live_work(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What was traded before it came is delivered too; the next task knows, and does not load it again."""
    world = MemoryWorld()
    await live_first(world, 60)
    ranges = (past("BTCUSDT", WORLD_START_MS, WORLD_START_MS + 50_000), past("NOPE", 0, 1_000))
    config = config_for(world, tmp_path, resume=True).model_copy(update={"backfill": ranges})
    await run_for(100, config, world)
    trades = [record for record in world.delivered() if record.trade is not None]
    loaded = sorted(record.sequence for record in trades if record.timestamp < WORLD_START_MS + 50_000)
    history = world.venue.desk._answers._source.history("BTCUSDT")
    assert history is not None
    assert loaded == [fill.trade_id for fill in history.fills if fill.time_ms < WORLD_START_MS + 50_000]
    assert len(loaded) > 50
    assert world.audit().is_complete
    await run_for(60, config, world)
    again = [record.sequence for record in world.delivered() if record.trade is not None]
    assert len(again) == len(set(again))


async def test_a_service_outlives_its_past_ranges(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A venue that is away is asked again, a symbol that goes away half-way ends its own load and nothing else."""
    world = MemoryWorld(("BTCUSDT", "ETHUSDT"))
    await live_first(world, 30)
    calls: list[str] = []
    gone: list[str] = []
    answer = world.venue.desk.answer

    def scripted(path: str, params: Any, now_ms: int) -> Response:
        if path.endswith("aggTrades"):
            calls.append(path)
            if len(calls) <= 8:
                return Response(503, b"{}")
        if path.endswith("historicalTrades") and ("symbol", "BTCUSDT") in params:
            gone.append(path)
            return Response(400, error_body(-1121, "Invalid symbol."))
        return answer(path, params, now_ms)

    world.venue.desk.answer = scripted  # type: ignore[method-assign]  # one method of the desk is the script
    ranges = [past(symbol, WORLD_START_MS, WORLD_START_MS + 20_000) for symbol in ("BTCUSDT", "ETHUSDT")]
    config = config_for(world, tmp_path)
    binance = config.binance.model_copy(update={"rest": Rest(max_attempts=2)})
    await run_for(60, config.model_copy(update={"backfill": tuple(ranges), "binance": binance}), world)
    assert len(calls) > 8
    assert len(gone) == 1
    early = [each.symbol for each in world.delivered() if each.trade and each.timestamp < WORLD_START_MS + 20_000]
    assert set(early) == {"ETHUSDT"}
    assert world.audit().is_complete


async def test_a_service_outlives_a_venue_that_serves_it_no_past(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Restricted, HTTP 451, and yet the live streams may go on."""
    world = MemoryWorld()
    answer = world.venue.desk.answer

    def scripted(path: str, params: Any, now_ms: int) -> Response:
        if path.endswith("aggTrades"):
            return Response(451, error_body(0, "Service unavailable from a restricted location"))
        return answer(path, params, now_ms)

    world.venue.desk.answer = scripted  # type: ignore[method-assign]  # one method of the desk is the script
    ranges = (past("BTCUSDT", WORLD_START_MS - 20_000, WORLD_START_MS),)
    config = config_for(world, tmp_path).model_copy(update={"backfill": ranges})
    with capture_logs() as lines:
        await run_for(20, config, world)
    [refused] = [line for line in lines if line["event"] == "backfill_range_refused"]
    assert refused["error"] == "Service unavailable from a restricted location"
    assert world.audit().is_complete


def client_of(venue: FakeRest) -> RestClient:
    return RestClient(
        "http://venue",
        Rest(),
        metrics=Metrics(CollectorRegistry()),
        wall_ns=wall_ns,
        random=Random(1),
        transport=venue,
    )


class Aggregates:
    """Answers from aggregate trades (first id, last id, time; -1 for both ids where the venue found one invalid)."""

    def __init__(self, rows: Sequence[tuple[int, int, int]]) -> None:
        self._rows = [
            RestAggTrade(number, "1", "1", first, last, at_ms, buyer_is_maker=True)
            for number, (first, last, at_ms) in enumerate(rows, 500)
        ]

    async def agg_trades(
        self,
        symbol: str,
        *,
        start_ms: int = 0,
        end_ms: int = 10**13,
        from_id: int = 0,
        limit: int = 3,  # what a page is in here
        purpose: str,
    ) -> list[RestAggTrade]:
        await trio.lowlevel.checkpoint()
        assert (symbol, purpose, start_ms >= 0, end_ms >= 0) == ("BTCUSDT", "backfill", True, True)
        found = [row for row in self._rows if start_ms <= row.time <= end_ms and row.aggregate_id >= from_id]
        return found[:limit] if end_ms == 10**13 else found[-limit:]

    async def server_time_ms(self) -> int:
        await trio.lowlevel.checkpoint()
        return START_MS


@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 2)), max_size=14),
    st.integers(-2, 12),
    st.integers(1, 14),
)
def test_times_become_ids_behind_rows_without_trades(
    steps: list[tuple[int, bool, int]], start_ms: int, length_ms: int
) -> None:
    """Rows that an audit of the venue invalidated have no ids; the search goes on behind them, however many."""
    rows: list[tuple[int, int, int]] = []
    next_id = at_ms = 0
    for pause_ms, is_valid, more in steps:
        at_ms += pause_ms
        rows.append((next_id, next_id + more, at_ms) if is_valid else (-1, -1, at_ms))
        next_id += more + 1 if is_valid else 0
    end_ms = start_ms + length_ms
    first = next((first for first, _, at_ms in rows if first >= 0 and at_ms >= start_ms), None)
    last = next((last for _, last, at_ms in reversed(rows) if last >= 0 and at_ms < end_ms), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backfill, "_LOOKUP_ROWS", 2)
        patch.setattr(backfill, "PAGE_ROWS", 3)
        found = trio.run(resolve, cast("RestClient", Aggregates(rows)), Wanted(BTC, start_ms, end_ms))
    assert found.page == Bounds(first, last).page()
    assert bool(found.notes) == bool(first and rows and not [row for row in rows if row[0] >= 0 and row[2] < start_ms])


def lagging(history: History, lag_ms: int, **venue: Any) -> PastVenue:
    """Make a venue whose database is behind."""
    made = PastVenue([history], **venue)
    made.desk._answers._trouble.lag_ms = lag_ms
    return made


async def resolved(venue: PastVenue, wanted: Wanted) -> Found:
    transport = httpx.MockTransport(venue.answer)
    metrics = Metrics(CollectorRegistry())
    async with RestClient(
        "http://venue", Rest(), metrics=metrics, wall_ns=venue.wall_ns, random=Random(1), transport=transport
    ) as rest:
        return await resolve(rest, wanted)


@pytest.mark.parametrize(
    ("step_ms", "end_ms", "last"),
    [
        pytest.param(1_000, PAST_MS - 2_000, 9_997, id="the end is among the newest trades"),
        pytest.param(10, PAST_MS - 8_000, 9_199, id="the newest trades begin behind the end"),
        pytest.param(1_000, PAST_MS - 3_600_000, 6_399, id="long ago"),
    ],
)
async def test_the_end_of_a_range_waits_for_no_database(
    step_ms: int, end_ms: int, last: int, autojump_clock: MockClock
) -> None:
    """Yesterday's trades at midnight: the last seconds are not in the database yet, and are wanted all the same."""
    history = history_of("BTCUSDT", trades=range(10_000), step_ms=step_ms, start_ms=PAST_MS - 10_000 * step_ms)
    venue = lagging(history, 20_000)
    assert await resolved(venue, Wanted(BTC, PAST_MS - 10_000 * step_ms, end_ms)) == Found(Page(0, last))
    assert trio.current_time() < 30


async def test_a_database_that_stays_behind_is_told_of(autojump_clock: MockClock) -> None:
    """After a minute of asking; what is known by then is loaded."""
    history = history_of("BTCUSDT", trades=range(10_000), step_ms=10, start_ms=PAST_MS - 100_000)
    page, notes = await resolved(lagging(history, 90_000), Wanted(BTC, PAST_MS - 100_000, PAST_MS - 12_000))
    assert page is not None
    assert page.last < 8_799
    assert notes == ["the venue's database is behind: the newest trades before the end are not in it yet"]


async def test_what_a_range_lacks_is_said(autojump_clock: MockClock) -> None:
    """A past that the venue does not tell of, a future that is not there yet, ids that nobody gave out so far."""
    history = history_of("BTCUSDT", trades=range(5_000, 5_100), step_ms=1_000, start_ms=PAST_MS - 100_000)
    add_bars(history, "1m", PAST_MS - 600_000, PAST_MS + 60_000)
    venue = PastVenue([history])
    bars = Subscription("BTCUSDT", "kline_1m")
    first = kline_ordinal("1m", PAST_MS)
    assert await resolved(venue, Wanted(BTC, -5, PAST_MS + 60_000)) == Found(
        Page(5_000, 5_099),
        [
            "it ends in the future: loaded as far as 2026-09-21T14:14:00Z",
            "the venue tells of no trade before id 5000: older ones of this range are forgotten",
        ],
    )
    assert await resolved(venue, Wanted(BTC, first_id=5_050, last_id=9_999)) == Found(
        Page(5_050, 5_099), ["5099 is the newest trade now"]
    )
    assert await resolved(venue, Wanted(bars, PAST_MS - 120_000, PAST_MS + 60_000)) == Found(
        Page(first - 2, first - 2), ["the bar of 2026-09-21T14:13:00Z is not over yet"]
    )
    assert await resolved(venue, Wanted(bars, PAST_MS - 120_000, PAST_MS - 60_000)) == Found(Page(first - 2, first - 2))


async def test_a_range_needs_two_ends(autojump_clock: MockClock) -> None:
    """Half a range is a mistake of the caller."""
    async with client_of(FakeRest()) as rest:
        with pytest.raises(BackfillError, match="a first and a last id"):
            await resolve(rest, Wanted(BTC, first_id=5))


async def test_a_venue_without_trades_has_no_ids(autojump_clock: MockClock) -> None:
    """A symbol that was listed and never traded."""
    venue = FakeRest(markets={"BTCUSDT": Market()})
    venue.script.append(Answer(200, []))
    async with client_of(venue) as rest:
        assert (await resolve(rest, Wanted(BTC, first_id=5, last_id=9))).page is None


class Letters:
    """Remembers dead letters."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        await trio.lowlevel.checkpoint()
        self.letters += letters


async def loaded(venue: FakeRest, subscription: Subscription, ids: Page) -> tuple[list[Any], list[DeadLetter]]:
    """Load over REST; return ids, and (first id, last id, reason) of holes, in order, and the letters."""
    letters, told = Letters(), list[Any]()
    line: tuple[BatchSender[RecordBatch], BatchReceiver[RecordBatch]] = open_batch_channel(100, 1 << 30)
    records, intake = line
    async with client_of(venue) as rest:
        with records:
            load = Backfill(
                rest,
                records,
                files=None,
                run_blocking=open_threads(1),
                wall_ns=wall_ns,
                watcher=HoleWatcher(lambda *_: None),
                dead_letters=letters,
            )
            await load.run({subscription: Todo(Intervals([ids]))})
        with suppress(trio.EndOfChannel):
            while True:
                for record in (await intake.receive()).records:
                    hole = record.hole
                    told.append(record.sequence if hole is None else (hole.first, hole.last, hole.reason))
    return told, letters.letters


@pytest.mark.parametrize(
    ("spoil", "known"), [({"price": None}, True), ({"id": "seven", "price": 1}, False)], ids=["id known", "id unknown"]
)
async def test_a_past_trade_that_cannot_be_read_spoils_no_other(
    spoil: dict[str, Any], known: bool, autojump_clock: MockClock
) -> None:
    """A letter with its bytes, and a hole where it would have been: waiting for it would last for ever."""
    venue = FakeRest(markets={"BTCUSDT": Market(newest_id=20, lost_ids={12, 13})})
    answer = venue._historical_trades

    def spoiled(params: dict[str, str]) -> list[dict[str, Any]]:
        return [row | spoil if row["id"] == 7 else row for row in answer(params)]

    venue._historical_trades = spoiled  # type: ignore[method-assign]
    told, letters = await loaded(venue, BTC, Page(5, 15))
    assert told == [5, 6, 8, 9, 10, 11, 14, 15, (7, 7, "poison"), (12, 13, "venue_has_none")]
    [letter] = letters
    assert (letter.reason, letter.claim) == ("unexpected_shape", Claim(BTC, 7, 7) if known else None)
    assert b"0.50000000" in letter.raw


@pytest.mark.parametrize("rows", [100, 1])
async def test_answers_that_are_shorter_than_asked_are_gone_on_with(rows: int, autojump_clock: MockClock) -> None:
    """However many it takes: what the venue still gives is not declared as something that it does not have."""
    venue = FakeRest(markets={"BTCUSDT": Market(newest_id=5_000)})
    answer = venue._historical_trades
    venue._historical_trades = lambda params: answer(params)[:rows]  # type: ignore[method-assign]
    last = 500 + rows * 12
    told, _ = await loaded(venue, BTC, Page(500, last))
    assert told == list(range(500, last + 1))


async def test_a_past_bar_that_cannot_be_read_spoils_no_other(autojump_clock: MockClock) -> None:
    """Its open time says which one it is."""
    venue = FakeRest(markets={"BTCUSDT": Market()})
    answer = venue._klines
    spoiled_ms = START_MS - 3 * 60_000

    def spoiled(params: dict[str, str]) -> list[list[Any]]:
        rows = answer({"endTime": str(START_MS), **params})
        return [[row[0], None, *row[2:]] if row[0] == spoiled_ms else row for row in rows]

    venue._klines = spoiled  # type: ignore[method-assign]
    bars = Subscription("BTCUSDT", "kline_1m")
    ordinal = kline_ordinal("1m", spoiled_ms)
    told, letters = await loaded(venue, bars, Page(ordinal - 1, ordinal + 1))
    assert told == [spoiled_ms - 60_000, spoiled_ms + 60_000, (ordinal, ordinal, "poison")]
    assert [each.claim for each in letters] == [Claim(bars, ordinal, ordinal)]


def real(name: str) -> bytes:
    path = REAL / "rest" / name
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def round_trip(records: Sequence[MarketData]) -> list[MarketData]:
    serializer = Serializer()
    return [serializer.decode(serializer.encode(record)) for record in records]


@needs_real_data
@pytest.mark.parametrize("name", ["trades_ETHBTC_limit1000.json.gz", "small_20211022/historical_trades.json"])
def test_real_trades_round_trip(name: str) -> None:
    """Every value of the venue's own pages, to the last decimal."""
    rows = decode_trades(real(name))
    records = [rest_trade_record("ETHBTC", row, 5) for row in rows]
    assert round_trip(records) == records
    plain = json.loads(real(name))
    assert [(each.sequence, each.price, each.volume) for each in records] == [
        (row["id"], row["price"], row["qty"]) for row in plain
    ]
    ids = [each.sequence for each in records]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


@needs_real_data
@pytest.mark.parametrize(
    ("name", "interval", "missing"),
    [
        ("klines_BTCUSDT_1h_page1.json.gz", "1h", 0),
        ("klines_BTCUSDT_1h_page2.json.gz", "1h", 3),
        ("klines_BTCUSDT_1d_2019.json.gz", "1d", 0),
        ("klines_BTCUSDT_1m_60.json.gz", "1m", 0),
    ],
)
def test_real_bars_round_trip(name: str, interval: str, missing: int) -> None:
    """And the exchange halt of June 2020 is a real hole of three bars."""
    rows = decode_klines(real(name))
    records = [rest_kline_record("BTCUSDT", interval, row, 5, closed=True) for row in rows]
    assert round_trip(records) == records
    plain = json.loads(real(name))
    bars = [each.kline for each in records if each.kline is not None]
    assert [[bar.open, bar.high, bar.low, bar.close, bar.volume] for bar in bars] == [row[1:6] for row in plain]
    ordinals = [kline_ordinal(interval, bar.open_time) for bar in bars]
    assert ordinals[-1] - ordinals[0] + 1 - len(ordinals) == missing


@needs_real_data
def test_real_aggregates_are_read() -> None:
    """Their first and last ids chain."""
    rows = decode_agg_trades(real("small_20211022/agg_trades.json"))
    assert all(later.first_trade_id == row.last_trade_id + 1 for row, later in pairwise(rows))


@needs_real_data
def test_real_archive_days_round_trip() -> None:
    """Two whole days of minutes, and a third one as text: every bar in its place, every value kept."""
    paths = sorted((REAL / "archive").glob("BTCUSDT-*.zip"))
    parts = [[line for part in read_lines(path) for line in part] for path in paths]
    ada = gzip.decompress((REAL / "archive" / "ADABTC-1m-2021-11-27.csv.gz").read_bytes())
    for lines in [*parts, ada.splitlines()]:
        rows = parse("klines", lines)
        records = [rest_kline_record("X", "1m", row, 5, closed=True) for row in rows]
        assert round_trip(records) == records
        assert [each.sequence for each in records] == [rows[0].open_time + 60_000 * number for number in range(1_440)]
        assert all(f"{row.open},{row.high},{row.low}".encode() in line for row, line in zip(rows, lines, strict=True))


def test_archive_trades_are_the_trades_of_rest() -> None:
    """Whatever the unit of its time, a row becomes the same record."""
    line = b"7,1.50000000,2.00000000,3.0,%d,True,True"
    [old] = parse("trades", [line % 1_700_000_000_123])
    [new] = parse("trades", [line % 1_700_000_000_123_999])
    assert isinstance(old, ArchiveTrade)
    assert rest_trade_record("X", old, 5) == rest_trade_record("X", new, 5)
