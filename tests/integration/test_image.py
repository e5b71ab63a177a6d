"""The container image without a container engine: its steps into an empty folder, and the service run as it would be.

The Dockerfile is read, and every COPY and RUN is executed with the absolute paths moved below an empty folder. The
service then runs as the image says: a user that is only a number, no home, nothing writable but its volume.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingestor import __version__
from ingestor.probe import ask
from tests.integration.engines import CREDENTIALS, client_of, create_stream, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_kinesis import KinesisClient

REPOSITORY = Path(__file__).parents[2]
GRACE_S = 25.0
PATHS = ("/opt/", "/src", "/var/lib/")  # what the steps write to; everything else they name belongs to the base image

pytestmark = pytest.mark.integration


@dataclass
class Image:
    """An image under `root`: what the Dockerfile left there, and what it says about running it."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)
    user: int = 0
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    probe: list[str] = field(default_factory=list)
    stages: int = 0
    workdir: str = "/"

    def moved(self, text: str) -> str:
        """Put the absolute paths in `text` below the root."""
        return re.sub(rf"(?<![\w.])({'|'.join(PATHS)})", lambda found: f"{self.root}{found[1]}", text)

    def start(self, arguments: list[str], **environ: str) -> subprocess.Popen[str]:
        """Run a command as the image would: its user and environment, no home, no temporary folder."""
        inside = {name: self.moved(value).replace("$PATH", os.environ["PATH"]) for name, value in self.environ.items()}
        return subprocess.Popen(
            arguments,
            cwd=self.moved(self.workdir),
            env={**inside, "HOME": "/nonexistent", "TMPDIR": "/nonexistent", **environ},
            user=self.user if os.geteuid() == 0 else None,
            group=self.user if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile in order, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", dockerfile)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def build(root: Path, python: Path) -> Image:
    """Execute the Dockerfile; `python` is the interpreter of its base image."""
    base = root / "base"
    base.mkdir()
    for name in ("python", "python3"):
        (base / name).symlink_to(python)
    image = Image(root)
    for instruction, rest in instructions((REPOSITORY / "Dockerfile").read_text()):
        match instruction:
            case "FROM":
                image.stages += 1
                image.workdir, image.environ = "/", {"PATH": f"{base}:{os.environ['PATH']}"}
            case "WORKDIR":
                image.workdir = rest
                Path(image.moved(rest)).mkdir(parents=True, exist_ok=True)
            case "ENV":
                image.environ |= dict(pair.split("=", 1) for pair in rest.split())
            case "COPY" if rest.startswith("--from="):
                source, target = rest.split()[1:]
                assert source == target  # then it is where it belongs already
            case "COPY":
                *sources, target = rest.split()
                copy(sources, Path(image.moved(image.workdir)) / target)
            case "RUN":
                run_step(image, rest)
            case _:
                note(image, instruction, rest)
    return image


def run_step(image: Image, line: str) -> None:
    """Execute what RUN says."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "COVERAGE_"))}
    done = subprocess.run(
        ["/bin/sh", "-c", image.moved(line)],
        cwd=image.moved(image.workdir) if image.workdir != "/" else image.root,
        env=outside | image.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def note(image: Image, instruction: str, rest: str) -> None:
    """Remember what the image says about running it."""
    match instruction:
        case "USER":
            image.user = int(rest.split(":", maxsplit=1)[0])
        case "ENTRYPOINT":
            image.entry = json.loads(rest)
        case "CMD":
            image.command = json.loads(rest)
        case "HEALTHCHECK":
            image.probe = json.loads(rest.partition(" CMD ")[2])
        case "EXPOSE" | "VOLUME" | "STOPSIGNAL":
            pass
        case _:
            pytest.fail(f"the Dockerfile says {instruction}, which this test does not know")


def copy(sources: list[str], target: Path) -> None:
    """Do what COPY does: several files into a folder, the content of one folder into a folder."""
    for source in sources:
        place = REPOSITORY / source
        if place.is_dir():
            shutil.copytree(place, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(place, target)


def open_to_all(path: Path) -> bool:
    """Tell whether every user can reach `path`."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def interpreter(root: Path) -> Path:
    """Return a Python that any user may run: this one, or a copy where this one lies in somebody's home."""
    found = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    if open_to_all(found):
        return found
    unneeded = shutil.ignore_patterns("test", "site-packages", "__pycache__", "idlelib", "tkinter", "config-3*", "*.a")
    copied = root / "python"
    shutil.copytree(sys.base_prefix, copied, ignore=unneeded, symlinks=True)
    return copied / "bin" / found.name


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Build the image; its folder is open to all, as a root file system is."""
    with tempfile.TemporaryDirectory(prefix="ingestor-image-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        yield build(root, interpreter(root))


def test_the_last_stage_runs_as_a_number_with_an_exec_form_entry_point(image: Image) -> None:
    """Nobody to look up, and no shell between the orchestrator's signal and the service."""
    assert image.stages == 2
    assert image.user == 65532
    assert image.entry == ["ingestor"]
    assert image.command == ["run", "--config", "production"]
    assert image.probe == ["ingestor", "health", "--started"]


def test_what_runs_holds_neither_installer_nor_compiler_nor_development_tool(image: Image) -> None:
    """The final stage is the environment and nothing beside it."""
    names = {path.name.lower() for path in (image.root / "opt/ingestor").glob("lib/python*/site-packages/*")}
    for unwanted in ("pip", "setuptools", "hatchling", "pytest", "moto", "mypy"):
        assert unwanted not in names
    assert "ingestor" in names


def test_the_installed_versions_are_the_locked_ones(image: Image) -> None:
    """Every distribution in the environment stands in the lock with the same version, and nothing else is there."""
    text = (REPOSITORY / "config/requirements.txt").read_text()
    lock = set(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", text, re.MULTILINE))  # a version for each range of Pythons
    found = {}
    for folder in (image.root / "opt/ingestor").glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        found[name.replace("_", "-").replace(".", "-").lower()] = version
    assert found.pop("ingestor") == __version__
    assert set(found.items()) - lock == set()


def test_the_service_runs_as_the_image_would_and_stops_on_sigterm_in_time(image: Image, moto_url: str) -> None:
    """From nothing to ready with data in Kinesis, the probe agrees, and SIGTERM is a clean exit within the grace."""
    kinesis = client_of(moto_url)
    for name in ("image-data", "image-beats"):
        create_stream(kinesis, name, shards=1)
    port = free_port()
    venue = image.start(["ingestor", "simulate", "--symbol", "BTCUSDT"])
    try:
        assert venue.stdout is not None
        addresses = dict(venue.stdout.readline().strip().split(": ", 1) for _ in range(2))
        settings = {
            **CREDENTIALS,
            "INGESTOR__BINANCE__WEBSOCKET_URL": addresses["websocket_url"],
            "INGESTOR__BINANCE__REST_URL": addresses["rest_url"],
            "INGESTOR__BINANCE__SYMBOLS": "BTCUSDT",
            "INGESTOR__KINESIS__ENDPOINT_URL": moto_url,
            "INGESTOR__KINESIS__STREAM_NAME": "image-data",
            "INGESTOR__KINESIS__AGGREGATION": "none",
            "INGESTOR__HEARTBEAT__STREAM_NAME": "image-beats",
            "INGESTOR__METRICS__CLOUDWATCH__MODE": "none",
            "INGESTOR__DEAD_LETTER__DIRECTORY": image.moved("/var/lib/ingestor/dead-letter"),
            "INGESTOR__SPOOL__DIRECTORY": image.moved("/var/lib/ingestor/spool"),
            "INGESTOR__HEALTH__PORT": str(port),
        }
        service = image.start([*image.entry, *image.command], **settings)
        try:
            wait_ready(port, service)
            assert any(Path(image.moved("/var/lib/ingestor/spool")).iterdir())
            probe = image.start(image.probe, INGESTOR__HEALTH__PORT=str(port))
            assert probe.communicate(timeout=20)[0].startswith("200 True")
            assert probe.returncode == 0
            began = time.monotonic()
            service.send_signal(signal.SIGTERM)
            _, log = service.communicate(timeout=GRACE_S)
            assert service.returncode == 0, log
            assert time.monotonic() - began < GRACE_S
            assert "Traceback" not in log
        finally:
            service.kill()
            service.communicate()
    finally:
        venue.terminate()
        assert venue.wait(timeout=20) == 0
        venue.communicate()
    assert records_in(kinesis, "image-data") > 0
    assert records_in(kinesis, "image-beats") > 0


def wait_ready(port: int, service: subprocess.Popen[str]) -> None:
    """Wait until the service says that it is ready; fail with its log when it ends or takes too long."""
    give_up_s = time.monotonic() + 60
    text = ""
    while time.monotonic() < give_up_s and service.poll() is None:
        is_ready, text = ask("127.0.0.1", port, "/ready", 2.0)
        if is_ready:
            return
        time.sleep(0.1)
    service.kill()
    pytest.fail(f"not ready: {text}\n{service.communicate()[1]}")


def records_in(kinesis: KinesisClient, stream: str) -> int:
    """Count the records of a stream of one shard."""
    (shard,) = kinesis.list_shards(StreamName=stream)["Shards"]
    place = kinesis.get_shard_iterator(StreamName=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON")
    return len(kinesis.get_records(ShardIterator=place["ShardIterator"])["Records"])
