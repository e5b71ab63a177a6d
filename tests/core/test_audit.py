from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ingestor.core.audit import Audit, AuditReport, AuditRow, DeclaredHole, Difference, StreamReport, compare
from ingestor.core.claims import Intervals, Range
from tests.fakes.records import BTC, bar, diff, hole, snapshot, trade, trades

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingestor.core.model import MarketData

START = 29_000_000  # the ordinal of some minute


def audited(records: Iterable[MarketData], late: Iterable[MarketData] = ()) -> AuditReport:
    proof = Audit()
    for record in records:
        proof.add(record)
    for record in late:
        proof.add(record, is_late=True)
    return proof.report()


def only(report: AuditReport) -> StreamReport:
    [stream] = report.streams
    return stream


class TestTrades:
    def test_a_contiguous_range_is_complete(self) -> None:
        """One range, no duplicates, no holes."""
        report = audited(trades(range(5, 10)))
        stream = only(report)
        assert (stream.symbol, stream.kind, stream.records, stream.delivered_ids) == (BTC, "trade", 5, 5)
        assert stream.delivered == [Range(5, 9)]
        assert (stream.duplicates, stream.declared, stream.undeclared) == (0, [], [])
        assert report.is_complete

    def test_a_missing_id_is_an_undeclared_hole(self) -> None:
        """Exactly the ids that nobody delivered."""
        report = audited(trades([5, 6, 9, 10, 12]))
        stream = only(report)
        assert stream.undeclared == [Range(7, 8), Range(11, 11)]
        assert (stream.undeclared_ids, report.is_complete) == (3, False)

    def test_a_declared_hole_is_complete_without_what_somebody_delivered(self) -> None:
        """A hole says what one task did not deliver; another one may have."""
        report = audited(
            [*trades([5, 6]), hole(7, 12, reason="venue_forgot"), *trades([9, 10], source="rest"), *trades([13])]
        )
        stream = only(report)
        assert stream.declared == [DeclaredHole(7, 8, "venue_forgot"), DeclaredHole(11, 12, "venue_forgot")]
        assert (stream.declared_ids, stream.undeclared, report.is_complete) == (4, [], True)

    def test_duplicates_are_counted_and_located(self) -> None:
        """In whatever order they come, and as often as they come."""
        stream = only(audited(trades([5, 6, 7, 6, 6, 5])))
        assert (stream.duplicates, stream.duplicated, stream.delivered_ids) == (3, [Range(5, 6)], 3)

    def test_one_id_with_two_values_is_a_conflict(self) -> None:
        """The same id at another price is no duplicate, it is wrong."""
        report = audited([trade(5), trade(6), trade(6), trade(5, price="1.00000001")])
        assert only(report).conflicts == [5]
        assert not report.is_complete

    def test_values_are_compared_as_long_as_they_are_remembered(self) -> None:
        """The memory of an audit is bounded; beyond it a duplicate is a duplicate."""
        proof = Audit(remembered=2)
        for record in (trade(5), trade(6), trade(7), trade(5, price="9.00000000"), trade(7, price="9.00000000")):
            proof.add(record)
        stream = only(proof.report())
        assert (stream.conflicts, stream.duplicates) == ([7], 2)

    def test_only_live_records_span_the_range_that_must_be_complete(self) -> None:
        """A backfill years below the live ids opens no hole between."""
        stream = only(audited([*trades([1, 2, 3], source="rest"), *trades([100, 101])]))
        assert (stream.delivered, stream.undeclared) == ([Range(1, 3), Range(100, 101)], [])

    def test_a_backfill_alone_must_be_complete_in_itself(self) -> None:
        """Without live records, what there is spans the range."""
        assert only(audited(trades([1, 3], source="rest"))).undeclared == [Range(2, 2)]

    def test_repaired_ids_may_come_after_newer_live_ones(self) -> None:
        """Order is promised for live records, so only those count as disordered."""
        assert only(audited([*trades([5, 8]), *trades([6, 7], source="rest")])).disordered == 0
        assert only(audited(trades([5, 8, 6, 7, 8]))).disordered == 2

    def test_late_records_fill_the_range_and_do_not_widen_it(self) -> None:
        """What arrived after the audited time may repair it, and that is all."""
        stream = only(audited(trades([5, 8]), late=trades([6, 7, 9, 4])))
        assert (stream.delivered, stream.records) == ([Range(5, 8)], 2)

    def test_a_late_record_fills_a_range_that_another_shard_widens_after_it(self) -> None:
        """Shards are read side by side: all of one may be there before the first record of the other."""
        proof = Audit()
        late = [trade(4), hole(5, 5)]
        for record, is_late in [(trade(3), False), *((each, True) for each in late), (trade(6), False)]:
            proof.add(record, is_late=is_late)
        stream = only(proof.report())
        assert (stream.undeclared, stream.declared_ids, stream.duplicates) == ([], 1, 0)

    def test_a_late_hole_declares_nothing_beyond_the_range(self) -> None:
        """It may fill the range, as a late record may."""
        stream = only(audited(trades([5, 8]), late=[hole(6, 20)]))
        assert stream.declared == [DeclaredHole(6, 7, "disconnected")]

    def test_late_ids_of_a_restart_fill_nothing(self) -> None:
        """The same numbers are other events by then, live or repaired."""
        new = [trade(6, at_ms=9_000_000), trade(6, at_ms=9_000_000, source="rest")]
        assert only(audited([trade(5, at_ms=5), trade(7, at_ms=7)], late=new)).undeclared == [Range(6, 6)]

    def test_restarted_ids_are_another_chain(self) -> None:
        """After the venue began again, equal numbers are other events; a repeated marker counts once."""
        marker = hole(0, 2, reason="id_restart", detected_ms=77)
        later = [trade(3, at_ms=9_003), trade(4, price="7.00000000", at_ms=9_004), trade(4, at_ms=9_004)]
        report = audited([*trades([500, 501]), marker, marker, *later])
        old, new = report.streams
        assert (old.generation, old.delivered) == (0, [Range(500, 501)])
        assert (new.generation, new.delivered, new.conflicts) == (1, [Range(3, 4)], [4])
        assert new.declared == [DeclaredHole(0, 2, "id_restart")]

    def test_a_restart_may_be_told_behind_its_first_ids_or_not_at_all(self) -> None:
        """A new task takes them before it knows; one that was killed never tells. Old numbers, new times say enough."""
        old, new = trades([500, 501]), [trade(3, at_ms=9_000), trade(4, at_ms=9_001)]
        untold = audited([*old, *new])
        told = audited([*old, *new, hole(0, 2, reason="id_restart"), trade(5, at_ms=9_002)])
        for report in (untold, told):
            assert report.is_complete
            assert [(each.generation, each.delivered[0].first) for each in report.streams] == [(0, 500), (1, 3)]
        assert told.streams[1].declared == [DeclaredHole(0, 2, "id_restart")]
        assert told.streams[1].delivered == [Range(3, 5)]

    def test_what_comes_late_is_no_restart(self) -> None:
        """A record that was overtaken is older than what overtook it."""
        stream = only(audited([trade(500, at_ms=1_000), trade(502, at_ms=1_002), trade(501, at_ms=1_001)]))
        assert (stream.generation, stream.delivered, stream.disordered) == (0, [Range(500, 502)], 1)

    def test_a_task_that_is_behind_still_delivers_old_ids(self) -> None:
        """During a deploy the new task has seen the restart, and the old one still drains."""
        marker = hole(0, -1, reason="id_restart")
        new = [trade(0, at_ms=9_000), trade(1, at_ms=9_001)]
        for records in ([marker, trade(502), *new], [marker, new[0], trade(502), new[1]]):
            report = audited([*trades([500, 501]), *records])
            assert report.is_complete
            assert [each.delivered for each in report.streams] == [[Range(500, 502)], [Range(0, 1)]]

    def test_of_two_tasks_that_see_a_restart_the_slower_one_may_tell_of_its_beginning(self) -> None:
        """It delivers the first new ids behind later ones of the other: older, and of the same generation."""
        new = [trade(number, at_ms=9_000 + number) for number in (5, 6, 7, 0, 1, 2, 3, 4)]
        report = audited([*trades([500, 501]), *new])
        assert report.is_complete
        assert [each.delivered for each in report.streams] == [[Range(500, 501)], [Range(0, 7)]]

    def test_a_second_restart_may_bring_the_very_ids_of_the_first(self) -> None:
        """They are no duplicates: their times are newer than all that was seen."""
        records = [trade(number, at_ms=at_ms + number) for at_ms in (0, 1_000, 2_000) for number in range(3)]
        report = audited(records)
        assert report.is_complete
        assert [(each.generation, each.delivered, each.duplicates) for each in report.streams] == [
            (generation, [Range(0, 2)], 0) for generation in range(3)
        ]

    def test_what_was_lost_to_a_restart_is_declared_of_the_ids_before_it(self) -> None:
        """Wherever it stands: the numbers say of which."""
        records = [*trades([500, 503]), hole(0, -1, reason="id_restart"), trade(0, at_ms=9_000)]
        report = audited([*records, hole(501, 502, reason="id_restart")])
        assert report.is_complete
        assert report.streams[0].declared == [DeclaredHole(501, 502, "id_restart")]

    @given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(0, 9))
    def test_order_does_not_matter_to_what_is_proven(self, ids: list[int], seed: int) -> None:
        """Any order of the same live records proves the same ranges, holes and duplicates."""
        shuffled = list(ids)
        Random(seed).shuffle(shuffled)
        one, other = only(audited(trades(ids))), only(audited(trades(shuffled)))
        assert one.delivered == other.delivered == Intervals((number, number) for number in ids).ranges()
        assert one.undeclared == other.undeclared
        assert one.duplicates == other.duplicates == len(ids) - len(set(ids))


class TestBars:
    def test_closed_bars_are_contiguous_by_ordinal(self) -> None:
        """A missing minute is a hole; interim updates neither fill nor open one."""
        stream = only(audited([bar(START), bar(START + 1, closed=False), bar(START + 2), bar(START + 3)]))
        assert (stream.kind, stream.interim, stream.records) == ("kline_1m", 1, 4)
        assert stream.undeclared == [Range(START + 1, START + 1)]

    def test_a_bar_from_rest_equals_its_live_twin(self) -> None:
        """REST does not know the trade ids of a bar; the prices have to agree."""
        assert only(audited([bar(START), bar(START, source="rest")])).conflicts == []
        assert only(audited([bar(START), bar(START, source="rest", close="9.00000000")])).conflicts == [START]

    @pytest.mark.parametrize("name", ["quote_volume", "taker_buy_volume", "taker_buy_quote_volume"])
    def test_the_turnover_of_a_bar_has_to_agree_too(self, name: str) -> None:
        """REST and the archive know it as well as the live bar, so another one is no duplicate."""
        other = bar(START, source="rest")
        assert other.kline is not None
        other.kline = structs.replace(other.kline, **{name: "9.00000000"})
        report = audited([bar(START), other])
        assert only(report).conflicts == [START]
        assert not report.is_complete


class TestDepth:
    def test_overlapping_diffs_are_contiguous(self) -> None:
        """U may lie at or below the previous u + 1."""
        report = audited([diff(5, 9), diff(10, 10), diff(8, 14)])
        assert only(report).delivered == [Range(5, 14)]
        assert report.is_complete

    def test_a_break_must_be_declared_and_followed_by_a_snapshot(self) -> None:
        """Declared it is complete; without a newer snapshot nobody can follow the book across it."""
        records = [diff(5, 9), hole(10, 19, stream="depth"), diff(20, 24)]
        assert only(audited([diff(5, 9), diff(20, 24)])).undeclared == [Range(10, 19)]
        broken = only(audited(records))
        assert (broken.undeclared, broken.unseeded) == ([], [Range(10, 19)])
        mended = only(audited([*records, snapshot(22)]))
        assert (mended.unseeded, mended.snapshots, mended.declared_ids) == ([], 1, 10)

    def test_a_snapshot_from_before_the_break_does_not_mend_it(self) -> None:
        """It is the update id that counts, not the place in the stream."""
        records = [diff(5, 9), hole(10, 19, stream="depth"), diff(20, 24), snapshot(9)]
        assert only(audited(records)).unseeded == [Range(10, 19)]

    def test_two_connections_may_cut_the_same_ids_differently(self) -> None:
        """Different diffs over ids already delivered are duplicates, and no conflict; the same diff must agree."""
        level = ("1.00000000", "2.00000000")
        assert only(audited([diff(5, 9), diff(10, 14), diff(7, 14, bids=[level])])).conflicts == []
        assert only(audited([diff(5, 9), diff(5, 9, bids=[level])])).conflicts == [9]


class TestReport:
    def test_subscriptions_are_reported_in_order(self) -> None:
        """By symbol, then kind; one row each, counting ids."""
        report = audited([trade(9, symbol="ETHUSDT"), bar(START), trade(5), trade(8), hole(6, 6), trade(8)])
        assert report.rows() == [
            AuditRow(BTC, "kline_1m", 1, START, START, 1, 0, 0, 0, 0),
            AuditRow(BTC, "trade", 4, 5, 8, 2, 1, 1, 1, 0),
            AuditRow("ETHUSDT", "trade", 1, 9, 9, 1, 0, 0, 0, 0),
        ]

    def test_a_later_generation_is_named_in_its_row(self) -> None:
        """A chain that holds only the marker has no ids to show."""
        rows = audited([trade(5), hole(0, 2, reason="id_restart")]).rows()
        assert rows[1] == AuditRow(BTC, "trade (restart 1)", 1, None, None, 0, 0, 3, 0, 0)

    def test_what_cannot_be_read_is_counted(self) -> None:
        """It is no hole by itself: a hole shows in the ids."""
        proof = Audit()
        proof.add_undecodable()
        assert proof.report() == AuditReport([], 1)

    def test_nothing_is_no_proof(self) -> None:
        """A stream without records of ours, or a mistyped symbol, is not complete."""
        assert not AuditReport([], 0).is_complete

    def test_a_range_that_ended_before_anything_came_is_no_proof(self) -> None:
        """What is late says nothing of its own, whatever it is: a mistyped `--end` does not look well."""
        late = [*trades([5, 6]), hole(7, 8), hole(0, 3, reason="id_restart"), snapshot(4), bar(START, closed=False)]
        assert audited([], late) == AuditReport([], 0)

    def test_what_claims_no_id_is_no_proof(self) -> None:
        """Open bars and snapshots alone leave nothing to be missing."""
        report = audited([bar(START, closed=False), snapshot(4)])
        assert [stream.records for stream in report.streams] == [1, 1]
        assert not report.is_complete

    def test_a_record_of_an_unknown_kind_is_passed_over(self) -> None:
        """A later version may write kinds that this one does not know."""
        record = trade(5)
        record.trade = None
        assert audited([record]).streams == []

    def test_the_report_is_plain_data(self) -> None:
        """It goes to JSON and back."""
        report = audited([*trades([5, 9]), hole(6, 7)])
        assert msgspec.json.decode(msgspec.json.encode(report), type=AuditReport) == report


class TestCompare:
    def test_equal_numbers_in_other_words_agree(self) -> None:
        """Trailing zeros are not a difference."""
        assert compare({1: ("1.50", "2")}, {1: ("1.5", "2.00")}) == []

    def test_every_difference_is_named(self) -> None:
        """Missing here, unknown there, other values."""
        assert compare({1: ("1",), 2: ("2",)}, {2: ("3",), 4: ("4",)}) == [
            Difference(1, "unknown_to_venue", ("1",), ()),
            Difference(2, "differs", ("2",), ("3",)),
            Difference(4, "missing", (), ("4",)),
        ]


def test_a_closed_bar_of_no_known_interval_is_not_ours() -> None:
    """It proves nothing, and does not end the audit."""
    record = bar(7)
    assert record.kline is not None
    record.kline = structs.replace(record.kline, interval="\x1b[2J")
    report = audited([record, trade(1)])
    assert report.undecodable == 1
    assert [stream.kind for stream in report.streams] == ["trade"]
