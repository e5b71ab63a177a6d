"""A trend tells a leak from noise."""

from __future__ import annotations

from random import Random

import pytest

from tests.benchmarks.trend import Look, keeps_growing, trend_of

SECONDS = 600


def looks_of(growth: float, *, noise: float = 3.0, steps: bool = False) -> list[Look]:
    """Return memory around 120 MB that grows by so much over all, steadily or in one step."""
    random = Random(4)
    share = (lambda at_s: float(at_s > SECONDS / 2 - 60)) if steps else (lambda at_s: at_s / SECONDS)
    return [Look(at_s, 120 + growth * share(at_s) + random.uniform(-noise, noise)) for at_s in range(SECONDS)]


@pytest.mark.parametrize("growth", [0.0, -5.0, 1.0])
def test_what_only_moves_is_flat(growth: float) -> None:
    """Six megabytes up and down, one more in the end, or fewer."""
    assert not keeps_growing(looks_of(growth))


@pytest.mark.parametrize("growth", [6.0, 30.0])
def test_what_grows_steadily_is_not(growth: float) -> None:
    """As much in ten minutes as there is noise shows, and is told as what it is."""
    trend = trend_of(looks_of(growth))
    assert keeps_growing(looks_of(growth))
    assert trend.growth == pytest.approx(growth, abs=0.8)
    assert trend.per_hour == pytest.approx(6 * growth, abs=5)


def test_one_step_is_no_trend() -> None:
    """A pool that is filled once and stays is no leak."""
    assert not keeps_growing(looks_of(20.0, steps=True))


def test_too_few_looks_tell_nothing() -> None:
    """No verdict is better than one by chance."""
    with pytest.raises(ValueError, match="too few"):
        trend_of(looks_of(0.0)[:20])
