"""A hostile miner of a listed organisation against a custody and an honest miner, over the real network:
its claims are refused, nothing of it is opened, the honest miner's later claims are credited, and its
organisation is suspended once every validator has computed the same."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from consensus.claims import sign_claim
from consensus.crypto import SigningKey, hash_domain
from consensus.task import BlobRef, OpenGradient
from node.claims import compute_claim_id
from node.gossip.limits import Fault
from tests.integration.hostile_mining import MISSING, claim_wrong_bundles, mine_to_the_end, wait_suspended
from tests.integration.material import BATCHES, BOND, PRESET, REWARD, SPEC, Material
from tests.integration.rig import MAX_BALANCE, Mallory, Rig, wait_until
from workloads.fusion import WORKLOAD

pytestmark = pytest.mark.asyncio(loop_scope="module")

MALLORY = "node3"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(material: Material, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """Custody and one hospital; the task is met by the first steps' loss."""
    made = Rig.make(tmp_path_factory.mktemp("claims") / "rig", 3)
    for name in ("node1", "node2"):
        await made.start(name)
    try:
        await made.publish(material, 0.035)
        yield made
    finally:
        await made.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mallory(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mallory]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(Mallory(rig, MALLORY, tmp_path_factory.mktemp("mallory")))


async def test_claims_for_something_else_are_not_kept(rig: Rig, mallory: Mallory) -> None:
    """Another task, step, batch, chain, name or organisation; a proper one shows that all were judged."""
    core = rig.nodes["node1"].core
    bundle = BlobRef(MISSING, WORKLOAD.get_sizes(PRESET, SPEC.encode()).bundle)
    stranger = SigningKey(b"s" * 32)
    honest = rig.nodes["node2"].core.address
    unblamed = [
        mallory.build_claim(0, bundle, task=hash_domain("test", b"other task")),
        mallory.build_claim(0, bundle, step=5),
        sign_claim(stranger, mallory.chain_id, rig.task, 0, 0, bundle),
    ]
    for claim in unblamed:
        mallory.claim(claim)
    proper = mallory.build_claim(2, bundle)
    proper_id = mallory.claim(proper)
    await wait_until(lambda: core.claims.get(proper_id) is not None, "the proper claim is kept")
    assert not any(core.claims.get(compute_claim_id(claim)) for claim in unblamed)
    assert mallory.get_score() == 0

    forged = [
        mallory.build_claim(BATCHES, bundle),
        replace(mallory.build_claim(0, bundle), miner=honest),
        sign_claim(mallory.key, MISSING, rig.task, 0, 0, bundle),
    ]
    for number, claim in enumerate(forged, start=1):
        mallory.claim(claim)
        least = Fault.INVALID_OBJECT.points * number - 15
        await wait_until(partial(is_blamed, mallory, least), "the forged claim is blamed")
        assert core.claims.get(compute_claim_id(claim)) is None
    assert not mallory.is_banned()


def is_blamed(mallory: Mallory, least: float) -> bool:
    return mallory.get_score() > least


async def test_a_miner_has_one_claim_for_a_batch(rig: Rig, mallory: Mallory) -> None:
    core = rig.nodes["node1"].core
    first = core.claims.get_for(rig.task, 0, 2)
    again = [mallory.build_claim(2, BlobRef(hash_domain("test", bytes([i])), 1000)) for i in range(5)]
    for claim in again:
        mallory.claim(claim)
    other = mallory.build_claim(2, BlobRef(MISSING, 10), step=1)
    other_id = mallory.claim(other)
    await wait_until(lambda: core.claims.get(other_id) is not None, "a later claim is kept")
    assert core.claims.get_for(rig.task, 0, 2) == first


async def test_wrong_bundles_earn_nothing_and_the_honest_miner_is_credited(
    rig: Rig, mallory: Mallory, material: Material, tmp_path: Path
) -> None:
    """Another batch's right bundle is refused, and later credited to the honest miner for its own batch."""
    custody, hospital = rig.nodes["node1"].core, rig.nodes["node2"].core
    right, wrong = await claim_wrong_bundles(rig, mallory, material, tmp_path)
    await mine_to_the_end(rig, tmp_path)
    await wait_suspended(rig, mallory)
    openings = [o for o in custody.get_openings(rig.task) if isinstance(o, OpenGradient)]
    assert {claim.miner for opening in openings for claim in opening.claims} == {hospital.address}
    assert right.root in {claim.bundle.root for claim in openings[0].claims}
    state = rig.get_state("node2")
    assert state.get_account(mallory.key.address).balance == MAX_BALANCE
    fees = 3 * BATCHES * len(openings)
    assert state.get_account(hospital.address).balance == MAX_BALANCE + REWARD + fees
    assert not state.may_account_mine(mallory.key.address)
    assert state.may_account_mine(hospital.address)
    # The bond is locked as long as there may be evidence.
    assert state.get_account(custody.address).balance == MAX_BALANCE - REWARD - fees - BOND
    assert [(lock.task, lock.amount) for lock in state.get_locks()] == [(rig.task, BOND)]
    # Nothing of what was refused is kept on the custody's disk.
    assert custody.blobs.get_path(wrong.root) is None
