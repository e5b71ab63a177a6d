"""Dead letters in a queue, in a person's hands: looked at without loss, sent once more, deleted when delivered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from structlog.testing import capture_logs

from ingestor.core.errors import SinkError
from ingestor.dead_letter import ReplayMarks, encode, message
from ingestor.letter_queue import HOLD_S, SEEN_ANSWERS, LetterQueue, open_letter_queue
from ingestor.replay import Choice
from tests.fakes.kinesis import NO_STREAM, THROTTLED, FakeKinesis, refuse
from tests.fakes.queue import URL, MemoryQueue
from tests.test_replay import DAY_MS, Desk, letter, of_record
from tests.test_replay import message as venue_message

if TYPE_CHECKING:
    from trio.testing import MockClock

    from ingestor.core.model import DeadLetter

POLICY = Path(__file__).parents[1] / "config" / "iam" / "dead-letter-replay.json"
ACTIONS = {"receive": "sqs:ReceiveMessage", "hold": "sqs:ChangeMessageVisibility", "delete": "sqs:DeleteMessage"}
DENIED = SinkError("configuration", "AccessDenied", "not allowed to sqs:ReceiveMessage")


def queue_of(*letters: DeadLetter) -> MemoryQueue:
    return MemoryQueue(*(message(each, DAY_MS + number) for number, each in enumerate(letters)))


async def test_letters_of_the_directory_and_of_the_queue_are_listed_and_stay(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whatever was received to look at it can be received by the next one at once."""
    queue = queue_of(*(of_record(number) for number in range(2, 25)))
    desk = Desk(tmp_path, of_record(1), queue=queue)
    lines = await desk.lines(as_json=True)
    assert {json.loads(line)["claim"]["first"] for line in lines} == set(range(1, 25))
    assert json.loads(lines[0])["file"] == "1.jsonl"
    assert json.loads(lines[1])["file"].startswith("sqs:m")
    assert len(queue.visible) == 23
    assert queue.holds[-1] == 0


async def test_one_letter_of_the_queue_is_shown_whole(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Text as text, although the queue carries bytes alone."""
    desk = Desk(tmp_path, queue=queue_of(letter(b"plain text"), of_record(2)))
    [named] = [line.split()[0] for line in await desk.lines(Choice(reason="unexpected_shape"))]
    shown, _ = await desk.show(named)
    assert shown.endswith("\nplain text\n")


async def test_letters_are_sent_again_in_their_order_and_deleted(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Raw messages and records, oldest first; a second run has nothing to do."""
    queue = queue_of(*(of_record(number) for number in range(1, 31)), letter(venue_message(trade_id=31)))
    desk = Desk(tmp_path, queue=queue)
    assert (await desk.replay())[1].endswith("31 sent, 0 sent before, 0 refused\n")
    assert [record.sequence for record in desk.stored()] == list(range(1, 32))
    assert queue.bodies == {}
    assert await desk.replay() == (0, "0 sent, 0 sent before, 0 refused\n")


async def test_what_is_not_meant_or_refused_stays_in_the_queue(autojump_clock: MockClock, tmp_path: Path) -> None:
    """And anybody can see it at once; so does what is no letter at all."""
    queue = queue_of(of_record(1), letter(b"{"), of_record(3, symbol="ETHUSDT"))
    queue.bodies["foreign"] = "hello"
    desk = Desk(tmp_path, queue=queue)
    with capture_logs() as logs:
        code, text = await desk.replay(Choice(symbol="BTCUSDT"))
    assert (code, text.endswith("1 sent, 0 sent before, 0 refused\n")) == (0, True)
    assert ("dead_letter_unreadable", "sqs:foreign") in [(line["event"], line.get("file")) for line in logs]
    assert (await desk.replay(dry=True))[1].endswith("1 to send, 0 sent before, 1 refused\n")
    assert set(queue.bodies) == {"m1", "m2", "foreign"}
    assert len(queue.visible) == 3
    assert [record.sequence for record in desk.stored()] == [1]


@pytest.mark.parametrize("body", ["hello", "", "\ud800", '{"text":' + "[" * 100_000, "{}"])
async def test_no_strangers_message_ends_a_replay(body: str, autojump_clock: MockClock, tmp_path: Path) -> None:
    """Whoever may write to the queue may write anything; it stays there, and the letters beside it go."""
    broken = json.dumps(json.loads(message(of_record(1), DAY_MS)) | {"raw_base64": "&"})
    queue = queue_of(of_record(2))
    queue.bodies |= {"foreign": body, "broken": broken}
    desk = Desk(tmp_path, queue=queue)
    with capture_logs() as logs:
        code, text = await desk.replay()
    assert (code, text.endswith("\n1 sent, 0 sent before, 0 refused\n")) == (0, True)
    assert [line["event"] for line in logs] == ["dead_letter_unreadable"] * 2
    assert set(queue.bodies) == {"foreign", "broken"}


async def test_nothing_is_deleted_before_kinesis_has_it_and_the_rest_goes_on_later(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A call that fails half-way: the delivered letter goes, the others are there for the next run."""
    queue = queue_of(of_record(1), of_record(2, symbol="ETHUSDT"), of_record(3))
    desk = Desk(tmp_path, queue=queue, kinesis=FakeKinesis([refuse(THROTTLED, 1), NO_STREAM]))
    with pytest.raises(SinkError, match="not found"):
        await desk.replay()
    assert set(queue.bodies) == {"m1", "m2"}
    assert len(queue.visible) == 2
    assert (await desk.replay())[1].endswith("2 sent, 0 sent before, 0 refused\n")
    assert sorted(record.sequence for record in desk.stored()) == [1, 2, 3]


async def test_a_letter_that_was_sent_but_not_deleted_is_only_deleted(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """As after a kill between the mark and the delete; the mark of another copy in a file counts too."""
    queue = queue_of(of_record(1), of_record(2))
    queue.error_of["delete"] = DENIED
    desk = Desk(tmp_path, of_record(2), queue=queue)
    with pytest.raises(SinkError, match="AccessDenied"):
        await desk.replay()
    assert [record.sequence for record in desk.stored()] == [2]
    queue.error_of.clear()
    assert (await desk.replay())[1].endswith("1 sent, 1 sent before, 0 refused\n")
    assert [record.sequence for record in desk.stored()] == [2, 1]
    assert queue.bodies == {}


async def test_a_replay_that_takes_long_keeps_its_letters_to_itself(autojump_clock: MockClock, tmp_path: Path) -> None:
    """They are hidden for longer while Kinesis is slow, so that nobody sends them at the same time."""
    queue = queue_of(*(of_record(number) for number in range(1, 16)))
    desk = Desk(tmp_path, queue=queue, kinesis=FakeKinesis(latency_s=50.0))
    second = Desk(tmp_path / "elsewhere", queue=queue)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.replay)
        await trio.sleep(HOLD_S + 200)
        assert (await second.replay())[1].endswith("0 sent, 0 sent before, 0 refused\n")
    assert [record.sequence for record in desk.stored()] == list(range(1, 16))
    assert queue.bodies == {}
    assert set(queue.holds) == {HOLD_S}


async def test_letters_of_a_killed_replay_come_back_by_themselves(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Nobody let go of them; minutes do."""
    queue = queue_of(of_record(1))
    assert len(await LetterQueue(queue, URL).receive()) == 1
    desk = Desk(tmp_path, queue=queue)
    assert (await desk.replay())[1].startswith("0 sent")
    await trio.sleep(HOLD_S)
    assert (await desk.replay())[1].endswith("1 sent, 0 sent before, 0 refused\n")


async def test_a_message_that_comes_twice_is_given_once_and_deleted_by_its_newest_receipt(
    autojump_clock: MockClock,
) -> None:
    """A queue may forget that it hid something; one that always does is not asked for ever."""
    queue = queue_of(of_record(1))
    async with open_letter_queue(queue, URL) as letters:
        [stored] = await letters.receive()
        queue.visible_s.clear()
        assert await letters.receive() == []
        await letters.delete([stored.id])
    assert queue.bodies == {}

    class Forgetful(MemoryQueue):
        async def receive(self, queue_url: str, *, hold_s: int, wait_s: int) -> list[object]:  # type: ignore[override]
            self.visible_s.clear()
            self.holds.append(-1)
            return list(await super().receive(queue_url, hold_s=hold_s, wait_s=wait_s))

    forgetful = Forgetful(message(of_record(1), 1))
    letters = LetterQueue(forgetful, URL)  # type: ignore[arg-type]
    assert len(await letters.receive()) == 1
    assert await letters.receive() == []
    assert forgetful.holds == [-1] * (1 + SEEN_ANSWERS)


async def test_what_the_queue_refuses_is_said(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A receipt that ran out costs a log line, not the replay; a queue that may not be read ends it with AWS' words."""
    queue = queue_of(of_record(1))
    with capture_logs() as logs:
        async with open_letter_queue(queue, URL) as letters:
            [stored] = await letters.receive()
            queue.receipts.clear()
            await letters.delete([stored.id])
            queue.error_of["hold"] = DENIED
    assert [line["event"] for line in logs] == ["delivered_letters_stay_queued"]
    queue.error_of["receive"] = DENIED
    with pytest.raises(SinkError, match="sqs:ReceiveMessage"):
        await Desk(tmp_path, queue=queue).lines()
    queue.error_of = {"hold": DENIED}
    queue.visible_s.clear()
    with capture_logs() as logs:
        async with open_letter_queue(queue, URL) as letters:
            await letters.receive()
    assert [line["event"] for line in logs] == ["letters_not_released"]


async def test_marks_are_durable_where_no_letter_ever_was(tmp_path: Path) -> None:
    """A person's machine has no directory of letters yet."""
    marks = ReplayMarks(tmp_path / "never" / "made")
    marks.add(["a"])
    assert marks.read() == {"a"}


async def test_a_letter_has_one_name_in_a_file_and_in_a_queue(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It lies in both after an answer of the queue was lost: sent once."""
    of_text = letter(venue_message(trade_id=7))
    desk = Desk(tmp_path, of_text, queue=queue_of(of_text))
    (tmp_path / "2.jsonl").write_bytes(encode(of_text, DAY_MS + 99))
    assert len({line.split()[0] for line in await desk.lines()}) == 1
    assert (await desk.replay())[1].endswith("1 sent, 0 sent before, 0 refused\n")
    assert [record.sequence for record in desk.stored()] == [7]
    assert desk.queue is not None
    assert desk.queue.bodies == {}


async def test_the_policy_of_a_replay_allows_what_it_does_and_no_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its role is not that of the service, which may only send into the queue."""
    queue = queue_of(of_record(1), letter(b"{"))
    await Desk(tmp_path, queue=queue).replay()
    of_queue, of_stream = json.loads(POLICY.read_text())["Statement"]
    assert {ACTIONS[call] for call in queue.called} == set(of_queue["Action"])
    assert of_stream["Action"] == "kinesis:PutRecords"
