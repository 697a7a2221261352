"""Federated rounds: updates, the list that a final block fixes, its one sum, its one opening, judgements.

Validators attest what they hold and have checked, add it, and judge what was opened; consensus itself sees
only roots. What a validator signs names what it has seen, so that it counts for nothing else on another fork.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from consensus.context import BlockContext
from consensus.errors import InvalidTransaction, Reason
from consensus.federation_rounds import build_round, end_round, get_eligible, settle_opened
from consensus.federations import (
    AttestUpdates,
    CloseRound,
    ConfirmSum,
    CreateFederation,
    EndFederation,
    FederationRecord,
    FederationStatus,
    Judgement,
    JudgeRound,
    OpenSum,
    RoundOutcome,
    RoundPhase,
    SettleRound,
    Submission,
    SubmitUpdate,
    SumVote,
)
from consensus.publication import MAX_OPENED, MAX_STATEMENT, MAX_TITLE
from consensus.state import State
from consensus.types import MAX_LADDER, MAX_TIME_MS, Address, Amount, Hash32
from consensus.verdicts import compute_stake

MAX_BLOB_BYTES = 2**40
MIN_PARTICIPANTS = 2
MAX_PARTICIPANTS = 64
MAX_WEIGHT = 2**12
MAX_ROUNDS = 2**12
MAX_PARAMETERS = 2**26
MAX_SPAN_MS = 2**40
MAX_GRACE_MS = 60_000
"""For attestations of updates that came at the end of the window; a quarter of it at most."""
MAX_UNITS = 2**40
"""Of the noise and the slack; of a clip times all weights it is `MAX_OPENED`."""


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidTransaction(reason, detail)


# --- creation ---------------------------------------------------------------------------------


def _check_participants(
    state: State, payload: CreateFederation, require: Callable[[bool, str], None]
) -> None:
    members = payload.participants
    require(MIN_PARTICIPANTS <= len(members) <= MAX_PARTICIPANTS, "participants: 2 to 64")
    ascending = all(a.address < b.address for a, b in pairwise(members))
    require(ascending, "participants: by ascending address, each once")
    require(all(0 < item.weight <= MAX_WEIGHT for item in members), f"weight: 1 to {MAX_WEIGHT}")
    names = {state.get_account(item.address).organisation for item in members}
    require("" not in names and len(names) == len(members), "participants: one of each organisation")
    require(MIN_PARTICIPANTS <= payload.min_participants <= len(members), "min_participants")
    total = sum(item.weight for item in members)
    require(payload.clip > 0 and payload.clip * total <= MAX_OPENED, "clip")


def _check_create(state: State, payload: CreateFederation, ctx: BlockContext) -> None:
    def require(condition: bool, field: str) -> None:
        _require(condition, Reason.FEDERATION_FIELD, field)

    require(0 < len(payload.title) <= MAX_TITLE, "title")
    require(len(payload.statement) <= MAX_STATEMENT, "statement")
    for field in ("network", "model", "keys"):
        require(0 < getattr(payload, field).length <= MAX_BLOB_BYTES, field)
    require(0 < payload.parameters <= MAX_PARAMETERS, "parameters")
    require(0 < payload.update_bytes <= MAX_BLOB_BYTES, "update_bytes")
    _check_participants(state, payload, require)
    require(0 < payload.rounds <= MAX_ROUNDS, "rounds")
    require(0 < payload.max_openings <= payload.rounds, "max_openings")
    for field in ("train_ms", "open_ms", "judge_ms"):
        require(0 < getattr(payload, field) <= MAX_SPAN_MS, field)
    require(0 <= payload.noise_std <= MAX_UNITS, "noise_std")
    require(0 <= payload.slack <= MAX_UNITS, "slack")
    targets = [rung.target for rung in payload.ladder]
    require(len(targets) <= MAX_LADDER and all(0 <= target <= MAX_OPENED for target in targets), "ladder")
    require(all(a > b for a, b in pairwise(targets)), "ladder")
    require(ctx.time < payload.deadline <= MAX_TIME_MS, "deadline")


def apply_create(
    state: State, sender: Address, payload: CreateFederation, federation: Hash32, ctx: BlockContext
) -> State:
    """A new federation under its transaction's id, in its first round; the ladder's rewards are escrowed."""
    _check_create(state, payload, ctx)
    # A sum of other federations' updates, under the same key, could tell theirs.
    is_fresh = state.get_key_task(payload.keys.root) is None
    _require(is_fresh, Reason.FEDERATION_KEY_USED, payload.keys.root.hex())
    escrow = sum(rung.reward for rung in payload.ladder)
    balance = state.get_account(sender).balance
    _require(balance >= escrow, Reason.TX_BALANCE, f"{balance} of {escrow}")
    record = FederationRecord(
        create=payload,
        custody=sender,
        height=ctx.height,
        status=FederationStatus.RUNNING,
        round=build_round(0, None, ctx),
        model=payload.model,
        openings=0,
        accepted=0,
        next_rung=0,
        suspects=(),
        accused=(),
        probation=(),
        escrow=Amount(escrow),
    )
    state = state.with_credit(sender, -escrow).with_key_task(payload.keys.root, federation)
    return state.with_new_federation(federation, record)


# --- the current round ------------------------------------------------------------------------


def _get_running(state: State, federation: Hash32) -> FederationRecord:
    record = state.get_federation(federation)
    if record is None:
        raise InvalidTransaction(Reason.FEDERATION_UNKNOWN, federation.hex())
    _require(record.status is FederationStatus.RUNNING, Reason.FEDERATION_ENDED, federation.hex())
    return record


def _get_round(state: State, federation: Hash32, number: int, phase: RoundPhase) -> FederationRecord:
    """The federation, if this round is the current one and in this phase."""
    record = _get_running(state, federation)
    current = record.round
    _require(number >= current.number, Reason.ROUND_PAST, f"round {number}, the current is {current.number}")
    _require(
        number == current.number, Reason.ROUND_FUTURE, f"round {number}, the current is {current.number}"
    )
    if current.phase is RoundPhase.TRAINING:
        _require(phase is RoundPhase.TRAINING, Reason.ROUND_OPEN, f"round {number} still takes updates")
    if current.phase is RoundPhase.SUMMING:
        _require(
            phase is not RoundPhase.TRAINING, Reason.ROUND_CLOSED, f"the list of round {number} is fixed"
        )
        _require(phase is RoundPhase.SUMMING, Reason.ROUND_UNOPENED, f"round {number} is not opened")
    if current.phase is RoundPhase.OPENED:
        _require(phase is RoundPhase.OPENED, Reason.ROUND_OPENED, f"round {number} is opened")
    return record


def apply_submit(state: State, sender: Address, payload: SubmitUpdate, ctx: BlockContext) -> State:
    """A participant's update; once, within the window, and of bytes that nobody submitted before."""
    record = _get_round(state, payload.federation, payload.round, RoundPhase.TRAINING)
    current = record.round
    _require(sender in get_eligible(record), Reason.UPDATE_PARTICIPANT, sender.hex())
    is_new = all(item.participant != sender for item in current.submissions)
    _require(is_new, Reason.UPDATE_DOUBLED, sender.hex())
    length, expected = payload.update.length, record.create.update_bytes
    _require(length == expected, Reason.UPDATE_SIZE, f"{length} bytes, not {expected}")
    end = current.started + record.create.train_ms
    _require(ctx.time < end, Reason.UPDATE_LATE, f"updates were taken before {end}")
    # A copy would count an update twice in one sum, or an old one once more.
    is_own = not state.is_update_used(payload.federation, payload.update.root)
    _require(is_own, Reason.UPDATE_COPIED, payload.update.root.hex())
    submissions = (*current.submissions, Submission(sender, payload.update, ()))
    record = replace(record, round=replace(current, submissions=submissions))
    state = state.with_used_update(payload.federation, payload.update.root, sender)
    return state.with_federation(payload.federation, record)


def apply_attest(state: State, sender: Address, payload: AttestUpdates) -> State:
    """A validator's word that it holds these updates and that they can be added."""
    _require(state.get_stake(sender) > 0, Reason.ATTEST_VALIDATOR, sender.hex())
    record = _get_round(state, payload.federation, payload.round, RoundPhase.TRAINING)
    roots = payload.updates
    is_ordered = 0 < len(roots) <= MAX_PARTICIPANTS and all(a < b for a, b in pairwise(roots))
    _require(is_ordered, Reason.ATTEST_ORDER, "updates: 1 to 64, by ascending root")
    submitted = {item.update.root: item for item in record.round.submissions}
    for root in roots:
        _require(root in submitted, Reason.ATTEST_UNKNOWN, root.hex())
        _require(sender not in submitted[root].attested, Reason.ATTEST_DOUBLED, root.hex())
    submissions = tuple(
        replace(item, attested=(*item.attested, sender)) if item.update.root in roots else item
        for item in record.round.submissions
    )
    record = replace(record, round=replace(record.round, submissions=submissions))
    return state.with_federation(payload.federation, record)


def is_available(state: State, item: Submission) -> bool:
    """True if validators with more than two thirds of all stake, as it is now, attest the update."""
    return 3 * compute_stake(state, item.attested) > 2 * state.get_total_stake()


def is_closable(state: State, record: FederationRecord, ctx: BlockContext) -> bool:
    """True once the window for updates is over, and that for attestations unless none is missing.

    Otherwise whoever closes first could cut off updates that came in time and are still being checked.
    """
    current, train_ms = record.round, record.create.train_ms
    if current.phase is not RoundPhase.TRAINING or ctx.time < current.started + train_ms:
        return False
    grace = min(MAX_GRACE_MS, train_ms // 4)
    is_complete = all(is_available(state, item) for item in current.submissions)
    return is_complete or ctx.time >= current.started + train_ms + grace


def apply_close_round(state: State, payload: CloseRound, ctx: BlockContext) -> State:
    """Fixes the list: what is available now; too few lapse."""
    record = _get_round(state, payload.federation, payload.round, RoundPhase.TRAINING)
    _require(is_closable(state, record, ctx), Reason.CLOSE_EARLY, payload.federation.hex())
    current = record.round
    listed = tuple(sorted(item.participant for item in current.submissions if is_available(state, item)))
    closed = replace(
        current,
        phase=RoundPhase.SUMMING,
        listed=listed,
        closed_height=ctx.height,
        closed_time=ctx.time,
    )
    record = replace(record, round=closed)
    if len(listed) < record.create.min_participants:
        return end_round(state, payload.federation, record, RoundOutcome.LAPSED, ctx)
    return state.with_federation(payload.federation, record)


def is_list_final(state: State, record: FederationRecord) -> bool:
    """True if no fork can fix another list: the block that closed the round is final in this state."""
    current = record.round
    is_closed = current.phase is not RoundPhase.TRAINING
    return is_closed and state.get_finality().finalized.height >= current.closed_height


# --- the sum and its opening ------------------------------------------------------------------


def apply_confirm_sum(state: State, sender: Address, payload: ConfirmSum) -> State:
    """A validator's root of the sum; the first that more than a third of all stake agrees on confirms it."""
    _require(state.get_stake(sender) > 0, Reason.SUM_VALIDATOR, sender.hex())
    record = _get_round(state, payload.federation, payload.round, RoundPhase.SUMMING)
    current = record.round
    _require(is_list_final(state, record), Reason.ROUND_NOT_FINAL, f"height {current.closed_height}")
    _require(current.total is None, Reason.SUM_CONFIRMED, payload.federation.hex())
    is_new = all(item.validator != sender for item in current.sums)
    _require(is_new, Reason.SUM_DOUBLED, sender.hex())
    sums = (*current.sums, SumVote(sender, payload.total))
    stake = compute_stake(state, (item.validator for item in sums if item.total == payload.total))
    total = payload.total if 3 * stake > state.get_total_stake() else None
    record = replace(record, round=replace(current, sums=sums, total=total))
    return state.with_federation(payload.federation, record)


def apply_open_sum(state: State, sender: Address, payload: OpenSum, ctx: BlockContext) -> State:
    """The custody's one opening of a round: of the confirmed sum of a final list, within its time."""
    record = _get_round(state, payload.federation, payload.round, RoundPhase.SUMMING)
    current, create = record.round, record.create
    _require(sender == record.custody, Reason.SUM_CUSTODY, sender.hex())
    _require(current.total is not None, Reason.SUM_UNCONFIRMED, payload.total.hex())
    _require(payload.total == current.total, Reason.SUM_TOTAL, payload.total.hex())
    end = current.closed_time + create.open_ms
    _require(ctx.time <= end, Reason.SUM_LATE, f"sums were opened until {end}")
    _require(ctx.time <= create.deadline, Reason.FEDERATION_DEADLINE, str(create.deadline))
    length, expected = payload.model.length, create.model.length
    _require(length == expected, Reason.SUM_SIZE, f"model of {length} bytes, not {expected}")
    _require(0 < payload.opened.length <= MAX_BLOB_BYTES, Reason.SUM_SIZE, "opened")
    opened = replace(
        current,
        phase=RoundPhase.OPENED,
        opened=payload.opened,
        model=payload.model,
        opened_time=ctx.time,
    )
    record = replace(record, round=opened, openings=record.openings + 1)
    return state.with_federation(payload.federation, record)


# --- judgements and ends ----------------------------------------------------------------------


def _is_judging_over(record: FederationRecord, ctx: BlockContext) -> bool:
    return ctx.time >= record.round.opened_time + record.create.judge_ms


def apply_judge(state: State, sender: Address, payload: JudgeRound, ctx: BlockContext) -> State:
    """A validator's two losses on data of its own; whoever has none sends nothing."""
    _require(state.get_stake(sender) > 0, Reason.JUDGE_VALIDATOR, sender.hex())
    record = _get_round(state, payload.federation, payload.round, RoundPhase.OPENED)
    current = record.round
    fits = current.model is not None and payload.model == current.model.root
    _require(fits, Reason.JUDGE_MODEL, payload.model.hex())
    _require(not _is_judging_over(record, ctx), Reason.JUDGE_LATE, payload.federation.hex())
    is_new = all(item.validator != sender for item in current.judgements)
    _require(is_new, Reason.JUDGE_DOUBLED, sender.hex())
    fits = min(payload.before, payload.after) >= 0 and max(payload.before, payload.after) <= MAX_OPENED
    _require(fits, Reason.JUDGE_BOUND, f"a loss is from 0 to {MAX_OPENED}")
    judgements = (*current.judgements, Judgement(sender, payload.before, payload.after))
    record = replace(record, round=replace(current, judgements=judgements))
    return state.with_federation(payload.federation, record)


def is_settleable(state: State, record: FederationRecord, ctx: BlockContext) -> bool:
    """True if the custody's time is over, or the validators' time is or all have judged."""
    current = record.round
    if current.phase is RoundPhase.TRAINING:
        return False
    if current.phase is RoundPhase.SUMMING:
        return ctx.time > current.closed_time + record.create.open_ms
    judged = {item.validator for item in current.judgements}
    has_all = all(validator.address in judged for validator in state.get_acting_validators())
    return has_all or _is_judging_over(record, ctx)


def apply_settle_round(state: State, payload: SettleRound, ctx: BlockContext) -> State:
    """Ends an opened round by its judgements, or one that was not opened in time as lapsed."""
    record = _get_running(state, payload.federation)
    phase = RoundPhase.SUMMING if record.round.phase is RoundPhase.SUMMING else RoundPhase.OPENED
    record = _get_round(state, payload.federation, payload.round, phase)
    _require(is_settleable(state, record, ctx), Reason.SETTLE_EARLY, payload.federation.hex())
    if record.round.phase is RoundPhase.SUMMING:
        return end_round(state, payload.federation, record, RoundOutcome.LAPSED, ctx)
    return settle_opened(state, payload.federation, record, ctx)


def is_endable(record: FederationRecord, ctx: BlockContext) -> bool:
    """True after the deadline, unless an opened round still waits for judgements."""
    is_judged = record.round.phase is not RoundPhase.OPENED or _is_judging_over(record, ctx)
    is_running = record.status is FederationStatus.RUNNING
    return is_running and ctx.time > record.create.deadline and is_judged


def apply_end_federation(state: State, payload: EndFederation, ctx: BlockContext) -> State:
    """Ends a federation whose time is over: its round is settled if it was opened, else lapses."""
    record = _get_running(state, payload.federation)
    _require(is_endable(record, ctx), Reason.FEDERATION_EARLY, str(record.create.deadline))
    if record.round.phase is RoundPhase.OPENED:
        return settle_opened(state, payload.federation, record, ctx)
    return end_round(state, payload.federation, record, RoundOutcome.LAPSED, ctx)
