"""The examples of the README, run as they stand there, on a stream that the service's own code wrote."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from ingestor.core.kpl import aggregate
from ingestor.core.lanes import lane_point
from ingestor.core.model import EncodedRecord
from ingestor.serializer import Serializer
from tests.fakes.market_records import market_record
from tests.integration.engines import (
    CREDENTIALS,
    REGION,
    clean_environment,
    client_of,
    create_stream,
    free_port,
    stream_name_of,
)

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FIRST, LAST = 6_400_000_001, 6_400_000_300
POINT = str(lane_point(3, 8))


def example(name: str) -> str:
    """Return the code below a comment of the README."""
    found = re.search(rf"<!-- {name}: [^\n]* -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def stream(moto_url: str, request: pytest.FixtureRequest) -> str:
    """Write three hundred trades in blobs, and a last one by itself, as `aggregation: none` would."""
    name, client, serializer = stream_name_of(request.node.name), client_of(moto_url), Serializer()
    create_stream(client, name)
    trades = [market_record(sequence=number) for number in range(FIRST, LAST + 1)]
    records = [EncodedRecord(trade.symbol, serializer.encode(trade), None) for trade in trades]
    while records[1:]:
        entry, count = aggregate(records[:-1], POINT, 5_000)
        client.put_record(StreamName=name, Data=entry.data, PartitionKey=entry.partition_key, ExplicitHashKey=POINT)
        records = records[count:]
    client.put_record(StreamName=name, Data=records[0].data, PartitionKey="BTCUSDT", ExplicitHashKey=POINT)
    return name


def test_the_python_example_reads_every_record(moto_url: str, stream: str) -> None:
    """Out of blobs or not, in order, with exact decimals, by whichever released schema it was written."""
    code = example("example").replace("bitcoin-market-data", stream)
    environment = clean_environment(
        **CREDENTIALS, AWS_DEFAULT_REGION=REGION, AWS_ENDPOINT_URL_KINESIS=moto_url, no_proxy="127.0.0.1"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"BTCUSDT trade {number} 86412.57000000" for number in range(FIRST, LAST + 1)]


def test_the_lambda_example_reads_every_record(moto_url: str, stream: str) -> None:
    """As Lambda hands records over: in base64, with their metadata around them."""
    client = client_of(moto_url)
    shard = client.list_shards(StreamName=stream)["Shards"]
    events = [to_lambda(record) for each in shard for record in read(client, stream, each["ShardId"])]
    namespace: dict[str, Any] = {}
    definitions, _, _ = example("example").partition("kinesis = boto3")
    out = io.StringIO()
    with redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        exec(definitions + example("lambda"), namespace)  # noqa: S102 - it is ours
        namespace["handler"](json.loads(json.dumps({"Records": events})), None)
    assert out.getvalue().splitlines() == [f"BTCUSDT {number}" for number in range(FIRST, LAST + 1)]


def test_an_emulator_of_ones_own_has_its_streams() -> None:
    """Whoever pastes all lines at once does not wait until it listens."""
    found = re.search(r"\n(python -m ingestor\.local\.moto_server .*?)\ningestor check", README.read_text(), re.DOTALL)
    assert found is not None
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    asked = (
        f"import boto3; print(boto3.client('kinesis', 'us-east-1', endpoint_url='{url}').list_streams()['StreamNames'])"
    )
    lines = ("set -e", "trap 'kill $!' EXIT", found[1].replace("4566", port), f'python -c "{asked}"')
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = clean_environment(**CREDENTIALS, PATH=path, no_proxy="127.0.0.1")
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['bitcoin-market-data', 'ingestor-heartbeat']\n"


def read(client: Any, stream: str, shard_id: str) -> list[dict[str, Any]]:
    """Return all records of a shard."""
    place = client.get_shard_iterator(StreamName=stream, ShardId=shard_id, ShardIteratorType="TRIM_HORIZON")
    records: list[dict[str, Any]] = client.get_records(ShardIterator=place["ShardIterator"])["Records"]
    return records


def to_lambda(record: dict[str, Any]) -> dict[str, Any]:
    """Spell a record as Lambda does."""
    return {
        "eventSource": "aws:kinesis",
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": record["PartitionKey"],
            "sequenceNumber": record["SequenceNumber"],
            "approximateArrivalTimestamp": record["ApproximateArrivalTimestamp"].timestamp(),
            "data": b64encode(record["Data"]).decode(),
        },
    }
