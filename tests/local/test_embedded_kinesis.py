"""The embedded Kinesis: it starts with its streams, takes records, and leaves no process behind."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import boto3
import pytest
import trio
from botocore.config import Config

from ingestor.local import kinesis
from ingestor.local.kinesis import EmbeddedKinesisError, embedded_kinesis


def open_client(endpoint_url: str) -> Any:
    return boto3.client(
        "kinesis",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106 - moto takes anything
        config=Config(proxies={}),
    )


@pytest.mark.integration
async def test_records_go_in_and_come_out() -> None:
    """The streams exist with their shards, and afterwards nothing listens any more."""
    with trio.fail_after(60):
        async with embedded_kinesis([("data", 2), ("heartbeat", 1)]) as endpoint_url:
            client = open_client(endpoint_url)
            shards = await trio.to_thread.run_sync(partial(client.list_shards, StreamName="data"))
            assert len(shards["Shards"]) == 2
            put = partial(client.put_record, StreamName="heartbeat", Data=b"beat", PartitionKey="a")
            assert (await trio.to_thread.run_sync(put))["SequenceNumber"]
            client.close()
        port = int(endpoint_url.rpartition(":")[2])
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_without_moto_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    monkeypatch.setattr(kinesis, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedKinesisError, match=r"ingestor\[local\]"):
        async with embedded_kinesis([]):
            pass


async def test_a_server_that_dies_at_once_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is in the message, and nobody waits for the port."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EmbeddedKinesisError, match="exit code 1"):
        async with embedded_kinesis([]):
            pass


async def test_a_server_that_does_not_stop_is_killed() -> None:
    """SIGTERM would wait for clients that still hold a connection."""
    code = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = await trio.lowlevel.open_process([sys.executable, "-c", code], stdout=-1)
    assert process.stdout is not None
    await process.stdout.receive_some(1)
    await kinesis._stop(process)
    await process.stdout.aclose()
    assert process.returncode == -9
