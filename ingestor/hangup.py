"""Keeps SIGHUP from ending the process: until there is a service that reads its configuration again, it waits."""

from __future__ import annotations

import signal


def hold_hangups() -> None:
    """From now on SIGHUP ends nothing; one that comes before `release_hangups` waits for that.

    A blocked signal stays pending, even one that is ignored. Ignored it is again when the service has ended and the
    process has not: Trio puts back what it found. Not to be undone, so only for a process that is the service.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def release_hangups() -> None:
    """Deliver SIGHUP from now on, and the one that waited; call it when somebody listens."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
