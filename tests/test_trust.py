"""Who is believed to be the venue, the archive or AWS: real TLS on loopback, with right and with wrong certificates."""

from __future__ import annotations

import datetime as dt
import ssl
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingestor.archive_client import ArchiveClient, ArchiveError
from ingestor.aws import AwsApi, KinesisApi, QueueClient, StreamClient, make_kinesis_client, make_sqs_client
from ingestor.config import Kinesis, Rest, Timeouts
from ingestor.core.archive import ArchiveFile
from ingestor.core.errors import SinkError
from ingestor.metrics import open_metrics
from ingestor.rest_client import RestClient, UnavailableError
from ingestor.threads import open_threads
from ingestor.websocket_client import default_context, open_stream, parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    Knock: TypeAlias = Callable[[int, Path], Awaitable[None]]

PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
)
REFUSAL = r"(?i)certificate[ _]verify[ _]failed|hostname 'localhost' doesn't match"  # as urllib3 says it


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the authority trusted as an operator does it: by the environment."""
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    for name, value in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(name, value)
    default_context.cache_clear()
    yield
    default_context.cache_clear()


def right(authority: trustme.CA, folder: Path) -> ssl.SSLContext:
    return with_certificate(authority.issue_cert("localhost"))


def of_another_name(authority: trustme.CA, folder: Path) -> ssl.SSLContext:
    return with_certificate(authority.issue_cert("elsewhere.example"))


def of_yesterday(authority: trustme.CA, folder: Path) -> ssl.SSLContext:
    return with_certificate(authority.issue_cert("localhost", not_before=PAST, not_after=PAST + dt.timedelta(days=1)))


def of_an_authority_nobody_knows(authority: trustme.CA, folder: Path) -> ssl.SSLContext:
    return with_certificate(trustme.CA().issue_cert("localhost"))


def signed_by_itself(authority: trustme.CA, folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "self.pem"
    path.write_bytes(private + certificate.public_bytes(pem))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return context


def with_certificate(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


async def answer(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Answer anything that gets as far as asking."""
    try:
        await stream.receive_some()
        await stream.send_all(ANSWER)
        await stream.aclose()
    except trio.BrokenResourceError:
        pass  # the client did not believe us


@asynccontextmanager
async def server(context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve with this certificate for the length of the block."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, answer, 0, context, host="127.0.0.1", https_compatible=True)
        [listener] = await nursery.start(serve)
        yield listener.transport_listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def by_websocket(port: int, folder: Path) -> None:
    stream = await open_stream(parse_url(f"wss://localhost:{port}"))
    await stream.aclose()


async def by_rest(port: int, folder: Path) -> None:
    metrics = open_metrics()
    client = RestClient(
        f"https://localhost:{port}", Rest(max_attempts=1), metrics=metrics, wall_ns=lambda: 0, random=Random(1)
    )
    async with client:
        await client.ping()


async def by_archive(port: int, folder: Path) -> None:
    settings, file = Rest(max_attempts=1), ArchiveFile("BTCUSDT", "trades", "", PAST.date(), is_month=False)
    url, run_blocking = f"https://localhost:{port}", open_threads(1)
    async with ArchiveClient(url, settings, folder, run_blocking=run_blocking, random=Random(1)) as client:
        await client.fetch(file)


async def by_kinesis(port: int, folder: Path) -> None:
    settings = Kinesis(endpoint_url=f"https://localhost:{port}")
    await StreamClient(KinesisApi(lambda: make_kinesis_client(settings), open_threads(1))).get_records("iterator")


async def by_queue(port: int, folder: Path) -> None:
    url = f"https://localhost:{port}/1/letters"
    queue = QueueClient(AwsApi(lambda: make_sqs_client(url, "us-east-1", Timeouts()), open_threads(1)))
    await queue.send(url, ["letter"])


WAYS: dict[str, tuple[Knock, type[Exception]]] = {
    "websocket": (by_websocket, ssl.SSLCertVerificationError),
    "rest": (by_rest, UnavailableError),
    "archive": (by_archive, ArchiveError),
    "kinesis": (by_kinesis, SinkError),
    "queue": (by_queue, SinkError),
}


WRONG = (of_another_name, of_yesterday, of_an_authority_nobody_knows, signed_by_itself)


@pytest.mark.parametrize(
    ("way", "certificate"),
    # The queue's client is made as that of the stream; a client of boto3 is long to make.
    [(way, wrong) for way in WAYS for wrong in WRONG if way != "queue" or wrong is of_another_name],
)
async def test_a_wrong_certificate_is_refused(
    way: str, certificate: Callable[[trustme.CA, Path], ssl.SSLContext], authority: trustme.CA, tmp_path: Path
) -> None:
    """Before a byte of ours is sent; the error says that it is the certificate."""
    knock, error = WAYS[way]
    async with server(certificate(authority, tmp_path)) as port:
        with pytest.raises(error, match=REFUSAL):
            await knock(port, tmp_path)


@pytest.mark.parametrize("way", WAYS)
async def test_a_right_certificate_is_accepted(way: str, authority: trustme.CA, tmp_path: Path) -> None:
    """The same server with the same clients, so that it is the certificate that makes the difference."""
    knock, error = WAYS[way]
    async with server(right(authority, tmp_path)) as port:
        try:
            await knock(port, tmp_path)
        except (error, KeyError) as found:  # what it answers is nonsense to some
            reason = str(found)
        else:
            reason = ""
        assert "ertificate" not in reason
