"""The README keeps in step with the code and with what was measured: keys, metrics, speed, capacity, files and names.

`python tests/test_readme.py --write` writes the generated parts anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ingestor.config import keys
from ingestor.metrics import open_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def configuration() -> str:
    """Show every key with its type, default and meaning."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys():
        default = f"`{key.default}`" if key.default else ""
        rows.append(f"| `{key.path}` | {key.kind} | {default} | {key.meaning} |")
    return "\n".join(rows)


def metrics() -> str:
    """Show every metric that the registry has, with its labels and, where they are a closed set, their values."""
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    registry = open_metrics().registry
    for family in registry.collect():
        is_plain = family.type != "counter" or any(sample.name == family.name for sample in family.samples)
        name = family.name if is_plain else f"{family.name}_total"
        collector = registry._names_to_collectors.get(name, family)
        names: Sequence[str] = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", None) or ()
        labels = "; ".join(label(each, family.samples) for each in names)
        if family.type == "info":
            labels = "; ".join(f"`{each}`" for sample in family.samples for each in sample.labels)
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows)


def label(name: str, samples: Sequence[Any]) -> str:
    values = dict.fromkeys(sample.labels[name] for sample in samples if name in sample.labels)
    return f"`{name}`: {', '.join(values)}" if values else f"`{name}`"


def capacity() -> str:
    """Show what a rate asks for, and what it costs."""
    from tests.benchmarks.capacity import sheet  # noqa: PLC0415 - as a script, this file is found before its package is

    return sheet()


def speed() -> str:
    """Show what was measured last, and kept."""
    from tests.benchmarks import report  # noqa: PLC0415 - as a script, this file is found before its package is

    return report.section(report.published())


GENERATED = {"configuration": configuration, "metrics": metrics, "speed": speed, "capacity": capacity}


def part_of(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"(<!-- {name}: [^\n]* -->\n)(.*?)(<!-- end -->)", text, re.DOTALL)
    assert found is not None
    return found


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_part_is_up_to_date(name: str) -> None:
    """Whoever adds a key or a metric runs `python tests/test_readme.py --write`."""
    assert part_of(README.read_text(encoding="utf-8"), name)[2].strip() == GENERATED[name]()


def test_every_chart_shows_what_was_measured() -> None:
    """`python -m tests.benchmarks --publish` draws them, and leaves none behind that nobody shows."""
    from tests.benchmarks import report  # noqa: PLC0415 - as above

    drawn = report.charts(report.published())
    assert set(report.PICTURES.glob("bench-*.svg")) == set(drawn)
    assert {path: path.read_text(encoding="utf-8") for path in drawn} == drawn


def test_every_file_that_is_named_is_there() -> None:
    """A guarantee whose test was renamed is no guarantee."""
    text = README.read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|ingestor|config|schemas)/[\w./-]+\.\w+)`", text)
    named += re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_as_many_bugs_are_caught_as_it_says() -> None:
    """The number of mutants, each of which a test of the simulation has to catch."""
    from tests.simulation.mutants import MUTANTS  # noqa: PLC0415 - as above

    assert f"and {len(MUTANTS)} deliberate bugs" in README.read_text(encoding="utf-8")


def test_the_two_commands_are_on_the_first_screen() -> None:
    """Whoever opens it wants to see it work, and to know what a change has to pass."""
    first_screen = README.read_text(encoding="utf-8").splitlines()[:24]
    for command in ("nox -s run", "nox"):
        full = f"python3 -m venv .venv && .venv/bin/pip install -q nox uv && .venv/bin/{command}"
        assert full in first_screen


def test_every_reference_within_it_leads_somewhere() -> None:
    """A heading that was renamed takes its name with it."""
    text = README.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    asked = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert len(asked) > 5
    assert asked - headings == set()


def test_what_troubleshooting_names_exists() -> None:
    """Events of the log, metrics, keys and commands: whoever looks for one of them finds it."""
    _, _, text = README.read_text(encoding="utf-8").partition("## Troubleshooting\n")
    section, _, _ = text.partition("\n## ")
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "ingestor").rglob("*.py")))
    known = {key.path for key in keys()} | set(re.findall(r"^\| `(\w+)` \|", metrics(), re.MULTILINE))
    named = {word for word in re.findall(r"`([^`]+)`", section) if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", word)}
    assert len(named) > 40
    assert {word for word in named - known if not re.search(rf'"{word}"|\b{word}=', code)} == set()


def write() -> None:
    """Write the generated parts into the README."""
    text = README.read_text(encoding="utf-8")
    for name, make in GENERATED.items():
        found = part_of(text, name)
        text = f"{text[: found.start(2)]}{make()}\n{text[found.end(2) :]}"
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__" and "--write" in sys.argv:
    sys.path.insert(0, str(ROOT))
    write()
