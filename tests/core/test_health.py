"""The health board: facts in, answers for a given `now` out."""

from __future__ import annotations

import pytest

from ingestor.core.health import Complaint, ConnectionFact, HealthBoard, HealthLimits
from tests.fakes.board import healthy_board

NOW = 100.0


def complaints(board: HealthBoard, now: float = NOW) -> list[tuple[str, str, str]]:
    return [(c.status, c.component, c.text) for c in board.report(now).complaints]


def test_a_service_in_order_is_live_ready_started_and_healthy() -> None:
    """With nothing wrong, every answer is yes and there is no complaint."""
    board = healthy_board()
    report = board.report(NOW)
    assert (board.live(NOW), board.ready(NOW), board.has_started(NOW)) == (True, True, True)
    assert (report.status, report.complaints, report.uptime_s) == ("healthy", [], 100.0)
    assert (report.websocket.state, report.websocket.last_message_age_s) == ("live", 1.0)
    assert (report.kinesis.last_success_age_s, report.kinesis.last_failure_age_s) == (1.0, None)
    assert report.heartbeat_age_s == 5.0


def test_a_new_service_is_live_but_neither_ready_nor_unhealthy() -> None:
    """Before anything has happened the process lives, and a start is not an outage."""
    board = HealthBoard(since_s=NOW)
    report = board.report(NOW)
    assert (board.live(NOW), board.ready(NOW), board.has_started(NOW)) == (True, False, False)
    assert report.status == "degraded"
    assert [c.text for c in report.complaints] == ["no connection yet", "nothing delivered yet"]
    assert report.websocket.state == "connecting"
    assert report.websocket.last_message_age_s is None


def test_a_start_that_takes_too_long_is_an_outage() -> None:
    """A service that never connects becomes unhealthy after the outage limit."""
    assert HealthBoard(since_s=0.0).report(60.0).status == "degraded"
    assert HealthBoard(since_s=0.0).report(60.1).status == "unhealthy"


@pytest.mark.parametrize("state", ["connecting", "subscribing", "down"])
def test_readiness_needs_every_connection_live(state: str) -> None:
    """One connection in another state is enough not to be ready, and degrades before it is an outage."""
    board = healthy_board()
    board.connections["ws-1"] = ConnectionFact(state, since_s=NOW - 10, subscriptions=1)  # type: ignore[arg-type]
    assert not board.ready(NOW)
    assert complaints(board) == [("degraded", "websocket", f"ws-1 is {state} for 10 s")]
    assert board.report(NOW).websocket.state == state
    assert board.report(NOW + 55).status == "unhealthy"


def test_readiness_needs_one_of_two_connections_that_stand_in_for_each_other() -> None:
    """Losing one of them degrades, for however long; losing both is an outage."""
    board = healthy_board()
    board.connections = {
        "ws-0a": ConnectionFact("live", NOW - 90, NOW - 1, subscriptions=3, acknowledged=3, share="ws-0"),
        "ws-0b": ConnectionFact("down", NOW - 70, subscriptions=3, share="ws-0"),
    }
    assert board.ready(NOW)
    assert complaints(board) == [("degraded", "websocket", "ws-0b is down for 70 s")]
    board.connections["ws-0a"].state = "down"
    assert not board.ready(NOW)
    assert board.report(NOW).status == "unhealthy"


def test_an_outage_lasts_through_all_attempts_to_end_it() -> None:
    """A connection that is refused again and again is out since it was lost, not since the last refusal."""
    board = healthy_board()
    board.heartbeat_acknowledged_s = NOW + 60
    fact = board.connections["ws-0"]
    for at_s in range(0, 70, 10):
        fact.enter("down", NOW + at_s)
        fact.enter("connecting", NOW + at_s + 2)
    assert complaints(board, NOW + 65) == [("unhealthy", "websocket", "ws-0 is connecting for 65 s")]
    report = board.report(NOW + 65).websocket.connections["ws-0"]
    assert (report.state_age_s, report.lost_age_s, report.acknowledged) == (3.0, 65.0, 0)
    fact.enter("subscribing", NOW + 66)
    fact.enter("live", NOW + 67)
    fact.acknowledged = 3
    assert board.report(NOW + 67).status == "healthy"
    assert board.report(NOW + 67).websocket.connections["ws-0"].lost_age_s is None


def test_a_stop_does_not_complain_of_the_connections_that_it_closes() -> None:
    """What is being done on purpose is no news."""
    board = healthy_board()
    board.stopping = True
    board.connections["ws-0"].enter("down", NOW)
    assert complaints(board, NOW + 1) == [("degraded", "process", "stopping")]


def test_readiness_needs_every_subscription_acknowledged() -> None:
    """A live connection that misses an acknowledgement is not ready, and says how many are missing."""
    board = healthy_board()
    board.connections["ws-0"].acknowledged = 2
    assert not board.ready(NOW)
    assert complaints(board) == [("degraded", "websocket", "ws-0 has 2 of 3 subscriptions acknowledged")]


@pytest.mark.parametrize("lack", ["nothing", "time", "stream", "heartbeat", "records that wait"])
def test_who_has_nothing_to_deliver_is_ready_after_a_while(lack: str) -> None:
    """A task whose symbols nobody trades would be killed for it, again and again; the stream and heartbeats must do."""
    board = healthy_board()
    board.sink.last_success_s = None
    board.sink.is_found = True
    board.connections["ws-0"].since_s = NOW - 21
    assert board.ready(NOW)
    match lack:
        case "time":
            board.connections["ws-0"].since_s = NOW - 19
        case "stream":
            board.sink.is_found = False
        case "heartbeat":
            board.heartbeat_acknowledged_s = None
        case "records that wait":
            board.sink.hold(100, 0, NOW - 1)
    assert board.ready(NOW) is (lack == "nothing")


def test_silence_degrades_and_leaves_readiness_alone() -> None:
    """A connection without messages is named; whether to reconnect is the watchdog's decision."""
    board = healthy_board()
    board.connections["ws-0"].last_message_s = NOW - 16
    assert complaints(board) == [("degraded", "websocket", "ws-0 is silent for 16 s")]
    assert board.ready(NOW)


def test_a_connection_that_just_became_live_is_not_silent() -> None:
    """The silence clock starts when the state was entered, not at the last message of an earlier connection."""
    board = healthy_board()
    board.connections["ws-0"] = ConnectionFact("live", NOW - 1, last_message_s=None, subscriptions=1, acknowledged=1)
    assert complaints(board) == []
    assert board.report(NOW).websocket.last_message_age_s is None


@pytest.mark.parametrize(("breaker", "seconds", "status"), [("half_open", 5, "degraded"), ("open", 61, "unhealthy")])
def test_a_breaker_that_is_not_closed_ends_readiness(breaker: str, seconds: float, status: str) -> None:
    """Kinesis refusing calls degrades at once and is unhealthy after the outage limit."""
    board = healthy_board()
    board.sink.breaker = breaker  # type: ignore[assignment]
    board.sink.last_success_s = NOW - seconds
    assert not board.ready(NOW)
    assert complaints(board) == [(status, "kinesis", f"breaker {breaker}, last success {seconds} s ago")]


def test_a_configuration_error_is_unhealthy_at_once_and_says_what_to_mend() -> None:
    """A missing stream will not heal by itself: the text goes to whoever looks."""
    board = healthy_board()
    board.sink.configuration_error = "stream bitcoin-market-data does not exist"
    assert not board.ready(NOW)
    assert complaints(board) == [("unhealthy", "kinesis", "stream bitcoin-market-data does not exist")]


def test_records_that_wait_too_long_are_a_complaint() -> None:
    """A closed breaker does not help when nothing is acknowledged while bytes are held; that is not ready either."""
    board = healthy_board()
    board.sink.held_bytes, board.sink.last_success_s = 7, NOW - 14
    assert (board.ready(NOW), complaints(board)) == (True, [])
    board.sink.last_success_s = NOW - 20
    assert not board.ready(NOW)
    assert complaints(board) == [("degraded", "kinesis", "7 bytes wait, last success 20 s ago")]


def test_nothing_delivered_yet_is_not_ready() -> None:
    """A deploy must not stop the old task before the new one has delivered something."""
    board = healthy_board()
    board.sink.last_success_s = None
    assert not board.ready(NOW)
    assert complaints(board) == [("degraded", "kinesis", "nothing delivered yet")]


def test_a_missing_heartbeat_is_a_complaint() -> None:
    """The checkpoint is part of the promise, so its absence shows."""
    board = healthy_board()
    board.heartbeat_acknowledged_s = None
    assert complaints(board) == [("degraded", "heartbeat", "no heartbeat acknowledged for 100 s")]


def test_stopping_ends_readiness_at_once() -> None:
    """From the first instant of a shutdown the answer is no, although everything still works."""
    board = healthy_board()
    board.stopping = True
    assert not board.ready(NOW)
    assert board.live(NOW)
    assert board.report(NOW).complaints == [Complaint("degraded", "process", "stopping")]


def test_a_loop_that_stopped_turning_is_not_live() -> None:
    """When the watcher has not been here within the limit, nothing else can be trusted."""
    board = healthy_board()
    board.turn(NOW)
    assert board.live(NOW + 15)
    assert not board.live(NOW + 16)
    assert not board.ready(NOW + 16)
    assert ("unhealthy", "process", "the loop has not turned for 16 s") in complaints(board, NOW + 16)


def test_a_service_that_was_ready_once_stays_started_through_an_outage() -> None:
    """An outage must not make an orchestrator kill a healthy task; a stuck loop must."""
    board = healthy_board()
    board.turn(NOW)
    board.sink.breaker = "open"
    board.turn(NOW + 1)
    assert board.has_started(NOW + 1)
    assert not board.has_started(NOW + 100)


def test_the_first_readiness_is_remembered_once() -> None:
    """The moment of the first readiness stays what it was."""
    board = HealthBoard(since_s=NOW)
    board.turn(NOW)
    assert board.ready_since_s is None
    ready = healthy_board()
    ready.turn(NOW)
    ready.turn(NOW + 1)
    assert ready.ready_since_s == NOW


def test_limits_are_settable() -> None:
    """A short heartbeat interval wants a short limit."""
    board = healthy_board()
    board.limits = HealthLimits(heartbeat_s=4.0)
    assert complaints(board) == [("degraded", "heartbeat", "no heartbeat acknowledged for 5 s")]
