"""Ids that an earlier task left on disk: nobody need fetch them, and they are covered only once acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestor.core.claims import Intervals
from ingestor.core.model import Claim

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ingestor.core.model import Subscription


class Held:
    """What was found in the spool at the start, beside what resume says is missing (completeness.md §7).

    It is delivered at once, often before resume knows the subscription: acknowledgements from before are kept, so that
    the coverage can be told of them later.
    """

    def __init__(self) -> None:
        self._held: dict[Subscription, Intervals] = {}
        self._acknowledged: dict[Subscription, Intervals] = {}
        self._restarted: set[Subscription] = set()

    def take_over(self, held: Mapping[Subscription, Intervals]) -> None:
        """Note what was found."""
        self._held = dict(held)

    def acknowledge(self, claims: Sequence[Claim]) -> Sequence[Claim]:
        """Note what Kinesis accepted; return the claims that speak of the venue's present ids."""
        if not self._held:
            return claims
        for claim in claims:
            if claim.subscription in self._held:
                self._acknowledged.setdefault(claim.subscription, Intervals()).add(claim.first, claim.last)
        return [claim for claim in claims if not self._is_outdated(claim)]

    def settle(self, subscription: Subscription, missing: Intervals, *, is_restarted: bool) -> Intervals:
        """Return what of `missing` is not held. If the venue began its ids again since, nothing held counts."""
        if is_restarted:
            self._restarted.add(subscription)
            return missing
        rest = missing.copy()
        rest.subtract(self._held.get(subscription, Intervals()))
        return rest

    def acknowledged(self, subscription: Subscription) -> Iterable[Claim]:
        """Return what of a subscription that has something held was accepted so far."""
        if subscription in self._restarted:
            return []
        return [Claim(subscription, *pair) for pair in self._acknowledged.get(subscription, ())]

    def forget(self) -> None:
        """Count nothing as held any more: the disk lost some of it."""
        self._held = {}

    def _is_outdated(self, claim: Claim) -> bool:
        return claim.subscription in self._restarted and self._held[claim.subscription].covers(claim.first, claim.last)
