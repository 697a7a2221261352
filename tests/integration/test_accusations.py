"""Evidence by recomputation over the real network, with real ciphertexts: one validator that accuses falsely
gets nothing done; a custody that opens a loss which does not recompute loses its task and its bond."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from consensus.crypto import hash_domain
from consensus.evidence import compute_accusation_id
from consensus.payload import WrongBundle
from consensus.state import TaskStatus
from consensus.task import Claim, OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction
from consensus.work import LossCheck
from node.accuser import accuse
from node.custody import Custody
from tests.integration.hostile_mining import mining
from tests.integration.material import BATCH_FEE, BATCHES, BOND, Material
from tests.integration.rig import MAX_BALANCE, Rig, wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

OTHER = hash_domain("test", b"other")
HOSPITALS = ("node2", "node3", "node4")
LIE_FROM = 2
"""The first step whose loss is opened with a hash that nothing recomputes to."""


class LyingCustody(Custody):
    """Opens losses of ciphertexts that do not exist, and makes its own node believe them."""

    def _store_opening(self, kind: str, opening: OpenGradient | OpenLoss) -> SignedTransaction:
        if isinstance(opening, OpenLoss) and opening.step >= LIE_FROM:
            opening = replace(opening, ciphertext=OTHER)
            tip = self._core.get_tip(opening.task)
            assert tip is not None
            self._core.work.verdicts.remember(
                LossCheck(opening.task, opening.step, tip.state.weights), opening.ciphertext
            )
        return super()._store_opening(kind, opening)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(material: Material, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """A custody whose service the tests bring, and three hospitals; an open task that nobody completes."""
    made = Rig.make(tmp_path_factory.mktemp("accusations") / "rig", 4)
    made.set_roles("node1", "validator")
    for name in ("node1", *HOSPITALS):
        await made.start(name)
    try:
        await made.publish(material, 0.001)
        yield made
    finally:
        await made.stop()


async def test_false_accusations_and_a_lying_custody(rig: Rig, tmp_path: Path) -> None:
    custody, hospital = rig.nodes["node1"], rig.nodes["node2"].core
    accusation = await lie_until_closed(rig, tmp_path)
    state = rig.get_state("node3")
    record = state.get_accusation(compute_accusation_id(accusation))
    assert record is not None
    assert record.signers == (rig.nodes["node4"].core.address,)
    assert not record.took_effect
    assert state.get_suspended() == ()
    assert state.may_account_mine(hospital.address)

    openings = hospital.get_openings(rig.task)
    lies = [opening for opening in openings if isinstance(opening, OpenLoss) and opening.ciphertext == OTHER]
    assert lies
    fees = BATCH_FEE * BATCHES * sum(isinstance(opening, OpenGradient) for opening in openings)
    assert fees > 0
    assert state.get_account(hospital.address).balance == MAX_BALANCE + fees
    assert state.get_account(custody.core.address).balance == MAX_BALANCE - fees - BOND
    assert state.get_charter().treasury == BOND
    assert state.get_locks() == ()


async def lie_until_closed(rig: Rig, directory: Path) -> WrongBundle:
    """node2 mines, node4 accuses it falsely, node1 lies about losses; the false accusation, once the task is
    closed everywhere."""
    custody = rig.nodes["node1"]
    lying = asyncio.create_task(LyingCustody(custody.core, custody.config.data_dir, 1).run())
    try:
        async with mining(rig, directory):
            accusation = await accuse_falsely(rig)
            await wait_until(
                lambda: all(rig.get_task(name).status is TaskStatus.CLOSED for name in rig.nodes),
                "the task is closed",
            )
    finally:
        lying.cancel()
        await asyncio.gather(lying, return_exceptions=True)
    await rig.wait_agreement()
    return accusation


async def accuse_falsely(rig: Rig) -> WrongBundle:
    """One validator says of an honest claim that it is wrong; the others compute the bundle and disagree."""
    liar = rig.nodes["node4"].core

    def find_claims() -> list[Claim]:
        return liar.claims.get_for(rig.task, 0, 0)

    await wait_until(lambda: bool(find_claims()), "the first claim comes")
    accusation = WrongBundle(find_claims()[0], OTHER)
    assert accuse(liar, accusation)
    ledgers = [rig.nodes[name].core.chain.ledger for name in ("node1", "node2", "node3")]
    await wait_until(
        lambda: all(list(ledger.iterate_records(b"dismissed/")) for ledger in ledgers),
        "everyone has found the accusation false",
    )
    return accusation
