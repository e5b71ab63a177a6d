"""Publishing to the CloudWatch of moto's server, and what can be read back from it."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

import boto3
import pytest
import trio

from ingestor.cloudwatch import Publisher
from ingestor.config import CloudWatch, Config
from ingestor.config import Metrics as MetricsSection
from ingestor.metrics import open_metrics
from ingestor.world import open_metrics_outlet
from tests.integration.engines import CREDENTIALS, REGION

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch.client import CloudWatchClient

pytestmark = pytest.mark.integration


@pytest.fixture
def client(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> CloudWatchClient:
    """Return a client of the engine, to which the environment leads the service as well."""
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL_CLOUDWATCH": moto_url, "no_proxy": "127.0.0.1"}).items():
        monkeypatch.setenv(name, value)
    return boto3.session.Session(region_name=REGION).client("cloudwatch")


async def test_what_was_counted_can_be_read_back(client: CloudWatchClient) -> None:
    """Counters as sums, histograms with all their samples, about thirty series in one call."""
    outlet = open_metrics_outlet(Config(metrics=MetricsSection(cloudwatch=CloudWatch(mode="api"))))
    assert outlet is not None
    metrics, dimensions = open_metrics(), (("Service", "test"), ("Shard", "0"))
    publisher = Publisher(metrics, outlet, dimensions=dimensions, interval_s=60, wall_ns=time.time_ns)
    metrics.records_delivered.inc(40)
    metrics.latency.observe("acknowledged", 0.4, 30)
    await publisher.publish()
    metrics.records_delivered.inc(2)
    metrics.latency.observe("acknowledged", 1.2, 10)
    await publisher.publish()
    assert metrics.registry.get_sample_value("cloudwatch_publications_total", {"outcome": "accepted"}) == 2

    def read(name: str, *more: tuple[str, str]) -> tuple[float, float]:
        now = dt.datetime.now(dt.UTC)
        points = client.get_metric_statistics(
            Namespace="Ingestor",
            MetricName=name,
            Dimensions=[{"Name": key, "Value": value} for key, value in (*dimensions, *more)],
            StartTime=now - dt.timedelta(hours=1),
            EndTime=now + dt.timedelta(hours=1),
            Period=7200,
            Statistics=["Sum", "SampleCount"],
        )["Datapoints"]
        return sum(point.get("Sum", 0) for point in points), sum(point.get("SampleCount", 0) for point in points)

    assert (await trio.to_thread.run_sync(read, "RecordsDelivered"))[0] == 42
    latency = await trio.to_thread.run_sync(read, "ProcessingLatency", ("Stage", "acknowledged"))
    assert latency[0] == pytest.approx(30 * 0.5 + 10 * 1.25)
    assert latency[1] == 40
    listed = (await trio.to_thread.run_sync(client.list_metrics))["Metrics"]  # moto lists what came twice twice
    assert 15 < len({repr(each) for each in listed}) <= 36
