"""The endpoint of the soak sees what is missing, what came twice and what cannot be read, and keeps the heartbeats."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from ingestor.core import kpl
from ingestor.core.audit import AuditReport
from ingestor.serializer import Serializer
from tests.fakes.records import trades
from tests.soak.verifier import Verifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestor.core.model import EncodedRecord

DATA = "data"
BEATS = "beats"


@pytest.fixture
def verifier() -> Verifier:
    return Verifier(DATA)


def put(verifier: Verifier, stream: str, *payloads: bytes) -> Any:
    """Put entries as boto3 does."""
    entries = [{"Data": base64.b64encode(data).decode(), "PartitionKey": "COIN1USDT"} for data in payloads]
    body = json.dumps({"StreamName": stream, "Records": entries}).encode()
    return json.loads(verifier.answer("putrecords", body))


def blob(records: Sequence[EncodedRecord]) -> bytes:
    """Return one aggregated record."""
    return kpl.aggregate(records, "1", 50_000)[0].data


def account(verifier: Verifier) -> AuditReport:
    """Return what it tells."""
    return msgspec.json.decode(verifier.answer("/report", b""), type=AuditReport)


def test_what_is_missing_and_what_came_twice_is_told(verifier: Verifier) -> None:
    """Ten trades in two blobs, one of them left out and another sent twice, as a blob and alone."""
    records = [Serializer().pack(trade) for trade in trades(range(1, 11))]
    answer = put(verifier, DATA, blob(records[:4]), blob(records[5:]), records[2].data)
    assert answer["FailedRecordCount"] == 0
    assert len(answer["Records"]) == 3
    [told] = account(verifier).streams
    assert (told.delivered_ids, told.duplicates, told.disordered) == (9, 1, 0)
    assert [(hole.first, hole.last) for hole in told.undeclared] == [(5, 5)]


def test_what_cannot_be_read_is_counted(verifier: Verifier) -> None:
    """Garbage in the data stream is no record; beats are none of it."""
    put(verifier, DATA, b"what is this")
    put(verifier, BEATS, b"a beat")
    assert account(verifier) == AuditReport([], 1)


def ask(verifier: Verifier, operation: str, **request: Any) -> Any:
    """Ask as boto3 does."""
    return json.loads(verifier.answer(operation, json.dumps(request).encode()))


def read(verifier: Verifier, iterator: str) -> tuple[list[bytes], str]:
    """Return what one read gives, and where to go on."""
    page = ask(verifier, "getrecords", ShardIterator=iterator)
    return [base64.b64decode(record["Data"]) for record in page["Records"]], page["NextShardIterator"]


def test_beats_are_read_back_each_once(verifier: Verifier) -> None:
    """From the oldest on, and then what came since; from the newest on, only what comes."""
    put(verifier, BEATS, b"one", b"two")
    oldest = ask(verifier, "getsharditerator", StreamName=BEATS, ShardIteratorType="TRIM_HORIZON")["ShardIterator"]
    newest = ask(verifier, "getsharditerator", StreamName=BEATS, ShardIteratorType="LATEST")["ShardIterator"]
    found, after = read(verifier, oldest)
    assert found == [b"one", b"two"]
    put(verifier, BEATS, b"three")
    assert read(verifier, after)[0] == [b"three"]
    assert read(verifier, newest)[0] == [b"three"]


def test_beats_are_found_by_their_time(verifier: Verifier) -> None:
    """A time before all gives all, one after all gives none yet."""
    put(verifier, BEATS, b"one")
    for timestamp, found in ((0, [b"one"]), (4_000_000_000, [])):
        place = ask(
            verifier, "getsharditerator", StreamName=BEATS, ShardIteratorType="AT_TIMESTAMP", Timestamp=timestamp
        )
        assert read(verifier, place["ShardIterator"])[0] == found
