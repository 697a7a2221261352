"""The chain over a real ledger: blocks in, head and state out, restart, waiting blocks."""

import secrets
from pathlib import Path

import pytest

from consensus.codec import encode
from consensus.crypto import SigningKey
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.task import Transfer
from consensus.transaction import compute_transaction_id, sign_transaction
from consensus.types import Address, Amount, Millis
from node.blobs import BlobStore
from node.chain import Chain, ImportStatus
from node.clock import ManualClock
from node.core import Core
from node.events import EventBus
from node.history import WeightHistory
from node.ledger.level import LevelStore
from node.ledger.store import KeyValueStore, MemoryStore
from node.mempool import Mempool
from node.proposer import Proposer
from node.work import VerdictBook, WorkService

KEYS = [SigningKey(bytes([i]) * 32) for i in range(1, 4)]
OUTSIDER = Address(secrets.token_bytes(32))


def build_genesis(clock: ManualClock) -> Genesis:
    return Genesis(
        "test",
        Millis(clock.now_ms()),
        ChainParams(),
        tuple(GenesisAccount(k.address, Amount(1_000_000), f"org-{i}") for i, k in enumerate(KEYS)),
        tuple(Validator(k.address, 100) for k in KEYS),
        ("org-1", "org-2"),
    )


def build_core(clock: ManualClock, store: KeyValueStore, key: SigningKey, directory: Path) -> Core:
    blobs = BlobStore(directory / "blobs")
    verdicts = VerdictBook()
    chain = Chain(build_genesis(ManualClock()), store, clock, verdicts)
    verdicts.open(chain.ledger)
    core = Core(
        chain,
        Mempool(),
        blobs,
        WorkService(blobs, verdicts, 1),
        WeightHistory(chain.ledger),
        EventBus(100, clock.now_ms()),
        clock,
        key,
    )
    chain.on_head_change(core.on_head_change)
    return core


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def propose_with_any(cores: list[Core], clock: ManualClock) -> bytes:
    """Let time pass until one of the validators has its turn; its block's bytes."""
    for _ in range(20):
        clock.advance(1.0)
        for core in cores:
            if Proposer(core).propose():
                data = core.chain.ledger.get_block(core.chain.head_hash)
                assert data is not None
                return data
    raise AssertionError("nobody proposed")


def test_a_transfer_travels_from_mempool_to_every_state(tmp_path: Path, clock: ManualClock) -> None:
    cores = [build_core(clock, MemoryStore(), key, tmp_path / str(i)) for i, key in enumerate(KEYS)]
    transaction = cores[0].sign(Transfer(OUTSIDER, Amount(77)))
    for core in cores:
        assert core.admit(transaction).accepted
    block = propose_with_any(cores, clock)
    for core in cores:
        assert core.take_block(block).status in (ImportStatus.ACCEPTED, ImportStatus.KNOWN)
        assert core.chain.head_state.get_account(OUTSIDER).balance == 77
        assert not len(core.mempool)
    assert len({core.chain.head.state_root for core in cores}) == 1


def test_a_restarted_chain_has_the_same_head_and_state(tmp_path: Path, clock: ManualClock) -> None:
    store = LevelStore(tmp_path / "ledger")
    cores = [build_core(clock, store, KEYS[0], tmp_path / "0")]
    cores += [build_core(clock, MemoryStore(), key, tmp_path / key.address.hex()) for key in KEYS[1:]]
    for number in range(5):
        transaction = cores[0].sign(Transfer(OUTSIDER, Amount(number + 1)))
        for core in cores:
            core.admit(transaction)
        block = propose_with_any(cores, clock)
        for core in cores:
            core.take_block(block)
    head, root = cores[0].chain.head_hash, cores[0].chain.head_state.root
    store.close()
    reopened_store = LevelStore(tmp_path / "ledger")
    reopened = build_core(clock, reopened_store, KEYS[0], tmp_path / "0")
    assert reopened.chain.head_hash == head
    assert reopened.chain.head_state.root == root
    assert reopened.chain.head_state.get_account(OUTSIDER).balance == 15
    reopened_store.close()


def test_a_block_before_its_parent_and_a_block_of_the_future_wait(tmp_path: Path, clock: ManualClock) -> None:
    cores = [build_core(clock, MemoryStore(), key, tmp_path / str(i)) for i, key in enumerate(KEYS)]
    blocks = []
    for number in range(2):
        transaction = cores[0].sign(Transfer(OUTSIDER, Amount(number + 1)))
        for core in cores:
            core.admit(transaction)
        blocks.append(propose_with_any(cores, clock))
        for core in cores:
            core.take_block(blocks[-1])
    slow = ManualClock()
    late = build_core(slow, MemoryStore(), KEYS[0], tmp_path / "late")
    assert late.take_block(blocks[1]).status is ImportStatus.ORPHAN
    assert late.take_block(blocks[0]).status is ImportStatus.HELD
    slow.advance(60.0)
    late.chain.on_tick()
    assert late.chain.head_hash == cores[0].chain.head_hash


def test_a_refused_transaction_says_why(tmp_path: Path, clock: ManualClock) -> None:
    core = build_core(clock, MemoryStore(), KEYS[0], tmp_path)
    poor = SigningKey(bytes([9]) * 32)
    unpaid = sign_transaction(poor, core.chain.chain_id, 0, Transfer(OUTSIDER, Amount(0)))
    admission = core.admit(unpaid)
    assert not admission.accepted
    assert admission.reason == "TX_AMOUNT"
    foreign = sign_transaction(KEYS[0], OUTSIDER, 0, Transfer(OUTSIDER, Amount(1)))  # type: ignore[arg-type]
    refused = core.admit(foreign)
    assert not refused.accepted
    assert refused.is_forged
    unpaid_id = compute_transaction_id(unpaid)
    assert core.take_transaction(encode(unpaid)[:-1], unpaid_id).value == "reject"
    assert core.take_transaction(encode(unpaid), core.chain.chain_id).value == "reject"
