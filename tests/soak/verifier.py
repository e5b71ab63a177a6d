"""A Kinesis that verifies and forgets: every record of the data stream is opened, decoded and held against all before.

What is kept is the audit's account (`ingestor/core/audit.py`): which ids came, came twice, came late or were declared,
as intervals, so it stays as small as there are few holes, however long it runs. The heartbeat stream is really there,
short: tasks read it back when they start. `GET /report` tells the account, an `AuditReport` as JSON.

Run it as `python -m tests.soak.verifier DATA_STREAM`; its first line of output is the port.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections import deque
from typing import Any, Final

import msgspec

from ingestor.core.audit import Audit
from ingestor.core.errors import DecodeError
from ingestor.core.kpl import disaggregate
from ingestor.serializer import Serializer
from tests.benchmarks.endpoint import SHARD, Endpoint, serve_endpoint

BEATS_KEPT: Final = 2_000
VALUES_KEPT: Final = 50_000  # of events, to be held against what comes again; retries come within seconds


class Verifier(Endpoint):
    """One shard of each stream, the data stream without anything to read."""

    def __init__(self, data_stream: str) -> None:
        super().__init__()
        self._data_stream = data_stream
        self._audit = Audit(VALUES_KEPT)
        self._decode = Serializer().decode
        self._beats: deque[dict[str, Any]] = deque(maxlen=BEATS_KEPT)
        self._beats_written = 0

    def answer(self, operation: str, body: bytes) -> bytes:
        """Answer as Kinesis would, or tell the account."""
        match operation:
            case "/report":
                return msgspec.json.encode(self._audit.report())
            case "getsharditerator":
                return json.dumps({"ShardIterator": self._iterator(json.loads(body))}).encode()
            case "getrecords":
                return json.dumps(self._read(json.loads(body)["ShardIterator"])).encode()
            case _:
                return super().answer(operation, body)

    def is_data(self, stream: str) -> bool:
        """Whether a stream is the one that is verified."""
        return stream == self._data_stream

    def put(self, call: Any, body_bytes: int) -> Any:
        """Take the entries of a call."""
        is_data = self.is_data(call["StreamName"])
        for entry in call["Records"]:
            if is_data:
                self._verify(base64.b64decode(entry["Data"]), entry["PartitionKey"])
            else:
                self._beats.append(
                    {
                        "Data": entry["Data"],
                        "PartitionKey": entry["PartitionKey"],
                        "SequenceNumber": str(self._beats_written),
                        "ApproximateArrivalTimestamp": time.time(),
                    }
                )
                self._beats_written += 1
        answers = [{"SequenceNumber": "1", "ShardId": SHARD}] * len(call["Records"])
        return {"FailedRecordCount": 0, "Records": answers}

    def _verify(self, data: bytes, partition_key: str) -> None:
        try:
            for inner in disaggregate(data, partition_key):
                self._audit.add(self._decode(inner.data))
        except DecodeError:
            self._audit.add_undecodable()

    def _iterator(self, request: dict[str, Any]) -> str:
        """Return the number of the beat to begin with, behind the name of the stream."""
        stream = request["StreamName"]
        match request["ShardIteratorType"]:
            case "LATEST":
                first = self._beats_written
            case "AFTER_SEQUENCE_NUMBER":
                first = int(request["StartingSequenceNumber"]) + 1
            case "AT_TIMESTAMP":
                later = (each for each in self._beats if each["ApproximateArrivalTimestamp"] >= request["Timestamp"])
                first = int(next(later, {"SequenceNumber": self._beats_written})["SequenceNumber"])
            case _:
                first = 0
        return f"{stream}/{first}"

    def _read(self, iterator: str) -> dict[str, Any]:
        stream, _, first = iterator.rpartition("/")
        oldest = self._beats_written - len(self._beats)
        found = [] if self.is_data(stream) else list(self._beats)[max(0, int(first) - oldest) :]
        return {
            "Records": found,
            "NextShardIterator": iterator if self.is_data(stream) else f"{stream}/{self._beats_written}",
            "MillisBehindLatest": 0,
        }


if __name__ == "__main__":
    asyncio.run(serve_endpoint(Verifier(sys.argv[1])))
