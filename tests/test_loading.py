"""The backfill command from range to stream, against the simulator's REST and archive, on a clock that jumps."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import fastavro
import msgspec
import pytest
import trio

from ingestor import backfill
from ingestor.backfill import BackfillError
from ingestor.config import moment
from ingestor.core.binance import KlineEvent, TradeEvent, decode_payload, kline_record, trade_record
from ingestor.core.claims import Intervals, kline_ordinal
from ingestor.loading import INTERRUPTED, Load, OutputExistsError, Request
from ingestor.loading_view import PlainView
from ingestor.local.archive import ArchiveDesk
from ingestor.local.market import Market
from ingestor.local.rest import Response, RestTrouble, error_body
from ingestor.serializer import Serializer
from tests.fakes.kinesis import ODD
from tests.fakes.past import START_MS, PastVenue, PastWorld, add_bars, history_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio.testing import MockClock

    from ingestor.core.model import EntryFailure, MarketData, PutEntry
    from ingestor.local.history import History


HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
YESTERDAY_MS = START_MS - START_MS % DAY_MS - DAY_MS
BEGIN_MS = START_MS - 10 * HOUR_MS
IN_2024_MS = 19_800 * DAY_MS
REAL = Path(__file__).parents[2] / "shared" / "data" / "binance"

needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real archive is not beside this repository")


def ignore(_line: str) -> None:
    """Show nothing."""


async def load(world: PastWorld, request: Request, stop: trio.Event | None = None) -> tuple[int, str]:
    """Run the command once; return its exit code and what it said."""
    out = io.StringIO()
    run = Load(request, world.config, world.open())
    code = await run.run(trio.Event() if stop is None else stop, view=PlainView(ignore), dry_run=False, out=out)
    return code, out.getvalue()


def read_container(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return list(fastavro.reader(file))


def trades_of(records: Sequence[MarketData], symbol: str = "BTCUSDT") -> list[int]:
    return [record.sequence for record in records if record.symbol == symbol and record.trade is not None]


def trade_request(folder: Path, *symbols: str, **bounds: Any) -> Request:
    wanted = Request(symbols or ("BTCUSDT",), "trade", state=folder / "state.json")
    return wanted._replace(**(bounds or {"start_ms": BEGIN_MS, "end_ms": START_MS}))


async def test_trades_of_a_time_come_once_and_as_they_were(tmp_path: Path, autojump_clock: MockClock) -> None:
    """From the first trade at the start to the last before the end, every value as the venue has it."""
    history = history_of("BTCUSDT", trades=range(700, 6_700), step_ms=1_000, start_ms=BEGIN_MS)
    world = PastWorld(PastVenue([history]), tmp_path)
    start_ms, end_ms = BEGIN_MS + 500, BEGIN_MS + 3_200_000
    code, said = await load(world, trade_request(tmp_path, start_ms=start_ms, end_ms=end_ms))
    assert code == 0
    records = world.delivered()
    assert [record.sequence for record in records] == list(range(702, 3_900))  # 701 shares its aggregate with 700
    assert {record.source for record in records} == {"rest"}
    fill = history.fills[2]
    assert (records[0].timestamp, records[0].received_at // 1000 >= START_MS) == (fill.time_ms, True)
    assert "3,198 records of 3,198 ids, 702..3899, 0 in holes" in said


async def test_a_range_without_trades_is_nothing_to_do(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Before the first trade, after the last one, and between two."""
    history = history_of("BTCUSDT", trades=range(4), step_ms=HOUR_MS, start_ms=BEGIN_MS)
    world = PastWorld(PastVenue([history]), tmp_path)
    for number, (start_ms, end_ms) in enumerate(
        [(0, BEGIN_MS), (START_MS - 1, START_MS), (BEGIN_MS + 1, BEGIN_MS + 9)]
    ):
        request = trade_request(tmp_path, start_ms=start_ms, end_ms=end_ms)
        code, said = await load(world, request._replace(state=tmp_path / f"{number}.json"))
        assert (code, said) == (0, "BTCUSDT trade: 0 records of 0 ids, nothing, 0 in holes\n")
    assert world.delivered() == []


async def test_forgotten_trades_become_a_hole(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Asked for by id, from before what the venue keeps to behind what it has."""
    history = history_of("BTCUSDT", trades=range(5_000, 6_500), step_ms=1_000, start_ms=BEGIN_MS)
    world = PastWorld(PastVenue([history]), tmp_path)
    code, said = await load(world, trade_request(tmp_path, first_id=10, last_id=10**9))
    assert code == 0
    records = world.delivered()
    holes = [record.hole for record in records if record.hole is not None]
    assert {hole.reason for hole in holes} == {"venue_forgot"}
    assert Intervals((hole.first, hole.last) for hole in holes) == Intervals([(10, 4_999)])
    assert sum(hole.last - hole.first + 1 for hole in holes) == 4_990  # pages in flight declare their own part
    assert trades_of(records) == list(range(5_000, 6_500))
    assert "1,500 records of 6,490 ids, 10..6499, 4,990 in holes\n  hole 10..4999: venue_forgot\n" in said


async def test_missing_bars_are_holes_and_the_unfinished_one_is_left_out(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Bars are really missing where the exchange was halted; the newest one is not over yet."""
    history = history_of("BTCUSDT", trades=(), step_ms=1, start_ms=BEGIN_MS)
    add_bars(history, "1m", BEGIN_MS, START_MS + 60_000)
    venue = PastVenue([history])
    gone = [BEGIN_MS + minute * 60_000 for minute in (0, 1, 200, 599)]
    venue.desk.trouble = RestTrouble(missing_bars={("BTCUSDT", "1m"): set(gone)})
    venue.desk._answers._trouble = venue.desk.trouble
    world = PastWorld(venue, tmp_path)
    request = Request(("BTCUSDT",), "kline_1m", BEGIN_MS, START_MS + HOUR_MS, state=tmp_path / "state.json")
    code, said = await load(world, request)
    assert code == 0
    records = world.delivered()
    bars = [record.sequence for record in records if record.kline is not None]
    # The last bar ended at START_MS, and the venue has two seconds to close it.
    expected = range(BEGIN_MS, START_MS - 60_000, 60_000)
    assert sorted(bars) == [at_ms for at_ms in expected if at_ms not in gone]
    holes = [record.hole for record in records if record.hole is not None]
    first = kline_ordinal("1m", BEGIN_MS)
    assert [(hole.first - first, hole.last - first, hole.reason) for hole in holes] == [
        (0, 1, "venue_has_none"),
        (200, 200, "venue_has_none"),
    ]
    assert "596 records of 599 ids" in said


async def test_a_database_that_lags_is_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An empty answer near the end proves nothing; after a minute it does."""
    history = history_of("BTCUSDT", trades=range(1_000), step_ms=1_000, start_ms=START_MS - 1_000_000)
    venue = PastVenue([history])
    world = PastWorld(venue, tmp_path)
    venue.desk._answers._trouble.lag_ms = 20_000
    code, _ = await load(world, trade_request(tmp_path, first_id=0, last_id=1_004))
    assert code == 0
    assert trades_of(world.delivered()) == list(range(1_000))


async def test_a_symbol_that_is_gone_costs_a_minute_and_not_one_for_each_page(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Half a year of minutes, of which it was traded for a day."""
    begin_ms = START_MS - 180 * DAY_MS
    history = history_of("BTCUSDT", trades=(), step_ms=1, start_ms=begin_ms)
    add_bars(history, "1m", begin_ms, begin_ms + DAY_MS)
    world = PastWorld(PastVenue([history]), tmp_path)
    code, said = await load(world, Request(("BTCUSDT",), "kline_1m", begin_ms, START_MS, state=tmp_path / "state.json"))
    assert code == 0
    assert "1,440 records of 259,199 ids" in said
    assert said.count("hole ") == 1
    assert len(world.venue.requests) < 100
    assert trio.current_time() < 120


async def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What was sent is delivered first; the same command fetches the rest, and nothing twice."""
    history = history_of("BTCUSDT", trades=range(12_000), step_ms=100, start_ms=BEGIN_MS)
    world = PastWorld(PastVenue([history]), tmp_path)
    request = trade_request(tmp_path)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await trio.sleep(2)
            stop.set()

        nursery.start_soon(interrupt)
        code, said = await load(world, request, stop)
    assert code == INTERRUPTED
    delivered = len(world.delivered())
    assert 0 < delivered < 12_000
    assert f"interrupted with {12_000 - delivered:,} ids to go; the same command continues (" in said
    assert (await load(world, request))[0] == 0
    assert trades_of(world.delivered()) == list(range(12_000))
    requests = len(world.venue.requests)
    assert (await load(world, request))[0] == 0
    assert len(world.venue.requests) == requests  # nothing is left, so nobody is asked


async def live_and_die(world: PastWorld, request: Request, *, kills: int, longest_s: float) -> list[int]:
    """Run the command, kill it at random instants, and let the last run come to its end.

    Return how many Kinesis records the stream held at each kill.
    """
    random = Random(7)
    held = []
    for _ in range(kills):
        world.kill_at_s = trio.current_time() + random.uniform(0.2, longest_s)
        with trio.move_on_at(world.kill_at_s):
            await load(world, request)
            pytest.fail("it was over before it could be killed")
        held.append(len(world.stream.records()))
    world.kill_at_s = inf
    assert (await load(world, request))[0] == 0
    return held


async def test_killed_at_ten_random_instants_it_continues_to_the_exact_set(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nothing missing, and no run repeats more than a page of those before it, whatever was in flight."""
    ids = range(1_000, 21_000)
    world = PastWorld(PastVenue([history_of("BTCUSDT", trades=ids, step_ms=100, start_ms=BEGIN_MS)]), tmp_path)
    held = await live_and_die(world, trade_request(tmp_path), kills=10, longest_s=1.0)
    blobs = [trades_of(world.opened(record)) for record in world.stream.records()]
    seen: set[int] = set()
    repeated = []
    for begin, end in pairwise([0, *held, len(blobs)]):
        run = Counter(number for blob in blobs[begin:end] for number in blob)
        assert run.total() == len(run)  # no run repeats what it sent itself
        repeated.append(len(seen & run.keys()))
        seen |= run.keys()
    assert sorted(seen) == list(ids)
    assert 0 < max(repeated) <= 1_000, repeated


async def test_a_file_killed_at_ten_random_instants_holds_nothing_twice(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What was written and not noted is cut off again, so a file is exact."""
    ids = range(1_000, 21_000)
    world = PastWorld(PastVenue([history_of("BTCUSDT", trades=ids, step_ms=100, start_ms=BEGIN_MS)]), tmp_path)
    output = tmp_path / "trades.avro"
    await live_and_die(world, trade_request(tmp_path)._replace(output=output), kills=10, longest_s=0.8)
    assert sorted(fields["sequence"] for fields in read_container(output)) == list(ids)
    assert world.delivered() == []


async def test_a_file_of_somebody_else_is_not_touched(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Without progress of this command, what is there stays there."""
    world = PastWorld(PastVenue([history_of("BTCUSDT", trades=range(5), step_ms=1, start_ms=BEGIN_MS)]), tmp_path)
    output = tmp_path / "trades.avro"
    output.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="is there already"):
        await load(world, trade_request(tmp_path)._replace(output=output))
    assert output.read_bytes() == b"precious"


class Eater:
    """Another process behind the same address, which takes half of the venue's limit each minute, evenly or at once."""

    def __init__(self, venue: PastVenue, appetite: str) -> None:
        self._venue = venue
        self._pause_s, self._bites = (0.04, 1) if appetite == "steady" else (60.0, 1_500)
        self._first_s = 0.0 if appetite == "steady" else 20.0
        self.refused = 0

    async def run(self) -> None:
        await trio.sleep(self._first_s)
        while True:
            for _ in range(self._bites):  # weight 2 each, 3000 a minute
                answer = self._venue.desk.answer("/api/v3/klines", [("symbol", "X")], self._venue.now_ms)
                self.refused += answer.status in (418, 429)
            await trio.sleep(self._pause_s)


def small_pages(patch: pytest.MonkeyPatch, rows: int = 10) -> None:
    """Have pages hold fewer rows at the same price, so that a minute of requests is made in a moment."""
    patch.setattr(backfill, "PAGE_ROWS", rows)


async def spent_by(world: PastWorld, request: Request, minutes: int) -> list[int]:
    """Run for whole minutes of the venue; return the weight that was spent on pages in each."""
    with trio.move_on_at(60 * minutes):
        await load(world, request)
    spent = Counter(int(at_s // 60) for at_s, asked in world.venue.requests if "historicalTrades" in asked)
    return [25 * spent[minute] for minute in range(minutes)]


@pytest.mark.parametrize("clock_ahead_s", [0.0, 1.5, -1.5])
async def test_the_whole_share_is_used_and_no_request_too_many(
    clock_ahead_s: float, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least 95 % of the permitted share of the venue's real limit, and not a single 429, whatever our clock says."""
    small_pages(monkeypatch)
    venue = PastVenue([history_of("BTCUSDT", trades=range(9_000), step_ms=100, start_ms=BEGIN_MS)])
    world = PastWorld(venue, tmp_path, clock_ahead_s=clock_ahead_s)
    permitted = 0.8 * 6_000
    spent = await spent_by(world, trade_request(tmp_path), 2)
    assert all(0.95 * permitted <= weight <= permitted for weight in spent), spent
    assert set(world.venue.statuses) == {200}


@pytest.mark.parametrize("appetite", ["steady", "sudden"])
async def test_another_process_that_eats_half_of_the_budget_is_made_room_for(
    appetite: str, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The venue counts the address; what others use is not ours to spend, and neither of us is refused."""
    small_pages(monkeypatch)
    venue = PastVenue([history_of("BTCUSDT", trades=range(9_000), step_ms=100, start_ms=BEGIN_MS)])
    world = PastWorld(venue, tmp_path)
    eater = Eater(venue, appetite)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(eater.run)
        spent = await spent_by(world, trade_request(tmp_path), 2)
        nursery.cancel_scope.cancel()
    assert all(1_700 <= weight <= 2_100 for weight in spent), spent
    assert set(venue.statuses) == {200}
    assert eater.refused == 0


async def test_symbols_share_the_budget_fairly(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three symbols at once: each gets a third of the requests."""
    small_pages(monkeypatch)
    symbols = ("BTCUSDT", "ETHUSDT", "BNBUSDT")
    histories = [history_of(symbol, trades=range(3_000), step_ms=100, start_ms=BEGIN_MS) for symbol in symbols]
    world = PastWorld(PastVenue(histories), tmp_path)
    await spent_by(world, trade_request(tmp_path, *symbols), 1)
    asked = Counter(
        symbol for _, text in world.venue.requests if "historicalTrades" in text for symbol in symbols if symbol in text
    )
    assert max(asked.values()) - min(asked.values()) <= 3, asked
    assert trades_of(world.delivered(), "ETHUSDT") == list(range(len(trades_of(world.delivered(), "ETHUSDT"))))


def archive_request(folder: Path, kind: str, start_ms: int, end_ms: int) -> Request:
    state = folder / f"archive-{kind}.json"
    return Request(("BTCUSDT",), kind, start_ms, end_ms, state=state, is_from_archive=True)


def on_any_path(record: MarketData) -> MarketData:
    """Leave out what tells the paths apart: source, time of receipt, and of a bar what REST does not give."""
    bar = record.kline
    if bar is not None:
        bar = msgspec.structs.replace(bar, first_trade_id=None, last_trade_id=None)
    timestamp = 0 if bar is not None else record.timestamp  # live: when it was sent; else: when the bar ended
    return msgspec.structs.replace(record, source="unknown", received_at=0, kline=bar, timestamp=timestamp)


@pytest.mark.parametrize(
    "day_ms", [pytest.param(YESTERDAY_MS, id="microseconds"), pytest.param(IN_2024_MS, id="milliseconds")]
)
async def test_records_are_the_same_on_all_three_paths(day_ms: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    """The same trades and bars live, over REST and from the archive, side by side, whatever the archive's unit."""
    market = Market(["BTCUSDT"], start_ms=day_ms, orders_per_s=0.01, updates_per_s=0.01, levels=100)
    market.watch("btcusdt@trade")
    market.watch("btcusdt@kline_1m")
    messages = [decode_payload(message.payload) for message in market.advance(day_ms + DAY_MS - 1)]
    messages += [decode_payload(message.payload) for message in market.advance(day_ms + DAY_MS + 2_000)]
    serializer = Serializer()
    live: dict[str, list[MarketData]] = {"trade": [], "kline_1m": []}
    for event in messages:
        if isinstance(event, TradeEvent) and event.trade_time < day_ms + DAY_MS:
            live["trade"].append(serializer.decode(serializer.encode(trade_record(event.symbol, event, 5))))
        elif isinstance(event, KlineEvent) and event.bar.closed:
            live["kline_1m"].append(serializer.decode(serializer.encode(kline_record(event.symbol, event, 5))))
    history = market.history("BTCUSDT")
    assert history is not None
    for kind, expected in live.items():
        request = archive_request(tmp_path, kind, day_ms, day_ms + DAY_MS)
        worlds = [PastWorld(PastVenue([history]), tmp_path) for _ in range(2)]
        assert (await load(worlds[0], request))[0] == 0
        assert (await load(worlds[1], request._replace(is_from_archive=False, state=tmp_path / kind)))[0] == 0
        archived, fetched = (world.delivered() for world in worlds)
        assert len(expected) > 500
        assert [on_any_path(record) for record in fetched] == [on_any_path(record) for record in expected]
        assert [on_any_path(record) for record in archived] == [on_any_path(record) for record in expected]
        if kind == "trade":
            assert [record.timestamp for record in archived] == [record.timestamp for record in expected]
        pages = [asked for _, asked in worlds[0].venue.requests if "limit=1000" in asked]
        assert pages == []  # the archive had all of it


async def test_rest_goes_on_where_the_archive_ends(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Yesterday is in the archive, today is not; nothing is missing between the two."""
    history = history_of("BTCUSDT", trades=range(4_000), step_ms=40_000, start_ms=YESTERDAY_MS)
    world = PastWorld(PastVenue([history]), tmp_path)
    code, said = await load(world, archive_request(tmp_path, "trade", YESTERDAY_MS, START_MS))
    assert code == 0
    assert trades_of(world.delivered()) == list(range(len(world.delivered())))
    day_after = 2 * (DAY_MS // 80_000)
    assert len(world.delivered()) > day_after
    pages = [asked for _, asked in world.venue.requests if "historicalTrades" in asked and "limit=1&" not in asked]
    assert f"fromId={day_after}&" in next(page for page in pages if not page.endswith("limit=1"))
    assert "refused" not in said


async def test_a_damaged_file_is_refused_and_its_day_comes_over_rest(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Damaged once it is fetched again; damaged each time, REST takes over, and the summary says so."""
    for damaged in (1, 3):
        history = history_of("BTCUSDT", trades=range(1_500), step_ms=10_000, start_ms=YESTERDAY_MS)
        world = PastWorld(PastVenue([history]), tmp_path)
        world.venue.archive.damaged = damaged
        request = archive_request(tmp_path, "trade", YESTERDAY_MS, YESTERDAY_MS + DAY_MS)
        code, said = await load(world, request._replace(state=tmp_path / f"{damaged}.json"))
        assert code == 0
        assert trades_of(world.delivered()) == list(range(1_500))
        assert ("SHA-256 is" in said) == (damaged == 3)


async def test_an_archive_load_continues_inside_of_a_file(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Killed while a file is read, it sends the rest of that file and nothing before."""
    history = history_of("BTCUSDT", trades=range(5_000), step_ms=10_000, start_ms=YESTERDAY_MS)
    world = PastWorld(PastVenue([history]), tmp_path)
    request = archive_request(tmp_path, "trade", YESTERDAY_MS, YESTERDAY_MS + DAY_MS)
    await live_and_die(world, request, kills=3, longest_s=0.9)
    counts = Counter(trades_of(world.delivered()))
    assert sorted(counts) == list(range(5_000))
    assert counts.total() < 5_000 + 3_000


def forgetful(history: History, oldest_id: int) -> PastVenue:
    """Make a venue that has every day in its archive, and over REST single trades from `oldest_id` on only."""
    venue = PastVenue([history])
    answer = venue.desk.answer

    def forget(path: str, params: Sequence[tuple[str, str]], now_ms: int) -> Response:
        kept = [(name, str(max(int(value), oldest_id)) if name == "fromId" else value) for name, value in params]
        return answer(path, kept, now_ms)

    venue.desk.answer = forget  # type: ignore[method-assign]  # one method of the desk is the script
    return venue


def files_asked(world: PastWorld) -> list[str]:
    """Which files of the archive were downloaded, in order."""
    return [asked.rpartition("/")[2].rstrip("?") for _, asked in world.venue.requests if asked.endswith(".zip?")]


async def test_the_archive_has_what_rest_forgot(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Asked for by times, no single trade has to be looked up; continued, it reads no file twice that it finished."""
    history = history_of("BTCUSDT", trades=range(9_000), step_ms=20_000, start_ms=YESTERDAY_MS - DAY_MS)
    world = PastWorld(forgetful(history, 8_900), tmp_path)
    request = archive_request(tmp_path, "trade", YESTERDAY_MS - DAY_MS, YESTERDAY_MS + DAY_MS)
    stop = trio.Event()
    world.venue.on_request = lambda _: stop.set() if len(files_asked(world)) == 2 else None
    assert (await load(world, request, stop))[0] == INTERRUPTED
    world.venue.on_request = None
    before = len(files_asked(world))
    code, said = await load(world, request)
    assert code == 0
    assert "8,640 records of 8,640 ids, 0..8639, 0 in holes" in said
    assert sorted(trades_of(world.delivered())) == list(range(8_640))
    days = [f"BTCUSDT-trades-2026-09-{day}.zip" for day in (19, 20)]
    assert files_asked(world)[:before] == days
    assert files_asked(world)[before:] == days[1:]
    assert sorted(os.listdir(tmp_path)) == ["archive-trade.json"]  # noqa: PTH208 - pathlib blocks, says ASYNC240


@pytest.mark.parametrize("has_month", [True, False])
async def test_a_month_is_one_file_or_its_days(has_month: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    """The month is published days after its end; until then there are the days."""
    august_ms = YESTERDAY_MS - 50 * DAY_MS  # the first of it
    history = history_of("BTCUSDT", trades=range(500), step_ms=DAY_MS // 10, start_ms=august_ms)
    venue = PastVenue([history])
    answer = venue.archive.answer
    if not has_month:
        venue.archive.answer = (  # type: ignore[method-assign]  # one method of the desk is the script
            lambda path, byte_range: Response(404, b"") if "/monthly/" in path else answer(path, byte_range)
        )
    world = PastWorld(venue, tmp_path)
    code, _ = await load(world, archive_request(tmp_path, "trade", august_ms, august_ms + 31 * DAY_MS))
    assert code == 0
    assert trades_of(world.delivered()) == list(range(310))
    assert files_asked(world)[0] == "BTCUSDT-trades-2026-08.zip"
    assert len(files_asked(world)) == (1 if has_month else 32)


async def test_many_symbols_take_turns_at_the_archive(tmp_path: Path, autojump_clock: MockClock) -> None:
    """However many there are, few downloads run at a time."""
    symbols = tuple(f"S{number}USDT" for number in range(7))
    histories = [history_of(each, trades=range(50), step_ms=1_000, start_ms=YESTERDAY_MS) for each in symbols]
    world = PastWorld(PastVenue(histories), tmp_path)
    request = archive_request(tmp_path, "trade", YESTERDAY_MS, YESTERDAY_MS + DAY_MS)._replace(symbols=symbols)
    assert (await load(world, request))[0] == 0
    assert len(world.delivered()) == 7 * 50
    assert world.venue.most_downloads == backfill.FILES_IN_FLIGHT


@needs_real_data
async def test_the_real_archive_goes_through_the_command(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Two of the venue's own days, bar by bar; and the damaged one is refused, its day comes over REST."""
    bitcoin = history_of("BTCUSDT", trades=(), step_ms=1, start_ms=BEGIN_MS)
    cardano = history_of("ADABTC", trades=(), step_ms=1, start_ms=BEGIN_MS)
    for day in ("2020-01-01", "2020-01-02", "2021-11-27"):
        start_ms = round(moment(day).timestamp() * 1_000)
        add_bars(bitcoin if day < "2021" else cardano, "1m", start_ms, start_ms + DAY_MS)
    venue = PastVenue([bitcoin, cardano])
    served = {path.name.replace(".DAMAGED", ""): path.read_bytes() for path in (REAL / "archive").glob("*-1m-*.zip*")}

    def from_disk(path: str, byte_range: str | None) -> Response:
        assert byte_range is None
        found = served.get(path.rpartition("/")[2])
        return Response(404, b"") if found is None else Response(200, found)

    venue.archive.answer = from_disk  # type: ignore[method-assign]  # one method of the desk is the script
    world = PastWorld(venue, tmp_path)
    start_ms = round(moment("2020-01-01").timestamp() * 1_000)
    code, said = await load(world, archive_request(tmp_path, "kline_1m", start_ms, start_ms + 2 * DAY_MS))
    assert (code, "2,880 records of 2,880 ids" in said, "refused" in said) == (0, True, False)
    rows = [
        line.split(",")
        for name in sorted(served)
        if name.startswith("BTCUSDT") and name.endswith(".zip")
        for line in zipfile.Path(io.BytesIO(served[name])).joinpath(name.replace("zip", "csv")).read_text().split()
    ]
    bars = [record.kline for record in world.delivered()]
    assert [[str(bar.open_time), bar.open, bar.high, bar.low, bar.close, bar.volume] for bar in bars if bar] == [
        row[:6] for row in rows
    ]
    start_ms = round(moment("2021-11-27").timestamp() * 1_000)
    request = archive_request(tmp_path, "kline_1m", start_ms, start_ms + DAY_MS)
    code, said = await load(world, request._replace(symbols=("ADABTC",), state=tmp_path / "ada.json"))
    assert (code, "1,440 records of 1,440 ids" in said) == (0, True)
    assert "refused ADABTC-1m-2021-11-27.zip: not a whole zip" in said


async def test_a_ban_is_sat_out(tmp_path: Path, autojump_clock: MockClock) -> None:
    """To the second, by the time in its text, by everyone; a person sees for how long."""
    venue = PastVenue([history_of("BTCUSDT", trades=range(9_000), step_ms=1_000, start_ms=BEGIN_MS)])
    world = PastWorld(venue, tmp_path)
    until_ms = START_MS + 137_000
    banned = Response(418, error_body(-1003, f"Way too much request weight used; IP banned until {until_ms}."))

    answer = venue.desk.answer

    def ban(path: str, params: Sequence[tuple[str, str]], now_ms: int) -> Response:
        return banned if venue.statuses.total() == 11 else answer(path, params, now_ms)

    venue.desk.answer = ban  # type: ignore[method-assign]  # one method of the desk is the script
    lines: list[str] = []
    run = Load(trade_request(tmp_path), world.config, world.open())
    assert await run.run(trio.Event(), view=PlainView(lines.append), dry_run=False, out=io.StringIO()) == 0
    assert sorted(trades_of(world.delivered())) == list(range(9_000))
    assert venue.statuses[418] == 1
    asked_s = [at_s for at_s, _ in venue.requests]
    assert not [at_s for at_s in asked_s if asked_s[11] + venue.latency_s < at_s < 138], asked_s
    assert max(asked_s) > 138
    assert any("the venue wants silence for 0:02:0" in line for line in lines)


async def test_an_archive_that_is_away_is_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    """As a venue that is away: nothing is given up."""
    history = history_of("BTCUSDT", trades=range(100), step_ms=10_000, start_ms=YESTERDAY_MS)
    venue = PastVenue([history])
    world = PastWorld(venue, tmp_path)
    venue.is_archive_away = True
    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            await trio.sleep(120)
            venue.is_archive_away = False

        nursery.start_soon(come_back)
        code, _ = await load(world, archive_request(tmp_path, "trade", YESTERDAY_MS, YESTERDAY_MS + DAY_MS))
    assert code == 0
    assert trades_of(world.delivered()) == list(range(100))
    assert venue.statuses[503] > 5


async def test_a_day_that_the_venue_cannot_tell_is_said(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The archive is sorted by days; a forgotten id has none, and guessing would be a silent hole."""
    history = history_of("BTCUSDT", trades=range(500, 600), step_ms=10_000, start_ms=YESTERDAY_MS)
    world = PastWorld(PastVenue([history]), tmp_path)
    request = trade_request(tmp_path, first_id=1, last_id=550)._replace(is_from_archive=True)
    with pytest.RaisesGroup(pytest.RaisesExc(BackfillError, match="does not keep trade 1"), flatten_subgroups=True):
        await load(world, request)


async def test_a_venue_that_is_away_is_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Minutes of 5xx cost time and nothing else."""
    history = history_of("BTCUSDT", trades=range(3_000), step_ms=1_000, start_ms=BEGIN_MS)
    venue = PastVenue([history])
    world = PastWorld(venue, tmp_path)

    def fail(requests: int) -> None:
        venue.desk.trouble.answer = Response(503, b"{}") if 7 < requests < 60 else None

    venue.on_request = fail
    code, _ = await load(world, trade_request(tmp_path))
    assert code == 0
    assert trades_of(world.delivered()) == list(range(3_000))


async def test_a_symbol_that_goes_away_half_way_ends_the_run(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With what the venue says; what was delivered stays noted."""
    venue = PastVenue([history_of("BTCUSDT", trades=range(9_000), step_ms=1_000, start_ms=BEGIN_MS)])
    world = PastWorld(venue, tmp_path)

    def fail(requests: int) -> None:
        gone = Response(400, error_body(-1121, "Invalid symbol."))
        venue.desk.trouble.answer = gone if requests > 7 else None

    venue.on_request = fail
    with pytest.RaisesGroup(pytest.RaisesExc(BackfillError, match="Invalid symbol"), flatten_subgroups=True):
        await load(world, trade_request(tmp_path))
    venue.on_request = None
    venue.desk.trouble.answer = None
    assert (await load(world, trade_request(tmp_path)))[0] == 0
    assert sorted(set(trades_of(world.delivered()))) == list(range(9_000))


async def test_what_the_schema_cannot_hold_is_a_poison_hole(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A price with nine decimals is never rounded: it goes to the dead letter, and its id is declared."""
    history = history_of("BTCUSDT", trades=range(100), step_ms=1_000, start_ms=YESTERDAY_MS)
    venue = PastVenue([history])
    world = PastWorld(venue, tmp_path)
    answer = venue.desk.answer

    def nine_decimals(path: str, params: Any, now_ms: int) -> Response:
        found = answer(path, params, now_ms)
        return msgspec.structs.replace(
            found, body=found.body.replace(b'"id":7,"price":"', b'"id":7,"price":"0.123456789')
        )

    venue.desk.answer = nine_decimals  # type: ignore[method-assign]  # one method of the desk is the script
    code, said = await load(world, trade_request(tmp_path, start_ms=YESTERDAY_MS, end_ms=START_MS))
    assert code == 0
    holes = [record.hole for record in world.delivered() if record.hole is not None]
    assert [(hole.first, hole.last, hole.reason) for hole in holes] == [(7, 7, "poison")]
    assert "99 records of 100 ids, 0..99, 1 in holes\n  hole 7..7: poison\n" in said
    assert f"dead letters: 1, in {tmp_path}/dead-letter; `ingestor dead-letter list` shows them\n" in said


async def test_what_kinesis_will_not_have_is_a_hole_too(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Given up after all attempts, declared in its place, and counted as a hole."""
    history = history_of("BTCUSDT", trades=range(5), step_ms=1_000, start_ms=YESTERDAY_MS)
    world = PastWorld(PastVenue([history]), tmp_path)
    world.config = world.config.model_copy(
        update={"kinesis": world.config.kinesis.model_copy(update={"aggregation": "none"})}
    )
    decode = Serializer().decode

    async def refuse(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        await trio.lowlevel.checkpoint()
        refused = [decode(entry.data) for entry in entries]
        return [ODD if record.trade is not None and record.sequence == 3 else None for record in refused]

    world.stream.before_put = refuse
    code, said = await load(world, trade_request(tmp_path, start_ms=YESTERDAY_MS, end_ms=START_MS))
    assert code == 0
    assert "1 in holes\n  hole 3..3: poison\n" in said
    assert "dead letters: 1, in " in said


async def test_a_file_with_rows_twice_or_missing_is_taken_row_by_row(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Nothing twice, and what it lacks comes over REST, whatever its first and last ids pretend."""
    history = history_of("BTCUSDT", trades=range(50), step_ms=1_000, start_ms=YESTERDAY_MS)
    odd = history_of("BTCUSDT", trades=range(50), step_ms=1_000, start_ms=YESTERDAY_MS)
    odd.fills[11] = odd.fills[10]
    venue = PastVenue([history])
    venue.archive = ArchiveDesk(PastVenue([odd]))
    world = PastWorld(venue, tmp_path)
    code, _ = await load(world, archive_request(tmp_path, "trade", YESTERDAY_MS, YESTERDAY_MS + DAY_MS))
    assert code == 0
    assert sorted(trades_of(world.delivered())) == list(range(50))
