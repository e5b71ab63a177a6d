"""Scripts of faults: in order, once each, and reproducible when drawn from a seed."""

from __future__ import annotations

import msgspec
import pytest

from ingestor.local.faults import Disconnect, Lag, RestFailure, Script, Shutdown, Skip, chaos, garbage, rest_answer

STREAMS = ("btcusdt@trade", "btcusdt@depth@100ms")


def test_a_script_hands_out_each_fault_once_in_order() -> None:
    """What is due comes out, by time, and never again."""
    first, second, third = Lag(1.0, 2.0), Disconnect(2.0), Shutdown(3.0)
    script = Script([third, first, second])
    assert script.due(0.9) == []
    assert script.due(2.0) == [first, second]
    assert script.due(2.0) == []
    assert script.due(float("-inf")) == []
    assert script.due(10.0) == [third]


def test_chaos_is_the_same_for_the_same_seed() -> None:
    """Seeded, bounded in time and density, and varied."""
    faults = chaos(1, STREAMS, 600.0)
    assert faults == chaos(1, STREAMS, 600.0) != chaos(2, STREAMS, 600.0)
    assert 130 < len(faults) < 190
    assert all(60.0 < fault.at_s < 540.0 for fault in faults)
    assert len({type(fault) for fault in faults}) == len({type(fault) for fault in faults[:13]}) == 11
    assert {fault.stream for fault in faults if isinstance(fault, Skip)} == set(STREAMS)


@pytest.mark.parametrize(
    ("what", "status", "code", "retry_after"),
    [
        ("internal", 500, -1000, None),
        ("busy", 503, -1008, None),
        ("restricted", 451, 0, None),
        ("timeout", 408, -1007, None),
        ("limited", 429, -1003, "7"),
        ("banned", 418, -1003, "7"),
    ],
)
def test_rest_failures_look_like_the_venues(what: RestFailure, status: int, code: int, retry_after: str | None) -> None:
    """Status, code, and Retry-After where the venue sends it."""
    answer = rest_answer(what, 7.0, 1_000)
    assert answer is not None
    body = msgspec.json.decode(answer.body)
    assert (answer.status, body["code"], dict(answer.headers).get("retry-after")) == (status, code, retry_after)
    assert what != "banned" or "8000" in body["msg"]


def test_the_firewall_speaks_html() -> None:
    """403 has no code to read."""
    answer = rest_answer("forbidden", 1.0, 0)
    assert answer is not None
    assert (answer.status, answer.body[:6]) == (403, b"<html>")


def test_mute_rest_has_no_answer() -> None:
    """There is nothing to send."""
    assert rest_answer("mute", 1.0, 0) is None


def test_garbage_is_what_it_says() -> None:
    """Neither JSON nor UTF-8, or valid and strange, or far too large."""
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(garbage("invalid_json"))
    with pytest.raises(UnicodeDecodeError):
        garbage("invalid_utf8").decode()
    assert msgspec.json.decode(garbage("unknown_event"))["data"]["e"] == "mystery"
    assert len(garbage("oversize")) > 16 << 20
