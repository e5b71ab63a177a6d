"""The simulation bites: every bug on purpose is caught by the run that is named for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from msgspec.structs import replace

from ingestor.local.faults import Disconnect, FailRest, Lag, Repeat, Skip
from tests.simulation import mutants
from tests.simulation.line import play
from tests.simulation.plan import TIGHT_BYTES, IdRestart, Plan, Trouble, Turn, Unreadable, calm
from tests.simulation.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable

TRADES, BARS, DIFFS = "btcusdt@trade", "btcusdt@kline_1m", "btcusdt@depth@100ms"


KILLED: Final = [Turn(20.0, "kill", 5.0)]
LOSSY: Final = [Disconnect(12.0), Disconnect(22.0)]
TIGHT: Final = {"held_max_bytes": TIGHT_BYTES, "channel_bytes": TIGHT_BYTES, "channel_batches": 8}
CAUGHT_BY: Final[dict[Callable[[], object], Plan]] = {
    mutants.forget_a_subscription: calm(15),
    mutants.claim_before_the_answer: calm(40, troubles=[Trouble(8, 12, "data", "down")]),
    mutants.forget_what_was_refused: calm(40, troubles=[Trouble(8, 12, "data", "throttled", 0.6)]),
    mutants.forget_the_batch_that_failed: calm(40, troubles=[Trouble(8, 4, "data", "down")]),
    mutants.send_again_behind_what_is_newer: calm(40, troubles=[Trouble(8, 20, "data", "throttled", 0.6)]),
    mutants.ignore_the_budget_of_a_shard: calm(
        80, narrow_shards=True, lanes=8, flush_interval_s=0.2, troubles=[Trouble(10, 20, "data", "down")]
    ),
    mutants.give_up_without_a_hole: calm(60, troubles=[Trouble(8, 20, "data", "odd")]),
    mutants.hold_without_limit: calm(100, troubles=[Trouble(8, 80, "data", "down")], **TIGHT),
    mutants.put_until_the_very_end: calm(
        80, troubles=[Trouble(15, 50, "data", "down")], turns=[Turn(20.0, "stop", 1.0)]
    ),
    mutants.claim_in_the_beat_what_is_under_way: calm(15),
    mutants.merge_to_one_interval: calm(60, turns=KILLED),
    mutants.do_not_wait_for_the_origin: calm(15),
    mutants.say_goodbye_before_the_drain: calm(15),
    mutants.read_errors_as_nothing_there: calm(60, turns=KILLED, unreadable=[Unreadable(20, 15, 0.6)]),
    mutants.read_an_empty_page_as_the_end: calm(
        60, turns=KILLED, unreadable=[Unreadable(20, 15, 1.0, empty_pages=True)]
    ),
    mutants.fetch_nothing_at_a_start: calm(60, turns=KILLED),
    mutants.ignore_a_gap_in_trades: calm(40, venue=[Skip(10, TRADES, 3)]),
    mutants.forget_the_ids_at_a_reconnect: calm(60, venue=LOSSY),
    mutants.drop_a_batch_after_a_reconnect: calm(60, venue=LOSSY),
    mutants.take_duplicates_for_new: calm(40, venue=[Repeat(10, TRADES, 5)]),
    mutants.declare_no_break_of_depth: calm(40, venue=[Skip(10, DIFFS, 3)]),
    mutants.lose_and_declare: calm(30),
    mutants.seed_no_book_again: calm(60, venue=[Skip(10, DIFFS, 3)]),
    mutants.miss_no_closed_bar: calm(120, venue=[Skip(35, BARS, 4)]),
    mutants.take_a_page_for_the_whole: calm(60, venue=[Skip(10, TRADES, 8), Lag(10, 30, 8_000)]),
    mutants.deliver_repairs_backwards: calm(40, venue=[Skip(10, TRADES, 8)]),
    mutants.declare_instead_of_fetching: calm(40, venue=[Skip(10, TRADES, 3)]),
    mutants.give_up_on_a_venue_that_is_away: calm(150, venue=[Skip(10, TRADES, 3), FailRest(10, 60, "internal")]),
    mutants.join_accounts_without_a_look_at_their_ids: calm(
        120,
        turns=[Turn(20, "kill", 14), Turn(50, "kill", 1)],
        unreadable=[Unreadable(30, 35, 1.0)],
        id_restarts=[IdRestart(21, "BTCUSDT")],
    ),
    mutants.repair_old_ids_after_a_restart: calm(
        150, venue=[Skip(10, TRADES, 5), FailRest(9, 40, "internal")], id_restarts=[IdRestart(25, "BTCUSDT")]
    ),
    mutants.round_the_prices: calm(15),
}


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_mutant_is_caught(mutant: Callable[[], mutants.Patch]) -> None:
    """A run that is good without the bug is found at fault with it."""
    plan = replace(CAUGHT_BY[mutant], patience_s=30.0)
    assert judge(play(replace(plan, patience_s=240.0))) == []
    with mutant():
        assert judge(play(plan))
