"""Every number this service publishes, by name, on a Prometheus registry that is handed in.

Nothing here exists at import time, nothing is woven through logic, and nothing is done per message: tasks add once per
batch, and what is cheap to read (messages received, channel fill, watermark lag) is read from its owner at scrape time.
Names are the contract of architecture.md §8; label values come from small closed sets, symbols are the configured ones.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ingestor import __version__
from ingestor.core.delivery import RetryReason
from ingestor.core.errors import SinkFailure
from ingestor.core.model import HoleReason, PoisonReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Stage: TypeAlias = Literal["decoded", "encoded", "put", "acknowledged"]
StreamType: TypeAlias = Literal["trade", "depth", "kline"]
AbandonReason: TypeAlias = Literal["breaker_open", "out_of_time", "stop"]
MessageCounts: TypeAlias = "Mapping[tuple[str, str], int]"  # (symbol, stream type) -> messages received so far

# Log-spaced and dense around the flush interval of one second; one list for both histograms, so that they compare.
SECONDS_BUCKETS = (
    *(
        0.0001,
        0.00025,
        0.0005,
        0.001,
        0.002,
        0.003,
        0.005,
        0.0075,
        0.01,
        0.015,
        0.02,
        0.03,
        0.05,
        0.075,
        0.1,
        0.15,
        0.2,
        0.3,
    ),
    *(0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
# A plain put carries up to 500 records, an aggregated one many thousands.
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 400, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
STALL_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class BatchHistogram(Collector):
    """A histogram with one label that takes a whole batch in one call.

    prometheus_client's own `observe` takes a lock and one value; here a batch that shares one time is one bisect and
    two additions on plain integers, written by the loop's thread only.
    """

    def __init__(
        self, name: str, documentation: str, label: str, values: Sequence[str], buckets: Sequence[float]
    ) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._bounds = tuple(buckets)
        self._names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        self._counts = {value: [0] * len(self._names) for value in values}
        self._sums = dict.fromkeys(values, 0.0)

    def observe(self, value: str, seconds: float, count: int = 1) -> None:
        """Count `count` messages that took `seconds` each under the label value `value`, one of the closed set."""
        self._counts[value][bisect_left(self._bounds, seconds)] += count
        self._sums[value] += seconds * count

    def counts(self, value: str) -> tuple[int, ...]:
        """Return the observations in each bucket so far; the last bucket has no upper bound."""
        return tuple(self._counts[value])

    def quantiles(self, value: str) -> dict[str, float | None]:
        """Return the median and the 95th and 99th percentile, as bounds of buckets; None before any observation."""
        return {name: self._quantile(value, share) for name, share in QUANTILES.items()}

    def _quantile(self, value: str, share: float) -> float | None:
        counts = self._counts[value]
        wanted, seen = share * sum(counts), 0
        if not wanted:
            return None
        for bound, count in zip(self._bounds, counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return self._bounds[-1]

    def collect(self) -> Iterator[Metric]:
        """Answer a scrape, with cumulative buckets."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        for value, counts in self._counts.items():
            seen = 0
            buckets: list[tuple[str, float]] = []
            for name, count in zip(self._names, counts, strict=True):
                seen += count
                buckets.append((name, seen))
            family.add_metric([value], buckets, self._sums[value])
        yield family


class PlainCounter(Collector):
    """A counter that is exposed under exactly its own name.

    prometheus_client appends `_total` to every counter, and `websocket_reconnection_count` is the name dashboards use.
    The sample here carries the plain name, and `expose` mends the two comment lines above it.
    """

    def __init__(self, name: str, documentation: str) -> None:
        self.name, self._documentation = name, documentation
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Count `amount` more."""
        self.value += amount

    def collect(self) -> Iterator[Metric]:
        """Answer a scrape."""
        family = Metric(self.name, self._documentation, "counter")
        family.add_sample(self.name, {}, self.value)
        yield family


class AtScrape(Collector):
    """Numbers that their owners keep anyway, read when somebody asks."""

    def __init__(self) -> None:
        self.messages: Callable[[], MessageCounts] = dict
        self.messages_ever: Callable[[], int] = lambda: sum(self.messages().values())
        self.channels: dict[str, Callable[[], tuple[int, int]]] = {}
        self.watermark_lags: Callable[[], Mapping[str, float]] = dict
        self.heartbeat_age: Callable[[], float] | None = None
        self.shards: Callable[[], tuple[int, int]] = _no_shards

    def collect(self) -> Iterable[Metric]:
        """Answer a scrape."""
        messages = CounterMetricFamily(
            "messages_received_total", "Messages received from the venue.", labels=["symbol", "stream_type"]
        )
        for labels, count in self.messages().items():
            messages.add_metric(labels, count)
        batches = GaugeMetricFamily("channel_batches", "Batches that wait in a channel.", labels=["channel"])
        held = GaugeMetricFamily("channel_bytes", "Bytes that wait in a channel.", labels=["channel"])
        for name, fill in self.channels.items():
            waiting_batches, waiting_bytes = fill()
            batches.add_metric([name], waiting_batches)
            held.add_metric([name], waiting_bytes)
        lag = GaugeMetricFamily(
            "watermark_lag_seconds",
            "Age of the oldest watermark of a stream type: complete up to then.",
            labels=["stream_type"],
        )
        for stream_type, seconds in self.watermark_lags().items():
            lag.add_metric([stream_type], seconds)
        age = GaugeMetricFamily("heartbeat_age_seconds", "Age of the newest heartbeat that Kinesis has acknowledged.")
        if self.heartbeat_age is not None:
            age.add_metric([], self.heartbeat_age())
        known, waiting = self.shards()
        shards = GaugeMetricFamily(
            "kinesis_shards",
            "Open shards of the stream; 0: not known, so there are no budgets.",
            known,
        )
        held_up = GaugeMetricFamily(
            "kinesis_lanes_waiting", "Lanes that would send now and wait for their shard's budget.", waiting
        )
        return messages, batches, held, lag, age, shards, held_up


def _no_shards() -> tuple[int, int]:
    return 0, 0


class Metrics:
    """The one object with every metric as an attribute; made once by `app.py`, handed to whoever counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._at_scrape = AtScrape()
        self._venue(registry)
        self._line(registry)
        self._delivery(registry)
        self._completeness(registry)
        registry.register(self._at_scrape)
        self._process = ProcessCollector(registry=registry)  # memory, CPU and open files, from /proc
        Info("ingestor_build", "Which build this is.", registry=registry).info(
            {"version": __version__, "python": platform.python_version()}
        )

    def _venue(self, registry: CollectorRegistry) -> None:
        self.reconnections = PlainCounter(
            "websocket_reconnection_count", "WebSocket connections opened again: lost ones, and those replaced in time."
        )
        registry.register(self.reconnections)
        self.connections_open = Gauge(
            "websocket_connections_open", "WebSocket connections open now.", registry=registry
        )
        self.websocket_bytes = Counter(
            "websocket_bytes_received", "Bytes that WebSocket connections brought, inside of TLS.", registry=registry
        )
        self.rest_requests = Counter(
            "rest_requests", "REST requests to the venue.", ["endpoint", "outcome"], registry=registry
        )
        self.rest_weight_used = Gauge(
            "rest_weight_used", "REST weight used in the venue's current minute.", registry=registry
        )
        self.clock_ahead = Gauge(
            "clock_ahead_of_venue_seconds", "Our clock less the venue's, when it was last asked.", registry=registry
        )
        self.snapshots = Counter("book_snapshots", "Order book snapshots asked for.", ["outcome"], registry=registry)

    def _line(self, registry: CollectorRegistry) -> None:
        self.latency = BatchHistogram(
            "message_processing_latency_seconds",
            "From the receipt of a message to the end of a stage.",
            "stage",
            get_args(Stage),
            SECONDS_BUCKETS,
        )
        self.venue_lag = BatchHistogram(
            "venue_receive_lag_seconds",
            "From the venue's event time to our receipt; below zero when the clocks differ.",
            "stream_type",
            get_args(StreamType),
            SECONDS_BUCKETS,
        )
        registry.register(self.latency)
        registry.register(self.venue_lag)
        self.loop_stall = Histogram(
            "event_loop_stall_seconds", "How late the loop woke a sleeper.", buckets=STALL_BUCKETS, registry=registry
        )
        self.tasks = Gauge("event_loop_tasks", "Tasks that live in the event loop.", registry=registry)

        self.configuration_reads = Counter(
            "configuration_reads",
            "Times the configuration was read again while running.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("applied", "unchanged", "rejected"):
            self.configuration_reads.labels(outcome)

    def _delivery(self, registry: CollectorRegistry) -> None:
        self.batch_size = Histogram(
            "kinesis_batch_size", "Records in one put.", buckets=BATCH_BUCKETS, registry=registry
        )
        self.puts = Counter("kinesis_puts", "Calls of PutRecords.", ["outcome"], registry=registry)
        self.records_delivered = Counter("records_delivered", "Records that Kinesis acknowledged.", registry=registry)
        self.bytes_delivered = Counter("bytes_delivered", "Bytes that Kinesis acknowledged.", registry=registry)
        self.entries_retried = Counter("kinesis_entries_retried", "Entries sent again.", ["reason"], registry=registry)
        self.possible_duplicates = Counter(
            "kinesis_possible_duplicates",
            "Records sent again although the first put may have landed.",
            registry=registry,
        )
        self.breaker_state = Gauge("kinesis_breaker_state", "0 closed, 1 half-open, 2 open.", registry=registry)
        self.held_bytes = Gauge("kinesis_held_bytes", "Bytes the producer holds in memory.", registry=registry)
        self.spool_bytes = Gauge("spool_bytes", "Bytes that wait on disk.", registry=registry)
        self.spool_limit = Gauge(
            "spool_limit_bytes", "Bytes that may wait on disk; 0 without a disk for it.", registry=registry
        )
        self.abandoned = Counter(
            "records_abandoned", "Records let go at stop, unclaimed.", ["reason"], registry=registry
        )
        self.beats = Counter("heartbeats", "Heartbeats written.", ["outcome"], registry=registry)
        self.publications = Counter(
            "cloudwatch_publications", "Sendings of metrics to CloudWatch.", ["outcome"], registry=registry
        )
        begin_at_zero(self.puts, ("accepted", "partial", *get_args(SinkFailure)))
        begin_at_zero(self.entries_retried, get_args(RetryReason))
        begin_at_zero(self.abandoned, get_args(AbandonReason))
        begin_at_zero(self.beats, ("acknowledged", "failed"))
        begin_at_zero(self.publications, ("accepted", "failed"))

    def _completeness(self, registry: CollectorRegistry) -> None:
        self.dead_letters = Counter("dead_letters", "Messages and records given up.", ["reason"], registry=registry)
        self.gaps_detected = Counter(
            "gaps_detected", "Gaps seen in the venue's ids.", ["stream_type"], registry=registry
        )
        self.ids_repaired = Counter(
            "ids_repaired", "Missing ids fetched over REST.", ["stream_type"], registry=registry
        )
        self.duplicates_dropped = Counter(
            "duplicates_dropped", "Events seen before and not sent again.", ["stream_type"], registry=registry
        )
        self.holes_declared = Counter(
            "holes_declared", "Holes declared in the stream.", ["stream_type", "reason"], registry=registry
        )
        begin_at_zero(self.dead_letters, get_args(PoisonReason))
        for counter in (self.gaps_detected, self.ids_repaired, self.duplicates_dropped):
            begin_at_zero(counter, get_args(StreamType))
        begin_at_zero(self.holes_declared, get_args(StreamType), get_args(HoleReason))

    def count_messages_by(self, read: Callable[[], MessageCounts], read_ever: Callable[[], int] | None = None) -> None:
        """Have `messages_received_total` read from `read` at scrape time, so that no message pays for it.

        Symbols come and go; `read_ever` is the sum that never falls.
        """
        self._at_scrape.messages = read
        self._at_scrape.messages_ever = read_ever or self._at_scrape.messages_ever

    def watch_channel(self, name: str, fill: Callable[[], tuple[int, int]]) -> None:
        """Have the fill of a channel (batches, bytes) read from `fill` at scrape time; `BatchReceiver.fill` fits."""
        self._at_scrape.channels[name] = fill

    def watch_watermarks(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Have the watermark lag in seconds, by stream type, read from `read` at scrape time."""
        self._at_scrape.watermark_lags = read

    def watch_heartbeat(self, read: Callable[[], float]) -> None:
        """Have the age of the newest acknowledged heartbeat in seconds read from `read` at scrape time."""
        self._at_scrape.heartbeat_age = read

    def watch_shards(self, read: Callable[[], tuple[int, int]]) -> None:
        """Have the number of known shards, and of lanes that wait for one, read from `read` at scrape time."""
        self._at_scrape.shards = read

    def totals(self) -> dict[str, float]:
        """Return what rates are made of, since the start.

        Messages received, what came through each stage, records and bytes delivered.
        """
        return {
            "messages": float(self._at_scrape.messages_ever()),
            **{stage: float(sum(self.latency.counts(stage))) for stage in get_args(Stage)},
            "records": value_of(self.records_delivered),
            "bytes": value_of(self.bytes_delivered),
        }

    def losses(self) -> dict[str, float]:
        """Return what was let go, declared or given up since the start; all zero is the aim."""
        return {
            "reconnections": self.reconnections.value,
            "gaps_detected": value_of(self.gaps_detected),
            "ids_repaired": value_of(self.ids_repaired),
            "holes_declared": value_of(self.holes_declared),
            "dead_letters": value_of(self.dead_letters),
            "abandoned": value_of(self.abandoned),
        }

    def process_usage(self) -> dict[str, float]:
        """Return memory, CPU seconds and open files of this process; empty where there is no /proc."""
        wanted = {
            "process_resident_memory_bytes": "memory_bytes",
            "process_cpu_seconds_total": "cpu_seconds",
            "process_open_fds": "open_files",
        }
        samples = [sample for family in self._process.collect() for sample in family.samples]
        return {wanted[sample.name]: sample.value for sample in samples if sample.name in wanted}

    def watermark_lag_s(self) -> float:
        """Return the largest watermark lag of all stream types."""
        return max(self._at_scrape.watermark_lags().values(), default=0.0)

    def channel_fill(self) -> dict[str, tuple[int, int]]:
        """Return the batches and bytes that wait in each watched channel now."""
        return {name: fill() for name, fill in self._at_scrape.channels.items()}


def open_metrics() -> Metrics:
    """Make metrics on a registry of their own."""
    return Metrics(CollectorRegistry())


def begin_at_zero(counter: Counter, *values: Sequence[str]) -> None:
    """Export `counter` for every combination of these values of its labels, closed sets, from the start.

    One that began with its first loss would hide that loss from `rate`, and a graph would be empty instead of zero.
    """
    for labels in product(*values):
        counter.labels(*labels)


def value_of(metric: Collector) -> float:
    """Sum the values of a counter or gauge over its labels."""
    return sum(
        sample.value for family in metric.collect() for sample in family.samples if not sample.name.endswith("_created")
    )


@dataclass(frozen=True, slots=True)
class Collected:
    """Families that were collected once, in the shape that `generate_latest` reads."""

    families: list[Metric]

    def collect(self) -> list[Metric]:
        """Answer with what is there."""
        return self.families


def expose(registry: CollectorRegistry) -> bytes:
    """Render `registry` in the Prometheus text format 0.0.4, every name as the contract has it.

    The comment lines of a `PlainCounter` come out with `_total` behind a name that has none (prometheus_client 0.26
    `exposition.py`), which would leave the sample without a type; they are the only lines touched. OpenMetrics is not
    offered, as it forbids such a name. The `_created` series, which double every counter, are left out.
    """
    families = list(registry.collect())
    for family in families:
        family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    text = generate_latest(Collected(families))
    for family in families:
        if family.type == "counter" and any(sample.name == family.name for sample in family.samples):
            for comment in ("HELP", "TYPE"):
                text = text.replace(
                    f"# {comment} {family.name}_total ".encode(), f"# {comment} {family.name} ".encode()
                )
    return text
