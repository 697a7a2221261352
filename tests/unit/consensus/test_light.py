"""What a light client believes, and all that it does not."""

from dataclasses import replace

import pytest

from benchmarks.voted_chain import VotedChain, build_genesis, build_keys
from consensus.codec import decode, encode
from consensus.crypto import SigningKey, compute_merkle_root
from consensus.light import (
    ConflictingFinality,
    FinalityProof,
    LightError,
    LightReason,
    LightState,
    SetChange,
    build_set_proof,
    find_slashable,
    get_votes,
    is_expired,
    pick_votes,
    trust_header,
    update,
    update_at_any_age,
    verify_account,
    verify_finality_proof,
    verify_headers,
    verify_set_change,
    verify_task,
    verify_transaction,
)
from consensus.params import Validator
from consensus.payload import SetValidators
from consensus.proofs import ListProof, build_list_proof, verify_list_proof
from consensus.state import NO_ACCOUNT, get_account_key, get_task_key
from consensus.task import Transfer
from consensus.transaction import sign_transaction
from consensus.types import Address, Amount, Hash32, Millis
from consensus.vote import is_slashable, sign_vote

KEYS = build_keys(4)
LEAVER, STAYERS = KEYS[0], KEYS[1:]
NEWCOMER = build_keys(1, "new")[0]
EVIDENCE_MS = 3_600_000


def build_chain(*more: SigningKey) -> VotedChain:
    keys = (*KEYS, *more)
    return VotedChain(build_genesis(KEYS, more), {key.address: key for key in keys})


def prove(chain: VotedChain, height: int, voters: tuple[SigningKey, ...] = KEYS) -> FinalityProof:
    """That this block is final, signed afresh by these keys."""
    source, target = chain.get_checkpoint(height), chain.get_checkpoint(height + 1)
    votes = [sign_vote(key, chain.chain_id, source, target) for key in voters]
    return FinalityProof(
        chain.get_header(height),
        build_set_proof(chain.states[height]),
        chain.get_header(height + 1),
        build_set_proof(chain.states[height + 1]),
        pick_votes(votes, source, target),
    )


def trust(chain: VotedChain, height: int) -> LightState:
    return trust_header(chain.get_header(height), build_set_proof(chain.states[height]))


def expect(reason: LightReason, chain: VotedChain, proof: FinalityProof) -> None:
    with pytest.raises(LightError) as caught:
        verify_finality_proof(chain.states[1].get_validator_set(), proof, chain.chain_id)
    assert caught.value.reason is reason


@pytest.fixture(scope="module")
def chain() -> VotedChain:
    chain = build_chain()
    chain.grow(8)
    return chain


@pytest.fixture(scope="module")
def changed() -> tuple[VotedChain, int]:
    """A chain in which one of four leaves and another comes, and the first height with the new set."""
    chain = build_chain(NEWCOMER)
    chain.grow(3)
    members = tuple(Validator(key.address, 100) for key in (*STAYERS, NEWCOMER))
    chain.add([chain.govern(STAYERS[0], SetValidators(members))])
    while chain.state.get_validator_set().number == 0:
        chain.add()
    height = chain.header.height
    chain.grow(4)
    return chain, height


# --- one set ----------------------------------------------------------------------------------


def test_votes_of_a_chain_prove_finality(chain: VotedChain) -> None:
    """The votes that honest validators put into blocks are such a proof."""
    height = chain.state.get_finality().finalized.height
    source, target = chain.get_checkpoint(height), chain.get_checkpoint(height + 1)
    votes = [vote for block in chain.blocks for vote in block.body.votes]
    proof = replace(prove(chain, height, ()), votes=pick_votes(votes, source, target))
    assert len(proof.votes) == 3  # the quorum; what comes later does not count
    known = chain.states[1].get_validator_set()
    assert verify_finality_proof(known, proof, chain.chain_id) == source
    assert decode(FinalityProof, encode(proof)) == proof


def test_two_thirds_are_needed_of_the_stake(chain: VotedChain) -> None:
    proof = prove(chain, 4, KEYS[:3])
    verify_finality_proof(chain.states[1].get_validator_set(), proof, chain.chain_id)
    expect(LightReason.QUORUM, chain, prove(chain, 4, KEYS[:2]))


def test_votes_are_by_members_once_each_and_signed(chain: VotedChain) -> None:
    proof = prove(chain, 4)
    expect(LightReason.VOTE_ORDER, chain, replace(proof, votes=proof.votes[::-1]))
    expect(LightReason.VOTE_ORDER, chain, replace(proof, votes=(proof.votes[0], *proof.votes)))
    expect(LightReason.VOTE_MEMBER, chain, prove(chain, 4, (*KEYS, NEWCOMER)))
    first, *others = proof.votes
    for broken in (bytes(64), others[0].signature, b"", first.signature[:63]):
        forged = replace(proof, votes=(replace(first, signature=broken), *others))
        expect(LightReason.VOTE_SIGNATURE, chain, forged)


def test_votes_of_another_link_prove_nothing(chain: VotedChain) -> None:
    """Not from s to another target, nor from below s: those don't say that s is justified."""
    proof = prove(chain, 4)
    expect(LightReason.VOTE_SIGNATURE, chain, replace(proof, votes=prove(chain, 5).votes))
    votes = [sign_vote(k, chain.chain_id, chain.get_checkpoint(3), chain.get_checkpoint(5)) for k in KEYS]
    low = pick_votes(votes, chain.get_checkpoint(3), chain.get_checkpoint(5))
    expect(LightReason.VOTE_SIGNATURE, chain, replace(proof, votes=low))


def test_the_target_is_the_child(chain: VotedChain) -> None:
    proof, other = prove(chain, 4), prove(chain, 5)
    far = replace(proof, target=other.target, target_set=other.target_set)
    expect(LightReason.LINK, chain, far)
    expect(LightReason.LINK, chain, replace(proof, target=replace(proof.target, parent=Hash32(bytes(32)))))


def test_sets_are_proved_and_not_claimed(chain: VotedChain) -> None:
    proof = prove(chain, 4)
    mine = replace(proof.source_set.validators, validators=(Validator(NEWCOMER.address, 1),))
    expect(
        LightReason.SET_PROOF, chain, replace(proof, source_set=replace(proof.source_set, validators=mine))
    )
    expect(
        LightReason.SET_PROOF, chain, replace(proof, target_set=replace(proof.target_set, validators=mine))
    )
    # What is proved under another block's root is not proved under this one's.
    account = chain.states[4].tree.get_proof(get_account_key(KEYS[0].address))
    expect(LightReason.SET_PROOF, chain, replace(proof, source_set=replace(proof.source_set, proof=account)))


def test_another_chain_proves_nothing(chain: VotedChain) -> None:
    other = VotedChain(build_genesis(KEYS, (NEWCOMER,)), {key.address: key for key in (*KEYS, NEWCOMER)})
    other.grow(6)
    expect(LightReason.CHAIN, chain, prove(other, 4))
    mixed = replace(prove(chain, 4), target=other.get_header(5))
    expect(LightReason.CHAIN, chain, mixed)


def test_genesis_is_known_from_its_document_alone(chain: VotedChain) -> None:
    """A header of height 0 hashes to the chain id whatever it says."""
    proof = prove(chain, 1)
    forged = replace(proof.source, height=type(proof.source.height)(0))
    expect(LightReason.GENESIS, chain, replace(proof, source=forged))
    with pytest.raises(LightError):
        trust_header(forged, proof.source_set)


# --- the client -------------------------------------------------------------------------------


def test_a_client_goes_forward_and_never_back(chain: VotedChain) -> None:
    state = trust(chain, 2)
    now = Millis(chain.header.time)
    later = update(state, (), prove(chain, 5), now, EVIDENCE_MS)
    assert later.checkpoint == chain.get_checkpoint(5)
    assert later.proof == prove(chain, 5)
    assert update(later, (), prove(chain, 5), now, EVIDENCE_MS) is later
    with pytest.raises(LightError) as caught:
        update(later, (), prove(chain, 4), now, EVIDENCE_MS)
    assert caught.value.reason is LightReason.REGRESS


def test_trust_that_is_too_old_needs_the_operator(chain: VotedChain) -> None:
    state = trust(chain, 2)
    limit = Millis(state.trusted.time + EVIDENCE_MS)
    assert not is_expired(state, limit, EVIDENCE_MS)
    update(state, (), prove(chain, 5), limit, EVIDENCE_MS)
    with pytest.raises(LightError) as caught:
        update(state, (), prove(chain, 5), Millis(limit + 1), EVIDENCE_MS)
    assert caught.value.reason is LightReason.EXPIRED
    assert update(state, (), prove(chain, 2), Millis(limit + 1), EVIDENCE_MS) is state
    # Unless it knows otherwise that the set still binds it.
    assert update_at_any_age(state, (), prove(chain, 5)).checkpoint == chain.get_checkpoint(5)


def test_a_version_that_is_not_known_is_not_followed(chain: VotedChain) -> None:
    state, now = trust(chain, 2), Millis(chain.header.time)
    with pytest.raises(LightError) as caught:
        update(state, (), prove(chain, 5), now, EVIDENCE_MS, known=0)
    assert caught.value.reason is LightReason.VERSION
    assert "install a newer release" in caught.value.detail
    with pytest.raises(LightError) as caught:
        trust_header(chain.get_header(2), build_set_proof(chain.states[2]), known=0)
    assert caught.value.reason is LightReason.VERSION
    # It is said of what is proved only: what is not is a lie, whatever its version.
    unproved = replace(prove(chain, 5), votes=())
    with pytest.raises(LightError) as caught:
        update(state, (), unproved, now, EVIDENCE_MS, known=0)
    assert caught.value.reason is LightReason.QUORUM


def test_two_final_blocks_of_one_height_are_evidence(chain: VotedChain) -> None:
    other = build_chain()
    other.grow(3)
    other.add(after=other.genesis.params.idle_ms + 7)
    other.grow(4)
    assert other.get_checkpoint(3) == chain.get_checkpoint(3)
    assert other.get_checkpoint(4) != chain.get_checkpoint(4)
    state = update_at_any_age(trust(chain, 2), (), prove(chain, 4))
    with pytest.raises(ConflictingFinality) as caught:
        update_at_any_age(state, (), prove(other, 4))
    assert (caught.value.first, caught.value.second) == (prove(chain, 4), prove(other, 4))
    pairs = find_slashable(prove(chain, 4), prove(other, 4))
    assert {first.validator for first, _ in pairs} == {key.address for key in KEYS}
    assert all(is_slashable(*pair) for pair in pairs)
    # Another height is told apart by the headers between.
    headers = [other.get_header(height) for height in (5, 6)]
    with pytest.raises(ConflictingFinality):
        update_at_any_age(state, (), prove(other, 6), headers)
    assert find_slashable(prove(chain, 4), prove(other, 6)) == ()
    honest = [chain.get_header(height) for height in (5, 6)]
    assert update_at_any_age(state, (), prove(chain, 6), honest).checkpoint == chain.get_checkpoint(6)


def test_headers_that_do_not_link_convict_nobody(chain: VotedChain) -> None:
    state = trust(chain, 2)
    headers = [chain.get_header(height) for height in (3, 4, 5)]
    for wrong in (headers[1:], [*headers[:1], headers[0], headers[2]], headers[::-1]):
        with pytest.raises(LightError) as caught:
            update_at_any_age(state, (), prove(chain, 5), wrong)
        assert not isinstance(caught.value, ConflictingFinality)


# --- changes of set ---------------------------------------------------------------------------


def prove_change(
    changed: tuple[VotedChain, int], voters: tuple[SigningKey, ...] = (*KEYS, NEWCOMER)
) -> SetChange:
    chain, height = changed
    source, target = chain.get_checkpoint(height - 1), chain.get_checkpoint(height)
    votes = [sign_vote(key, chain.chain_id, source, target) for key in voters]
    proof = build_set_proof(chain.states[height])
    return SetChange(chain.get_header(height), proof, source, pick_votes(votes, source, target))


def test_a_client_follows_a_change_of_set(changed: tuple[VotedChain, int]) -> None:
    chain, height = changed
    state = trust(chain, 1)
    proof = prove(chain, height + 1, (*STAYERS, NEWCOMER))
    with pytest.raises(LightError) as caught:
        update_at_any_age(state, (), proof)
    assert caught.value.reason is LightReason.SET_UNKNOWN
    later = update_at_any_age(state, (prove_change(changed),), proof)
    assert later.validators == chain.states[height].get_validator_set()
    assert later.checkpoint == chain.get_checkpoint(height + 1)
    assert decode(SetChange, encode(prove_change(changed))) == prove_change(changed)


def test_the_chains_own_votes_prove_the_change(changed: tuple[VotedChain, int]) -> None:
    chain, height = changed
    source, target = chain.get_checkpoint(height - 1), chain.get_checkpoint(height)
    votes = [vote for block in chain.blocks for vote in block.body.votes]
    change = replace(prove_change(changed, ()), votes=pick_votes(votes, source, target))
    verify_set_change(chain.states[1].get_validator_set(), change, chain.chain_id)


def test_both_sets_must_agree_to_a_change(changed: tuple[VotedChain, int]) -> None:
    chain, height = changed
    before = chain.states[1].get_validator_set()
    # Three of four of the new set, but half of the old one.
    for voters in ((STAYERS[0], STAYERS[1], NEWCOMER), (LEAVER, STAYERS[0], STAYERS[1])):
        short = (*voters,)
        is_old = sum(key in KEYS for key in short) >= 3
        is_new = sum(key is not LEAVER for key in short) >= 3
        assert is_old != is_new
        with pytest.raises(LightError) as caught:
            verify_set_change(before, prove_change(changed, short), chain.chain_id)
        assert caught.value.reason is LightReason.QUORUM
    with pytest.raises(LightError) as caught:
        verify_set_change(chain.states[height].get_validator_set(), prove_change(changed), chain.chain_id)
    assert caught.value.reason is LightReason.SET_NUMBER


def test_the_last_block_of_a_set_is_final_by_both(changed: tuple[VotedChain, int]) -> None:
    chain, height = changed
    known = chain.states[1].get_validator_set()
    verify_finality_proof(known, prove(chain, height - 1, (*KEYS, NEWCOMER)), chain.chain_id)
    expect(LightReason.QUORUM, chain, prove(chain, height - 1, (LEAVER, STAYERS[0], STAYERS[1])))


def test_a_set_that_left_proves_nothing_any_more(changed: tuple[VotedChain, int]) -> None:
    """Old keys sign a block of the new set: the state says who must."""
    chain, height = changed
    known = chain.states[1].get_validator_set()
    with pytest.raises(LightError) as caught:
        verify_finality_proof(known, prove(chain, height + 1), chain.chain_id)
    assert caught.value.reason is LightReason.SET_UNKNOWN


# --- values under a trusted header ------------------------------------------------------------


def test_accounts_and_tasks(chain: VotedChain) -> None:
    state, header = chain.states[4], chain.get_header(4)
    address = KEYS[0].address
    account, proof = state.get_account(address), state.tree.get_proof(get_account_key(address))
    verify_account(header, address, account, proof)
    with pytest.raises(LightError):
        verify_account(header, address, replace(account, balance=Amount(5)), proof)
    nobody = Address(bytes(32))
    absence = state.tree.get_proof(get_account_key(nobody))
    verify_account(header, nobody, NO_ACCOUNT, absence)
    with pytest.raises(LightError):
        verify_account(header, address, NO_ACCOUNT, proof)
    task = Hash32(b"t" * 32)
    verify_task(header, task, None, state.tree.get_proof(get_task_key(task)))
    with pytest.raises(LightError):
        verify_task(header, task, None, proof)


def test_transactions_of_a_block() -> None:
    chain = build_chain()
    payments = []
    for nonce, amount in enumerate((5, 6, 7)):
        payload = Transfer(KEYS[1].address, Amount(amount))
        payments.append(sign_transaction(KEYS[0], chain.chain_id, nonce, payload))
    block = chain.add(payments)
    leaves = [encode(transaction) for transaction in payments]
    for index, transaction in enumerate(payments):
        proof = build_list_proof("transactions", leaves, index)
        verify_transaction(block.header, transaction, proof)
        with pytest.raises(LightError):
            verify_transaction(block.header, payments[index - 1], proof)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 31])
def test_list_proofs_have_one_form(count: int) -> None:
    leaves = [b"leaf %d" % number for number in range(count)]
    root = compute_merkle_root("votes", leaves)
    for index, leaf in enumerate(leaves):
        proof = build_list_proof("votes", leaves, index)
        assert verify_list_proof(root, "votes", leaf, proof)
        assert not verify_list_proof(root, "work", leaf, proof)
        assert not verify_list_proof(root, "votes", leaf + b"!", proof)
        wrong = [
            ListProof(index, count + 1, proof.siblings),
            ListProof((index + 1) % (count + 1), count, proof.siblings),
            ListProof(index, count, (*proof.siblings, root)),
            ListProof(index, count, proof.siblings[:-1]) if proof.siblings else ListProof(-1, count, ()),
            ListProof(count, count, proof.siblings),
        ]
        assert not any(verify_list_proof(root, "votes", leaf, each) for each in wrong)
    with pytest.raises(IndexError):
        build_list_proof("votes", leaves, count)


def test_header_chains(chain: VotedChain) -> None:
    headers = [chain.get_header(height) for height in range(2, 7)]
    top = chain.get_checkpoint(6).hash
    verify_headers(top, headers)
    verify_headers(top, [])
    for wrong in (headers[:-1], [*headers[:2], *headers[3:]], headers[::-1]):
        with pytest.raises(LightError):
            verify_headers(top, wrong)


def test_votes_are_restored_whole(chain: VotedChain) -> None:
    proof = prove(chain, 4)
    votes = get_votes(proof)
    assert pick_votes(votes, chain.get_checkpoint(4), chain.get_checkpoint(5)) == proof.votes
