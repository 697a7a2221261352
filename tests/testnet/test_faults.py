"""Nodes of a testnet killed and restarted: nothing is lost, opened twice or paid twice.

Every test publishes a task of its own where it needs one; the testnet is shared, and whole again at the end
of each.
"""

import random
from collections.abc import Callable

import pytest

from consensus.codec import decode
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.identifiers import compute_block_hash
from consensus.task import OpenGradient, OpenLoss, Transfer
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Address, Amount
from node.genesis import load_genesis
from node.ledger.chainstore import Ledger
from node.ledger.level import LevelStore
from node.processes import get_pid
from tests.testnet.conftest import NAMES
from tests.testnet.fleet import BOND, Fleet, Recipe, poll

SLOW = Recipe(("0.033:300", "0.022:300", "0.010:300"), loss_every=2)
"""Six steps or a few more."""
SHORT = Recipe(("0.033:300", "0.024:300", "0.017:300"), loss_every=2, learning_rate=0.03)
"""About four steps."""
OPENINGS = {"open-gradient", "open-loss"}
Opened = dict[tuple[str, int], str]
"""Transaction ids by kind and step."""


def read_stored_openings(fleet: Fleet, task: str) -> Opened:
    """What the stopped custody has signed, from its own disk."""
    home = fleet.testnet.get_directory("node1")
    genesis = load_genesis(home / "genesis.json")
    header = build_genesis_header(genesis, build_genesis_state(genesis))
    ledger = Ledger.open(LevelStore(home / "data" / "ledger"), compute_block_hash(header))
    found: Opened = {}
    try:
        for _, record in ledger.iterate_records(b"opening/"):
            transaction = decode(SignedTransaction, record)
            payload = transaction.payload
            assert isinstance(payload, OpenGradient | OpenLoss)
            if payload.task.hex() == task:
                kind = "gradient" if isinstance(payload, OpenGradient) else "loss"
                found[kind, payload.step] = compute_transaction_id(transaction).hex()
    finally:
        ledger.close()
    return found


def read_chain_openings(fleet: Fleet, task: str, name: str = "node4") -> Opened:
    """The openings on the chain, each step of each kind once."""
    openings = fleet.get_openings(name, task)
    found = {(opening.kind, opening.step): opening.transaction for opening in openings}
    assert len(found) == len(openings)
    return found


def check_paid_once(fleet: Fleet, task: str, before: dict[str, int]) -> None:
    """What the custody lost is what the miners got, rewards and a fee a credited batch, and its bond."""
    fleet.wait_agreement(NAMES)
    after = fleet.count_money("node4")
    found = fleet.get_task("node4", task)
    batches = sum(credit.batches for credit in found.credits)
    assert batches == found.batches_per_step * found.gradient_openings.spent
    paid = sum(rung.reward for rung in found.ladder) + found.batch_fee * batches
    earned = {key: after[key] - before[key] for key in before}
    custody = fleet.get_address("node1")
    assert earned.pop("locks") == BOND
    assert earned.pop(custody) == -paid - BOND
    assert sum(earned.values()) == paid
    assert {credit.miner for credit in found.credits} == {key for key, value in earned.items() if value}


def test_a_killed_miners_leases_pass_on(fleet: Fleet) -> None:
    before = fleet.count_money("node4")
    task = fleet.publish(SHORT)
    fleet.wait_step(task, 1)
    fleet.kill("node2")  # it begins, or has begun, to compute a batch of the next step
    killed_at = fleet.get_summary("node4", task).step
    fleet.wait_complete(task)
    found = fleet.get_task("node4", task)
    assert found.gradient_openings.spent > killed_at + 1
    survivor = fleet.get_address("node3")
    for opening in fleet.get_openings("node4", task):
        if opening.kind == "gradient" and opening.step > killed_at:
            # With two miners one batch was leased to the dead one first, in every step.
            assert [(credit.miner, credit.batches) for credit in opening.credits] == [(survivor, 2)]
    fleet.up("node2")
    fleet.wait_agreement(NAMES)
    fleet.wait_recomputed(task, NAMES)
    check_paid_once(fleet, task, before)


def _when_an_opening_is_pending(fleet: Fleet, task: str) -> None:
    """Signed and stored, but on no chain yet."""
    poll(lambda: bool(OPENINGS & set(fleet.get_pending("node1").values())), "a new opening")


def _when_a_step_begins(fleet: Fleet, task: str) -> None:
    """Bundles are being computed, claimed and checked."""
    fleet.wait_step(task, fleet.get_summary("node4", task).step + 1)


def _some_time_later(fleet: Fleet, task: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed of the moment: {seed}")
    _when_a_step_begins(fleet, task)
    reads = random.Random(seed).randrange(40)
    for _ in range(reads):
        fleet.get_status("node1")


@pytest.mark.slow
def test_a_killed_custody_goes_on_and_repeats_what_it_had_signed(fleet: Fleet) -> None:
    moments: list[Callable[[Fleet, str], None]] = [
        _when_an_opening_is_pending,
        _some_time_later,
        _when_an_opening_is_pending,
        _when_a_step_begins,
    ]
    before = fleet.count_money("node4")
    task = fleet.publish(SLOW)
    signed: Opened = {}
    waiting: set[str] = set()
    for moment in moments:
        moment(fleet, task)
        pending = {key for key, kind in fleet.get_pending("node1").items() if kind in OPENINGS}
        fleet.kill("node1")
        stored = read_stored_openings(fleet, task)
        # Whatever others have heard of, or could have, was on its disk first.
        assert read_chain_openings(fleet, task).items() <= stored.items()
        assert pending <= set(stored.values())
        assert signed.items() <= stored.items()
        signed |= stored
        waiting |= pending
        fleet.check_ledger("node1")
        fleet.up("node1")
    print(f"{len(signed)} openings signed before a kill, {len(waiting)} of them on no chain then")
    assert waiting
    fleet.wait_complete(task)
    fleet.wait_agreement(NAMES)
    for name in ("node2", "node4"):
        final = read_chain_openings(fleet, task, name)
        assert signed.items() <= final.items()
    fleet.wait_recomputed(task, NAMES)
    check_paid_once(fleet, task, before)


def test_a_node_killed_as_blocks_arrive_reopens_consistent_and_catches_up(fleet: Fleet) -> None:
    seed = random.randrange(2**32)
    print(f"seed of the delays: {seed}")
    choose = random.Random(seed)
    receiver = Address(choose.randbytes(32))
    sent = 0
    for amount in range(1, 4):
        height = fleet.get_status("node4").head.height
        client = fleet.operate("node2")
        for _ in range(20):
            client.call(client.api.sign_and_submit(Transfer(receiver, Amount(amount))))
            sent += amount
        poll(lambda height=height: fleet.get_status("node4").head.height > height, "a block")  # type: ignore[misc]
        for _ in range(choose.randrange(30)):
            seen = fleet.get_status("node4").head.height
        seen = fleet.get_status("node4").head.height
        fleet.kill("node4")
        assert fleet.check_ledger("node4") >= seen  # it tells nobody of a block before it is stored
        fleet.up("node4")
    fleet.wait_agreement(NAMES)
    # The sender holds them until they are included; a node back from its kill may not have heard of them yet.
    poll(lambda: not fleet.get_pending("node2"), "all transfers are included")
    fleet.wait_agreement(NAMES)
    client = fleet.api("node4")
    assert client.call(client.api.get_account(receiver.hex())).balance == sent


@pytest.mark.slow
def test_everything_restarts_and_continues(fleet: Fleet) -> None:
    """All nodes stopped in order, later all killed at once, in the middle of a task."""
    before = fleet.count_money("node4")
    task = fleet.publish(SHORT)
    for how in (lambda: fleet.down(*NAMES), lambda: fleet.kill(*NAMES)):
        fleet.wait_step(task, fleet.get_summary("node4", task).step + 1)
        openings = read_chain_openings(fleet, task)
        blocks = fleet.get_head_chain("node4")[:-1]
        how()  # type: ignore[no-untyped-call]
        assert not any(get_pid(fleet.testnet.get_directory(name)) for name in NAMES)
        for name in NAMES:
            assert fleet.check_ledger(name) >= len(blocks) - 1
        fleet.up(*NAMES)
        # The very last block may have lost against another at its height meanwhile.
        assert fleet.get_head_chain("node4")[: len(blocks)] == blocks
        assert openings.items() <= read_chain_openings(fleet, task).items()
    fleet.wait_complete(task)
    fleet.wait_agreement(NAMES)
    fleet.wait_recomputed(task, NAMES)
    check_paid_once(fleet, task, before)
