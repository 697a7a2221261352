"""What can be known of a chain without its blocks: finality from votes, sets and values from state proofs.

A finality proof is a header s, its child t, and votes with source s and target t by two thirds of the stake
of the set in s's state, and of the one in t's state where it is another. Why it proves that s is final, as
long as less than a third of that stake is faulty:

- More than a third of the stake that signed is honest, and an honest validator signs s→t only for blocks
  that it has found valid and only if s is the highest justified checkpoint in t's state. So s and t are
  valid, and s is justified.
- The link s→t has the quorum that justifies t, and nothing lies between the two. So by the rule of Casper
  FFG s is final, whether or not a block has counted the votes yet: a conflicting checkpoint can be final
  only if a third of the stake signed two votes of which `vote.is_slashable` convicts it.
- Which sets have to agree is no claim of the proof's maker: each is proved against the state root of its
  header, which the same voters signed by hash. That votes of jailed validators count for nothing in the
  chain changes nothing here, they are among the faulty.

From one set to the next leads a `SetChange`: a header u with the next set in its state, and votes for u by
two thirds of both sets, of the known one therefore too. Some honest member of the known set thus found u
valid, so the next set is the one that the chain made active; and u is justified, whatever the source of
these votes is. The first justified block with a new set has such votes in every chain, since its source is
of the set before.

Sets lose their power over a client once their stake may be free: what leavers staked stays within reach of
evidence for `evidence_ms`, so whoever trusts a header for longer than that needs a newer one from its
operator.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from consensus.block import Header
from consensus.codec import encode
from consensus.finality import is_quorum
from consensus.identifiers import compute_block_hash
from consensus.jobs import Receipt
from consensus.params import Validator
from consensus.proofs import ListProof, verify_list_proof
from consensus.records import Account, TaskState, ValidatorSet
from consensus.state import (
    NO_ACCOUNT,
    VALIDATORS_KEY,
    State,
    get_account_key,
    get_receipt_key,
    get_task_key,
)
from consensus.transaction import SignedTransaction
from consensus.tree import Proof, verify_proof
from consensus.types import Address, Hash32, Height, Millis, Signature
from consensus.versions import get_highest_version
from consensus.vote import Checkpoint, Vote, is_slashable, verify_vote

MAX_SET_CHANGES = 64
"""In one update; a client that is further behind makes several."""


class LightReason(StrEnum):
    """Why a light client does not believe what it is told."""

    CHAIN = "CHAIN"
    GENESIS = "GENESIS"
    LINK = "LINK"
    SET_PROOF = "SET_PROOF"
    SET_NUMBER = "SET_NUMBER"
    SET_UNKNOWN = "SET_UNKNOWN"
    VOTE_ORDER = "VOTE_ORDER"
    VOTE_MEMBER = "VOTE_MEMBER"
    VOTE_SIGNATURE = "VOTE_SIGNATURE"
    QUORUM = "QUORUM"
    TOO_MANY = "TOO_MANY"
    REGRESS = "REGRESS"
    EXPIRED = "EXPIRED"
    VERSION = "VERSION"
    """Proved, and of a protocol version that this software does not know."""
    HEADERS = "HEADERS"
    VALUE = "VALUE"


class LightError(ValueError):
    """Something is not proved; the client's trust is unchanged."""

    def __init__(self, reason: LightReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class VoteSignature:
    """A vote whose link is known."""

    validator: Address
    signature: Signature


@dataclass(frozen=True, slots=True)
class SetProof:
    """The validator set in a header's state."""

    validators: ValidatorSet
    proof: Proof
    """Of `VALIDATORS_KEY` under the header's state root."""


@dataclass(frozen=True, slots=True)
class FinalityProof:
    """Shows that `source` is final to whoever knows its validator set."""

    source: Header
    source_set: SetProof
    target: Header
    """The child of `source`."""
    target_set: SetProof
    votes: tuple[VoteSignature, ...]
    """For source→target, by ascending address, each validator once."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What is proved."""
        return compute_checkpoint(self.source)


@dataclass(frozen=True, slots=True)
class SetChange:
    """Shows the set after the known one."""

    target: Header
    target_set: SetProof
    source: Checkpoint
    """Where the votes lead from."""
    votes: tuple[VoteSignature, ...]
    """For source→target, by ascending address, each validator once."""


@dataclass(frozen=True, slots=True)
class LightState:
    """What a client believes: a header of a final block, and the validator set in its state."""

    chain_id: Hash32
    trusted: Header
    validators: ValidatorSet
    proof: FinalityProof | None = None
    """By which `trusted` is known to be final; None if somebody said so."""

    @property
    def checkpoint(self) -> Checkpoint:
        return compute_checkpoint(self.trusted)


class ConflictingFinality(LightError):
    """Two final checkpoints of which none descends from the other: at least a third of stake lied."""

    def __init__(self, first: FinalityProof | None, second: FinalityProof, detail: str) -> None:
        super().__init__(LightReason.HEADERS, f"conflicting finality: {detail}")
        self.first = first
        """Of what was trusted; None if somebody said so."""
        self.second = second


def compute_checkpoint(header: Header) -> Checkpoint:
    return Checkpoint(header.height, compute_block_hash(header))


def _require(condition: bool, reason: LightReason, detail: str = "") -> None:
    if not condition:
        raise LightError(reason, detail)


# --- proofs -----------------------------------------------------------------------------------


def build_set_proof(state: State) -> SetProof:
    """The proof of the active set in this state."""
    return SetProof(state.get_validator_set(), state.tree.get_proof(VALIDATORS_KEY))


def verify_set_proof(header: Header, proof: SetProof) -> None:
    """Raises: LightError unless the set is the active one in the header's state."""
    is_proved = verify_proof(header.state_root, VALIDATORS_KEY, encode(proof.validators), proof.proof)
    _require(is_proved, LightReason.SET_PROOF, f"height {header.height}")


def pick_votes(votes: Iterable[Vote], source: Checkpoint, target: Checkpoint) -> tuple[VoteSignature, ...]:
    """Those for this link, as proofs list them."""
    found = {
        vote.validator: vote.signature for vote in votes if (vote.source, vote.target) == (source, target)
    }
    return tuple(VoteSignature(validator, found[validator]) for validator in sorted(found))


def has_quorum(validators: Sequence[Validator], votes: Iterable[VoteSignature]) -> bool:
    """Whether two thirds of the set's stake voted; signatures are for `verify_finality_proof` to check."""
    voters = {vote.validator for vote in votes}
    stake = sum(member.stake for member in validators if member.address in voters)
    return is_quorum(stake, sum(member.stake for member in validators))


def _verify_votes(
    votes: Sequence[VoteSignature],
    source: Checkpoint,
    target: Checkpoint,
    sets: Sequence[ValidatorSet],
    chain_id: Hash32,
) -> None:
    """Each vote is signed by a member of some set, once, and every set has its quorum."""
    members = {member.address for each in sets for member in each.validators}
    previous = b""
    for vote in votes:
        _require(vote.validator > previous, LightReason.VOTE_ORDER, vote.validator.hex())
        previous = vote.validator
        _require(vote.validator in members, LightReason.VOTE_MEMBER, vote.validator.hex())
    # The cheap answer first: signatures are checked only of what would suffice.
    for each in sets:
        _require(has_quorum(each.validators, votes), LightReason.QUORUM, f"of set {each.number}")
    for vote in votes:
        is_signed = verify_vote(chain_id, Vote(vote.validator, source, target, vote.signature))
        _require(is_signed, LightReason.VOTE_SIGNATURE, vote.validator.hex())


def verify_finality_proof(validators: ValidatorSet, proof: FinalityProof, chain_id: Hash32) -> Checkpoint:
    """The final checkpoint, if `validators` is the set in its state and the proof holds.

    Raises: LightError.
    """
    source, target = proof.source, proof.target
    is_ours = source.chain_id == chain_id and target.chain_id == chain_id
    _require(is_ours, LightReason.CHAIN, source.chain_id.hex())
    # Its hash is the chain id, which says nothing of a header: genesis is known from its document alone.
    _require(source.height > 0, LightReason.GENESIS)
    checkpoint = compute_checkpoint(source)
    is_child = target.height == source.height + 1 and target.parent == checkpoint.hash
    _require(is_child, LightReason.LINK, f"heights {source.height} and {target.height}")
    verify_set_proof(source, proof.source_set)
    verify_set_proof(target, proof.target_set)
    first, second = proof.source_set.validators, proof.target_set.validators
    _require(
        first == validators, LightReason.SET_UNKNOWN, f"set {first.number}, known is {validators.number}"
    )
    is_next = second == first or second.number == first.number + 1
    _require(is_next, LightReason.SET_NUMBER, f"set {second.number} after {first.number}")
    sets = [first] if second == first else [first, second]
    _verify_votes(proof.votes, checkpoint, compute_checkpoint(target), sets, chain_id)
    return checkpoint


def verify_set_change(validators: ValidatorSet, change: SetChange, chain_id: Hash32) -> ValidatorSet:
    """The set after `validators`, if the change holds.

    Raises: LightError.
    """
    target = change.target
    _require(target.chain_id == chain_id, LightReason.CHAIN, target.chain_id.hex())
    _require(target.height > change.source.height, LightReason.LINK, f"height {target.height}")
    verify_set_proof(target, change.target_set)
    following = change.target_set.validators
    is_next = following.number == validators.number + 1
    _require(is_next, LightReason.SET_NUMBER, f"set {following.number} after {validators.number}")
    sets = [validators, following]
    _verify_votes(change.votes, change.source, compute_checkpoint(target), sets, chain_id)
    return following


def _check_version(header: Header, known: int | None) -> None:
    """Raises: LightError unless the rules of the header's block are known."""
    most = get_highest_version() if known is None else min(known, get_highest_version())
    detail = (
        f"the block of height {header.height} obeys protocol version {header.version}, this software knows "
        f"versions up to {most}: install a newer release of bmif"
    )
    _require(header.version <= most, LightReason.VERSION, detail)


# --- the client -------------------------------------------------------------------------------


def is_expired(state: LightState, now: Millis, evidence_ms: int) -> bool:
    """Whether the trusted set's stake may be free by now, so that its votes bind nobody."""
    return now - state.trusted.time > evidence_ms


def trust_header(header: Header, set_proof: SetProof, known: int | None = None) -> LightState:
    """A client that believes its operator that this header, known by its hash, is of a final block.

    Raises: LightError if the set is not the one in the header's state, or if the header is genesis's, which
    its hash does not determine; VERSION if it is of a protocol version above `known`, or unknown.
    """
    _require(header.height > 0, LightReason.GENESIS)
    verify_set_proof(header, set_proof)
    _check_version(header, known)
    return LightState(header.chain_id, header, set_proof.validators)


def update(
    state: LightState,
    changes: Sequence[SetChange],
    proof: FinalityProof,
    now: Millis,
    evidence_ms: int,
    headers: Sequence[Header] | None = None,
    known: int | None = None,
) -> LightState:
    """What the client believes after a proof; the same as before if the proof is of the trusted header.

    `changes` lead from the trusted set to that of the proof, in order. `headers` are those above the trusted
    one up to the proved one, ascending; with them a finality that leaves the trusted block is told apart.
    Headers of a protocol version above `known`, or unknown, may mean what this software can't tell.

    Raises: ConflictingFinality; LightError, also for a header below the trusted one, and where trust is too
    old.
    """
    detail = f"the trusted header is of {state.trusted.time}: a newer one has to come from the operator"
    # That nothing is new may be heard from anyone, at any time.
    is_new = proof.checkpoint != state.checkpoint
    _require(not (is_new and is_expired(state, now, evidence_ms)), LightReason.EXPIRED, detail)
    return _update(state, changes, proof, headers, known)


def update_at_any_age(
    state: LightState,
    changes: Sequence[SetChange],
    proof: FinalityProof,
    headers: Sequence[Header] | None = None,
    known: int | None = None,
) -> LightState:
    """Like `update` for a client that knows otherwise that the trusted set's stake still binds it."""
    return _update(state, changes, proof, headers, known)


def _update(
    state: LightState,
    changes: Sequence[SetChange],
    proof: FinalityProof,
    headers: Sequence[Header] | None,
    known: int | None,
) -> LightState:
    _require(len(changes) <= MAX_SET_CHANGES, LightReason.TOO_MANY, f"{len(changes)} changes of set")
    validators = state.validators
    for change in changes:
        validators = verify_set_change(validators, change, state.chain_id)
    checkpoint = verify_finality_proof(validators, proof, state.chain_id)
    trusted = state.checkpoint
    if checkpoint == trusted:
        return state
    if checkpoint.height == trusted.height:
        raise ConflictingFinality(state.proof, proof, f"two blocks at height {trusted.height}")
    _require(checkpoint.height > trusted.height, LightReason.REGRESS, f"height {checkpoint.height}")
    if headers is not None:
        _check_descent(state, proof, headers)
    # Last, so that it is said of what is proved only.
    for header in (*(change.target for change in changes), proof.source):
        _check_version(header, known)
    return LightState(state.chain_id, proof.source, validators, proof)


def _check_descent(state: LightState, proof: FinalityProof, headers: Sequence[Header]) -> None:
    """That these headers, hash by hash, lead from the proved one down to the trusted one."""
    wanted = proof.source.height - state.trusted.height
    _require(len(headers) == wanted, LightReason.HEADERS, f"{len(headers)} of {wanted}")
    expected = proof.checkpoint
    for header in reversed(headers):
        _require(compute_checkpoint(header) == expected, LightReason.HEADERS, f"height {header.height}")
        expected = Checkpoint(Height(header.height - 1), header.parent)
    if expected != state.checkpoint:
        detail = f"height {proof.source.height} does not descend from height {state.trusted.height}"
        raise ConflictingFinality(state.proof, proof, detail)


def find_slashable(first: FinalityProof, second: FinalityProof) -> tuple[tuple[Vote, Vote], ...]:
    """Pairs of votes in two proofs that convict their validators by themselves (`ReportVotes`).

    Conflicting proofs of different heights may hold none: then the votes that lead from the one to the
    other, on the chain of the higher, do.
    """
    votes = {vote.validator: vote for vote in get_votes(first)}
    pairs = ((votes[vote.validator], vote) for vote in get_votes(second) if vote.validator in votes)
    return tuple(pair for pair in pairs if is_slashable(*pair))


def get_votes(proof: FinalityProof) -> tuple[Vote, ...]:
    """The votes of a proof, each whole."""
    source, target = proof.checkpoint, compute_checkpoint(proof.target)
    return tuple(Vote(vote.validator, source, target, vote.signature) for vote in proof.votes)


# --- what a trusted header proves -------------------------------------------------------------


def verify_account(header: Header, address: Address, account: Account, proof: Proof) -> None:
    """Raises: LightError unless the account is exactly this in the header's state; unused ones are empty."""
    value = encode(account)
    key = get_account_key(address)
    is_absent = account == NO_ACCOUNT and verify_proof(header.state_root, key, None, proof)
    _require(
        is_absent or verify_proof(header.state_root, key, value, proof), LightReason.VALUE, address.hex()
    )


def verify_task(header: Header, task: Hash32, task_state: TaskState | None, proof: Proof) -> None:
    """Raises: LightError unless the task is exactly this in the header's state; None for one that is not
    there."""
    value = None if task_state is None else encode(task_state)
    is_proved = verify_proof(header.state_root, get_task_key(task), value, proof)
    _require(is_proved, LightReason.VALUE, task.hex())


def verify_receipt(header: Header, job: Hash32, receipt: Receipt | None, proof: Proof) -> None:
    """Raises: LightError unless the job's receipt is exactly this in the header's state; None for none."""
    value = None if receipt is None else encode(receipt)
    is_proved = verify_proof(header.state_root, get_receipt_key(job), value, proof)
    _require(is_proved, LightReason.VALUE, job.hex())


def verify_transaction(header: Header, transaction: SignedTransaction, proof: ListProof) -> None:
    """Raises: LightError unless the header's block holds the transaction at the proof's index."""
    is_proved = verify_list_proof(header.transactions_root, "transactions", encode(transaction), proof)
    _require(is_proved, LightReason.VALUE, f"transaction {proof.index}")


def verify_headers(top: Hash32, headers: Sequence[Header]) -> None:
    """Raises: LightError unless the headers, ascending, link and the last one's hash is `top`."""
    expected = top
    for header in reversed(headers):
        is_it = header.height > 0 and compute_block_hash(header) == expected
        _require(is_it, LightReason.HEADERS, f"height {header.height}")
        expected = header.parent
    is_rising = all(b.height == a.height + 1 and b.time > a.time for a, b in pairwise(headers))
    _require(is_rising, LightReason.HEADERS, "heights and times must rise")
