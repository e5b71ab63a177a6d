"""Subscriptions: expansion, names, the plan over connections, and the conversation with the venue."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.model import Subscription
from ingestor.core.subscription import (
    MAX_SUBSCRIBE_BYTES,
    MAX_SUBSCRIBE_NAMES,
    Subscribing,
    expand,
    parse_stream_name,
    plan_connections,
    split_for_messages,
    subscribe_message,
)

KINDS = ("trade", "depth", "kline_1m", "kline_1M")
symbols = st.text(alphabet="ABCXYZ019币安人生", min_size=1, max_size=12)
subscriptions = st.builds(Subscription, symbols, st.sampled_from(KINDS))


def trades(count: int) -> list[Subscription]:
    return [Subscription(f"S{index:04}USDT", "trade") for index in range(count)]


def test_a_configuration_expands_to_every_symbol_and_kind_once() -> None:
    """Klines count per interval, symbols are upper case, doubles vanish, the order is that of symbol and kind."""
    assert expand(["ethusdt", "BTCUSDT", "ETHUSDT"], ["trade", "depth", "kline"], ["1m", "1M"]) == [
        Subscription(symbol, kind)
        for symbol in ("BTCUSDT", "ETHUSDT")
        for kind in ("depth", "kline_1M", "kline_1m", "trade")
    ]


def test_klines_without_an_interval_expand_to_nothing() -> None:
    """No interval, no subscription."""
    assert expand(["BTCUSDT"], ["kline"], []) == []


@given(subscriptions)
def test_a_stream_name_leads_back_to_its_subscription(subscription: Subscription) -> None:
    """Parsing inverts naming, for non-ASCII symbols too."""
    assert parse_stream_name(subscription.stream_name) == subscription


@pytest.mark.parametrize(
    "name",
    ["", "btcusdt", "@trade", "btcusdt@", "btcusdt@depth", "btcusdt@aggTrade", "!serverShutdown", "a@kline_1m@x"],
)
def test_a_name_that_is_never_subscribed_is_refused(name: str) -> None:
    """ValueError, with the name in the text."""
    with pytest.raises(ValueError, match="not a stream name"):
        parse_stream_name(name)


@given(st.lists(subscriptions, max_size=60), st.integers(1, 20), st.integers(0, 99))
def test_the_plan_is_complete_balanced_small_and_independent_of_order(
    wanted: list[Subscription], max_streams: int, seed: int
) -> None:
    """Each once, as few connections as possible, shares that differ by at most one, the same for any input order."""
    plan = plan_connections(wanted, max_streams)
    assert sorted(subscription for share in plan for subscription in share) == sorted(set(wanted))
    assert len(plan) == -(-len(set(wanted)) // max_streams)
    sizes = [len(share) for share in plan]
    assert not sizes or (max(sizes) <= max_streams and max(sizes) - min(sizes) <= 1)
    shuffled = random.Random(seed).sample(wanted, len(wanted))
    assert plan_connections(shuffled, max_streams) == plan


@given(st.lists(subscriptions, max_size=400))
def test_every_message_is_well_below_the_limit_of_the_venue(wanted: list[Subscription]) -> None:
    """Counted in UTF-8 bytes, with any id up to 2**53; nothing is lost or reordered."""
    shares = split_for_messages(wanted)
    assert [subscription for share in shares for subscription in share] == wanted
    for share in shares:
        assert len(share) <= MAX_SUBSCRIBE_NAMES
        assert len(subscribe_message(share, 2**53)) <= MAX_SUBSCRIBE_BYTES


def test_a_message_is_filled_up_to_the_limit_of_names() -> None:
    """400 short names travel in three messages."""
    assert [len(share) for share in split_for_messages(trades(400))] == [150, 150, 100]


def test_a_message_names_its_streams_and_its_id() -> None:
    """The JSON is what the venue documents."""
    message = json.loads(subscribe_message([Subscription("BTCUSDT", "depth"), Subscription("币安USDT", "trade")], 7))
    assert message == {"method": "SUBSCRIBE", "params": ["btcusdt@depth@100ms", "币安usdt@trade"], "id": 7}


def test_a_connection_is_settled_when_every_message_is_acknowledged() -> None:
    """Messages leave one by one, answers count what they grant, foreign ids say nothing."""
    subscribing = Subscribing(trades(151))
    first, second = subscribing.next_request(), subscribing.next_request()
    assert first is not None
    assert second is not None
    assert (first.id, second.id, subscribing.next_request()) == (1, 2, None)
    assert json.loads(second.message)["params"] == ["s0150usdt@trade"]
    subscribing.acknowledge(2)
    subscribing.acknowledge(99)
    subscribing.acknowledge(None)
    subscribing.acknowledge("1")
    assert (subscribing.acknowledged, subscribing.is_settled) == (1, False)
    subscribing.acknowledge(1)
    assert (subscribing.acknowledged, subscribing.is_settled) == (151, True)


def test_nothing_to_subscribe_is_settled_from_the_start() -> None:
    """An empty share asks for nothing."""
    assert Subscribing([]).is_settled


@pytest.mark.parametrize("with_id", [True, False])
def test_one_bad_name_costs_only_itself(with_id: bool) -> None:
    """A refused message is asked for again in halves until the bad name stands alone, with or without an id."""
    names = trades(20)
    subscribing, asked, given_up = Subscribing(names), 0, list[Subscription]()
    while (request := subscribing.next_request()) is not None:
        asked += 1
        if names[13] in request.subscriptions:
            given_up += subscribing.refuse(request.id if with_id else None)
        else:
            subscribing.acknowledge(request.id)
    assert given_up == subscribing.refused == [names[13]]
    assert (subscribing.acknowledged, subscribing.is_settled) == (19, True)
    assert asked == 11  # 20, 10 + 10, 5 + 5, 2 + 3, 1 + 2, 1 + 1


def test_a_refusal_that_nobody_asked_for_changes_nothing() -> None:
    """No message is out, or the id is not ours."""
    subscribing = Subscribing(trades(1))
    assert subscribing.refuse(None) == ()
    assert subscribing.refuse("x") == ()
    assert subscribing.refused == []


def test_streams_that_are_dead_are_ended_and_begun_anew() -> None:
    """Two messages; what was granted stays granted meanwhile, and the conversation is open until both are answered."""
    subscribing = Subscribing(trades(3))
    subscribing.next_request()
    subscribing.acknowledge(1)
    subscribing.ask_again(trades(2))
    assert not subscribing.is_settled
    requests = [subscribing.next_request(), subscribing.next_request(), subscribing.next_request()]
    assert [json.loads(request.message) for request in requests if request] == [
        {"method": method, "params": ["s0000usdt@trade", "s0001usdt@trade"], "id": number}
        for number, method in ((2, "UNSUBSCRIBE"), (3, "SUBSCRIBE"))
    ]
    subscribing.acknowledge(2)
    subscribing.acknowledge(3)
    assert (subscribing.is_settled, subscribing.acknowledged) == (True, 3)


def test_a_refused_end_of_a_stream_gives_nothing_up() -> None:
    """It is asked for again all the same."""
    subscribing = Subscribing(trades(1))
    subscribing.next_request()
    subscribing.acknowledge(1)
    subscribing.ask_again(trades(1))
    subscribing.next_request()
    assert subscribing.refuse(2) == ()
    assert subscribing.refused == []
    assert subscribing.next_request() is not None
