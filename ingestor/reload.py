"""Reads the configuration again when a person asks (SIGHUP), and has what may change while the service runs changed.

A configuration with a mistake is reported completely and changes nothing. What needs a restart is named and left as it
is. The log level changes at once, the subscriptions once it is known what they are: selectors such as `all:USDT` wait
for the venue's list. Whoever asks again meanwhile begins all of that anew, with the file as it is then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import structlog
import trio

from ingestor import logs
from ingestor.config import adopt, differences
from ingestor.core.errors import ConfigError
from ingestor.core.sharding import has_selector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import NoReturn

    from ingestor.config import Config
    from ingestor.core.model import Subscription
    from ingestor.metrics import Metrics
    from ingestor.threads import RunBlocking

    Find: TypeAlias = Callable[[Config], Awaitable[list[Subscription]]]

log = structlog.get_logger()

Outcome: TypeAlias = Literal["applied", "unchanged", "rejected"]


class ConfigFile:
    """Where the configuration comes from, and whether somebody wants it read again.

    `read` is the whole reading, environment and checks included; it blocks, and raises `ConfigError`. `run_blocking` is
    where it is done.
    """

    def __init__(self, read: Callable[[], Config], run_blocking: RunBlocking) -> None:
        self._read = read
        self._run_blocking = run_blocking
        self._asked = trio.Event()
        self._obsolete = trio.CancelScope()

    def ask(self) -> None:
        """Want it read again; what was read before, and is still being worked on, is obsolete."""
        self._asked.set()
        self._obsolete.cancel()

    @property
    def is_asked(self) -> bool:
        """Whether it is to be read again."""
        return self._asked.is_set()

    async def wait_asked(self) -> None:
        """Wait until it is to be read again."""
        await self._asked.wait()

    async def read_again(self) -> Config:
        """Read it; whoever asks from now on asks again."""
        self._asked = trio.Event()
        return await self._run_blocking(self._read)

    def until_asked(self) -> trio.CancelScope:
        """Return a scope that ends when somebody asks again, or has done so."""
        self._obsolete = trio.CancelScope()
        if self.is_asked:
            self._obsolete.cancel()
        return self._obsolete


class Wanted(NamedTuple):
    """What was read again: what of it can run, what needs a restart, and what to subscribe to; None for what is."""

    config: Config
    needs_restart: list[str]
    subscriptions: list[Subscription] | None


class Reload:
    """Follows the configuration; `config` is what runs.

    `find_at_start` and `find` return what a configuration subscribes to, and raise `ConfigError` where that is nothing.
    """

    def __init__(
        self,
        config: Config,
        file: ConfigFile,
        *,
        find_at_start: Find,
        find: Find,
        metrics: Metrics,
        wall_ns: Callable[[], int],
    ) -> None:
        self.config = config
        self._file = file
        self._find_at_start = find_at_start
        self._find = find
        self._metrics = metrics
        self._wall_ns = wall_ns
        self._read_ms: int | None = None
        self._outcome: Outcome | None = None
        self._problems = 0
        self._needs_restart: list[str] = []

    async def first(self) -> list[Subscription]:
        """Return what to begin with; raises `ConfigError` if there is nothing."""
        while True:
            wanted = await self._read_again() if self._file.is_asked else None
            if wanted is not None:
                self._run_with(wanted)
            if wanted is not None and wanted.subscriptions is not None:
                return wanted.subscriptions
            with self._file.until_asked():
                return await self._find_at_start(self.config)

    async def run(self, change: Callable[[Sequence[Subscription]], None]) -> NoReturn:
        """Have everything that is asked for changed, until cancelled; `change` takes what to be subscribed to."""
        while True:
            await self._file.wait_asked()
            wanted = await self._read_again()
            if wanted is not None:
                self._run_with(wanted)
                if wanted.subscriptions is not None:
                    change(wanted.subscriptions)

    def status(self) -> dict[str, Any]:
        """Return what became of the newest reading; without values, because this is for everybody to see."""
        return {
            "read_ms": self._read_ms,
            "outcome": self._outcome,
            "problems": self._problems,
            "needs_restart": self._needs_restart,
        }

    async def _read_again(self) -> Wanted | None:
        """Return what is wanted now; None if that cannot be, or when somebody asks again meanwhile."""
        try:
            read = await self._file.read_again()
            self._read_ms = self._wall_ns() // 1_000_000
            config = adopt(self.config, read)
            logs.set_level(config.logging.level)
            return await self._search(Wanted(config, differences(config, read), None))
        except ConfigError as error:
            self._reject(error)
            return None

    async def _search(self, wanted: Wanted) -> Wanted | None:
        binance = wanted.config.binance
        if binance == self.config.binance and not has_selector(binance.symbols):
            return wanted
        with self._file.until_asked():
            return wanted._replace(subscriptions=await self._find(wanted.config))
        return None

    def _reject(self, error: ConfigError) -> None:
        logs.set_level(self.config.logging.level)
        log.error("configuration_rejected", problems=error.problems)
        self._note("rejected", len(error.problems))

    def _run_with(self, wanted: Wanted) -> None:
        changed = differences(self.config, wanted.config)
        self.config, self._needs_restart = wanted.config, wanted.needs_restart
        if wanted.needs_restart:
            log.warning("configuration_needs_restart", keys=wanted.needs_restart)
        if changed or wanted.subscriptions is not None:
            log.info("configuration_applied", changed=changed)
            self._note("applied")
        else:
            log.info("configuration_unchanged")
            self._note("unchanged")

    def _note(self, outcome: Outcome, problems: int = 0) -> None:
        self._outcome, self._problems = outcome, problems
        self._metrics.configuration_reads.labels(outcome).inc()
