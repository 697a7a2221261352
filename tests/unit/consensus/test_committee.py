"""Openings of a committee: enough members over one content, attempts that count, confirmed batches."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from consensus.claims import compute_seal, sign_claim, sign_sealed_claim, verify_sealed_claim
from consensus.codec import decode, encode
from consensus.committee import check_confirmations, sign_opening, verify_cosignature
from consensus.crypto import SigningKey, hash_domain
from consensus.errors import InvalidBlock, InvalidTransaction, Reason
from consensus.genesis import build_genesis_state
from consensus.identifiers import compute_opening_hash, get_content
from consensus.params import Genesis, GenesisAccount, Validator
from consensus.payload import Accuse, ReportOpenings, SignedOpening, WrongBundle, WrongLoss
from consensus.publication import MAX_CLAIMANTS, compute_escrow
from consensus.records import TaskStatus
from consensus.settlement import is_expirable
from consensus.task import Cosignature, Credit, ExpireTask, OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from consensus.types import ZERO_HASH, Amount, Signature
from tests.unit.consensus.ceremonial import (
    MEMBERS,
    Ceremonies,
    Committee,
    Opening,
    build_committee,
    build_committee_draft,
)
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    PARAMS,
    START,
    World,
    build_blob,
    build_draft,
    build_publication,
)

FIRST, SECOND, THIRD = MEMBERS
OTHER = hash_domain("test", b"other")
EMPTY = Signature(b"")


def refuse(world: World, transaction: SignedTransaction) -> Reason:
    before = world.state.root
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(world.state, transaction, world.get_context())
    assert world.state.root == before
    return caught.value.reason


@pytest.fixture
def committee() -> Committee:
    """Two of three; at step 1, where no loss is scheduled."""
    committee = build_committee()
    committee.open_loss(900)
    committee.open_gradient()
    return committee


# --- signers (W3) -----------------------------------------------------------------------------


@pytest.mark.parametrize("sender", MEMBERS)
def test_any_member_sends_what_enough_members_signed(committee: Committee, sender: SigningKey) -> None:
    for keys in (MEMBERS[:2], MEMBERS[1:], (FIRST, THIRD), MEMBERS):
        opening = committee.build_gradient(keys=keys)
        world = committee.world
        apply_transaction(world.state, world.sign(sender, opening), world.get_context())


def _cosign_other(committee: Committee, other: Opening, opening: Opening) -> Opening:
    """The opening with the signatures of another content."""
    return replace(opening, cosignatures=committee.cosign(other).cosignatures)


Change = Callable[[Committee, Opening], Opening]
FORGED: list[tuple[Change, Reason]] = [
    (lambda c, o: replace(o, cosignatures=()), Reason.OPENING_SIGNERS),
    (lambda c, o: replace(o, cosignatures=o.cosignatures[:1]), Reason.OPENING_SIGNERS),
    (lambda c, o: replace(o, cosignatures=(o.cosignatures[0],) * 2), Reason.OPENING_SIGNERS),
    (lambda c, o: replace(o, cosignatures=o.cosignatures[::-1]), Reason.OPENING_SIGNERS),
    (lambda c, o: c.cosign(o, (FIRST, OUTSIDER)), Reason.OPENING_SIGNERS),
    (lambda c, o: c.cosign(o, (FIRST, SECOND, COLLEAGUE)), Reason.OPENING_SIGNERS),
    (lambda c, o: _cosign_other(c, replace(o, attempt=2), o), Reason.OPENING_SIGNATURE),
    (lambda c, o: replace(o, attempt=2), Reason.OPENING_SIGNATURE),
    (lambda c, o: _cosign_other(c, replace(o, previous=OTHER), o), Reason.OPENING_SIGNATURE),
    (lambda c, o: _cosign_other(c, replace(o, task=OTHER), o), Reason.OPENING_SIGNATURE),
    (lambda c, o: c.cosign(replace(o, attempt=0)), Reason.OPENING_ATTEMPT),
    (lambda c, o: c.cosign(replace(o, attempt=3)), Reason.OPENING_ATTEMPT),
    (lambda c, o: c.cosign(replace(o, attempt=-1)), Reason.OPENING_ATTEMPT),
]


@pytest.mark.parametrize(("change", "reason"), FORGED)
@pytest.mark.parametrize("is_loss", [False, True])
def test_forged_openings_are_refused(
    committee: Committee, change: Change, reason: Reason, is_loss: bool
) -> None:
    world = committee.world
    if is_loss:
        committee.open_gradient()
    honest = committee.build_loss(500) if is_loss else committee.build_gradient()
    forged = world.sign(CUSTODY, change(committee, honest))
    valid = world.build_carrier(world.sign(CUSTODY, honest))
    assert refuse(world, forged) is reason
    with pytest.raises(InvalidBlock) as caught:
        world.validate(world.forge(valid, body=replace(valid.body, transactions=(forged,))))
    assert (caught.value.reason, caught.value.cause) == (Reason.B6_TRANSACTION, reason)
    world.add(valid)


def test_other_numbers_need_other_signatures(committee: Committee) -> None:
    world, opening = committee.world, committee.build_gradient()
    assert isinstance(opening, OpenGradient)
    for forged in (
        replace(opening, gradient=(5, 6, -8)),
        replace(opening, confirmations=()),
        replace(opening, claims=world.build_claims(1, (MINER_B,))),
    ):
        assert refuse(world, world.sign(CUSTODY, forged)) is Reason.OPENING_SIGNATURE


def test_signatures_are_of_one_chain_and_one_kind(committee: Committee) -> None:
    world, opening = committee.world, committee.build_gradient()
    foreign = tuple(sign_opening(key, OTHER, opening) for key in MEMBERS[:2])
    forged = replace(opening, cosignatures=foreign)
    assert refuse(world, world.sign(CUSTODY, forged)) is Reason.OPENING_SIGNATURE
    # What a member signs as a transaction is no cosignature, nor the other way round.
    signed = world.sign(FIRST, get_content(opening)).signature
    assert not verify_cosignature(world.chain_id, opening, Cosignature(FIRST.address, signed))
    assert verify_cosignature(world.chain_id, opening, opening.cosignatures[0])


def test_nobody_else_sends_an_opening(committee: Committee) -> None:
    world, opening = committee.world, committee.build_gradient()
    for key in (OUTSIDER, COLLEAGUE):
        assert refuse(world, world.sign(key, opening)) is Reason.OPENING_CUSTODY


def test_who_signs_is_looked_at_before_what_may_wait(committee: Committee) -> None:
    """One member alone can't take the place of an opening that is yet to come."""
    world = committee.world
    ahead = replace(committee.build_gradient(), step=2)
    assert refuse(world, world.sign(THIRD, ahead)) is Reason.OPENING_SIGNATURE
    assert refuse(world, world.sign(THIRD, committee.cosign(ahead))) is Reason.OPENING_STEP


def test_a_single_custodian_has_none_of_it() -> None:
    world = World()
    world.open()
    loss = world.build_loss(900)
    for wrong, reason in (
        (replace(loss, attempt=2), Reason.OPENING_ATTEMPT),
        (replace(loss, attempt=0), Reason.OPENING_ATTEMPT),
        (
            replace(loss, cosignatures=(sign_opening(CUSTODY, world.chain_id, loss),)),
            Reason.OPENING_SIGNERS,
        ),
    ):
        assert refuse(world, world.sign(CUSTODY, wrong)) is reason
    world.open_loss(900)
    gradient = world.build_gradient()
    sealed = sign_sealed_claim(CUSTODY, world.chain_id, world.task, 0, 0, gradient.claims[0].bundle.root)
    confirmed = world.sign(CUSTODY, replace(gradient, confirmations=(sealed,)))
    assert refuse(world, confirmed) is Reason.OPENING_CONFIRMATIONS


# --- content ----------------------------------------------------------------------------------


def test_two_sets_of_signers_make_one_opening(committee: Committee) -> None:
    world = committee.world
    first, second = (committee.build_gradient(keys=keys) for keys in (MEMBERS[:2], MEMBERS[1:]))
    assert first != second
    assert compute_opening_hash(first) == compute_opening_hash(second)
    assert get_content(first) == get_content(second) == replace(first, cosignatures=())
    world.carry(world.sign(FIRST, first))
    assert world.task_state.previous == compute_opening_hash(second)
    assert refuse(world, world.sign(SECOND, second)) is Reason.OPENING_DOUBLED


def test_another_attempt_is_another_opening(committee: Committee) -> None:
    opening = committee.build_gradient()
    assert compute_opening_hash(opening) != compute_opening_hash(replace(opening, attempt=2))
    assert decode(OpenGradient, encode(opening)) == opening


# --- attempts ---------------------------------------------------------------------------------


def test_a_retry_counts_twice(committee: Committee) -> None:
    world = committee.world
    committee.open_gradient(attempt=2)
    assert (world.task_state.step, world.task_state.gradient_openings) == (2, 3)
    committee.open_loss(500, attempt=2)
    assert world.task_state.loss_openings == 3
    assert world.task_state.loss_opened


def test_retries_are_bounded_by_the_drafts_numbers(committee: Committee) -> None:
    """Six openings: of steps 0 to 3 they take 1, 1, 2, 1, so that one is left, and no retry."""
    world = committee.world
    committee.open_gradient()
    committee.open_loss(500)
    committee.open_gradient(attempt=2)
    committee.open_gradient()
    committee.open_loss(500)
    assert world.task_state.gradient_openings == 5
    retry = world.sign(CUSTODY, committee.build_gradient(attempt=2))
    assert refuse(world, retry) is Reason.OPENING_LIMIT
    committee.open_gradient()
    assert (world.task_state.step, world.task_state.gradient_openings) == (5, 6)
    assert refuse(world, world.sign(CUSTODY, committee.build_gradient())) is Reason.OPENING_LIMIT
    expire = world.sign(OUTSIDER, ExpireTask(world.task))
    apply_transaction(world.state, expire, world.get_context())


def test_a_task_whose_losses_are_spent_can_be_ended(committee: Committee) -> None:
    """Five losses: 1 at step 0, then 2 and 2, and none is left for step 6."""
    world = committee.world
    committee.open_gradient()
    for _ in range(2):
        committee.open_loss(500, attempt=2)
        committee.open_gradient()
        committee.open_gradient()
    assert (world.task_state.step, world.task_state.loss_openings) == (6, 5)
    assert refuse(world, world.sign(CUSTODY, committee.build_loss(10))) is Reason.OPENING_LIMIT
    money = world.count_money()
    world.carry(world.sign(OUTSIDER, ExpireTask(world.task)))
    assert world.task_state.status == TaskStatus.EXPIRED
    assert world.count_money() == money


def test_a_task_with_losses_left_goes_on(committee: Committee) -> None:
    world = committee.world
    committee.open_gradient()
    publication = world.state.get_publication(world.task)
    record = world.state.get_draft(world.draft)
    assert publication is not None
    assert record is not None
    spent = replace(world.task_state, gradient_openings=6)
    assert not is_expirable(spent, publication, record.draft, world.get_context())
    spent = replace(world.task_state, loss_openings=5)
    assert is_expirable(spent, publication, record.draft, world.get_context())


# --- confirmed batches ------------------------------------------------------------------------


def test_a_sealed_claim_is_its_miners(committee: Committee) -> None:
    world = committee.world
    root = build_blob("bundle").root
    sealed = sign_sealed_claim(MINER_A, world.chain_id, world.task, 1, 0, root)
    assert sealed.seal == compute_seal(root, MINER_A.address) != compute_seal(root, MINER_B.address)
    assert verify_sealed_claim(world.chain_id, sealed)
    assert not verify_sealed_claim(OTHER, sealed)
    assert not verify_sealed_claim(world.chain_id, replace(sealed, miner=MINER_B.address))
    assert not verify_sealed_claim(world.chain_id, replace(sealed, batch=1))
    # The open claim of the same bundle is another statement.
    claim = sign_claim(MINER_A, world.chain_id, world.task, 1, 0, build_blob("bundle"))
    assert not verify_sealed_claim(world.chain_id, replace(sealed, signature=claim.signature))


def test_claimants_and_all_who_confirmed_are_credited(committee: Committee) -> None:
    """Two batches a step, of one lab each; the hospital confirmed all, the other lab those of step 1."""
    world = committee.world
    claims = world.build_claims(1)
    confirmations = tuple(
        item
        for claim in claims
        for item in committee.confirm((claim,), [k for k in MEMBERS if k.address != claim.miner])
    )
    world.carry(world.sign(CUSTODY, committee.build_gradient(confirmations=confirmations)))
    counts = {credit.miner: credit.batches for credit in world.task_state.interval_credits}
    assert counts == {MINER_A.address: 3, MINER_B.address: 3, CUSTODY.address: 4}
    assert world.task_state.interval_credits == tuple(
        Credit(address, counts[address]) for address in sorted(counts)
    )


def _change_confirmation(at: int, **changes: object) -> Callable[[Committee], Opening]:
    def build(committee: Committee) -> Opening:
        items = list(committee.confirm(committee.world.build_claims(1)))
        items[at] = replace(items[at], **changes)
        return committee.build_gradient(confirmations=tuple(items))

    return build


def _resign(at: int, **changes: object) -> Callable[[Committee], Opening]:
    """Confirmations of which one is of something else, signed all the same."""

    def build(committee: Committee) -> Opening:
        world = committee.world
        items = list(committee.confirm(world.build_claims(1)))
        fields = {"step": 1, "batch": items[at].batch, "task": world.task, "root": OTHER, **changes}
        items[at] = sign_sealed_claim(
            CUSTODY, world.chain_id, fields["task"], fields["step"], fields["batch"], fields["root"]
        )
        return committee.build_gradient(confirmations=tuple(items))

    return build


def _confirm_by(*keys: SigningKey) -> Callable[[Committee], Opening]:
    return lambda c: c.build_gradient(confirmations=c.confirm(c.world.build_claims(1), keys))


def _copy_seal(committee: Committee) -> Opening:
    """What one miner showed, under the name and signature of another."""
    items = committee.confirm(committee.world.build_claims(1))
    copied = tuple(replace(item, miner=COLLEAGUE.address) for item in items)
    return committee.build_gradient(confirmations=copied)


def _reorder(committee: Committee) -> Opening:
    return committee.build_gradient(confirmations=committee.confirm(committee.world.build_claims(1))[::-1])


def _double(committee: Committee) -> Opening:
    items = committee.confirm(committee.world.build_claims(1))
    return committee.build_gradient(confirmations=(items[0], *items))


REFUSED: list[tuple[Callable[[Committee], Opening], Reason]] = [
    (lambda c: c.build_gradient(confirmations=()), Reason.OPENING_STAKE),
    (lambda c: c.build_gradient(confirmations=c.confirm(c.world.build_claims(1)[:1])), Reason.OPENING_STAKE),
    (_resign(0), Reason.OPENING_SEAL),
    (_change_confirmation(1, seal=OTHER), Reason.OPENING_SEAL),
    (_copy_seal, Reason.OPENING_SEAL),
    (_resign(0, step=2), Reason.OPENING_CONFIRMATIONS),
    (_resign(1, batch=9), Reason.OPENING_CONFIRMATIONS),
    (_resign(0, task=OTHER), Reason.OPENING_CONFIRMATIONS),
    (_change_confirmation(0, signature=Signature(bytes(64))), Reason.OPENING_CLAIM_SIGNATURE),
    (_change_confirmation(0, signature=EMPTY), Reason.OPENING_CLAIM_SIGNATURE),
    (_reorder, Reason.OPENING_CONFIRMATIONS),
    (_double, Reason.OPENING_CONFIRMATIONS),
    (_confirm_by(CUSTODY, COLLEAGUE), Reason.OPENING_CONFIRMATIONS),
    (_confirm_by(MINER_A), Reason.OPENING_CONFIRMATIONS),
    (_confirm_by(CUSTODY, OUTSIDER), Reason.OPENING_MINER),
]


@pytest.mark.parametrize(("build", "reason"), REFUSED)
def test_unconfirmed_batches_are_not_opened(
    committee: Committee, build: Callable[[Committee], Opening], reason: Reason
) -> None:
    """The labs have a quarter of all stake each, the hospital the half."""
    world = committee.world
    assert refuse(world, world.sign(CUSTODY, build(committee))) is reason
    committee.open_gradient()


def test_the_claims_of_a_committee_are_checked_as_any(committee: Committee) -> None:
    world = committee.world
    claims = world.build_claims(1)
    forged = (replace(claims[0], bundle=build_blob("other")), claims[1])
    opening = committee.build_gradient(claims=forged, confirmations=committee.confirm(forged))
    assert refuse(world, world.sign(CUSTODY, opening)) is Reason.OPENING_CLAIM_SIGNATURE


def test_a_suspended_organisation_confirms_nothing(committee: Committee) -> None:
    world = committee.world
    state = world.state.with_suspended(("hospital",))
    transaction = world.sign(CUSTODY, committee.build_gradient())
    with pytest.raises(InvalidTransaction) as caught:
        apply_transaction(state, transaction, world.get_context())
    assert caught.value.reason is Reason.OPENING_MINER


def test_an_organisation_of_enough_stake_needs_nobody_else(committee: Committee) -> None:
    world = committee.world
    claims = world.build_claims(1, (COLLEAGUE,))
    world.carry(world.sign(CUSTODY, committee.build_gradient(claims=claims, confirmations=())))
    assert world.task_state.step == 2


@pytest.mark.parametrize(
    ("stakes", "count", "reason"),
    [
        ((10,) * 9, 3, Reason.OPENING_STAKE),  # just a third
        ((10,) * 9, 4, None),
        ((10, 10, 11, 10), 1, Reason.OPENING_STAKE),
        ((1_000_000, *((1,) * 9)), 8, None),
        ((1_000_000, *((1,) * 9)), 9, Reason.OPENING_CONFIRMATIONS),
    ],
)
def test_more_than_a_third_of_stake_and_a_bounded_number(
    stakes: tuple[int, ...], count: int, reason: Reason | None
) -> None:
    """`count` organisations of one validator each, the first of them the claimant's."""
    keys = [SigningKey(bytes([n + 1]) * 32) for n in range(len(stakes))]
    names = tuple(f"organisation {n}" for n in range(len(keys)))
    genesis = Genesis(
        "test",
        START,
        PARAMS,
        tuple(GenesisAccount(key.address, Amount(0), name) for key, name in zip(keys, names, strict=True)),
        tuple(Validator(key.address, stake) for key, stake in zip(keys, stakes, strict=True)),
        names,
    )
    state = build_genesis_state(genesis)
    claim = sign_claim(keys[0], OTHER, OTHER, 0, 0, build_blob("bundle"))
    sealed = (sign_sealed_claim(key, OTHER, OTHER, 0, 0, claim.bundle.root) for key in keys[1:count])
    ordered = tuple(sorted(sealed, key=lambda item: item.miner))
    opening = OpenGradient(OTHER, 0, ZERO_HASH, OTHER, (claim,), ordered, (), 1, ())
    if reason is None:
        check_confirmations(state, opening, OTHER)
        return
    with pytest.raises(InvalidTransaction) as caught:
        check_confirmations(state, opening, OTHER)
    assert caught.value.reason is reason


# --- money ------------------------------------------------------------------------------------


def test_the_escrow_pays_everybody_who_may_be_credited() -> None:
    publication = build_publication(OTHER, ())
    rewards, fees = 1_801, 7 * 2 * 6
    assert compute_escrow(publication, build_draft()) == rewards + fees
    assert compute_escrow(publication, build_committee_draft(OTHER)) == rewards + MAX_CLAIMANTS * fees


def test_a_committees_task_is_mined_settled_and_paid_to_its_end(committee: Committee) -> None:
    """The lead may not propose (W2), the other members may; all money stays."""
    world = committee.world
    money = world.count_money()
    committee.open_gradient(keys=MEMBERS)
    committee.open_loss(5, keys=MEMBERS[1:])
    (milestone,) = world.task_state.qualified
    assert {credit.miner for credit in milestone.credits} == {key.address for key in MEMBERS}
    assert sum(credit.batches for credit in milestone.credits) == 8
    for _ in range(2):
        world.carry()
    for key in (CUSTODY, COLLEAGUE):
        with pytest.raises(InvalidBlock) as caught:
            world.validate(world.forge(world.build_work_block(MINER_A), key))
        assert caught.value.reason is Reason.W2_CUSTODY
    best = next(k for k in (MINER_A, MINER_B) if k.address in {c.miner for c in milestone.credits[:2]})
    world.add(world.build_work_block(best))
    before = {key: world.state.get_account(key.address).balance for key in MEMBERS}
    verdicts = [world.sign(key, world.build_verdict()) for key in (COLLEAGUE, MINER_A, MINER_B)]
    world.carry_by_turn(*verdicts)
    assert world.task_state.status == TaskStatus.COMPLETE
    for credit in milestone.credits:
        if credit.miner != CUSTODY.address:  # to which the rest of the escrow went back
            key = next(key for key in MEMBERS if key.address == credit.miner)
            earned = world.state.get_account(key.address).balance - before[key]
            assert 0 <= earned - (1_801 * credit.batches // 8 + 7 * credit.batches) <= 3
    assert world.count_money() == money


# --- evidence ---------------------------------------------------------------------------------


def report(committee: Committee, first: Opening, second: Opening) -> SignedTransaction:
    pair = ReportOpenings(SignedOpening(first, EMPTY), SignedOpening(second, EMPTY))
    return committee.world.sign(OUTSIDER, pair)


def test_two_contents_signed_by_enough_cost_the_bond(committee: Committee) -> None:
    world = committee.world
    money = world.count_money()
    first = committee.build_gradient()
    for second in (
        committee.build_gradient((1, 2, 3), MEMBERS[1:]),
        committee.cosign(replace(first, attempt=2), MEMBERS),
    ):
        apply_transaction(world.state, report(committee, first, second), world.get_context())
    world.carry(world.sign(FIRST, first))
    world.carry_by_turn(report(committee, first, second))
    assert world.task_state.status == TaskStatus.CLOSED
    assert world.state.get_charter().treasury == 5_000
    assert world.count_money() == money


def test_other_signers_of_one_content_are_no_evidence(committee: Committee) -> None:
    world = committee.world
    for build in (committee.build_gradient, lambda keys: committee.build_loss(10, keys)):
        first, second = build(keys=MEMBERS[:2]), build(keys=MEMBERS)
        assert refuse(world, report(committee, first, second)) is Reason.EVIDENCE_HARMLESS


def test_too_few_signers_are_no_evidence(committee: Committee) -> None:
    world = committee.world
    first, other = committee.build_gradient(), committee.build_gradient((1, 2, 3))
    for forged in (
        replace(other, cosignatures=other.cosignatures[:1]),
        replace(other, cosignatures=()),
        replace(other, cosignatures=first.cosignatures),
        committee.cosign(other, (FIRST, OUTSIDER)),
    ):
        assert refuse(world, report(committee, first, forged)) is Reason.EVIDENCE_SIGNATURE
        assert refuse(world, report(committee, forged, first)) is Reason.EVIDENCE_SIGNATURE
    # The lead's own transaction proves nothing where a committee opens.
    alone = replace(other, cosignatures=())
    pair = ReportOpenings(
        SignedOpening(first, EMPTY), SignedOpening(alone, world.sign(CUSTODY, alone).signature)
    )
    assert refuse(world, world.sign(OUTSIDER, pair)) is Reason.EVIDENCE_SIGNATURE


def test_a_wrong_loss_is_accused_by_whatever_signatures_prove_it(committee: Committee) -> None:
    """Three validators saw three sets of signers, and their accusations add up."""
    world = committee.world
    committee.open_gradient()

    def accuse(key: SigningKey, keys: tuple[SigningKey, ...], signature: Signature) -> SignedTransaction:
        loss = committee.build_loss(10, keys)
        assert isinstance(loss, OpenLoss)
        return world.sign(key, Accuse(WrongLoss(loss, signature, OTHER)))

    assert refuse(world, accuse(MINER_A, (FIRST,), EMPTY)) is Reason.EVIDENCE_SIGNATURE
    world.carry(accuse(MINER_A, MEMBERS[:2], EMPTY), accuse(MINER_B, MEMBERS[1:], Signature(bytes(64))))
    assert refuse(world, accuse(MINER_A, MEMBERS, EMPTY)) is Reason.ACCUSE_DOUBLED
    assert world.task_state.status == TaskStatus.OPEN
    world.carry(accuse(COLLEAGUE, MEMBERS, EMPTY))
    assert world.task_state.status == TaskStatus.CLOSED
    assert world.state.get_charter().treasury == 5_000


def test_a_wrong_bundle_of_a_committees_opening_suspends_its_claimant(committee: Committee) -> None:
    world = committee.world
    opening = committee.build_gradient()
    assert isinstance(opening, OpenGradient)
    world.carry(world.sign(FIRST, opening))
    accusation = Accuse(WrongBundle(opening.claims[0], OTHER))
    world.carry(*(world.sign(key, accusation) for key in (CUSTODY, COLLEAGUE, MINER_B)))
    assert world.state.get_suspended() == ("lab-a",)


# --- the threshold ----------------------------------------------------------------------------


def test_all_of_three_may_be_needed() -> None:
    ceremonies = Ceremonies().create(threshold=3).make_ready()
    committee = Committee(ceremonies.world, ceremonies.ceremony).open()
    world = committee.world
    assert refuse(world, world.sign(CUSTODY, committee.build_loss(900))) is Reason.OPENING_SIGNERS
    committee.open_loss(900, keys=MEMBERS)
    assert world.task_state.loss_opened
