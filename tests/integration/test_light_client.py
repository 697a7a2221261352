"""The light client over a real API: what it proves, and what a lying node can't make it believe."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from benchmarks.voted_chain import VotedChain
from consensus.codec import decode, encode
from consensus.light import FinalityProof, LightError, LightReason
from consensus.params import Validator
from consensus.payload import SetValidators
from consensus.records import Account
from consensus.state import State, get_account_key
from consensus.task import Transfer
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import ZERO_HASH, Address, Amount, Hash32, Height
from consensus.vote import Checkpoint
from node.api.app import build_public_app
from node.api.client import ApiError
from node.api.light import LightFinalityModel, LightValueModel
from node.cli.main import app
from node.clock import ManualClock
from node.events import EventKind
from node.genesis import save_genesis
from node.light import LightApi, LightNode, trust_checkpoint, trust_genesis
from node.lightview import LightView
from tests.integration.syncing import PAYERS, VALIDATORS, ChainNode, build_chain
from tests.unit.node_api.conftest import build_config
from tests.unit.node_api.fakes import FakeNode

EVIDENCE_MS = 3_600_000
PAYMENT_HEIGHT = 5
PAYER = PAYERS[7]


@pytest.fixture(scope="module")
def source() -> VotedChain:
    """With a payment in it and a change of set behind that."""
    chain = build_chain(PAYMENT_HEIGHT - 1)
    chain.add([chain.sign(PAYER, Transfer(PAYERS[8].address, Amount(5)))])
    chain.grow(3)
    members = tuple(Validator(key.address, 100) for key in (*VALIDATORS[1:], PAYERS[0]))
    chain.add([chain.govern(VALIDATORS[1], SetValidators(members))])
    chain.grow(20)
    return chain


@pytest.fixture(scope="module")
def payment(source: VotedChain) -> SignedTransaction:
    return source.blocks[PAYMENT_HEIGHT - 1].body.transactions[0]


@pytest.fixture
async def server(source: VotedChain, tmp_path: Path) -> AsyncIterator[TestServer]:
    node = ChainNode("served", source.genesis)
    node.fill(source.encoded)
    light = LightView(node.chain, node.service)
    served = TestServer(build_public_app(FakeNode(tmp_path), build_config(tmp_path), light=light))
    await served.start_server()
    yield served
    await served.close()


@pytest.fixture
async def api(server: TestServer) -> AsyncIterator[LightApi]:
    async with LightApi(str(server.make_url("/"))) as api:
        yield api


def build_node(api: LightApi, source: VotedChain) -> LightNode:
    clock = ManualClock(source.header.time)
    return LightNode(api, trust_genesis(source.genesis), clock, EVIDENCE_MS, at_any_age=True)


async def test_finality_is_followed_over_a_change_of_set(api: LightApi, source: VotedChain) -> None:
    node = build_node(api, source)
    state = await node.follow()
    assert state.trusted.height == source.state.get_finality().finalized.height
    assert state.validators == source.state.get_validator_set()
    assert node.changes == 1
    assert await node.follow() == state


async def test_accounts_tasks_and_transactions_are_proved(
    api: LightApi, source: VotedChain, payment: SignedTransaction
) -> None:
    node = build_node(api, source)
    header, account = await node.get_account(PAYER.address)
    assert account.balance == 10**9 - 5
    assert header == node.state.trusted
    _, nobody = await node.get_account(Address(b"\x01" * 32))
    assert nobody == Account(Amount(0), 0, "")
    assert (await node.get_task(Hash32(b"\x02" * 32)))[1] is None
    header, found = await node.get_transaction(compute_transaction_id(payment))
    assert found == payment
    assert header == source.get_header(PAYMENT_HEIGHT)
    with pytest.raises(ApiError) as caught:
        await node.get_transaction(Hash32(b"\x03" * 32))
    assert caught.value.status == 404


async def test_trust_begins_at_any_final_block(api: LightApi, source: VotedChain) -> None:
    state = await trust_checkpoint(api, source.get_checkpoint(12))
    node = LightNode(api, state, ManualClock(source.header.time), EVIDENCE_MS)
    assert (await node.follow()).trusted.height > 12
    # Below it nothing is trusted but what it descends from.
    header, _ = await node.get_account(PAYER.address)
    assert header.height > 12
    with pytest.raises(LightError):
        await trust_checkpoint(api, Checkpoint(source.get_checkpoint(12).height, Hash32(b"\x42" * 32)))


async def test_trust_that_is_too_old_is_refused(api: LightApi, source: VotedChain) -> None:
    state = await trust_checkpoint(api, source.get_checkpoint(12))
    late = ManualClock(state.trusted.time + EVIDENCE_MS + 1)
    with pytest.raises(LightError) as caught:
        await LightNode(api, state, late, EVIDENCE_MS).follow()
    assert caught.value.reason is LightReason.EXPIRED


# --- what is not final yet ------------------------------------------------------------------------


class GrowingNode(FakeNode):
    """Has the head of a light view's chain, and tells when more of it is final."""

    def __init__(self, directory: Path, served: ChainNode) -> None:
        super().__init__(directory)
        self.served = served

    def get_state(self) -> State:
        return self.served.chain.head_state

    def take(self, blocks: Sequence[bytes]) -> None:
        for block in blocks:
            before = self.served.chain.finalized
            self.served.fill([block])
            if self.served.chain.finalized != before:
                data = {"height": self.served.chain.finalized.height}
                self.events.publish(EventKind.FINALIZED, self.served.clock.now_ms(), data)


class NoticedApi(LightApi):
    """Says when a node has told how far finality is."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answered = asyncio.Event()

    async def get_finality_proof(self, set_number: int) -> LightFinalityModel:
        found = await super().get_finality_proof(set_number)
        self.answered.set()
        return found


@dataclass(frozen=True)
class Growing:
    """A node whose head holds a change of set that is not final yet."""

    view: GrowingNode
    api: NoticedApi
    node: LightNode
    url: str
    height: int
    """Of the change of set."""
    rest: list[bytes]
    """The blocks that make it final."""


@pytest.fixture
async def growing(source: VotedChain, tmp_path: Path) -> AsyncIterator[Growing]:
    served = ChainNode("served", source.genesis)
    view = GrowingNode(tmp_path, served)
    height = source.state.get_finality().content
    view.take(source.encoded[:height])
    light = LightView(served.chain, served.service)
    server = TestServer(build_public_app(view, build_config(tmp_path), light=light))
    await server.start_server()
    url = str(server.make_url("/"))
    async with NoticedApi(url) as api:
        yield Growing(view, api, build_node(api, source), url, height, source.encoded[height:])
    await server.close()


async def test_what_the_head_holds_is_waited_for_until_it_is_final(growing: Growing) -> None:
    assert (await growing.node.follow()).trusted.height < growing.height
    growing.api.answered.clear()
    waiting = asyncio.create_task(growing.node.catch_up(60))
    async with asyncio.timeout(60):
        await growing.api.answered.wait()
    assert not waiting.done()
    growing.view.take(growing.rest)
    state = await waiting
    assert state.trusted.height >= growing.height
    final = growing.view.served.chain.finalized.height
    assert (await growing.node.catch_up(60)).trusted.height == final


async def test_what_does_not_become_final_is_named(growing: Growing) -> None:
    with pytest.raises(LightError, match=rf"block {growing.height} is not final after 0\.1 s") as caught:
        await growing.node.catch_up(0.1)
    assert caught.value.reason is LightReason.QUORUM
    # What was proved on the way is kept.
    assert growing.node.state.trusted.height == growing.view.served.chain.finalized.height


async def test_the_command_waits_for_the_head(growing: Growing, source: VotedChain, tmp_path: Path) -> None:
    save_genesis(tmp_path / "genesis.json", source.genesis)
    base = ["light", "--genesis", str(tmp_path / "genesis.json"), "--api", growing.url]

    async def run(wait: str) -> tuple[int, str]:
        arguments = [*base, "--wait", wait, "status", "--json"]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        return result.exit_code, result.output

    code, output = await run("0.1")
    assert (code, "is not final after 0.1 s" in output) == (2, True), output
    growing.view.take(growing.rest)
    code, output = await run("60")
    assert code == 0, output
    assert json.loads(output)["height"] == growing.view.served.chain.finalized.height


# --- a node that lies -------------------------------------------------------------------------


class Liar(LightApi):
    """Asks an honest node and spoils what it says."""

    async def get_account_proof(self, address: Address) -> LightValueModel:
        found = await super().get_account_proof(address)
        account = decode(Account, bytes.fromhex(found.value or ""))
        return found.model_copy(update={"value": encode(replace(account, balance=Amount(1))).hex()})

    async def get_finality_proof(self, set_number: int) -> LightFinalityModel:
        found = await super().get_finality_proof(set_number)
        assert found.proof is not None
        proof = decode(FinalityProof, bytes.fromhex(found.proof))
        forged = replace(proof, votes=proof.votes[1:])
        return found.model_copy(update={"proof": encode(forged).hex()})


async def test_a_node_that_lies_is_found_out(server: TestServer, source: VotedChain) -> None:
    async with Liar(str(server.make_url("/"))) as liar:
        node = build_node(liar, source)
        with pytest.raises(LightError) as caught:
            await node.follow()
        assert caught.value.reason is LightReason.QUORUM
        assert node.state.trusted.height == 0
        async with LightApi(str(server.make_url("/"))) as honest:
            node.state = await build_node(honest, source).follow()
        with pytest.raises(LightError) as caught:
            await node.get_account(PAYER.address)
        assert caught.value.reason is LightReason.VALUE


async def test_an_account_of_another_branch_is_no_account(api: LightApi, source: VotedChain) -> None:
    """Right under its own header, which nobody finalised."""
    other = build_chain(3)
    other.add(after=other.genesis.params.idle_ms + 7)
    state, header = other.states[4], other.get_header(4)

    class Elsewhere(LightApi):
        async def get_account_proof(self, address: Address) -> LightValueModel:
            found = await super().get_account_proof(address)
            key = get_account_key(address)
            value = state.tree.get(key)
            assert value is not None
            proof = encode(state.tree.get_proof(key)).hex()
            return found.model_copy(
                update={"header": encode(header).hex(), "value": value.hex(), "proof": proof}
            )

    async with Elsewhere(api._url) as liar:
        node = build_node(liar, source)
        await node.follow()
        with pytest.raises(LightError) as caught:
            await node.get_account(PAYER.address)
    assert caught.value.reason is LightReason.HEADERS


# --- the routes and the command ---------------------------------------------------------------


class FinalNode(FakeNode):
    """Takes for final what the light view's chain does."""

    final = Checkpoint(Height(0), ZERO_HASH)

    def get_finalized(self) -> Checkpoint:
        return self.final


async def test_proofs_below_the_final_block_never_change(
    source: VotedChain, payment: SignedTransaction, tmp_path: Path
) -> None:
    node = ChainNode("served", source.genesis)
    node.fill(source.encoded)
    view = FinalNode(tmp_path)
    app = build_public_app(view, build_config(tmp_path), light=LightView(node.chain, node.service))
    paths = (
        "/v1/light/headers?from=1&count=3",
        "/v1/proofs/validators/3",
        f"/v1/proofs/transactions/{compute_transaction_id(payment).hex()}",
    )
    async with TestClient(TestServer(app)) as client:
        for path in paths:
            assert (await client.get(path)).headers["Cache-Control"] == "no-cache"
        view.final = node.chain.finalized
        for path in paths:
            found = await client.get(path)
            assert "immutable" in found.headers["Cache-Control"]
            again = await client.get(path, headers={"If-None-Match": found.headers["ETag"]})
            assert (again.status, await again.read()) == (304, b"")
        short = await client.get("/v1/light/headers?from=1")  # the head is among them
        assert short.headers["Cache-Control"] == "no-cache"


async def test_routes_are_documented_and_refuse_what_is_wrong(
    server: TestServer, api: LightApi, payment: SignedTransaction
) -> None:
    session = api._get_session()
    url = str(server.make_url("/")).rstrip("/")
    document = await (await session.get(f"{url}/openapi.json")).json()
    values = {
        "height": "3",
        "address": PAYER.address.hex(),
        "task": "00" * 32,
        "job": "00" * 32,
        "transaction": compute_transaction_id(payment).hex(),
    }
    checked = 0
    for path, item in document["paths"].items():
        if not path.startswith(("/v1/proofs/", "/v1/light/", "/v1/finality/proof")):
            continue
        response = await session.get(url + path.format(**values))
        assert response.status == 200, path
        content = item["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        Draft202012Validator({**content, "components": document["components"]}).validate(
            await response.json()
        )
        checked += 1
    assert checked == 7
    for wrong, status in (
        ("/v1/light/headers?count=0", 400),
        ("/v1/light/headers?count=513", 400),
        ("/v1/light/headers?from=-1", 400),
        ("/v1/finality/proof?set=x", 400),
        ("/v1/proofs/validators/head", 400),
        ("/v1/proofs/validators/999", 404),
        ("/v1/proofs/accounts/zz", 400),
        ("/v1/proofs/transactions/" + "00" * 32, 404),
    ):
        response = await session.get(url + wrong)
        assert response.status == status, wrong
        assert response.content_type == "application/problem+json"


async def test_the_command_prints_what_is_proved(
    server: TestServer, source: VotedChain, payment: SignedTransaction, tmp_path: Path
) -> None:
    save_genesis(tmp_path / "genesis.json", source.genesis)
    runner = CliRunner()
    base = ["light", "--genesis", str(tmp_path / "genesis.json"), "--api", str(server.make_url("/"))]

    async def run(*arguments: str, options: list[str] = base) -> tuple[int, str]:
        result = await asyncio.to_thread(runner.invoke, app, [*options, *arguments])
        return result.exit_code, result.output

    code, output = await run("status", "--json")
    assert code == 0, output
    assert json.loads(output)["height"] == source.state.get_finality().finalized.height
    code, output = await run("account", PAYER.address.hex(), "--json")
    assert (code, json.loads(output)["balance"]) == (0, 10**9 - 5)
    code, output = await run("opening", compute_transaction_id(payment).hex(), "--json")
    assert (code, json.loads(output)["proved at height"]) == (0, PAYMENT_HEIGHT)
    code, output = await run("task", "00" * 32, "--json")
    assert (code, json.loads(output)["exists"]) == (0, False)
    code, output = await run("receipt", "00" * 32, "--json")
    assert (code, json.loads(output)["exists"]) == (0, False)
    # A block of 2023 binds nobody any more, unless its time is said to be long.
    known = source.get_checkpoint(12)
    old = ["light", "--trust", f"12:{known.hash.hex()}", "--api", str(server.make_url("/"))]
    code, output = await run("status", options=old)
    assert (code, "EXPIRED" in output) == (2, True)
    code, output = await run("status", options=[*old, "--max-age", "1000000"])
    assert code == 0, output
    code, output = await run("status", options=["light", "--api", str(server.make_url("/"))])
    assert (code, "nothing to trust" in output) == (1, True)
