"""Quantiles out of two scrapes."""

from __future__ import annotations

import math

from tests.benchmarks.scrape import Scrape, observed_between, quantile


def scrape_of(*counts: float) -> Scrape:
    """Return a histogram with so many observations up to 1, 2 and without bound."""
    bounds = ("1.0", "2.0", "+Inf")
    samples = {
        ("h_bucket", frozenset({("le", bound), ("stage", "put")})): count
        for bound, count in zip(bounds, counts, strict=True)
    }
    return Scrape(samples | {("h_bucket", frozenset({("le", "1.0"), ("stage", "decoded")})): 99.0})


def test_only_what_came_between_counts_and_a_quantile_is_an_upper_bound() -> None:
    """Ninety fast ones, nine slower, one without bound, after a hundred that do not count."""
    observed = observed_between(scrape_of(0, 100, 100), scrape_of(90, 199, 200), "h", stage="put")
    assert observed == {1.0: 90, 2.0: 9, math.inf: 1}
    assert [quantile(observed, share) for share in (0.5, 0.9, 0.99, 0.999)] == [1.0, 1.0, 2.0, math.inf]


def test_nothing_has_no_quantile() -> None:
    """No number is told where nothing was observed."""
    assert math.isnan(quantile({}, 0.5))
