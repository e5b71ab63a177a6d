"""Dead letters in moto's SQS: what a person finds in the queue is the letter."""

from __future__ import annotations

import base64
import json
import time
from functools import partial
from typing import TYPE_CHECKING

import boto3
import pytest
from prometheus_client import CollectorRegistry

from ingestor.aws import AwsApi, QueueClient, make_sqs_client
from ingestor.config import Timeouts
from ingestor.core.model import DeadLetter
from ingestor.dead_letter import FileDeadLetters, LetterFiles, QueueDeadLetters, read_letters
from ingestor.metrics import Metrics
from ingestor.threads import open_threads
from tests.integration.engines import CREDENTIALS, REGION

if TYPE_CHECKING:
    from pathlib import Path

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
