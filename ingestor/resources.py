"""Finds the files that belong to the program: inside an installed wheel, or in the repository that it runs from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def _root() -> Path:
    packaged = Path(str(resources.files("ingestor"))) / "_packaged"
    return packaged if packaged.is_dir() else packaged.parents[1]


def read_schema(name: str) -> str:
    """Return the text of `schemas/avro/<name>.avsc`, such as `market_data` or `heartbeat`."""
    return (_root() / "schemas" / "avro" / f"{name}.avsc").read_text(encoding="utf-8")


def released_schemas(name: str) -> dict[str, str]:
    """Return the text of every released version of schema `name`, by version: `{"1": ...}`."""
    folder = _root() / "schemas" / "avro" / "released"
    files = sorted(folder.glob(f"{name}.v*.avsc"))
    return {
        path.name.removeprefix(f"{name}.v").removesuffix(".avsc"): path.read_text(encoding="utf-8") for path in files
    }


def config_path(name: str) -> Path:
    """Return where the configuration file `name` is that comes with the program, such as `local.yaml`."""
    return _root() / "config" / name
