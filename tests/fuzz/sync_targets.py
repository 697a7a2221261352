"""Targets: what a node takes from peers while it synchronises or asks for its own votes, and what an audit
rebuilds of a node's answers."""

from collections.abc import Iterable
from dataclasses import replace

from pydantic import ValidationError

from consensus.codec import CodecError, decode, encode
from consensus.crypto import hash_domain
from consensus.identifiers import compute_block_hash
from consensus.tree import TreeError, get_children
from consensus.types import Address, Hash32, Signature
from consensus.vote import Checkpoint
from node.api.convert import build_block
from node.api.schemas import BlockModel
from node.api.view import BlockRecord
from node.audit import AuditError
from node.cli.audit import rebuild_block
from node.gossip.limits import Fault
from node.gossip.messages import NONCE_BYTES, StateReply, WitnessReply, WitnessRequest
from node.ledger.snapshot import _decode_range
from node.sync.ports import Lacking, Poisoned
from node.sync.state import verify_nodes
from node.witness import Inquiry, sign_witness, verify_witness
from tests.fuzz import scenes
from tests.fuzz.target import Form, Target, require
from tests.unit.consensus.world import COLLEAGUE, CUSTODY


class Refused(Exception):
    """Not taken, as it may be."""


# --- state nodes ------------------------------------------------------------------------------


class _Network:
    """Takes the blame down."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def report(self, peer: str, fault: Fault, detail: str) -> None:
        self.faults.append(fault)


def run_state(data: bytes) -> None:
    """`verify_nodes`: Poisoned and Lacking alone leave it; who poisons is blamed, and every accepted node
    hangs on the one that was asked for."""
    reply = decode(StateReply, data)
    root = scenes.get_scenes()[2].world.state.root
    fitting = hash_domain("tree", reply.nodes[0]) if reply.nodes else root
    refused = 0
    for wanted in (root, fitting):
        try:
            take_nodes(wanted, reply.nodes)
        except (Poisoned, Lacking):
            refused += 1
    if refused == 2:
        raise Refused


def take_nodes(wanted: Hash32, given: tuple[bytes, ...]) -> None:
    network = _Network()
    try:
        accepted, missing = verify_nodes(network, "peer", (wanted,), given)  # type: ignore[arg-type]
    except Poisoned:
        require(network.faults == [Fault.POISONED], "poison without blame")
        raise
    require(not network.faults, "blames who gave what was asked for")
    named = {wanted}
    for node, node_data in accepted.items():
        require(hash_domain("tree", node_data) == node and node in named, "a node that nothing names")
        named.update(get_children(node_data))
    require(set(missing) == named - accepted.keys(), "another list of what is missing")


def build_states() -> Iterable[bytes]:
    nodes = [data for _, data in scenes.get_scenes()[2].world.state.tree.new_nodes()]
    for count in (1, 12):
        yield encode(StateReply(tuple(reversed(nodes))[:count]))
    yield encode(StateReply(()))


def run_children(data: bytes) -> None:
    """`get_children`: TreeError, or none or two hashes of 32 bytes."""
    require([len(child) for child in get_children(data)] in ([], [32, 32]), "children of another length")


# --- what others saw of our votes -------------------------------------------------------------


def run_witness(data: bytes) -> None:
    """`verify_witness` and `Inquiry.take`: yes or no to any reply, and yes only to a signed one whose votes
    are the asked validator's."""
    reply, chain_id = decode(WitnessReply, data), scenes.get_scenes()[0].world.chain_id
    inquiry = Inquiry(chain_id, CUSTODY.address)
    nonce = inquiry.ask()
    require(not inquiry.take(nonce, reply), "takes an answer to another question")
    sealed = seal_witness(reply, nonce)
    genuine = verify_witness(chain_id, CUSTODY.address, nonce, sealed)
    nonce = inquiry.ask()
    taken = inquiry.take(nonce, seal_witness(reply, nonce))
    require(taken == genuine, "takes what does not verify, or not what does")
    require(not inquiry.take(nonce, seal_witness(reply, nonce)), "takes an answer twice")
    if not taken:
        raise Refused
    require(all(vote.validator == CUSTODY.address for vote in sealed.votes), "takes votes of others")
    state = scenes.get_scenes()[-1].world.state
    inquiry.is_sufficient(state), inquiry.can_others_justify(state), inquiry.get_common_height(state)
    require(inquiry.get_heads() == [reply.head], "another head")


def seal_witness(reply: WitnessReply, nonce: bytes) -> WitnessReply:
    world = scenes.get_scenes()[0].world
    votes = tuple(scenes.seal(vote, world) for vote in reply.votes)
    request = WitnessRequest(world.chain_id, CUSTODY.address, nonce)
    fitting = replace(reply, votes=votes)  # type: ignore[arg-type]
    return sign_witness(scenes.find_key(reply.witness), world.chain_id, request, fitting)


def build_witnesses() -> Iterable[bytes]:
    world = scenes.get_scenes()[6].world
    votes = world.build_votes([CUSTODY])
    head = Checkpoint(world.header.height, Hash32(bytes(32)))
    plain = WitnessReply(Address(bytes(32)), head, head, False, (), Signature(b""))
    request = WitnessRequest(world.chain_id, CUSTODY.address, bytes(NONCE_BYTES))
    for reply in (plain, replace(plain, votes=votes, is_silent=True)):
        yield encode(sign_witness(COLLEAGUE, world.chain_id, request, reply))


# --- staged headers, audits -------------------------------------------------------------------


def run_staged(data: bytes) -> None:
    """`_decode_range`: CodecError alone leaves it."""
    _decode_range(data)


def build_staged() -> Iterable[bytes]:
    headers = [encode(scene.world.header) for scene in scenes.get_scenes()[1:4]]
    yield b"".join(len(header).to_bytes(4, "big") + header for header in headers)


def run_block_model(data: bytes) -> None:
    """A block in JSON as an audit gets it: ValidationError, AuditError, or the block of that hash."""
    chain_id = scenes.get_scenes()[0].world.chain_id
    model = BlockModel.model_validate_json(data)
    block = rebuild_block(model, chain_id)
    require(compute_block_hash(block.header).hex() == model.hash, "another hash")
    record = BlockRecord(Hash32(bytes.fromhex(model.hash)), block, model.size)
    require(build_block(record).votes == model.votes, "other votes")


def build_block_models() -> Iterable[bytes]:
    found = scenes.get_scenes()
    for at in (0, 1, 9, 10, 12, len(found) - 2):
        block, following = found[at].block, found[at + 1].world.head
        record = BlockRecord(following.hash, block, len(encode(block)))
        yield build_block(record).model_dump_json().encode()


def build_targets() -> list[Target]:
    codec = (CodecError,)
    audit = (ValidationError, AuditError)
    return [
        Target("sync.state", run_state, (Refused, *codec), build_states, Form.MSGPACK, 4096, frames=300),
        Target("sync.children", run_children, (TreeError,), scenes.build_nodes),
        Target(
            "sync.witness", run_witness, (Refused, *codec), build_witnesses, Form.MSGPACK, 1024, frames=300
        ),
        Target("ledger.staged", run_staged, codec, build_staged, base=2**21),
        Target(
            "client.block", run_block_model, audit, build_block_models, Form.JSON, 8192, 1000, 2**21, 300, 2
        ),
    ]
