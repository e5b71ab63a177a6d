"""Nothing is missing and order per symbol is kept, whatever Kinesis does: producer, boto3, fault proxy, real engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest
import trio

from tests.fakes.fault_proxy import FaultProxy, Faults, open_fault_proxy
from tests.integration.delivery import SYMBOLS, Line, first_arrivals, read_back, settings_for
from tests.integration.engines import CREDENTIALS, client_of, create_stream, stream_name_of

if TYPE_CHECKING:
    from ingestor.config import Kinesis
    from ingestor.core.shards import ShardInfo

pytestmark = pytest.mark.integration

FAULTS = {
    "none": Faults(),
    "throttled_entries": Faults(throttled_entries=0.2),
    "failed_entries": Faults(failed_entries=0.2),
    "refused_calls": Faults(refused_calls=0.3),
    "cut_after_acceptance": Faults(cut_calls=0.2),
    "latency": Faults(latency_s=0.15),
    "everything": Faults(throttled_entries=0.1, failed_entries=0.1, refused_calls=0.1, cut_calls=0.1, latency_s=0.02),
}
PER_SYMBOL = {"kpl": 300, "none": 60}  # the engines are slow with many small entries (facts/aws.md §4)
DEADLINE_S = 40.0


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def stream(engine_url: str, request: pytest.FixtureRequest) -> str:
    """Make a stream of two shards that belongs to one test."""
    name = stream_name_of(request.node.name)
    await trio.to_thread.run_sync(create_stream, client_of(engine_url), name, 2)
    return name


@pytest.fixture
async def moto_stream(moto_url: str, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Make a stream of two shards in moto; one engine is enough where the proxy alone decides."""
    name = stream_name_of(request.node.name)
    await trio.to_thread.run_sync(create_stream, client_of(moto_url), name, 2)
    return moto_url, name


async def assert_all_is_there(
    line: Line, engine_url: str, settings: Kinesis, per_symbol: int, *, duplicates_allowed: bool = False
) -> None:
    """Compare what the engine holds and what was acknowledged with what was sent."""
    sent = list(range(1, per_symbol + 1))
    stored = await read_back(engine_url, settings.stream_name)
    for symbol in SYMBOLS:
        arrived = first_arrivals(stored[symbol])
        assert sorted(arrived) == sent, f"{symbol} is not complete"
        assert duplicates_allowed or len(stored[symbol]) == len(arrived), f"{symbol} came twice"
        assert list(line.claimed[symbol]) == [(1, per_symbol)]
        if settings.aggregation == "kpl":  # plain puts order across calls only, which the proxy watches
            assert arrived == sent, f"{symbol} is out of order"
    assert line.letters.written == []
    assert line.fact.held_bytes == 0


def assert_order_rules_were_kept(proxy: FaultProxy, stream: str) -> None:
    """Look at every call: one in flight for each route, and nothing newer before what is still owed."""
    order = proxy.order_of(stream)
    assert order.overtaken == []
    assert order.overlapping == []


@pytest.mark.parametrize("aggregation", ["kpl", "none"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_is_missing_and_order_is_kept(
    engine_url: str, stream: str, fault: str, aggregation: Literal["kpl", "none"]
) -> None:
    """Whatever fails, every id arrives in order, is acknowledged once it is there, and only cuts bring duplicates."""
    per_symbol = PER_SYMBOL[aggregation]
    with trio.fail_after(DEADLINE_S):
        async with open_fault_proxy(engine_url, faults=FAULTS[fault], seed=3) as proxy:
            settings = settings_for(proxy.url, stream, aggregation)
            line = Line(settings)
            await line.deliver(per_symbol)
        await assert_all_is_there(
            line, engine_url, settings, per_symbol, duplicates_allowed=bool(FAULTS[fault].cut_calls)
        )
    assert_order_rules_were_kept(proxy, stream)
    assert_it_really_failed(proxy, FAULTS[fault])


def assert_it_really_failed(proxy: FaultProxy, faults: Faults) -> None:
    """Look whether every kind of failure that was asked for has happened."""
    assert bool(proxy.seen("ProvisionedThroughputExceededException")) == bool(faults.throttled_entries)
    assert bool(proxy.seen("InternalFailure")) == bool(faults.failed_entries)
    assert bool(proxy.calls("refused")) == bool(faults.refused_calls)
    assert bool(proxy.calls("cut")) == bool(faults.cut_calls)


@pytest.mark.parametrize(("aggregation", "share"), [("kpl", 0.006), ("none", 0.05)])
async def test_a_hot_shard_slows_the_line_and_loses_nothing(
    moto_stream: tuple[str, str], aggregation: Literal["kpl", "none"], share: float
) -> None:
    """Shards that take a small share of what real ones do throttle entries inside a 200 until all has passed."""
    engine_url, stream = moto_stream
    per_symbol = PER_SYMBOL[aggregation]
    with trio.fail_after(DEADLINE_S):
        async with open_fault_proxy(engine_url, faults=Faults(shard_share=share)) as proxy:
            settings = settings_for(proxy.url, stream, aggregation)
            line = Line(settings)
            await line.deliver(per_symbol)
        await assert_all_is_there(line, engine_url, settings, per_symbol)
    assert proxy.seen("ProvisionedThroughputExceededException") > 0
    assert_order_rules_were_kept(proxy, stream)


async def test_what_is_budgeted_is_not_throttled(moto_stream: tuple[str, str]) -> None:
    """The same shards, their map known: what they have no room for waits before the call."""
    engine_url, stream = moto_stream
    per_symbol, share = 150, 0.006
    maps: list[list[ShardInfo]] = []
    with trio.fail_after(DEADLINE_S):
        async with open_fault_proxy(engine_url, faults=Faults(shard_share=share)) as proxy:
            settings = settings_for(proxy.url, stream, "kpl").model_copy(update={"shard_budget_share": 0.9 * share})
            line = Line(settings, on_shards=maps.append)
            await line.deliver(per_symbol)
        await assert_all_is_there(line, engine_url, settings, per_symbol)
    assert proxy.seen("ProvisionedThroughputExceededException") == 0 < len(maps)
    assert_order_rules_were_kept(proxy, stream)


@pytest.mark.parametrize("outage", ["cut", "hang", "refuse"])
async def test_an_outage_opens_the_breaker_and_everything_arrives_after_it(
    moto_stream: tuple[str, str], outage: Literal["cut", "hang", "refuse"]
) -> None:
    """While Kinesis is away the breaker is open and nothing is claimed; when it is back, all that was held leaves."""
    engine_url, stream = moto_stream
    with trio.fail_after(DEADLINE_S):
        async with open_fault_proxy(engine_url) as proxy:
            settings = settings_for(proxy.url, stream, "kpl")
            line = Line(settings)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.deliver, 100)
                await be_away(proxy, line, outage)
        await assert_all_is_there(line, engine_url, settings, 100)
    assert line.fact.breaker == "closed"
    assert_order_rules_were_kept(proxy, stream)


async def be_away(proxy: FaultProxy, line: Line, outage: Literal["cut", "hang", "refuse"]) -> None:
    """Take Kinesis away until the producer has noticed, and give it back."""
    if outage == "refuse":
        async with proxy.refusing_connections():
            await wait_for_open_breaker(line)
    else:
        proxy.set(outage=outage)
        await wait_for_open_breaker(line)
        proxy.heal()


async def wait_for_open_breaker(line: Line) -> None:
    """Wait until the producer has given up trying for a while."""
    while line.fact.breaker != "open":  # noqa: ASYNC110 - a plain fact, written for probes that poll it too
        await trio.sleep(0.01)
    assert all(not claimed for claimed in line.claimed.values())


async def test_a_stream_that_does_not_exist_is_named_and_waited_for(moto_url: str) -> None:
    """The producer says which stream is missing and cannot deliver; made later, the stream gets everything."""
    stream = "made-too-late"
    settings = settings_for(moto_url, stream, "kpl")
    line = Line(settings)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.deliver, 50)
            complaint = await wait_for_configuration_error(line)
            assert complaint.startswith("ResourceNotFoundException")
            assert stream in complaint
            assert not line.fact.is_open
            await trio.to_thread.run_sync(create_stream, client_of(moto_url), stream, 2)
        await assert_all_is_there(line, moto_url, settings, 50)
    assert line.fact.configuration_error is None


async def test_without_credentials_it_says_so_and_delivers_once_there_are_some(
    moto_stream: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No credentials anywhere is a message for a person, never a crash; nothing is lost until there are some."""
    engine_url, stream = moto_stream
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    settings = settings_for(engine_url, stream, "kpl")
    line = Line(settings)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.deliver, 50)
            complaint = await wait_for_configuration_error(line)
            assert complaint.startswith("NoCredentials")
            assert "AWS_ACCESS_KEY_ID" in complaint
            for name, value in CREDENTIALS.items():
                monkeypatch.setenv(name, value)
        await assert_all_is_there(line, engine_url, settings, 50)


async def wait_for_configuration_error(line: Line) -> str:
    """Wait until the producer has something to say to a person, and return it."""
    while line.fact.configuration_error is None:  # noqa: ASYNC110 - a plain fact, written for probes that poll it too
        await trio.sleep(0.01)
    return line.fact.configuration_error
