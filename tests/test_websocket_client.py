"""The live feed: subscribing, reconnecting, watching, and never losing what was read, against a scripted venue."""

from __future__ import annotations

import json
import random
import ssl
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio
import trio.testing
import trustme
from prometheus_client import CollectorRegistry

from ingestor.core.backoff import Backoff
from ingestor.core.binance import Ack, ServerShutdown, StreamError
from ingestor.core.errors import DisconnectedError
from ingestor.core.health import HealthBoard
from ingestor.core.intake import Inlet, Intake
from ingestor.core.model import Subscription
from ingestor.core.rate_limit import RateLimit
from ingestor.metrics import Metrics
from ingestor.websocket_client import (
    REFUSALS_TOLD,
    Connection,
    FeedLimits,
    VenueUrl,
    open_stream,
    parse_url,
    rollover_pace,
)
from tests.fakes.venue import CLOSE, PING, FakeVenue, VenueSocket, frame, never, polite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from ingestor.core.binance import Control
    from tests.fakes.venue import Script

BTC = (Subscription("BTCUSDT", "trade"),)
MANY = tuple(Subscription(f"S{index:04}USDT", "trade") for index in range(400))
TRADE = '{"stream":"btcusdt@trade","data":{}}'


class Consumer:
    """Keeps messages and reads controls as core/intake.py does; waits while `room` is not set."""

    def __init__(self) -> None:
        self.intake = Intake([*BTC, *MANY])
        self.inlets: list[Inlet] = []
        self.messages: list[str] = []
        self.room = trio.Event()
        self.room.set()
        self.parting_s = 0.0  # what waited for the feed that leaves takes so long to be handed on

    def open(self, subscriptions: Sequence[Subscription]) -> Inlet:
        inlet = self.intake.open(subscriptions)
        self.inlets.append(inlet)
        return inlet

    def join(self, inlet: Inlet, subscriptions: Iterable[Subscription]) -> None:
        self.intake.join(inlet, subscriptions)

    async def leave(self, inlet: Inlet, subscriptions: Iterable[Subscription]) -> None:
        self.intake.leave(inlet, subscriptions, trio.current_time())
        await trio.sleep(self.parting_s)
        if not inlet.subscriptions:
            self.inlets.remove(inlet)

    async def consume(self, inlet: Inlet, messages: list[bytes], received_s: float) -> Sequence[Control]:
        assert received_s <= trio.current_time()
        assert inlet in self.inlets
        self.intake.accept(inlet, messages, received_s, 0)
        await self.room.wait()
        controls: list[Control] = [control for message in messages if (control := as_control(message)) is not None]
        self.messages += [message.decode() for message in messages if as_control(message) is None]
        return controls


def as_control(message: bytes) -> Control | None:
    if message.startswith(b'{"stream":"!serverShutdown"'):
        return ServerShutdown()
    if message.startswith(b'{"error"'):
        error = json.loads(message)
        return StreamError(error["error"]["code"], error["error"]["msg"], error.get("id"))
    return Ack(json.loads(message)["id"]) if message.startswith(b'{"result"') else None


class Bench:
    """A connection wired to a scripted venue, with everything it reports to."""

    def __init__(self, nursery: trio.Nursery, scripts: Sequence[Script | Exception]) -> None:
        self.nursery = nursery
        self.venue = FakeVenue(nursery, scripts)
        self.consumer = Consumer()
        self.board = HealthBoard()
        self.metrics = Metrics(CollectorRegistry())
        self.connects = RateLimit(250, 300.0)
        self.rollovers = rollover_pace()
        self.limits = FeedLimits()
        self.connections: list[Connection] = []

    def start(
        self,
        subscriptions: tuple[Subscription, ...] = BTC,
        url: VenueUrl | None = None,
        connect: Callable[[], Awaitable[trio.abc.Stream]] | None = None,
    ) -> Connection:
        connection = Connection(
            "feed-1",
            subscriptions,
            self.consumer,
            url=url or parse_url("ws://venue"),
            connect=connect or self.venue.connect,
            backoff=Backoff(initial_s=1.0, max_s=60.0, multiplier=2.0, jitter=None),
            connects=self.connects,
            rollovers=self.rollovers,
            jitter=random.Random(1),
            board=self.board,
            metrics=self.metrics,
            limits=self.limits,
        )
        self.connections.append(connection)
        self.nursery.start_soon(connection.run)
        return connection

    @property
    def fact(self) -> tuple[str, int]:
        fact = self.board.connections["feed-1"]
        return fact.state, fact.acknowledged

    def since(self, start_s: float) -> list[float]:
        return [round(at_s - start_s, 6) for at_s in self.venue.attempts]


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def causes(log: list[Any]) -> list[str]:
    return [line["cause"] for line in log if line["event"] == "connection_lost"]


# Subscribing


async def test_a_connection_asks_for_the_combined_mode_and_is_live_when_everything_is_granted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Three messages for 400 names, 300 ms apart; live only with the last acknowledgement."""
    asked: list[tuple[float, int]] = []
    states: list[tuple[str, int]] = []

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        for _ in range(3):
            request = await socket.read_request()
            asked.append((trio.current_time(), len(request["params"])))
            await trio.sleep(0.1)
            await socket.send_text(json.dumps({"result": None, "id": request["id"]}))
            await trio.sleep(0.1)
            states.append(bench.fact)
        await socket.stay()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        bench.start(MANY)
        start_s = trio.current_time()
        await trio.sleep(5)
        assert [(round(at_s - start_s, 6), names) for at_s, names in asked] == [(0.0, 150), (0.3, 150), (0.6, 100)]
        assert states == [("subscribing", 150), ("subscribing", 300), ("live", 400)]
        assert bench.venue.sockets[0].requested_path == "/stream"
        assert bench.venue.sockets[0].requested_host == "venue"
        assert bench.board.connections["feed-1"].is_live
        assert bench.metrics.connections_open._value.get() == 1
        assert bench.metrics.websocket_bytes._value.get() > 3 * len('{"result":null,"id":0}')
        nursery.cancel_scope.cancel()
    assert bench.metrics.connections_open._value.get() == 0


async def test_one_refused_name_is_logged_and_the_others_are_subscribed(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """The venue refuses whole messages; the halves are asked for until the bad name is alone."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        while True:
            request = await socket.read_request()
            if "s0002usdt@trade" in request["params"]:
                error = {"error": {"code": 2, "msg": "Invalid request: invalid stream"}, "id": request["id"]}
                await socket.send_text(json.dumps(error))
            else:
                await socket.send_text(json.dumps({"result": None, "id": request["id"]}))

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        bench.start(MANY[:5])
        await trio.sleep(8)
        assert bench.fact == ("live", 4)
        assert not bench.board.connections["feed-1"].is_live
        nursery.cancel_scope.cancel()
    refusals = [line["given_up"] for line in log if line["event"] == "subscription_refused"]
    assert [names for names in refusals if names] == [["s0002usdt@trade"]]


async def test_a_subscription_that_is_never_answered_costs_the_connection(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """Ten seconds after the message; data that keeps coming is no answer."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        while True:
            await socket.send_text(TRADE)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        bench.start()
        start_s = trio.current_time()
        await trio.sleep(15)
        assert bench.since(start_s) == [0, 11]
        nursery.cancel_scope.cancel()
    assert causes(log) == ["no answer to SUBSCRIBE within 10 s"]


async def test_an_answer_that_lies_unread_behind_a_full_consumer_is_waited_for(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """A stalled sink is no fault of the venue: the clock for answers stands still too."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.send_text(TRADE)
        await socket.grant()
        await socket.stay()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        bench.consumer.room = trio.Event()
        bench.start()
        await trio.sleep(25)
        bench.consumer.room.set()
        await trio.sleep(1)
        assert (bench.fact, causes(log)) == (("live", 1), [])
        nursery.cancel_scope.cancel()


# Losing and reopening


async def test_reconnects_come_later_each_time_until_data_flows(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """Refused, hung up in the handshake, accepted and cut without data: none of them resets the delay; data does."""

    async def hang_up(socket: VenueSocket) -> None:
        await socket.read_head()

    async def accept_and_cut(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await trio.testing.wait_all_tasks_blocked()

    async def send_data_and_cut(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await socket.send_text(TRADE)

    refused = OSError("all attempts to connect failed")
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [refused, hang_up, accept_and_cut, refused, send_data_and_cut, refused, refused, polite])
        bench.start()
        start_s = trio.current_time()
        await trio.sleep(30)
        assert bench.since(start_s) == [0, 1, 3, 7, 15, 16, 18, 22]
        assert bench.consumer.messages == [TRADE]
        assert (bench.fact, bench.metrics.reconnections.value) == (("live", 1), 7)
        nursery.cancel_scope.cancel()
    assert causes(log) == [
        "no connection: all attempts to connect failed",
        "connection closed during the handshake",
        "connection lost without a close frame",
        "no connection: all attempts to connect failed",
        "connection lost without a close frame",
        "no connection: all attempts to connect failed",
        "no connection: all attempts to connect failed",
    ]


async def test_a_connection_that_says_nothing_is_given_up(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """Half-open before the handshake: ten seconds. Not even a connect: ten seconds."""

    async def connect_nowhere() -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        Bench(nursery, [never]).start()
        Bench(nursery, []).start(connect=connect_nowhere)
        await trio.sleep(10.5)
        nursery.cancel_scope.cancel()
    assert sorted(causes(log)) == ["no connection within 10 s", "no handshake within 10 s"]


async def test_silence_of_thirty_seconds_costs_the_connection_and_pings_count(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """The venue pings every 20 s; the last ping is at 40 s, the loss at 70 s. Every ping is answered."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        for number in range(2):
            await trio.sleep(20)
            await socket.send(frame(bytes([number]), PING))
        await socket.stay()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        bench.start()
        start_s = trio.current_time()
        await trio.sleep(75)
        assert bench.since(start_s) == [0, 71]
        assert bench.venue.sockets[0].pongs == [b"\x00", b"\x01"]
        nursery.cancel_scope.cancel()
    assert causes(log) == ["silent for 30 s"]


async def test_an_announced_shutdown_reconnects_at_once_but_not_twice_in_a_row(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """No delay after the first announcement; a second one within a minute waits like a loss."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await trio.sleep(5)
        await socket.send_text(TRADE, '{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}')
        await socket.stay()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script, script, polite])
        bench.start()
        start_s = trio.current_time()
        await trio.sleep(20)
        assert bench.since(start_s) == [0, 5, 11.2]  # noticed once the first replacement is over
        assert bench.consumer.messages == [TRADE, TRADE]
        nursery.cancel_scope.cancel()
    assert [line["reason"] for line in log if line["event"] == "connection_to_replace"] == [
        "server shutdown announced"
    ] * 2
    assert causes(log) == []


# Make before break


def data(*trade_ids: int) -> list[str]:
    """Spell trades of BTCUSDT."""
    trade = {"e": "trade", "E": 1, "s": "BTCUSDT", "p": "1", "q": "1", "T": 1, "m": True}
    return [json.dumps({"stream": "btcusdt@trade", "data": {**trade, "t": each}}) for each in trade_ids]


def flowing(market: Market) -> Script:
    """Shake hands, acknowledge, and send what the market does until the client leaves or the market says so."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        market.open += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(socket.stay)
                while socket.closed_with is None:
                    sent = market.now_id
                    await socket.send_text(*data(sent))
                    while market.now_id == sent and socket.closed_with is None:  # noqa: ASYNC110 - time is awaited
                        await trio.sleep(0.02)
                nursery.cancel_scope.cancel()
            await socket.send(frame(socket.closed_with or b"", CLOSE))
        finally:
            market.open -= 1

    return script


class Market:
    """One trade a second, on all connections alike."""

    def __init__(self) -> None:
        self.open = 0
        self._start_s = trio.current_time()

    @property
    def now_id(self) -> int:
        return int(trio.current_time() - self._start_s)


async def test_an_old_connection_is_replaced_before_it_is_closed(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """The new one carries everything, then the old one gets a close frame; no trade is missing, nothing is lost."""
    async with trio.open_nursery() as nursery:
        market = Market()
        bench = Bench(nursery, [flowing(market)] * 3)
        bench.limits = FeedLimits(rollover_after_s=20.0)
        bench.start()
        await trio.sleep(30.5)
        assert (len(bench.venue.attempts), market.open, len(bench.consumer.inlets)) == (2, 1, 1)
        assert 18 <= bench.since(0)[1] - bench.since(0)[0] <= 20
        assert bench.venue.sockets[0].closed_with == b"\x03\xe8"
        assert set(bench.consumer.messages) == set(data(*range(31)))
        assert (bench.fact, causes(log), bench.metrics.reconnections.value) == (("live", 1), [], 1)
        nursery.cancel_scope.cancel()


async def test_a_quiet_old_connection_is_replaced_after_five_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing is waited for that neither of them brings."""
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [polite, polite])
        bench.limits = FeedLimits(rollover_after_s=10.0)
        connection = bench.start()
        await trio.sleep(12)
        first = connection.feed
        await trio.sleep(5)
        assert connection.feed is not first
        assert bench.fact == ("live", 1)
        nursery.cancel_scope.cancel()


async def test_the_old_connection_goes_on_when_no_new_one_can_be_opened(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """Refused three times, later each time; nothing is lost meanwhile, and the service stays live."""
    async with trio.open_nursery() as nursery:
        market = Market()
        refused = OSError("refused")
        bench = Bench(nursery, [flowing(market), refused, refused, refused, flowing(market)])
        bench.limits = FeedLimits(rollover_after_s=10.0)
        bench.start()
        states = []
        for _ in range(25):
            await trio.sleep(1)
            states.append(bench.fact[0])
        assert set(states) == {"live"}
        assert len(bench.venue.attempts) == 5
        assert len(causes(log)) == 3
        assert set(bench.consumer.messages) >= set(data(*range(25)))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cut", ["old", "new", "both"])
async def test_a_loss_during_the_overlap_leaves_the_other_connection(
    cut: str, autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """And when both are lost, it is opened again as after any loss."""

    def until(at_s: float, market: Market) -> Script:
        async def script(socket: VenueSocket) -> None:
            with trio.move_on_at(market._start_s + at_s):
                await flowing(market)(socket)

        return script

    async def mute(socket: VenueSocket) -> None:
        """Grant, and bring nothing: the overlap lasts."""
        await socket.accept()
        await socket.grant()
        with trio.move_on_at(14 if cut != "old" else 1e9):
            await socket.stay()

    async with trio.open_nursery() as nursery:
        market = Market()
        bench = Bench(nursery, [until(14 if cut != "new" else 1e9, market), mute, flowing(market)])
        bench.limits = FeedLimits(rollover_after_s=10.0)
        connection = bench.start()
        await trio.sleep(13.5)
        old = connection.feed
        assert old is not None
        assert old.to_replace == "age"
        await trio.sleep(5)
        assert connection.feed is not None
        assert old.has_ended is (cut != "new" or connection.feed is not old)
        assert bench.fact == ("live", 1)
        assert len(bench.venue.attempts) == (2 if cut == "old" else 3)
        nursery.cancel_scope.cancel()


async def test_streams_that_are_dead_are_subscribed_to_again_on_the_same_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An UNSUBSCRIBE and a SUBSCRIBE; the connection stays live meanwhile."""
    requests: list[Any] = []

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        requests.extend(await socket.grant(3))
        await socket.stay()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        connection = bench.start()
        await trio.sleep(1)
        assert connection.feed is not None
        assert connection.feed.is_live
        connection.feed.resubscribe(BTC)
        await trio.sleep(0.1)
        assert bench.board.connections["feed-1"].is_live
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [request["method"] for request in requests] == ["SUBSCRIBE", "UNSUBSCRIBE", "SUBSCRIBE"]


async def test_connections_of_one_process_are_not_replaced_together(autojump_clock: trio.testing.MockClock) -> None:
    """Ten seconds lie between two of them, whatever the dice say; dead streams wait for nobody."""
    pace = rollover_pace()
    async with trio.open_nursery() as nursery:
        market = Market()
        benches = [Bench(nursery, [flowing(market)] * 3) for _ in range(3)]
        for bench in benches:
            bench.limits = FeedLimits(rollover_after_s=30.0)
            bench.rollovers = pace
            bench.start()
        await trio.sleep(55)
        replaced_s = sorted(bench.venue.attempts[1] for bench in benches)
        assert all(after - before > 9.9 for before, after in pairwise(replaced_s))
        feeds = benches[0].connections[0]
        assert feeds.feed is not None
        feeds.feed.replace("dead streams")
        await trio.sleep(0.2)
        assert len(benches[0].venue.attempts) == 3
        nursery.cancel_scope.cancel()


# What it carries changes


def talking(requests: list[Any]) -> Script:
    """Grant everything, and note what was asked."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        while True:
            requests.extend((request["method"], request["params"]) for request in await socket.grant())

    return script


async def test_a_connection_that_lives_carries_more_or_less(autojump_clock: trio.testing.MockClock) -> None:
    """Paced as at the start; live all the time, and complete once all is answered. What ended is let go by the door."""
    requests: list[Any] = []
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [talking(requests)])
        connection = bench.start(MANY[:2])
        await trio.sleep(1)
        connection.change((*MANY[1:2], *MANY[200:350]))
        assert bench.fact == ("live", 1)
        assert not bench.board.connections["feed-1"].is_live
        assert bench.consumer.inlets[0].subscriptions == (*MANY[:2], *MANY[200:350])
        await trio.sleep(0.2)
        assert bench.fact == ("live", 1)
        await trio.sleep(0.2)
        assert bench.board.connections["feed-1"].is_live
        assert bench.consumer.inlets[0].subscriptions == (MANY[1], *MANY[200:350])
        assert len(bench.venue.attempts) == 1
        nursery.cancel_scope.cancel()
    assert [(method, len(names)) for method, names in requests] == [
        ("SUBSCRIBE", 2),
        ("UNSUBSCRIBE", 1),
        ("SUBSCRIBE", 150),
    ]


async def test_what_never_began_is_let_go_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Added and taken back before it was asked for, or refused: no answer to its end will ever come."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        while True:
            request = await socket.read_request()
            await socket.send_text(json.dumps({"error": {"code": 2, "msg": "invalid stream"}, "id": request["id"]}))

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        connection = bench.start(MANY[:1])
        await trio.sleep(0.1)
        connection.change(MANY[:2])
        connection.change((MANY[0], MANY[2]))
        await trio.sleep(1)
        assert connection.feed is not None
        assert connection.feed.subscribing.refused == [MANY[2]]
        assert bench.consumer.inlets[0].subscriptions == (MANY[0], MANY[2])
        connection.change(MANY[:1])
        await trio.sleep(1)
        assert bench.consumer.inlets[0].subscriptions == MANY[:1]
        assert bench.fact == ("live", 1)
        nursery.cancel_scope.cancel()


async def test_a_connection_that_is_away_comes_back_with_what_is_wanted_by_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While it waits to connect again, and while it connects."""
    requests: list[Any] = []

    async def late(socket: VenueSocket) -> None:
        await trio.sleep(2)
        await talking(requests)(socket)

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [OSError("refused"), late])
        connection = bench.start(MANY[:2])
        await trio.sleep(0.5)
        connection.change(MANY[1:3])
        assert bench.board.connections["feed-1"].subscriptions == 2
        await trio.sleep(1)
        connection.change(MANY[2:5])
        await trio.sleep(3)
        assert bench.fact == ("live", 3)
        nursery.cancel_scope.cancel()
    assert requests == [("SUBSCRIBE", [each.stream_name for each in MANY[2:5]])]


async def test_an_overlap_lasts_until_what_was_added_meanwhile_is_granted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However quiet it is: the old connection is the only one that could bring it."""

    async def slow(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        request = await socket.read_request()
        await trio.sleep(7)
        await socket.send_text(json.dumps({"result": None, "id": request["id"]}))
        await socket.stay()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [talking([]), slow])
        connection = bench.start(MANY[:1])
        await trio.sleep(1)
        first = connection.feed
        assert first is not None
        first.replace("dead streams")
        await trio.sleep(0.5)
        assert len(bench.venue.attempts) == 2
        connection.change(MANY[:2])
        await trio.sleep(6)
        assert connection.feed is first
        await trio.sleep(3)
        assert connection.feed is not first
        assert first.has_ended
        assert bench.fact == ("live", 2)
        nursery.cancel_scope.cancel()


async def test_a_connection_that_ends_hands_on_what_was_read_and_is_no_loss(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """It says goodbye, waits for a consumer that is full, and is not on the board from the first moment."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await trio.sleep(1)
        await socket.send_text(TRADE)
        with trio.move_on_after(20):
            await socket.stay()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        bench.consumer.room = trio.Event()
        connection = bench.start()
        bench.consumer.room.set()
        await trio.sleep(0.5)
        bench.consumer.room = trio.Event()
        await trio.sleep(1)
        connection.end()
        assert bench.board.connections == {}
        await trio.sleep(60)
        assert (bench.consumer.messages, len(nursery.child_tasks)) == ([], 1)
        bench.consumer.room.set()
        await trio.sleep(1)
        assert (bench.consumer.messages, bench.consumer.inlets, len(nursery.child_tasks)) == ([TRADE], [], 0)
        assert bench.venue.sockets[0].closed_with is not None
        assert causes(log) == []


@pytest.mark.parametrize("first", [never, OSError("refused"), None], ids=["connecting", "waiting", "not begun"])
async def test_a_connection_ends_at_once_when_it_is_not_open(
    first: Script | Exception | None, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing can have come."""
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [] if first is None else [first])
        connection = bench.start()
        began_s = trio.current_time()
        await trio.sleep(0 if first is None else 0.5)
        connection.end()
        while any("run" in task.name for task in nursery.child_tasks):  # noqa: ASYNC110 - nobody could set an event
            await trio.sleep(0.001)
        assert trio.current_time() - began_s < 0.6
        assert bench.board.connections == {}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ticks", range(12))
async def test_a_connection_that_ends_while_it_opens_asks_for_nothing_that_is_forgotten(
    ticks: int, autojump_clock: trio.testing.MockClock
) -> None:
    """The answer to the handshake may be on its way to us at that moment; nobody knows its streams any more."""
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [])

        async def script(socket: VenueSocket) -> None:
            await socket.accept()
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            connection.end()
            bench.consumer.intake.end(BTC)
            await socket.stay()

        bench.venue = FakeVenue(nursery, [script])
        connection = bench.start()
        await trio.sleep(5)
        assert not any(inlet.subscriptions for inlet in bench.consumer.inlets)
        assert bench.consumer.intake.subscriptions().isdisjoint(BTC)
        nursery.cancel_scope.cancel()


async def test_what_is_added_while_a_connection_goes_is_not_left_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its last hand-over may wait for a consumer that is full; what was added then belongs to the next connection."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script, polite])
        bench.consumer.parting_s = 60
        connection = bench.start(MANY[:1])
        await trio.sleep(30)
        connection.change(MANY[:2])
        await trio.sleep(120)
        assert bench.fact == ("live", 2)
        assert len(bench.consumer.inlets) == 1
        assert bench.consumer.intake._inlets[MANY[1].stream_name] == bench.consumer.inlets
        nursery.cancel_scope.cancel()


# Limits


async def test_connects_of_all_connections_share_the_limit_of_the_venue(autojump_clock: trio.testing.MockClock) -> None:
    """With two places in 100 s, the third connect of two connections waits for its place."""
    refused = OSError("refused")
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [refused, refused, polite, polite])
        bench.connects = RateLimit(2, 100.0)
        bench.start()
        bench.start()
        start_s = trio.current_time()
        await trio.sleep(150)
        assert bench.since(start_s) == [0, 0, 100, 100]
        nursery.cancel_scope.cancel()


async def test_a_refusal_that_names_a_wait_is_obeyed(autojump_clock: trio.testing.MockClock, log: list[Any]) -> None:
    """429 with Retry-After: the longer of that and the backoff."""

    async def script(socket: VenueSocket) -> None:
        await socket.read_head()
        await socket.send(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 42\r\n\r\n")

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script, polite])
        bench.start()
        start_s = trio.current_time()
        await trio.sleep(50)
        assert bench.since(start_s) == [0, 42]
        nursery.cancel_scope.cancel()
    assert causes(log) == ["handshake answered with HTTP 429: too many requests"]


@pytest.mark.parametrize(
    ("wire", "cause"),
    [
        (frame(b"x" * 2_000_000)[:2000], "message of more than 1048576 bytes"),
        (b"\x81\x85abcdhello", "masked frame"),
        (frame(b"x", 0xC1), "reserved bits"),
        (frame(b"cut in the middle")[:7], "connection lost without a close frame"),
        (frame(b"\x03\xf0Too many requests", CLOSE), "closed by the venue: 1008 Too many requests"),
        (frame(b"\x03\xe9", CLOSE), "closed by the venue: 1001 GOING_AWAY"),
        (frame(b"\x00\x01", CLOSE), "closed by the venue: 1002 CLOSE with invalid code"),
    ],
)
async def test_a_bad_frame_ends_the_connection_and_not_the_process(
    wire: bytes, cause: str, autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """The cause is named, the message before it is delivered, the next connection works."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await socket.send(frame(TRADE.encode()) + wire)

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script, polite])
        bench.start()
        await trio.sleep(5)
        assert bench.fact == ("live", 1)
        assert bench.consumer.messages == [TRADE]
        nursery.cancel_scope.cancel()
    (seen,) = causes(log)
    assert cause in seen


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"HTTP/1.1 451 X\r\n\r\n", "HTTP 451: the venue does not serve this location"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "HTTP 200: unexpected answer (hello)"),
        (b"\x00garbage", "not HTTP"),
        (b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n", "Error"),
        (b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\n\r\n", "Error"),
        (b"HTTP/1.1 101 X\r\nno colon\r\n\r\n", "Error"),
    ],
)
async def test_a_bad_answer_to_the_handshake_is_a_loss_with_a_cause(
    answer: bytes, cause: str, autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """Refusals, garbage and 101s that are none, whichever library notices."""

    async def script(socket: VenueSocket) -> None:
        await socket.read_head()
        await socket.send(answer)
        await socket.stay()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script, polite])
        bench.start()
        start_s = trio.current_time()
        await trio.sleep(5)
        assert bench.since(start_s) == [0, 1]
        nursery.cancel_scope.cancel()
    (seen,) = causes(log)
    assert cause in seen


async def test_no_bytes_that_a_venue_can_send_crash_the_process(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """Two hundred random sequences of frames, most of them broken: each is a loss, and the next connection opens."""
    dice = random.Random(42)

    def send_noise(noise: bytes) -> Script:
        async def script(socket: VenueSocket) -> None:
            await socket.accept(along=noise)
            await trio.sleep(0.01)

        return script

    noises = [
        b"".join(frame(dice.randbytes(dice.randrange(4)), dice.randrange(256)) for _ in range(dice.randrange(1, 6)))
        for _ in range(200)
    ]
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [*map(send_noise, noises), polite])
        bench.connects = RateLimit(1, 1.0)
        bench.consumer.consume = consume_bytes  # type: ignore[method-assign]
        bench.start()
        await trio.sleep(300 * 60)
        assert (len(bench.venue.attempts) > 200, len(causes(log)) >= 200) == (True, True)
        nursery.cancel_scope.cancel()


async def consume_bytes(inlet: Inlet, messages: list[bytes], received_s: float) -> Sequence[Control]:
    assert all(isinstance(message, bytes) for message in messages)
    return ()


# Nothing that was read is lost


async def test_pings_are_answered_while_the_consumer_is_full(autojump_clock: trio.testing.MockClock) -> None:
    """A ping that was read together with messages gets its pong before anyone waits for room."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await trio.sleep(1)
        await socket.send(frame(TRADE.encode()) + frame(b"p", PING) + frame(TRADE.encode()))
        await socket.stay()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        bench.start()
        await trio.sleep(0.5)
        bench.consumer.room = trio.Event()
        await trio.sleep(300)
        assert bench.venue.sockets[0].pongs == [b"p"]
        assert (bench.fact, bench.consumer.messages) == (("live", 1), [])
        bench.consumer.room.set()
        await trio.sleep(1)
        assert bench.consumer.messages == [TRADE, TRADE]
        nursery.cancel_scope.cancel()


async def test_a_connection_lost_while_the_consumer_is_full_loses_no_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The hand-over under way is finished once, however long it takes, before the next connection opens."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await trio.sleep(1)
        await socket.send(frame(b"a") + frame(b"p", PING) + frame(b"b") + frame(b"\x03\xe8", CLOSE))

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script, polite])
        bench.start()
        start_s = trio.current_time()
        await trio.sleep(0.5)
        bench.consumer.room = trio.Event()
        await trio.sleep(99.5)
        assert bench.since(start_s) == [0]
        bench.consumer.room.set()
        await trio.sleep(5)
        assert bench.consumer.messages == ["a", "b"]
        assert bench.since(start_s) == [0, 101]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("room_after_s", "delivered"), [(2, ["a"]), (None, [])])
async def test_a_stop_waits_for_the_hand_over_under_way_but_not_for_ever(
    room_after_s: float | None, delivered: list[str], autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """Room within three seconds: delivered. No room: let go, counted and logged, three seconds after the stop."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await trio.sleep(1)
        await socket.send(frame(b"a"))
        await socket.stay()

    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery, [script])
            bench.start()
            await trio.sleep(0.5)
            bench.consumer.room = trio.Event()
            await trio.sleep(10)
            start_s = trio.current_time()
            if room_after_s is not None:

                @outer.start_soon
                async def _() -> None:
                    await trio.sleep(room_after_s)
                    bench.consumer.room.set()

            nursery.cancel_scope.cancel()
        assert bench.consumer.messages == delivered
        assert trio.current_time() - start_s == (3 if room_after_s is None else room_after_s)
    assert [line["messages"] for line in log if line["event"] == "messages_abandoned"] == ([] if delivered else [1])
    assert bench.metrics.abandoned.labels(reason="stop")._value.get() == (0 if delivered else 1)


async def test_a_bug_in_the_consumer_ends_the_process(autojump_clock: trio.testing.MockClock) -> None:
    """Neither an OSError of a full disk nor a closed channel behind the consumer passes for a lost connection."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.send_text(TRADE)
        await socket.stay()

    for bug, seen_as in ((OSError("disk full"), OSError), (trio.ClosedResourceError(), RuntimeError)):

        async def consume(
            inlet: Inlet, messages: list[bytes], received_s: float, bug: Exception = bug
        ) -> Sequence[Control]:
            await trio.lowlevel.checkpoint()
            raise bug

        with pytest.RaisesGroup(seen_as, allow_unwrapped=False, flatten_subgroups=True):  # type: ignore[call-overload]
            async with trio.open_nursery() as nursery:
                bench = Bench(nursery, [script])
                bench.consumer.consume = consume  # type: ignore[method-assign]
                bench.start()


async def test_a_bug_in_a_hand_over_that_outlives_its_connection_is_not_taken_for_the_loss(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """trio-websocket's cancelled reader swallows the error; the lane has kept it."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.read_request()
        await socket.send_text(TRADE)

    async def consume(inlet: Inlet, messages: list[bytes], received_s: float) -> Sequence[Control]:
        await trio.sleep(1)  # meanwhile the second SUBSCRIBE finds the connection cut
        raise OSError("disk full")

    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="disk full"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery, [script])
            bench.consumer.consume = consume  # type: ignore[method-assign]
            bench.start(MANY)


async def test_two_losses_at_once_are_told_as_one(autojump_clock: trio.testing.MockClock, log: list[Any]) -> None:
    """What we noticed ourselves explains more than what followed from it."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.grant()
        await trio.sleep(1)
        await socket.send(frame(b"\x03\xe8", CLOSE) + frame(b"x", 0xC1))

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script, polite])
        bench.start()
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert causes(log) == ["closed by the venue: 1000 NORMAL_CLOSURE"]


# Real sockets


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def venue_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def play_for_real(
    nursery: trio.Nursery,
    script: Script,
    tls: ssl.SSLContext | None,
    trust: ssl.SSLContext | None,
    log: list[Any],
    *,
    limits: FeedLimits | None = None,
) -> Bench:
    """Serve the script on a loopback port and connect to it; return when it was lost or the first data arrived."""
    bench = Bench(nursery, [script])
    bench.limits = limits or bench.limits
    port = await bench.venue.serve(tls)
    url = parse_url(f"{'ws' if tls is None else 'wss'}://localhost:{port}")
    bench.start(url=replace(url, host="127.0.0.1"), connect=lambda: open_stream(url, trust))
    await until(lambda: bool(bench.consumer.messages or causes(log)))
    return bench


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the kernel brings about in its own time."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - nobody could set an event
            await trio.sleep(0.001)


async def send_trade(socket: VenueSocket) -> None:
    await socket.accept(along=frame(b"early"))
    await socket.grant()
    await socket.send_text(TRADE)
    await socket.stay()


@pytest.mark.parametrize("is_tls", [False, True])
async def test_messages_flow_over_a_real_socket(is_tls: bool, authority: trustme.CA, log: list[Any]) -> None:
    """Plain, and with TLS verified against the authority and the name."""
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    tls = venue_context(authority, "localhost") if is_tls else None
    async with trio.open_nursery() as nursery:
        bench = await play_for_real(nursery, send_trade, tls, trust, log)
        await until(lambda: len(bench.consumer.messages) == 2)
        assert bench.consumer.messages == ["early", TRADE]
        nursery.cancel_scope.cancel()


def answer(head: bytes) -> Script:
    async def script(socket: VenueSocket) -> None:
        await socket.read_head()
        await socket.send(head)
        await socket.stay()

    return script


def send_and_cut(wire: bytes) -> Script:
    async def script(socket: VenueSocket) -> None:
        await socket.accept(along=wire)
        await socket.read_request()

    return script


def send_and_stay(wire: bytes) -> Script:
    async def script(socket: VenueSocket) -> None:
        await socket.accept(along=wire)
        await socket.stay()

    return script


RUDE: dict[str, tuple[Script, str]] = {
    "half open": (never, "within 0.1 s"),
    "451": (answer(b"HTTP/1.1 451 X\r\n\r\n"), "HTTP 451"),
    "200": (answer(b"HTTP/1.1 200 OK\r\n\r\n<html>"), "HTTP 200: unexpected answer (<html>)"),
    "garbage": (answer(b"\x00\x01\x02"), "not HTTP"),
    "cut in mid frame": (send_and_cut(frame(b"x" * 200)[:99]), "connection lost without a close frame"),
    "oversize": (send_and_stay(frame(b"x" * 1_048_577)[:10]), "message of more than 1048576 bytes"),
    "masked": (send_and_stay(b"\x81\x85abcdhello"), "masked frame"),
    "reserved bits": (send_and_stay(frame(b"x", 0xC1)), "reserved bits"),
    "silence": (send_and_stay(b""), "silent for 0.1 s"),
}


@pytest.mark.parametrize(("script", "cause"), RUDE.values(), ids=RUDE.keys())
@pytest.mark.parametrize("is_tls", [False, True])
async def test_a_rude_venue_on_a_real_socket_is_a_loss_with_a_cause(
    script: Script, cause: str, is_tls: bool, authority: trustme.CA, log: list[Any]
) -> None:
    """The same on the kernel's streams as on those in memory, plain and under TLS."""
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    tls = venue_context(authority, "localhost") if is_tls else None
    limits = FeedLimits(
        connect_s=0.1 if cause.startswith("within") else 10.0, silence_s=0.1 if cause.startswith("silent") else 30.0
    )
    async with trio.open_nursery() as nursery:
        await play_for_real(nursery, script, tls, trust, log, limits=limits)
        nursery.cancel_scope.cancel()
    assert cause in causes(log)[0]


async def test_a_fragmented_message_with_a_ping_inside_arrives_whole_over_a_real_socket(log: list[Any]) -> None:
    """It keeps its place between its neighbours, and the ping is answered."""
    wire = frame(b"1") + frame(b"2a", 0x01) + frame(b"p", PING) + frame(b"2b", 0x80) + frame(b"3")
    async with trio.open_nursery() as nursery:
        bench = await play_for_real(nursery, send_and_stay(wire), None, None, log)
        await until(lambda: bench.venue.sockets[0].pongs == [b"p"] and len(bench.consumer.messages) == 3)
        assert bench.consumer.messages == ["1", "2a2b", "3"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_certificate_that_does_not_prove_the_venue_is_a_loss_with_a_cause(
    trusted: bool, authority: trustme.CA, log: list[Any]
) -> None:
    """Another name under a trusted authority, or the right name under an unknown one."""
    trust = None
    if trusted:
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
    tls = venue_context(authority, "elsewhere.example" if trusted else "localhost")
    async with trio.open_nursery() as nursery:
        await play_for_real(nursery, send_trade, tls, trust, log)
        nursery.cancel_scope.cancel()
    assert "certificate verify failed" in causes(log)[0]


async def test_a_port_where_nobody_listens_is_a_loss_with_a_cause(log: list[Any]) -> None:
    """Refused by the kernel."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = parse_url(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}")
        await listener.aclose()
        Bench(nursery, []).start(connect=lambda: open_stream(url))
        await until(lambda: bool(causes(log)))
        nursery.cancel_scope.cancel()
    assert "all attempts to connect" in causes(log)[0]


# URLs


@pytest.mark.parametrize(
    ("text", "url", "host_header"),
    [
        (
            "wss://stream.binance.com:9443",
            VenueUrl("stream.binance.com", 9443, True, "/stream"),
            "stream.binance.com:9443",
        ),
        ("wss://stream.binance.com", VenueUrl("stream.binance.com", 443, True, "/stream"), "stream.binance.com"),
        ("ws://[::1]:8081/venue/", VenueUrl("::1", 8081, False, "/venue/stream"), "[::1]:8081"),
        ("ws://localhost", VenueUrl("localhost", 80, False, "/stream"), "localhost"),
        ("wss://venue/ws/", VenueUrl("venue", 443, True, "/stream"), "venue"),
        ("wss://venue/a/ws", VenueUrl("venue", 443, True, "/a/stream"), "venue"),
        ("wss://venue/stream", VenueUrl("venue", 443, True, "/stream"), "venue"),
        ("wss://venue/news", VenueUrl("venue", 443, True, "/news/stream"), "venue"),
    ],
)
def test_a_url_is_taken_apart(text: str, url: VenueUrl, host_header: str) -> None:
    """Host, port with its default, and the combined path below whatever path the URL has, once."""
    assert parse_url(text) == url
    assert url.host_header == host_header


@pytest.mark.parametrize("text", ["https://stream.binance.com", "stream.binance.com:9443", "wss://", ""])
def test_a_url_of_another_kind_is_refused(text: str) -> None:
    """Only ws and wss, with a host."""
    with pytest.raises(ValueError, match="not a ws:// or wss:// URL"):
        parse_url(text)


def test_a_loss_is_one_of_our_errors() -> None:
    """So that the supervisor needs to know no foreign library."""
    assert issubclass(DisconnectedError, Exception)


async def test_answers_that_nobody_asked_for_do_not_fill_the_log(
    autojump_clock: trio.testing.MockClock, log: list[Any]
) -> None:
    """A venue can send thousands of refusals in one read; a few of them are told."""

    async def script(socket: VenueSocket) -> None:
        await socket.accept()
        await socket.read_request()
        for _ in range(500):
            await socket.send_text('{"error":{"code":1,"msg":"no"},"id":"not yours"}')
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, [script])
        bench.start()
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    told = [line for line in log if line["event"] == "subscription_refused" and line["log_level"] != "debug"]
    assert len(told) == REFUSALS_TOLD
