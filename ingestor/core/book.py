"""Top of the order book from a snapshot and diffs; it answers "I need a snapshot" instead of fetching one.

All it must answer is the best bid and the best ask, so it keeps prices and no quantities: a packed sorted array of
integers a side, best at the end, about 8 KB for 1000 levels (a dictionary of the same levels measured 270-310 KB a
symbol). The rules are those of facts/binance.md §5.

A snapshot of N levels says nothing about what lies beyond its N-th price. That price is the *floor* of the side: levels
beyond it are not kept, and when the last kept level goes the best is unknown, unless the snapshot was shorter than
asked and so held the whole side.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ingestor.core.model import DecimalText, Level

_DECIMALS = 8
_UNIT = 10**_DECIMALS
_NOTHING = -(2**63)  # a key below any price
_MAX_PRICE = 2**63 - 1
_ZEROS = frozenset({"0", *(f"0.{'0' * decimals}" for decimals in range(1, 19))})  # a quantity that removes a level
_MAX_BUFFERED = 1000  # diffs between the admission of a snapshot request and its answer: 100 s of one symbol
_MAX_BUFFERED_LEVELS = 100_000  # in all of them; some 15 MB
_LONGEST_KEPT = 32  # characters of a price; longer ones, with zeros in front, are read and not remembered
_MAX_LEVELS = 4000  # a side that price runs away from collects levels; the worst are let go and the floor rises


class BookState(Enum):
    """What is known of the book."""

    UNSYNCHRONISED = "unsynchronised"  # no snapshot, or it was lost
    SEEDED = "seeded"  # a snapshot, which the diffs have not reached yet
    SYNCHRONISED = "synchronised"  # exact after the newest diff


class PriceCache(dict[str, int]):
    """Price text to an integer of 10^-8 units, remembered; one is shared by all books, and emptied when it is full."""

    def __init__(self, max_entries: int = 200_000) -> None:
        super().__init__()
        self._max_entries = max_entries

    def __missing__(self, text: str) -> int:
        price = _parse_price(text)
        if len(text) > _LONGEST_KEPT:
            return price
        if len(self) >= self._max_entries:
            self.clear()
        self[text] = price
        return price


def _parse_price(text: str) -> int:
    """Read a plain decimal of at most 8 decimals exactly; anything else is a `ValueError`."""
    whole, _, fraction = text.partition(".")
    digits = whole + fraction.ljust(_DECIMALS, "0")
    if not whole or len(fraction) > _DECIMALS or not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"not a price of at most {_DECIMALS} decimals: {text!r}")
    price = int(digits)
    if price > _MAX_PRICE:
        raise ValueError(f"price does not fit 64 bits: {text!r}")
    return price


def _price_text(price: int) -> DecimalText:
    return f"{price // _UNIT}.{price % _UNIT:08d}"


class _Side:
    """The prices of one side as ascending keys, best last: a bid's key is its price, an ask's is the negative of it.

    The first key is `_NOTHING`, below any price, so that there always is a last one.
    """

    __slots__ = ("_floor", "_sign", "_text", "_text_key", "keys")

    def __init__(self, sign: Literal[1, -1]) -> None:
        self.keys = array("q", [_NOTHING])
        self._sign = sign
        self._floor = _NOTHING
        self._text_key = _NOTHING
        self._text: DecimalText | None = None

    def seed(self, prices: Sequence[int], limit: int) -> None:
        """Start from the best `limit` prices; fewer of them are all there are."""
        sign = self._sign
        self.keys = array("q", [_NOTHING, *sorted(sign * price for price in prices)])
        self._floor = self.keys[1] if len(prices) >= limit else _NOTHING

    def clear(self) -> None:
        """Forget all prices."""
        self.keys = array("q", [_NOTHING])

    def apply(self, levels: Iterable[Level], prices: PriceCache) -> None:  # noqa: C901 - one flat loop, for speed
        """Set or remove levels, the top looked at first; what lies below the floor is left alone."""
        keys, floor, sign, zeros = self.keys, self._floor, self._sign, _ZEROS
        top = keys[-1]
        for price, quantity in levels:
            key = sign * prices[price]
            if key < floor:
                continue
            if key < top:
                index = bisect_left(keys, key)
                if keys[index] == key:
                    if quantity in zeros:
                        del keys[index]
                elif quantity not in zeros:
                    keys.insert(index, key)
            elif quantity not in zeros:
                if key > top:
                    keys.append(key)
                    top = key
            elif key == top:
                keys.pop()
                top = keys[-1]
        if len(keys) > _MAX_LEVELS:
            del keys[1 : -_MAX_LEVELS // 2]
            self._floor = keys[1]

    def is_exhausted(self) -> bool:
        """Whether nothing is left although the venue may still have levels below the floor."""
        return self.keys[-1] == _NOTHING != self._floor

    def best(self) -> DecimalText | None:
        """Return the best price as text, None when the side is empty."""
        key = self.keys[-1]
        if key != self._text_key:
            self._text_key = key
            self._text = None if key == _NOTHING else _price_text(key * self._sign)
        return self._text


class _Diff:
    """One buffered event, levels as they came."""

    __slots__ = ("asks", "bids", "final", "first")

    def __init__(self, first: int, final: int, bids: Sequence[Level], asks: Sequence[Level]) -> None:
        self.first = first
        self.final = final
        self.bids = bids
        self.asks = asks


class OrderBook:
    """The best bid and ask of one symbol; never a wrong one: None whenever it is not known for sure."""

    __slots__ = ("_asks", "_bids", "_book_id", "_buffer", "_buffered_levels", "_newest_final", "_prices", "state")

    def __init__(self, prices: PriceCache) -> None:
        self.state = BookState.UNSYNCHRONISED
        self._prices = prices
        self._bids = _Side(1)
        self._asks = _Side(-1)
        self._book_id = -1
        self._newest_final = -1
        self._buffer: list[_Diff] | None = None
        self._buffered_levels = 0

    def best(self) -> tuple[DecimalText | None, DecimalText | None]:
        """Best bid and best ask after the newest diff, with 8 decimals; (None, None) while not synchronised."""
        if self.state is not BookState.SYNCHRONISED:
            return None, None
        return self._bids.best(), self._asks.best()

    def reset(self) -> None:
        """Forget everything, as after a disconnect or an id restart."""
        self._lose()
        self._buffer = None
        self._newest_final = -1

    def begin_buffering(self) -> None:
        """Keep diffs from now on: a snapshot request is on its way. A synchronised book goes on answering meanwhile."""
        self._buffer, self._buffered_levels = [], 0

    def end_buffering(self) -> None:
        """Keep no diffs any more: no snapshot is on its way."""
        self._buffer = None

    def apply(self, first: int, final: int, bids: Sequence[Level], asks: Sequence[Level]) -> bool:
        """Take the diff of update ids `first` to `final`; False asks for a snapshot.

        False is said once, at the moment when synchronisation is lost: a break in the ids, a price that cannot be read,
        a crossed book, or price that walked out of the seeded range. An unsynchronised book ignores diffs, or buffers
        them.
        """
        self._remember(first, final, bids, asks)
        if self.state is BookState.UNSYNCHRONISED:
            return True
        if final < self._book_id:
            return True  # the snapshot is ahead of the stream
        if self._advance(first, final, bids, asks):
            return True
        self._lose()
        return False

    def load(
        self, last_update_id: int, bids: Sequence[Level], asks: Sequence[Level], *, limit: int
    ) -> Literal["loaded", "too_old"]:
        """Start from a snapshot that was asked for with `limit` levels, and replay what was buffered.

        `too_old` means: fetch another. The snapshot ends before the buffered diffs begin, or nothing was being buffered
        (the connection was lost meanwhile); a book that was synchronised stays as it is then. Or it cannot be read, or
        it does not survive the replay.
        """
        if self._buffer is None or last_update_id < self._oldest_usable_id():
            return "too_old"
        diffs, self._buffer = self._buffer, None
        if self._seed(last_update_id, bids, asks, limit) and self._replay(diffs):
            return "loaded"
        self._lose()
        return "too_old"

    def _oldest_usable_id(self) -> int:
        """Return the id that a snapshot must reach so that the next diff follows on: U <= lastUpdateId + 1."""
        return self._buffer[0].first - 1 if self._buffer else self._newest_final

    def _remember(self, first: int, final: int, bids: Sequence[Level], asks: Sequence[Level]) -> None:
        buffer = self._buffer
        if buffer is not None:
            self._buffered_levels += len(bids) + len(asks)
            is_full = len(buffer) >= _MAX_BUFFERED or self._buffered_levels > _MAX_BUFFERED_LEVELS
            if (buffer and first > buffer[-1].final + 1) or is_full:
                buffer.clear()  # starts again with this one; the snapshot under way may then be too old
                self._buffered_levels = len(bids) + len(asks)
            buffer.append(_Diff(first, final, bids, asks))
        self._newest_final = final

    def _seed(self, last_update_id: int, bids: Sequence[Level], asks: Sequence[Level], limit: int) -> bool:
        """Start anew; nearly none of these prices will be seen again, so the cache is spared them."""
        try:
            self._bids.seed([_parse_price(level[0]) for level in bids], limit)
            self._asks.seed([_parse_price(level[0]) for level in asks], limit)
        except ValueError:
            return False
        self._book_id = last_update_id
        self.state = BookState.SEEDED
        return True

    def _replay(self, diffs: Iterable[_Diff]) -> bool:
        book_id = self._book_id
        return all(
            self._advance(diff.first, diff.final, diff.bids, diff.asks) for diff in diffs if diff.final >= book_id
        )

    def _advance(self, first: int, final: int, bids: Sequence[Level], asks: Sequence[Level]) -> bool:
        """Apply a diff that does not lie before the book; False: it does not follow on, or the best is unknown now."""
        book_id = self._book_id
        if first > book_id + 1:
            return False
        if final > book_id:
            try:
                self._bids.apply(bids, self._prices)
                self._asks.apply(asks, self._prices)
            except ValueError:
                return False
            if self._bids.is_exhausted() or self._asks.is_exhausted() or self._is_crossed():
                return False
            self._book_id = final
        self.state = BookState.SYNCHRONISED
        return True

    def _is_crossed(self) -> bool:
        return self._bids.keys[-1] >= -self._asks.keys[-1]

    def _lose(self) -> None:
        self.state = BookState.UNSYNCHRONISED
        self._bids.clear()
        self._asks.clear()
