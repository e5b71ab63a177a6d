"""The REST side by the venue's rules: layouts, parameters, weights, limits, and the traps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest

from ingestor.local.history import bar_open_ms
from ingestor.local.market import Market
from ingestor.local.protocol import Rules
from ingestor.local.rest import Response, RestDesk, RestTrouble

START_MS = 1_790_000_040_000
NOW_MS = START_MS + 130_000


@pytest.fixture(scope="module")
def market() -> Market:
    market = Market(("BTCUSDT", "ETHBTC", "XYZABC"), start_ms=START_MS, orders_per_s=20)
    market.advance(NOW_MS)
    return market


@pytest.fixture
def desk(market: Market) -> RestDesk:
    return RestDesk(market, Rules())


def get(desk: RestDesk, name: str, now_ms: int = NOW_MS, **params: Any) -> Any:
    response = desk.answer(f"/api/v3/{name}", [(key, str(value)) for key, value in params.items()], now_ms)
    return msgspec.json.decode(response.body)


def code(desk: RestDesk, name: str, params: list[tuple[str, str]]) -> tuple[int, int]:
    response = desk.answer(f"/api/v3/{name}", params, NOW_MS)
    return response.status, msgspec.json.decode(response.body)["code"]


def test_simple_endpoints(desk: RestDesk) -> None:
    """Ping, time, and 404 for what does not exist."""
    assert get(desk, "ping") == {}
    assert get(desk, "time") == {"serverTime": NOW_MS}
    assert desk.answer("/api/v1/ping", [], NOW_MS).status == 404
    assert desk.requests == {"/api/v3/ping": 1, "/api/v3/time": 1, "/api/v1/ping": 1}


def test_exchange_info_has_symbols_and_limits(desk: RestDesk) -> None:
    """All symbols, or those asked for; the weight limit is the one that is enforced."""
    info = get(desk, "exchangeInfo")
    assert [(one["symbol"], one["baseAsset"], one["quoteAsset"]) for one in info["symbols"]] == [
        ("BTCUSDT", "BTC", "USDT"),
        ("ETHBTC", "ETH", "BTC"),
        ("XYZABC", "XYZ", "ABC"),
    ]
    assert info["rateLimits"][0] == {
        "rateLimitType": "REQUEST_WEIGHT",
        "interval": "MINUTE",
        "intervalNum": 1,
        "limit": 6_000,
    }
    assert len(get(desk, "exchangeInfo", symbol="ETHBTC")["symbols"]) == 1
    assert len(get(desk, "exchangeInfo", symbols='["ETHBTC","BTCUSDT"]')["symbols"]) == 2


def test_depth_is_best_first_and_within_the_limit(desk: RestDesk, market: Market) -> None:
    """100 levels by default, the id of the last change, bids falling and asks rising."""
    book = get(desk, "depth", symbol="BTCUSDT")
    assert (len(book["bids"]), len(book["asks"])) == (100, 100)
    assert book["lastUpdateId"] == market.depth("BTCUSDT", 1)[0]
    bids, asks = ([float(price) for price, _ in book[side]] for side in ("bids", "asks"))
    assert bids == sorted(bids, reverse=True)
    assert asks == sorted(asks)
    assert bids[0] < asks[0]


def test_trades_and_historical_trades_are_the_same_rows(desk: RestDesk) -> None:
    """The newest trades, pages by id, and a page that starts at the oldest id when the asked one is gone."""
    newest = get(desk, "trades", symbol="BTCUSDT", limit=5)
    assert get(desk, "historicalTrades", symbol="BTCUSDT", limit=5) == newest
    assert get(desk, "historicalTrades", symbol="BTCUSDT", fromId=newest[1]["id"], limit=3) == newest[1:4]
    assert get(desk, "historicalTrades", symbol="BTCUSDT", fromId=newest[-1]["id"] + 1) == []
    oldest = get(desk, "historicalTrades", symbol="BTCUSDT", fromId=1)
    assert (oldest[0]["id"] > 1, len(oldest)) == (True, 500)
    assert list(newest[0]) == ["id", "price", "qty", "quoteQty", "time", "isBuyerMaker", "isBestMatch"]


def test_the_database_may_lag_behind(desk: RestDesk) -> None:
    """Under lag the newest trades are missing from the database, and not from memory."""
    newest = get(desk, "trades", symbol="BTCUSDT", limit=1)[0]
    desk.trouble.lag_ms = 5_000
    late = get(desk, "historicalTrades", symbol="BTCUSDT", limit=1)[0]
    assert late["time"] <= NOW_MS - 5_000 < newest["time"]
    assert get(desk, "aggTrades", symbol="BTCUSDT", limit=1)[0]["l"] == late["id"]
    assert get(desk, "trades", symbol="BTCUSDT", limit=1) == [newest]


def test_aggregates_chain_over_all_trades(desk: RestDesk) -> None:
    """Ranges chain, by time or by id, and startTime with endTime gives the oldest first."""
    page = get(desk, "aggTrades", symbol="BTCUSDT", startTime=START_MS, endTime=START_MS + 20_000, limit=1_000)
    assert all(later["f"] == earlier["l"] + 1 for earlier, later in pairwise(page))
    assert all(START_MS <= row["T"] <= START_MS + 20_000 for row in page)
    assert get(desk, "aggTrades", symbol="BTCUSDT", fromId=page[3]["a"], limit=2) == page[3:5]
    assert get(desk, "aggTrades", symbol="BTCUSDT", endTime=page[9]["T"], limit=1)[0]["T"] == page[9]["T"]
    assert list(page[0]) == ["a", "p", "q", "f", "l", "T", "m", "M"]


def test_klines_end_with_the_unfinished_bar_unmarked(desk: RestDesk) -> None:
    """Twelve elements a row; the last bar is not over; time parameters are inclusive and may be microseconds."""
    rows = get(desk, "klines", symbol="BTCUSDT", interval="1m")
    opened = bar_open_ms("1m", START_MS)
    assert [row[0] for row in rows] == [opened + number * 60_000 for number in range(3)]
    assert {len(row) for row in rows} == {12}
    assert rows[-1][6] > NOW_MS
    assert get(desk, "klines", symbol="BTCUSDT", interval="1m", limit=1) == rows[-1:]
    assert get(desk, "klines", symbol="BTCUSDT", interval="1m", startTime=opened, limit=1) == rows[:1]
    assert get(desk, "klines", symbol="BTCUSDT", interval="1m", startTime=opened * 1_000, endTime=opened) == rows[:1]
    assert get(desk, "klines", symbol="BTCUSDT", interval="1m", endTime=0) == []


def test_bars_that_never_existed_are_missing(market: Market) -> None:
    """A hole that will not fill, as after an exchange halt."""
    opened = bar_open_ms("1m", START_MS)
    desk = RestDesk(market, Rules(), RestTrouble(missing_bars={("BTCUSDT", "1m"): {opened + 60_000}}))
    assert [row[0] for row in get(desk, "klines", symbol="BTCUSDT", interval="1m")] == [opened, opened + 120_000]


def test_the_ticker_gives_the_last_id_of_all_symbols(desk: RestDesk) -> None:
    """One call for all symbols, or one row for one."""
    rows = get(desk, "ticker/24hr")
    assert [row["symbol"] for row in rows] == ["BTCUSDT", "ETHBTC", "XYZABC"]
    row = get(desk, "ticker/24hr", symbol="ETHBTC")
    assert row == rows[1]
    assert row["lastId"] == get(desk, "trades", symbol="ETHBTC", limit=1)[0]["id"]
    assert row["count"] == row["lastId"] - row["firstId"] + 1


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("depth", [("symbol", "NOSUCH")], -1121),
        ("depth", [("symbol", "BTC%USDT")], -1100),
        ("depth", [], -1102),
        ("depth", [("symbol", "")], -1102),
        ("depth", [("symbol", "BTCUSDT"), ("limit", "ten")], -1100),
        ("depth", [("symbol", "BTCUSDT"), ("limit", "0")], -1102),
        ("depth", [("symbol", "BTCUSDT"), ("symbol", "ETHBTC")], -1101),
        ("depth", [("symbol", "BTCUSDT"), ("colour", "red")], -1104),
        ("time", [("now", "1")], -1104),
        ("klines", [("symbol", "BTCUSDT")], -1102),
        ("klines", [("symbol", "BTCUSDT"), ("interval", "7m")], -1120),
        ("klines", [("symbol", "BTCUSDT"), ("interval", "1m"), ("startTime", "-1")], -1100),
        ("aggTrades", [("symbol", "BTCUSDT"), ("fromId", "1"), ("startTime", "1")], -1128),
        ("exchangeInfo", [("symbols", "[BTC")], -1135),
        ("exchangeInfo", [("symbols", '["BTCUSDT","BTCUSDT"]')], -1151),
        ("exchangeInfo", [("symbols", '["NOSUCH"]')], -1121),
    ],
)
def test_wrong_parameters_get_the_venues_codes(
    desk: RestDesk, name: str, params: list[tuple[str, str]], expected: int
) -> None:
    """HTTP 400 with the documented code."""
    assert code(desk, name, params) == (400, expected)


@pytest.mark.parametrize(
    ("name", "params", "weight"),
    [
        ("ping", {}, 1),
        ("exchangeInfo", {}, 20),
        ("depth", {"symbol": "BTCUSDT"}, 5),
        ("depth", {"symbol": "BTCUSDT", "limit": 101}, 25),
        ("depth", {"symbol": "BTCUSDT", "limit": 1_000}, 50),
        ("depth", {"symbol": "BTCUSDT", "limit": 1_001}, 250),
        ("depth", {"symbol": "BTCUSDT", "limit": "x"}, 5),
        ("trades", {"symbol": "BTCUSDT"}, 25),
        ("historicalTrades", {"symbol": "BTCUSDT"}, 25),
        ("aggTrades", {"symbol": "BTCUSDT"}, 4),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m"}, 2),
        ("ticker/24hr", {"symbol": "BTCUSDT"}, 2),
        ("ticker/24hr", {"symbols": '["BTCUSDT","ETHBTC"]'}, 2),
        ("ticker/24hr", {"symbols": ",".join(["A"] * 50)}, 40),
        ("ticker/24hr", {}, 80),
    ],
)
def test_weights_are_counted_in_the_headers(desk: RestDesk, name: str, params: dict[str, Any], weight: int) -> None:
    """Both used-weight headers say what was used this minute; refused requests cost as well."""
    response = desk.answer(f"/api/v3/{name}", [(key, str(value)) for key, value in params.items()], NOW_MS)
    assert dict(response.headers)["x-mbx-used-weight"] == str(weight)
    assert dict(response.headers)["x-mbx-used-weight-1m"] == str(weight)


def test_over_the_limit_429_then_a_ban_that_grows(market: Market) -> None:
    """429 until the minute is over; whoever goes on is banned with 418, the second time twice as long."""
    desk = RestDesk(market, Rules(weight_per_minute=2, strikes=1, ban_s=120.0))
    minute_ms = 1_800_000_000_000

    def ping(now_ms: int) -> tuple[int, str | None]:
        response = desk.answer("/api/v3/ping", [], now_ms)
        return response.status, dict(response.headers).get("retry-after")

    assert [ping(minute_ms + 15_500) for _ in range(3)] == [(200, None), (200, None), (429, "45")]
    assert ping(minute_ms + 15_500) == (418, "120")
    assert ping(minute_ms + 75_500) == (418, "60")
    later_ms = minute_ms + 180_000
    assert [ping(later_ms)[0] for _ in range(4)] == [200, 200, 429, 418]
    assert ping(later_ms) == (418, "240")
    assert [ping(later_ms + 240_000)[0] for _ in range(3)] == [200, 200, 429]
    assert ping(later_ms + 300_000) == (200, None)


def test_stale_books_are_given_until_that_is_over() -> None:
    """The stream goes on, the snapshot does not."""
    market = Market(("BTCUSDT",), start_ms=START_MS)
    desk = RestDesk(market, Rules(), RestTrouble(stale_books={}))
    before = get(desk, "depth", symbol="BTCUSDT", limit=7)
    market.advance(START_MS + 5_000)
    assert get(desk, "depth", symbol="BTCUSDT", limit=7) == before
    assert len(before["bids"]) == 7
    desk.trouble.stale_books = None
    assert get(desk, "depth", symbol="BTCUSDT", limit=7)["lastUpdateId"] > before["lastUpdateId"]


def test_trouble_answers_instead(market: Market) -> None:
    """A scripted answer comes whatever is asked."""
    desk = RestDesk(market, Rules(), RestTrouble(answer=Response(503, b"{}")))
    assert desk.answer("/api/v3/ping", [], NOW_MS).status == 503
