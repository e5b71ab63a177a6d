"""Dead letters in moto's SQS: what a person finds in the queue is the letter, and can be sent again from there."""

from __future__ import annotations

import base64
import io
import json
import time
from functools import partial
from typing import TYPE_CHECKING

import boto3
import pytest
import trio
from prometheus_client import CollectorRegistry

from ingestor import replay
from ingestor.aws import AwsApi, QueueClient, make_sqs_client
from ingestor.config import Config, Timeouts
from ingestor.core.model import DeadLetter
from ingestor.dead_letter import FileDeadLetters, LetterFiles, QueueDeadLetters, message, read_letters
from ingestor.inspection import open_reader
from ingestor.metrics import Metrics
from ingestor.reader import OLDEST
from ingestor.replay import Choice
from ingestor.serializer import Serializer
from ingestor.threads import open_threads
from tests.fakes.records import trade
from tests.integration.engines import CREDENTIALS, REGION, client_of, create_stream, stream_name_of

if TYPE_CHECKING:
    from pathlib import Path

    from ingestor.reader import ShardPage

pytestmark = pytest.mark.integration


async def test_letters_arrive_in_the_queue_and_the_largest_in_a_file(
    moto_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a call may carry, the largest message that a queue takes, and one that is larger."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    sqs = boto3.client("sqs", endpoint_url=moto_url, region_name=REGION)
    queue_url = sqs.create_queue(QueueName="letters")["QueueUrl"]
    metrics = Metrics(CollectorRegistry())
    files = FileDeadLetters(LetterFiles(tmp_path, time.time_ns), open_threads(1), time.time_ns, metrics)
    queue = QueueClient(AwsApi(partial(make_sqs_client, queue_url, REGION, Timeouts()), open_threads(1)))
    letters = QueueDeadLetters(queue, queue_url, files, time.time_ns, metrics)
    small = [DeadLetter(reason="gave_up", detail=str(number), raw=b"\x00\xff", at_ms=1) for number in range(12)]
    large = DeadLetter(reason="gave_up", detail="large", raw=bytes(780_000), at_ms=1)
    too_large = DeadLetter(reason="too_large", detail="too large", raw=bytes(790_000), at_ms=1)
    await letters.write([*small, large, too_large])
    await letters.close()
    found = {}
    while messages := sqs.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10).get("Messages"):
        for each in messages:
            letter = json.loads(each.get("Body", ""))
            found[letter["detail"]] = base64.b64decode(letter["raw_base64"])
            sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=each.get("ReceiptHandle", ""))
    assert found == {each.detail: each.raw for each in [*small, large]}
    assert [stored.letter.detail for stored in read_letters(tmp_path)] == ["too large"]


async def test_letters_of_the_queue_are_listed_sent_again_once_and_deleted(
    moto_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Through boto3: `list` takes nothing away, `replay` delivers and deletes, a second one finds nothing."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    stream = stream_name_of(request.node.name)
    await trio.to_thread.run_sync(create_stream, client_of(moto_url), stream, 1)
    sqs = boto3.client("sqs", endpoint_url=moto_url, region_name=REGION)
    queue_url = sqs.create_queue(QueueName=stream[:80])["QueueUrl"]
    for number in range(1, 13):
        record = DeadLetter(reason="gave_up", detail="why", raw=Serializer().encode(trade(number)), at_ms=number)
        sqs.send_message(QueueUrl=queue_url, MessageBody=message(record, number))
    sqs.send_message(QueueUrl=queue_url, MessageBody="hello")
    settings = {
        "kinesis": {"stream_name": stream, "region": REGION, "endpoint_url": moto_url},
        "dead_letter": {"kind": "sqs", "queue_url": queue_url, "directory": str(tmp_path / "marks")},
    }
    config = Config.model_validate(settings)
    out = io.StringIO()
    await replay.list_letters(config, Choice(), as_json=True, out=out)
    assert sorted(json.loads(line)["first_seen_ms"] for line in out.getvalue().splitlines()) == list(range(1, 13))
    for sums in ("12 sent, 0 sent before, 0 refused\n", "0 sent, 0 sent before, 0 refused\n"):
        assert await replay.replay(config, Choice(), is_forced=False, is_dry=False, out=out) == 0
        assert out.getvalue().endswith(f"\n{sums}")
    stored: list[int] = []

    async def collect(page: ShardPage) -> None:
        stored.extend(Serializer().decode(payload.data).sequence for payload in page.payloads)

    await open_reader(config.kinesis, stream).read(OLDEST, collect)
    assert stored == list(range(1, 13))
    [left] = sqs.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10)["Messages"]
    assert left.get("Body") == "hello"
