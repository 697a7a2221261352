"""Key ceremonies: who takes part, nobody chooses after seeing the others, equal keys of all, ends."""

from dataclasses import replace

import pytest

from consensus.ceremonies import ROUNDS, CeremonyStatus, CommitRound, CompleteRound
from consensus.ceremony import compute_commitment
from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain
from consensus.errors import PREMATURE, InvalidTransaction, Reason
from consensus.identifiers import compute_draft_hash
from consensus.state import get_ceremony_key
from consensus.task import Draft, DraftTask
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.transition import apply_transaction
from consensus.tree import verify_proof
from consensus.types import ZERO_HASH, Address, Hash32, Millis
from tests.unit.consensus.ceremonial import (
    MEMBERS,
    PUBLIC_KEY,
    RELIN_KEYS,
    Ceremonies,
    Committee,
    build_ceremony,
    build_committee_draft,
)
from tests.unit.consensus.federated import build_federation
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    OUTSIDER,
    START,
    World,
    build_blob,
    build_contribution,
    build_draft,
    build_publication,
)

FIRST, SECOND, THIRD = MEMBERS
OTHER = hash_domain("test", b"other")
LATE = 20_000_000
ADDRESSES = build_ceremony().members


def refuse(world: World, transaction: SignedTransaction, after: int = 2_000) -> Reason:
    before = world.state.root
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context(after))
    assert world.state.root == before
    return caught.value.reason


def publish(world: World, key: SigningKey, draft: Draft) -> SignedTransaction:
    """A publication, its draft and contribution on the chain."""
    world.carry(world.sign(key, DraftTask(draft)))
    name = compute_draft_hash(world.chain_id, draft)
    contribution = world.sign(OUTSIDER, build_contribution(name))
    world.carry(contribution)
    return world.sign(key, build_publication(name, (compute_transaction_id(contribution),)))


@pytest.fixture
def ceremonies() -> Ceremonies:
    return Ceremonies().create()


# --- creation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"preset": ""}, "preset"),
        ({"preset": "x" * 201}, "preset"),
        ({"members": ADDRESSES[:1]}, "members: 2 to 16"),
        ({"members": tuple(Address(bytes([n]) * 32) for n in range(17))}, "members: 2 to 16"),
        ({"members": ADDRESSES[::-1]}, "members: ascending, each once"),
        ({"members": (ADDRESSES[0], *ADDRESSES)}, "members: ascending, each once"),
        ({"threshold": 1}, "threshold"),
        ({"threshold": 4}, "threshold"),
        ({"deadline": Millis(START)}, "deadline"),
        ({"deadline": Millis(2**53)}, "deadline"),
    ],
)
def test_a_ceremony_with_a_wrong_field_is_refused(changes: dict[str, object], field: str) -> None:
    world = World()
    with pytest.raises(InvalidTransaction, match=field) as caught:
        apply_transaction(world.state, world.sign(CUSTODY, build_ceremony(**changes)), world.get_context())
    assert caught.value.reason is Reason.CEREMONY_FIELD


@pytest.mark.parametrize("other", [OUTSIDER, COLLEAGUE])
def test_members_are_of_one_organisation_each(other: SigningKey) -> None:
    """The outsider is of none, the colleague of the custody's."""
    world, members = World(), tuple(sorted((*ADDRESSES, other.address)))
    assert refuse(world, world.sign(CUSTODY, build_ceremony(members=members))) is Reason.CEREMONY_FIELD


def test_only_a_member_creates_one() -> None:
    world = World()
    for key in (OUTSIDER, COLLEAGUE):
        assert refuse(world, world.sign(key, build_ceremony())) is Reason.CEREMONY_MEMBER
    everybody = world.sign(MINER_A, build_ceremony(threshold=3))
    apply_transaction(world.state, everybody, world.get_context())


def test_creations_count_a_nonce_and_the_rest_do_not(ceremonies: Ceremonies) -> None:
    """Two equal ones are two ceremonies, and none is taken twice."""
    world, first = ceremonies.world, ceremonies.ceremony
    assert refuse(world, world.sign(CUSTODY, build_ceremony(), nonce=0)) is Reason.TX_NONCE
    ceremonies.create()
    assert ceremonies.ceremony != first
    assert world.state.get_ceremony_count() == 2
    assert [world.state.get_ceremony_id(n) for n in range(3)] == [first, ceremonies.ceremony, None]
    commit = world.sign(MINER_A, CommitRound(first, 0, OTHER), nonce=1)
    assert refuse(world, commit) is Reason.TX_NONCE


# --- rounds -----------------------------------------------------------------------------------


def test_a_round_goes_from_commitments_to_contributions_to_the_next(ceremonies: Ceremonies) -> None:
    ceremonies.commit()
    assert [part.member for part in ceremonies.record.parts] == [key.address for key in MEMBERS]
    assert ceremonies.record.committed_height == ceremonies.world.header.height
    ceremonies.finalize()
    ceremonies.reveal((THIRD, FIRST))
    assert (ceremonies.round, ceremonies.record.parts[1].contribution) == (0, None)
    ceremonies.reveal((SECOND,))
    # In the members' order, whatever the order of arrival.
    expected = tuple(build_blob(ceremonies.name_part(key, 0)) for key in MEMBERS)
    assert ceremonies.record.complete == (CompleteRound(expected),)
    assert (ceremonies.record.parts, ceremonies.record.committed_height) == ((), 0)


def test_a_member_commits_once_a_round_and_to_the_current_one(ceremonies: Ceremonies) -> None:
    world = ceremonies.world
    assert refuse(world, ceremonies.build_commit(FIRST, 1)) is Reason.ROUND_FUTURE
    assert refuse(world, ceremonies.build_commit(FIRST, 5)) is Reason.CEREMONY_FIELD
    wrong = world.sign(FIRST, CommitRound(ceremonies.ceremony, -1, OTHER))
    assert refuse(world, wrong) is Reason.CEREMONY_FIELD
    ceremonies.commit((FIRST,))
    assert refuse(world, ceremonies.build_commit(FIRST)) is Reason.COMMIT_DOUBLED
    other = world.sign(FIRST, CommitRound(ceremonies.ceremony, 0, OTHER))
    assert refuse(world, other) is Reason.COMMIT_DOUBLED
    ceremonies.commit((SECOND, THIRD))
    ceremonies.finalize()
    ceremonies.reveal()
    assert refuse(world, ceremonies.build_commit(FIRST, 0)) is Reason.ROUND_PAST
    assert refuse(world, ceremonies.build_reveal(FIRST, 0)) is Reason.ROUND_PAST
    assert refuse(world, ceremonies.build_reveal(FIRST, 2)) is Reason.ROUND_FUTURE


def test_strangers_take_no_part(ceremonies: Ceremonies) -> None:
    world = ceremonies.world
    for key in (OUTSIDER, COLLEAGUE):
        assert refuse(world, ceremonies.build_commit(key)) is Reason.CEREMONY_MEMBER
        assert refuse(world, ceremonies.build_reveal(key)) is Reason.CEREMONY_MEMBER
        assert refuse(world, ceremonies.build_confirm(key)) is Reason.CEREMONY_MEMBER
    ceremonies.ceremony = OTHER
    assert refuse(world, ceremonies.build_commit(FIRST, 0)) is Reason.CEREMONY_UNKNOWN
    assert refuse(world, ceremonies.build_end(FIRST)) is Reason.CEREMONY_UNKNOWN


def test_nothing_is_shown_before_all_are_bound_for_good(ceremonies: Ceremonies) -> None:
    """On no fork can the last one commit after having seen the others."""
    world = ceremonies.world
    assert refuse(world, ceremonies.build_reveal(FIRST)) is Reason.REVEAL_UNCOMMITTED
    ceremonies.commit((FIRST, SECOND))
    assert refuse(world, ceremonies.build_reveal(FIRST)) is Reason.REVEAL_EARLY
    ceremonies.commit((THIRD,))
    assert refuse(world, ceremonies.build_reveal(FIRST)) is Reason.ROUND_NOT_FINAL
    for _ in range(3):
        world.carry(votes=())
    assert refuse(world, ceremonies.build_reveal(FIRST)) is Reason.ROUND_NOT_FINAL
    assert {Reason.REVEAL_UNCOMMITTED, Reason.REVEAL_EARLY, Reason.ROUND_NOT_FINAL} <= PREMATURE
    ceremonies.finalize()
    ceremonies.reveal((FIRST,))
    assert refuse(world, ceremonies.build_reveal(FIRST)) is Reason.REVEAL_DOUBLED


def test_only_what_was_committed_to_is_shown(ceremonies: Ceremonies) -> None:
    world = ceremonies.world
    ceremonies.commit()
    ceremonies.finalize()

    def reveal(**changes: object) -> Reason:
        return refuse(world, ceremonies.build_reveal(FIRST, **changes))

    assert reveal(contribution=build_blob("other")) is Reason.REVEAL_COMMITMENT
    assert reveal(salt=bytes(32)) is Reason.REVEAL_COMMITMENT
    assert reveal(salt=bytes(31)) is Reason.CEREMONY_FIELD
    assert reveal(salt=bytes(33)) is Reason.CEREMONY_FIELD
    for length in (0, -1, 2**28 + 1):
        blob = build_blob(ceremonies.name_part(FIRST, 0), length)
        assert reveal(contribution=blob) is Reason.CEREMONY_FIELD
    ceremonies.reveal()


def test_a_copied_commitment_is_nobody_elses(ceremonies: Ceremonies) -> None:
    """Of another member, and of a member's own from another round or ceremony."""
    world = ceremonies.world
    copied = ceremonies.build_commit(FIRST).payload
    world.carry(*(world.sign(key, copied) for key in MEMBERS))
    ceremonies.finalize()
    ceremonies.reveal((FIRST,))
    shown = ceremonies.build_reveal(FIRST).payload
    assert refuse(world, world.sign(SECOND, shown)) is Reason.REVEAL_COMMITMENT
    root, salt = shown.contribution.root, shown.salt
    digests = {
        compute_commitment(ceremony, number, key.address, root, salt)
        for ceremony in (ceremonies.ceremony, OTHER)
        for number in range(len(ROUNDS))
        for key in MEMBERS
    }
    assert len(digests) == 2 * len(ROUNDS) * len(MEMBERS)


def test_the_deadline_stops_rounds(ceremonies: Ceremonies) -> None:
    world = ceremonies.world
    span = ceremonies.record.create.deadline - world.header.time
    apply_transaction(world.state, ceremonies.build_commit(FIRST), world.get_context(span))
    assert refuse(world, ceremonies.build_commit(FIRST), span + 1) is Reason.CEREMONY_DEADLINE
    ceremonies.commit()
    ceremonies.finalize()
    assert refuse(world, ceremonies.build_reveal(FIRST), LATE) is Reason.CEREMONY_DEADLINE
    ceremonies.reveal()
    ceremonies.reach_keys()
    assert refuse(world, ceremonies.build_confirm(FIRST), LATE) is Reason.CEREMONY_DEADLINE


# --- keys -------------------------------------------------------------------------------------


def test_equal_keys_of_all_members_make_it_ready(ceremonies: Ceremonies) -> None:
    world = ceremonies.world
    assert refuse(world, ceremonies.build_confirm(FIRST)) is Reason.CONFIRM_EARLY
    assert Reason.CONFIRM_EARLY in PREMATURE
    ceremonies.reach_keys()
    assert refuse(world, ceremonies.build_commit(FIRST, 4)) is Reason.ROUND_PAST
    world.carry(ceremonies.build_confirm(SECOND), ceremonies.build_confirm(FIRST))
    assert refuse(world, ceremonies.build_confirm(FIRST)) is Reason.CONFIRM_DOUBLED
    assert ceremonies.record.status is CeremonyStatus.RUNNING
    world.carry(ceremonies.build_confirm(THIRD))
    record = ceremonies.record
    assert (record.status, record.ended_by) == (CeremonyStatus.READY, None)
    assert record.ended_height == world.header.height
    assert (record.public_key, record.relin_keys) == (PUBLIC_KEY, RELIN_KEYS)
    assert record.confirmed == tuple(key.address for key in (SECOND, FIRST, THIRD))
    for transaction in (ceremonies.build_confirm(FIRST), ceremonies.build_end(FIRST)):
        assert refuse(world, transaction) is Reason.CEREMONY_ENDED
        assert refuse(world, transaction, LATE) is Reason.CEREMONY_ENDED


@pytest.mark.parametrize("name", ["public_key", "relin_keys"])
def test_a_different_key_ends_it_and_is_on_record(ceremonies: Ceremonies, name: str) -> None:
    world = ceremonies.world
    ceremonies.reach_keys()
    world.carry(ceremonies.build_confirm(SECOND))
    world.carry(ceremonies.build_confirm(FIRST, **{name: build_blob("another key")}))
    record = ceremonies.record
    assert (record.status, record.ended_by) == (CeremonyStatus.FAILED, FIRST.address)
    assert (record.confirmed, record.public_key) == ((SECOND.address,), PUBLIC_KEY)
    assert refuse(world, ceremonies.build_confirm(THIRD)) is Reason.CEREMONY_ENDED
    draft = world.sign(CUSTODY, DraftTask(build_committee_draft(ceremonies.ceremony)))
    assert refuse(world, draft) is Reason.CEREMONY_ENDED


def test_keys_are_of_some_length_and_two(ceremonies: Ceremonies) -> None:
    ceremonies.reach_keys()
    for changes in (
        {"public_key": build_blob("key", 0)},
        {"relin_keys": build_blob("key", 2**28 + 1)},
        {"relin_keys": PUBLIC_KEY},
    ):
        confirm = ceremonies.build_confirm(FIRST, **changes)
        assert refuse(ceremonies.world, confirm) is Reason.CEREMONY_FIELD


def test_keys_in_use_are_not_confirmed(ceremonies: Ceremonies) -> None:
    world = ceremonies.world
    world.carry(world.sign(OUTSIDER, build_federation(keys=PUBLIC_KEY)))
    ceremonies.reach_keys()
    assert refuse(world, ceremonies.build_confirm(FIRST)) is Reason.CEREMONY_KEY_USED


def test_keys_of_a_ready_ceremony_are_kept_for_its_committee(ceremonies: Ceremonies) -> None:
    """Else anybody could use up what n hospitals made, before their task is published."""
    world = ceremonies.world
    ceremonies.make_ready()
    for blob in (PUBLIC_KEY, RELIN_KEYS):
        federation = world.sign(OUTSIDER, build_federation(keys=blob))
        assert refuse(world, federation) is Reason.FEDERATION_KEY_USED
    single = publish(world, OUTSIDER, build_draft(public_key=PUBLIC_KEY))
    assert refuse(world, single) is Reason.PUBLISH_KEY_USED
    Committee(world, ceremonies.ceremony).publish()


def test_a_ceremony_serves_one_task(ceremonies: Ceremonies) -> None:
    world = ceremonies.world
    ceremonies.make_ready()
    Committee(world, ceremonies.ceremony).publish()
    another = build_committee_draft(ceremonies.ceremony, salt=bytes([1] * 16))
    assert refuse(world, publish(world, MINER_A, another)) is Reason.PUBLISH_KEY_USED
    single = build_draft(public_key=PUBLIC_KEY)
    assert refuse(world, publish(world, OUTSIDER, single)) is Reason.PUBLISH_KEY_USED


# --- ends -------------------------------------------------------------------------------------


def test_a_member_aborts_and_it_is_on_record(ceremonies: Ceremonies) -> None:
    world = ceremonies.world
    for key in (OUTSIDER, COLLEAGUE):
        assert refuse(world, ceremonies.build_end(key)) is Reason.CEREMONY_EARLY
    assert Reason.CEREMONY_EARLY in PREMATURE
    ceremonies.commit((FIRST,))
    world.carry(ceremonies.build_end(SECOND))
    record = ceremonies.record
    assert (record.status, record.ended_by) == (CeremonyStatus.ABORTED, SECOND.address)
    assert refuse(world, ceremonies.build_commit(SECOND)) is Reason.CEREMONY_ENDED


def test_anybody_ends_one_that_missed_its_deadline(ceremonies: Ceremonies) -> None:
    world = ceremonies.world
    world.carry(ceremonies.build_end(OUTSIDER), after=LATE)
    record = ceremonies.record
    assert (record.status, record.ended_by) == (CeremonyStatus.EXPIRED, OUTSIDER.address)
    assert refuse(world, ceremonies.build_end(FIRST)) is Reason.CEREMONY_ENDED


def test_after_the_deadline_a_member_aborts_nothing(ceremonies: Ceremonies) -> None:
    ceremonies.world.carry(ceremonies.build_end(FIRST), after=LATE)
    assert ceremonies.record.status is CeremonyStatus.EXPIRED


# --- drafts -----------------------------------------------------------------------------------


def test_a_draft_names_a_ready_ceremony(ceremonies: Ceremonies) -> None:
    world = ceremonies.world

    def draft(key: SigningKey = CUSTODY, ceremony: Hash32 | None = None, **changes: object) -> Reason:
        made = build_committee_draft(ceremony or ceremonies.ceremony, **changes)
        return refuse(world, world.sign(key, DraftTask(made)))

    assert draft(ceremony=OTHER) is Reason.CEREMONY_UNKNOWN
    assert draft() is Reason.CEREMONY_UNREADY
    assert {Reason.CEREMONY_UNKNOWN, Reason.CEREMONY_UNREADY} <= PREMATURE
    ceremonies.make_ready()
    assert draft(OUTSIDER) is Reason.CEREMONY_MEMBER
    assert draft(COLLEAGUE) is Reason.CEREMONY_MEMBER
    assert draft(preset="another") is Reason.DRAFT_CEREMONY
    assert draft(public_key=build_blob("another")) is Reason.DRAFT_CEREMONY
    assert draft(relin_keys=build_blob("another")) is Reason.DRAFT_CEREMONY
    assert draft(relin_keys=replace(RELIN_KEYS, length=501)) is Reason.DRAFT_CEREMONY
    assert draft(clipping="per-patch") is Reason.DRAFT_FIELD
    for key in MEMBERS:
        made = world.sign(key, DraftTask(build_committee_draft(ceremonies.ceremony)))
        apply_transaction(world.state, made, world.get_context())


def test_a_single_custodian_clips_by_patch() -> None:
    world = World()
    box = world.sign(CUSTODY, DraftTask(build_draft(clipping="box")))
    assert refuse(world, box) is Reason.DRAFT_FIELD
    assert build_draft().ceremony == ZERO_HASH


# --- the record -------------------------------------------------------------------------------


def test_a_ceremony_is_proved_under_the_state_root(ceremonies: Ceremonies) -> None:
    world = ceremonies.make_ready().world
    key = get_ceremony_key(ceremonies.ceremony)
    proof = world.state.tree.get_proof(key)
    assert verify_proof(world.state.root, key, encode(ceremonies.record), proof)


def test_transactions_hold_on_every_fork() -> None:
    """All but the creation apply in blocks of other heights and times, and leave the same rounds."""
    one, other = Ceremonies().create(), Ceremonies().create()
    for _ in range(3):
        other.world.carry(after=5_000)
    commits = [one.build_commit(key) for key in MEMBERS]
    one.world.carry(*commits)
    other.world.carry(*reversed(commits))
    for there in (one, other):
        there.finalize()
    reveals = [one.build_reveal(key) for key in (SECOND, THIRD, FIRST)]
    for there in (one, other):
        there.world.carry(*reveals)
    assert one.record.complete == other.record.complete != ()
