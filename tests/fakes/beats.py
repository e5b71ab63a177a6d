"""Beats of earlier tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ingestor.core.claims import Entry, Intervals
from ingestor.core.model import Subscription
from ingestor.core.resume import Beat, Identity, beat_to_avro, carried
from ingestor.serializer import encode_heartbeat

if TYPE_CHECKING:
    from collections.abc import Mapping

TRADES: Final = Subscription("BTCUSDT", "trade")
US: Final = Identity("ingestor", "test", "api.binance.com", "us-east-1/data")


def beat_of(
    entries: Mapping[Subscription, Entry], *, instance: str = "old", identity: Identity = US, final: bool = False
) -> Beat:
    """Make a beat of one part."""
    return Beat(
        service=identity.service,
        environment=identity.environment,
        rest_host=identity.rest_host,
        data_stream=identity.data_stream,
        instance=instance,
        version="1",
        started_ms=0,
        sent_ms=0,
        beat=0,
        part=0,
        parts=1,
        final=final,
        entries=[carried(subscription, entry) for subscription, entry in entries.items()],
    )


def stored_beat(covered: tuple[int, int], *, instance: str = "old", final: bool = False) -> bytes:
    """Write a beat of a settled task that counts trades from 1."""
    entry = Entry(1, Intervals([covered]), settled=True)
    return encode_heartbeat(beat_to_avro(beat_of({TRADES: entry}, instance=instance, final=final)))
