"""The backfill command from its options to its exit code, and what a person sees on the way."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from ingestor import loading
from ingestor.cli import main
from ingestor.loading import INTERRUPTED, Request, read_request
from ingestor.loading_view import Part, PlainView, RichView, SpanStatus, Status, plan_text, summary_text
from tests.fakes.past import START_MS, PastVenue, PastWorld, history_of
from tests.fakes.process_logs import process_restored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

    from ingestor.config import Config
    from ingestor.world import World

BEGIN_MS = START_MS - 36_000_000
OPTIONS: dict[str, Any] = {
    "symbols": ["btcusdt", "BTCUSDT", "ETHUSDT"],
    "stream": "trade",
    "interval": None,
    "start": None,
    "end": None,
    "from_id": None,
    "to_id": None,
    "via": "rest",
    "output": None,
    "state": None,
}
TIMES: dict[str, Any] = {"start": 5, "end": 9}


def request_of(*changes: dict[str, Any]) -> Request:
    """Read what the command line would give, changed."""
    options = dict(OPTIONS)
    for change in changes:
        options.update(change)
    return read_request(**options)


def test_options_become_a_request() -> None:
    """Symbols in upper case and once; klines of a minute unless said otherwise."""
    request = request_of(TIMES)
    assert (request.symbols, request.kind) == (("BTCUSDT", "ETHUSDT"), "trade")
    assert (request.start_ms, request.end_ms, request.is_from_archive) == (5, 9, False)
    assert request_of(TIMES, {"stream": "kline"}).kind == "kline_1m"
    assert request_of(TIMES, {"stream": "kline", "interval": "1M", "via": "archive"}).is_from_archive
    assert request_of({"from_id": 0, "to_id": 7}).last_id == 7


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "say --start and --end"),
        ({"start": 5}, "say --start and --end"),
        ({"from_id": 5}, "say --start and --end"),
        ({"from_id": 5, "to_id": 7, **TIMES}, "say --start and --end"),
        ({"from_id": 5, "to_id": 7, "stream": "kline"}, "klines are counted by time"),
        ({"interval": "1m", **TIMES}, "trades have no --interval"),
        ({"interval": "2m", "stream": "kline", **TIMES}, "--interval is one of 1s 1m"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], text: str) -> None:
    """Before anything connects."""
    with pytest.raises(ValueError, match=text):
        request_of(options)


def test_the_same_command_finds_its_progress(tmp_path: Path) -> None:
    """The name of the file tells commands apart, unless a file is named."""
    config = PastWorld(PastVenue([]), tmp_path).config
    request = request_of(TIMES)
    name = request.state_path(config).name
    assert name.startswith("backfill-BTCUSDT-trade-")
    others = [request._replace(end_ms=8), request._replace(output=tmp_path / "x"), request._replace(kind="kline_1m")]
    others.append(request_of({"from_id": 5, "to_id": 9}))
    assert len({name, *(other.state_path(config).name for other in others)}) == 5
    assert request._replace(state=Path("mine")).state_path(config) == Path("mine")


class Bench:
    """Runs the command with a world in memory."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, trades: int = 2_500) -> None:
        self.folder = folder
        history = history_of("BTCUSDT", trades=range(trades), step_ms=10, start_ms=BEGIN_MS)
        self.world = PastWorld(PastVenue([history], latency_s=0.0, offset_s=54.9), folder, put_s=0.0)
        patch.setattr(loading, "open_world", self.open_world)
        self.configs: list[Config] = []

    def open_world(self, config: Config) -> World:
        self.configs.append(config)
        return self.world.open()

    def interrupt_at(self, request: int) -> None:
        """Press Ctrl-C when the venue is asked for the n-th time; the next one would end this process."""

        def interrupt(requests: int) -> None:
            if requests == request:
                signal.raise_signal(signal.SIGINT)

        self.world.venue.on_request = interrupt

    def run(self, *options: str, symbol: str = "BTCUSDT", stream: str = "trade") -> Result:
        config = self.folder / "config.yaml"
        config.write_text(
            f"kinesis: {{stream_name: data}}\ndead_letter: {{directory: {self.folder}/dead}}\n", encoding="utf-8"
        )
        fixed = ["--config", str(config), "--symbol", symbol, "--stream", stream, "--state", f"{self.folder}/state"]
        return CliRunner().invoke(main, ["backfill", *fixed, *options])


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with process_restored():
        yield Bench(tmp_path, monkeypatch)


def test_a_range_is_loaded_and_summed_up(bench: Bench) -> None:
    """Exit 0, the summary on standard output, progress on standard error."""
    result = bench.run("--from-id", "0", "--to-id", "2499", "--plain")
    assert result.exit_code == 0
    assert result.stdout == "BTCUSDT trade: 2,500 records of 2,500 ids, 0..2499, 0 ids in holes\n"
    assert "BTCUSDT trade: 0 of 2,500 (0.0 %), at -; 0 rows/s, weight" in result.stderr
    assert len(bench.world.delivered()) == 2_500


def test_a_dry_run_only_counts(bench: Bench) -> None:
    """Requests, weight, minutes; nothing is sent, and nothing is kept."""
    result = bench.run("--from-id", "0", "--to-id", "2499", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout == (
        "BTCUSDT trade: ids 0..2499, 0 done already\n3 requests, weight 75 of 4,800 a minute: 0.0 minutes\n"
    )
    assert bench.world.delivered() == []
    assert not (bench.folder / "state").exists()


def test_a_file_needs_no_kinesis(bench: Bench) -> None:
    """Nor the schema registry."""
    output = bench.folder / "trades.avro"
    assert bench.run("--start", "2026-01-01", "--end", "2027-01-01", "--to", str(output)).exit_code == 0
    assert output.read_bytes().startswith(b"Obj\x01")
    assert bench.world.delivered() == []
    assert bench.configs[0].kinesis.encoding == "avro"


def test_a_signal_ends_it_cleanly(bench: Bench) -> None:
    """Exit 130, and what is left is said."""
    bench.interrupt_at(3)
    result = bench.run("--from-id", "0", "--to-id", "2499")
    assert result.exit_code == INTERRUPTED
    assert "ids to go; the same command continues (" in result.stdout


def test_a_signal_before_anything_was_found_ends_it_too(bench: Bench) -> None:
    """There is nothing to sum up yet."""
    bench.interrupt_at(1)
    result = bench.run("--from-id", "0", "--to-id", "2499")
    assert (result.exit_code, result.stdout) == (INTERRUPTED, "")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--start", "2026-01-01", "--end", "2026-01-02"], "error: NOPE: the venue says Invalid symbol. (-1121)"),
        (["--from-id", "1", "--to-id", "2"], "error: NOPE: the venue says Invalid symbol. (-1121)"),
    ],
)
def test_what_the_venue_refuses_is_said(bench: Bench, options: list[str], text: str) -> None:
    """One line and exit 1, no traceback."""
    result = bench.run(*options, symbol="NOPE")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == text


def test_a_stream_that_is_not_there_is_said_before_anything_is_fetched(bench: Bench) -> None:
    """The producer would wait for it for ever; a person wants to know."""
    bench.world.streams = {}
    result = bench.run("--from-id", "1", "--to-id", "2")
    assert result.exit_code == 1
    assert "error: ResourceNotFoundException" in result.stderr
    assert bench.world.venue.requests == []


def test_another_command_does_not_continue(bench: Bench) -> None:
    """The progress of one command is not that of another."""
    assert bench.run("--from-id", "0", "--to-id", "9").exit_code == 0
    result = bench.run("--from-id", "0", "--to-id", "10")
    assert result.exit_code == 1
    assert "belongs to another command (BTCUSDT trade ids 0 to 9 into us-east-1/data)" in result.stderr


def test_options_that_do_not_fit_are_a_usage_error(bench: Bench) -> None:
    """Exit 2, like every mistake on the command line."""
    assert bench.run("--start", "2026-01-01").exit_code == 2


STATUS = Status([SpanStatus("BTCUSDT trade", 1_000, 250, START_MS)], 1_234.5, 800, 4_800, 61.4)


def test_plain_lines_come_every_ten_seconds() -> None:
    """Everything a person asks: how far, which day, how fast, how much weight, how long still."""
    lines: list[str] = []
    view = PlainView(lines.append)
    for now in (3.0, 9.0, 13.0):
        view.show(STATUS, now)
    view.close()
    expected = "BTCUSDT trade: 250 of 1,000 (25.0 %), at 2026-09-21 14:14; 1,234 rows/s, weight 800/4,800, 0:01:01 left"
    assert lines == [expected, expected]


def test_nothing_to_do_is_no_division_by_zero() -> None:
    """A range without trades, and a pace nobody knows yet."""
    lines: list[str] = []
    PlainView(lines.append).show(Status([SpanStatus("X trade", 0, 0, None)], 0.0, 0, 1, None), 1.0)
    assert lines == ["X trade: 0 of 0 (nothing to do), at -; 0 rows/s, weight 0/1, time left unknown"]


def test_bars_on_a_terminal() -> None:
    """The same facts, in place."""
    screen = io.StringIO()
    view = RichView(Console(file=screen, force_terminal=True, width=160))
    view.show(STATUS, 0.0)
    view.show(STATUS, 1.0)
    view._progress.refresh()
    view.close()
    assert "25.0 %  2026-09-21 14:14  1,234 rows/s, weight 800/4,800, 0:01:01 left" in screen.getvalue()


def test_the_summary_names_every_hole_that_fits() -> None:
    """Twenty of them, and how many more there are."""
    holes = [(10 * number, 10 * number) for number in range(30)]
    text = summary_text([Part("B trade", 0, 999, 1_000, holes)], [("x.zip", "broken")])
    assert text.splitlines()[:2] == ["B trade: 970 records of 1,000 ids, 0..999, 30 ids in holes", "  hole 0..0"]
    assert text.splitlines()[-2:] == ["  and 10 more holes", "refused x.zip: broken; its records came over REST"]


def test_the_plan_says_how_long() -> None:
    """At the venue's pace."""
    text = plan_text([Part("B trade", 1, 0, 0, [])], 480, 12_000, 4_800)
    assert text == "B trade: ids none, 0 done already\n480 requests, weight 12,000 of 4,800 a minute: 2.5 minutes\n"
