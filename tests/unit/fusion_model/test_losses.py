"""Loss targets of patches: on their grids, and no constant is smaller than a loss allows."""

import numpy as np
import pytest

from fusion_model.config import NetworkConfig
from fusion_model.gradients import apply_metric
from fusion_model.losses import (
    build_patch_target,
    build_training_target,
    compute_full_losses,
    compute_least_constant,
)
from fusion_model.patches import extract_patches
from fusion_model.phantom import build_phantoms
from fusion_model.planes import PLANES, SKIPS
from fusion_model.prepared import PairSettings
from fusion_model.targets import TARGETS

PAIRS = build_phantoms(3, 2, slices=1, size=64)


@pytest.mark.parametrize("weight", [0, 1, 4])
@pytest.mark.parametrize("patch", [5, 6, 9])
def test_the_least_constant_solves_the_system(patch: int, weight: int) -> None:
    config = NetworkConfig(patch=patch, gradient_weight=weight)
    o = config.output
    planes = np.random.default_rng(1).normal(size=(5, o, o))
    # M column by column, from the stencil that the circuits use.
    metric = apply_metric(config, np.eye(o * o).reshape(-1, o, o)).reshape(o * o, o * o)
    flat = planes.reshape(5, -1)
    expected = (flat * np.linalg.solve(metric, flat.T).T).sum(axis=1)
    np.testing.assert_allclose(compute_least_constant(config, planes), expected, rtol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("skip", SKIPS)
def test_targets_are_on_their_grids_and_give_the_loss(target: str, skip: str) -> None:
    levels, config = 63, NetworkConfig(patch=8, inputs=2 + len(PLANES), gradient_weight=3)
    settings = PairSettings(PLANES, skip, target, levels)
    patches = extract_patches(PAIRS, 300, 1, 8, settings=settings, margin=config.margin)
    plane, constant = build_patch_target(config, patches, levels)
    for values, grid in ((plane, 2 * levels), (constant, 4 * levels**2)):
        np.testing.assert_allclose(values * grid, np.rint(values * grid), atol=1e-7)
    least = compute_least_constant(config, plane)
    assert (constant >= least - 1e-9).all()
    # The loss by its definition and by R and the constant, at the network's best and at some change.
    for change in (np.zeros_like(plane), np.random.default_rng(0).normal(size=plane.shape)):
        loss = (change * (apply_metric(config, change) - 2 * plane)).sum(axis=(1, 2)) + constant
        expected = compute_full_losses(config, patches.skip + change, patches.targets) * config.output**2
        np.testing.assert_allclose(loss, expected, atol=1e-9)


def test_by_default_it_is_the_target_of_the_patch_alone() -> None:
    config = NetworkConfig()
    patches = extract_patches(PAIRS, 300, 1, margin=config.margin)
    whole, alone = build_patch_target(config, patches, 255), build_training_target(config, patches.inputs)
    np.testing.assert_allclose(whole.plane, alone.plane, atol=1e-12)
    np.testing.assert_allclose(whole.constant, alone.constant, atol=1e-12)


def test_patches_of_another_margin_are_refused() -> None:
    with pytest.raises(ValueError, match="margin of 2"):
        build_patch_target(NetworkConfig(), extract_patches(PAIRS, 3, 1), 255)
