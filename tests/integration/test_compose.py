"""The compose file without a container engine: what makes the streams, run against the emulator that it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ingestor.config import load
from tests.integration.engines import clean_environment, client_of

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parents[2] / "config"
SERVICES: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


def test_the_streams_of_the_local_configuration_are_made(moto_url: str) -> None:
    """And made is made: the second `up` finds them."""
    streams = SERVICES["streams"]
    *_, flag = streams["entrypoint"]
    environ = clean_environment(**{**streams["environment"], "AWS_ENDPOINT_URL": moto_url})
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, flag, *streams["command"]], env=environ, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    config = load(FOLDER / "local.yaml", SERVICES["ingestor"]["environment"])
    kinesis = client_of(moto_url)
    for name, shards in ((config.kinesis.stream_name, 2), (config.heartbeat.stream_name, 1)):
        summary = kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
        assert summary["OpenShardCount"] == shards
