"""What openings of a committee show: signatures of enough members, and batches that organisations agree on.

With a single custodian none of that exists: it signs the transaction, and has looked into every patch itself.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from consensus.ceremonies import CreateCeremony
from consensus.claims import compute_seal, verify_sealed_claim
from consensus.crypto import SigningKey, verify
from consensus.errors import InvalidTransaction, Reason
from consensus.identifiers import compute_opening_hash
from consensus.publication import MAX_CLAIMANTS
from consensus.state import State
from consensus.task import Cosignature, Draft, OpenGradient, OpenLoss
from consensus.types import ZERO_HASH, Address, Hash32

MAX_ATTEMPTS = 2


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidTransaction(reason, detail)


def get_committees(state: State, draft: Draft) -> tuple[CreateCeremony, ...]:
    """All who ever held shares of a task's key, the present ones last; empty for a single custodian's task.

    Raises: InvalidTransaction(CEREMONY_UNKNOWN), of a draft that the state never took.
    """
    found = state.get_ceremonies(draft.ceremony)
    if draft.ceremony != ZERO_HASH and not found:
        raise InvalidTransaction(Reason.CEREMONY_UNKNOWN, draft.ceremony.hex())
    return tuple(record.create for _, record in found)


def get_committee(state: State, draft: Draft) -> CreateCeremony | None:
    """Present members and threshold of a committee's task; None for one of a single custodian.

    Raises: InvalidTransaction(CEREMONY_UNKNOWN), of a draft that the state never took.
    """
    found = get_committees(state, draft)
    return found[-1] if found else None


# --- cosignatures -----------------------------------------------------------------------------


def sign_content(key: SigningKey, chain_id: Hash32, content: Hash32) -> Cosignature:
    """A member's signature of the opening of this hash."""
    return Cosignature(key.address, key.sign("opening", chain_id + content))


def verify_content(chain_id: Hash32, content: Hash32, cosignature: Cosignature) -> bool:
    """True exactly if the member signed the opening of this hash for this chain."""
    return verify(cosignature.member, "opening", chain_id + content, cosignature.signature)


def sign_opening(key: SigningKey, chain_id: Hash32, opening: OpenGradient | OpenLoss) -> Cosignature:
    """A member's signature of the opening's content, whatever cosignatures it bears already."""
    return sign_content(key, chain_id, compute_opening_hash(opening))


def verify_cosignature(chain_id: Hash32, opening: OpenGradient | OpenLoss, cosignature: Cosignature) -> bool:
    """True exactly if the member signed this content for this chain."""
    return verify_content(chain_id, compute_opening_hash(opening), cosignature)


def check_cosignatures(opening: OpenGradient | OpenLoss, committee: CreateCeremony, chain_id: Hash32) -> None:
    """Raises: InvalidTransaction unless at least the threshold of members, and nobody else, signed (W3)."""
    signers = [item.member for item in opening.cosignatures]
    fits = all(a < b for a, b in pairwise(signers)) and set(signers) <= set(committee.members)
    _require(fits, Reason.OPENING_SIGNERS, "expected members, ascending, each once")
    fits = len(signers) >= committee.threshold
    _require(fits, Reason.OPENING_SIGNERS, f"{len(signers)} of {committee.threshold} members")
    content = compute_opening_hash(opening)
    for item in opening.cosignatures:
        _require(verify_content(chain_id, content, item), Reason.OPENING_SIGNATURE, item.member.hex())


def is_cosigned(
    opening: OpenGradient | OpenLoss, committees: Sequence[CreateCeremony], chain_id: Hash32
) -> bool:
    """True if any of these, who held shares one after the other, signed it as W3 asks."""
    for committee in committees:
        try:
            check_cosignatures(opening, committee, chain_id)
        except InvalidTransaction:
            continue
        return True
    return False


def check_signers(
    opening: OpenGradient | OpenLoss,
    sender: Address,
    custody: Address,
    committee: CreateCeremony | None,
    chain_id: Hash32,
) -> None:
    """Who may send an opening, what it counts, and who signed it.

    Before anything that later blocks could cure: an opening of the future that waits keeps others out of its
    place, so that no single member may put there what it likes.
    """
    if committee is None:
        _require(sender == custody, Reason.OPENING_CUSTODY, sender.hex())
        _require(opening.attempt == 1, Reason.OPENING_ATTEMPT, "a single custodian has one attempt")
        _require(not opening.cosignatures, Reason.OPENING_SIGNERS, "a single custodian signs alone")
        return
    _require(sender in committee.members, Reason.OPENING_CUSTODY, sender.hex())
    fits = 1 <= opening.attempt <= MAX_ATTEMPTS
    _require(fits, Reason.OPENING_ATTEMPT, f"{opening.attempt} of {MAX_ATTEMPTS}")
    check_cosignatures(opening, committee, chain_id)


# --- confirmed batches ------------------------------------------------------------------------


def get_organisation_stakes(state: State) -> Counter[str]:
    """Stake with which the validators of each organisation speak now."""
    stakes: Counter[str] = Counter()
    for validator in state.get_acting_validators():
        stakes[state.get_account(validator.address).organisation] += validator.stake
    return stakes


def check_confirmations(state: State, opening: OpenGradient, chain_id: Hash32) -> None:
    """Every batch is confirmed: organisations with more than a third of all stake have the same bundle.

    The claims are checked already. A claim that tells the root says all that a seal of it does, under the
    same key, and whoever can make the one can make the other: a second statement by the claimant would show
    nothing more. Who was bound before any root was told is for members to see to.
    """
    told = {claim.batch: claim for claim in opening.claims}
    places = [(item.batch, item.miner) for item in opening.confirmations]
    fits = all(a < b for a, b in pairwise(places))
    _require(fits, Reason.OPENING_CONFIRMATIONS, "expected by batch, then miner, each once")
    organisations = {batch: [state.get_account(claim.miner).organisation] for batch, claim in told.items()}
    for item in opening.confirmations:
        where = f"batch {item.batch}, miner {item.miner.hex()}"
        claim = told.get(item.batch)
        if claim is None or (item.task, item.step) != (opening.task, opening.step):
            raise InvalidTransaction(Reason.OPENING_CONFIRMATIONS, f"{where}: of another step")
        organisation = state.get_account(item.miner).organisation
        _require(state.may_mine(organisation), Reason.OPENING_MINER, item.miner.hex())
        is_new = organisation not in organisations[item.batch]
        _require(is_new, Reason.OPENING_CONFIRMATIONS, f"{where}: {organisation} counts once")
        is_same = item.seal == compute_seal(claim.bundle.root, item.miner)
        _require(is_same, Reason.OPENING_SEAL, where)
        _require(verify_sealed_claim(chain_id, item), Reason.OPENING_CLAIM_SIGNATURE, where)
        organisations[item.batch].append(organisation)
    stakes, total = get_organisation_stakes(state), state.get_total_stake()
    for batch, names in organisations.items():
        fits = len(names) <= MAX_CLAIMANTS
        _require(fits, Reason.OPENING_CONFIRMATIONS, f"batch {batch}: at most {MAX_CLAIMANTS} are credited")
        stake = sum(stakes[name] for name in names)
        _require(3 * stake > total, Reason.OPENING_STAKE, f"batch {batch}: {stake} of {total}")
