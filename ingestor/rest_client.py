"""The venue's REST API: typed calls, one weight budget for the process, bounded retries.

What the venue says about its limits rules everything here (facts/binance.md §7). A request is sent when the budget
admits it; after a 429 or 418 nothing at all is sent, by anyone, until the venue's time is over, because going on turns
a minute into days. What may pass (5xx, timeouts, cut connections, a busy venue) is tried again with full jitter, at
most `max_attempts` times; what the venue understood and refused is raised at once. Every call is a read, so trying one
again that was answered after all does no harm.
"""

from __future__ import annotations

import re
import zlib
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, TypeVar

import httpx
import structlog
import trio

from ingestor.bodies import read_until
from ingestor.config import is_plain_and_local
from ingestor.core.backoff import Backoff
from ingestor.core.binance import (
    REFUSALS,
    DepthSnapshot,
    ExchangeInfo,
    RestAggTrade,
    RestKline,
    RestTrade,
    Ticker,
    VenueRefusal,
    decode_agg_trades,
    decode_depth,
    decode_exchange_info,
    decode_klines,
    decode_refusal,
    decode_server_time,
    decode_tickers,
    decode_trades,
    readable_rows,
)
from ingestor.core.errors import IngestorError
from ingestor.core.weight import PARTS, Admission, Purpose, WeightBudget
from ingestor.core.wording import reason_of, shortened

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random
    from types import TracebackType
    from typing import NoReturn, Self

    from ingestor.config import Rest
    from ingestor.metrics import Metrics

T = TypeVar("T")
OnUnreadable: TypeAlias = "Callable[[list[bytes]], None]"  # is told the rows of a page that cannot be read
Outcome: TypeAlias = Literal["ok", "refused", "limited", "restricted", "failed"]

log = structlog.get_logger()

INVALID_SYMBOL: Final = -1121  # also after delisting
PAGE_ROWS: Final = 1000  # the most that trades, aggTrades and klines answer with

_WEIGHT_LIMIT: Final = 6000  # a minute, until exchangeInfo says otherwise
_TRANSIENT_CODES: Final = frozenset({-1000, -1001, -1006, -1007, -1008, -1016, -1034})
_PASSING: Final = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.REQUEST_TIMEOUT})  # the firewall; a proxy, or -1007
_LIMIT_CODE: Final = -1003
_BANNED_UNTIL: Final = re.compile(r"until ([0-9]{13})\b")
_WHOLE_NUMBER: Final = re.compile(r"[0-9]{1,15}")
_LONGEST_BAN_MS: Final = 3 * 86_400_000  # that the venue knows (facts/binance.md §7); what says more is no ban of its
# Far above what the venue answers with: all symbols are some 15 MB, a book of 5000 levels half a megabyte.
_ANSWER_BYTES: Final = 4 << 20
_LARGE_ANSWERS_BYTES: Final = {"exchangeInfo": 64 << 20, "ticker/24hr": 16 << 20}
_LIMITED_PAUSE_MS: Final = {429: 60_000, 418: 120_000}  # when the venue names no time: a minute's window, the least ban
_CLOCK_MARGIN_MS: Final = 1000  # a time by the venue's clock, which may not have been asked for yet
_TIME_HOLDS_S: Final = 10.0
_CLOCK_EVERY_S: Final = 300.0  # clocks drift by milliseconds in that time, unless somebody corrects them
_LEAST_PAUSE_S: Final = 1  # `Retry-After: 0` at the end of a minute is no invitation to ask without pause
_RETRY_INITIAL_S: Final = 0.5
_RETRY_MAX_S: Final = 30.0
_LONGEST_SLEEP_S: Final = 60.0  # a ban may last days, and clocks are corrected meanwhile


class VenueError(IngestorError):
    """The venue did not give what was asked for."""


class RestrictedLocationError(VenueError):
    """The venue does not serve this address (HTTP 451); trying again cannot help, another region can."""


class BadRequestError(VenueError):
    """The venue understood and refused, such as an invalid symbol (-1121); `code` is 0 when it gave none."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})" if code else text)
        self.code = code
        self.text = text


class UnavailableError(VenueError):
    """No usable answer in all attempts; later may be better."""


class _LimitedError(Exception):
    """The venue forbids requests until a time; waiting is the answer, and it costs no attempt."""

    def __init__(self, until_ms: int) -> None:
        super().__init__()
        self.until_ms = until_ms


class _Call(NamedTuple):
    """One endpoint with its parameters, and what it costs whom."""

    endpoint: str
    weight: int
    purpose: Purpose
    params: dict[str, str | int]


class _Reply(NamedTuple):
    """A whole answer, unpacked, to a request for `path`."""

    path: str
    status_code: int
    reason_phrase: str
    headers: httpx.Headers
    content: bytes


class Now(NamedTuple):
    """The time of the budget, and the time that is closest to the venue's: ours, until the venue told its own."""

    budget_ms: int
    venue_ms: int


def depth_weight(levels: int) -> int:
    """Return what a snapshot of this many levels costs."""
    for most, weight in ((100, 5), (500, 25), (1000, 50)):
        if levels <= most:
            return weight
    return 250


class RestClient:
    """Typed calls to one REST host; a context manager that owns the connections.

    `base_url` has no path. `wall_ns` is our wall clock: budgets follow the venue's minutes by it until `server_time_ms`
    told the venue's own time, so call that now and then. `transport` replaces the network. All calls may be made from
    any number of tasks; each purpose has its own first come, first served line.
    `on_admitted` is called when the budget has admitted a request, before each time it is sent.
    Errors: `RestrictedLocationError`, `BadRequestError`, `UnavailableError`.
    """

    def __init__(
        self,
        base_url: str,
        settings: Rest,
        *,
        metrics: Metrics,
        wall_ns: Callable[[], int],
        random: Random,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._wall_ns = wall_ns
        self._random = random
        self._budget = WeightBudget(_WEIGHT_LIMIT, settings.max_weight_share)
        self._anchor: tuple[float, int] | None = None  # Trio's clock, and the venue's then: ours until it was asked
        self.clock_ahead_ms: float | None = None
        self._lines = {purpose: trio.Lock() for purpose in PARTS}
        self._http = httpx.AsyncClient(
            base_url=f"{base_url.rstrip('/')}/api/v3/",
            timeout=settings.timeout_s,
            transport=transport,
            trust_env=not is_plain_and_local(base_url),
            headers={"Accept": "application/json", "Accept-Encoding": "gzip"},
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=30.0),
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.move_on_after(1, shield=True):  # closing sockets; a cancelled service closes them too
            await self._http.__aexit__(kind, error, trace)

    async def ping(self) -> None:
        """Reach the venue."""
        await self._fetch(_Call("ping", 1, "probes", {}), _ignore)

    async def server_time_ms(self) -> int:
        """Return the venue's clock in milliseconds, and note how far ours is ahead of it (`clock_ahead_ms`).

        The budget takes the answer for younger than it is: it came from the venue in no time. So its minutes begin late
        by the way back, and a request that is sent at their first instant never meets the end of the one before.
        """
        sent_ns = 0

        def note_sending() -> None:
            nonlocal sent_ns
            sent_ns = self._wall_ns()

        answer = await self._fetch(_Call("time", 1, "probes", {}), decode_server_time, note_sending)
        received_ns = self._wall_ns()
        self._budget.move_clock(answer.server_time - self._now_ms())
        self._anchor = (trio.current_time(), answer.server_time)
        self.clock_ahead_ms = (sent_ns + received_ns - answer.server_time * 2_000_000) / 2e6
        self._metrics.clock_ahead.set(self.clock_ahead_ms / 1000)
        return answer.server_time

    async def recent_time_ms(self) -> int:
        """Return a time that the venue's clock has passed: what it told within the last seconds, and those seconds.

        After a mass reconnect a thousand repairs ask at once.
        """
        if self.clock_ahead_ms is None or self._anchor is None or trio.current_time() - self._anchor[0] > _TIME_HOLDS_S:
            return await self.server_time_ms()
        return self._now_ms()

    async def keep_time(self) -> NoReturn:
        """Hold our clock against the venue's every few minutes; without an answer, what was known still counts."""
        while True:
            if self.clock_ahead_ms is not None:
                await trio.sleep(_CLOCK_EVERY_S)
            try:
                await self.server_time_ms()
            except VenueError as failure:
                log.info("clock_not_compared", reason=str(failure))
                await trio.sleep(_CLOCK_EVERY_S)

    async def exchange_info(self) -> ExchangeInfo:
        """Return all symbols and limits; the weight limit a minute is the budget's from now on."""
        info = await self._fetch(_Call("exchangeInfo", 20, "probes", {}), decode_exchange_info)
        for limit in info.rate_limits:
            is_ours = limit.kind == "REQUEST_WEIGHT" and limit.interval == "MINUTE"
            if is_ours and limit.limit >= limit.interval_count > 0:  # else nothing could ever be asked
                self._budget.set_limit(limit.limit // limit.interval_count)
        return info

    async def depth(
        self,
        symbol: str,
        levels: int,
        *,
        purpose: Purpose = "books",
        on_admitted: Callable[[], None] | None = None,
    ) -> DepthSnapshot:
        """Return the order book, at most `levels` a side."""
        call = _Call("depth", depth_weight(levels), purpose, {"symbol": symbol, "limit": levels})
        return await self._fetch(call, decode_depth, on_admitted)

    async def trades(self, symbol: str, limit: int, *, purpose: Purpose = "probes") -> list[RestTrade]:
        """Return the newest trades, ascending; from the venue's memory, so they do not lag."""
        return await self._fetch(_Call("trades", 25, purpose, {"symbol": symbol, "limit": limit}), decode_trades)

    async def historical_trades(
        self,
        symbol: str,
        from_id: int,
        limit: int = PAGE_ROWS,
        *,
        purpose: Purpose = "trades",
        on_admitted: Callable[[], None] | None = None,
        on_unreadable: OnUnreadable | None = None,
    ) -> list[RestTrade]:
        """Return trades from `from_id` on, ascending; from the oldest that is kept when that one is forgotten."""
        params: dict[str, str | int] = {"symbol": symbol, "fromId": from_id, "limit": limit}
        decode = _tolerant(decode_trades, on_unreadable)
        return await self._fetch(_Call("historicalTrades", 25, purpose, params), decode, on_admitted)

    async def agg_trades(
        self,
        symbol: str,
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        from_id: int | None = None,
        limit: int = PAGE_ROWS,
        purpose: Purpose = "trades",
    ) -> list[RestAggTrade]:
        """Return aggregate trades, ascending: the oldest from `start_ms` on, or the newest up to `end_ms`.

        `from_id` begins with that aggregate id instead; the venue takes it alone only.
        """
        params: dict[str, str | int] = {"symbol": symbol, "limit": limit, **_times(start_ms, end_ms)}
        if from_id is not None:
            params["fromId"] = from_id
        return await self._fetch(_Call("aggTrades", 4, purpose, params), decode_agg_trades)

    async def klines(
        self,
        symbol: str,
        interval: str,
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = PAGE_ROWS,
        purpose: Purpose = "trades",
        on_admitted: Callable[[], None] | None = None,
        on_unreadable: OnUnreadable | None = None,
    ) -> list[RestKline]:
        """Return bars that open from `start_ms` to `end_ms` (inclusive), ascending; the newest may be unfinished."""
        params: dict[str, str | int] = {
            "symbol": symbol, "interval": interval, "limit": limit, **_times(start_ms, end_ms),
        }  # fmt: skip
        decode = _tolerant(decode_klines, on_unreadable)
        return await self._fetch(_Call("klines", 2, purpose, params), decode, on_admitted)

    async def tickers(self) -> list[Ticker]:
        """Return the last trade id of every symbol, in one request (weight 80)."""
        return await self._fetch(_Call("ticker/24hr", 80, "probes", {}), decode_tickers)

    def weight_left(self, purpose: Purpose) -> int:
        """Return the weight that `purpose` has not spent yet of its own part of this minute."""
        return self._budget.left(purpose, self._now_ms())

    def silent_s(self) -> float:
        """Return for how long the venue wants no request of ours, after a 429 or 418."""
        return max(0.0, self._budget.banned_until_ms - self._now_ms()) / 1000

    def weights(self) -> tuple[int, int]:
        """Return the weight used in this minute, by everyone behind our address, and what we may bring it to."""
        return self._budget.used(self._now_ms()), self._budget.cap

    async def _fetch(
        self, call: _Call, decode: Callable[[bytes], T], on_admitted: Callable[[], None] | None = None
    ) -> T:
        backoff = Backoff(initial_s=_RETRY_INITIAL_S, max_s=_RETRY_MAX_S, multiplier=2, jitter=self._random)
        attempts_left = self._settings.max_attempts
        while True:
            admission = await self._wait_for_admission(call)
            if on_admitted is not None:
                on_admitted()
            try:
                return await self._attempt(call, admission, decode)
            except _LimitedError as limit:
                self._hold_everything(call, limit.until_ms)
            except UnavailableError as failure:
                attempts_left -= 1
                if not attempts_left:
                    raise
                is_lasting = attempts_left * 2 <= self._settings.max_attempts
                say = log.warning if is_lasting else log.info
                say("rest_retry", endpoint=call.endpoint, reason=str(failure), attempts_left=attempts_left)
                await trio.sleep(backoff.next_delay())

    async def _wait_for_admission(self, call: _Call) -> Admission:
        async with self._lines[call.purpose]:
            while True:
                answer = self._budget.admit(call.purpose, call.weight, self._now_ms())
                if isinstance(answer, Admission):
                    self._metrics.rest_weight_used.set(self._budget.used(self._now_ms()))
                    return answer
                await trio.sleep(min(answer, _LONGEST_SLEEP_S))

    async def _attempt(self, call: _Call, admission: Admission, decode: Callable[[bytes], T]) -> T:
        """Send once; the outcome is counted, whichever it is."""
        outcome: Outcome = "failed"
        used_by_address: int | None = None
        try:
            response = await self._send(call)
            used_by_address = _used_weight(response.headers)
            body = _read_answer(response, decode, self._now())
            outcome = "ok"
        except _LimitedError:
            outcome = "limited"
            raise
        except RestrictedLocationError:
            outcome = "restricted"
            raise
        except BadRequestError:
            outcome = "refused"
            raise
        else:
            return body
        finally:
            self._budget.settle(admission, used_by_address, self._now_ms())
            self._metrics.rest_weight_used.set(self._budget.used(self._now_ms()))
            self._metrics.rest_requests.labels(call.endpoint, outcome).inc()

    async def _send(self, call: _Call) -> _Reply:
        """Get the whole answer; httpx's timeouts are for each read, so the total has its own."""
        most_bytes = _LARGE_ANSWERS_BYTES.get(call.endpoint, _ANSWER_BYTES)
        try:
            with trio.fail_after(self._settings.timeout_s):
                async with self._http.stream("GET", call.endpoint, params=call.params) as response:
                    body = await _read_body(response, most_bytes)
            return _Reply(
                response.request.url.path, response.status_code, response.reason_phrase, response.headers, body
            )
        except trio.TooSlowError:
            raise UnavailableError(f"no answer within {self._settings.timeout_s:g} s") from None
        except httpx.RequestError as error:
            raise UnavailableError(f"{type(error).__name__}: {reason_of(error)}") from error

    def _hold_everything(self, call: _Call, until_ms: int) -> None:
        self._budget.ban(until_ms)
        seconds = (until_ms - self._now_ms()) / 1000
        log.warning("rest_limited", endpoint=call.endpoint, silent_for_s=seconds)

    def _now_ms(self) -> int:
        """Return the venue's time, as far as it is known; no later step of our wall clock moves it.

        A ban must not last an hour longer, nor end early and become a longer one, because a clock was corrected.
        """
        now_s = trio.current_time()
        if self._anchor is None:
            self._anchor = (now_s, self._wall_ns() // 1_000_000)
        then_s, then_ms = self._anchor
        return then_ms + round((now_s - then_s) * 1000)

    def _now(self) -> Now:
        budget_ms = self._now_ms()
        return Now(budget_ms, self._wall_ns() // 1_000_000 if self.clock_ahead_ms is None else budget_ms)


def _times(start_ms: int | None, end_ms: int | None) -> dict[str, str | int]:
    times = {"startTime": start_ms, "endTime": end_ms}
    return {name: value for name, value in times.items() if value is not None}


def _tolerant(decode: Callable[[bytes], list[T]], on_unreadable: OnUnreadable | None) -> Callable[[bytes], list[T]]:
    """Let single rows of a page be poison, if somebody wants to know them."""
    return decode if on_unreadable is None else partial(readable_rows, decode=decode, on_unreadable=on_unreadable)


def _ignore(_body: bytes) -> None:
    """Read nothing from an answer that says nothing."""


async def _read_body(response: httpx.Response, most_bytes: int) -> bytes:
    """Read an answer as far as it may go; `UnavailableError` beyond that, whatever it was packed to."""
    packing = response.headers.get("content-encoding", "identity").lower()
    if packing not in {"identity", "gzip"}:
        raise UnavailableError(f"unreadable answer: packed by {packing[:20]!r}")
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS) if packing == "gzip" else None
    body = bytearray()
    flaw = ""

    async def take(chunk: bytes) -> bool:
        nonlocal body, flaw
        try:
            body += chunk if unpacker is None else unpacker.decompress(chunk, most_bytes + 1 - len(body))
        except zlib.error as error:
            flaw = f"unreadable answer: {error}"
        if len(body) > most_bytes:
            flaw = f"an answer of more than {most_bytes} bytes"
        return bool(flaw)

    await read_until(response.aiter_raw() if unpacker else response.aiter_bytes(), take)
    if flaw:
        raise UnavailableError(flaw)
    return bytes(body)


def _number_in(text: str) -> int | None:
    """Read a header that is a whole number; anything else says nothing. `int` alone takes more than digits."""
    return int(text) if _WHOLE_NUMBER.fullmatch(text) else None


def _used_weight(headers: httpx.Headers) -> int | None:
    """Return what the venue counted for this address in its current minute; header names come in any case."""
    return _number_in(headers.get("x-mbx-used-weight-1m") or headers.get("x-mbx-used-weight") or "")


def _read_answer(response: _Reply, decode: Callable[[bytes], T], now: Now) -> T:
    """Return the decoded body, or raise what the answer means (the table of facts/binance.md §7)."""
    if response.status_code == HTTPStatus.OK:
        try:
            return decode(response.content)
        except REFUSALS as error:
            raise UnavailableError(f"unreadable answer: {error}") from error
    refusal = _read_refusal(response)
    raise _meaning(response, refusal, now)


def _read_refusal(response: _Reply) -> VenueRefusal:
    try:
        refusal = decode_refusal(response.content)
        return VenueRefusal(refusal.code, shortened(refusal.text))
    except REFUSALS:  # a proxy's or firewall's page, or an endpoint that this host does not have
        status = f"HTTP {response.status_code} {response.reason_phrase}".rstrip()
        return VenueRefusal(0, f"{status} for {response.path}")


def _meaning(response: _Reply, refusal: VenueRefusal, now: Now) -> Exception:
    status = response.status_code
    if status in _LIMITED_PAUSE_MS or refusal.code == _LIMIT_CODE:
        return _LimitedError(_limited_until_ms(response, refusal, now))
    if status == HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS:
        return RestrictedLocationError(refusal.text)
    passing = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING
    if passing or refusal.code in _TRANSIENT_CODES:
        return UnavailableError(f"HTTP {status}: {refusal.text} ({refusal.code})" if refusal.code else refusal.text)
    return BadRequestError(refusal.code, refusal.text)


def _limited_until_ms(response: _Reply, refusal: VenueRefusal, now: Now) -> int:
    """Return until when nothing may be sent: Retry-After (seconds), the time in the text, or a cautious guess."""
    seconds = _number_in(response.headers.get("retry-after", ""))
    named = _BANNED_UNTIL.search(refusal.text)
    named_ms = 0 if named is None else int(named[1]) - now.venue_ms + _CLOCK_MARGIN_MS
    if seconds is not None:
        pause_ms = max(seconds, _LEAST_PAUSE_S) * 1000
    elif named_ms > 0:
        pause_ms = named_ms
    else:  # also for a time that is over: it is one clock or the other that is wrong, and the limit is real
        pause_ms = _LIMITED_PAUSE_MS.get(response.status_code, _LIMITED_PAUSE_MS[429])
    return now.budget_ms + min(pause_ms, _LONGEST_BAN_MS)
