"""Text that strangers had a hand in, made fit to be shown: to a terminal, in a log, in an error.

The venue, AWS, a record in a stream and a file on disk all put words into what a person reads. `printable` takes the
power over a terminal out of them, `shortened` their length, and `redacted` any credential that a message repeats: AWS
answers a wrong signature with the very headers it was sent, and an address may hold a password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

MASK: Final = "***"
LONGEST_TEXT: Final = 500
_LEAST_SECRET: Final = 8  # characters; masking shorter ones would mask half of every text

_USER_INFO: Final = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")
_ACCESS_KEY_ID: Final = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
# A header, a query parameter, a variable or a JSON key with a secret behind it, as AWS and its clients spell them.
_NAMED: Final = re.compile(
    r"(?P<name>x-amz-security-token|x-amz-signature|x-amz-credential|aws_?secret_?access_?key|secret_?access_?key"
    r"|aws_?session_?token|session_?token|security_?token|proxy-authorization|authorization|password|passwd"
    r"|(?<![a-z])signature|(?<![a-z])credential)"
    r"(?P<sign>[\"']?\s{0,4}[:=]\s{0,4}[\"']?)(?P<secret>(?:(?:AWS4-HMAC-SHA256|Bearer|Basic)\s)?[^\s\"',;&]{4,})",
    re.IGNORECASE,
)
_SECRET_NAME: Final = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)
_NO_SECRET_NAME: Final = re.compile(r"_(?:FILE|URI|URL|ENDPOINT|REGION|PROFILE|EXPIRATION)$", re.IGNORECASE)


def printable(text: str) -> str:
    """Return `text` on one line and harmless to a terminal: what is not plainly visible is written as an escape."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else repr(char)[1:-1] for char in text])


def printable_lines(text: str) -> str:
    """Return `text` likewise, its lines and tabs kept."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def printable_json(text: str) -> str:
    """Return JSON text that says the same and in which nothing moves a terminal."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() or char in "\n\t" else _json_escape(char) for char in text])


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def shortened(text: str, limit: int = LONGEST_TEXT) -> str:
    """Return the beginning of a text that is too long to be read, and say so."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def reason_of(error: BaseException) -> str:
    """Return the words of an error, or those of what caused it where it has none: TLS failures come wrapped so."""
    inner: BaseException | None = error
    while inner is not None and not str(inner):
        inner = inner.__cause__ or inner.__context__
    return type(error).__name__ if inner is None else str(inner)


def redacted(text: str) -> str:
    """Return `text` without passwords in addresses, and without what AWS and its clients call a secret."""
    if "://" in text:
        text = _USER_INFO.sub(f"{MASK}@", text)
    text = _ACCESS_KEY_ID.sub(MASK, text)
    return _NAMED.sub(rf"\g<name>\g<sign>{MASK}", text)


def secrets_in(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the values of an environment that must never be shown, by the names they stand under."""
    secrets = {text for name, text in environ.items() if _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name)}
    addresses = [match[0].removesuffix("@") for text in environ.values() for match in _USER_INFO.finditer(text)]
    passwords = {password for address in addresses for password in (address.partition(":")[2], address)}
    return frozenset(text for text in secrets | passwords if len(text) >= _LEAST_SECRET)


def redactor(secrets: Collection[str]) -> Callable[[str], str]:
    """Return a `redacted` that also masks these very texts, wherever they stand."""
    if not secrets:
        return redacted
    known = re.compile("|".join(re.escape(each) for each in sorted(secrets, key=len, reverse=True)))

    def redact(text: str) -> str:
        return redacted(known.sub(MASK, text))

    return redact
