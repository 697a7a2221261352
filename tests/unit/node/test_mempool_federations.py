"""The pool and federations: a round's transactions in its order, and what may wait for it."""

from consensus.codec import encode
from consensus.errors import Reason
from consensus.gossip_rules import Outcome, judge_transaction
from node.ledger.indexing import compute_subjects
from node.mempool import Mempool
from tests.unit.consensus.federated import HOSPITALS, Rounds
from tests.unit.consensus.world import CUSTODY, MINER_A, MINER_B, OUTSIDER


def test_a_round_is_offered_in_its_order() -> None:
    rounds = Rounds().create()
    rounds.world.carry(rounds.build_submit(HOSPITALS[0]))
    wanted = [
        rounds.world.transfer(OUTSIDER, MINER_A, 1),
        rounds.build_submit(HOSPITALS[1]),
        rounds.build_attest(MINER_A),
        rounds.build_close(),
        rounds.build_open(),
        rounds.build_settle(),
    ]
    pool = Mempool()
    for transaction in reversed(wanted):
        pool.add(transaction)
    assert pool.get_candidates() == wanted
    assert all(compute_subjects(item) == (rounds.federation,) for item in wanted[1:])


def test_what_comes_early_waits_and_what_comes_late_is_dropped() -> None:
    rounds = Rounds().create()

    def judge(transaction: object) -> tuple[Outcome, Reason | None]:
        world = rounds.world
        judgement = judge_transaction(encode(transaction), world.state, world.get_context())
        return judgement.outcome, judgement.reason

    update, confirm = rounds.build_submit(MINER_B), rounds.build_confirm(MINER_A)
    assert judge(update) == (Outcome.ACCEPT, None)
    assert judge(confirm) == (Outcome.ACCEPT, Reason.ROUND_OPEN)
    assert judge(rounds.build_close()) == (Outcome.ACCEPT, Reason.CLOSE_EARLY)
    rounds.submit(HOSPITALS[:2])
    rounds.close()
    assert judge(confirm) == (Outcome.ACCEPT, Reason.ROUND_NOT_FINAL)
    assert judge(rounds.build_open()) == (Outcome.ACCEPT, Reason.SUM_UNCONFIRMED)
    assert judge(update) == (Outcome.IGNORE, Reason.ROUND_CLOSED)
    rounds.open()
    assert judge(rounds.build_open()) == (Outcome.IGNORE, Reason.ROUND_OPENED)
    assert judge(rounds.build_open(MINER_A)) == (Outcome.IGNORE, Reason.ROUND_OPENED)
    assert judge(rounds.build_judge(CUSTODY, 2, 1)) == (Outcome.ACCEPT, None)
