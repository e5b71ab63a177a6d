"""Secrets planted wherever one can come from, an AWS that repeats what it is sent, and a search of all that comes out.

The service and the commands run as processes, as an operator runs them. What they are asked for by the endpoint here is
refused with the very headers of the request, as AWS refuses a wrong signature.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio
import yaml

from ingestor.local.faults import Inject
from tests.integration.engines import clean_environment
from tests.integration.service import NOWHERE, configuration, new_venue, open_venue, run_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.integration

# Made up, and each of a shape of its own, so that it is known what was found and where.
ACCESS_KEY = "ASIAQ7CANARYKEY00001"
SECRET_KEY = "q7Canary/SecretKey+0002abcdefghijklmnopqr"  # noqa: S105 - planted
TOKEN = "FwoGZXIvYXdzEQ7CANARYTOKEN0003//////////wEaDAbCdEf=="  # noqa: S105 - planted
PROXY_PASSWORD = "q7canary-proxy-0004"  # noqa: S105 - planted
OTHER_SECRET = "q7canary-other-0005"  # noqa: S105 - planted
AUTHORIZATION = "q7canary-authorization-0006"
OPERATIONS = {"PutRecords", "ListShards", "DescribeStreamSummary", "PutMetricData", "SendMessageBatch"}
CANARIES = (ACCESS_KEY, SECRET_KEY, TOKEN, PROXY_PASSWORD, OTHER_SECRET, AUTHORIZATION)
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_SESSION_TOKEN": TOKEN}
PLANTED = {
    **NOWHERE,
    "MY_DATABASE_PASSWORD": OTHER_SECRET,
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": AUTHORIZATION,
    "HTTP_PROXY": f"http://somebody:{PROXY_PASSWORD}@127.0.0.1:9",
    "HTTPS_PROXY": f"http://somebody:{PROXY_PASSWORD}@127.0.0.1:9",
}


def found_in(text: str) -> list[str]:
    """Return the canaries in a text, and any signature of a request."""
    signed = ["a signature"] if "Signature=" in text.replace("Signature=***", "") else []
    return [canary for canary in CANARIES if canary in text] + signed


class Parrot:
    """Takes any call of AWS and refuses it with what it was sent; `refused` counts them by operation."""

    def __init__(self) -> None:
        self.url = ""
        self.is_told = False  # that whole calls fail; from then on single entries do
        self.refused: dict[str, int] = {}

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, self._talk, 0, host="127.0.0.1"))
            self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            task_status.started()

    async def _talk(self, stream: trio.SocketStream) -> None:
        try:
            while True:
                connection = h11.Connection(h11.SERVER)
                request, body = await _read(connection, stream)
                if request is None:
                    return
                for part in self._answer(connection, request, body):
                    await stream.send_all(part)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass

    def _answer(self, connection: h11.Connection, request: h11.Request, body: bytes) -> list[bytes]:
        headers = {name.decode(): value.decode() for name, value in request.headers}
        operation = headers.get("x-amz-target", "").rpartition(".")[2]
        self.refused[operation] = self.refused.get(operation, 0) + 1
        echo = "\n".join([*(f"{name}:{value}" for name, value in headers.items()), repr(headers), json.dumps(headers)])
        status, answer = 403, {"__type": "InvalidSignatureException", "message": f"The Canonical String was\n{echo}"}
        if operation == "PutRecords" and self.is_told and b"-heartbeat" not in body:
            failed = {"ErrorCode": "Canary", "ErrorMessage": echo}
            status, answer = 200, _all_failed(failed, len(json.loads(body)["Records"]))
        content = json.dumps(answer).encode()
        names = [("content-type", "application/x-amz-json-1.1"), ("content-length", str(len(content)))]
        parts = (
            connection.send(h11.Response(status_code=status, headers=names)),
            connection.send(h11.Data(data=content)),
            connection.send(h11.EndOfMessage()),
        )
        return [part or b"" for part in parts]


def _all_failed(failed: dict[str, str], count: int) -> dict[str, Any]:
    return {"FailedRecordCount": count, "Records": [failed] * count}


async def _read(connection: h11.Connection, stream: trio.SocketStream) -> tuple[h11.Request | None, bytes]:
    request, body = None, b""
    while True:  # noqa: ASYNC913 - ends with what was received, or waits for more
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            return request if isinstance(event, h11.EndOfMessage) else None, body


@asynccontextmanager
async def open_parrot() -> AsyncIterator[Parrot]:
    parrot = Parrot()
    async with trio.open_nursery() as nursery:
        await nursery.start(parrot.serve)
        yield parrot
        nursery.cancel_scope.cancel()


def settings_for(parrot: Parrot, urls: Any, folder: Path, **logging: str) -> dict[str, Any]:
    """Configure everything that can fail towards AWS, and dead letters of both origins."""
    return configuration(
        urls,
        parrot.url,
        "canaries",
        folder,
        logging={"level": "debug", "format": "json"} | logging,
        dead_letter={"kind": "sqs", "queue_url": f"{parrot.url}/1/letters", "directory": str(folder / "letters")},
        kinesis={**_kinesis(parrot), "retry": {"max_attempts": 2, "initial_s": 0.01, "max_s": 0.02}},
        metrics={"cloudwatch": {"mode": "api", "interval_s": 1}},
        service={"shutdown_grace_s": 7},
        spool={"directory": str(folder / "spool")},
    )


def _kinesis(parrot: Parrot) -> dict[str, Any]:
    return {
        "stream_name": "canaries", "region": "us-east-1", "endpoint_url": parrot.url, "blob_bytes": 2_000,
        "batch": {"flush_interval_s": 0.2}, "timeouts": {"connect_s": 1, "read_s": 2},
    }  # fmt: skip


def in_files(folder: Path) -> str:
    """Return everything that was written to disk, as text."""
    return "\n".join(
        f"{path}\n{path.read_bytes().decode(errors='replace')}" for path in folder.rglob("*") if path.is_file()
    )


def credentials_file(folder: Path) -> dict[str, str]:
    """Plant the keys in a file instead, so that nothing in the environment tells what they are."""
    path = folder / "aws-credentials"
    path.write_text(
        f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\naws_session_token={TOKEN}\n"
    )
    return {"AWS_SHARED_CREDENTIALS_FILE": str(path)}


def is_seen(said: str, out: Path) -> bool:
    """Say whether both ways to fail have come to where they are told."""
    if "InvalidSignatureException" not in said:
        return False
    return '"reason":"gave_up"' in in_files(out / "letters")


@pytest.mark.parametrize("line_format", ["json", "console"])
async def test_the_service_tells_no_secret(line_format: str, tmp_path: Path) -> None:
    """Not in its log at the level debug, nor on any address, nor in a dead letter, whatever AWS repeats to it."""
    out = tmp_path / "out"
    out.mkdir()
    keys = KEYS if line_format == "json" else credentials_file(tmp_path)
    script = [Inject(at_s=0.5, what="invalid_json"), Inject(at_s=0.5, what="unknown_event")]
    async with open_parrot() as parrot, open_venue(new_venue(script)) as urls:
        settings = settings_for(parrot, urls, out, format=line_format)
        environment = PLANTED | keys | {"AWS_ENDPOINT_URL_CLOUDWATCH": parrot.url}
        async with run_service(settings, out, environment) as service:
            said = ""
            with trio.fail_after(60):
                while not (parrot.refused.keys() >= OPERATIONS and is_seen(said, out)):
                    await trio.sleep(0.1)
                    pages = [await service.get(path) for path in ("/status", "/health", "/ready", "/metrics", "/")]
                    said += "".join(page.text for page in pages)
                    parrot.is_told = "InvalidSignatureException" in said
                    said += "".join(f"{page.headers}" for page in pages)
            await service.stop()
            log = service.log()
    assert "InvalidSignatureException" in log
    assert "InvalidSignatureException" in said
    letters = in_files(out / "letters")
    assert "Canary" in letters
    for place, text in (("the log", log), ("an answer", said), ("a file", in_files(out).replace(log, ""))):
        assert (place, found_in(text)) == (place, [])


def say(folder: Path, environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "ingestor", *arguments]
    environ = clean_environment(**environment)
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


async def test_no_command_tells_a_secret(tmp_path: Path) -> None:
    """Neither what checks the configuration, the venue and AWS, nor what reads streams, nor what loads the past."""
    async with open_parrot() as parrot, open_venue(new_venue()) as urls:
        good, proxied, wrong = tmp_path / "good.yaml", tmp_path / "proxied.yaml", tmp_path / "wrong.yaml"
        settings = settings_for(parrot, urls, tmp_path)
        good.write_text(yaml.safe_dump(settings))
        venue = {"rest_url": "https://venue.test", "websocket_url": "wss://127.0.0.1:9"}
        far = settings | {
            "binance": {**venue, "rest": {"max_attempts": 1}},
            "kinesis": {"endpoint_url": "https://kinesis.test", "timeouts": {"connect_s": 1, "read_s": 1}},
            "dead_letter": {"kind": "sqs", "queue_url": "https://sqs.test/1/q"},
        }  # fmt: skip
        proxied.write_text(yaml.safe_dump(far))
        wrong.write_text(
            f"kinesis: {{region: '{OTHER_SECRET} ', aws_secret_access_key: '{SECRET_KEY}', endpoint_url: 'https://me:{PROXY_PASSWORD}@x'}}\n"
            f"channels: 'http://me:{PROXY_PASSWORD}@x'\nhealth: {{port: {ACCESS_KEY}}}\n"
        )
        environment = PLANTED | credentials_file(tmp_path)
        span = ("--symbol", "BTCUSDT", "--stream", "trade", "--from-id", "1", "--to-id", "5", "--plain")
        commands = {
            ("check", "--config", str(good)): 0,
            ("check", "--config", str(wrong)): 2,
            ("check", "--connect", "--config", str(good)): 1,
            ("check", "--connect", "--config", str(proxied)): 1,
            ("tail", "--config", str(good)): 1,
            ("backfill", "--config", str(good), *span): 1,
        }
        results: dict[tuple[str, ...], subprocess.CompletedProcess[str]] = {}

        async def run(arguments: tuple[str, ...]) -> None:
            call = lambda: say(tmp_path, environment, *arguments)  # noqa: E731
            results[arguments] = await trio.to_thread.run_sync(call, limiter=limiter)

        limiter = trio.CapacityLimiter(3)
        async with trio.open_nursery() as nursery:
            for arguments in commands:
                nursery.start_soon(run, arguments)
    for arguments, code in commands.items():
        result = results[arguments]
        text = result.stdout + result.stderr
        assert (arguments, result.returncode, found_in(text)) == (arguments, code, []), text
        assert text
    assert "127.0.0.1:9" in results["check", "--connect", "--config", str(proxied)].stdout


def test_the_search_finds_what_is_there() -> None:
    """A canary that nobody could find would prove nothing."""
    assert found_in(f"x {TOKEN} {SECRET_KEY}") == [SECRET_KEY, TOKEN]
    assert found_in("Signature=fe5f") == ["a signature"]
    assert found_in("Signature=***") == []
