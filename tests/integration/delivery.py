"""A producer as the service builds it, through boto3 and the fault proxy into an engine, and the stream read back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Literal, TypeVar

import trio
from prometheus_client import CollectorRegistry

from ingestor.aws import KinesisApi, KinesisSink, StreamClient, make_kinesis_client
from ingestor.channels import BatchReceiver, BatchSender, open_batch_channel
from ingestor.config import BatchLimits, CircuitBreakerLimits, Kinesis, Retry, Timeouts
from ingestor.core.claims import Intervals
from ingestor.core.health import SinkFact
from ingestor.core.model import Claim, EncodedBatch, EncodedRecord, Subscription
from ingestor.kinesis_producer import KinesisProducer
from ingestor.metrics import Metrics
from ingestor.reader import OLDEST, ShardPage, StreamReader
from ingestor.shard_watch import ShardWatch
from ingestor.threads import open_threads
from tests.integration.engines import REGION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ingestor.core.model import DeadLetter, HoleReason
    from ingestor.core.shards import ShardInfo

T = TypeVar("T")
BATCH_IDS = 5
SYMBOLS = tuple(f"COIN{n}USDT" for n in range(6))


@dataclass(slots=True)
class Letters:
    """Dead letters in memory; none is expected here."""

    written: list[DeadLetter] = field(default_factory=list["DeadLetter"])

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them."""
        self.written += letters
        await trio.lowlevel.checkpoint()


def settings_for(url: str, stream: str, aggregation: Literal["kpl", "none"], *, lanes: int = 4) -> Kinesis:
    """Return impatient settings: small blobs, so that a few records make many entries, and short waits."""
    return Kinesis(
        stream_name=stream,
        region=REGION,
        endpoint_url=url,
        aggregation=aggregation,
        blob_bytes=1_000,
        lanes=lanes,
        batch=BatchLimits(max_records=40, flush_interval_s=0.02),
        retry=Retry(initial_s=0.01, max_s=0.1),
        circuit_breaker=CircuitBreakerLimits(failure_threshold=3, reset_timeout_s=0.2),
        timeouts=Timeouts(connect_s=1, read_s=1),
    )


class Line:
    """The end of the line: a producer, what it was told was stored, and what it thinks of Kinesis."""

    def __init__(self, settings: Kinesis, *, on_shards: Callable[[list[ShardInfo]], None] | None = None) -> None:
        """With `on_shards` the shards of the stream are known, and told each time that they are listed."""
        self.fact = SinkFact()
        self.letters = Letters()
        self.metrics = Metrics(CollectorRegistry())
        self.claimed = {symbol: Intervals() for symbol in SYMBOLS}
        self._progress = trio.Event()
        ends: tuple[BatchSender[EncodedBatch], BatchReceiver[EncodedBatch]] = open_batch_channel(16, 1_000_000)
        self._sender, self._receiver = ends
        self._api = KinesisApi(lambda: make_kinesis_client(settings), open_threads(4))
        self._settings = settings
        self._on_shards = on_shards
        self._is_mapped = trio.Event()
        self._producer = KinesisProducer(
            settings,
            KinesisSink(self._api, settings.stream_name),
            dead_letters=self.letters,
            encode_hole=no_holes_here,
            on_acknowledged=self._note,
            metrics=self.metrics,
            fact=self.fact,
            wall_ns=time.time_ns,
            jitter=Random(7),
            held_max_bytes=1_000_000,
            farewell_s=5.0,
        )

    def _note(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self.claimed[claim.subscription.symbol].add(claim.first, claim.last)
        self._progress.set()
        self._progress = trio.Event()

    async def deliver(self, per_symbol: int, *, pace_s: float = 0.0) -> None:
        """Send ids 1 to `per_symbol` of every symbol; hang up and return when all of them were acknowledged."""
        async with trio.open_nursery() as watching, trio.open_nursery() as nursery:
            if self._on_shards is not None:
                watching.start_soon(self._watch_shards, self._on_shards)
                await self._is_mapped.wait()
            await nursery.start(self._producer.run, self._receiver)
            with self._sender:
                for first in range(1, per_symbol + 1, BATCH_IDS):
                    await self._sender.send(batch_of(first, min(first + BATCH_IDS - 1, per_symbol)))
                    await trio.sleep(pace_s)
                await self.wait_claimed(per_symbol)
            watching.cancel_scope.cancel()

    async def wait_claimed(self, per_symbol: int) -> None:
        """Wait until so many ids of every symbol were acknowledged."""
        while any(claimed.count() < per_symbol for claimed in self.claimed.values()):
            await self._progress.wait()

    async def _watch_shards(self, on_shards: Callable[[list[ShardInfo]], None]) -> None:
        def learn(shards: Sequence[ShardInfo]) -> None:
            on_shards(list(shards))
            self._producer.learn_shards(shards)
            self._is_mapped.set()

        streams, name = StreamClient(self._api), self._settings.stream_name
        wait_for_news = self._producer.wait_unknown_shard
        await ShardWatch(streams, name, learn=learn, wait_for_news=wait_for_news, pace_s=0.1).run()


def no_holes_here(claim: Claim, reason: HoleReason) -> EncodedRecord:
    """Fail, because nothing is poison here."""
    raise AssertionError(f"a hole is declared for {claim}: {reason}")


def batch_of(first: int, last: int) -> EncodedBatch:
    """Make one batch with ids `first` to `last` of every symbol; the data of a record is its own name."""
    records = [
        EncodedRecord(
            symbol, b"%s %d" % (symbol.encode(), number), Claim(Subscription(symbol, "trade"), number, number)
        )
        for number in range(first, last + 1)
        for symbol in SYMBOLS
    ]
    return EncodedBatch(records, trio.current_time(), sum(len(record.data) for record in records))


async def read_back(url: str, stream: str) -> dict[str, list[int]]:
    """Read the whole stream straight from the engine: the ids of every symbol, in the order of the stream."""
    settings = settings_for(url, stream, "none")
    reader = StreamReader(StreamClient(KinesisApi(lambda: make_kinesis_client(settings), open_threads(4))), stream)
    stored: dict[str, list[int]] = {symbol: [] for symbol in SYMBOLS}

    async def consume(page: ShardPage) -> None:
        for payload in page.payloads:
            assert payload.problem is None
            symbol, number = payload.data.decode().split()
            assert symbol == payload.partition_key
            stored[symbol].append(int(number))
        await trio.lowlevel.checkpoint()

    await reader.read(OLDEST, consume)
    return stored


def first_arrivals(ids: Iterable[T]) -> list[T]:
    """Return ids in order without those that were there before."""
    return list(dict.fromkeys(ids))
