"""Part (d): a million archive trades, from the zip to encoded records, beside the loop that one would write.

Ours is the real way: `Backfill` with its archive client (the file comes from disk instead of the network), the channel,
the serializer. The other one is csv, a dict with Decimals for every row, fastavro. Both run in processes of their own.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
import tempfile
import time
import zipfile
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import fastavro
import httpx
import trio

from ingestor.archive_client import ArchiveClient
from ingestor.backfill import Backfill, HoleWatcher, Todo
from ingestor.channels import open_batch_channel
from ingestor.config import Rest
from ingestor.core.claims import Intervals
from ingestor.core.model import Subscription
from ingestor.loading import collect_rarely
from ingestor.metrics import open_metrics
from ingestor.resources import read_schema
from ingestor.rest_client import RestClient
from ingestor.serializer import Serializer, serialize
from ingestor.threads import open_threads
from tests.benchmarks.children import report, run_child

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestor.channels import BatchReceiver
    from ingestor.core.model import DeadLetter, EncodedBatch

OURS: Final = "ours"
ORDINARY: Final = "csv, dict, fastavro"
ROWS: Final = {OURS: 1_000_000, ORDINARY: 100_000}  # it is slow, and every row costs the same
ROUNDS: Final = 3
DAY_MS: Final = 1_790_000_000_000 // 86_400_000 * 86_400_000
NAME: Final = "BTCUSDT-trades"


def write_day(folder: Path, rows: int) -> Path:
    """Write the zip of a day, as the venue would, with the repetition of prices that a real day has."""
    random = Random(5)
    path = folder / "day.zip"
    price = 6_000_000
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        io.TextIOWrapper(archive.open("day.csv", "w"), encoding="ascii") as table,
    ):
        for number in range(rows):
            price += random.choice((-1, 0, 0, 0, 1))
            quantity = random.choice((100, 250, 1_000, random.randrange(10, 90_000)))
            at_us = (DAY_MS + number * 80_000_000 // rows) * 1_000
            quote = price * quantity
            table.write(
                f"{5_000_000_000 + number},{price // 100}.{price % 100:02d}000000,0.{quantity:05d}000,"
                f"{quote // 10**7}.{quote % 10**7:07d}0,{at_us},{random.random() < 0.5},True\n"
            )
    return path


class Letters:
    """Nothing should come here."""

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Fail."""
        raise AssertionError(letters)


class Venue:
    """The archive's host and the REST API, as far as this needs them."""

    def __init__(self, path: Path, rows: int) -> None:
        self._content = path.read_bytes()
        self._digest = hashlib.sha256(self._content).hexdigest()
        self._rows = rows

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        await trio.lowlevel.checkpoint()
        path, params = request.url.path, request.url.params
        if path.endswith(".CHECKSUM"):
            return httpx.Response(200, text=f"{self._digest}  {NAME}.zip\n")
        if path.startswith("/data/"):
            content, self._content = self._content, b""  # the file is on disk then, and need not stay in memory
            return httpx.Response(200, content=content)
        if path.endswith("time"):
            return httpx.Response(200, json={"serverTime": DAY_MS + 2 * 86_400_000})
        trade_id = int(params["fromId"])
        number = trade_id - 5_000_000_000
        at_ms = DAY_MS + number * 80_000_000 // self._rows
        row = {"id": trade_id, "price": "1", "qty": "1", "time": at_ms, "isBuyerMaker": True}
        return httpx.Response(200, json=[row])


async def run_ours(path: Path, rows: int) -> dict[str, float]:
    """Load the day; return rows a second, CPU microseconds a row, megabytes at a quarter and at the end."""
    transport = httpx.MockTransport(Venue(path, rows).answer)
    metrics, random, threads = open_metrics(), Random(1), open_threads(1)
    rest = RestClient("http://v", Rest(), metrics=metrics, wall_ns=time.time_ns, random=random, transport=transport)
    files = ArchiveClient(
        "http://v", Rest(), path.parent / "files", run_blocking=threads, random=random, transport=transport
    )
    records, record_intake = open_batch_channel(16, 64 << 20)  # type: ignore[var-annotated]  # said by `serialize`
    encoded, intake = open_batch_channel(16, 64 << 20)  # type: ignore[var-annotated]
    backfill = Backfill(
        rest,
        records,
        files=files,
        run_blocking=threads,
        wall_ns=time.time_ns,
        watcher=HoleWatcher(lambda *_: None),
        dead_letters=Letters(),
    )
    ids = Intervals([(5_000_000_000, 5_000_000_000 + rows - 1)])
    megabytes: list[float] = []
    async with rest, files, trio.open_nursery() as nursery:
        encode = partial(serialize, on_hole=lambda *_: None)
        nursery.start_soon(encode, record_intake, encoded, Letters(), Serializer(), metrics)
        nursery.start_soon(count, intake, rows, megabytes)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        with records:
            await backfill.run({Subscription("BTCUSDT", "trade"): Todo(ids)})
    cpu_s = time.process_time() - began_cpu_s
    return {
        "per_s": rows / (time.perf_counter() - began_s),
        "cpu_us": cpu_s / rows * 1e6,
        "rss_mb_quarter": megabytes[0],
        "rss_mb_end": megabytes[1],
    }


async def count(intake: BatchReceiver[EncodedBatch], rows: int, megabytes: list[float]) -> None:
    """Take encoded batches, and look at the memory after a quarter and at the end."""
    seen = 0
    while seen < rows:
        seen += len((await intake.receive()).records)
        if not megabytes and seen * 4 >= rows:
            megabytes.append(resident_mb())
    megabytes.append(resident_mb())


def resident_mb() -> float:
    """Return the memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def run_ordinary(path: Path) -> dict[str, float]:
    """Read, convert, encode, row by row."""
    schema = fastavro.parse_schema(json.loads(read_schema("market_data")))
    names = ("id", "price", "qty", "quote_qty", "time", "is_buyer_maker", "is_best_match")
    header = b"\xc3\x01" + bytes(8)
    encoded: list[dict[str, Any]] = []
    done = 0
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    with zipfile.ZipFile(path) as archive, io.TextIOWrapper(archive.open("day.csv"), encoding="ascii") as table:
        for row in csv.DictReader(table, names):
            record = {
                "symbol": "BTCUSDT",
                "timestamp": int(row["time"]) // 1000,
                "price": Decimal(row["price"]),
                "volume": Decimal(row["qty"]),
                "source": "rest",
                "event_type": "trade",
                "sequence": int(row["id"]),
                "received_at": time.time_ns() // 1000,
                "trade": {"trade_id": int(row["id"]), "buyer_is_maker": row["is_buyer_maker"] == "True"},
            }
            out = io.BytesIO()
            fastavro.schemaless_writer(out, schema, record)
            encoded.append({"Data": header + out.getvalue(), "PartitionKey": "BTCUSDT"})
            if len(encoded) == 500:  # what one put carries
                encoded.clear()
            done += 1
    cpu_s = time.process_time() - began_cpu_s
    return {"per_s": done / (time.perf_counter() - began_s), "cpu_us": cpu_s / done * 1e6}


def measure() -> dict[str, dict[str, float]]:
    """Return what both ways cost, by name: of a few runs, in turn, the one that cost the least CPU."""
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for way, rows in ROWS.items():
            Path(name, way).mkdir()
            write_day(Path(name, way), rows)
        for _ in range(ROUNDS):
            for way, rows in ROWS.items():
                day = Path(name, way, "day.zip")
                with run_child("tests.benchmarks.backfill", way, str(day), str(rows)) as child:
                    measured = json.loads(child.first_line())
                best[way] = min(measured, best.get(way, measured), key=lambda each: float(each["cpu_us"]))
    return best


if __name__ == "__main__":
    collect_rarely()  # as the command does; it does the other way no harm
    day, count_text = Path(sys.argv[2]), sys.argv[3]
    report(trio.run(run_ours, day, int(count_text)) if sys.argv[1] == OURS else run_ordinary(day))
