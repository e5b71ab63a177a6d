"""An HTTP proxy in front of a Kinesis engine that does what no emulator does (facts/aws.md §4): it fails.

Shard limits, throttled and failed entries inside a 200, whole calls refused, connections cut after the call was
accepted, latency and outages. Only the entries that it accepts reach the engine, and the two answers are merged by
position, as Kinesis aligns them. What it does is decided by a seeded generator, changed at any time through `set`, and
written into `journal`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import h11
import httpx
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

SHARD_RECORDS_PER_S = 1_000  # facts/aws.md §1.1
SHARD_BYTES_PER_S = 1_000_000
PUT_RECORDS = "Kinesis_20131202.PutRecords"
LIST_SHARDS = "Kinesis_20131202.ListShards"
LATEST_CHANCE = 3
NOT_FORWARDED = frozenset({"host", "content-length", "connection", "transfer-encoding", "accept-encoding"})

Json: TypeAlias = dict[str, Any]
Outcome: TypeAlias = Literal["answered", "refused", "cut", "lost", "engine"]


class CallError(NamedTuple):
    """A refusal of a whole call: HTTP status and the service's error code."""

    status: int
    code: str


INTERNAL_FAILURE = CallError(500, "InternalFailure")
UNAVAILABLE = CallError(503, "ServiceUnavailable")
THROTTLED_CALL = CallError(400, "ProvisionedThroughputExceededException")
LIMIT_EXCEEDED = CallError(400, "LimitExceededException")


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong; rates are shares of entries or calls, from 0 to 1."""

    shard_share: float | None = None  # share of the limits of a real shard; None: unlimited
    throttled_entries: float = 0.0
    failed_entries: float = 0.0
    refused_calls: float = 0.0
    refusals: tuple[CallError, ...] = (INTERNAL_FAILURE, UNAVAILABLE, THROTTLED_CALL, LIMIT_EXCEEDED)
    cut_calls: float = 0.0  # forwarded and stored, then the connection is closed instead of an answer
    latency_s: float = 0.0
    outage: Literal["none", "cut", "hang"] = "none"  # every call: closed unread, or never answered


@dataclass(frozen=True, slots=True)
class PutEntryFate:
    """One entry of a call: what it was routed by, and the error it was given (None: accepted)."""

    route: str  # explicit hash key, or else partition key
    digest: bytes
    error: str | None


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One PutRecords call as the proxy saw it; `refused` and `lost` calls stored nothing."""

    at_s: float
    outcome: Outcome
    fates: tuple[PutEntryFate, ...] = ()
    code: str | None = None

    def count(self, error: str | None) -> int:
        """How many entries met `error` (None: were accepted)."""
        return sum(fate.error == error for fate in self.fates)


@dataclass(slots=True)
class TokenBucket:
    """One second of burst; lets a taker through while it is not empty, so that the largest record passes in the end."""

    per_s: float
    level: float = field(init=False)
    seen_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.level = self.per_s

    def refill(self, now: float) -> float:
        """Bring the level up to `now` and return it."""
        self.level = min(self.per_s, self.level + (now - self.seen_s) * self.per_s)
        self.seen_s = now
        return self.level


class ShardLimit:
    """Both limits of one shard: an entry needs room in both."""

    def __init__(self, share: float) -> None:
        self._records = TokenBucket(SHARD_RECORDS_PER_S * share)
        self._bytes = TokenBucket(SHARD_BYTES_PER_S * share)

    def admits(self, size_bytes: int, now: float) -> bool:
        """Take room for one entry, or say no."""
        if min(self._records.refill(now), self._bytes.refill(now)) <= 0:
            return False
        self._records.level -= 1
        self._bytes.level -= size_bytes
        return True


class ShardRange(NamedTuple):
    """An open shard and the hash keys it owns, both ends included."""

    shard_id: str
    first: int
    last: int


def stream_of(call: Json) -> str:
    """Return the name of the stream that a call is for; none when it goes on from an iterator or a token."""
    return str(call.get("StreamName") or call.get("StreamARN", "").rpartition("/")[2])


def hash_key(entry: Json) -> int:
    """Return an entry's place in the 128-bit space: its explicit hash key, or MD5 of its key (facts/aws.md §1.4)."""
    explicit = entry.get("ExplicitHashKey")
    if explicit is not None:
        return int(explicit)
    return int.from_bytes(hashlib.md5(entry["PartitionKey"].encode(), usedforsecurity=False).digest(), "big")


def open_shards(answer: Json) -> list[ShardRange]:
    """Return the shards of a ListShards answer that still take records."""
    return [
        ShardRange(
            shard["ShardId"], int(shard["HashKeyRange"]["StartingHashKey"]), int(shard["HashKeyRange"]["EndingHashKey"])
        )
        for shard in answer["Shards"]
        if "EndingSequenceNumber" not in shard["SequenceNumberRange"]
    ]


class OrderWatch:
    """Holds the producer to its order rule: nothing newer of a route leaves while it still owes something older."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._owed: dict[str, set[bytes]] = {}
        self._under_way: dict[str, int] = {}
        self.overtaken: list[str] = []
        self.overlapping: list[str] = []

    @contextmanager
    def call(self, entries: Sequence[Json]) -> Iterator[list[tuple[str, bytes]]]:
        """Watch one call while it is under way; yields (route, digest) of each entry."""
        keys = [(route_of(entry), hashlib.sha256(entry["Data"].encode()).digest()) for entry in entries]
        routes = {route for route, _ in keys}
        self.overlapping += [route for route in routes if self._under_way.get(route)]
        self.overtaken += [route for route, digest in keys if digest not in self._seen and self._owed.get(route)]
        for route, digest in keys:
            self._owed.setdefault(route, set()).add(digest)
            self._seen.add(digest)
        for route in routes:
            self._under_way[route] = self._under_way.get(route, 0) + 1
        try:
            yield keys
        finally:
            for route in routes:
                self._under_way[route] -= 1

    def acknowledge(self, fates: Sequence[PutEntryFate]) -> None:
        """Note what the producer has been told to be stored."""
        for fate in fates:
            if fate.error is None:
                self._owed[fate.route].discard(fate.digest)


def route_of(entry: Json) -> str:
    """Return what keeps an entry in order: its explicit hash key, or else its partition key."""
    return str(entry.get("ExplicitHashKey") or entry["PartitionKey"])


class CutConnectionError(Exception):
    """The connection is to be closed without an answer."""


class Answer(NamedTuple):
    """A response before it is written."""

    status: int
    body: bytes
    content_type: str = "application/x-amz-json-1.1"


class FaultProxy:
    """Forwards to the engine at `engine_url`, failing as `faults` says; `journal` holds one entry per PutRecords call.

    Open it with `open_fault_proxy`; `url` is what a producer is pointed at. `order_of` tells whether the producer of a
    stream kept its own rules, `asked` which operations were called on which streams ("" where a call names none).
    """

    def __init__(self, engine_url: str, *, faults: Faults | None = None, seed: int = 0) -> None:
        self.faults = faults or Faults()
        self.journal: list[JournalEntry] = []
        self.asked: set[tuple[str, str]] = set()
        self._orders: dict[str, OrderWatch] = {}
        self.url = ""
        self._engine = httpx.AsyncClient(base_url=engine_url, timeout=30, trust_env=False)
        self._random = Random(seed)
        self._chances: dict[Outcome, int] = {}
        self._shards: dict[str, list[ShardRange]] = {}
        self._limits: dict[tuple[str, float], ShardLimit] = {}
        self._listening = trio.CancelScope()
        self._wanted = trio.Event()
        self._gone, self._back = trio.Event(), trio.Event()
        self._port = 0

    def set(self, **changes: Any) -> None:
        """Change some of the faults, keeping the others."""
        self.faults = replace(self.faults, **changes)

    def heal(self) -> None:
        """Work like an engine that never fails."""
        self.faults = Faults()

    @asynccontextmanager
    async def refusing_connections(self) -> AsyncIterator[None]:
        """For the length of this block nothing listens on the port, and open connections are cut."""
        self._wanted, self._back = trio.Event(), trio.Event()
        self._listening.cancel()
        await self._gone.wait()
        try:
            yield
        finally:
            self._wanted.set()
        await self._back.wait()

    def order_of(self, stream: str) -> OrderWatch:
        """Return the watch over the calls for one stream."""
        return self._orders.setdefault(stream, OrderWatch())

    def seen(self, error: str) -> int:
        """How many entries were given `error` so far."""
        return sum(call.count(error) for call in self.journal)

    def calls(self, outcome: Outcome) -> int:
        """How many calls ended with `outcome` so far."""
        return sum(call.outcome == outcome for call in self.journal)

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled, pausing while connections are to be refused."""
        self._wanted.set()
        async with self._engine:
            while True:
                await self._wanted.wait()
                self._gone = trio.Event()
                with trio.CancelScope() as self._listening:
                    listeners = await trio.open_tcp_listeners(self._port, host="127.0.0.1")
                    self._port = listeners[0].socket.getsockname()[1]
                    self.url = f"http://127.0.0.1:{self._port}"
                    task_status.started(self.url)
                    task_status = trio.TASK_STATUS_IGNORED
                    self._back.set()
                    await trio.serve_listeners(self._serve, listeners)
                self._gone.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while connection.states == {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE}:
                request, body = await read_request(stream, connection)
                if request is None:
                    return
                answer = await self._answer(stream, request, body)
                await write_answer(stream, connection, answer)
                if h11.MUST_CLOSE not in connection.states.values():
                    connection.start_next_cycle()
        except (CutConnectionError, trio.BrokenResourceError, h11.RemoteProtocolError):
            return  # the client went away, or is to see exactly that
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.SocketStream, request: h11.Request, body: bytes) -> Answer:
        headers = {
            name.decode(): value.decode() for name, value in request.headers if name.decode() not in NOT_FORWARDED
        }
        target = headers.get("x-amz-target", "")
        is_put = target == PUT_RECORDS
        call = json.loads(body)
        self.asked.add((target.rpartition(".")[2], stream_of(call)))
        if self.faults.outage != "none":
            await self._be_away(stream, is_put=is_put)
        await trio.sleep(self.faults.latency_s)
        if not is_put:
            return await self._forward(headers, body)
        with self.order_of(stream_of(call)).call(call["Records"]) as keys:
            return await self._put_records(headers, call, keys)

    async def _be_away(self, stream: trio.SocketStream, *, is_put: bool) -> None:
        if is_put:
            self.journal.append(JournalEntry(trio.current_time(), "lost"))
        if self.faults.outage == "hang":
            await stream.receive_some()  # until the client gives up and closes
        raise CutConnectionError

    async def _put_records(self, headers: Mapping[str, str], call: Json, keys: Sequence[tuple[str, bytes]]) -> Answer:
        if self._happens("refused", self.faults.refused_calls):
            refusal = self._random.choice(self.faults.refusals)
            self.journal.append(JournalEntry(trio.current_time(), "refused", code=refusal.code))
            return Answer(
                refusal.status, json.dumps({"__type": refusal.code, "message": "refused by the fault proxy"}).encode()
            )
        errors = await self._errors(headers, call)
        stored = await self._store(headers, call, errors)
        if stored.status != 200:
            self.journal.append(JournalEntry(trio.current_time(), "engine", code=str(stored.status)))
            return stored
        answers = merged(errors, json.loads(stored.body)["Records"])
        fates = tuple(
            PutEntryFate(route, digest, answer.get("ErrorCode"))
            for (route, digest), answer in zip(keys, answers, strict=True)
        )
        if self._happens("cut", self.faults.cut_calls):
            self.journal.append(JournalEntry(trio.current_time(), "cut", fates))
            raise CutConnectionError
        self.journal.append(JournalEntry(trio.current_time(), "answered", fates))
        self.order_of(stream_of(call)).acknowledge(fates)
        self._watch_reshard(call, answers)
        failed = sum("ErrorCode" in answer for answer in answers)
        return Answer(200, json.dumps({"FailedRecordCount": failed, "Records": answers}).encode())

    def _happens(self, what: Outcome, share: float) -> bool:
        """Draw; what has not happened yet happens at the third chance at the latest, so that a short test meets it."""
        if not share or self.calls(what):
            return self._random.random() < share
        self._chances[what] = self._chances.get(what, 0) + 1
        return self._chances[what] >= LATEST_CHANCE or self._random.random() < share

    async def _errors(self, headers: Mapping[str, str], call: Json) -> list[Json | None]:
        """Per entry the failure that Kinesis would answer, or None for those that go to the engine."""
        stream = stream_of(call)
        shards = await self._shards_of(stream, headers) if self.faults.shard_share is not None else []
        return [self._error(stream, shards, entry) for entry in call["Records"]]

    def _error(self, stream: str, shards: Sequence[ShardRange], entry: Json) -> Json | None:
        chance = self._random.random()
        if chance < self.faults.failed_entries:
            return {"ErrorCode": "InternalFailure", "ErrorMessage": "Internal service failure."}
        throttled = chance < self.faults.failed_entries + self.faults.throttled_entries
        if throttled or not self._within_limits(stream, shards, entry):
            text = f"Rate exceeded for shard in stream {stream} under account 000000000000."
            return {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": text}
        return None

    def _within_limits(self, stream: str, shards: Sequence[ShardRange], entry: Json) -> bool:
        share = self.faults.shard_share
        if share is None or not shards:
            return True
        position = hash_key(entry)
        # kinesis-mock cuts one key early, so the owner is the last shard that starts at or before the key
        owner = max((shard for shard in shards if shard.first <= position), key=lambda shard: shard.first)
        limit = self._limits.setdefault((f"{stream}/{owner.shard_id}", share), ShardLimit(share))
        size_bytes = len(base64.b64decode(entry["Data"])) + len(entry["PartitionKey"].encode())
        return limit.admits(size_bytes, trio.current_time())

    async def _store(self, headers: Mapping[str, str], call: Json, errors: Sequence[Json | None]) -> Answer:
        accepted = [entry for entry, error in zip(call["Records"], errors, strict=True) if error is None]
        if not accepted:
            return Answer(200, b'{"Records": []}')
        return await self._forward(headers, json.dumps(call | {"Records": accepted}).encode())

    async def _shards_of(self, stream: str, headers: Mapping[str, str]) -> list[ShardRange]:
        if stream not in self._shards:
            # signed for another body: no engine checks signatures, and moto wants to see one
            answer = await self._forward(
                {**headers, "x-amz-target": LIST_SHARDS}, json.dumps({"StreamName": stream}).encode()
            )
            if answer.status != 200:
                return []
            self._shards[stream] = open_shards(json.loads(answer.body))
        return self._shards[stream]

    def _watch_reshard(self, call: Json, answers: Sequence[Json]) -> None:
        stream = stream_of(call)
        known = {shard.shard_id for shard in self._shards.get(stream, ())}
        if any(answer["ShardId"] not in known for answer in answers if "ShardId" in answer):
            self._shards.pop(stream, None)  # asked again before the next call

    async def _forward(self, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            response = await self._engine.post("/", content=body, headers=dict(headers))
        except httpx.TransportError as error:
            raise CutConnectionError from error
        return Answer(
            response.status_code, response.content, response.headers.get("content-type", "application/x-amz-json-1.1")
        )


def merged(errors: Sequence[Json | None], stored: Sequence[Json]) -> list[Json]:
    """Put the engine's answers into the places of the entries that were let through."""
    answers = iter(stored)
    return [next(answers) if error is None else error for error in errors]


async def read_request(stream: trio.SocketStream, connection: h11.Connection) -> tuple[h11.Request | None, bytes]:
    """Read one whole request; no request when the client has closed."""
    request: h11.Request | None = None
    body = bytearray()
    while True:  # noqa: ASYNC913 - ends with what was received, or waits for more
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_ahead = connection.send(h11.InformationalResponse(status_code=100, headers=[]))
                await stream.send_all(go_ahead or b"")
            connection.receive_data(await stream.receive_some(65_536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        else:  # end of message, or the connection was closed
            return request, bytes(body)


async def write_answer(stream: trio.SocketStream, connection: h11.Connection, answer: Answer) -> None:
    """Write one whole response."""
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("x-amzn-RequestId", "fault-proxy"),
    ]
    parts = [
        connection.send(h11.Response(status_code=answer.status, headers=headers)),
        connection.send(h11.Data(data=answer.body)),
        connection.send(h11.EndOfMessage()),
    ]
    await stream.send_all(b"".join(part or b"" for part in parts))


@asynccontextmanager
async def open_fault_proxy(
    engine_url: str, *, faults: Faults | None = None, seed: int = 0
) -> AsyncIterator[FaultProxy]:
    """Run a proxy in front of `engine_url` for the length of this block."""
    proxy = FaultProxy(engine_url, faults=faults, seed=seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
