"""The errors of this project, named by what failed; foreign ones are translated into these at the edges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ingestor.core.wording import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence


class IngestorError(Exception):
    """The root of every error that this project raises on purpose. None of them repeats a credential."""

    def __init__(self, text: str = "") -> None:
        super().__init__(redacted(text))


class ConfigError(IngestorError):
    """The configuration cannot be used; `problems` holds every mistake with its path in the file."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(map(redacted, problems))
        super().__init__("\n".join(self.problems))


class PoisonError(IngestorError):
    """A message or record that can never be delivered as it is; it belongs to the dead letter."""


class EncodeError(PoisonError):
    """A record does not fit the schema; the text names the field."""


class DecodeError(IngestorError):
    """Bytes that are not an Avro single-object of a schema we know."""


class DisconnectedError(IngestorError):
    """A feed was refused, closed, cut or silent; connecting again is the answer."""


SinkFailure = Literal["throttled", "transient", "configuration", "poison"]


class SinkError(IngestorError):
    """A whole call to Kinesis failed.

    `failure` says what to do about it (facts/aws.md §1.6): `throttled` and `transient` back off and send again,
    `configuration` waits for a person and sends again, `poison` is never sent again as it is. `may_have_landed`
    marks an unknown outcome, a possible duplicate.
    """

    def __init__(self, failure: SinkFailure, code: str, text: str, *, may_have_landed: bool = False) -> None:
        super().__init__(f"{code}: {text}")
        self.failure: SinkFailure = failure
        self.code = code
        self.may_have_landed = may_have_landed
