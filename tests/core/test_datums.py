"""What CloudWatch gets of the registry."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.datums import MAX_DATUMS, MAX_VALUES, SERIES, Datum, DatumSource, Series, emf_lines
from ingestor.metrics import BATCH_BUCKETS, SECONDS_BUCKETS, STALL_BUCKETS

HERE = (("Shard", "0"),)
COUNTED = Series("Counted", "things_total", "counter", never=("outcome", ("ok",)))
SIZE = Series("Size", "size", "gauge", "Bytes", by="stream_type")
TIME = Series("Time", "time_seconds", "histogram", "Seconds", by="stage", only=("stage", ("put",)))


class Reading(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def buckets(*cumulative: float, stage: str = "put") -> list[Reading]:
    """Return the buckets of a histogram with the bounds 1, 2, 5 and infinity."""
    return [
        Reading("time_seconds_bucket", {"le": bound, "stage": stage}, value)
        for bound, value in zip(("1", "2.0", "5", "+Inf"), cumulative, strict=True)
    ]


def test_counters_are_sent_as_what_came_since() -> None:
    """Over all labels but those left out; nothing new is zero, so that an alarm has data."""
    source = DatumSource(HERE, [COUNTED])
    samples = [Reading("things_total", {"outcome": name}, 3) for name in ("ok", "failed", "refused")]
    assert source.read(samples) == [Datum("Counted", "Count", HERE, (6,), (1,))]
    source.settle()
    assert source.read(samples) == [Datum("Counted", "Count", HERE, (0,), (1,))]


def test_what_was_not_sent_is_sent_with_what_follows() -> None:
    """An outage of CloudWatch loses no count."""
    source = DatumSource(HERE, [COUNTED])
    source.read([Reading("things_total", {}, 4)])
    assert source.read([Reading("things_total", {}, 7)])[0].values == (7,)


def test_a_count_never_falls_when_one_who_counted_is_gone() -> None:
    """A symbol that is not carried any more takes nothing back; back again, it goes on where it was."""
    source = DatumSource(HERE, [COUNTED])
    one, two = (Reading("things_total", {"symbol": name}, 1_000) for name in ("one", "two"))
    readings = [[one, two], [one], [one, two._replace(value=1_005)]]
    news = []
    for samples in readings:
        news += [datum.values for datum in source.read(samples)]
        source.settle()
    assert news == [(2_000,), (0,), (5,)]


def test_gauges_are_sent_as_they_are_one_for_each_label() -> None:
    """A label that was asked for is a dimension; what is no number is left out."""
    source = DatumSource(HERE, [SIZE])
    samples = [
        Reading("size", {"stream_type": "trade", "other": "a"}, 3),
        Reading("size", {"stream_type": "trade", "other": "b"}, 4),
        Reading("size", {"stream_type": "depth"}, math.nan),
        Reading("size_of_others", {}, 1),
    ]
    expected = [Datum("Size", "Bytes", (*HERE, ("StreamType", "trade")), (7,), (1,))]
    assert source.read(samples) == expected
    source.settle()
    assert source.read(samples) == expected


def test_a_histogram_keeps_its_distribution() -> None:
    """Each bucket is its upper bound, as often as it came since; what is above all of them counts as the last."""
    source = DatumSource(HERE, [TIME])
    assert source.read(buckets(0, 0, 0, 0)) == []
    dimensions = (*HERE, ("Stage", "put"))
    assert source.read(buckets(2, 2, 5, 9) + buckets(1, 1, 1, 1, stage="decoded")) == [
        Datum("Time", "Seconds", dimensions, (1, 5), (2, 7))
    ]
    source.settle()
    assert source.read(buckets(2, 6, 9, 13)) == [Datum("Time", "Seconds", dimensions, (2,), (4,))]


@given(st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), max_size=8), st.data())
def test_everything_is_sent_once_whatever_fails(rounds: list[list[int]], data: st.DataObject) -> None:
    """The counts of all sendings that succeeded are the counts of the histogram."""
    source = DatumSource(HERE, [TIME])
    totals, sent = [0] * 4, dict.fromkeys((1.0, 2.0, 5.0), 0.0)
    for number, round_ in enumerate([*rounds, [0] * 4]):
        totals = [total + new for total, new in zip(totals, round_, strict=True)]
        datums = source.read(buckets(*(sum(totals[: end + 1]) for end in range(4))))
        if number == len(rounds) or data.draw(st.booleans()):
            source.settle()
            for datum in datums:
                for value, count in zip(datum.values, datum.counts, strict=True):
                    sent[value] += count
    assert sent == {1.0: totals[0], 2.0: totals[1], 5.0: totals[2] + totals[3]}


def test_the_choice_stays_within_the_limits_of_cloudwatch() -> None:
    """One call and few values, so nothing is ever cut; and about thirty series, because each of them is billed."""
    assert max(len(SECONDS_BUCKETS), len(BATCH_BUCKETS), len(STALL_BUCKETS)) <= MAX_VALUES
    assert len(SERIES) + 2 * sum(series.by == "stream_type" for series in SERIES) <= 36 < MAX_DATUMS
    assert len({series.name for series in SERIES}) == len(SERIES)


def test_emf_lines_are_complete_documents_one_for_each_set_of_dimensions() -> None:
    """Every name of the directive is a member of the document, as CloudWatch wants it."""
    trade = (*HERE, ("StreamType", "trade"))
    datums = [
        Datum("Counted", "Count", HERE, (6.0,), (1.0,)),
        Datum("Size", "Bytes", HERE, (7.5,), (1.0,)),
        Datum("Time", "Seconds", trade, (1.0, 5.0), (2.0, 4.0)),
    ]
    first, second = (json.loads(line) for line in emf_lines(datums, "Space", 1_700_000_000_000))
    assert first == {
        "_aws": {
            "Timestamp": 1_700_000_000_000,
            "CloudWatchMetrics": [
                {
                    "Namespace": "Space",
                    "Dimensions": [["Shard"]],
                    "Metrics": [{"Name": "Counted", "Unit": "Count"}, {"Name": "Size", "Unit": "Bytes"}],
                }
            ],
        },
        "Shard": "0",
        "Counted": 6.0,
        "Size": 7.5,
    }
    assert second["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["Shard", "StreamType"]]
    assert (second["Shard"], second["StreamType"]) == ("0", "trade")
    assert second["Time"] == {"Values": [1, 5], "Counts": [2, 4], "Max": 5, "Min": 1, "Count": 6, "Sum": 22}


def test_an_emf_line_holds_at_most_a_hundred_metrics() -> None:
    """The rest is on the next one."""
    datums = [Datum(f"M{number}", "Count", HERE, (1.0,), (1.0,)) for number in range(101)]
    sizes = [len(json.loads(line)["_aws"]["CloudWatchMetrics"][0]["Metrics"]) for line in emf_lines(datums, "S", 0)]
    assert sizes == [100, 1]
