"""The clear twin of a task that a committee opened, with the noise that its members really added.

Nobody but this test has the shares and noise secrets of all members. With them every opening is made again,
which also tells which members opened it, and so what noise is in it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.testbed import Contributor
from benchmarks.twin import build_twin_batches
from consensus.optimizer import apply_opening
from consensus.task import OpenGradient, OpenLoss
from consensus.types import Hash32
from fusion_model.gradients import (
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    fold_output_bias,
)
from fusion_model.train import TrainingBatch
from he.plan import Plan, build_plan
from node.audit import TaskRecord
from node.committee.messages import Content, GradientContent, LossContent, compute_question
from node.committee.terms import compute_opening_name
from node.tasks import TaskDefinition
from workloads.base import KeyFile, LossJob
from workloads.ceremony_folder import NOISE_FILE
from workloads.committee import convert_gradient, draw_member_noise
from workloads.committee_opener import (
    CommitteeOpener,
    OpeningJob,
    SumJob,
    bind,
    compute_deviations,
    read_question,
    run_sum,
)
from workloads.fusion import WORKLOAD, FusionSpec

GetBlob = Callable[[Hash32], Path]


@dataclass(frozen=True, slots=True)
class NoisyOpening:
    """What was opened, by whom, and the noise that is in it."""

    payload: OpenGradient | OpenLoss
    subset: tuple[int, ...]
    """Places of the members that opened."""
    coefficients: tuple[int, ...]
    """Of noise alone."""
    patches: int


@dataclass(frozen=True, slots=True)
class Loss:
    step: int
    opened: float
    clear: float
    """Of the twin, with the same noise."""


def build_content(payload: OpenGradient | OpenLoss) -> Content:
    if isinstance(payload, OpenLoss):
        return LossContent(payload.previous, payload.weights, payload.ciphertext)
    return GradientContent(payload.previous, payload.weights, payload.claims, payload.confirmations)


@dataclass(frozen=True, slots=True)
class Reopener:
    """Makes openings again, from the members' secrets and an archive of bundles."""

    record: TaskRecord
    chain_id: Hash32
    folders: tuple[Path, ...]
    """Of all members, by place."""
    get_blob: GetBlob
    scratch: Path

    @property
    def definition(self) -> TaskDefinition:
        return self.record.definition

    @property
    def plan(self) -> Plan:
        draft = self.definition.draft
        return build_plan(WORKLOAD.get_params(draft.preset), FusionSpec.decode(draft.model).circuit)

    def reopen(self) -> Iterator[tuple[NoisyOpening, tuple[int, ...]]]:
        """Every opening in the order of the chain, with the weights that it was made at."""
        draft, publication = self.definition.draft, self.definition.publication
        weights = publication.initial_weights
        momentum = (0,) * len(weights)
        for _, transaction in self.record.openings:
            payload = transaction.payload
            assert isinstance(payload, OpenGradient | OpenLoss)
            yield self._match(payload, weights), weights
            if isinstance(payload, OpenGradient):
                rate, shift = publication.optimizer.learning_rates[payload.step], publication.optimizer.shift
                weights, momentum = apply_opening(
                    weights, momentum, payload.gradient, rate, shift, draft.weight_box
                )

    def _match(self, payload: OpenGradient | OpenLoss, weights: tuple[int, ...]) -> NoisyOpening:
        [create] = self.record.committees
        wanted = (payload.loss,) if isinstance(payload, OpenLoss) else payload.gradient
        for subset in combinations(range(len(create.members)), create.threshold):
            job = self._build_job(payload, weights, subset)
            parts = tuple(CommitteeOpener(self.folders[place]).run_part(job) for place in subset)
            if run_sum(SumJob(job, parts)) == wanted:
                return NoisyOpening(payload, subset, self._draw(job), job.patches)
        raise AssertionError(f"no members open step {payload.step} to what is on the chain")

    def _draw(self, job: OpeningJob) -> tuple[int, ...]:
        binding, deviations = bind(job, read_question(self.plan, job)), compute_deviations(self.plan, job)
        draws = [
            draw_member_noise((self.folders[place] / NOISE_FILE).read_bytes(), binding, deviations).values
            for place in job.subset
        ]
        return tuple(map(sum, zip(*draws, strict=True)))

    def _build_job(
        self, payload: OpenGradient | OpenLoss, weights: tuple[int, ...], subset: tuple[int, ...]
    ) -> OpeningJob:
        definition = self.definition
        draft = definition.draft
        if isinstance(payload, OpenLoss):
            kind, batches, files = "loss", definition.validation, self._compute_losses(weights, payload.step)
            noise, bits = (draft.loss_noise, draft.loss_clip), draft.loss_scale_bits
        else:
            kind, files = "gradient", tuple(self.get_blob(claim.bundle.root) for claim in payload.claims)
            batches = tuple(definition.training[claim.batch] for claim in payload.claims)
            noise, bits = (draft.gradient_noise, draft.gradient_clip), draft.gradient_scale_bits
        question = compute_question(definition.id, payload.step, build_content(payload))
        return OpeningJob(
            kind,
            draft.preset,
            draft.model,
            weights,
            files,
            sum(batch.patches for batch in batches),
            noise,
            bits,
            subset,
            payload.attempt,
            compute_opening_name(self.chain_id, draft.ceremony, question),
        )

    def _compute_losses(self, weights: tuple[int, ...], step: int) -> tuple[Path, ...]:
        draft, paths = self.definition.draft, []
        keys = KeyFile(draft.relin_keys.root, self.get_blob(draft.relin_keys.root))
        for number, batch in enumerate(self.definition.validation):
            path = self.scratch / f"{step}-{number}.loss"
            if not path.exists():
                data = self.get_blob(batch.blob.root)
                path.write_bytes(WORKLOAD.run_loss(LossJob(draft.preset, draft.model, weights, keys, data)))
            paths.append(path)
        return tuple(paths)


def train_clear(
    reopener: Reopener, openings: Sequence[tuple[NoisyOpening, tuple[int, ...]]], given: Contributor
) -> list[Loss]:
    """The same steps on the same patches in clear, in floating point; the noise is that of the openings."""
    definition, plan = reopener.definition, reopener.plan
    draft, publication = definition.draft, definition.publication
    spec = FusionSpec.decode(draft.model)
    training, validation = build_twin_batches(spec, WORKLOAD.get_slots(draft.preset), [given])
    weights, momentum = publication.initial_weights, (0,) * len(publication.initial_weights)
    losses = []
    for opening, mined in openings:
        payload = opening.payload
        if isinstance(payload, OpenLoss):
            [coefficient] = opening.coefficients
            noise = coefficient * plan.params.slots / plan.loss.scale / spec.network.output**2
            clear = sum_losses(spec, weights, validation)
            unit = 2.0**draft.loss_scale_bits
            losses.append(Loss(payload.step, payload.loss / unit, (clear + noise) / opening.patches))
            continue
        batches = [training[claim.batch] for claim in payload.claims]
        exact = sum_gradients(spec, weights, batches) * 2.0**draft.gradient_scale_bits
        added = convert_gradient(plan, mined, opening.coefficients, draft.gradient_scale_bits)
        total = tuple(round(a + b) for a, b in zip(exact.tolist(), added, strict=True))
        rate, shift = publication.optimizer.learning_rates[payload.step], publication.optimizer.shift
        weights, momentum = apply_opening(weights, momentum, total, rate, shift, draft.weight_box)
    return losses


def sum_losses(spec: FusionSpec, weights: tuple[int, ...], batches: Sequence[TrainingBatch]) -> float:
    flat = convert_weights(weights)
    return sum(
        float(
            compute_patch_losses(
                spec.network, flat, batch.inputs, batch.target.plane, batch.target.constant
            ).sum()
        )
        for batch in batches
    )


def sum_gradients(
    spec: FusionSpec, weights: tuple[int, ...], batches: Sequence[TrainingBatch]
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """With the output's bias folded in."""
    flat = convert_weights(weights)
    parts = [
        compute_patch_gradients(spec.network, flat, batch.inputs, batch.target.plane).sum(axis=0)
        for batch in batches
    ]
    return np.asarray(fold_output_bias(spec.network, flat, np.sum(parts, axis=0)))
