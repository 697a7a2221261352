"""The weights of every task at every step, followed through the openings on the head chain.

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
from consensus.payload import SignedOpening
from consensus.state import State
from consensus.task import OpenGradient, OpenLoss
from consensus.types import Hash32
from consensus.work import LossCheck
from node.chain import Chain
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

    def on_block(self, parent_state: State, block: Block) -> Iterator[tuple[LossCheck, SignedOpening]]:
        """Record the weights of the block's loss openings and yield what each must recompute to."""
        openings: dict[Hash32, list[SignedOpening]] = {}
        for transaction in block.body.transactions:
            if isinstance(transaction.payload, OpenGradient | OpenLoss):
                signed = SignedOpening(transaction.payload, transaction.signature)
                openings.setdefault(transaction.payload.task, []).append(signed)
        for task, chain in openings.items():
            before = parent_state.get_task(task)
            if before is not None:
                yield from self._follow(parent_state, chain, before.weights, before.momentum)

    def on_start(self, chain: Chain, task: Hash32) -> Iterator[tuple[LossCheck, SignedOpening]]:
        """The same for all of a task on the head chain: a crash may have come in between."""
        for parent_state, block in iterate_opening_blocks(chain, task):
            for check, signed in self.on_block(parent_state, block):
                if check.task == task:
                    yield check, signed

    def _follow(
        self,
        state: State,
        openings: Sequence[SignedOpening],
        weights: tuple[int, ...],
        momentum: tuple[int, ...],
    ) -> Iterator[tuple[LossCheck, SignedOpening]]:
        for signed in openings:
            opening = signed.opening
            if isinstance(opening, OpenLoss):
                self.put(opening.task, weights)
                yield LossCheck(opening.task, opening.step, weights), signed
                continue
            following = _step(state, opening, weights, momentum)
            if following is None:
                return
            weights, momentum = following


def _step(
    state: State, opening: OpenGradient, weights: tuple[int, ...], momentum: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Weights and momentum after an opening of a task that the state knows."""
    publication = state.get_publication(opening.task)
    draft = None if publication is None else state.get_draft(publication.draft)
    if publication is None or draft is None:
        return None
    return apply_opening(
        weights,
        momentum,
        opening.gradient,
        publication.optimizer.learning_rates[opening.step],
        publication.optimizer.shift,
        draft.draft.weight_box,
    )


def iterate_opening_blocks(chain: Chain, task: Hash32) -> Iterator[tuple[State, Block]]:
    """The head chain's blocks about a task, each with its parent's state; oldest first.

    Of a ledger whose oldest bodies were left out, or that began with a snapshot, those that are kept and
    whose parent's state is.
    """
    seen: set[Hash32] = set()
    for location in chain.ledger.iterate_subject(task):
        if location.block in seen:
            continue
        seen.add(location.block)
        block = chain.get_block(location.block)
        if block is not None and chain.has_state(block.header.parent):
            yield chain.get_state(block.header.parent), block


def find_weights(chain: Chain, task: Hash32, step: int) -> tuple[int, ...] | None:
    """The weights with which a step's bundles are computed; None if the head chain does not know them."""
    present = chain.head_state.get_task(task)
    if present is None or not 0 <= step <= present.step:
        return None
    if present.step == step:
        return present.weights
    for parent_state, block in iterate_opening_blocks(chain, task):
        before = parent_state.get_task(task)
        if before is None:
            continue
        weights, momentum = before.weights, before.momentum
        for transaction in block.body.transactions:
            opening = transaction.payload
            if not isinstance(opening, OpenGradient) or opening.task != task:
                continue
            if opening.step == step:
                return weights
            following = _step(parent_state, opening, weights, momentum)
            if following is None:
                return None
            weights, momentum = following
    return None


def _get_key(task: Hash32, digest: Hash32) -> bytes:
    return b"weights/" + task + digest
