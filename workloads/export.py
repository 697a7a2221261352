"""From a torch network to a task's integer weights and back."""

from collections.abc import Sequence

import numpy as np

from fusion_model.config import WEIGHT_SCALE_BITS
from fusion_model.model import PolynomialFusion
from workloads.base import WorkloadError
from workloads.fusion import FusionSpec


def export_weights(spec: FusionSpec, model: PolynomialFusion, box: int) -> tuple[int, ...]:
    """The network's weights rounded to units of 2^-20.

    Raises WorkloadError if the network has another shape, or a weight is not finite or outside
    [-box, box].
    """
    if model.config != spec.network:
        raise WorkloadError(f"network: expected {spec.network}, got {model.config}")
    flat = np.ldexp(model.get_flat(), WEIGHT_SCALE_BITS)
    if not np.isfinite(flat).all():
        raise WorkloadError("weights: an entry is not finite")
    weights = tuple(int(value) for value in np.rint(flat))
    check_box(weights, box)
    return weights


def import_weights(spec: FusionSpec, weights: Sequence[int]) -> PolynomialFusion:
    """The torch network of integer weights; exporting it gives the same integers."""
    if len(weights) != spec.parameters:
        raise WorkloadError(f"weights: expected {spec.parameters}, got {len(weights)}")
    return PolynomialFusion.from_integers(spec.network, weights)


def check_box(weights: Sequence[int], box: int) -> None:
    """Raises WorkloadError naming the first weight outside [-box, box]."""
    for index, weight in enumerate(weights):
        if not -box <= weight <= box:
            raise WorkloadError(f"weights: entry {index} is {weight}, outside [-{box}, {box}]")
