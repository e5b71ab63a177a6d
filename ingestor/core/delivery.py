"""Reads what Kinesis answered about one entry: delivered, again, or never (the table is facts/aws.md §1.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from ingestor.core.model import EntryFailure

Verdict: TypeAlias = Literal["delivered", "again", "never"]
RetryReason: TypeAlias = Literal["throttled", "internal", "configuration", "other"]

# Codes that say nothing about the entry itself, so it is sent again for ever. The first two are documented for entries
# of PutRecords, the third was met by others (redpanda-data/connect `output.go`); read 2026-11-22. The rest is known of
# whole calls (`aws.CODES`) and means the same where it comes with an entry: a disabled key must not cost the records.
REASONS: Final[dict[str, RetryReason]] = {
    "ProvisionedThroughputExceededException": "throttled",
    "InternalFailure": "internal",
    "KMSThrottlingException": "throttled",
    "LimitExceededException": "throttled",
    "Throttling": "throttled",
    "ThrottlingException": "throttled",
    "InternalFailureException": "internal",
    "RequestTimeout": "internal",
    "RequestTimeoutException": "internal",
    "ServiceUnavailable": "internal",
    "AccessDeniedException": "configuration",
    "ResourceNotFoundException": "configuration",
    "KMSAccessDeniedException": "configuration",
    "KMSDisabledException": "configuration",
    "KMSInvalidStateException": "configuration",
    "KMSNotFoundException": "configuration",
    "KMSOptInRequired": "configuration",
}


def retry_reason(failure: EntryFailure) -> RetryReason:
    """Say why an entry is sent again, as a label; `other` is a code about the entry itself, or one we do not know."""
    return REASONS.get(failure.code, "other")


def judge(failure: EntryFailure | None, refusals: int, max_attempts: int) -> Verdict:
    """Say what to do with an entry; `refusals` counts the answers of kind `other` it has had, this one included."""
    if failure is None:
        return "delivered"
    return "never" if retry_reason(failure) == "other" and refusals >= max_attempts else "again"
