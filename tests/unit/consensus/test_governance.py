"""Governance: what a quorum may change, and how a new validator set takes over."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from consensus.crypto import SigningKey
from consensus.errors import InvalidTransaction, Reason
from consensus.governance import sign_governance
from consensus.params import Validator
from consensus.payload import (
    Action,
    Govern,
    Governance,
    Grant,
    Reinstate,
    SetMiningOrganisations,
    SetOrganisation,
    SetValidators,
)
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from consensus.types import Amount
from tests.unit.consensus.test_evidence import build_double
from tests.unit.consensus.world import COLLEAGUE, CUSTODY, MINER_A, MINER_B, OUTSIDER, VALIDATORS, World

THREE = (CUSTODY, COLLEAGUE, MINER_A)


def build(
    world: World, action: Action, signers: Sequence[SigningKey] = THREE, sequence: int | None = None
) -> SignedTransaction:
    if sequence is None:
        sequence = world.state.get_charter().sequence
    governance = Governance(sequence, action)
    approvals = (sign_governance(key, world.chain_id, governance) for key in signers)
    payload = Govern(governance, tuple(sorted(approvals, key=lambda item: item.validator)))
    return world.sign(OUTSIDER, payload)


def refuse(world: World, transaction: SignedTransaction) -> Reason:
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context())
    return caught.value.reason


def list_validators(**stakes: int) -> SetValidators:
    keys = {"custody": CUSTODY, "colleague": COLLEAGUE, "a": MINER_A, "b": MINER_B, "outsider": OUTSIDER}
    return SetValidators(tuple(Validator(keys[name].address, stake) for name, stake in stakes.items()))


# --- signatures -------------------------------------------------------------------------------


def test_a_change_needs_a_quorum_of_valid_signatures_once() -> None:
    world = World()
    action = SetMiningOrganisations(("lab-a",))
    assert refuse(world, build(world, action, THREE[:2])) == Reason.GOVERN_QUORUM
    assert refuse(world, build(world, action, (*THREE[:2], OUTSIDER))) == Reason.GOVERN_QUORUM
    assert refuse(world, build(world, action, sequence=1)) == Reason.GOVERN_FUTURE
    good = build(world, action)
    payload = good.payload
    assert isinstance(payload, Govern)
    doubled = replace(payload, approvals=(payload.approvals[0], *payload.approvals))
    assert refuse(world, world.sign(OUTSIDER, doubled)) == Reason.GOVERN_APPROVALS
    altered = replace(payload, governance=replace(payload.governance, action=SetMiningOrganisations(())))
    assert refuse(world, world.sign(OUTSIDER, altered)) == Reason.GOVERN_SIGNATURE
    world.carry(good)
    assert world.state.get_mining_organisations() == ("lab-a",)
    assert refuse(world, good) == Reason.GOVERN_REPEATED


def test_organisations_of_accounts() -> None:
    world = World()
    world.carry(build(world, SetOrganisation(OUTSIDER.address, "lab-a")))
    assert world.state.may_account_mine(OUTSIDER.address)
    assert OUTSIDER.address in world.state.get_mining_accounts()
    world.carry(build(world, SetOrganisation(OUTSIDER.address, "")))
    assert not world.state.may_account_mine(OUTSIDER.address)
    assert OUTSIDER.address not in world.state.get_members()


@pytest.mark.parametrize(
    "action",
    [
        SetMiningOrganisations(("",)),
        SetMiningOrganisations(("lab-a", "lab-a")),
        SetValidators(()),
        SetValidators((Validator(CUSTODY.address, 0),)),
        SetValidators((Validator(CUSTODY.address, 10), Validator(CUSTODY.address, 10))),
        SetOrganisation(OUTSIDER.address, "x" * 201),
        Reinstate("lab-a"),
        Grant(OUTSIDER.address, Amount(1)),
    ],
)
def test_senseless_changes_are_refused(action: Action) -> None:
    world = World()
    assert refuse(world, build(world, action)) == Reason.GOVERN_FIELD


# --- validator sets ---------------------------------------------------------------------------


def test_a_new_set_takes_over_when_its_change_is_final() -> None:
    world = World()
    money = world.count_money()
    action = list_validators(custody=10, colleague=10, a=10, outsider=30)
    world.carry(build(world, action, (*THREE, OUTSIDER)))
    assert world.state.get_account(OUTSIDER.address).balance == 1_000_000 - 30
    assert world.count_money() == money
    world.carry()
    assert world.state.get_validator_set().number == 0
    world.carry()
    assert world.state.get_validator_set().number == 1
    assert world.state.get_validators() == action.validators
    assert world.state.get_pending_set() is None
    # The leaver's stake stays within reach of evidence for a while.
    (lock,) = world.state.get_locks()
    assert (lock.owner, lock.amount) == (MINER_B.address, 10)
    assert world.count_money() == money
    before = world.state.get_account(MINER_B.address).balance
    world.carry_by_turn(after=world.params.evidence_ms)
    assert world.state.get_account(MINER_B.address).balance == before + 10
    assert world.count_money() == money


def test_the_first_link_across_a_change_needs_both_sets() -> None:
    """Blocks: 1 the change, 2, 3 (final: 1, new set active), 4 is the first whose votes cross."""
    old, new = VALIDATORS, (CUSTODY, OUTSIDER)

    def advance() -> World:
        world = World()
        world.carry(build(world, list_validators(custody=10, outsider=100), (*THREE, OUTSIDER)))
        world.carry()
        world.carry()
        assert world.state.get_validator_set().number == 1
        return world

    for voters, expected in ((old, 2), (new, 2), ((CUSTODY, OUTSIDER, COLLEAGUE, MINER_A), 3)):
        world = advance()
        world.carry_by_turn(votes=world.build_votes(voters))
        assert world.state.get_finality().justified.height == expected
    # From there on the new set alone counts.
    world.carry_by_turn(votes=world.build_votes(new))
    assert world.state.get_finality().justified.height == 4
    assert world.state.get_finality().finalized.height == 3


def test_one_change_of_set_at_a_time() -> None:
    world = World()
    world.carry(build(world, list_validators(custody=5, colleague=10, a=10)))
    later = build(world, list_validators(custody=5, colleague=5, a=10))
    assert refuse(world, later) == Reason.GOVERN_PENDING
    world.carry()
    world.carry()
    world.carry_by_turn(build(world, list_validators(custody=5, colleague=5, a=10)))
    assert world.state.get_pending_set() is not None


def test_nobodys_money_is_locked_without_its_signature_and_balance() -> None:
    world = World()
    more = list_validators(custody=10, colleague=10, a=10, b=11)
    assert refuse(world, build(world, more)) == Reason.GOVERN_CONSENT
    rich = list_validators(custody=10, colleague=10, a=10, outsider=1_000_001)
    assert refuse(world, build(world, rich, (*THREE, OUTSIDER))) == Reason.TX_BALANCE


def test_evidence_reaches_deposits_and_leavers() -> None:
    """A validator that is on its way out, and one on its way in, lose all the same."""
    world = World()
    money = world.count_money()
    action = list_validators(custody=10, colleague=10, a=10, outsider=30)
    world.carry(build(world, action, (*THREE, OUTSIDER)))
    world.carry(world.sign(MINER_A, build_double(world, OUTSIDER)))
    assert world.state.get_charter().treasury == 30
    world.carry()
    assert [member.address for member in world.state.get_validators()] == [
        CUSTODY.address,
        COLLEAGUE.address,
        MINER_A.address,
    ]
    world.carry_by_turn(world.sign(MINER_A, build_double(world, MINER_B)))
    assert world.state.get_charter().treasury == 40
    assert world.state.get_locks() == ()
    assert world.count_money() == money
    again = list_validators(custody=10, colleague=10, a=10, outsider=30)
    assert refuse(world, build(world, again, (*THREE, OUTSIDER))) == Reason.GOVERN_JAILED


def test_the_treasury_is_granted_by_the_quorum() -> None:
    world = World()
    money = world.count_money()
    world.carry(world.sign(OUTSIDER, build_double(world, MINER_B)))
    before = world.state.get_account(OUTSIDER.address).balance
    world.carry_by_turn(build(world, Grant(OUTSIDER.address, Amount(4))))
    assert world.state.get_charter().treasury == 6
    assert world.state.get_account(OUTSIDER.address).balance == before + 4
    assert world.count_money() == money
    assert refuse(world, build(world, Grant(OUTSIDER.address, Amount(7)))) == Reason.GOVERN_FIELD
