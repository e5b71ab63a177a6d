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

    It is delivered at once, often before resume knows the subscription. Until then nobody knows of which generation of
    ids it is, so its acknowledgements are kept back, and told to the coverage when that is known.
    """

    def __init__(self) -> None:
        self._held: dict[Subscription, Intervals] = {}
        self._acknowledged: dict[Subscription, Intervals] = {}
        self._current: set[Subscription] = set()  # what is held of them is of the venue's present ids
        self._past: set[Subscription] = set()  # of earlier ones

    def take_over(self, held: Mapping[Subscription, Intervals]) -> None:
        """Note what was found."""
        self._held = dict(held)

    def acknowledge(self, claims: Sequence[Claim]) -> Sequence[Claim]:
        """Note what Kinesis accepted; return the claims that surely speak of the venue's present ids."""
        if not self._held:
            return claims
        passed: list[Claim] = []
        for claim in claims:
            subscription = claim.subscription
            held = self._held.get(subscription)
            if held is None or subscription in self._current:
                passed.append(claim)
                continue
            self._acknowledged.setdefault(subscription, Intervals()).update(held.within(claim.first, claim.last))
            passed += [Claim(subscription, *pair) for pair in held.missing(claim.first, claim.last)]
            self._let_go(subscription)
        return passed

    def settle(self, subscription: Subscription, missing: Intervals, *, is_restarted: bool) -> Intervals:
        """Return what of `missing` is not held. If the venue began its ids again since, nothing held counts."""
        if is_restarted:
            self._past.add(subscription)
            self._let_go(subscription)
            return missing
        self._current.add(subscription)
        rest = missing.copy()
        rest.subtract(self._held.get(subscription, Intervals()))
        return rest

    def acknowledged(self, subscription: Subscription) -> Iterable[Claim]:
        """Return what was accepted so far of that which a settled subscription has held."""
        if subscription not in self._current:
            return []
        return [Claim(subscription, *pair) for pair in self._acknowledged.get(subscription, ())]

    def forget(self) -> None:
        """Count nothing as held any more: the disk lost some of it."""
        self._held = {}

    def _let_go(self, subscription: Subscription) -> None:
        """Have ids of the past no longer in the way of the same numbers once all of them are delivered."""
        done, held = self._acknowledged.get(subscription), self._held.get(subscription)
        if subscription in self._past and done is not None and done == held:
            del self._held[subscription]
