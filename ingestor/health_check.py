"""The HTTP face: probes, metrics, status and the page, read-only, on quart-trio under hypercorn.

Every handler reads plain facts on the Trio thread and answers at once; none waits for anything, so a probe says how the
service is and not how its answer was made. `serve` binds before it reports that it has started, and a port that is
taken is a clear error.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, get_args

import hypercorn.trio
import msgspec
import trio
from hypercorn.config import Config as HypercornConfig
from quart import Response, request
from quart_trio import QuartTrio

from ingestor import __version__
from ingestor.core.errors import IngestorError
from ingestor.metrics import CONTENT_TYPE, Stage, StreamType, expose

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ingestor.core.health import HealthBoard
    from ingestor.core.rates import RollingRates
    from ingestor.metrics import Metrics

MAX_REQUEST_BYTES = 4_096  # nobody has anything to send here
GRACEFUL_S = 1.0
READ_TIMEOUT_S = 10  # a client that opens a connection and says nothing is cut
PAGE_FILES = (
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
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
            "details": self.details(),
        }


def make_app(observed: Observed) -> QuartTrio:
    """Build the application. Handlers are `async` with nothing to await: Quart would run plain ones in a thread."""
    app = QuartTrio("ingestor.health_check", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES
    board, now = observed.board, observed.now

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
        return answer(observed.status(), is_good=True)

    async def metrics() -> Response:
        return Response(expose(observed.metrics.registry), content_type=CONTENT_TYPE)

    for handler in (live, ready, started, health, status, metrics):
        app.add_url_rule(f"/{handler.__name__}", view_func=handler, methods=["GET"], provide_automatic_options=False)
    for path, name, content_type in PAGE_FILES:
        app.add_url_rule(
            path,
            endpoint=name,
            view_func=partial(page_file, read_page_file(name), content_type),
            methods=["GET"],
            provide_automatic_options=False,
        )
    app.before_request(refuse_bodies)
    app.after_request(harden)
    return app


def answer(body: object, *, is_good: bool) -> Response:
    """Return `body` as JSON, 200 or 503."""
    return Response(msgspec.json.encode(body), status=200 if is_good else 503, content_type="application/json")


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
    until: Callable[[], Awaitable[None]] = trio.sleep_forever,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until `until` returns, or until cancelled; started with the URL once the port is ours.

    Raises `BindError` before it starts when the port cannot be had.
    """
    bound = bind(host, port)
    url = url_of(bound)
    config = HypercornConfig()
    config.bind = [f"fd://{bound.detach()}"]  # hypercorn owns and closes it from here on
    config.errorlog = logging.getLogger("hypercorn.error")
    config.graceful_timeout = GRACEFUL_S
    config.read_timeout = READ_TIMEOUT_S
    config.h11_max_incomplete_size = 2 * MAX_REQUEST_BYTES
    config.h2_max_header_list_size = 2 * MAX_REQUEST_BYTES
    config.include_server_header = False
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(hypercorn.trio.serve, make_app(observed), config, shutdown_trigger=until))
        task_status.started(url)
