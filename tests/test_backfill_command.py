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
from ingestor.core.claims import kline_ordinal
from ingestor.core.model import Claim, Subscription
from ingestor.core.paging import Page
from ingestor.loading import INTERRUPTED, Request, read_request
from ingestor.loading_view import Part, PlainView, Plan, RichView, SpanStatus, Status, plan_text, summary_text
from ingestor.local.rest import Response, error_body
from ingestor.progress import Declared, Progress
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
        ({"start": 9, "end": 9}, "--end is not after --start"),
        ({"start": 9, "end": 5}, "--end is not after --start"),
        ({"from_id": 8, "to_id": 7}, "--to-id is below --from-id"),
        ({"symbols": ["all:USDT"], **TIMES}, "all:USDT is a selector: name each --symbol"),
        ({"symbols": ["../btcusdt"], **TIMES}, "'../btcusdt' is no symbol"),
        ({"symbols": [""], **TIMES}, "'' is no symbol"),
        ({"symbols": ["A" * 51], **TIMES}, "is no symbol"),
        ({"output": Path("x"), "state": Path("./x"), **TIMES}, "--to and --state are the same file"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], text: str) -> None:
    """Before anything connects."""
    with pytest.raises(ValueError, match=text):
        request_of(options)


def test_the_same_command_finds_its_progress(tmp_path: Path) -> None:
    """The name of the file tells commands, venues and streams apart, unless a file is named."""
    config = PastWorld(PastVenue([]), tmp_path).config
    request = request_of(TIMES)
    name = request.state_path(config).name
    assert name.startswith("backfill-BTCUSDT-trade-")
    others = [request._replace(end_ms=8), request._replace(output=tmp_path / "x"), request._replace(kind="kline_1m")]
    others.append(request_of({"from_id": 5, "to_id": 9}))
    names = [other.state_path(config).name for other in others]
    for section, change in (("binance", {"rest_url": "http://testnet"}), ("kinesis", {"endpoint_url": "http://moto"})):
        elsewhere = config.model_copy(update={section: getattr(config, section).model_copy(update=change)})
        names.append(request.state_path(elsewhere).name)
    assert len({name, *names}) == 7
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
        self.world.venue.began_s = None  # Trio's clock begins anywhere, in each of its runs
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
    assert result.stdout == "BTCUSDT trade: 2,500 records of 2,500 ids, 0..2499, 0 in holes\n"
    assert "BTCUSDT trade: 0 of 2,500 (0.0 %), at -; 0 rows/s, weight" in result.stderr
    assert len(bench.world.delivered()) == 2_500


def test_a_dry_run_only_counts(bench: Bench) -> None:
    """Requests, weight, minutes; nothing is sent, and nothing is kept."""
    result = bench.run("--from-id", "0", "--to-id", "2499", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout == (
        "BTCUSDT trade: 0..2499, 0 done already\n3 requests, weight 75 at 4,800 a minute: 0:00:01 at least\n"
    )
    assert bench.world.delivered() == []
    assert sorted(path.name for path in bench.folder.iterdir()) == ["config.yaml"]


def test_a_dry_run_counts_files_too(bench: Bench) -> None:
    """From the archive: days that are over, and the requests for those that it cannot have yet."""
    history = bench.world.venue.history("BTCUSDT")
    assert history is not None
    history.fills[:] = history_of("BTCUSDT", trades=range(1_000), step_ms=200_000, start_ms=START_MS - 2 * 10**8).fills
    result = bench.run("--start", "2026-09-19T12:00", "--end", "2026-09-21T14:00", "--via", "archive", "--dry-run")
    assert result.stdout == (
        "BTCUSDT trade: 96..995, 0 done already\n2 daily and 0 monthly files of the archive, "
        "and over REST what it cannot have yet (more, if it lacks a file):\n"
        "1 request, weight 25 at 4,800 a minute: a moment\n"
    )
    result = bench.run(
        "--start", "2026-09-19", "--end", "2026-09-21T01:00", "--via", "archive", "--dry-run", stream="kline"
    )
    assert "29829600..29832539 (2026-09-19 00:00 to 2026-09-21 00:59), 0 done already\n2 daily" in result.stdout
    assert "\n1 request, weight 2 at" in result.stdout


def test_a_file_needs_no_kinesis(bench: Bench) -> None:
    """Nor the schema registry."""
    output = bench.folder / "trades.avro"
    assert bench.run("--start", "2026-01-01", "--end", "2027-01-01", "--to", str(output)).exit_code == 0
    assert output.read_bytes().startswith(b"Obj\x01")
    assert bench.world.delivered() == []
    assert bench.configs[0].kinesis.encoding == "avro"


def test_a_signal_ends_it_cleanly(bench: Bench) -> None:
    """Exit 130, and what is left is said."""
    bench.interrupt_at(4)
    result = bench.run("--from-id", "0", "--to-id", "2499")
    assert result.exit_code == INTERRUPTED
    assert "ids to go; the same command continues (" in result.stdout


def test_a_signal_before_anything_was_found_ends_it_too(bench: Bench) -> None:
    """There is nothing to sum up yet, and a person still wants to know that it heard."""
    bench.interrupt_at(1)
    result = bench.run("--from-id", "0", "--to-id", "2499")
    assert (result.exit_code, result.stdout) == (INTERRUPTED, "interrupted before anything was loaded\n")


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


def answering(bench: Bench, status: int, code: int, text: str, *, after: int = 0) -> None:
    """Have the venue refuse everything after some requests."""
    desk = bench.world.venue.desk

    def refuse(requests: int) -> None:
        desk.trouble.answer = Response(status, error_body(code, text)) if requests > after else None

    bench.world.venue.on_request = refuse


def test_a_restricted_location_is_said(bench: Bench) -> None:
    """With the address that refused, and the words of the venue."""
    words = "Service unavailable from a restricted location according to 'b. Eligibility'."
    answering(bench, 451, 0, words)
    result = bench.run("--from-id", "0", "--to-id", "2499")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: https://api.binance.com does not serve this address (HTTP 451): {words}"
    ]


def test_what_ends_a_run_half_way_says_how_to_go_on(bench: Bench) -> None:
    """What was delivered is noted."""
    ids = {"symbols": ["BTCUSDT"], "from_id": 0, "to_id": 2_499}
    assert bench.run("--from-id", "0", "--to-id", "2499", "--dry-run").exit_code == 0
    progress = Progress(bench.folder / "state", request_of(ids).text(bench.configs[0]))
    progress.begin(Subscription("BTCUSDT", "trade"), Page(0, 2_499))
    progress.acknowledge([Claim(Subscription("BTCUSDT", "trade"), 0, 999)])
    answering(bench, 400, -1121, "Invalid symbol.", after=5)
    result = bench.run("--from-id", "0", "--to-id", "2499")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2:] == [
        "error: BTCUSDT: the venue says Invalid symbol. (-1121)",
        f"what was delivered is noted: the same command continues ({bench.folder}/state)",
    ]
    bench.world.venue.on_request = None
    bench.world.venue.desk.trouble.answer = None
    assert bench.run("--from-id", "0", "--to-id", "2499").exit_code == 0
    assert {record.sequence for record in bench.world.delivered()} == set(range(1_000, 2_500))


def test_a_host_without_single_trades_is_named(bench: Bench) -> None:
    """The market data host of the venue has no historicalTrades; `HTTP 404` alone would be a riddle."""
    answer = bench.world.venue.desk.answer

    def lacking(path: str, params: Any, now_ms: int) -> Response:
        return Response(404, b"<html>") if path.endswith("historicalTrades") else answer(path, params, now_ms)

    bench.world.venue.desk.answer = lacking  # type: ignore[method-assign]  # one method of the desk is the script
    result = bench.run("--from-id", "0", "--to-id", "9")
    assert "error: BTCUSDT: the venue says HTTP 404 Not Found for /api/v3/historicalTrades" in result.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--to", "{folder}/nowhere/x.avro"], "{folder}/nowhere/x.avro: No such file or directory"),
        (["--to", "{folder}/there.avro"], "{folder}/there.avro is there already; remove it, or write to another file"),
        (["--state", "{folder}/there.avro/x"], "progress cannot be kept there (File exists); choose a place with"),
        (["--via", "archive", "--state", "{folder}/blocked"], "{folder}/blocked.files: File exists"),
    ],
)
def test_places_that_cannot_be_used_are_said(bench: Bench, options: list[str], text: str) -> None:
    """One line and exit 1, no traceback."""
    for name in ("there.avro", "blocked.files"):
        (bench.folder / name).touch()
    times = ["--start", "2026-09-20", "--end", "2026-09-22"]
    result = bench.run(*times, *(option.format(folder=bench.folder) for option in options))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert text.format(folder=bench.folder) in result.stderr


def test_a_file_that_went_away_is_not_continued(bench: Bench) -> None:
    """Its progress is that of another file, which is said before anything is fetched."""
    output = bench.folder / "trades.avro"
    options = ("--from-id", "0", "--to-id", "2499", "--to", str(output))
    assert bench.run(*options).exit_code == 0
    size_bytes, requests = output.stat().st_size, len(bench.world.venue.requests)
    assert bench.run(*options).exit_code == 0
    assert output.stat().st_size == size_bytes
    output.unlink()
    result = bench.run(*options)
    assert result.exit_code == 1
    assert f"error: {output}: is gone; remove its progress too to begin anew" in result.stderr
    assert len(bench.world.venue.requests) == requests


def test_a_stream_without_an_order_is_refused(bench: Bench) -> None:
    """As the service does."""
    bench.world.distribution = "AUTO"
    result = bench.run("--from-id", "0", "--to-id", "9")
    assert result.exit_code == 1
    assert "error: data distributes records itself (AUTO)" in result.stderr
    assert bench.world.venue.requests == []


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
    assert (
        "belongs to another command (BTCUSDT trade ids 0 to 9 of https://api.binance.com into us-east-1 data)"
        in result.stderr
    )


def test_options_that_do_not_fit_are_a_usage_error(bench: Bench) -> None:
    """Exit 2, like every mistake on the command line."""
    assert bench.run("--start", "2026-01-01").exit_code == 2


STATUS = Status([SpanStatus("BTCUSDT trade", 1_000, 250, START_MS)], 1_234.5, 800, 4_800, 61.4)
PACE = "1,234 rows/s, weight 800/4,800, 0:01:01 left"


def test_plain_lines_come_every_ten_seconds() -> None:
    """Everything a person asks: how far, which day, how fast, how much weight, how long still."""
    lines: list[str] = []
    view = PlainView(lines.append)
    for now in (3.0, 9.0, 13.0):
        view.show(STATUS, now)
    view.close()
    expected = f"BTCUSDT trade: 250 of 1,000 (25.0 %), at 2026-09-21 14:14; {PACE}"
    assert lines == [expected, expected]


def test_nothing_to_do_is_no_division_by_zero() -> None:
    """A range without trades, and a pace nobody knows yet."""
    lines: list[str] = []
    PlainView(lines.append).show(Status([SpanStatus("X trade", 0, 0, None)], 0.0, 0, 1, None), 1.0)
    assert lines == ["X trade: 0 of 0 (nothing to do), at -; 0 rows/s, weight 0/1, time left unknown"]


def many(spans: int) -> Status:
    """Make a status of which the first and the last spans are not under way."""
    done = [0, *[5] * (spans - 2), 10]
    return STATUS._replace(spans=[SpanStatus(f"S{number} trade", 10, each, None) for number, each in enumerate(done)])


def test_several_symbols_share_one_line_of_pace() -> None:
    """Which is of all of them; of hundreds, only those under way are shown."""
    lines: list[str] = []
    PlainView(lines.append).show(many(3), 1.0)
    assert lines == [
        "S0 trade: 0 of 10 (0.0 %), at -",
        "S1 trade: 5 of 10 (50.0 %), at -",
        "S2 trade: 10 of 10 (100.0 %), at -",
        f"all 3: 15 of 30 (50.0 %); {PACE}",
    ]
    del lines[:]
    PlainView(lines.append).show(many(300), 1.0)
    assert [line.split(":")[0] for line in lines] == [*(f"S{number} trade" for number in range(1, 21)), "all 300"]


def test_silence_has_a_reason() -> None:
    """After a 429 or 418 nothing moves, and a person sees why, and for how long."""
    lines: list[str] = []
    PlainView(lines.append).show(STATUS._replace(silent_s=3_599.6), 1.0)
    assert lines[0].endswith("weight 800/4,800, the venue wants silence for 1:00:00")


@pytest.mark.parametrize("spans", [1, 3, 300])
def test_bars_on_a_terminal(spans: int) -> None:
    """The same facts, in place, and on eighty columns whole; then the terminal is given back."""
    screen = io.StringIO()
    view = RichView(Console(file=screen, force_terminal=True, width=80))
    status = STATUS if spans == 1 else many(spans)
    view.show(status, 0.0)
    view.show(status, 1.0)
    view._live.refresh()
    shown_s = screen.getvalue()
    view.close()
    if spans == 1:
        assert "25.0 %  2026-09-21 14:14" in shown_s
    assert PACE in shown_s
    assert ("S299 trade" in shown_s, "S0 trade" in shown_s) == (False, spans == 3)


def test_the_summary_names_every_hole_that_fits() -> None:
    """Twenty of them with their reasons, and how many more there are."""
    holes = [Declared(10 * number, 10 * number, "venue_has_none") for number in range(30)]
    text = summary_text([Part("B trade", 0, 999, 1_000, holes)], [("x.zip", "broken")])
    assert text.splitlines()[:2] == [
        "B trade: 970 records of 1,000 ids, 0..999, 30 in holes",
        "  hole 0..0: venue_has_none",
    ]
    assert text.splitlines()[-2:] == ["  and 10 more holes", "refused x.zip: broken; its records came over REST"]


def test_bars_are_told_by_their_times() -> None:
    """Nobody knows their numbers by heart."""
    first = kline_ordinal("1h", START_MS)
    hole = Declared(first + 1, first + 2, "venue_has_none")
    [line, hole_line] = summary_text([Part("B kline_1h", first, first + 9, 10, [hole], (), "1h")], []).splitlines()
    assert line.endswith(f"{first}..{first + 9} (2026-09-21 14:00 to 2026-09-21 23:00), 2 in holes")
    assert hole_line.endswith("(2026-09-21 15:00 to 2026-09-21 16:00): venue_has_none")
    assert "(2026-09-21 14:14:07 to 2026-09-21 14:14:07)" in summary_text(
        [Part("B", START_MS // 1_000 + 7, START_MS // 1_000 + 7, 1, (), (), "1s")], []
    )


def test_the_plan_says_how_long() -> None:
    """At the venue's pace."""
    text = plan_text([Part("B trade", 1, 0, 0, [], ["never traded"])], Plan(480, 12_000, 4_800))
    assert text == (
        "B trade: nothing, 0 done already\n  note: never traded\n"
        "480 requests, weight 12,000 at 4,800 a minute: 0:02:30 at least\n"
    )
