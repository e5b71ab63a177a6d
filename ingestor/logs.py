"""Structured logging: one line per event worth waking for, as JSON or for a terminal, ours and our libraries' alike.

Every line goes through the standard library's root handler to one stream, so hypercorn and botocore come out in the
same shape. What callers pass is key and value, never a raw payload. What an error of AWS or of a library repeats of our
credentials is masked on the way out, tracebacks show no local variables, and no text of a stranger moves a terminal or
begins a line of its own.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias

import structlog

from ingestor.core.wording import printable, printable_lines, redactor, secrets_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.typing import EventDict, Processor, WrappedLogger

Level: TypeAlias = Literal["debug", "info", "warning", "error"]

# Their own words for every request or connection help nobody here; what goes wrong still comes through.
CHATTY_LIBRARIES = (
    "botocore",
    "boto3",
    "urllib3",
    "httpx",
    "httpcore",
    "hypercorn",
    "h2",
    "hpack",
    "quart",
    "trio_websocket",
    "werkzeug",
)


MULTI_LINE = frozenset({"exception", "stack"})  # what a console shows below the line


def set_up(
    level: Level,
    line_format: Literal["json", "console"],
    stream: TextIO | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Send all logging to `stream` (standard error by default) from now on; calling again replaces what was set up.

    The secrets of `environ` (of this process by default) are in no line.
    """
    redact = redactor(secrets_in(os.environ if environ is None else environ))
    destination = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # so that calling again reaches loggers made before
    )
    handler = logging.StreamHandler(destination)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([_flatten_exception_group] if line_format == "json" else []),
                structlog.processors.format_exc_info,
                _Redaction(redact),
                *_rendering(line_format, destination),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.captureWarnings(capture=True)
    set_level(level)


def set_level(level: Level) -> None:
    """Change how much is logged while the service runs."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(number)
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _rendering(line_format: Literal["json", "console"], stream: TextIO) -> list[Processor]:
    if line_format == "json":
        return [structlog.processors.JSONRenderer(default=str)]  # in ASCII, so that nothing needs an escape of ours
    plain = structlog.dev.plain_traceback  # the default shows the local variables of every frame
    return [_make_printable, structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]


def _make_printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Take the power over a terminal out of every text."""
    return {
        printable(key): (printable_lines if key in MULTI_LINE else printable)(value)
        if isinstance(value, str)
        else value
        for key, value in event.items()
    }


class _Redaction:
    """Masks credentials in all that a line says."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {key: self._clean(value) for key, value in event.items()}

    def _clean(self, value: Any) -> Any:
        if isinstance(value, bool | int | float) or value is None:
            return value
        if isinstance(value, dict):
            return {self._redact(str(key)): self._clean(each) for key, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(each) for each in value]
        return self._redact(str(value))


def _flatten_exception_group(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Name what is inside an exception group, so that a search finds it without reading the traceback."""
    error = event.get("exc_info")
    if isinstance(error, tuple):  # as the standard library writes it down
        error = error[1]
    elif error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["errors"] = [f"{type(leaf).__name__}: {leaf}" for leaf in leaves(error)]
    return event


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors inside nested groups, or `error` alone."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
