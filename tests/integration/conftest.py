"""The engines live as long as the session: starting one costs more than most tests, which make streams of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.engines import ENGINES, open_engine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """Return where moto's server listens."""
    with open_engine("moto") as url:
        yield url


@pytest.fixture(scope="session")
def kinesis_local_url() -> Iterator[str]:
    """Return where kinesis-local listens; it can reshard: moto goes on writing to closed shards (facts/aws.md §4)."""
    with open_engine("kinesis-local") as url:
        yield url


@pytest.fixture(scope="session", params=ENGINES)
def engine_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return where an engine listens; the test runs once with each."""
    with open_engine(request.param) as url:
        yield url
