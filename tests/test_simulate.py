"""`ingestor simulate`, in this process."""

from __future__ import annotations

import io
import socket
import time
import zipfile
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from ingestor.local.recording import open_recording
from ingestor.local.simulate import PortTakenError, open_market, open_venue, serve_venue

if TYPE_CHECKING:
    from pathlib import Path

    from ingestor.local.market import Market


TRADE = (
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1700000000001,"s":"BTCUSDT","t":1,"p":"1.00","q":"2.00",'
    b'"T":1700000000000,"m":true,"M":true}}\n'
)


def market(past_h: float = 0.0, start_ms: int = 0) -> Market:
    start_ms = start_ms or time.time_ns() // 1_000_000
    return open_market(["BTCUSDT"], seed=1, orders_per_s=0.05, past_h=past_h, start_ms=start_ms)


@pytest.mark.parametrize("with_chaos", [False, True])
async def test_it_serves_until_it_is_told_to_stop(capsys: pytest.CaptureFixture[str], *, with_chaos: bool) -> None:
    """Other programs read from its output where it is, and find a venue there."""
    finish = trio.Event()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(
            lambda task_status: serve_venue(
                open_venue(market(), seed=1, with_chaos=with_chaos),
                "127.0.0.1",
                0,
                until=finish.wait,
                task_status=task_status,
            )
        )
        async with httpx.AsyncClient() as client:
            response = await client.get(f"{url}/api/v3/exchangeInfo")
        assert response.json()["symbols"][0]["symbol"] == "BTCUSDT"
        finish.set()
    port = url.rpartition(":")[2]
    assert capsys.readouterr().out.splitlines() == [
        f"websocket_url: ws://127.0.0.1:{port}",
        f"rest_url: http://127.0.0.1:{port}",
        f"archive_url: http://127.0.0.1:{port}",
    ]


def test_a_past_is_there_from_the_start() -> None:
    """Also the archive of a day that is over."""
    after_midnight_ms = 20_000 * 86_400_000 + 600_000
    archive = open_venue(market(past_h=24.5, start_ms=after_midnight_ms), seed=1, with_chaos=False).archive
    for path, rows in (("trades/BTCUSDT/BTCUSDT-trades", 5_000), ("klines/BTCUSDT/1m/BTCUSDT-1m", 1_440)):
        answer = archive.answer(f"/data/spot/daily/{path}-2024-10-03.zip", None)
        with zipfile.ZipFile(io.BytesIO(answer.body)) as content:
            assert content.read(content.namelist()[0]).count(b"\n") >= rows


def test_it_replays_a_recording(tmp_path: Path) -> None:
    """The symbols are the recorded ones."""
    path = tmp_path / "ws.jsonl"
    path.write_bytes(TRADE)
    venue = open_venue(open_recording(path, speed=0.0), seed=1, with_chaos=True)
    assert venue.desk.answer("/api/v3/exchangeInfo", [], 0).body.count(b'"symbol":"BTCUSDT"') == 1


async def test_a_port_in_use_is_a_clear_error() -> None:
    """The message names the address and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*Address already in use"):
            await serve_venue(
                open_venue(market(), seed=1, with_chaos=False), "127.0.0.1", port, until=trio.sleep_forever
            )
