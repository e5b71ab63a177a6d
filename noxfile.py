"""The one table of contents for checks: `nox` runs what has to pass, `nox -l` lists the rest."""

from __future__ import annotations

from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests", "integration"]
nox.options.error_on_missing_interpreters = True
PYTHON = "3.11"
# Several processes at once; the tests that take longest come in the middle, so whoever is done takes from the others.
SPREAD = ("--dist", "worksteal", "-n")
SOURCES = ("ingestor", "tests", "noxfile.py")
# Ruff has the other rules of flake8-async. ASYNC900 and ASYNC913 are off unless they are named.
TRIO_RULES = "--enable=ASYNC1,ASYNC2,ASYNC4,ASYNC900,ASYNC913"
# 114 wants every startable function listed by name; 124 forbids `async` where Quart or a protocol wants it and nothing
# is awaited; 127 recommends another HTTP library.
NOT_TRIO_RULES = "--disable=ASYNC114,ASYNC124,ASYNC127"

# Kubernetes' and Compose's own schemas, offline. Many files, so only the session that reads them has them.
SCHEMAS = ("check-jsonschema>=0.33", "kubernetes-validate>=1.33")


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Format, style, Trio's own rules, the direction of knowledge, spelling, dependencies, deployment files."""
    session.install("-e", ".[dev]", *SCHEMAS)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    files = [str(path) for path in sorted(Path("ingestor").rglob("*.py")) + sorted(Path("tests").rglob("*.py"))]
    session.run("flake8-async", TRIO_RULES, NOT_TRIO_RULES, *files, silent=True)
    session.run("lint-imports", "--no-cache", silent=True)
    session.run("codespell")
    session.run("deptry", ".", silent=True)
    manifests = [str(path) for path in sorted(Path("config/kubernetes").glob("*.yaml"))]
    session.run("kubernetes-validate", "--strict", "--quiet", *manifests)
    session.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "config/compose.yaml", silent=True)


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """Two type checkers: mypy is strict, pyright sees what mypy does not."""
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("pyright")


@nox.session(python=PYTHON)
def tests(session: nox.Session) -> None:
    """Everything that takes milliseconds, under branch coverage, a process for each core."""
    session.install("-e", ".[dev]")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-m", "not integration", *SPREAD, "auto", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=PYTHON)
def integration(session: nox.Session) -> None:
    """Run the service against real engines on loopback: moto's server, and kinesis-local where Node.js is."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "integration and not alerts", *SPREAD, "2", *session.posargs)


@nox.session(python=PYTHON)
def alerts(session: nox.Session) -> None:
    """Have a real Prometheus scrape real services until every alert has fired; `integration` does a part of it."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "alerts", *session.posargs)


@nox.session(python=PYTHON)
def simulate(session: nox.Session) -> None:
    """Put the whole line through seeded faults on virtual time: `nox -s simulate -- --seeds 1000 --minutes 30`."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "tests.simulation", *session.posargs)


@nox.session(python=PYTHON)
def soak(session: nox.Session) -> None:
    """Run the service for long under load and chaos, then stop it at bad moments: `nox -s soak -- --minutes 30`."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session(python=PYTHON)
def run(session: nox.Session) -> None:
    """Show the whole service on this machine: `nox -s run -- --seconds 60`."""
    session.install("-e", ".[local]")
    session.run("ingestor", "demo", *session.posargs)


@nox.session(python=PYTHON)
def bench(session: nox.Session) -> None:
    """Measure, each number beside the one it is compared with: `nox -s bench -- --only peers`."""
    session.install("-e", ".[dev]", "picows", "uvloop", "websockets")
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


@nox.session(python=PYTHON)
def fuzz(session: nox.Session) -> None:
    """Feed every parser with broken input, each for so long: `nox -s fuzz -- --seconds 300 --target frames`."""
    session.install("-e", ".[dev]")
    try:
        session.install("atheris")
    except CommandFailed:
        session.log("atheris cannot be installed here: hypothesis searches instead")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session(python=PYTHON)
def audit(session: nox.Session) -> None:
    """Hold the lock against known vulnerabilities; skipped, and said so, when nobody could be asked about all of it."""
    try:
        session.install("pip-audit")
    except CommandFailed:
        session.skip("not audited: pip-audit cannot be installed here")
    report = Path(session.create_tmp()) / "audit.json"
    report.unlink(missing_ok=True)
    session.run(
        *("pip-audit", "--requirement", "config/requirements.txt", "--require-hashes", "--disable-pip"),
        *("--format", "json", "--output", str(report), "--progress-spinner", "off", *session.posargs),
        success_codes=[0, 1],
        silent=True,
    )
    verdict = session.run("python", "-m", "tests.supply.audit", str(report), success_codes=[0, 3], silent=True)
    session.log(verdict)
    *_, outcome = str(verdict).strip().splitlines()
    if outcome.startswith("not audited"):
        session.skip(outcome)


@nox.session(python=PYTHON)
def sbom(session: nox.Session) -> None:
    """Write the bill of materials of the container, made from the lock: `nox -s sbom -- dist/ingestor.cdx.json`."""
    session.install("-e", ".", "cyclonedx-python-lib>=11", "packaging")
    session.run("python", "-m", "tests.supply.sbom", *(session.posargs or ["dist/ingestor.cdx.json"]))


@nox.session(python=PYTHON)
def lock(session: nox.Session) -> None:
    """Write anew what the container installs and what builds it: with hashes, and without index addresses."""
    session.install("uv")
    locking = (
        *("uv", "pip", "compile", "--quiet", "--upgrade"),
        *("--universal", "--python-version", PYTHON, "--generate-hashes"),
        *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
    )
    session.run(*locking, "--output-file", "config/requirements.txt", "pyproject.toml")
    session.run(*locking, "--output-file", "config/requirements-build.txt", "config/requirements-build.in")
