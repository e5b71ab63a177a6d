"""Keeps what a command sets up for its whole process from reaching the next test: logging, collector, switches."""

from __future__ import annotations

import gc
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from ingestor import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def process_restored() -> Iterator[None]:
    """Leave the process's logging, its garbage collection and its switch interval as they were."""
    root = logging.getLogger()
    handlers, level, thresholds = root.handlers[:], root.level, gc.get_threshold()
    interval_s = sys.getswitchinterval()
    levels = {name: logging.getLogger(name).level for name in logs.CHATTY_LIBRARIES}
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, old in levels.items():
            logging.getLogger(name).setLevel(old)
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        sys.setswitchinterval(interval_s)
