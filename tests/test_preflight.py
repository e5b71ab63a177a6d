"""`ingestor check --connect`: what is found out, how bad it is, and what a person is told to do."""

from __future__ import annotations

import io
import json
from random import Random
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog
import trio
from click.testing import CliRunner

from ingestor import preflight
from ingestor.aws import QueueSummary, StoredRecord, StreamClient, StreamSummary
from ingestor.cli import main
from ingestor.config import Config
from ingestor.core.errors import ConfigError, SinkError
from ingestor.core.resume import Beat, beat_to_avro
from ingestor.heartbeat import identity_of
from ingestor.local.faults import FailRest
from ingestor.metrics import open_metrics
from ingestor.preflight import Finding, Outside
from ingestor.rest_client import RestClient
from ingestor.serializer import encode_heartbeat
from tests.fakes.streams import MemoryStreams
from tests.fakes.venue import FakeVenue
from tests.fakes.world import BEATS, DATA, START_MS, MemoryWorld, config_for, run_inline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import TextIO

    from trio.testing import MockClock

    from ingestor.aws import RecordsPage
    from ingestor.core.resume import Identity
    from ingestor.core.shards import ShardInfo
    from tests.fakes.venue import VenueSocket

DENIED = "AccessDeniedException"


class ProbedStreams(MemoryStreams):
    """Streams of which some calls are refused; `summary` replaces what a stream is."""

    def __init__(self, world: MemoryWorld) -> None:
        super().__init__({DATA: world.data, BEATS: world.beats})
        self.errors: dict[tuple[str, str], str] = {}
        self.summary: dict[str, StreamSummary] = {}
        self.is_aws = True

    async def describe(self, stream: str) -> StreamSummary:
        self._refuse(stream, "describe")
        return self.summary.get(stream) or await super().describe(stream)

    async def rehearse_put(self, stream: str) -> bool:
        await trio.lowlevel.checkpoint()
        self._refuse(stream, "put")
        return self.is_aws

    async def list_shards(self, stream: str) -> list[ShardInfo]:
        self._refuse(stream, "list")
        return await super().list_shards(stream)

    async def get_shard_iterator(self, stream: str, *arguments: Any, **options: Any) -> str:
        self._refuse(stream, "iterator")
        return await super().get_shard_iterator(stream, *arguments, **options)

    async def get_records(self, iterator: str, limit: int = 10_000) -> RecordsPage:
        self._refuse(iterator.partition("/")[0], "read")
        return await super().get_records(iterator, limit)

    def _refuse(self, stream: str, call: str) -> None:
        if code := self.errors.get((stream, call)):
            raise SinkError("configuration", code, "no")


class FakeQueue:
    """A queue that answers, or is refused."""

    def __init__(self, error: SinkError | None = None) -> None:
        self.error = error

    async def describe(self, queue_url: str) -> QueueSummary:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return QueueSummary("arn:aws:sqs:us-east-1:1:letters", 1_209_600)


class Place:
    """Everything that a check reaches, and what it finds there."""

    def __init__(self, world: MemoryWorld, folder: Path) -> None:
        self.world = world
        self.config = config_for(world, folder, lanes=4)
        self.streams = ProbedStreams(world)
        self.skew_ms = 0
        seen = world.as_seen_by_a_service()
        self.outside = Outside(
            rest=self.rest_over(seen.rest_transport),
            connect=seen.connect,
            streams=self.streams,
            queue=None,
            find_schema=lambda: "1",
            run_blocking=run_inline,
            wall_ns=lambda: seen.wall_ns() + self.skew_ms * 1_000_000,
        )

    def rest_over(self, transport: httpx.AsyncBaseTransport | None) -> RestClient:
        """Return a client of the venue over this network."""
        return RestClient(
            self.config.binance.rest_url,
            self.config.binance.rest.model_copy(update={"max_attempts": 2}),
            metrics=open_metrics(),
            wall_ns=self.world.wall_ns,
            random=Random(1),
            transport=transport,
        )

    def set(self, section: str, **values: object) -> None:
        """Change the configuration."""
        changed = getattr(self.config, section).model_copy(update=values)
        self.config = self.config.model_copy(update={section: changed})

    async def check(self) -> tuple[int, str]:
        """Return the exit code and the text."""
        out = io.StringIO()
        async with self.world.alive():
            await trio.sleep(1)  # the venue's faults begin with its first tick
            code = await preflight.check(self.config, self.outside, out)
        return code, out.getvalue()


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    return Place(MemoryWorld(["BTCUSDT", "ETHUSDT"]), tmp_path)


def levels(text: str) -> dict[str, set[str]]:
    """Return the levels of the lines about each subject."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith(" "):
            level, subject = line.split(":")[0].split()
            found.setdefault(subject, set()).add(level)
    return found


async def test_where_all_is_well_every_line_says_ok(autojump_clock: MockClock, place: Place) -> None:
    """In the order in which data flows; nothing is written to the streams."""
    code, text = await place.check()
    assert code == 0
    assert levels(text) == {
        "binance.rest_url": {"ok"},
        "binance.symbols": {"ok"},
        "binance.websocket_url": {"ok"},
        "kinesis.stream_name": {"ok"},
        "heartbeat.stream_name": {"ok"},
        "dead_letter.directory": {"ok"},
        "spool.directory": {"ok"},
    }
    assert "2 symbols, 6 subscriptions, 1 connections" in text
    assert "subscribed to BTCUSDT, first message after" in text
    assert "data is ACTIVE: 2 shards" in text
    assert "data may be written" in text
    assert "beats may be read" in text
    assert place.world.data.calls == place.world.beats.calls == 0


async def test_an_emulator_is_not_asked_whether_it_may_be_written(autojump_clock: MockClock, place: Place) -> None:
    """It would store the record."""
    place.streams.is_aws = False
    code, text = await place.check()
    assert code == 0
    assert "may be written" not in text.replace("dead-letter may be written", "")


@pytest.mark.parametrize(("skew_ms", "level", "words"), [(400, "ok", "ahead of"), (-90_000, "warn", "behind")])
async def test_a_clock_that_is_wrong_is_a_warning(
    autojump_clock: MockClock, place: Place, skew_ms: int, level: str, words: str
) -> None:
    """Nothing is lost by it, and numbers are wrong."""
    place.skew_ms = skew_ms
    code, text = await place.check()
    assert code == 0
    assert levels(text)["binance.rest_url"] == {level}
    assert words in text
    assert ("NTP" in text) == (level == "warn")


async def test_a_restricted_location_is_named(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Trying again would not help, another region would."""
    place = Place(MemoryWorld(["BTCUSDT"], script=[FailRest(0.0, 1e6, "restricted")]), tmp_path)
    code, text = await place.check()
    assert code == 1
    assert "restricted location (HTTP 451)" in text
    assert "-> run it in a region the venue serves" in text


async def test_a_venue_that_fails_is_unreachable(autojump_clock: MockClock, tmp_path: Path) -> None:
    """After two attempts, because a person waits."""
    place = Place(MemoryWorld(["BTCUSDT"], script=[FailRest(0.0, 1e6, "internal")]), tmp_path)
    code, text = await place.check()
    assert code == 1
    assert levels(text)["binance.rest_url"] == {"fail"}
    assert "DNS, proxy, port 443" in text


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("Name or service not known"), httpx.ConnectTimeout("no answer from 10.0.0.1")]
)
async def test_a_venue_that_no_way_leads_to_is_unreachable(
    autojump_clock: MockClock, place: Place, error: httpx.TransportError
) -> None:
    """The words of the network, and where to look; the feed is looked at beside it."""

    async def answer(_request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        raise error

    place.outside = place.outside._replace(rest=place.rest_over(httpx.MockTransport(answer)))
    code, text = await place.check()
    assert code == 1
    assert (levels(text)["binance.rest_url"], levels(text)["binance.websocket_url"]) == ({"fail"}, {"ok"})
    assert str(error) in text
    assert "-> open the way out: DNS, proxy, port 443" in text


async def test_a_venue_that_bans_is_not_waited_for(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A ban may last days; the other parts are looked at all the same."""
    place = Place(MemoryWorld(["BTCUSDT"], script=[FailRest(0.0, 1e6, "banned")]), tmp_path)
    code, text = await place.check()
    assert code == 1
    assert "fail  binance.rest_url: no answer within 45 s" in text
    assert levels(text)["kinesis.stream_name"] == {"ok"}


@pytest.mark.parametrize(
    ("symbols", "shard", "expected"),
    [
        (["BTCUSDT", "NOSUCH"], {}, ("fail", "does not know NOSUCH")),
        (["all:XYZ"], {}, ("fail", "trades none of them")),
        (["BTCUSDT", "OLDUSDT"], {}, ("warn", "OLDUSDT is not traded now (BREAK)")),
        (["BTCUSDT"], {"index": 1, "count": 64}, ("fail", "none of 1 symbols falls to task 1 of 64")),
        (["all:USDT"], {}, ("ok", "1 symbols, 3 subscriptions, 2 connections")),
    ],
)
def test_symbols_are_held_against_the_venues_list(
    symbols: list[str], shard: dict[str, int], expected: tuple[str, str]
) -> None:
    """What it does not know is a mistake, what it has paused is not."""
    binance = {"symbols": symbols, "connections": {"redundancy": 2}}
    config = Config.model_validate({"binance": binance, "shard": shard})
    found = preflight.judge_symbols(config, {"BTCUSDT": "USDT"}, {"OLDUSDT": "BREAK"})
    assert (found[0].level, expected[1] in found[0].text) == (expected[0], True)


async def refuse_by_law(socket: VenueSocket) -> None:
    await socket.read_head()
    await socket.send(b"HTTP/1.1 451 Unavailable\r\nContent-Length: 0\r\n\r\n")
    await trio.sleep_forever()


async def say_nothing(socket: VenueSocket) -> None:
    await socket.accept()
    await socket.read_frame()
    await socket.send_text('{"result":null,"id":1}')
    await trio.sleep_forever()


async def refuse_names(socket: VenueSocket) -> None:
    await socket.accept()
    while True:
        request = await socket.read_request()
        await socket.send_text(json.dumps({"code": 2, "msg": "Invalid request", "id": request["id"]}))


@pytest.mark.parametrize(
    ("script", "level", "words"),
    [
        (refuse_by_law, "fail", "does not serve this address: run it in another region"),
        (say_nothing, "warn", "nothing came"),
        (refuse_names, "fail", "was refused: Invalid request (2)"),
    ],
)
async def test_a_feed_that_does_not_flow_is_told_apart(
    autojump_clock: MockClock, place: Place, script: Callable[[VenueSocket], Awaitable[None]], level: str, words: str
) -> None:
    """Refused by law, silent, or asked for what it does not have."""
    async with trio.open_nursery() as nursery:
        place.outside = place.outside._replace(connect=FakeVenue(nursery, [script]).connect)
        code, text = await place.check()
        nursery.cancel_scope.cancel()
    assert code == (level == "fail")
    assert levels(text)["binance.websocket_url"] == {level}
    assert words in text


async def test_a_venue_without_a_way_to_it_fails(autojump_clock: MockClock, place: Place) -> None:
    """The words of the network, and where to look."""

    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise OSError("Name or service not known")

    place.outside = place.outside._replace(connect=connect)
    code, text = await place.check()
    assert code == 1
    assert "Name or service not known" in text
    assert "TLS inspection" in text


@pytest.mark.parametrize(
    ("call", "level", "action"),
    [
        ((DATA, "describe"), "warn", "kinesis:DescribeStreamSummary"),
        ((DATA, "put"), "fail", "kinesis:PutRecords"),
        ((DATA, "list"), "warn", "kinesis:ListShards"),
        ((BEATS, "put"), "fail", "kinesis:PutRecords"),
        ((BEATS, "list"), "fail", "kinesis:ListShards"),
        ((BEATS, "iterator"), "fail", "kinesis:GetShardIterator"),
        ((BEATS, "read"), "fail", "kinesis:GetRecords"),
    ],
)
async def test_a_missing_permission_is_named(
    autojump_clock: MockClock, place: Place, call: tuple[str, str], level: str, action: str
) -> None:
    """By the action that a policy needs, as bad as what the service cannot do without it."""
    place.set("heartbeat", resume=True)
    place.streams.errors[call] = DENIED
    code, text = await place.check()
    assert code == (level == "fail")
    assert f"-> allow {action} on {call[0]}\n" in text
    subject = "kinesis.stream_name" if call[0] == DATA else "heartbeat.stream_name"
    assert level in levels(text)[subject]


async def test_a_key_that_is_too_much_for_its_shard_is_told_as_the_running_task_tells_it(
    autojump_clock: MockClock, place: Place
) -> None:
    """Of this service and now: what another service says, what a task said at its end or long ago is no news."""
    for name, age_s, is_final, key in (
        ("ingestor", 5.0, False, "BTCUSDT"),
        ("ingestor", 100.0, False, "OLD"),
        ("ingestor", 5.0, True, "ENDED"),
        ("another", 5.0, False, "FOREIGN"),
    ):
        service = place.config.service.model_copy(update={"name": name})
        identity = identity_of(place.config.model_copy(update={"service": service}))
        sent_ms = START_MS - round(age_s * 1000)
        data = encode_heartbeat(beat_to_avro(beat_of(identity, sent_ms, hot_keys=key, final=is_final)))
        place.world.beats.shards[0].append(StoredRecord(data, "task/0", sent_ms, str(len(place.world.beats.records()))))
    place.world.beats.shards[0].sort(key=lambda record: record.arrival_ms)
    code, text = await place.check()
    assert code == 0
    assert text.count("alone uses up the budget") == 1
    assert "warn  kinesis.partition_key: BTCUSDT alone uses up the budget of its shard" in text
    assert "-> more shards do not help" in text


def beat_of(identity: Identity, sent_ms: int, *, hot_keys: str, final: bool) -> Beat:
    return Beat(
        **identity._asdict(),
        instance="task",
        version="1",
        started_ms=0,
        sent_ms=sent_ms,
        beat=1,
        part=0,
        parts=1,
        final=final,
        components={"kinesis": "closed", "hot_keys": hot_keys},
    )


async def test_who_does_not_resume_need_not_read(autojump_clock: MockClock, place: Place) -> None:
    """The permission is still told, for the day it is needed."""
    place.streams.errors[BEATS, "list"] = DENIED
    code, text = await place.check()
    assert code == 0
    assert "warn  heartbeat.stream_name: beats: ListShards failed" in text


async def test_a_key_that_may_not_be_used_is_named(autojump_clock: MockClock, place: Place) -> None:
    """It is another policy than that of the stream."""
    place.streams.errors[DATA, "put"] = "KMSAccessDeniedException"
    code, text = await place.check()
    assert code == 1
    assert "-> allow kms:GenerateDataKey, kms:Decrypt on the key of data\n" in text


async def test_a_stream_that_is_missing_is_said_once(autojump_clock: MockClock, place: Place) -> None:
    """Every other call would fail as well."""
    place.streams.errors[DATA, "describe"] = "ResourceNotFoundException"
    code, text = await place.check()
    assert code == 1
    assert text.count("ResourceNotFoundException") == 1
    assert "-> create it, or correct its name and kinesis.region" in text


async def test_what_a_stream_is_has_to_fit(autojump_clock: MockClock, place: Place) -> None:
    """Distribution, lanes, state and key of the data stream; how far back the heartbeats go."""
    arn = "arn:aws:kinesis:us-east-1:1:stream/data"
    place.streams.summary = {
        DATA: StreamSummary(arn, "DELETING", "ON_DEMAND", 3, 24, 1024, "AUTO", "arn:aws:kms:us-east-1:1:key/1"),
        BEATS: StreamSummary(arn, "ACTIVE", "ON_DEMAND", 1, 24, 1024, None, "alias/aws/kinesis"),
    }
    place.set("heartbeat", resume_lookback_s=200_000.0)
    code, text = await place.check()
    assert code == 1
    assert "warn  kinesis.stream_name: data is DELETING" in text
    assert "fail  kinesis.stream_name: data distributes records itself (AUTO)" in text
    assert "warn  kinesis.lanes: 4 lanes for 3 shards" in text
    assert "-> set 6 or more" in text
    assert "the role needs kms:GenerateDataKey on it" in text
    assert "a key of AWS needs no permission" in text
    assert "warn  heartbeat.stream_name: keeps 24 h" in text


async def test_the_queue_for_dead_letters_is_looked_at(autojump_clock: MockClock, place: Place) -> None:
    """Being denied to look says nothing about sending, so it is a warning; a queue that is not there is a failure."""
    place.set("dead_letter", kind="sqs", queue_url="https://sqs.us-east-1.amazonaws.com/1/letters")
    place.outside = place.outside._replace(queue=FakeQueue())
    code, text = await place.check()
    assert (code, "keeps letters for 14 days" in text) == (0, True)
    place = Place(place.world, place.config.dead_letter.directory)
    place.set("dead_letter", kind="sqs", queue_url="https://sqs.us-east-1.amazonaws.com/1/letters")
    place.outside = place.outside._replace(queue=FakeQueue(SinkError("configuration", "AccessDenied", "no")))
    code, text = await place.check()
    assert (code, "-> allow sqs:GetQueueAttributes on https://sqs" in text) == (0, True)
    place.outside = place.outside._replace(queue=FakeQueue(SinkError("configuration", "QueueDoesNotExist", "no")))
    findings: list[Finding] = []
    await preflight.check_dead_letters(place.config, place.outside, findings.append)
    assert [finding.level for finding in findings] == ["fail"]


async def test_where_the_queue_does_not_take_letters_a_directory_has_to(
    autojump_clock: MockClock, place: Place, tmp_path: Path
) -> None:
    """A letter that is too large for the queue goes there, so without one it is in the log and nowhere else."""
    blocked = tmp_path / "file"
    blocked.touch()
    place.set("dead_letter", kind="sqs", queue_url="https://sqs.us-east-1.amazonaws.com/1/letters", directory=blocked)
    place.outside = place.outside._replace(queue=FakeQueue())
    code, text = await place.check()
    assert (code, "warn  dead_letter.directory: " in text) == (0, True)


async def test_directories_have_to_be_writable_and_large_enough(
    autojump_clock: MockClock, place: Place, tmp_path: Path
) -> None:
    """A directory that is not there yet is not made."""
    blocked = tmp_path / "file"
    blocked.touch()
    place.set("dead_letter", directory=blocked / "letters")
    place.set("spool", directory=tmp_path / "spool", max_bytes=1 << 60)
    code, text = await place.check()
    assert code == 1
    assert "fail  dead_letter.directory: " in text
    assert "cannot be written: Not a directory" in text
    assert "warn  spool.directory: " in text
    assert not (tmp_path / "spool").exists()


async def test_a_directory_that_cannot_even_be_looked_for_fails(
    autojump_clock: MockClock, place: Place, tmp_path: Path
) -> None:
    """Because of its name, or because a directory above it is closed to us."""
    place.set("dead_letter", directory=tmp_path / ("long" * 100) / "letters")
    code, text = await place.check()
    assert code == 1
    assert "fail  dead_letter.directory: " in text
    assert "cannot be written: File name too long" in text


async def test_the_schema_has_to_be_registered_where_records_carry_its_number(
    autojump_clock: MockClock, place: Place
) -> None:
    """The service would not start without."""
    place.set("kinesis", encoding="glue")
    code, text = await place.check()
    assert (code, "our schema is version 1 of the registry" in text) == (0, True)

    def fail() -> object:
        raise ConfigError(["kinesis.encoding: not registered"])

    findings: list[Finding] = []
    await preflight.check_schema(place.config, place.outside._replace(find_schema=fail), findings.append)
    assert [finding.level for finding in findings] == ["fail"]


def test_a_check_exits_with_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings are standard output, alone; what libraries say goes to standard error."""

    async def look(config: Config, outside: Outside, out: TextIO) -> int:
        await trio.lowlevel.checkpoint()
        assert isinstance(outside.streams, StreamClient)
        out.write(preflight.written(Finding("fail", "shard", "too many", "run fewer")))
        structlog.get_logger().warning("aside")
        return config.shard.count

    monkeypatch.setattr(preflight, "check", look)
    result = CliRunner().invoke(main, ["check", "--config", "local", "--connect"], env={"INGESTOR__SHARD__COUNT": "1"})
    assert (result.exit_code, result.stdout) == (1, "fail  shard: too many\n      -> run fewer\n")


async def test_the_real_outside_has_a_queue_only_where_one_is_used() -> None:
    """Opened from the configuration alone, reaching nothing yet."""
    assert preflight.open_outside(Config()).queue is None
    letters = {"kind": "sqs", "queue_url": "https://sqs.us-east-1.amazonaws.com/1/letters"}
    assert preflight.open_outside(Config.model_validate({"dead_letter": letters})).queue is not None


def test_what_venue_and_aws_said_moves_no_terminal() -> None:
    """A finding quotes them."""
    text = preflight.written(Finding("fail", "shard", "no\x1b[2J\nok    all is well", "do\x9b this"))
    assert text == "fail  shard: no\\x1b[2J\\nok    all is well\n      -> do\\x9b this\n"
