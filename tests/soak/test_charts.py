"""The charts of the benchmark: well-formed, the longest bar is the largest number, and nobody has to see colours."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.benchmarks.charts import Bar, Curve, Group, bar_chart, curve_chart, nice_step

SVG = "{http://www.w3.org/2000/svg}"


def lengths(picture: str) -> list[float]:
    """Return how long the bars are."""
    bars = ET.fromstring(picture).iter(f"{SVG}rect")  # noqa: S314 - our own text
    return [float(bar.attrib["width"]) for bar in bars if bar.attrib["class"] != "card"]


def test_bars_are_as_long_as_their_numbers() -> None:
    """Linear: half the number is half the bar; a heading takes nothing away."""
    bars = [Bar("a & b", 200.0, "200"), Bar("c", 100.0, "100", is_ours=False)]
    picture = bar_chart("title <1>", "note", [Group("", bars), Group("second", bars[1:])])
    first, second, third = lengths(picture)
    assert first == pytest.approx(2 * second, abs=0.2)
    assert second == third


def test_decades_are_equally_long_on_a_log_scale() -> None:
    """A hundred times as much is two equal steps."""
    bars = [Bar(f"{value}", value, f"{value}") for value in (1.0, 10.0, 100.0)]
    first, second, third = lengths(bar_chart("t", "n", [Group("", bars)], is_log=True))
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert first > 0


def test_a_curve_begins_at_zero_and_says_where_it_ends() -> None:
    """The axis is not cut off, so that flat looks flat."""
    picture = curve_chart("t", "n", [Curve("run", [(0.0, 100.0), (5.0, 120.0)])], x_unit="minutes", y_unit="MB")
    texts = [text.text for text in ET.fromstring(picture).iter(f"{SVG}text")]  # noqa: S314 - our own text
    assert "0" in texts
    assert "run: 120 MB at the end" in texts


@pytest.mark.parametrize(("most", "step"), [(120.0, 50.0), (100.0, 25.0), (0.8, 0.2), (7.0, 2.0)])
def test_a_grid_has_round_steps(most: float, step: float) -> None:
    """About four lines."""
    assert nice_step(most) == pytest.approx(step)
