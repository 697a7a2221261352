"""Money: whatever blocks and transactions come, balances, escrows and bonds together stay the same."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import InvalidBlock, InvalidTransaction
from consensus.identifiers import compute_weights_digest
from consensus.inference import LIVING_JOBS
from consensus.jobs import CloseCommits, ExpireJob, JobStatus
from consensus.payload import Payload
from consensus.proposal import build_block, build_proposal, get_work_entitled_time
from consensus.state import TaskStatus
from consensus.task import Available, ExpireTask, Milestone
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from consensus.types import Amount, Millis
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    KEYS,
    MINER_A,
    MINER_B,
    World,
)

keys = st.sampled_from(KEYS)
miners = st.lists(st.sampled_from([MINER_A, MINER_B, COLLEAGUE]), min_size=1, max_size=2)


def draw_transaction(world: World, data: st.DataObject) -> SignedTransaction:
    """Often valid, often not."""
    kind = data.draw(
        st.sampled_from(["transfer", "available", "gradient", "gradient", "loss", "loss", "expire"])
    )
    key = data.draw(keys)
    custody = CUSTODY if data.draw(st.integers(0, 9)) else key
    payload: Payload
    match kind:
        case "transfer":
            return world.transfer(key, data.draw(keys), data.draw(st.integers(0, 1_200_000)))
        case "available":
            payload = Available(world.task)
        case "gradient":
            numbers = st.integers(-(10**6), 10**6)
            gradient = data.draw(st.tuples(numbers, numbers, numbers))
            claims = world.build_claims(world.task_state.step, data.draw(miners))
            payload, key = world.build_gradient(gradient, claims=claims), custody
        case "loss":
            payload, key = world.build_loss(data.draw(st.integers(0, 140))), custody
        case _:
            payload = ExpireTask(world.task)
    return world.sign(key, payload)


def draw_progress(world: World, data: st.DataObject) -> SignedTransaction:
    """The custody's next opening."""
    task = world.task_state
    if task.step in (0, 2, 4, 6) and not task.loss_opened:
        return world.sign(CUSTODY, world.build_loss(data.draw(st.sampled_from([120, 90, 40, 10]))))
    claims = world.build_claims(task.step, data.draw(miners))
    return world.sign(CUSTODY, world.build_gradient(claims=claims))


def take_milestone(world: World, data: st.DataObject) -> None:
    """A work block by anyone who may, at the first time it may."""
    milestone = world.task_state.qualified[0]
    weights = next(w for w in world.weights.values() if compute_weights_digest(w) == milestone.weights_digest)
    world.weights[milestone.step] = weights
    key = data.draw(keys)
    time = get_work_entitled_time(
        world.state, world.task, key.address, world.header, world.params, world.header.time
    )
    if time is None:
        return
    try:
        block, _, _ = build_block(
            world.header, world.state, (), world.build_work(), time, key, world.params, world.chain_id
        )
    except InvalidBlock:
        return
    world.add(block)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_money_is_neither_made_nor_lost(data: st.DataObject) -> None:
    world = World()
    total = world.count_money()
    amounts = st.integers(0, 5_000)
    world.publish(
        ladder=tuple(Milestone(target, Amount(data.draw(amounts))) for target in (100, 60, 20)),
        batch_fee=Amount(data.draw(st.integers(0, 100))),
        bond=Amount(data.draw(amounts)),
    )
    assert world.count_money() == total
    if data.draw(st.integers(0, 4)):
        world.carry(*(world.sign(key, Available(world.task)) for key in (CUSTODY, MINER_A, MINER_B)))
    for _ in range(data.draw(st.integers(4, 14))):
        transactions = [draw_transaction(world, data) for _ in range(data.draw(st.integers(0, 2)))]
        if data.draw(st.booleans()):
            transactions.append(draw_progress(world, data))
        after = 2_000_000 if data.draw(st.integers(0, 19)) == 19 else 1_500
        proposal = build_proposal(
            world.header,
            world.state,
            transactions,
            None,
            Millis(world.header.time + after),
            world.get_turn(after),
            world.params,
            world.chain_id,
        )
        world.add(proposal.block)
        assert world.state.root == proposal.state.root
        world.weights[world.task_state.step] = world.task_state.weights
        assert world.count_money() == total
        if world.task_state.qualified and data.draw(st.integers(0, 2)):
            take_milestone(world, data)
            assert world.count_money() == total
        task = world.task_state
        ended = task.status in (TaskStatus.COMPLETE, TaskStatus.EXPIRED)
        assert task.escrow >= 0
        if ended:
            assert task.escrow == task.bond == 0
    assert all(world.state.get_account(key.address).balance >= 0 for key in KEYS)


def draw_part(world: World, data: st.DataObject) -> SignedTransaction:
    """A commitment, a result or an end; results differ now and then."""
    key = data.draw(st.sampled_from([MINER_A, MINER_B, COLLEAGUE]))
    result = data.draw(st.sampled_from(["result", "result", "result", "wrong"]))
    match data.draw(st.sampled_from(["commit", "commit", "close", "reveal", "reveal", "reveal", "expire"])):
        case "commit":
            return world.build_commit(key, result)
        case "reveal":
            return world.build_reveal(key, result)
        case "close":
            return world.sign(key, CloseCommits(world.job))
        case _:
            return world.sign(key, ExpireJob(world.job))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_fees_of_jobs_are_neither_made_nor_lost(data: st.DataObject) -> None:
    world = World()
    total = world.count_money()
    price = data.draw(st.integers(0, 50))
    world.register(price=Amount(price))
    world.request(fee=Amount(price + data.draw(st.integers(0, 1_000))))
    for _ in range(data.draw(st.integers(1, 12))):
        transaction = draw_part(world, data)
        after = data.draw(st.sampled_from([2_000, 2_000, 2_000, 70_000, 400_000]))
        try:
            apply_transaction(world.state, transaction, world.get_context(after))
        except InvalidTransaction:
            world.carry(after=after)
        else:
            world.carry(transaction, after=after)
        record, receipt = world.job_record, world.state.get_receipt(world.job)
        assert world.count_money() == total
        assert (record.escrow == record.request.fee) == (record.status in LIVING_JOBS)
        assert (receipt is not None) == (record.status is JobStatus.SETTLED)
        if receipt is not None:
            parts = (*receipt.evaluators, *receipt.caught, *receipt.silent)
            assert sorted(parts) == sorted(item.evaluator for item in record.evaluations)
    assert all(world.state.get_account(key.address).balance >= 0 for key in KEYS)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_refused_transaction_changes_nothing(data: st.DataObject) -> None:
    world = World()
    world.open()
    for _ in range(4):
        transaction = draw_transaction(world, data)
        if data.draw(st.booleans()):
            transaction = replace(transaction, nonce=data.draw(st.integers(-1, 3)))
        root, nodes = world.state.root, dict(world.state.tree.new_nodes())
        try:
            state = apply_transaction(world.state, transaction, world.get_context())
        except InvalidTransaction:
            state = world.state
        assert (world.state.root, dict(world.state.tree.new_nodes())) == (root, nodes)
        # Applying is a pure function: again gives the same.
        if state.root != root:
            assert apply_transaction(world.state, transaction, world.get_context()).root == state.root
            world.state = state
