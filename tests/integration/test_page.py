"""The live page in a real browser, beside the real service in a world in memory, as a person on call meets it."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from ingestor import app
from ingestor.config import Health
from ingestor.core.errors import SinkError
from ingestor.local.faults import Disconnect, Refuse, Skip
from ingestor.local.market import Market
from tests.fakes.world import START_MS, MemoryWorld, config_for
from tests.integration.browser import LEFT, TAB, Browser, open_browser
from tests.integration.engines import clean_environment, free_port, wait_listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from ingestor.core.model import EntryFailure, PutEntry

pytestmark = pytest.mark.integration

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
IS_WIDER_THAN_THE_WINDOW = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
# WCAG 2.1 contrast of every text with what is painted behind it; colours as `rgb(...)`, nothing here is translucent.
FAINT_TEXTS = """
const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
  .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const box = node.matches('g.node') ? node.querySelector('rect') : node;
    const style = getComputedStyle(box);
    const colour = box.matches('rect') ? style.fill : style.backgroundColor;
    if (!colour.startsWith('rgba(0, 0, 0, 0')) return colour;
  }
  return getComputedStyle(document.documentElement).backgroundColor;
};
const faint = [];
for (const node of document.querySelectorAll('body *')) {
  const isWritten = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  if (!isWritten || !node.getClientRects().length || node.matches('script, desc, .unseen')) continue;
  const style = getComputedStyle(node);
  const pair = [light(node.matches('text') ? style.fill : style.color), light(behind(node))].sort((a, b) => b - a);
  const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
  if (contrast < 4.5) faint.push(`${node.tagName} ${node.getAttribute('class')} ${node.textContent}: ${contrast}`);
}
return faint;
"""

# Texts of the picture that reach beyond the box that they stand in.
LONG_TEXTS = """
return [...document.querySelectorAll('g.node')].flatMap((node) => {
  const right = node.querySelector('rect').getBoundingClientRect().right - 2;
  return [...node.querySelectorAll('text')].filter((text) => text.getBoundingClientRect().right > right)
    .map((text) => text.textContent);
});
"""
# The picture and the words of a task that has more of everything than the one that runs here.
BE_LARGE = """
return (async () => {
  const [{ LinePicture }, { troubles }] = await Promise.all([import('/line.js'), import('/words.js')]);
  const status = await (await fetch('/status')).json();
  const names = [...Array(15).keys()].map((number) => `ws-${number}`);
  status.complaints = names.map((name) => ({ component: 'websocket', text: `${name} is connecting for 1234 s` }));
  status.kinesis = { ...status.kinesis, breaker: 'half_open', held_bytes: 1023 * 2 ** 20, last_success_age_s: 1e5 };
  Object.assign(status.losses, { ids_repaired: 98765, gaps_detected: 98765, dead_letters: 98765 });
  Object.assign(status.totals, { records: 98.7e9 });
  Object.assign(status, { spool_bytes: 1023 * 2 ** 20, spool_limit_bytes: 1023 * 2 ** 20 });
  Object.assign(status.details.line, { symbols: 1999, venue: 'stream.binance.com' });
  Object.assign(status.details.line, { repair: { trades: 98765, bars: 0 }, books: { synchronised: 1998, all: 1999 } });
  status.details.configuration = { outcome: 'rejected', problems: ['kinesis.lanes: Input should be greater than 0'] };
  new LinePicture(document.getElementById('line')).show(status);
  return troubles(status);
})();
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Return a browser with an empty profile."""
    with open_browser(tmp_path) as opened:
        yield opened


class Running:
    """The service and its world, while they run."""

    def __init__(self, folder: Path, world: MemoryWorld, port: int) -> None:
        health = Health(host="127.0.0.1", port=port)
        quick: dict[str, Any] = {"batch": {"flush_interval_s": 0.3}, "circuit_breaker": {"reset_timeout_s": 2.0}}
        self.config = config_for(world, folder, **quick).model_copy(update={"health": health})
        self.world = world
        self.url = f"http://127.0.0.1:{port}"
        self.stop = trio.Event()
        self.has_stopped = trio.Event()

    async def run(self, task_status: trio.TaskStatus[str]) -> None:  # noqa: ASYNC128 - `serve` calls it
        await app.serve(self.config, self.world.as_seen_by_a_service(), self.stop, task_status=task_status)
        self.has_stopped.set()


@asynccontextmanager
async def running(folder: Path, *, port: int | None = None) -> AsyncIterator[Running]:
    """Run the service for the length of the block, on a market that loses a few trades on the way."""
    market = Market(SYMBOLS, seed=3, start_ms=START_MS, orders_per_s=20.0, updates_per_s=20.0)
    world = MemoryWorld(SYMBOLS, source=market, script=[Skip(1.0, "btcusdt@trade", 5)])
    service = Running(folder, world, port or free_port())
    async with world.alive(), trio.open_nursery() as nursery:
        await nursery.start(service.run)
        yield service
        nursery.cancel_scope.cancel()


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    """Drive the browser, which blocks, while the service runs here."""
    return await trio.to_thread.run_sync(partial(call, *arguments))


async def fail_every_put(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
    """Be a Kinesis that is away."""
    raise SinkError("transient", "ServiceUnavailable", "nobody is here")


async def be_slow(entries: Sequence[PutEntry]) -> None:
    """Be a Kinesis that takes its time."""
    await trio.sleep(4)


async def test_a_healthy_service_is_understood_at_a_glance(browser: Browser, tmp_path: Path) -> None:
    """One sentence, a picture with the flow, charts that know the past, repairs with their times; nothing complains."""
    async with running(tmp_path) as service:
        await trio.sleep(6)  # nobody looks yet: what happens now is the past that the page shows
        await in_thread(look_at_a_healthy_service, browser, service.url, tmp_path)


def look_at_a_healthy_service(browser: Browser, url: str, folder: Path) -> None:
    browser.look_like()
    browser.open(url)
    browser.wait_for("document.getElementById('headline').textContent.startsWith('Healthy')")
    headline = browser.text("#headline")
    assert headline.endswith("messages/s in, all acknowledged, nothing missing.")
    assert browser.run("return document.title") == "✓ Healthy · Ingestor"
    points = "document.querySelector('.canvas .s0').getAttribute('d').split('L').length"
    assert browser.run(f"return {points}") >= 2, "a page just opened shows the past"
    browser.wait_for("document.querySelectorAll('.pipe.flowing').length === 5")
    assert browser.run("return document.querySelectorAll('.node.good').length") == 9
    assert "Connections: 1 of 1 live" in browser.text("#line desc")
    browser.wait_for("document.querySelectorAll('#repaired tbody tr').length > 0")
    assert "BTCUSDT trade" in browser.text("#repaired")
    assert browser.text("#holes") == "No hole had to be declared."
    assert "shard 1 of 1" in browser.text("#facts")
    assert browser.run("return document.querySelectorAll('#symbols tbody tr').length") == len(SYMBOLS)
    for scheme in ("light", "dark"):
        browser.look_like(scheme=scheme)
        assert browser.run(FAINT_TEXTS) == []
        assert browser.run(LONG_TEXTS) == []
        browser.screenshot(folder / f"healthy-{scheme}.png")
    assert browser.complaints() == []


async def test_the_demo_shows_what_it_does(browser: Browser, tmp_path: Path) -> None:
    """What a new user sees first: the page of `ingestor demo` while it runs, and that it is gone afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "ingestor", "demo", "--seconds", "6", "--port", str(port)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, look_at_the_demo, browser, port)
        done = await trio.run_process(command, env=clean_environment(), capture_stdout=True, capture_stderr=True)
    assert b"nothing is missing" in done.stdout


def look_at_the_demo(browser: Browser, port: int) -> None:
    wait_listening(port)
    browser.look_like()
    browser.open(f"http://127.0.0.1:{port}")
    browser.wait_for("document.getElementById('headline').textContent.startsWith('Healthy')")
    browser.wait_for("document.querySelectorAll('.pipe.flowing').length === 5")
    assert browser.complaints() == []
    browser.wait_for("document.title === '? No news · Ingestor'")


async def test_the_page_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    """At 390 pixels nothing has to be pushed aside, nothing is too small, and large numbers stay in their boxes."""
    async with running(tmp_path) as service:
        await in_thread(look_at_a_phone, browser, service.url, tmp_path)


def look_at_a_phone(browser: Browser, url: str, folder: Path) -> None:
    browser.look_like(width=390, height=844)
    browser.open(url)
    browser.wait_for("document.getElementById('headline').textContent.startsWith('Healthy')")
    for width in (390, 768, 1280, 390):
        browser.look_like(width=width)
        assert not browser.run(f"return {IS_WIDER_THAN_THE_WINDOW}"), width
    smallest = (
        "Math.min(...[...document.querySelectorAll('#line text')].map((text) => text.getBoundingClientRect().height))"
    )
    assert browser.run(f"return {smallest}") >= 11
    browser.screenshot(folder / "phone.png")
    for width in (390, 1280):
        browser.look_like(width=width)
        connections, configuration = browser.run(BE_LARGE)
        assert browser.run(LONG_TEXTS) == []
    assert connections["texts"][3:] == ["and 12 more"]
    assert configuration["texts"] == ["what was read last is not used: kinesis.lanes: Input should be greater than 0"]
    assert connections["advice"]
    assert configuration["advice"]
    assert browser.complaints() == []


async def test_the_page_is_usable_without_a_mouse(browser: Browser, tmp_path: Path) -> None:
    """Tab goes through everything in the order it is read, what has focus shows it, and a chart is read with arrows."""
    async with running(tmp_path) as service:
        await trio.sleep(8)
        await in_thread(use_the_keyboard, browser, service.url)


def use_the_keyboard(browser: Browser, url: str) -> None:
    browser.look_like()
    browser.open(url)
    browser.wait_for("document.getElementById('headline').textContent.startsWith('Healthy')")
    places = []
    for _ in range(30):
        browser.press(TAB)
        place = "document.activeElement"
        seen = browser.run(
            f"const at = {place}; const box = at.getBoundingClientRect(); const style = getComputedStyle(at);"
            "return [at.tagName, box.top + scrollY, at === document.body || style.outlineStyle !== 'none',"
            "(at.getAttribute('aria-label') || at.getAttribute('aria-labelledby') || at.textContent || '').trim()]"
        )
        if seen[0] == "BODY":
            break
        places.append(seen)
    assert [tag for tag, *_ in places].count("svg") == 4
    assert places[0][3] == "Skip to the numbers"
    assert all(shows and name for _, _, shows, name in places)
    tops = [top for _, top, *_ in places[1:]]
    assert tops == sorted(tops)
    browser.run("document.querySelector('.canvas').focus()")
    browser.press(LEFT)
    assert "ago: received" in browser.text(".chart [role=status]")
    assert browser.text(".chart .moment").endswith("ago")
    assert browser.run("return getComputedStyle(document.querySelector('.pipe.flowing')).animationName") == "none"
    browser.look_like(motion="no-preference")
    assert browser.run("return getComputedStyle(document.querySelector('.pipe.flowing')).animationName") == "flow"


async def test_an_outage_is_seen_where_it_is(browser: Browser, tmp_path: Path) -> None:
    """Of Kinesis, then of the venue: the headline says what that means, the picture where it is, a line what to do.

    All is well again by itself.
    """
    async with running(tmp_path) as service:
        await in_thread(look_until, browser, service.url, "Healthy")
        service.world.data.before_put = fail_every_put
        await in_thread(look_at_an_outage, browser, tmp_path)
        service.world.data.before_put = None
        await in_thread(browser.wait_for, "document.getElementById('headline').textContent.startsWith('Healthy')")
        service.world.venue.suffer(Refuse(0, 60.0))
        service.world.venue.suffer(Disconnect(0))
        await in_thread(look_at_a_venue_that_is_gone, browser, tmp_path)
        assert await in_thread(browser.complaints) == []


def look_until(browser: Browser, url: str, word: str) -> None:
    browser.look_like()
    browser.open(url)
    browser.wait_for(f"document.getElementById('headline').textContent.startsWith('{word}')")


def look_at_an_outage(browser: Browser, folder: Path) -> None:
    browser.wait_for("document.getElementById('headline').textContent.startsWith('Degraded')")
    browser.wait_for("document.querySelector('.pipe.blocked') !== null")
    assert "Kinesis has taken nothing for" in browser.text("#headline")
    assert "kinesis breaker" in browser.text("#complaints")
    assert "is sent by itself once Kinesis takes it" in browser.text("#complaints")
    assert "Deliver: breaker" in browser.text("#line desc")
    assert browser.text("#announcement") == "Degraded, kinesis"
    for scheme in ("light", "dark"):
        browser.look_like(scheme=scheme)
        assert browser.run(FAINT_TEXTS) == []
        browser.screenshot(folder / f"degraded-{scheme}.png")


def look_at_a_venue_that_is_gone(browser: Browser, folder: Path) -> None:
    browser.wait_for("document.getElementById('headline').textContent.startsWith('Degraded. Nothing received for')")
    assert "nothing missing" not in browser.text("#headline")
    assert "fetched or declared afterwards" in browser.text("#headline")
    assert "connection_lost in the log says why" in browser.text("#complaints")
    assert browser.run(
        "return [...document.querySelectorAll('.label')].slice(0, 2).map((each) => each.textContent)"
    ) == [
        "0/s",
        "0/s",
    ]
    assert not browser.run("return document.querySelector('.pipe').classList.contains('flowing')")
    browser.screenshot(folder / "venue-gone.png")


async def test_a_stop_is_announced_and_a_dead_service_is_not_mistaken_for_a_live_one(
    browser: Browser, tmp_path: Path
) -> None:
    """Stopping, then no news, then the next task on the same port: the page follows without being touched."""
    port = free_port()
    async with running(tmp_path, port=port) as service:
        await in_thread(look_until, browser, service.url, "Healthy")
        service.world.data.before_put = be_slow  # so that draining takes a while
        await trio.sleep(1)
        service.stop.set()
        await in_thread(browser.wait_for, "document.getElementById('headline').textContent.startsWith('Stopping')")
        assert await in_thread(browser.text, "#complaints") == "process stopping"
        assert not await in_thread(browser.run, "return document.querySelector('.node.bad')")
        await in_thread(browser.screenshot, tmp_path / "stopping.png")
        with trio.fail_after(20):
            await service.has_stopped.wait()  # it does not wait for the page, which listens to the end
    await in_thread(browser.wait_for, "!document.getElementById('stale').hidden")
    assert (await in_thread(browser.text, "#stale")).startswith("No news since")
    assert await in_thread(browser.run, "return document.title") == "? No news · Ingestor"
    await in_thread(browser.screenshot, tmp_path / "stale.png")
    async with running(tmp_path, port=port):
        await in_thread(browser.wait_for, "document.getElementById('headline').textContent.startsWith('Healthy')")
        assert await in_thread(browser.run, "return document.getElementById('stale').hidden")


# A stream of events that was opened and says nothing, as when a router forgot the connection.
SILENCE = """
window.opened = 0;
window.isHidden = true;
Object.defineProperty(document, 'hidden', { get: () => window.isHidden });
window.EventSource = class { constructor() { window.opened += 1; } addEventListener() {} close() {} };
"""


async def test_a_stream_that_fell_silent_is_opened_anew_and_none_for_a_page_that_nobody_sees(
    browser: Browser, tmp_path: Path
) -> None:
    """It says that it tries again, and a browser would not: a connection that is lost without a word is open to it."""
    async with running(tmp_path) as service:
        with browser.before_every_page(SILENCE):
            await in_thread(browser.open, service.url)
            assert await in_thread(browser.run, "return window.opened") == 0
            show = "window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))"
            await in_thread(browser.run, show)
            assert await in_thread(browser.run, "return window.opened") == 1
            await in_thread(browser.wait_for, "window.opened === 2")
            assert not await in_thread(browser.run, "return document.getElementById('stale').hidden")
