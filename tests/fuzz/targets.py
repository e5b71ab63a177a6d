"""What bytes of strangers may do to each parser: nothing but what its docstring says, and a target raises otherwise.

A target takes any bytes. Its first ones choose among variants, the rest is what a stranger would send. None of them
waits, and none keeps anything between two calls, so every input that once broke one breaks it again.
"""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import suppress
from functools import cache, partial
from hashlib import md5
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import httpx
import msgspec
import trio
from structlog.testing import capture_logs

from ingestor import config, dead_letter, inspection, replay
from ingestor.archive_client import DamagedFileError, find_damage, read_lines
from ingestor.core import binance, kpl, spool_format
from ingestor.core.archive import BadRowError, lines_of, parse
from ingestor.core.audit import Audit
from ingestor.core.book import OrderBook, PriceCache
from ingestor.core.claims import Coverage, Intervals, kline_ordinal
from ingestor.core.errors import ConfigError, DecodeError
from ingestor.core.intake import Intake
from ingestor.core.lanes import joined_claims
from ingestor.core.model import RecordBatch, Subscription
from ingestor.core.paging import Page, Pager, first_trade_in, last_trade_in
from ingestor.core.resume import Identity, Resume, beat_from_avro, beat_to_avro, carried
from ingestor.core.sharding import select
from ingestor.frames import FrameSlicer
from ingestor.reader import ReadRecord, Unreadable
from ingestor.rest_client import Now, VenueError, _LimitedError, _read_answer, _Reply
from ingestor.serializer import SINGLE_OBJECT, Schemas, Serializer, decode_heartbeat, encode_heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ingestor.core.intake import Accepted
    from ingestor.core.model import DeadLetter, MarketData

SUBSCRIPTIONS: Final = [Subscription("BTCUSDT", kind) for kind in ("trade", "depth", "kline_1m")]
SEPARATOR: Final = b"\x00"  # between messages: no JSON holds it
NOW_US: Final = 1_700_000_000_000_000
NOW_MS: Final = NOW_US // 1000
OPENED: Final = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


@cache
def serializer() -> Serializer:
    """Return the one serializer: it is long to make."""
    return Serializer(wall_ns=lambda: NOW_US * 1000)


def leading(data: bytes, count: int) -> tuple[int, ...]:
    """Return the first bytes, zero where there are none."""
    return tuple(data[:count].ljust(count, b"\0"))


def cut(data: bytes, seed: int) -> list[bytes]:
    """Cut bytes at chance places, the same ones for the same seed."""
    random = Random(seed)
    places = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(12)))
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


# --- the WebSocket ----------------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """Cut a stream of frames anyhow: the same messages and control frames come out of it, or the same complaint."""
    mode, seed = leading(data, 2)
    stream = (OPENED if mode & 1 else b"") + data[2:]
    whole = sliced([stream])
    assert sum(map(len, whole[0])) + len(whole[1]) <= len(stream)
    assert sliced([stream[at : at + 1] for at in range(len(stream))]) == whole
    assert sliced(cut(stream, seed)) == whole


def sliced(chunks: Iterable[bytes]) -> tuple[list[bytes], bytes, str]:
    """Feed a slicer up to its end; return messages, the rest, and what it complained of."""
    slicer = FrameSlicer(max_message_bytes=1_000)
    messages: list[bytes] = []
    passed = b""
    for chunk in chunks:
        more, passthrough, error = slicer.feed(chunk)
        messages += more
        passed += passthrough
        if error is not None:
            return messages, passed, str(error).partition(" (")[0]  # a refusal shows as much as came with its head
        if slicer._is_closed:
            break
    return messages, passed, ""


def messages(data: bytes) -> None:
    """Take messages: each is a record, a duplicate, a control message or poison, and what follows takes them all."""
    intake = Intake(SUBSCRIPTIONS)
    inlet = intake.open(SUBSCRIPTIONS)
    parts = data.split(SEPARATOR)
    accepted = intake.accept(inlet, parts, 1.0, NOW_US)
    assert count(accepted) == len(parts)
    go_on_with(accepted)
    look_at(intake)


def feeds(data: bytes) -> None:
    """Let two feeds bring the same subscriptions: nothing gets lost, in whatever order they speak and leave."""
    intake = Intake(SUBSCRIPTIONS)
    inlets = [intake.open(SUBSCRIPTIONS), intake.open(SUBSCRIPTIONS)]
    parts = data.split(SEPARATOR)
    taken = 0
    now = 1.0
    for part in parts:
        (choice,) = leading(part, 1)
        now += 0.001 if choice & 2 else 0.5
        accepted = intake.accept(inlets[choice & 1], [part[1:]], now, NOW_US)
        taken += count(accepted)
        go_on_with(accepted)
        if choice & 4:
            accepted = intake.settle(now)
            taken += count(accepted)
            go_on_with(accepted)
    look_at(intake)
    for inlet in inlets:
        accepted = intake.close(inlet, now + 1.0)
        taken += count(accepted)
        go_on_with(accepted)
    assert taken == len(parts)


def count(accepted: Accepted) -> int:
    """Return how many messages are accounted for."""
    records = sum(record.hole is None for record in accepted.records)
    return records + len(accepted.poison) + len(accepted.controls) + sum(accepted.duplicates.values())


def go_on_with(accepted: Accepted) -> None:
    """Do with what was decided what the line does."""
    write_letters(accepted.poison)
    if accepted.batch is not None:
        encode(accepted.batch)


def encode(batch: RecordBatch) -> None:
    """Encode every record; it can be read back, or it is a letter."""
    encoded, letters = serializer().encode_batch(batch)
    write_letters(letters)
    assert len(encoded.records) + len(letters) >= len(batch.records)
    for record in encoded.records:
        serializer().decode(record.data)


def encode_records(records: Sequence[MarketData]) -> None:
    """Encode records that come from elsewhere."""
    encode(RecordBatch(list(records), [b""] * len(records), 1.0, 0))


def write_letters(letters: Iterable[DeadLetter]) -> None:
    """Write letters: each is a line that reads back, and not much longer than what it is about."""
    for letter in letters:
        line = dead_letter.encode(letter, NOW_MS)
        assert dead_letter.parse_line(line).reason == letter.reason
        assert len(line) <= 8 * len(letter.raw) + 8_000
        dead_letter.message(letter, NOW_MS)


def look_at(intake: Intake) -> None:
    """Ask what others ask."""
    intake.next_ids()
    intake.overdue(NOW_MS / 1000, NOW_MS)
    intake.received()
    for subscription in SUBSCRIPTIONS:
        intake.position(subscription)
        intake.last_event_ms(subscription)


# --- REST and the archive ---------------------------------------------------------------------------------------------

REST: Final[Sequence[Callable[[bytes], Any]]] = (
    binance.decode_trades,
    binance.decode_agg_trades,
    binance.decode_klines,
    binance.decode_depth,
    binance.decode_exchange_info,
    binance.decode_server_time,
    binance.decode_tickers,
)
STATUSES: Final = (200, 200, 200, 400, 403, 418, 429, 451, 503, 302)


def rest(data: bytes) -> None:
    """Use an answer, or refuse it with an error that the client knows."""
    which, status = leading(data, 2)
    head, _, body = data[2:].rpartition(SEPARATOR)
    headers = [(name, value) for name, _, value in (line.partition(b":") for line in head.split(b"\n")) if name]
    reply = _Reply("/api/v3/time", STATUSES[status % len(STATUSES)], "reason", httpx.Headers(headers), body)
    try:
        answer = _read_answer(reply, REST[which % len(REST)], Now(NOW_MS, NOW_MS))
    except (VenueError, _LimitedError) as error:
        complaint = str(error)
    else:
        complaint = ""
        use(answer)
    assert len(complaint) < 2_000
    use_what_can_be_read(body)


def use_what_can_be_read(body: bytes) -> None:
    """Make records of the rows of a page that can be read, and look for the numbers of the others."""
    decoders: list[Callable[[bytes], list[Any]]] = [binance.decode_trades, binance.decode_klines]
    for decode in decoders:
        unreadable: list[bytes] = []
        with suppress(*binance.REFUSALS):
            use(binance.readable_rows(body, decode, unreadable.extend))
        opened = [binance.milliseconds(number) for number in map(binance.number_in, unreadable) if number is not None]
        for interval in ("1m", "3d", "1M"):
            assert all(isinstance(kline_ordinal(interval, each), int) for each in opened)


def use(answer: Any) -> None:
    """Do with an answer what the service does."""
    if isinstance(answer, binance.DepthSnapshot):
        book = OrderBook(PriceCache())
        book.begin_buffering()
        book.load(answer.last_update_id, answer.bids, answer.asks, limit=100)
        encode_records([binance.snapshot_record("BTCUSDT", answer, NOW_US, None, None)])
    elif isinstance(answer, binance.ExchangeInfo):
        select(["all:USDT", "BTCUSDT"], {each.symbol: each.quote_asset for each in answer.symbols})
    elif isinstance(answer, list) and answer:
        use_rows(answer)


def use_rows(rows: list[Any]) -> None:
    """Make records of rows, and let the paging judge them."""
    ids: list[int] = []
    if isinstance(rows[0], binance.RestTrade):
        encode_records([binance.rest_trade_record("BTCUSDT", row, NOW_US) for row in rows])
        ids = [row.trade_id for row in rows]
    elif isinstance(rows[0], binance.RestKline):
        encode_records([binance.rest_kline_record("BTCUSDT", "1m", row, NOW_US, closed=True) for row in rows])
        ids = [row.open_time for row in rows]
    elif isinstance(rows[0], binance.RestAggTrade):
        first_trade_in(rows)
        last_trade_in(rows)
    if ids:
        Pager(Intervals([(0, 5_000)]), 1_000).settle(Page(0, 999), ids)


def archive(data: bytes) -> None:
    """Read the text of an archive's file: one row a line, or the line that is none is named."""
    which, seed = leading(data, 2)
    kind = ("trades", "aggTrades", "klines")[which % 3]
    with suppress(BadRowError):
        for lines in lines_of(iter(cut(data[2:], seed))):
            assert len(parse(kind, lines)) == len(lines)  # type: ignore[arg-type]  # one of three words


def zips(data: bytes) -> None:
    """Read a zip to its end, or name its damage."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.zip"
        path.write_bytes(data)
        if find_damage(path, None) is None:
            with suppress(DamagedFileError, BadRowError):
                for _ in read_lines(path):
                    pass
        with suppress(DamagedFileError, BadRowError):
            next(read_lines(path), None)  # with a checksum that was right, all of it is only looked at here


# --- Kinesis ----------------------------------------------------------------------------------------------------------


def blobs(data: bytes) -> None:
    """Take a blob apart: its records hold no more than it did, or it is refused; anything else is a record."""
    assert kpl.disaggregate(data, "key") or data.startswith(kpl.MAGIC)
    sealed = kpl.MAGIC + data + md5(data, usedforsecurity=False).digest()
    with suppress(DecodeError):
        found = kpl.disaggregate(sealed, "key")
        assert len(found) <= kpl.RECORDS
        assert sum(len(record.data) for record in found) <= len(data)


def records(data: bytes) -> None:
    """Decode a record, show it, audit it and send it again, or refuse it."""
    (which,) = leading(data, 1)
    prints = sorted(Schemas("market_data")._writers) if which & 1 else [serializer()._schemas.fingerprint]
    raw = SINGLE_OBJECT + prints[which % len(prints)] + data[1:]
    try:
        record = serializer().decode(raw)
    except DecodeError as error:
        show(Unreadable(raw, str(error), "shard", NOW_MS, "key"))
        return
    show(ReadRecord(record, "shard", NOW_MS, "key"))
    audit = Audit()
    for _ in range(2):
        audit.add(record)
    audit.add(record, is_late=True)
    report = audit.report()
    assert all(line.isprintable() for line in inspection.as_text(report).split("\n"))
    json.loads(inspection.as_json_text(report))
    assert serializer().decode(serializer().pack(record).data) == record


def show(item: ReadRecord | Unreadable) -> None:
    """Show anything: on one line that moves no terminal, and as JSON that is JSON."""
    assert inspection.plain_line(item).isprintable()
    written = inspection.json_line(item)
    assert written.isprintable()
    json.loads(written)


@cache
def beat_schemas() -> Schemas:
    """Return the schemas of heartbeats."""
    return Schemas("heartbeat")


def heartbeats(data: bytes) -> None:
    """Hear a beat and carry on what it says in beats of ours, or refuse it."""
    raw = SINGLE_OBJECT + beat_schemas().fingerprint + data
    show(Unreadable(raw, "not a record", "shard", NOW_MS, "key"))
    try:
        beat = beat_from_avro(decode_heartbeat(raw))
    except (DecodeError, msgspec.ValidationError):
        return
    coverage = Coverage()
    identity = Identity(beat.service, beat.environment, beat.rest_host, beat.data_stream)
    resume = Resume(coverage, SUBSCRIPTIONS, identity=identity, instance="ours", lookback_s=100.0)
    resume.begin(SUBSCRIPTIONS[0], 1_000, NOW_MS)
    resume.hear(beat, 1.0, 10.0)
    resume.window_read(11.0)
    resume.is_listening(12.0)
    resume.begin(SUBSCRIPTIONS[1], 5, NOW_MS)
    resume.take(100.0)
    for subscription, entry in coverage.items():
        ours = msgspec.structs.replace(beat, entries=[carried(subscription, entry)])
        encode_heartbeat(beat_to_avro(ours))


# --- files ------------------------------------------------------------------------------------------------------------


def segments(data: bytes) -> None:
    """Scan a segment of a spool; a frame whose checksum is right gives records or is broken."""
    (size,) = leading(data, 1)
    with suppress(spool_format.BrokenFrameError):
        spool_format.scan(data)
    head, body = data[1 : 1 + size], data[1 + size :]
    frame = spool_format.FRAME.pack(len(head), len(body), crc32(body, crc32(head))) + head + body
    found = spool_format.scan(spool_format.header(len(data)) + frame + data)
    assert found.end >= spool_format.HEADER.size
    with suppress(spool_format.BrokenFrameError):
        content = spool_format.decode_frame(frame)
        again = spool_format.encode_frame(
            content.received_ms, joined_claims(record.claim for record in content.records), content.records
        )
        assert spool_format.decode_frame(again) == content


def letters(data: bytes) -> None:
    """List the letters of a file, show them, and look for what can be sent again."""
    with tempfile.TemporaryDirectory() as folder, capture_logs():
        (Path(folder) / "a.jsonl").write_bytes(data)
        settings = config.Config(dead_letter=config.DeadLetters(directory=Path(folder)))
        with suppress(dead_letter.LetterLineError):
            dead_letter.parse_line(data.decode("utf-8", "surrogateescape"))  # what a queue gives is text
        for as_json in (False, True):
            out = io.StringIO()
            trio.run(partial(replay.list_letters, settings, replay.Choice(), as_json=as_json, out=out))
            assert all(line.isprintable() for line in out.getvalue().split("\n"))
        revivals = [replay.Revival(serializer(), settings, is_forced=is_forced) for is_forced in (False, True)]
        for stored in dead_letter.read_letters(Path(folder)):
            out = io.StringIO()
            show = partial(replay.show_letter, settings, stored.id, as_raw=False, out=out, raw_out=io.BytesIO())
            trio.run(show)
            assert all(line.replace("\t", "").isprintable() for line in out.getvalue().split("\n"))
            for revival in revivals:
                with suppress(replay.RefusedError):
                    revival.record_of(stored)


def configurations(data: bytes) -> None:
    """Read a configuration file, or say what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ingestor.yaml"
        path.write_bytes(data)
        with suppress(ConfigError):
            config.to_yaml(config.load(path, {}))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (
        frames, messages, feeds, rest, archive, zips, blobs, records, heartbeats, segments, letters, configurations,
    )
}  # fmt: skip
"""By name, which is that of the folder with the inputs that are kept."""
