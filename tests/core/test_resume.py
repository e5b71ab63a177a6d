from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.claims import Coverage, Entry, Intervals
from ingestor.core.model import Claim, Subscription
from ingestor.core.resume import (
    Resume,
    Resumed,
    Resumes,
    Window,
    beat_from_avro,
    beat_to_avro,
    carried,
    split,
    windows,
)
from ingestor.serializer import decode_heartbeat, encode_heartbeat
from tests.fakes.beats import TRADES, US, beat_of

DEPTH = Subscription("BTCUSDT", "depth")
BARS = Subscription("BTCUSDT", "kline_1m")
OTHER = Subscription("ETHUSDT", "trade")

NOTHING = Intervals()
LONG_AGO_S = 3_000.0


def entry(
    origin: int,
    *covered: tuple[int, int],
    settled: bool = True,
    generation: int = 0,
    last_ms: int = 0,
    origin_ms: int = 0,
) -> Entry:
    return Entry(origin, Intervals(covered), generation, settled, last_ms, origin_ms)


class Start:
    """A start of one task that heard nothing yet, at time 0."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self.coverage = Coverage()
        self.resume = Resume(
            self.coverage, subscriptions or (TRADES,), identity=US, instance="new", lookback_s=86_400.0
        )

    def begin(self, first_id: int, subscription: Subscription = TRADES, *, event_ms: int = 1_000) -> Start:
        """Let the live line see its first id."""
        self.coverage.originate(subscription, first_id)
        self.resume.begin(subscription, first_id, event_ms)
        return self

    def read(self, windows_read: int = 1, now: float = 0.0) -> list[Resumed]:
        """Windows are read to their end; what is ready then."""
        for _ in range(windows_read):
            self.resume.window_read(now)
        return self.resume.take(now)


class TestBeats:
    def test_a_beat_survives_the_wire(self) -> None:
        """Through the Avro schema and back, entries included."""
        written = beat_of({TRADES: entry(5, (5, 9), (12, 12), generation=1, last_ms=7), DEPTH: entry(1)})
        read = beat_from_avro(decode_heartbeat(encode_heartbeat(beat_to_avro(written))))
        assert read == written
        assert dict(read.coverage()) == {
            TRADES: entry(5, (5, 9), (12, 12), generation=1, last_ms=7),
            DEPTH: entry(1),
        }
        assert read.identity == US

    def test_a_value_of_another_shape_is_refused(self) -> None:
        """A foreign record in the stream is an error to catch, not a beat."""
        with pytest.raises(msgspec.ValidationError):
            beat_from_avro({"service": "other"})

    def test_a_beat_carries_sixteen_intervals_of_a_subscription(self) -> None:
        """The entry itself forgets nothing."""
        scattered = entry(0, *((number, number) for number in range(0, 60, 2)))
        assert len(carried(TRADES, scattered).covered) == 16
        assert len(scattered.covered) == 30

    def test_parts_hold_two_hundred_subscriptions(self) -> None:
        """All of them once, in order; without any there is still one part."""
        many = [Subscription(f"S{number}", "trade") for number in range(450)]
        assert [len(part) for part in split(many)] == [200, 200, 50]
        assert [name for part in split(many) for name in part] == many
        assert split([]) == [[]]

    def test_a_full_part_stays_far_below_what_a_record_may_hold(self) -> None:
        """200 subscriptions with 16 intervals each and the largest ids."""
        big = 2**62
        full = entry(big, *((big + 2 * number, big + 2 * number) for number in range(16)))
        names = [Subscription(f"1000SATSUSDT{number}", "kline_15m") for number in range(200)]
        assert len(encode_heartbeat(beat_to_avro(beat_of(dict.fromkeys(names, full))))) < 100_000


class TestSearch:
    def test_the_search_goes_back_in_growing_windows(self) -> None:
        """Ten minutes, an hour, six hours, then the rest of the lookback."""
        assert windows(86_400.0) == [(600, 0), (3_600, 600), (21_600, 3_600), (86_400, 21_600)]
        assert windows(3_600.0) == [(600, 0), (3_600, 600)]
        assert windows(60.0) == [(60, 0)]

    def test_a_settled_entry_ends_the_search(self) -> None:
        """The usual restart reads ten minutes."""
        start = Start().begin(21)
        start.resume.hear(beat_of({TRADES: entry(1, (1, 20))}, final=True), 5.0, 0.0)
        assert start.resume.next_window() == Window(600, 0)
        assert start.read() == [Resumed(TRADES, NOTHING, is_first_start=False, is_restarted=False)]
        assert start.resume.next_window() is None
        assert start.resume.is_over

    def test_an_entry_that_is_not_settled_does_not_end_the_search(self) -> None:
        """A task killed in its first second left an origin; the older account behind it opens the missing range."""
        start = Start().begin(31)
        start.resume.hear(beat_of({TRADES: entry(21, settled=False)}, instance="killed at once"), 60.0, 0.0)
        assert start.read() == []
        assert start.resume.next_window() == Window(3_600, 600)
        start.resume.hear(beat_of({TRADES: entry(1, (1, 15))}), LONG_AGO_S, 0.0)
        [resumed] = start.read()
        assert list(resumed.missing) == [(16, 30)]
        assert start.coverage[TRADES] == entry(1, (1, 15))

    def test_a_kill_in_the_first_second_after_a_first_start_loses_nothing(self) -> None:
        """Only an origin was ever written: from there to the first live id everything is missing."""
        start = Start().begin(31)
        start.resume.hear(beat_of({TRADES: entry(21, settled=False)}), 60.0, 0.0)
        [resumed] = start.read(4)
        assert list(resumed.missing) == [(21, 30)]
        assert resumed.is_first_start is False

    def test_a_window_that_was_not_read_to_its_end_proves_nothing(self) -> None:
        """While reads fail there is no answer, however long it takes, and the same window is asked for again."""
        start = Start().begin(31)
        assert start.resume.take(1_000.0) == []
        assert start.resume.next_window() == Window(600, 0)
        assert start.resume.is_listening(1_000.0)

    def test_the_first_start_ever_keeps_its_origin(self) -> None:
        """Nothing in the whole lookback: settled, nothing missing, and said so."""
        start = Start().begin(31)
        assert start.read(3) == []
        assert start.read() == [Resumed(TRADES, NOTHING, is_first_start=True, is_restarted=False)]
        assert start.coverage[TRADES] == entry(31)

    def test_beats_of_another_identity_or_our_own_are_ignored(self) -> None:
        """Another environment, another venue, another stream, and the origin beat of this very task."""
        start = Start().begin(31)
        for stranger in (US._replace(environment="prod"), US._replace(rest_host="x"), US._replace(data_stream="y")):
            start.resume.hear(beat_of({TRADES: entry(1, (1, 9))}, identity=stranger), 60.0, 0.0)
        start.resume.hear(beat_of({TRADES: entry(1, (1, 9))}, instance="new"), 60.0, 0.0)
        [resumed] = start.read(4)
        assert resumed.is_first_start

    def test_several_writers_and_lost_beats_merge_in_any_order(self) -> None:
        """Two tasks, beats of different age from several shards, newest first: the union counts."""
        start = Start().begin(41)
        for instance, covered in (("b", (15, 30)), ("a", (1, 20)), ("a", (1, 10)), ("b", (15, 22))):
            start.resume.hear(beat_of({TRADES: entry(1, covered)}, instance=instance), 60.0, 0.0)
        [resumed] = start.read()
        assert list(resumed.missing) == [(31, 40)]


class TestSubscriptions:
    def test_a_reshaped_symbol_list_resumes_what_it_shares(self) -> None:
        """Known subscriptions are answered at once, new ones after the whole search, forgotten ones are not carried."""
        start = Start(TRADES, OTHER).begin(11).begin(500, OTHER)
        start.resume.hear(beat_of({TRADES: entry(1, (1, 8)), DEPTH: entry(1, (1, 8))}), 60.0, 0.0)
        [known] = start.read()
        assert (known.subscription, list(known.missing)) == (TRADES, [(9, 10)])
        [new] = start.read(3)
        assert (new.subscription, new.is_first_start) == (OTHER, True)
        assert set(start.coverage) == {TRADES, OTHER}

    def test_a_quiet_symbol_is_answered_when_its_first_id_is_known(self) -> None:
        """Until then it is open, and needs no more beats once those of running tasks cannot matter."""
        start = Start()
        start.resume.hear(beat_of({TRADES: entry(1, (1, 8))}), 60.0, 0.0)
        assert start.read() == []
        assert not start.resume.is_over
        assert not start.resume.is_listening(1.0)
        start.begin(12)
        [resumed] = start.resume.take(3_600.0)
        assert list(resumed.missing) == [(9, 11)]

    def test_what_was_found_of_a_quiet_symbol_is_carried_on(self) -> None:
        """Or it would be forgotten after a lookback of silence: beats of this task carry it before its first id."""
        start = Start()
        start.resume.hear(beat_of({TRADES: entry(1, (1, 8), generation=2)}), 60.0, 0.0)
        start.read()
        assert start.coverage[TRADES] == entry(1, (1, 8), generation=2)
        start.begin(12)
        start.coverage.acknowledge([Claim(TRADES, 12, 12)])
        [resumed] = start.resume.take(3_600.0)
        assert list(resumed.missing) == [(9, 11)]
        assert start.coverage[TRADES] == entry(1, (1, 8), (12, 12), generation=2)

    def test_a_quiet_symbol_whose_ids_began_again_keeps_the_generations_apart(self) -> None:
        """The coverage knows before the first new record is acknowledged."""
        start = Start()
        start.resume.hear(beat_of({TRADES: entry(1, (1, 800), last_ms=700)}), 60.0, 0.0)
        start.read()
        start.begin(12, event_ms=900)
        start.coverage.acknowledge([Claim(TRADES, 12, 12)])
        [resumed] = start.resume.take(3_600.0)
        assert resumed == Resumed(TRADES, Intervals([(0, 11)]), is_first_start=False, is_restarted=True)
        assert start.coverage[TRADES] == entry(0, (12, 12), generation=1, last_ms=700, origin_ms=900)

    def test_the_lowest_first_id_counts(self) -> None:
        """The venue's newest id was asked for while the first live record came in."""
        start = Start().begin(14).begin(12).begin(13)
        start.resume.hear(beat_of({TRADES: entry(1, (1, 8))}), 60.0, 0.0)
        [resumed] = start.read()
        assert list(resumed.missing) == [(9, 11)]

    def test_what_this_task_covered_meanwhile_is_not_missing(self) -> None:
        """Repaired or re-delivered ids below the first live one count."""
        start = Start().begin(21)
        start.coverage.acknowledge([Claim(TRADES, 21, 30), Claim(TRADES, 12, 14)])
        start.resume.hear(beat_of({TRADES: entry(1, (1, 10))}), 60.0, 0.0)
        [resumed] = start.read()
        assert list(resumed.missing) == [(11, 11), (15, 20)]
        assert start.coverage[TRADES] == entry(1, (1, 10), (12, 14), (21, 30))


class TestPredecessor:
    """A deploy: the old task still runs."""

    def started(self, *, age_s: float = 2.0) -> Start:
        start = Start().begin(31)
        start.resume.hear(beat_of({TRADES: entry(1, (1, 20))}), age_s, 0.0)
        assert start.read() == []
        assert start.resume.is_listening(0.0)
        return start

    def test_it_is_awaited_until_it_covers_what_is_missing(self) -> None:
        """Then nothing has to be fetched at all."""
        start = self.started()
        start.resume.hear(beat_of({TRADES: entry(1, (1, 29))}), 0.0, 5.0)
        assert start.resume.take(5.0) == []
        start.resume.hear(beat_of({TRADES: entry(1, (1, 33))}), 0.0, 10.0)
        [resumed] = start.resume.take(10.0)
        assert not resumed.missing
        assert not start.resume.is_listening(10.0)

    def test_its_final_beat_ends_the_wait(self) -> None:
        """What it did not cover by then is missing."""
        start = self.started()
        start.resume.hear(beat_of({TRADES: entry(1, (1, 25))}, final=True), 0.0, 5.0)
        [resumed] = start.resume.take(5.0)
        assert list(resumed.missing) == [(26, 30)]

    def test_three_silent_intervals_end_the_wait(self) -> None:
        """It was heard two seconds before the start, so fifteen seconds are over at thirteen."""
        start = self.started()
        assert start.resume.take(13.0) == []
        [resumed] = start.resume.take(13.1)
        assert list(resumed.missing) == [(21, 30)]

    def test_the_wait_ends_after_a_minute(self) -> None:
        """A task that goes on beating without covering anything is not waited for."""
        start = self.started()
        for now in range(5, 60, 5):
            start.resume.hear(beat_of({TRADES: entry(1, (1, 20))}), 0.0, float(now))
            assert start.resume.take(float(now)) == []
        start.resume.hear(beat_of({TRADES: entry(1, (1, 20))}), 0.0, 60.0)
        assert len(start.resume.take(60.0)) == 1

    def test_only_tasks_that_take_the_same_subscription_are_awaited(self) -> None:
        """Another share of the symbols says nothing about ours."""
        start = Start().begin(31)
        start.resume.hear(beat_of({TRADES: entry(1, (1, 20))}, instance="dead"), 60.0, 0.0)
        start.resume.hear(beat_of({OTHER: entry(1, (1, 20))}, instance="running"), 1.0, 0.0)
        assert len(start.read()) == 1

    def test_a_quiet_symbol_waits_for_it_too(self) -> None:
        """Its first id may come while the old task still runs."""
        start = Start()
        start.resume.hear(beat_of({TRADES: entry(1, (1, 20))}), 2.0, 0.0)
        assert start.read() == []
        assert start.resume.is_listening(1.0)
        assert not start.resume.is_listening(14.0)


class TestRestartOfIds:
    def test_old_numbers_with_new_times_are_new_events(self) -> None:
        """The venue was wiped: a new generation; what was missing of the old one is lost, nothing of it is fetched."""
        start = Start().begin(5, event_ms=900)
        start.coverage.acknowledge([Claim(TRADES, 5, 6)])
        start.resume.hear(beat_of({TRADES: entry(1, (1, 600), (651, 700), last_ms=800)}), 1.0, 0.0)
        [resumed] = start.read()
        unseen, lost = Intervals([(0, 4)]), Intervals([(601, 650)])
        assert resumed == Resumed(TRADES, unseen, is_first_start=False, is_restarted=True, lost=lost)
        assert start.coverage[TRADES] == entry(0, (5, 6), generation=1)

    @pytest.mark.parametrize(
        ("subscription", "first_id", "event_ms", "last_ms"),
        [
            (TRADES, 5, 800, 800),  # it covers our first id, so it has seen its time
            (TRADES, 701, 900, 800),  # new numbers
            (TRADES, 5, 900, 0),  # it never saw a time
            (DEPTH, 5, 10_800, 800),  # another connection cut the same ids into other diffs
            (BARS, 5, 900, 800),  # numbered by the clock
        ],
    )
    def test_an_overlap_with_a_running_task_is_no_restart(
        self, subscription: Subscription, first_id: int, event_ms: int, last_ms: int
    ) -> None:
        """Never take duplicates for new events."""
        start = Start(subscription).begin(first_id, subscription, event_ms=event_ms)
        start.resume.hear(beat_of({subscription: entry(1, (1, 700), last_ms=last_ms)}), 60.0, 0.0)
        [resumed] = start.read()
        assert resumed.is_restarted is False

    def test_ids_that_begin_again_during_the_search_are_not_mixed_up(self) -> None:
        """The first live id was one of the old ids; what nobody took below it cannot be fetched any more."""
        start = Start().begin(900, event_ms=900)
        start.coverage.restart(TRADES, 0)
        start.coverage.acknowledge([Claim(TRADES, 0, 6)])
        start.resume.hear(beat_of({TRADES: entry(1, (1, 700), (703, 710), generation=2, last_ms=800)}), 60.0, 0.0)
        lost = Intervals([(701, 702), (711, 899)])
        assert start.read() == [Resumed(TRADES, NOTHING, is_first_start=False, is_restarted=False, lost=lost)]
        assert start.coverage[TRADES] == entry(0, (0, 6), generation=3)

    def test_a_task_that_covered_nothing_knew_its_first_id_all_the_same(self) -> None:
        """It was killed before any acknowledgement; a new number below that, with a new time, is another event."""
        start = Start().begin(5, event_ms=900)
        start.resume.hear(beat_of({TRADES: entry(700, last_ms=800, origin_ms=800)}), 60.0, 0.0)
        [resumed] = start.read()
        assert resumed == Resumed(TRADES, Intervals([(0, 4)]), is_first_start=False, is_restarted=True)
        same = Start().begin(700, event_ms=900)
        same.resume.hear(beat_of({TRADES: entry(700, last_ms=800)}), 60.0, 0.0)
        assert not same.read()[0].is_restarted, "the origin was the venue's next id, not one that had been seen"

    def test_a_task_that_was_killed_before_it_knew_took_new_ids(self) -> None:
        """Its account is held against the settled ones as our own first live id is, and counts from 0."""
        start = Start()
        start.resume.hear(beat_of({TRADES: entry(1, (1, 600), (651, 700), last_ms=800)}), 60.0, 0.0)
        killed = entry(5, (5, 9), settled=False, last_ms=950, origin_ms=900)
        start.resume.hear(beat_of({TRADES: killed}, instance="killed"), 30.0, 0.0)
        again = entry(21, (21, 25), settled=False, last_ms=990, origin_ms=970)
        start.resume.hear(beat_of({TRADES: again}, instance="killed again"), 20.0, 0.0)
        start.begin(31, event_ms=1_000)
        [resumed] = start.read()
        missing = Intervals([(0, 4), (10, 20), (26, 30)])
        lost = Intervals([(601, 650)])
        assert resumed == Resumed(TRADES, missing, is_first_start=False, is_restarted=False, lost=lost)
        assert start.coverage[TRADES].generation == 1

    def test_accounts_of_older_ids_are_not_joined_with_newer_ones(self) -> None:
        """A task killed before it was settled, long before the venue began again, and one that knew better later."""
        start = Start()
        settled = entry(0, (0, 9), generation=1, last_ms=950, origin_ms=900)
        start.resume.hear(beat_of({TRADES: settled}), 60.0, 0.0)
        old = entry(500, (500, 700), settled=False, last_ms=300, origin_ms=200)
        start.resume.hear(beat_of({TRADES: old}, instance="killed"), 30.0, 0.0)
        start.resume.hear(beat_of({TRADES: old}), 70.0, 0.0)
        start.begin(15, event_ms=1_000)
        [resumed] = start.read()
        assert resumed == Resumed(TRADES, Intervals([(10, 14)]), is_first_start=False, is_restarted=False)
        assert list(start.coverage[TRADES].covered) == [(0, 9)]

    @given(st.permutations(range(5)))
    def test_it_does_not_matter_in_which_order_accounts_are_heard(self, order: list[int]) -> None:
        """Settled or not, of one generation or another, heard twice or late."""
        beats = [
            beat_of({TRADES: entry(1, (1, 600), last_ms=800)}, instance="a"),
            beat_of({TRADES: entry(1, (1, 700), last_ms=850)}, instance="b"),
            beat_of({TRADES: entry(690, (690, 710), settled=False, last_ms=870, origin_ms=840)}, instance="c"),
            beat_of({TRADES: entry(5, (5, 9), settled=False, last_ms=950, origin_ms=900)}, instance="d"),
            beat_of({TRADES: entry(12, (12, 15), settled=False, last_ms=980, origin_ms=960)}, instance="e"),
        ]
        start = Start().begin(31, event_ms=1_000)
        for number in (*order, order[0]):
            start.resume.hear(beats[number], 30.0, 0.0)
        [resumed] = start.read()
        assert list(resumed.missing) == [(0, 4), (10, 11), (16, 30)]
        assert resumed.lost == Intervals()

    def test_a_book_that_began_again_is_seen(self) -> None:
        """Times are further apart than connections can be."""
        start = Start(DEPTH).begin(5, DEPTH, event_ms=10_801)
        start.resume.hear(beat_of({DEPTH: entry(1, (1, 700), last_ms=800)}), 60.0, 0.0)
        [resumed] = start.read()
        assert resumed.is_restarted


class TestAdditions:
    """A subscription that is added to a running task."""

    def resumes(self, coverage: Coverage) -> Resumes:
        return Resumes(coverage, identity=US, instance="new", lookback_s=86_400.0)

    def test_it_has_a_search_of_its_own(self) -> None:
        """What the search of the start still looks for is not touched."""
        coverage = Coverage()
        resumes = self.resumes(coverage)
        first, second = resumes.open([TRADES]), resumes.open([OTHER])
        coverage.originate(OTHER, 500)
        resumes.begin(OTHER, 500, 1_000)
        second.hear(beat_of({OTHER: entry(1, (1, 480)), TRADES: entry(1, (1, 8))}), 60.0, 0.0)
        second.window_read(0.0)
        [resumed] = second.take(0.0)
        assert (resumed.subscription, list(resumed.missing)) == (OTHER, [(481, 499)])
        assert (second.is_over, first.is_over, resumes.is_over) == (True, False, False)
        assert first.next_window() == Window(600, 0)

    def test_what_this_task_carried_before_lacks_what_came_since(self) -> None:
        """Its own account counts, together with what another task covered meanwhile."""
        coverage = Coverage({TRADES: entry(1, (1, 20), generation=2)})
        resumes = self.resumes(coverage)
        search = resumes.open([TRADES])
        resumes.begin(TRADES, 51, 1_000)
        search.hear(beat_of({TRADES: entry(1, (15, 40), generation=2)}), 60.0, 0.0)
        search.window_read(0.0)
        [resumed] = search.take(0.0)
        assert resumed == Resumed(TRADES, Intervals([(41, 50)]), is_first_start=False, is_restarted=False)
        assert coverage[TRADES] == entry(1, (1, 40), generation=2)

    def test_its_own_account_is_enough(self) -> None:
        """No beat of another task, settled or not."""
        for settled in (True, False):
            coverage = Coverage({TRADES: entry(1, (1, 20), settled=settled)})
            resumes = self.resumes(coverage)
            search = resumes.open([TRADES])
            resumes.begin(TRADES, 51, 1_000)
            while search.next_window() is not None:
                search.window_read(0.0)
            [resumed] = search.take(0.0)
            assert resumed == Resumed(TRADES, Intervals([(21, 50)]), is_first_start=False, is_restarted=False)
            assert coverage[TRADES] == entry(1, (1, 20))

    def test_ids_that_began_again_meanwhile_are_a_new_generation(self) -> None:
        """Once, though an earlier search knew the subscription as well."""
        coverage = Coverage()
        resumes = self.resumes(coverage)
        first = resumes.open([TRADES, OTHER])
        first.hear(beat_of({TRADES: entry(1, (1, 800), last_ms=700)}), 60.0, 0.0)
        first.window_read(0.0)
        search = resumes.open([TRADES])
        resumes.begin(TRADES, 12, 900)
        search.window_read(0.0)
        [resumed] = search.take(0.0)
        assert resumed == Resumed(TRADES, Intervals([(0, 11)]), is_first_start=False, is_restarted=True)
        assert coverage[TRADES] == entry(0, generation=1, last_ms=700, origin_ms=900)
        assert first.take(0.0) == []

    def test_what_is_removed_before_anything_came_is_looked_for_no_longer(self) -> None:
        """Of what did come the answer is owed: it may lack ids before its first one."""
        coverage = Coverage()
        resumes = self.resumes(coverage)
        search = resumes.open([TRADES, OTHER])
        resumes.begin(TRADES, 31, 1_000)
        resumes.drop_unseen([TRADES, OTHER])
        search.hear(beat_of({TRADES: entry(1, (1, 20))}), 60.0, 0.0)
        search.window_read(0.0)
        [resumed] = search.take(0.0)
        assert list(resumed.missing) == [(21, 30)]
        assert resumes.is_over


@pytest.mark.parametrize(
    "change",
    [
        {"interval_ms": 0},
        {"interval_ms": 2**62},
        {"entries": [{"generation": 2**31 - 1}]},
        {"entries": [{"generation": -1}]},
        {"entries": [{"origin": -5}]},
        {"entries": [{"last_event_ms": -1}]},
        {"entries": [{"covered": [{"first": 2 * at, "last": 2 * at} for at in range(2_000)]}]},
    ],
)
def test_a_beat_that_nobody_of_ours_wrote_is_refused(change: dict[str, Any]) -> None:
    """Taken in, it would be carried on by our own beats, and one day not fit their schema."""
    beat = beat_to_avro(beat_of({TRADES: entry(1, (1, 5))}))
    entries = [{**beat["entries"][0], **each} for each in change.get("entries", [{}])]
    with pytest.raises(msgspec.ValidationError):
        beat_from_avro({**beat, **change, "entries": entries})
