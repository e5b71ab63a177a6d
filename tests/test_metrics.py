"""What a scrape says, by name."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from ingestor import __version__
from ingestor.metrics import SECONDS_BUCKETS, Metrics, expose, value_of


def scrape(metrics: Metrics) -> dict[str, float]:
    """Return every sample as a Prometheus server reads it: `name{label="value"}` -> number."""
    samples = {}
    for family in text_string_to_metric_families(expose(metrics.registry).decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def test_two_sets_of_metrics_live_beside_each_other() -> None:
    """Nothing is registered at import time, so a second service in one process starts from zero."""
    first, second = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    first.records_delivered.inc(3)
    assert scrape(first)["records_delivered_total"] == 3
    assert scrape(second)["records_delivered_total"] == 0


def test_reconnections_are_a_counter_under_exactly_the_contracts_name() -> None:
    """Neither the sample nor its comment lines get a suffix that dashboards do not know."""
    metrics = Metrics(CollectorRegistry())
    metrics.reconnections.inc()
    metrics.reconnections.inc(2)
    lines = [line for line in expose(metrics.registry).decode().splitlines() if "reconnection" in line]
    assert lines[1:] == ["# TYPE websocket_reconnection_count counter", "websocket_reconnection_count 3.0"]
    assert lines[0].startswith("# HELP websocket_reconnection_count ")


def test_what_was_promised_has_its_name_its_type_and_its_labels() -> None:
    """Dashboards that others have made go on."""
    metrics = Metrics(CollectorRegistry())
    metrics.count_messages_by(lambda: {("BTCUSDT", "trade"): 1})
    text = expose(metrics.registry).decode()
    promised = {
        "messages_received_total": ("counter", {"symbol", "stream_type"}),
        "message_processing_latency_seconds": ("histogram", {"stage", "le"}),
        "kinesis_batch_size": ("histogram", {"le"}),
        "websocket_reconnection_count": ("counter", set()),
    }
    labels = {sample.name: set(sample.labels) for family in metrics.registry.collect() for sample in family.samples}
    for name, (kind, wanted) in promised.items():
        assert f"# TYPE {name} {kind}\n" in text
        assert labels[f"{name}_bucket" if kind == "histogram" else name] == wanted


def test_a_batch_is_one_observation_of_many_messages() -> None:
    """Buckets are cumulative, an observation on a bound belongs to it, and the sum is of all messages."""
    metrics = Metrics(CollectorRegistry())
    metrics.latency.observe("put", 0.5, 4)
    metrics.latency.observe("put", 1000.0)
    name = "message_processing_latency_seconds"
    samples = scrape(metrics)
    assert samples[f'{name}_bucket{{le="0.3",stage="put"}}'] == 0
    assert samples[f'{name}_bucket{{le="0.5",stage="put"}}'] == 4
    assert samples[f'{name}_bucket{{le="600",stage="put"}}'] == 4
    assert samples[f'{name}_bucket{{le="+Inf",stage="put"}}'] == samples[f'{name}_count{{stage="put"}}'] == 5
    assert samples[f'{name}_sum{{stage="put"}}'] == 1002.0
    assert samples[f'{name}_count{{stage="decoded"}}'] == 0


def test_quantiles_are_bucket_bounds() -> None:
    """The page needs no exact percentile; nothing observed is None, and beyond the last bound is that bound."""
    metrics = Metrics(CollectorRegistry())
    assert metrics.latency.quantiles("put") == {"p50": None, "p95": None, "p99": None}
    metrics.latency.observe("put", 0.004, 97)
    metrics.latency.observe("put", 0.9, 2)
    metrics.latency.observe("put", 9999.0)
    assert metrics.latency.quantiles("put") == {"p50": 0.005, "p95": 0.005, "p99": 1.0}
    metrics.latency.observe("decoded", 9999.0)
    assert metrics.latency.quantiles("decoded")["p50"] == SECONDS_BUCKETS[-1]


def test_a_lag_below_zero_counts_in_the_first_bucket() -> None:
    """Clocks differ; a venue clock ahead of ours is no reason to lose the observation."""
    metrics = Metrics(CollectorRegistry())
    metrics.venue_lag.observe("trade", -0.2, 3)
    assert scrape(metrics)['venue_receive_lag_seconds_bucket{le="0.0001",stream_type="trade"}'] == 3


def test_messages_are_read_from_their_owner_when_somebody_asks() -> None:
    """The count is the owner's, and nothing is written per message."""
    metrics = Metrics(CollectorRegistry())
    counts: dict[tuple[str, str], int] = {}
    metrics.count_messages_by(lambda: counts)
    assert metrics.totals()["messages"] == 0
    counts["BTCUSDT", "trade"] = 7
    counts["BTCUSDT", "depth"] = 5
    assert scrape(metrics)['messages_received_total{stream_type="trade",symbol="BTCUSDT"}'] == 7
    assert metrics.totals()["messages"] == 12


def test_totals_tell_what_came_through_each_stage() -> None:
    """Rates are made of them, and the page shows those as the flow from stage to stage."""
    metrics = Metrics(CollectorRegistry())
    metrics.latency.observe("decoded", 0.001, 12)
    metrics.latency.observe("encoded", 0.002, 10)
    metrics.latency.observe("encoded", 9999.0)
    metrics.records_delivered.inc(5)
    stages = {"decoded": 12, "encoded": 11, "put": 0, "acknowledged": 0}
    assert metrics.totals() == {"messages": 0, **stages, "records": 5, "bytes": 0}


def test_the_sum_of_all_messages_does_not_fall_when_a_symbol_goes() -> None:
    """A rate would be negative."""
    metrics = Metrics(CollectorRegistry())
    metrics.count_messages_by(lambda: {("BTCUSDT", "trade"): 7}, lambda: 20)
    assert metrics.totals()["messages"] == 20
    assert 'messages_received_total{stream_type="trade",symbol="ETHUSDT"}' not in scrape(metrics)


def test_channels_and_watermarks_are_read_from_their_owners() -> None:
    """A gauge shows what is true at the scrape."""
    metrics = Metrics(CollectorRegistry())
    metrics.watch_channel("records", lambda: (3, 4096))
    metrics.watch_watermarks(lambda: {"trade": 1.5})
    assert "heartbeat_age_seconds" not in scrape(metrics)
    metrics.watch_heartbeat(lambda: 2.5)
    samples = scrape(metrics)
    assert samples["heartbeat_age_seconds"] == 2.5
    assert samples['channel_batches{channel="records"}'] == 3
    assert samples['channel_bytes{channel="records"}'] == 4096
    assert samples['watermark_lag_seconds{stream_type="trade"}'] == 1.5
    assert metrics.channel_fill() == {"records": (3, 4096)}


def test_losses_start_at_zero_instead_of_at_the_first_loss() -> None:
    """A rate over a counter that did not exist before is nothing, and the first loss would not alarm."""
    samples = scrape(Metrics(CollectorRegistry()))
    assert samples['dead_letters_total{reason="invalid_json"}'] == 0
    assert samples['holes_declared_total{reason="venue_forgot",stream_type="trade"}'] == 0
    assert samples['gaps_detected_total{stream_type="depth"}'] == 0


def test_losses_are_summed_for_the_page() -> None:
    """Every kind of loss has one number."""
    metrics = Metrics(CollectorRegistry())
    metrics.dead_letters.labels("encoding").inc(2)
    metrics.dead_letters.labels("too_large").inc()
    metrics.abandoned.labels("stopped").inc(4)
    metrics.reconnections.inc()
    losses = metrics.losses()
    assert (losses["dead_letters"], losses["abandoned"], losses["reconnections"], losses["holes_declared"]) == (
        3,
        4,
        1,
        0,
    )
    assert value_of(metrics.breaker_state) == 0


def test_the_process_and_the_build_are_named() -> None:
    """Memory, CPU and version stand beside the rest."""
    metrics = Metrics(CollectorRegistry())
    samples = scrape(metrics)
    assert samples["process_resident_memory_bytes"] > 1e6
    assert any(name.startswith("ingestor_build_info{") and f'version="{__version__}"' in name for name in samples)
    assert sorted(metrics.process_usage()) == ["cpu_seconds", "memory_bytes", "open_files"]


def test_no_series_says_when_a_series_was_created() -> None:
    """They double the size of every scrape and nobody reads them."""
    assert b"_created" not in expose(Metrics(CollectorRegistry()).registry)
