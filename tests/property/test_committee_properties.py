"""Ceremonies under any sequence of transactions, and openings under any set of signers and confirmers."""

from functools import lru_cache

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ceremonies import ROUNDS, CeremonyRecord, CeremonyStatus, CommitRound
from consensus.ceremony import compute_commitment
from consensus.codec import decode, encode
from consensus.crypto import SigningKey
from consensus.errors import InvalidTransaction, Reason
from consensus.identifiers import compute_opening_hash
from consensus.state import State
from consensus.task import OpenGradient
from consensus.transaction import SignedTransaction
from consensus.transition import apply_transaction
from consensus.types import Address, Hash32
from tests.unit.consensus.ceremonial import MEMBERS, Ceremonies, Committee, build_committee
from tests.unit.consensus.world import KEYS, MINER_A, MINER_B, ORGANISATIONS, build_blob

keys = st.sampled_from((*MEMBERS, *MEMBERS, *KEYS))
STAKES = {"hospital": 20, "lab-a": 10, "lab-b": 10, "": 0}


# --- ceremonies -------------------------------------------------------------------------------


def draw_part(there: Ceremonies, data: st.DataObject) -> SignedTransaction:
    """Anything by anyone: often too early, too late or by the wrong one."""
    kind = data.draw(st.sampled_from(["commit", "reveal", "reveal other", "commit other", "confirm", "end"]))
    key = data.draw(keys)
    number = data.draw(st.sampled_from([None, None, None, 0, 1, 4]))
    match kind:
        case "commit":
            return there.build_commit(key, number)
        case "commit other":
            digest = Hash32(bytes([data.draw(st.integers(0, 3))]) * 32)
            return there.world.sign(key, CommitRound(there.ceremony, there.round, digest))
        case "reveal":
            return there.build_reveal(key, number)
        case "reveal other":
            return there.build_reveal(key, number, contribution=build_blob("other"))
        case "confirm":
            name = data.draw(st.sampled_from(["joint public key", "joint public key", "wrong"]))
            return there.build_confirm(key, public_key=build_blob(name, 400))
        case _:
            is_seldom = data.draw(st.integers(0, 9)) == 0
            return there.build_end(key) if is_seldom else there.build_commit(key)


def draw_progress(there: Ceremonies) -> list[SignedTransaction]:
    """What honest members would send now."""
    record = there.record
    if there.round == len(ROUNDS):
        confirmed = {item.member for item in record.confirmations}
        return [there.build_confirm(key) for key in MEMBERS if key.address not in confirmed]
    committed = {item.member for item in record.commitments}
    if len(committed) < len(MEMBERS):
        return [there.build_commit(key) for key in MEMBERS if key.address not in committed]
    shown = {item.member for item in record.reveals}
    return [there.build_reveal(key) for key in MEMBERS if key.address not in shown]


def check(there: Ceremonies, commitments: dict[tuple[int, Address], Hash32]) -> None:
    """Whatever is complete was committed to by all members before any of it was shown."""
    world, record = there.world, there.record
    assert decode(CeremonyRecord, encode(record)) == record
    assert len(record.contributions) == record.round <= len(ROUNDS)
    for number, found in enumerate(record.contributions):
        for key, blob in zip(MEMBERS, found, strict=True):
            expected = compute_commitment(there.ceremony, number, key.address, blob.root, there.get_salt(key))
            assert commitments[number, key.address] == expected
    for item in record.commitments:
        kept = commitments.setdefault((there.round, item.member), item.commitment)
        assert kept == item.commitment
    if record.reveals:
        assert len(record.commitments) == len(MEMBERS)
        assert world.state.get_finality().finalized.height >= record.committed_height > 0
    if record.status is CeremonyStatus.READY:
        assert record.round == len(ROUNDS)
        assert sorted(item.member for item in record.confirmations) == [key.address for key in MEMBERS]
        assert len({(item.public_key, item.relin_keys) for item in record.confirmations}) == 1
    assert record.ended_by is None or record.status is CeremonyStatus.ENDED


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_nobody_chooses_after_seeing_the_others(data: st.DataObject) -> None:
    there = Ceremonies().create()
    commitments: dict[tuple[int, Address], Hash32] = {}
    for _ in range(data.draw(st.integers(10, 60))):
        if there.record.status is not CeremonyStatus.RUNNING:
            break
        is_noise = data.draw(st.integers(0, 3)) == 0
        wanted = [draw_part(there, data)] if is_noise else draw_progress(there)
        valid, state = [], there.world.state
        for transaction in wanted:
            try:
                state = apply_transaction(state, transaction, there.world.get_context())
            except InvalidTransaction:
                continue
            valid.append(transaction)
        there.world.carry(*valid)
        check(there, commitments)


# --- openings ---------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def get_committee() -> Committee:
    """At step 1. Never changed."""
    committee = build_committee()
    committee.open_loss(900)
    committee.open_gradient()
    return committee


def try_opening(committee: Committee, opening: OpenGradient) -> State | Reason:
    world = committee.world
    transaction = world.sign(MEMBERS[0], opening)
    try:
        return apply_transaction(world.state, transaction, world.get_context())
    except InvalidTransaction as error:
        return error.reason


signers = st.lists(st.sampled_from((*MEMBERS, *MEMBERS, *KEYS)), max_size=5)


@settings(max_examples=60, deadline=None)
@given(signers)
def test_an_opening_stands_with_enough_members_and_nobody_else(chosen: list[SigningKey]) -> None:
    committee = get_committee()
    opening = committee.build_gradient(keys=chosen)
    addresses = [key.address for key in chosen]
    fits = len(set(addresses)) == len(addresses) >= 2 and set(chosen) <= set(MEMBERS)
    result = try_opening(committee, opening)
    assert (result is not Reason.OPENING_SIGNERS) == fits
    assert isinstance(result, State) == fits
    assert compute_opening_hash(opening) == compute_opening_hash(committee.build_gradient())


confirmers = st.lists(st.sampled_from(KEYS), max_size=4, unique_by=lambda key: key.address)


@settings(max_examples=60, deadline=None)
@given(confirmers, confirmers)
def test_a_batch_counts_with_organisations_of_more_than_a_third(
    first: list[SigningKey], second: list[SigningKey]
) -> None:
    """Each organisation once; all that stand there are credited, or nothing is opened."""
    committee = get_committee()
    claims = committee.world.build_claims(1)
    confirmations = (*committee.confirm(claims[:1], first), *committee.confirm(claims[1:], second))
    opening = committee.build_gradient(confirmations=confirmations)
    assert isinstance(opening, OpenGradient)
    fits = True
    for miner, others in ((MINER_A, first), (MINER_B, second)):
        names = [ORGANISATIONS[key] for key in (miner, *others)]
        stake = sum(STAKES[name] for name in names)
        fits = fits and "" not in names and len(set(names)) == len(names) and 3 * stake > 40
    result = try_opening(committee, opening)
    assert isinstance(result, State) == fits
    if isinstance(result, State):
        task = result.get_task(committee.world.task)
        before = committee.world.task_state
        assert task is not None
        credited = sum(credit.batches for credit in task.interval_credits)
        grown = credited - sum(credit.batches for credit in before.interval_credits)
        assert grown == 2 + len(first) + len(second)
