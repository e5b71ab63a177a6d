"""`ingestor simulate`, in this process."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from ingestor.local.simulate import PortTakenError, open_venue, serve_venue

if TYPE_CHECKING:
    from pathlib import Path

    from ingestor.local.venue import Venue


TRADE = (
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1700000000001,"s":"BTCUSDT","t":1,"p":"1.00","q":"2.00",'
    b'"T":1700000000000,"m":true,"M":true}}\n'
)


def simulated(replay: Path | None = None, *, with_chaos: bool = False) -> Venue:
    return open_venue(
        symbols=["BTCUSDT"],
        seed=1,
        replay=replay,
        speed=0.0,
        with_chaos=with_chaos,
        start_ms=time.time_ns() // 1_000_000,
    )


@pytest.mark.parametrize("with_chaos", [False, True])
async def test_it_serves_until_it_is_told_to_stop(capsys: pytest.CaptureFixture[str], *, with_chaos: bool) -> None:
    """Other programs read from its output where it is, and find a venue there."""
    finish = trio.Event()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(
            lambda task_status: serve_venue(
                simulated(with_chaos=with_chaos), "127.0.0.1", 0, until=finish.wait, task_status=task_status
            )
        )
        async with httpx.AsyncClient() as client:
            response = await client.get(f"{url}/api/v3/exchangeInfo")
        assert response.json()["symbols"][0]["symbol"] == "BTCUSDT"
        finish.set()
    port = url.rpartition(":")[2]
    assert capsys.readouterr().out == f"websocket_url: ws://127.0.0.1:{port}\nrest_url: http://127.0.0.1:{port}\n"


def test_it_replays_a_recording(tmp_path: Path) -> None:
    """The symbols are the recorded ones."""
    path = tmp_path / "ws.jsonl"
    path.write_bytes(TRADE)
    assert simulated(path, with_chaos=True).desk is not None


async def test_a_port_in_use_is_a_clear_error() -> None:
    """The message names the address and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*Address already in use"):
            await serve_venue(simulated(), "127.0.0.1", port, until=trio.sleep_forever)
