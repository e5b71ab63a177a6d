"""Builds every object, opens the nurseries, owns the order of start and stop.

Three scopes, one inside the other: the sources stop first, delivery drains, the observers answer to the very end. A
signal ends the sources; a bug in one of them is held until the line is drained, and only then raised again.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

import structlog
import trio

from ingestor import __version__, health_check, logs
from ingestor.aws import AUTO_DISTRIBUTION
from ingestor.backfill import Backfill, Background, HoleWatcher, configured
from ingestor.channels import open_batch_channel
from ingestor.cloudwatch import Publisher
from ingestor.core.backoff import Backoff
from ingestor.core.claims import Coverage, Intervals
from ingestor.core.errors import ConfigError, DecodeError, SinkError
from ingestor.core.health import HealthBoard, HealthLimits
from ingestor.core.held import Held
from ingestor.core.intake import Intake, hole_record
from ingestor.core.lag import WatermarkLag
from ingestor.core.model import Gap, Hole
from ingestor.core.overview import overview
from ingestor.core.partition import key_rule
from ingestor.core.rate_limit import connect_limit
from ingestor.core.rates import RollingRates
from ingestor.core.resume import Resumes
from ingestor.core.sharding import has_selector, select, share
from ingestor.core.stopping import StopPlan
from ingestor.core.subscription import Shares, expand
from ingestor.dead_letter import FileDeadLetters, LetterFiles, QueueDeadLetters
from ingestor.fan_in import FanIn
from ingestor.hangup import release_hangups
from ingestor.heads import Head, Heads
from ingestor.heartbeat import HOT_KEYS, Author, HeartbeatWriter, ReadBack, identity_of
from ingestor.holes import HoleBook
from ingestor.kinesis_producer import KinesisProducer
from ingestor.loop_watch import watch_loop
from ingestor.metrics import open_metrics
from ingestor.reader import StreamReader
from ingestor.reload import ConfigFile, Reload
from ingestor.repair import Repair
from ingestor.rest_client import BadRequestError, RestClient, RestrictedLocationError, UnavailableError
from ingestor.serializer import Serializer, decode_heartbeat, encode_heartbeat, serialize
from ingestor.shard_watch import ShardWatch
from ingestor.silence_watch import SilenceWatch
from ingestor.spool import Spool, SpoolFiles
from ingestor.threads import open_threads, share_one_heap
from ingestor.websocket_client import Connection, FeedLimits, parse_url, rollover_pace
from ingestor.world import open_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ingestor.backfill import Wanted
    from ingestor.channels import BatchReceiver, BatchSender
    from ingestor.cloudwatch import MetricsOutlet
    from ingestor.config import Config
    from ingestor.core.intake import Begin
    from ingestor.core.model import Claim, EncodedBatch, EncodedRecord, HoleReason, RecordBatch, Subscription
    from ingestor.core.resume import Resume, Resumed
    from ingestor.spool import OpenSpool
    from ingestor.world import World

log = structlog.get_logger()

CRASHED: Final = 1
MISCONFIGURED: Final = 2
# boto3 works in threads and holds the GIL while it does; handed over ten times as often as by default, it stalls the
# loop a fifth as long (architecture.md §9).
SWITCH_INTERVAL_S: Final = 0.0005
# Nothing that travels is in a cycle, so reference counts free it, and the collector only costs: 14 % of all CPU at full
# speed. What exists at the start is never looked at again, the rest seldom.
GC_THRESHOLDS: Final = (100_000, 50, 1_000)
SWEEP_EVERY_S: Final = 1.0
CLOSE_S: Final = 2.0  # for dead letters that no disk took until now
TWIN_AFTER_S: Final = 5.0  # of two connections for the same subscriptions, the second one starts later
VENUE_WORD_S: Final = 10.0  # the longest that a change of symbols that are named waits for the venue's list
SYMBOLS_NAMED: Final = 20  # in one line of the log


def run(config: Config, read_config: Callable[[], Config]) -> int:
    """Run the service until a signal; return the exit code: 0 drained, 1 crashed, 2 misconfigured.

    `read_config` is what `config` came from, for when it is to be read again.
    """
    logs.set_up(config.logging.level, config.logging.format)
    share_one_heap()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    exit_code = 0
    try:
        file = ConfigFile(read_config, open_threads(1, may_abandon=True))
        trio.run(run_until_signal, config, open_world(config), file)
    except* (ConfigError, RestrictedLocationError, health_check.BindError) as group:
        exit_code = MISCONFIGURED
        for error in logs.leaves(group):
            log.critical("misconfigured", error=str(error))
    except* Exception:
        exit_code = CRASHED
        log.critical("crashed", exc_info=True)
    return exit_code


async def run_until_signal(config: Config, world: World, file: ConfigFile) -> None:
    """Run the service; the first SIGTERM or SIGINT stops it cleanly, the second one ends it at once.

    SIGHUP has the configuration read again.
    """
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(obey_signals, stop)
        await nursery.start(obey_hangups, file)
        await serve(config, world, stop, file)
        nursery.cancel_scope.cancel()


async def obey_signals(
    stop: trio.Event,
    end_now: Callable[[int], Any] = os._exit,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Set `stop` at the first signal and end the process at the second.

    As the first process of a container there is no default handler to fall back to, so the second one is ours as well.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            if stop.is_set():
                log.critical("killed", signal=signal.Signals(number).name)
                end_now(128 + number)
            log.info("stopping", signal=signal.Signals(number).name)
            stop.set()


async def obey_hangups(file: ConfigFile, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Have the configuration read again at every SIGHUP, those that were held included."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        release_hangups()
        task_status.started()
        async for _ in signals:
            log.info("configuration_asked_for", signal="SIGHUP")
            file.ask()
    raise AssertionError("signals have no end")


async def serve(
    config: Config,
    world: World,
    stop: trio.Event,
    file: ConfigFile | None = None,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the service until `stop`, then drain it; started with the URL of the health server once that answers.

    Without a `file` the configuration stays what it is.
    """
    service = Service(config, world, file)
    async with trio.open_nursery() as observers:
        task_status.started(await observers.start(service.observe))
        observers.start_soon(service.announce_stop, stop)
        try:
            async with service.rest:
                subscriptions = await service.find_subscriptions(stop)
                if subscriptions:
                    await Line(service, subscriptions).run(stop)
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await service.dead_letters.close()
        observers.cancel_scope.cancel()
    log.info("stopped")


class Service:
    """What outlives the line: the configuration, the board, the metrics, the venue's REST API, the dead letters."""

    def __init__(self, config: Config, world: World, file: ConfigFile | None = None) -> None:
        self.world = world
        self.started_s = trio.current_time()
        self.started_ms = world.wall_ns() // 1_000_000
        self.board = HealthBoard(
            since_s=self.started_s,
            limits=HealthLimits.of(
                flush_interval_s=config.kinesis.batch.flush_interval_s,
                heartbeat_interval_s=config.heartbeat.interval_s,
            ),
        )
        self.metrics = open_metrics()
        self.rates = RollingRates()
        self.holes = HoleBook(self.metrics)
        self.reload = Reload(
            config,
            file or ConfigFile(lambda: config, world.run_blocking),
            find_at_start=self._find_at_start,
            find=self._find,
            metrics=self.metrics,
            wall_ns=world.wall_ns,
        )
        self.details: dict[str, Callable[[], Any]] = {
            "holes": self.holes.newest,
            "configuration": self.reload.status,
        }
        self.rest = RestClient(
            config.binance.rest_url,
            config.binance.rest,
            metrics=self.metrics,
            wall_ns=world.wall_ns,
            random=world.random,
            transport=world.rest_transport,
        )
        letters = FileDeadLetters(
            LetterFiles(config.dead_letter.directory, world.wall_ns), world.run_blocking, world.wall_ns, self.metrics
        )
        url = config.dead_letter.queue_url
        self.dead_letters = (
            letters
            if world.queue is None or url is None
            else QueueDeadLetters(world.queue, url, letters, world.wall_ns, self.metrics)
        )

    @property
    def config(self) -> Config:
        """The configuration that runs."""
        return self.reload.config

    async def observe(self, *, task_status: trio.TaskStatus[str]) -> None:
        """Answer probes, watch the loop, try dead letters again, until cancelled."""
        health = self.config.health
        observed = health_check.Observed(
            self.board,
            self.metrics,
            self.rates,
            lambda: {name: read() for name, read in self.details.items()},
            wall_ns=self.world.wall_ns,
        )
        async with trio.open_nursery() as nursery:
            url = await nursery.start(health_check.serve, observed, health.host, health.port)
            await nursery.start(watch_loop, self.board, self.metrics, self.rates)
            nursery.start_soon(self.dead_letters.keep_trying)
            if self.world.metrics_outlet is not None:
                nursery.start_soon(self._publisher(self.world.metrics_outlet).run)
            log.info("started", version=__version__, health=url)
            task_status.started(url)

    def _publisher(self, outlet: MetricsOutlet) -> Publisher:
        service, shard = self.config.service, self.config.shard
        return Publisher(
            self.metrics,
            outlet,
            dimensions=(("Service", service.name), ("Environment", service.environment), ("Shard", str(shard.index))),
            interval_s=self.config.metrics.cloudwatch.interval_s,
            wall_ns=self.world.wall_ns,
        )

    async def announce_stop(self, stop: trio.Event) -> None:
        """Be not ready from the first instant of a stop."""
        await stop.wait()
        self.board.stopping = True

    async def find_subscriptions(self, stop: trio.Event) -> list[Subscription]:
        """Return what this task subscribes to; nothing if it was stopped before that was known.

        Raises ConfigError when nothing is left to subscribe to.
        """
        found: list[Subscription] = []
        refusal: ConfigError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_at, stop, nursery.cancel_scope)
            try:
                found = await self.reload.first()
            except ConfigError as error:
                refusal = error
            nursery.cancel_scope.cancel()
        if stop.is_set():
            return []
        if refusal is not None:
            raise refusal
        return found

    async def _find_at_start(self, config: Config) -> list[Subscription]:
        """Return what `config` subscribes to; only selectors wait for the venue's list."""
        await trio.lowlevel.checkpoint()
        names = config.binance.symbols
        return self._subscriptions(config, await self.traded(names) if has_selector(names) else names)

    async def _find(self, config: Config) -> list[Subscription]:
        """Return what a start would find, having seen that the venue trades some of it.

        Where all names are given the venue's word is only waited for so long: it may be away, or have banned us.
        """
        names = config.binance.symbols
        if has_selector(names):
            return self._subscriptions(config, await self.traded(names))
        with trio.move_on_after(VENUE_WORD_S) as limit:
            await self.traded(names)
        if limit.cancelled_caught:
            log.warning("symbols_unchecked", waited_s=VENUE_WORD_S)
        return self._subscriptions(config, names)

    def _subscriptions(self, config: Config, symbols: Sequence[str]) -> list[Subscription]:
        binance, shard = config.binance, config.shard
        mine = share(symbols, shard.index, shard.count)
        if not mine:
            raise ConfigError(
                [f"shard: none of the {len(symbols)} symbols falls to task {shard.index} of {shard.count}"]
            )
        return expand(mine, binance.streams, binance.kline_intervals)

    async def traded(self, names: Sequence[str]) -> list[str]:
        """Return the symbols that `names` stand for and the venue trades; retried until the venue answers."""
        backoff = Backoff(initial_s=1, max_s=60, multiplier=2, jitter=self.world.random)
        while True:
            try:
                info = await self.rest.exchange_info()
            except UnavailableError as error:
                log.warning("symbols_unknown", error=str(error))
                await trio.sleep(backoff.next_delay())
                continue
            except RestrictedLocationError as error:
                raise ConfigError([f"binance.rest_url: {error}; run in another region"]) from error
            except BadRequestError as error:
                raise ConfigError([f"binance.rest_url: there is no list of symbols: {error}"]) from error
            found = select(names, {each.symbol: each.quote_asset for each in info.symbols if each.status == "TRADING"})
            for name in found.unknown:
                log.error("symbol_not_traded", symbol=name)
            if not found.symbols:
                raise ConfigError([f"binance.symbols: the venue trades none of {', '.join(names)}"])
            return found.symbols


class Ends(NamedTuple):
    """The ends of the two channels of the line."""

    records: BatchSender[RecordBatch]
    record_intake: BatchReceiver[RecordBatch]
    encoded: BatchSender[EncodedBatch]
    encoded_intake: BatchReceiver[EncodedBatch]


class Line:
    """From the venue to Kinesis: sources, serializer, producer, and the heartbeat that writes down what arrived.

    What it carries may change while it flows: the start is the first change.
    """

    def __init__(self, service: Service, subscriptions: Sequence[Subscription]) -> None:
        self.service = service
        self.subscriptions = subscriptions
        self.stopped_s: float | None = None  # when the grace began: sources take time to end
        self.coverage = Coverage()
        self.held = Held()
        self.lag = WatermarkLag()
        self.intake = Intake()
        self.ends = self._open_channels()
        config, world = service.config, service.world
        connections = config.binance.connections
        self.shares = Shares(connections.max_streams)
        self.connections: list[Connection] = []
        self.carriers: dict[int, list[Connection]] = {}  # the connections of each share
        self.connects, self.rollovers = connect_limit(), rollover_pace()
        self.serializer = Serializer(
            framing=config.kinesis.encoding,
            schema_version_id=world.schema_version_id,
            key_of=key_rule(config.kinesis.partition_key, config.kinesis.lanes),
            wall_ns=world.wall_ns,
        )
        self.author = self._sign()
        self.producer = self._make_producer()
        self.shard_watch = ShardWatch(
            world.streams,
            config.kinesis.stream_name,
            learn=self.producer.learn_shards,
            wait_for_news=self.producer.wait_unknown_shard,
        )
        self.beats = self._make_beats()
        self.repair = self._make_repair()
        self.resume = Resumes(
            self.coverage,
            identity=self.author.identity,
            instance=self.author.instance,
            lookback_s=config.heartbeat.resume_lookback_s,
        )
        self.fan_in = self._make_fan_in()
        self.silence_watch = SilenceWatch(
            self.connections,
            self.intake,
            service.rest,
            report_gap=self.repair.report_gap,
            wall_ns=service.world.wall_ns,
        )
        service.metrics.count_messages_by(self.intake.received, self.intake.received_ever)
        service.metrics.watch_watermarks(self._lags)
        service.metrics.watch_heartbeat(lambda: service.board.unwritten_s(trio.current_time()))
        service.details["line"] = self.details

    async def run(self, stop: trio.Event) -> None:
        """Flow until `stop`, or until a source fails; then drain, and write the last heartbeat."""
        grace_s = self.service.config.service.shutdown_grace_s
        timeouts = self.service.config.kinesis.timeouts
        plan = StopPlan.within(grace_s, timeouts.connect_s + timeouts.read_s)
        crash: Exception | None = None
        self.held.take_over(await self.producer.take_over())
        async with trio.open_nursery() as beating:
            await beating.start(self.beats.run)
            async with trio.open_nursery() as delivery:
                await delivery.start(self.producer.run, self.ends.encoded_intake)
                delivery.start_soon(self._serialize)
                with self.ends.records:
                    try:
                        await self._flow(stop)
                    except Exception as error:  # whatever it is, what was received is delivered first
                        log.exception("source_failed")
                        crash = error
                stopped_s = self.stopped_s or trio.current_time()
                self.service.board.stopping = True
                self.producer.last_put_at(stopped_s + plan.last_put_s)
                delivery.cancel_scope.deadline = stopped_s + plan.delivery_s
            beating.cancel_scope.cancel()
        await self.beats.final_beat(stopped_s + plan.final_beat_s)
        if crash is not None:
            raise crash

    async def _flow(self, stop: trio.Event) -> None:
        async with trio.open_nursery() as sources:
            begun = self._change_to(self.subscriptions, sources)
            sources.start_soon(self.fan_in.give_up_waiting)
            sources.start_soon(self.silence_watch.run)
            sources.start_soon(self.shard_watch.run)
            sources.start_soon(self.repair.run)
            sources.start_soon(self._sweep)
            sources.start_soon(self._check_world)
            sources.start_soon(self.service.rest.keep_time)
            search = self.resume.open(begun)
            sources.start_soon(self._look_back, search)
            sources.start_soon(self._heads_of(begun, search if self.service.config.heartbeat.resume else None).run)
            sources.start_soon(self.service.reload.run, partial(self._carry, sources=sources))
            await stop.wait()
            self.stopped_s = trio.current_time()
            sources.cancel_scope.cancel()

    def _carry(self, wanted: Sequence[Subscription], *, sources: trio.Nursery) -> None:
        """Carry `wanted` from now on; what stays flows on undisturbed, what is new starts as all did."""
        before, after = set(self.subscriptions), set(wanted)
        new = self._change_to(wanted, sources)
        search: Resume | None = None
        if added := [each for each in new if self._may_be_resumed(each)]:
            search = self.resume.open(added)
            sources.start_soon(self._resume, search)
        sources.start_soon(self._heads_of(new, search).run)
        log.info(
            "subscriptions_changed",
            added=len(after - before),
            removed=len(before - after),
            connections=len(self.connections),
            symbols_added=some({each.symbol for each in after} - {each.symbol for each in before}),
            symbols_removed=some({each.symbol for each in before} - {each.symbol for each in after}),
        )

    def _change_to(self, wanted: Sequence[Subscription], sources: trio.Nursery) -> list[Subscription]:
        """Bring the live state and the connections in line with what is wanted; return what is new."""
        self._forget_ended()
        new = self.intake.add(wanted)
        self.subscriptions = wanted
        for number, planned in self.shares.change(wanted).items():
            self._change_share(number, planned, sources)
        self.intake.end(self.intake.subscriptions().difference(wanted))
        return new

    def _change_share(self, number: int, planned: Sequence[Subscription], sources: trio.Nursery) -> None:
        carriers = self.carriers.get(number)
        if carriers is None:
            carriers = self.carriers[number] = self._make_connections(number, planned)
            self.connections += carriers
            for connection in carriers:
                sources.start_soon(connection.run)
        elif planned:
            for connection in carriers:
                connection.change(planned)
        else:
            for connection in self.carriers.pop(number):
                connection.end()
                self.connections.remove(connection)

    def _forget_ended(self) -> None:
        """Let go of what no feed carries any more.

        What Kinesis has of it stays in the heartbeat, and ids that are missing stay owed: fetched or declared.
        """
        ended = self.intake.take_ended()
        for subscription, event_ms in ended.items():
            self.coverage.observe(subscription, event_ms)
            if subscription.kind == "depth":
                self.repair.forget_book(subscription.symbol)
        self.resume.drop_unseen(ended)
        self.silence_watch.forget(ended)

    async def _serialize(self) -> None:
        ends = self.ends
        await serialize(
            ends.record_intake,
            ends.encoded,
            self.service.dead_letters,
            self.serializer,
            self.service.metrics,
            on_hole=self.service.holes.note,
        )

    async def _sweep(self) -> NoReturn:
        """Look at what no message announces: bars whose closing message never came, watermarks that fall behind."""
        while True:
            await trio.sleep(SWEEP_EVERY_S)
            self._forget_ended()
            for gap in self.intake.overdue(trio.current_time(), self.service.world.wall_ns() // 1_000_000):
                self.repair.report_gap(gap)
            self.lag.sweep(self.intake.next_ids(), self.coverage.watermarks(), trio.current_time())

    def _lags(self) -> dict[str, float]:
        return self.lag.by_stream_type(self.coverage.watermarks(), trio.current_time())

    async def _check_world(self) -> None:
        """Look once at what the configuration takes for granted; what cannot be looked at is no reason to stop."""
        await self._check_stream()
        names = self.service.config.binance.symbols
        if not has_selector(names):
            try:
                await self.service.traded(names)
            except ConfigError:
                if names == self.service.config.binance.symbols:  # else a person has mended it while the venue was away
                    raise

    async def _check_stream(self) -> None:
        kinesis = self.service.config.kinesis
        try:
            stream = await self.service.world.streams.describe(kinesis.stream_name)
        except SinkError as error:
            log.warning("stream_not_described", stream=kinesis.stream_name, error=str(error))
            return
        if stream.distribution == "AUTO":
            raise ConfigError([f"kinesis.stream_name: {kinesis.stream_name} {AUTO_DISTRIBUTION}"])
        if kinesis.aggregation == "kpl" and kinesis.lanes < 2 * stream.open_shards:
            log.warning("few_lanes", lanes=kinesis.lanes, shards=stream.open_shards, advice="two lanes a shard or more")

    async def _look_back(self, search: Resume) -> None:
        """Take up what earlier tasks delivered; only then is it known what the configured past ranges still lack."""
        config = self.service.config
        if config.heartbeat.resume:
            await self._resume(search)
        if ranges := configured(config.backfill, config.shard):
            await self._load_past(ranges)

    async def _load_past(self, ranges: Sequence[Wanted]) -> None:
        service = self.service
        with self.ends.records.clone() as records:
            backfill = Backfill(
                service.rest,
                records,
                files=None,
                run_blocking=service.world.run_blocking,
                wall_ns=service.world.wall_ns,
                watcher=HoleWatcher(service.holes.note),
                dead_letters=service.dead_letters,
            )
            await Background(backfill, service.rest, ranges, self._covered).run()

    def _covered(self, subscription: Subscription) -> Intervals:
        entry = self.coverage.get(subscription)
        return Intervals() if entry is None else entry.covered

    def _may_be_resumed(self, subscription: Subscription) -> bool:
        """Say whether anything can be known of what was before: from heartbeats, or from this task itself."""
        return self.service.config.heartbeat.resume or subscription in self.coverage

    async def _resume(self, search: Resume) -> None:
        """Find out what earlier tasks delivered, and have the rest fetched or declared."""
        service = self.service
        reader = StreamReader(
            service.world.streams,
            service.config.heartbeat.stream_name,
            is_patient=True,
            jitter=service.world.random,
            report_trouble=lambda error, delay_s: log.warning("read_back_waits", error=str(error), delay_s=delay_s),
        )
        read_back = ReadBack(
            reader if service.config.heartbeat.resume else None,
            search,
            decode_heartbeat,
            started_ms=service.world.wall_ns() // 1_000_000,
            wall_ns=service.world.wall_ns,
        )
        await read_back.run(self._take_up)

    def _take_up(self, answer: Resumed) -> None:
        now_ms = self.service.world.wall_ns() // 1_000_000
        subscription = answer.subscription
        missing = self.held.settle(subscription, answer.missing, is_restarted=answer.is_restarted)
        self.coverage.acknowledge(self.held.acknowledged(subscription))
        self.repair.report_lost([Gap(subscription, first, last, now_ms) for first, last in answer.lost])
        if answer.is_restarted:
            unseen_until = missing.highest if missing else -1
            self.repair.report_restart(Gap(subscription, 0, unseen_until, now_ms))
            return
        for first, last in missing:
            self.repair.report_gap(Gap(subscription, first, last, now_ms))

    def _acknowledged(self, claims: Sequence[Claim]) -> None:
        self.coverage.acknowledge(self.held.acknowledge(claims))

    def _ask_for_lost(self, spooled: Mapping[Subscription, int]) -> None:
        """Have fetched, or declared, what the spool lost of ids up to `spooled`; all others of them are delivered.

        Ids that the venue has not reached are of before it began again.
        """
        self.held.forget()
        now_ms = self.service.world.wall_ns() // 1_000_000
        carried, next_ids = set(self.subscriptions), self.intake.next_ids()
        for subscription, entry in self.coverage.items():
            if entry.settled and subscription in carried:
                spooled_until = min(spooled.get(subscription, -1), next_ids.get(subscription, 0) - 1)
                for first, last in entry.missing(max(entry.bound - 1, spooled_until)):
                    self.repair.report_gap(Gap(subscription, first, last, now_ms))

    def _given_up(self, records: Sequence[EncodedRecord]) -> None:
        """Seed books again: whoever follows them has lost a change, or the snapshot to go on from."""
        for record in records:
            if record.claim is not None:
                if record.claim.subscription.kind == "depth":
                    self._request_snapshot(record.claim.subscription.symbol)
                continue
            try:
                lost = self.serializer.decode(record.data)
            except DecodeError:  # larger than all that we read, and a book that was so large would be so again
                continue
            if lost.depth is not None or (lost.hole is not None and lost.hole.stream == "depth"):
                self._request_snapshot(lost.symbol)

    def _request_snapshot(self, symbol: str) -> None:
        if self.intake.has_book(symbol):
            self.repair.request_snapshot(symbol)

    def _encode_hole(self, claim: Claim, reason: HoleReason) -> EncodedRecord:
        now_us = self.service.world.wall_ns() // 1000
        hole = Hole(claim.subscription.kind, claim.first, claim.last, reason, now_us // 1000)
        self.service.holes.note(claim.subscription.symbol, hole)
        return self.serializer.pack(hole_record(claim.subscription.symbol, hole, now_us))

    def _open_channels(self) -> Ends:
        limits, metrics = self.service.config.channels, self.service.metrics
        records: BatchSender[RecordBatch]
        record_intake: BatchReceiver[RecordBatch]
        encoded: BatchSender[EncodedBatch]
        encoded_intake: BatchReceiver[EncodedBatch]
        records, record_intake = open_batch_channel(limits.max_batches, limits.max_bytes)
        encoded, encoded_intake = open_batch_channel(limits.max_batches, limits.max_bytes)
        metrics.watch_channel("records", record_intake.fill)
        metrics.watch_channel("encoded", encoded_intake.fill)
        return Ends(records, record_intake, encoded, encoded_intake)

    def _sign(self) -> Author:
        config = self.service.config
        return Author(
            identity=identity_of(config),
            instance=uuid.UUID(int=self.service.world.random.getrandbits(128), version=4).hex,
            version=__version__,
            started_ms=self.service.started_ms,
        )

    def _make_producer(self) -> KinesisProducer:
        service = self.service
        config, world = service.config, service.world
        return KinesisProducer(
            config.kinesis,
            world.data_sink,
            dead_letters=service.dead_letters,
            encode_hole=self._encode_hole,
            on_acknowledged=self._acknowledged,
            on_given_up=self._given_up,
            metrics=service.metrics,
            fact=service.board.sink,
            wall_ns=world.wall_ns,
            jitter=world.random,
            held_max_bytes=config.spool.memory_max_bytes,
            farewell_s=config.kinesis.timeouts.connect_s + config.kinesis.timeouts.read_s,
            open_spool=self._spool_opener(),
        )

    def _spool_opener(self) -> OpenSpool | None:
        config, world = self.service.config, self.service.world
        if config.spool.directory is None:
            return None
        self.service.metrics.spool_limit.set(config.spool.max_bytes)
        files = SpoolFiles(
            config.spool.directory,
            "\n".join(self.author.identity),
            lanes=config.kinesis.lanes,
            max_bytes=config.spool.max_bytes,
            wall_ns=world.wall_ns,
        )
        return partial(
            Spool, files=files, run_blocking=world.run_blocking, wall_ns=world.wall_ns, on_lost=self._ask_for_lost
        )

    def _make_beats(self) -> HeartbeatWriter:
        service = self.service
        newest = self.intake.last_event_ms
        return HeartbeatWriter(
            service.world.heartbeat_sink,
            encode_heartbeat,
            author=self.author,
            coverage=self.coverage,
            interval_s=service.config.heartbeat.interval_s,
            counters=lambda: {name: int(total) for name, total in service.metrics.totals().items()},
            components=self._component_states,
            event_ms=newest,
            board=service.board,
            metrics=service.metrics,
            wall_ns=service.world.wall_ns,
        )

    def _component_states(self) -> dict[str, str]:
        report = self.service.board.report(trio.current_time())
        states = {"service": report.status, "websocket": report.websocket.state, "kinesis": report.kinesis.breaker}
        hot_keys = self.service.board.sink.hot_keys
        return states | ({HOT_KEYS: ",".join(sorted(hot_keys))} if hot_keys else {})

    def _make_repair(self) -> Repair:
        service = self.service
        config, world = service.config, service.world
        return Repair(
            service.rest,
            self.intake,
            self.ends.records.clone(),
            config.repair,
            config.binance.book,
            metrics=service.metrics,
            wall_ns=world.wall_ns,
            random=world.random,
            on_hole=service.holes.note,
            dead_letters=service.dead_letters,
        )

    def _make_fan_in(self) -> FanIn:
        service = self.service
        return FanIn(
            self.intake,
            self.ends.records,
            service.dead_letters,
            admit=self._admit,
            report_gap=self.repair.report_gap,
            request_snapshot=self._request_snapshot,
            on_hole=service.holes.note,
            metrics=service.metrics,
            wall_ns=service.world.wall_ns,
        )

    def _make_connections(self, number: int, planned: Sequence[Subscription]) -> list[Connection]:
        redundancy = self.service.config.binance.connections.redundancy
        return [self._make_connection(number, twin, planned) for twin in range(redundancy)]

    def _heads_of(self, subscriptions: Sequence[Subscription], search: Resume | None) -> Heads:
        """Find the heads of what begins; `search` tells when it is known what earlier tasks said of it."""
        return Heads(
            subscriptions,
            self.intake,
            self.service.rest,
            is_subscribed=lambda: all(each.feed is not None and each.feed.is_live for each in self.connections),
            is_known=lambda subscription: search is None or search.knows(subscription),
            begin=self._begin_behind,
        )

    async def _begin_behind(self, heads: Sequence[Head]) -> None:
        """Count quiet symbols from their heads on, or from behind what an earlier task covered if that is more.

        It is if REST is late, and if the venue began its ids again: then the first live trade, which has an old number
        and a new time, says so.
        """
        lifted = []
        for head in heads:
            entry = self.coverage.get(head.subscription)
            if entry is not None:
                last_id = max(head.last_id, entry.bound - 1)
                head = Head(head.subscription, last_id, max(head.event_ms, entry.last_event_ms))  # noqa: PLW2901
            lifted.append(head)
        await self.fan_in.begin_behind(lifted)

    def _make_connection(self, number: int, twin: int, planned: Sequence[Subscription]) -> Connection:
        service = self.service
        settings = service.config.binance.connections
        share = f"ws-{number}"
        return Connection(
            f"{share}{'ab'[twin]}" if settings.redundancy > 1 else share,
            planned,
            self.fan_in,
            url=parse_url(service.config.binance.websocket_url),
            connect=service.world.connect,
            backoff=Backoff(
                initial_s=settings.backoff.initial_s,
                max_s=settings.backoff.max_s,
                multiplier=settings.backoff.multiplier,
                jitter=service.world.random if settings.backoff.jitter else None,
            ),
            connects=self.connects,
            rollovers=self.rollovers,
            jitter=service.world.random,
            board=service.board,
            metrics=service.metrics,
            limits=FeedLimits(silence_s=settings.silence_limit_s, rollover_after_s=settings.rollover_after_s),
            share=share,
            start_after_s=twin * TWIN_AFTER_S,
        )

    async def _admit(self, begins: Sequence[Begin]) -> None:
        """Count subscriptions from their first live id on, before their first record goes on."""
        for begin in begins:
            if begin.is_restart:
                await self.repair.give_up(begin.subscription)
            else:
                self.resume.begin(begin.subscription, begin.first_id, begin.event_ms)
        await self.beats.admit(begins)

    def details(self) -> dict[str, Any]:
        """Return what `/status` says of the line beside health and rates."""
        config = self.service.config
        synchronised, books = self.intake.synchronised()
        carried = set(self.subscriptions)
        marks = {each: mark for each, mark in self.coverage.watermarks().items() if each in carried}
        newest = ((each, self.intake.last_event_ms(each)) for each in self.subscriptions)
        return {
            "service": {"name": config.service.name, "environment": config.service.environment},
            "venue": urlsplit(config.binance.websocket_url).hostname,
            "stream": config.kinesis.stream_name,
            "subscriptions": len(self.subscriptions),
            "symbols": len({each.symbol for each in self.subscriptions}),
            "shard": {"index": config.shard.index, "count": config.shard.count},
            "books": {"synchronised": synchronised, "all": books},
            "repair": self.repair.pending(),
            "repaired": self.repair.newest(),
            "overview": overview(newest, self.lag.by_subscription(marks, trio.current_time())),
            "watermarks": {each.stream_name: mark for each, mark in marks.items()},
        }


def some(symbols: Iterable[str]) -> list[str]:
    """Return the symbols in order, and how many more there are where all of them would fill a page."""
    ordered = sorted(symbols)
    more = len(ordered) - SYMBOLS_NAMED
    return [*ordered[:SYMBOLS_NAMED], f"and {more} more"] if more > 0 else ordered


async def cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    """Cancel `scope` once `event` has happened."""
    await event.wait()
    scope.cancel()
