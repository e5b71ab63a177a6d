"""What the venue owes and what it sent, per subscription: the other side of the proof that nothing is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from ingestor.core.claims import Intervals

if TYPE_CHECKING:
    from ingestor.core.model import Subscription
    from ingestor.local.history import Message


class Account(Struct):
    """One subscription since somebody first subscribed to it.

    `produced`: all ids that came into being, also while nobody was connected; `sent`: those handed to at least one
    connection, which does not say that they arrived. Trade ids, depth update ids (U to u), ordinals of closed bars.
    """

    produced: Intervals = field(default_factory=Intervals)
    sent: Intervals = field(default_factory=Intervals)
    produced_messages: int = 0
    sent_messages: int = 0


class Ledger(dict["Subscription", Account]):
    """The accounts by subscription."""

    def note(self, message: Message, sent: int) -> None:
        """Book a message that came into being and was sent `sent` times."""
        if message.subscription is None:
            return
        account = self.get(message.subscription)
        if account is None:
            account = self[message.subscription] = Account()
        account.produced.add(message.first, message.last)
        account.produced_messages += 1
        if sent:
            account.sent.add(message.first, message.last)
            account.sent_messages += sent
