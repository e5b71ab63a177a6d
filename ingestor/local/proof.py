"""Holds what the venue produced against what the stream holds: the proof at the end of a demo."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from ingestor.core.claims import Intervals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ingestor.core.audit import AuditReport
    from ingestor.core.model import Subscription


class ProofRow(NamedTuple):
    """One subscription, counted in ids; `duplicates` are deliveries beyond the first."""

    symbol: str
    kind: str
    sent: int
    delivered: int
    declared: int
    missing: int
    duplicates: int
    conflicts: int

    @property
    def is_proven(self) -> bool:
        """Every id is delivered or declared, and none with two values."""
        return not self.missing and not self.conflicts


def prove(produced: Mapping[Subscription, Intervals], report: AuditReport) -> list[ProofRow]:
    """Compare the ids that the venue produced with what was read back, subscription by subscription."""
    rows = []
    for subscription, ids in sorted(produced.items()):
        found = [each for each in report.streams if (each.symbol, each.kind) == subscription]
        delivered, declared = Intervals(), Intervals()
        for each in found:
            delivered.update(Intervals((span.first, span.last) for span in each.delivered))
            declared.update(Intervals((hole.first, hole.last) for hole in each.declared))
        missing = minus(minus(ids, delivered), declared)
        rows.append(
            ProofRow(
                symbol=subscription.symbol,
                kind=subscription.kind,
                sent=ids.count(),
                delivered=ids.count() - minus(ids, delivered).count(),
                declared=minus(ids, delivered).count() - missing.count(),
                missing=missing.count(),
                duplicates=sum(each.duplicates for each in found),
                conflicts=sum(len(each.conflicts) for each in found),
            )
        )
    return rows


def verdict(rows: Sequence[ProofRow], undecodable: int, unheard: Sequence[str] = ()) -> tuple[bool, str]:
    """Say in words whether everything is there; where nothing counts, as of open bars alone, nothing is proven.

    `unheard` are streams that nobody subscribed to, so that the venue has no account of what they owe.
    """
    if unheard:
        return False, f"never subscribed to: {', '.join(unheard)}"
    if not rows:
        return False, "nothing proven: there were neither trades nor changes of a book nor closed bars"
    if not all(row.is_proven for row in rows):
        return False, "SOMETHING IS MISSING"
    if undecodable:
        return False, f"{undecodable} entries of the stream cannot be read"
    return True, "nothing is missing"


def minus(ids: Intervals, others: Intervals) -> Intervals:
    """Return what is in `ids` and not in `others`."""
    rest = ids.copy()
    rest.subtract(others)
    return rest


def as_table(rows: Sequence[ProofRow]) -> Table:
    """Show the proof to a person."""
    table = Table(title="What the venue produced, and what was read back from Kinesis (ids)")
    table.add_column("symbol")
    table.add_column("stream")
    for name in ("sent", "delivered", "declared", "missing", "duplicates"):
        table.add_column(name, justify="right")
    for row in rows:
        style = "green" if row.is_proven else "bold red"
        numbers = (row.sent, row.delivered, row.declared, row.missing, row.duplicates)
        table.add_row(row.symbol, row.kind, *(f"{number:,}" for number in numbers), style=style)
    return table
