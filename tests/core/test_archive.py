"""The archive's layout and rows: what lies where, and that a row is the row that REST gives."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.archive import (
    ArchiveAggTrade,
    ArchiveFile,
    ArchiveTrade,
    BadRowError,
    files_between,
    lines_of,
    parse,
)
from ingestor.core.binance import RestKline

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY_MS = 86_400_000
FAR_MS = 10**13


def at_ms(*day: int) -> int:
    return int(datetime(*day, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc, arg-type]  # mypy cannot count


def names(start_ms: int, end_ms: int, now_ms: int = FAR_MS) -> list[str]:
    return [file.name for file in files_between("BTCUSDT", "klines", "1m", start_ms, end_ms, now_ms=now_ms)]


def test_files_are_where_the_venue_puts_them() -> None:
    """Folder and name of every kind, of days and of months; a month's bar is `1mo` there."""
    day = date(2024, 2, 1)
    assert [
        ArchiveFile("BTCUSDT", "klines", "1m", day, is_month=False).path,
        ArchiveFile("BTCUSDT", "klines", "1M", day, is_month=True).path,
        ArchiveFile("BTCUSDT", "trades", "", day, is_month=False).path,
        ArchiveFile("BTCUSDT", "aggTrades", "", day, is_month=True).path,
    ] == [
        "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-02-01.zip",
        "/data/spot/monthly/klines/BTCUSDT/1mo/BTCUSDT-1mo-2024-02.zip",
        "/data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2024-02-01.zip",
        "/data/spot/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-02.zip",
    ]


def test_whole_months_are_one_file() -> None:
    """A range from the middle of one month to the middle of another."""
    found = names(at_ms(2024, 1, 30), at_ms(2024, 3, 2) + 1)
    assert found == [
        "BTCUSDT-1m-2024-01-30.zip",
        "BTCUSDT-1m-2024-01-31.zip",
        "BTCUSDT-1m-2024-02.zip",
        "BTCUSDT-1m-2024-03-01.zip",
        "BTCUSDT-1m-2024-03-02.zip",
    ]


def test_today_has_no_file() -> None:
    """A day is in the archive once it is over, at the earliest."""
    noon_ms = at_ms(2024, 1, 3) + DAY_MS // 2
    assert names(at_ms(2024, 1, 2), FAR_MS, now_ms=noon_ms) == ["BTCUSDT-1m-2024-01-02.zip"]
    assert names(noon_ms, noon_ms + 5, now_ms=noon_ms) == []


def test_a_month_falls_apart_into_its_days() -> None:
    """The month is published days after its end, its days the day after each."""
    month = ArchiveFile("BTCUSDT", "trades", "", date(2024, 2, 1), is_month=True)
    days = month.days()
    assert len(days) == 29
    assert days[-1].name == "BTCUSDT-trades-2024-02-29.zip"


@given(st.integers(0, 20_000), st.integers(1, 200))
def test_every_day_of_a_range_is_in_one_file(first_day: int, days: int) -> None:
    """Months and days together cover the range, without overlap and without a day more."""
    files = files_between("B", "trades", "", first_day * DAY_MS, (first_day + days) * DAY_MS, now_ms=FAR_MS)
    covered = [each.day for file in files for each in (file.days() if file.is_month else [file])]
    begin = datetime.fromtimestamp(first_day * 86_400, UTC).date()
    assert [(day - begin).days for day in covered] == list(range(days))


@given(st.lists(st.binary(max_size=9).filter(lambda line: b"\n" not in line and line != b""), max_size=9), st.data())
def test_lines_come_whole_however_the_bytes_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    """Chunks end anywhere; the last line may lack its end."""
    lines = [b"1" + line for line in lines]
    content = b"\n".join(lines) + data.draw(st.sampled_from([b"", b"\n"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    chunks = [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert [line for part in lines_of(iter(chunks)) for line in part] == lines


def test_a_header_line_is_left_out() -> None:
    """Spot files have none; the archive's other markets do, and may come to spot."""
    assert list(lines_of(iter([b"id,price\n1,2\n", b"3,4\n"]))) == [[b"1,2"], [b"3,4"], []]


def test_rows_are_those_of_rest() -> None:
    """Every column in its place, in milliseconds and in microseconds."""
    lines = [b"7,1.50000000,2.00000000,3.0,1700000000000,True,True", b"8,1.5,2.0,3.0,1740000000000001,False,True"]
    assert parse("trades", lines) == [
        ArchiveTrade(7, "1.50000000", "2.00000000", "3.0", 1_700_000_000_000, buyer_is_maker=True),
        ArchiveTrade(8, "1.5", "2.0", "3.0", 1_740_000_000_000_001, buyer_is_maker=False),
    ]
    assert parse("aggTrades", [b"9,1.5,2.0,7,8,1740000000000001,false,true"]) == [
        ArchiveAggTrade(9, "1.5", "2.0", 7, 8, 1_740_000_000_000_001, buyer_is_maker=False)
    ]
    line = b"1577836800000,1.1,1.4,1.0,1.3,50.5,1577836859999,60.5,7,20.2,24.4,0"
    assert parse("klines", [line]) == [
        RestKline(
            1577836800000, "1.1", "1.4", "1.0", "1.3", "50.5", 1577836859999, "60.5", 7, "20.2", "24.4"
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line", [b"7", b"x,1,1,1,1,True,True", b"7,1,1,1,1,maybe,True", b"\xff,1,1,1,1,True,True", b"7,1,1,1,1.5,True,True"]
)
def test_a_line_of_something_else_is_refused(line: bytes) -> None:
    """The error shows the line."""
    good = b"6,1,1,1,1,True,True"
    with pytest.raises(BadRowError, match="no row of trades") as caught:
        parse("trades", [good, line])
    assert str(caught.value).startswith(repr(line))


def test_quotes_are_no_way_around_the_check() -> None:
    """Columns are quoted to be read; a file with quotes of its own is refused, or holds no more than it says."""
    with pytest.raises(BadRowError):
        parse("trades", [b'6,1,1,1,1,True,True"],["7,1,1,1,1,True', b'x"'])
    with pytest.raises(BadRowError, match="no row of trades"):
        parse("trades", [b"6,1,1,1,1,True,\r"])
    assert parse("trades", []) == []


@pytest.mark.parametrize(
    "line", [b'6,1,1,1,1,True,True"],["7,1,1,1,1,True,True', b"6,1,1\\u0031,1,1,True,True", b'"6",1,1,1,1,True,True']
)
def test_a_line_is_one_row_or_none(line: bytes) -> None:
    """Quotes of its own would make two of it, and the rows would not belong to the lines any more."""
    with pytest.raises(BadRowError, match="a quote or a backslash"):
        parse("trades", [b"5,1,1,1,1,True,True", line])


def test_a_line_without_an_end_is_refused_before_it_is_long() -> None:
    """A file of gigabytes without a line break is not gathered."""
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"1" * 1_000

    with pytest.raises(BadRowError, match="a line of more than 4096 bytes"):
        list(lines_of(chunks()))
    assert taken == 5
