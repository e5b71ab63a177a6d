"""An embedded Kinesis: moto's server as a process of our own on a free loopback port, with the streams already made.

It has neither shard limits nor throttling and slows down as data grows (facts/aws.md §4): good for a demo and for what
the API says, never for throughput. Any access key will do.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import boto3
import trio
from botocore.config import Config

from ingestor.core.errors import IngestorError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

_START_LIMIT_S: Final = 30.0  # 0.85 s on an idle machine
_POLL_S: Final = 0.05


class EmbeddedKinesisError(IngestorError):
    """The embedded Kinesis is not installed or does not start; the text says which and what to do."""


@asynccontextmanager
async def embedded_kinesis(
    streams: Sequence[tuple[str, int]], *, region: str = "us-east-1"
) -> AsyncGenerator[str, None]:
    """Run it with `streams` (name, shards) while the block lasts; gives its URL. Raises EmbeddedKinesisError."""
    if find_spec("moto") is None:
        raise EmbeddedKinesisError('the embedded Kinesis needs moto: pip install "ingestor[local]"')
    port = _free_port()
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "ingestor.local.moto_server", "-H", "127.0.0.1", "-p", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the demo, which still has something to read back
    )
    try:
        await _wait_until_open(process, port)
        endpoint_url = f"http://127.0.0.1:{port}"
        await trio.to_thread.run_sync(partial(_create, endpoint_url, region, streams))
        yield endpoint_url
    finally:
        await _stop(process)  # noqa: ASYNC102 - it shields itself and is bounded


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _wait_until_open(process: trio.Process, port: int) -> None:
    with trio.move_on_after(_START_LIMIT_S):
        while process.poll() is None:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(_POLL_S)
            else:
                await stream.aclose()
                return
    raise EmbeddedKinesisError(
        f"the embedded Kinesis did not open port {port} (exit code {process.poll()}); "
        f"`{sys.executable} -m ingestor.local.moto_server` may say why"
    )


def _create(endpoint_url: str, region: str, streams: Sequence[tuple[str, int]]) -> None:
    client = boto3.client(
        "kinesis",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106 - moto takes anything
        config=Config(proxies={}),
    )
    try:
        for name, shards in streams:
            client.create_stream(StreamName=name, ShardCount=shards)
            client.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 1})
    finally:
        client.close()


async def _stop(process: trio.Process) -> None:
    """End it at once: it keeps nothing, and asked politely it waits for the connections that our clients still hold."""
    process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()
