"""Defects of the rules that the simulator found, each in the smallest world that shows it."""

from dataclasses import replace

import pytest

from consensus.crypto import SigningKey
from consensus.errors import InvalidVote, Reason
from consensus.finality import check_vote, choose_vote
from consensus.governance import sign_governance
from consensus.params import Validator
from consensus.payload import Govern, Governance, ReportVotes, SetValidators
from consensus.turns import get_carrier_proposer
from consensus.types import ZERO_HASH, Height, Millis
from consensus.vote import NOTHING_SIGNED, Checkpoint, sign_vote
from tests.unit.consensus.world import BY_ADDRESS, COLLEAGUE, CUSTODY, MINER_A, MINER_B, OUTSIDER, World

APPROVERS = sorted((CUSTODY, MINER_A, COLLEAGUE), key=lambda key: key.address)


class ChangingWorld(World):
    """Its turns follow the set in its state."""

    def get_turn(self, after: int) -> SigningKey:
        time = Millis(self.header.time + after)
        turn = get_carrier_proposer(self.state, self.params, self.header, time)
        assert turn is not None
        return BY_ADDRESS[turn]


def test_a_leaver_votes_until_the_new_set_has_justified_its_first_checkpoint() -> None:
    """Without its vote a leaver and one silent validator of four stopped finality for ever."""
    world = ChangingWorld()
    action = SetValidators(tuple(Validator(key.address, 10) for key in (CUSTODY, MINER_A, MINER_B)))
    governance = Governance(0, action)
    approvals = tuple(sign_governance(key, world.chain_id, governance) for key in APPROVERS)
    world.carry(world.sign(OUTSIDER, Govern(governance, approvals)))
    while world.state.get_validator_set().number == 0:
        world.carry()
    boundary = world.head
    assert world.state.get_stake(COLLEAGUE.address) == 0
    # MINER_B is silent: two of three in the new set, but only two of four in the old one.
    world.carry(world.transfer(OUTSIDER, CUSTODY, 1), votes=world.build_votes((CUSTODY, MINER_A)))
    record = world.state.get_checkpoint(boundary.height)
    assert record is not None
    assert not record.is_justified
    link = choose_vote(world.state, world.head, COLLEAGUE.address, NOTHING_SIGNED)
    assert link is not None
    assert choose_vote(world.state, world.head, OUTSIDER.address, NOTHING_SIGNED) is None
    target = world.head
    late = sign_vote(COLLEAGUE, world.chain_id, *link)
    world.carry(votes=(*world.build_votes((CUSTODY, MINER_A)), late))
    assert world.state.get_finality().justified == target
    assert choose_vote(world.state, world.head, COLLEAGUE.address, NOTHING_SIGNED) is None


def test_votes_that_justify_on_one_branch_justify_on_every_branch() -> None:
    """Jailing one of those who voted for a block came before its votes on another branch: who had seen it
    justified had signed a higher source than that branch could ever reach, and finality stopped for good."""
    world = World()
    world.carry(world.transfer(OUTSIDER, MINER_A, 1))
    common = world.head
    votes = world.build_votes((CUSTODY, COLLEAGUE, MINER_B))
    fork = replace(world)
    fork.header, fork.state = world.header, world.state
    world.carry(votes=votes)
    assert world.state.get_finality().justified == common
    source = votes[2].source
    other = sign_vote(MINER_B, world.chain_id, source, Checkpoint(common.height, ZERO_HASH))
    fork.carry(fork.sign(OUTSIDER, ReportVotes(votes[2], other)), votes=())
    assert MINER_B.address in fork.state.get_jailed()
    fork.carry_by_turn(votes=votes)
    assert fork.state.get_finality().justified == common
    # For what comes after its conviction its votes count no more.
    height = Height(fork.header.height - 1)
    record = fork.state.get_checkpoint(height)
    assert record is not None
    late = sign_vote(MINER_B, fork.chain_id, record.source, Checkpoint(height, record.hash))
    with pytest.raises(InvalidVote) as caught:
        check_vote(fork.state, late, fork.chain_id)
    assert caught.value.reason is Reason.VOTE_JAILED
