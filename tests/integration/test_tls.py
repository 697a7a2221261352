"""Who may talk to the peer port, and what it refuses before the node sees it: a real listener on loopback."""

import asyncio
import datetime
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from node.gossip.http import HttpTransport
from node.gossip.messages import MAX_REQUEST_BYTES, Route
from node.gossip.transport import Reply, Status, TransportError
from node.tls import (
    PeerIdentity,
    TlsError,
    TlsFiles,
    build_server_context,
    get_certificate,
    load_identity,
    save_certificate,
)
from node.tls_issue import make_authority, make_certificate

AUTHORITY = make_authority("consortium")
FOREIGN = make_authority("consortium")


def build_files(
    directory: Path,
    name: str,
    hosts: tuple[str, ...] = ("127.0.0.1",),
    issuer: object = AUTHORITY,
    trusted: object = AUTHORITY,
    **options: datetime.datetime,
) -> TlsFiles:
    assert isinstance(issuer, type(AUTHORITY))
    assert isinstance(trusted, type(AUTHORITY))
    folder = directory / name
    folder.mkdir()
    files = TlsFiles(folder / "tls.pem", folder / "tls.key", folder / "ca.pem")
    issued = make_certificate(issuer, name, f"org of {name}", hosts, **options)
    save_certificate(files, issued, trusted.certificate_pem)
    return files


async def echo(peer: PeerIdentity, route: Route, body: bytes) -> Reply:
    return Reply(Status.OK, peer.node_id.encode())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport("127.0.0.1", 0, build_files(tmp_path, "server"))
    await transport.start(echo)
    yield transport
    await transport.stop()


async def ask(files: TlsFiles, address: str) -> bytes:
    client = HttpTransport("127.0.0.1", 0, files)
    try:
        reply = await client.request(address, Route.STATUS, b"", max_reply=100, timeout_s=5)
        return reply.body
    finally:
        await client.stop()


def test_names_are_in_the_certificate_and_keys_are_private(tmp_path: Path) -> None:
    files = build_files(tmp_path, "node1", ("node1", "127.0.0.1", "::1"))
    assert load_identity(files) == PeerIdentity("node1", "org of node1")
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(make_authority("x"))
    with pytest.raises(TlsError, match="exists already"):
        save_certificate(files, AUTHORITY, AUTHORITY.certificate_pem)


def test_a_key_open_to_others_is_refused(tmp_path: Path) -> None:
    files = build_files(tmp_path, "node1")
    files.key.chmod(0o640)
    with pytest.raises(TlsError, match="chmod 600"):
        build_server_context(files)


@pytest.mark.parametrize(
    ("node_id", "organisation", "hosts"),
    [
        ("", "o", ["h"]),
        ("n" * 65, "o", ["h"]),
        ("n", "", ["h"]),
        ("n\n", "o", ["h"]),
        ("n", "o", []),
        ("n", "o", ["hö"]),
    ],
)
def test_names_that_a_certificate_can_not_hold(node_id: str, organisation: str, hosts: list[str]) -> None:
    with pytest.raises(TlsError):
        make_certificate(AUTHORITY, node_id, organisation, hosts)


def test_what_is_no_certificate_identifies_nobody() -> None:
    for data in (None, b"", bytes(100), bytes(20_000)):
        with pytest.raises(ssl.SSLError):
            get_certificate(data)


async def test_a_member_is_served(server: HttpTransport, tmp_path: Path) -> None:
    assert await ask(build_files(tmp_path, "member"), server.address) == b"member"


async def test_a_foreign_authority_is_refused_by_both_ends(server: HttpTransport, tmp_path: Path) -> None:
    with pytest.raises(TransportError):
        await ask(build_files(tmp_path, "intruder", issuer=FOREIGN), server.address)
    with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
        await ask(build_files(tmp_path, "stranger", trusted=FOREIGN), server.address)


async def test_no_certificate_is_refused(server: HttpTransport, tmp_path: Path) -> None:
    context = ssl.create_default_context(cadata=AUTHORITY.certificate_pem.decode())
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"https://{server.address}/p2p/v1/status", data=b"", ssl=context)
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"http://{server.address}/p2p/v1/status", data=b"")


async def test_an_expired_certificate_is_refused(server: HttpTransport, tmp_path: Path) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    with pytest.raises(TransportError):
        await ask(build_files(tmp_path, "late", now=past), server.address)


async def test_a_server_under_another_name_is_refused(tmp_path: Path) -> None:
    transport = HttpTransport("127.0.0.1", 0, build_files(tmp_path, "elsewhere", ("node7", "10.0.0.7")))
    await transport.start(echo)
    with pytest.raises(TransportError, match="IP address mismatch"):
        await ask(build_files(tmp_path, "member"), transport.address)
    await transport.stop()


async def test_an_address_that_changes_hands_is_noticed_until_disconnected(tmp_path: Path) -> None:
    first = HttpTransport("127.0.0.1", 0, build_files(tmp_path, "first"))
    await first.start(echo)
    client = HttpTransport("127.0.0.1", 0, build_files(tmp_path, "client"))
    reply = await client.request(first.address, Route.STATUS, b"", max_reply=100, timeout_s=5)
    assert reply.peer.node_id == "first"
    await first.stop()
    second = HttpTransport("127.0.0.1", first.port, build_files(tmp_path, "second"))
    await second.start(echo)
    with pytest.raises(TransportError):
        await client.request(first.address, Route.STATUS, b"", max_reply=100, timeout_s=5)
    await client.disconnect(first.address)
    reply = await client.request(first.address, Route.STATUS, b"", max_reply=100, timeout_s=5)
    assert reply.peer.node_id == "second"
    await client.stop()
    await second.stop()


@pytest.mark.parametrize("route", list(Route))
async def test_bodies_beyond_their_route_are_refused(
    server: HttpTransport, tmp_path: Path, route: Route
) -> None:
    client = HttpTransport("127.0.0.1", 0, build_files(tmp_path, "client"))
    body = bytes(MAX_REQUEST_BYTES[route] + 1)
    reply = await client.request(server.address, route, body, max_reply=100, timeout_s=5)
    assert reply.status is Status.TOO_LARGE
    await client.stop()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /p2p/v1/status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"413"),
        (b"GET /p2p/v1/status HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"POST /p2p/v1/other HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"404"),
        (b"POST /p2p/v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"404"),
        (b"POST /p2p/v1/status HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"400"),
        (b"\x00\x01\x02\r\n\r\n", b"400"),
    ],
)
async def test_requests_of_another_form_are_refused(
    server: HttpTransport, tmp_path: Path, request_bytes: bytes, status: bytes
) -> None:
    files = build_files(tmp_path, "client")
    context = ssl.create_default_context(cadata=AUTHORITY.certificate_pem.decode())
    context.load_cert_chain(files.certificate, files.key)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    writer.write(request_bytes)
    async with asyncio.timeout(5):
        line = await reader.readline()
    assert line.split()[1] == status
    writer.close()
