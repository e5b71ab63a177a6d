"""The whole service in one process: what comes in goes out, and it stops in the order it should."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from ingestor import app, hangup
from ingestor.config import Config, Retry, Shard
from ingestor.core.errors import ConfigError
from ingestor.core.model import Claim, EncodedRecord, Gap, Subscription
from ingestor.core.sharding import share
from ingestor.health_check import BindError
from ingestor.local.faults import FailRest
from ingestor.local.market import Market
from ingestor.local.proof import prove
from ingestor.reload import ConfigFile
from ingestor.rest_client import RestrictedLocationError
from ingestor.serializer import LARGEST_BYTES, decode_heartbeat
from tests.fakes.busy import FULL_RATE, be_busy
from tests.fakes.kinesis import ODD
from tests.fakes.process_logs import process_restored
from tests.fakes.service import run_for, run_line
from tests.fakes.world import START_MS, MemoryWorld, config_for, run_inline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from ingestor.core.claims import Intervals
    from ingestor.core.model import EntryFailure, PutEntry


async def test_everything_the_venue_sent_is_delivered_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Trades, diffs and bars of a quiet minute: nothing missing, nothing twice, order kept, snapshot included."""
    world = MemoryWorld(["BTCUSDT", "ETHUSDT"])
    line = await run_for(65, config_for(world, tmp_path), world)
    assert line.service.metrics.venue_lag.quantiles("trade")["p50"] is not None
    report = world.audit()
    assert report.is_complete
    assert {each.kind for each in report.streams} == {"trade", "depth", "kline_1m"}
    assert sum(each.duplicates + each.disordered + each.declared_ids for each in report.streams) == 0
    assert all(each.snapshots for each in report.streams if each.kind == "depth")
    # What came in went out, to the last message that was read before the stop.
    next_ids = line.intake.next_ids()
    marks = line.coverage.watermarks()
    assert {each: mark + 1 for each, mark in marks.items()} == next_ids


async def test_the_last_heartbeat_says_final_and_carries_everything(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A clean stop is written down, so that the next task need not wait for this one."""
    world = MemoryWorld()
    line = await run_for(20, config_for(world, tmp_path), world)
    beats = [decode_heartbeat(record.data) for record in world.beats.records()]
    assert [beat["final"] for beat in beats].index(True) == len(beats) - 1
    trades = next(entry for entry in beats[-1]["entries"] if entry["kind"] == "trade")
    assert trades["covered"][-1]["last"] == line.coverage[Subscription("BTCUSDT", "trade")].watermark
    assert beats[-1]["components"]["kinesis"] == "closed"


async def test_heartbeats_name_the_keys_that_outgrow_a_shard(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Where `ingestor check --connect` finds them; none is not mentioned."""
    world = MemoryWorld()
    service = app.Service(config_for(world, tmp_path), world.as_seen_by_a_service())
    line = app.Line(service, [Subscription("BTCUSDT", "trade")])
    assert set(line._component_states()) == {"service", "websocket", "kinesis"}
    service.board.sink.hot_keys |= {"ETHUSDT": "s0", "BTCUSDT": "s1"}
    assert line._component_states()["hot_keys"] == "BTCUSDT,ETHUSDT"


async def test_a_given_up_record_that_nobody_can_read_is_no_crash(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is larger than any of ours, or of an earlier version; its claim says whose book is to be seeded again."""
    world = MemoryWorld()
    service = app.Service(config_for(world, tmp_path), world.as_seen_by_a_service())
    depth = Subscription("BTCUSDT", "depth")
    line = app.Line(service, [depth])
    line.intake.add([depth])
    asked: list[str] = []
    monkeypatch.setattr(line.repair, "request_snapshot", asked.append)
    line._given_up([EncodedRecord("BTCUSDT", bytes(LARGEST_BYTES + 1), None)])
    assert asked == []
    line._given_up([EncodedRecord("BTCUSDT", bytes(LARGEST_BYTES + 1), Claim(depth, 7, 9))])
    assert asked == ["BTCUSDT"]


async def test_what_the_spool_lost_is_asked_for_though_nothing_newer_was_acknowledged(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told when nothing is left on disk, and that is before the next live record has arrived."""
    world = MemoryWorld()
    service = app.Service(config_for(world, tmp_path), world.as_seen_by_a_service())
    trades = Subscription("BTCUSDT", "trade")
    line = app.Line(service, [trades])
    line.coverage.originate(trades, 1)
    line.coverage.settle(trades)
    line.coverage.acknowledge([Claim(trades, 1, 10)])
    gaps: list[Gap] = []
    monkeypatch.setattr(line.repair, "report_gap", gaps.append)
    for next_id, asked_for in ((0, []), (16, [(11, 15)]), (31, [(11, 20)])):  # ids began again at 0, and went on
        monkeypatch.setattr(line.intake, "next_ids", lambda number=next_id: {trades: number})
        gaps.clear()
        line._ask_for_lost({trades: 20})
        assert [(gap.first, gap.last) for gap in gaps] == asked_for


async def test_what_a_configuration_has_done_seldom_is_no_complaint(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Heartbeats once in two minutes, puts once in forty seconds: all is well between them as well."""
    world = MemoryWorld()
    config = config_for(world, tmp_path, batch={"flush_interval_s": 40})
    config = config.model_copy(update={"heartbeat": config.heartbeat.model_copy(update={"interval_s": 120.0})})
    service, stop = app.Service(config, world.as_seen_by_a_service()), trio.Event()

    async def flow() -> None:
        async with service.rest:
            await app.Line(service, await service.find_subscriptions(stop)).run(stop)

    complaints = []
    async with world.alive(), trio.open_nursery() as nursery:
        nursery.start_soon(flow)
        await trio.sleep(45)
        for _ in range(50):
            await trio.sleep(5)
            complaints += service.board.report(trio.current_time()).complaints
        stop.set()
    assert complaints == []


async def test_a_second_task_begins_where_the_first_one_stopped(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What happened between two tasks is fetched: trades and bars exactly, depth declared and seeded again."""
    world = MemoryWorld()
    config = config_for(world, tmp_path, resume=True)
    await run_for(30, config, world)
    async with world.alive():
        await trio.sleep(20)
    await run_for(60, config, world)
    report = world.audit()
    assert report.is_complete
    by_kind = {each.kind: each for each in report.streams}
    assert len(by_kind["trade"].delivered) == 1
    assert by_kind["trade"].declared_ids == 0
    assert [hole.reason for hole in by_kind["depth"].declared] == ["disconnected"]
    assert any("historicalTrades" in request for request in world.rest_requests)
    produced = {name: account.produced for name, account in world.venue.ledger.items() if name.kind == "trade"}
    assert all(row.missing <= 1 for row in prove(produced, report))  # at most the trade that came with the stop


@pytest.mark.parametrize("windows_differ", [False, True], ids=["same windows", "windows of its own"])
async def test_a_deploy_leaves_no_hole_and_fetches_nothing(
    autojump_clock: MockClock, tmp_path: Path, windows_differ: bool
) -> None:
    """The new task runs beside the old one, which is then asked to stop: nothing missing, declared or fetched.

    The venue cuts order book changes for each connection as it likes, so the two tasks' need not be the same.
    """
    world = MemoryWorld(["BTCUSDT", "ETHUSDT"], windows_differ=windows_differ)
    config = config_for(world, tmp_path, resume=True)
    old, new = trio.Event(), trio.Event()
    async with world.alive(), trio.open_nursery() as nursery:
        nursery.start_soon(run_line, config, world, old)
        await trio.sleep(30)
        nursery.start_soon(run_line, config, world, new)
        await trio.sleep(20)
        old.set()
        await trio.sleep(60)
        produced = produced_by(world)
        await trio.sleep(10)
        new.set()
    assert_all_delivered(world, produced)


@pytest.mark.parametrize(
    ("before", "after"),
    [([(0, 1)], [(1, 2), (0, 2)]), ([(0, 2), (1, 2)], [(0, 1)])],
    ids=["more tasks", "fewer tasks"],
)
async def test_symbols_move_between_tasks_without_a_hole(
    autojump_clock: MockClock, tmp_path: Path, before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    """Whoever is to have a symbol takes it before its old task lets go of it, as in a deploy."""
    world = MemoryWorld(["BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT"])
    config = config_for(world, tmp_path, resume=True)
    assert all(share(world.symbols, index, 2) for index in range(2))
    old, new = trio.Event(), trio.Event()
    async with world.alive(), trio.open_nursery() as nursery:
        for tasks, stop in ((before, old), (after, new)):
            for index, count in tasks:
                shard = Shard(index=index, count=count)
                nursery.start_soon(run_line, config.model_copy(update={"shard": shard}), world, stop)
                await trio.sleep(20)
        old.set()
        await trio.sleep(60)
        produced = produced_by(world)
        await trio.sleep(10)
        new.set()
    assert_all_delivered(world, produced)


def produced_by(world: MemoryWorld) -> dict[Subscription, Intervals]:
    """Return what has come into being until now."""
    return {subscription: account.produced.copy() for subscription, account in world.venue.ledger.items()}


def assert_all_delivered(world: MemoryWorld, produced: Mapping[Subscription, Intervals]) -> None:
    """Expect every id, none of it declared or fetched, and what came twice to be recognised."""
    report = world.audit()
    assert all(row.is_proven and row.declared == 0 for row in prove(produced, report))
    assert report.is_complete
    assert [(each.kind, each.declared) for each in report.streams if each.declared] == []
    assert [len(each.delivered) for each in report.streams] == [1] * len(report.streams)
    assert sum(each.duplicates for each in report.streams) > 0
    assert [request for request in world.rest_requests if "historicalTrades" in request or "klines" in request] == []


async def test_a_deploy_at_full_rate_leaves_no_hole_and_fetches_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Thousands of trades a second when the new task starts, and when the old one is asked to stop."""
    market = Market(["BTCUSDT"], seed=3, start_ms=START_MS, orders_per_s=2.0, updates_per_s=5.0)
    world = MemoryWorld(source=market, windows_differ=True)
    config = config_for(world, tmp_path, resume=True)
    stops = trio.Event(), trio.Event()
    async with world.alive(), trio.open_nursery() as nursery:
        nursery.start_soon(run_line, config, world, stops[0])
        nursery.start_soon(be_busy, market, 28.0, 32.0)
        nursery.start_soon(be_busy, market, 48.0, 52.0)
        await trio.sleep(30)
        nursery.start_soon(run_line, config, world, stops[1])
        await trio.sleep(20)
        stops[0].set()
        await trio.sleep(40)
        stops[1].set()
    report = world.audit()
    assert report.is_complete
    assert [(each.kind, each.declared) for each in report.streams if each.declared] == []
    assert [len(each.delivered) for each in report.streams] == [1] * len(report.streams)
    trades = next(each for each in report.streams if each.kind == "trade")
    assert trades.delivered_ids > 8.0 * FULL_RATE
    assert trades.duplicates > 4.0 * FULL_RATE  # while both ran, and recognisable
    assert [request for request in world.rest_requests if "historicalTrades" in request or "klines" in request] == []


async def test_a_task_that_shares_a_symbol_spares_the_others_the_fetching(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """One task is killed; what its neighbour carries as well is neither missing nor fetched when it comes back."""
    world = MemoryWorld(["BTCUSDT", "ETHUSDT"])
    both = config_for(world, tmp_path, resume=True)
    binance = both.binance.model_copy(update={"symbols": ("ETHUSDT",)})
    one = both.model_copy(update={"binance": binance})
    killed, stop = world.next_life(), trio.Event()
    async with world.alive(), trio.open_nursery() as nursery:
        nursery.start_soon(run_line, one, world, stop)
        async with trio.open_nursery() as dying:
            dying.start_soon(run_line, both, world, trio.Event(), killed)
            await trio.sleep(30)
            killed.kill()
            dying.cancel_scope.cancel()
        await trio.sleep(15)
        nursery.start_soon(run_line, both, world, stop)
        await trio.sleep(60)
        stop.set()
    report = world.audit()
    assert report.is_complete
    declared = {(each.symbol, each.kind) for each in report.streams if each.declared}
    assert declared == {("BTCUSDT", "depth")}
    asked = [request for request in world.rest_requests if "historicalTrades" in request]
    assert asked
    assert all("symbol=BTCUSDT" in request for request in asked)


async def test_ids_that_begin_again_between_two_tasks_are_declared(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A wiped testnet is a new generation: declared from zero to the first live id, never a million duplicates."""
    market = Market(["BTCUSDT"], start_ms=START_MS, orders_per_s=2.0)
    world = MemoryWorld(source=market)
    config = config_for(world, tmp_path, resume=True)
    await run_for(20, config, world)
    market.restart_ids("BTCUSDT")
    async with world.alive():
        await trio.sleep(20)
    line = await run_for(20, config, world)
    holes = {(hole.stream, hole.reason): hole for hole in (each.hole for each in world.delivered()) if hole}
    trades = line.coverage[Subscription("BTCUSDT", "trade")]
    assert (trades.generation, trades.origin) == (1, 0)
    hole = holes["trade", "id_restart"]
    live = [each.sequence for each in world.delivered() if each.trade and each.sequence < 1_000]
    assert (hole.first, hole.last) == (0, min(live) - 1)
    assert trades.watermark == max(live)
    assert ("depth", "id_restart") in holes
    report = world.audit()
    assert report.is_complete
    assert [(each.kind, each.generation) for each in report.streams if each.generation] == [("depth", 1), ("trade", 1)]


async def test_a_bug_in_a_source_ends_the_service_after_the_line_is_drained(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was received before the crash is delivered and written down, then the error is raised."""
    world = MemoryWorld()
    lines: list[app.Line] = []

    async def fail(line: app.Line) -> None:
        lines.append(line)
        await trio.sleep(10)
        raise ZeroDivisionError

    monkeypatch.setattr(app.Line, "_check_world", fail)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with world.alive():
            await run_line(config_for(world, tmp_path), world, trio.Event())
    marks = lines[0].coverage.watermarks()
    assert {each: mark + 1 for each, mark in marks.items()} == lines[0].intake.next_ids()
    assert decode_heartbeat(world.beats.records()[-1].data)["final"]


ENDS = {
    "drained": (None, 0, ""),
    "a bug": (ExceptionGroup("", [ZeroDivisionError("odd")]), 1, "crashed"),
    "a mistake of configuration": (ExceptionGroup("", [ConfigError(["shard: none"])]), 2, "misconfigured"),
    "a port in use": (BindError("health.port: taken"), 2, "misconfigured"),
    "a restricted location": (RestrictedLocationError("not from there"), 2, "misconfigured"),
    "a bug beside a mistake": (ExceptionGroup("", [ConfigError(["a: b"]), ZeroDivisionError("odd")]), 1, "crashed"),
}


@pytest.mark.parametrize(("error", "exit_code", "event"), ENDS.values(), ids=ENDS)
def test_the_exit_code_says_how_it_ended(
    error: Exception | None,
    exit_code: int,
    event: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0 drained, 1 a bug with its traceback, 2 what a person has to mend with its words; a bug is never hidden."""

    async def end(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error

    monkeypatch.setattr(app, "run_until_signal", end)
    monkeypatch.setattr(app, "open_world", lambda _: None)
    with process_restored():
        assert app.run(Config(), Config) == exit_code
        said = capsys.readouterr().err
    assert event in said
    assert ("Traceback" in said) == (exit_code == app.CRASHED)


async def test_every_declared_hole_is_counted_once_and_shown(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What Kinesis keeps refusing, like what repair declares: one record, one count, one line in `/status`."""
    world = MemoryWorld()
    config = config_for(world, tmp_path, retry=Retry(max_attempts=2), aggregation="none")

    async def refuse_some(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        is_odd = trio.current_time() < 5
        return [ODD if is_odd and number % 3 == 0 else None for number, _ in enumerate(entries)]

    world.data.before_put = refuse_some
    line = await run_for(30, config, world)
    holes = [each.hole for each in world.delivered() if each.hole]
    shown = line.service.holes.newest()
    assert {hole.reason for hole in holes} == {"poison"}
    assert sorted((each["stream"], each["first"], each["last"]) for each in shown) == sorted(
        (hole.stream, hole.first, hole.last) for hole in holes
    )
    assert line.service.metrics.losses()["holes_declared"] == len(holes) > 0


async def test_selectors_wait_for_the_venues_list(autojump_clock: MockClock, tmp_path: Path) -> None:
    """`all:USDT` becomes the symbols that are traded now."""
    world = MemoryWorld(["BTCUSDT", "ETHUSDT", "ETHBTC"])
    config = config_for(world, tmp_path)
    config = config.model_copy(update={"binance": config.binance.model_copy(update={"symbols": ("all:USDT",)})})
    line = await run_for(5, config, world)
    assert {each.symbol for each in line.subscriptions} == {"BTCUSDT", "ETHUSDT"}


async def test_a_venue_that_trades_nothing_of_what_is_asked_is_a_mistake_of_configuration(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Every unknown name is said; a service without any symbol does not pretend to run."""
    world = MemoryWorld(["BTCUSDT"])
    config = config_for(world, tmp_path)
    config = config.model_copy(update={"binance": config.binance.model_copy(update={"symbols": ("all:XYZ",)})})
    service = app.Service(config, world.as_seen_by_a_service())
    async with service.rest:
        with pytest.raises(ConfigError, match=r"binance\.symbols: the venue trades none of all:XYZ"):
            await service.traded(config.binance.symbols)


async def test_a_task_without_a_share_says_so(autojump_clock: MockClock, tmp_path: Path) -> None:
    """More tasks than symbols is a mistake, not a task that looks healthy and carries nothing."""
    world = MemoryWorld(["BTCUSDT"])
    config = config_for(world, tmp_path)
    for index in range(2):
        service = app.Service(
            config.model_copy(update={"shard": Shard(index=index, count=2)}), world.as_seen_by_a_service()
        )
        if share(config.binance.symbols, index, 2):
            assert await service.find_subscriptions(trio.Event())
        else:
            with pytest.raises(ConfigError, match=rf"shard: none of the 1 symbols falls to task {index} of 2"):
                await service.find_subscriptions(trio.Event())


async def test_a_stop_ends_the_wait_for_the_symbols(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A signal during start-up is obeyed although the venue does not answer."""
    world = MemoryWorld(["BTCUSDT"])
    world.venue.suffer(FailRest(at_s=0, for_s=1e6, what="internal"))
    config = config_for(world, tmp_path)
    config = config.model_copy(update={"binance": config.binance.model_copy(update={"symbols": ("all:USDT",)})})
    service = app.Service(config, world.as_seen_by_a_service())
    stop = trio.Event()
    async with service.rest, trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 100)
        nursery.start_soon(set_after, 90, stop)
        assert await service.find_subscriptions(stop) == []
        assert trio.current_time() - service.started_s == 90


async def set_after(seconds: float, event: trio.Event) -> None:
    await trio.sleep(seconds)
    event.set()


async def test_the_service_answers_probes_until_the_end(tmp_path: Path) -> None:
    """Ready once data is acknowledged, not ready from the first instant of a stop, gone afterwards. On real sockets."""
    world = MemoryWorld()
    config = config_for(world, tmp_path, batch={"flush_interval_s": 0.05})
    stop, hold, held, go_on = trio.Event(), trio.Event(), trio.Event(), trio.Event()

    async def pause(_entries: Sequence[PutEntry]) -> None:
        if hold.is_set():
            held.set()
            await go_on.wait()

    world.data.before_put = pause
    async with world.alive(), trio.open_nursery() as nursery, httpx.AsyncClient() as http:
        url = await nursery.start(app.serve, config, world.as_seen_by_a_service(), stop)
        assert (await http.get(f"{url}/live")).status_code == 200
        with trio.fail_after(10):
            while (await http.get(f"{url}/ready")).status_code != 200:  # noqa: ASYNC110 - asked from outside
                await trio.sleep(0.02)
            status = (await http.get(f"{url}/status")).json()
            assert status["details"]["line"]["subscriptions"] == 3
            assert b"messages_received_total" in (await http.get(f"{url}/metrics")).content
            hold.set()
            await held.wait()
        stop.set()
        assert (await http.get(f"{url}/ready")).status_code == 503
        assert (await http.get(f"{url}/live")).status_code == 200
        go_on.set()
    with pytest.raises(OSError, match="failed"):
        await trio.open_tcp_stream("127.0.0.1", httpx.URL(url).port or 0)


async def test_the_first_signal_stops_and_the_second_one_ends_the_process() -> None:
    """An impatient second SIGTERM does not wait for the drain, also as the first process of a container."""
    stop = trio.Event()
    exits: list[int] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(app.obey_signals, stop, exits.append)
        signal.raise_signal(signal.SIGTERM)
        with trio.fail_after(5):
            await stop.wait()
        signal.raise_signal(signal.SIGTERM)
        with trio.fail_after(5):
            while not exits:  # noqa: ASYNC110 - the handler has nobody to tell
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert exits == [128 + signal.SIGTERM]


@pytest.fixture
def _hangups() -> Iterator[None]:
    """Put SIGHUP back as it was."""
    handler = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


@pytest.mark.usefixtures("_hangups")
async def test_a_hangup_has_the_configuration_read_again_whenever_it_comes() -> None:
    """Before anybody listens it waits; afterwards, while the process ends, it is ignored."""
    hangup.hold_hangups()
    signal.raise_signal(signal.SIGHUP)
    file = ConfigFile(Config, run_inline)
    async with trio.open_nursery() as nursery:
        await nursery.start(app.obey_hangups, file)
        with trio.fail_after(5):
            await file.wait_asked()
            await file.read_again()
            assert not file.is_asked
            signal.raise_signal(signal.SIGHUP)
            await file.wait_asked()
        nursery.cancel_scope.cancel()
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
