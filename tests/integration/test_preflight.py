"""`ingestor check --connect` as a process, against a simulated venue and an engine."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import boto3
import pytest
import trio
import yaml

from tests.integration.engines import CREDENTIALS, REGION, clean_environment, client_of, create_stream
from tests.integration.service import NOWHERE, configuration, heartbeats_of, new_venue, open_venue

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

STREAM = "preflight"


async def test_what_is_missing_is_found(moto_url: str, tmp_path: Path) -> None:
    """First no stream, no queue and a symbol that is none; then, with all of it there, only what is well."""
    sqs = partial(
        boto3.client,
        "sqs",
        endpoint_url=moto_url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )()
    letters = {"kind": "sqs", "queue_url": f"{moto_url}/123456789012/never-made"}
    async with open_venue(new_venue()) as urls:
        settings = configuration(urls, moto_url, STREAM, tmp_path, dead_letter=letters)
        config = tmp_path / "check.yaml"
        environment = clean_environment(**NOWHERE, **CREDENTIALS)

        async def check() -> tuple[int, str]:
            config.write_text(yaml.safe_dump(settings))
            command = [sys.executable, "-m", "ingestor", "check", "--config", str(config), "--connect"]
            done = await trio.run_process(
                command, env=environment, capture_stdout=True, stderr=subprocess.STDOUT, check=False
            )
            return done.returncode, done.stdout.decode()

        settings["binance"]["symbols"] = ["BTCUSDT", "NOSUCH"]
        code, text = await check()
        assert code == 1, text
        for line in (
            "fail  binance.symbols: the venue does not know NOSUCH",
            f"fail  kinesis.stream_name: {STREAM}: DescribeStreamSummary failed: ResourceNotFoundException",
            f"fail  heartbeat.stream_name: {heartbeats_of(STREAM)}: DescribeStreamSummary failed",
            "fail  dead_letter.queue_url: ",
        ):
            assert line in text
        settings["binance"]["symbols"] = ["BTCUSDT"]
        client = client_of(moto_url)
        await trio.to_thread.run_sync(create_stream, client, STREAM, 2)
        await trio.to_thread.run_sync(create_stream, client, heartbeats_of(STREAM), 1)
        await trio.to_thread.run_sync(lambda: sqs.create_queue(QueueName="never-made"))
        code, text = await check()
        assert code == 0, text
        assert {line.split()[0] for line in text.splitlines() if not line.startswith(" ")} == {"ok"}, text
        assert f"{STREAM} may be read" in text
