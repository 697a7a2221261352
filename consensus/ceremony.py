"""Rules of ceremonies: all commit to a round, then all show it; at the end all confirm the same keys.

A contribution is shown only in a state in which the block with the round's last commitment is final: on
another fork a member could else commit to something that it chose after it saw what others had shown here.
Consensus sees roots alone; members check blobs, and give up where one is malformed.
"""

from dataclasses import replace
from itertools import pairwise

from consensus.ceremonies import (
    MAX_MEMBERS,
    MIN_MEMBERS,
    ROUNDS,
    SALT_BYTES,
    SKIPPED,
    CeremonyCommitment,
    CeremonyConfirmation,
    CeremonyRecord,
    CeremonyReveal,
    CeremonyStatus,
    CommitRound,
    ConfirmCeremony,
    CreateCeremony,
    EndCeremony,
    RevealRound,
)
from consensus.context import BlockContext
from consensus.crypto import hash_domain
from consensus.errors import InvalidTransaction, Reason
from consensus.federation import MAX_BLOB_BYTES
from consensus.openings import count_interrupted
from consensus.publication import MAX_TITLE
from consensus.state import State
from consensus.task import BlobRef
from consensus.types import MAX_TIME_MS, ZERO_HASH, Address, Hash32, Height


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidTransaction(reason, detail)


def compute_commitment(ceremony: Hash32, number: int, member: Address, root: Hash32, salt: bytes) -> Hash32:
    """What a member commits to: the root of its contribution's blob, under a salt.

    The fields have fixed lengths: 32 bytes each, the round as 8 bytes big-endian.
    """
    return hash_domain("ceremony", ceremony + number.to_bytes(8, "big") + member + root + salt)


def _check_create(state: State, sender: Address, payload: CreateCeremony, ctx: BlockContext) -> None:
    def require(condition: bool, field: str) -> None:
        _require(condition, Reason.CEREMONY_FIELD, field)

    members = payload.members
    require(0 < len(payload.title) <= MAX_TITLE, "title")
    require(0 < len(payload.preset) <= MAX_TITLE, "preset")
    require(MIN_MEMBERS <= len(members) <= MAX_MEMBERS, f"members: {MIN_MEMBERS} to {MAX_MEMBERS}")
    require(all(a < b for a, b in pairwise(members)), "members: by ascending address, each once")
    names = {state.get_account(member).organisation for member in members}
    require("" not in names and len(names) == len(members), "members: one of each organisation")
    require(sender in members, "members: the sender is none")
    # Else two subsets without a common member could open one thing twice.
    require(len(members) < 2 * payload.threshold <= 2 * len(members), "threshold: more than half of them")
    require(ctx.time < payload.deadline <= MAX_TIME_MS, "deadline")
    if payload.renews != ZERO_HASH:
        _check_renewal(_get_renewable(state, payload.renews), sender, payload)


def _get_renewable(state: State, ceremony: Hash32) -> CeremonyRecord:
    """A ceremony whose shares are in use."""
    record = state.get_ceremony(ceremony)
    if record is None:
        raise InvalidTransaction(Reason.CEREMONY_UNKNOWN, ceremony.hex())
    _require(record.status is not CeremonyStatus.RUNNING, Reason.CEREMONY_UNREADY, record.status)
    _require(record.status is CeremonyStatus.READY, Reason.CEREMONY_ENDED, record.status)
    _require(record.renewed_by == ZERO_HASH, Reason.CEREMONY_RENEWED, record.renewed_by.hex())
    return record


def _check_renewal(old: CeremonyRecord, sender: Address, payload: CreateCeremony) -> None:
    _require(sender in old.create.members, Reason.CEREMONY_MEMBER, sender.hex())
    _require(payload.preset == old.create.preset, Reason.CEREMONY_FIELD, "preset: of the keys")
    count = len(set(payload.members) & set(old.create.members))
    detail = f"members: {old.create.threshold} that have shares, got {count}"
    _require(count >= old.create.threshold, Reason.CEREMONY_FIELD, detail)


def find_dealers(old: CreateCeremony, new: CreateCeremony) -> tuple[Address, ...]:
    """Who deals a renewal's pieces of the secret: as many old members as opened together, by old place."""
    return tuple(member for member in old.members if member in new.members)[: old.threshold]


def apply_create_ceremony(
    state: State, sender: Address, payload: CreateCeremony, ceremony: Hash32, ctx: BlockContext
) -> State:
    """A new ceremony under its transaction's id, in its first round."""
    _check_create(state, sender, payload, ctx)
    record = CeremonyRecord(
        create=payload,
        height=ctx.height,
        status=CeremonyStatus.RUNNING,
        round=0,
        commitments=(),
        committed_height=Height(0),
        reveals=(),
        contributions=(),
        confirmations=(),
        ended_by=None,
        renewed_by=ZERO_HASH,
    )
    return state.with_new_ceremony(ceremony, record)


def _get_running(state: State, ceremony: Hash32) -> CeremonyRecord:
    record = state.get_ceremony(ceremony)
    if record is None:
        raise InvalidTransaction(Reason.CEREMONY_UNKNOWN, ceremony.hex())
    _require(record.status is CeremonyStatus.RUNNING, Reason.CEREMONY_ENDED, record.status)
    return record


def _get_for(state: State, sender: Address, ceremony: Hash32, ctx: BlockContext) -> CeremonyRecord:
    """The running ceremony, if the sender is a member and there is time."""
    record = _get_running(state, ceremony)
    _require(sender in record.create.members, Reason.CEREMONY_MEMBER, sender.hex())
    _require(ctx.time < record.create.deadline, Reason.CEREMONY_LATE, str(record.create.deadline))
    return record


def _check_round(record: CeremonyRecord, number: int) -> None:
    detail = f"round {number}, the current is {record.round}"
    _require(number >= record.round, Reason.ROUND_PAST, detail)
    _require(number == record.round and number < len(ROUNDS), Reason.ROUND_FUTURE, detail)


def apply_commit_round(state: State, sender: Address, payload: CommitRound, ctx: BlockContext) -> State:
    """A member's commitment; once a round."""
    record = _get_for(state, sender, payload.ceremony, ctx)
    _check_round(record, payload.round)
    is_new = all(item.member != sender for item in record.commitments)
    _require(is_new, Reason.COMMIT_DOUBLED, sender.hex())
    commitments = (*record.commitments, CeremonyCommitment(sender, payload.commitment))
    is_complete = len(commitments) == len(record.create.members)
    height = ctx.height if is_complete else Height(0)
    record = replace(record, commitments=commitments, committed_height=height)
    return state.with_ceremony(payload.ceremony, record)


def is_committed(state: State, record: CeremonyRecord) -> bool:
    """True if all commitments of the current round are there, in blocks that are final."""
    return 0 < record.committed_height <= state.get_finality().finalized.height


def apply_reveal_round(state: State, sender: Address, payload: RevealRound, ctx: BlockContext) -> State:
    """What the member committed to. The last one ends the round."""
    record = _get_for(state, sender, payload.ceremony, ctx)
    _check_round(record, payload.round)
    _require(record.committed_height > 0, Reason.REVEAL_UNCOMMITTED, "a commitment is missing")
    height = f"height {record.committed_height}"
    _require(is_committed(state, record), Reason.ROUND_NOT_FINAL, height)
    _require(all(item.member != sender for item in record.reveals), Reason.REVEAL_DOUBLED, sender.hex())
    blob, salt = payload.contribution, payload.salt
    _require(0 < blob.length <= MAX_BLOB_BYTES, Reason.CEREMONY_FIELD, "contribution")
    _require(len(salt) == SALT_BYTES, Reason.CEREMONY_FIELD, "salt")
    expected = next(item.commitment for item in record.commitments if item.member == sender)
    shown = compute_commitment(payload.ceremony, payload.round, sender, blob.root, salt)
    _require(shown == expected, Reason.REVEAL_COMMITMENT, sender.hex())
    reveals = (*record.reveals, CeremonyReveal(sender, blob))
    record = replace(record, reveals=reveals)
    if len(reveals) == len(record.create.members):
        record = _end_round(record)
    return state.with_ceremony(payload.ceremony, record)


def _end_round(record: CeremonyRecord) -> CeremonyRecord:
    shown = {item.member: item.contribution for item in record.reveals}
    by_place: tuple[BlobRef, ...] = tuple(shown[member] for member in record.create.members)
    contributions = (*record.contributions, by_place)
    if record.create.renews != ZERO_HASH:
        while len(contributions) < len(ROUNDS) and ROUNDS[len(contributions)] in SKIPPED:
            contributions = (*contributions, ())
    return replace(
        record,
        round=len(contributions),
        commitments=(),
        committed_height=Height(0),
        reveals=(),
        contributions=contributions,
    )


def apply_confirm_ceremony(
    state: State, sender: Address, payload: ConfirmCeremony, ctx: BlockContext
) -> State:
    """A member's keys. All the same make the ceremony ready, a different one ends it.

    Of a ready one the keys are taken at once: nobody else can name them in a task or federation. A renewal's
    are those of the ceremony that it renews, whose members have done with them.
    """
    record = _get_for(state, sender, payload.ceremony, ctx)
    _require(record.round == len(ROUNDS), Reason.CEREMONY_UNFINISHED, f"round {record.round}")
    is_new = all(item.member != sender for item in record.confirmations)
    _require(is_new, Reason.CEREMONY_CONFIRMED, sender.hex())
    renews = record.create.renews
    old = None if renews == ZERO_HASH else _get_renewable(state, renews)
    keys: tuple[BlobRef, ...] = (payload.public_key, payload.relin_keys)
    if old is not None:
        made = old.confirmations[0]
        _require(keys == (made.public_key, made.relin_keys), Reason.CEREMONY_FIELD, "keys: of the old ones")
    for field, blob in zip(("public_key", "relin_keys"), keys, strict=True):
        _require(0 < blob.length <= MAX_BLOB_BYTES, Reason.CEREMONY_FIELD, field)
        is_new_key = old is not None or state.get_key_task(blob.root) is None
        _require(is_new_key, Reason.CEREMONY_KEY_USED, blob.root.hex())
    _require(keys[0].root != keys[1].root, Reason.CEREMONY_FIELD, "relin_keys")
    is_own = all(item.box_key != payload.box_key for item in record.confirmations)
    _require(payload.box_key != ZERO_HASH and is_own, Reason.CEREMONY_FIELD, "box_key")
    own = CeremonyConfirmation(sender, payload.public_key, payload.relin_keys, payload.box_key)
    confirmations = (*record.confirmations, own)
    record = replace(record, confirmations=confirmations)
    first = confirmations[0]
    if (own.public_key, own.relin_keys) != (first.public_key, first.relin_keys):
        record = replace(record, status=CeremonyStatus.FAILED)
    elif len(confirmations) == len(record.create.members):
        record = replace(record, status=CeremonyStatus.READY)
        if old is not None:
            state = state.with_ceremony(renews, replace(old, renewed_by=payload.ceremony))
            task = state.get_key_task(payload.public_key.root)
            state = state if task is None else count_interrupted(state, task)
        else:
            for blob in keys:
                state = state.with_key_task(blob.root, payload.ceremony)
    return state.with_ceremony(payload.ceremony, record)


def apply_end_ceremony(state: State, sender: Address, payload: EndCeremony, ctx: BlockContext) -> State:
    record = _get_running(state, payload.ceremony)
    is_over = ctx.time >= record.create.deadline
    may_end = is_over or sender in record.create.members
    _require(may_end, Reason.CEREMONY_EARLY, str(record.create.deadline))
    record = replace(record, status=CeremonyStatus.ENDED, ended_by=None if is_over else sender)
    return state.with_ceremony(payload.ceremony, record)
