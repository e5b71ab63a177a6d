"""What a person sees of a backfill: a live display on a terminal, plain lines elsewhere, the plan and the summary."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from rich.progress import BarColumn, Progress, TextColumn

from ingestor.core.wording import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

PLAIN_EVERY_S: Final = 10.0
HOLES_SHOWN: Final = 20


class SpanStatus(NamedTuple):
    """How far one subscription is: ids `done` of `size`; `event_ms` is the venue time of the newest that was sent."""

    name: str
    size: int
    done: int
    event_ms: int | None


class Status(NamedTuple):
    """How far all of it is, at one instant; `left_s` is None while nobody can tell."""

    spans: list[SpanStatus]
    rows_per_s: float
    weight_used: int
    weight_limit: int
    left_s: float | None


class View(Protocol):
    """Where progress is shown."""

    def show(self, status: Status, now: float) -> None:
        """Show how it stands at `now`, a monotonic clock in seconds."""
        ...

    def close(self) -> None:
        """Show no more."""
        ...


class PlainView:
    """A line for each subscription, at once and then every ten seconds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._due_s = 0.0

    def show(self, status: Status, now: float) -> None:
        """Write lines when it is time for them."""
        if now < self._due_s:
            return
        self._due_s = now + PLAIN_EVERY_S
        for span in status.spans:
            self._write(
                f"{span.name}: {span.done:,} of {span.size:,} ({_percent(span)}), at {_day(span)}; {_pace(status)}"
            )

    def close(self) -> None:
        """Nothing is open."""


class RichView:
    """Bars on a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %  {task.fields[day]}  {task.fields[pace]}"),
            console=console,
            transient=True,
        )
        self._bars = {}  # type: ignore[var-annotated]  # a TaskID is rich's own business
        self._progress.start()

    def show(self, status: Status, now: float) -> None:  # noqa: ARG002 - rich has a clock of its own
        """Move the bars."""
        for span in status.spans:
            if span.name not in self._bars:
                self._bars[span.name] = self._progress.add_task(span.name, total=span.size, day="", pace="")
            bar = self._bars[span.name]
            self._progress.update(bar, completed=span.done, day=_day(span), pace=_pace(status))

    def close(self) -> None:
        """Give the terminal back."""
        self._progress.stop()


class Part(NamedTuple):
    """One subscription of a plan or a summary; ids are inclusive, `first` > `last` where there is nothing."""

    name: str
    first: int
    last: int
    done: int
    holes: list[tuple[int, int]]


def plan_text(parts: Sequence[Part], requests: int, weight: int, weight_limit: int) -> str:
    """Say what a run would do: how many requests of how much weight, and how long that takes at least."""
    lines = [f"{part.name}: ids {_ids(part)}, {part.done:,} done already" for part in parts]
    minutes = weight / weight_limit
    lines.append(f"{requests:,} requests, weight {weight:,} of {weight_limit:,} a minute: {minutes:.1f} minutes")
    return "\n".join(lines) + "\n"


def summary_text(parts: Sequence[Part], refused: Sequence[tuple[str, str]]) -> str:
    """Say what was delivered: how much, from which id to which, and every hole."""
    lines = []
    for part in parts:
        missing = sum(last - first + 1 for first, last in part.holes)
        size = part.last - part.first + 1
        records = part.done - missing
        lines.append(f"{part.name}: {records:,} records of {size:,} ids, {_ids(part)}, {missing:,} ids in holes")
        lines += [f"  hole {first}..{last}" for first, last in part.holes[:HOLES_SHOWN]]
        if len(part.holes) > HOLES_SHOWN:
            lines.append(f"  and {len(part.holes) - HOLES_SHOWN:,} more holes")
    lines += [f"refused {file}: {printable(reason)}; its records came over REST" for file, reason in refused]
    return "\n".join(lines) + "\n"


def _ids(part: Part) -> str:
    return f"{part.first}..{part.last}" if part.first <= part.last else "none"


def _percent(span: SpanStatus) -> str:
    return f"{100 * span.done / span.size:.1f} %" if span.size else "nothing to do"


def _day(span: SpanStatus) -> str:
    return "-" if span.event_ms is None else f"{dt.datetime.fromtimestamp(span.event_ms / 1000, dt.UTC):%Y-%m-%d %H:%M}"


def _pace(status: Status) -> str:
    left = "time left unknown" if status.left_s is None else f"{dt.timedelta(seconds=round(status.left_s))} left"
    return f"{status.rows_per_s:,.0f} rows/s, weight {status.weight_used:,}/{status.weight_limit:,}, {left}"
