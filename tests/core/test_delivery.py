"""What the answer about one entry means."""

from __future__ import annotations

import pytest

from ingestor.core.delivery import judge, retry_reason
from ingestor.core.model import EntryFailure


def test_no_failure_is_delivered() -> None:
    """An entry without an error code is in the stream."""
    assert judge(None, refusals=0, max_attempts=1) == "delivered"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("ProvisionedThroughputExceededException", "throttled"),
        ("KMSThrottlingException", "throttled"),
        ("InternalFailure", "internal"),
        ("RequestTimeoutException", "internal"),
        ("LimitExceededException", "throttled"),
        ("KMSDisabledException", "configuration"),
        ("KMSAccessDeniedException", "configuration"),
        ("KMSInvalidStateException", "configuration"),
        ("KMSNotFoundException", "configuration"),
        ("KMSOptInRequired", "configuration"),
        ("AccessDeniedException", "configuration"),
        ("ResourceNotFoundException", "configuration"),
    ],
)
def test_what_is_not_the_fault_of_the_entry_is_tried_for_ever(code: str, reason: str) -> None:
    """However often it failed."""
    failure = EntryFailure(code, "")
    assert retry_reason(failure) == reason
    assert judge(failure, refusals=1000, max_attempts=10) == "again"


def test_an_unknown_code_is_tried_so_many_times_and_then_never_again() -> None:
    """Retryable, with a cap."""
    failure = EntryFailure("OddException", "")
    assert retry_reason(failure) == "other"
    assert [judge(failure, refusals, max_attempts=3) for refusals in (1, 2, 3)] == ["again", "again", "never"]
