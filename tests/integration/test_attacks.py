"""Attempts that must fail, at real listeners. Where each is:

============================================  ==========================================================
peer without certificate, by plain HTTP       `test_tls.py`
certificate of another authority              `test_tls.py`, `test_hostile_peer.py`
certificate of another identity, account,     `test_tls_lifecycle.py` (who dials and who is dialled)
organisation or node id
revoked certificate, also of an open link     `test_tls_lifecycle.py`
expired, not yet valid, wrong usage           here
smuggling, sizes, bombs at the peer port      here; at the API: `test_serving.py`
slow headers and bodies                       `test_serving.py` (API), `test_flood.py` (peer port)
oversize requests cost a peer its score       here, `test_hostile_peer.py`
replayed transactions                         here
writes without token, by another origin       `test_serving.py`
names of blobs as paths                       `test_serving.py` (REST), here (peer protocol, files)
addresses that a liar would have us dial      here, `tests/unit/node/test_addresses.py`
decompression bombs in images                 `tests/unit/workloads/test_bombs.py`
secrets in logs and dumps                     tests/testnet/test_canary.py
============================================  ==========================================================
"""

import datetime
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.abc import AbstractResolver, ResolveResult

from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.task import Transfer
from consensus.transaction import sign_transaction
from consensus.types import Address, Amount, Hash32
from node.blobs import BlobStore
from node.gossip.addresses import AddressPolicy
from node.gossip.gate import GateLimits
from node.gossip.http import HttpTransport, TransportSecurity
from node.gossip.limits import Fault, Rate
from node.gossip.messages import MAX_REQUEST_BYTES, Kind, Route
from node.gossip.transport import Status, TransportError
from node.tls import TlsFiles
from tests.integration.attacks import Attack, build_bombs, build_oversize, build_smuggling, check
from tests.integration.rig import Rig
from tests.integration.tls_world import NOW, TlsWorld, ask, echo, make_account

A, B = make_account("hospital-a"), make_account("hospital-b")
EAGER = GateLimits(address_rate=Rate(1_000, 1_000), total_rate=Rate(1_000, 1_000))
PATH = "/p2p/v1/status"
STRICT = [*build_smuggling(PATH), *build_oversize(PATH)]


@dataclass(slots=True)
class Peer:
    """A listener, a member's context for raw connections, and the faults that the listener reported."""

    world: TlsWorld
    server: HttpTransport
    context: ssl.SSLContext
    faults: list[tuple[str, Fault]] = field(default_factory=list)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    world = TlsWorld.make(tmp_path)
    world.organisations |= {A.address: "hospital-a", B.address: "hospital-b"}
    security = TransportSecurity(A.address, lambda account: world.organisations.get(account, ""))
    server = HttpTransport(
        "127.0.0.1", 0, world.request("node-a", "hospital-a", A), limits=EAGER, security=security
    )
    member = world.request("node-b", "hospital-b", B)
    context = ssl.create_default_context(cafile=member.authority)
    context.load_cert_chain(member.certificate, member.key)
    made = Peer(world, server, context)
    server.guard(
        lambda node_id: False,
        lambda node_id: False,
        lambda node_id, fault, _: made.faults.append((node_id, fault)),
    )
    await server.start(echo)
    yield made
    await server.stop()


# --- certificates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "issued"),
    [
        ("server", NOW),
        ("both", NOW - datetime.timedelta(days=200)),
        ("both", NOW + datetime.timedelta(days=30)),
    ],
    ids=["for servers only", "expired", "not yet valid"],
)
async def test_certificates_that_can_not_dial(peer: Peer, usage: str, issued: datetime.datetime) -> None:
    files = peer.world.issue("node-c", "hospital-b", B, usage=usage, issued=issued)
    client = peer.world.build(files)
    with pytest.raises(TransportError):
        await ask(client, peer.server)
    await client.stop()
    # The node's own client and rules are not what refuses: nor does anything answer without them.
    context = ssl.create_default_context(cafile=files.authority)
    context.load_cert_chain(files.certificate, files.key)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"https://{peer.server.address}{PATH}", data=b"", ssl=context)


@pytest.mark.parametrize(
    ("usage", "issued"),
    [("client", NOW), ("both", NOW - datetime.timedelta(days=200))],
    ids=["for clients only", "expired"],
)
async def test_certificates_that_can_not_serve(peer: Peer, usage: str, issued: datetime.datetime) -> None:
    server = peer.world.build(peer.world.issue("node-c", "hospital-b", B, usage=usage, issued=issued))
    await server.start(echo)
    client = peer.world.build(peer.world.request("node-d", "hospital-b", B))
    with pytest.raises(TransportError):
        await ask(client, server)
    await client.stop()
    await server.stop()


# --- requests ---------------------------------------------------------------------------------


async def test_a_request_of_a_peer_has_one_reading_or_none(peer: Peer) -> None:
    for attack in STRICT:
        await check(peer.server.port, attack, peer.context)
    client = peer.world.build(peer.world.request("node-d", "hospital-b", B))
    assert (await ask(client, peer.server)).status is Status.OK
    await client.stop()


async def test_compressed_requests_of_peers_are_taken_as_they_are(peer: Peer) -> None:
    """The body reaches the service as bytes, within its route's length; nothing unpacks it."""
    seen: list[int] = []

    async def serve(identity: object, route: Route, body: bytes) -> object:
        seen.append(len(body))
        return await echo(identity, route, body)  # type: ignore[arg-type]

    peer.server._service = serve  # type: ignore[assignment]
    bombs = build_bombs("/p2p/v1/announce")
    for attack in bombs:
        await check(peer.server.port, Attack(attack.name, attack.data, (200, 413)), peer.context)
    assert all(size < 100_000 for size in seen)


async def test_requests_of_unknown_or_too_great_length_cost_the_peers_score(peer: Peer) -> None:
    chunked = b"POST /p2p/v1/status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    long = b"POST /p2p/v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    for data in (chunked, long % (MAX_REQUEST_BYTES[Route.STATUS] + 1)):
        await check(peer.server.port, Attack("oversize", data, (413,)), peer.context)
    assert peer.faults == [("node-b", Fault.OVERSIZE)] * 2


# --- addresses --------------------------------------------------------------------------------


class Rebinding(AbstractResolver):
    """A name server that says whatever an attacker likes."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self.addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


INSIDE = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1"),
    *("::1", "::", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "::7f00:1", "2001:0:7f00:1::1"),
)


async def dial(peer: Peer, policy: AddressPolicy, address: str, *resolved: str) -> str:
    """What becomes of dialling an address, of which a name server says what it resolves to."""
    files = TlsFiles(*(peer.world.directory / "node-b" / name for name in ("tls.pem", "tls.key", "ca.pem")))
    client = HttpTransport("127.0.0.1", 0, files, security=TransportSecurity(policy=policy))
    try:
        client._connectors[address] = connector = client._build_connector(address)
        found = connector.session.connector
        assert isinstance(found, aiohttp.TCPConnector)
        if resolved:
            found._resolver = Rebinding(*resolved)
        with pytest.raises(TransportError) as error:
            await client.request(address, Route.STATUS, b"", max_reply=100, timeout_s=5)
        return str(error.value)
    finally:
        await client.stop()


async def test_a_name_that_means_this_machine_or_its_network_is_not_dialled(peer: Peer) -> None:
    policy, name = AddressPolicy(), f"honest.example.org:{peer.server.port}"
    assert policy.check(name) == name  # as a name it is taken
    for address in INSIDE:
        assert "not dialled" in await dial(peer, policy, name, address), address


async def test_private_addresses_behind_names_are_as_configured(peer: Peer) -> None:
    for address in ("10.1.2.3", "192.168.0.1", "100.64.0.1", "fd00::1", "::ffff:10.1.2.3"):
        said = await dial(peer, AddressPolicy(allow_private=False), "honest.example.org:8102", address)
        assert "not dialled" in said


async def test_one_good_address_does_not_bring_a_bad_one_along(peer: Peer) -> None:
    """A name with several addresses: each is judged when it is its turn."""
    said = await dial(peer, AddressPolicy(), f"honest.example.org:{peer.server.port}", "::1", "127.0.0.1")
    assert "not dialled" in said
    assert not peer.server.gate.refused
    assert len(peer.server.gate) == 0


async def test_numbers_are_judged_where_they_are_dialled_too(peer: Peer) -> None:
    assert "not dialled" in await dial(peer, AddressPolicy(), peer.server.address)


async def test_what_the_operator_wrote_is_dialled(peer: Peer) -> None:
    files = peer.world.request("node-d", "hospital-b", B)
    trusted = frozenset((peer.server.address,))
    client = HttpTransport(
        "127.0.0.1", 0, files, security=TransportSecurity(policy=AddressPolicy(), trusted=trusted)
    )
    assert (await ask(client, peer.server)).status is Status.OK
    await client.stop()


# --- objects ----------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig.make(tmp_path / "rig", 2)
    try:
        await made.start("node1")
        await made.start("node2")
        yield made
    finally:
        await made.stop()


async def test_replayed_transactions_move_nothing(rig: Rig) -> None:
    """The same bytes again, an old nonce, and a signature for another chain."""
    core = rig.nodes["node1"].core
    receiver = Address(hash_domain("test", b"receiver"))

    def get_balance() -> int:
        return rig.get_state().get_account(receiver).balance

    await rig.include("node1", Transfer(receiver, Amount(5)))
    await rig.wait_agreement()
    assert get_balance() == 5
    account = rig.get_state().get_account(core.address)
    again = sign_transaction(core.key, core.chain.chain_id, account.nonce - 1, Transfer(receiver, Amount(5)))
    other = sign_transaction(
        core.key, hash_domain("test", b"other"), account.nonce, Transfer(receiver, Amount(5))
    )
    url = f"http://127.0.0.1:{rig.nodes['node1'].config.api.port}/v1/transactions"
    async with aiohttp.ClientSession() as session:
        for transaction in (again, other):
            for _ in range(2):
                async with session.post(url, json={"transaction": encode(transaction).hex()}) as reply:
                    assert reply.status in (400, 409, 422), await reply.text()
    # By gossip, too: the other node is told by one that does not check.
    for transaction in (again, other):
        data = encode(transaction)
        rig.nodes["node1"].network.announce(Kind.TRANSACTION, hash_domain("test", data), data)
    await rig.include("node2", Transfer(receiver, Amount(1)))
    await rig.wait_agreement()
    assert get_balance() == 6
    for name in rig.nodes:
        assert rig.get_state(name).get_account(core.address).nonce == account.nonce


def test_roots_of_blobs_are_never_paths(tmp_path: Path) -> None:
    """The store is asked by hashes alone: whatever bytes a peer sends, they name a file within it."""
    (tmp_path / "canary").write_bytes(b"canary")
    store = BlobStore(tmp_path / "blobs")
    for root in (b"../../../../../canary".ljust(32, b"\0"), b"/" * 32, b"\0" * 32, b"." * 32):
        assert not store.has(Hash32(root))
        assert store.get_manifest(Hash32(root)) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "canary"]


# --- who dials --------------------------------------------------------------------------------

DIALS = ("open_connection", "create_connection", "ClientSession", "TCPConnector", "urlopen", "sock_connect")
DIALLERS = {
    "node/api/client.py": "the operator's own tool, to a node that its user names",
    "node/api/transport.py": "the operator's own tool, to a node that its user names",
    "node/api/fusion_client.py": "the operator's own tool, to a node that its user names",
    "node/gossip/http.py": "the peers' transport, behind the address policy",
    "node/preflight.py": "peers that the operator wrote",
    "node/processes.py": "the operator's own testnet, on this machine",
}


def test_nothing_else_in_a_node_dials() -> None:
    """Blob sources, snapshots and discovery go by the transport, so what is refused there is not dialled."""
    root = Path(__file__).parents[2]
    found = {
        str(path.relative_to(root))
        for path in (root / "node").rglob("*.py")
        if any(f"{name}(" in path.read_text(encoding="utf-8") for name in DIALS)
    }
    assert found <= DIALLERS.keys(), "new code that dials: have it go by the transport, or say here why not"
