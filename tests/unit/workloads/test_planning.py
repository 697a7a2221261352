"""Before a task is drafted its preset, bytes and seconds are known, or why none fits."""

import pytest

from workloads.base import WorkloadError
from workloads.fusion import WORKLOAD, FusionSpec
from workloads.planning import plan_model


def test_the_plan_agrees_with_the_workload() -> None:
    spec = FusionSpec(8, (1, 3), 3, ("saliency",), 2)
    plan, sizes = plan_model(spec), WORKLOAD.get_sizes("ckks-16384-60x5", spec.encode())
    assert plan.preset == "ckks-16384-60x5"
    assert plan.parameters == spec.parameters
    assert plan.slots == WORKLOAD.get_slots(plan.preset)
    for planned, exact in (
        (plan.training_batch_bytes, sizes.training_batch),
        (plan.validation_batch_bytes, sizes.validation_batch),
        (plan.bundle_bytes, sizes.bundle),
        (plan.loss_bytes, sizes.loss),
        (plan.public_key_bytes, sizes.public_key),
        (plan.relin_keys_bytes, sizes.relin_keys),
    ):
        assert planned == exact
    # The weights that the task will start with pass what every node checks.
    WORKLOAD.check_weights(plan.preset, spec.encode(), WORKLOAD.build_initial_weights(spec.encode(), 5))


def test_larger_networks_cost_more() -> None:
    small, large = plan_model(FusionSpec(kernels=(3,))), plan_model(FusionSpec(kernels=(3,) * 8))
    assert small.gradient_s < large.gradient_s
    assert small.bundle_bytes < large.bundle_bytes


def test_what_fits_no_preset_is_refused_with_each_reason() -> None:
    large = FusionSpec(patch=50, kernels=(15,) * 64, second=15, gradient_weight=1024, levels=15)
    with pytest.raises(WorkloadError, match=r"no preset fits: ckks-.*could wrap.*smaller network"):
        plan_model(large, "ckks-16384-60x5")
    with pytest.raises(WorkloadError, match=r"a blob would have 79 MB, and nodes take 50 MB \(limits"):
        plan_model(FusionSpec(), max_blob_bytes=50_000_000)
    with pytest.raises(WorkloadError, match="preset: unknown preset 'other'"):
        plan_model(FusionSpec(), "other")
    with pytest.raises(WorkloadError, match="insecure"):
        plan_model(FusionSpec(), "test-4096-60x5")
