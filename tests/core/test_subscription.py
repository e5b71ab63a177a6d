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
    Shares,
    Subscribing,
    expand,
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


def messages_of(subscribing: Subscribing) -> list[tuple[str, list[str]]]:
    """Send everything, have it granted, and return what was sent."""
    sent: list[tuple[str, list[str]]] = []
    while (request := subscribing.next_request()) is not None:
        sent.append((request.method, [each.symbol for each in request.subscriptions]))
        subscribing.acknowledge(request.id)
    return sent


def test_what_changes_is_asked_for_and_what_stays_is_not_touched() -> None:
    """Ends before beginnings, so that a full connection is never over its limit; what has ended is told once."""
    names = trades(5)
    subscribing = Subscribing(names[:3])
    assert messages_of(subscribing) == [("SUBSCRIBE", ["S0000USDT", "S0001USDT", "S0002USDT"])]
    subscribing.change([names[1], names[3], names[4]])
    assert (subscribing.acknowledged, subscribing.is_settled, subscribing.take_ended()) == (1, False, [])
    assert messages_of(subscribing) == [
        ("UNSUBSCRIBE", ["S0000USDT", "S0002USDT"]),
        ("SUBSCRIBE", ["S0003USDT", "S0004USDT"]),
    ]
    assert (subscribing.acknowledged, subscribing.is_settled) == (3, True)
    assert (subscribing.take_ended(), subscribing.take_ended()) == ([names[0], names[2]], [])


def test_a_change_of_mind_before_anything_was_sent_costs_nothing() -> None:
    """Neither what was to begin nor what was to end."""
    names = trades(3)
    subscribing = Subscribing(names[:2])
    messages_of(subscribing)
    subscribing.change(names[1:])
    subscribing.change(names[:2])
    assert subscribing.is_settled
    assert (messages_of(subscribing), subscribing.acknowledged) == ([], 2)


def test_what_is_wanted_again_while_its_end_is_under_way_begins_anew() -> None:
    """Its end is not told, because the feed goes on with it."""
    names = trades(2)
    subscribing = Subscribing(names)
    messages_of(subscribing)
    subscribing.change(names[:1])
    assert subscribing.next_request() is not None
    subscribing.change(names)
    subscribing.acknowledge(2)
    assert subscribing.take_ended() == []
    assert messages_of(subscribing) == [("SUBSCRIBE", ["S0001USDT"])]
    assert (subscribing.acknowledged, subscribing.is_settled) == (2, True)


def test_what_is_wanted_no_longer_is_left_out_of_what_was_to_be_sent() -> None:
    """Of what was not asked for yet, of the halves of a refused message, and of what is dead."""
    names = trades(6)
    subscribing = Subscribing(names)
    subscribing.change(names[1:])
    subscribing.next_request()
    assert subscribing.refuse(1) == ()
    subscribing.change(names[2:5])
    assert messages_of(subscribing) == [("SUBSCRIBE", ["S0002USDT"]), ("SUBSCRIBE", ["S0003USDT", "S0004USDT"])]
    subscribing.ask_again([names[1], names[2]])
    assert messages_of(subscribing) == [("UNSUBSCRIBE", ["S0002USDT"]), ("SUBSCRIBE", ["S0002USDT"])]


def test_a_refusal_of_names_that_are_wanted_no_longer_is_forgotten() -> None:
    """They are asked for anew when they are wanted again; an end that is refused is an end all the same."""
    names = trades(2)
    subscribing = Subscribing(names[:1])
    subscribing.next_request()
    assert subscribing.refuse(1) == (names[0],)
    subscribing.change(names[1:])
    assert subscribing.refused == []
    messages_of(subscribing)
    subscribing.change(names[:1])
    request = subscribing.next_request()
    assert request is not None
    subscribing.refuse(request.id)
    assert subscribing.take_ended() == [names[1]]
    assert messages_of(subscribing) == [("SUBSCRIBE", ["S0000USDT"])]


def test_what_never_began_has_ended_as_soon_as_it_is_wanted_no_longer() -> None:
    """Not asked for yet, refused before, or refused afterwards: the feed must not wait for the end of it."""
    names = trades(5)
    subscribing = Subscribing(names)
    subscribing.change(names[1:])
    assert subscribing.take_ended() == [names[0]]
    request = subscribing.next_request()
    assert request is not None
    subscribing.refuse(request.id)
    subscribing.change(names[2:])
    assert subscribing.take_ended() == [names[1]]
    while (request := subscribing.next_request()) is not None:
        subscribing.refuse(request.id)
    assert subscribing.refused == names[2:]
    subscribing.change([])
    assert (subscribing.take_ended(), subscribing.is_settled) == (names[2:], True)
    subscribing.change(names[:1])
    request = subscribing.next_request()
    assert request is not None
    subscribing.change([])
    assert subscribing.take_ended() == []
    subscribing.refuse(request.id)
    assert (subscribing.take_ended(), subscribing.is_settled) == (names[:1], True)


def test_what_is_begun_anew_has_ended_when_the_venue_says_so() -> None:
    """Until then the rest of it may come."""
    names = trades(1)
    subscribing = Subscribing(names)
    messages_of(subscribing)
    subscribing.ask_again(names)
    request = subscribing.next_request()
    assert request is not None
    assert request.method == "UNSUBSCRIBE"
    subscribing.change([])
    assert subscribing.take_ended() == []
    subscribing.acknowledge(request.id)
    assert (subscribing.take_ended(), subscribing.take_ended(), subscribing.is_settled) == (names, [], True)


@given(st.lists(st.sets(st.integers(0, 9)), min_size=1, max_size=8), st.lists(st.booleans(), max_size=40))
def test_whatever_changes_when_the_venue_ends_up_with_what_is_wanted(wishes: list[set[int]], turns: list[bool]) -> None:
    """It carries out messages in their order; answers may be late. What is wanted throughout is never ended."""
    names = trades(10)
    always = set(names).intersection(*({names[number] for number in wish} for wish in wishes))
    subscribing = Subscribing([names[number] for number in sorted(wishes[0])])
    carried, unanswered = set[Subscription](), list[int]()

    def send() -> bool:
        request = subscribing.next_request()
        if request is None:
            return False
        unanswered.append(request.id)
        if request.method == "UNSUBSCRIBE":
            assert always.isdisjoint(request.subscriptions)
            carried.difference_update(request.subscriptions)
        else:
            carried.update(request.subscriptions)
        return True

    turning = iter(turns)
    for wish in wishes[1:]:
        while next(turning, False):
            if not send() and unanswered:
                subscribing.acknowledge(unanswered.pop(0))
        subscribing.change([names[number] for number in sorted(wish)])
    while send():
        pass
    for number in unanswered:
        subscribing.acknowledge(number)
    assert carried == {names[number] for number in wishes[-1]}
    assert (subscribing.acknowledged, subscribing.is_settled) == (len(carried), True)
    assert carried.isdisjoint(subscribing.take_ended())


def test_a_change_moves_nothing_fills_up_what_has_room_and_numbers_what_is_new() -> None:
    """An empty share is told once, and its number is not given again."""
    names = trades(12)
    shares = Shares(4)
    assert shares.change(names[:8]) == {0: tuple(names[:4]), 1: tuple(names[4:8])}
    assert shares.change([*names[:3], *names[4:6], names[8]]) == {0: tuple(names[:3]), 1: (*names[4:6], names[8])}
    assert shares.change([*names[:3], names[8]]) == {1: (names[8],)}
    assert shares.change([*names[:3], *names[8:]]) == {0: (*names[:3], names[11]), 1: tuple(names[8:11])}
    assert shares.change([*names[:4], names[7], *names[8:]]) == {1: (*names[8:11], names[3]), 2: (names[7],)}
    assert shares.change(names[:4]) == {0: tuple(names[:3]), 1: (names[3],), 2: ()}
    assert shares.change(names[:3]) == {1: ()}
    assert shares.change(names[:5]) == {0: tuple(names[:4]), 3: (names[4],)}


@given(st.lists(st.lists(subscriptions, max_size=12), min_size=1, max_size=5), st.integers(1, 5))
def test_shares_hold_what_is_wanted_within_their_limit_and_keep_what_they_hold(
    wishes: list[list[Subscription]], max_streams: int
) -> None:
    """Each once; the first change is the plan of a start; only shares that are told have changed."""
    shares, held = Shares(max_streams), dict[int, tuple[Subscription, ...]]()
    for turn, wanted in enumerate(wishes):
        before = {each: number for number, share in held.items() for each in share}
        changed = shares.change(wanted)
        assert all(share != held.get(number) for number, share in changed.items())
        held = {number: share for number, share in (held | changed).items() if share}
        assert sorted(each for share in held.values() for each in share) == sorted(set(wanted))
        assert all(len(share) <= max_streams for share in held.values())
        after = {each: number for number, share in held.items() for each in share}
        assert all(after[each] == number for each, number in before.items() if each in after)
        if not turn:
            assert list(held.values()) == plan_connections(wanted, max_streams)
