"""The sign-state: stored before a vote leaves, never lower than it was."""

import pytest

from consensus.crypto import SigningKey, hash_domain
from consensus.types import Address, Height
from consensus.vote import NOTHING_SIGNED, Checkpoint, SignState, Vote, sign_vote
from node.ledger.chainstore import SIGN_STATE_PREFIX, SIGN_STATE_UNKNOWN, Ledger, LedgerDamaged
from node.ledger.store import MemoryStore
from node.signstate import SignStateRegression, SignStateStore

KEY = SigningKey(b"k" * 32)
CHAIN = hash_domain("test", b"chain")


def build_vote(source: int, target: int) -> Vote:
    return sign_vote(KEY, CHAIN, *(Checkpoint(Height(height), CHAIN) for height in (source, target)))


@pytest.fixture
def ledger() -> Ledger:
    return Ledger.open(MemoryStore(), CHAIN)


def test_it_survives_a_restart_and_belongs_to_its_key(ledger: Ledger) -> None:
    store = SignStateStore(ledger, KEY.address)
    assert (store.is_missing, store.signed, store.last) == (True, NOTHING_SIGNED, None)
    store.record(build_vote(0, 1))
    store.record(build_vote(1, 4))
    again = SignStateStore(ledger, KEY.address)
    assert (again.is_missing, again.is_unknown) == (False, False)
    assert again.signed == SignState(Height(1), Height(4))
    assert again.last == build_vote(1, 4)
    assert SignStateStore(ledger, Address(b"o" * 32)).is_missing


@pytest.mark.parametrize(("source", "target"), [(3, 8), (3, 7), (2, 9), (0, 100)])
def test_it_never_falls(ledger: Ledger, source: int, target: int) -> None:
    store = SignStateStore(ledger, KEY.address)
    store.record(build_vote(3, 8))
    with pytest.raises(SignStateRegression):
        store.record(build_vote(source, target))
    assert SignStateStore(ledger, KEY.address).signed == store.signed == SignState(Height(3), Height(8))
    store.record(build_vote(3, 9))


def test_settling_counts_in_what_others_saw_and_clears_the_doubt(ledger: Ledger) -> None:
    ledger.put_record(SIGN_STATE_UNKNOWN, b"rebuilt")
    store = SignStateStore(ledger, KEY.address)
    assert store.is_unknown
    store.settle(SignState(Height(5), Height(7)))
    again = SignStateStore(ledger, KEY.address)
    assert (again.is_unknown, again.is_missing) == (False, False)
    assert again.signed == SignState(Height(5), Height(7))
    again.settle(NOTHING_SIGNED)
    assert again.signed == SignState(Height(5), Height(7))


def test_a_damaged_one_is_damage(ledger: Ledger) -> None:
    ledger.put_record(SIGN_STATE_PREFIX + KEY.address, b"\x93\x01")
    with pytest.raises(LedgerDamaged, match="sign-state"):
        SignStateStore(ledger, KEY.address)
