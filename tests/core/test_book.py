"""The order book against recordings, against a naive model, and at every edge of the bridging rule."""

from __future__ import annotations

import gzip
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.book import BookState, OrderBook, PriceCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestor.core.model import Level

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "binance" / "ws"
needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not on this machine")


def levels(*prices: float, quantity: str = "1.00000000") -> list[Level]:
    return [(f"{price:.8f}", quantity) for price in prices]


def gone(*prices: float) -> list[Level]:
    return levels(*prices, quantity="0.00000000")


def book_at(
    last_update_id: int, bids: list[Level], asks: list[Level], *, limit: int = 1000, prices: PriceCache | None = None
) -> OrderBook:
    """Return a book that is seeded and whose next diff begins at `last_update_id` + 1."""
    book = OrderBook(prices or PriceCache())
    book.begin_buffering()
    assert book.load(last_update_id, bids, asks, limit=limit) == "loaded"
    return book


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path / "ws.jsonl.gz", "rt") as lines:
        for line in lines:
            yield json.loads(line)


class WholeBook:
    """A naive model: both sides as sets that forget nothing. It stands in for the venue when a book asks again."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.update_id: int = body["lastUpdateId"]
        self.sides = ({Decimal(price) for price, _ in body["bids"]}, {Decimal(price) for price, _ in body["asks"]})

    def apply(self, event: dict[str, Any]) -> None:
        for side, changes in zip(self.sides, (event["b"], event["a"]), strict=True):
            for price, quantity in changes:
                (side.add if Decimal(quantity) else side.discard)(Decimal(price))
        self.update_id = event["u"]

    def snapshot(self, limit: int) -> tuple[list[Level], list[Level]]:
        bids, asks = sorted(self.sides[0], reverse=True)[:limit], sorted(self.sides[1])[:limit]
        return [(f"{price:.8f}", "1.0") for price in bids], [(f"{price:.8f}", "1.0") for price in asks]


class Replayed:
    """One symbol of a recording: our book, the naive one, and how often both could be held against the venue's word."""

    def __init__(self, line: int, body: dict[str, Any], prices: PriceCache) -> None:
        self.line = line
        self.body = body
        self.book = OrderBook(prices)
        self.book.begin_buffering()
        self.whole = WholeBook(body)
        self.answers: dict[int, tuple[str | None, str | None]] = {}
        self.tickers: dict[int, tuple[str, str]] = {}
        self.snapshots = 0

    def apply(self, event: dict[str, Any]) -> None:
        if event["u"] > self.whole.update_id:
            self.whole.apply(event)
        if not self.book.apply(event["U"], event["u"], event["b"], event["a"]):
            self.book.begin_buffering()
            assert self.book.apply(event["U"], event["u"], event["b"], event["a"])
            self.load(event["u"], *self.whole.snapshot(1000))
        if self.book.state is BookState.SYNCHRONISED:
            self.answers[event["u"]] = self.book.best()

    def load(self, last_update_id: int, bids: list[Level], asks: list[Level]) -> None:
        assert self.book.load(last_update_id, bids, asks, limit=1000) == "loaded"
        self.snapshots += 1


def replay(folder: Path, snapshots: dict[str, tuple[int, dict[str, Any]]]) -> dict[str, Replayed]:
    """Replay a recording; `snapshots` holds for each symbol the line after which its snapshot came, and the body."""
    prices = PriceCache()
    symbols = {symbol: Replayed(line, body, prices) for symbol, (line, body) in snapshots.items()}
    for number, message in enumerate(read_lines(folder), start=1):
        event = message["data"]
        if message["stream"].endswith("@bookTicker"):
            symbols[event["s"]].tickers[event["u"]] = event["b"], event["a"]
        elif "@depth" in message["stream"]:
            symbols[event["s"]].apply(event)
        for replayed in symbols.values():
            if replayed.line == number:
                body = replayed.body
                replayed.load(body["lastUpdateId"], body["bids"], body["asks"])
    return symbols


def agreement(symbols: dict[str, Replayed]) -> tuple[int, int]:
    """Return how many of our answers the venue gave a bookTicker for, and how many of those are equal."""
    pairs = [
        (one.answers[update_id], one.tickers[update_id])
        for one in symbols.values()
        for update_id in one.answers.keys() & one.tickers.keys()
    ]
    return len(pairs), sum(ours == theirs for ours, theirs in pairs)


@needs_recordings
def test_every_state_equals_the_recorded_book_ticker() -> None:
    """Wherever the venue sent a bookTicker with the same update id ours is the same, 564 of 564.

    Price leaves the 1000 seeded levels on the way, and the book asks again instead of guessing.
    """
    folder = RECORDINGS / "btcusdt_20240808"
    line = json.loads((folder / "depth_snapshot.meta.json").read_text())["received_after_ws_line"]
    body = json.loads((folder / "depth_snapshot.json").read_text())
    symbols = replay(folder, {"BTCUSDT": (line, body)})
    assert symbols["BTCUSDT"].snapshots == 2
    assert agreement(symbols) == (564, 564)


@needs_recordings
def test_four_symbols_that_bridge_at_exactly_the_next_id_equal_their_book_tickers() -> None:
    """In all four the first event has U = lastUpdateId + 1, which a literal reader of the manual refuses: 26 of 26."""
    folder = RECORDINGS / "multi4_20211012"
    snapshots = {}
    for answer in json.loads((folder / "meta.json").read_text())["rest"]:
        symbol = answer["file"].removeprefix("depth_snapshot_").removesuffix(".json.gz")
        body = json.loads(gzip.decompress((folder / answer["file"]).read_bytes()))
        snapshots[symbol] = answer["received_after_ws_line"], body
        after = (m["data"] for m in read_lines(folder) if m["stream"] == f"{symbol.lower()}@depth@100ms")
        first_used = next(event for event in after if event["u"] > body["lastUpdateId"])
        assert first_used["U"] == body["lastUpdateId"] + 1
    symbols = replay(folder, snapshots)
    assert agreement(symbols) == (26, 26)
    assert [one.snapshots for one in symbols.values()] == [1, 1, 1, 1]


@given(
    start=st.integers(0, 5),
    seed=st.tuples(st.sets(st.integers(1, 15), min_size=1), st.sets(st.integers(16, 30), min_size=1)),
    changes=st.lists(st.tuples(st.booleans(), st.integers(1, 15), st.booleans()), max_size=60),
    widths=st.lists(st.integers(1, 4), min_size=60, max_size=60),
)
def test_equals_a_naive_model_that_keeps_everything(
    start: int, seed: tuple[set[int], set[int]], changes: list[tuple[bool, int, bool]], widths: list[int]
) -> None:
    """A whole book (the snapshot held both sides) answers as two plain sets do, after every diff."""
    bids, asks = set(seed[0]), set(seed[1])
    book = book_at(start, levels(*sorted(bids, reverse=True)), levels(*sorted(asks)))
    update_id = start
    for (is_bid, offset, present), width in zip(changes, widths, strict=False):
        side, price = (bids, offset) if is_bid else (asks, offset + 15)
        (side.add if present else side.discard)(price)
        change = (levels if present else gone)(price)
        assert book.apply(update_id + 1, update_id + width, change if is_bid else [], [] if is_bid else change)
        update_id += width
        assert book.best() == (
            f"{max(bids)}.00000000" if bids else None,
            f"{min(asks)}.00000000" if asks else None,
        )


@given(
    limit=st.integers(1, 6),
    deep=st.sets(st.integers(1, 40), min_size=8),
    changes=st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=60),
)
def test_a_seed_of_few_levels_never_answers_wrongly(
    limit: int, deep: set[int], changes: list[tuple[int, bool]]
) -> None:
    """However price walks, the answer is that of a book that knows all levels, or the book asks for a snapshot."""
    asks = levels(100)
    book = book_at(0, levels(*sorted(deep, reverse=True)[:limit]), asks, limit=limit)
    for update_id, (price, present) in enumerate(changes, start=1):
        (deep.add if present else deep.discard)(price)
        if not book.apply(update_id, update_id, (levels if present else gone)(price), []):
            assert book.best() == (None, None)
            return
        assert book.best()[0] == f"{max(deep)}.00000000"


def test_nothing_is_answered_before_a_snapshot() -> None:
    """Without a snapshot diffs are ignored and the best is unknown."""
    book = OrderBook(PriceCache())
    assert book.apply(1, 2, levels(10), levels(11))
    assert (book.state, book.best()) == (BookState.UNSYNCHRONISED, (None, None))


@pytest.mark.parametrize(
    ("first", "final", "kept"),
    [
        pytest.param(101, 105, True, id="follows on exactly"),
        pytest.param(95, 105, True, id="straddles the snapshot"),
        pytest.param(100, 100, True, id="ends where the snapshot ends"),
        pytest.param(102, 105, False, id="one id is missing"),
    ],
)
def test_the_bridging_rule_is_u_at_most_book_id_plus_one(first: int, final: int, *, kept: bool) -> None:
    """Accepted iff U <= bookId + 1; a later U means a lost event."""
    book = book_at(100, levels(10), levels(12))
    assert book.apply(first, final, [], []) is kept
    assert book.best() == (("10.00000000", "12.00000000") if kept else (None, None))


def test_an_event_inside_the_book_changes_nothing() -> None:
    """An end equal to the book's id is a no-op: its levels are already there."""
    book = book_at(100, levels(10), levels(12))
    assert book.apply(100, 100, levels(11), [])
    assert book.best() == ("10.00000000", "12.00000000")


def test_a_snapshot_ahead_of_the_stream_waits_for_it() -> None:
    """Diffs that end before the snapshot are passed over, and not answered for: the book is of a later moment."""
    book = OrderBook(PriceCache())
    book.begin_buffering()
    book.apply(50, 60, levels(9), [])
    assert book.load(100, levels(10), levels(12), limit=1000) == "loaded"
    assert book.apply(61, 90, levels(11), [])
    assert (book.state, book.best()) == (BookState.SEEDED, (None, None))
    assert book.apply(91, 101, levels(11), [])
    assert (book.state, book.best()) == (BookState.SYNCHRONISED, ("11.00000000", "12.00000000"))


def test_buffered_diffs_are_replayed_over_the_snapshot() -> None:
    """What came while the request was under way is applied, older parts are dropped."""
    book = OrderBook(PriceCache())
    book.begin_buffering()
    book.apply(90, 95, levels(11), [])
    book.apply(96, 102, gone(10), [])
    book.apply(103, 103, levels(9.5), [])
    assert book.load(97, levels(10, 9), levels(12), limit=1000) == "loaded"
    assert book.best() == ("9.50000000", "12.00000000")


def test_a_snapshot_older_than_the_first_buffered_diff_is_refused() -> None:
    """It must reach U - 1 of the first buffered diff; the next snapshot may."""
    book = OrderBook(PriceCache())
    book.begin_buffering()
    book.apply(100, 105, [], [])
    assert book.load(98, levels(10), levels(12), limit=1000) == "too_old"
    assert book.load(99, levels(10), levels(12), limit=1000) == "loaded"
    assert book.state is BookState.SYNCHRONISED


def test_a_snapshot_older_than_what_passed_before_buffering_is_refused() -> None:
    """A server that lags behind the stream cannot seed a quiet symbol with a book that misses its last diff."""
    book = OrderBook(PriceCache())
    book.apply(100, 105, [], [])
    book.begin_buffering()
    assert book.load(104, levels(10), levels(12), limit=1000) == "too_old"
    assert book.load(105, levels(10), levels(12), limit=1000) == "loaded"


def test_a_snapshot_that_nobody_waits_for_any_more_is_refused() -> None:
    """After a disconnect the buffer is gone, so the answer to the old request cannot be bridged."""
    book = OrderBook(PriceCache())
    book.begin_buffering()
    book.reset()
    assert book.load(100, levels(10), levels(12), limit=1000) == "too_old"


def test_a_break_inside_the_buffer_starts_it_again() -> None:
    """Only diffs that follow on are worth replaying."""
    book = OrderBook(PriceCache())
    book.begin_buffering()
    book.apply(100, 105, [], [])
    assert book.apply(110, 115, [], [])
    assert book.load(105, levels(10), levels(12), limit=1000) == "too_old"
    assert book.load(112, levels(10), levels(12), limit=1000) == "loaded"


def test_a_full_buffer_starts_again() -> None:
    """A thousand diffs are kept, never more."""
    book = OrderBook(PriceCache())
    book.begin_buffering()
    for update_id in range(1, 1002):
        book.apply(update_id, update_id, [], [])
    assert book.load(999, levels(10), levels(12), limit=1000) == "too_old"
    assert book.load(1000, levels(10), levels(12), limit=1000) == "loaded"


def test_a_synchronised_book_answers_on_while_a_fresh_snapshot_is_fetched() -> None:
    """The periodic snapshot costs no answers, and a refused one leaves the book as it is."""
    book = book_at(100, levels(10), levels(12))
    book.begin_buffering()
    assert book.apply(101, 101, levels(11), [])
    assert book.best() == ("11.00000000", "12.00000000")
    assert book.load(99, levels(1), levels(2), limit=1000) == "too_old"
    assert book.best() == ("11.00000000", "12.00000000")
    assert book.load(100, levels(10), levels(12), limit=1000) == "loaded"
    assert book.best() == ("11.00000000", "12.00000000")


def test_price_that_walks_out_of_the_seed_asks_for_a_snapshot() -> None:
    """With the last seeded level gone the next best was never seen: unknown, not the level that happens to be known."""
    book = book_at(1, levels(10, 9), levels(12), limit=2)
    assert book.apply(2, 2, levels(8), [])  # below the floor: not kept
    assert book.apply(3, 3, gone(10), [])
    assert book.best() == ("9.00000000", "12.00000000")
    assert not book.apply(4, 4, gone(9), [])
    assert book.best() == (None, None)
    assert book.apply(5, 5, levels(10), [])  # lost is said once


def test_the_side_that_the_snapshot_held_whole_may_become_empty() -> None:
    """A snapshot shorter than asked knows everything: an empty side then is a fact."""
    book = book_at(1, levels(10), levels(12), limit=5)
    assert book.apply(2, 2, gone(10), [])
    assert book.best() == (None, "12.00000000")


def test_a_crossed_book_is_not_believed() -> None:
    """A bid at or above the ask means that something is wrong here."""
    book = book_at(1, levels(10), levels(12))
    assert not book.apply(2, 2, levels(12), [])
    assert book.best() == (None, None)


@pytest.mark.parametrize("price", ["1.000000001", "-1.0", "", "1e3", "1.2.3", "99999999999.0", "٣.0"])
def test_a_price_that_cannot_be_read_exactly_ends_the_book(price: str) -> None:
    """It is never rounded or guessed; neither in a diff nor in a snapshot."""
    book = book_at(1, levels(10), levels(12))
    assert not book.apply(2, 2, [(price, "1.0")], [])
    book.begin_buffering()
    assert book.load(5, [(price, "1.0")], [], limit=1000) == "too_old"
    assert book.best() == (None, None)


def test_a_snapshot_that_does_not_survive_the_replay_is_fetched_again() -> None:
    """Two seeded levels and a burst that removes both: the answer is unknown again."""
    book = OrderBook(PriceCache())
    book.begin_buffering()
    book.apply(2, 2, gone(10, 9), [])
    assert book.load(1, levels(10, 9), levels(12), limit=2) == "too_old"
    assert book.state is BookState.UNSYNCHRONISED


@pytest.mark.parametrize("zero", ["0.00000000", "0.0", "0", "0.000"])
def test_zero_of_any_width_removes_a_level(zero: str) -> None:
    """The manual promises no width of decimals."""
    book = book_at(1, levels(10, 9), levels(12))
    assert book.apply(2, 2, [("10.0", zero)], [("12", "0.1")])
    assert book.best() == ("9.00000000", "12.00000000")


def test_a_side_that_price_runs_away_from_stays_small() -> None:
    """Above 4000 levels the worst are let go; the best stays exact and the floor rises with them."""
    book = book_at(0, levels(1), levels(90_000))
    for update_id in range(1, 10_001):
        assert book.apply(update_id, update_id, levels(update_id + 1), [])
    assert len(book._bids.keys) <= 4000
    assert book.best()[0] == "10001.00000000"
    assert not book.apply(10_001, 10_001, gone(*range(1, 10_002)), [])


def test_two_thousand_levels_take_about_seventeen_kilobytes() -> None:
    """The packed form is why a thousand books fit in memory."""
    book = book_at(1, levels(*range(1, 1001)), levels(*range(2001, 3001)))
    size_bytes = sys.getsizeof(book._bids.keys) + sys.getsizeof(book._asks.keys)
    assert 16_000 <= size_bytes < 18_500


def test_the_price_cache_is_bounded() -> None:
    """It is emptied when it is full, and right before and after."""
    prices = PriceCache(max_entries=2)
    assert [prices[text] for text in ("1.5", "2", "0.00000001", "1.5")] == [150_000_000, 200_000_000, 1, 150_000_000]
    assert len(prices) <= 2


def test_a_price_is_remembered_only_in_a_usual_length() -> None:
    """Zeros in front are read; kept, any number of such texts would take all memory."""
    prices = PriceCache()
    assert prices["0" * 4_000 + "1.5"] == prices["1.5"] == 150_000_000
    assert list(prices) == ["1.5"]


def test_what_is_buffered_is_bounded_in_levels_too() -> None:
    """A venue that sends whole books as changes, and never answers for the snapshot, does not fill memory."""
    book = OrderBook(PriceCache())
    book.begin_buffering()
    many = levels(*range(1, 30_001))
    for update_id in range(1, 11):
        assert book.apply(update_id, update_id, many, [])
        assert book._buffer is not None
        assert sum(len(diff.bids) for diff in book._buffer) <= 100_000
    assert book.load(3, levels(10), levels(40_000), limit=1000) == "too_old"
    assert book.load(10, levels(10), levels(40_000), limit=1000) == "loaded"


def test_a_snapshot_does_not_fill_the_price_cache() -> None:
    """Nearly none of its levels is ever spoken of again; a thousand books would fill the cache with them."""
    prices = PriceCache()
    book = OrderBook(prices)
    book.begin_buffering()
    assert book.load(100, levels(10, 9, 8), levels(12, 13), limit=1000) == "loaded"
    assert not prices
    assert book.apply(101, 101, levels(11), [])
    assert list(prices) == ["11.00000000"]
