"""What a person wants to know of many subscriptions at a glance: each type in one row, and the worst symbols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ingestor.core.model import Subscription

WORST_SYMBOLS: Final = 20


class TypeRow(Struct):
    """One stream type: how many subscriptions there are, how many sent something, and the venue times of that."""

    subscriptions: int = 0
    seen: int = 0
    newest_event_ms: int | None = None
    oldest_event_ms: int | None = None

    def count(self, event_ms: int) -> None:
        """Count one subscription, whose newest event is of `event_ms`; 0 if there was none."""
        self.subscriptions += 1
        if event_ms:
            self.seen += 1
            self.newest_event_ms = max(self.newest_event_ms or event_ms, event_ms)
            self.oldest_event_ms = min(self.oldest_event_ms or event_ms, event_ms)


class SymbolRow(Struct):
    """One symbol: its largest watermark lag, and the venue time of the newest event of each stream type."""

    symbol: str
    lag_s: float = 0.0
    last_event_ms: dict[str, int] = {}  # msgspec copies an empty default


class Overview(Struct):
    """All of it, of bounded size whatever the number of symbols."""

    types: dict[str, TypeRow]
    symbols: list[SymbolRow]


def overview(
    newest_events_ms: Iterable[tuple[Subscription, int]],
    lags_s: Mapping[Subscription, float],
    worst: int = WORST_SYMBOLS,
) -> Overview:
    """Sum up subscriptions with their newest event (0 before any) and lags; the latest symbols first, then by name."""
    types: dict[str, TypeRow] = {}
    symbols: dict[str, SymbolRow] = {}
    for subscription, event_ms in newest_events_ms:
        kind = subscription.kind.partition("_")[0]
        types.setdefault(kind, TypeRow()).count(event_ms)
        row = symbols.setdefault(subscription.symbol, SymbolRow(subscription.symbol))
        row.lag_s = max(row.lag_s, lags_s.get(subscription, 0.0))
        if event_ms:
            row.last_event_ms[kind] = max(row.last_event_ms.get(kind, 0), event_ms)
    return Overview(types, sorted(symbols.values(), key=_latest_first)[:worst])


def _latest_first(row: SymbolRow) -> tuple[float, str]:
    return -row.lag_s, row.symbol
