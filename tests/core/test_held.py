"""What the spool holds beside what resume says."""

from __future__ import annotations

from ingestor.core.claims import Intervals
from ingestor.core.held import Held
from ingestor.core.model import Claim, Subscription

TRADES = Subscription("BTCUSDT", "trade")
BARS = Subscription("BTCUSDT", "kline_1m")


def held(*pairs: tuple[int, int]) -> Held:
    """Make one that found trades."""
    found = Held()
    found.take_over({TRADES: Intervals(pairs)})
    return found


def test_what_is_held_is_not_missing() -> None:
    """The rest is; other subscriptions are not touched."""
    found = held((5, 9))
    assert found.settle(TRADES, Intervals([(3, 12)]), is_restarted=False) == Intervals([(3, 4), (10, 12)])
    assert found.settle(BARS, Intervals([(5, 6)]), is_restarted=False) == Intervals([(5, 6)])


def test_acknowledgements_before_the_answer_are_kept_back() -> None:
    """Nobody knows yet of which ids they are; what was received since is not held, and passes."""
    found = held((5, 9))
    claims = [Claim(TRADES, 5, 6), Claim(BARS, 1, 1), Claim(TRADES, 8, 12)]
    assert found.acknowledge(claims) == [Claim(BARS, 1, 1), Claim(TRADES, 10, 12)]
    assert list(found.acknowledged(TRADES)) == []
    found.settle(TRADES, Intervals(), is_restarted=False)
    assert list(found.acknowledged(TRADES)) == [Claim(TRADES, 5, 6), Claim(TRADES, 8, 9)]
    assert list(found.acknowledged(BARS)) == []
    assert found.acknowledge([Claim(TRADES, 7, 7)]) == [Claim(TRADES, 7, 7)]


def test_ids_that_began_again_make_what_is_held_history() -> None:
    """It is delivered and claims nothing; new ids claim as ever, and all that resume misses is missing."""
    found = held((5, 9))
    found.acknowledge([Claim(TRADES, 5, 5)])
    assert found.settle(TRADES, Intervals([(4, 6)]), is_restarted=True) == Intervals([(4, 6)])
    assert list(found.acknowledged(TRADES)) == []
    assert found.acknowledge([Claim(TRADES, 6, 9), Claim(TRADES, 10, 10)]) == [Claim(TRADES, 10, 10)]
    assert found.acknowledge([Claim(TRADES, 6, 9)]) == [Claim(TRADES, 6, 9)], "all of the past is delivered"


def test_what_the_disk_lost_is_not_held() -> None:
    """From then on everything counts as it comes."""
    found = held((5, 9))
    found.forget()
    assert found.settle(TRADES, Intervals([(5, 9)]), is_restarted=False) == Intervals([(5, 9)])
    claims = [Claim(TRADES, 5, 5)]
    assert found.acknowledge(claims) is claims
