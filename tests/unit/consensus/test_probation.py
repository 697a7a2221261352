"""Leave-one-out after a rejected round: who is found, and who can't be framed."""

from dataclasses import replace

import pytest

from consensus.crypto import SigningKey
from consensus.errors import Reason
from consensus.federation_rounds import order_probation
from consensus.federations import FederationStatus, Participant, RoundOutcome
from consensus.types import Address
from tests.unit.consensus.federated import HOSPITALS, Rounds
from tests.unit.consensus.test_federation import refuse
from tests.unit.consensus.world import OUTSIDER, World, build_genesis

GOOD, BAD = 990, 1_500
"""Losses after a round; before it 1000, with a slack of 5."""
FOUR = (*HOSPITALS, OUTSIDER)
LISTED = tuple(key.address for key in HOSPITALS)


def get_key(address: Address | None) -> SigningKey:
    return next(key for key in HOSPITALS if key.address == address)


def run_probation(rounds: Rounds, poisoner: SigningKey | None) -> list[Address]:
    """Rounds as long as one is left out; spoiled wherever the poisoner takes part. Who was left out."""
    turns = []
    while rounds.current.left_out is not None:
        left_out = rounds.current.left_out
        turns.append(left_out)
        is_spoiled = poisoner is None or left_out != poisoner.address
        rounds.run_round(after=BAD if is_spoiled else GOOD)
    return turns


@pytest.mark.parametrize("poisoner", HOSPITALS)
def test_who_spoils_every_round_is_found_and_out(poisoner: SigningKey) -> None:
    rounds = Rounds().create()
    rounds.run_round(after=BAD)
    order = order_probation(rounds.federation, 0, LISTED)
    assert rounds.record.accused == LISTED
    assert (rounds.current.left_out, *rounds.record.probation) == order
    assert tuple(run_probation(rounds, poisoner)) == order
    assert rounds.record.suspects == (poisoner.address,)
    assert (rounds.record.accused, rounds.record.probation) == ((), ())
    assert rounds.record.accepted == 1
    assert refuse(rounds, rounds.build_submit(poisoner)) is Reason.UPDATE_PARTICIPANT
    rounds.run_round(after=GOOD, keys=[key for key in HOSPITALS if key is not poisoner])
    assert rounds.record.accepted == 2


def test_nobody_is_out_where_no_round_is_better() -> None:
    rounds = Rounds().create()
    rounds.run_round(after=BAD)
    assert len(run_probation(rounds, None)) == 3
    assert (rounds.record.suspects, rounds.record.accused) == ((), ())
    assert rounds.record.openings == 4


def test_who_behaves_while_another_is_left_out_frames_nobody() -> None:
    """Two rounds are accepted then, that of the framed one and that of the poisoner: nobody is blamed."""
    rounds = Rounds().create()
    rounds.run_round(after=BAD)
    poisoner = get_key(order_probation(rounds.federation, 0, LISTED)[1])
    rounds.run_round(after=GOOD)
    assert rounds.current.left_out == poisoner.address
    assert rounds.record.suspects == ()
    rounds.run_round(after=GOOD)
    assert (rounds.record.suspects, rounds.record.accused, rounds.current.left_out) == ((), (), None)


def test_a_round_of_probation_that_lapses_ends_it() -> None:
    rounds = Rounds().create()
    rounds.run_round(after=BAD)
    rounds.submit([key for key in HOSPITALS if key.address != rounds.current.left_out][:1])
    rounds.close()
    assert rounds.get_ended(1).outcome is RoundOutcome.LAPSED
    assert (rounds.record.suspects, rounds.record.accused, rounds.current.left_out) == ((), (), None)


def build_four(**changes: object) -> Rounds:
    """With a hospital more: the outsider's clinic."""
    genesis = build_genesis()
    accounts = tuple(
        replace(item, organisation="clinic") if item.address == OUTSIDER.address else item
        for item in genesis.accounts
    )
    addresses = sorted(key.address for key in FOUR)
    members = tuple(Participant(address, 1) for address in addresses)
    world = World(replace(genesis, accounts=accounts))
    return Rounds(world).create(participants=members, **changes)


def test_an_accepted_round_that_another_one_missed_proves_nothing() -> None:
    """It may have been accepted because that one was not there."""
    rounds = build_four()
    rounds.run_round(after=BAD, keys=FOUR)
    present = [key for key in FOUR if key.address != rounds.current.left_out]
    rounds.run_round(after=GOOD, keys=present[:2])
    assert rounds.get_ended(1).outcome is RoundOutcome.ACCEPTED
    assert (rounds.record.suspects, rounds.record.accused, rounds.current.left_out) == ((), (), None)


def test_who_is_not_on_the_rejected_list_waits_for_the_end_of_probation() -> None:
    """What it sends would change what the rounds say of the others."""
    rounds = build_four()
    rounds.run_round(after=BAD, keys=HOSPITALS)
    assert rounds.current.left_out is not None
    assert refuse(rounds, rounds.build_submit(OUTSIDER)) is Reason.UPDATE_PARTICIPANT


def test_whom_a_round_leaves_out_may_not_submit() -> None:
    rounds = Rounds().create()
    rounds.run_round(after=BAD)
    left_out = get_key(rounds.current.left_out)
    assert refuse(rounds, rounds.build_submit(left_out)) is Reason.UPDATE_PARTICIPANT


def test_of_the_fewest_allowed_nobody_can_be_left_out() -> None:
    rounds = Rounds().create()
    rounds.run_round(after=BAD, keys=HOSPITALS[:2])
    assert (rounds.record.accused, rounds.current.left_out) == ((), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_std": 0},
        {"min_participants": 3},
        {"rounds": 3, "max_openings": 3},
        {"max_openings": 3},
    ],
)
def test_no_probation_that_leads_to_nothing(changes: dict[str, object]) -> None:
    rounds = Rounds().create(**changes)
    rounds.run_round(after=BAD)
    assert (rounds.record.accused, rounds.current.left_out) == ((), None)
    assert rounds.record.status is FederationStatus.RUNNING


def test_the_deadline_ends_probation_too() -> None:
    rounds = Rounds().create()
    rounds.run_round(after=BAD)
    rounds.submit([key for key in HOSPITALS if key.address != rounds.current.left_out])
    rounds.close()
    deadline = rounds.record.create.deadline
    rounds.world.carry(rounds.build_settle(), after=deadline + 1 - rounds.world.header.time)
    assert (rounds.record.status, rounds.record.accused) == (FederationStatus.ENDED, ())
