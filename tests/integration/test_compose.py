"""The compose file without a container engine: what makes the streams, run against the emulator that it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ingestor.config import load
from tests.integration.engines import clean_environment, client_of, free_port, wait_listening

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parents[2] / "config"
SERVICES: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


def test_the_emulator_is_started_by_a_file_that_needs_nothing_but_moto(tmp_path: Path) -> None:
    """It runs where our package is not installed, and answers."""
    kinesis = SERVICES["kinesis"]
    source, _, target_and_mode = kinesis["volumes"][0].partition(":")
    program, *options = kinesis["entrypoint"][1:]
    assert target_and_mode == f"{program}:ro"
    port = free_port()
    command = [sys.executable, "-I", str(FOLDER / source), *options[:-3], "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=clean_environment()) as process:
        try:
            wait_listening(port)
            assert client_of(f"http://127.0.0.1:{port}").list_streams()["StreamNames"] == []
        finally:
            process.kill()


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
