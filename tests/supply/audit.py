"""What a run of pip-audit proves: vulnerable, clean, or nothing at all because nobody could be asked.

Offline, pip-audit fails; behind a mirror that has packages and no advisories, it skips each of them and calls that
"no known vulnerabilities". Neither is a success.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from tests.supply.lock import LOCK, is_in_image, read_lock

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

Outcome: TypeAlias = Literal["clean", "vulnerable", "not audited"]
EXIT_CODES: Final[dict[Outcome, int]] = {"clean": 0, "vulnerable": 1, "not audited": 3}


class Verdict(NamedTuple):
    """What is known, and the words for it; the last line begins with the outcome."""

    outcome: Outcome
    lines: Sequence[str]


def judge(report: dict[str, Any] | None, locked: Collection[str]) -> Verdict:
    """Judge the JSON that pip-audit wrote, None for nothing, about the packages that should have been looked up."""
    if report is None:
        return Verdict("not audited", ["not audited: the advisory service could not be reached, nothing is known"])
    looked_up = {each["name"].lower(): each for each in report["dependencies"] if "skip_reason" not in each}
    found = [
        f"{name} {each['version']}: {flaw['id']} ({', '.join(flaw.get('aliases', []))}), fixed in "
        f"{', '.join(flaw.get('fix_versions', [])) or 'no version'}"
        for name, each in sorted(looked_up.items())
        for flaw in each["vulns"]
    ]
    missing = sorted(set(locked) - looked_up.keys())
    if found:
        return Verdict("vulnerable", [*found, f"vulnerable: {len(found)} known flaws"])
    if missing:
        text = f"not audited: the advisory service knew nothing of {len(missing)} of {len(locked)} packages"
        return Verdict("not audited", [f"{', '.join(missing)}", text])
    return Verdict("clean", [f"clean: {len(looked_up)} packages, no known vulnerabilities"])


def main() -> int:
    """Judge the report whose path is given."""
    path = Path(sys.argv[1])
    report = json.loads(path.read_text()) if path.exists() and path.stat().st_size else None
    wanted = {each.name for each in read_lock(LOCK.read_text()) if is_in_image(each)}
    verdict = judge(report, wanted)
    sys.stdout.write("".join(f"{line}\n" for line in verdict.lines))
    return EXIT_CODES[verdict.outcome]


if __name__ == "__main__":
    sys.exit(main())
