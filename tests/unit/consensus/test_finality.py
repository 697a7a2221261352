"""Casper FFG on one branch: what justifies, what finalises, which votes count, which one is signed."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from consensus.crypto import SigningKey
from consensus.errors import InvalidBlock, Reason
from consensus.finality import choose_vote, get_stall_delay, is_finality_wanted, is_quorum
from consensus.types import Height, Signature
from consensus.vote import NOTHING_SIGNED, Checkpoint, SignState, Vote, is_slashable, sign_vote
from tests.unit.consensus.world import COLLEAGUE, CUSTODY, MINER_A, MINER_B, OUTSIDER, VALIDATORS, World

THREE = (CUSTODY, MINER_A, MINER_B)
TWO = (MINER_A, MINER_B)


def get_heights(world: World) -> tuple[int, int]:
    finality = world.state.get_finality()
    return finality.justified.height, finality.finalized.height


def refuse_votes(world: World, votes: Sequence[Vote]) -> Reason | None:
    """Why a block on the head with these votes is refused."""
    block = world.build_carrier(votes=())
    forged = world.forge(block, body=replace(block.body, votes=tuple(votes)))
    with pytest.raises(InvalidBlock) as caught:
        world.validate(forged)
    assert caught.value.reason == Reason.B8_VOTES
    return caught.value.cause


def test_a_block_is_final_two_blocks_later() -> None:
    world = World()
    world.carry(world.transfer(OUTSIDER, MINER_A, 1))
    assert get_heights(world) == (0, 0)
    world.carry()
    assert get_heights(world) == (1, 0)
    world.carry()
    assert get_heights(world) == (2, 1)
    assert not is_finality_wanted(world.state)


@pytest.mark.parametrize(("voters", "is_enough"), [(VALIDATORS, True), (THREE, True), (TWO, False)])
def test_two_thirds_of_stake_justify(voters: tuple[SigningKey, ...], is_enough: bool) -> None:
    world = World()
    world.carry(votes=())
    world.carry(votes=world.build_votes(voters))
    assert get_heights(world) == (int(is_enough), 0)


@pytest.mark.parametrize(
    ("stake", "total", "expected"), [(2, 3, True), (66, 100, False), (67, 100, True), (0, 1, False)]
)
def test_quorum(stake: int, total: int, expected: bool) -> None:
    assert is_quorum(stake, total) is expected


def test_votes_add_up_over_blocks() -> None:
    world = World()
    world.carry(votes=())
    first = world.build_votes()
    world.carry(votes=first[:1])
    world.carry(votes=first[1:2])
    record = world.state.get_checkpoint(1)
    assert record is not None
    assert record.voters == (CUSTODY.address, COLLEAGUE.address)
    assert get_heights(world) == (0, 0)
    world.carry(votes=first[2:3])
    assert get_heights(world) == (1, 0)


def test_a_link_over_unjustified_blocks_justifies_but_finalises_nothing_below() -> None:
    world = World()
    world.carry(votes=())
    gap = world.build_votes()
    world.carry(votes=())
    world.carry()  # votes for block 2, whose source is genesis: block 1 lies between
    assert get_heights(world) == (2, 0)
    world.carry()
    assert get_heights(world) == (3, 2)
    # What was missing between the ends can only be filled while it is not below the final block.
    assert refuse_votes(world, gap) == Reason.VOTE_FINAL


def test_filling_a_gap_finalises_the_source_of_the_link_over_it() -> None:
    world = World()
    world.carry(votes=())
    world.carry()
    assert get_heights(world) == (1, 0)
    world.carry(votes=())
    gap = world.build_votes()  # 1 -> 3 is signed by none; 3 waits
    world.carry(votes=())
    world.carry()  # 1 -> 4
    assert get_heights(world) == (4, 0)
    record = world.state.get_checkpoint(2)
    assert record is not None
    assert not record.is_justified
    world.carry(votes=gap)  # 1 -> 3; 2 is still missing
    assert get_heights(world)[1] == 0


def test_records_below_the_final_block_are_dropped() -> None:
    world = World()
    for _ in range(6):
        world.carry()
    assert get_heights(world) == (5, 4)
    assert [height for height in range(7) if world.state.get_checkpoint(height)] == [4, 5]


# --- votes that do not count ------------------------------------------------------------------


def test_wrong_votes_make_a_block_invalid() -> None:
    world = World()
    for _ in range(3):
        world.carry()
    good = world.build_votes()[0]
    other = Checkpoint(good.target.height, world.chain_id)
    lower = Checkpoint(Height(1), world.chain_id)

    def sign(source: Checkpoint, target: Checkpoint, key: SigningKey = CUSTODY) -> Vote:
        return sign_vote(key, world.chain_id, source, target)

    ahead = Checkpoint(Height(good.target.height + 1), good.target.hash)
    assert refuse_votes(world, [replace(good, signature=Signature(bytes(64)))]) == Reason.VOTE_SIGNATURE
    assert refuse_votes(world, [replace(good, validator=MINER_A.address)]) == Reason.VOTE_SIGNATURE
    assert refuse_votes(world, [sign(good.source, other)]) == Reason.VOTE_TARGET
    assert refuse_votes(world, [sign(good.source, ahead)]) == Reason.VOTE_TARGET
    assert refuse_votes(world, [sign(lower, good.target)]) == Reason.VOTE_SOURCE
    assert refuse_votes(world, [sign(good.source, good.target, OUTSIDER)]) == Reason.VOTE_VALIDATOR
    assert refuse_votes(world, [good, good]) == Reason.VOTE_KNOWN
    three = world.build_votes(THREE)
    late = world.build_votes((COLLEAGUE,))
    assert refuse_votes(world, [*three, *late]) == Reason.VOTE_JUSTIFIED


def test_votes_of_another_chain_do_not_count() -> None:
    here = World()
    here.carry(votes=())
    vote = here.build_votes()[0]
    foreign = sign_vote(CUSTODY, OUTSIDER.address, vote.source, vote.target)
    assert refuse_votes(here, [foreign]) == Reason.VOTE_SIGNATURE


# --- what an honest validator signs -----------------------------------------------------------


def test_an_honest_validator_votes_for_rising_heights_only() -> None:
    world = World()
    world.carry(world.transfer(OUTSIDER, MINER_A, 1))
    link = choose_vote(world.state, world.head, CUSTODY.address, NOTHING_SIGNED)
    assert link is not None
    assert link[1] == world.head
    vote = sign_vote(CUSTODY, world.chain_id, *link)
    signed = NOTHING_SIGNED.after(vote)
    assert choose_vote(world.state, world.head, CUSTODY.address, signed) is None
    assert choose_vote(world.state, world.head, OUTSIDER.address, NOTHING_SIGNED) is None
    ahead = SignState(Height(1), Height(0))
    assert choose_vote(world.state, world.head, CUSTODY.address, ahead) is None


def test_nothing_is_signed_while_nothing_waits_to_be_final() -> None:
    world = World()
    world.carry(votes=())
    assert choose_vote(world.state, world.head, CUSTODY.address, NOTHING_SIGNED) is None
    world.carry(world.transfer(OUTSIDER, MINER_A, 1), votes=())
    assert choose_vote(world.state, world.head, CUSTODY.address, NOTHING_SIGNED) is not None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 1), (0, 1), False),
        ((0, 2), (1, 2), True),
        ((0, 3), (1, 2), True),
        ((1, 2), (0, 3), True),
        ((0, 2), (1, 3), False),
        ((0, 2), (2, 3), False),
        ((1, 3), (1, 2), False),
    ],
)
def test_slashable_pairs(a: tuple[int, int], b: tuple[int, int], expected: bool) -> None:
    def build(link: tuple[int, int]) -> Vote:
        source, target = (Checkpoint(Height(height), OUTSIDER.address) for height in link)
        return sign_vote(CUSTODY, OUTSIDER.address, source, target)

    assert is_slashable(build(a), build(b)) is expected
    assert not is_slashable(build(a), replace(build(b), validator=MINER_A.address))


def test_idle_blocks_that_bring_finality_no_nearer_become_rarer() -> None:
    world = World()
    world.carry(world.transfer(OUTSIDER, MINER_A, 1), votes=())
    delays = []
    for _ in range(8):
        delays.append(get_stall_delay(world.state, world.head, world.params))
        world.carry(votes=())
    assert delays == [1_500 * 2**n for n in (1, 2, 3, 4, 5, 5, 5, 5)]
