"""The few series that CloudWatch gets, made from the samples of the Prometheus registry: deltas, gauges, histograms.

CloudWatch bills every series, so this is a choice of about thirty and not a copy. Counters and histograms are sent as
what came since the last sending that succeeded: nothing is lost while CloudWatch is away. A histogram is sent as the
bounds of its buckets with their counts, which keeps percentiles; a value counts as its bucket's upper bound, so no
percentile is better than the truth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Unit: TypeAlias = Literal["Count", "Bytes", "Seconds", "None"]
Dimensions: TypeAlias = tuple[tuple[str, str], ...]

MAX_DATUMS: Final = 1000  # of one PutMetricData call; CloudWatch API reference, read 2026-11-22
MAX_VALUES: Final = 100  # of one datum: 150 in PutMetricData, 100 in a line of the embedded metric format
MAX_LINE_METRICS: Final = 100  # of one directive of the embedded metric format


class Series(NamedTuple):
    """One metric of CloudWatch and the samples it is summed up from.

    `metric` is the name of the sample, of a histogram that of its family. `by` is a label that becomes a dimension,
    `only` and `never` choose by a label's value: `("outcome", ("failed",))`.
    """

    name: str
    metric: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: Unit = "Count"
    by: str = ""
    only: tuple[str, tuple[str, ...]] = ("", ())
    never: tuple[str, tuple[str, ...]] = ("", ())


SERIES: Final = (
    Series("MessagesReceived", "messages_received_total", "counter", by="stream_type"),
    Series("Reconnections", "websocket_reconnection_count", "counter"),
    Series("ConnectionsOpen", "websocket_connections_open", "gauge"),
    Series("RestRequestsFailed", "rest_requests_total", "counter", never=("outcome", ("ok",))),
    Series("RestWeightUsed", "rest_weight_used", "gauge", "None"),
    Series("RecordsDelivered", "records_delivered_total", "counter"),
    Series("BytesDelivered", "bytes_delivered_total", "counter", "Bytes"),
    Series("PutsFailed", "kinesis_puts_total", "counter", never=("outcome", ("accepted", "partial"))),
    Series("EntriesRetried", "kinesis_entries_retried_total", "counter"),
    Series("PossibleDuplicates", "kinesis_possible_duplicates_total", "counter"),
    Series("BreakerState", "kinesis_breaker_state", "gauge", "None"),
    Series("HeldBytes", "kinesis_held_bytes", "gauge", "Bytes"),
    Series("SpoolBytes", "spool_bytes", "gauge", "Bytes"),
    Series("ChannelBytes", "channel_bytes", "gauge", "Bytes"),
    Series("HeartbeatsFailed", "heartbeats_total", "counter", only=("outcome", ("failed",))),
    Series("GapsDetected", "gaps_detected_total", "counter"),
    Series("IdsRepaired", "ids_repaired_total", "counter"),
    Series("HolesDeclared", "holes_declared_total", "counter"),
    Series("HolesUnexpected", "holes_declared_total", "counter", never=("reason", ("disconnected", "first_start"))),
    Series("DeadLetters", "dead_letters_total", "counter"),
    Series("RecordsAbandoned", "records_abandoned_total", "counter"),
    Series("WatermarkLag", "watermark_lag_seconds", "gauge", "Seconds", by="stream_type"),
    Series("ProcessingLatency", "message_processing_latency_seconds", "histogram", "Seconds",
           by="stage", only=("stage", ("acknowledged",))),
    Series("VenueReceiveLag", "venue_receive_lag_seconds", "histogram", "Seconds", by="stream_type"),
    Series("BatchSize", "kinesis_batch_size", "histogram"),
    Series("EventLoopStall", "event_loop_stall_seconds", "histogram", "Seconds"),
    Series("CpuTime", "process_cpu_seconds_total", "counter", "Seconds"),
    Series("MemoryUsed", "process_resident_memory_bytes", "gauge", "Bytes"),
)  # fmt: skip


class Sample(Protocol):
    """What a sample of the registry tells; that of prometheus_client fits."""

    @property
    def name(self) -> str:
        """Its name, of a bucket with `_bucket` behind it."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels; a bucket has `le`."""
        ...

    @property
    def value(self) -> float:
        """Its value, of a bucket all that is not above its bound."""
        ...


class Datum(msgspec.Struct, frozen=True):
    """What one series had to say since the last time: `values` and how often each of them came."""

    name: str
    unit: Unit
    dimensions: Dimensions
    values: tuple[float, ...]
    counts: tuple[float, ...]


# What was read: by series and value of its label, the value by upper bound (of all but histograms: one, infinity) and
# by all labels of the sample. Symbols come and go, so only what each of them counted never falls; their sum does.
Reading: TypeAlias = dict[tuple[Series, str], dict[tuple[float, tuple[str, ...]], float]]


class DatumSource:
    """Turns what the registry says now into what is news; `dimensions` are those of every datum."""

    def __init__(self, dimensions: Dimensions, series: Sequence[Series] = SERIES) -> None:
        self._dimensions = dimensions
        self._by_sample: dict[str, list[Series]] = {}
        for each in series:
            sample_name = f"{each.metric}_bucket" if each.kind == "histogram" else each.metric
            self._by_sample.setdefault(sample_name, []).append(each)
        self._sent: Reading = {}
        self._read: Reading = {}

    def read(self, samples: Iterable[Sample]) -> list[Datum]:
        """Return the news since the last `settle`: a counter without any is zero, a histogram without any is absent."""
        reading: Reading = {}
        for sample in samples:
            for series in self._by_sample.get(sample.name, ()):
                if _is_chosen(series, sample.labels):
                    values = reading.setdefault((series, sample.labels.get(series.by, "")), {})
                    values[float(sample.labels.get("le", math.inf)), tuple(sample.labels.values())] = sample.value
        self._read = reading
        return list(self._news(reading))

    def settle(self) -> None:
        """Take what was read last as sent."""
        for key, values in self._read.items():
            self._sent.setdefault(key, {}).update(values)

    def _news(self, reading: Reading) -> Iterator[Datum]:
        for (series, label), values in reading.items():
            before = {} if series.kind == "gauge" else self._sent.get((series, label), {})
            news: dict[float, float] = {}
            for sample, value in values.items():
                news[sample[0]] = news.get(sample[0], 0.0) + value - before.get(sample, 0.0)
            counted = _per_bucket(news) if series.kind == "histogram" else {news[math.inf]: 1.0}
            counted = {value: count for value, count in counted.items() if count > 0 and math.isfinite(value)}
            if counted:
                own = ((_dimension_name(series.by), label),) if series.by else ()
                dimensions = self._dimensions + own
                yield Datum(series.name, series.unit, dimensions, tuple(counted), tuple(counted.values()))


def _is_chosen(series: Series, labels: Mapping[str, str]) -> bool:
    label, values = series.only
    refused_label, refused = series.never
    return (not label or labels.get(label) in values) and labels.get(refused_label) not in refused


def _dimension_name(label: str) -> str:
    """Write `stream_type` as CloudWatch does: `StreamType`."""
    return label.title().replace("_", "")


def _per_bucket(cumulative: Mapping[float, float]) -> dict[float, float]:
    """Return how often each bound came; what is above the last finite one counts as that one."""
    counts: dict[float, float] = {}
    seen = last = 0.0
    for bound in sorted(cumulative):
        last = bound if math.isfinite(bound) else last
        counts[last] = counts.get(last, 0.0) + cumulative[bound] - seen
        seen = cumulative[bound]
    return counts


def emf_lines(datums: Sequence[Datum], namespace: str, at_ms: int) -> list[str]:
    """Write `datums` in CloudWatch's embedded metric format: a line of JSON for each set of dimensions.

    The specification knows numbers and lists of samples. Values with counts are what AWS' own collector writes
    (amazon-contributing/opentelemetry-collector-contrib, `awsemfexporter`, read 2026-11-23), and keep the percentiles.
    """
    together: dict[Dimensions, list[Datum]] = {}
    for datum in datums:
        together.setdefault(datum.dimensions, []).append(datum)
    return [
        _emf_line(dimensions, group[start : start + MAX_LINE_METRICS], namespace, at_ms)
        for dimensions, group in together.items()
        for start in range(0, len(group), MAX_LINE_METRICS)
    ]


def _emf_line(dimensions: Dimensions, datums: Sequence[Datum], namespace: str, at_ms: int) -> str:
    directive = {
        "Namespace": namespace,
        "Dimensions": [[name for name, _ in dimensions]],
        "Metrics": [{"Name": datum.name, "Unit": datum.unit} for datum in datums],
    }
    line: dict[str, Any] = {"_aws": {"Timestamp": at_ms, "CloudWatchMetrics": [directive]}}
    line |= dict(dimensions)
    line |= {datum.name: _emf_value(datum) for datum in datums}
    return msgspec.json.encode(line).decode()


def _emf_value(datum: Datum) -> Any:
    if datum.counts == (1.0,):
        return datum.values[0]
    return {
        "Values": datum.values,
        "Counts": datum.counts,
        "Max": max(datum.values),
        "Min": min(datum.values),
        "Count": sum(datum.counts),
        "Sum": sum(value * count for value, count in zip(datum.values, datum.counts, strict=True)),
    }
