"""What Kinesis does in a soak: a little goes wrong all the time, and at times much. The venue has `faults.chaos`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tests.fakes.fault_proxy import Faults

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping
    from random import Random

    from tests.fakes.fault_proxy import FaultProxy

ALWAYS: Final = Faults(throttled_entries=0.03, failed_entries=0.01, refused_calls=0.02, cut_calls=0.02, latency_s=0.02)
EPISODES: Final[Mapping[str, dict[str, object]]] = {
    "throttled": {"throttled_entries": 0.5},
    "failing": {"refused_calls": 0.5},
    "slow": {"latency_s": 1.0},
    "down": {"outage": "cut"},
    "hanging": {"outage": "hang"},
}
NOBODY_LISTENS: Final = "nobody listens"
OUTAGES: Final = ("down", "hanging", NOBODY_LISTENS)
# Each outage opens the breaker, which then waits its 30 s before it tries again; more of them would leave no time to
# deliver in.
OUTAGE_SHARE: Final = 0.3
VENUE_EVERY_S: Final = 12.0
KINESIS_EVERY_S: Final = 30.0
WORST_S: Final = 8.0
SHORTEST_S: Final = 1.0
LONGEST_S: Final = 5.0


async def trouble(proxy: FaultProxy, random: Random, until_s: float, met: Counter[str]) -> None:
    """Give Kinesis one bad time after the other until `until_s`; `met` counts them.

    The worst comes first: memory is held up to its bound once, and what is seen of it later is not the first time.
    """
    proxy.set(outage="cut")
    met["down"] += 1
    await trio.sleep(WORST_S)
    proxy.faults = ALWAYS
    nuisances = [name for name in EPISODES if name not in OUTAGES]
    while True:
        await trio.sleep(random.uniform(0.5, 1.5) * KINESIS_EVERY_S)
        length_s = random.uniform(SHORTEST_S, LONGEST_S)
        if trio.current_time() + length_s > until_s:
            break
        name = random.choice(OUTAGES if random.random() < OUTAGE_SHARE else nuisances)
        met[name] += 1
        if name == NOBODY_LISTENS:
            async with proxy.refusing_connections():
                await trio.sleep(length_s)
        else:
            proxy.set(**EPISODES[name])
            await trio.sleep(length_s)
            proxy.faults = ALWAYS
    await trio.sleep_until(until_s)
    proxy.heal()
