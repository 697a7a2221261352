"""Targets: what a node does with foreign blocks, transactions, claims and presences on a real state.

Mutated objects are signed again and blocks get fitting roots, as anyone with a key could make them, so that
the rules behind signatures and hashes are reached.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from consensus.block import Block
from consensus.claims import Presence
from consensus.codec import CodecError, decode, encode
from consensus.errors import Held, InvalidBlock, InvalidTransaction, NeedsWork, Reason
from consensus.gossip_rules import (
    Judgement,
    Outcome,
    judge_claim,
    judge_presence,
    judge_transaction,
    judge_vote,
)
from consensus.light import LightError, LightState, build_set_proof, trust_header, update
from consensus.params import Genesis
from consensus.task import Claim
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.transition import apply_checked_transaction
from consensus.tree import Proof, verify_proof
from consensus.types import Hash32, Millis
from consensus.validation import check_block, decode_block
from consensus.vote import Vote
from node.gossip.messages import FinalityReply
from tests.fuzz import scenes
from tests.fuzz.codec_targets import build_targets as build_codec_targets
from tests.fuzz.target import Form, Target, require
from tests.unit.consensus.world import World


class Refused(Exception):
    """The rules refused the object, as they may."""


def check_judgement(judgement: object) -> Outcome:
    """Whatever comes in, a judgement comes out, and a refusal says why."""
    require(isinstance(judgement, Judgement), f"judged as {judgement!r}")
    assert isinstance(judgement, Judgement)
    require(isinstance(judgement.outcome, Outcome), "no outcome")
    require(judgement.outcome is Outcome.ACCEPT or bool(judgement.detail), "refused without saying why")
    return judgement.outcome


# --- transactions -----------------------------------------------------------------------------


def run_transaction(data: bytes) -> None:
    """`judge_transaction`: judges everything; what it accepts applies, and money stays the same."""
    worlds = list(scenes.iterate_worlds())
    check_judgement(judge_transaction(data, worlds[-1].state, worlds[-1].get_context()))
    try:
        sealed = scenes.seal(decode(SignedTransaction, data), worlds[-1])
    except CodecError as error:
        raise Refused from error
    assert isinstance(sealed, SignedTransaction)
    accepted = [judge_sealed(sealed, world) for world in worlds]
    if not any(accepted):
        raise Refused


def judge_sealed(transaction: SignedTransaction, world: World) -> bool:
    """Whether a head admits it; if its nonce alone is in the way, with the right one."""
    root, context = world.state.root, world.get_context()
    judgement = judge_transaction(encode(transaction), world.state, context)
    outcome = check_judgement(judgement)
    if judgement.reason is Reason.TX_NONCE:
        nonce = world.state.get_account(transaction.sender).nonce
        transaction = scenes.seal(replace(transaction, nonce=nonce), world)  # type: ignore[assignment]
        judgement = judge_transaction(encode(transaction), world.state, context)
        outcome = check_judgement(judgement)
    if outcome is Outcome.ACCEPT and judgement.reason is None:
        apply_accepted(transaction, world)
    require(world.state.root == root, "judging changed the state")
    return outcome is Outcome.ACCEPT


def apply_accepted(transaction: SignedTransaction, world: World) -> None:
    context, identifier = world.get_context(), compute_transaction_id(transaction)
    state = apply_checked_transaction(world.state, transaction, identifier, context)
    before = scenes.count_money(world, world.state, transaction)
    after = scenes.count_money(world, state, transaction)
    require(before == after, f"{before} became {after}")
    try:
        again = apply_checked_transaction(state, transaction, identifier, context)
    except InvalidTransaction:
        return
    require(again.root == state.root, "the same transaction changes the state twice")


# --- claims and presences ---------------------------------------------------------------------


def run_claim(data: bytes) -> None:
    """`judge_claim`: judges everything; a claim is accepted only signed, for a batch of a task's step."""
    run_signed(data, Claim, lambda item, world: judge_claim(item, world.state, world.chain_id))


def run_presence(data: bytes) -> None:
    """`judge_presence`: judges everything."""
    run_signed(
        data,
        Presence,
        lambda item, world: judge_presence(
            item, world.state, world.chain_id, Millis(world.header.time), None
        ),
    )


def run_signed(data: bytes, cls: type, judge: Callable[[bytes, World], object]) -> None:
    """The bytes as they are and, where they decode, as their signer would have signed them."""
    accepted = False
    for world in scenes.iterate_worlds():
        check_judgement(judge(data, world))
        try:
            sealed = encode(scenes.seal(decode(cls, data), world))
        except CodecError:
            continue
        accepted |= check_judgement(judge(sealed, world)) is Outcome.ACCEPT
    if not accepted:
        raise Refused


def run_vote(data: bytes) -> None:
    """`judge_vote`: judges everything."""
    run_signed(
        data, Vote, lambda item, world: judge_vote(item, world.state, world.header.height, world.chain_id)
    )


# --- blocks -----------------------------------------------------------------------------------


def run_block(data: bytes) -> None:
    """`decode_block`, `check_block`, `validate_block`: InvalidBlock, Held and NeedsWork alone leave them;
    a valid block keeps money constant, and a refused one changes nothing."""
    found = scenes.get_scenes()
    params, chain_id = found[0].world.params, found[0].world.chain_id
    block = decode_block(data, params)
    require(encode(block) == data, "encodes to other bytes")
    world = found[max(0, min(block.header.height - 1, len(found) - 1))].world
    root = world.state.root
    try:
        check_block(block, params, chain_id)
        world.validate(data)
    except (InvalidBlock, Held, NeedsWork):
        pass
    body = scenes.seal(block.body, world)
    forged = world.forge(block, scenes.find_key(block.header.proposer), body)  # type: ignore[arg-type]
    state = None
    try:
        state = world.validate(forged)
    except InvalidBlock as error:
        if error.reason is not Reason.B9_STATE_ROOT:
            raise
        fitting = Hash32(bytes.fromhex(error.detail))
        forged = world.forge(forged, scenes.find_key(forged.header.proposer), state_root=fitting)
        state = world.validate(forged)
    finally:
        require(world.state.root == root, "validating changed the state")
    require(state.root == forged.header.state_root, "the state has another root than the header")
    before = scenes.count_money(world, world.state, forged)
    after = scenes.count_money(world, state, forged)
    require(before == after, f"{before} became {after}")


# --- proofs -----------------------------------------------------------------------------------


def run_proof(data: bytes) -> None:
    """`verify_proof`: says yes or no to any proof, and yes to no other value than the state's."""
    world = scenes.get_scenes()[-1].world
    proof = decode(Proof, data)
    accepted = False
    for key in get_proven_keys():
        value = world.state.tree.get(key)
        for other in (None, b"", bytes(40), proof.leaf.value if proof.leaf else b"\x01"):
            if other != value:
                require(not verify_proof(world.state.root, key, other, proof), "proves what is not so")
        accepted |= verify_proof(world.state.root, key, value, proof)
    if not accepted:
        raise Refused


def get_proven_keys() -> tuple[bytes, ...]:
    from consensus.state import get_account_key

    addresses = (scenes.CUSTODY.address, scenes.MINER_A.address, scenes.OUTSIDER.address, bytes(32))
    return tuple(get_account_key(address) for address in addresses)  # type: ignore[arg-type]


def build_proofs() -> list[Proof]:
    tree = scenes.get_scenes()[-1].world.state.tree
    return [tree.get_proof(key) for key in get_proven_keys()]


# --- the light client -------------------------------------------------------------------------


def run_finality(data: bytes) -> None:
    """A light client's update: LightError alone leaves it; trust only ever rises, to a set with a quorum."""
    reply = decode(FinalityReply, data)
    worlds = [scene.world for scene in scenes.get_scenes()]
    trusted = trust_header(worlds[1].header, build_set_proof(worlds[1].state))
    sealed = scenes.seal(reply, worlds[0])
    assert isinstance(sealed, FinalityReply)
    follow(trusted, reply)
    follow(trusted, sealed)


def follow(trusted: LightState, reply: FinalityReply) -> None:
    if reply.proof is None:
        raise Refused
    now = Millis(trusted.trusted.time + 1)
    state = update(trusted, reply.changes, reply.proof, now, 600_000)
    require(state.trusted.height >= trusted.trusted.height, "trust went down")
    require(state.trusted.chain_id == trusted.chain_id, "trusts another chain")
    require(state.validators.number >= trusted.validators.number, "trusts an older set")


# --- all --------------------------------------------------------------------------------------


def encode_all(build: Callable[[], Iterable[object]]) -> Callable[[], Iterable[bytes]]:
    return lambda: [encode(value) for value in build()]


REAL: dict[type, Callable[[], Iterable[object]]] = {
    Block: scenes.build_blocks,
    SignedTransaction: scenes.build_transactions,
    Claim: lambda: scenes.build_claims()[:2],
    Presence: lambda: scenes.build_presences()[:1],
    Vote: lambda: scenes.build_blocks()[4].body.votes[:1],
    Proof: build_proofs,
    Genesis: lambda: [scenes.get_scenes()[0].world.genesis],
}


def build_targets() -> list[Target]:
    def get_extra(cls: type) -> Callable[[], Iterable[bytes]]:
        # The rules' own targets have the real ones.
        real = REAL.get(cls) if cls in (Proof, Genesis, Claim, Presence, Vote) else None
        return tuple if real is None else encode_all(real)

    refused, block = (Refused,), (InvalidBlock, Held, NeedsWork)
    proof = (Refused, CodecError)
    return [
        *build_codec_targets(get_extra),
        Target(
            "rule.block", run_block, block, encode_all(REAL[Block]), Form.MSGPACK, 8192, 1000, 2**22, 300, 12
        ),
        Target(
            "rule.transaction",
            run_transaction,
            refused,
            encode_all(REAL[SignedTransaction]),
            Form.MSGPACK,
            4096,
            1000,
            2**21,
            300,
            12,
        ),
        Target(
            "rule.claim",
            run_claim,
            refused,
            encode_all(REAL[Claim]),
            Form.MSGPACK,
            1024,
            frames=300,
            effort=2,
        ),
        Target(
            "rule.presence", run_presence, refused, encode_all(REAL[Presence]), Form.MSGPACK, 1024, frames=300
        ),
        Target("rule.vote", run_vote, refused, encode_all(REAL[Vote]), Form.MSGPACK, 1024, frames=300),
        Target(
            "rule.finality",
            run_finality,
            (Refused, CodecError, LightError),
            encode_all(
                lambda: [scenes.build_finality(1), scenes.build_finality(4), scenes.build_set_change()]
            ),
            Form.MSGPACK,
            6144,
            frames=300,
            effort=4,
        ),
        Target(
            "rule.proof", run_proof, proof, encode_all(REAL[Proof]), Form.MSGPACK, 4096, frames=300, effort=2
        ),
    ]
