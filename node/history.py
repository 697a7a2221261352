"""The weights of every task at every step, replayed from the openings on the head chain.

Weights are on the chain only implicitly, as the optimiser's result from the openings. A proposer
needs those of the step whose loss met a rung, and every node those of each loss opening, to
recompute its ciphertext itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from consensus.block import Block
from consensus.codec import decode, encode
from consensus.identifiers import compute_weights_digest
from consensus.optimizer import apply_opening
from consensus.state import State
from consensus.task import OpenGradient, OpenLoss
from consensus.types import Hash32
from consensus.work import LossCheck
from node.ledger.chainstore import Ledger


@dataclass(frozen=True, slots=True)
class StoredWeights:
    values: tuple[int, ...]


class WeightHistory:
    """Weights by task and digest, persisted in the ledger's records."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def get(self, task: Hash32, digest: Hash32) -> tuple[int, ...] | None:
        record = self._ledger.get_record(_get_key(task, digest))
        return None if record is None else decode(StoredWeights, record).values

    def put(self, task: Hash32, weights: tuple[int, ...]) -> None:
        digest = compute_weights_digest(weights)
        if self.get(task, digest) is None:
            self._ledger.put_record(_get_key(task, digest), encode(StoredWeights(weights)))

    def on_block(self, parent_state: State, block: Block) -> Iterator[tuple[LossCheck, OpenLoss]]:
        """Record the weights of the block's loss openings and yield what each must recompute to."""
        openings: dict[Hash32, list[OpenGradient | OpenLoss]] = {}
        for transaction in block.body.transactions:
            if isinstance(transaction.payload, OpenGradient | OpenLoss):
                openings.setdefault(transaction.payload.task, []).append(transaction.payload)
        for task, chain in openings.items():
            before = parent_state.get_task(task)
            if before is not None:
                yield from self._replay(parent_state, chain, before.weights, before.momentum)

    def on_start(
        self, state: State, task: Hash32, openings: Sequence[OpenGradient | OpenLoss]
    ) -> Iterator[tuple[LossCheck, OpenLoss]]:
        """The same for all openings of a task on the head chain: a crash may have come in between."""
        publication = state.get_publication(task)
        if publication is not None:
            weights = publication.initial_weights
            yield from self._replay(state, openings, weights, (0,) * len(weights))

    def _replay(
        self,
        state: State,
        openings: Sequence[OpenGradient | OpenLoss],
        weights: tuple[int, ...],
        momentum: tuple[int, ...],
    ) -> Iterator[tuple[LossCheck, OpenLoss]]:
        for opening in openings:
            publication = state.get_publication(opening.task)
            draft = None if publication is None else state.get_draft(publication.draft)
            if publication is None or draft is None:
                return
            if isinstance(opening, OpenLoss):
                self.put(opening.task, weights)
                yield LossCheck(opening.task, opening.step, weights), opening
                continue
            weights, momentum = apply_opening(
                weights,
                momentum,
                opening.gradient,
                publication.optimizer.learning_rates[opening.step],
                publication.optimizer.shift,
                draft.draft.weight_box,
            )


def _get_key(task: Hash32, digest: Hash32) -> bytes:
    return b"weights/" + task + digest
