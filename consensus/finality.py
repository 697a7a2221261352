"""Casper FFG with every block a checkpoint: votes in blocks justify, justify again, and so finalise.

A branch's state keeps one record for each of its blocks from the last finalised one on. A vote counts in the
first block that carries it; stake is counted by the set in the state of the link's source, and where the
target's state has another set, by both. A validator's votes count for what was made before its conviction
and for nothing after it, while its stake stays in the whole that quorums are parts of. (DESIGN 5)
"""

from collections.abc import Iterable
from dataclasses import replace

from consensus.errors import InvalidBlock, InvalidVote, Reason
from consensus.params import ChainParams, Validator
from consensus.records import CheckpointRecord, Finality, Lock, ValidatorSet
from consensus.state import State
from consensus.types import Address, Amount, Hash32, Height, Millis
from consensus.vote import Checkpoint, SignState, Vote, verify_vote


def is_quorum(stake: int, total: int) -> bool:
    """At least two thirds."""
    return 3 * stake >= 2 * total


def build_genesis_finality(state: State, genesis: Hash32) -> State:
    """Genesis is justified and final from the beginning."""
    root = Checkpoint(Height(0), genesis)
    state = state.with_finality(Finality(root, root, Height(0)))
    return state.with_checkpoint(0, CheckpointRecord(genesis, root, 0, is_justified=True, voters=()))


def process_parent(state: State, parent: Checkpoint) -> State:
    """Makes the parent, of which this is the post-state, a checkpoint that can be voted for."""
    if parent.height == 0:
        return state
    record = CheckpointRecord(
        hash=parent.hash,
        source=state.get_finality().justified,
        set_number=state.get_validator_set().number,
        is_justified=False,
        voters=(),
        jailed=len(state.get_jailed()),
    )
    return state.with_checkpoint(parent.height, record)


# --- votes ------------------------------------------------------------------------------------


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidVote(reason, detail)


def _get_sets(state: State, source: Checkpoint, number: int) -> tuple[ValidatorSet, ...]:
    """The sets that must each agree on a link to a state with set `number`: that, and of the source's state.

    Raises: InvalidVote if the state has forgotten one.
    """
    record = state.get_checkpoint(source.height)
    numbers = {number} if record is None else {record.set_number, number}
    found = [state.find_validator_set(wanted) for wanted in sorted(numbers)]
    if record is None or None in found:
        raise InvalidVote(Reason.VOTE_SOURCE, f"the set of height {source.height} is forgotten")
    return tuple(item for item in found if item is not None)


def check_vote(state: State, vote: Vote, chain_id: Hash32) -> CheckpointRecord:
    """The record of the vote's target, if the vote counts in a block on this state.

    Raises: InvalidVote.
    """
    height = vote.target.height
    _require(height > state.get_finality().finalized.height, Reason.VOTE_FINAL, f"height {height}")
    record = state.get_checkpoint(height)
    if record is None or record.hash != vote.target.hash:
        raise InvalidVote(Reason.VOTE_TARGET, f"{vote.target.hash.hex()} at height {height}")
    _require(not record.is_justified, Reason.VOTE_JUSTIFIED, f"height {height}")
    _require(vote.source == record.source, Reason.VOTE_SOURCE, f"height {vote.source.height}")
    _require(vote.validator not in record.voters, Reason.VOTE_KNOWN, vote.validator.hex())
    sets = _get_sets(state, record.source, record.set_number)
    members = {member.address for item in sets for member in item.validators}
    _require(vote.validator in members, Reason.VOTE_VALIDATOR, vote.validator.hex())
    # By the target's state, for what justifies it on one branch must be able to on every other: who has seen
    # it justified signs no lower source again.
    jailed = state.get_jailed()[: record.jailed]
    _require(vote.validator not in jailed, Reason.VOTE_JAILED, vote.validator.hex())
    _require(verify_vote(chain_id, vote), Reason.VOTE_SIGNATURE, vote.validator.hex())
    return record


def apply_vote(state: State, vote: Vote, chain_id: Hash32) -> State:
    """Counts a vote; with a quorum its target is justified, and perhaps its source final.

    Raises: InvalidVote.
    """
    record = check_vote(state, vote, chain_id)
    voters = (*record.voters, vote.validator)
    sets = _get_sets(state, record.source, record.set_number)
    is_justified = all(_is_agreed(item.validators, set(voters)) for item in sets)
    record = replace(record, voters=voters, is_justified=is_justified)
    state = state.with_checkpoint(vote.target.height, record)
    return _process_justified(state, vote.target, record) if is_justified else state


def _is_agreed(validators: Iterable[Validator], voters: set[Address]) -> bool:
    total = stake = 0
    for member in validators:
        total += member.stake
        stake += member.stake if member.address in voters else 0
    return is_quorum(stake, total)


def _process_justified(state: State, target: Checkpoint, record: CheckpointRecord) -> State:
    finality = state.get_finality()
    if target.height > finality.justified.height:
        state = state.with_finality(replace(finality, justified=target))
    final = _find_final(state, target, record)
    return state if final is None else _finalize(state, final)


def _find_final(state: State, target: Checkpoint, record: CheckpointRecord) -> Checkpoint | None:
    """The highest checkpoint that is final now that `target` is justified.

    A link makes its source final if it and all between the two are justified; `target` may end such a link,
    or be what was missing between the ends of others.
    """
    finality = state.get_finality()
    final = None
    for height in range(target.height, finality.justified.height + 1):
        above = record if height == target.height else state.get_checkpoint(height)
        if above is None or not above.is_justified:
            break
        source = above.source
        if source.height < finality.finalized.height or source.height >= height:
            continue
        between = (state.get_checkpoint(h) for h in range(source.height + 1, height))
        if all(item is not None and item.is_justified for item in between):
            final = source
    return final if final is not None and final.height > finality.finalized.height else None


def _finalize(state: State, final: Checkpoint) -> State:
    finality = state.get_finality()
    for height in range(finality.finalized.height, final.height):
        state = state.with_checkpoint(height, None)
    return state.with_finality(replace(finality, finalized=final))


def apply_votes(
    state: State, votes: Iterable[Vote], chain_id: Hash32, time: Millis, params: ChainParams
) -> State:
    """The state after a block's votes in order, and after the change of set that they made final.

    Raises: InvalidBlock(B8_VOTES), its `cause` the reason of the first vote that does not count.
    """
    for index, vote in enumerate(votes):
        try:
            state = apply_vote(state, vote, chain_id)
        except InvalidVote as error:
            raise InvalidBlock(Reason.B8_VOTES, f"vote {index}: {error}", cause=error.reason) from error
    return activate_set(state, time, params)


def process_content(state: State, height: Height) -> State:
    """Notes that this block carries what finality is wanted for."""
    return state.with_finality(replace(state.get_finality(), content=height))


# --- changes of set ---------------------------------------------------------------------------


def activate_set(state: State, time: Millis, params: ChainParams) -> State:
    """The pending set takes over once its change is final; what leavers staked stays locked for a while."""
    pending = state.get_pending_set()
    if pending is None or state.get_finality().finalized.height < pending.height:
        return state
    jailed = state.get_jailed()
    before = state.get_validator_set()
    validators = tuple(member for member in pending.validators if member.address not in jailed)
    stakes = {member.address: member.stake for member in validators}
    locks = [
        Lock(member.address, Amount(excess), Millis(time + params.evidence_ms), None)
        for member in before.validators
        if member.address not in jailed and (excess := member.stake - stakes.get(member.address, 0)) > 0
    ]
    if locks:
        state = state.with_locks((*state.get_locks(), *locks))
    following = ValidatorSet(before.number + 1, validators)
    return state.with_validator_set(following, before).with_pending_set(None)


def release_locks(state: State, time: Millis) -> State:
    """Pays out what no evidence can reach any more."""
    locks = state.get_locks()
    due = [lock for lock in locks if lock.release <= time]
    if not due:
        return state
    for lock in due:
        state = state.with_credit(lock.owner, lock.amount)
    return state.with_locks(tuple(lock for lock in locks if lock.release > time))


# --- what a validator does --------------------------------------------------------------------


def is_finality_wanted(state: State) -> bool:
    """True while a block that carries transactions or work is not final."""
    finality = state.get_finality()
    return finality.content > finality.finalized.height


def choose_vote(
    state: State, head: Checkpoint, validator: Address, signed: SignState
) -> tuple[Checkpoint, Checkpoint] | None:
    """The link that an honest validator signs for the head with this post-state; None if it must not.

    Heights of targets only ever rise and heights of sources never fall, so that no two votes are slashable
    whatever the forks; nothing is signed while nothing waits to be final. Who has left the set votes on until
    the new set has justified its first checkpoint, for the first link across needs two thirds of both.
    """
    if not is_finality_wanted(state):
        return None
    source = state.get_finality().justified
    if head.height <= source.height or head.height <= signed.target or source.height < signed.source:
        return None
    return (source, head) if _may_vote(state, source, validator) else None


def _may_vote(state: State, source: Checkpoint, validator: Address) -> bool:
    """Whether a vote of this validator counts on a link from the source to the head with this post-state."""
    sets = _get_sets(state, source, state.get_validator_set().number)
    is_member = any(member.address == validator for item in sets for member in item.validators)
    return is_member and validator not in state.get_jailed()


def get_stall_delay(state: State, parent: Checkpoint, params: ChainParams) -> Millis:
    """How long after its parent a block is worth making that brings finality no nearer.

    Votes that split between forks need a fresh height to meet at; while too little stake is there, ever
    fewer such blocks are made.
    """
    finality = state.get_finality()
    idle = parent.height - max(finality.content, finality.justified.height)
    # From twice the idle time on: votes that are on their way should find the block after this one.
    return Millis(params.idle_ms * 2 ** (1 + min(max(idle, 0), 4)))
