"""What an honest validator does besides blocks and votes: promises, verdicts, settlement, evidence."""

from typing import TYPE_CHECKING

from consensus.payload import (
    Accuse,
    Payload,
    ReportOpenings,
    ReportVotes,
    SettleTask,
    SignedOpening,
    Verdict,
    WrongBundle,
    WrongLoss,
)
from consensus.records import TaskState, Unsettled
from consensus.settlement import is_expirable, is_verdict_over
from consensus.state import TaskStatus
from consensus.task import Available, ExpireTask, OpenGradient, OpenLoss
from consensus.transaction import sign_transaction
from consensus.types import Hash32, Height
from consensus.upgrade import build_context
from tests.simulation.archive import TransactionItem, VoteItem
from tests.simulation.truth import compute_bundle_root, compute_loss_ciphertext

if TYPE_CHECKING:
    from tests.simulation.node import Node

DUTY_NODES = 2
"""Nodes that ask to settle and expire tasks; anyone may."""


class Duties:
    """Of one node in one of its lives."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._done: set[tuple[str, bytes]] = set()
        self.watches = True
        """Whether it reports what it sees."""

    def send(self, payload: Payload) -> None:
        """A transaction of a kind without nonce."""
        node = self._node
        transaction = sign_transaction(node.key, node.run.archive.chain_id, 0, payload)
        node.trace(f"sends {type(payload).__name__}")
        node.submit(node.run.archive.add_transaction(transaction))

    def _once(self, kind: str, name: bytes) -> bool:
        if (kind, name) in self._done:
            return False
        self._done.add((kind, name))
        return True

    # --- tasks --------------------------------------------------------------------------------

    def on_head(self) -> None:
        node = self._node
        is_validator = bool(node.state.get_stake(node.address))
        for task, record in node.run.archive.get_tasks(node.head):
            if task not in node.blobs:
                node.run.book.want_blobs(node, task)
            if is_validator:
                self._serve(task, record)
            if node.index < DUTY_NODES:
                self._end(task, record)

    def _serve(self, task: Hash32, record: TaskState) -> None:
        node = self._node
        is_awaited = record.status == TaskStatus.PENDING and node.address not in record.available
        if is_awaited and task in node.blobs and self._once("available", task):
            self.send(Available(task))
        for item in record.unsettled:
            is_judged = node.address in (*item.accepted, *item.rejected)
            if not is_judged and self._once("verdict", item.milestone.loss_opening):
                self.judge(task, item)
        for milestone in record.qualified:
            if task in node.blobs and not node.can_prove(milestone.ciphertext, task, milestone.step):
                self._accuse_loss(task, milestone.step, milestone.loss_opening)

    def judge(self, task: Hash32, item: Unsettled) -> None:
        accept = self._node.run.book.is_liked(task, self._node.address)
        self.send(Verdict(task, item.milestone.loss_opening, accept, 900, 800 if accept else 1_000))

    def _accuse_loss(self, task: Hash32, step: int, opening_hash: Hash32) -> None:
        archive, book = self._node.run.archive, self._node.run.book
        weights = book.get_weights(task, step)
        found = archive.openings.get(opening_hash)
        if weights is None or found is None or not self._once("loss", opening_hash):
            return
        opening, signature = found
        if isinstance(opening, OpenLoss):
            self.send(Accuse(WrongLoss(opening, signature, compute_loss_ciphertext(task, step, weights))))

    def _end(self, task: Hash32, record: TaskState) -> None:
        """Settles what stood its time, expires what can't go on."""
        node = self._node
        archive, state = node.run.archive, node.state
        height = Height(node.head.header.height + 1)
        ctx = build_context(state, height, node.now, archive.params, archive.chain_id)
        if record.unsettled:
            first = record.unsettled[0]
            if not is_verdict_over(first, ctx):
                at = first.time + archive.params.verdict_ms + 500 - node.offset
                if self._once("settle later", first.milestone.loss_opening):
                    node.run.engine.at(at, self._end_later, task, node.life)
            elif self._once("settle", first.milestone.loss_opening):
                self.send(SettleTask(task, first.milestone.loss_opening))
        publication = state.get_publication(task)
        draft = state.get_draft(publication.draft) if publication else None
        if publication is None or draft is None:
            return
        if is_expirable(record, publication, draft.draft, ctx):
            # One that waits to be opened is not worth ending before its deadline.
            is_late = node.now > publication.deadline
            if (record.status != TaskStatus.PENDING or is_late) and self._once(
                "expire", task + record.previous
            ):
                self.send(ExpireTask(task))
        elif self._once("expire later", task):
            at = publication.deadline + 500 - node.offset
            node.run.engine.at(at, self._end_later, task, node.life)

    def _end_later(self, task: Hash32, life: float) -> None:
        node = self._node
        if node.is_up and node.life == life:
            record = dict(node.run.archive.get_tasks(node.head)).get(task)
            if record is not None:
                self._end(task, record)

    # --- evidence -----------------------------------------------------------------------------

    def watch_vote(self, item: VoteItem) -> None:
        node = self._node
        if not item.rivals or not self.watches:
            return
        for rival in item.rivals:
            if rival in node.seen and self._once("votes", item.vote.validator):
                self.send(ReportVotes(rival.vote, item.vote))

    def watch_opening(self, item: TransactionItem) -> None:
        """Of a step's two openings, or of an opening with a claim whose bundle is not the canonical one."""
        node, opening = self._node, item.transaction.payload
        if not isinstance(opening, OpenGradient | OpenLoss) or not self.watches:
            return
        for rival in item.rivals:
            other = rival.transaction.payload
            if not isinstance(other, OpenGradient | OpenLoss) or rival not in node.seen:
                continue
            if self._once("openings", opening.task):
                first = SignedOpening(other, rival.transaction.signature)
                self.send(ReportOpenings(first, SignedOpening(opening, item.transaction.signature)))
        if isinstance(opening, OpenGradient):
            for claim in opening.claims:
                root = compute_bundle_root(opening.task, opening.step, claim.batch, opening.weights)
                is_wrong = claim.bundle.root != root and claim.task == opening.task
                if is_wrong and self._once("bundle", claim.signature):
                    self.send(Accuse(WrongBundle(claim, root)))
