"""Whether a number that was looked at again and again grows, or only moves.

Looks that follow each other are not independent (memory goes up in steps and stays a while), so they are put into
blocks, and a straight line is laid through the medians of these. What is called noise is how far that line may be off.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCKS: Final = 12
SIGMAS: Final = 3.0
LEAST_SHARE: Final = 0.01  # growth over all of the time that is no growth, of the level: a page here and there


class Look(NamedTuple):
    """A number at a time."""

    at_s: float
    value: float


class Trend(NamedTuple):
    """A line through the looks: its height in the middle, how much it rises from first to last, and the noise of that.

    `hours` is how long that took.
    """

    level: float
    growth: float
    noise: float
    hours: float

    @property
    def is_flat(self) -> bool:
        """Whether the rise is within the noise, or nothing worth the name."""
        return self.growth <= max(self.noise, LEAST_SHARE * self.level)

    @property
    def per_hour(self) -> float:
        """The rise in an hour, if it goes on so."""
        return self.growth / self.hours if self.hours else 0.0


def trend_of(looks: Sequence[Look]) -> Trend:
    """Lay a line through `looks`, at least two for each block."""
    if len(looks) < 2 * BLOCKS:
        raise ValueError(f"{len(looks)} looks are too few for {BLOCKS} blocks")
    bounds = [len(looks) * index // BLOCKS for index in range(BLOCKS + 1)]
    blocks = [looks[first:end] for first, end in pairwise(bounds)]
    times = [fmean(look.at_s for look in block) for block in blocks]
    values = [median(look.value for look in block) for block in blocks]
    mean_s, level = fmean(times), fmean(values)
    spread = sum((at_s - mean_s) ** 2 for at_s in times)
    slope = sum((at_s - mean_s) * (value - level) for at_s, value in zip(times, values, strict=True)) / spread
    left = sum((value - level - slope * (at_s - mean_s)) ** 2 for at_s, value in zip(times, values, strict=True))
    error = math.sqrt(left / (BLOCKS - 2) / spread)
    span_s = looks[-1].at_s - looks[0].at_s
    return Trend(level, slope * span_s, SIGMAS * error * span_s, span_s / 3600)


def keeps_growing(looks: Sequence[Look]) -> bool:
    """Whether it rises over all of the time, and also over the second half: what grew once and stays is no leak.

    A half with too few looks tells nothing, and then the whole decides.
    """
    half = looks[len(looks) // 2 :]
    return not trend_of(looks).is_flat and (len(half) < 2 * BLOCKS or not trend_of(half).is_flat)
