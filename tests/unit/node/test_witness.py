"""What nodes say of each other's votes: signed, fresh, and not to be bent by a third of stake."""

from dataclasses import replace

import pytest

from consensus.crypto import SigningKey, hash_domain
from consensus.types import Height, Signature
from consensus.vote import Checkpoint, SignState, Vote, sign_vote
from node.gossip.messages import WitnessReply, WitnessRequest
from node.ledger.chainstore import Ledger
from node.ledger.store import MemoryStore
from node.witness import Inquiry, VoteMemory, sign_witness, verify_witness
from tests.unit.consensus.world import COLLEAGUE, CUSTODY, MINER_A, MINER_B, OUTSIDER, World

WORLD = World()
CHAIN = WORLD.chain_id
STATE = WORLD.state
"""Custody, colleague and both miners have a quarter of the stake each."""


def build_checkpoint(height: int) -> Checkpoint:
    return Checkpoint(Height(height), hash_domain("test", height.to_bytes(8, "big")))


def build_vote(source: int, target: int, key: SigningKey = MINER_A) -> Vote:
    return sign_vote(key, CHAIN, build_checkpoint(source), build_checkpoint(target))


def build_reply(
    nonce: bytes,
    witness: SigningKey,
    *votes: Vote,
    head: int = 0,
    justified: int = 0,
    is_silent: bool = False,
) -> WitnessReply:
    reply = WitnessReply(
        witness.address,
        build_checkpoint(head),
        build_checkpoint(justified),
        is_silent,
        votes,
        Signature(b""),
    )
    return sign_witness(witness, CHAIN, WitnessRequest(CHAIN, MINER_A.address, nonce), reply)


def answer(inquiry: Inquiry, witness: SigningKey, *votes: Vote, **said: int) -> bool:
    nonce = inquiry.ask()
    return inquiry.take(nonce, build_reply(nonce, witness, *votes, **said))  # type: ignore[arg-type]


@pytest.fixture
def inquiry() -> Inquiry:
    return Inquiry(CHAIN, MINER_A.address)


def test_memory_keeps_the_furthest_votes_over_restarts() -> None:
    ledger = Ledger.open(MemoryStore(), CHAIN)
    memory = VoteMemory(ledger)
    for vote in (build_vote(1, 2), build_vote(2, 3), build_vote(0, 1), build_vote(0, 4, MINER_B)):
        memory.add(vote)
    assert memory.get(MINER_A.address) == (build_vote(2, 3),)
    memory.add(build_vote(0, 9))
    assert memory.get(MINER_A.address) == (build_vote(0, 9), build_vote(2, 3))
    memory.flush()
    again = VoteMemory(ledger)
    assert again.get(MINER_A.address) == (build_vote(0, 9), build_vote(2, 3))
    assert again.get(MINER_B.address) == (build_vote(0, 4, MINER_B),)
    assert again.get(CUSTODY.address) == ()


def test_an_answer_is_signed_for_its_question() -> None:
    nonce = bytes(16)
    reply = build_reply(nonce, CUSTODY, build_vote(1, 2))
    assert verify_witness(CHAIN, MINER_A.address, nonce, reply)
    other = hash_domain("test", b"another chain")
    assert not verify_witness(other, MINER_A.address, nonce, reply)
    assert not verify_witness(CHAIN, MINER_B.address, nonce, reply)
    assert not verify_witness(CHAIN, MINER_A.address, b"\x01" * 16, reply)
    for forged in (
        replace(reply, votes=()),
        replace(reply, witness=MINER_B.address),
        replace(reply, head=build_checkpoint(5)),
        replace(reply, justified=build_checkpoint(5)),
        replace(reply, is_silent=True),
        replace(reply, signature=Signature(bytes(64))),
        build_reply(nonce, CUSTODY, build_vote(1, 2, MINER_B)),
        build_reply(nonce, CUSTODY, replace(build_vote(1, 2), signature=Signature(bytes(64)))),
    ):
        assert not verify_witness(CHAIN, MINER_A.address, nonce, forged)


def test_an_answer_counts_once_and_to_a_question_that_was_asked(inquiry: Inquiry) -> None:
    assert not inquiry.take(bytes(16), build_reply(bytes(16), CUSTODY))
    nonce = inquiry.ask()
    reply = build_reply(nonce, CUSTODY)
    assert inquiry.take(nonce, reply)
    assert not inquiry.take(nonce, reply)
    abandoned = inquiry.ask()
    inquiry.give_up(abandoned)
    assert not inquiry.take(abandoned, build_reply(abandoned, CUSTODY))


def test_two_thirds_of_stake_have_to_answer(inquiry: Inquiry) -> None:
    assert not inquiry.is_sufficient(STATE)
    assert answer(inquiry, OUTSIDER)
    assert answer(inquiry, CUSTODY)
    assert answer(inquiry, CUSTODY)
    assert not inquiry.is_sufficient(STATE)
    assert answer(inquiry, COLLEAGUE)
    assert inquiry.is_sufficient(STATE)
    assert not inquiry.is_complete(STATE)
    assert answer(inquiry, MINER_B)
    assert inquiry.is_complete(STATE)


def test_any_vote_that_anybody_shows_is_known(inquiry: Inquiry) -> None:
    answer(inquiry, OUTSIDER, build_vote(4, 5), build_vote(1, 9))
    answer(inquiry, CUSTODY)
    assert inquiry.known == SignState(Height(4), Height(9))


def test_heights_that_a_third_or_less_claims_do_not_count(inquiry: Inquiry) -> None:
    answer(inquiry, CUSTODY, head=1_000_000, justified=999_999)
    answer(inquiry, OUTSIDER, head=2_000_000)
    assert inquiry.get_common_height(STATE) == 0
    answer(inquiry, COLLEAGUE, head=12, justified=10)
    answer(inquiry, MINER_B, head=11, justified=11)
    assert inquiry.get_common_height(STATE) == 12
    assert inquiry.get_common_justified(STATE) == 11
    # What was said first stays: the chain grows while a validator waits.
    answer(inquiry, COLLEAGUE, head=50, justified=50)
    assert inquiry.get_common_height(STATE) == 12


def test_those_who_are_silent_themselves_justify_nothing(inquiry: Inquiry) -> None:
    assert inquiry.can_others_justify(STATE)
    answer(inquiry, CUSTODY, is_silent=True)
    assert not inquiry.can_others_justify(STATE)
    answer(inquiry, CUSTODY, is_silent=False)
    assert inquiry.can_others_justify(STATE)
