"""The letters in an SQS queue, in a person's hands: received, kept from others meanwhile, deleted once delivered.

A queue cannot be looked at without receiving, so whatever is received is held for some minutes, for longer if that is
not enough, and let go of at the end: what was not deleted is there for the next one. A process that is killed lets go
by the passing of those minutes.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog
import trio

from ingestor.core.errors import SinkError
from ingestor.dead_letter import QUEUE_MAX_MESSAGES, LetterLineError, StoredLetter, parse_line, stored_letter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from ingestor.aws import QueueMessage
    from ingestor.core.model import EntryFailure

log = structlog.get_logger()

HOLD_S: Final = 300
RENEW_S: Final = 60.0  # held for longer than this: held for `HOLD_S` again before anything else is done
WAIT_S: Final = (
    1  # asked with a wait, a queue looks everywhere it keeps messages; without one it may answer with nothing
)
SEEN_ANSWERS: Final = 10  # so many answers with nothing new in a row are as good as none
RELEASE_S: Final = 10.0


class Queue(Protocol):
    """What is needed of `aws.QueueClient`; every method raises `SinkError`."""

    async def receive(self, queue_url: str, *, hold_s: int, wait_s: int) -> list[QueueMessage]:
        """Take up to ten messages."""
        ...

    async def hold(self, queue_url: str, receipts: Sequence[str], hold_s: int) -> Sequence[EntryFailure | None]:
        """Keep up to ten messages from others for that long from now on."""
        ...

    async def delete(self, queue_url: str, receipts: Sequence[str]) -> Sequence[EntryFailure | None]:
        """Delete up to ten messages."""
        ...


class _Held(NamedTuple):
    """A message in our hands; without a letter it is none of ours."""

    receipt: str
    letter_id: str | None


class LetterQueue:
    """The letters of one queue, each given once; `open_letter_queue` makes it."""

    def __init__(self, queue: Queue, url: str) -> None:
        self._queue = queue
        self._url = url
        self._held: dict[str, _Held] = {}  # by the id of the message, which may come again with another receipt
        self._renewed_s = trio.current_time()
        self._is_over = False

    async def receive(self) -> list[StoredLetter]:
        """Return letters that were not returned before; none when there are no more, and from then on."""
        for _ in range(0 if self._is_over else SEEN_ANSWERS):
            await self.keep()
            messages = await self._queue.receive(self._url, hold_s=HOLD_S, wait_s=WAIT_S)
            if not messages:
                break
            if fresh := [letter for message in messages if (letter := self._take(message)) is not None]:
                return fresh
        self._is_over = True
        return []

    async def keep(self) -> None:
        """Hold for longer what was held for a while; to be called often."""
        now = trio.current_time()
        if now - self._renewed_s >= RENEW_S:
            self._renewed_s = now
            await self._hold(HOLD_S)

    async def delete(self, letter_ids: Sequence[str]) -> None:
        """Delete the messages of letters that were delivered; what fails is deleted by the next one who looks."""
        wanted = set(letter_ids)
        done = {message_id: held for message_id, held in self._held.items() if held.letter_id in wanted}
        refused = 0
        for part in _tens(list(done)):
            answer = await self._queue.delete(self._url, [done[message_id].receipt for message_id in part])
            refused += sum(failure is not None for failure in answer)
        for message_id in done:
            del self._held[message_id]
        if refused:
            log.warning("delivered_letters_stay_queued", letters=refused)

    async def release(self) -> None:
        """Let go of everything that is held; raises `SinkError`, and then time does it."""
        await self._hold(0)
        self._held.clear()

    def _take(self, message: QueueMessage) -> StoredLetter | None:
        """Hold a message; return its letter the first time."""
        known = self._held.get(message.message_id)
        if known is not None:
            self._held[message.message_id] = known._replace(receipt=message.receipt)  # only the newest one counts
            return None
        try:
            line = parse_line(message.body)
        except LetterLineError as error:
            log.warning("dead_letter_unreadable", file=place_of(message), error=str(error))
            self._held[message.message_id] = _Held(message.receipt, None)
            return None
        letter = stored_letter(line, place_of(message))
        self._held[message.message_id] = _Held(message.receipt, letter.id)
        return letter

    async def _hold(self, hold_s: int) -> None:
        for part in _tens([held.receipt for held in self._held.values()]):
            await self._queue.hold(self._url, part, hold_s)


def place_of(message: QueueMessage) -> str:
    """Say where a letter is, as the name of a file says it for others."""
    return f"sqs:{message.message_id}"


@asynccontextmanager
async def open_letter_queue(queue: Queue, url: str) -> AsyncGenerator[LetterQueue]:
    """Hold letters for the length of a block, and let go of those that were not deleted."""
    letters = LetterQueue(queue, url)
    try:
        yield letters
    finally:
        with trio.move_on_after(RELEASE_S, shield=True):
            try:
                await letters.release()
            except SinkError as error:
                log.warning("letters_not_released", error=str(error), free_within_s=HOLD_S)


def _tens(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), QUEUE_MAX_MESSAGES):
        yield items[start : start + QUEUE_MAX_MESSAGES]
