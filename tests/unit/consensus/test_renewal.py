"""A committee's key shared anew: who may, what is skipped, and who opens from then on."""

from collections.abc import Sequence

import pytest

from consensus.ceremonies import ROUNDS, CeremonyStatus, CreateCeremony
from consensus.ceremony import find_dealers
from consensus.committee import get_committee, get_committees
from consensus.crypto import SigningKey, hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.payload import ReportOpenings, SignedOpening
from consensus.task import DraftTask, ExpireTask
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from consensus.types import Address, Hash32, Signature
from tests.unit.consensus.ceremonial import (
    MEMBERS,
    Ceremonies,
    Committee,
    build_ceremony,
    build_committee,
    build_committee_draft,
)
from tests.unit.consensus.world import CUSTODY, MINER_A, MINER_B, OUTSIDER, World, build_blob

FIRST, SECOND, THIRD = MEMBERS
PAIR = tuple(sorted((MINER_A, MINER_B), key=lambda key: key.address))
"""Who stays when the custody's organisation leaves."""
OTHER = hash_domain("test", b"other")


def get_addresses(keys: Sequence[SigningKey]) -> tuple[Address, ...]:
    return tuple(key.address for key in keys)


def refuse(world: World, transaction: SignedTransaction) -> Reason:
    before = world.state.root
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context())
    assert world.state.root == before
    return caught.value.reason


def renew(world: World, old: Hash32, keys: Sequence[SigningKey] = MEMBERS, threshold: int = 2) -> Ceremonies:
    """Begun by the last of them."""
    there = Ceremonies(world)
    return there.create(keys[-1], members=get_addresses(keys), threshold=threshold, renews=old)


def pass_rounds(there: Ceremonies, keys: Sequence[SigningKey]) -> None:
    while there.round < len(ROUNDS):
        there.commit(keys)
        there.finalize()
        there.reveal(keys)


def make_ready(there: Ceremonies, keys: Sequence[SigningKey] = MEMBERS) -> None:
    pass_rounds(there, keys)
    there.world.carry(*map(there.build_confirm, keys))
    assert there.record.status is CeremonyStatus.READY


@pytest.fixture
def ready() -> Ceremonies:
    return Ceremonies().create().make_ready()


@pytest.mark.parametrize(
    ("key", "changes", "reason"),
    [
        (CUSTODY, {"renews": OTHER}, Reason.CEREMONY_UNKNOWN),
        (CUSTODY, {"preset": "ckks-8192"}, Reason.CEREMONY_FIELD),
        (OUTSIDER, {}, Reason.CEREMONY_FIELD),
        (CUSTODY, {"threshold": 1}, Reason.CEREMONY_FIELD),
    ],
)
def test_what_is_no_renewal(
    ready: Ceremonies, key: SigningKey, changes: dict[str, object], reason: Reason
) -> None:
    payload = build_ceremony(**{"renews": ready.ceremony, **changes})
    assert refuse(ready.world, ready.world.sign(key, payload)) is reason


def test_only_keys_that_are_ready_are_shared_anew(ready: Ceremonies) -> None:
    world = ready.world
    running = Ceremonies(world).create()
    payload = build_ceremony(renews=running.ceremony)
    assert refuse(world, world.sign(CUSTODY, payload)) is Reason.CEREMONY_UNREADY
    world.carry(running.build_end(CUSTODY))
    assert refuse(world, world.sign(CUSTODY, payload)) is Reason.CEREMONY_ENDED


def test_enough_of_those_who_have_shares_take_part() -> None:
    """Of three who open together, two could not deal the key."""
    ready = Ceremonies().create(threshold=3).make_ready()
    payload = build_ceremony(members=get_addresses(PAIR), renews=ready.ceremony)
    assert refuse(ready.world, ready.world.sign(MINER_A, payload)) is Reason.CEREMONY_FIELD


def test_a_stranger_may_not_begin(ready: Ceremonies) -> None:
    """Who left has no share to renew, though it is a member of the next."""
    world = ready.world
    make_ready(renew(world, ready.ceremony, PAIR), PAIR)
    following = ready.record.renewed_by
    payload = build_ceremony(renews=following)
    assert refuse(world, world.sign(CUSTODY, payload)) is Reason.CEREMONY_MEMBER


def test_rounds_of_keys_are_skipped_and_shares_pass_on(ready: Ceremonies) -> None:
    world = ready.world
    there = renew(world, ready.ceremony)
    seen = []
    while there.round < len(ROUNDS):
        seen.append(ROUNDS[there.round])
        there.commit()
        there.finalize()
        there.reveal()
    assert seen == ["coins", "secrets", "test"]
    assert [len(row) for row in there.record.contributions] == [3, 0, 0, 3, 3]
    other = there.build_confirm(FIRST, public_key=build_blob("another public key"))
    assert refuse(world, other) is Reason.CEREMONY_FIELD
    world.carry(*map(there.build_confirm, MEMBERS))
    assert there.record.status is CeremonyStatus.READY
    assert ready.record.renewed_by == there.ceremony
    chain = world.state.get_ceremonies(ready.ceremony)
    assert [ceremony for ceremony, _ in chain] == [ready.ceremony, there.ceremony]
    # Only the last of them can be renewed.
    payload = build_ceremony(renews=ready.ceremony)
    assert refuse(world, world.sign(CUSTODY, payload)) is Reason.CEREMONY_RENEWED
    make_ready(renew(world, there.ceremony))
    assert len(world.state.get_ceremonies(ready.ceremony)) == 3


def test_of_two_renewals_the_first_counts(ready: Ceremonies) -> None:
    world = ready.world
    one, two = renew(world, ready.ceremony), renew(world, ready.ceremony)
    pass_rounds(two, MEMBERS)
    make_ready(one)
    assert refuse(world, two.build_confirm(FIRST)) is Reason.CEREMONY_RENEWED
    world.carry(two.build_end(FIRST))
    assert ready.record.renewed_by == one.ceremony


def test_one_that_is_given_up_changes_nothing(ready: Ceremonies) -> None:
    world = ready.world
    there = renew(world, ready.ceremony)
    world.carry(there.build_end(SECOND))
    assert ready.record.status is CeremonyStatus.READY
    make_ready(renew(world, ready.ceremony))


def test_as_many_deal_as_opened_together() -> None:
    old = build_ceremony()
    new = CreateCeremony("", "", get_addresses(PAIR), 2, old.deadline, OTHER)
    assert find_dealers(old, old) == get_addresses(MEMBERS[:2])
    assert find_dealers(old, new) == get_addresses(PAIR)


# --- tasks ------------------------------------------------------------------------------------


@pytest.fixture
def committee() -> Committee:
    """Two of three; at step 1, where no loss is scheduled."""
    committee = build_committee()
    committee.open_loss(900)
    committee.open_gradient()
    return committee


def test_those_who_have_the_shares_now_open(committee: Committee) -> None:
    """The custody's organisation leaves; it is the lead, and stays so."""
    world = committee.world
    before = committee.build_gradient(keys=(CUSTODY, MINER_A))
    make_ready(renew(world, committee.ceremony, PAIR), PAIR)
    after = committee.build_gradient(keys=PAIR)
    assert refuse(world, world.sign(MINER_A, before)) is Reason.OPENING_SIGNERS
    assert refuse(world, world.sign(CUSTODY, after)) is Reason.OPENING_CUSTODY
    world.carry(world.sign(MINER_A, after))
    record = world.state.get_draft(world.draft)
    assert record is not None
    present = get_committee(world.state, record.draft)
    assert present is not None
    assert present.members == get_addresses(PAIR)
    assert [len(item.members) for item in get_committees(world.state, record.draft)] == [3, 2]


def test_what_was_signed_before_is_evidence_still(committee: Committee) -> None:
    world = committee.world
    keys = (CUSTODY, MINER_A)
    one, two = (committee.build_gradient(gradient=(value, 6, -7), keys=keys) for value in (5, 4))
    make_ready(renew(world, committee.ceremony, PAIR), PAIR)
    empty = Signature(b"")
    report = ReportOpenings(SignedOpening(one, empty), SignedOpening(two, empty))
    apply_transaction(world.state, world.sign(OUTSIDER, report), world.get_context())


def test_what_old_shares_may_have_answered_is_counted(committee: Committee) -> None:
    """Both attempts, of the kind that comes next; of losses where one is due, to the draft's limit."""
    world, shares = committee.world, committee.ceremony

    def get_spent() -> tuple[int, int, int]:
        state = world.task_state
        return state.step, state.gradient_openings, state.loss_openings

    assert get_spent() == (1, 1, 1)
    make_ready(renew(world, shares))
    assert get_spent() == (1, 3, 1)
    committee.open_gradient()
    shares = world.state.get_ceremonies(shares)[-1][0]
    make_ready(renew(world, shares))
    assert get_spent() == (2, 4, 3)
    committee.open_loss(500)
    make_ready(renew(world, world.state.get_ceremonies(shares)[-1][0]))
    assert get_spent() == (2, 6, 4)
    # Six openings are all of the draft's.
    assert refuse(world, world.sign(CUSTODY, committee.build_gradient())) is Reason.OPENING_LIMIT
    make_ready(renew(world, world.state.get_ceremonies(shares)[-1][0]))
    assert get_spent() == (2, 6, 4)
    world.carry(world.sign(OUTSIDER, ExpireTask(world.task)))
    make_ready(renew(world, world.state.get_ceremonies(shares)[-1][0]))
    assert get_spent() == (2, 6, 4)


def test_a_task_that_waits_for_validators_has_opened_nothing() -> None:
    ready = Ceremonies().create().make_ready()
    committee = Committee(ready.world, ready.ceremony)
    committee.publish()
    make_ready(renew(committee.world, committee.ceremony))
    state = committee.world.task_state
    assert (state.gradient_openings, state.loss_openings) == (0, 0)


def test_drafts_name_the_ceremony_that_made_the_keys(ready: Ceremonies) -> None:
    world = ready.world
    there = renew(world, ready.ceremony, PAIR)
    make_ready(there, PAIR)
    draft = build_committee_draft(ready.ceremony)
    assert refuse(world, world.sign(CUSTODY, DraftTask(draft))) is Reason.CEREMONY_MEMBER
    renewal = DraftTask(build_committee_draft(there.ceremony))
    assert refuse(world, world.sign(MINER_A, renewal)) is Reason.DRAFT_CEREMONY
    world.carry(world.sign(MINER_A, DraftTask(draft)))
