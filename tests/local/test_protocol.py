"""One connection by the venue's rules: subscriptions, replies, limits and pings, without a socket."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ingestor.local.history import Message
from ingestor.local.protocol import BadPathError, Close, Ping, Rules, VenueConnection, parse_target, shutdown_notice


def connect(target: str = "/stream", **rules: Any) -> VenueConnection:
    return VenueConnection(target, Rules(**rules), now=0.0)


def ask(connection: VenueConnection, text: str | dict[str, Any], now: float = 1.0) -> Any:
    text = text if isinstance(text, str) else msgspec.json.encode(text).decode()
    [reply] = connection.receive(text, now)
    return msgspec.json.decode(reply) if isinstance(reply, bytes) else reply


@pytest.mark.parametrize(
    ("target", "combined", "streams"),
    [
        ("/ws", False, ()),
        ("/ws/", False, ()),
        ("/ws/btcusdt@trade", False, ("btcusdt@trade",)),
        ("/ws/btcusdt@trade/ethusdt@depth@100ms", False, ("btcusdt@trade", "ethusdt@depth@100ms")),
        ("/stream", True, ()),
        ("/stream?streams=", True, ()),
        ("/stream?streams=btcusdt@kline_1m/!miniTicker@arr", True, ("btcusdt@kline_1m", "!miniTicker@arr")),
        ("/stream?streams=btcusdt%40kline_1M%40%2B08:00&timeUnit=millisecond", True, ("btcusdt@kline_1M@+08:00",)),
    ],
)
def test_paths_name_mode_and_streams(target: str, combined: bool, streams: tuple[str, ...]) -> None:
    """Raw and combined, with names or bare, URL-encoded or not."""
    assert parse_target(target) == (combined, streams)


@pytest.mark.parametrize(
    "target", ["/", "/wss", "/ws/nonsense", "/stream?streams=btcusdt@kline_7m", "/stream?timeUnit=MICROSECOND"]
)
def test_other_paths_are_refused(target: str) -> None:
    """Unknown paths, malformed names, and a unit that this venue does not speak."""
    with pytest.raises(BadPathError):
        connect(target)


def test_subscriptions_are_acknowledged_listed_and_taken_back() -> None:
    """Acks carry the id as sent; a symbol that does not exist is acknowledged as well."""
    connection = connect()
    assert ask(connection, {"method": "SUBSCRIBE", "params": ["nosuch@trade", "btcusdt@depth"], "id": 1}) == {
        "result": None,
        "id": 1,
    }
    assert ask(connection, {"method": "LIST_SUBSCRIPTIONS", "id": "a1"}) == {
        "result": ["nosuch@trade", "btcusdt@depth"],
        "id": "a1",
    }
    assert (
        ask(connection, {"method": "UNSUBSCRIBE", "params": ["nosuch@trade", "never@trade"], "id": None})["id"] is None
    )
    assert connection.audible == {"btcusdt@depth"}


def test_the_property_decides_about_wrapping() -> None:
    """`combined` follows the path and can be set and read."""
    connection = connect("/ws")
    message = Message("btcusdt@trade", b'{"e":"trade"}', 1)
    assert connection.wrap(message) == b'{"e":"trade"}'
    assert ask(connection, {"method": "GET_PROPERTY", "params": ["combined"], "id": 1})["result"] is False
    assert ask(connection, {"method": "SET_PROPERTY", "params": ["combined", True], "id": 2})["result"] is None
    assert connection.wrap(message) == b'{"stream":"btcusdt@trade","data":{"e":"trade"}}'


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"method":"SET_PROPERTY","params":["colour",1],"id":1}', 0),
        ('{"method":"SET_PROPERTY","params":["combined",1],"id":1}', 1),
        ('{"method":"SET_PROPERTY","params":[],"id":1}', 2),
        ('{"method":"SUBSCRIBE","params":[],"id":1}', 2),
        ('{"method":"SUBSCRIBE","params":["btcusdt@trade"]}', 2),
        ('{"params":[],"id":1}', 2),
        ('{"method":"PLEASE","id":1}', 2),
        ('{"method":"SUBSCRIBE","params":[],"id":1.5}', 2),
        ('{"method":', 3),
    ],
)
def test_documented_errors_are_flat(text: str, code: int) -> None:
    """Malformed requests get code and msg at the top."""
    assert ask(connect(), text)["code"] == code


@pytest.mark.parametrize("params", [["nonsense"], ["btcusdt@trade", 7]])
def test_a_malformed_stream_gets_the_nested_error_and_subscribes_nothing(params: list[Any]) -> None:
    """The shape that the real server sends, and the good names of the same request are not taken."""
    connection = connect()
    assert ask(connection, {"method": "SUBSCRIBE", "params": params, "id": 7}) == {
        "error": {"code": 2, "msg": "Invalid request: invalid stream"},
        "id": 7,
    }
    assert connection.audible == frozenset()


def test_more_streams_than_allowed_are_refused() -> None:
    """1024 streams a connection at most; those already there stay."""
    connection = connect("/stream?streams=a@trade/b@trade", max_streams=2)
    assert "error" in ask(connection, {"method": "SUBSCRIBE", "params": ["c@trade"], "id": 1})
    assert ask(connection, {"method": "SUBSCRIBE", "params": ["b@trade"], "id": 2}) == {"result": None, "id": 2}
    assert connection.audible == {"a@trade", "b@trade"}


@pytest.mark.parametrize(("size", "replies"), [(4088, 1), (4089, 0)])
def test_a_request_above_4096_bytes_gets_no_reply_and_no_subscription(size: int, replies: int) -> None:
    """4088 bytes of payload and the frame header are what the venue takes."""
    connection = connect()
    text = '{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}'
    assert len(connection.receive(text.ljust(size), 1.0)) == replies
    assert len(connection.streams) == replies


def test_the_sixth_message_of_a_second_closes() -> None:
    """Pings, pongs and requests count together; a slower client is fine."""
    connection = connect()
    for now in (0.0, 0.1, 0.2):
        assert connection.receive_pong(now, b"") == []
    assert connection.receive_ping(0.3) == []
    assert ask(connection, {"method": "LIST_SUBSCRIPTIONS", "id": 1}, 0.4)["result"] == []
    assert connection.receive_ping(1.05) == []
    assert ask(connection, {"method": "LIST_SUBSCRIPTIONS", "id": 1}, 1.06) == Close(1008, "Too many requests")
    assert connection.receive_pong(1.07, b"") == connection.receive_ping(1.07) == [Close(1008, "Too many requests")]


def test_pings_every_20_seconds_and_a_close_a_minute_after_the_first_without_pong() -> None:
    """A pong starts the count again."""
    connection = connect()
    assert connection.tick(19.9) == []
    assert connection.tick(20.0) == [Ping(b"1")]
    assert connection.receive_pong(21.0, b"1") == []
    assert [connection.tick(now) for now in (40.0, 60.0, 80.0)] == [[Ping(b"2")], [Ping(b"3")], [Ping(b"4")]]
    assert connection.tick(100.0) == [Close(1008, "Pong timeout")]


def test_only_a_pong_with_the_payload_of_a_ping_is_an_answer() -> None:
    """Of any ping that is not answered yet; it answers those before it too."""
    connection = connect()
    for now in (20.0, 40.0):
        connection.tick(now)
    assert connection.receive_pong(41.0, b"") == connection.receive_pong(42.0, b"3") == []
    assert connection.receive_pong(43.0, b"1") == []
    assert connection.tick(60.0) == [Ping(b"3")]
    assert connection.tick(80.0) == [Ping(b"4")]
    assert connection.tick(100.0) == [Close(1008, "Pong timeout")]


def test_a_request_nested_without_end_is_answered_with_an_error() -> None:
    """It must not end the venue."""
    text = '{"id":1,"method":"SUBSCRIBE","params":' + "[" * 4_000
    assert msgspec.json.decode(connect().receive(text, 1.0)[0])["code"] == 3  # type: ignore[arg-type]


def test_a_connection_ends_after_24_hours() -> None:
    """Whatever is subscribed."""
    assert connect(lifetime_s=5.0).tick(5.0) == [Close(1001, "24 hours are over")]


def test_a_deaf_stream_is_listed_but_silent_until_it_is_named_again() -> None:
    """Acknowledged and dead: LIST_SUBSCRIPTIONS does not show it, subscribing again cures it."""
    connection = connect("/stream?streams=a@trade/b@trade")
    connection.deafen("a@trade")
    assert connection.audible == {"b@trade"}
    assert ask(connection, {"method": "LIST_SUBSCRIPTIONS", "id": 1})["result"] == ["a@trade", "b@trade"]
    ask(connection, {"method": "SUBSCRIBE", "params": ["a@trade"], "id": 2})
    assert connection.audible == {"a@trade", "b@trade"}


def test_the_shutdown_notice_has_both_shapes() -> None:
    """Raw, and wrapped under a stream name that nobody subscribed to."""
    assert shutdown_notice(5, combined=False) == b'{"e":"serverShutdown","E":5}'
    assert shutdown_notice(5, combined=True) == b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":5}}'
