"""The HTTP face, through Quart's own client and once over a real socket."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from ingestor.health_check import BindError, bind, make_app, serve, url_of
from ingestor.probe import ask
from tests.fakes.board import healthy_board, observed

if TYPE_CHECKING:
    from ingestor.core.health import HealthBoard

CLOCK_S = 100.0


async def get(board: HealthBoard, path: str, method: str = "GET", **more: Any) -> tuple[int, Any]:
    """Ask the application for `path`; return the status and the body, read as JSON where it is."""
    response = await make_app(observed(board)).test_client().open(path, method=method, **more)
    body = await response.get_data(as_text=True)
    return response.status_code, json.loads(body) if response.mimetype == "application/json" else body


@pytest.mark.parametrize(
    "path", ["/live", "/ready", "/started", "/health", "/status", "/metrics", "/", "/page.css", "/page.js"]
)
async def test_every_address_answers_when_all_is_well(path: str) -> None:
    """A healthy service says 200 everywhere."""
    status, _ = await get(healthy_board(), path)
    assert status == 200


async def test_stopping_turns_readiness_off_and_leaves_the_rest() -> None:
    """An orchestrator that stops a task sees it leave at once, and no probe kills it while it drains."""
    board = healthy_board()
    board.ready_since_s = 50.0
    board.stopping = True
    assert await get(board, "/ready") == (
        503,
        {"ready": False, "complaints": [{"status": "degraded", "component": "process", "text": "stopping"}]},
    )
    assert [(await get(board, path))[0] for path in ("/live", "/started", "/health")] == [200, 200, 200]


async def test_an_outage_of_kinesis_is_unhealthy_but_live_and_started() -> None:
    """What a restart cannot mend must not cause one."""
    board = healthy_board()
    board.ready_since_s = 50.0
    board.sink.configuration_error = "no such stream"
    assert [(await get(board, path))[0] for path in ("/live", "/started", "/ready", "/health")] == [200, 200, 503, 503]


async def test_a_loop_that_does_not_turn_is_not_live() -> None:
    """The liveness probe fails only for what a restart mends."""
    board = healthy_board()
    board.turned_s = 50.0
    assert await get(board, "/live") == (503, {"live": False})
    assert await get(board, "/started") == (503, {"started": False})


async def test_health_names_every_component() -> None:
    """The body says state and ages, rates and memory."""
    status, body = await get(healthy_board(), "/health")
    assert (status, body["status"]) == (200, "healthy")
    assert body["websocket"]["connections"]["ws-0"]["state"] == "live"
    assert (body["websocket"]["state"], body["websocket"]["last_message_age_s"]) == ("live", 1.0)
    assert (body["kinesis"]["breaker"], body["kinesis"]["last_success_age_s"]) == ("closed", 1.0)
    assert body["process"]["memory_bytes"] > 1e6
    assert "rates" in body


async def test_status_is_health_and_the_numbers_of_the_page() -> None:
    """The page needs one request a second, and what the service adds stands under `details`."""
    board = healthy_board()
    seen = observed(board)
    seen.metrics.latency.observe("acknowledged", 0.9, 5)
    seen.metrics.watch_channel("records", lambda: (1, 2))
    body = json.loads(await (await make_app(seen).test_client().get("/status")).get_data(as_text=True))
    assert body["latency"]["acknowledged"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert body["channels"] == {"records": {"batches": 1, "bytes": 2}}
    assert body["totals"]["records"] == 0
    assert body["losses"]["reconnections"] == 0
    assert body["details"]["holes"][0]["reason"] == "venue_forgot"


async def test_metrics_are_prometheus_text() -> None:
    """The content type names the format, and the contract's names are there."""
    response = await make_app(observed(healthy_board())).test_client().get("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"\nwebsocket_reconnection_count 0.0\n" in await response.get_data(as_text=False)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed(method: str) -> None:
    """The face is read-only."""
    assert (await get(healthy_board(), "/status", method))[0] == 405


async def test_an_unknown_address_is_not_found() -> None:
    """There is nothing else here."""
    assert (await get(healthy_board(), "/../etc/passwd"))[0] == 404


async def test_a_large_body_is_refused() -> None:
    """Nobody has anything to send."""
    assert (await get(healthy_board(), "/health", headers={"Content-Length": "5000"}))[0] == 413


async def test_every_answer_forbids_foreign_content_and_caching() -> None:
    """The page can load from here only, and no answer is kept."""
    for path in ("/", "/status", "/nothing"):
        response = await make_app(observed(healthy_board())).test_client().get(path)
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_page_holds_nothing_inline_and_nothing_foreign() -> None:
    """What the policy forbids is not attempted, so the page works under it."""
    _, page = await get(healthy_board(), "/")
    assert "http://" not in page
    assert "https://" not in page
    assert "style=" not in page
    assert "<script>" not in page


async def test_it_serves_on_a_free_port_and_ends_when_told() -> None:
    """It is started with a URL that works, and returns when the trigger fires."""
    finish = trio.Event()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(
            lambda task_status: serve(
                observed(healthy_board()), "127.0.0.1", 0, until=finish.wait, task_status=task_status
            )
        )
        async with httpx.AsyncClient() as client:
            response = await client.get(f"{url}/ready")
        assert (response.status_code, response.json()["ready"]) == (200, True)
        finish.set()


async def test_the_probe_client_reads_verdict_and_complaints() -> None:
    """One line says what is wrong, and only 200 is good."""
    board = healthy_board()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(lambda task_status: serve(observed(board), "0.0.0.0", 0, task_status=task_status))  # noqa: S104 - a test
        port = int(url.rpartition(":")[2])
        answers = []
        for path in ("/live", "/ready", "/started", "/health"):
            answers.append(await trio.to_thread.run_sync(ask, "0.0.0.0", port, path, 5.0))  # noqa: S104, PERF401 - a test
        board.sink.breaker = "open"
        answers.append(await trio.to_thread.run_sync(ask, "127.0.0.1", port, "/ready", 5.0))
        answers.append(await trio.to_thread.run_sync(ask, "127.0.0.1", port, "/metrics", 5.0))
        nursery.cancel_scope.cancel()
    assert answers == [
        (True, "200 True"),
        (True, "200 True"),
        (True, "200 True"),
        (True, "200 healthy"),
        (False, "503 False; kinesis: breaker open, last success 1 s ago"),
        (True, "200 and no verdict: is another program on this port?"),
    ]


def test_the_probe_client_says_when_nobody_answers() -> None:
    """A refused connection is a line and not a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    is_good, text = ask("127.0.0.1", port, "/live", 1.0)
    assert not is_good
    assert text.startswith(f"no answer from port {port}: ")


async def test_a_port_in_use_is_a_clear_error() -> None:
    """The message names the setting, the address and the reason, before anything else has started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=rf"health.port: cannot listen on 127.0.0.1:{port}: Address already in use"):
            await serve(observed(healthy_board()), "127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "begin"),
    [("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:"), ("::", "http://[::1]:")],  # noqa: S104 - a test
)
def test_the_url_is_one_that_reaches_it(host: str, begin: str) -> None:
    """A wildcard is no address for a client."""
    with bind(host, 0) as bound:
        assert url_of(bound).startswith(begin)
