"""Charts of the benchmark as SVG, readable on light and dark pages, without a library: bars in groups, and curves.

Each stands on its own card, whose colours follow what the reader's system prefers, so it never depends on the page
around it. All numbers are spelled beside their bars; a picture that is not seen loses nothing, its title says it.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH: Final = 760
MARGIN: Final = 24
ROW: Final = 24
BAR: Final = 14
LABELS: Final = 284  # of which the bars begin
VALUES: Final = 96  # what is kept on the right for the numbers
LONGEST: Final = WIDTH - MARGIN - VALUES - LABELS
CURVE_HEIGHT: Final = 220
STYLE: Final = """\
  <style>
    svg { --card: #ffffff; --edge: #d8dee6; --text: #1b2430; --faint: #5b6776; --grid: #e6eaef; --ours: #1f6feb;
          --other: #9aa7b6; --second: #b35900; font-family: system-ui, -apple-system, "Segoe UI", sans-serif }
    @media (prefers-color-scheme: dark) {
      svg { --card: #12171e; --edge: #2c3540; --text: #e4eaf1; --faint: #95a2b1; --grid: #232b35; --ours: #58a6ff;
            --other: #667384; --second: #e8a33d }
    }
    .card { fill: var(--card); stroke: var(--edge) } .title { font-size: 15px; font-weight: 600 }
    text { fill: var(--text); font-size: 12.5px } .faint { fill: var(--faint) } .end { text-anchor: end }
    .head { font-weight: 600 } .grid { stroke: var(--grid) } .ours { fill: var(--ours) } .other { fill: var(--other) }
    .curve { fill: none; stroke-width: 2; stroke-linejoin: round }
    .first { stroke: var(--ours) } .second { stroke: var(--second) }
  </style>"""
CURVES: Final = ("first", "second")


class Bar(NamedTuple):
    """One bar; `text` is the number beside it."""

    label: str
    value: float
    text: str
    is_ours: bool = True


class Group(NamedTuple):
    """Bars under a heading, which may be empty."""

    heading: str
    bars: Sequence[Bar]


class Curve(NamedTuple):
    """A line through points, in the order of x."""

    label: str
    points: Sequence[tuple[float, float]]


def bar_chart(title: str, note: str, groups: Sequence[Group], *, is_log: bool = False) -> str:
    """Draw horizontal bars; `is_log` makes each decade as long as the next, for values that are far apart."""
    values = [bar.value for group in groups for bar in group.bars if bar.value > 0]
    least = 10.0 ** math.floor(math.log10(min(values)) - 0.3) if is_log else 0.0
    most = max(values)
    parts: list[str] = []
    y = 66
    for group in groups:
        if group.heading:
            parts.append(f'  <text class="head" x="{MARGIN}" y="{y + BAR - 2}">{escape(group.heading)}</text>')
            y += ROW
        for bar in group.bars:
            parts += _bar(bar, y, _logarithmic(bar.value, least, most) if is_log else _linear(bar.value, most))
            y += ROW
        y += ROW // 3 if group.heading else 0
    return _card(title, note, y + MARGIN // 2, parts)


def curve_chart(title: str, note: str, curves: Sequence[Curve], *, x_unit: str, y_unit: str) -> str:
    """Draw lines over a common axis that begins at zero."""
    left, top, right = MARGIN + 44, 66, WIDTH - MARGIN
    bottom = top + CURVE_HEIGHT
    most_x = max(x for curve in curves for x, _ in curve.points) or 1.0
    step = nice_step(max(y for curve in curves for _, y in curve.points))
    most_y = step * math.ceil(max(y for curve in curves for _, y in curve.points) / step)
    parts = []
    for index in range(round(most_y / step) + 1):
        y = bottom - CURVE_HEIGHT * index * step / most_y
        parts.append(f'  <line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'  <text class="faint end" x="{left - 8}" y="{y + 4:.1f}">{index * step:g}</text>')
    for curve, style in zip(curves, CURVES, strict=False):
        points = " ".join(
            f"{left + (right - left) * x / most_x:.1f},{bottom - CURVE_HEIGHT * y / most_y:.1f}"
            for x, y in curve.points
        )
        parts.append(f'  <polyline class="curve {style}" points="{points}"/>')
    parts.append(f'  <text class="faint" x="{left}" y="{bottom + 18}">0</text>')
    parts.append(f'  <text class="faint end" x="{right}" y="{bottom + 18}">{most_x:.1f} {escape(x_unit)}</text>')
    y = bottom + 42
    for curve, style in zip(curves, CURVES, strict=False):
        parts.append(f'  <line class="curve {style}" x1="{left}" x2="{left + 22}" y1="{y - 4}" y2="{y - 4}"/>')
        last = f"{escape(curve.label)}: {curve.points[-1][1]:.0f} {escape(y_unit)} at the end"
        parts.append(f'  <text x="{left + 30}" y="{y}">{last}</text>')
        y += ROW
    return _card(title, note, y, parts)


def nice_step(most: float) -> float:
    """Return a round distance for about four lines of a grid below `most`."""
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)


def _bar(bar: Bar, y: int, length: float) -> list[str]:
    style = "ours" if bar.is_ours else "other"
    text_y = y + BAR - 2
    return [
        f'  <text class="end" x="{LABELS - 10}" y="{text_y}">{escape(bar.label)}</text>',
        f'  <rect class="{style}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>',
        f'  <text class="faint" x="{LABELS + length + 8:.1f}" y="{text_y}">{escape(bar.text)}</text>',
    ]


def _linear(value: float, most: float) -> float:
    return LONGEST * max(0.0, value) / most


def _logarithmic(value: float, least: float, most: float) -> float:
    return LONGEST * math.log10(max(value, least) / least) / math.log10(most / least)


def _card(title: str, note: str, height: int, parts: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">',
        f"  <title>{escape(title)}</title>",
        STYLE,
        f'  <rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'  <text class="title" x="{MARGIN}" y="30">{escape(title)}</text>',
        f'  <text class="faint" x="{MARGIN}" y="49">{escape(note)}</text>',
    )
    return "\n".join([*head, *parts, "</svg>", ""])
