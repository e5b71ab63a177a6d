"""Kinesis engines on loopback, each a context manager that yields its URL: moto's server and kinesis-local (npm).

Facts of both: facts/aws.md §4. Neither limits or fails, which is what `tests.fakes.fault_proxy` is for; both are slow,
so volumes stay small.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import boto3
import pytest
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_kinesis import KinesisClient

EngineName: TypeAlias = Literal["moto", "kinesis-local"]
Run: TypeAlias = tuple[list[str], dict[str, str]]  # the command, and what it finds in its environment
ENGINES: tuple[EngineName, ...] = ("moto", "kinesis-local")
REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}  # no engine checks them
KINESIS_LOCAL = "kinesis-local@0.6.2"
INSTALLED_IN = (
    Path(__file__).parents[2] / ".nox" / "engines"
)  # kept between runs, so that the second one starts at once
STARTED_WITHIN_S = 30.0
LISTEN_ON_LOOPBACK = """\
// kinesis-local calls listen(port, ready): every interface, and no option against it.
const { Server } = require("node:net");
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ready) { return listen.call(this, port, "127.0.0.1", ready); };
"""


def free_port() -> int:
    """Return a port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without AWS settings and proxies, and with `extra`."""
    unwanted = (
        "AWS_",
        "INGESTOR__",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | extra


@contextmanager
def open_engine(name: EngineName) -> Iterator[str]:
    """Run an engine for the length of this block; skips the test when this machine cannot run it."""
    port = free_port()
    command, settings = moto_command(port) if name == "moto" else kinesis_local_command(port)
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=clean_environment(**settings), stdout=quiet, stderr=quiet) as process:
        try:
            wait_listening(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()  # nothing of it is kept


def moto_command(port: int) -> Run:
    """Return how to run moto's server."""
    return [sys.executable, "-m", "ingestor.local.moto_server", "-H", "127.0.0.1", "-p", str(port)], {}


def kinesis_local_command(port: int) -> Run:
    """Return how to run kinesis-local, installing it first where that has not happened yet."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("kinesis-local needs node, which is not on this machine's path")
    package = install_kinesis_local()
    preload = INSTALLED_IN / "listen_on_loopback.cjs"
    preload.write_text(LISTEN_ON_LOOPBACK)
    slow_steps = ("CREATE_STREAM", "DELETE_STREAM", "SPLIT_SHARD", "MERGE_SHARDS", "UPDATE_SHARD_COUNT")
    settings = {f"{step}_DURATION": "1ms" for step in slow_steps} | {
        "KINESIS_MOCK_CERT_PATH": str(package / "server.json"),  # it crashes where it cannot find this file
        "KINESIS_MOCK_PLAIN_PORT": str(port),
        "KINESIS_MOCK_TLS_PORT": str(free_port()),
        "LOG_LEVEL": "ERROR",
    }
    return [node, "--require", str(preload), str(package / "main.js")], settings


def install_kinesis_local() -> Path:
    """Return the package's folder, fetching it from npm the first time; skips the test where npm cannot."""
    package = INSTALLED_IN / "node_modules" / "kinesis-local"
    if (package / "main.js").exists():
        return package
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("kinesis-local needs npm, which is not on this machine's path")
    INSTALLED_IN.mkdir(parents=True, exist_ok=True)
    options = ["--prefix", str(INSTALLED_IN), "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run([npm, "install", *options, KINESIS_LOCAL], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install {KINESIS_LOCAL}: {done.stderr.strip()[-300:]}")
    return package


def wait_listening(port: int) -> None:
    """Wait until something accepts connections on `port`; TimeoutError when nothing does."""
    give_up_s = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < give_up_s:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port} after {STARTED_WITHIN_S:g} s")


def client_of(url: str, *, attempts: int = 3, read_timeout_s: float = 30.0) -> KinesisClient:
    """Return a plain boto3 client of the engine at `url`, for making streams and reading them back."""
    session = boto3.session.Session(
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=REGION,
    )
    policy = Config(
        proxies={}, read_timeout=read_timeout_s, retries={"mode": "standard", "total_max_attempts": attempts}
    )
    client: KinesisClient = session.client("kinesis", endpoint_url=url, config=policy)
    return client


def create_stream(client: KinesisClient, name: str, shards: int = 2) -> None:
    """Make a stream and wait until it can be written."""
    client.create_stream(StreamName=name, ShardCount=shards)
    client.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30})


def stream_name_of(test: str) -> str:
    """Return a stream name that belongs to one test alone."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", test).strip("-")[-100:]
