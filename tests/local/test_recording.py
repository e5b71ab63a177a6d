"""Replay of recordings: the same bytes in the same order, at the right pace, with REST that fits."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec
import pytest

from ingestor.core.model import Subscription
from ingestor.local.demo import open_source
from ingestor.local.recording import Recording, RecordingError, open_recording

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "binance"
WALL_MS = 1_795_000_000_000


def trade(trade_id: int, at_ms: int, symbol: str = "BTCUSDT") -> bytes:
    return (
        b'{"e":"trade","E":%d,"s":"%b","t":%d,"p":"100.50000000","q":"2.00000000","T":%d,"m":true,"M":true}'
        % (at_ms, symbol.encode(), trade_id, at_ms)
    )  # fmt: skip


def combined(stream: str, payload: bytes) -> bytes:
    return b'{"stream":"%b","data":%b}' % (stream.encode(), payload)


def diff(first: int, last: int, at_ms: int, bids: str = "[]", asks: str = "[]") -> bytes:
    text = f'{{"e":"depthUpdate","E":{at_ms},"s":"BTCUSDT","U":{first},"u":{last},"b":{bids},"a":{asks}}}'
    return combined("btcusdt@depth@100ms", text.encode())


def kline(*, closed: bool, at_ms: int) -> bytes:
    return (
        f'{{"e":"kline","E":{at_ms},"s":"BTCUSDT","k":{{"t":60000,"T":119999,"s":"BTCUSDT","i":"1m","f":1,"L":2,'
        f'"o":"1.0","c":"2.0","h":"3.0","l":"0.5","v":"4.0","n":2,"x":{"true" if closed else "false"},"q":"5.0",'
        '"V":"1.0","Q":"2.0","B":"0"}}'
    ).encode()


def test_nothing_is_played_before_everything_is_subscribed() -> None:
    """Playback starts when the last recorded stream is watched, with the first message."""
    recording = Recording([combined("btcusdt@trade", trade(1, 1_000)), diff(1, 2, 1_000)], speed=0)
    assert recording.advance(WALL_MS) == []
    recording.watch("btcusdt@trade")
    assert recording.advance(WALL_MS + 100) == []
    recording.watch("btcusdt@depth@100ms")
    assert [message.stream for message in recording.advance(WALL_MS + 200)] == list(recording.streams)
    assert recording.finished


def test_playback_starts_without_the_rest_when_no_more_subscriptions_come() -> None:
    """A client that wants only one stream waits for a moment, then gets it; the others pass unseen."""
    recording = Recording([diff(1, 2, 1_000), combined("btcusdt@trade", trade(7, 1_000))], speed=0, settle_ms=500)
    recording.watch("btcusdt@trade")
    assert recording.advance(WALL_MS) == recording.advance(WALL_MS + 499) == []
    [message] = recording.advance(WALL_MS + 500)
    assert (message.first, message.last, message.subscription) == (7, 7, Subscription("BTCUSDT", "trade"))


def test_recorded_pace_and_twice_as_fast() -> None:
    """Messages are due at their event times from the start on; speed divides the waiting."""
    lines = [combined("btcusdt@trade", trade(number, 1_000 + number * 100)) for number in range(5)]
    for speed, expected in ((1.0, [1, 1, 1, 1, 1]), (2.0, [1, 2, 2, 0, 0])):
        recording = Recording(lines, speed=speed)
        recording.watch("btcusdt@trade")
        assert [len(recording.advance(WALL_MS + step * 100)) for step in range(5)] == expected
        assert recording.now_ms == 1_400


def test_time_that_goes_back_across_streams_keeps_the_order_of_the_file() -> None:
    """Events without a time, or with an earlier one than the line before, stay in their place."""
    top = b'{"u":9,"s":"BTCUSDT","b":"1.0","B":"1.0","a":"2.0","A":"1.0"}'
    lines = [combined("btcusdt@trade", trade(1, 2_000)), combined("btcusdt@bookTicker", top), diff(1, 1, 1_900)]
    recording = Recording(lines)
    for stream in recording.streams:
        recording.watch(stream)
    assert [message.at_ms for message in recording.advance(WALL_MS)] == [2_000, 2_000, 2_000]


def test_raw_messages_are_named_by_their_content() -> None:
    """Bare payloads get the stream name of their kind; what has no name is left out and counted."""
    top = b'{"u":9,"s":"BTCUSDT","b":"1.0","B":"1.0","a":"2.0","A":"1.0"}'
    aggregate = b'{"e":"aggTrade","E":5,"s":"BTCUSDT","a":1,"p":"1.0","q":"1.0","f":1,"l":1,"T":5,"m":true,"M":true}'
    rest_body = b'{"lastUpdateId":33933317943,"bids":[],"asks":[]}'
    array = b'{"stream":"!ticker@arr","data":[{"e":"24hrTicker"}]}'
    recording = Recording(
        [trade(1, 5), kline(closed=False, at_ms=6), top, aggregate, rest_body, array, b'{"e":"x","s":"Y"}']
    )
    names = ("trade", "kline_1m", "bookTicker", "aggTrade")
    assert recording.streams == tuple(f"btcusdt@{name}" for name in names)
    assert recording.skipped_lines == 3


def test_microseconds_are_told_by_their_size() -> None:
    """A recording with timeUnit=MICROSECOND plays at the same pace."""
    recording = Recording([trade(1, 1_741_046_401_000_123), trade(2, 1_741_046_401_500_000)])
    recording.watch("btcusdt@trade")
    assert len(recording.advance(WALL_MS)) == 1
    assert len(recording.advance(WALL_MS + 499)) == 0
    assert len(recording.advance(WALL_MS + 500)) == 1
    history = recording.history("BTCUSDT")
    assert history
    assert history.fills[0].time_ms == 1_741_046_401_000


@pytest.mark.parametrize("lines", [[b"not json"], [b'{"e":"trade","t":"x"}'], [], [b'{"lastUpdateId":1}']])
def test_a_file_that_is_no_recording_is_refused(lines: list[bytes]) -> None:
    """Broken lines and empty files get a clear error."""
    with pytest.raises(RecordingError):
        Recording(lines)


@pytest.mark.parametrize(
    "line",
    [
        trade(2, 1_000).replace(b"100.50000000", b"abc"),
        diff(1, 2, 1_000, bids='[["x","1.0"]]'),
        diff(1, 2, 1_000, asks='[["1.0",""]]'),
        b'{"e":"kline","E":1,"s":"BTCUSDT","k":null}',
        combined("btcusdt@kline_1m", b'{"e":"kline","E":1,"s":"BTCUSDT","k":{"t":0}}'),
        kline(closed=True, at_ms=6).replace(b'"i":"1m"', b'"i":"7m"'),
        kline(closed=False, at_ms=6).replace(b'"v":"4.0"', b'"v":"many"'),
        b'{"stream":"\xff@trade","data":{}}',
        b'{"stream":' + b"[" * 100_000,
    ],
)
def test_a_line_with_broken_content_is_named_before_anything_is_played(line: bytes) -> None:
    """It must not end the venue when its turn comes."""
    with pytest.raises(RecordingError, match="line 2 is no message of the venue"):
        Recording([trade(1, 1_000), line])


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b'{"lastUpdateId":5,"bids":[["x","1.0"]],"asks":[]}', b'{"bids":[],"asks":[]}']
)
def test_a_broken_snapshot_is_named(body: bytes) -> None:
    """By its symbol, and before anything is played."""
    with pytest.raises(RecordingError, match="snapshot of BTCUSDT"):
        Recording([diff(1, 4, 1_000)], snapshots={"": body})


def test_a_demo_takes_no_recording_without_a_stream_of_ours(tmp_path: Path) -> None:
    """There would be nothing to subscribe to."""
    aggregate = b'{"e":"aggTrade","E":5,"s":"BTCUSDT","a":1,"p":"1.0","q":"1.0","f":1,"l":1,"T":5,"m":true,"M":true}'
    path = tmp_path / "ws.jsonl"
    path.write_bytes(aggregate)
    with pytest.raises(RecordingError, match="neither trades nor changes of a book nor bars"):
        open_source(path)


def test_the_recorded_snapshot_is_served_until_the_diffs_pass_it() -> None:
    """Before: the file; after: the file plus the diffs, so that the answer always bridges to what comes next."""
    snapshot = b'{"lastUpdateId":5,"bids":[["10.0","1.0"],["9.0","2.0"]],"asks":[["11.0","1.0"]]}'
    lines = [diff(1, 4, 1_000, '[["8.0","8.0"]]'), diff(5, 7, 1_100, '[["10.0","0.0"]]'), diff(8, 9, 1_200)]
    recording = Recording(lines, snapshots={"": snapshot})
    recording.watch("btcusdt@depth@100ms")
    assert recording.depth("BTCUSDT", 1)[0] == 5
    recording.advance(WALL_MS)
    assert recording.depth("BTCUSDT", 5)[:2] == (5, [(10 * 10**8, 10**8), (9 * 10**8, 2 * 10**8)])
    recording.advance(WALL_MS + 200)
    update_id, bids, _ = recording.depth("BTCUSDT", 5)
    assert (update_id, bids) == (9, [(9 * 10**8, 2 * 10**8)])


def test_without_a_snapshot_the_book_is_what_the_diffs_add_up_to() -> None:
    """The last update id is that of the last diff, or the one before the first, so that the answer bridges."""
    recording = Recording([diff(11, 14, 1_000, '[["8.0","8.0"]]', '[["9.0","1.0"]]')])
    recording.watch("btcusdt@depth@100ms")
    assert recording.depth("BTCUSDT", 5) == (10, [], [])
    recording.advance(WALL_MS)
    assert recording.depth("BTCUSDT", 5) == (14, [(8 * 10**8, 8 * 10**8)], [(9 * 10**8, 10**8)])


def test_bars_of_the_recording_are_kept_and_closed_ones_counted() -> None:
    """Interim updates claim nothing; the closing one has its ordinal; REST knows the last state."""
    recording = Recording([kline(closed=False, at_ms=100_000), kline(closed=True, at_ms=120_000)], speed=0)
    recording.watch("btcusdt@kline_1m")
    interim, closed = recording.advance(WALL_MS)
    assert interim.subscription is None
    assert (closed.subscription, closed.first) == (Subscription("BTCUSDT", "kline_1m"), 1)
    history = recording.history("BTCUSDT")
    assert history
    assert [bar.count for bar in history.all_bars("1m")] == [2]


def test_a_file_is_opened_with_the_snapshots_beside_it(tmp_path: Path) -> None:
    """Plain or gzipped; snapshots by symbol or alone; meta files are not snapshots."""
    path = tmp_path / "ws.jsonl.gz"
    path.write_bytes(gzip.compress(diff(3, 4, 1_000) + b"\n"))
    (tmp_path / "depth_snapshot_BTCUSDT.json.gz").write_bytes(gzip.compress(b'{"lastUpdateId":5,"bids":[],"asks":[]}'))
    (tmp_path / "depth_snapshot.meta.json").write_text("{}")
    assert open_recording(path).depth("BTCUSDT", 5) == (5, [], [])


@pytest.mark.parametrize("content", [None, b"\x1f\x8b\x08broken"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A missing file and a damaged archive get the same clear error."""
    path = tmp_path / "ws.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError, match="cannot be read"):
        open_recording(path)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared recordings are not beside this checkout")
@pytest.mark.parametrize(
    "name", ["multi4_20211012/ws.jsonl.gz", "btcusdt_20240808/ws.jsonl.gz", "kline5m_btcusdt_20210914/ws_raw.jsonl"]
)
def test_real_recordings_come_out_byte_by_byte(name: str) -> None:
    """Wrapped again, every message is the recorded line; REST has the trades that were played."""
    path = SHARED / "ws" / name
    recording = open_recording(path, speed=0)
    for stream in recording.streams:
        recording.watch(stream)
    messages = []
    while not recording.finished:
        messages += recording.advance(WALL_MS)
    lines = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines()
    wrapped = [combined(message.stream, message.payload) for message in messages]
    assert lines == (wrapped if lines[0].startswith(b'{"stream"') else [message.payload for message in messages])
    for symbol in recording.symbols:
        history = recording.history(symbol)
        played = [message.first for message in messages if message.subscription == (symbol, "trade")]
        assert history
        assert [fill.trade_id for fill in history.fills] == played


@pytest.mark.skipif(not SHARED.exists(), reason="the shared recordings are not beside this checkout")
def test_the_book_of_a_real_recording_equals_its_book_tickers() -> None:
    """Snapshot plus diffs give the recorded top of book at every bookTicker with the update id of a diff."""
    recording = open_recording(SHARED / "ws" / "btcusdt_20240808" / "ws.jsonl.gz", speed=0)
    for stream in recording.streams:
        recording.watch(stream)
    tops = {}
    for one in recording._recorded:
        if one.message.stream == "btcusdt@bookTicker":
            row = msgspec.json.decode(one.message.payload)
            tops[row["u"]] = row
    compared = 0
    history = recording.history("BTCUSDT")
    assert history
    for one in recording._recorded:
        recording._remember(one)
        if one.diff and one.diff[2] > 50093239218 and (top := tops.get(one.diff[2])):
            [(bid, _)], [(ask, _)] = history.book.top(1)
            assert (f"{bid / 10**8:.2f}", f"{ask / 10**8:.2f}") == (top["b"][:-6], top["a"][:-6])
            compared += 1
    assert compared == 564
