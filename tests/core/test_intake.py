"""One read of messages becomes records, gaps, holes, lost books and poison; nothing of it disappears."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from ingestor.core.binance import Ack, DepthSnapshot, ServerShutdown, StreamError
from ingestor.core.intake import Begin, Inlet, Intake
from ingestor.core.model import Gap, Subscription

TRADES = Subscription("BTCUSDT", "trade")
DEPTH = Subscription("BTCUSDT", "depth")
KLINES = Subscription("BTCUSDT", "kline_1m")
RECEIVED_US = 1_790_000_000_500_000
NOW_MS = RECEIVED_US // 1000
MINUTE = 60_000
BAR = 1_790_000_000_000 // MINUTE  # ordinal of the running bar


class OneFeed(Intake):
    """An intake with one feed that carries everything."""

    inlet: Inlet


def an_intake(*subscriptions: Subscription) -> OneFeed:
    intake = OneFeed(subscriptions or (TRADES, DEPTH, KLINES))
    intake.inlet = intake.open(subscriptions or (TRADES, DEPTH, KLINES))
    return intake


def message(subscription: Subscription, **data: Any) -> bytes:
    return json.dumps({"stream": subscription.stream_name, "data": data}).encode()


def trade(trade_id: int, *, at_ms: int = 1_790_000_000_123, symbol: str = "BTCUSDT") -> bytes:
    return message(
        TRADES, e="trade", E=at_ms, s=symbol, t=trade_id, p="86412.57000000", q="0.00120000", T=at_ms, m=False, M=True
    )


def diff(first: int, final: int, *, bids: Any = (), asks: Any = (), at_ms: int = 1_790_000_000_200) -> bytes:
    return message(DEPTH, e="depthUpdate", E=at_ms, s="BTCUSDT", U=first, u=final, b=list(bids), a=list(asks))


def bar(ordinal: int, *, trades: int = 1, closed: bool = False, interval: str = "1m") -> bytes:
    open_ms = ordinal * MINUTE
    numbers = dict.fromkeys("ochlvqVQB", "1.00000000")
    k = {"t": open_ms, "T": open_ms + 59_999, "s": "BTCUSDT", "i": interval, "f": 1, "L": 1, "n": trades, "x": closed}
    return message(KLINES, e="kline", E=open_ms + 1, s="BTCUSDT", k={**k, **numbers})


def accept(intake: OneFeed, *messages: bytes) -> Any:
    return intake.accept(intake.inlet, list(messages), 1.0, RECEIVED_US)


def test_one_read_becomes_one_batch_in_order_with_its_raw_messages() -> None:
    """Records of all kinds travel together, each beside the bytes it came from, with one receive time."""
    messages = [trade(7), bar(BAR), trade(8)]
    batch = accept(an_intake(), *messages).batch
    assert [(record.event_type, record.sequence) for record in batch.records] == [
        ("trade", 7),
        ("kline", BAR * MINUTE),
        ("trade", 8),
    ]
    assert batch.raws == messages
    assert batch.received_s == 1.0
    assert {record.received_at for record in batch.records} == {RECEIVED_US}
    assert batch.size_bytes > sum(map(len, messages))


@pytest.mark.parametrize("levels", [0, 5, 5_000])
def test_a_batch_counts_for_what_it_costs_to_hold(levels: int) -> None:
    """Levels of books are six times as large as their text; a channel that counted only that would not be bounded."""
    intake = an_intake()
    bids = [[f"{price}.00000000", f"{price % 7 + 1}.50000000"] for price in range(levels)]
    messages = [diff(number, number, bids=bids) for number in range(1, 11)]
    accept(intake, trade(1), diff(0, 0))
    tracemalloc.start()
    batch = accept(intake, *(bytes(bytearray(each)) for each in messages)).batch
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.8 * held_bytes < batch.size_bytes < 2.5 * held_bytes


def test_a_read_without_records_is_no_batch() -> None:
    """Acks and duplicates do not travel."""
    intake = an_intake()
    accept(intake, trade(7))
    accepted = accept(intake, trade(7), b'{"result":null,"id":1}')
    assert accepted.batch is None
    assert accepted.duplicates == {"trade": 1}
    assert accepted.controls == [Ack(1)]


def test_the_first_id_of_a_subscription_is_its_beginning() -> None:
    """Where the live line starts is what a resume compares with; an open bar is the next one to be claimed."""
    accepted = accept(an_intake(), trade(7), diff(100, 105), bar(BAR), trade(8))
    assert accepted.begins == [
        Begin(TRADES, 7, 1_790_000_000_123),
        Begin(DEPTH, 100, 1_790_000_000_200),
        Begin(KLINES, BAR, BAR * MINUTE + 1),
    ]


def test_a_first_bar_that_is_closed_is_the_beginning_itself() -> None:
    """It is claimed by its own record."""
    assert accept(an_intake(), bar(BAR, closed=True)).begins == [Begin(KLINES, BAR, BAR * MINUTE + 1)]


def test_missing_trades_are_a_gap_to_repair_and_the_live_one_goes_on() -> None:
    """The reader never waits for a repair."""
    accepted = accept(an_intake(), trade(7), trade(11))
    assert accepted.gaps == [Gap(TRADES, 8, 10, NOW_MS)]
    assert [record.sequence for record in accepted.batch.records] == [7, 11]


def test_a_trade_whose_id_went_back_but_not_its_time_begins_a_new_generation() -> None:
    """A wiped testnet is not a thousand duplicates; the ids before its first live one are declared."""
    intake = an_intake()
    accept(intake, trade(5_000))
    accepted = accept(intake, trade(3, at_ms=1_790_000_009_000))
    assert accepted.begins == [Begin(TRADES, 3, 1_790_000_009_000, is_restart=True)]
    hole, live = accepted.batch.records
    assert (hole.hole.reason, hole.hole.first, hole.hole.last) == ("id_restart", 0, 2)
    assert live.sequence == 3


def test_a_restart_tells_what_was_missed_before_it_from_what_was_missed_behind_it() -> None:
    """The old ids are other trades by now: declared, not fetched; the new ones are a gap like any other."""
    accepted = accept(
        an_intake(), trade(7), trade(9), trade(3, at_ms=1_790_000_009_000), trade(6, at_ms=1_790_000_009_001)
    )
    assert accepted.gaps == [Gap(TRADES, 4, 5, NOW_MS)]
    holes = [(hole.first, hole.last, hole.reason) for _, hole in accepted.holes]
    assert holes == [(8, 8, "id_restart"), (0, 2, "id_restart")]
    assert [record.sequence for record in accepted.batch.records] == [7, 9, 8, 0, 3, 6]


def test_a_restart_from_the_very_first_id_is_told_although_nothing_is_missing() -> None:
    """Or whoever reads the stream would find millions of ids between the new ones and the old."""
    intake = an_intake()
    accept(intake, trade(5_000))
    marker, live = accept(intake, trade(0, at_ms=1_790_000_009_000)).batch.records
    assert (marker.hole.reason, marker.hole.first, marker.hole.last) == ("id_restart", 0, -1)
    assert live.sequence == 0


def test_lost_diffs_are_declared_before_the_first_record_behind_them() -> None:
    """Diffs cannot be fetched again, so the hole goes out at once, and the book asks for a snapshot."""
    intake = an_intake()
    accept(intake, diff(100, 105))
    intake.begin_buffering("BTCUSDT")
    accept(intake, diff(106, 106))
    intake.load_snapshot("BTCUSDT", DepthSnapshot(106, [("10.00000000", "1")], [("11.00000000", "1")]), 5, RECEIVED_US)
    accepted = accept(intake, diff(120, 121))
    hole, live = accepted.batch.records
    assert (hole.event_type, hole.sequence, hole.symbol) == ("hole", 107, "BTCUSDT")
    assert (hole.hole.stream, hole.hole.first, hole.hole.last, hole.hole.reason) == ("depth", 107, 119, "disconnected")
    assert accepted.holes == [("BTCUSDT", hole.hole)]
    assert live.depth.first_update_id == 120
    assert (live.bid_price, live.ask_price) == (None, None)
    assert accepted.resyncs == ["BTCUSDT"]


def test_depth_events_carry_the_best_of_the_synchronised_book() -> None:
    """Null until the snapshot has been bridged, true from then on."""
    intake = an_intake()
    accepted = accept(intake, diff(100, 105, bids=[["10.00000000", "2.00000000"]]))
    assert accepted.resyncs == ["BTCUSDT"]
    assert accepted.batch.records[0].bid_price is None
    assert intake.synchronised() == (0, 1)
    intake.begin_buffering("BTCUSDT")
    accept(intake, diff(106, 110))
    snapshot = DepthSnapshot(108, [("10.00000000", "2.00000000")], [("11.00000000", "1.00000000")])
    record = intake.load_snapshot("BTCUSDT", snapshot, 1000, RECEIVED_US)
    assert record is not None
    assert record.depth is not None
    assert (record.source, record.depth.snapshot, record.sequence) == ("rest", True, 108)
    assert (record.bid_price, record.ask_price) == ("10.00000000", "11.00000000")
    accepted = accept(intake, diff(111, 112, bids=[["10.50000000", "1.00000000"]]))
    assert (accepted.batch.records[0].bid_price, accepted.batch.records[0].ask_price) == ("10.50000000", "11.00000000")
    assert intake.synchronised() == (1, 1)


def test_a_book_is_in_doubt_until_it_is_seeded_and_after_every_pause() -> None:
    """What happened while no feed carried it shows with its next message; a second feed leaves no pause."""
    intake = an_intake()
    assert intake.in_doubt() == 1
    accept(intake, diff(100, 105))
    intake.begin_buffering("BTCUSDT")
    intake.load_snapshot("BTCUSDT", DepthSnapshot(108, [], []), 1000, RECEIVED_US)
    assert intake.in_doubt() == 0
    other = intake.open((DEPTH,))
    intake.close(other, 1.0)
    assert intake.in_doubt() == 0
    intake.close(intake.inlet, 1.0)
    assert intake.in_doubt() == 1
    intake.inlet = intake.open((DEPTH,))
    assert intake.in_doubt() == 1
    accept(intake, diff(106, 108))
    assert intake.in_doubt() == 0


def test_a_snapshot_older_than_the_diffs_is_refused() -> None:
    """Another one must be fetched; nothing is emitted for it."""
    intake = an_intake()
    accept(intake, diff(100, 105))
    intake.begin_buffering("BTCUSDT")
    accept(intake, diff(106, 110))
    assert intake.load_snapshot("BTCUSDT", DepthSnapshot(50, [], []), 1000, RECEIVED_US) is None


def test_a_snapshot_of_an_empty_side_has_no_best() -> None:
    """Absent is None, never zero."""
    intake = an_intake()
    accept(intake, diff(100, 105))
    intake.begin_buffering("BTCUSDT")
    record = intake.load_snapshot("BTCUSDT", DepthSnapshot(200, [], []), 1000, RECEIVED_US)
    assert record is not None
    assert (record.bid_price, record.ask_price) == (None, None)


def test_a_diff_seen_before_is_dropped_and_one_that_overlaps_is_kept() -> None:
    """Two connections cut windows differently; what brings news is taken."""
    intake = an_intake()
    accept(intake, diff(100, 105))
    accepted = accept(intake, diff(100, 105), diff(104, 108))
    assert accepted.duplicates == {"depth": 1}
    assert [record.sequence for record in accepted.batch.records] == [108]


def test_update_ids_that_begin_again_begin_a_new_generation() -> None:
    """The book is thrown away and the ids before the first live one are declared."""
    intake = an_intake()
    accept(intake, diff(9_000, 9_010))
    accepted = accept(intake, diff(5, 6, at_ms=1_790_000_100_000))
    assert accepted.begins == [Begin(DEPTH, 5, 1_790_000_100_000, is_restart=True)]
    assert accepted.holes[0][1].reason == "id_restart"
    assert accepted.resyncs == ["BTCUSDT"]


def test_a_missed_closing_message_is_a_gap_of_bars() -> None:
    """Closed bars are counted by ordinal; interim ones claim nothing."""
    intake = an_intake()
    accept(intake, bar(BAR, closed=True))
    accepted = accept(intake, bar(BAR + 1), bar(BAR + 3, closed=True), bar(BAR + 3))
    assert accepted.gaps == [Gap(KLINES, BAR + 1, BAR + 2, NOW_MS)]
    assert accepted.duplicates == {"kline": 1}


def test_a_bar_whose_closing_message_never_comes_is_overdue_once() -> None:
    """A later bar that runs for longer than a closing message may be late proves the loss."""
    intake = an_intake()
    accept(intake, bar(BAR), bar(BAR + 1))
    assert intake.overdue(1.0, NOW_MS) == []
    assert intake.overdue(5.9, NOW_MS + 3_600_000) == [], "the wall clock was put forward"
    an_hour_back_ms = NOW_MS - 3_600_000
    assert intake.overdue(61.0, an_hour_back_ms) == [Gap(KLINES, BAR, BAR, an_hour_back_ms)]
    assert intake.overdue(62.0, NOW_MS) == []


def test_every_bad_message_goes_to_the_dead_letter_with_its_bytes_and_the_line_goes_on() -> None:
    """Broken JSON, a missing field, an unknown event, a stray stream, a foreign symbol or kind: one letter each."""
    other = message(TRADES, e="depthUpdate", E=1, s="BTCUSDT", U=1, u=2, b=[], a=[])
    bad = [
        b"\xff{",
        b'{"stream":"btcusdt@trade","data":{"e":"trade","s":"BTCUSDT"}}',
        b'{"stream":"btcusdt@bookTicker","data":{"u":1,"s":"BTCUSDT"}}',
        trade(1).replace(b"btcusdt@trade", b"ethusdt@trade"),
        trade(1, symbol="ETHUSDT"),
        other,
        message(DEPTH, e="kline", E=1, s="BTCUSDT", k=json.loads(bar(BAR))["data"]["k"]),
        bar(BAR, interval="5m"),
    ]
    accepted = accept(an_intake(), *bad, trade(7))
    assert [letter.raw for letter in accepted.poison] == bad
    assert [letter.reason for letter in accepted.poison] == [
        "invalid_json",
        "unexpected_shape",
        "unknown_event",
        "unknown_subscription",
        "unexpected_shape",
        "unexpected_shape",
        "unexpected_shape",
        "unexpected_shape",
    ]
    assert [record.sequence for record in accepted.batch.records] == [7]


def test_control_messages_are_returned_to_their_connection() -> None:
    """Acks, both shapes of errors and the announced shutdown are no poison."""
    accepted = accept(
        an_intake(),
        b'{"result":null,"id":3}',
        b'{"error":{"code":2,"msg":"Invalid request: invalid stream"},"id":7}',
        b'{"code":3,"msg":"Invalid JSON"}',
        b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1790000000000}}',
    )
    assert accepted.poison == []
    assert accepted.controls == [
        Ack(3),
        StreamError(2, "Invalid request: invalid stream", 7),
        StreamError(3, "Invalid JSON"),
        ServerShutdown(),
    ]


def test_what_was_received_and_seen_can_be_asked_for() -> None:
    """Counters and newest times are read by their owners when needed, not kept per message."""
    intake = an_intake(TRADES, DEPTH, KLINES, Subscription("BTCUSDT", "kline_5m"))
    accept(intake, trade(7), trade(8), bar(BAR), diff(1, 2))
    accept(intake, bar(BAR // 5, interval="5m").replace(b"kline_1m", b"kline_5m"))
    assert intake.received() == {("BTCUSDT", "trade"): 2, ("BTCUSDT", "kline"): 2, ("BTCUSDT", "depth"): 1}
    assert intake.last_event_ms(TRADES) == 1_790_000_000_123
    assert intake.next_ids()[TRADES] == 9


def test_what_ends_is_taken_until_no_feed_carries_it_then_forgotten() -> None:
    """It is told once, with its newest time; its label goes, the total stays; what comes late is let go."""
    intake = an_intake(TRADES, DEPTH)
    accept(intake, trade(7), diff(100, 105))
    intake.end([DEPTH])
    assert accept(intake, diff(106, 107)).batch.records[0].sequence == 107
    assert (intake.take_ended(), intake.has_book("BTCUSDT")) == ({}, True)
    intake.leave(intake.inlet, [DEPTH], 2.0)
    assert (intake.take_ended(), intake.take_ended()) == ({DEPTH: 1_790_000_000_200}, {})
    assert (intake.subscriptions(), intake.has_book("BTCUSDT"), intake.synchronised()) == ({TRADES}, False, (0, 0))
    late = accept(intake, diff(108, 109))
    assert (late.batch, late.poison, late.resyncs) == (None, [], [])
    assert (intake.received(), intake.received_ever()) == ({("BTCUSDT", "trade"): 1}, 3)
    assert (intake.next_ids(), intake.last_event_ms(DEPTH)) == ({TRADES: 8}, 0)
    assert intake.position(DEPTH) < (0, 0)
    assert intake.pass_over(KLINES, (9, 0), 0, NOW_MS) is None
    intake.begin_buffering("BTCUSDT")
    assert intake.load_snapshot("BTCUSDT", DepthSnapshot(200, [], []), 10, 0) is None


def test_what_nobody_carries_is_forgotten_at_once() -> None:
    """Nothing can come of it any more."""
    intake = Intake([TRADES, DEPTH])
    intake.end([TRADES])
    assert intake.take_ended() == {TRADES: 0}
    intake.close(intake.open([DEPTH]), 1.0)
    assert (intake.take_ended(), intake.subscriptions()) == ({}, {DEPTH})


def test_what_is_wanted_again_before_it_was_forgotten_goes_on_where_it_was() -> None:
    """It is not new; afterwards it is, and begins anew. A counter never falls."""
    intake = an_intake(TRADES)
    accept(intake, trade(7))
    intake.end([TRADES])
    assert intake.add([TRADES]) == []
    intake.leave(intake.inlet, [TRADES], 1.0)
    intake.join(intake.inlet, [TRADES])
    assert accept(intake, trade(9)).gaps == [Gap(TRADES, 8, 8, NOW_MS)]
    intake.end([TRADES])
    intake.leave(intake.inlet, [TRADES], 1.0)
    assert intake.add([TRADES, DEPTH]) == [TRADES, DEPTH]
    intake.join(intake.inlet, [TRADES])
    assert accept(intake, trade(20)).begins == [Begin(TRADES, 20, 1_790_000_000_123)]
    assert intake.received() == {("BTCUSDT", "trade"): 3, ("BTCUSDT", "depth"): 0}
    assert intake.received_ever() == 3


def test_a_feed_joins_and_leaves_what_another_one_carries() -> None:
    """The one that stays goes on with what the other brought; joining twice or leaving twice is once."""
    intake = an_intake(TRADES, DEPTH)
    accept(intake, trade(7))
    other = intake.open([DEPTH])
    intake.join(other, [TRADES, DEPTH])
    assert other.subscriptions == (DEPTH, TRADES)
    assert intake.accept(other, [trade(7), trade(8)], 1.0, RECEIVED_US).duplicates == {"trade": 1}
    intake.leave(intake.inlet, [TRADES], 1.0)
    intake.leave(intake.inlet, [TRADES], 1.0)
    assert intake.inlet.subscriptions == (DEPTH,)
    assert accept(intake, trade(9)).batch is None
    assert intake.accept(other, [trade(9)], 1.0, RECEIVED_US).gaps == []
    assert intake.next_ids() == {TRADES: 10}


def test_what_waits_for_another_feed_goes_on_when_that_one_leaves() -> None:
    """Nothing that was brought is lost with it."""
    intake = an_intake(TRADES)
    accept(intake, trade(7))
    other = intake.open([TRADES])
    assert intake.accept(other, [trade(9)], 1.0, RECEIVED_US).batch is None
    accepted = intake.leave(other, [TRADES], 1.1)
    assert accepted.batch is not None
    assert [record.sequence for record in accepted.batch.records] == [9]
    assert accepted.gaps == [Gap(TRADES, 8, 8, NOW_MS)]


def test_quiet_trades_begin_behind_the_venues_newest_one() -> None:
    """Of trades alone, and once; the time is no evidence, so that a late REST is not taken for a restart."""
    intake = Intake([TRADES, DEPTH])
    accepted = intake.begin_behind([(TRADES, 6, 5_000), (DEPTH, 6, 5_000)], 1.0)
    assert accepted.begins == [Begin(TRADES, 7, 0)]
    assert intake.next_ids() == {TRADES: 7}
    assert not intake.has_heard(TRADES)
    assert intake.begin_behind([(TRADES, 9, 5_000)], 1.0).begins == []
    accepted = intake.accept(intake.open([TRADES]), [trade(7)], 1.0, 1)
    assert (accepted.begins, accepted.gaps, len(accepted.records)) == ([], [], 1)
    assert intake.has_heard(TRADES)
