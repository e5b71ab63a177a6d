"""Histograms out of a scrape of `/metrics`: what was counted between two moments, and its quantiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from tests.benchmarks.children import fetch

if TYPE_CHECKING:
    from collections.abc import Mapping

Labels: TypeAlias = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """All samples of one moment."""

    samples: Mapping[tuple[str, Labels], float]

    def value(self, name: str) -> float:
        """Return a metric, summed over its labels."""
        return sum(value for (found, _), value in self.samples.items() if found == name)

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Return how many observations a histogram had up to each bound."""
        wanted = frozenset(labels.items())
        bounds = {
            float(dict(found)["le"]): value
            for (sample, found), value in self.samples.items()
            if sample == f"{name}_bucket" and wanted <= found
        }
        return dict(sorted(bounds.items()))


def scrape(port: int) -> Scrape:
    """Ask a service for its metrics."""
    families = text_string_to_metric_families(fetch(port, "/metrics"))
    samples = [sample for family in families for sample in family.samples]
    return Scrape({(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples})


def observed_between(before: Scrape, after: Scrape, name: str, **labels: str) -> dict[float, float]:
    """Return how many observations fell into each bucket meanwhile, by its upper bound."""
    earlier = before.buckets(name, **labels)
    observed: dict[float, float] = {}
    below = 0.0
    for bound, total in after.buckets(name, **labels).items():
        since = total - earlier.get(bound, 0.0)
        observed[bound], below = since - below, since
    return observed


def quantile(observed: Mapping[float, float], share: float) -> float:
    """Return the upper bound of the bucket that holds the quantile: it was not slower than that. NaN for nothing."""
    wanted, seen = share * sum(observed.values()), 0.0
    for bound, count in observed.items():
        seen += count
        if count and seen >= wanted:
            return bound
    return math.nan
