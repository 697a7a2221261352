"""What a task's openings have cost in privacy so far, for the API."""

import math

from consensus.state import TaskState
from node.api.view import PrivacyLoss
from node.tasks import TaskDefinition

DELTA = 1e-6


def compute_privacy(definition: TaskDefinition, task: TaskState) -> PrivacyLoss:
    """(epsilon, delta) of one patch in both training and validation after the openings so far."""
    # Imported here: the accountant brings a large library that most nodes never need.
    from workloads.privacy import OpeningPlan, build_statement, compute_privacy_cost

    draft = definition.draft
    cost = compute_privacy_cost(
        OpeningPlan(
            gradient_clip=draft.gradient_clip,
            gradient_noise=draft.gradient_noise,
            gradient_openings=task.gradient_openings,
            loss_clip=draft.loss_clip,
            loss_noise=draft.loss_noise,
            loss_openings=task.loss_openings,
            batches=len(definition.training),
            batches_per_step=definition.publication.batches_per_step,
        ),
        DELTA,
    )
    epsilon = cost.combined_epsilon
    return PrivacyLoss(None if math.isinf(epsilon) else epsilon, cost.delta, "patch", build_statement(cost))
