"""What a person is told of a hole."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from ingestor.cli import main
from ingestor.core.model import Hole
from ingestor.holes import HoleBook
from ingestor.loading import read_request
from ingestor.metrics import open_metrics

TRADES = Hole("trade", 100, 1_200_000, "repair_limit", 5)
BARS = Hole("kline_1m", 29_000_000, 29_000_001, "repair_limit", 5)


@pytest.mark.parametrize(
    ("hole", "options", "asked_for"),
    [
        (TRADES, "--stream trade --from-id 100 --to-id 1200000", ("trade", None, None, 100, 1_200_000)),
        (
            BARS,
            "--stream kline --interval 1m --start 2025-02-19T21:20:00Z --end 2025-02-19T21:22:00Z",
            ("kline_1m", 29_000_000 * 60_000, 29_000_002 * 60_000, None, None),
        ),
    ],
    ids=["trades", "bars"],
)
def test_what_was_too_long_to_repair_comes_with_the_command_that_fills_it(
    hole: Hole, options: str, asked_for: tuple[object, ...]
) -> None:
    """In the log and in `/status`; the command line takes it as it is."""
    book = HoleBook(open_metrics())
    with capture_logs() as logs:
        book.note("BTCUSDT", hole)
    (shown,) = book.newest()
    assert shown["fill_with"] == logs[0]["fill_with"] == f"ingestor backfill --symbol BTCUSDT {options}"
    _, name, *arguments = shown["fill_with"].split()
    asked = main.commands[name].make_context(name, arguments).params
    for other in ("config_name", "plain", "dry_run"):
        del asked[other]
    assert read_request(**asked)[:6] == (("BTCUSDT",), *asked_for)


@pytest.mark.parametrize("reason", ["disconnected", "venue_forgot", "poison"])
def test_what_no_command_can_fill_comes_without_one(reason: str) -> None:
    """The venue cannot send it again, or has it no more, or nobody could read it."""
    book = HoleBook(open_metrics())
    with capture_logs() as logs:
        book.note("BTCUSDT", Hole("trade", 1, 2, reason, 5))  # type: ignore[arg-type]
    assert "fill_with" not in {**logs[0], **book.newest()[0]}
