from __future__ import annotations

import io
import json
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from msgspec import structs
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import Progress

from ingestor.config import Config, Rest
from ingestor.core.errors import IngestorError, SinkError
from ingestor.inspection import ReadingBar, Troubles, audit, json_line, open_reader, open_rest, plain_line, prove, tail
from ingestor.metrics import Metrics
from ingestor.reader import Payload, ReadRecord, ShardPage, StreamReader, Unreadable
from ingestor.rest_client import RestClient
from ingestor.serializer import Serializer
from tests.fakes.beats import stored_beat
from tests.fakes.records import BTC, bar, diff, hole, snapshot, trade, trades
from tests.fakes.rest import START_MS, FakeRest, Market, bar_of, rows_of
from tests.fakes.rest import wall_ns as venue_ns
from tests.fakes.stream import EPOCH_MS, NO_STREAM, THROTTLED, FakeShard, FakeStream

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx
    from trio.testing import MockClock

    from ingestor.aws import RecordsPage
    from ingestor.core.model import MarketData

SERIALIZER = Serializer()
CLOSED_BAR = START_MS // 60_000 - 10


def stream_of(records: Iterable[MarketData]) -> FakeStream:
    """Store records, one a second."""
    stream = FakeStream()
    for number, record in enumerate(records):
        stream.store(SERIALIZER.encode(record), arrival_ms=EPOCH_MS + 1_000 * number)
    return stream


def reader_of(stream: FakeStream) -> StreamReader:
    return StreamReader(stream, "data", pace_s=0.0, jitter=Random(1))


async def audited(
    stream: FakeStream, venue: FakeRest | None = None, *, as_json: bool = False, **options: Any
) -> tuple[int, str]:
    """Run the command; its exit code and what it wrote."""
    out = options.pop("out", None) or io.StringIO()

    def open_venue(_: object) -> RestClient:
        metrics = Metrics(CollectorRegistry())
        return RestClient(
            "https://venue.test", Rest(), metrics=metrics, wall_ns=venue_ns, random=Random(1), transport=venue
        )

    limits: dict[str, Any] = {"symbol": None, "start_ms": None, "end_ms": None, **options}
    code = await audit(
        Config(),
        as_json=as_json,
        out=out,
        cross_check=venue is not None,
        open_stream=lambda _kinesis, _name: reader_of(stream),
        open_venue=open_venue,
        **limits,
    )
    return code, out.getvalue()


class TestAudit:
    async def test_a_complete_stream_exits_with_0_and_a_table(self, autojump_clock: MockClock) -> None:
        """One row a subscription, and the verdict."""
        code, text = await audited(stream_of([*trades(range(5, 9)), bar(CLOSED_BAR), diff(1, 4)]))
        assert code == 0
        assert [line.split()[:3] for line in text.splitlines()[1:4]] == [
            [BTC, "depth", "1"],
            [BTC, "kline_1m", "1"],
            [BTC, "trade", "4"],
        ]
        assert text.splitlines()[-1].startswith("complete: 0 ids are missing and not declared")

    async def test_an_undeclared_hole_exits_with_1_and_is_named(self, autojump_clock: MockClock) -> None:
        """So are declared ones, breaks of the book without a snapshot, and ids with two values."""
        records = [
            *trades([5, 6, 9]),
            trade(9, price="3.00000000"),
            diff(1, 4),
            hole(5, 7, stream="depth"),
            diff(8, 9),
        ]
        code, text = await audited(stream_of(records))
        assert code == 1
        for line in (
            f"missing   {BTC} trade 7..8",
            f"declared  {BTC} depth 5..7 disconnected",
            f"no snapshot yet behind the break  {BTC} depth 5..7",
            f"two values  {BTC} trade 9",
            "NOT COMPLETE: 2 ids are missing and not declared, 3 are declared, 1 came with two values",
        ):
            assert line in text

    async def test_a_declared_hole_exits_with_0(self, autojump_clock: MockClock) -> None:
        """What is declared is no secret."""
        code, text = await audited(stream_of([*trades([5]), hole(6, 7), *trades([8])]))
        assert code == 0
        assert "0 ids are missing and not declared, 2 are declared" in text

    async def test_one_symbol_can_be_audited_alone(self, autojump_clock: MockClock) -> None:
        """The holes of others are not looked at."""
        records = [*trades([5, 6]), *trades([1, 9], symbol="ETHUSDT")]
        assert (await audited(stream_of(records), symbol=BTC))[0] == 0
        assert (await audited(stream_of(records), symbol="ETHUSDT"))[0] == 1

    async def test_a_range_of_time_can_be_audited_alone(self, autojump_clock: MockClock) -> None:
        """What arrived before is not read; what arrived after fills holes and opens none."""
        stream = stream_of(trades([1, 5, 8, 6, 7, 20]))
        start_ms, end_ms = EPOCH_MS + 1_000, EPOCH_MS + 2_000
        code, text = await audited(stream, as_json=True, start_ms=start_ms, end_ms=end_ms)
        assert code == 0
        assert json.loads(text)["streams"][0]["delivered"] == [{"first": 5, "last": 8}]

    @pytest.mark.parametrize(
        ("records", "end_ms", "text"),
        [
            (trades([5, 6]), EPOCH_MS - 1, "no record of ours was found"),
            ([snapshot(4), bar(CLOSED_BAR, closed=False)], None, "2 records of ours have no id that counts"),
        ],
    )
    async def test_where_nothing_counts_nothing_is_proven(
        self, autojump_clock: MockClock, records: list[MarketData], end_ms: int | None, text: str
    ) -> None:
        """An end before everything, or records without ids: that must not look well."""
        code, said = await audited(stream_of(records), end_ms=end_ms)
        assert (code, said.splitlines()[-1]) == (1, f"NOTHING PROVEN: {text}, and 0 entries of others")

    async def test_the_proof_is_one_json_object(self, autojump_clock: MockClock) -> None:
        """With the verdict in it, and what could not be read counted."""
        stream = stream_of(trades([5, 7]))
        stream.store(b"foreign")
        code, text = await audited(stream, as_json=True)
        proof = json.loads(text)
        assert code == 1
        assert (proof["is_complete"], proof["undecodable"]) == (False, 1)
        assert proof["streams"][0]["undeclared"] == [{"first": 6, "last": 6}]
        assert "differences" not in proof
        assert "1 entries are not ours" in (await audited(stream))[1]

    async def test_an_interrupted_audit_proves_nothing(self, autojump_clock: MockClock) -> None:
        """Neither 0 nor 1, and no half of a table."""
        assert await audited(InterruptedStream()) == (130, "")

    async def test_a_stream_that_is_not_there_is_an_error(self, autojump_clock: MockClock) -> None:
        """In the words of AWS, and not as a proof that nothing is missing."""
        stream = FakeStream()
        stream.errors.append(NO_STREAM)
        with pytest.raises(SinkError, match="ResourceNotFoundException"):
            await audited(stream)


class InterruptedStream(FakeStream):
    """Somebody presses Ctrl-C while a page is on its way."""

    async def get_records(self, iterator: str, limit: int = 10_000) -> RecordsPage:
        """Read a page in vain."""
        await super().get_records(iterator, limit)
        raise KeyboardInterrupt


def as_delivered(trade_id: int) -> MarketData:
    """Make the trade that the fake venue has under this id."""
    [row] = rows_of([trade_id])
    record = trade(trade_id, price=row["price"])
    record.volume = row["qty"]
    return record


def as_delivered_bar(ordinal: int) -> MarketData:
    """Make the bar that the fake venue has under this number, with all eight places."""
    record = bar(ordinal)
    assert record.kline is not None
    _, opened, high, low, close, volume, *_ = (f"{float(value):.8f}" for value in bar_of("1m", ordinal))
    record.kline = structs.replace(record.kline, open=opened, high=high, low=low, close=close, volume=volume)
    return record


class TestCrossCheck:
    async def test_what_the_venue_confirms_is_complete(self, autojump_clock: MockClock) -> None:
        """Trades and closed bars, newest first, one page of each; the book cannot be asked for."""
        venue = FakeRest({BTC: Market(newest_id=3_000)})
        records = [as_delivered(trade_id) for trade_id in range(1_001, 2_501)]
        records += [as_delivered_bar(CLOSED_BAR + number) for number in range(3)]
        code, text = await audited(stream_of([*records, diff(1, 4), snapshot(4)]), venue)
        assert code == 0
        assert text.splitlines()[-1].endswith("0 differ from the venue")
        [trades_asked] = [asked.params for asked in venue.asked if asked.endpoint == "historicalTrades"]
        assert (trades_asked["fromId"], trades_asked["limit"]) == ("1501", "1000")
        assert len(venue.times("klines")) == 1

    async def test_a_difference_exits_with_1_and_is_named(self, autojump_clock: MockClock) -> None:
        """Another price than the venue's, and an id that the venue does not know."""
        venue = FakeRest({BTC: Market(newest_id=12, lost_ids={11})})
        records = [as_delivered(9), trade(10, price="5.00000000"), as_delivered(11), as_delivered(12)]
        code, text = await audited(stream_of(records), venue)
        assert code == 1
        assert f"differs  {BTC} trade 10 ours ('5.00000000', '2.00000000') venue ('11.00000000', '0.50000000')" in text
        assert f"unknown_to_venue  {BTC} trade 11" in text
        _, text = await audited(stream_of(records), venue, as_json=True)
        assert [found["difference"]["id"] for found in json.loads(text)["differences"]] == [10, 11]

    async def test_declared_ids_are_no_difference(self, autojump_clock: MockClock) -> None:
        """The venue has them, we said that we do not; an undeclared one is a difference too."""
        venue = FakeRest({BTC: Market(newest_id=20)})
        assert (await audited(stream_of([as_delivered(5), hole(6, 6), as_delivered(7)]), venue))[0] == 0
        code, text = await audited(stream_of([as_delivered(5), as_delivered(7)]), venue)
        assert code == 1
        assert f"missing  {BTC} trade 6" in text

    async def test_a_venue_that_refuses_takes_no_proof_away(self, autojump_clock: MockClock) -> None:
        """What was read for an hour is told; the answer is an error all the same, as nothing was held against it."""
        venue = FakeRest({"ETHUSDT": Market()})
        out = io.StringIO()
        with pytest.raises(IngestorError, match=r"cross-check.*Invalid symbol"):
            await audited(stream_of([as_delivered(5)]), venue, out=out)
        assert out.getvalue().splitlines()[-1].startswith("complete: 0 ids are missing")

    async def test_a_check_of_nothing_is_an_error(self, autojump_clock: MockClock) -> None:
        """Of an order book the venue keeps no past, and what was not compared does not agree."""
        out = io.StringIO()
        with pytest.raises(IngestorError, match="no trade and no closed bar"):
            await audited(stream_of([diff(1, 4), snapshot(4)]), FakeRest({BTC: Market()}), out=out)
        assert out.getvalue().splitlines()[-1].startswith("complete: 0 ids are missing")

    async def test_an_interrupt_while_the_venue_is_asked_proves_nothing(self, autojump_clock: MockClock) -> None:
        """As while the stream is read."""
        assert await audited(stream_of([as_delivered(5)]), InterruptedVenue({BTC: Market()})) == (130, "")


class InterruptedVenue(FakeRest):
    """Somebody presses Ctrl-C while an answer is on its way."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer in vain."""
        await super().handle_async_request(request)
        raise KeyboardInterrupt


class TestTail:
    async def test_new_records_are_written_as_they_come(self, autojump_clock: MockClock) -> None:
        """One line each, of the stream that was asked for or the configured one."""
        stream, out, asked = stream_of([trade(1)]), io.StringIO(), []

        def open_stream(_: object, name: str) -> StreamReader:
            asked.append(name)
            return reader_of(stream)

        async def watch(name: str | None, *, as_json: bool) -> None:
            with trio.move_on_after(3):
                await tail(Config(), stream=name, as_json=as_json, out=out, open_stream=open_stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: watch(None, as_json=False))
            nursery.start_soon(lambda: watch("other", as_json=True))
            await trio.sleep(1.5)
            stream.store(SERIALIZER.encode(trade(2)))
        assert sorted(asked) == ["bitcoin-market-data", "other"]
        plain, machine = sorted(out.getvalue().splitlines(), key=lambda line: line.startswith("{"))
        assert plain == f"22:13:21.500  {BTC:<12} trade  2 1.00000000 x 2.00000000"
        assert json.loads(machine)["record"]["trade"] == {"trade_id": 2, "buyer_is_maker": True}

    async def test_an_interrupt_ends_it_in_peace(self, autojump_clock: MockClock) -> None:
        """No traceback for the one way to end it."""
        out = io.StringIO()
        await tail(Config(), stream=None, as_json=False, out=out, open_stream=lambda *_: reader_of(InterruptedStream()))
        assert not out.getvalue()

    @pytest.mark.parametrize(
        ("record", "words"),
        [
            (trade(2), "trade  2 1.00000000 x 2.00000000"),
            (diff(3, 4), "depth  diff 3..4 no book yet"),
            (snapshot(4), "depth  snapshot 4..4 no book yet"),
            (hole(6, 9, reason="venue_forgot"), "hole   trade 6..9 not delivered: venue_forgot"),
            (bar(CLOSED_BAR), "kline  1m closed o 1.00000000 h 1.00000000 l 1.00000000 c 1.00000000 v 1.00000000"),
            (bar(CLOSED_BAR, closed=False), "kline  1m open o "),
        ],
    )
    def test_every_kind_has_its_line(self, record: MarketData, words: str) -> None:
        """What a person looks for in it."""
        assert words in plain_line(ReadRecord(record, "s0", EPOCH_MS, "k"))

    def test_the_best_of_the_book_is_shown(self) -> None:
        """Once there is one."""
        record = diff(3, 4)
        record.bid_price, record.ask_price = "1.00000000", "2.00000000"
        assert plain_line(ReadRecord(record, "s0", EPOCH_MS, "k")).endswith("bid 1.00000000 ask 2.00000000")

    def test_heartbeats_are_shown_as_what_they_are(self) -> None:
        """`tail --stream ingestor-heartbeat` is how a person looks at them."""
        item = Unreadable(stored_beat((1, 5), final=True), "no schema", "s0", EPOCH_MS, "k")
        assert plain_line(item).endswith("heartbeat 0 of ingestor/old, part 1 of 1, 1 subscriptions, final")
        assert json.loads(json_line(item))["heartbeat"]["entries"][0]["covered"] == [{"first": 1, "last": 5}]

    def test_what_is_neither_is_shown_as_unreadable(self) -> None:
        """With the reason and the size, never the bytes."""
        item = Unreadable(b"1234", "no Avro", "s0", EPOCH_MS, "k")
        assert plain_line(item).endswith("unreadable, 4 bytes: no Avro")
        assert json.loads(json_line(item))["unreadable"] == "no Avro"


class TestProgress:
    def test_the_bar_follows_the_shard_that_is_furthest_behind(self) -> None:
        """Against how far behind each shard began; a shard that joins late takes it back."""
        with Progress(console=Console(file=io.StringIO())) as progress:
            bar_shown = ReadingBar(progress)
            [task] = progress.tasks

            def advance(shard: str, millis_behind: int) -> float:
                bar_shown.advance(ShardPage(shard, [Payload(b"", "k", 0)], millis_behind))
                return task.completed

            assert advance("s0", 1_000) == 0.0
            assert advance("s0", 250) == 0.75
            assert advance("s1", 400) == 0.0
            assert advance("s1", 100) == 0.75
            assert advance("s1", 0) == 0.75
            assert advance("s0", 0) == 1.0
            assert task.fields["records"] == 6

    async def test_watching_sees_only_the_range(self, autojump_clock: MockClock) -> None:
        """What arrived later is taken for filling holes alone."""
        seen: list[MarketData] = []
        stream = stream_of(trades([1, 2, 3]))
        await prove(reader_of(stream), SERIALIZER.decode, end_ms=EPOCH_MS + 1_000, watch=seen.append)
        assert [record.sequence for record in seen] == [1, 2]


async def test_the_real_tools_are_made_from_the_configuration() -> None:
    """Without reaching out to anything yet."""
    config = Config()
    assert isinstance(open_reader(config.kinesis, "data"), StreamReader)
    async with open_rest(config.binance) as rest:
        assert isinstance(rest, RestClient)


def test_a_person_who_waits_is_told_what_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Once for each trouble; to be throttled is the ordinary way of reading, and no news."""
    say = Troubles().say
    unreachable = SinkError("transient", "EndpointUnreachable", "nobody\x1b[2J there")
    for error in (THROTTLED, unreachable, unreachable, SinkError("transient", "InternalFailure", "oops")):
        say(error, 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "EndpointUnreachable: nobody\\x1b[2J there; trying again",
        "InternalFailure: oops; trying again",
    ]


async def test_shards_without_records_prove_nothing(autojump_clock: MockClock) -> None:
    """An empty stream, or a mistyped symbol, exits with 1."""
    code, text = await audited(FakeStream({"s0": FakeShard(), "s1": FakeShard()}))
    assert code == 1
    assert "NOTHING PROVEN" in text


EVIL = "\x1b[2J\x9b31m\u202e[red]\n"


def test_no_record_of_a_stranger_moves_the_terminal() -> None:
    """Whoever may write to the stream writes to the screen of whoever looks: in plain lines, and in JSON."""
    strange = trade(1, symbol=f"A{EVIL}")
    strange_hole = hole(1, 2, stream=EVIL)
    strange_bar = bar(7)
    assert strange_bar.kline is not None
    strange_bar.kline = structs.replace(strange_bar.kline, interval=EVIL)
    for record in (strange, strange_hole, strange_bar):
        item = ReadRecord(record, EVIL, EPOCH_MS, EVIL)
        assert plain_line(item).isprintable()
        assert json_line(item).isprintable()
        assert json.loads(json_line(item))["partition_key"] == EVIL
    unreadable = Unreadable(EVIL.encode() * 10_000, EVIL * 10_000, EVIL, EPOCH_MS, EVIL)
    assert plain_line(unreadable).isprintable()
    assert len(plain_line(unreadable)) < 5_000
    assert json_line(unreadable).isprintable()


async def test_no_record_of_a_stranger_moves_the_terminal_of_an_audit(autojump_clock: MockClock) -> None:
    """Nor writes what looks like a verdict, nor in colours."""
    records = [*trades([1, 5], symbol=f"A{EVIL}"), hole(3, 3, stream="trade"), trade(1)]
    code, text = await audited(stream_of(records))
    assert code == 1
    assert all(line.isprintable() for line in text.split("\n"))
    assert "[red]" in text
    _, text = await audited(stream_of(records), as_json=True)
    assert text.rstrip("\n").isprintable()
    assert json.loads(text)["is_complete"] is False
