"""The pool and ceremonies: a round's transactions in its order, one commitment of a member, what may wait."""

from consensus.ceremonies import CommitRound
from consensus.codec import encode
from consensus.errors import Reason
from consensus.gossip_rules import Outcome, judge_transaction
from consensus.task import Available
from consensus.types import ZERO_HASH
from node.ledger.indexing import compute_subjects
from node.mempool import Mempool
from tests.unit.consensus.ceremonial import MEMBERS, Ceremonies, build_committee
from tests.unit.consensus.world import MINER_A, OUTSIDER

FIRST, SECOND, THIRD = MEMBERS


def test_a_ceremony_is_offered_in_its_order() -> None:
    there = Ceremonies().create()
    wanted = [
        there.world.transfer(OUTSIDER, MINER_A, 1),
        there.build_commit(FIRST),
        there.build_reveal(FIRST),
        there.build_confirm(FIRST),
        there.build_end(FIRST),
    ]
    pool = Mempool()
    for transaction in reversed(wanted):
        assert pool.add(transaction)
    assert pool.get_candidates() == wanted
    assert all(compute_subjects(item) == (there.ceremony,) for item in wanted[1:])


def test_a_member_has_one_pending_commitment_a_round() -> None:
    there = Ceremonies().create()
    pool = Mempool()
    first = there.build_commit(FIRST)
    assert pool.add(first)
    other = there.world.sign(FIRST, CommitRound(there.ceremony, 0, ZERO_HASH))
    assert not pool.add(other)
    assert pool.add(there.build_commit(SECOND))
    assert pool.add(there.build_commit(FIRST, 1))
    pool.remove([next(item.id for item in pool.get_all() if item.transaction == first)])
    assert pool.add(other)


def test_what_comes_early_waits_and_what_comes_late_is_dropped() -> None:
    there = Ceremonies().create()

    def judge(transaction: object) -> tuple[Outcome, Reason | None]:
        world = there.world
        judgement = judge_transaction(encode(transaction), world.state, world.get_context())
        return judgement.outcome, judgement.reason

    commit, reveal = there.build_commit(FIRST), there.build_reveal(FIRST)
    assert judge(commit) == (Outcome.ACCEPT, None)
    assert judge(there.build_commit(FIRST, 1)) == (Outcome.ACCEPT, Reason.ROUND_FUTURE)
    assert judge(reveal) == (Outcome.ACCEPT, Reason.REVEAL_UNCOMMITTED)
    assert judge(there.build_confirm(FIRST)) == (Outcome.ACCEPT, Reason.CEREMONY_UNFINISHED)
    assert judge(there.build_end(OUTSIDER)) == (Outcome.ACCEPT, Reason.CEREMONY_EARLY)
    assert judge(there.build_commit(OUTSIDER)) == (Outcome.IGNORE, Reason.CEREMONY_MEMBER)
    there.commit()
    assert judge(commit) == (Outcome.IGNORE, Reason.COMMIT_DOUBLED)
    assert judge(reveal) == (Outcome.ACCEPT, Reason.ROUND_NOT_FINAL)
    there.finalize()
    there.reveal()
    assert judge(reveal) == (Outcome.IGNORE, Reason.ROUND_PAST)
    there.world.carry(there.build_end(SECOND))
    assert judge(there.build_confirm(FIRST)) == (Outcome.IGNORE, Reason.CEREMONY_ENDED)


def test_one_opening_waits_in_its_place_whoever_signed_it() -> None:
    committee = build_committee()
    world, pool = committee.world, Mempool()
    first = world.sign(FIRST, committee.build_loss(900))
    second = world.sign(SECOND, committee.build_loss(900, MEMBERS[1:]))
    assert pool.add(first)
    assert not pool.add(second)
    assert pool.add(world.sign(THIRD, Available(world.task)))
    assert pool.get_opening(world.task, ZERO_HASH) == first
