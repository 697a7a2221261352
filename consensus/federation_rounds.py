"""What rounds come to: outcomes, the ladder's money, who is left out next, ends (ADR 0022)."""

from dataclasses import replace

from consensus.context import BlockContext
from consensus.crypto import hash_domain
from consensus.federations import (
    EndedRound,
    FederationRecord,
    FederationStatus,
    Judgement,
    RoundOutcome,
    RoundPhase,
    RoundRecord,
)
from consensus.state import State
from consensus.types import Address, Amount, Hash32, Height, Millis


def build_round(number: int, left_out: Address | None, ctx: BlockContext) -> RoundRecord:
    """A round that begins with this block."""
    return RoundRecord(
        number=number,
        phase=RoundPhase.TRAINING,
        started=ctx.time,
        left_out=left_out,
        submissions=(),
        listed=(),
        closed_height=Height(0),
        closed_time=Millis(0),
        sums=(),
        total=None,
        opened=None,
        model=None,
        opened_time=Millis(0),
        judgements=(),
    )


# --- outcomes ---------------------------------------------------------------------------------


def _is_good(item: Judgement, record: FederationRecord) -> bool:
    return item.after <= item.before + record.create.slack


def judge(state: State, record: FederationRecord) -> tuple[RoundOutcome, tuple[int, ...]]:
    """What the judgements of an opened round come to, and the rungs that it meets, by stake as it is now.

    Judged is by more than a third of all stake, accepted by more than two thirds of what judged; a rung is
    met if more than two thirds of it both accept and are at the target.
    """
    stakes = [(state.get_stake(item.validator), item) for item in record.round.judgements]
    judging = sum(stake for stake, _ in stakes)
    if 3 * judging <= state.get_total_stake():
        return RoundOutcome.LAPSED, ()
    good = [(stake, item) for stake, item in stakes if _is_good(item, record)]
    if 3 * sum(stake for stake, _ in good) <= 2 * judging:
        return RoundOutcome.REJECTED, ()
    rungs: list[int] = []
    for rung in range(record.next_rung, len(record.create.ladder)):
        target = record.create.ladder[rung].target
        if 3 * sum(stake for stake, item in good if item.after <= target) <= 2 * judging:
            break
        rungs.append(rung)
    return RoundOutcome.ACCEPTED, tuple(rungs)


def _pay(state: State, record: FederationRecord, rungs: tuple[int, ...]) -> tuple[State, FederationRecord]:
    """Rewards to the listed by weight, each rounded down; what does not divide stays in escrow."""
    weights = {item.address: item.weight for item in record.create.participants}
    listed = record.round.listed
    total = sum(weights[address] for address in listed)
    paid = 0
    for rung in rungs:
        reward = record.create.ladder[rung].reward
        for address in listed:
            share = reward * weights[address] // total
            state = state.with_credit(address, share)
            paid += share
    return state, replace(
        record, escrow=Amount(record.escrow - paid), next_rung=record.next_rung + len(rungs)
    )


def settle_opened(state: State, federation: Hash32, record: FederationRecord, ctx: BlockContext) -> State:
    """Ends an opened round by its judgements."""
    outcome, rungs = judge(state, record)
    model = record.round.model
    if outcome is RoundOutcome.ACCEPTED and model is not None:
        state, record = _pay(state, record, rungs)
        record = replace(record, model=model, accepted=record.accepted + 1)
    return end_round(state, federation, record, outcome, ctx, rungs)


# --- probation --------------------------------------------------------------------------------


def order_probation(federation: Hash32, number: int, listed: tuple[Address, ...]) -> tuple[Address, ...]:
    """In which order the members of round `number` are left out, which none of them chooses."""
    prefix = federation + number.to_bytes(8, "big")
    return tuple(sorted(listed, key=lambda address: hash_domain("probation", prefix + address)))


def _accuse(federation: Hash32, record: FederationRecord) -> FederationRecord:
    """Puts a rejected list on probation, if that can lead to anything.

    Without noise it can't be had: the difference of two sums that one member tells apart is its update.
    """
    create, current = record.create, record.round
    needed = len(current.listed)
    is_possible = (
        create.noise_std > 0
        and needed > create.min_participants
        and needed <= create.rounds - current.number - 1
        and needed <= create.max_openings - record.openings
    )
    if not is_possible:
        return record
    order = order_probation(federation, current.number, current.listed)
    return replace(record, accused=current.listed, probation=order)


def _try(
    state: State, federation: Hash32, record: FederationRecord, outcome: RoundOutcome
) -> FederationRecord:
    """After a round of probation: the next, nothing, or one suspect.

    All members have their turn before one is blamed: who poisons only while another is left out cannot have
    that one blamed, since the round without the poisoner is accepted too.
    """
    free = replace(record, accused=(), probation=())
    current = record.round
    if outcome is RoundOutcome.LAPSED:
        return free
    if outcome is RoundOutcome.ACCEPTED and len(current.listed) < len(record.accused) - 1:
        return free
    done = len(record.accused) - len(record.probation)
    found = [current.left_out] if outcome is RoundOutcome.ACCEPTED else []
    for number in range(current.number - done + 1, current.number):
        earlier = state.get_ended_round(federation, number)
        if earlier is not None and earlier.outcome is RoundOutcome.ACCEPTED:
            found.append(earlier.round.left_out)
    if len(found) > 1:
        return free
    if record.probation:
        return record
    return replace(free, suspects=(*record.suspects, *(item for item in found if item is not None)))


def get_eligible(record: FederationRecord) -> tuple[Address, ...]:
    """Who may submit in the current round: of an accused list all but one, else everybody but suspects."""
    out = {*record.suspects, record.round.left_out}
    members = tuple(item.address for item in record.create.participants)
    return tuple(a for a in members if a not in out and (not record.accused or a in record.accused))


# --- ends -------------------------------------------------------------------------------------


def end_round(
    state: State,
    federation: Hash32,
    record: FederationRecord,
    outcome: RoundOutcome,
    ctx: BlockContext,
    rungs: tuple[int, ...] = (),
) -> State:
    """Keeps the round as a record of its own and begins the next, or ends the federation if there is none."""
    current = record.round
    ended = EndedRound(current, outcome, ctx.time, ctx.height, rungs)
    if record.accused:
        record = _try(state, federation, record, outcome)
    elif outcome is RoundOutcome.REJECTED:
        record = _accuse(federation, record)
    state = state.with_ended_round(federation, ended)
    if not _goes_on(record, ctx):
        return finish(state, federation, record)
    left_out = record.probation[0] if record.probation else None
    following = build_round(current.number + 1, left_out, ctx)
    record = replace(record, round=following, probation=record.probation[1:])
    return state.with_federation(federation, record)


def _goes_on(record: FederationRecord, ctx: BlockContext) -> bool:
    create = record.create
    is_complete = bool(create.ladder) and record.next_rung == len(create.ladder)
    return (
        not is_complete
        and ctx.time <= create.deadline
        and record.round.number + 1 < create.rounds
        and record.openings < create.max_openings
        and len(create.participants) - len(record.suspects) >= create.min_participants
    )


def finish(state: State, federation: Hash32, record: FederationRecord) -> State:
    """What is left of the escrow goes back to who paid it."""
    state = state.with_credit(record.custody, record.escrow)
    ended = replace(record, status=FederationStatus.ENDED, accused=(), probation=(), escrow=Amount(0))
    return state.with_federation(federation, ended)
