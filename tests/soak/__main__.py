"""Runs the real service for long, at full rate, with chaos on, and then stops it at the worst moments.

    python -m tests.soak [--minutes 30] [--rate 10000] [--seed 1] [--symbols 200] [--only steady|stops]

A simulated venue (`ingestor/local`) that loses connections, messages and REST answers; the service as a process; the
fault proxy, which throttles, fails, delays and goes away; behind it an endpoint that verifies every record and keeps
none. What the venue brought into being is held against what the endpoint saw. Prints a report as numbers, and ends with
1 if one of its claims does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import trio

from ingestor.core.audit import AuditReport
from ingestor.local.faults import chaos
from ingestor.local.market import Market
from ingestor.local.proof import prove
from ingestor.local.protocol import Rules
from ingestor.local.venue import Venue
from tests.benchmarks.children import fetch, run_child
from tests.fakes.fault_proxy import open_fault_proxy
from tests.integration.engines import free_port
from tests.integration.service import open_venue, produced_by, run_service
from tests.soak.stops import HARDSHIPS, Scene, catch_up, live_through
from tests.soak.trouble import VENUE_EVERY_S, trouble
from tests.soak.watch import Watch, usual, values_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ingestor.core.claims import Intervals
    from ingestor.core.model import Subscription
    from ingestor.local.faults import Fault
    from ingestor.local.venue import VenueUrls
    from tests.fakes.fault_proxy import FaultProxy

STREAM: Final = "soak"
GRACE_S: Final = 25.0  # the default of `service.shutdown_grace_s`
TRADES_AN_ORDER: Final = 1.73  # what the model makes of an order, about
OTHERS_PER_S: Final = 10.2  # diffs and bars of a symbol
UPDATES_PER_S: Final = 20.0
KEPT_S: Final = 120.0  # trades that REST still has
# Disconnects are a hundred times as frequent as on a bad day, so what one costs in REST must be had so often.
WEIGHT_PER_MINUTE: Final = 60_000
CATCH_UP_S: Final = 180.0
KEPT_RATE: Final = 0.9  # the share of the rate that the venue has to have produced, or nothing was shown


class Claim(NamedTuple):
    """Something that has to hold, and what was seen."""

    text: str
    holds: bool
    seen: object


def new_venue(options: argparse.Namespace, script: Sequence[Fault] = ()) -> Venue:
    """Return a venue that produces about the wanted rate."""
    symbols = symbols_of(options)
    orders_per_s = max(1.0, options.rate / len(symbols) - OTHERS_PER_S) / TRADES_AN_ORDER
    market = Market(
        symbols,
        seed=options.seed,
        start_ms=time.time_ns() // 1_000_000,
        orders_per_s=orders_per_s,
        updates_per_s=UPDATES_PER_S,
        keep_trades=int(KEPT_S * orders_per_s * TRADES_AN_ORDER),
    )
    return Venue(market, script=script, rules=Rules(weight_per_minute=WEIGHT_PER_MINUTE))


def symbols_of(options: argparse.Namespace) -> list[str]:
    """Return what is traded."""
    return [f"COIN{number}USDT" for number in range(options.symbols)]


def settings_of(options: argparse.Namespace, urls: VenueUrls, kinesis_url: str, folder: Path) -> dict[str, Any]:
    """Return the defaults, but for where things are; and a spool, as one has in production."""
    return {
        "logging": {"level": "info", "format": "json"},
        "binance": {
            "websocket_url": urls.websocket_url,
            "rest_url": urls.rest_url,
            "symbols": symbols_of(options),
            "connections": {"max_streams": 100},
        },
        "kinesis": {"stream_name": STREAM, "endpoint_url": kinesis_url},
        "spool": {"directory": str(folder / "spool")},
        "dead_letter": {"directory": str(folder / "dead-letter")},
        "health": {"host": "127.0.0.1", "port": free_port()},
    }


def account(port: int) -> AuditReport:
    """Return what the endpoint has verified so far."""
    return msgspec.json.decode(fetch(port, "/report"), type=AuditReport)


async def soak(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Claim]]:
    """Run one life for long; return the numbers and the claims about it."""
    seconds = options.minutes * 60
    streams = [f"{symbol.lower()}@{kind}" for symbol in symbols_of(options) for kind in ("trade", "depth@100ms")]
    venue = new_venue(options, chaos(options.seed, streams, seconds, every_s=VENUE_EVERY_S))
    watch, met = Watch(), Counter[str]()
    with run_child("tests.soak.verifier", STREAM) as verifying:
        port = int(verifying.first_line())
        async with open_fault_proxy(f"http://127.0.0.1:{port}", seed=options.seed) as proxy, open_venue(venue) as urls:
            settings = settings_of(options, urls, proxy.url, folder)
            async with run_service(settings, folder) as service:
                await service.wait_started()
                began_s, before = trio.current_time(), messages_of(venue)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(watch.run, service)
                    await trouble(proxy, Random(options.seed), began_s + seconds * 0.9, met)
                    await trio.sleep_until(began_s + seconds)
                    nursery.cancel_scope.cancel()
                produced, took_s = produced_by(venue), trio.current_time() - began_s
                rate = (messages_of(venue) - before) / took_s
                with trio.move_on_after(CATCH_UP_S):
                    await service.wait_covered(produced)
                caught_up_s = trio.current_time() - began_s - took_s
                told = values_of((await service.get("/metrics")).text)
                status = (await service.get("/status")).json()
                stopping_s = trio.current_time()
                code = await service.stop()
                stop_s = trio.current_time() - stopping_s
        report = account(port)
    numbers = {
        "seconds": round(took_s),
        "messages a second": round(rate),
        "CPU, cores": round(watch.cpu_s[-1].value / watch.cpu_s[-1].at_s, 3),
        "CPU µs a message": round(watch.cpu_s[-1].value / watch.cpu_s[-1].at_s / rate * 1e6, 1),
        "seconds to catch up at the end": round(caught_up_s, 1),
        "seconds to stop": round(stop_s, 2),
        "latency": status["latency"],
        **met_of(venue, proxy, met, told),
        **shown(watch),
        **ids_of(produced, report),
    }
    return numbers, [
        *claims_of(watch, produced, report),
        Claim("it ends with 0", code == 0, code),
        Claim(f"the venue kept {KEPT_RATE:.0%} of the rate", rate >= KEPT_RATE * options.rate, round(rate)),
    ]


def messages_of(venue: Venue) -> int:
    """Return how many messages have come into being."""
    return sum(each.produced_messages for each in venue.ledger.values())


def met_of(venue: Venue, proxy: FaultProxy, met: Counter[str], told: Mapping[str, float]) -> dict[str, Any]:
    """Return what went wrong, and what the service made of it."""
    wanted = (
        "websocket_reconnection_count_total",
        "gaps_detected_total",
        "ids_repaired_total",
        "holes_declared_total",
        "duplicates_dropped_total",
        "kinesis_entries_retried_total",
        "kinesis_possible_duplicates_total",
        "records_delivered_total",
        "records_abandoned_total",
        "dead_letters_total",
    )
    return {
        "bad times of Kinesis": dict(met),
        "calls": dict(Counter(call.outcome for call in proxy.journal)),
        "REST requests": dict(venue.desk.requests),
        "told": {name: told.get(name, 0.0) for name in wanted},
    }


def shown(watch: Watch) -> dict[str, Any]:
    """Return what the process looked like."""
    memory = watch.memory()
    return {
        "memory, MB": {
            "usual": round(memory.level, 1),
            "highest": round(max(look.value for look in watch.memory_mb), 1),
            "growth": round(memory.growth, 2),
            "noise of that": round(memory.noise, 2),
            "an hour": round(memory.per_hour, 2),
            "over time": [round(value) for value in watch.memory_over_time()],
        },
        **{
            name: {
                "usual": usual(looks),
                "least": min(looks, key=by_value).value,
                "most": max(looks, key=by_value).value,
            }
            for name, looks in watch.counts.items()
        },
    }


def by_value(look: Any) -> float:
    """Order looks by what was seen."""
    return float(look.value)


def ids_of(produced: Mapping[Subscription, Intervals], report: AuditReport) -> dict[str, Any]:
    """Return, by kind, how many ids there were and what became of them."""
    by_kind: dict[str, Counter[str]] = {}
    for row in prove(produced, report):
        counts = by_kind.setdefault(row.kind, Counter())
        for name in ("sent", "delivered", "declared", "missing", "duplicates", "conflicts"):
            counts[name] += getattr(row, name)
    return {f"ids, {kind}": dict(counts) for kind, counts in by_kind.items()}


def claims_of(watch: Watch, produced: Mapping[Subscription, Intervals], report: AuditReport) -> list[Claim]:
    """Return what has to hold at the end of a soak."""
    leaks, memory = watch.leaks(), watch.memory()
    return [
        *complete(produced, report),
        Claim("memory is flat", not watch.memory_grows(), f"{memory.growth:+.2f} MB, noise {memory.noise:.2f}"),
        *(Claim(f"{name} are flat", name not in leaks, leaks.get(name, "flat")) for name in watch.counts),
    ]


def complete(produced: Mapping[Subscription, Intervals], report: AuditReport) -> list[Claim]:
    """Return the claims about what is in the stream."""
    rows = prove(produced, report)
    missing = [row for row in rows if not row.is_proven]
    declared = [row for row in rows if row.declared and row.kind != "depth"]
    unseeded = [each for each in report.streams if each.unseeded]
    disordered = sum(each.disordered for each in report.streams)
    return [
        Claim("every id is delivered or declared, none with two values", not missing, missing[:3]),
        Claim("no trade and no bar is declared", not declared, declared[:3]),
        Claim("a snapshot follows every break of a book", not unseeded, len(unseeded)),
        Claim("nothing live is out of order", disordered == 0, disordered),
        Claim("everything can be read", report.undecodable == 0, report.undecodable),
    ]


async def stops(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Claim]]:
    """Stop life after life at the worst moments, at full rate."""
    venue = new_venue(options)
    with run_child("tests.soak.verifier", STREAM) as verifying:
        port = int(verifying.first_line())
        async with open_fault_proxy(f"http://127.0.0.1:{port}") as proxy, open_venue(venue) as urls:
            settings = partial(settings_of, options, urls, proxy.url)
            scene = Scene(venue, proxy, settings, folder, limit_s=GRACE_S, flow_s=4.0)
            ends = await live_through(scene, list(HARDSHIPS))
            produced = await catch_up(scene)
        report = account(port)
    numbers = {
        "stops": {end.case: {"code": end.code, "seconds": round(end.took_s, 2)} for end in ends},
        **ids_of(produced, report),
    }
    return numbers, complete(produced, report)


PARTS: Final = {"steady": soak, "stops": stops}


def main() -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the steady part takes")
    parser.add_argument("--rate", type=float, default=10_000.0, help="messages a second")
    parser.add_argument("--symbols", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    is_good = True
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            numbers, claims = trio.run(PARTS[name], options, Path(folder))
        print(f"{name}: {json.dumps(numbers, indent=1, ensure_ascii=False)}")  # noqa: T201 - the report
        for claim in claims:
            verdict = "holds" if claim.holds else f"DOES NOT HOLD: {claim.seen}"
            print(f"{claim.text}: {verdict}", flush=True)  # noqa: T201 - the report
        is_good &= all(claim.holds for claim in claims)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
