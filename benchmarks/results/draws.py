"""The custody's own draws of noise, so that a twin in clear can be given the same.

Whoever runs the bench owns the custody's node and its keys. A custody that archives keeps the bundles of
every step; decrypted and summed again, what it opened less these sums is what it drew. That the draw follows
from the custody's noise key and from what it is bound to is checked on the way. Outside of a bench nobody can
do this.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from benchmarks.testbed import TestbedError
from benchmarks.twin import Draws
from consensus.codec import encode
from consensus.identifiers import compute_weights_digest
from consensus.optimizer import apply_opening
from consensus.task import Draft, OpenGradient, PublishTask

WORKERS = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One opening and all that was known when it was made."""

    opening: OpenGradient
    weights: tuple[int, ...]
    patches: tuple[int, ...]
    """Of each claim's batch."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The custody's files and the task's constants."""

    keys: Path
    blobs: Path
    chain_id: bytes
    draft: Draft


def follow_openings(
    draft: Draft, publication: PublishTask, openings: Sequence[OpenGradient], patches: Sequence[int]
) -> Iterator[Step]:
    """Each opening with the weights that it was made at; `patches` by training batch.

    Raises TestbedError if an opening is missing or was made at other weights.
    """
    weights, momentum = publication.initial_weights, (0,) * draft.parameters
    for number, opening in enumerate(openings):
        if opening.step != number or opening.weights != compute_weights_digest(weights):
            raise TestbedError(f"the opening of step {number} is missing or was made at other weights")
        yield Step(opening, weights, tuple(patches[claim.batch] for claim in opening.claims))
        weights, momentum = apply_opening(
            weights,
            momentum,
            opening.gradient,
            publication.optimizer.learning_rates[number],
            publication.optimizer.shift,
            draft.weight_box,
        )


def recover_draws(archive: Archive, steps: Sequence[Step]) -> Draws:
    """The draw of each step. Raises TestbedError for one that does not follow from the custody's key."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        return tuple(pool.map(_recover, [archive] * len(steps), steps, chunksize=4))


def _recover(archive: Archive, step: Step) -> tuple[int, ...]:
    from he.context import PrivateContext
    from he.packing import decrypt_bundle
    from workloads.custodian import SECRET_KEY_FILE, SingleCustodian
    from workloads.custody import sum_patches
    from workloads.fusion import WORKLOAD, FusionSpec

    draft, opening = archive.draft, step.opening
    spec = FusionSpec.decode(draft.model)
    private = PrivateContext.load(WORKLOAD.get_params(draft.preset), archive.keys / SECRET_KEY_FILE)
    parts = []
    for claim, patches in zip(opening.claims, step.patches, strict=True):
        gradients = decrypt_bundle(private, spec.circuit, archive.blobs / claim.bundle.root.hex())
        parts.append(
            sum_patches(
                spec, step.weights, gradients[:patches], draft.gradient_clip, draft.gradient_scale_bits
            )
        )
    sums = tuple(sum(column) for column in zip(*parts, strict=True))
    again = SingleCustodian(archive.keys).open_gradient(
        sums, draft.gradient_noise, archive.chain_id + encode(replace(opening, gradient=()))
    )
    if again != opening.gradient:
        raise TestbedError(f"step {opening.step}: the custody's noise does not follow from its key")
    return tuple(opened - total for opened, total in zip(opening.gradient, sums, strict=True))
