"""A past range, page by page: which ids to ask for next, and what an answer proves.

Trades are counted by id, bars by ordinal, and both are asked for in the same way: the rows from one id on, ascending,
at most a page of them. Such an answer is complete up to its last row, so an id that it passes over does not exist, and
what lies behind its last row is simply not known yet. Nothing is asked for twice, nothing is left out; an answer that
begins far behind what was asked for (ids that the venue forgot, bars from before a listing) settles all of that way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ingestor.core.claims import Intervals, kline_ordinal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestor.core.binance import RestAggTrade
    from ingestor.core.model import HoleReason


class Page(NamedTuple):
    """Ids `first` to `last`, inclusive, to be had with one request."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """How many ids that is."""
        return self.last - self.first + 1


class Bounds(NamedTuple):
    """The first and the last id of a range, as far as they are known."""

    first: int | None
    last: int | None

    def page(self) -> Page | None:
        """Return what lies between them; None when that is nothing."""
        if self.first is None or self.last is None or self.first > self.last:
            return None
        return Page(self.first, self.last)


class Absence(NamedTuple):
    """Ids `first` to `last`, inclusive, that the venue does not have."""

    first: int
    last: int
    reason: HoleReason

    @property
    def size(self) -> int:
        """How many ids that is."""
        return self.last - self.first + 1


class Reading(NamedTuple):
    """What the answer to a page settles; `lacking` is the end of the page of which it says nothing."""

    absent: list[Absence]
    lacking: Page | None


class Pager:
    """Hands out what is wanted in pages of at most `size` ids, ascending, each id once.

    `head_reason` says what ids are that an answer begins behind: trades were kept once and are forgotten, bars from
    before the first one never were.
    """

    def __init__(self, wanted: Intervals, size: int, head_reason: HoleReason = "venue_forgot") -> None:
        self._wanted = wanted.copy()
        self._size = size
        self._head_reason: HoleReason = head_reason

    def take(self) -> Page | None:
        """Return the next page, which is the caller's from now on; None when all was handed out."""
        run = next(iter(self._wanted), None)
        if run is None:
            return None
        page = Page(run[0], min(run[1], run[0] + self._size - 1))
        self._wanted.discard(*page)
        return page

    def settle(self, page: Page, ids: Sequence[int]) -> Reading:
        """Say what an answer means: `ids` are those of its rows, asked for from `page.first` on, ascending.

        Absences may lie behind the page; what of them was not handed out yet never will be.
        """
        if not ids:
            return Reading([], page)
        first, last = ids[0], ids[-1]
        absent = [Absence(*run, self._head_reason) for run in self._passed_over(page, first)]
        present = Intervals((number, number) for number in ids if page.first <= number <= page.last)
        inside = present.missing(max(page.first, first), min(page.last, last))
        absent += [Absence(*run, "venue_has_none") for run in inside]
        lacking = Page(max(page.first, last + 1), page.last)
        return Reading(absent, lacking if lacking.size > 0 else None)

    def give_up(self, page: Page) -> list[Absence]:
        """Say what it means that nothing was there from `page.first` on, again and again: nothing is, to the end.

        What was not handed out yet never will be, or a symbol that is gone would cost as much patience as it has pages.
        """
        rest = self._wanted.within(page.first, self._wanted.highest) if self._wanted else Intervals()
        self._wanted.subtract(rest)
        return [Absence(first, last, "venue_has_none") for first, last in (page, *rest)]

    def left(self) -> int:
        """How many ids were not handed out yet."""
        return self._wanted.count()

    def _passed_over(self, page: Page, first: int) -> Intervals:
        """Return what of the page, and of what is not handed out yet, lies before the first row."""
        passed = Intervals([(page.first, min(page.last, first - 1))])
        behind = self._wanted.within(page.last + 1, first - 1)
        self._wanted.subtract(behind)
        passed.update(behind)
        return passed


def bars_between(interval: str, start_ms: int, end_ms: int, settled_ms: int) -> Page | None:
    """Return the ordinals of the bars that open from `start_ms` on and before `end_ms`, and are over at `settled_ms`.

    None when there is no such bar. All times in milliseconds.
    """
    first = kline_ordinal(interval, start_ms - 1) + 1
    last = min(kline_ordinal(interval, end_ms - 1), kline_ordinal(interval, settled_ms) - 1)
    return Page(first, last) if first <= last else None


def first_trade_in(rows: Sequence[RestAggTrade]) -> int | None:
    """Return the id of the first trade that aggregate trades stand for.

    Rows that the venue declared invalid have no trade (facts/binance.md §7), so there may be none.
    """
    return next((row.first_trade_id for row in rows if row.first_trade_id >= 0), None)


def last_trade_in(rows: Sequence[RestAggTrade]) -> int | None:
    """Return the id of the last trade that aggregate trades stand for; None as for the first."""
    return next((row.last_trade_id for row in reversed(rows) if row.last_trade_id >= 0), None)


def join_newest(known: Bounds, newest: Sequence[tuple[int, int]], start_ms: int, end_ms: int) -> Bounds | None:
    """Return the ids of the trades from `start_ms` on and before `end_ms`; None when they cannot be known yet.

    `known` is what a database says that may lack the newest trades, and `newest` (id, time; ascending) are the newest
    ones without a gap, from elsewhere. Trades between the two are in neither.
    """
    if not newest:
        return known  # nothing was ever traded
    oldest_id, oldest_ms = newest[0]
    inside = [number for number, at_ms in newest if start_ms <= at_ms < end_ms]
    if oldest_ms >= end_ms:
        return known if oldest_id == (0 if known.last is None else known.last + 1) else None
    if oldest_ms < start_ms:
        return Bounds(inside[0], inside[-1]) if inside else Bounds(None, None)
    first = oldest_id if known.first is None and oldest_id == 0 else known.first
    return None if first is None else Bounds(first, inside[-1])
