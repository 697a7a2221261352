"""Turns changes of the chain's head into events; the data of each kind of event is defined here."""

from collections import Counter
from collections.abc import Iterable

from pydantic import JsonValue

from consensus.block import Block, Work
from consensus.federations import (
    AttestUpdates,
    CloseRound,
    ConfirmSum,
    CreateFederation,
    EndFederation,
    JudgeRound,
    OpenSum,
    SettleRound,
    SubmitUpdate,
)
from consensus.identifiers import compute_block_hash, compute_opening_hash
from consensus.jobs import CloseCommits, CommitResult, ExpireJob, RequestInference, RevealResult
from consensus.openings import get_credited
from consensus.payload import Verdict
from consensus.state import State
from consensus.task import OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Hash32, Millis
from consensus.vote import Checkpoint
from node.chain import Chain, HeadChange
from node.clock import Clock
from node.events import EventBus, EventKind
from node.evidence import Conflict


class EventAnnouncer:
    """Publishes events for every change of head, in chain order: what happened in each block,
    then the block, the new head last. Statuses of tasks are compared between the old and the new head."""

    def __init__(self, chain: Chain, bus: EventBus, clock: Clock) -> None:
        self._chain = chain
        self._bus = bus
        self._clock = clock
        self._statuses = _get_statuses(chain.head_state)
        chain.on_head_change(self.on_head_change)
        chain.on_finalized(self.on_finalized)

    def on_head_change(self, change: HeadChange) -> None:
        now = self._clock.now_ms()
        if change.disconnected:
            self._publish(
                EventKind.REORG,
                now,
                {
                    "old": change.old.hex(),
                    "new": change.new.hex(),
                    "disconnected": [compute_block_hash(block.header).hex() for block in change.disconnected],
                    "connected": [compute_block_hash(block.header).hex() for block in change.connected],
                },
            )
        state = self._chain.head_state
        for block in change.connected:
            self._publish_block(block, state, now)
        self._publish_statuses(state, now)
        header = self._chain.head
        self._publish(
            EventKind.HEAD,
            now,
            {
                "hash": change.new.hex(),
                "height": header.height,
                "time": header.time,
                "state_root": header.state_root.hex(),
            },
        )

    def on_finalized(self, final: Checkpoint) -> None:
        data: dict[str, JsonValue] = {"hash": final.hash.hex(), "height": final.height}
        self._publish(EventKind.FINALIZED, self._clock.now_ms(), data)

    def on_conflict(self, conflict: Conflict) -> None:
        data: dict[str, JsonValue] = {
            "height": conflict.justified.height,
            "hash": conflict.justified.hash.hex(),
            "other_height": conflict.other.height,
            "other_hash": conflict.other.hash.hex(),
        }
        self._publish(EventKind.CONFLICT, self._clock.now_ms(), data)

    def _publish(self, kind: EventKind, now: Millis, data: dict[str, JsonValue]) -> None:
        self._bus.publish(kind, now, data)

    def _publish_block(self, block: Block, state: State, now: Millis) -> None:
        block_hash = compute_block_hash(block.header)
        if block.body.work is not None:
            self._publish(
                EventKind.MILESTONE, now, build_milestone(block.body.work, block, block_hash, state)
            )
        for transaction in block.body.transactions:
            payload = transaction.payload
            if isinstance(payload, OpenGradient):
                self._publish(EventKind.STEP, now, build_step(payload, state))
            if isinstance(payload, OpenGradient | OpenLoss):
                self._publish(EventKind.OPENING, now, build_opening(payload, transaction, block, state))
            if isinstance(payload, Verdict):
                self._publish(EventKind.VERDICT, now, build_verdict(payload, transaction, block, state))
            job = get_job(transaction)
            if job is not None:
                self._publish(EventKind.JOB, now, build_job(job, block, state))
        found = (get_federation(transaction) for transaction in block.body.transactions)
        for federation in dict.fromkeys(item for item in found if item is not None):
            self._publish(EventKind.FEDERATION, now, build_federation(federation, block, state))
        header = block.header
        self._publish(
            EventKind.BLOCK,
            now,
            {
                "hash": block_hash.hex(),
                "height": header.height,
                "parent": header.parent.hex(),
                "time": header.time,
                "proposer": header.proposer.hex(),
                "transactions": len(block.body.transactions),
                "work": None if block.body.work is None else block.body.work.task.hex(),
            },
        )

    def _publish_statuses(self, state: State, now: Millis) -> None:
        statuses = _get_statuses(state)
        for task, status in statuses.items():
            if self._statuses.get(task) != status:
                self._publish(EventKind.TASK, now, {"task": task.hex(), "status": status})
        self._statuses = statuses


def _get_statuses(state: State) -> dict[Hash32, str]:
    found = ((task, state.get_task(task)) for task in state.get_tasks())
    return {task: str(record.status) for task, record in found if record is not None}


def get_loss_scale(state: State, task: Hash32) -> float:
    """Opened units in one unit of loss."""
    publication = state.get_publication(task)
    draft = None if publication is None else state.get_draft(publication.draft)
    return 1.0 if draft is None else float(2**draft.draft.loss_scale_bits)


def _count_miners(opening: OpenGradient) -> list[JsonValue]:
    counts = Counter(get_credited(opening))
    return [{"miner": miner.hex(), "batches": count} for miner, count in counts.most_common()]


def build_step(opening: OpenGradient, state: State) -> dict[str, JsonValue]:
    """A training step is done: who computed its batches."""
    task = state.get_task(opening.task)
    return {
        "task": opening.task.hex(),
        "step": opening.step,
        "batches": [claim.batch for claim in opening.claims],
        "miners": _count_miners(opening),
        "gradient_openings": 0 if task is None else task.gradient_openings,
    }


def build_opening(
    opening: OpenGradient | OpenLoss, transaction: SignedTransaction, block: Block, state: State
) -> dict[str, JsonValue]:
    """An opening is on the chain; a loss comes with the ladder's next target."""
    data: dict[str, JsonValue] = {
        "task": opening.task.hex(),
        "kind": "gradient" if isinstance(opening, OpenGradient) else "loss",
        "step": opening.step,
        "hash": compute_opening_hash(opening).hex(),
        "transaction": compute_transaction_id(transaction).hex(),
        "height": block.header.height,
    }
    if isinstance(opening, OpenLoss):
        scale = get_loss_scale(state, opening.task)
        data |= {"loss": opening.loss, "loss_value": opening.loss / scale}
    return data


def build_verdict(
    verdict: Verdict, transaction: SignedTransaction, block: Block, state: State
) -> dict[str, JsonValue]:
    """A validator's judgement of a milestone on its own pairs is on the chain."""
    scale = get_loss_scale(state, verdict.task)
    return {
        "task": verdict.task.hex(),
        "loss_opening": verdict.loss_opening.hex(),
        "validator": transaction.sender.hex(),
        "accept": verdict.accept,
        "before": verdict.before,
        "before_value": verdict.before / scale,
        "after": verdict.after,
        "after_value": verdict.after / scale,
        "height": block.header.height,
    }


def get_job(transaction: SignedTransaction) -> Hash32 | None:
    """The job of encrypted inference that a transaction changes."""
    payload = transaction.payload
    if isinstance(payload, RequestInference):
        return compute_transaction_id(transaction)
    if isinstance(payload, CommitResult | CloseCommits | RevealResult | ExpireJob):
        return payload.job
    return None


def build_job(job: Hash32, block: Block, state: State) -> dict[str, JsonValue]:
    """Where a job stands, at the head."""
    data: dict[str, JsonValue] = {"job": job.hex(), "height": block.header.height}
    record = state.get_job(job)
    if record is None:
        return data
    return data | {
        "model": record.request.model.hex(),
        "status": record.status.value,
        "commits": len(record.evaluations),
        "reveals": sum(item.result is not None for item in record.evaluations),
        "result": None if record.result is None else record.result.hex(),
    }


def get_federation(transaction: SignedTransaction) -> Hash32 | None:
    """The federation that a transaction changes."""
    payload = transaction.payload
    if isinstance(payload, CreateFederation):
        return compute_transaction_id(transaction)
    if isinstance(
        payload,
        SubmitUpdate
        | AttestUpdates
        | CloseRound
        | ConfirmSum
        | OpenSum
        | JudgeRound
        | SettleRound
        | EndFederation,
    ):
        return payload.federation
    return None


def build_federation(federation: Hash32, block: Block, state: State) -> dict[str, JsonValue]:
    """Where a federation and its round stand, at the head; once for each block that changes it."""
    data: dict[str, JsonValue] = {"federation": federation.hex(), "height": block.header.height}
    record = state.get_federation(federation)
    if record is None:
        return data
    found = record.round
    # Settling a round begins the next in the same transaction.
    numbers = (found.number, found.number - 1) if found.number else (0,)
    endings = (state.get_ended_round(federation, number) for number in numbers)
    ended = next((item for item in endings if item is not None), None)
    return data | {
        "status": record.status.value,
        "round": found.number,
        "phase": found.phase.value,
        "last_ended": None
        if ended is None
        else {"round": ended.round.number, "outcome": ended.outcome.value},
        "submissions": len(found.submissions),
        "listed": len(found.listed),
        "sums": len(found.sums),
        "judgements": len(found.judgements),
        "accepted": record.accepted,
    }


def build_milestone(work: Work, block: Block, block_hash: Hash32, state: State) -> dict[str, JsonValue]:
    """A work block took rungs of a task's ladder."""
    return {
        "task": work.task.hex(),
        "first_rung": work.first_rung,
        "last_rung": work.last_rung,
        "step": work.step,
        "loss": work.loss,
        "loss_value": work.loss / get_loss_scale(state, work.task),
        "proposer": block.header.proposer.hex(),
        "block": block_hash.hex(),
        "height": block.header.height,
        "credits": _build_credits((credit.miner.hex(), credit.batches) for credit in work.credits),
    }


def _build_credits(credits: Iterable[tuple[str, int]]) -> list[JsonValue]:
    return [{"miner": miner, "batches": batches} for miner, batches in credits]
