"""Where the program finds its own files."""

from __future__ import annotations

import importlib.resources
import json
from typing import TYPE_CHECKING

import pytest

from ingestor import resources

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["market_data", "heartbeat"])
def test_schemas_are_found_in_the_repository(name: str) -> None:
    """A checkout needs no installation step."""
    assert json.loads(resources.read_schema(name))["namespace"] == "ingestor.v1"


@pytest.mark.parametrize("name", ["market_data", "heartbeat"])
def test_released_versions_are_found_by_their_version(name: str) -> None:
    """Version 1 is there and is a schema; names of other schemas are not mixed in."""
    released = resources.released_schemas(name)
    assert "1" in released
    assert len({json.loads(text)["name"] for text in released.values()}) == 1


def test_configurations_are_found_beside_the_schemas() -> None:
    """The folder `config` is where the repository has it."""
    assert resources.config_path("local.yaml").parent.name == "config"


def test_an_installed_wheel_carries_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With `_packaged` inside the package, nothing outside of it is asked."""
    schemas = tmp_path / "ingestor" / "_packaged" / "schemas" / "avro"
    schemas.mkdir(parents=True)
    (schemas / "market_data.avsc").write_text('"packaged"')
    monkeypatch.setattr(importlib.resources, "files", lambda _package: tmp_path / "ingestor")
    assert resources.read_schema("market_data") == '"packaged"'
    assert resources.config_path("local.yaml") == tmp_path / "ingestor" / "_packaged" / "config" / "local.yaml"


def test_a_schema_that_does_not_exist_is_an_error() -> None:
    """No default hides a broken installation."""
    with pytest.raises(FileNotFoundError, match="nonsense"):
        resources.read_schema("nonsense")
