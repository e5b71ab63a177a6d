"""Our blobs, read by the library that AWS publishes for JavaScript (its Python twin: `tests/core/test_kpl.py`)."""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64decode, b64encode
from random import Random
from typing import TYPE_CHECKING

import pytest

from ingestor.core.kpl import aggregate
from ingestor.core.lanes import lane_point
from ingestor.core.model import EncodedRecord

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

PACKAGE = "aws-kinesis-agg@4.2.8"
READ_BLOBS = """\
const { deaggregateSync } = require("aws-kinesis-agg");
const blobs = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const verifyDigests = true;
process.stdout.write(JSON.stringify(blobs.map((data) => {
  let found = null;
  deaggregateSync({ data, partitionKey: "a", sequenceNumber: "1" }, verifyDigests, (error, records) => {
    if (error) throw error;
    found = records.map((record) => [record.partitionKey, record.explicitPartitionKey, record.data]);
  });
  return found;
})));
"""


@pytest.fixture
def node_reader(tmp_path: Path) -> list[str]:
    """Install the library into a folder of its own; return the command that reads blobs with it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not on this machine's path")
    options = ["--prefix", str(tmp_path), "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run([npm, "install", *options, PACKAGE], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install {PACKAGE}: {done.stderr.strip()[-300:]}")
    script = tmp_path / "read_blobs.cjs"
    script.write_text(READ_BLOBS)
    return [node, str(script)]


def test_the_javascript_library_of_aws_agrees(node_reader: list[str]) -> None:
    """Keys, the one explicit hash key and the data of every record, digests verified, over many full blobs."""
    rng = Random(7)
    records = [
        EncodedRecord(f"SYM{rng.randrange(300)}USDT", rng.randbytes(rng.choice([0, 70, 90, 130, 400, 3000])), None)
        for _ in range(5000)
    ]
    point = str(lane_point(3, 8))
    blobs, done = [], 0
    while done < len(records):
        entry, count = aggregate(records[done:], point, 49_900)
        blobs.append(b64encode(entry.data).decode())
        done += count
    assert len(blobs) > 10
    answer = subprocess.run(node_reader, input=json.dumps(blobs), capture_output=True, text=True, check=True)
    theirs = [(key, hash_key, b64decode(data)) for inner in json.loads(answer.stdout) for key, hash_key, data in inner]
    assert theirs == [(record.partition_key, point, record.data) for record in records]
