"""Block validity: rules B1 to B9 and W1 to W7, numbered as in the design.

Cheapest checks first: what needs no state, then what needs the parent, then the work's place in its task,
then the transactions, and last the one recomputation that may have to be waited for (W4).
"""

from consensus.block import Block, Header, Work
from consensus.codec import CodecError, NonCanonicalError, decode, decode_leading_integer, encode
from consensus.crypto import verify
from consensus.errors import Held, InvalidBlock, InvalidTransaction, NeedsWork, Reason
from consensus.identifiers import (
    compute_block_hash,
    compute_transactions_root,
    compute_votes_root,
    compute_weights_digest,
    compute_work_root,
)
from consensus.openings import get_task_parts
from consensus.params import ChainParams
from consensus.records import Qualified
from consensus.settlement import is_custody_side
from consensus.state import State, TaskStatus
from consensus.transition import apply_block
from consensus.turns import get_carrier_proposer, get_rank_time, get_work_rank
from consensus.types import MAX_TIME_MS, Hash32, Millis
from consensus.upgrade import UnknownVersion, build_context
from consensus.versions import GENESIS_VERSION, get_highest_version
from consensus.work import LossCheck, WorkVerifier

MAX_FRAME_BYTES = 1024
"""More than a block's bytes outside its body ever are."""
_BLOCK_START = bytes((0x93, 0x9A))
"""The heads of a block's array and of its header's, which every version shares; the version follows."""


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidBlock(reason, detail)


# --- without state: B1 to B5 --------------------------------------------------------------


def decode_block(data: bytes, params: ChainParams) -> Block:
    """The block of exactly these canonical bytes (B1).

    Raises: InvalidBlock.
    """
    limit = params.max_body_bytes + MAX_FRAME_BYTES
    _require(len(data) <= limit, Reason.B1_OVERSIZE, f"{len(data)} bytes")
    try:
        return decode(Block, data)
    except NonCanonicalError as error:
        raise InvalidBlock(Reason.B1_NON_CANONICAL, str(error)) from error
    except CodecError as error:
        version = peek_version(data)
        if version is not None and version > get_highest_version():
            raise UnknownVersion(version, get_highest_version()) from error
        raise InvalidBlock(Reason.B1_MALFORMED, str(error)) from error


def peek_version(data: bytes) -> int | None:
    """What a block that can't be decoded says its version is: later ones may hold what is not known here."""
    start = data[:2]
    if start != _BLOCK_START:
        return None
    try:
        return decode_leading_integer(data, len(start))
    except CodecError:
        return None


def check_block(block: Block, params: ChainParams, chain_id: Hash32) -> None:
    """All that can be said of a block without its parent.

    Raises: InvalidBlock.
    """
    header, body = block.header, block.body
    try:
        size = len(encode(body))
        block_hash = compute_block_hash(header)
    except CodecError as error:
        raise InvalidBlock(Reason.B1_MALFORMED, str(error)) from error
    _require(size <= params.max_body_bytes, Reason.B1_OVERSIZE, f"body of {size} bytes")
    count = len(body.transactions)
    _require(count <= params.max_transactions, Reason.B1_OVERSIZE, f"{count} transactions")
    _require(header.version >= GENESIS_VERSION, Reason.B2_VERSION, str(header.version))
    _require(header.chain_id == chain_id, Reason.B2_CHAIN, header.chain_id.hex())
    _require(header.height > 0, Reason.B2_HEIGHT, str(header.height))
    _require(header.time <= MAX_TIME_MS, Reason.B3_RANGE, str(header.time))
    is_signed = verify(header.proposer, "block", block_hash, block.signature)
    _require(is_signed, Reason.B4_SIGNATURE, header.proposer.hex())
    if header.version > get_highest_version():
        raise UnknownVersion(header.version, get_highest_version(), header.height)
    root = compute_transactions_root(body.transactions)
    _require(root == header.transactions_root, Reason.B5_TRANSACTIONS_ROOT, root.hex())
    root = compute_work_root(body.work)
    _require(root == header.work_root, Reason.B5_WORK_ROOT, root.hex())
    root = compute_votes_root(body.votes)
    _require(root == header.votes_root, Reason.B5_VOTES_ROOT, root.hex())


# --- with the parent: B2, B3, B7 and W --------------------------------------------------------


def _check_parent(header: Header, parent: Header, params: ChainParams) -> None:
    _require(header.height == parent.height + 1, Reason.B2_HEIGHT, str(header.height))
    _require(header.parent == compute_block_hash(parent), Reason.B2_PARENT, header.parent.hex())
    earliest = parent.time + params.min_block_ms
    _require(header.time >= earliest, Reason.B3_EARLY, f"{header.time} before {earliest}")


def check_carrier_turn(state: State, header: Header, parent: Header, params: ChainParams) -> None:
    """B7 for a block that stands on the carrier's turn alone.

    Raises: InvalidBlock.
    """
    turn = get_carrier_proposer(state, params, parent, header.time)
    _require(turn is not None, Reason.B7_IDLE, f"{header.time - parent.time} ms after the parent")
    _require(turn == header.proposer, Reason.B7_TURN, header.proposer.hex())


def check_work(state: State, work: Work, header: Header, parent: Header, params: ChainParams) -> Qualified:
    """The pending milestone that this work takes, after rules W1 to W7 but W4, and B7.

    `state` is the parent's post-state. Raises: InvalidBlock.
    """
    try:
        task_state, publication, draft = get_task_parts(state, work.task)
    except InvalidTransaction as error:
        raise InvalidBlock(Reason.W1_TASK, error.detail) from error
    _require(task_state.status == TaskStatus.OPEN, Reason.W1_STATUS, task_state.status)
    final = state.get_finality().finalized.height
    _require(final >= task_state.published_height, Reason.W1_FINAL, f"final up to height {final}")
    _require(header.time <= publication.deadline, Reason.W1_DEADLINE, str(publication.deadline))
    _require(bool(task_state.qualified), Reason.W1_MILESTONE, "no rung is met")
    milestone = task_state.qualified[0]
    _require(work.first_rung == milestone.first_rung, Reason.W1_MILESTONE, f"rung {work.first_rung}")
    is_custody = is_custody_side(state, task_state, header.proposer)
    _require(not is_custody, Reason.W2_CUSTODY, header.proposer.hex())

    is_rung = work.first_rung <= work.last_rung < len(publication.ladder)
    _require(is_rung, Reason.W5_RUNGS, f"rungs {work.first_rung} to {work.last_rung}")
    target = publication.ladder[work.last_rung].target
    _require(work.loss <= target, Reason.W5_LOSS, f"{work.loss} above {target}")
    _require(work.step == milestone.step, Reason.W5_FIRST, f"step {work.step}, not {milestone.step}")
    opening = (work.loss_opening, work.loss)
    is_opened = opening == (milestone.loss_opening, milestone.loss)
    _require(is_opened, Reason.W3_OPENINGS, f"loss {work.loss} was not opened at step {work.step}")
    _require(work.openings == milestone.openings, Reason.W3_OPENINGS, work.openings.hex())
    _require(work.last_rung == milestone.last_rung, Reason.W5_RUNGS, f"up to {milestone.last_rung}")
    is_inside = all(abs(weight) <= draft.weight_box for weight in work.weights)
    _require(is_inside, Reason.W6_BOX, f"box {draft.weight_box}")
    digest = compute_weights_digest(work.weights)
    _require(digest == milestone.weights_digest, Reason.W6_WEIGHTS, digest.hex())
    _require(work.credits == milestone.credits, Reason.W7_CREDITS, f"{len(work.credits)} credits")
    _check_rank(state, milestone, header, parent, params)
    return milestone


def _check_rank(
    state: State, milestone: Qualified, header: Header, parent: Header, params: ChainParams
) -> None:
    """B7 for a work block: by rank, and after the last rank by the carrier's turn."""
    rank = get_work_rank(milestone, header.proposer)
    place = len(milestone.credits) if rank is None else rank
    earliest = get_rank_time(milestone, place, params)
    _require(header.time >= earliest, Reason.B7_RANK, f"{header.time} before {earliest}")
    if rank is None:
        check_carrier_turn(state, header, parent, params)


# --- the whole --------------------------------------------------------------------------------


def validate_block(
    parent: Header,
    parent_state: State,
    block: Block | bytes,
    params: ChainParams,
    chain_id: Hash32,
    verifier: WorkVerifier,
    now: Millis | None = None,
    known: int | None = None,
) -> State:
    """The state after a block that obeys every rule of its height; nothing changes if it does not.

    `parent` is the header that the block names and `parent_state` the state after it. With `now`, a block
    that is ahead of it is held. Versions above `known` are treated as unknown.

    Raises: InvalidBlock; Held until its time has come (B3); NeedsWork until its loss is recomputed (W4),
    which is asked only of a block that is otherwise valid.
    """
    if isinstance(block, bytes):
        block = decode_block(block, params)
    check_block(block, params, chain_id)
    header, work = block.header, block.body.work
    _check_parent(header, parent, params)
    ctx = build_context(parent_state, header.height, header.time, params, chain_id, known)
    expected = ctx.rules.number
    _require(header.version == expected, Reason.B2_VERSION, f"{header.version}, {expected} is in force")
    milestone = None
    if work is None:
        check_carrier_turn(parent_state, header, parent, params)
    else:
        milestone = check_work(parent_state, work, header, parent, params)
    # Only whoever is entitled can make a block that has to be kept for later.
    if now is not None and header.time > now:
        raise Held(header.time)
    state = apply_block(parent_state, block.body, header.parent, ctx)
    _require(state.root == header.state_root, Reason.B9_STATE_ROOT, state.root.hex())
    if work is not None and milestone is not None:
        _verify_loss(work, milestone, verifier)
    return state


def _verify_loss(work: Work, milestone: Qualified, verifier: WorkVerifier) -> None:
    """W4: the loss ciphertext recomputes, bit for bit, to the hash in the opening."""
    check = LossCheck(work.task, work.step, work.weights)
    verdict = verifier.get_verdict(check)
    if verdict is None or verdict.check != check:
        raise NeedsWork(check)
    _require(
        verdict.ciphertext == milestone.ciphertext,
        Reason.W4_CIPHERTEXT,
        f"recomputed {verdict.ciphertext.hex()}, opened {milestone.ciphertext.hex()}",
    )
