"""The pool of votes: bounded, few a height, and exactly what a block may carry."""

from consensus.crypto import SigningKey, hash_domain
from consensus.types import Hash32, Height
from consensus.vote import Checkpoint, Vote, sign_vote
from node.votes import MAX_AT_HEIGHT, VotePool, compute_vote_id
from tests.unit.consensus.world import CUSTODY, MINER_A, MINER_B, OUTSIDER, VALIDATORS, World

CHAIN = hash_domain("test", b"chain")


def build_vote(target: int, key: SigningKey = MINER_A, name: str = "", source: int = 0) -> Vote:
    def build_checkpoint(height: int) -> Checkpoint:
        return Checkpoint(Height(height), hash_domain("test", f"{name}{height}".encode()))

    return sign_vote(key, CHAIN, build_checkpoint(source), build_checkpoint(target))


def test_a_validator_has_few_votes_for_a_height_but_those_of_valid_blocks_always() -> None:
    """Made-up votes told first can't keep a true one, which some block has counted, out of the others."""
    pool = VotePool()
    made_up = [build_vote(5, name=f"made up {n}") for n in range(MAX_AT_HEIGHT + 1)]
    assert [pool.add(vote) for vote in made_up] == [True] * MAX_AT_HEIGHT + [False]
    assert not pool.add(made_up[0])
    true = build_vote(5, name="true")
    assert not pool.add(true)
    assert pool.add(true, in_block=True)
    assert compute_vote_id(true) in pool
    assert len(pool) == MAX_AT_HEIGHT + 1


def test_each_validator_pushes_out_its_own_votes_alone() -> None:
    pool = VotePool(max_per_validator=4)
    kept = build_vote(1, MINER_B)
    pool.add(kept)
    for height in range(1, 50):
        assert pool.add(build_vote(height))
    assert not pool.add(build_vote(3))
    assert len(pool) == 5
    assert compute_vote_id(kept) in pool
    assert all(compute_vote_id(build_vote(height)) in pool for height in range(46, 50))


def test_the_whole_is_bounded_and_the_lowest_go() -> None:
    pool = VotePool(max_per_validator=100, max_votes=10)
    keys = [SigningKey(bytes([number]) * 32) for number in range(1, 5)]
    for height in range(1, 20):
        for key in keys:
            pool.add(build_vote(height, key))
    assert len(pool) <= 10
    assert all(compute_vote_id(build_vote(19, key)) in pool for key in keys)


def test_what_is_final_is_dropped_for_good() -> None:
    pool = VotePool()
    for height in range(1, 6):
        pool.add(build_vote(height))
    pool.drop_final(Height(3))
    assert len(pool) == 2
    assert not pool.add(build_vote(2, MINER_B))
    pool.drop_final(Height(1))
    assert not pool.add(build_vote(3, MINER_B))


def test_a_block_is_offered_exactly_the_votes_that_count_in_it() -> None:
    world = World()
    world.carry(world.transfer(OUTSIDER, MINER_A, 1), votes=())
    world.carry(world.transfer(OUTSIDER, MINER_A, 1), votes=world.build_votes([CUSTODY]))
    pool = VotePool()
    state, head, chain_id = world.state, world.head, world.chain_id
    source = state.get_finality().justified
    assert (source.height, head.height) == (0, 2)
    earlier = Checkpoint(Height(1), world.header.parent)
    late = [sign_vote(key, chain_id, source, earlier) for key in VALIDATORS]
    fresh = list(world.build_votes())
    useless = [
        sign_vote(MINER_A, chain_id, earlier, Checkpoint(Height(3), Hash32(bytes(32)))),
        sign_vote(MINER_B, chain_id, source, Checkpoint(Height(4), chain_id)),
    ]
    for vote in (*late, *fresh, *useless):
        assert pool.add(vote)
    offered = pool.get_includable(state, head)
    # The custody's vote for the first block is in the second one already. The highest targets come first.
    expected = {vote for vote in late if vote.validator != CUSTODY.address} | set(fresh)
    assert set(offered) == expected
    assert [vote.target.height for vote in offered] == [2] * 4 + [1] * 3
    block = world.build_carrier(votes=offered)
    assert block.body.votes[:3] == tuple(offered[:3])
    world.add(block)
    assert world.state.get_finality().justified == head
    # Both blocks are justified now.
    assert pool.get_includable(world.state, world.head) == []


def test_jailed_validators_are_not_offered() -> None:
    world = World()
    world.carry(world.transfer(OUTSIDER, MINER_A, 1), votes=())
    pool = VotePool()
    for vote in world.build_votes():
        pool.add(vote)
    state = world.state.with_jailed((MINER_A.address,))
    assert MINER_A.address not in {vote.validator for vote in pool.get_includable(state, world.head)}
