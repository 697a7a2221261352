"""A task on a testnet of real processes: mined to its end, agreed on, paid once, followed by a late node."""

from collections import Counter

from consensus.identifiers import compute_weights_digest
from consensus.optimizer import apply_opening
from consensus.task import Draft, OpenGradient, PublishTask
from node.api.payloads import build_core
from node.api.schemas import BlockModel
from tests.testnet.conftest import LATE, NAMES, Mined
from tests.testnet.fleet import BATCH_FEE, BOND, Fleet


def get_work_blocks(fleet: Fleet, task: str) -> list[BlockModel]:
    chain = fleet.get_head_chain("node4")
    return [block for block in chain if block.work is not None and block.work.task == task]


def test_every_node_agrees_and_recomputed_every_loss_itself(fleet: Fleet, mined: Mined) -> None:
    fleet.wait_agreement(NAMES)
    fleet.wait_recomputed(mined.task, NAMES)
    openings = [fleet.get_openings(name, mined.task) for name in NAMES]
    for found in openings:
        assert [o.hash for o in found] == [o.hash for o in openings[0]]
        assert all(o.recomputed for o in found if o.kind == "loss")
    losses = [o.loss_value for o in openings[0] if o.kind == "loss"]
    assert len(losses) >= 4
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[0] > 5 * losses[-1]


def test_every_milestone_is_taken_once_by_those_who_mined_it(fleet: Fleet, mined: Mined) -> None:
    task = fleet.get_task("node4", mined.task)
    assert [rung.state for rung in task.ladder] == ["settled"] * 4
    taken = Counter[int]()
    for block in get_work_blocks(fleet, mined.task):
        assert block.work is not None
        taken.update(range(block.work.first_rung, block.work.last_rung + 1))
        assert block.header.proposer != fleet.get_address("node1")
        for rung in range(block.work.first_rung, block.work.last_rung + 1):
            assert block.work.loss <= task.ladder[rung].target
    assert taken == Counter(range(4))
    miners = {fleet.get_address("node2"), fleet.get_address("node3")}
    assert {credit.miner for credit in task.credits} == miners
    assert sum(credit.batches for credit in task.credits) == 2 * task.gradient_openings.spent


def test_rewards_and_fees_are_paid_exactly_once(fleet: Fleet, mined: Mined) -> None:
    """From the chain's work blocks alone, to the last unit; the escrow is empty, the bond locked."""
    task = fleet.get_task("node4", mined.task)
    expected = Counter[str]()
    for block in get_work_blocks(fleet, mined.task):
        assert block.work is not None
        credits = block.work.credits
        reward = sum(task.ladder[r].reward for r in range(block.work.first_rung, block.work.last_rung + 1))
        batches = sum(credit.batches for credit in credits)
        for credit in credits:
            expected[credit.miner] += reward * credit.batches // batches + BATCH_FEE * credit.batches
        shares = sum(reward * credit.batches // batches for credit in credits)
        expected[credits[0].miner] += reward - shares
    expected["locks"] = BOND
    expected[fleet.get_address("node1")] = -expected.total()
    changed = {key: mined.after[key] - mined.before[key] for key in mined.after}
    assert {key: value for key, value in changed.items() if value} == dict(expected)
    assert sum(mined.after.values()) == sum(mined.before.values())
    assert (task.escrow, task.bond) == (0, 0)
    for name in NAMES:
        assert sum(fleet.count_money(name).values()) == sum(mined.before.values())


def test_the_model_is_the_optimisers_result_from_the_openings(fleet: Fleet, mined: Mined) -> None:
    models = []
    for name in NAMES:
        client = fleet.api(name)
        models.append(client.call(client.api.get_model(mined.task)))
    assert all(model == models[0] for model in models)
    client = fleet.api("node4")
    task = fleet.get_task("node4", mined.task)
    draft = build_core(Draft, client.call(client.api.get_draft(task.draft)).draft)
    weights: tuple[int, ...] = ()
    momentum: tuple[int, ...] = ()
    publication: PublishTask | None = None
    for block in fleet.get_head_chain("node4"):
        for transaction in block.transactions:
            payload = transaction.payload
            if payload.kind == "publish" and payload.draft == task.draft:
                publication = build_core(PublishTask, payload)
                weights = publication.initial_weights
                momentum = (0,) * len(weights)
            if payload.kind == "open-gradient" and payload.task == mined.task:
                opening = build_core(OpenGradient, payload)
                assert publication is not None
                rate, shift = (
                    publication.optimizer.learning_rates[opening.step],
                    publication.optimizer.shift,
                )
                weights, momentum = apply_opening(
                    weights, momentum, opening.gradient, rate, shift, draft.weight_box
                )
    assert models[0].weights == weights
    assert models[0].weights_digest == compute_weights_digest(weights).hex()
    assert models[0].step == task.ladder[-1].step


def test_a_late_node_with_an_empty_disk_joins(fleet: Fleet, mined: Mined) -> None:
    """It fetches blocks, keys and validation batches from peers, and believes no loss that it has not
    recomputed."""
    assert not (fleet.testnet.get_directory(LATE) / "data" / "ledger").exists()
    fleet.up(LATE)
    fleet.wait_agreement((*NAMES, LATE))
    fleet.wait_recomputed(mined.task, (LATE,))
    losses = [o for o in fleet.get_openings(LATE, mined.task) if o.kind == "loss"]
    assert fleet.read_log(LATE).count("recomputed the loss at step") == len(losses)
    assert fleet.count_money(LATE) == mined.after
    fleet.down(LATE)
    assert fleet.check_ledger(LATE) == fleet.get_status("node4").head.height
