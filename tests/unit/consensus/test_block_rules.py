"""Rules B1 to B9: a forged block is refused with the rule's own reason, and the chain goes on."""

from collections.abc import Callable
from dataclasses import replace

import msgpack
import pytest

from consensus.block import Block
from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.errors import Held, InvalidBlock, Reason
from consensus.identifiers import compute_chain_id
from consensus.types import MAX_TIME_MS, ZERO_HASH, Height, Millis, Signature
from consensus.validation import validate_block
from consensus.vote import Checkpoint, Vote, sign_vote
from tests.unit.consensus.world import (
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    START,
    VERIFIER,
    World,
    build_genesis,
)


@pytest.fixture
def world() -> World:
    world = World()
    world.carry(world.transfer(OUTSIDER, MINER_A, 5))
    return world


Forge = Callable[[World, Block], Block]


def _set(**header: object) -> Forge:
    return lambda world, block: world.forge(block, **header)


def _set_parent_time(after: int) -> Forge:
    return lambda world, block: world.forge(block, time=Millis(world.header.time + after))


def _sign_as_other(world: World, block: Block) -> Block:
    signed = world.forge(block, key=OUTSIDER)
    return Block(block.header, signed.signature, block.body)


def _break_signature(world: World, block: Block) -> Block:
    return replace(block, signature=Signature(bytes(64)))


def _unsigned(world: World, block: Block) -> Block:
    return replace(block, signature=Signature(b""))


def _drop_transaction(world: World, block: Block) -> Block:
    return replace(block, body=replace(block.body, transactions=()))


GENESIS = Checkpoint(Height(0), ZERO_HASH)


def _build_stale_vote(world: World) -> Vote:
    """On genesis, which is final from the beginning."""
    return sign_vote(MINER_A, world.chain_id, GENESIS, Checkpoint(Height(0), world.chain_id))


def _add_vote(world: World, block: Block) -> Block:
    return replace(block, body=replace(block.body, votes=(*block.body.votes, _build_stale_vote(world))))


def _add_vote_with_root(world: World, block: Block) -> Block:
    return world.forge(block, body=replace(block.body, votes=(*block.body.votes, _build_stale_vote(world))))


def _add_invalid(world: World, block: Block) -> Block:
    extra = world.transfer(OUTSIDER, MINER_A, 10**9, nonce=2)
    return world.forge(block, body=replace(block.body, transactions=(*block.body.transactions, extra)))


def _double_transaction(world: World, block: Block) -> Block:
    (only,) = block.body.transactions
    return world.forge(block, body=replace(block.body, transactions=(only, only)))


def _too_many(world: World, block: Block) -> Block:
    count = world.params.max_transactions + 1
    return world.forge(block, body=replace(block.body, transactions=block.body.transactions * count))


FORGERIES: list[tuple[Forge, Reason, Reason | None]] = [
    (_too_many, Reason.B1_OVERSIZE, None),
    (_set(version=2), Reason.B2_VERSION, None),
    (_set(chain_id=hash_domain("test", b"other chain")), Reason.B2_CHAIN, None),
    (_set(height=9), Reason.B2_HEIGHT, None),
    (_set(height=0), Reason.B2_HEIGHT, None),
    (_set(parent=ZERO_HASH), Reason.B2_PARENT, None),
    (_set_parent_time(499), Reason.B3_EARLY, None),
    (_set_parent_time(0), Reason.B3_EARLY, None),
    (_set(time=MAX_TIME_MS + 1), Reason.B3_RANGE, None),
    (_sign_as_other, Reason.B4_SIGNATURE, None),
    (_break_signature, Reason.B4_SIGNATURE, None),
    (_unsigned, Reason.B4_SIGNATURE, None),
    (_drop_transaction, Reason.B5_TRANSACTIONS_ROOT, None),
    (_set(work_root=ZERO_HASH), Reason.B5_WORK_ROOT, None),
    (_add_vote, Reason.B5_VOTES_ROOT, None),
    (_add_invalid, Reason.B6_TRANSACTION, Reason.TX_BALANCE),
    (_double_transaction, Reason.B6_TRANSACTION, Reason.TX_NONCE),
    (_set_parent_time(1_499), Reason.B7_IDLE, None),
    (lambda world, block: world.forge(block, key=MINER_B), Reason.B7_TURN, None),
    (lambda world, block: world.forge(block, key=OUTSIDER), Reason.B7_TURN, None),
    (_set_parent_time(1_500 + 2_000), Reason.B7_TURN, None),
    (_add_vote_with_root, Reason.B8_VOTES, Reason.VOTE_FINAL),
    (_set(state_root=ZERO_HASH), Reason.B9_STATE_ROOT, None),
]


@pytest.mark.parametrize(("forge", "reason", "cause"), FORGERIES)
def test_forged_block_is_refused_with_its_reason(
    world: World, forge: Forge, reason: Reason, cause: Reason | None
) -> None:
    block = world.build_carrier(world.transfer(OUTSIDER, MINER_A, 7))
    before, money = world.state.root, world.count_money()
    with pytest.raises(InvalidBlock) as caught:
        world.validate(forge(world, block))
    assert (caught.value.reason, caught.value.cause) == (reason, cause)
    assert caught.value.peer_at_fault
    assert (world.state.root, world.count_money()) == (before, money)
    world.add(block)
    assert world.state.root != before


def test_valid_bytes_are_accepted(world: World) -> None:
    block = world.build_carrier(world.transfer(OUTSIDER, MINER_A, 7))
    assert world.validate(encode(block)).root == block.header.state_root


def test_non_canonical_bytes_are_refused(world: World) -> None:
    data = encode(world.build_carrier())
    # The same block with its version written in two bytes instead of one.
    assert data[:3] == b"\x93\x9a\x01"
    longer = b"\x93\x9a\xcc\x01" + data[3:]
    assert msgpack.unpackb(longer) == msgpack.unpackb(data)
    with pytest.raises(InvalidBlock) as caught:
        world.validate(longer)
    assert caught.value.reason == Reason.B1_NON_CANONICAL


@pytest.mark.parametrize("data", [b"", b"\x93", b"\xc1", b"\x93\xc0\xc0\xc0", b"\xdd\xff\xff\xff\xff"])
def test_malformed_bytes_are_refused(world: World, data: bytes) -> None:
    with pytest.raises(InvalidBlock) as caught:
        world.validate(data)
    assert caught.value.reason == Reason.B1_MALFORMED


def test_trailing_bytes_are_refused(world: World) -> None:
    with pytest.raises(InvalidBlock) as caught:
        world.validate(encode(world.build_carrier()) + b"\x00")
    assert caught.value.reason == Reason.B1_MALFORMED


def test_oversize_bytes_are_refused_before_they_are_decoded(world: World) -> None:
    with pytest.raises(InvalidBlock) as caught:
        world.validate(b"\xc1" * (world.params.max_body_bytes + 2_000))
    assert caught.value.reason == Reason.B1_OVERSIZE


def test_oversize_body_is_refused(world: World) -> None:
    block = world.build_carrier()
    forged = world.forge(block, body=replace(block.body, votes=(_build_stale_vote(world),) * 100))
    for form in (forged, encode(forged)):
        with pytest.raises(InvalidBlock) as caught:
            world.validate(form)
        assert caught.value.reason == Reason.B1_OVERSIZE


def test_block_of_another_chain_is_refused_even_with_its_own_parameters() -> None:
    here, there = World(), World(build_genesis(name="other"))
    block = there.build_carrier()
    with pytest.raises(InvalidBlock) as caught:
        here.validate(block)
    assert caught.value.reason == Reason.B2_CHAIN
    assert compute_chain_id(here.genesis) != compute_chain_id(there.genesis)


def test_block_of_the_future_is_held_and_not_rejected(world: World) -> None:
    block = world.build_carrier()
    arguments = (world.header, world.state, block, world.params, world.chain_id, VERIFIER)
    with pytest.raises(Held) as caught:
        validate_block(*arguments, now=Millis(block.header.time - 1))
    assert caught.value.until == block.header.time
    # Strangers can't fill the queue of held blocks.
    stranger = (*arguments[:2], world.forge(block, key=OUTSIDER), *arguments[3:])
    with pytest.raises(InvalidBlock) as refused:
        validate_block(*stranger, now=Millis(block.header.time - 1))
    assert refused.value.reason == Reason.B7_TURN
    assert validate_block(*arguments, now=block.header.time).root == block.header.state_root


@pytest.mark.parametrize("slots", range(9))
def test_the_turn_passes_on_with_every_slot(world: World, slots: int) -> None:
    after = world.params.idle_ms + slots * world.params.slot_ms
    block = world.build_carrier(after=after)
    expected = world.genesis.validators[(2 + slots) % 4].address
    assert block.header.proposer == expected
    world.add(block)


def test_first_block_names_the_chain_id_as_parent() -> None:
    world = World()
    block = world.build_carrier()
    assert block.header.parent == world.chain_id
    assert block.header.time > START
    assert block.header.proposer != CUSTODY.address
    world.add(block)
