"""What is said of the packages in the container: the bill, and the audit."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

from ingestor import __version__
from tests.supply.audit import judge
from tests.supply.lock import LOCK, Locked, read_lock
from tests.supply.sbom import PROJECT, bill, bill_of

TEXT = f"""\
boto3==1.44.5 \\
    --hash=sha256:{"a" * 64} \\
    --hash=sha256:{"b" * 64}
cffi==2.1.1 ; implementation_name != 'pypy' and os_name == 'nt' \\
    --hash=sha256:{"a" * 64}
quart==0.22.0 ; python_full_version < '3.13' \\
    --hash=sha256:{"b" * 64}
"""
PROJECT_TABLE = {"name": "x", "description": "y", "license": "Apache-2.0", "dependencies": ["boto3>=1", "quart[z]<2"]}


def test_the_lock_is_read_to_the_last_line() -> None:
    """Names, versions, markers and hashes; whatever is something else is an error."""
    assert read_lock(TEXT) == [
        Locked("boto3", "1.44.5", "", ("a" * 64, "b" * 64)),
        Locked("cffi", "2.1.1", "implementation_name != 'pypy' and os_name == 'nt'", ("a" * 64,)),
        Locked("quart", "0.22.0", "python_full_version < '3.13'", ("b" * 64,)),
    ]
    for line in ("--index-url x", "boto3>=1", "git+ssh://x", "    --hash=md5:00"):
        with pytest.raises(ValueError, match="line 8 is neither"):
            read_lock(f"{TEXT}{line}\n")


def test_every_package_of_the_lock_is_pinned_with_hashes() -> None:
    """And there is nothing else in it."""
    locked = read_lock(LOCK.read_text())
    assert len(locked) > 40
    assert all(each.digests for each in locked)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("click", "8.3.99"),  # `click.ParamType[int]` is a TypeError: no command starts
        ("msgspec", "0.20.99"),  # its errors are no ValueError: an answer of AWS that is cut off ends the service
    ],
)
def test_no_version_is_allowed_that_the_service_does_not_run_with(name: str, version: str) -> None:
    """The lock holds the newest ones, and whoever installs the wheel beside other things may get the oldest."""
    wanted = map(Requirement, tomllib.loads(PROJECT.read_text())["project"]["dependencies"])
    (ranges,) = [each.specifier for each in wanted if each.name == name]
    assert version not in ranges


def test_the_bill_says_what_is_in_the_image() -> None:
    """Each package with its hashes, what other platforms need as excluded, and what the program asks for itself."""
    made = json.loads(bill_of(TEXT, PROJECT_TABLE))
    assert [(each["purl"], each["scope"]) for each in made["components"]] == [
        ("pkg:pypi/boto3@1.44.5", "required"),
        ("pkg:pypi/cffi@2.1.1", "excluded"),
        ("pkg:pypi/quart@0.22.0", "required"),
    ]
    [where] = made["components"][0]["externalReferences"]
    assert [each["content"] for each in where["hashes"]] == ["a" * 64, "b" * 64]
    assert made["metadata"]["component"]["version"] == __version__
    [root] = [each for each in made["dependencies"] if each["ref"] == f"x@{__version__}"]
    assert root["dependsOn"] == ["pkg:pypi/boto3@1.44.5", "pkg:pypi/quart@0.22.0"]


def test_the_bill_of_the_real_lock_is_whole_and_valid() -> None:
    """Every line of the lock, every direct dependency, nothing twice, by the strict schema of CycloneDX 1.6."""
    text = bill()
    made = json.loads(text)
    locked = read_lock(LOCK.read_text())
    purls = [each["purl"] for each in made["components"]]
    assert sorted(purls) == sorted(f"pkg:pypi/{each.name}@{each.version}" for each in locked)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    wanted = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    [root] = [each for each in made["dependencies"] if each["ref"].startswith("ingestor@")]
    names = {re.split(r"[^a-z0-9-]", each, maxsplit=1)[0] for each in wanted}
    assert {each.partition("/")[2].partition("@")[0] for each in root["dependsOn"]} == names


def test_the_bill_depends_on_the_lock_alone() -> None:
    """Made twice it is the same; another lock gives another number; no time, no address, no path is in it."""
    text = bill()
    assert bill() == text
    assert json.loads(bill_of(TEXT, PROJECT_TABLE))["serialNumber"] != json.loads(text)["serialNumber"]
    assert "timestamp" not in text
    assert str(LOCK.parents[1]) not in text
    addresses = set(re.findall(r"https?://[^\"]+", text))
    assert addresses == {"http://cyclonedx.org/schema/bom-1.6.schema.json"}


FLAW = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": "bad"}


def report(**packages: Any) -> dict[str, Any]:
    """Make what pip-audit writes: flaws by package, or a reason why it was skipped."""
    return {
        "dependencies": [
            {"name": name, "skip_reason": found}
            if isinstance(found, str)
            else {"name": name, "version": "1.0", "vulns": found}
            for name, found in packages.items()
        ],
        "fixes": [],
    }


def test_a_known_flaw_fails_the_audit_whatever_else_is_known() -> None:
    """It is named with the version that mends it."""
    verdict = judge(report(boto3=[FLAW], quart="not found"), {"boto3", "quart"})
    assert verdict.outcome == "vulnerable"
    assert verdict.lines == ["boto3 1.0: PYSEC-1 (CVE-1), fixed in 2.0", "vulnerable: 1 known flaws"]


@pytest.mark.parametrize(
    "found",
    [
        None,
        report(boto3="Dependency not found and could not be audited", quart="likewise"),
        report(boto3=[], quart="Dependency not found and could not be audited"),
        report(boto3=[]),
        report(),
    ],
)
def test_what_was_not_looked_up_is_not_called_safe(found: dict[str, Any] | None) -> None:
    """No answer, an answer that knows nothing, an answer that lacks a package: none of them is a success."""
    verdict = judge(found, {"boto3", "quart"})
    assert verdict.outcome == "not audited"
    assert verdict.lines[-1].startswith("not audited: ")


def test_only_an_answer_about_every_package_is_clean() -> None:
    """Names are compared as the lock writes them."""
    assert judge(report(Boto3=[], quart=[]), {"boto3", "quart"}).outcome == "clean"
