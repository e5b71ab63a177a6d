"""Text of strangers: it moves no terminal, it is not endless, and it tells no secret."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.wording import (
    MASK,
    printable,
    printable_json,
    printable_lines,
    reason_of,
    redacted,
    redactor,
    secrets_in,
    shortened,
)

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # noqa: S105 - the one of AWS' documentation
TOKEN = "IQoJb3JpZ2luX2VjEXAMPLE//////////wEaCXVzLWVhc3QtMSJHMEUCIQ=="  # noqa: S105 - made up


@given(st.text())
def test_what_is_printable_is_on_one_line_and_moves_nothing(text: str) -> None:
    """No control character, no direction mark, no half of a pair is left."""
    assert printable(text).isprintable()


def test_escapes_say_what_stood_there() -> None:
    """Colours, a bell, the second way to spell an escape, a line break, and text that reads backwards."""
    assert printable("\x1b[31mred\x07\x9b2J\n\u202eevil\u2028") == r"\x1b[31mred\x07\x9b2J\n\u202eevil\u2028"
    assert printable_lines("a\n\tb\x1b") == "a\n\tb\\x1b"


@given(st.text())
def test_json_says_the_same_afterwards(text: str) -> None:
    """A machine reads the same value, and a terminal is safe from it."""
    written = json.dumps({"symbol": text}, ensure_ascii=False)
    assert json.loads(printable_json(written)) == {"symbol": text}
    assert printable_json(written).isprintable()


def test_long_texts_are_cut() -> None:
    """The beginning is kept, and the length is told."""
    assert shortened("abc") == "abc"
    assert shortened("x" * 600) == "x" * 500 + "... (600 characters)"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("http://user:pass@proxy:3128 refused", "http://***@proxy:3128 refused"),
        ("cannot reach 'https://token@host/x?y'", "cannot reach 'https://***@host/x?y'"),
        ("https://u:p@ss@host", "https://***@host"),
        ("key AKIAIOSFODNN7EXAMPLE is unknown", "key *** is unknown"),
        (f"x-amz-security-token:{TOKEN}\nhost:x", "x-amz-security-token:***\nhost:x"),
        (f"X-Amz-Security-Token={TOKEN}&X-Amz-Date=1", "X-Amz-Security-Token=***&X-Amz-Date=1"),
        (f'{{"SecretAccessKey": "{SECRET}"}}', '{"SecretAccessKey": "***"}'),
        (f"aws_secret_access_key = {SECRET}", "aws_secret_access_key = ***"),
        (f"AWS_SESSION_TOKEN={TOKEN}", "AWS_SESSION_TOKEN=***"),
        ("Proxy-Authorization: Basic dXNlcjpwYXNz", "Proxy-Authorization: ***"),
        ("Credential=AKIAIOSFODNN7EXAMPLE/20261123/x, Signature=fe5f80f77d5fa3", "Credential=***, Signature=***"),
    ],
)
def test_credentials_are_masked_wherever_they_are_repeated(text: str, safe: str) -> None:
    """In addresses, in headers, in queries, in JSON, in variables."""
    assert redacted(text) == safe


@pytest.mark.parametrize(
    "text",
    [
        "wss://stream.binance.com:9443/ws/btcusdt@trade",
        "stream 'btcusdt@trade' was not subscribed to",
        "The security token included in the request is invalid.",
        "InvalidSignatureException: the signature does not match",
        "AccessDeniedException: User: arn:aws:sts::123456789012:assumed-role/ingestor/x is not authorized",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """An error has to help."""
    assert redacted(text) == text


def test_the_secrets_of_an_environment_are_known_by_name_and_by_place() -> None:
    """Keys and tokens, and what stands before the host of an address; files and flags are none."""
    environ = {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/token",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/0b1c",
        "HTTPS_PROXY": "http://somebody:hunter2hunter2@proxy:3128",
        "SHORT_TOKEN": "on",
        "PATH": "/usr/bin",
    }
    assert secrets_in(environ) == {
        "AKIAIOSFODNN7EXAMPLE",
        SECRET,
        TOKEN,
        "hunter2hunter2",
        "somebody:hunter2hunter2",
    }


def test_known_secrets_are_masked_in_any_dress() -> None:
    """A traceback, a URL, a dump: the text itself is what is looked for, the longest first."""
    redact = redactor(["abcdefgh", "abcdefgh12345"])
    assert redact("repr('abcdefgh12345') abcdefgh") == f"repr('{MASK}') {MASK}"
    assert redactor(())("abcdefgh") == "abcdefgh"


@pytest.mark.parametrize("part", ["x-amz-", "signature", "secret_access_key", "://", "x://a:", " ", "'", "a@", "=:"])
def test_a_text_that_is_long_and_almost_secret_is_looked_through_once(part: str) -> None:
    """A search that went back for every beginning would take hours here."""
    text = part * 100_000
    assert redacted(text) == text


def test_an_error_without_words_has_those_of_its_cause() -> None:
    """Or its name, if nothing has any."""
    outer, inner = RuntimeError(), ValueError()
    outer.__cause__, inner.__context__ = inner, OSError("certificate verify failed")
    assert reason_of(outer) == "certificate verify failed"
    assert reason_of(ValueError("x")) == "x"
    assert reason_of(ValueError()) == "ValueError"
