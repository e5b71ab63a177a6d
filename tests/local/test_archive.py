"""The public archive: the venue's layout, and the same rows as REST for the same period."""

from __future__ import annotations

import csv
import hashlib
import io
import time
import zipfile
from calendar import timegm
from itertools import pairwise

import msgspec
import pytest

from ingestor.local.archive import ArchiveDesk
from ingestor.local.history import UNIT, Bar, Fill, History, bar_close_ms
from ingestor.local.protocol import Rules
from ingestor.local.rest import RestDesk

HOUR_MS = 3_600_000


class Memory:
    """A venue that remembers one day of BTCUSDT and is one hour further."""

    symbols = ("BTCUSDT",)

    def __init__(self, year: int, month: int, day: int) -> None:
        self.start_ms = timegm((year, month, day, 0, 0, 0)) * 1_000
        self.now_ms = self.start_ms + 25 * HOUR_MS
        self._history = History("BTCUSDT", start_ms=self.start_ms)
        for number in range(250):
            at_ms = self.start_ms + number * HOUR_MS // 10
            self._history.add_fill(
                Fill(700 + number, 5 * UNIT + number, UNIT, at_ms, number % 3 == 0, 300 + number // 2)
            )
        for interval in ("1m", "1h", "1d"):
            at_ms = self.start_ms
            while at_ms <= self.now_ms:
                self._history.add_bar(interval, Bar(at_ms, 1, 4, 1, 3, volume=7, count=2))
                at_ms = bar_close_ms(interval, at_ms) + 1

    def history(self, symbol: str) -> History | None:
        return self._history if symbol == "BTCUSDT" else None

    def depth(self, symbol: str, limit: int) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        raise NotImplementedError(symbol, limit)


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory(2026, 8, 31)


def fetch(memory: Memory, path: str) -> list[list[str]]:
    response = ArchiveDesk(memory).answer(f"/data/spot/{path}", None)
    assert response.status == 200
    with zipfile.ZipFile(io.BytesIO(response.body)) as archive:
        [name] = archive.namelist()
        assert name == path.rpartition("/")[2].replace(".zip", ".csv")
        return list(csv.reader(io.StringIO(archive.read(name).decode())))


def test_trades_of_a_day_are_those_of_rest_in_microseconds(memory: Memory) -> None:
    """Same ids, prices and quantities; microseconds from 2025 on, Python's booleans."""
    rows = fetch(memory, "daily/trades/BTCUSDT/BTCUSDT-trades-2026-08-31.zip")
    params = [("symbol", "BTCUSDT"), ("fromId", rows[0][0]), ("limit", "1000")]
    answer = RestDesk(memory, Rules()).answer("/api/v3/historicalTrades", params, 0)
    expected = msgspec.json.decode(answer.body)[: len(rows)]
    assert rows[:1_000] == [
        [
            str(one["id"]),
            one["price"],
            one["qty"],
            one["quoteQty"],
            str(one["time"] * 1_000),
            str(one["isBuyerMaker"]),
            "True",
        ]
        for one in expected
    ]
    assert {time.gmtime(int(row[4]) // 1_000_000).tm_mday for row in rows} == {31}


def test_aggregates_of_a_day_chain_and_hold_all_trades(memory: Memory) -> None:
    """First and last ids chain from the first trade of the day to the last."""
    trades = fetch(memory, "daily/trades/BTCUSDT/BTCUSDT-trades-2026-08-31.zip")
    rows = fetch(memory, "daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2026-08-31.zip")
    assert all(int(later[3]) == int(earlier[4]) + 1 for earlier, later in pairwise(rows))
    assert (rows[0][3], rows[-1][4]) == (trades[0][0], trades[-1][0])


@pytest.mark.parametrize(("interval", "count"), [("1m", 1_440), ("1h", 24), ("1d", 1)])
def test_bars_of_a_day_end_one_unit_before_the_next(memory: Memory, interval: str, count: int) -> None:
    """Twelve columns, and the close time ends in 999999."""
    rows = fetch(memory, f"daily/klines/BTCUSDT/{interval}/BTCUSDT-{interval}-2026-08-31.zip")
    assert len(rows) == count
    assert {len(row) for row in rows} == {12}
    assert all(int(later[0]) == int(earlier[6]) + 1 for earlier, later in pairwise(rows))
    assert rows[0][6].endswith("999999")


def test_before_2025_times_are_milliseconds() -> None:
    """The last day of the old unit closes in milliseconds."""
    rows = fetch(Memory(2024, 12, 31), "daily/klines/BTCUSDT/1h/BTCUSDT-1h-2024-12-31.zip")
    assert (rows[0][0], rows[-1][6]) == ("1735603200000", "1735689599999")


def test_checksum_and_resumed_download_fit(memory: Memory) -> None:
    """SHA-256, two spaces, the name; a range gives the rest of the same bytes."""
    path = "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2026-08-31.zip"
    desk = ArchiveDesk(memory)
    whole = desk.answer(path, None).body
    rest = desk.answer(path, "bytes=100-")
    assert (rest.status, whole[:100] + rest.body) == (206, whole)
    assert dict(rest.headers)["content-range"] == f"bytes 100-{len(whole) - 1}/{len(whole)}"
    assert desk.answer(path, f"bytes={len(whole)}-").status == 416
    expected = f"{hashlib.sha256(whole).hexdigest()}  BTCUSDT-1m-2026-08-31.zip"
    assert desk.answer(path + ".CHECKSUM", None).body.decode() == expected


def test_a_damaged_file_is_one_byte_short_once(memory: Memory) -> None:
    """Like the damaged sample: the checksum does not fit, and the second download does."""
    path = "/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-08-31.zip"
    desk = ArchiveDesk(memory)
    whole = desk.answer(path, None).body
    desk.damaged = 1
    assert desk.answer(path, None).body == whole[:-1]
    assert desk.answer(path, None).body == whole


@pytest.mark.parametrize(
    "path",
    [
        "daily/klines/BTCUSDT/1m/BTCUSDT-1m-2026-09-01.zip",  # today
        "daily/klines/BTCUSDT/1m/BTCUSDT-1m-2026-08-30.zip",  # before the beginning
        "daily/trades/BTCUSDT/BTCUSDT-trades-2026-08-30.zip",
        "monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2026-08.zip",
        "daily/klines/BTCUSDT/1m/BTCUSDT-5m-2026-08-31.zip",
        "daily/klines/BTCUSDT/7m/BTCUSDT-7m-2026-08-31.zip",
        "daily/klines/BTCUSDT/1m/BTCUSDT-1m-2026-08.zip",
        "daily/klines/BTCUSDT/1m/BTCUSDT-1m-2026-02-30.zip",
        "daily/trades/NOSUCH/NOSUCH-trades-2026-08-31.zip",
        "daily/options/BTCUSDT/BTCUSDT-options-2026-08-31.zip",
    ],
)
def test_what_is_not_there_is_not_found(memory: Memory, path: str) -> None:
    """Days that are not over, not known, or not days; other symbols, other kinds."""
    assert ArchiveDesk(memory).answer(f"/data/spot/{path}", None).status == 404


def test_a_month_holds_all_its_days() -> None:
    """A monthly file, and `1mo` for the bar of a month."""
    memory = Memory(2026, 2, 1)
    history = memory.history("BTCUSDT")
    assert history
    for day in range(2, 29):
        history.add_bar("1d", Bar(memory.start_ms + day * 24 * HOUR_MS, 1, 1, 1, 1))
    history.add_bar("1M", Bar(memory.start_ms, 1, 1, 1, 1))
    memory.now_ms = memory.start_ms + 29 * 24 * HOUR_MS
    assert len(fetch(memory, "monthly/klines/BTCUSDT/1d/BTCUSDT-1d-2026-02.zip")) == 28
    assert len(fetch(memory, "monthly/klines/BTCUSDT/1mo/BTCUSDT-1mo-2026-02.zip")) == 1


def test_a_day_that_was_partly_forgotten_is_not_served() -> None:
    """A file is whole or it is not there."""
    memory = Memory(2026, 8, 31)
    history = memory.history("BTCUSDT")
    assert history
    history.trades_since_ms += 1
    path = "/data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2026-08-31.zip"
    assert ArchiveDesk(memory).answer(path, None).status == 404
