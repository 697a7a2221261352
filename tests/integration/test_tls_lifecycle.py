"""Certificates that are bound to accounts, revoked and renewed, at real listeners and without a restart."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography import x509

from node.clock import ManualClock
from node.gossip.http import HttpTransport
from node.gossip.transport import Status, TransportError
from node.tls import TlsError, TlsFiles, load_certificate
from node.tls_store import Certificates
from tests.integration.tls_world import NOW, TlsWorld, ask, echo, make_account, renew

A, B = make_account("hospital-a"), make_account("hospital-b")


@pytest.fixture
def world(tmp_path: Path) -> TlsWorld:
    made = TlsWorld.make(tmp_path)
    made.organisations |= {A.address: "hospital-a", B.address: "hospital-b"}
    return made


@pytest.fixture
async def transports(world: TlsWorld) -> AsyncIterator[Callable[[TlsFiles], HttpTransport]]:
    made: list[HttpTransport] = []

    def build(files: TlsFiles) -> HttpTransport:
        made.append(world.build(files))
        return made[-1]

    yield build
    for transport in made:
        await transport.stop()


Build = Callable[[TlsFiles], HttpTransport]


async def wait_closed(server: HttpTransport) -> None:
    async with asyncio.timeout(10):
        while len(server.gate):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_certificate_of_b_does_not_speak_for_a(world: TlsWorld, transports: Build) -> None:
    server = transports(world.request("node-a", "hospital-a", A))
    await server.start(echo)
    honest = transports(world.request("node-b", "hospital-b", B))
    assert (await ask(honest, server)).body == b"node-b of hospital-b"

    # The authority itself was deceived: B's account in a certificate that says hospital A.
    posing = transports(world.issue("node-x", "hospital-a", B))
    with pytest.raises(TransportError):
        await ask(posing, server)
    # B has no signature of A's account over a key of its own; A's public one is over another key.
    shown = x509.load_pem_x509_certificate((world.directory / "node-a" / "tls.pem").read_bytes())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    with pytest.raises(TlsError, match="did not sign"):
        transports(world.issue_stolen("node-a", "hospital-a", names))
    # A's node id in a certificate of B's own, while A is known to the server.
    other = transports(world.request("node-c", "hospital-a", make_account("second of a")))
    assert (await ask(other, server)).status is Status.OK
    taking = transports(world.issue("node-c", "hospital-b", B, folder="taking"))
    with pytest.raises(TransportError):
        await ask(taking, server)
    # The server's own id, and no account at all.
    for name, account in (("node-a", B), ("node-d", None)):
        refused = transports(world.issue(name, "hospital-b", account, folder=f"{name} refused"))
        with pytest.raises(TransportError):
            await ask(refused, server)


async def test_a_server_that_poses_is_refused_by_who_dials(world: TlsWorld, transports: Build) -> None:
    posing = transports(world.issue("node-x", "hospital-a", B))
    await posing.start(echo)
    client = transports(world.request("node-b", "hospital-b", B))
    with pytest.raises(TransportError, match="the chain says that account"):
        await ask(client, posing)


def test_a_node_starts_only_with_its_own_accounts_certificate(world: TlsWorld) -> None:
    files = world.request("node-a", "hospital-a", A)
    world.build(files, A)
    with pytest.raises(TlsError, match="bmif tls request"):
        world.build(files, B)


async def test_a_revoked_certificate_loses_its_connections(world: TlsWorld, transports: Build) -> None:
    files = world.request("node-a", "hospital-a", A)
    server, client = transports(files), transports(world.request("node-b", "hospital-b", B))
    await server.start(echo)
    await ask(client, server)
    assert len(server.gate) == 1
    serial = client.certificates.certificate.serial
    assert files.revoked is not None
    files.revoked.write_bytes(world.authority.revoke([serial], 30, NOW))
    assert server.certificates.look()
    await wait_closed(server)
    with pytest.raises(TransportError):
        await ask(client, server)
    # Another certificate of the same node is taken.
    again = transports(world.issue("node-b", "hospital-b", B, folder="again"))
    assert (await ask(again, server)).status is Status.OK


async def test_a_revoked_server_is_left(world: TlsWorld, transports: Build) -> None:
    server = transports(world.request("node-a", "hospital-a", A))
    await server.start(echo)
    files = world.request("node-b", "hospital-b", B)
    client = transports(files)
    await ask(client, server)
    assert files.revoked is not None
    files.revoked.write_bytes(world.authority.revoke([server.certificates.certificate.serial], 30, NOW))
    client.certificates.look()
    await wait_closed(server)
    with pytest.raises(TransportError, match="revoked"):
        await ask(client, server)


async def test_a_certificate_is_renewed_while_requests_go_on(world: TlsWorld, transports: Build) -> None:
    files = world.request("node-a", "hospital-a", A)
    server, other = transports(files), world.request("node-b", "hospital-b", B)
    client = transports(other)
    await server.start(echo)
    answered = 0

    async def keep_asking() -> None:
        nonlocal answered
        while True:
            await ask(client, server)
            answered += 1

    async def see(count: int) -> None:
        target = answered + count
        async with asyncio.timeout(20):
            while answered < target:
                await asyncio.sleep(0)
                assert not asking.done(), asking.exception()

    asking = asyncio.create_task(keep_asking())
    await see(3)
    for transport, old, account in ((server, files, A), (client, other, B)):
        identity = transport.identity
        fresh = world.issue(
            identity.node_id, identity.organisation, account, folder=f"{identity.node_id} fresh"
        )
        renew(old, fresh)
        serial = load_certificate(old.certificate).serial
        assert transport.certificates.look()
        assert transport.certificates.certificate.serial == serial
        await see(3)
    asking.cancel()
    # Both ends see the new certificates: connections were made anew.
    assert client._connectors[server.address].certificate == server.certificates.certificate


async def test_bad_files_leave_the_old_in_force(
    world: TlsWorld, transports: Build, caplog: pytest.LogCaptureFixture
) -> None:
    files = world.request("node-a", "hospital-a", A)
    server, client = transports(files), transports(world.request("node-b", "hospital-b", B))
    await server.start(echo)
    context = server.certificates.server_context
    good = {path: path.read_bytes() for path in (files.certificate, files.key, files.authority)}
    foreign = TlsWorld.make(world.directory / "foreign")
    other = foreign.issue("node-a", "hospital-a", A)
    renamed = world.issue("node-z", "hospital-a", A)
    expired = world.issue("node-a", "hospital-a", A, folder="old", issued=NOW.replace(year=2020))
    assert files.revoked is not None
    trials: list[tuple[str, dict[Path, bytes]]] = [
        ("half a pair", {files.certificate: renamed.certificate.read_bytes()}),
        ("nothing", {files.certificate: b""}),
        ("no key", {files.key: b"none"}),
        ("another authority", {files.authority: b"-----BEGIN CERTIFICATE-----\n"}),
        ("another's list", {files.revoked: foreign.authority.revoke([], 30, NOW)}),
        ("a list that is cut off", {files.revoked: files.revoked.read_bytes()[:-30]}),
        *(
            (what, {files.certificate: o.certificate.read_bytes(), files.key: o.key.read_bytes()})
            for what, o in (("foreign", other), ("renamed", renamed), ("expired", expired))
        ),
    ]
    good[files.revoked] = files.revoked.read_bytes()
    for what, changes in trials:
        for path, data in changes.items():
            path.write_bytes(data)
        caplog.clear()
        assert not server.certificates.look(), what
        assert "the old ones stay in force" in caplog.text, what
        assert server.certificates.server_context is context
        caplog.clear()
        server.certificates.look()
        assert "stay in force" not in caplog.text, "it is said once"
        await client.disconnect(server.address)
        assert (await ask(client, server)).status is Status.OK, what
        for path, data in good.items():
            path.write_bytes(data)
    files.key.chmod(0o640)
    assert not server.certificates.look()
    files.key.chmod(0o600)
    assert server.certificates.look()


def test_expiry_is_told_at_thirty_seven_and_one_day(
    world: TlsWorld, caplog: pytest.LogCaptureFixture
) -> None:
    files = world.issue("node-a", "hospital-a", A, days=40)
    files = TlsFiles(files.certificate, files.key, files.authority)
    clock = ManualClock(round(NOW.timestamp() * 1000))
    certificates = Certificates(files, clock)
    assert certificates.expires == load_certificate(files.certificate).expires
    told: dict[int, int] = {}
    for day in range(1, 42):
        clock.advance(86_400)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            certificates.look()
        if caplog.records:
            told[day] = len(caplog.records)
    assert told == {10: 1, 33: 1, 39: 1, 40: 1} or told == {11: 1, 34: 1, 40: 1, 41: 1}, told
