"""Looks at a process from outside, again and again: memory, file descriptors, threads, and the tasks it tells of."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.benchmarks.trend import Look, Trend, keeps_growing, trend_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.integration.service import Running

LOOK_S: Final = 1.0
SETTLING: Final = 0.25  # the share of a run after which everything has to have found its size
SLACK: Final = 2  # a connection that is kept or not; what leaks with every fault is many more in the end
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass
class Watch:
    """What was seen of one process; `counts` are open files, threads and tasks."""

    memory_mb: list[Look] = field(default_factory=list[Look])
    cpu_s: list[Look] = field(default_factory=list[Look])
    counts: dict[str, list[Look]] = field(default_factory=lambda: {"open files": [], "threads": [], "tasks": []})

    async def run(self, service: Running) -> None:
        """Look until cancelled; a service that is slow to answer is looked at all the same."""
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask, service, began_s)
            while True:
                self._look(service.pid, trio.current_time() - began_s)
                await trio.sleep(LOOK_S)

    async def _ask(self, service: Running, began_s: float) -> None:
        while True:
            tasks = values_of((await service.get("/metrics")).text)["event_loop_tasks"]
            self.counts["tasks"].append(Look(trio.current_time() - began_s, tasks))
            await trio.sleep(LOOK_S)

    def _look(self, pid: int, at_s: float) -> None:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()  # from field 3 of proc(5) on
        self.memory_mb.append(Look(at_s, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6))
        self.cpu_s.append(Look(at_s, (int(fields[11]) + int(fields[12])) / TICKS_PER_S))
        self.counts["threads"].append(Look(at_s, int(fields[17])))
        self.counts["open files"].append(Look(at_s, len(list(Path(f"/proc/{pid}/fd").iterdir()))))

    def memory(self) -> Trend:
        """Return the trend of the memory, once it has settled."""
        return trend_of(settled(self.memory_mb))

    def memory_over_time(self, parts: int = 20) -> list[float]:
        """Return what was usual in each part of the time, from the beginning on."""
        looks = self.memory_mb
        bounds = [len(looks) * index // parts for index in range(parts + 1)]
        return [usual(looks[first:end]) for first, end in pairwise(bounds) if first < end]

    def memory_grows(self) -> bool:
        """Whether it goes on growing."""
        return keeps_growing(settled(self.memory_mb))

    def leaks(self) -> dict[str, tuple[float, float]]:
        """Return, of each count that grew, what was usual early and late."""
        ends = {name: early_and_late(settled(looks)) for name, looks in self.counts.items()}
        return {name: (early, late) for name, (early, late) in ends.items() if late > early + SLACK}


def settled(looks: Sequence[Look]) -> Sequence[Look]:
    """Leave out the beginning."""
    return [look for look in looks if look.at_s >= looks[-1].at_s * SETTLING]


def early_and_late(looks: Sequence[Look]) -> tuple[float, float]:
    """Return what was usual in the first and in the last third: trouble comes and goes, a leak adds to all after it."""
    third = max(1, len(looks) // 3)
    return usual(looks[:third]), usual(looks[-third:])


def usual(looks: Sequence[Look]) -> float:
    """Return the median."""
    return median(look.value for look in looks)


def values_of(text: str) -> dict[str, float]:
    """Return every metric of a scrape by its sample's name, summed over labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values
