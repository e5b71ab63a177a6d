"""Hard stops in a row, under load: each life takes over from the one before on an empty disk, and meets its own end.

What each has to show is its exit code, within the grace. What all of them have to show together is in the stream at the
end: the last life is left in peace until it has caught up, and then nothing may be missing that is not declared, and of
trades and bars nothing declared either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from ingestor.local.faults import Disconnect, Refuse
from tests.integration.service import produced_by, run_service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from ingestor.core.claims import Intervals
    from ingestor.core.model import Subscription
    from ingestor.local.venue import Venue
    from tests.fakes.fault_proxy import FaultProxy
    from tests.integration.service import Running

KILLED: Final = 128 + 15  # a second signal ends it at once
LOOK_S: Final = 0.01
SIGTERM_BIT: Final = 1 << 14


@dataclass(frozen=True)
class Scene:
    """Where the lives take place. `settings` gives the configuration of one that has `folder` to itself.

    `limit_s` is how long a stop may take: the grace, or more where a busy machine must not fail a test.
    """

    venue: Venue
    proxy: FaultProxy
    settings: Callable[[Path], Mapping[str, Any]]
    folder: Path
    limit_s: float
    flow_s: float  # how long a life works before its end comes
    slow_s: float = 1.0  # what a put takes while Kinesis is slow


class Stopped(NamedTuple):
    """How a life ended."""

    case: str
    code: int
    took_s: float


class Hardship(NamedTuple):
    """What a life meets before it is told to stop, and the code that it has to end with."""

    meet: Callable[[Scene, Running], Awaitable[None]]
    code: int = 0
    twice: bool = False


async def work(scene: Scene, service: Running) -> None:
    """Let it deliver for a while, from when on every stream of it has spoken: what is owed of one begins there."""
    await service.wait_started()
    await service.wait_begun()
    await trio.sleep(scene.flow_s)


async def slow(scene: Scene, service: Running) -> None:
    """Have Kinesis take its time."""
    await work(scene, service)
    scene.proxy.set(latency_s=scene.slow_s)
    await trio.sleep(scene.flow_s)


async def down(scene: Scene, service: Running) -> None:
    """Have Kinesis close every connection."""
    await work(scene, service)
    scene.proxy.set(outage="cut")
    await trio.sleep(scene.flow_s)


async def hanging(scene: Scene, service: Running) -> None:
    """Have Kinesis take connections and answer nothing."""
    await work(scene, service)
    scene.proxy.set(outage="hang")
    await trio.sleep(scene.flow_s)


async def reconnecting(scene: Scene, service: Running) -> None:
    """Have the venue cut every connection and take none."""
    await work(scene, service)
    scene.venue.suffer(Refuse(0.0, 2 * scene.flow_s))
    scene.venue.suffer(Disconnect(0.0))
    await trio.sleep(scene.flow_s)


async def importing(scene: Scene, service: Running) -> None:
    """Wait until it has hardly begun: nothing is there but the answer to a signal."""
    del scene
    while not catches_sigterm(service.pid):  # noqa: ASYNC110 - a process does not tell
        await trio.sleep(LOOK_S / 10)


async def connecting(scene: Scene, service: Running) -> None:
    """Wait until it has a connection to the venue, and nothing in Kinesis yet."""
    del service
    while not scene.venue.connections:  # noqa: ASYNC110 - a venue does not tell
        await trio.sleep(LOOK_S)


HARDSHIPS: Final[Mapping[str, Hardship]] = {
    "Kinesis slow": Hardship(slow),
    "start-up, while it loads": Hardship(importing),
    "start-up, while it connects": Hardship(connecting),
    "Kinesis down": Hardship(down),
    "Kinesis hanging": Hardship(hanging),
    "during a reconnect": Hardship(reconnecting),
    "twice in a row": Hardship(slow, KILLED, twice=True),
}


async def live_through(scene: Scene, cases: Sequence[str]) -> list[Stopped]:
    """Let one life after the other meet its end; raises AssertionError with the log of one that ends otherwise."""
    return [await live_once(scene, case) for case in cases]


async def live_once(scene: Scene, case: str) -> Stopped:
    """Live until stopped, on an empty disk; then the world is well again."""
    hardship = HARDSHIPS[case]
    folder = scene.folder / case.replace(" ", "-").replace(",", "")
    folder.mkdir()
    async with run_service(scene.settings(folder), folder) as service:
        await hardship.meet(scene, service)
        began_s = trio.current_time()
        service.terminate()
        if hardship.twice:
            await trio.sleep(scene.slow_s / 5)
            service.terminate()
        with trio.move_on_after(scene.limit_s + 5):
            code = await service.wait_end()
            took_s = trio.current_time() - began_s
            assert code == hardship.code, f"{case}: {code} after {took_s:.1f} s\n{service.log()}"
            assert took_s <= scene.limit_s, f"{case}: {took_s:.1f} s\n{service.log()}"
            scene.proxy.heal()
            return Stopped(case, code, took_s)
    raise AssertionError(f"{case}: it does not end\n{(folder / 'ingestor.log').read_text()}")


async def catch_up(scene: Scene) -> dict[Subscription, Intervals]:
    """Let a last life make good whatever the others left, and stop it in peace; return what it had to cover."""
    folder = scene.folder / "last"
    folder.mkdir()
    async with run_service(scene.settings(folder), folder) as service:
        await service.wait_started()
        produced = produced_by(scene.venue)
        await service.wait_covered(produced)
        code = await service.stop()
        assert code == 0, service.log()
    return produced


def catches_sigterm(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM by now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) & SIGTERM_BIT)
    return False
