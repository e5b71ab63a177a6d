"""The venue's shapes: every documented variant, its broken siblings, and the shared recordings of the real venue."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core import binance
from ingestor.core.binance import Ack, Poison, ServerShutdown, StreamError, classify, decode_message
from ingestor.core.model import Depth, Kline, MarketData, Trade
from tests.fakes.market_records import PATIENT

MESSAGES = Path(__file__).parents[1] / "data" / "binance"
RECORDED = Path(__file__).parents[3] / "shared" / "data" / "binance"
RECEIVED_US = 1_790_000_000_150_000

needs_recordings = pytest.mark.skipif(not RECORDED.is_dir(), reason="the shared recordings are not on this machine")


def message(name: str) -> bytes:
    return (MESSAGES / f"{name}.json").read_bytes()


def live_trade(name: str) -> MarketData:
    event = decode_message(message(name)).data
    assert isinstance(event, binance.TradeEvent)
    return binance.trade_record(event.symbol, event, RECEIVED_US)


def live_bar(name: str) -> MarketData:
    event = decode_message(message(name)).data
    assert isinstance(event, binance.KlineEvent)
    return binance.kline_record(event.symbol, event, RECEIVED_US)


def test_a_live_trade_keeps_every_value_of_the_venue() -> None:
    """Price and quantity stay the venue's text, the time is the trade time, not the event time."""
    assert live_trade("trade") == MarketData(
        symbol="BTCUSDT",
        timestamp=1790000000122,
        price="86412.57000000",
        volume="0.00120000",
        bid_price=None,
        ask_price=None,
        source="websocket",
        event_type="trade",
        sequence=6400000001,
        received_at=RECEIVED_US,
        trade=Trade(trade_id=6400000001, buyer_is_maker=False),
    )


def test_fields_that_came_or_went_over_the_years_are_skipped() -> None:
    """A trade of 2023 still carries the order ids `b` and `a`."""
    assert live_trade("trade_2023").trade == Trade(3100000001, buyer_is_maker=True)


def test_microseconds_become_milliseconds() -> None:
    """A connection with timeUnit=MICROSECOND yields the same record, cut and not rounded."""
    assert live_trade("trade_microseconds") == live_trade("trade")


def test_a_raw_payload_is_the_same_event_as_the_wrapped_one() -> None:
    """`/ws/` connections send the payload alone."""
    assert binance.decode_payload(message("trade_raw")) == decode_message(message("trade")).data


def test_a_depth_event_carries_its_levels_and_the_top_it_is_given() -> None:
    """Quantities are absolute text, a side may be empty, best bid and ask come from the book."""
    event = decode_message(message("depth")).data
    assert isinstance(event, binance.DepthEvent)
    record = binance.depth_record(event.symbol, event, RECEIVED_US, "86412.56000000", None)
    assert record.depth == Depth(
        first_update_id=90000000001,
        final_update_id=90000000004,
        snapshot=False,
        bids=[("86412.56000000", "1.50000000"), ("86400.00000000", "0.00000000")],
        asks=[],
    )
    assert (record.timestamp, record.sequence, record.event_type) == (1790000000200, 90000000004, "depth")
    assert (record.price, record.volume, record.bid_price, record.ask_price) == (None, None, "86412.56000000", None)


def test_an_open_bar_becomes_a_record_with_close_and_volume_on_top() -> None:
    """Bars are told by open time; price is the close and volume the base volume."""
    record = live_bar("kline_open")
    assert (record.timestamp, record.sequence) == (1790000002001, 1789999980000)
    assert (record.price, record.volume) == ("86412.57000000", "1.25000000")
    assert record.kline == Kline(
        interval="1m",
        open_time=1789999980000,
        close_time=1790000039999,
        open="86400.00000000",
        high="86420.00000000",
        low="86399.99000000",
        close="86412.57000000",
        volume="1.25000000",
        quote_volume="108000.12500000",
        trade_count=12,
        taker_buy_volume="0.50000000",
        taker_buy_quote_volume="43200.05000000",
        first_trade_id=6399999990,
        last_trade_id=6400000001,
        closed=False,
    )


def test_a_bar_without_trades_has_no_trade_ids() -> None:
    """The venue's -1 means absent, and absent is None."""
    kline = live_bar("kline_empty").kline
    assert kline is not None
    assert (kline.first_trade_id, kline.last_trade_id, kline.closed) == (None, None, True)


def test_a_bar_in_microseconds_keeps_its_milliseconds() -> None:
    """...999999 microseconds is ...999 milliseconds: the close time stays inclusive."""
    record = live_bar("kline_microseconds")
    assert record.kline is not None
    assert (record.sequence, record.kline.open_time, record.kline.close_time) == (
        1789999980000,
        1789999980000,
        1790000039999,
    )


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("ack", Ack(7)),
        ("ack_list", Ack(8)),
        ("error_nested", StreamError(2, "Invalid request: invalid stream", 7)),
        ("error_nested_without_id", StreamError(2, "Invalid request: invalid stream")),
        ("error_flat", StreamError(1, "Invalid value type: expected Boolean")),
        ("error_flat_with_id", StreamError(2, "Invalid request: too many parameters", "a1")),
        ("shutdown", ServerShutdown()),
        ("shutdown_raw", ServerShutdown()),
    ],
)
def test_control_messages_are_told_apart(name: str, meaning: object) -> None:
    """The typed decode refuses them, `classify` says what they are, in every shape that was seen."""
    with pytest.raises(binance.REFUSALS):
        decode_message(message(name))
    assert classify(message(name)) == meaning


@pytest.mark.parametrize(
    ("name", "reason", "detail", "symbol"),
    [
        ("book_ticker", "unknown_event", "event None of stream 'btcusdt@bookTicker'", "BTCUSDT"),
        ("agg_trade", "unknown_event", "event 'aggTrade' of stream 'btcusdt@aggTrade'", "BTCUSDT"),
        ("ticker_array", "unknown_event", "event None of stream '!ticker@arr'", None),
        ("trade_raw", "unexpected_shape", "Object missing required field `stream`", "BTCUSDT"),
        (
            "broken_trade_missing_price",
            "unexpected_shape",
            "Object missing required field `p` - at `$.data`",
            "BTCUSDT",
        ),
        ("broken_trade_text_id", "unexpected_shape", "Expected `int`, got `str` - at `$.data.t`", "BTCUSDT"),
        ("broken_trade_number_price", "unexpected_shape", "Expected `str`, got `float` - at `$.data.p`", "BTCUSDT"),
        ("broken_trade_cut", "invalid_json", "Input data was truncated", None),
        (
            "broken_depth_level",
            "unexpected_shape",
            "Expected `array` of length 2 - at `$.data.b[0]`",
            "BTCUSDT",
        ),
        ("broken_trade_huge_id", "unexpected_shape", "<= 9223372036854775807 - at `$.data.t`", "BTCUSDT"),
        ("broken_trade_negative_time", "unexpected_shape", "Expected `int` >= 0 - at `$.data.T`", "BTCUSDT"),
        ("broken_kline_without_bar", "unexpected_shape", "Object missing required field `k` - at `$.data`", "BTCUSDT"),
    ],
)
def test_poison_says_why(name: str, reason: str, detail: str, symbol: str | None) -> None:
    """Every broken sibling is refused and explained well enough to find the cause."""
    with pytest.raises(binance.REFUSALS):
        decode_message(message(name))
    poison = classify(message(name))
    assert isinstance(poison, Poison)
    assert (poison.reason, poison.symbol) == (reason, symbol)
    assert detail in poison.detail


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "invalid_json"),
        (b'{"stream":"btcusdt@trade","data":{"e":"trade","s":"\xff"}}', "invalid_json"),
        (b'{"deep":' + b"[" * 100_000, "invalid_json"),
        (b"[1]", "unexpected_shape"),
        (b"{}", "unexpected_shape"),
        (b'{"stream":"btcusdt@trade","data":7}', "unexpected_shape"),
        (b'{"stream":"btcusdt@trade","data":{"e":["trade"]}}', "unexpected_shape"),
    ],
)
def test_bytes_that_are_no_message_are_poison(raw: bytes, reason: str) -> None:
    """Invalid UTF-8 and bottomless nesting raise no msgspec error; they are refusals all the same."""
    with pytest.raises(binance.REFUSALS):
        decode_message(raw)
    poison = classify(raw)
    assert isinstance(poison, Poison)
    assert poison.reason == reason


def test_a_sound_message_is_not_mistaken() -> None:
    """Asked about a message that the decode accepts, `classify` still answers with poison and does not raise."""
    assert isinstance(classify(message("trade")), Poison)


scalars = st.sampled_from([None, True, 0, -1, 7, "", "btcusdt@trade", "trade", "kline", "serverShutdown"])
json_values = scalars | st.lists(scalars) | st.dictionaries(st.sampled_from(["e", "s", "t", "code", "msg"]), scalars)
keys = st.sampled_from(["stream", "data", "e", "s", "t", "error", "code", "msg", "result", "id"])


@PATIENT
@given(st.dictionaries(keys, json_values))
def test_classify_answers_any_object(fields: dict[str, object]) -> None:
    """Whatever the venue sends, the answer is a value and not an exception."""
    answer = classify(msgspec.json.encode(fields))
    assert isinstance(answer, Ack | StreamError | ServerShutdown | Poison)


@PATIENT
@given(st.binary())
def test_classify_answers_any_bytes(raw: bytes) -> None:
    """Noise on the line is poison, and stops nothing."""
    try:
        decode_message(raw)
    except binance.REFUSALS:
        assert classify(raw) is not None


def test_a_fetched_trade_equals_the_live_one_but_for_its_source() -> None:
    """REST and stream name the same trade differently; the record does not."""
    (row,) = binance.decode_trades(message("rest_trades"))
    fetched, live = binance.rest_trade_record("BTCUSDT", row, RECEIVED_US), live_trade("trade")
    assert fetched.source == "rest"
    fetched.source = "websocket"
    assert fetched == live


def test_a_fetched_bar_is_read_by_position() -> None:
    """Open, high, low, close: the order of REST; closed is what the caller says, trade ids are not there."""
    (row,) = binance.decode_klines(message("rest_klines"))
    record = binance.rest_kline_record("BTCUSDT", "1m", row, RECEIVED_US, closed=True)
    live = live_bar("kline_open")
    assert record.kline is not None
    assert live.kline is not None
    same = msgspec.structs.replace(live.kline, first_trade_id=None, last_trade_id=None, closed=True)
    assert record.kline == same
    assert (record.timestamp, record.sequence, record.source) == (1790000039999, 1789999980000, "rest")
    assert (record.price, record.volume) == (live.price, live.volume)


def test_a_snapshot_is_a_depth_record_at_the_time_of_receipt() -> None:
    """The venue gives a snapshot no time; both update ids are its last one."""
    snapshot = binance.decode_depth(message("rest_depth"))
    record = binance.snapshot_record("BTCUSDT", snapshot, RECEIVED_US, "86412.56000000", "86412.57000000")
    assert record.depth == Depth(
        90000000010, 90000000010, True, [("86412.56000000", "1.50000000")], [("86412.57000000", "2.00000000")]
    )
    assert (record.timestamp, record.sequence, record.source) == (1790000000150, 90000000010, "rest")


def test_the_other_answers_of_rest_are_read() -> None:
    """Aggregates, limits, clock, heads and refusals."""
    good, invalidated = binance.decode_agg_trades(message("rest_agg_trades"))
    assert (good.first_trade_id, good.last_trade_id, good.time) == (6400000001, 6400000002, 1790000000122)
    assert invalidated.first_trade_id == -1
    info = binance.decode_exchange_info(message("rest_exchange_info"))
    assert info.symbols == [binance.SymbolInfo("BTCUSDT", "TRADING", "USDT")]
    assert info.rate_limits == [binance.RateLimit("REQUEST_WEIGHT", "MINUTE", 1, 6000)]
    assert binance.decode_server_time(message("rest_time")).server_time == 1790000000000
    assert [ticker.last_trade_id for ticker in binance.decode_tickers(message("rest_tickers"))] == [6400000001, -1]
    assert binance.decode_refusal(message("rest_refusal")) == binance.VenueRefusal(-1121, "Invalid symbol.")


@needs_recordings
@pytest.mark.parametrize("recording", ["btcusdt_20230405", "btcusdt_20240808", "ethusdt_20240809"])
def test_every_recorded_trade_and_delta_equals_its_source(recording: str) -> None:
    """Field by field against a plain json reading; what is not ours is classified as unknown."""
    trades = deltas = 0
    with gzip.open(RECORDED / "ws" / recording / "ws.jsonl.gz") as lines:
        for line in lines:
            source = json.loads(line)["data"]
            try:
                event = decode_message(line).data
            except binance.REFUSALS:
                assert classify(line) == Poison(
                    "unknown_event", f"event None of stream '{source['s'].lower()}@bookTicker'", source["s"]
                )
                continue
            if isinstance(event, binance.TradeEvent):
                trades += 1
                record = binance.trade_record(event.symbol, event, RECEIVED_US)
                told = (record.symbol, record.timestamp, record.price, record.volume, record.sequence)
                assert told == (source["s"], source["T"], source["p"], source["q"], source["t"])
                assert record.trade == Trade(source["t"], source["m"])
            else:
                assert isinstance(event, binance.DepthEvent)
                deltas += 1
                depth = binance.depth_record(event.symbol, event, RECEIVED_US, None, None).depth
                assert depth is not None
                assert (depth.first_update_id, depth.final_update_id) == (source["U"], source["u"])
                assert [*map(list, depth.bids)] == source["b"]
                assert [*map(list, depth.asks)] == source["a"]
    counts = {"btcusdt_20230405": (3144, 3929), "btcusdt_20240808": (9757, 3451), "ethusdt_20240809": (8409, 3036)}
    assert (trades, deltas) == counts[recording]


@needs_recordings
def test_the_other_recordings_are_understood() -> None:
    """Four symbols on one connection, raw bars, and single messages of other kinds."""
    kinds: dict[str, int] = {}
    with gzip.open(RECORDED / "ws" / "multi4_20211012" / "ws.jsonl.gz") as lines:
        misc = (RECORDED / "ws" / "misc_spot_messages.jsonl").read_bytes().splitlines()
        for line in [*lines, *misc]:
            try:
                kind = type(decode_message(line).data).__name__
            except binance.REFUSALS:
                poison = classify(line)
                assert isinstance(poison, Poison)
                kind = poison.reason
            kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds == {"DepthEvent": 178, "KlineEvent": 3, "unknown_event": 91, "unexpected_shape": 1}
    raw = (RECORDED / "ws" / "kline5m_btcusdt_20210914" / "ws_raw.jsonl").read_bytes().splitlines()
    assert all(isinstance(binance.decode_payload(line), binance.KlineEvent) for line in raw)


@needs_recordings
def test_recorded_rest_answers_are_read() -> None:
    """Real pages of trades, bars, aggregates, books and symbols."""
    rest = RECORDED / "rest"
    small = rest / "small_20211022"
    rows = binance.decode_trades(gzip.decompress((rest / "trades_ETHBTC_limit1000.json.gz").read_bytes()))
    assert [row.trade_id for row in rows] == list(range(409018748, 409019748))
    assert len(binance.decode_trades((small / "historical_trades.json").read_bytes())) == 10
    assert len(binance.decode_trades((small / "trades.json").read_bytes())) == 10
    assert len(binance.decode_agg_trades((small / "agg_trades.json").read_bytes())) == 10
    assert len(binance.decode_depth((small / "depth.json").read_bytes()).bids) == 10
    bars = binance.decode_klines(gzip.decompress((rest / "klines_BTCUSDT_1h_page2.json.gz").read_bytes()))
    assert len(bars) == 468
    for bar in bars:
        assert float(bar.low) <= min(float(bar.open), float(bar.close))
        assert float(bar.high) >= max(float(bar.open), float(bar.close))
    info = binance.decode_exchange_info(gzip.decompress((rest / "exchangeInfo_20211012.json.gz").read_bytes()))
    assert sum(symbol.status == "TRADING" for symbol in info.symbols) == 1262
    assert all(symbol.quote_asset for symbol in info.symbols)


@pytest.mark.parametrize("name", ["e", "stream"])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_no_depth_of_nesting_ends_the_service(name: str, opening: bytes) -> None:
    """The decoder gives up at some depth; what it takes just below that is not written out again."""
    closing = b"]" if opening == b"[" else b"}"
    for depth in range(900, 1_050):
        deep = opening * depth + b"1" + closing * depth
        for message in (
            b'{"%b":%b,"x":"y"}' % (name.encode(), deep),
            b'{"stream":"a@b","data":{"%b":%b}}' % (name.encode(), deep),
            b'{"error":{"code":1,"msg":%b}}' % deep,
        ):
            assert isinstance(classify(message), Poison | StreamError)


def test_what_is_said_of_a_message_is_short_whatever_is_in_it() -> None:
    """A megabyte of name would be written down four times."""
    for message in (
        b'{"e":"%b","stream":"%b"}' % (b"e" * 100_000, b"s" * 100_000),
        b'{"data":{"e":"trade","s":"%b"}}' % (b"s" * 100_000),
    ):
        poison = classify(message)
        assert isinstance(poison, Poison)
        assert len(poison.detail) < 600
        assert poison.symbol is None
    refusal = classify(b'{"code":1,"msg":"%b"}' % (b"m" * 100_000))
    assert isinstance(refusal, StreamError)
    assert len(refusal.text) < 600
