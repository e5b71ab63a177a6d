"""Feed every parser with broken input for a while: `nox -s fuzz -- --seconds 300`, `--target frames` for one of them.

Where atheris is installed, it searches by coverage; elsewhere hypothesis mutates what is kept. Each target runs in a
process of its own, with a bound on memory and on the time of one input. What breaks a parser is kept in the corpus,
from where every test session replays it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy

MEMORY_MB: Final = 768
INPUT_S: Final = 20
LONGEST_BYTES: Final = 16_384


def say(text: str) -> None:
    """Print a line now, also into a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the targets one after the other; 1 if any parser broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", action="append", help="only this one; may be given again")
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), help="atheris where it is installed")
    parser.add_argument("--seeds", action="store_true", help="only write the inputs to begin with")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    engine = chosen.engine or ("atheris" if importlib.util.find_spec("atheris") else "hypothesis")
    if chosen.in_process:
        search = search_by_coverage if engine == "atheris" else search_by_chance
        search(chosen.target[0], chosen.seconds)
        return 0
    from tests.fuzz.corpus import write_seeds  # noqa: PLC0415 - the parsers are not imported before they are watched
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415

    if chosen.seeds:
        say(f"{write_seeds()} files")
        return 0
    if unknown := set(chosen.target or ()) - TARGETS.keys():
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    broken = [name for name in chosen.target or TARGETS if not fuzz(name, chosen.seconds, engine)]
    say(f"{engine}: broken: {', '.join(broken)}" if broken else f"{engine}: nothing broke")
    return 1 if broken else 0


def fuzz(name: str, seconds: int, engine: str) -> bool:
    """Run one target in a process of its own; keep what breaks it."""
    from tests.fuzz.corpus import keep  # noqa: PLC0415

    say(f"{name}: {seconds} s")
    arguments = ["--target", name, "--seconds", str(seconds), "--engine", engine, "--in-process"]
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "found"
        found.mkdir()
        environment = {**os.environ, "FUZZ_SCRATCH": scratch}
        command = [sys.executable, "-m", "tests.fuzz", *arguments]
        log = Path(scratch) / "log"
        with log.open("wb") as out:
            code = subprocess.run(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False
            ).returncode
        for path in found.iterdir():
            say(f"{name}: kept {keep(name, path.read_bytes()).name}")
        lines = log.read_text(errors="replace").splitlines()
    for line in lines[-40:] if code else lines[-1:]:
        say(f"    {line}")
    return code == 0


def scratch() -> Path:
    """Return the folder of this run."""
    return Path(os.environ["FUZZ_SCRATCH"])


def search_by_coverage(name: str, seconds: int) -> NoReturn:
    """Let libFuzzer look for inputs that reach what none reached before; it ends the process."""
    atheris = importlib.import_module("atheris")  # no gate has it, so no checker may look for it
    with atheris.instrument_imports(include=["ingestor"]):
        from tests.fuzz.corpus import kept  # noqa: PLC0415
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415
    folder = scratch() / "corpus"
    folder.mkdir()
    for path in kept(name):
        (folder / path.name).write_bytes(path.read_bytes())
    flags = [
        f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={INPUT_S}", f"-max_len={LONGEST_BYTES}",
        f"-artifact_prefix={scratch() / 'found'}/", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(folder)], TARGETS[name])
    atheris.Fuzz()
    raise SystemExit(0)


def search_by_chance(name: str, seconds: int) -> None:
    """Let hypothesis mutate what is kept, until time is over or something breaks."""
    from hypothesis import HealthCheck, given, seed, settings  # noqa: PLC0415

    from tests.fuzz.corpus import kept  # noqa: PLC0415
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415

    target = TARGETS[name]
    until = time.monotonic() + seconds
    last = b""
    tried = 0

    def attempt(data: bytes) -> None:
        nonlocal last, tried
        last, tried = data, tried + 1
        target(data)

    inputs = mutations([path.read_bytes() for path in kept(name)])
    calm = settings(max_examples=500, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    try:
        number = 0
        while time.monotonic() < until:
            number += 1
            run: Callable[[], None] = seed(number)(calm(given(inputs)(attempt)))
            run()
    except BaseException:
        (scratch() / "found" / "broken").write_bytes(last)
        raise
    say(f"{tried} inputs")


def mutations(known: list[bytes]) -> SearchStrategy[bytes]:
    """Return bytes near those that are known, and any others."""
    from hypothesis import strategies as st  # noqa: PLC0415

    places = st.integers(0, LONGEST_BYTES)
    changes = st.lists(st.tuples(places, places, st.binary(max_size=12), st.integers(0, 3)), max_size=4)

    def changed(data: bytes, steps: list[tuple[int, int, bytes, int]]) -> bytes:
        for begin, end, other, times in steps:
            first, last = sorted((begin % (len(data) + 1), end % (len(data) + 1)))
            data = (data[:first] + other + data[first:last] * times + data[last:])[:LONGEST_BYTES]
        return data

    return st.builds(changed, st.sampled_from(known), changes) | st.binary(max_size=300)


if __name__ == "__main__":
    sys.exit(main())
