"""Log lines as a collector or a person reads them."""

from __future__ import annotations

import io
import json
import logging
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal

import pytest
import structlog

from ingestor import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs.CHATTY_LIBRARIES}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return what was logged as JSON."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_holds_event_level_time_and_values() -> None:
    """A collector needs no pattern."""
    stream = io.StringIO()
    logs.set_up("info", "json", stream)
    structlog.get_logger("ingestor.feed").info("connected", url="wss://x", subscriptions=3)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "connected",
        "level": "info",
        "logger": "ingestor.feed",
        "url": "wss://x",
        "subscriptions": 3,
    }


def test_libraries_come_out_in_the_same_shape_and_without_chatter() -> None:
    """Their warnings are ours to see, their requests are not."""
    stream = io.StringIO()
    logs.set_up("info", "json", stream)
    logging.getLogger("botocore.retries").info("sending")
    logging.getLogger("botocore.retries").warning("throttled %s times", 3)
    assert [(line["logger"], line["event"], line["level"]) for line in lines(stream)] == [
        ("botocore.retries", "throttled 3 times", "warning")
    ]


def test_the_level_changes_while_the_service_runs() -> None:
    """Loggers that exist already obey."""
    stream = io.StringIO()
    logs.set_up("warning", "json", stream)
    log = structlog.get_logger("ingestor.feed")
    log.info("too quiet")
    logs.set_level("debug")
    log.debug("heard")
    assert [line["event"] for line in lines(stream)] == ["heard"]


def test_setting_up_again_replaces_the_first() -> None:
    """No line is written twice, and older loggers follow."""
    first, second = io.StringIO(), io.StringIO()
    logs.set_up("info", "json", first)
    log = structlog.get_logger("ingestor.feed")
    log.info("one")
    logs.set_up("info", "console", second)
    log.info("two", n=1)
    assert [line["event"] for line in lines(first)] == ["one"]
    assert "two" in second.getvalue()
    assert "n=1" in second.getvalue()


def test_a_crash_names_every_error_in_its_groups() -> None:
    """Trio's errors come in groups of groups, and a search for the innermost should find the line."""
    stream = io.StringIO()
    logs.set_up("info", "json", stream)
    error = ExceptionGroup("nursery", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])
    structlog.get_logger("ingestor.app").error("crashed", exc_info=error)
    (line,) = lines(stream)
    assert line["errors"] == ["ValueError: a", "KeyError: 'b'"]
    assert "ExceptionGroup: inner" in line["exception"]


@pytest.mark.parametrize("logger", [structlog.get_logger("ingestor.app"), logging.getLogger("hypercorn.error")])
def test_an_error_that_is_being_handled_is_named_too(logger: Any) -> None:
    """`exception` finds it by itself, in our loggers and in the libraries'."""
    stream = io.StringIO()
    logs.set_up("info", "json", stream)
    try:
        raise OSError("disk full")  # noqa: TRY301 - this is what is tested
    except OSError:
        logger.exception("failed")
    assert lines(stream)[0]["errors"] == ["OSError: disk full"]


SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # noqa: S105 - the one of AWS' documentation


@pytest.mark.parametrize("line_format", ["json", "console"])
def test_no_secret_of_the_environment_is_in_a_line(line_format: Literal["json", "console"]) -> None:
    """Not as a value, nor inside of one, nor in a traceback, nor as a local variable of a frame in it."""
    stream = io.StringIO()
    logs.set_up("debug", line_format, stream, environ={"AWS_SECRET_ACCESS_KEY": SECRET})
    log = structlog.get_logger("ingestor.app")
    log.warning(SECRET, key=SECRET, nested={SECRET: [SECRET, (SECRET,)]}, thing=ValueError(SECRET), n=1)
    logging.getLogger("botocore").warning("sent %s", SECRET)
    local_secret = token_hex(8)
    try:
        raise OSError(f"x-amz-security-token:{local_secret}, {SECRET}")  # noqa: TRY301 - this is what is tested
    except OSError:
        log.exception("failed")
    text = stream.getvalue()
    assert "OSError" in text
    assert "n=1" in text.replace('"n": 1', "n=1")
    assert SECRET not in text
    assert local_secret not in text


def test_a_stranger_writes_no_line_and_moves_no_terminal() -> None:
    """A line break in what the venue said is an escape; so is what would clear the screen of whoever reads."""
    stream = io.StringIO()
    logs.set_up("info", "console", stream)
    evil = "gone\n2026-01-01T00:00:00Z [critical ] crashed\x1b[2J\x9b2J\u202e"
    log = structlog.get_logger("ingestor.feed")
    log.warning("connection_lost", cause=evil, short="\x1b[2J", nested=[evil])
    logging.getLogger("hypercorn.error").warning("bad request %s", evil)
    try:
        raise OSError("\x1b[2J")  # noqa: TRY301 - this is what is tested
    except OSError:
        log.exception("failed")
    first, second, *traceback = stream.getvalue().splitlines()
    assert "connection_lost" in first
    assert "bad request" in second
    assert len(traceback) > 3
    assert all(line.isprintable() for line in (first, second, *traceback))


def test_a_json_line_is_one_line_whatever_is_in_it() -> None:
    """Whoever collects lines cannot be told a line that nobody wrote."""
    stream = io.StringIO()
    logs.set_up("info", "json", stream)
    evil = 'gone\n{"event": "forged"}\u2028\x1b[2J\ud800'
    structlog.get_logger("ingestor.feed").warning("connection_lost", cause=evil)
    assert [line["cause"] for line in lines(stream)] == [evil]
    assert stream.getvalue().rstrip("\n").isprintable()
