"""The venue's REST side without I/O: a path, its parameters and the time go in, status, headers and body come out.

What it knows is facts/binance.md §6 and §7: weights, limits and bans, parameter errors, and the traps, such as history
that silently starts at the oldest id that is kept, a database that lags, and bars that never existed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import msgspec
from msgspec import Struct

from ingestor.local.history import INTERVALS, LAST_MS, bar_close_ms, text8

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingestor.local.history import Bar, Fill, History
    from ingestor.local.protocol import Rules

Snapshot: TypeAlias = tuple[int, list[tuple[int, int]], list[tuple[int, int]]]  # last update id, bids, asks, best first

_MINUTE_MS: Final = 60_000
_LONGEST_BAN_S: Final = 3 * 86_400.0
_QUOTES: Final = ("USDT", "USDC", "FDUSD", "TUSD", "BUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL")


class Source(Protocol):
    """What both a market and a recording can do."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """All symbols, upper case."""
        ...

    @property
    def now_ms(self) -> int:
        """The venue's clock."""
        ...

    def history(self, symbol: str) -> History | None:
        """Return what is remembered of `symbol`, or None."""
        ...

    def depth(self, symbol: str, limit: int) -> Snapshot:
        """Return last update id, bids and asks, best first."""
        ...


class Response(Struct, frozen=True):
    """An HTTP answer; header names in lower case."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class RestTrouble(Struct):
    """What is wrong with the venue at the moment; whoever scripts faults writes here.

    `answer`: given instead of any other (5xx, 429, 418). `lag_ms`: how far the database is behind. `missing_bars`: open
    times of bars that never existed, by symbol and interval. `stale_books`: unless None, the first snapshot of a symbol
    is given again and again, as by a server that is behind the stream (facts §5).
    """

    answer: Response | None = None
    lag_ms: int = 0
    missing_bars: dict[tuple[str, str], set[int]] = {}
    stale_books: dict[str, Snapshot] | None = None


class VenueError(Exception):
    """A refusal of the venue: HTTP status, its code and its text."""

    def __init__(self, code: int, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code, self.text, self.status = code, text, status


class RestDesk:
    """Answers GET requests from what `source` remembers; weight is counted over all clients, as over one IP."""

    def __init__(self, source: Source, rules: Rules, trouble: RestTrouble | None = None) -> None:
        self.trouble = trouble or RestTrouble()
        self.requests: dict[str, int] = {}
        self._answers = _Answers(source, rules, self.trouble)
        self._rules = rules
        self._minute = -1
        self._used = 0
        self._strikes = 0
        self._bans = 0
        self._banned_until_ms = 0

    def answer(self, path: str, params: Sequence[tuple[str, str]], now_ms: int) -> Response:
        """Answer one request; limits are counted by the wall clock `now_ms`, event times are the source's own."""
        self.requests[path] = self.requests.get(path, 0) + 1
        if self.trouble.answer:
            return self.trouble.answer
        endpoint = _ENDPOINTS.get(path)
        if endpoint is None:
            return Response(404, b"<html><body>404 Not Found</body></html>", (("content-type", "text/html"),))
        arguments = dict(params)
        refusal = self._charge(endpoint.weight(arguments), now_ms)
        if refusal:
            return refusal
        try:
            _check_names(endpoint, params)
            body = msgspec.json.encode(endpoint.answer(self._answers, arguments))
        except VenueError as error:
            return self._response(error.status, error_body(error.code, error.text))
        return self._response(200, body)

    def _charge(self, weight: int, now_ms: int) -> Response | None:
        if now_ms < self._banned_until_ms:
            return self._ban_notice(now_ms)
        if now_ms // _MINUTE_MS != self._minute:
            self._minute, self._used, self._strikes = now_ms // _MINUTE_MS, 0, 0
        self._used += weight
        if self._used <= self._rules.weight_per_minute:
            return None
        self._strikes += 1
        if self._strikes > self._rules.strikes:
            ban_s = min(self._rules.ban_s * 2**self._bans, _LONGEST_BAN_S)
            self._bans += 1
            self._banned_until_ms = now_ms + int(ban_s * 1_000)
            return self._ban_notice(now_ms)
        left_s = -(-(_MINUTE_MS - now_ms % _MINUTE_MS) // 1_000)
        limit = self._rules.weight_per_minute
        text = f"Too much request weight used; current limit is {limit} request weight per 1 MINUTE."
        return self._response(429, error_body(-1003, text), retry_after_s=left_s)

    def _ban_notice(self, now_ms: int) -> Response:
        left_s = -(-(self._banned_until_ms - now_ms) // 1_000)
        text = f"Way too much request weight used; IP banned until {self._banned_until_ms}."
        return self._response(418, error_body(-1003, text), retry_after_s=left_s)

    def _response(self, status: int, body: bytes, retry_after_s: int | None = None) -> Response:
        headers = [
            ("content-type", "application/json;charset=UTF-8"),
            ("x-mbx-used-weight", str(self._used)),
            ("x-mbx-used-weight-1m", str(self._used)),
        ]
        if retry_after_s is not None:
            headers.append(("retry-after", str(retry_after_s)))
        return Response(status, body, tuple(headers))


class _Answers:
    """What each endpoint answers to arguments whose names were checked; raises VenueError."""

    def __init__(self, source: Source, rules: Rules, trouble: RestTrouble) -> None:
        self._source = source
        self._rules = rules
        self._trouble = trouble

    def ping(self, _: dict[str, str]) -> object:
        return {}

    def time(self, _: dict[str, str]) -> object:
        return {"serverTime": self._source.now_ms}

    def exchange_info(self, arguments: dict[str, str]) -> object:
        limits = (
            ("REQUEST_WEIGHT", "MINUTE", 1, self._rules.weight_per_minute),
            ("ORDERS", "SECOND", 10, 100),
            ("ORDERS", "DAY", 1, 200_000),
            ("RAW_REQUESTS", "MINUTE", 5, 300_000),
        )
        return {
            "timezone": "UTC",
            "serverTime": self._source.now_ms,
            "rateLimits": [
                {"rateLimitType": kind, "interval": interval, "intervalNum": number, "limit": limit}
                for kind, interval, number, limit in limits
            ],
            "exchangeFilters": [],
            "symbols": [_symbol_info(symbol) for symbol in self._asked_symbols(arguments)],
        }

    def depth(self, arguments: dict[str, str]) -> object:
        symbol = self._history(arguments).symbol
        limit = _limit(arguments, 100, 5_000)
        stale = self._trouble.stale_books
        if stale is None:
            update_id, bids, asks = self._source.depth(symbol, limit)
        else:
            update_id, bids, asks = stale.setdefault(symbol, self._source.depth(symbol, 5_000))
        return {"lastUpdateId": update_id, "bids": _levels(bids[:limit]), "asks": _levels(asks[:limit])}

    def trades(self, arguments: dict[str, str]) -> object:
        history = self._history(arguments)
        return [_trade_row(fill) for fill in history.fills[-_limit(arguments, 500, 1_000) :]]

    def historical_trades(self, arguments: dict[str, str]) -> object:
        history, limit = self._history(arguments), _limit(arguments, 500, 1_000)
        page = history.page(_number(arguments, "fromId"), self._database_ms(), limit)
        return [_trade_row(fill) for fill in page]

    def aggregate_trades(self, arguments: dict[str, str]) -> object:
        history, limit = self._history(arguments), _limit(arguments, 500, 1_000)
        start_ms, end_ms = _number(arguments, "startTime"), _number(arguments, "endTime")
        from_id = _number(arguments, "fromId")
        if from_id is not None and (start_ms is not None or end_ms is not None):
            raise VenueError(-1128, "Combination of optional parameters invalid.")
        until_ms = self._database_ms() if end_ms is None else min(end_ms, self._database_ms())
        found = history.aggregates(from_id=from_id, start_ms=start_ms, end_ms=until_ms, limit=limit)
        return [
            {
                "a": one.aggregate_id,
                "p": text8(one.price),
                "q": text8(one.quantity),
                "f": one.first_id,
                "l": one.last_id,
                "T": one.time_ms,
                "m": one.buyer_is_maker,
                "M": True,
            }
            for one in found
        ]

    def klines(self, arguments: dict[str, str]) -> object:
        history, limit = self._history(arguments), _limit(arguments, 500, 1_000)
        interval = _mandatory(arguments, "interval")
        if interval not in INTERVALS:
            raise VenueError(-1120, "Invalid interval.")
        start_ms, end_ms = _number(arguments, "startTime"), _number(arguments, "endTime")
        until_ms = self._database_ms() if end_ms is None else min(end_ms, self._database_ms())
        missing = self._trouble.missing_bars.get((history.symbol, interval), set())
        bars = [
            bar
            for bar in history.all_bars(interval)
            if (start_ms or 0) <= bar.open_ms <= until_ms and bar.open_ms not in missing
        ]
        return [_bar_row(interval, bar) for bar in (bars[-limit:] if start_ms is None else bars[:limit])]

    def ticker_24hr(self, arguments: dict[str, str]) -> object:
        symbols = self._asked_symbols(arguments)
        rows = [_ticker(history, self._source.now_ms) for name in symbols if (history := self._source.history(name))]
        return rows[0] if "symbol" in arguments else rows

    # -- parameters -----------------------------------------------------------------------------------------------

    def _database_ms(self) -> int:
        return LAST_MS if not self._trouble.lag_ms else self._source.now_ms - self._trouble.lag_ms

    def _history(self, arguments: dict[str, str]) -> History:
        history = self._source.history(_mandatory(arguments, "symbol"))
        if history is None:
            raise VenueError(-1121, "Invalid symbol.")
        return history

    def _asked_symbols(self, arguments: dict[str, str]) -> Sequence[str]:
        if "symbol" in arguments:
            return [self._history(arguments).symbol]
        if "symbols" not in arguments:
            return self._source.symbols
        try:
            asked = msgspec.json.decode(arguments["symbols"], type=list[str])
        except msgspec.MsgspecError:
            raise VenueError(-1135, "Invalid JSON Request") from None
        if len(set(asked)) < len(asked):
            raise VenueError(-1151, "Symbol is present multiple times in the list.")
        return [self._history({"symbol": symbol}).symbol for symbol in asked]


class _Endpoint(Struct, frozen=True):
    answer: Callable[[_Answers, dict[str, str]], object]
    weight: Callable[[dict[str, str]], int]
    parameters: frozenset[str]


def error_body(code: int, text: str) -> bytes:
    """Spell an error as the venue does."""
    return msgspec.json.encode({"code": code, "msg": text})


def _check_names(endpoint: _Endpoint, params: Sequence[tuple[str, str]]) -> None:
    names = [name for name, _ in params]
    if len(set(names)) < len(names):
        raise VenueError(-1101, "Duplicate values for a parameter detected.")
    if unknown := set(names) - endpoint.parameters:
        read = len(names) - len(unknown)
        raise VenueError(
            -1104, f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{len(names)}'."
        )


def _mandatory(arguments: dict[str, str], name: str) -> str:
    if not arguments.get(name):
        raise VenueError(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    value = arguments[name]
    if name == "symbol" and not value.isalnum():
        raise VenueError(-1100, "Illegal characters found in parameter 'symbol'; legal range is '^[A-Z0-9-_.]{1,20}$'.")
    return value


def _number(arguments: dict[str, str], name: str) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise VenueError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    number = int(value)
    return number // 1_000 if name != "fromId" and number >= 10**15 else number  # times may be microseconds (facts §7)


def _limit(arguments: dict[str, str], default: int, most: int) -> int:
    limit = _number({"limit": arguments.get("limit", str(default))}, "limit")
    if not limit:
        raise VenueError(-1102, "Mandatory parameter 'limit' was not sent, was empty/null, or malformed.")
    return min(limit, most)


def _levels(levels: Sequence[tuple[int, int]]) -> list[list[str]]:
    return [[text8(price), text8(quantity)] for price, quantity in levels]


def _trade_row(fill: Fill) -> dict[str, Any]:
    return {
        "id": fill.trade_id,
        "price": text8(fill.price),
        "qty": text8(fill.quantity),
        "quoteQty": text8(fill.quote),
        "time": fill.time_ms,
        "isBuyerMaker": fill.buyer_is_maker,
        "isBestMatch": True,
    }


def _bar_row(interval: str, bar: Bar) -> list[Any]:
    prices = [text8(price) for price in (bar.open, bar.high, bar.low, bar.close)]
    close_ms = bar_close_ms(interval, bar.open_ms)
    taker = [text8(bar.taker), text8(bar.taker_quote)]
    return [bar.open_ms, *prices, text8(bar.volume), close_ms, text8(bar.quote), bar.count, *taker, "0"]


def _ticker(history: History, now_ms: int) -> dict[str, Any]:
    day = history.day()
    return {
        "symbol": history.symbol,
        "lastPrice": text8(day.close),
        "openPrice": text8(day.open),
        "highPrice": text8(day.high),
        "lowPrice": text8(day.low),
        "volume": text8(day.volume),
        "quoteVolume": text8(day.quote),
        "openTime": now_ms - 86_400_000,
        "closeTime": now_ms,
        "firstId": day.first_id,
        "lastId": day.last_id,
        "count": day.count,
    }


def _symbol_info(symbol: str) -> dict[str, Any]:
    quote = next((quote for quote in _QUOTES if symbol.endswith(quote) and symbol != quote), symbol[-3:])
    return {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": symbol.removesuffix(quote),
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
        "isSpotTradingAllowed": True,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": "0.01000000",
                "maxPrice": "1000000.00000000",
                "tickSize": "0.01000000",
            },
            {"filterType": "LOT_SIZE", "minQty": "0.00001000", "maxQty": "9000.00000000", "stepSize": "0.00001000"},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }


def _depth_weight(arguments: dict[str, str]) -> int:
    text = arguments.get("limit", "100")
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 100
    return next((weight for most, weight in ((100, 5), (500, 25), (1_000, 50)) if limit <= most), 250)


def _ticker_weight(arguments: dict[str, str]) -> int:
    if "symbol" in arguments:
        return 2
    count = arguments["symbols"].count(",") + 1 if "symbols" in arguments else LAST_MS
    return 2 if count <= 20 else 40 if count <= 100 else 80


def _fixed(weight: int) -> Callable[[dict[str, str]], int]:
    return lambda _: weight


_ENDPOINTS: Final = {
    f"/api/v3/{name}": _Endpoint(answer, weight, frozenset(parameters.split()))
    for name, answer, weight, parameters in (
        ("ping", _Answers.ping, _fixed(1), ""),
        ("time", _Answers.time, _fixed(1), ""),
        (
            "exchangeInfo",
            _Answers.exchange_info,
            _fixed(20),
            "symbol symbols permissions showPermissionSets symbolStatus",
        ),
        ("depth", _Answers.depth, _depth_weight, "symbol limit symbolStatus"),
        ("trades", _Answers.trades, _fixed(25), "symbol limit"),
        ("historicalTrades", _Answers.historical_trades, _fixed(25), "symbol limit fromId"),
        ("aggTrades", _Answers.aggregate_trades, _fixed(4), "symbol fromId startTime endTime limit"),
        ("klines", _Answers.klines, _fixed(2), "symbol interval startTime endTime limit"),
        ("ticker/24hr", _Answers.ticker_24hr, _ticker_weight, "symbol symbols type symbolStatus"),
    )
}
