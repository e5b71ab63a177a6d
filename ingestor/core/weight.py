"""The venue's REST weight budget: one account for all of this process, divided by purpose.

The venue counts weight per IP address in clock minutes (facts/binance.md §7). We spend at most our share of its limit
in each, and believe its own count, which includes what other processes behind the same address do, where it is higher.
Minutes are those of the venue's clock: a clock of our own that is ahead by more than the way to the venue would take
the full count of the old minute for that of the new one, and wait for nothing. That minutes begin with the clock is
nowhere promised, so a count that falls back begins one, whatever the clock says.

Each purpose owns a part of the share (completeness.md §7). What the others have not used yet is released to whoever
wants it as the minute passes: nothing of the budget is lost, and nobody finds the minute empty who comes in its middle.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

Purpose: TypeAlias = Literal["trades", "books", "probes", "backfill"]

PARTS: Final[dict[Purpose, float]] = {"trades": 0.5, "books": 0.4, "probes": 0.1, "backfill": 0.0}

_MINUTE_MS: Final = 60_000
_ALL_RELEASED_MS: Final = 55_000  # into the minute: then whoever comes first takes what is left
# A count is at least what was told before the request went out, unless a minute has begun since. That it is a little
# less may mean that two of the venue's servers do not agree.
_FALLEN_BACK: Final = 0.5
_LOOK_AGAIN_S: Final = 0.5  # what others release grows with time; a request that waits for it looks twice a second


class Admission(NamedTuple):
    """A request that may be sent: what it weighs, the minute it was counted in, and what the venue had told by then."""

    weight: int
    minute: int
    told: int = 0


class WeightBudget:
    """Says when a request may be sent; `now_ms` is always the caller's, the venue's clock in milliseconds.

    `limit` is the venue's weight a minute for one address, `share` the part of it that this process may use.
    """

    def __init__(self, limit: int, share: float) -> None:
        self._share = share
        self._cap = 0
        self._minute = -1
        self._shift_ms = 0
        self._used = 0
        self._told = 0
        self._in_flight = 0
        self._spent = dict.fromkeys(PARTS, 0)
        self.banned_until_ms = 0
        self.set_limit(limit)

    def set_limit(self, limit: int) -> None:
        """Take the limit that the venue publishes in exchangeInfo."""
        self._cap = int(limit * self._share)

    @property
    def cap(self) -> int:
        """The weight a minute that this process may bring the address to."""
        return self._cap

    def allowance(self, purpose: Purpose) -> int:
        """Return the weight a minute that `purpose` has for itself."""
        return int(self._cap * PARTS[purpose])

    def left(self, purpose: Purpose, now_ms: int) -> int:
        """Return what `purpose` has not spent yet of its own in this minute."""
        self._turn_to(now_ms)
        return max(0, self.allowance(purpose) - self._spent[purpose])

    def used(self, now_ms: int) -> int:
        """Return the weight used in this minute, ours and what the venue told of others."""
        self._turn_to(now_ms)
        return self._used

    def admit(self, purpose: Purpose, weight: int, now_ms: int) -> Admission | float:
        """Take `weight` out of the budget, or return the seconds after which to ask again."""
        if now_ms < self.banned_until_ms:
            return (self.banned_until_ms - now_ms) / 1000
        self._turn_to(now_ms)
        into_minute_ms = self._into_minute_ms(now_ms)
        to_next_minute_s = (_MINUTE_MS - into_minute_ms) / 1000
        room = self._cap - self._used - weight
        if self._used == 0:
            pass  # whatever it weighs: a request that is heavier than its part, or all of them, must go out some time
        elif room < 0:
            return to_next_minute_s
        elif room < self._kept_for_others(purpose, weight, into_minute_ms):
            return min(_LOOK_AGAIN_S, to_next_minute_s)
        self._used += weight
        self._in_flight += weight
        self._spent[purpose] += weight
        return Admission(weight, self._minute, self._told)

    def settle(self, admission: Admission, used_by_address: int | None, now_ms: int) -> None:
        """Note the end of a request, with the venue's count of the minute when it told one."""
        self._turn_to(now_ms)
        if admission.minute != self._minute:
            return  # its count is of a minute that is over
        self._in_flight -= admission.weight
        if used_by_address is None:
            return
        used = used_by_address + self._in_flight
        if used_by_address < admission.told * _FALLEN_BACK:  # a minute has begun; what is under way may count in it
            self._shift_ms += _MINUTE_MS - self._into_minute_ms(now_ms)
            self._turn_to(now_ms)
        self._told = max(self._told, used_by_address)
        self._used = max(self._used, used)

    def move_clock(self, by_ms: int) -> None:
        """Note that `now_ms` will be so much later from now on, set by the venue's clock: minutes begin with it."""
        self._shift_ms = 0
        self.banned_until_ms += by_ms  # it ends when it would have

    def ban(self, until_ms: int) -> None:
        """Admit nothing at all before `until_ms`; the later of several bans counts."""
        self.banned_until_ms = max(self.banned_until_ms, until_ms)

    def _kept_for_others(self, purpose: Purpose, weight: int, into_minute_ms: int) -> float:
        """Return what the other purposes may still claim; within its own part a purpose asks nobody."""
        if self._spent[purpose] + weight <= self.allowance(purpose):
            return 0.0
        left = max(0.0, 1 - into_minute_ms / _ALL_RELEASED_MS)
        return sum(max(0.0, self.allowance(other) * left - self._spent[other]) for other in PARTS if other != purpose)

    def _into_minute_ms(self, now_ms: int) -> int:
        return (now_ms + self._shift_ms) % _MINUTE_MS

    def _turn_to(self, now_ms: int) -> None:
        minute = (now_ms + self._shift_ms) // _MINUTE_MS
        if minute != self._minute:
            self._minute = minute
            self._used = self._told = self._in_flight = 0
            self._spent = dict.fromkeys(PARTS, 0)
