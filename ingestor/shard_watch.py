"""Keeps the producer's map of its stream up to date: which shards are open, and what they own.

The map is for budgets alone, so nothing waits for it, and a stream that cannot be listed (no permission, an emulator
without shards) costs one log line and the budgets. One that is known to be out of date is given up until there is a
new one: the budget of a shard that was split would hold up all that its children can take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import structlog
import trio

from ingestor.core.errors import SinkError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ingestor.core.shards import ShardInfo

log = structlog.get_logger()

LOOK_EVERY_S: Final = 300.0
TRY_AGAIN_S: Final = 60.0
PACE_S: Final = 5.0  # a reshard of many shards names new ones one after the other; ListShards has a limit of its own


class ListsShards(Protocol):
    """What is needed of `aws.StreamClient`."""

    async def list_shards(self, stream: str) -> list[ShardInfo]:
        """All shards, the closed ones too; raises `SinkError`."""
        ...


class ShardWatch:
    """Lists the shards of `stream` and hands them to `learn`: at once, every few minutes, and on news.

    `wait_for_news` returns when an answer has named a shard that is not on the map; `pace_s` is the least time between
    two looks.
    """

    def __init__(
        self,
        streams: ListsShards,
        stream: str,
        *,
        learn: Callable[[Sequence[ShardInfo]], None],
        wait_for_news: Callable[[], Awaitable[None]],
        pace_s: float = PACE_S,
    ) -> None:
        self._streams = streams
        self._stream = stream
        self._learn = learn
        self._wait_for_news = wait_for_news
        self._pace_s = pace_s
        self._open: set[str] = set()
        self._has_complained = False

    async def run(self) -> NoReturn:
        """Look until cancelled; nothing that goes wrong ends it."""
        is_outdated = False
        while True:
            is_listed = await self._look(is_outdated=is_outdated)
            await trio.sleep(self._pace_s)
            is_outdated = False
            with trio.move_on_after((LOOK_EVERY_S if is_listed else TRY_AGAIN_S) - self._pace_s):
                await self._wait_for_news()
                is_outdated = True

    async def _look(self, *, is_outdated: bool) -> bool:
        """Learn the shards; False if they could not be listed."""
        try:
            shards = await self._streams.list_shards(self._stream)
        except SinkError as error:
            if not self._has_complained:
                self._has_complained = True
                log.warning("shards_unknown", stream=self._stream, error=str(error), budget="none until they are known")
            if is_outdated:
                self._learn(())
            return False
        self._has_complained = False
        self._learn(shards)
        still_open = {shard.shard_id for shard in shards if not shard.closed}
        if still_open != self._open:
            log.info("shards", stream=self._stream, open=len(still_open), before=len(self._open))
            self._open = still_open
        return True
