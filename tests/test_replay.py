"""Dead letters in a person's hands: listed, shown, and sent again once."""

from __future__ import annotations

import errno
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from ingestor import replay
from ingestor.aws import KinesisSink
from ingestor.config import Binance, Config, DeadLetters, Kinesis
from ingestor.core.errors import SinkError
from ingestor.core.model import Claim, DeadLetter, Depth, Kline, PoisonReason, PutEntry, Subscription
from ingestor.dead_letter import ReplayMarks, encode
from ingestor.replay import Choice, LetterError
from ingestor.serializer import Serializer
from tests.fakes.kinesis import INVALID, NO_STREAM, THROTTLED, UNAVAILABLE, FakeKinesis, refuse
from tests.fakes.queue import URL, MemoryQueue
from tests.fakes.records import trade

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from ingestor.core.model import EntryFailure, MarketData

DAY_MS = 1_790_000_000_000


def message(symbol: str = "BTCUSDT", trade_id: int = 5, price: str = "1.5") -> bytes:
    """Make a live trade as the venue sends it."""
    data = {"e": "trade", "E": 1, "s": symbol, "t": trade_id, "p": price, "q": "2", "T": DAY_MS, "m": True, "M": True}
    return json.dumps({"stream": f"{symbol.lower()}@trade", "data": data}).encode()


def letter(raw: bytes, reason: PoisonReason = "unexpected_shape", **fields: Any) -> DeadLetter:
    return DeadLetter(reason=reason, detail="why", raw=raw, at_ms=DAY_MS, **fields)


def of_record(number: int, reason: PoisonReason = "gave_up", symbol: str = "BTCUSDT") -> DeadLetter:
    claim = Claim(Subscription(symbol, "trade"), number, number)
    raw = Serializer().encode(trade(number, symbol=symbol))
    return letter(raw, reason, symbol=symbol, event_type="trade", claim=claim)


class Desk:
    """A directory of letters and a stream, and a person in front of them."""

    def __init__(
        self,
        directory: Path,
        *letters: DeadLetter,
        kinesis: FakeKinesis | None = None,
        queue: MemoryQueue | None = None,
        **binance: Any,
    ) -> None:
        self.directory = directory
        self.kinesis = kinesis or FakeKinesis()
        self.queue = queue
        self.config = Config(
            dead_letter=DeadLetters(directory=directory),
            binance=Binance.model_validate({"symbols": ["BTCUSDT"], **binance}),
        )
        if letters:
            (directory / "1.jsonl").write_bytes(b"".join(encode(each, DAY_MS + 1) for each in letters))

    def open_queue(self, _config: Config) -> tuple[MemoryQueue, str] | None:
        return None if self.queue is None else (self.queue, URL)

    async def replay(self, choice: Choice = Choice(), *, forced: bool = False, dry: bool = False) -> tuple[int, str]:  # noqa: B008 - a constant
        out = io.StringIO()
        code = await replay.replay(
            self.config,
            choice,
            is_forced=forced,
            is_dry=dry,
            out=out,
            open_sink=lambda _: self.kinesis,
            open_queue=self.open_queue,
        )
        return code, out.getvalue()

    async def lines(self, choice: Choice = Choice(), *, as_json: bool = False) -> list[str]:  # noqa: B008 - a constant
        out = io.StringIO()
        await replay.list_letters(self.config, choice, as_json=as_json, out=out, open_queue=self.open_queue)
        return out.getvalue().splitlines()

    async def show(self, letter_id: str, *, as_raw: bool = False) -> tuple[str, bytes]:
        out, raw_out = io.StringIO(), io.BytesIO()
        await replay.show_letter(
            self.config, letter_id, as_raw=as_raw, out=out, raw_out=raw_out, open_queue=self.open_queue
        )
        return out.getvalue(), raw_out.getvalue()

    def stored(self) -> list[MarketData]:
        return [Serializer().decode(inner.data) for inner in self.kinesis.stored()]


async def test_letters_are_listed_with_what_tells_them_apart(tmp_path: Path) -> None:
    """A line each, filtered by reason and symbol; control characters of a stranger do not reach the terminal."""
    desk = Desk(tmp_path, of_record(7), letter(b"\x1b[2J", symbol="X\x1b[2J"))
    [first, second] = await desk.lines()
    assert first.split()[1:5] == ["2026-09-21T14:13:20Z", "waiting", "gave_up", "BTCUSDT"]
    assert "trade 7-7" in first
    assert second.isprintable()
    assert await desk.lines(Choice(reason="gave_up")) == await desk.lines(Choice(symbol="BTCUSDT")) == [first]
    assert await desk.lines(Choice(symbol="NONE")) == []
    fields = json.loads((await desk.lines(as_json=True))[0])
    assert (fields["id"], fields["replayed"], fields["reason"]) == (first.split()[0], False, "gave_up")


async def test_a_directory_that_is_not_there_holds_no_letters(tmp_path: Path) -> None:
    """Nothing was ever given up."""
    desk = Desk(tmp_path)
    desk.config = desk.config.model_copy(update={"dead_letter": DeadLetters(directory=tmp_path / "none")})
    assert await desk.lines() == []


@pytest.mark.parametrize("name", ["1.jsonl", "replayed"])
async def test_a_directory_that_cannot_be_read_is_an_error(tmp_path: Path, name: str) -> None:
    """The reason and the place, and not a traceback: letters belong to the user of the service."""
    (tmp_path / name).mkdir()
    desk = Desk(tmp_path)
    for look in (desk.lines, desk.replay):
        with pytest.raises(LetterError, match=rf"{tmp_path}.*: Is a directory"):
            await look()


async def test_marks_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    """Nobody knows what was sent, so nothing is."""
    desk = Desk(tmp_path, of_record(1))
    (tmp_path / "replayed").write_bytes(b"\xff\n")
    with pytest.raises(LetterError, match="replayed"):
        await desk.replay()
    assert desk.stored() == []


async def test_a_file_in_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    """It is no directory without letters."""
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(LetterError, match=r"file.*: Not a directory"):
        await Desk(path).lines()


async def test_what_cannot_be_marked_is_not_sent(tmp_path: Path) -> None:
    """Or each further try would send it again."""
    desk = Desk(tmp_path, of_record(1))
    (tmp_path / "replayed").symlink_to(tmp_path / "nowhere" / "replayed")
    with pytest.raises(LetterError, match="cannot be marked"):
        await desk.replay()
    assert desk.stored() == []


async def test_what_was_sent_and_not_marked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may fill up in between."""
    desk = Desk(tmp_path, of_record(1))
    [line] = await desk.lines()

    def add(_marks: ReplayMarks, ids: Sequence[str]) -> None:
        if ids:
            raise OSError(errno.ENOSPC, "No space left on device", "replayed")

    monkeypatch.setattr(ReplayMarks, "add", add)
    with pytest.raises(LetterError, match=f"No space left on device.*sent and not marked: {line.split()[0]}"):
        await desk.replay()


async def test_a_name_that_no_letter_has_is_refused(tmp_path: Path) -> None:
    """Nothing was sent, so it must not look well; what was sent before has a mark, and may be gone from a queue."""
    desk = Desk(tmp_path, of_record(1))
    [line] = await desk.lines()
    code, said = await desk.replay(Choice(ids=(line[:8], "deadbeef")))
    assert (code, said.splitlines()[1:]) == (
        1,
        ["deadbeef  refused: no letter that is meant begins with it", "1 sent, 0 sent before, 1 refused"],
    )
    (tmp_path / "1.jsonl").unlink()
    assert (await desk.replay(Choice(ids=(line[:8],))))[0] == 0


async def test_symbols_are_chosen_in_either_case(tmp_path: Path) -> None:
    """As by every other command."""
    assert len(await Desk(tmp_path, of_record(1)).lines(Choice(symbol="btcusdt"))) == 1


async def test_one_letter_is_shown_whole(tmp_path: Path) -> None:
    """Text as text, other bytes in hex, or the bytes themselves."""
    desk = Desk(tmp_path, letter(b"plain text"), letter(b"\xff\x00"))
    [text_id, bytes_id] = [line.split()[0] for line in await desk.lines()]
    shown, _ = await desk.show(text_id[:6])
    assert shown.endswith("\nplain text\n")
    assert "reason: unexpected_shape\n" in shown
    assert "bytes: 10\n" in shown
    assert (await desk.show(bytes_id))[0].endswith("\nff 00\n")
    assert await desk.show(bytes_id, as_raw=True) == ("", b"\xff\x00")
    with pytest.raises(LetterError, match="no letters begin with zz"):
        await desk.show("zz")
    with pytest.raises(LetterError, match="2 letters begin with"):
        await desk.show("")


async def test_a_raw_message_goes_as_todays_code_understands_it(tmp_path: Path) -> None:
    """It became a letter when the venue sent what the code of then did not know."""
    desk = Desk(tmp_path, letter(message(trade_id=9)))
    assert await desk.replay() == (0, f"{(await desk.lines())[0].split()[0]}  sent\n1 sent, 0 sent before, 0 refused\n")
    [record] = desk.stored()
    assert (record.trade is not None and record.trade.trade_id, record.price) == (9, "1.50000000")
    assert record.received_at == DAY_MS * 1000
    assert desk.kinesis.puts[0].entries[0].partition_key == "BTCUSDT"
    assert "replayed" in (await desk.lines())[0]


async def test_every_kind_of_event_is_understood(tmp_path: Path) -> None:
    """Changes of a book have no best prices: the book of then is gone."""
    depth = {"e": "depthUpdate", "E": DAY_MS, "s": "BTCUSDT", "U": 3, "u": 4, "b": [["1", "2"]], "a": []}
    bar = {"t": DAY_MS, "T": DAY_MS + 59_999, "s": "BTCUSDT", "i": "1m", "f": 1, "L": 2, "n": 2, "x": True}
    bar |= dict.fromkeys(("o", "c", "h", "l", "v", "q", "V", "Q"), "1") | {"B": "0"}
    kline = {"e": "kline", "E": DAY_MS, "s": "BTCUSDT", "k": bar}
    raws = [
        json.dumps({"stream": "btcusdt@depth@100ms", "data": depth}).encode(),
        json.dumps({"stream": "btcusdt@kline_1m", "data": kline}).encode(),
    ]
    desk = Desk(tmp_path, *map(letter, raws))
    code, _ = await desk.replay()
    assert code == 0
    [first, second] = desk.stored()
    assert isinstance(first.depth, Depth)
    assert (first.bid_price, first.ask_price) == (None, None)
    assert isinstance(second.kline, Kline)


async def test_a_letter_is_sent_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    """Also when the same line stands in two files."""
    desk = Desk(tmp_path, of_record(1), of_record(2))
    (tmp_path / "2.jsonl").write_bytes((tmp_path / "1.jsonl").read_bytes())
    assert (await desk.replay())[1].endswith("2 sent, 0 sent before, 0 refused\n")
    assert await desk.replay() == (0, "0 sent, 2 sent before, 0 refused\n")
    assert [record.sequence for record in desk.stored()] == [1, 2]


async def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    """It says what would be sent and what would not."""
    desk = Desk(tmp_path, of_record(1), letter(b"{"))
    code, text = await desk.replay(dry=True)
    assert code == 1
    assert "would be sent" in text
    assert text.endswith("1 to send, 0 sent before, 1 refused\n")
    assert (desk.kinesis.puts, ReplayMarks(tmp_path).read()) == ([], set())


async def test_chosen_letters_alone_are_sent(tmp_path: Path) -> None:
    """By the beginnings of their ids, by reason, by symbol."""
    desk = Desk(tmp_path, of_record(1), of_record(2), of_record(3, symbol="ETHUSDT"), of_record(4, "too_large"))
    second = (await desk.lines())[1].split()[0]
    await desk.replay(Choice(ids=(second[:8],)))
    await desk.replay(Choice(symbol="ETHUSDT"))
    await desk.replay(Choice(reason="too_large"))
    assert [record.sequence for record in desk.stored()] == [2, 3, 4]


@pytest.mark.parametrize(
    ("poison", "forced", "text"),
    [
        (letter(b"{"), None, "it still is no message that we know"),
        (letter(message(price="1.123456789"), "encoding"), None, "it still does not fit the schema"),
        (letter(b"no record", "gave_up"), None, "its bytes are no record"),
        (letter(message("ETHUSDT"), "unknown_subscription"), "ETHUSDT", "ethusdt@trade is not configured"),
        (of_record(1, "rejected"), "BTCUSDT", "Kinesis refused the record itself"),
    ],
)
async def test_poison_stays_where_it_is(tmp_path: Path, poison: DeadLetter, forced: str | None, text: str) -> None:
    """Unless it fits today, or a person insists where that can help."""
    desk = Desk(tmp_path, poison)
    code, said = await desk.replay()
    assert (code, desk.stored()) == (1, [])
    assert text in said
    assert ("--force" in said) == (forced is not None)
    code, _ = await desk.replay(forced=True)
    assert [record.symbol for record in desk.stored()] == ([forced] if forced else [])
    assert code == (0 if forced else 1)


async def test_a_record_that_is_too_large_stays_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may have been opted in for larger records since."""
    monkeypatch.setattr(replay, "MAX_RECORD_BYTES", 10)
    desk = Desk(tmp_path, of_record(1, "too_large"))
    assert "more than a record may have" in (await desk.replay())[1]
    assert (await desk.replay(forced=True))[0] == 0


async def test_a_selector_takes_every_symbol(tmp_path: Path) -> None:
    """Which symbols it stands for only the venue knows."""
    desk = Desk(tmp_path, letter(message("ETHUSDT")), symbols=["all:USDT"])
    assert (await desk.replay())[0] == 0


async def test_what_failed_is_sent_again_and_order_is_kept(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A later record of a key never overtakes a refused one."""
    kinesis = FakeKinesis([refuse(THROTTLED, 0), UNAVAILABLE])
    desk = Desk(tmp_path, of_record(1), of_record(2, symbol="ETHUSDT"), of_record(3), kinesis=kinesis)
    assert (await desk.replay())[0] == 0
    assert kinesis.stored_by_key().keys() == {"BTCUSDT", "ETHUSDT"}
    assert [record.sequence for record in desk.stored() if record.symbol == "BTCUSDT"] == [1, 3]


async def test_an_interrupted_replay_goes_on_where_it_was(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What a call delivered is marked before the next one, even when another entry of it failed."""
    kinesis = FakeKinesis([refuse(THROTTLED, 1), NO_STREAM])
    desk = Desk(tmp_path, of_record(1), of_record(2, symbol="ETHUSDT"), of_record(3), kinesis=kinesis)
    with pytest.raises(SinkError, match="not found"):
        await desk.replay()
    assert (await desk.replay())[1].endswith("2 sent, 1 sent before, 0 refused\n")
    assert sorted(record.sequence for record in desk.stored()) == [1, 2, 3]


async def test_a_stream_that_never_accepts_ends_the_replay(autojump_clock: MockClock, tmp_path: Path) -> None:
    """After a few tries, with what AWS said."""
    desk = Desk(tmp_path, of_record(1), kinesis=FakeKinesis(always=refuse(THROTTLED)))
    with pytest.raises(SinkError, match="ProvisionedThroughputExceeded"):
        await desk.replay()
    assert len(desk.kinesis.puts) == replay.ATTEMPTS


async def test_what_kinesis_refuses_again_holds_nothing_else_up(tmp_path: Path) -> None:
    """It goes in a call of its own, and stays a letter."""

    def answer(entries: Sequence[PutEntry]) -> list[EntryFailure | None]:
        if Serializer().decode(entries[0].data).sequence == 2:
            raise INVALID
        return [None] * len(entries)

    desk = Desk(
        tmp_path,
        of_record(1),
        of_record(2, "rejected", symbol="ETHUSDT"),
        of_record(3, symbol="BNBUSDT"),
        kinesis=FakeKinesis(always=answer),
    )
    code, text = await desk.replay(forced=True)
    assert code == 1
    assert text.endswith("2 sent, 0 sent before, 1 refused\n")
    assert [record.sequence for record in desk.stored()] == [1, 3]


async def test_a_refusal_of_what_was_fine_ends_the_replay(tmp_path: Path) -> None:
    """It is not known which record it was."""
    desk = Desk(tmp_path, of_record(1), of_record(2, symbol="ETHUSDT"), kinesis=FakeKinesis(always=INVALID))
    with pytest.raises(SinkError, match="validation"):
        await desk.replay()


def test_the_real_sink_and_serializer_follow_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the service opens them; nothing connects yet."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert isinstance(replay.open_sink(Kinesis()), KinesisSink)
    config = Config(kinesis=Kinesis(partition_key="symbol_event_type"))
    assert replay.open_serializer(config).pack(trade(1)).partition_key == "BTCUSDT:trade"


async def test_a_letter_that_is_shown_moves_no_terminal(tmp_path: Path) -> None:
    """What the venue sent, what was said of it and where it stands; `--raw` gives the bytes as they are."""
    evil = "\x1b[2J\x9b\u202e\n\tx"
    desk = Desk(tmp_path, letter(f'{{"a":"{evil}"}}'.encode(), symbol=evil, partition_key=evil))
    [line] = await desk.lines()
    [listed] = await desk.lines(as_json=True)
    assert line.isprintable()
    assert listed.isprintable()
    text, _ = await desk.show(line.split()[0])
    assert all(part.replace("\t", "").isprintable() for part in text.split("\n"))
    assert "\\x1b[2J" in text
    assert (await desk.show(line.split()[0], as_raw=True))[1] == f'{{"a":"{evil}"}}'.encode()


async def test_a_refusal_moves_no_terminal(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It quotes what could not be read."""
    desk = Desk(tmp_path, letter(message(price="\x1b[2J")), letter(b'{"e":"\x1b[2J"}'))
    code, text = await desk.replay()
    assert code == 1
    assert all(line.isprintable() for line in text.split("\n"))


async def test_a_bar_of_no_known_interval_is_refused_or_sent_without_a_claim(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Forced, it goes out, and nothing breaks."""
    data = {"e": "kline", "E": 1, "s": "BTCUSDT", "k": BAR | {"i": "7m"}}
    desk = Desk(tmp_path, letter(json.dumps({"stream": "btcusdt@kline_7m", "data": data}).encode()))
    assert (await desk.replay())[0] == 1
    assert (await desk.replay(forced=True))[0] == 0


BAR = json.loads(
    '{"t":60000,"T":119999,"i":"1m","f":1,"L":2,"o":"1","c":"1","h":"1","l":"1","v":"1","n":2,"x":true,"q":"1","V":"1","Q":"1"}'
)
