"""Log lines as a collector or a person reads them."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

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
