"""A model of the venue's REST side as an httpx transport: scripted answers first, then a small truthful market."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import trio

from ingestor.core.claims import kline_open_ms, kline_ordinal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

START_MS = 1_700_000_040_000  # a full minute, so that the fake's budget windows begin with the trio clock


def wall_ns() -> int:
    """Return the wall clock that goes with trio's (mock) clock, which begins at 0."""
    return START_MS * 1_000_000 + round(trio.current_time() * 1e9)


class Asked(NamedTuple):
    """One request as the venue saw it; `at_s` is trio's clock."""

    at_s: float
    endpoint: str
    params: dict[str, str]


class Answer(NamedTuple):
    """A scripted answer."""

    status: int
    body: object = None
    headers: dict[str, str] = {}  # noqa: RUF012 - a default of a NamedTuple, never changed


@dataclass
class Market:
    """What the venue knows of one symbol."""

    oldest_id: int = 0
    newest_id: int = 0
    lost_ids: set[int] = field(default_factory=set)  # ids the database has lost in between
    lag_until_s: float = 0.0  # until then the database ends at `lag_id`
    lag_id: int = -1
    missing_bars: set[int] = field(default_factory=set)  # ordinals
    bars_from_s: float = 0.0  # until then the database has no bar at all
    books: deque[tuple[int, list[list[str]], list[list[str]]]] = field(default_factory=deque)


@dataclass
class FakeRest(httpx.AsyncBaseTransport):
    """Answers like the venue; `asked` is the record of what it was asked, `script` what it answers first."""

    markets: dict[str, Market] = field(default_factory=dict)
    script: deque[Answer | Exception] = field(default_factory=deque)
    refused: dict[str, Answer] = field(default_factory=dict)  # endpoint -> the answer it always gives
    latency_s: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    used_weight: Callable[[], int | None] = lambda: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        endpoint = request.url.path.removeprefix("/api/v3/")
        params = dict(request.url.params)
        self.asked.append(Asked(trio.current_time(), endpoint, params))
        await trio.sleep(self.latency_s)
        answer = self._answer(endpoint, params)
        if isinstance(answer, Exception):
            raise answer
        used = self.used_weight()
        headers = {"X-MBX-USED-WEIGHT-1M": str(used), **answer.headers} if used is not None else answer.headers
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        return httpx.Response(answer.status, headers=headers, content=content)

    def times(self, endpoint: str) -> list[float]:
        """When `endpoint` was asked."""
        return [asked.at_s for asked in self.asked if asked.endpoint == endpoint]

    def _answer(self, endpoint: str, params: dict[str, str]) -> Answer | Exception:
        if self.script:
            return self.script.popleft()
        if endpoint in self.refused:
            return self.refused[endpoint]
        if "symbol" in params and params["symbol"] not in self.markets:
            return Answer(400, {"code": -1121, "msg": "Invalid symbol."})
        models: dict[str, Callable[[dict[str, str]], Any]] = {
            "ping": lambda _: {},
            "time": lambda _: {"serverTime": wall_ns() // 1_000_000},
            "exchangeInfo": lambda _: self._exchange_info(),
            "depth": self._depth,
            "trades": self._trades,
            "historicalTrades": self._historical_trades,
            "aggTrades": self._agg_trades,
            "klines": self._klines,
            "ticker/24hr": lambda _: [{"symbol": s, "lastId": m.newest_id} for s, m in self.markets.items()],
        }
        return Answer(200, models[endpoint](params))

    def _exchange_info(self) -> dict[str, Any]:
        limits = [
            {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 61000},
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
        ]
        symbols = [{"symbol": symbol, "status": "TRADING", "quoteAsset": "USDT"} for symbol in self.markets]
        return {"timezone": "UTC", "rateLimits": limits, "symbols": symbols}

    def _depth(self, params: dict[str, str]) -> dict[str, Any]:
        market = self.markets[params["symbol"]]
        update_id, bids, asks = market.books.popleft() if len(market.books) > 1 else market.books[0]
        limit = int(params["limit"])
        return {"lastUpdateId": update_id, "bids": bids[:limit], "asks": asks[:limit]}

    def _trades(self, params: dict[str, str]) -> list[dict[str, Any]]:
        market = self.markets[params["symbol"]]
        first = max(market.oldest_id, market.newest_id - int(params["limit"]) + 1)
        return rows_of(range(first, market.newest_id + 1))

    def _historical_trades(self, params: dict[str, str]) -> list[dict[str, Any]]:
        market = self.markets[params["symbol"]]
        newest = market.lag_id if trio.current_time() < market.lag_until_s else market.newest_id
        first = max(market.oldest_id, int(params["fromId"]))
        kept = (i for i in range(first, newest + 1) if i not in market.lost_ids)
        return rows_of([trade_id for trade_id, _ in zip(kept, range(int(params["limit"])), strict=False)])

    def _agg_trades(self, params: dict[str, str]) -> list[dict[str, Any]]:
        """Every aggregate trade holds ten trades."""
        market = self.markets[params["symbol"]]
        first = max(market.oldest_id, market.newest_id - int(params["limit"]) * 10 + 1)
        return [
            {"a": f, "p": "1.0", "q": "1.0", "f": f, "l": min(f + 9, market.newest_id), "T": 1, "m": True, "M": True}
            for f in range(first, market.newest_id + 1, 10)
        ]

    def _klines(self, params: dict[str, str]) -> list[list[Any]]:
        market = self.markets[params["symbol"]]
        interval, now_ms = params["interval"], wall_ns() // 1_000_000
        ordinals: Iterable[int] = range(
            kline_ordinal(interval, int(params["startTime"])),
            kline_ordinal(interval, min(now_ms, int(params["endTime"]))) + 1,
        )
        if trio.current_time() < market.bars_from_s:
            ordinals = ()
        present = [ordinal for ordinal in ordinals if ordinal not in market.missing_bars]
        return [bar_of(interval, ordinal) for ordinal in present[: int(params["limit"])]]


def rows_of(trade_ids: Iterable[int]) -> list[dict[str, Any]]:
    """Rows of trades and historicalTrades."""
    return [
        {
            "id": trade_id,
            "price": f"{trade_id % 1000 + 1}.00000000",
            "qty": "0.50000000",
            "quoteQty": "1.00000000",
            "time": START_MS + trade_id,
            "isBuyerMaker": trade_id % 2 == 0,
            "isBestMatch": True,
        }
        for trade_id in trade_ids
    ]


def bar_of(interval: str, ordinal: int) -> list[Any]:
    """Return a row of klines."""
    open_ms, next_ms = kline_open_ms(interval, ordinal), kline_open_ms(interval, ordinal + 1)
    return [open_ms, "1.0", "2.0", "0.5", "1.5", "10.0", next_ms - 1, "15.0", 7, "5.0", "7.5", "0"]
