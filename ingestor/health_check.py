"""The HTTP face: probes, metrics, status and the page with its events, read-only, on quart-trio.

Every handler reads plain facts on the Trio thread and answers at once; none waits for anything, so a probe says how the
service is and not how its answer was made. The one answer that goes on is `/events`, the status once a second, made
once however many look. `serve` binds before it reports that it has started, and a port that is taken is a clear error.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec
import trio
from quart import Response, request
from quart_trio import QuartTrio

from ingestor import __version__
from ingestor.core.errors import IngestorError
from ingestor.core.history import History, Point, Reading
from ingestor.http_server import serve_app
from ingestor.metrics import CONTENT_TYPE, SECONDS_BUCKETS, Stage, StreamType, expose, value_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import NoReturn

    from ingestor.core.health import HealthBoard
    from ingestor.core.rates import RollingRates
    from ingestor.metrics import Metrics

MAX_REQUEST_BYTES = 4_096  # nobody has anything to send here
EVENT_EVERY_S: Final = 1.0
SAME_FOR_S: Final = 0.2  # an answer that is long to make is made no more often, however many ask
MAX_VIEWERS: Final = 16
EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
RETRY_MS: Final = 2_000  # what a browser waits before it opens the event stream again
PAGE_FILES = (
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    *((f"/{name}.js", f"{name}.js", "text/javascript; charset=utf-8") for name in ("page", "chart", "line", "words")),
)
# The page loads nothing foreign, and the browser is told so.
PAGE_POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": f"{PAGE_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class BindError(IngestorError):
    """The health port cannot be taken."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the handlers read. `details` is the rest of `/status`, from whoever knows it: symbols, coverage, holes."""

    board: HealthBoard
    metrics: Metrics
    rates: RollingRates
    details: Callable[[], dict[str, Any]] = dict
    now: Callable[[], float] = trio.current_time
    wall_ns: Callable[[], int] = time.time_ns
    history: History = field(default_factory=partial(History, SECONDS_BUCKETS))

    def health(self) -> dict[str, Any]:
        """Return the body of `/health`: every component by name, rates per second and memory."""
        report = msgspec.to_builtins(self.board.report(self.now()))
        return {
            "version": __version__,
            **report,
            "rates": self.rates.per_second(),
            "process": self.metrics.process_usage(),
        }

    def status(self) -> dict[str, Any]:
        """Return the body of `/status`: health, and the numbers that the page shows."""
        metrics = self.metrics
        return {
            **self.health(),
            "latency": {stage: metrics.latency.quantiles(stage) for stage in get_args(Stage)},
            "venue_lag": {kind: metrics.venue_lag.quantiles(kind) for kind in get_args(StreamType)},
            "channels": {
                name: {"batches": batches, "bytes": held} for name, (batches, held) in metrics.channel_fill().items()
            },
            "totals": metrics.totals(),
            "losses": metrics.losses(),
            "spool_bytes": value_of(metrics.spool_bytes),
            "spool_limit_bytes": value_of(metrics.spool_limit),
            "watermark_lag_s": metrics.watermark_lag_s(),
            "at_ms": self.wall_ns() // 1_000_000,
            "details": self.details(),
        }

    def sample(self) -> None:
        """Add what the numbers are now to the history."""
        totals, fills = self.metrics.totals(), self.metrics.channel_fill()
        reading = Reading(
            messages=totals["messages"],
            records=totals["records"],
            waits=self.metrics.latency.counts("acknowledged"),
            channel_bytes=sum(held for _, held in fills.values()),
            held_bytes=self.board.sink.held_bytes,
            spool_bytes=value_of(self.metrics.spool_bytes),
            lag_s=self.metrics.watermark_lag_s(),
        )
        self.history.sample(self.now() - self.board.since_s, reading)


class Sparing:
    """Makes an answer anew only when the last one is `SAME_FOR_S` old."""

    def __init__(self, make: Callable[[], bytes], now: Callable[[], float]) -> None:
        self._make = make
        self._now = now
        self._made_s = -math.inf
        self._made = b""

    def __call__(self) -> bytes:
        """Return it."""
        now = self._now()
        if now - self._made_s >= SAME_FOR_S:
            self._made, self._made_s = self._make(), now
        return self._made


class Events:
    """The event stream of the page: first the history, then the status once a second with the newest point of it."""

    def __init__(self, observed: Observed) -> None:
        self.viewers = 0
        self._observed = observed
        self._made_at = -1
        self._newest = b""

    @property
    def is_full(self) -> bool:
        """Whether as many look on as may."""
        return self.viewers >= MAX_VIEWERS

    def opening(self) -> bytes:
        """Return how a stream begins: with the past."""
        history = self._observed.history
        past = {"every_s": history.every_s, "window_s": history.window_s}
        body = msgspec.json.encode({**past, "names": Point.__struct_fields__, "points": history.points()})
        return b"retry: %d\nevent: history\ndata: %b\n\n" % (RETRY_MS, body)

    def newest(self) -> bytes:
        """Return the status of this second."""
        second = int(self._observed.now() / EVENT_EVERY_S)
        if second != self._made_at:
            status = self._observed.status()
            status["details"].get("line", {}).pop("watermarks", None)  # one a subscription: the page sums them up
            body = msgspec.json.encode({**status, "point": self._observed.history.newest()})
            self._made_at, self._newest = second, b"event: status\ndata: %b\n\n" % body
        return self._newest

    async def next_second(self) -> None:
        """Wait until there is a newer status than now."""
        await trio.sleep(EVENT_EVERY_S - self._observed.now() % EVENT_EVERY_S)


class EventStream(AsyncIterator[bytes]):
    """The events as one viewer gets them. It counts as a viewer from its first event until it is closed."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._sent = 0

    async def __anext__(self) -> bytes:
        self._sent += 1
        if self._sent == 1:
            if self._events.is_full:
                self._sent = 0
                raise StopAsyncIteration
            self._events.viewers += 1
            return self._events.opening()
        if self._sent > 2:
            await self._events.next_second()
        return self._events.newest()

    async def aclose(self) -> None:
        """Be a viewer no longer; Quart calls it however the answer ends."""
        if self._sent:
            self._events.viewers -= 1
            self._sent = 0


def make_app(observed: Observed) -> QuartTrio:
    """Build the application. Handlers are `async` with nothing to await: Quart would run plain ones in a thread."""
    app = QuartTrio("ingestor.health_check", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES
    board, now = observed.board, observed.now
    status_body = Sparing(lambda: msgspec.json.encode(observed.status()), now)
    metrics_body = Sparing(lambda: expose(observed.metrics.registry), now)

    async def live() -> Response:
        return answer({"live": board.live(now())}, is_good=board.live(now()))

    async def ready() -> Response:
        report = board.report(now())
        return answer({"ready": report.ready, "complaints": report.complaints}, is_good=report.ready)

    async def started() -> Response:
        has_started = board.has_started(now())
        return answer({"started": has_started}, is_good=has_started)

    async def health() -> Response:
        body = observed.health()
        return answer(body, is_good=body["status"] != "unhealthy")

    async def status() -> Response:
        return Response(status_body(), content_type="application/json")

    async def metrics() -> Response:
        return Response(metrics_body(), content_type=CONTENT_TYPE)

    for handler in (live, ready, started, health, status, metrics):
        add_view(app, f"/{handler.__name__}", handler)
    add_view(app, "/events", partial(events, Events(observed)))
    for path, name, content_type in PAGE_FILES:
        add_view(app, path, partial(page_file, read_page_file(name), content_type))
    app.before_request(refuse_bodies)
    app.after_request(harden)
    return app


def add_view(app: QuartTrio, path: str, handler: Callable[[], Awaitable[Response]]) -> None:
    """Have GET and HEAD of `path` answered."""
    app.add_url_rule(path, endpoint=path, view_func=handler, methods=["GET"], provide_automatic_options=False)


def answer(body: object, *, is_good: bool) -> Response:
    """Return `body` as JSON, 200 or 503."""
    return Response(msgspec.json.encode(body), status=200 if is_good else 503, content_type="application/json")


async def events(viewed: Events) -> Response:
    """Return the event stream; 503 when as many look on as may."""
    if viewed.is_full:
        return Response("too many are looking already\n", status=503, content_type="text/plain")
    if request.method == "HEAD":
        return Response(b"", content_type=EVENT_STREAM)
    response = Response(EventStream(viewed), content_type=EVENT_STREAM)
    response.timeout = None
    return response


async def page_file(text: bytes, content_type: str) -> Response:
    """Return a file of the page."""
    return Response(text, content_type=content_type)


def read_page_file(name: str) -> bytes:
    """Read a file of the page out of the package."""
    return resources.files("ingestor").joinpath("page", name).read_bytes()


async def refuse_bodies() -> Response | None:
    """Answer 413 to a request that brings more than anybody could want to say here."""
    if (request.content_length or 0) > MAX_REQUEST_BYTES:
        return Response("the request is too large\n", status=413, content_type="text/plain")
    return None


async def harden(response: Response) -> Response:
    """Put the same headers on every answer: never cached, never framed, nothing foreign loaded."""
    response.headers.update(HEADERS)
    return response


def bind(host: str, port: int) -> socket.socket:
    """Take the port, 0 for any free one; `BindError` says whose fault it is."""
    is_ipv6 = ":" in host
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        raise BindError(f"health.port: cannot listen on {host}:{port}: {error.strerror or error}") from error


def url_of(bound: socket.socket) -> str:
    """Return an address that reaches `bound` from this machine."""
    host, port = bound.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - read
    return f"http://{reachable}:{port}"


async def serve(
    observed: Observed,
    host: str,
    port: int,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer, and keep the history, until cancelled; started with the URL once the port is ours.

    Raises `BindError` before it starts when the port cannot be had.
    """
    bound = bind(host, port)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_app, make_app(observed), bound, logging.getLogger("hypercorn.error"))
        nursery.start_soon(keep_history, observed)
        task_status.started(url_of(bound))


async def keep_history(observed: Observed) -> NoReturn:
    """Sample what the charts show until cancelled."""
    while True:
        observed.sample()
        await trio.sleep(observed.history.every_s)
