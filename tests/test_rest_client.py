"""The REST client against a scripted venue: every call, every refusal, every wait, on a clock that jumps."""

from __future__ import annotations

import gzip
import ssl
import time
import tracemalloc
import zlib
from collections import deque
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from ingestor.config import Rest
from ingestor.core.binance import RestKline, RestTrade
from ingestor.local.market import Market as LocalMarket
from ingestor.local.venue import Venue
from ingestor.metrics import Metrics
from ingestor.rest_client import (
    BadRequestError,
    RestClient,
    RestrictedLocationError,
    UnavailableError,
    depth_weight,
)
from tests.fakes.rest import START_MS, Answer, FakeRest, Market, wall_ns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from trio.testing import MockClock


class Steady(Random):
    """Full jitter at its longest, so that waits are exact."""

    def uniform(self, a: float, b: float) -> float:
        return b


def client_of(
    venue: httpx.AsyncBaseTransport, *, max_attempts: int = 8, share: float = 0.8, timeout_s: float = 10
) -> RestClient:
    return RestClient(
        "https://venue.test",
        Rest(max_attempts=max_attempts, max_weight_share=share, timeout_s=timeout_s),
        metrics=Metrics(CollectorRegistry()),
        wall_ns=wall_ns,
        random=Steady(),
        transport=venue,
    )


def counted(client: RestClient, endpoint: str, outcome: str) -> float:
    return float(client._metrics.rest_requests.labels(endpoint, outcome)._value.get())


async def test_every_call_reads_its_endpoint(autojump_clock: MockClock) -> None:
    """Endpoint names, parameters and shapes are the venue's."""
    market = Market(oldest_id=1, newest_id=100, books=deque([(7, [["1.0", "2.0"]], [["3.0", "4.0"]])]))
    venue = FakeRest(markets={"BTCUSDT": market})
    async with client_of(venue) as client:
        await client.ping()
        assert await client.server_time_ms() == START_MS
        assert [symbol.symbol for symbol in (await client.exchange_info()).symbols] == ["BTCUSDT"]
        assert (await client.depth("BTCUSDT", 100)).bids == [("1.0", "2.0")]
        assert [row.trade_id for row in await client.trades("BTCUSDT", 2)] == [99, 100]
        rows = await client.historical_trades("BTCUSDT", 5, 2)
        assert rows == [
            RestTrade(5, "6.00000000", "0.50000000", START_MS + 5, buyer_is_maker=False),
            RestTrade(6, "7.00000000", "0.50000000", START_MS + 6, buyer_is_maker=True),
        ]
        assert (await client.agg_trades("BTCUSDT", end_ms=START_MS))[0].first_trade_id == 1
        bars = await client.klines("BTCUSDT", "1m", start_ms=START_MS - 60_000, end_ms=START_MS - 60_000)
        assert bars == [
            RestKline(
                START_MS - 60_000, "1.0", "2.0", "0.5", "1.5", "10.0", START_MS - 1, "15.0", 7, "5.0", "7.5"
            )
        ]  # fmt: skip
        assert [(row.symbol, row.last_trade_id) for row in await client.tickers()] == [("BTCUSDT", 100)]
    assert [(asked.endpoint, asked.params) for asked in venue.asked] == [
        ("ping", {}),
        ("time", {}),
        ("exchangeInfo", {}),
        ("depth", {"symbol": "BTCUSDT", "limit": "100"}),
        ("trades", {"symbol": "BTCUSDT", "limit": "2"}),
        ("historicalTrades", {"symbol": "BTCUSDT", "fromId": "5", "limit": "2"}),
        ("aggTrades", {"symbol": "BTCUSDT", "limit": "1000", "endTime": str(START_MS)}),
        (
            "klines",
            {
                "symbol": "BTCUSDT",
                "interval": "1m",
                "limit": "1000",
                "startTime": str(START_MS - 60_000),
                "endTime": str(START_MS - 60_000),
            },
        ),
        ("ticker/24hr", {}),
    ]


@pytest.mark.parametrize(
    ("levels", "weight"), [(1, 5), (100, 5), (101, 25), (500, 25), (501, 50), (1000, 50), (1001, 250), (5000, 250)]
)
def test_a_snapshot_costs_by_its_levels(levels: int, weight: int) -> None:
    """The steps of the venue's table."""
    assert depth_weight(levels) == weight


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Answer(500, {"code": -1001, "msg": "Internal error"}), id="internal"),
        pytest.param(Answer(502, b"<html>bad gateway</html>"), id="a proxy's page"),
        pytest.param(Answer(503, {"code": -1008, "msg": "busy"}), id="busy"),
        pytest.param(Answer(400, {"code": -1007, "msg": "Timeout waiting for response"}), id="its own timeout"),
        pytest.param(Answer(403, b"<html>WAF</html>"), id="firewall"),
        pytest.param(Answer(408, b"<html>late</html>"), id="a proxy's timeout"),
        pytest.param(Answer(200, b'{"half'), id="a torn body"),
        pytest.param(httpx.ConnectError("refused"), id="refused connection"),
        pytest.param(httpx.ReadTimeout("late"), id="read timeout"),
        pytest.param(httpx.RemoteProtocolError("cut"), id="cut connection"),
        pytest.param(httpx.DecodingError("bad gzip"), id="bad compression"),
    ],
)
async def test_what_may_pass_is_tried_again_slower_each_time(
    failure: Answer | Exception, autojump_clock: MockClock
) -> None:
    """Three failures, then the answer: the waits double from half a second."""
    venue = FakeRest(script=deque([failure, failure, failure]))
    async with client_of(venue) as client:
        assert await client.server_time_ms() == START_MS + 3500
        assert (counted(client, "time", "failed"), counted(client, "time", "ok")) == (3, 1)
    assert venue.times("time") == [0, 0.5, 1.5, 3.5]


async def test_the_venues_time_is_asked_once_for_many(autojump_clock: MockClock) -> None:
    """A thousand repairs after a mass reconnect would spend a sixth of the budget on the clock."""
    venue = FakeRest()
    async with client_of(venue) as client:
        assert await client.recent_time_ms() == START_MS
        await trio.sleep(9)
        assert await client.recent_time_ms() == START_MS + 9_000
        assert len(venue.times("time")) == 1
        await trio.sleep(2)
        assert await client.recent_time_ms() == START_MS + 11_000
        assert len(venue.times("time")) == 2


async def test_what_lasts_is_said_aloud(autojump_clock: MockClock) -> None:
    """A hiccup is nobody's business; half of all attempts in vain are worth waking for."""
    venue = FakeRest(refused={"time": Answer(503, b"<html>")})
    with capture_logs() as lines:
        async with client_of(venue, max_attempts=5) as client:
            with pytest.raises(UnavailableError, match="HTTP 503 Service Unavailable for /api/v3/time"):
                await client.server_time_ms()
    assert [line["log_level"] for line in lines] == ["info", "info", "warning", "warning"]


async def test_attempts_are_bounded(autojump_clock: MockClock) -> None:
    """After the last one the error says what happened."""
    venue = FakeRest(refused={"time": Answer(500, {"code": -1000, "msg": "unknown"})})
    async with client_of(venue, max_attempts=3) as client:
        with pytest.raises(UnavailableError, match=r"HTTP 500: unknown \(-1000\)"):
            await client.server_time_ms()
    assert venue.times("time") == [0, 0.5, 1.5]


async def test_a_silent_venue_is_given_up_after_the_timeout(autojump_clock: MockClock) -> None:
    """The timeout covers the whole answer, not each read."""
    venue = FakeRest(latency_s=60)
    async with client_of(venue, max_attempts=2, timeout_s=10) as client:
        with pytest.raises(UnavailableError, match="no answer within 10 s"):
            await client.ping()
    assert trio.current_time() == 20.5


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (Answer(400, {"code": -1121, "msg": "Invalid symbol."}), -1121, "Invalid symbol."),
        (Answer(400, {"code": -1100, "msg": "Illegal characters"}), -1100, "Illegal characters"),
        (Answer(404, b"<html></html>"), 0, "HTTP 404 Not Found for /api/v3/trades"),
        (Answer(401, {"code": -2014, "msg": "API-key format invalid."}), -2014, "API-key format invalid."),
    ],
)
async def test_a_refusal_is_raised_at_once_with_the_venues_words(
    answer: Answer, code: int, text: str, autojump_clock: MockClock
) -> None:
    """Asking again could not help."""
    venue = FakeRest(script=deque([answer]))
    async with client_of(venue) as client:
        with pytest.raises(BadRequestError) as refused:
            await client.trades("NOSUCH", 1)
        assert (refused.value.code, refused.value.text) == (code, text)
        assert counted(client, "trades", "refused") == 1
    assert len(venue.asked) == 1


async def test_a_restricted_location_is_fatal(autojump_clock: MockClock) -> None:
    """HTTP 451 carries code 0; no retry helps."""
    body = {"code": 0, "msg": "Service unavailable from a restricted location"}
    venue = FakeRest(script=deque([Answer(451, body)]))
    async with client_of(venue) as client:
        with pytest.raises(RestrictedLocationError, match="restricted location"):
            await client.ping()
        assert counted(client, "ping", "restricted") == 1


@pytest.mark.parametrize(
    ("answer", "silent_s"),
    [
        pytest.param(Answer(429, {"code": -1003, "msg": "slow"}, {"Retry-After": "17"}), 17, id="429 names seconds"),
        pytest.param(
            Answer(418, {"code": -1003, "msg": "banned"}, {"retry-after": "240"}), 240, id="418 names seconds"
        ),
        pytest.param(
            Answer(418, {"code": -1003, "msg": f"IP banned until {START_MS + 300_000}. Use WebSocket"}),
            301,
            id="418 names a time",
        ),
        pytest.param(
            Answer(418, {"code": -1003, "msg": f"IP banned until {START_MS - 600_000}."}), 120, id="418 names the past"
        ),
        pytest.param(Answer(429, None, {"Retry-After": "0"}), 1, id="429 names no time at all"),
        pytest.param(Answer(429, b"<html>"), 60, id="429 names nothing"),
        pytest.param(Answer(418, {"code": -1003, "msg": "banned"}, {"Retry-After": "soon"}), 120, id="418 mumbles"),
        pytest.param(Answer(400, {"code": -1003, "msg": "Too many requests"}), 60, id="the code without the status"),
    ],
)
async def test_after_a_limit_nobody_sends_anything(answer: Answer, silent_s: float, autojump_clock: MockClock) -> None:
    """Neither the call that met it nor any other, whatever its purpose; and it costs no attempt."""
    venue = FakeRest(script=deque([answer]), markets={"BTCUSDT": Market(newest_id=5)})
    async with client_of(venue, max_attempts=1) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.ping)
        await wait_all_tasks_blocked()
        calls: list[Callable[[], Awaitable[Any]]] = [
            client.server_time_ms,
            client.tickers,
            partial(client.historical_trades, "BTCUSDT", 1),
        ]
        for call in calls:
            nursery.start_soon(call)
    assert venue.asked[0].at_s == 0
    assert [asked.at_s for asked in venue.asked[1:]] == [silent_s] * 4
    assert counted(client, "ping", "limited") == 1


async def test_the_budget_is_never_exceeded_and_refills_with_the_minute(autojump_clock: MockClock) -> None:
    """Two minutes of work for one purpose, at 6000 a minute and a share of 0.5: 120 pages in each minute."""
    venue = FakeRest(markets={"BTCUSDT": Market(newest_id=5)})
    async with client_of(venue, share=0.5) as client, trio.open_nursery() as nursery:
        for _ in range(240):
            nursery.start_soon(client.historical_trades, "BTCUSDT", 1)
    times = venue.times("historicalTrades")
    assert times == sorted(times)
    assert sum(at_s < 60 for at_s in times) == 120
    assert sum(60 <= at_s < 120 for at_s in times) == 120


async def test_the_venues_own_count_is_believed(autojump_clock: MockClock) -> None:
    """When a neighbour behind the same address has used the minute up, we wait for the next."""
    venue = FakeRest(used_weight=lambda: 4790)
    async with client_of(venue) as client:
        await client.ping()
        await client.exchange_info()
        assert client._metrics.rest_weight_used._value.get() == 4790
    assert venue.times("exchangeInfo") == [60]


class Clock:
    """Our wall clock, which is wrong by `ahead_s`."""

    def __init__(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s

    def __call__(self) -> int:
        return wall_ns() + round(self.ahead_s * 1e9)


@pytest.mark.parametrize("ahead_s", [2.5, -2.5])
async def test_minutes_are_those_of_the_venue(ahead_s: float, autojump_clock: MockClock) -> None:
    """A clock that is wrong is held against the venue's; the way back counts as if the minute began that much later."""
    venue = FakeRest(used_weight=lambda: 4_790, latency_s=0.5)
    metrics = Metrics(CollectorRegistry())
    async with RestClient(
        "https://venue.test", Rest(), metrics=metrics, wall_ns=Clock(ahead_s), random=Steady(), transport=venue
    ) as client:
        assert client.clock_ahead_ms is None
        assert await client.server_time_ms() == START_MS + 500
        assert client.clock_ahead_ms == (ahead_s - 0.25) * 1000
        assert metrics.clock_ahead._value.get() == ahead_s - 0.25
        await client.ping()
        await client.exchange_info()
    assert venue.times("exchangeInfo") == [60]


async def test_a_ban_with_a_name_ends_by_the_venues_clock(autojump_clock: MockClock) -> None:
    """Ours may be wrong by minutes."""
    banned = Answer(418, {"code": -1003, "msg": f"IP banned until {START_MS + 300_000}."})
    venue = FakeRest(script=deque([Answer(200, {"serverTime": START_MS}), banned]))
    client = RestClient(
        "https://venue.test",
        Rest(),
        metrics=Metrics(CollectorRegistry()),
        wall_ns=Clock(-200.0),
        random=Steady(),
        transport=venue,
    )
    async with client:
        await client.server_time_ms()
        await client.ping()
        assert client.silent_s() == 0
    assert venue.times("ping") == [0, 301]


async def test_the_clock_is_compared_again_and_again(autojump_clock: MockClock) -> None:
    """At once, and every five minutes; a venue that is away is asked later, and what was known holds."""
    venue = FakeRest(script=deque([Answer(500)]))
    clock = Clock(1.0)
    client = RestClient(
        "https://venue.test",
        Rest(max_attempts=1),
        metrics=Metrics(CollectorRegistry()),
        wall_ns=clock,
        random=Steady(),
        transport=venue,
    )
    with trio.move_on_after(901):
        async with client:
            await client.keep_time()
    assert venue.times("time") == [0, 300, 600, 900]
    assert client.clock_ahead_ms == 1_000


async def test_the_published_limit_becomes_the_budget(autojump_clock: MockClock) -> None:
    """The exchangeInfo of this venue says 1200 a minute."""
    async with client_of(FakeRest()) as client:
        assert client.weight_left("trades") == 2400
        await client.exchange_info()
        assert client.weight_left("trades") == 480


@pytest.mark.parametrize("step_s", [-3_600, 3_600])
async def test_a_clock_that_is_set_during_a_ban_makes_it_neither_longer_nor_shorter(
    step_s: int, autojump_clock: MockClock
) -> None:
    """An hour more of silence delays every repair; a request within the ban makes days of its minutes."""
    venue = FakeRest(script=deque([Answer(418, {"code": -1003, "msg": "banned"}, {"retry-after": "240"})]))
    async with client_of(venue) as client:
        client._wall_ns = lambda: wall_ns() + (step_s * 1_000_000_000 if trio.current_time() > 10 else 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping)
            await trio.sleep(20)
            nursery.start_soon(client.exchange_info)
    assert venue.times("ping") == [0, 240]
    assert venue.times("exchangeInfo") == [240]


@pytest.mark.parametrize("nonsense", [{"intervalNum": 0}, {"limit": 0}])
async def test_a_published_limit_that_cannot_be_is_not_believed(
    nonsense: dict[str, int], autojump_clock: MockClock
) -> None:
    """It neither ends the service nor leaves it a request a minute."""
    venue = FakeRest()
    told = venue._exchange_info()
    told["rateLimits"][1] |= nonsense
    venue.script.append(Answer(200, told))
    async with client_of(venue) as client:
        await client.exchange_info()
        assert client.weight_left("trades") == 2400


async def test_a_waiting_purpose_does_not_hold_up_another(autojump_clock: MockClock) -> None:
    """Backfill owns no part and waits for what is left; a book comes through meanwhile."""
    venue = FakeRest(markets={"BTCUSDT": Market(newest_id=5, books=deque([(1, [], [])]))})
    async with client_of(venue, share=0.1) as client, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(partial(client.historical_trades, "BTCUSDT", 1, purpose="backfill"))
        await wait_all_tasks_blocked()
        await client.depth("BTCUSDT", 1000)
        assert trio.current_time() == 0


async def test_the_caller_learns_when_its_request_is_admitted(autojump_clock: MockClock) -> None:
    """Buffering of diffs begins then, again for every attempt, and not while the request waits for the budget."""
    admitted: list[float] = []
    venue = FakeRest(
        markets={"BTCUSDT": Market(books=deque([(1, [], [])]))},
        script=deque([Answer(429, None, {"Retry-After": "3"})]),
        latency_s=0.25,
    )
    async with client_of(venue) as client:
        await client.depth("BTCUSDT", 100, on_admitted=lambda: admitted.append(trio.current_time()))
    assert admitted == venue.times("depth") == [0, 3.25]


async def test_a_cancelled_request_leaves_its_weight_spent(autojump_clock: MockClock) -> None:
    """The venue may have counted it."""
    venue = FakeRest(latency_s=5)
    async with client_of(venue) as client:
        with trio.move_on_after(1):
            await client.tickers()
        assert client._metrics.rest_weight_used._value.get() == 80


async def test_connections_are_kept() -> None:
    """One call after the other needs one connection, on real sockets."""
    venue = Venue(LocalMarket(("BTCUSDT",), start_ms=time.time_ns() // 1_000_000, levels=100))
    handled: list[trio.abc.Stream] = []
    handle = venue.handle

    async def counting(stream: trio.abc.Stream) -> None:
        handled.append(stream)
        await handle(stream)

    venue.handle = counting  # type: ignore[method-assign]  # the one way in
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(venue.serve)
        metrics = Metrics(CollectorRegistry())
        async with RestClient(urls.rest_url, Rest(), metrics=metrics, wall_ns=time.time_ns, random=Steady()) as client:
            for _ in range(5):
                await client.ping()
        nursery.cancel_scope.cancel()
    assert len(handled) == 1


async def test_certificates_are_verified_unless_a_transport_is_given() -> None:
    """The real network is reached over verified TLS and HTTP/1.1."""
    async with RestClient(
        "https://api.binance.com",
        Rest(),
        metrics=Metrics(CollectorRegistry()),
        wall_ns=wall_ns,
        random=Steady(),
    ) as client:
        pool = client._http._transport._pool  # type: ignore[attr-defined] # httpx keeps it to itself
        assert pool._ssl_context.verify_mode is ssl.CERT_REQUIRED
        assert (pool._http1, pool._http2) == (True, False)


class Streaming(httpx.AsyncByteStream):
    """A body in pieces, as a network gives it; `taken` counts them."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.taken = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for piece in self._pieces:
            self.taken += 1
            return piece
        raise StopAsyncIteration


class Bare(httpx.AsyncBaseTransport):
    """Answers everything with the same pieces."""

    def __init__(self, pieces: Iterable[bytes], **headers: str) -> None:
        self.body = Streaming(pieces)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.asked: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        self.asked.append(request)
        return httpx.Response(200, headers=self.headers, stream=self.body)


async def test_a_packed_answer_is_unpacked() -> None:
    """Lists of symbols have many megabytes otherwise; nothing is asked for that we would not unpack ourselves."""
    venue = Bare([gzip.compress(b'{"serverTime":5}')], content_encoding="gzip")
    async with client_of(venue) as client:
        assert await client.server_time_ms() == 5
    assert venue.asked[0].headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize("is_packed", [False, True])
async def test_an_answer_without_an_end_is_not_read_to_it(is_packed: bool, autojump_clock: MockClock) -> None:
    """Packed, a megabyte of it would be a gigabyte."""
    bomb = zlib.compressobj(9, wbits=31)
    packed = [bomb.compress(bytes(64 << 20)) + bomb.flush(zlib.Z_SYNC_FLUSH)] * 1_000
    pieces, headers = (packed, {"content_encoding": "gzip"}) if is_packed else ([b"[" * 65_536] * 100_000, {})
    venue = Bare(pieces, **headers)
    tracemalloc.start()
    async with client_of(venue, max_attempts=1) as client:
        with pytest.raises(UnavailableError, match="an answer of more than 4194304 bytes"):
            await client.trades("BTCUSDT", 5)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert venue.body.taken <= 65
    assert peak_bytes < 24 << 20


@pytest.mark.parametrize("packing", ["br", "zstd", "gzip, gzip", "deflate"])
async def test_an_answer_packed_otherwise_is_refused(packing: str, autojump_clock: MockClock) -> None:
    """We did not ask for it, and it could unpack to anything."""
    async with client_of(Bare([b"x"], content_encoding=packing), max_attempts=1) as client:
        with pytest.raises(UnavailableError, match="packed by"):
            await client.ping()


async def test_bytes_that_do_not_unpack_are_an_unreadable_answer(autojump_clock: MockClock) -> None:
    """And no crash."""
    async with client_of(Bare([b"not gzip"], content_encoding="gzip"), max_attempts=1) as client:
        with pytest.raises(UnavailableError, match="unreadable answer"):
            await client.server_time_ms()


@pytest.mark.parametrize("count", ["\xb2", "9" * 5_000, "-1", "1e3", "", "0x10"])
async def test_a_header_that_is_no_number_says_nothing(count: str, autojump_clock: MockClock) -> None:
    """Not one of them ends the service, although Python takes some of them for digits."""
    headers = {"X-MBX-USED-WEIGHT-1M": count, "Retry-After": count}
    raw = httpx.Headers([(name.encode(), value.encode("latin-1")) for name, value in headers.items()])
    venue = FakeRest(script=deque([Answer(429, None, raw), Answer(200, {}, raw)]))  # type: ignore[arg-type]  # httpx's own
    async with client_of(venue) as client:
        await client.ping()
    assert [asked.at_s for asked in venue.asked] == [0, 60]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(418, None, {"Retry-After": "999999999999"}),
        Answer(418, {"code": -1003, "msg": f"banned until {9_999_999_999_999}."}),
    ],
)
async def test_no_ban_is_longer_than_the_venue_has_them(answer: Answer, autojump_clock: MockClock) -> None:
    """Three days."""
    venue = FakeRest(script=deque([answer]))
    async with client_of(venue) as client:
        await client.ping()
    assert [asked.at_s for asked in venue.asked] == [0, 3 * 86_400]


async def test_what_a_refusal_says_is_cut_short(autojump_clock: MockClock) -> None:
    """It goes into logs and to people."""
    venue = FakeRest(script=deque([Answer(400, {"code": -1100, "msg": "m" * 100_000})]))
    async with client_of(venue) as client:
        with pytest.raises(BadRequestError) as caught:
            await client.ping()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(("url", "is_local"), [("http://127.0.0.1:1", True), ("https://api.binance.com", False)])
async def test_what_stays_on_this_machine_goes_through_no_proxy(
    url: str, is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain text to a proxy would be plain text on a network."""
    monkeypatch.setenv("ALL_PROXY", "http://proxy.test:3128")
    metrics = Metrics(CollectorRegistry())
    async with RestClient(url, Rest(), metrics=metrics, wall_ns=wall_ns, random=Steady()) as client:
        assert (not client._http._mounts) is is_local


async def test_a_redirection_is_not_followed(autojump_clock: MockClock) -> None:
    """It could lead anywhere, also to plain text."""
    venue = FakeRest(script=deque([Answer(302, b"", {"Location": "http://elsewhere.test/"})]))
    async with client_of(venue) as client:
        with pytest.raises(BadRequestError, match="HTTP 302"):
            await client.ping()
    assert len(venue.asked) == 1
