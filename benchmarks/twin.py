"""The clear twin of a published task: same data, weights, order, clip and optimiser, training in clear."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.testbed import Contributor
from consensus.optimizer import apply_opening
from consensus.task import Draft, PublishTask
from fusion_model.train import Clipping, Noise, TrainingBatch, TrainingStep, train_twin
from workloads.fusion import WORKLOAD, FusionSpec
from workloads.imaging import choose_validation_patients, load_pairs

SEED_OF_CHOICE = 1
"""Default seed of `bmif data encrypt`."""

Draws = tuple[tuple[int, ...], ...]
"""What was added to each step's gradient sum, by step."""


def build_twin_batches(
    spec: FusionSpec, slots: int, contributors: Sequence[Contributor]
) -> tuple[list[TrainingBatch], list[TrainingBatch]]:
    """What the contributors encrypt, before encryption: training and validation batches in task order."""
    from workloads.encryption import ContributionPlan, build_clear_batches

    training, validation = [], []
    for contributor in contributors:
        pairs = load_pairs(contributor.source)
        plan = ContributionPlan(
            contributor.training_batches,
            contributor.validation_batches,
            choose_validation_patients(pairs, contributor.validation_patients),
            SEED_OF_CHOICE,
            slots,
        )
        own_training, own_validation = build_clear_batches(spec, pairs, plan, slots)
        training += [TrainingBatch(batch.inputs, batch.target) for batch in own_training]
        validation += [TrainingBatch(batch.inputs, batch.target) for batch in own_validation]
    return training, validation


def run_twin(
    draft: Draft, publication: PublishTask, contributors: Sequence[Contributor], noise: Noise
) -> Iterator[TrainingStep]:
    """Every step of the task in clear; `contributors` in the order of the task's contributions."""
    spec = FusionSpec.decode(draft.model)
    training, validation = build_twin_batches(spec, WORKLOAD.get_slots(draft.preset), contributors)
    return train_twin(
        spec.network,
        publication.initial_weights,
        training,
        validation,
        clipping=Clipping(
            draft.gradient_clip, draft.gradient_scale_bits, draft.loss_clip, draft.loss_scale_bits
        ),
        learning_rates=publication.optimizer.learning_rates,
        batches_per_step=publication.batches_per_step,
        update=partial(apply_opening, shift=publication.optimizer.shift, box=draft.weight_box),
        noise=noise,
        loss_schedule=publication.loss_schedule,
        order=publication.order,
    )


def collect_twin(
    draft: Draft,
    publication: PublishTask,
    contributors: Sequence[Contributor],
    draws: Draws | None,
    last: int,
) -> list[TrainingStep]:
    """`run_twin` up to step `last`, with these draws of noise, or none of all."""
    steps = []
    noise: Callable[[int, int], Sequence[int]] = (
        (lambda step, count: (0,) * count) if draws is None else (lambda step, count: draws[step])
    )
    for step in run_twin(draft, publication, contributors, noise):
        steps.append(step)
        if step.step == last:
            break
    return steps
