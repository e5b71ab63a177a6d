"""What the demo says in the end, and when it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from ingestor.core.audit import Audit
from ingestor.core.claims import Intervals
from ingestor.core.model import Subscription
from ingestor.local.proof import ProofRow, as_table, prove, verdict
from tests.fakes.records import BTC, hole, trade, trades

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingestor.core.model import MarketData

TRADES = Subscription(BTC, "trade")


def rows_of(first: int, last: int, records: Iterable[MarketData]) -> list[ProofRow]:
    """Hold trades that the venue produced against what is in the stream."""
    audit = Audit()
    for record in records:
        audit.add(record)
    return prove({TRADES: Intervals([(first, last)])}, audit.report())


def test_all_that_was_produced_is_there_or_declared() -> None:
    """What came twice is counted, what came besides does not matter."""
    rows = rows_of(5, 9, [*trades([5, 6, 6]), hole(7, 8), *trades([9, 10])])
    assert rows == [ProofRow(BTC, "trade", 5, 3, 2, 0, 1, 0)]
    assert verdict(rows, 0) == (True, "nothing is missing")


def test_one_missing_id_fails_it() -> None:
    """At either end too, where an audit of the stream alone cannot know of it."""
    for ids in ([6, 7, 8, 9], [5, 6, 7, 8], [5, 6, 8, 9], []):
        rows = rows_of(5, 9, trades(ids))
        assert (rows[0].sent, rows[0].missing) == (5, 5 - len(ids))
        assert verdict(rows, 0) == (False, "SOMETHING IS MISSING")


def test_an_id_with_two_values_fails_it() -> None:
    """One of them is wrong."""
    assert not verdict(rows_of(5, 6, [*trades([5, 6]), trade(6, price="3.00000000")]), 0)[0]


def test_what_cannot_be_read_fails_it() -> None:
    """In a stream that nobody else writes to."""
    assert verdict(rows_of(5, 5, trades([5])), 2) == (False, "2 entries of the stream cannot be read")


def test_a_stream_that_nobody_subscribed_to_fails_it() -> None:
    """The venue has no account of it, so that nothing of it could be missing."""
    rows = rows_of(5, 5, trades([5]))
    assert verdict(rows, 0, ["btcusdt@depth@100ms"]) == (False, "never subscribed to: btcusdt@depth@100ms")


def test_nothing_is_no_proof_and_no_loss_either() -> None:
    """As of a recording of bars that never close."""
    is_proven, words = verdict([], 0)
    assert not is_proven
    assert words.startswith("nothing proven")


def test_the_table_shows_what_was_sent_delivered_missing_and_came_twice() -> None:
    """A row for each symbol and type."""
    console = Console(width=100)
    with console.capture() as capture:
        console.print(as_table(rows_of(5, 1_004, [*trades([5, 5, 6])])))
    *_, row, _ = capture.get().splitlines()
    assert [cell.strip() for cell in row.strip("│").split("│")] == [BTC, "trade", "1,000", "2", "0", "998", "1"]
