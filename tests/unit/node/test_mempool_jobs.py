"""The pool and jobs: one pending commitment of a sender, commitments before results, and what may wait."""

from consensus.codec import encode
from consensus.errors import Reason
from consensus.gossip_rules import Outcome, judge_transaction
from consensus.jobs import CommitResult, RevealResult
from consensus.types import ZERO_HASH, Hash32
from node.mempool import Mempool
from tests.unit.consensus.world import COLLEAGUE, CUSTODY, MINER_A, MINER_B, OUTSIDER, World


def test_the_first_commitment_of_a_sender_stays() -> None:
    world = World()
    pool = Mempool()
    first, second = (world.sign(MINER_A, CommitResult(ZERO_HASH, Hash32(bytes([n]) * 32))) for n in (1, 2))
    assert pool.add(first)
    assert not pool.add(second)
    assert pool.add(world.sign(MINER_B, CommitResult(ZERO_HASH, ZERO_HASH)))
    assert pool.add(world.sign(MINER_A, CommitResult(Hash32(bytes([9]) * 32), ZERO_HASH)))
    pool.remove([item.id for item in pool.get_all() if item.transaction == first])
    assert pool.add(second)


def test_commitments_go_before_results() -> None:
    world = World()
    pool = Mempool()
    reveal = world.sign(MINER_A, RevealResult(ZERO_HASH, ZERO_HASH))
    commit = world.sign(MINER_A, CommitResult(ZERO_HASH, ZERO_HASH))
    transfer = world.transfer(OUTSIDER, MINER_A, 1)
    for transaction in (reveal, commit, transfer):
        pool.add(transaction)
    assert pool.get_candidates() == [transfer, commit, reveal]


def test_what_comes_early_waits_and_what_is_forged_is_rejected() -> None:
    world = World()
    world.register()
    world.request()

    def judge(transaction: object) -> tuple[Outcome, Reason | None]:
        judgement = judge_transaction(encode(transaction), world.state, world.get_context())
        return judgement.outcome, judgement.reason

    reveal = world.build_reveal(MINER_A)
    assert judge(reveal) == (Outcome.ACCEPT, Reason.REVEAL_UNCOMMITTED)
    assert judge(world.build_commit(MINER_A)) == (Outcome.ACCEPT, None)
    world.carry(world.build_commit(MINER_A))
    assert judge(reveal) == (Outcome.ACCEPT, Reason.REVEAL_EARLY)
    assert judge(world.build_commit(MINER_A, "another")) == (Outcome.IGNORE, Reason.COMMIT_DOUBLED)
    world.carry(world.build_commit(CUSTODY))
    assert judge(reveal) == (Outcome.ACCEPT, None)
    assert judge(world.build_commit(MINER_B)) == (Outcome.IGNORE, Reason.COMMIT_CLOSED)
    foreign = world.sign(COLLEAGUE, RevealResult(world.job, ZERO_HASH))
    assert judge(foreign) == (Outcome.ACCEPT, Reason.REVEAL_UNCOMMITTED)
