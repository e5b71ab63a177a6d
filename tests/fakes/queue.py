"""An SQS queue in memory: it hides what was received for a while, forgets nothing, and keeps no order."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import trio

from ingestor.aws import QueueMessage
from ingestor.core.model import EntryFailure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestor.core.errors import SinkError

URL = "https://sqs.us-east-1.amazonaws.com/1/letters"
GONE = EntryFailure("ReceiptHandleIsInvalid", "it was received again, or it is gone")


class MemoryQueue:
    """Messages by id with the moment from which they can be seen."""

    def __init__(self, *bodies: str) -> None:
        self.bodies = {f"m{number}": body for number, body in enumerate(bodies)}
        self.error_of: dict[str, SinkError] = {}  # by the name of the call
        self.visible_s: dict[str, float] = {}
        self.receipts: dict[str, str] = {}
        self.holds: list[int] = []
        self.called: set[str] = set()
        self._random = Random(1)

    @property
    def visible(self) -> list[str]:
        """The bodies that anybody could receive now."""
        now = trio.current_time()
        return [body for name, body in self.bodies.items() if self.visible_s.get(name, 0) <= now]

    async def receive(self, queue_url: str, *, hold_s: int, wait_s: int) -> list[QueueMessage]:
        """Give up to ten of the visible ones."""
        await self._answer(queue_url, "receive")
        now = trio.current_time()
        names = [name for name in self.bodies if self.visible_s.get(name, 0) <= now]
        if not names:
            await trio.sleep(wait_s)
        taken = self._random.sample(names, min(10, len(names)))
        for name in taken:
            self.visible_s[name] = now + hold_s
            self.receipts[name] = f"{name}/{now}/{len(self.holds)}"
        return [QueueMessage(name, self.bodies[name], self.receipts[name]) for name in taken]

    async def hold(self, queue_url: str, receipts: Sequence[str], hold_s: int) -> list[EntryFailure | None]:
        """Hide messages for `hold_s` from now on."""
        await self._answer(queue_url, "hold")
        assert 0 < len(receipts) <= 10
        self.holds.append(hold_s)
        return [self._change(receipt, hold_s) for receipt in receipts]

    async def delete(self, queue_url: str, receipts: Sequence[str]) -> list[EntryFailure | None]:
        """Delete messages."""
        await self._answer(queue_url, "delete")
        assert 0 < len(receipts) <= 10
        answer: list[EntryFailure | None] = []
        for receipt in receipts:
            name = receipt.partition("/")[0]
            is_known = self.receipts.get(name) == receipt
            answer.append(None if is_known else GONE)
            if is_known:
                del self.bodies[name], self.receipts[name]
        return answer

    def _change(self, receipt: str, hold_s: int) -> EntryFailure | None:
        name = receipt.partition("/")[0]
        if self.receipts.get(name) != receipt:
            return GONE
        self.visible_s[name] = trio.current_time() + hold_s
        return None

    async def _answer(self, queue_url: str, call: str) -> None:
        await trio.lowlevel.checkpoint()
        assert queue_url == URL
        self.called.add(call)
        if call in self.error_of:
            raise self.error_of[call]
