"""Finds out where quiet symbols stand, so that what they lack is known before they speak (completeness.md §3, step 6).

A trade stream that says nothing when everything is subscribed to would be counted from its first trade on, which may be
hours away. The venue's newest trade tells its head at once: what an earlier task did not deliver up to there is fetched
now, and what comes between there and the first live trade is a gap like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog
import trio

from ingestor.rest_client import BadRequestError, VenueError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ingestor.core.binance import RestTrade, Ticker
    from ingestor.core.intake import Intake
    from ingestor.core.model import Subscription

log = structlog.get_logger()

LOOK_EVERY_S: Final = 1.0
SUBSCRIBED_WITHIN_S: Final = 60.0  # a connection that is refused for longer is no reason to know nothing of the others
QUIET_S: Final = 5.0  # after that, whoever trades all the time has spoken
ASK_AGAIN_S: Final = 10.0
ASKED_ALONE: Final = 3  # symbols whose newest trade is cheaper asked for one by one (weight 25) than all at once (80)


class Head(NamedTuple):
    """The newest trade of a symbol as REST has it; no trade of this id or below happens after `event_ms`."""

    subscription: Subscription
    last_id: int
    event_ms: int


class Rest(Protocol):
    """What is needed of `rest_client.RestClient`; raises `VenueError`."""

    async def tickers(self) -> list[Ticker]:
        """Return the last trade id of every symbol."""
        ...

    async def trades(self, symbol: str, limit: int) -> list[RestTrade]:
        """Return the newest trades."""
        ...


class Heads:
    """Asks once for each quiet symbol, when all is subscribed to and it `is_known` what earlier tasks said of it.

    `begin` takes what was found onto the line.
    """

    def __init__(
        self,
        subscriptions: Sequence[Subscription],
        intake: Intake,
        rest: Rest,
        *,
        is_subscribed: Callable[[], bool],
        is_known: Callable[[Subscription], bool],
        begin: Callable[[Sequence[Head]], Awaitable[None]],
    ) -> None:
        self._unasked = {each for each in subscriptions if each.kind == "trade"}
        self._intake = intake
        self._rest = rest
        self._is_subscribed = is_subscribed
        self._is_known = is_known
        self._begin = begin

    async def run(self) -> None:
        """Wait until it is known who is quiet, and find out where they stand; returns when all heads are known."""
        with trio.move_on_after(SUBSCRIBED_WITHIN_S):
            while not self._is_subscribed():  # noqa: ASYNC110 - it comes and goes
                await trio.sleep(LOOK_EVERY_S)
        await trio.sleep(QUIET_S)
        while self._unasked:
            carried = self._unasked & self._intake.subscriptions()
            self._unasked = {each for each in carried if self._intake.position(each) < (0, 0)}
            quiet = sorted(filter(self._is_known, self._unasked))
            if not quiet:
                await trio.sleep(LOOK_EVERY_S)
                continue
            try:
                heads = await self._ask(quiet)
            except VenueError as error:
                log.info("heads_unknown", streams=len(quiet), reason=str(error))
                await trio.sleep(ASK_AGAIN_S)
                continue
            log.info("heads_found", streams=len(heads))
            self._unasked.difference_update(quiet)
            await self._begin(heads)

    async def _ask(self, quiet: Sequence[Subscription]) -> list[Head]:
        """Return the heads of those that ever traded, and that the venue has."""
        if len(quiet) <= ASKED_ALONE:
            return await self._ask_each(quiet)
        tickers = {ticker.symbol: ticker for ticker in await self._rest.tickers()}
        asked = [(each, tickers[each.symbol]) for each in quiet if each.symbol in tickers]
        # The ticker counts one day; who has not traded for longer is asked alone.
        dormant = [each for each, ticker in asked if ticker.last_trade_id < 0]
        heads = [
            Head(each, ticker.last_trade_id, ticker.close_ms) for each, ticker in asked if ticker.last_trade_id >= 0
        ]
        return heads + await self._ask_each(dormant)

    async def _ask_each(self, quiet: Sequence[Subscription]) -> list[Head]:
        heads = []
        for each in quiet:
            try:
                rows = await self._rest.trades(each.symbol, 1)
            except BadRequestError as refusal:  # delisted, or misspelt: it must not hold up the others for ever
                log.info("head_refused", stream=each.stream_name, reason=str(refusal))
                continue
            heads += [Head(each, row.trade_id, row.time) for row in rows[-1:]]
        return heads
