"""The configuration is read again while everything flows: what stays is not touched, what is new starts as all did."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog
import trio
import yaml

from ingestor import app, logs
from ingestor.config import load, to_yaml
from ingestor.core.model import Subscription
from ingestor.core.sharding import share
from ingestor.local.faults import Disconnect, FailRest, Refuse
from ingestor.local.market import Market
from ingestor.local.proof import prove
from ingestor.reload import ConfigFile
from ingestor.serializer import decode_heartbeat
from tests.fakes.world import START_MS, MemoryWorld, config_for, run_inline

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from ingestor.core.audit import StreamReport
    from ingestor.core.model import PutEntry
    from ingestor.local.faults import Fault

BTC, ETH, BNB = "BTCUSDT", "ETHUSDT", "BNBUSDT"
KINDS = ("trade", "depth", "kline_1m")


class ListedMarket(Market):
    """A market of which only some symbols are on the venue's list."""

    listed: tuple[str, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        return self.listed


class ListedWorld(MemoryWorld):
    """A world with such a market."""

    def __init__(self, symbols: Sequence[str], script: Sequence[Fault]) -> None:
        self.market = ListedMarket(symbols, seed=2, start_ms=START_MS, orders_per_s=2.0, updates_per_s=3.0)
        self.market.listed = tuple(symbols)
        super().__init__(symbols, source=self.market, script=script, tick_s=0.1)


def a_world(*symbols: str, script: Sequence[Fault] = ()) -> ListedWorld:
    return ListedWorld(symbols, script)


class Task:
    """One service with a configuration file of its own."""

    def __init__(self, world: ListedWorld, folder: Path, *symbols: str, name: str = "task", **sections: Any) -> None:
        self.world = world
        self.path = folder / f"{name}.yaml"
        self.settings: dict[str, Any] = yaml.safe_load(to_yaml(config_for(world, folder, resume=True)))
        self.settings["logging"] = {"level": "info", "format": "json"}
        self.change(binance={"symbols": list(symbols)})
        self.change(**sections)
        self.file = ConfigFile(lambda: load(self.path, {}), run_inline)
        self.stop, self.ended = trio.Event(), trio.Event()
        self.service = app.Service(load(self.path, {}), world.as_seen_by_a_service(), self.file)
        self.line: app.Line
        self.connects = 0
        self.unready: list[float] = []

    def change(self, **sections: Any) -> None:
        """Write the file anew."""
        for section, values in sections.items():
            self.settings[section] = {**self.settings.get(section, {}), **values}
        self.path.write_text(yaml.safe_dump(self.settings))

    async def reload(self, *symbols: str, seconds: float = 5, **sections: Any) -> None:
        """Change the file, have it read again, and wait."""
        self.change(**sections)
        if symbols:
            self.change(binance={"symbols": list(symbols)})
        self.file.ask()
        await trio.sleep(seconds)

    async def run(self) -> None:
        async with self.service.rest:
            subscriptions = await self.service.find_subscriptions(self.stop)
            if subscriptions:
                self.line = app.Line(self.service, subscriptions)
                await self.line.run(self.stop)
        self.ended.set()

    async def finish(self) -> None:
        self.stop.set()
        await self.ended.wait()

    @property
    def status(self) -> dict[str, Any]:
        return self.service.reload.status()

    @property
    def is_ready(self) -> bool:
        return self.service.board.ready(trio.current_time())


@asynccontextmanager
async def running(*tasks: Task, seconds: float = 10) -> AsyncGenerator[None]:
    """Let tasks flow for a while, then the block do what it does, then stop them."""
    async with tasks[0].world.alive(), trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task.run)
        await trio.sleep(seconds)
        yield
        for task in tasks:
            await task.finish()


def streams_of(world: MemoryWorld, *symbols: str) -> dict[tuple[str, str], StreamReport]:
    """Return what is in the stream of these symbols, by symbol and kind."""
    return {(each.symbol, each.kind): each for each in world.audit().streams if each.symbol in symbols}


def assert_undisturbed(task: Task, *symbols: str) -> None:
    """Nothing of these symbols is missing, declared, repeated, fetched or out of order, and nothing was reconnected."""
    found = streams_of(task.world, *symbols)
    assert set(found) == {(symbol, kind) for symbol in symbols for kind in KINDS}
    for each in found.values():
        assert (each.duplicates, each.disordered, each.declared_ids) == (0, 0, 0), each
        assert len(each.delivered) == 1, each
    marks, next_ids = task.line.coverage.watermarks(), task.line.intake.next_ids()
    for name in (Subscription(symbol, kind) for symbol in symbols for kind in KINDS):
        assert marks[name] + 1 == next_ids[name]
    assert task.service.metrics.reconnections.value == 0
    assert fetched(task.world, *symbols) == []


def fetched(world: MemoryWorld, *symbols: str) -> list[str]:
    """Return the requests by which anything of these symbols was repaired."""
    return [
        request
        for request in world.rest_requests
        if any(f"symbol={symbol}" in request for symbol in symbols) and ("Trades" in request or "klines" in request)
    ]


def assert_undisturbed_by_reconnects(task: Task) -> None:
    """Expect that no connection was opened in the place of another."""
    assert task.service.metrics.reconnections.value == 0
    assert task.world.audit().is_complete


def heard(world: MemoryWorld) -> list[set[str]]:
    """Return the streams of every connection that the venue has."""
    return [set(session.connection.streams) for session in world.venue._sessions]


def names(*symbols: str) -> set[str]:
    return {Subscription(symbol, kind).stream_name for symbol in symbols for kind in KINDS}


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """Put the log level back."""
    logs.set_level("info")
    yield
    logs.set_level("warning")


def logs_level() -> str:
    return logging.getLevelName(logging.getLogger().level)


def events(log: list[Any], event: str) -> list[Any]:
    return [line for line in log if line["event"] == event]


# Adding and removing


async def test_a_symbol_is_added_and_the_others_do_not_notice(autojump_clock: MockClock, tmp_path: Path) -> None:
    """On the same connection; its origin is written before its first record, and it is whole from there on."""
    task = Task(a_world(BTC, ETH), tmp_path, BTC)
    async with running(task):
        await task.reload(BTC, ETH, seconds=60)
        assert task.is_ready
        assert task.status["outcome"] == "applied"
        assert heard(task.world) == [names(BTC, ETH)]
    assert_undisturbed(task, BTC, ETH)
    first_record_ms = min(each.received_at for each in task.world.delivered() if each.symbol == ETH) // 1000
    beats = [(each.arrival_ms, decode_heartbeat(each.data)) for each in task.world.beats.records()]
    first_beat_ms = min(at for at, beat in beats if any(entry["symbol"] == ETH for entry in beat["entries"]))
    assert first_record_ms <= first_beat_ms < first_record_ms + 100
    assert all(entry["settled"] for entry in beats[-1][1]["entries"])


async def test_a_symbol_is_removed_and_what_was_received_of_it_is_delivered(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its coverage stays in the heartbeat; metrics, page, books, probes and watches forget it; totals never fall."""
    task = Task(a_world(BTC, ETH), tmp_path, BTC, ETH)
    metrics = task.service.metrics
    async with running(task, seconds=65):
        before = metrics.totals()["messages"]
        await task.reload(BTC)
        assert heard(task.world) == [names(BTC)]
        assert task.is_ready
        assert metrics.totals()["messages"] > before
        assert {symbol for symbol, _ in task.line.intake.received()} == {BTC}
        details = task.line.details()
        assert (details["subscriptions"], details["symbols"], details["books"]["all"]) == (3, 1, 1)
        assert set(details["watermarks"]) == names(BTC)
        assert [row.symbol for row in details["overview"].symbols] == [BTC]
        assert task.line.repair.pending() == {"trades": 0, "bars": 0, "books": 0}
        assert {each.symbol for each in task.line.silence_watch._usual} == {BTC}
        await trio.sleep(60)
        assert [request for request in task.world.rest_requests if "depth" in request and ETH in request][1:] == []
    assert_undisturbed(task, BTC)
    gone = streams_of(task.world, ETH)
    assert set(gone) == {(ETH, kind) for kind in KINDS}
    last = decode_heartbeat(task.world.beats.records()[-1].data)
    covered = {(entry["symbol"], entry["kind"]): entry["covered"] for entry in last["entries"]}
    for key, each in gone.items():
        assert (each.duplicates, each.declared_ids, len(each.delivered)) == (0, 0, 1)
        assert covered[key] == [{"first": each.delivered[0].first, "last": each.delivered[0].last}]


async def test_what_is_added_takes_the_place_of_what_goes(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A full connection is not exceeded; nothing is opened or closed."""
    task = Task(a_world(BTC, ETH, BNB), tmp_path, BTC, ETH, binance={"connections": {"max_streams": 6}})
    async with running(task):
        await task.reload(BTC, BNB, seconds=60)
        assert heard(task.world) == [names(BTC, BNB)]
        assert task.is_ready
    assert_undisturbed(task, BTC, BNB)


async def test_connections_come_when_there_is_no_room_and_go_when_they_are_empty(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Three symbols on two connections, then two on one: the one that carries something is never touched."""
    connections = {"max_streams": 6, "redundancy": 1}
    task = Task(a_world(BTC, ETH, BNB), tmp_path, BTC, ETH, binance={"connections": connections})
    async with running(task):
        await task.reload(BTC, ETH, BNB, seconds=10)
        assert heard(task.world) == [names(BTC, ETH), names(BNB)]
        assert set(task.service.board.connections) == {"ws-0", "ws-1"}
        assert task.is_ready
        await task.reload(BTC, ETH, seconds=10)
        assert heard(task.world) == [names(BTC, ETH)]
        assert set(task.service.board.connections) == {"ws-0"}
        assert [each.name for each in task.line.connections] == ["ws-0"]
        assert task.is_ready
        await task.reload(BTC, ETH, BNB, seconds=10)
        assert set(task.service.board.connections) == {"ws-0", "ws-2"}
        await task.reload(BNB, seconds=50)
        assert heard(task.world) == [names(BNB)]
    assert_undisturbed_by_reconnects(task)


async def test_streams_and_intervals_change_as_symbols_do(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Depth goes, bars of five minutes come; trades do not notice."""
    task = Task(a_world(BTC), tmp_path, BTC)
    async with running(task):
        await task.reload(binance={"streams": ["trade", "kline"], "kline_intervals": ["1m", "5m"]}, seconds=60)
        assert heard(task.world) == [{"btcusdt@trade", "btcusdt@kline_1m", "btcusdt@kline_5m"}]
        assert task.line.intake.synchronised() == (0, 0)
        assert task.is_ready
    (trades,) = [each for each in streams_of(task.world, BTC).values() if each.kind == "trade"]
    assert (trades.duplicates, trades.declared_ids, len(trades.delivered)) == (0, 0, 1)
    assert task.status["outcome"] == "applied"


async def test_selectors_are_resolved_anew(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The file is the same, the venue's list is not: a new listing comes, what was delisted goes."""
    world = a_world(BTC, ETH, BNB)
    task = Task(world, tmp_path, "all:USDT")
    world.market.listed = (BTC, ETH)
    async with running(task):
        assert heard(world) == [names(BTC, ETH)]
        world.market.listed = (BTC, BNB)
        await task.reload(seconds=60)
        assert heard(world) == [names(BTC, BNB)]
        await task.reload()
        assert heard(world) == [names(BTC, BNB)]
    assert_undisturbed(task, BTC, BNB)


async def test_both_connections_of_two_follow(autojump_clock: MockClock, tmp_path: Path) -> None:
    """With redundancy, losing one connection right after the change still loses nothing, new symbols included."""
    task = Task(a_world(BTC, ETH, BNB), tmp_path, BTC, ETH, binance={"connections": {"redundancy": 2}})
    async with running(task):
        await task.reload(BTC, BNB, seconds=10)
        assert heard(task.world) == [names(BTC, BNB)] * 2
        assert set(task.service.board.connections) == {"ws-0a", "ws-0b"}
        task.world.venue.suffer(Disconnect(0.0, "oldest"))
        await trio.sleep(50)
        assert heard(task.world) == [names(BTC, BNB)] * 2
        assert {each.symbol for each in task.line.coverage} == {BTC, ETH, BNB}
    for each in streams_of(task.world, BTC, BNB).values():
        assert (each.duplicates, each.disordered, each.declared_ids, len(each.delivered)) == (0, 0, 0, 1), each


async def test_a_change_while_a_connection_is_away_is_what_it_comes_back_with(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What was added is subscribed to once, what was removed is not; the disconnect costs what it always costs."""
    task = Task(a_world(BTC, ETH, BNB, script=[Disconnect(15.0), Refuse(15.0, 10.0)]), tmp_path, BTC, ETH)
    async with running(task, seconds=20):
        assert heard(task.world) == []
        await task.reload(BTC, BNB, seconds=1)
        assert not task.is_ready
        assert task.line.intake.subscriptions() == {
            Subscription(symbol, kind) for symbol in (BTC, BNB) for kind in KINDS
        }
        await trio.sleep(60)
        assert heard(task.world) == [names(BTC, BNB)]
        assert task.is_ready
    assert task.world.audit().is_complete
    declared = {(each.symbol, each.kind) for each in task.world.audit().streams if each.declared}
    assert declared == {(BTC, "depth")}


@pytest.mark.parametrize("symbols", [(BTC, ETH, BNB), (BTC,)], ids=["added", "removed"])
async def test_a_change_while_a_connection_is_replaced_is_carried_over(
    symbols: tuple[str, ...], autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Old and new both follow, so that nothing is missing when the old one goes."""
    task = Task(a_world(BTC, ETH, BNB), tmp_path, BTC, ETH)
    async with running(task):
        (connection,) = task.line.connections
        first = connection.feed
        assert first is not None
        first.replace("age")
        await trio.sleep(0.5)
        assert len(heard(task.world)) == 2
        await task.reload(*symbols, seconds=30)
        assert connection.feed is not first
        assert heard(task.world) == [names(*symbols)]
        await trio.sleep(30)
    for each in streams_of(task.world, *symbols).values():
        assert (each.duplicates, each.disordered, each.declared_ids, len(each.delivered)) == (0, 0, 0, 1), each
    assert task.service.metrics.reconnections.value == 1  # the replacement


# What was before


@pytest.mark.parametrize("resume", [True, False])
async def test_what_is_taken_up_again_lacks_nothing_of_the_time_between(
    resume: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Trades and bars are fetched, depth is declared and seeded again, from where it was left; once."""
    task = Task(a_world(BTC, ETH), tmp_path, BTC, ETH, heartbeat={"resume": resume})
    async with running(task, seconds=65):
        await task.reload(BTC, seconds=70)
        await task.reload(BTC, ETH, seconds=65)
        produced = {name: account.produced.copy() for name, account in task.world.venue.ledger.items()}
        await trio.sleep(5)
        lags = task.line.lag.by_subscription(task.line.coverage.watermarks(), trio.current_time())
        assert max(lags.values()) < 5
        assert task.line.intake.synchronised() == (2, 2)
    assert_undisturbed(task, BTC)
    report = task.world.audit()
    assert report.is_complete
    for row in prove(produced, report):
        assert row.missing == 0, row
    found = streams_of(task.world, ETH)
    assert {key[1]: [hole.reason for hole in each.declared] for key, each in found.items()} == {
        "trade": [],
        "kline_1m": [],
        "depth": ["disconnected"],
    }
    assert sum(each.duplicates for each in found.values()) == 0
    assert task.line.resume.is_over is resume  # without resume the search of the start never was one


async def test_ids_that_began_again_while_a_symbol_was_left_out_are_a_new_generation(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Relisted: declared from zero, and what comes is no duplicate."""
    task = Task(a_world(BTC, ETH), tmp_path, BTC, ETH)
    async with running(task):
        await task.reload(BTC, seconds=20)
        task.world.market.restart_ids(ETH)
        await trio.sleep(5)
        await task.reload(BTC, ETH, seconds=30)
    trades = task.line.coverage[Subscription(ETH, "trade")]
    assert (trades.generation, trades.settled) == (1, True)
    holes = [
        each.hole for each in task.world.delivered() if each.hole and (each.symbol, each.hole.stream) == (ETH, "trade")
    ]
    live = [each.sequence for each in task.world.delivered() if each.trade and each.sequence < 1_000]
    assert [(hole.first, hole.last, hole.reason) for hole in holes] == [(0, min(live) - 1, "id_restart")]
    assert trades.watermark + 1 == task.line.intake.next_ids()[Subscription(ETH, "trade")]


async def test_what_an_earlier_task_left_is_gone_on_with(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The heartbeats are read back for what is added as for what a start begins with."""
    world = a_world(BTC, ETH)
    async with running(Task(world, tmp_path, BTC, ETH, name="earlier"), seconds=30):
        pass
    task = Task(world, tmp_path, BTC)
    async with running(task, seconds=20):
        assert fetched(world, ETH) == []
        await task.reload(BTC, ETH, seconds=60)
    assert world.audit().is_complete
    trades = streams_of(world, ETH)[ETH, "trade"]
    assert (len(trades.delivered), trades.declared_ids, trades.duplicates) == (1, 0, 0)
    assert len(fetched(world, ETH)) > 0


async def test_a_symbol_is_handed_from_one_task_to_another_without_a_hole(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The new owner begins before the old one ends: nothing is missing, declared or fetched."""
    world = a_world(BTC, ETH)
    old, new = Task(world, tmp_path, BTC, ETH, name="old"), Task(world, tmp_path, BTC, name="new")
    async with running(old, new, seconds=20):
        await new.reload(BTC, ETH, seconds=20)
        await old.reload(BTC, seconds=70)
        assert {each.symbol for each in old.line.intake.subscriptions()} == {BTC}
    found = streams_of(world, ETH)
    assert {each.kind for each in found.values()} == set(KINDS)
    assert [(each.declared_ids, len(each.delivered)) for each in found.values()] == [(0, 1)] * 3
    assert sum(each.duplicates for each in found.values()) > 0  # while both had it, and recognisable
    assert fetched(world, ETH) == []


async def test_every_shard_takes_its_share_of_what_is_added(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Two tasks with the same file: each symbol is with one of them, and those that stay stay."""
    symbols = [f"{letter}USDT" for letter in "ABCDEFGH"]
    world = a_world(*symbols)
    tasks = [
        Task(world, tmp_path, *symbols[:5], name=f"shard-{index}", shard={"index": index, "count": 2})
        for index in range(2)
    ]
    async with running(*tasks):
        for task in tasks:
            await task.reload(*symbols[1:], seconds=5)
        await trio.sleep(60)
        shares = [{each.symbol for each in task.line.subscriptions} for task in tasks]
        assert shares == [set(share(symbols[1:], index, 2)) for index in range(2)]
        assert all(shares)
        assert sorted(map(len, heard(world))) == sorted(3 * len(each) for each in shares)
    for task, mine in zip(tasks, shares, strict=True):
        assert_undisturbed(task, *mine)


# What is refused, and what needs a restart


async def test_a_configuration_with_mistakes_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path, log: list[Any]
) -> None:
    """All mistakes are told at once with their path; the level and the symbols stay, and the next file is taken."""
    task = Task(a_world(BTC, ETH), tmp_path, BTC)
    async with running(task):
        before = task.service.config
        await task.reload(
            BTC,
            ETH,
            logging={"level": "debug"},
            kinesis={"lanes": 0},
            shard={"index": 3, "count": 2},
            spool={"size": 1},
        )
        (rejected,) = events(log, "configuration_rejected")
        assert rejected["log_level"] == "error"
        assert [problem.partition(":")[0] for problem in rejected["problems"]] == [
            "kinesis.lanes",
            "spool.size",
            "shard.index",
        ]
        assert task.service.config == before
        assert heard(task.world) == [names(BTC)]
        assert (task.status["outcome"], task.status["problems"]) == ("rejected", 3)
        assert logs_level() == "INFO"
        for text in ("binance: [", "\x00", "binance: {symbols: !!int x}"):
            task.path.write_text(text)
            task.file.ask()
            await trio.sleep(1)
        task.path.unlink()
        task.file.ask()
        await trio.sleep(1)
        assert len(events(log, "configuration_rejected")) == 5
        task.settings |= {"kinesis": task.settings["kinesis"] | {"lanes": 8}, "shard": {}, "spool": {}}
        await task.reload(BTC, ETH, seconds=50)
        assert heard(task.world) == [names(BTC, ETH)]
    assert_undisturbed(task, BTC, ETH)


@pytest.mark.parametrize(
    ("symbols", "mention"),
    [(["NOSUCH"], "trades none of NOSUCH"), (["all:XYZ"], "trades none of all:XYZ"), ([ETH], "none of the 1 symbols")],
)
async def test_symbols_that_cannot_be_are_refused(
    symbols: list[str], mention: str, autojump_clock: MockClock, tmp_path: Path, log: list[Any]
) -> None:
    """A start would end with exit code 2; a service that runs goes on with what it has, its log level included."""
    index = next(index for index in range(2) if not share([ETH], index, 2))
    mine = next(symbol for symbol in (f"{letter}USDT" for letter in "ABCDEFGH") if share([symbol], index, 2))
    task = Task(a_world(mine, ETH), tmp_path, mine, shard={"index": index, "count": 2})
    async with running(task):
        await task.reload(*symbols, logging={"level": "debug"})
        (rejected,) = events(log, "configuration_rejected")
        assert mention in rejected["problems"][0]
        assert logs_level() == "INFO"
        assert heard(task.world) == [names(mine)]


async def test_a_venue_without_a_list_is_no_reason_to_end(
    autojump_clock: MockClock, tmp_path: Path, log: list[Any]
) -> None:
    """A start would end there: this place is not served any more, or what answers is no venue."""
    task = Task(a_world(BTC, ETH), tmp_path, BTC)
    async with running(task):
        task.world.venue.suffer(FailRest(0.0, 15.0, "restricted"))
        await task.reload("all:USDT")
        task.world.venue.desk.trouble.answer = None
        task.service.rest._http.base_url = httpx.URL("http://venue/elsewhere/")
        await task.reload(seconds=20)
        problems = [line["problems"][0] for line in events(log, "configuration_rejected")]
        assert [problem.partition(":")[0] for problem in problems] == ["binance.rest_url"] * 2
        assert "run in another region" in problems[0]
        assert heard(task.world) == [names(BTC)]


async def test_what_needs_a_restart_is_named_and_the_rest_is_done(
    autojump_clock: MockClock, tmp_path: Path, log: list[Any]
) -> None:
    """Streams, lanes and limits stay what they are; told again every time, until it is so."""
    task = Task(a_world(BTC, ETH), tmp_path, BTC)
    async with running(task):
        await task.reload(
            BTC,
            ETH,
            kinesis={"stream_name": "other", "lanes": 3},
            binance={"connections": {"max_streams": 1}},
            seconds=50,
        )
        await task.reload()
        keys = ["binance.connections.max_streams", "kinesis.stream_name", "kinesis.lanes"]
        assert [line["keys"] for line in events(log, "configuration_needs_restart")] == [keys, keys]
        assert task.status["needs_restart"] == keys
        assert (task.service.config.kinesis.lanes, task.service.config.binance.symbols) == (8, (BTC, ETH))
        assert heard(task.world) == [names(BTC, ETH)]
        assert [line["changed"] for line in events(log, "configuration_applied")] == [["binance.symbols"]]
        assert len(events(log, "configuration_unchanged")) == 1
    assert_undisturbed(task, BTC, ETH)


async def test_the_log_level_changes_and_nothing_else(autojump_clock: MockClock, tmp_path: Path) -> None:
    """At once, without a word to the venue."""
    task = Task(a_world(BTC), tmp_path, BTC)
    async with running(task):
        asked = len(task.world.rest_requests)
        await task.reload(logging={"level": "debug"}, seconds=0.1)
        assert logs_level() == "DEBUG"
        assert task.service.config.logging.level == "debug"
        assert len(task.world.rest_requests) == asked


def test_a_line_of_the_log_names_some_symbols() -> None:
    """In order, and how many more there are."""
    symbols = [f"S{number:02}USDT" for number in range(25)]
    assert app.some(reversed(symbols[:20])) == symbols[:20]
    assert app.some(symbols) == [*symbols[:20], "and 5 more"]


# When it comes at a bad time


async def test_a_venue_that_is_away_holds_up_selectors_and_named_symbols_only_for_a_moment(
    autojump_clock: MockClock, tmp_path: Path, log: list[Any]
) -> None:
    """Names need no list; a selector waits for it, and whoever asks again meanwhile begins anew."""
    world = a_world(BTC, ETH, BNB, script=[FailRest(8.0, 60.0, "internal")])
    task = Task(world, tmp_path, BTC)
    async with running(task):
        await task.reload(BTC, ETH, logging={"level": "debug"}, seconds=9)
        assert heard(world) == [names(BTC)]
        assert logs_level() == "DEBUG"
        await trio.sleep(3)
        assert heard(world) == [names(BTC, ETH)]
        assert len(events(log, "symbols_unchecked")) == 1
        await task.reload("all:*", seconds=15)
        assert heard(world) == [names(BTC, ETH)]
        await task.reload(BTC, BNB, logging={"level": "info"}, seconds=15)
        assert heard(world) == [names(BTC, BNB)]
        assert logs_level() == "INFO"
        assert task.status["outcome"] == "applied"


async def test_a_wish_that_comes_before_the_line_is_up_is_what_it_begins_with(
    autojump_clock: MockClock, tmp_path: Path, log: list[Any]
) -> None:
    """A selector waits for a venue that is away; then the file names symbols. A broken one in between is refused."""
    world = a_world(BTC, ETH)
    world.venue.suffer(FailRest(0.0, 1e6, "internal"))
    task = Task(world, tmp_path, "all:USDT")
    task.file.ask()  # before anything runs
    async with running(task, seconds=30):
        assert heard(world) == []
        await task.reload(kinesis={"lanes": 0}, seconds=5)
        assert len(events(log, "configuration_rejected")) == 1
        await task.reload(BTC, kinesis={"lanes": 8}, seconds=20)
        assert heard(world) == [names(BTC)]
        assert task.is_ready


async def test_symbols_that_were_mended_while_the_venue_was_away_do_not_end_it_when_it_comes_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The look at the symbols of the start comes late, and finds that they are not what is wanted any more."""
    world = a_world(BTC)
    world.venue.suffer(FailRest(0.0, 60.0, "internal"))
    task = Task(world, tmp_path, "NOSUCHUSDT")
    async with running(task):
        await task.reload(BTC, seconds=120)
        assert heard(world) == [names(BTC)]
        assert task.is_ready


@pytest.mark.parametrize("is_valid", [True, False])
async def test_a_wish_during_a_stop_is_ignored(
    is_valid: bool, autojump_clock: MockClock, tmp_path: Path, log: list[Any]
) -> None:
    """The line drains as if nothing had been said."""
    task = Task(a_world(BTC, ETH), tmp_path, BTC)
    held = trio.Event()

    async def wait(_entries: Sequence[PutEntry]) -> None:
        held.set()
        await trio.sleep(1)

    async with running(task, seconds=50):
        task.world.data.before_put = wait
        await held.wait()
        task.stop.set()
        task.change(binance={"symbols": [BTC, ETH] if is_valid else 5})
        task.file.ask()
        await trio.sleep(0.5)
        task.file.ask()
    assert events(log, "configuration_applied") == events(log, "configuration_rejected") == []
    assert_undisturbed(task, BTC)
    assert decode_heartbeat(task.world.beats.records()[-1].data)["final"]


async def test_symbols_come_and_go_at_random_while_connections_break(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whatever happens in between: with everything taken up again at the end, every id is delivered or declared."""
    dice = Random(11)
    symbols = (BTC, ETH, BNB)
    script = [Disconnect(at_s, dice.choice(["all", "oldest"])) for at_s in range(10, 80, 15)]
    connections = {"max_streams": 4, "redundancy": 2, "rollover_after_s": 40}
    task = Task(a_world(*symbols, script=script), tmp_path, *symbols, binance={"connections": connections})
    async with running(task):
        for _ in range(20):
            await task.reload(*dice.sample(symbols, dice.randint(1, 3)), seconds=dice.choice([0.1, 0.5, 2, 8]))
        await task.reload(*symbols, seconds=60)
        produced = {name: account.produced.copy() for name, account in task.world.venue.ledger.items()}
        await trio.sleep(10)
        assert task.is_ready
        assert task.line.resume.is_over
        assert task.line.intake.synchronised() == (3, 3)
        assert not any(task.line.repair.pending().values())
    report = task.world.audit()
    assert report.is_complete
    firsts = {(each.symbol, each.kind): each.delivered[0].first for each in report.streams}
    owed = {name: ids.within(firsts[name], ids.highest) for name, ids in produced.items()}
    for row in prove(owed, report):
        assert row.is_proven, row
        assert row.declared == 0 or row.kind == "depth", row
    assert [each.unseeded for each in report.streams] == [[]] * len(report.streams)
