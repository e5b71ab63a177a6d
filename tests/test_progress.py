"""The progress file: it holds what was acknowledged, and nothing continues what is not its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ingestor.core.claims import Intervals, Range
from ingestor.core.model import Claim, Hole, Subscription
from ingestor.core.paging import Page
from ingestor.progress import Declared, Progress, ProgressError

if TYPE_CHECKING:
    from pathlib import Path

BTC = Subscription("BTCUSDT", "trade")
BARS = Subscription("BTCUSDT", "kline_1m")


def loaded(path: Path, request: str = "this") -> Progress:
    progress = Progress(path, request)
    progress.load()
    return progress


def begun(path: Path) -> Progress:
    progress = loaded(path)
    progress.begin(BTC, Page(10, 19), ["a note"])
    progress.begin(BARS, None)
    return progress


def test_what_was_acknowledged_is_not_asked_for_again(tmp_path: Path) -> None:
    """The next run finds the range, what is left of it, and what there is to say of it."""
    path = tmp_path / "folder" / "state.json"
    progress = begun(path)
    assert progress.missing() == {BTC: Intervals([(10, 19)])}
    with progress.locked():
        progress.note_hole("BTCUSDT", Hole("trade", 12, 13, "venue_forgot", 0))
        progress.note_hole("BTCUSDT", Hole("trade", 18, 18, "venue_has_none", 0))
        progress.spans[BTC].files["day.zip"] = Range(10, 12)
        progress.acknowledge([Claim(BTC, 10, 11), Claim(BTC, 12, 13)], file_bytes=7)
    again = loaded(path)
    assert again.missing() == {BTC: Intervals([(14, 19)])}
    span = again.spans[BTC]
    assert (span.size, span.holes(), span.notes) == (10, [Declared(12, 13, "venue_forgot")], ["a note"])
    assert span.files == {"day.zip": Range(10, 12)}
    assert again.spans[BARS].size == 0
    assert again.file_bytes == 7
    assert [each.name for each in path.parent.iterdir()] == ["state.json"]


def test_a_hole_counts_once_it_is_acknowledged(tmp_path: Path) -> None:
    """Sent is not delivered: asked for again by another run, the venue may have it."""
    path = tmp_path / "state.json"
    progress = begun(path)
    progress.note_hole("BTCUSDT", Hole("trade", 12, 13, "venue_has_none", 0))
    assert progress.spans[BTC].holes() == []
    progress.acknowledge([Claim(BTC, 12, 12)])
    again = loaded(path)
    again.acknowledge([Claim(BTC, 13, 13)])
    assert again.spans[BTC].holes() == [Declared(12, 12, "venue_has_none")]


def test_another_command_does_not_continue(tmp_path: Path) -> None:
    """Two commands with one file would each take the other's ids for done."""
    path = tmp_path / "state.json"
    begun(path).save()
    with pytest.raises(ProgressError, match="belongs to another command"):
        loaded(path, "that")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "remove it to begin anew"),
        (b"{}", "remove it to begin anew"),
        (b'{"version":2', "remove it to begin anew"),
        (b'{"version":2}', "remove it to begin anew"),
        (b"\xff", "remove it to begin anew"),
        (b'{"version":2,"request":"\xff"}', "remove it to begin anew"),
        (b'{"version":2,"request":' + b"[" * 100_000, "remove it to begin anew"),
        (b'{"version":1,"request":"this","file_bytes":0,"spans":[]}', "written by another version"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    """A crash of the machine may leave an empty file; a person decides what to do."""
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(ProgressError, match=text):
        loaded(path)


def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    """The second one is told; when the first has ended, however it did, the way is free."""
    path = tmp_path / "state.json"
    busy = pytest.raises(ProgressError, match="another run of this command is at work")
    with Progress(path, "this").locked(), busy, loaded(path).locked():
        pytest.fail("both are in")
    with pytest.raises(ZeroDivisionError), Progress(path, "this").locked():
        raise ZeroDivisionError
    with Progress(path, "this").locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Before anything is fetched, with the way out of it; as is one that cannot be read."""
    (tmp_path / "file").touch()
    nowhere = Progress(tmp_path / "file" / "state.json", "this")
    with pytest.raises(ProgressError, match=r"cannot be kept there .*; choose a place with --state"), nowhere.locked():
        pytest.fail("there is no such place")
    with pytest.raises(ProgressError, match="cannot be kept there"):
        begun(tmp_path / "nowhere" / "state.json").save()
    with pytest.raises(ProgressError, match="cannot be read"):
        loaded(tmp_path)
