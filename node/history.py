"""The weights of every task at every step, replayed from the openings on the head chain.

Weights are on the chain only implicitly, as the optimiser's result from the openings. A proposer
needs those of the step whose loss met a rung, and every node those of each loss opening, to
recompute its ciphertext itself.
"""

from collections.abc import Iterator

from consensus.block import Block
from consensus.codec import decode, encode
from consensus.identifiers import compute_weights_digest
from consensus.optimizer import apply_opening
from consensus.state import State
from consensus.task import OpenGradient, OpenLoss
from consensus.types import Hash32
from consensus.work import LossCheck
from node.ledger.chainstore import Ledger


class WeightHistory:
    """Weights by task and digest, persisted in the ledger's records."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def get(self, task: Hash32, digest: Hash32) -> tuple[int, ...] | None:
        record = self._ledger.get_record(_get_key(task, digest))
        return None if record is None else decode(tuple[int, ...], record)

    def put(self, task: Hash32, weights: tuple[int, ...]) -> None:
        digest = compute_weights_digest(weights)
        if self.get(task, digest) is None:
            self._ledger.put_record(_get_key(task, digest), encode(weights))

    def on_block(self, parent_state: State, block: Block) -> Iterator[tuple[LossCheck, OpenLoss]]:
        """Record the weights of the block's loss openings and yield what each must recompute to."""
        current: dict[Hash32, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for transaction in block.body.transactions:
            payload = transaction.payload
            if not isinstance(payload, OpenGradient | OpenLoss):
                continue
            task = payload.task
            if task not in current:
                before = parent_state.get_task(task)
                if before is None:
                    continue
                current[task] = (before.weights, before.momentum)
            weights, momentum = current[task]
            if isinstance(payload, OpenLoss):
                self.put(task, weights)
                yield LossCheck(task, payload.step, weights), payload
                continue
            publication = parent_state.get_publication(task)
            draft = None if publication is None else parent_state.get_draft(publication.draft)
            if publication is None or draft is None:
                continue
            current[task] = apply_opening(
                weights,
                momentum,
                payload.gradient,
                publication.optimizer.learning_rates[payload.step],
                publication.optimizer.shift,
                draft.draft.weight_box,
            )


def _get_key(task: Hash32, digest: Hash32) -> bytes:
    return b"weights/" + task + digest
