"""Which of the configured symbols are this task's: selectors resolved, shares split by rendezvous hashing."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

SELECTOR = "all:"


class Selection(NamedTuple):
    """Symbols to take, in order and once each, and the configured names that the venue does not trade."""

    symbols: list[str]
    unknown: list[str]


def has_selector(names: Iterable[str]) -> bool:
    """Tell whether any name needs the venue's symbol list to be resolved."""
    return any(name.startswith(SELECTOR) for name in names)


def select(names: Iterable[str], trading: Mapping[str, str]) -> Selection:
    """Resolve `names` against `trading` (symbol -> quote asset of what the venue trades now).

    A selector `all:USDT` stands for every symbol quoted in USDT, `all:*` for every symbol.
    """
    taken: dict[str, None] = {}
    unknown = []
    for name in names:
        if name.startswith(SELECTOR):
            quote = name.removeprefix(SELECTOR)
            taken.update((symbol, None) for symbol, asset in sorted(trading.items()) if quote in ("*", asset))
        elif name in trading:
            taken[name] = None
        else:
            unknown.append(name)
    return Selection(list(taken), unknown)


def share(symbols: Collection[str], index: int, count: int) -> list[str]:
    """Return the symbols of task `index` of `count`: each goes to the task with the highest hash of (task, symbol).

    Adding a task therefore moves only the symbols that the new task wins, about one in `count`.
    """
    return [symbol for symbol in symbols if max(range(count), key=lambda task: _weight(task, symbol)) == index]


def _weight(task: int, symbol: str) -> bytes:
    return blake2b(f"{task}/{symbol}".encode(), digest_size=8).digest()
