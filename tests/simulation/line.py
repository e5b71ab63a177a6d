"""Plays a plan: the real service, life after life, against the simulated venue and streams in memory."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final
from unittest.mock import patch

import trio

from ingestor import app, fan_in
from ingestor.config import Connections
from ingestor.core.errors import SinkError
from ingestor.local.market import Market
from ingestor.repair import Repair
from tests.fakes.fault_proxy import ShardLimit
from tests.fakes.kinesis import INTERNAL, ODD, OVERALL_THROTTLE, THROTTLED, shard_of
from tests.fakes.world import START_MS, MemoryWorld, config_for
from tests.simulation.determinism import quiet, run_virtual
from tests.simulation.journal import Journal
from tests.simulation.plan import SYMBOLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestor.config import Config
    from ingestor.core.model import EntryFailure, Gap, PutEntry, Subscription
    from ingestor.local.history import Message
    from tests.fakes.world import Life
    from tests.simulation.plan import Place, Plan, Trouble, Turn

GRACE_S: Final = 25.0
CALL_TIMEOUT_S: Final = 9.0  # connect and read
LOOK_EVERY_S: Final = 1.0
TICK_S: Final = 0.2  # of the venue, and of the look at what waits for another feed: waking up is what a run costs most
BUDGET_SHARE: Final = 0.9
BATCH_BYTES: Final = 120_000  # one batch, a page of repair, may stand above a limit

DOWN = SinkError("transient", "EndpointConnectionError", "down")
LOST = SinkError("transient", "ReadTimeoutError", "no answer", may_have_landed=True)
DENIED = SinkError("configuration", "AccessDeniedException", "not allowed")


class WitnessedMarket(Market):
    """A market that remembers every counted message it told, to be held against what was delivered."""

    told: dict[tuple[Subscription, int], Message]

    def advance(self, to_ms: int) -> list[Message]:
        """Live on, and remember."""
        messages = super().advance(to_ms)
        for message in messages:
            if message.subscription is not None:
                self.told[message.subscription, message.last] = message
        return messages


class WitnessedRepair(Repair):
    """A repair that remembers what it was asked for."""

    def report_gap(self, gap: Gap) -> None:
        """Note ids that were not seen live."""
        self.__dict__.setdefault("reported", []).append(gap)
        super().report_gap(gap)


class Weather:
    """What one stream of Kinesis does to the calls that come in now."""

    def __init__(self, troubles: Sequence[Trouble], rng: Random, shards: Sequence[ShardLimit]) -> None:
        self.entries = 0
        self.over_limit = 0  # entries that their shard had no room for
        self._troubles = troubles
        self._rng = rng
        self._shards = shards
        self._lost: set[trio.lowlevel.Task] = set()  # calls whose answer will not come

    def current(self, before_s: float = 0.0) -> list[Trouble]:
        """Return what is wrong now, or was within the last `before_s`."""
        now = trio.current_time()
        return [each for each in self._troubles if each.at_s <= now < each.at_s + each.for_s + before_s]

    async def before_put(self, entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        """Take a moment; fail, or refuse entries."""
        rng = self._rng
        failures: list[EntryFailure | None] = [None] * len(entries)
        await trio.sleep(rng.uniform(0.005, 0.05))
        for trouble in self.current():
            is_met = rng.random() < trouble.share
            match trouble.what:
                case "down" if is_met:
                    raise DOWN
                case "denied" if is_met:
                    raise DENIED
                case "call_throttled" if is_met:
                    raise OVERALL_THROTTLE
                case "late":
                    await trio.sleep(rng.uniform(0, 5))
                case "timeouts" if is_met:
                    if rng.random() < 0.5:
                        await trio.sleep(CALL_TIMEOUT_S)
                        raise LOST
                    self._lost.add(trio.lowlevel.current_task())
                case "lost_answers" if is_met:
                    self._lost.add(trio.lowlevel.current_task())
                case "throttled" | "odd":
                    refusal = ODD if trouble.what == "odd" else rng.choice((THROTTLED, INTERNAL))
                    failures = [refusal if rng.random() < trouble.share else failure for failure in failures]
                case _:
                    pass
        return [failure or self._limited(entry) for entry, failure in zip(entries, failures, strict=True)]

    def _limited(self, entry: PutEntry) -> EntryFailure | None:
        """Refuse what exceeds the limits of its shard."""
        self.entries += 1
        shard = self._shards[shard_of(entry, len(self._shards))]
        if shard.admits(len(entry.data) + len(entry.partition_key), trio.current_time()):
            return None
        self.over_limit += 1
        return THROTTLED

    async def after_put(self) -> None:
        """Lose the answer of what was stored."""
        if trio.lowlevel.current_task() in self._lost:
            self._lost.remove(trio.lowlevel.current_task())
            await trio.sleep(self._rng.uniform(0.005, CALL_TIMEOUT_S))
            raise LOST
        await trio.sleep(self._rng.uniform(0.0, 0.02))


@dataclass
class Running:
    """A life under way."""

    life: Life
    stop: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    line: app.Line | None = None

    def kill(self) -> None:
        """SIGKILL."""
        self.life.kill()
        self.scope.cancel()


class Simulation:
    """One run of one plan; `problems` is empty if all went well."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.problems: list[str] = []
        self.lives: list[Running] = []
        self.produced_until_stop: dict[Subscription, int] = {}
        self._folder = folder
        market = self.market = WitnessedMarket(
            SYMBOLS,
            seed=plan.seed,
            start_ms=START_MS,
            orders_per_s=0.6,
            updates_per_s=0.9,
            levels=100,
            late_close_ms=plan.late_close_ms,
        )
        market.told = {}
        self.world = MemoryWorld(
            SYMBOLS,
            seed=plan.seed,
            source=market,
            script=plan.venue,
            tick_s=TICK_S,
            windows_differ=plan.windows_differ,
        )
        self.journal = Journal(trio.current_time, self._is_origin_excused)
        self._beat_weather = self._put_under("beats", 1.0)
        self.data_weather = self._put_under("data", plan.shard_share)
        self.world.data.on_stored = self.journal.take_record
        self.world.beats.on_stored = self.journal.take_beat
        self.world.on_answer = self.journal.take_answer
        self.world.streams.before_read = self._before_read
        self.world.streams.is_page_empty = self._is_page_empty
        self._reading = Random(f"{plan.seed}/reading")

    async def run(self) -> None:
        """Play the plan to its end, then wait until all is good, then stop."""
        plan = self.plan
        with trio.move_on_after(plan.duration_s + plan.patience_s + 2 * GRACE_S) as limit:
            async with self.world.alive(), trio.open_nursery() as lives:
                current = self._begin(lives)
                lives.start_soon(self._restart_ids)
                lives.start_soon(self._set_clocks)
                for turn in plan.turns:
                    await trio.sleep_until(turn.at_s)
                    current = await self._take_turn(turn, current, lives)
                await trio.sleep_until(plan.duration_s)
                await self._wait_until_good(current)
                current.stop.set()
                await current.ended.wait()
                lives.cancel_scope.deadline = trio.current_time() + GRACE_S  # whoever was killed has unwound by then
                for running in self.lives:
                    await running.ended.wait()
                lives.cancel_scope.cancel()
        if limit.cancelled_caught or not all(running.ended.is_set() for running in self.lives):
            self.problems.append("the run does not end")
        self.problems[:0] = self.journal.problems

    async def _take_turn(self, turn: Turn, current: Running, lives: trio.Nursery) -> Running:
        if turn.how == "deploy":
            following = self._begin(lives)
            await trio.sleep(turn.pause_s)
            current.stop.set()
            return following
        if turn.how == "kill":
            current.kill()
        else:
            current.stop.set()
            await current.ended.wait()
        await trio.sleep(turn.pause_s)
        return self._begin(lives)

    def _begin(self, lives: trio.Nursery) -> Running:
        running = Running(self.world.next_life())
        self.lives.append(running)
        self.journal.begin_life(running.life.number)
        lives.start_soon(self._live, running)
        return running

    async def _live(self, running: Running) -> None:
        config = self._configure(running.life)
        try:
            with running.scope:
                service = app.Service(config, self.world.as_seen_by_a_service(running.life))
                async with service.rest:
                    running.line = line = app.Line(service, await service.find_subscriptions(running.stop))
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch, running, config)
                        nursery.start_soon(self._time_stop, running)
                        await line.run(running.stop)
                        nursery.cancel_scope.cancel()
                await service.dead_letters.close()
        except Exception:  # noqa: BLE001 - a crash is a finding
            if not running.life.is_dead:  # what the killed one meets while its tasks unwind never was
                self.problems.append(f"life {running.life.number} crashed:\n{traceback.format_exc()[-1_500:]}")
        finally:
            running.ended.set()

    async def _time_stop(self, running: Running) -> None:
        await running.stop.wait()
        await trio.sleep(GRACE_S)
        self.problems.append(f"life {running.life.number} does not stop within its grace")

    async def _watch(self, running: Running, config: Config) -> None:
        """Look at how much is held, again and again."""
        line = running.line
        assert line is not None
        limits = config.channels
        while True:
            await trio.sleep(LOOK_EVERY_S)
            held = line.service.board.sink.held_bytes
            if held > config.spool.memory_max_bytes + BATCH_BYTES:
                self.problems.append(f"the producer holds {held} bytes")
            for end in (line.ends.record_intake, line.ends.encoded_intake):
                batches, size_bytes = end.fill()
                if batches > limits.max_batches or size_bytes > limits.max_bytes + BATCH_BYTES:
                    self.problems.append(f"a channel holds {batches} batches, {size_bytes} bytes")

    async def _wait_until_good(self, running: Running) -> None:
        with trio.move_on_after(self.plan.patience_s):
            while not self._is_good(running):  # noqa: ASYNC110 - seen from outside
                await trio.sleep(LOOK_EVERY_S)
            return
        self.problems.append(f"all is calm, and not made good: {self._state(running)}")

    def _is_good(self, running: Running) -> bool:
        line = running.line
        if line is None or not line.resume.is_over or any(line.repair.pending().values()):
            return False
        synchronised, books = line.intake.synchronised()
        if synchronised < books:
            return False
        return all(
            line.coverage[name].watermark >= highest if name in line.coverage else False
            for name, highest in self._highest_until(self.world.wall_ns() // 1_000_000 - 4_000).items()
        )

    def _highest_until(self, at_ms: int) -> dict[Subscription, int]:
        highest: dict[Subscription, int] = {}
        for (subscription, last), message in self.market.told.items():
            if message.at_ms <= at_ms:
                highest[subscription] = last
        return highest

    def _state(self, running: Running) -> str:
        line = running.line
        if line is None:
            return "nothing runs"
        return f"{line.repair.pending()}, books {line.intake.synchronised()}, resumed {line.resume.is_over}"

    async def _restart_ids(self) -> None:
        for restart in self.plan.id_restarts:
            await trio.sleep_until(restart.at_s)
            self.market.restart_ids(restart.symbol)
            # Nobody wipes a venue in a moment; and within ten seconds a book cannot be told from its other connection.
            self.market._symbols[restart.symbol]._act_at += 12_000

    async def _set_clocks(self) -> None:
        for step in sorted(self.plan.clock_steps, key=lambda step: step.at_s):
            await trio.sleep_until(step.at_s)
            self.world.clock_error_s += step.by_s

    def _configure(self, life: Life) -> Config:
        plan = self.plan
        config = config_for(self.world, self._folder / str(life.number), resume=True)
        kinesis = config.kinesis.model_copy(
            update={
                "aggregation": plan.aggregation,
                "lanes": plan.lanes,
                "retry": config.kinesis.retry.model_copy(update={"max_attempts": 3}),
                "batch": config.kinesis.batch.model_copy(
                    update={
                        "flush_interval_s": plan.flush_interval_s,
                        "flush": "adaptive" if plan.adaptive else "interval",
                    }
                ),
                "shard_budget_share": BUDGET_SHARE * plan.shard_share,
            }
        )
        connections = Connections(redundancy=plan.redundancy, rollover_after_s=plan.rollover_after_s)
        return config.model_copy(
            update={
                "binance": config.binance.model_copy(update={"connections": connections}),
                "kinesis": kinesis,
                "service": config.service.model_copy(update={"shutdown_grace_s": GRACE_S}),
                "spool": config.spool.model_copy(
                    update={
                        "memory_max_bytes": plan.held_max_bytes,
                        "directory": self._folder / str(life.number) / "spool" if plan.has_disk else None,
                    }
                ),
                "channels": config.channels.model_copy(
                    update={"max_batches": plan.channel_batches, "max_bytes": plan.channel_bytes}
                ),
            }
        )

    def _put_under(self, place: Place, shard_share: float) -> Weather:
        stream = self.world.data if place == "data" else self.world.beats
        weather = Weather(
            [each for each in self.plan.troubles if each.place == place],
            Random(f"{self.plan.seed}/{place}"),
            [ShardLimit(shard_share) for _ in stream.shards],
        )
        stream.before_put = weather.before_put
        stream.after_put = weather.after_put
        return weather

    def _is_origin_excused(self) -> bool:
        """Say whether data may go before its origin: it waits, but not for ever."""
        return bool(self._beat_weather.current(before_s=CALL_TIMEOUT_S))

    async def _before_read(self) -> None:
        await trio.sleep(self._reading.uniform(0.005, 0.05))
        for each in self._unreadable(empty_pages=False):
            if self._reading.random() < each:
                raise DOWN

    def _is_page_empty(self) -> bool:
        return any(self._reading.random() < share for share in self._unreadable(empty_pages=True))

    def _unreadable(self, *, empty_pages: bool) -> list[float]:
        now = trio.current_time()
        return [
            each.share
            for each in self.plan.unreadable
            if each.at_s <= now < each.at_s + each.for_s and each.empty_pages is empty_pages
        ]


def play(plan: Plan) -> Simulation:
    """Play `plan` from the beginning; the same plan gives the same run."""
    simulations: list[Simulation] = []

    async def main() -> None:
        with TemporaryDirectory() as folder:
            simulation = Simulation(plan, Path(folder))
            simulations.append(simulation)
            await simulation.run()

    with quiet(), patch.object(app, "Repair", WitnessedRepair), patch.object(fan_in, "LOOK_EVERY_S", TICK_S):
        has_ended = run_virtual(plan.seed, main)
    simulation = simulations[0]
    if not has_ended:
        simulation.problems.append("the run turns round and round without time passing")
    return simulation
