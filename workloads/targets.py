"""What patches are trained and judged against, as a task's specification says."""

import numpy as np

from fusion_model.losses import LossTarget, build_patch_target
from fusion_model.patches import PatchSet
from workloads.fusion import FusionSpec


def build_target(spec: FusionSpec, patches: PatchSet) -> LossTarget:
    """R and K of every patch, within the limits that the specification declares."""
    return cut_target(spec, build_patch_target(spec.network, patches, spec.levels))


def cut_target(spec: FusionSpec, target: LossTarget) -> LossTarget:
    """Within the limits that the specification declares; the grids are kept."""
    if not spec.target_limit:
        return target
    limit = spec.target_limit / (2 * spec.levels)
    highest = spec.network.output**2 * spec.target_limit**2 / (4 * spec.levels**2)
    plane = np.clip(target.plane, -limit, limit)
    return LossTarget(plane, np.minimum(target.constant, highest))
