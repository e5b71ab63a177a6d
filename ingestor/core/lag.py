"""How far acknowledgement trails behind what was received, per subscription, in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingestor.core.model import Subscription


class _Goal(NamedTuple):
    next_id: int
    set_s: float


class WatermarkLag:
    """Sets a goal, waits until the watermark reaches it, sets the next one: one number a subscription, at any rate.

    A goal is the id that was expected next when it was set. Its age, once it is not reached, is how late the watermark
    is, to within one sweep.
    """

    def __init__(self) -> None:
        self._goals: dict[Subscription, _Goal] = {}

    def sweep(self, next_ids: Mapping[Subscription, int], watermarks: Mapping[Subscription, int], now: float) -> None:
        """Look at all subscriptions; about once a second. Those that are not named any more have no lag."""
        for gone in self._goals.keys() - next_ids.keys():
            del self._goals[gone]
        for subscription, next_id in next_ids.items():
            goal = self._goals.get(subscription)
            reached = watermarks.get(subscription, -1) + 1
            if goal is None or reached >= goal.next_id or next_id < goal.next_id:  # the last: ids that began again
                self._goals[subscription] = _Goal(next_id, now)

    def by_subscription(self, watermarks: Mapping[Subscription, int], now: float) -> dict[Subscription, float]:
        """Return the lag of every subscription in seconds."""
        return {
            subscription: 0.0 if watermarks.get(subscription, -1) + 1 >= goal.next_id else now - goal.set_s
            for subscription, goal in self._goals.items()
        }

    def by_stream_type(self, watermarks: Mapping[Subscription, int], now: float) -> dict[str, float]:
        """Return the largest lag of every stream type (`trade`, `depth`, `kline`) in seconds."""
        lags: dict[str, float] = {}
        for subscription, lag_s in self.by_subscription(watermarks, now).items():
            stream_type = subscription.kind.partition("_")[0]
            lags[stream_type] = max(lags.get(stream_type, 0.0), lag_s)
        return lags
