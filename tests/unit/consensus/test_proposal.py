"""Building blocks: valid transactions in, the rest told apart; and genesis."""

from dataclasses import replace

import pytest

from consensus.codec import encode
from consensus.errors import InvalidBlock, Reason
from consensus.genesis import GenesisError, build_genesis_header, build_genesis_state
from consensus.identifiers import compute_block_hash, compute_chain_id
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.proposal import Proposal, build_block, build_proposal, get_carrier_entitled_time
from consensus.transaction import SignedTransaction
from consensus.turns import get_carrier_proposer
from consensus.types import MAX_AMOUNT, Address, Amount, Millis, Signature
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    START,
    World,
    build_genesis,
)


def propose(world: World, *transactions: SignedTransaction, after: int = 2_000) -> Proposal:
    return build_proposal(
        world.header,
        world.state,
        transactions,
        None,
        Millis(world.header.time + after),
        world.get_turn(after),
        world.params,
        world.chain_id,
    )


def test_invalid_and_premature_transactions_are_told_apart() -> None:
    world = World()
    world.carry(world.transfer(OUTSIDER, MINER_A, 1))
    good = world.transfer(OUTSIDER, MINER_A, 1, 1)
    stale = world.transfer(OUTSIDER, MINER_A, 1, 0)
    early = world.transfer(OUTSIDER, MINER_A, 1, 3)
    unsigned = replace(good, signature=Signature(b""))
    proposal = propose(world, stale, early, unsigned, good)
    assert proposal.block.body.transactions == (good,)
    assert [(r.transaction, r.reason) for r in proposal.refused] == [
        (stale, Reason.TX_NONCE),
        (unsigned, Reason.TX_SIGNATURE),
    ]
    assert [(r.transaction, r.reason) for r in proposal.premature] == [(early, Reason.TX_NONCE_FUTURE)]
    assert world.validate(proposal.block).root == proposal.state.root


def test_transactions_in_the_wrong_order_are_put_right() -> None:
    world = World()
    transactions = [world.transfer(OUTSIDER, MINER_A, 1, nonce) for nonce in (3, 2, 1, 0)]
    proposal = propose(world, *transactions)
    assert proposal.block.body.transactions == tuple(reversed(transactions))
    assert not proposal.premature


def test_money_received_in_the_block_can_be_spent_in_it() -> None:
    world = World()
    spend = world.transfer(MINER_A, MINER_B, 1_500_000)
    fund = world.transfer(OUTSIDER, MINER_A, 900_000)
    proposal = propose(world, spend, fund)
    assert proposal.block.body.transactions == (fund, spend)


def test_a_block_keeps_to_count_and_size() -> None:
    small = ChainParams(max_body_bytes=1_024, max_transactions=40)
    for params in (small, ChainParams(max_body_bytes=16_384, max_transactions=4)):
        world = World(build_genesis(params))
        transactions = [world.transfer(OUTSIDER, MINER_A, 1, nonce) for nonce in range(20)]
        proposal = propose(world, *transactions)
        taken = proposal.block.body.transactions
        assert taken == tuple(transactions[: len(taken)])
        assert len(taken) == (4 if params.max_transactions == 4 else 4 + (1_024 - 4 * 204) // 204)
        assert len(proposal.left_out) + len(proposal.premature) == 20 - len(taken)
        assert len(encode(proposal.block.body)) <= params.max_body_bytes
        world.add(proposal.block)


def test_the_short_form_returns_what_is_invalid_for_good() -> None:
    world = World()
    good, early = world.transfer(OUTSIDER, MINER_A, 1, 0), world.transfer(OUTSIDER, MINER_A, 1, 2)
    bad = replace(good, signature=Signature(bytes(64)))
    block, state, refused = build_block(
        world.header,
        world.state,
        [good, bad, early],
        None,
        Millis(world.header.time + 2_000),
        world.get_turn(2_000),
        world.params,
        world.chain_id,
    )
    assert refused == [bad]
    assert world.validate(block).root == state.root


@pytest.mark.parametrize(
    ("after", "reason"),
    [(499, Reason.B3_EARLY), (1_000, Reason.B7_IDLE), (4_000, Reason.B7_TURN), (2**53, Reason.B3_RANGE)],
)
def test_no_block_is_built_out_of_turn(after: int, reason: Reason) -> None:
    world = World()
    key = world.get_turn(1_500)
    with pytest.raises(InvalidBlock) as caught:
        build_block(
            world.header,
            world.state,
            (),
            None,
            Millis(world.header.time + after),
            key,
            world.params,
            world.chain_id,
        )
    assert caught.value.reason == reason


@pytest.mark.parametrize("not_before", [0, 1_500, 3_499, 3_500, 9_999, 123_456])
def test_entitled_time_is_the_first_in_turn(not_before: int) -> None:
    world = World()
    world.carry()
    start = Millis(world.header.time + not_before)
    for key in (CUSTODY, COLLEAGUE, MINER_A, MINER_B):
        time = get_carrier_entitled_time(world.state, world.params, world.header, key.address, start)
        assert time is not None
        assert time >= start
        assert get_carrier_proposer(world.state, world.params, world.header, time) == key.address
        first = max(start, world.header.time + world.params.idle_ms)
        for earlier in range(first, time, 500):
            turn = get_carrier_proposer(world.state, world.params, world.header, Millis(earlier))
            assert turn != key.address
    outsider = get_carrier_entitled_time(world.state, world.params, world.header, OUTSIDER.address, start)
    assert outsider is None


# --- genesis ----------------------------------------------------------------------------------


def test_genesis_gives_accounts_validators_and_organisations() -> None:
    genesis = build_genesis()
    state = build_genesis_state(genesis)
    header = build_genesis_header(genesis, state)
    assert state.get_account(MINER_A.address).balance == 1_000_000
    assert state.get_account(MINER_A.address).organisation == "lab-a"
    assert state.get_validators() == genesis.validators
    assert state.get_total_stake() == 40
    assert state.get_stake(MINER_A.address) == 10
    assert state.get_stake(OUTSIDER.address) == 0
    assert state.may_mine("lab-a")
    assert not state.may_mine("")
    assert not state.may_mine("elsewhere")
    mining = {key.address for key in (CUSTODY, COLLEAGUE, MINER_A, MINER_B)}
    assert state.get_mining_accounts() == tuple(sorted(mining))
    assert (header.height, header.time, header.state_root) == (0, START, state.root)
    assert compute_block_hash(header) == compute_chain_id(genesis) == header.chain_id


GENESIS = build_genesis()
TWICE = (GENESIS.accounts[0], GENESIS.accounts[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"time": Millis(-1)},
        {"accounts": TWICE},
        {"accounts": (GenesisAccount(OUTSIDER.address, Amount(-1), ""),)},
        {
            "accounts": (
                GenesisAccount(OUTSIDER.address, Amount(MAX_AMOUNT), ""),
                GenesisAccount(MINER_A.address, Amount(1), ""),
            )
        },
        {"validators": ()},
        {"validators": GENESIS.validators[:1] * 2},
        {"validators": (Validator(Address(bytes(32)), 0),)},
        {"mining_organisations": ("",)},
        {"mining_organisations": ("lab", "lab")},
        {"params": ChainParams(min_block_ms=0)},
        {"params": ChainParams(slot_ms=0)},
        {"params": ChainParams(idle_ms=100)},
        {"params": ChainParams(verdict_ms=-1)},
        {"params": ChainParams(max_transactions=0)},
    ],
)
def test_unusable_genesis_is_refused(changes: dict[str, object]) -> None:
    broken: Genesis = replace(GENESIS, **changes)
    with pytest.raises(GenesisError):
        build_genesis_state(broken)
