"""Votes from peers: rejected only what no honest node can have relayed."""

from dataclasses import replace

import pytest

from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.gossip_rules import (
    MAX_VOTE_BYTES,
    VOTE_HORIZON,
    Judgement,
    Outcome,
    get_voters,
    judge_vote,
)
from consensus.types import MAX_TIME_MS, Height, Signature
from consensus.vote import Checkpoint, Vote, sign_vote
from tests.unit.consensus.world import CUSTODY, MINER_A, OUTSIDER, World, build_genesis

OTHER = hash_domain("test", b"other")


@pytest.fixture(scope="module")
def world() -> World:
    """Final up to height 1, justified up to 2, at height 3."""
    world = World()
    for _ in range(3):
        world.carry(world.transfer(OUTSIDER, MINER_A, 1))
    return world


def judge(world: World, data: bytes) -> Judgement:
    return judge_vote(data, world.state, world.header.height, world.chain_id)


def test_what_honest_validators_sign_is_accepted(world: World) -> None:
    for vote in world.build_votes():
        judgement = judge(world, encode(vote))
        assert (judgement.outcome, judgement.vote) == (Outcome.ACCEPT, vote)
    # Blocks that this node does not know may exist.
    unknown = sign_vote(CUSTODY, world.chain_id, Checkpoint(Height(2), OTHER), Checkpoint(Height(9), OTHER))
    assert judge(world, encode(unknown)).outcome is Outcome.ACCEPT


def test_bytes_and_signatures_are_their_senders_fault(world: World) -> None:
    (vote, *_) = world.build_votes()
    data = encode(vote)
    foreign = World(build_genesis(name="other"))
    link = vote.source, vote.target
    for wrong in (
        data[:-1],
        data + b"\x00",
        b"",
        bytes(MAX_VOTE_BYTES + 1),
        encode(replace(vote, signature=Signature(bytes(64)))),
        encode(replace(vote, signature=Signature(b""))),
        encode(replace(vote, target=Checkpoint(Height(9), OTHER))),
        encode(sign_vote(MINER_A, foreign.chain_id, *link)),
        encode(sign_vote(MINER_A, world.chain_id, vote.target, vote.source)),
        encode(sign_vote(MINER_A, world.chain_id, vote.target, vote.target)),
    ):
        judgement = judge(world, wrong)
        assert (judgement.outcome, judgement.vote) == (Outcome.REJECT, None)


def test_what_another_state_may_admit_is_ignored(world: World) -> None:
    (vote, *_) = world.build_votes()
    outsider = sign_vote(OUTSIDER, world.chain_id, vote.source, vote.target)
    assert judge(world, encode(outsider)) == replace(
        judge(world, encode(outsider)), outcome=Outcome.IGNORE, vote=None
    )
    root = Checkpoint(Height(0), world.chain_id)
    final = world.state.get_finality().finalized
    far = Checkpoint(Height(world.header.height + VOTE_HORIZON + 1), OTHER)
    for target in (final, far):
        late = sign_vote(MINER_A, world.chain_id, root, target)
        judgement = judge(world, encode(late))
        # It can't count here, but with another one it may convict.
        assert (judgement.outcome, judgement.vote) == (Outcome.IGNORE, late)


def test_the_largest_vote_fits() -> None:
    far = Checkpoint(Height(MAX_TIME_MS), OTHER)
    assert len(encode(sign_vote(MINER_A, OTHER, far, far))) <= MAX_VOTE_BYTES


def test_voters_are_of_the_last_active_and_next_sets(world: World) -> None:
    members = {validator.address for validator in world.genesis.validators}
    assert get_voters(world.state) == members
    assert get_voters(world.state.with_jailed((MINER_A.address,))) == members - {MINER_A.address}


def test_a_vote_of_a_jailed_validator_is_ignored(world: World) -> None:
    (vote,) = world.build_votes([MINER_A])
    state = world.state.with_jailed((MINER_A.address,))
    judgement = judge_vote(encode(vote), state, world.header.height, world.chain_id)
    assert (judgement.outcome, judgement.vote) == (Outcome.IGNORE, None)


def test_the_codec_gives_votes_back() -> None:
    vote = sign_vote(MINER_A, OTHER, Checkpoint(Height(1), OTHER), Checkpoint(Height(2), OTHER))
    assert isinstance(vote, Vote)
    assert len(encode(vote)) < MAX_VOTE_BYTES
