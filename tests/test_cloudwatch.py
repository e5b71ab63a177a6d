"""Publishing to CloudWatch: when, what is logged and counted, and that nothing else notices."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import structlog
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from ingestor import app
from ingestor.aws import AwsApi, CloudWatchSink, make_cloudwatch_client
from ingestor.cloudwatch import EmfOutlet, Publisher
from ingestor.config import CloudWatch, Config, Kinesis
from ingestor.config import Metrics as MetricsSection
from ingestor.core.datums import Datum
from ingestor.core.errors import ConfigError, SinkError
from ingestor.core.stopping import OBSERVERS_S
from ingestor.metrics import Metrics
from ingestor.world import open_metrics_outlet
from tests.fakes.world import MemoryWorld, config_for, run_inline

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trio.testing import MockClock

DIMENSIONS = (("Service", "ingestor"),)


class FakeOutlet:
    """Notes what it gets; fails while `error` is set."""

    def __init__(self) -> None:
        self.published: list[tuple[float, dict[str, float]]] = []
        self.dimensions: set[tuple[str, str]] = set()
        self.error: SinkError | None = None

    async def publish(self, datums: Sequence[Datum], at_ms: int) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.dimensions = {dimension for dimension in datums[0].dimensions if dimension[0] != "StreamType"}
        self.published.append((trio.current_time(), {datum.name: datum.values[0] for datum in datums}))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def publisher(metrics: Metrics, outlet: FakeOutlet) -> Publisher:
    return Publisher(metrics, outlet, dimensions=DIMENSIONS, interval_s=60, wall_ns=lambda: 0)


async def test_it_publishes_every_interval_and_at_the_end(autojump_clock: MockClock, metrics: Metrics) -> None:
    """Cancelled, it sends what came since the last time."""
    outlet, began = FakeOutlet(), trio.current_time()
    with trio.move_on_after(130):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher(metrics, outlet).run)
            for _ in range(26):
                metrics.records_delivered.inc(1)
                await trio.sleep(5)
    assert [round(at - began) for at, _ in outlet.published] == [60, 120, 130]
    assert sum(values["RecordsDelivered"] for _, values in outlet.published) == 26
    assert metrics.registry.get_sample_value("cloudwatch_publications_total", {"outcome": "accepted"}) == 3


async def test_an_outage_is_logged_once_and_loses_no_count(autojump_clock: MockClock, metrics: Metrics) -> None:
    """A person is told when it begins and when it is over; every failure is counted."""
    outlet = FakeOutlet()
    outlet.error = SinkError("configuration", "AccessDenied", "cloudwatch:PutMetricData is not allowed")
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher(metrics, outlet).run)
            metrics.records_delivered.inc(5)
            await trio.sleep(185)
            assert [line["event"] for line in logs] == ["metrics_not_published"]
            outlet.error = None
            metrics.records_delivered.inc(2)
            await trio.sleep(120)
            nursery.cancel_scope.cancel()
    assert [line["event"] for line in logs] == ["metrics_not_published", "metrics_published_again"]
    assert "PutMetricData" in logs[0]["error"]
    assert logs[1]["failures"] == 3
    assert [values["RecordsDelivered"] for _, values in outlet.published] == [7, 0, 0]
    assert metrics.registry.get_sample_value("cloudwatch_publications_total", {"outcome": "failed"}) == 3


async def test_emf_is_one_json_document_a_line(metrics: Metrics) -> None:
    """Written whole, and flushed, because standard output is a pipe."""
    out = io.StringIO()
    outlet = EmfOutlet(out, "Space", run_inline)
    await outlet.publish([Datum("Counted", "Count", DIMENSIONS, (1.0,), (1.0,))], 1000)
    assert [json.loads(line)["Counted"] for line in out.getvalue().splitlines()] == [1.0]


async def test_an_output_that_nobody_reads_is_a_failure_like_others() -> None:
    """A broken pipe is no reason to end."""

    class Broken(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(SinkError, match="Broken pipe"):
        await EmfOutlet(Broken(), "Space", run_inline).publish([], 0)


class Stuck(io.StringIO):
    """A pipe that is full."""

    def __init__(self) -> None:
        super().__init__()
        self.drained = threading.Event()

    def write(self, text: str, /) -> int:
        self.drained.wait()
        return len(text)


async def test_an_output_that_is_full_is_a_failure_and_holds_up_no_stop(
    autojump_clock: MockClock, metrics: Metrics
) -> None:
    """Nobody would notice otherwise, until the stop that never ends."""
    outlet, out = open_metrics_outlet(config_with("emf")), Stuck()
    assert isinstance(outlet, EmfOutlet)
    outlet._out = out
    emitter = Publisher(metrics, outlet, dimensions=DIMENSIONS, interval_s=60, wall_ns=lambda: 0)
    began = trio.current_time()
    try:
        with structlog.testing.capture_logs() as logs, trio.move_on_after(90):
            await emitter.run()
        assert trio.current_time() - began <= 90 + OBSERVERS_S
    finally:
        out.drained.set()
    assert [line["event"] for line in logs] == ["metrics_not_published"]
    assert metrics.registry.get_sample_value("cloudwatch_publications_total", {"outcome": "failed"}) == 1


def config_with(mode: str, region: str = "us-east-1") -> Config:
    cloudwatch = CloudWatch.model_validate({"mode": mode})
    return Config(kinesis=Kinesis(region=region), metrics=MetricsSection(cloudwatch=cloudwatch))


async def test_the_mode_says_where_metrics_go() -> None:
    """A client exists only where one is used."""
    assert open_metrics_outlet(config_with("none")) is None
    assert isinstance(open_metrics_outlet(config_with("emf")), EmfOutlet)
    assert isinstance(open_metrics_outlet(config_with("api")), CloudWatchSink)


def test_an_unusable_region_or_endpoint_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what has to be changed."""
    with pytest.raises(ConfigError, match=r"kinesis\.region"):
        open_metrics_outlet(config_with("api", region="-"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH", "nowhere")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL_CLOUDWATCH"):
        open_metrics_outlet(config_with("api"))


async def test_a_thousand_datums_go_in_one_call() -> None:
    """More take another one; dimensions, values and counts arrive as they are."""
    calls: list[list[dict[str, object]]] = []

    class FakeClient:
        def put_metric_data(self, *, Namespace: str, MetricData: list[dict[str, object]]) -> None:  # noqa: N803 - boto3's
            assert Namespace == "Space"
            calls.append(MetricData)

    sink = CloudWatchSink(AwsApi(FakeClient, run_inline), "Space")  # type: ignore[arg-type]  # all that is called of it
    await sink.publish([Datum("Time", "Seconds", DIMENSIONS, (1.0, 2.0), (3.0, 4.0))] * 1001, 1_700_000_000_000)
    assert [len(call) for call in calls] == [1000, 1]
    datum = calls[1][0]
    assert (datum["Values"], datum["Counts"]) == ((1.0, 2.0), (3.0, 4.0))
    assert datum["Dimensions"] == [{"Name": "Service", "Value": "ingestor"}]


async def test_a_client_gives_up_within_the_last_part_of_a_stop() -> None:
    """Connecting and reading together, because a thread cannot be interrupted."""
    config = make_cloudwatch_client("us-east-1", timeout_s=1).meta.config
    assert config.connect_timeout + config.read_timeout == 2  # type: ignore[attr-defined]  # not in the stubs
    assert config.retries == {"mode": "standard", "total_max_attempts": 1}  # type: ignore[attr-defined]  # likewise


def test_metrics_do_not_mix_with_logs() -> None:
    """Lines of metrics are all of standard output; logs are on standard error."""
    code = """
import sys, trio
from ingestor import logs
from ingestor.cloudwatch import EmfOutlet, Publisher
from ingestor.metrics import open_metrics
from ingestor.threads import open_threads

async def main():
    outlet = EmfOutlet(sys.stdout, "Space", open_threads(1))
    with trio.move_on_after(0.01):
        await Publisher(open_metrics(), outlet, dimensions=(("A", "b"),), interval_s=60, wall_ns=lambda: 0).run()

logs.set_up("info", "json")
import structlog
structlog.get_logger().info("hello")
trio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert all("_aws" in json.loads(line) for line in done.stdout.splitlines())
    assert done.stdout.count("RecordsDelivered") == 2  # named in the directive, and its value
    assert '"hello"' in done.stderr


async def test_the_service_publishes_with_its_name_and_shard_to_the_end(tmp_path: Path) -> None:
    """Among the observers, so that what the drain counted is published too."""
    memory, outlet = MemoryWorld(), FakeOutlet()
    service = app.Service(config_for(memory, tmp_path), memory.as_seen_by_a_service()._replace(metrics_outlet=outlet))
    async with trio.open_nursery() as nursery:
        await nursery.start(service.observe)
        await trio.testing.wait_all_tasks_blocked()
        service.metrics.records_delivered.inc(9)
        nursery.cancel_scope.cancel()
    assert [values["RecordsDelivered"] for _, values in outlet.published] == [9]
    assert outlet.dimensions == {("Service", "ingestor"), ("Environment", "local"), ("Shard", "0")}
