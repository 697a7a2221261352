"""What a task's openings have cost in privacy so far, for the API."""

import math
from functools import lru_cache

from consensus.state import TaskState
from consensus.task import Draft
from consensus.types import ZERO_HASH
from node.api.view import PrivacyLoss
from node.tasks import TaskDefinition

DELTA = 1e-6


def compute_privacy(definition: TaskDefinition, task: TaskState) -> PrivacyLoss:
    """(epsilon, delta) of one patch in both training and validation after the openings so far."""
    return _compute(
        definition.draft,
        len(definition.training),
        definition.publication.batches_per_step,
        task.gradient_openings,
        task.loss_openings,
    )


@lru_cache(maxsize=256)
def _compute(
    draft: Draft, batches: int, batches_per_step: int, gradient_openings: int, loss_openings: int
) -> PrivacyLoss:
    # Imported here: the accountant brings a large library that most nodes never need.
    from workloads.committee_privacy import build_committee_statement
    from workloads.fusion import FusionSpec
    from workloads.privacy import OpeningPlan, build_statement, compute_privacy_cost

    cost = compute_privacy_cost(
        OpeningPlan(
            gradient_clip=draft.gradient_clip,
            gradient_noise=draft.gradient_noise,
            gradient_openings=gradient_openings,
            loss_clip=draft.loss_clip,
            loss_noise=draft.loss_noise,
            loss_openings=loss_openings,
            batches=batches,
            batches_per_step=batches_per_step,
        ),
        DELTA,
    )
    epsilon = cost.combined_epsilon
    if draft.ceremony == ZERO_HASH:
        statement = build_statement(cost)
    else:
        # Clips are denominators of multipliers there, and a second attempt has been counted twice.
        spec = FusionSpec.decode(draft.model)
        statement = build_committee_statement(cost, spec.target_limit / (2 * spec.levels))
    return PrivacyLoss(None if math.isinf(epsilon) else epsilon, cost.delta, "patch", statement)
