"""The README keeps in step with the code: defaults, metrics, and the files it names.

`python tests/test_readme.py --write` writes the two generated parts anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ingestor.config import Config, to_yaml
from ingestor.metrics import open_metrics

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def configuration() -> str:
    """Show every key with its default."""
    return f"```yaml\n{to_yaml(Config()).strip()}\n```"


def metrics() -> str:
    """Show every metric that the registry has."""
    rows = ["| name | type | meaning |", "|---|---|---|"]
    for family in open_metrics().registry.collect():
        is_plain = family.type != "counter" or any(sample.name == family.name for sample in family.samples)
        name = family.name if is_plain else f"{family.name}_total"
        rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)


GENERATED = {"configuration": configuration, "metrics": metrics}


def part_of(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"(<!-- {name}: [^\n]* -->\n)(.*?)(<!-- end -->)", text, re.DOTALL)
    assert found is not None
    return found


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_part_is_up_to_date(name: str) -> None:
    """Whoever adds a key or a metric runs `python tests/test_readme.py --write`."""
    assert part_of(README.read_text(encoding="utf-8"), name)[2].strip() == GENERATED[name]()


def test_every_file_that_is_named_is_there() -> None:
    """A guarantee whose test was renamed is no guarantee."""
    named = re.findall(r"`((?:tests|ingestor|config|schemas)/[\w./-]+\.\w+)`", README.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def write() -> None:
    """Write the generated parts into the README."""
    text = README.read_text(encoding="utf-8")
    for name, make in GENERATED.items():
        found = part_of(text, name)
        text = f"{text[: found.start(2)]}{make()}\n{text[found.end(2) :]}"
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__" and "--write" in sys.argv:
    write()
