"""Inputs to begin with, made of our own documented examples: `python -m tests.fuzz --seeds` writes them anew."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingestor.core import kpl, spool_format
from ingestor.core.claims import Coverage
from ingestor.core.lanes import joined_claims
from ingestor.core.model import Claim, DeadLetter, EncodedRecord, Subscription
from ingestor.core.resume import Beat, beat_to_avro, carried
from ingestor.dead_letter import encode
from ingestor.serializer import SINGLE_OBJECT_HEADER_BYTES, encode_heartbeat
from tests.fakes.records import bar, diff, hole, snapshot, trade
from tests.fuzz.targets import NOW_MS, SEPARATOR, serializer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ingestor.core.model import MarketData, PoisonReason

EXAMPLES: Final = Path(__file__).parents[1] / "data" / "binance"
REST_ORDER: Final = ("rest_trades", "rest_agg_trades", "rest_klines", "rest_depth", "rest_exchange_info", "rest_time")


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """Make a frame as a server sends it."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    return bytes([first]) + length + payload


def example(name: str) -> bytes:
    """Return a documented message."""
    return (EXAMPLES / f"{name}.json").read_bytes().strip()


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """Give target, name and bytes of every input to begin with."""
    for target, inputs in _by_target().items():
        for name, data in inputs.items():
            yield target, name, data


def _by_target() -> Mapping[str, Mapping[str, bytes]]:
    live = {path.stem: path.read_bytes().strip() for path in sorted(EXAMPLES.glob("*.json"))}
    live = {name: data for name, data in live.items() if not name.startswith("rest_")}
    return {
        "frames": _frames(),
        "messages": {**_messages(), "all": SEPARATOR.join(live.values())},
        "feeds": {
            "twice": SEPARATOR.join(choice + part for part in _stream() for choice in (b"\0", b"\1")),
            "settled": SEPARATOR.join(bytes([at % 8]) + part for at, part in enumerate(_stream())),
        },
        "rest": _rest(),
        "archive": _archive(),
        "zips": {"stored": _zip(zipfile.ZIP_STORED), "deflated": _zip(zipfile.ZIP_DEFLATED)},
        "blobs": _blobs(),
        "records": {
            name: b"\0" + serializer().encode(record)[SINGLE_OBJECT_HEADER_BYTES:]
            for name, record in _records().items()
        },
        "heartbeats": {"beat": encode_heartbeat(beat_to_avro(_beat()))[SINGLE_OBJECT_HEADER_BYTES:]},
        "segments": _segments(),
        "letters": _letters(),
        "configurations": {
            "sections": b"binance: {symbols: [BTCUSDT, 'all:USDT'], rest_url: 'https://x'}\nbackfill:\n"
            b"  - {symbol: BTCUSDT, stream: kline, interval: 1m, start: 2024-01-01, end: 2024-01-02}\n",
            "mistakes": b"kinesis: {lanes: yes, nothing: 1}\nheartbeat: 5\nshard: {index: 3}\nx: &a [*a]\n",
        },
    }


def _frames() -> dict[str, bytes]:
    refusal = b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\n\r\nslow down"
    talk = frame(example("trade")) + frame(b"ping", 0x89) + frame(b"x" * 200)
    pieces = frame(b"one", 0x01) + frame(b"", 0x8A) + frame(b"two", 0x00) + frame(b"three", 0x80)
    return {
        "talk": b"\1\7" + talk,
        "fragments": b"\1\x21" + pieces + frame(b"bin", 0x82),
        "closed": b"\1\3" + frame(b"a") + frame(b"\x03\xe8bye", 0x88) + frame(b"b"),
        "refused": b"\0\5" + refusal,
        "opened": b"\0\6HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\n\r\n" + frame(b"a"),
        "masked": b"\1\0" + b"\x81\x85abcdhello",
        "too long": b"\1\0" + b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
    }


def _stream() -> list[bytes]:
    """One of each kind, later ones, and the first ones again."""
    first = [example(name) for name in ("trade", "depth", "kline_open")]
    later = [part.replace(b'"t":', b'"t":1') for part in first]
    return [*first, *later, *first]


def _messages() -> dict[str, bytes]:
    return {
        "stream": SEPARATOR.join(_stream()),
        "controls": SEPARATOR.join(example(name) for name in ("ack", "error_flat", "error_nested", "shutdown")),
        "broken": SEPARATOR.join(path.read_bytes().strip() for path in sorted(EXAMPLES.glob("broken_*.json"))),
    }


def _rest() -> dict[str, bytes]:
    answers = {
        name: bytes([which, 0]) + b"x-mbx-used-weight-1m:7" + SEPARATOR + example(name)
        for which, name in enumerate(REST_ORDER)
    }
    refusal = example("rest_refusal")
    return {
        **answers,
        "tickers": b"\6\0" + SEPARATOR + example("rest_tickers"),
        "refused": b"\0\3" + SEPARATOR + refusal,
        "banned": b"\0\5retry-after:60" + SEPARATOR + refusal,
        "until": b"\0\5" + SEPARATOR + b'{"code":-1003,"msg":"banned until 1700000060000."}',
    }


def _archive() -> dict[str, bytes]:
    trades = b"7,1.50000000,2.00000000,3.0,1700000000000,True,True\n8,1.5,2.0,3.0,1740000000000001,False,True\n"
    aggregates = b"9,1.5,2.0,7,8,1740000000000001,false,true\n"
    bars = b"1577836800000,1.1,1.4,1.0,1.3,50.5,1577836859999,60.5,7,20.2,24.4,0\n"
    return {
        "trades": b"\0\7" + trades,
        "aggTrades": b"\1\3" + aggregates,
        "klines": b"\2\5" + bars,
        "header": b"\0\0id,price,qty\n" + trades,
        "quotes": b'\0\0006,1,1,1,1,True,True"],["7,1,1,1,1,True,True\n',
    }


def _zip(method: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("a.csv"), "1,2,3,4,5,True,True\n" * 20, compress_type=method)
    return content.getvalue()


def _records() -> dict[str, MarketData]:
    return {
        "trade": trade(5),
        "diff": diff(3, 9, bids=[("1.00000000", "2.00000000")]),
        "snapshot": snapshot(9),
        "bar": bar(28_000_000),
        "open bar": bar(28_000_001, closed=False),
        "hole": hole(3, 9),
    }


def _encoded() -> list[EncodedRecord]:
    return [serializer().pack(record) for record in (trade(5), trade(6), diff(3, 9), bar(28_000_000), hole(3, 9))]


def _blobs() -> dict[str, bytes]:
    entry, _ = kpl.aggregate(_encoded(), str(1 << 127), 50_000)
    message = entry.data[len(kpl.MAGIC) : -16]
    return {"blob": message, "empty": b"", "plain": b"\xc3\x01" + bytes(20), "number": b"\x1a" + b"\xff" * 40}


def _beat() -> Beat:
    coverage = Coverage()
    name = Subscription("BTCUSDT", "trade")
    coverage.originate(name, 5)
    coverage.acknowledge([Claim(name, 5, 9), Claim(name, 12, 20)])
    return Beat(
        service="ingestor", environment="test", rest_host="x", data_stream="r/s", instance="i", version="1",
        started_ms=NOW_MS, sent_ms=NOW_MS, beat=3, part=0, parts=1, counters={"messages": 7},
        components={"kinesis": "closed"}, entries=[carried(name, coverage[name])],
    )  # fmt: skip


def _segments() -> dict[str, bytes]:
    records = _encoded()
    frame_bytes = spool_format.encode_frame(NOW_MS, joined_claims(record.claim for record in records), records)
    head, body, _ = spool_format.FRAME.unpack_from(frame_bytes)
    content = frame_bytes[spool_format.FRAME.size :]
    return {
        "segment": spool_format.header(spool_format.HEADER.size) + frame_bytes,
        "frame": bytes([head]) + content[:head] + content[head : head + body],
    }


def _letters() -> dict[str, bytes]:
    claim = Claim(Subscription("BTCUSDT", "trade"), 5, 5)
    raws = [example("trade"), b"\xff\xfe", b"\x1b[2J", serializer().encode(trade(5))]
    reasons: tuple[PoisonReason, ...] = ("unexpected_shape", "invalid_json", "unknown_event", "gave_up")
    lines = [
        encode(DeadLetter(reason=reason, detail="why", raw=raw, at_ms=NOW_MS, symbol="BTCUSDT", claim=claim), NOW_MS)
        for reason, raw in zip(reasons, raws, strict=True)
    ]
    return {"letters": b"".join(lines), "torn": lines[0] + lines[1][:40], "empty": b"\n{}\n"}
