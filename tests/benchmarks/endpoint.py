"""A Kinesis that counts and forgets: answers PutRecords and the few questions that a producer asks at its start.

What it is sent is really read: JSON parsed, data decoded from base64, blobs opened as far as counting their records
needs. `GET /state` tells how many records of the data stream came, how many calls, entries and bytes.

Run it as `python -m tests.benchmarks.endpoint [MILLISECONDS]`, which a put then takes; its first line of output is the
port.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

HEARTBEATS = "ingestor-heartbeat"
MAGIC = b"\xf3\x89\x9a\xc2"
RECORD_TAG = 0x1A
PAYLOAD_UNIT_BYTES = 25_000
SHARD = "shardId-000000000000"
SHARDS = {
    "Shards": [
        {
            "ShardId": SHARD,
            "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": str(2**128 - 1)},
            "SequenceNumberRange": {"StartingSequenceNumber": "1"},
        }
    ]
}
NO_SHARDS: Any = {"Shards": []}  # of the data: without a map there are no budgets, and it is our code that is measured
SUMMARY = {
    "StreamDescriptionSummary": {
        "StreamName": "any",
        "StreamARN": "arn:aws:kinesis:us-east-1:000000000000:stream/any",
        "StreamStatus": "ACTIVE",
        "RetentionPeriodHours": 24,
        "StreamCreationTimestamp": 1_700_000_000,
        "EnhancedMonitoring": [],
        "OpenShardCount": 1,
    }
}
NO_RECORDS = {"Records": [], "NextShardIterator": "next", "MillisBehindLatest": 0}
ANSWERS: dict[str, Any] = {
    "ListShards": SHARDS,
    "DescribeStreamSummary": SUMMARY,
    "GetShardIterator": {"ShardIterator": "first"},
    "GetRecords": NO_RECORDS,
}


def count_records(data: bytes) -> int:
    """Return how many records of a user are in one Kinesis record: those of a blob, or one."""
    if not data.startswith(MAGIC):
        return 1
    records = 0
    position, end = 4, len(data) - 16
    while position < end:
        tag = data[position]
        position += 1
        size = shift = 0
        while True:
            octet = data[position]
            position += 1
            size |= (octet & 0x7F) << shift
            if octet < 0x80:
                break
            shift += 7
        position += size
        records += tag == RECORD_TAG
    return records


class Endpoint:
    """Counts what comes."""

    def __init__(self, answer_after_s: float = 0.0) -> None:
        self._answer_after_s = answer_after_s
        self._totals = Counter[str]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                body = await reader.readexactly(size)
                operation = head.partition(b"kinesis_20131202.")[2].partition(b"\r\n")[0].decode()
                answer = self.answer(operation or head.split(b" ", 2)[1].decode(), body)
                if self._answer_after_s and operation == "putrecords":
                    await asyncio.sleep(self._answer_after_s)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(answer), answer)
                )
                await writer.drain()

    def answer(self, operation: str, body: bytes) -> bytes:
        """Answer an operation of Kinesis (its name in lower case), or the path that is asked for."""
        if operation == "putrecords":
            return json.dumps(self.put(json.loads(body), len(body))).encode()
        if operation == "listshards" and self.is_data(json.loads(body)["StreamName"]):
            return json.dumps(NO_SHARDS).encode()
        by_name = {name.lower(): answer for name, answer in ANSWERS.items()}
        return json.dumps(by_name.get(operation, self._totals)).encode()

    def is_data(self, stream: str) -> bool:
        """Whether a stream is not that of the heartbeats."""
        return stream != HEARTBEATS

    def put(self, call: Any, body_bytes: int) -> Any:
        """Take the entries of a call."""
        entries = call["Records"]
        if self.is_data(call["StreamName"]):
            payloads = [base64.b64decode(entry["Data"]) for entry in entries]
            self._totals.update(
                records=sum(map(count_records, payloads)),
                calls=1,
                entries=len(entries),
                wire_bytes=body_bytes,
                data_bytes=sum(map(len, payloads)),
                payload_units=sum(-(-len(data) // PAYLOAD_UNIT_BYTES) for data in payloads),
            )
        return {"FailedRecordCount": 0, "Records": [{"SequenceNumber": "1", "ShardId": SHARD}] * len(entries)}


async def serve_endpoint(endpoint: Endpoint) -> None:
    """Serve until killed; the first line of output is the port."""
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0, limit=16 * 2**20)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - how the parent learns the port
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve_endpoint(Endpoint(float(sys.argv[1]) / 1000 if len(sys.argv) > 1 else 0.0)))
