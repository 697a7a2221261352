"""The simulator can fail: each broken rule here is found within a few seeds."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain

import pytest

import consensus.evidence
import consensus.finality
import consensus.fork_choice
import consensus.settlement
import consensus.transition
from consensus.errors import InvalidTransaction, Reason
from consensus.params import Validator
from consensus.records import CheckpointRecord, TaskState, Unsettled
from consensus.state import State
from consensus.task import Available, Credit
from consensus.types import Address, Hash32, Millis
from consensus.vote import NOTHING_SIGNED, Checkpoint, SignState, Vote
from tests.simulation.run import simulate

Patch = pytest.MonkeyPatch
SEEDS = 60


def halve_quorum(patch: Patch) -> None:
    patch.setattr(consensus.finality, "is_quorum", lambda stake, total: 2 * stake >= total)


def forget_signing(patch: Patch) -> None:
    choose = consensus.finality.choose_vote

    def choose_anything(
        state: State, head: Checkpoint, validator: Address, signed: SignState
    ) -> tuple[Checkpoint, Checkpoint] | None:
        return choose(state, head, validator, NOTHING_SIGNED)

    patch.setattr(consensus.finality, "choose_vote", choose_anything)


def pay_twice(patch: Patch) -> None:
    pay = consensus.settlement._pay

    def pay_more(
        state: State, record: TaskState, credits: tuple[Credit, ...], reward: int, fee: int
    ) -> tuple[State, TaskState]:
        state, record = pay(state, record, credits, reward, fee)
        for credit in credits:
            state = state.with_credit(credit.miner, reward)
        return state, record

    patch.setattr(consensus.settlement, "_pay", pay_more)


def settle_twice(patch: Patch) -> None:
    """A settled milestone stays, and is settled again by the next verdict or request."""
    settle = consensus.settlement.settle_accepted

    def settle_and_keep(
        state: State,
        task: Hash32,
        is_due: Callable[[Unsettled], bool],
        ctx: consensus.transition.BlockContext,
    ) -> State:
        before = state.get_task(task)
        state = settle(state, task, is_due, ctx)
        after = state.get_task(task)
        if before and after and after.status == before.status and before.unsettled != after.unsettled:
            state = state.with_task(task, replace(after, unsettled=before.unsettled, judged=()))
        return state

    patch.setattr(consensus.settlement, "settle_accepted", settle_and_keep)
    patch.setattr("consensus.verdicts.settle_accepted", settle_and_keep)


def exclude_leavers(patch: Patch) -> None:
    """The rule as it was before the simulator halted it."""

    def may_vote(state: State, source: Checkpoint, validator: Address) -> bool:
        return bool(state.get_stake(validator))

    patch.setattr(consensus.finality, "_may_vote", may_vote)


def believe_reports(patch: Patch) -> None:
    patch.setattr(consensus.evidence, "is_slashable", lambda first, second: True)


def release_for_ever(patch: Patch) -> None:
    def release(state: State, time: Millis) -> State:
        for lock in state.get_locks():
            if lock.release <= time:
                state = state.with_credit(lock.owner, lock.amount)
        return state

    patch.setattr(consensus.transition, "release_locks", release)


def prefer_first(patch: Patch) -> None:
    """Ties go to the child that came first."""

    def get_head(store: consensus.fork_choice.Store) -> Hash32:
        segment = store._entries[store.justified.hash].segment
        while segment.children:
            segment = min(segment.children, key=lambda child: -child.weight)
        return segment.last

    patch.setattr(consensus.fork_choice.Store, "get_head", get_head)


def count_votes_twice(patch: Patch) -> None:
    """Stake of a vote that came in two forms counts twice."""
    agreed = consensus.finality._is_agreed

    def is_agreed(validators: Iterable[Validator], voters: set[Address]) -> bool:
        doubled = [
            replace(member, stake=member.stake * (1 + (member.address in voters))) for member in validators
        ]
        return agreed(doubled, voters)

    patch.setattr(consensus.finality, "_is_agreed", is_agreed)


def stop_at_rejection(patch: Patch) -> None:
    """Quality halts the chain: nothing is final while a milestone stands rejected by anyone."""
    apply_vote = consensus.finality.apply_vote

    def apply_or_not(state: State, vote: Vote, chain_id: Hash32) -> State:
        tasks = [state.get_task(task) for task in state.get_tasks()]
        waiting = chain.from_iterable(task.unsettled for task in tasks if task)
        if any(item.rejected for item in waiting) or any(task and task.status == "closed" for task in tasks):
            consensus.finality.check_vote(state, vote, chain_id)
            return state
        return apply_vote(state, vote, chain_id)

    patch.setattr(consensus.finality, "apply_vote", apply_or_not)
    patch.setattr("consensus.proposal.apply_vote", apply_or_not)


def raise_undocumented(patch: Patch) -> None:
    def apply(state: State, sender: Address, payload: Available, ctx: object) -> State:
        raise KeyError(payload.task)

    patch.setattr(consensus.transition, "apply_available", apply)


def ask_everyone(patch: Patch) -> None:
    """Finality waits for the last validator."""
    patch.setattr(consensus.finality, "is_quorum", lambda stake, total: stake >= total)


def refuse_all_old_votes(patch: Patch) -> None:
    """Only votes for the very parent count, so a lost block or vote is never made good."""
    check = consensus.finality.check_vote

    def check_newest(state: State, vote: Vote, chain_id: Hash32) -> CheckpointRecord:
        if state.get_checkpoint(vote.target.height + 1) is not None:
            raise InvalidTransaction(Reason.VOTE_TARGET, "old")
        return check(state, vote, chain_id)

    patch.setattr(consensus.finality, "check_vote", check_newest)


MUTATIONS: dict[str, tuple[Callable[[Patch], None], int]] = {
    "quorum of a half": (halve_quorum, 10),
    "no sign-state": (forget_signing, 0),
    "rewards paid twice": (pay_twice, 2),
    "milestones settled twice": (settle_twice, 4),
    "leavers do not vote": (exclude_leavers, 53),
    "reports are believed": (believe_reports, 6),
    "locks released again": (release_for_ever, 10),
    "ties by arrival": (prefer_first, 2),
    "stake counted twice": (count_votes_twice, 10),
    "rejection halts finality": (stop_at_rejection, 2),
    "an exception escapes": (raise_undocumented, 0),
    "quorum of all": (ask_everyone, 1),
    "old votes raise another error": (refuse_all_old_votes, 0),
}
"""Each with the first seed to try: one that finds it, as long as scenarios are drawn as they are now."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, first = MUTATIONS[name]
    mutate(monkeypatch)
    for seed in range(first, first + SEEDS):
        outcome = simulate(seed)
        if outcome.violation:
            print(f"{name}: seed {seed}: {outcome.violation}")
            return
    pytest.fail(f"{name}: {SEEDS} seeds from {first} find nothing")
