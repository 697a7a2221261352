"""What a model will cost before a task is drafted: its preset, bytes and seconds, or why none fits."""

from fusion_model.initial import build_initial_weights
from he.autoplan import PlanRefused, PlanReport, choose_preset
from workloads.base import WorkloadError
from workloads.fusion import WORKLOAD, FusionSpec, FusionTraining


def plan_model(
    spec: FusionSpec,
    preset: str | None = None,
    max_blob_bytes: int | None = None,
    workload: FusionTraining = WORKLOAD,
) -> PlanReport:
    """The plan of the smallest preset that fits the model, or of `preset` alone.

    There must be room for twice the usual starting weights; what training makes of them, nobody knows yet.
    Raises WorkloadError with the reason for each preset that does not fit, or for a blob that is too large.
    """
    candidates = None if preset is None else (workload.get_params(preset),)
    try:
        weights = build_initial_weights(spec.network, 0)
        plan = choose_preset(spec.circuit, weights=weights, candidates=candidates)
    except PlanRefused as error:
        raise WorkloadError(f"model: no preset fits: {error}; choose a smaller network") from error
    largest = max(plan.validation_batch_bytes, plan.bundle_bytes)
    if max_blob_bytes is not None and largest > max_blob_bytes:
        raise WorkloadError(
            f"model: a blob would have {largest / 1e6:.0f} MB, and nodes take {max_blob_bytes / 1e6:.0f} MB "
            "(limits.max_blob_bytes); choose a smaller patch, or fewer planes or channels"
        )
    return plan
