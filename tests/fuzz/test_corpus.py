"""Every input that is kept, through the parser that it was found for: those to begin with, and those that broke one."""

from __future__ import annotations

import pytest

from tests.fuzz.corpus import CORPUS, kept
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_no_kept_input_breaks_a_parser(target: str) -> None:
    """A mended crash stays mended."""
    paths = list(kept(target))
    assert paths
    for path in paths:
        TARGETS[target](path.read_bytes())


def test_the_inputs_to_begin_with_are_those_of_our_examples() -> None:
    """Whoever changes an example or a schema writes them anew: `python -m tests.fuzz --seeds`."""
    for target, name, data in seeds():
        assert (CORPUS / target / name.replace(" ", "-")).read_bytes() == data
