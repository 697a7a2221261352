"""Key ceremonies (ADR 0024): rounds of commitments and reveals, equal keys confirmed by all, ends.

Nobody chooses a contribution after seeing those of others: in each round all members commit before any of
them reveals, and what is revealed is what was committed to. That holds across forks, too: contributions are
taken only once the last commitment is final, so that no other branch can have a member commit once more.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from consensus.ceremonies import (
    ROUNDS,
    CeremonyRecord,
    CeremonyStatus,
    CommitRound,
    CompleteRound,
    ConfirmCeremony,
    CreateCeremony,
    EndCeremony,
    RevealRound,
    RoundPart,
)
from consensus.context import BlockContext
from consensus.crypto import hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.publication import MAX_TITLE
from consensus.state import State
from consensus.types import MAX_TIME_MS, Address, Hash32, Height

MIN_MEMBERS = 2
MAX_MEMBERS = 16
MAX_CONTRIBUTION_BYTES = 2**28
CEREMONY_SALT_BYTES = 32


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidTransaction(reason, detail)


def compute_commitment(ceremony: Hash32, round: int, member: Address, root: Hash32, salt: bytes) -> Hash32:
    """Hides a contribution until it is revealed, and is of no use to any other member, round or ceremony."""
    return hash_domain("ceremony-commitment", ceremony + round.to_bytes(8, "big") + member + root + salt)


# --- creation ---------------------------------------------------------------------------------


def _check_members(state: State, payload: CreateCeremony, require: Callable[[bool, str], None]) -> None:
    members = payload.members
    require(MIN_MEMBERS <= len(members) <= MAX_MEMBERS, f"members: {MIN_MEMBERS} to {MAX_MEMBERS}")
    require(all(a < b for a, b in pairwise(members)), "members: ascending, each once")
    names = {state.get_account(address).organisation for address in members}
    require("" not in names and len(names) == len(members), "members: one of each organisation")
    # All take part in making the keys; whether fewer open is the committee's choice.
    require(2 <= payload.threshold <= len(members), "threshold")


def apply_create_ceremony(
    state: State, sender: Address, payload: CreateCeremony, ceremony: Hash32, ctx: BlockContext
) -> State:
    """A new ceremony under its transaction's id, in its first round."""

    def require(condition: bool, field: str) -> None:
        _require(condition, Reason.CEREMONY_FIELD, field)

    require(0 < len(payload.preset) <= MAX_TITLE, "preset")
    _check_members(state, payload, require)
    require(ctx.time < payload.deadline <= MAX_TIME_MS, "deadline")
    _require(sender in payload.members, Reason.CEREMONY_MEMBER, sender.hex())
    record = CeremonyRecord(
        create=payload,
        creator=sender,
        height=ctx.height,
        status=CeremonyStatus.RUNNING,
        complete=(),
        parts=(),
        committed_height=Height(0),
        public_key=None,
        relin_keys=None,
        confirmed=(),
        ended_by=None,
        ended_height=Height(0),
    )
    return state.with_new_ceremony(ceremony, record)


# --- rounds -----------------------------------------------------------------------------------


def get_running(state: State, ceremony: Hash32) -> CeremonyRecord:
    """Raises: InvalidTransaction(CEREMONY_UNKNOWN, CEREMONY_ENDED)."""
    record = state.get_ceremony(ceremony)
    if record is None:
        raise InvalidTransaction(Reason.CEREMONY_UNKNOWN, ceremony.hex())
    _require(record.status is CeremonyStatus.RUNNING, Reason.CEREMONY_ENDED, record.status)
    return record


def _get_for_member(state: State, sender: Address, ceremony: Hash32, ctx: BlockContext) -> CeremonyRecord:
    """A ceremony that goes on and that the sender takes part in."""
    record = get_running(state, ceremony)
    _require(sender in record.create.members, Reason.CEREMONY_MEMBER, sender.hex())
    deadline = record.create.deadline
    _require(ctx.time <= deadline, Reason.CEREMONY_DEADLINE, str(deadline))
    return record


def _check_round(record: CeremonyRecord, number: int) -> None:
    current = len(record.complete)
    detail = f"round {number}, the current is {current}"
    _require(0 <= number < len(ROUNDS), Reason.CEREMONY_FIELD, f"round: 0 to {len(ROUNDS) - 1}")
    _require(number >= current, Reason.ROUND_PAST, detail)
    _require(number <= current, Reason.ROUND_FUTURE, detail)


def apply_commit_round(state: State, sender: Address, payload: CommitRound, ctx: BlockContext) -> State:
    """Binds a member, once a round."""
    record = _get_for_member(state, sender, payload.ceremony, ctx)
    _check_round(record, payload.round)
    is_new = all(part.member != sender for part in record.parts)
    _require(is_new, Reason.COMMIT_DOUBLED, sender.hex())
    parts = (*record.parts, RoundPart(sender, payload.digest, None))
    record = replace(record, parts=parts)
    if len(parts) == len(record.create.members):
        record = replace(record, committed_height=ctx.height)
    return state.with_ceremony(payload.ceremony, record)


def is_committed(record: CeremonyRecord) -> bool:
    """True once all members have committed to their contributions of the current round."""
    return len(record.parts) == len(record.create.members)


def is_revealable(state: State, record: CeremonyRecord) -> bool:
    """True once no fork can have other commitments: those of all members are final in this state."""
    return is_committed(record) and state.get_finality().finalized.height >= record.committed_height


def apply_reveal_round(state: State, sender: Address, payload: RevealRound, ctx: BlockContext) -> State:
    """Shows a contribution; the last one of a round begins the next."""
    record = _get_for_member(state, sender, payload.ceremony, ctx)
    _check_round(record, payload.round)
    contribution = payload.contribution
    fits = len(payload.salt) == CEREMONY_SALT_BYTES
    _require(fits, Reason.CEREMONY_FIELD, f"salt: {CEREMONY_SALT_BYTES} bytes")
    fits = 0 < contribution.length <= MAX_CONTRIBUTION_BYTES
    _require(fits, Reason.CEREMONY_FIELD, f"contribution: 1 to {MAX_CONTRIBUTION_BYTES} bytes")
    mine = next((part for part in record.parts if part.member == sender), None)
    if mine is None:
        raise InvalidTransaction(Reason.REVEAL_UNCOMMITTED, sender.hex())
    _require(mine.contribution is None, Reason.REVEAL_DOUBLED, sender.hex())
    digest = compute_commitment(payload.ceremony, payload.round, sender, contribution.root, payload.salt)
    _require(digest == mine.commitment, Reason.REVEAL_COMMITMENT, contribution.root.hex())
    missing = len(record.create.members) - len(record.parts)
    _require(not missing, Reason.REVEAL_EARLY, f"{missing} members have not committed")
    is_final = is_revealable(state, record)
    _require(is_final, Reason.ROUND_NOT_FINAL, f"height {record.committed_height}")
    parts = tuple(replace(part, contribution=contribution) if part is mine else part for part in record.parts)
    return state.with_ceremony(payload.ceremony, _advance(replace(record, parts=parts)))


def _advance(record: CeremonyRecord) -> CeremonyRecord:
    """In the next round, if all have revealed."""
    shown = {part.member: part.contribution for part in record.parts}
    ordered = tuple(found for member in record.create.members if (found := shown[member]) is not None)
    if len(ordered) < len(record.create.members):
        return record
    complete = (*record.complete, CompleteRound(ordered))
    return replace(record, complete=complete, parts=(), committed_height=Height(0))


# --- keys and ends ----------------------------------------------------------------------------


def apply_confirm_ceremony(
    state: State, sender: Address, payload: ConfirmCeremony, ctx: BlockContext
) -> State:
    """A member's keys: the last equal ones make the ceremony ready, different ones end it.

    Of a ready ceremony the keys are taken at once: nobody else can name them in a task or federation.
    """
    ceremony = payload.ceremony
    record = _get_for_member(state, sender, ceremony, ctx)
    done = len(record.complete)
    _require(done == len(ROUNDS), Reason.CONFIRM_EARLY, f"{done} of {len(ROUNDS)} rounds are over")
    _require(sender not in record.confirmed, Reason.CONFIRM_DOUBLED, sender.hex())
    keys = (payload.public_key, payload.relin_keys)
    for name, blob in zip(("public_key", "relin_keys"), keys, strict=True):
        _require(0 < blob.length <= MAX_CONTRIBUTION_BYTES, Reason.CEREMONY_FIELD, name)
    _require(keys[0].root != keys[1].root, Reason.CEREMONY_FIELD, "relin_keys")
    if record.confirmed and keys != (record.public_key, record.relin_keys):
        return state.with_ceremony(ceremony, _end(record, CeremonyStatus.FAILED, sender, ctx))
    for blob in keys:
        is_fresh = state.get_key_task(blob.root) is None
        _require(is_fresh, Reason.CEREMONY_KEY_USED, blob.root.hex())
    confirmed = (*record.confirmed, sender)
    record = replace(record, public_key=keys[0], relin_keys=keys[1], confirmed=confirmed)
    if len(confirmed) == len(record.create.members):
        record = _end(record, CeremonyStatus.READY, None, ctx)
        for blob in keys:
            state = state.with_key_task(blob.root, ceremony)
    return state.with_ceremony(ceremony, record)


def _end(
    record: CeremonyRecord, status: CeremonyStatus, by: Address | None, ctx: BlockContext
) -> CeremonyRecord:
    return replace(record, status=status, ended_by=by, ended_height=ctx.height)


def is_overdue(record: CeremonyRecord, ctx: BlockContext) -> bool:
    """True once anybody may end the ceremony."""
    return record.status is CeremonyStatus.RUNNING and ctx.time > record.create.deadline


def apply_end_ceremony(state: State, sender: Address, payload: EndCeremony, ctx: BlockContext) -> State:
    """Ends a ceremony without keys; on record is who did."""
    record = get_running(state, payload.ceremony)
    status = CeremonyStatus.EXPIRED
    if not is_overdue(record, ctx):
        status = CeremonyStatus.ABORTED
        is_member = sender in record.create.members
        _require(is_member, Reason.CEREMONY_EARLY, str(record.create.deadline))
    return state.with_ceremony(payload.ceremony, _end(record, status, sender, ctx))
