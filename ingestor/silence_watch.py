"""Finds streams that are granted but dead on a live connection, and has them subscribed again and repaired.

What is silent for longer than is usual for it is compared with the newest that the venue has, over REST: one call for
all trades, or a cheap one for each when they are few; a book's id and a running bar for the others, a few at a time.
A subscription is dead when it is behind the venue, or behind what another feed brought, and still is two seconds later.
A quiet one is asked about again when its silence has doubled. A trade that nobody saw while a connection was away, of a
symbol that is quiet since, is found the same way.

A feed that a full line holds up is not silent: what it has to say waits unread, and would be lost with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import structlog
import trio

from ingestor.core.binance import milliseconds
from ingestor.core.silence import SWEEP_S, Hearing
from ingestor.rest_client import VenueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ingestor.core.binance import RestTrade
    from ingestor.core.intake import Inlet, Intake, Position
    from ingestor.core.model import Gap, Subscription
    from ingestor.core.silence import Ear, Usual
    from ingestor.rest_client import RestClient

log = structlog.get_logger()

GRACE_S: Final = 2.0  # what was under way when the venue was asked has arrived by then
ASKED_ALONE: Final = 3  # symbols whose newest trade is cheaper asked for one by one (weight 25) than all at once (80)
ASKED_AT_ONCE: Final = 10  # books and bars a sweep (weight 5 and 2); the others are asked about in the next ones
REPLACED_FROM: Final = 5  # so many dead streams found at once: it is the connection


class Feed(Protocol):
    """An open connection."""

    @property
    def inlet(self) -> Inlet | None:
        """Its way in, once anything came."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether it is subscribed to everything."""
        ...

    def listened_s(self, now: float) -> float:
        """Read a clock that stands still while nothing is read from it."""
        ...

    def resubscribe(self, subscriptions: Iterable[Subscription]) -> None:
        """End and begin anew some of its streams."""
        ...

    def replace(self, reason: str) -> None:
        """Ask for another one in its place."""
        ...


class Connection(Protocol):
    """What is kept open by one feed after the other."""

    @property
    def name(self) -> str:
        """Its name for a person."""
        ...

    @property
    def feed(self) -> Feed | None:
        """The feed that counts now."""
        ...


class SilenceWatch:
    """Watches all `connections`, which come and go; `report_gap` takes what has to be repaired and never blocks."""

    def __init__(
        self,
        connections: Sequence[Connection],
        intake: Intake,
        rest: RestClient,
        *,
        report_gap: Callable[[Gap], None],
        wall_ns: Callable[[], int],
    ) -> None:
        self._connections = connections
        self._intake = intake
        self._rest = rest
        self._report_gap = report_gap
        self._wall_ns = wall_ns
        self._usual: Usual = {}
        self._hearings: dict[str, Hearing] = {}
        self._known: dict[Subscription, Position] = {}  # where the venue was, of what we never heard of

    def forget(self, subscriptions: Iterable[Subscription]) -> None:
        """Know nothing of `subscriptions` any more: nobody carries them."""
        for subscription in subscriptions:
            self._usual.pop(subscription, None)
            self._known.pop(subscription, None)

    async def run(self) -> NoReturn:
        """Watch until cancelled."""
        while True:
            await trio.sleep(SWEEP_S)
            await self._look_into(self._suspects())

    def _suspects(self) -> list[tuple[Connection, Feed, list[Ear]]]:
        """Return what is suspiciously silent, feed by feed."""
        now = trio.current_time()
        names = {connection.name for connection in self._connections}
        self._hearings = {name: hearing for name, hearing in self._hearings.items() if name in names}
        found = []
        for connection in self._connections:
            feed = connection.feed
            if feed is None or feed.inlet is None or not feed.is_live:
                continue
            hearing = self._hearings.get(connection.name)
            listened_s = feed.listened_s(now)
            if hearing is None or hearing.inlet is not feed.inlet or hearing.was_held_up(now, listened_s):
                hearing = self._hearings[connection.name] = Hearing(feed.inlet, self._usual, self._intake, now)
            hearing.note_listened(now, listened_s)
            found.append((connection, feed, hearing.sweep(now)))
        return [each for each in found if each[2]]

    async def _look_into(self, found: Sequence[tuple[Connection, Feed, list[Ear]]]) -> None:
        behind = await self._behind([ear for _, _, ears in found for ear in ears])
        if not behind:
            return
        await trio.sleep(GRACE_S)
        now = trio.current_time()
        for connection, feed, ears in found:
            if self._hearings[connection.name].was_held_up(now, feed.listened_s(now)):
                continue  # what it has to say may wait unread
            silent = [ear for ear in ears if ear in behind and ear.is_silent]
            # The first look at a feed finds what was missed before it: that is no sign against the feed.
            dead = [ear for ear in silent if not ear.is_new or self._is_overtaken(ear)]
            if len(dead) >= REPLACED_FROM:
                log.warning("connection_silent", connection=connection.name, streams=len(dead))
                feed.replace("dead streams")
                continue
            if dead:
                names = [ear.subscription.stream_name for ear in dead]
                log.warning("streams_silent", connection=connection.name, streams=names)
                feed.resubscribe([ear.subscription for ear in dead])
            for ear in silent:
                await self._set_right(ear)

    def _is_overtaken(self, ear: Ear) -> bool:
        """Say whether another feed brought more since this one last brought anything."""
        return self._intake.position(ear.subscription) > ear.position

    async def _behind(self, suspects: Sequence[Ear]) -> list[Ear]:
        """Return those that are behind what another feed brought, or behind the venue."""
        overtaken = [ear for ear in suspects if self._is_overtaken(ear)]
        return overtaken + await self._behind_venue([ear for ear in suspects if ear not in overtaken])

    async def _behind_venue(self, suspects: Sequence[Ear]) -> list[Ear]:
        """Return those of which the venue has more than we do."""
        trades = [ear for ear in suspects if ear.subscription.kind == "trade"]
        others = [ear for ear in suspects if ear.subscription.kind != "trade"][:ASKED_AT_ONCE]
        newest = await self._newest_trades([ear.subscription for ear in trades])
        newest |= {ear.subscription: await self._newest(ear.subscription) for ear in others}
        behind = []
        for ear in (*trades, *others):
            there = newest.get(ear.subscription)
            if there is None:
                ear.wait_longer(trio.current_time())
            elif there > self._here(ear.subscription, there):
                behind.append(ear)
            else:
                ear.acquit(trio.current_time())
        return behind

    def _here(self, subscription: Subscription, there: Position) -> Position:
        """Return how far we are; of what we never heard of, what the venue had at first proves nothing."""
        here = self._intake.position(subscription)
        return here if here >= (0, 0) else self._known.setdefault(subscription, there)

    async def _newest_trades(self, subscriptions: Sequence[Subscription]) -> dict[Subscription, Position | None]:
        if len(subscriptions) <= ASKED_ALONE:
            return {each: await self._newest(each) for each in subscriptions}
        try:
            tickers = {ticker.symbol: ticker.last_trade_id for ticker in await self._rest.tickers()}
        except VenueError as error:
            log.info("silence_unexplained", streams=len(subscriptions), reason=str(error))
            return {}
        ids = {each: tickers.get(each.symbol) for each in subscriptions}
        return {each: (last_id, 0) for each, last_id in ids.items() if last_id is not None}

    async def _newest(self, subscription: Subscription) -> Position | None:
        """Ask for the newest of one subscription; None if there is nothing, or no answer."""
        try:
            return await self._ask(subscription)
        except VenueError as error:
            log.info("silence_unexplained", streams=1, reason=str(error))
            return None

    async def _ask(self, subscription: Subscription) -> Position | None:
        symbol, kind = subscription
        if kind == "trade":
            row = await self._newest_trade(symbol)
            return (row.trade_id, 0) if row else None
        if kind == "depth":
            return (await self._rest.depth(symbol, 5, purpose="probes")).last_update_id, 0
        bars = await self._rest.klines(symbol, kind.removeprefix("kline_"), limit=1, purpose="probes")
        return (milliseconds(bars[-1].open_time), bars[-1].trade_count) if bars else None

    async def _newest_trade(self, symbol: str) -> RestTrade | None:
        rows = await self._rest.trades(symbol, 1)
        return rows[-1] if rows else None

    async def _set_right(self, ear: Ear) -> None:
        """Have repaired what was missed, and expect to hear what comes now."""
        try:
            if not self._is_overtaken(ear):
                await self._catch_up(ear.subscription)
        except VenueError as error:
            log.info("silence_unexplained", streams=1, reason=str(error))
            ear.wait_longer(trio.current_time())
        else:
            ear.begin_anew(self._intake.position(ear.subscription), trio.current_time())

    async def _catch_up(self, subscription: Subscription) -> None:
        """Go on behind the venue's newest, and have repaired what lies before it.

        Not for diffs: the first one that follows shows what is missing, and that is declared.
        """
        there: Position | None = None
        event_ms = 0
        if subscription.kind == "trade":
            if (row := await self._newest_trade(subscription.symbol)) is not None:
                there, event_ms = (row.trade_id, 0), row.time
        elif subscription.kind != "depth":
            there = await self._ask(subscription)
        gap = there and self._intake.pass_over(subscription, there, event_ms, self._wall_ns() // 1_000_000)
        if gap is not None:
            log.info("head_was_missing", stream=subscription.stream_name, first=gap.first, last=gap.last)
            self._report_gap(gap)
