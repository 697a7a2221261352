"""A task replayed from its transactions alone: the chain of openings, each step's weights, the milestones.

No state of anybody is believed: what a node says is rebuilt into consensus objects, whose hashes and
signatures name them, and the optimiser runs here. An audit compares blocks with the result.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from consensus.ceremonies import CreateCeremony
from consensus.claims import compute_seal, verify_claim, verify_sealed_claim
from consensus.committee import check_signers
from consensus.errors import InvalidTransaction
from consensus.identifiers import compute_opening_hash, compute_weights_digest
from consensus.openings import get_credited, rank_credits
from consensus.optimizer import apply_opening
from consensus.publication import get_step_batches
from consensus.task import Claim, Credit, OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction
from consensus.types import ZERO_HASH, Address, Hash32
from node.tasks import TaskDefinition


@dataclass(frozen=True, slots=True)
class Met:
    """Rungs that one loss opening met, as the replay has it."""

    first_rung: int
    last_rung: int
    step: int
    loss: int
    openings: Hash32
    credits: tuple[Credit, ...]


@dataclass(slots=True)
class Replay:
    """What a task's openings lead to."""

    weights: dict[int, tuple[int, ...]]
    """By step."""
    met: dict[Hash32, Met] = field(default_factory=dict)
    """By the hash of the loss opening."""
    openings: int = 0
    faults: list[str] = field(default_factory=list)
    """What is wrong with the chain of openings; the replay ends with the first."""


def replay_openings(
    chain_id: Hash32,
    definition: TaskDefinition,
    transactions: Iterable[SignedTransaction],
    committees: Sequence[CreateCeremony] = (),
) -> Replay:
    """Follow the openings in the order of the chain; their transactions' signatures are checked already.

    `committees` are those who held shares of the task's key, one after the other; none: a single custodian.
    """
    publication, draft = definition.publication, definition.draft
    weights = publication.initial_weights
    momentum: tuple[int, ...] = (0,) * len(weights)
    result = Replay({0: weights})
    credits: dict[Address, int] = {}
    previous, step, rung = ZERO_HASH, 0, 0
    for transaction in transactions:
        opening = transaction.payload
        if not isinstance(opening, OpenGradient | OpenLoss):
            continue
        name = f"{'loss' if isinstance(opening, OpenLoss) else 'gradient'} of step {opening.step}"
        fault = _find_fault(chain_id, definition, committees, transaction, opening, previous, step, weights)
        if fault is None and isinstance(opening, OpenGradient):
            fault = _find_claim_fault(chain_id, definition, opening)
        if fault is not None:
            result.faults.append(f"{name}: {fault}")
            return result
        before, previous = previous, compute_opening_hash(opening)
        result.openings += 1
        if isinstance(opening, OpenGradient):
            for miner in get_credited(opening):
                credits[miner] = credits.get(miner, 0) + 1
            rate, shift = publication.optimizer.learning_rates[step], publication.optimizer.shift
            weights, momentum = apply_opening(
                weights, momentum, opening.gradient, rate, shift, draft.weight_box
            )
            step += 1
            result.weights[step] = weights
            continue
        stop = rung
        while stop < len(publication.ladder) and opening.loss <= publication.ladder[stop].target:
            stop += 1
        if stop > rung:
            ranked = rank_credits(definition.id, rung, (Credit(m, n) for m, n in sorted(credits.items())))
            result.met[previous] = Met(rung, stop - 1, step, opening.loss, before, ranked)
            rung, credits = stop, {}
    return result


def _find_fault(
    chain_id: Hash32,
    definition: TaskDefinition,
    committees: Sequence[CreateCeremony],
    transaction: SignedTransaction,
    opening: OpenGradient | OpenLoss,
    previous: Hash32,
    step: int,
    weights: tuple[int, ...],
) -> str | None:
    fault = _find_signer_fault(chain_id, definition, committees, transaction, opening)
    if fault is not None:
        return fault
    if opening.step != step:
        return f"expected step {step}"
    if opening.previous != previous:
        return f"names {opening.previous.hex()} as the opening before it, which is {previous.hex()}"
    if opening.weights != compute_weights_digest(weights):
        return "its weights are not what the optimiser makes of the openings before it"
    return None


def _find_signer_fault(
    chain_id: Hash32,
    definition: TaskDefinition,
    committees: Sequence[CreateCeremony],
    transaction: SignedTransaction,
    opening: OpenGradient | OpenLoss,
) -> str | None:
    if not committees and transaction.sender != definition.custody:
        return f"signed by {transaction.sender.hex()}, who is not the custody"
    fault: str | None = None
    for committee in committees or (None,):
        try:
            check_signers(opening, transaction.sender, definition.custody, committee, chain_id)
        except InvalidTransaction as error:
            fault = str(error)
        else:
            return None
    return fault


def _find_claim_fault(chain_id: Hash32, definition: TaskDefinition, opening: OpenGradient) -> str | None:
    if tuple(claim.batch for claim in opening.claims) != get_step_batches(
        definition.publication, opening.step
    ):
        return "its claims are not of the step's batches"
    if len(opening.gradient) != definition.draft.parameters:
        return f"{len(opening.gradient)} numbers, the model has {definition.draft.parameters}"
    wrong: list[Claim] = [
        claim
        for claim in opening.claims
        if (claim.task, claim.step) != (opening.task, opening.step) or not verify_claim(chain_id, claim)
    ]
    if wrong:
        return f"the claim of batch {wrong[0].batch} is not signed by its miner"
    roots = {claim.batch: claim.bundle.root for claim in opening.claims}
    for item in opening.confirmations:
        is_here = (item.task, item.step) == (opening.task, opening.step) and item.batch in roots
        is_same = is_here and item.seal == compute_seal(roots[item.batch], item.miner)
        if not is_same or not verify_sealed_claim(chain_id, item):
            return f"the confirmation of batch {item.batch} is not of its bundle, or not signed by its miner"
    return None
