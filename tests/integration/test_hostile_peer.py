"""A hostile peer with a valid certificate against whole nodes: malformed and oversize messages, invalid
objects, corrupt blobs, malformed calls of the API. The nodes find it out, drop it, and go on."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from consensus.codec import encode
from consensus.crypto import CHUNK_BYTES, hash_domain
from consensus.gossip_rules import Outcome
from consensus.task import Transfer
from consensus.transaction import sign_transaction
from consensus.types import Address, Amount, Hash32
from node.blobs import BlobStore
from node.gossip.limits import Fault
from node.gossip.messages import MAX_INLINE_BYTES, MAX_OBJECT_BYTES, MAX_REQUEST_BYTES, Kind, Route
from node.gossip.transport import Reply, Status, TransportError
from node.tls import PeerIdentity, TlsFiles, build_client_context, save_certificate
from node.tls_issue import make_authority, make_certificate
from tests.integration.material import Material
from tests.integration.rig import Mallory, Rig, wait_until

MALLORY = "node4"
RECEIVER = Address(hash_domain("test", b"receiver"))


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig.make(tmp_path / "rig", 4)
    try:
        for name in ("node1", "node2", "node3"):
            await made.start(name)
        yield made
    finally:
        await made.stop()


async def check_in_sync(rig: Rig) -> None:
    """A new transfer reaches every node's state; all agree."""
    before = rig.get_state().get_account(RECEIVER).balance
    await rig.include("node2", Transfer(RECEIVER, Amount(7)))
    await rig.wait_agreement()
    for name in rig.nodes:
        assert rig.get_state(name).get_account(RECEIVER).balance == before + 7


async def test_invalid_objects_of_every_kind_ban_their_sender_alone(rig: Rig, tmp_path: Path) -> None:
    async with Mallory(rig, MALLORY, tmp_path) as mallory:
        await check_in_sync(rig)
        block = rig.nodes["node1"].core.chain.ledger.get_block(rig.nodes["node1"].core.chain.head_hash)
        assert block is not None
        forged = sign_transaction(mallory.key, hash_domain("test", b"x"), 0, Transfer(RECEIVER, Amount(1)))
        for kind, data in (
            (Kind.CLAIM, b"\x93\x01"),
            (Kind.PRESENCE, bytes(200)),
            (Kind.TRANSACTION, encode(forged)),
            (Kind.BLOCK, block[:-1] + b"\xc1"),
        ):
            before = min(mallory.get_score(name) for name in rig.nodes)
            mallory.announce(kind, hash_domain("test", data), data)
            await wait_until(
                lambda before=before: all(  # type: ignore[misc]
                    mallory.is_banned(name) or mallory.get_score(name) > before + 15 for name in rig.nodes
                ),
                f"every node blames her for the {kind}",
            )
        assert all(mallory.is_banned(name) for name in rig.nodes)
        # The nodes relayed none of it, so none of them blames another.
        for node in rig.nodes.values():
            assert {p.node_id for p in node.network.peers() if p.score} == {MALLORY}
        await check_in_sync(rig)


@pytest.mark.parametrize("route", list(Route))
async def test_oversize_and_malformed_requests(rig: Rig, tmp_path: Path, route: Route) -> None:
    mallory = Mallory(rig, MALLORY, tmp_path)
    node = rig.testnet.select(("node1",))[0]
    address = f"{node.host}:{node.peer_port}"

    async def send(body: bytes) -> Status:
        reply = await mallory.transport.request(address, route, body, max_reply=10_000, timeout_s=30)
        return reply.status

    try:
        try:
            status = await send(bytes(MAX_REQUEST_BYTES[route] + 1))
        except TransportError:
            status = Status.TOO_LARGE  # the node hung up before it had read it all
        assert status is Status.TOO_LARGE
        # Three are not enough to ban her, but for the request that was too long.
        statuses = [await send(body) for body in (b"\xc1", b"\xdd\xff\xff\xff\xff", bytes(90))]
        assert set(statuses) == {Status.BAD}
        await wait_until(mallory.is_banned, "she is banned")
        assert await send(b"") is Status.FORBIDDEN
    finally:
        await mallory.transport.stop()
    await check_in_sync(rig)


async def test_only_certificates_of_the_authority_connect(rig: Rig, tmp_path: Path) -> None:
    node = rig.testnet.select(("node1",))[0]
    mallory = Mallory(rig, MALLORY, tmp_path)
    other = make_authority("other")
    foreign = TlsFiles(tmp_path / "tls.pem", tmp_path / "tls.key", tmp_path / "ca.pem")
    issued = make_certificate(other, "node2", "hospital-1", ["127.0.0.1"])
    save_certificate(foreign, issued, other.certificate_pem)
    authority = mallory.files.authority
    as_foreign = ssl.create_default_context(cafile=authority)
    as_foreign.load_cert_chain(foreign.certificate, foreign.key)
    contexts = {
        "nobody's": ssl.create_default_context(cafile=authority),
        "another authority's": as_foreign,
    }
    url = f"https://{node.host}:{node.peer_port}/p2p/v1/status"
    for whose, context in contexts.items():
        with pytest.raises(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.post(url, data=b"", ssl=context) as reply:
                pytest.fail(f"{whose} certificate got {reply.status}")
    own = build_client_context(mallory.files, lambda identity: None)
    async with aiohttp.ClientSession() as session, session.post(url, data=b"", ssl=own) as reply:
        assert reply.status == Status.BAD
    await check_in_sync(rig)


async def test_an_object_larger_than_any_may_be_is_not_taken(rig: Rig, tmp_path: Path) -> None:
    """She announces a block and answers whoever pulls it with more bytes than any object has."""
    async with Mallory(rig, MALLORY, tmp_path) as mallory:
        pulled: set[str] = set()
        honest = mallory.network._server.serve

        async def serve(peer: PeerIdentity, route: Route, body: bytes) -> Reply:
            if route is not Route.OBJECTS:
                return await honest(peer, route, body)
            pulled.add(peer.node_id)
            return Reply(Status.OK, bytes(2 * MAX_OBJECT_BYTES))

        mallory.transport._service = serve
        object_id = hash_domain("test", b"huge")
        mallory.announce(Kind.BLOCK, object_id, bytes(MAX_INLINE_BYTES + 1))
        await wait_until(lambda: pulled == set(rig.nodes), "every node pulls it")
        await wait_until(
            lambda: all(mallory.get_score(name) > Fault.MALFORMED.points - 1 for name in rig.nodes),
            "every node blames her",
        )
        await check_in_sync(rig)
        assert not any(n.core.has_object(Kind.BLOCK, object_id) for n in rig.nodes.values())


class LyingStore(BlobStore):
    """Serves right manifests and wrong chunks."""

    def read_chunk(self, root: Hash32, index: int) -> bytes | None:
        data = super().read_chunk(root, index)
        return None if data is None else bytes(len(data))


async def test_a_corrupt_chunk_of_an_encrypted_batch_is_refetched_elsewhere(
    rig: Rig, material: Material, tmp_path: Path
) -> None:
    """A real batch of tens of megabytes: a hostile peer has it first, an honest one too."""
    path = material.training[0][0]
    async with Mallory(rig, MALLORY, tmp_path) as mallory:
        mallory.network._server._blobs = LyingStore(tmp_path / "lies")
        ref = await mallory.network._server._blobs.put_file(path)
        wanting = rig.nodes["node1"]
        fetching = asyncio.create_task(wanting.core.fetcher.fetch(ref))
        await wait_until(lambda: mallory.get_score() >= Fault.CORRUPT_BLOB.points - 1, "her lie is found out")
        assert not fetching.done()
        assert await rig.nodes["node2"].core.blobs.put_file(path) == ref
        fetched = await fetching
        assert ref.length > 40 * CHUNK_BYTES
        assert fetched.read_bytes() == path.read_bytes()
        scores = {peer.node_id: peer.score for peer in wanting.network.peers()}
        assert scores["node2"] == scores["node3"] == 0


# --- the public API of a real node ------------------------------------------------------------

Change = Callable[[Rig], tuple[str, bytes]]


def _sign(rig: Rig, amount: int = 1, nonce: int = 0, chain: Hash32 | None = None) -> bytes:
    core = rig.nodes["node1"].core
    payload = Transfer(RECEIVER, Amount(amount))
    return encode(sign_transaction(core.key, chain or core.chain.chain_id, nonce, payload))


@pytest.mark.parametrize(
    ("build", "status", "reason"),
    [
        (lambda rig: _sign(rig, chain=hash_domain("test", b"other")), 422, "TX_CHAIN"),
        # No signature ends so: its second half is below 2^253.
        (lambda rig: _sign(rig)[:-1] + b"\xff", 422, "TX_SIGNATURE"),
        (lambda rig: _sign(rig, amount=0), 422, "TX_AMOUNT"),
        (lambda rig: _sign(rig)[:-70], 422, "TX_MALFORMED"),
    ],
)
async def test_transactions_that_can_never_be_valid_are_refused_by_rule(
    rig: Rig, build: Callable[[Rig], bytes], status: int, reason: str
) -> None:
    url = rig.testnet.get_api_url(rig.testnet.select(("node1",))[0])
    headers = {"Content-Type": "application/msgpack"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/transactions", data=build(rig), headers=headers) as reply,
    ):
        problem = await reply.json(content_type="application/problem+json")
        assert reply.status == problem["status"] == status, problem
        assert problem.get("reason") == reason
        assert problem["field"] == "transaction"
    assert not len(rig.nodes["node1"].core.mempool)


async def test_a_replayed_transaction_is_refused_and_paid_once(rig: Rig) -> None:
    url = rig.testnet.get_api_url(rig.testnet.select(("node1",))[0])
    data, headers = _sign(rig, amount=9), {"Content-Type": "application/msgpack"}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/transactions", data=data, headers=headers) as reply:
            identifier = Hash32(bytes.fromhex((await reply.json())["id"]))
        ledger = rig.nodes["node1"].core.chain.ledger
        await wait_until(lambda: ledger.find_transaction(identifier) is not None, "it is included")
        async with session.post(f"{url}/v1/transactions", data=data, headers=headers) as reply:
            problem = await reply.json(content_type="application/problem+json")
            assert reply.status in (409, 422), problem
            assert problem["field"] == "transaction"
    again = await rig.nodes["node1"]._handlers.on_object(Kind.TRANSACTION, identifier, data, "node2")
    assert again is Outcome.IGNORE
    await check_in_sync(rig)
    assert rig.get_state().get_account(RECEIVER).balance == 9 + 7
