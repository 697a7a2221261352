"""The declared limit of targets: canonical bytes, cut-off data, and what one patch can change."""

from fractions import Fraction

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_model.losses import LossTarget
from fusion_model.prepared import round_to_grid
from workloads.base import WorkloadError
from workloads.box import PatchLimits, compute_gradient_bound
from workloads.fusion import FusionSpec
from workloads.targets import cut_target

WITHOUT = FusionSpec()
HALF = FusionSpec(target_limit=255)


def test_a_limit_is_a_version_of_its_own_and_no_limit_changes_nothing() -> None:
    assert msgpack.unpackb(WITHOUT.encode())[0] == 2
    assert len(msgpack.unpackb(WITHOUT.encode())) == 9
    assert msgpack.unpackb(HALF.encode()) == [3, *msgpack.unpackb(WITHOUT.encode())[1:], 255]
    for spec in (WITHOUT, HALF, FusionSpec(levels=100, target_limit=200)):
        assert FusionSpec.decode(spec.encode()) == spec


@pytest.mark.parametrize(
    "fields",
    [
        [3, 6, [3], 3, 1, 255, [], "mean", "maximum"],
        [3, 6, [3], 3, 1, 255, [], "mean", "maximum", 0],
        [2, 6, [3], 3, 1, 255, [], "mean", "maximum", 255],
        [3, 6, [3], 3, 1, 255, [], "mean", "maximum", 511],
        [3, 6, [3], 3, 1, 255, [], "mean", "maximum", True],
        [4, 6, [3], 3, 1, 255, [], "mean", "maximum", 255],
    ],
)
def test_other_bytes_are_refused(fields: list[object]) -> None:
    with pytest.raises(WorkloadError, match=r"model|target_limit"):
        FusionSpec.decode(msgpack.packb(fields))


@given(st.integers(0, 2**32), st.integers(1, 510))
def test_what_is_cut_off_keeps_grids_and_limits(seed: int, limit: int) -> None:
    spec = FusionSpec(target_limit=limit)
    generator = np.random.default_rng(seed)
    side, grid = spec.network.output, 2 * spec.levels
    plane = round_to_grid(generator.uniform(-3, 3, (9, side, side)), grid)
    constant = round_to_grid(generator.uniform(0, 40, 9), grid**2)
    cut = cut_target(spec, LossTarget(plane, constant))
    limits = PatchLimits.declare(spec)
    assert np.abs(cut.plane).max() <= float(limits.target)
    assert cut.constant.max() <= float(limits.constant)
    np.testing.assert_array_equal(cut.plane, round_to_grid(cut.plane, grid))
    np.testing.assert_array_equal(cut.constant, round_to_grid(cut.constant, grid**2))
    inside = np.abs(plane) <= limit / grid
    np.testing.assert_array_equal(cut.plane[inside], plane[inside])
    assert cut_target(WITHOUT, LossTarget(plane, constant)).plane is plane


def test_it_bounds_what_one_patch_can_change() -> None:
    limits = PatchLimits.declare(HALF)
    assert limits == PatchLimits(Fraction(1, 2), Fraction(HALF.network.output**2, 4))
    assert PatchLimits.declare(WITHOUT) == PatchLimits.build(WITHOUT.circuit)
    weights = [1 << 16] * WITHOUT.parameters
    free = compute_gradient_bound(WITHOUT.circuit, weights).compute_norm(20)
    assert compute_gradient_bound(HALF.circuit, weights, limits).compute_norm(20) < free / 2
