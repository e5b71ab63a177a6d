"""The wheel, built as a release is, installed where nothing else is, and run from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from ingestor import __version__

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with nothing of this repository or its settings in sight."""
    unwanted = ("INGESTOR_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COVERAGE_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=REPOSITORY)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it, and what it says it needs, into an empty environment; returns the folder of its commands."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(environment, with_pip=True)
    commands = environment / "bin"
    done = run(commands / "python", "-m", "pip", "install", "--quiet", wheel, cwd=environment)
    assert done.returncode == 0, done.stderr
    return commands


def test_the_wheel_holds_what_the_program_reads(wheel: Path) -> None:
    """Schemas, configurations, the page and the licence are in it; tests are not."""
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "ingestor/_packaged/schemas/avro/market_data.avsc",
        "ingestor/_packaged/schemas/avro/heartbeat.avsc",
        "ingestor/_packaged/config/local.yaml",
        "ingestor/_packaged/config/production.yaml",
        "ingestor/page/index.html",
        "ingestor/py.typed",
        f"ingestor-{__version__}.dist-info/licenses/LICENSE",
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith("tests/") or name.endswith(".pyc")]


def test_an_installed_program_works_from_any_folder(installed: Path, tmp_path: Path) -> None:
    """The command is there, checks a packaged configuration, and knows its version."""
    version = run(installed / "ingestor", "--version", cwd=tmp_path)
    assert version.stdout.strip().endswith(__version__)
    checked = run(installed / "ingestor", "check", "--config", "production", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "production: valid\n")
    helped = run(installed / "python", "-m", "ingestor", "--help", cwd=tmp_path)
    assert "audit" in helped.stdout


def test_every_module_of_the_service_imports_with_the_declared_dependencies_alone(
    installed: Path, tmp_path: Path
) -> None:
    """Nothing of the development environment is needed, and the schemas are found."""
    code = """
import importlib, pkgutil, ingestor
for module in pkgutil.walk_packages(ingestor.__path__, "ingestor."):
    if module.name != "ingestor.__main__":
        importlib.import_module(module.name)
from ingestor.health_check import read_page_file
from ingestor.serializer import Serializer
Serializer()
print(len(read_page_file("index.html")) > 0)
"""
    done = run(installed / "python", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_the_demo_says_what_it_lacks(installed: Path, tmp_path: Path) -> None:
    """The embedded Kinesis is an extra, and without it the message says how to get it."""
    done = run(installed / "ingestor", "demo", "--seconds", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert 'pip install "ingestor[local]"' in done.stderr + done.stdout
