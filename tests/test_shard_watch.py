"""The map of a stream's shards is fetched at once, on news, and now and then; without it there are no budgets."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from ingestor.shard_watch import LOOK_EVERY_S, PACE_S, TRY_AGAIN_S, ShardWatch
from tests.fakes.stream import NO_STREAM, FakeShard, FakeStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from trio.testing import MockClock

    from ingestor.core.shards import ShardInfo


class Producer:
    """Takes maps, and knows a shard that is not on them when it is told to."""

    def __init__(self) -> None:
        self.maps: list[tuple[float, list[str]]] = []
        self.news = trio.Event()

    def learn(self, shards: Sequence[ShardInfo]) -> None:
        self.maps.append((trio.current_time(), [shard.shard_id for shard in shards if not shard.closed]))
        self.news = trio.Event()

    async def wait_for_news(self) -> None:
        await self.news.wait()


@asynccontextmanager
async def watching(stream: FakeStream, producer: Producer) -> AsyncIterator[None]:
    watch = ShardWatch(stream, "data", learn=producer.learn, wait_for_news=producer.wait_for_news)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


async def test_the_map_is_there_at_once_and_looked_at_every_few_minutes(
    autojump_clock: MockClock, logs: list[Any]
) -> None:
    """One line for each shape that the stream has had."""
    stream, producer = FakeStream({"a": FakeShard(), "old": FakeShard(closed=True)}), Producer()
    async with watching(stream, producer):
        await trio.sleep(2.5 * LOOK_EVERY_S)
    assert producer.maps == [(index * LOOK_EVERY_S, ["a"]) for index in range(3)]
    assert [(line["event"], line["open"]) for line in logs] == [("shards", 1)]


async def test_an_unknown_shard_has_it_looked_at_again_but_not_without_end(
    autojump_clock: MockClock, logs: list[Any]
) -> None:
    """A reshard names new shards one after the other."""
    stream, producer = FakeStream({"a": FakeShard()}), Producer()
    async with watching(stream, producer):
        await trio.sleep(100)
        stream.shards = {"a": FakeShard(closed=True), "b": FakeShard("a"), "c": FakeShard("a")}
        producer.news.set()
        await trio.sleep(1)
        producer.news.set()
        await trio.sleep(50)
    assert producer.maps == [(0.0, ["a"]), (100.0, ["b", "c"]), (100.0 + PACE_S, ["b", "c"])]
    assert [(line["before"], line["open"]) for line in logs] == [(0, 1), (1, 2)]


async def test_a_stream_that_cannot_be_listed_costs_one_line(autojump_clock: MockClock, logs: list[Any]) -> None:
    """It is tried again for ever, and told again only after it has worked."""
    stream, producer = FakeStream(), Producer()
    stream.errors.extend([NO_STREAM, NO_STREAM, None, NO_STREAM])
    async with watching(stream, producer):
        await trio.sleep(2 * TRY_AGAIN_S + LOOK_EVERY_S + 1)
    assert [at_s for at_s, _ in producer.maps] == [2 * TRY_AGAIN_S]
    assert [line["event"] for line in logs] == ["shards_unknown", "shards", "shards_unknown"]
    assert "ResourceNotFoundException" in logs[0]["error"]


@pytest.mark.parametrize(("is_outdated", "maps"), [(True, [["s0"], [], ["s0"]]), (False, [["s0"]])])
async def test_a_map_that_is_known_to_be_wrong_is_given_up(
    autojump_clock: MockClock, is_outdated: bool, maps: list[list[str]]
) -> None:
    """Until there is a new one: its budgets would hold up what new shards can take. One that is only old is kept."""
    stream, producer = FakeStream(), Producer()
    stream.errors.extend([None, NO_STREAM])
    async with watching(stream, producer):
        await trio.sleep(100)
        if is_outdated:
            producer.news.set()
        await trio.sleep(LOOK_EVERY_S - 99)
    assert [shards for _, shards in producer.maps] == maps
