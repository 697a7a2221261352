"""Ceremonies of keys: who may be in one, commitments before contributions, keys that all confirm."""

from dataclasses import replace

import pytest

from consensus.ceremonies import (
    ROUNDS,
    CeremonyRecord,
    CeremonyStatus,
    CommitRound,
    ConfirmCeremony,
    CreateCeremony,
    EndCeremony,
    RevealRound,
)
from consensus.ceremony import compute_commitment, is_committed
from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.state import get_ceremony_key
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.transition import apply_transaction
from consensus.tree import verify_proof
from consensus.types import ZERO_HASH, Address, Hash32, Millis
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    START,
    World,
    build_blob,
)

MEMBERS = tuple(sorted((COLLEAGUE, MINER_A, MINER_B), key=lambda key: key.address))
FIRST, SECOND, THIRD = MEMBERS
SALT = bytes(32)
MINUTES = 60_000


def get_box_key(key: SigningKey) -> Hash32:
    return hash_domain("box", key.address)


def build_create(**changes: object) -> CreateCeremony:
    create = CreateCeremony(
        title="cardiac",
        preset="ckks-16384-60x5",
        members=tuple(key.address for key in MEMBERS),
        threshold=2,
        deadline=Millis(START + 60 * MINUTES),
        renews=ZERO_HASH,
    )
    return replace(create, **changes)


class Ceremony:
    """One on the small chain; every step is a block."""

    def __init__(self) -> None:
        self.world = World()
        transaction = self.world.sign(FIRST, build_create())
        self.world.carry(transaction)
        self.id = compute_transaction_id(transaction)

    @property
    def record(self) -> CeremonyRecord:
        record = self.world.state.get_ceremony(self.id)
        assert record is not None
        return record

    def build_commit(self, key: SigningKey, name: str = "", number: int | None = None) -> SignedTransaction:
        number = self.record.round if number is None else number
        root = build_blob(name or f"{number} of {key.address.hex()}").root
        digest = compute_commitment(self.id, number, key.address, root, SALT)
        return self.world.sign(key, CommitRound(self.id, number, digest))

    def build_reveal(self, key: SigningKey, name: str = "", number: int | None = None) -> SignedTransaction:
        number = self.record.round if number is None else number
        blob = build_blob(name or f"{number} of {key.address.hex()}")
        return self.world.sign(key, RevealRound(self.id, number, blob, SALT))

    def build_confirm(self, key: SigningKey, name: str = "key") -> SignedTransaction:
        public, relin = build_blob(f"public {name}"), build_blob(f"relin {name}")
        return self.world.sign(key, ConfirmCeremony(self.id, public, relin, get_box_key(key)))

    def commit(self) -> None:
        self.world.carry(*(self.build_commit(key) for key in MEMBERS))

    def finalize(self) -> None:
        """Until the round's last commitment is final."""
        while not is_committed(self.world.state, self.record):
            self.world.carry()

    def pass_round(self) -> None:
        self.commit()
        self.finalize()
        self.world.carry(*(self.build_reveal(key) for key in MEMBERS))

    def pass_all(self) -> None:
        for _ in ROUNDS:
            self.pass_round()

    def refuse(self, transaction: SignedTransaction, after: int = 2_000) -> Reason:
        before = self.world.state.root
        with pytest.raises(InvalidTransaction) as caught:
            apply_transaction(self.world.state, transaction, self.world.get_context(after))
        assert self.world.state.root == before
        return caught.value.reason


@pytest.fixture
def ceremony() -> Ceremony:
    return Ceremony()


ADDRESSES = build_create().members


@pytest.mark.parametrize(
    "changes",
    [
        {"title": ""},
        {"title": "x" * 201},
        {"preset": ""},
        {"members": ADDRESSES[:1]},
        {"members": ()},
        {"members": ADDRESSES[::-1]},
        {"members": (ADDRESSES[0], *ADDRESSES)},
        {"members": tuple(sorted((*ADDRESSES, CUSTODY.address)))},  # of COLLEAGUE's organisation
        {"members": tuple(sorted((*ADDRESSES, OUTSIDER.address)))},  # of none
        {"members": tuple(sorted((MINER_A.address, CUSTODY.address)))},  # not the sender
        {"members": tuple(Address(bytes([number]) * 32) for number in range(17))},
        {"threshold": 1},
        {"threshold": 4},
        {"deadline": Millis(START)},
        {"deadline": Millis(2**53)},
    ],
)
def test_malformed_ceremonies_are_refused(changes: dict[str, object]) -> None:
    world = World()
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, world.sign(FIRST, build_create(**changes)), world.get_context(2_000))
    assert caught.value.reason is Reason.CEREMONY_FIELD


def test_one_passes_all_rounds_and_its_keys_are_ready(ceremony: Ceremony) -> None:
    assert ceremony.record.status is CeremonyStatus.RUNNING
    for number in range(len(ROUNDS)):
        assert ceremony.record.round == number
        ceremony.pass_round()
        shown = ceremony.record.contributions[number]
        # By place, whatever the order of arrival.
        assert shown == tuple(build_blob(f"{number} of {key.address.hex()}") for key in MEMBERS)
        assert (ceremony.record.commitments, ceremony.record.reveals) == ((), ())
    for key in (THIRD, FIRST):
        ceremony.world.carry(ceremony.build_confirm(key))
        assert ceremony.record.status is CeremonyStatus.RUNNING
    ceremony.world.carry(ceremony.build_confirm(SECOND))
    assert ceremony.record.status is CeremonyStatus.READY
    assert ceremony.refuse(ceremony.build_confirm(SECOND)) is Reason.CEREMONY_ENDED
    end = ceremony.world.sign(FIRST, EndCeremony(ceremony.id))
    assert ceremony.refuse(end) is Reason.CEREMONY_ENDED


def test_its_record_is_proved_by_the_state(ceremony: Ceremony) -> None:
    state = ceremony.world.state
    assert (state.get_ceremony_count(), state.get_ceremony_id(0)) == (1, ceremony.id)
    key = get_ceremony_key(ceremony.id)
    assert verify_proof(state.root, key, encode(ceremony.record), state.tree.get_proof(key))


def test_nothing_is_shown_before_all_commitments_are_final(ceremony: Ceremony) -> None:
    ceremony.world.carry(*(ceremony.build_commit(key) for key in MEMBERS[:2]))
    assert ceremony.refuse(ceremony.build_reveal(FIRST)) is Reason.REVEAL_UNCOMMITTED
    ceremony.world.carry(ceremony.build_commit(THIRD))
    # On another fork the third could still commit to something else.
    assert ceremony.refuse(ceremony.build_reveal(FIRST)) is Reason.ROUND_NOT_FINAL
    ceremony.finalize()
    ceremony.world.carry(ceremony.build_reveal(FIRST))
    assert ceremony.refuse(ceremony.build_reveal(FIRST)) is Reason.REVEAL_DOUBLED


def test_a_member_shows_what_it_committed_to_and_nothing_else(ceremony: Ceremony) -> None:
    ceremony.commit()
    ceremony.finalize()
    assert ceremony.refuse(ceremony.build_reveal(FIRST, "another")) is Reason.REVEAL_COMMITMENT
    # Another's contribution is no commitment of one's own, not even with its salt.
    stolen = ceremony.build_reveal(FIRST, f"0 of {SECOND.address.hex()}")
    assert ceremony.refuse(stolen) is Reason.REVEAL_COMMITMENT
    shown = ceremony.build_reveal(FIRST).payload
    assert isinstance(shown, RevealRound)
    for wrong, reason in (
        (replace(shown, salt=bytes(31) + b"\1"), Reason.REVEAL_COMMITMENT),
        (replace(shown, salt=bytes(31)), Reason.CEREMONY_FIELD),
        (replace(shown, contribution=replace(shown.contribution, length=0)), Reason.CEREMONY_FIELD),
    ):
        assert ceremony.refuse(ceremony.world.sign(FIRST, wrong)) is reason


def test_a_commitment_is_of_one_ceremony_round_and_member() -> None:
    root = build_blob("x").root
    one, other = Hash32(bytes(32)), Hash32(b"\1" * 32)
    digests = {
        compute_commitment(one, 0, FIRST.address, root, SALT),
        compute_commitment(other, 0, FIRST.address, root, SALT),
        compute_commitment(one, 1, FIRST.address, root, SALT),
        compute_commitment(one, 0, SECOND.address, root, SALT),
        compute_commitment(one, 0, FIRST.address, other, SALT),
        compute_commitment(one, 0, FIRST.address, root, b"\1" * 32),
    }
    assert len(digests) == 6


def test_rounds_have_their_turn(ceremony: Ceremony) -> None:
    assert ceremony.refuse(ceremony.build_commit(FIRST, number=1)) is Reason.ROUND_FUTURE
    ceremony.world.carry(ceremony.build_commit(FIRST))
    assert ceremony.refuse(ceremony.build_commit(FIRST, "changed")) is Reason.COMMIT_DOUBLED
    assert ceremony.refuse(ceremony.build_confirm(FIRST)) is Reason.CEREMONY_UNFINISHED
    ceremony.world.carry(*(ceremony.build_commit(key) for key in MEMBERS[1:]))
    ceremony.finalize()
    ceremony.world.carry(*(ceremony.build_reveal(key) for key in MEMBERS))
    assert ceremony.refuse(ceremony.build_commit(FIRST, number=0)) is Reason.ROUND_PAST
    assert ceremony.refuse(ceremony.build_reveal(FIRST, number=0)) is Reason.ROUND_PAST
    for _ in ROUNDS[1:]:
        ceremony.pass_round()
    assert ceremony.refuse(ceremony.build_commit(FIRST, number=len(ROUNDS))) is Reason.ROUND_FUTURE


def test_strangers_and_latecomers_have_no_part(ceremony: Ceremony) -> None:
    assert ceremony.refuse(ceremony.build_commit(CUSTODY)) is Reason.CEREMONY_MEMBER
    assert ceremony.refuse(ceremony.build_commit(FIRST), 61 * MINUTES) is Reason.CEREMONY_LATE
    unknown = ceremony.world.sign(FIRST, CommitRound(Hash32(b"\7" * 32), 0, Hash32(bytes(32))))
    assert ceremony.refuse(unknown) is Reason.CEREMONY_UNKNOWN


def test_ready_keys_are_nobody_elses(ceremony: Ceremony) -> None:
    ceremony.pass_all()
    same = replace(ceremony.build_confirm(FIRST).payload, relin_keys=build_blob("public key"))  # type: ignore[type-var]
    assert ceremony.refuse(ceremony.world.sign(FIRST, same)) is Reason.CEREMONY_FIELD
    ceremony.world.carry(*(ceremony.build_confirm(key) for key in MEMBERS))
    assert ceremony.world.state.get_key_task(build_blob("public key").root) == ceremony.id
    assert ceremony.world.state.get_key_task(build_blob("relin key").root) == ceremony.id


def test_each_names_a_key_of_its_own_for_what_is_sealed_to_it(ceremony: Ceremony) -> None:
    ceremony.pass_all()
    ceremony.world.carry(ceremony.build_confirm(FIRST))
    for box_key in (ZERO_HASH, get_box_key(FIRST)):
        payload = replace(ceremony.build_confirm(SECOND).payload, box_key=box_key)  # type: ignore[type-var]
        assert ceremony.refuse(ceremony.world.sign(SECOND, payload)) is Reason.CEREMONY_FIELD
    ceremony.world.carry(*(ceremony.build_confirm(key) for key in (SECOND, THIRD)))
    keys = {item.member: item.box_key for item in ceremony.record.confirmations}
    assert keys == {key.address: get_box_key(key) for key in MEMBERS}


def test_different_keys_end_it(ceremony: Ceremony) -> None:
    ceremony.pass_all()
    ceremony.world.carry(ceremony.build_confirm(FIRST))
    assert ceremony.refuse(ceremony.build_confirm(FIRST)) is Reason.CEREMONY_CONFIRMED
    ceremony.world.carry(ceremony.build_confirm(SECOND, "another"))
    assert ceremony.record.status is CeremonyStatus.FAILED
    assert ceremony.refuse(ceremony.build_confirm(THIRD)) is Reason.CEREMONY_ENDED
    # Who said what is on record.
    assert [item.member for item in ceremony.record.confirmations] == [FIRST.address, SECOND.address]


def test_it_is_given_up_by_a_member_or_after_its_deadline_by_anyone(ceremony: Ceremony) -> None:
    by_stranger = ceremony.world.sign(OUTSIDER, EndCeremony(ceremony.id))
    assert ceremony.refuse(by_stranger) is Reason.CEREMONY_EARLY
    late = apply_transaction(ceremony.world.state, by_stranger, ceremony.world.get_context(61 * MINUTES))
    record = late.get_ceremony(ceremony.id)
    assert record is not None
    assert (record.status, record.ended_by) == (CeremonyStatus.ENDED, None)
    ceremony.world.carry(ceremony.world.sign(SECOND, EndCeremony(ceremony.id)))
    assert (ceremony.record.status, ceremony.record.ended_by) == (CeremonyStatus.ENDED, SECOND.address)
    assert ceremony.refuse(ceremony.build_commit(FIRST)) is Reason.CEREMONY_ENDED
