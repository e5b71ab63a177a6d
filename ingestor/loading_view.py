"""What a person sees of a backfill: a live display on a terminal, plain lines elsewhere, the plan and the summary."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from ingestor.core.claims import kline_open_ms
from ingestor.core.wording import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.progress import TaskID

    from ingestor.progress import Declared

PLAIN_EVERY_S: Final = 10.0
HOLES_SHOWN: Final = 20
SPANS_SHOWN: Final = 20  # of hundreds, those that are under way


class SpanStatus(NamedTuple):
    """How far one subscription is: ids `done` of `size`; `event_ms` is the venue time of the newest that was sent."""

    name: str
    size: int
    done: int
    event_ms: int | None


class Status(NamedTuple):
    """How far all of it is, at one instant.

    `left_s` is None while nobody can tell, `silent_s` is for how long the venue will not have us ask (429, 418).
    """

    spans: list[SpanStatus]
    rows_per_s: float
    weight_used: int
    weight_limit: int
    left_s: float | None
    silent_s: float = 0.0


class View(Protocol):
    """Where progress is shown."""

    def show(self, status: Status, now: float) -> None:
        """Show how it stands at `now`, a monotonic clock in seconds."""
        ...

    def close(self) -> None:
        """Show no more."""
        ...


class PlainView:
    """A line for each subscription and one for all of them, at once and then every ten seconds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._due_s = 0.0

    def show(self, status: Status, now: float) -> None:
        """Write lines when it is time for them."""
        if now < self._due_s:
            return
        self._due_s = now + PLAIN_EVERY_S
        if len(status.spans) == 1:
            [span] = status.spans
            self._write(f"{_span(span)}; {_pace(status)}")
            return
        for span in shown(status.spans):
            self._write(_span(span))
        self._write(f"{_all(status.spans)}; {_pace(status)}")

    def close(self) -> None:
        """Nothing is open."""


class RichView:
    """Bars on a terminal, and the pace of all below them."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>5.1f} %  {task.fields[day]}"),
            console=console,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._pace = Text("asking the venue what there is", no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._bars, self._pace), console=console, transient=True)
        self._live.start()

    def show(self, status: Status, now: float) -> None:  # noqa: ARG002 - rich has a clock of its own
        """Move the bars."""
        chosen = {span.name for span in shown(status.spans)}
        for span in status.spans:
            if span.name in chosen and span.name not in self._tasks:
                self._tasks[span.name] = self._bars.add_task(span.name, total=span.size, day="")
            if span.name in self._tasks:
                self._bars.update(
                    self._tasks[span.name], completed=span.done, day=_day(span), visible=span.name in chosen
                )
        self._pace.plain = _pace(status) if len(status.spans) == 1 else f"{_pace(status)}; {_all(status.spans)}"

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


def shown(spans: Sequence[SpanStatus]) -> Sequence[SpanStatus]:
    """Return the spans that there is room for: all of a few, else those under way."""
    if len(spans) <= SPANS_SHOWN:
        return spans
    return [span for span in spans if 0 < span.done < span.size][:SPANS_SHOWN]


class Part(NamedTuple):
    """One subscription of a plan or a summary; ids are inclusive, `first` > `last` where there is nothing.

    `interval` is that of bars, whose ids nobody knows by heart.
    """

    name: str
    first: int
    last: int
    done: int
    holes: Sequence[Declared] = ()
    notes: Sequence[str] = ()
    interval: str | None = None


class Plan(NamedTuple):
    """What a run would do: requests over REST of how much weight, and files of the archive."""

    requests: int
    weight: int
    weight_limit: int
    days: int = 0
    months: int = 0


def plan_text(parts: Sequence[Part], plan: Plan) -> str:
    """Say what a run would do, and how long that takes at least."""
    lines = []
    for part in parts:
        lines.append(f"{part.name}: {_ids(part)}, {part.done:,} done already")
        lines += _notes(part)
    if plan.days or plan.months:
        files = f"{plan.days:,} daily and {plan.months:,} monthly files of the archive"
        lines.append(f"{files}, and over REST what it cannot have yet (more, if it lacks a file):")
    seconds = round(60 * plan.weight / plan.weight_limit)
    at_least = f"{_duration(seconds)} at least" if seconds else "a moment"
    requests = f"{plan.requests:,} request{'' if plan.requests == 1 else 's'}"
    lines.append(f"{requests}, weight {plan.weight:,} at {plan.weight_limit:,} a minute: {at_least}")
    return "\n".join(lines) + "\n"


def summary_text(parts: Sequence[Part], refused: Sequence[tuple[str, str]], letters: int = 0, where: str = "") -> str:
    """Say what was delivered: how much, from which id to which, and every hole; `letters` lie `where`."""
    lines = []
    for part in parts:
        missing = sum(hole.last - hole.first + 1 for hole in part.holes)
        size = part.last - part.first + 1
        lines.append(
            f"{part.name}: {part.done - missing:,} records of {size:,} ids, {_ids(part)}, {missing:,} in holes"
        )
        lines += [f"  hole {_run(part, hole.first, hole.last)}: {hole.reason}" for hole in part.holes[:HOLES_SHOWN]]
        if len(part.holes) > HOLES_SHOWN:
            lines.append(f"  and {len(part.holes) - HOLES_SHOWN:,} more holes")
        lines += _notes(part)
    lines += [f"refused {file}: {printable(reason)}; its records came over REST" for file, reason in refused]
    if letters:
        lines.append(f"dead letters: {letters:,}, in {where}; `ingestor dead-letter list` shows them")
    return "\n".join(lines) + "\n"


def _notes(part: Part) -> list[str]:
    return [f"  note: {note}" for note in part.notes]


def _ids(part: Part) -> str:
    return _run(part, part.first, part.last) if part.first <= part.last else "nothing"


def _run(part: Part, first: int, last: int) -> str:
    if part.interval is None:
        return f"{first}..{last}"
    return f"{first}..{last} ({_opening(part.interval, first)} to {_opening(part.interval, last)})"


def _span(span: SpanStatus) -> str:
    return f"{span.name}: {_share(span.done, span.size)}, at {_day(span)}"


def _all(spans: Sequence[SpanStatus]) -> str:
    return f"all {len(spans)}: {_share(sum(span.done for span in spans), sum(span.size for span in spans))}"


def _share(done: int, size: int) -> str:
    return f"{done:,} of {size:,} ({f'{100 * done / size:.1f} %' if size else 'nothing to do'})"


def _day(span: SpanStatus) -> str:
    return "-" if span.event_ms is None else f"{_at(span.event_ms):%Y-%m-%d %H:%M}"


def _opening(interval: str, ordinal: int) -> str:
    at = _at(kline_open_ms(interval, ordinal))
    return f"{at:%Y-%m-%d %H:%M:%S}" if at.second else f"{at:%Y-%m-%d %H:%M}"


def _at(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC)


def _pace(status: Status) -> str:
    rate = f"{status.rows_per_s:,.0f} rows/s, weight {status.weight_used:,}/{status.weight_limit:,}"
    if status.silent_s > 0:
        return f"{rate}, the venue wants silence for {_duration(status.silent_s)}"
    return f"{rate}, {'time left unknown' if status.left_s is None else f'{_duration(status.left_s)} left'}"


def _duration(seconds: float) -> str:
    return str(dt.timedelta(seconds=round(seconds)))
