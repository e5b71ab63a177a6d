"""The HTTP face, through Quart's own client and once over a real socket."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from ingestor.health_check import MAX_VIEWERS, BindError, Events, EventStream, bind, make_app, serve, url_of
from ingestor.probe import ask
from tests.fakes.board import healthy_board, observed

if TYPE_CHECKING:
    from trio.testing import MockClock

    from ingestor.core.health import HealthBoard

CLOCK_S = 100.0


async def get(board: HealthBoard, path: str, method: str = "GET", **more: Any) -> tuple[int, Any]:
    """Ask the application for `path`; return the status and the body, read as JSON where it is."""
    response = await make_app(observed(board)).test_client().open(path, method=method, **more)
    body = await response.get_data(as_text=True)
    return response.status_code, json.loads(body) if response.mimetype == "application/json" else body


@pytest.mark.parametrize(
    "path",
    ["/live", "/ready", "/started", "/health", "/status", "/metrics", "/", "/page.css"]
    + [f"/{name}.js" for name in ("page", "chart", "line", "words")],
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
    """It is started with a URL that works, and ends at once when it is cancelled."""
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, observed(healthy_board()), "127.0.0.1", 0)
        async with httpx.AsyncClient() as client:
            response = await client.get(f"{url}/ready")
        assert (response.status_code, response.json()["ready"]) == (200, True)
        nursery.cancel_scope.cancel()


def event(text: bytes) -> tuple[str, Any]:
    """Read one event: its name and its data."""
    fields = dict(line.split(": ", 1) for line in text.decode().splitlines() if line)
    return fields["event"], json.loads(fields["data"])


async def test_an_event_stream_tells_the_past_and_then_the_present(autojump_clock: MockClock) -> None:
    """The history comes first, the status at once after it, and then one a second."""
    seen = observed(healthy_board(), now=None)
    seen.sample()
    await trio.sleep(2.5)
    seen.sample()
    stream = EventStream(Events(seen))
    times, told = [], []
    for _ in range(4):
        told.append(event(await anext(stream)))
        times.append(trio.current_time())
    assert times == [2.5, 2.5, 3.0, 4.0]
    assert [name for name, _ in told] == ["history", "status", "status", "status"]
    past, present = told[0][1], told[1][1]
    assert past["names"][0] == "uptime_s"
    assert [row[0] for row in past["points"]] == [2.5]
    assert present["point"] == past["points"][-1]
    assert present["details"]["line"] == {"symbols": 1}  # the watermarks, one a subscription, are left out


async def test_the_status_is_made_once_a_second_however_many_look(autojump_clock: MockClock) -> None:
    """Sixteen viewers cost what one costs."""
    asked = 0

    def details() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {}

    events = Events(replace(observed(healthy_board(), now=None), details=details))
    streams = [EventStream(events) for _ in range(MAX_VIEWERS)]
    for _ in range(4):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(anext, stream)
    assert asked == 3


async def test_the_number_of_viewers_is_bounded_and_a_place_is_given_back() -> None:
    """One too many is refused, by an answer or by an empty stream; who leaves makes room."""
    events = Events(observed(healthy_board()))
    streams = [EventStream(events) for _ in range(MAX_VIEWERS)]
    for stream in streams:
        await anext(stream)
    assert events.is_full
    late = EventStream(events)
    assert [told async for told in late] == []
    await late.aclose()
    assert events.is_full
    await streams[0].aclose()
    assert not events.is_full
    assert event(await anext(EventStream(events)))[0] == "history"


async def ask_raw(url: str, request: bytes = b"GET /events") -> tuple[trio.SocketStream, bytes]:
    """Ask as plainly as can be; return the connection, and the answer as far as its empty line and a little more."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
    await stream.send_all(request + b" HTTP/1.1\r\nHost: here\r\n\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += await stream.receive_some()
    return stream, answer


async def test_a_stream_that_finds_no_place_says_so() -> None:
    """503, so that the page waits before it asks again; whoever closes the page gives the place back."""
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, observed(healthy_board(), now=None), "127.0.0.1", 0)
        viewers = []
        for _ in range(MAX_VIEWERS):
            viewer, answer = await ask_raw(url)
            assert b"content-type: text/event-stream; charset=utf-8\r\n" in answer.lower()
            while b"event: status" not in answer:
                answer += await viewer.receive_some()
            viewers.append(viewer)
        for stream, answer in [await ask_raw(url), await ask_raw(url, b"HEAD /events")]:
            assert answer.startswith(b"HTTP/1.1 503")
            await stream.aclose()
        for viewer in viewers:
            await viewer.aclose()
        answer = b""
        while not answer.startswith(b"HTTP/1.1 200"):  # it learns of a closed connection in its own time
            stream, answer = await ask_raw(url)
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_the_head_of_the_event_stream_is_all_there_is_of_it() -> None:
    """Nobody who only asks for the head takes a place."""
    response = await make_app(observed(healthy_board())).test_client().head("/events")
    assert (response.status_code, response.mimetype) == (200, "text/event-stream")
    assert await response.get_data(as_text=False) == b""


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
