"""Run many seeds: `python -m tests.simulation --seeds 1000 --minutes 30`, or one again: `--seed 17`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

import msgspec

from tests.simulation.line import play
from tests.simulation.plan import draw
from tests.simulation.verdict import judge


def say(text: str) -> None:
    """Print a line now, also into a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Print a line a seed; 1 if any promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=60, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this seed alone, with its plan")
    parser.add_argument("--minutes", type=float, default=5.0, help="simulated minutes a seed")
    parser.add_argument("--digest", action="store_true", help="print nothing but what was stored, as a number")
    chosen = parser.parse_args()
    if chosen.digest:
        say(play(draw(chosen.seed, chosen.minutes)).journal.digest)
        return 0
    seeds = range(chosen.first, chosen.first + chosen.seeds) if chosen.seed is None else [chosen.seed]
    failed = []
    for seed in seeds:
        began = time.process_time()
        plan = draw(seed, chosen.minutes)
        if chosen.seed is not None:
            say(msgspec.json.format(msgspec.json.encode(plan)).decode())
        try:
            simulation = play(plan)
            problems = judge(simulation)
            size = (
                f"{len(simulation.lives)} lives, {len(simulation.journal.stored)} records, {simulation.journal.digest}"
            )
        except Exception:  # noqa: BLE001 - a broken seed is one of many
            problems, size = [traceback.format_exc()], "crashed"
        say(f"seed {seed}: {'FAILED' if problems else 'good'} ({size}, {time.process_time() - began:.1f} s)")
        for problem in problems[:20]:
            say(f"    {problem}")
        failed += [seed] if problems else []
    if failed:
        say(f"failed: {failed}; again: python -m tests.simulation --minutes {chosen.minutes} --seed {failed[0]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
