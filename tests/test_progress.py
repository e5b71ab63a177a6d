"""The progress file: it holds what was acknowledged, and nothing continues what is not its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ingestor.core.claims import Intervals
from ingestor.core.model import Claim, Hole, Subscription
from ingestor.core.paging import Page
from ingestor.progress import Progress, ProgressError

if TYPE_CHECKING:
    from pathlib import Path

BTC = Subscription("BTCUSDT", "trade")
BARS = Subscription("BTCUSDT", "kline_1m")


def begun(path: Path) -> Progress:
    progress = Progress(path, "this")
    progress.begin(BTC, Page(10, 19))
    progress.begin(BARS, None)
    return progress


def test_what_was_acknowledged_is_not_asked_for_again(tmp_path: Path) -> None:
    """The next run finds the range, and what is left of it."""
    path = tmp_path / "folder" / "state.json"
    progress = begun(path)
    assert progress.missing() == {BTC: Intervals([(10, 19)])}
    progress.note_hole("BTCUSDT", Hole("trade", 12, 13, "venue_forgot", 0))
    progress.note_hole("BTCUSDT", Hole("trade", 18, 18, "venue_has_none", 0))
    progress.acknowledge([Claim(BTC, 10, 11), Claim(BTC, 12, 13)], file_bytes=7)
    again = Progress(path, "this")
    assert again.missing() == {BTC: Intervals([(14, 19)])}
    assert again.spans[BTC].size == 10
    assert again.spans[BTC].holes() == Intervals([(12, 13)])
    assert again.spans[BARS].size == 0
    assert again.file_bytes == 7
    assert [each.name for each in path.parent.iterdir()] == ["state.json"]


def test_a_hole_counts_once_it_is_acknowledged(tmp_path: Path) -> None:
    """Sent is not delivered."""
    progress = begun(tmp_path / "state.json")
    progress.note_hole("BTCUSDT", Hole("trade", 12, 13, "venue_forgot", 0))
    assert not progress.spans[BTC].holes()


def test_another_command_does_not_continue(tmp_path: Path) -> None:
    """Two commands with one file would each take the other's ids for done."""
    path = tmp_path / "state.json"
    begun(path).save()
    with pytest.raises(ProgressError, match="belongs to another command"):
        Progress(path, "that")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version":1', b"\xff"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A crash of the machine may leave an empty file; a person decides what to do."""
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(ProgressError, match="remove it to begin anew"):
        Progress(path, "this")
