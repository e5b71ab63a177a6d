"""The ordinary implementation, which the whole line is measured against: clear, correct on a good day, and usual.

trio-websocket, json, Decimal, fastavro, put_records of 500 in a thread. No repair, no order, no retry of the failed
part: all that would only make it slower. Run it as `python -m tests.benchmarks.ordinary FEED_URL ENDPOINT_URL`.
"""

from __future__ import annotations

import io
import json
import sys
import time
from decimal import Decimal
from functools import partial
from typing import Any

import boto3
import fastavro.schema
import trio
from trio_websocket import open_websocket_url

from ingestor.resources import read_schema

PUT_RECORDS = 500
STREAM = "bitcoin-market-data"


def record_of(event: dict[str, Any], received_at: int) -> dict[str, Any]:
    """Normalise a trade."""
    return {
        "symbol": event["s"],
        "timestamp": event["T"],
        "price": Decimal(event["p"]),
        "volume": Decimal(event["q"]),
        "source": "websocket",
        "event_type": "trade",
        "sequence": event["t"],
        "received_at": received_at,
        "trade": {"trade_id": event["t"], "buyer_is_maker": event["m"]},
    }


async def run(feed_url: str, endpoint_url: str) -> None:
    """Carry trades until killed."""
    schema = fastavro.parse_schema(json.loads(read_schema("market_data")))
    canonical = fastavro.schema.to_parsing_canonical_form(json.loads(read_schema("market_data")))
    header = b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    client = boto3.client("kinesis", region_name="us-east-1", endpoint_url=endpoint_url)
    waiting: list[Any] = []
    async with open_websocket_url(feed_url) as connection:
        while True:
            event = json.loads(await connection.get_message())["data"]
            out = io.BytesIO()
            fastavro.schemaless_writer(out, schema, record_of(event, time.time_ns() // 1000))
            waiting.append({"Data": header + out.getvalue(), "PartitionKey": event["s"]})
            if len(waiting) == PUT_RECORDS:
                await trio.to_thread.run_sync(partial(client.put_records, StreamName=STREAM, Records=waiting))
                waiting = []


if __name__ == "__main__":
    trio.run(run, sys.argv[1], sys.argv[2])
