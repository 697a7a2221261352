"""A task that this node can't serve is refused before a byte of its blobs is fetched."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from consensus.task import Batch, BlobRef, Draft, Optimizer, PublishTask
from consensus.types import ZERO_HASH, Address, Amount, Millis
from node.tasks import TaskDefinition, check_definition
from workloads.base import WorkloadError
from workloads.fusion import WORKLOAD, FusionSpec

PRESET = "ckks-16384-60x5"
SPEC = FusionSpec()
SIZES = WORKLOAD.get_sizes(PRESET, SPEC.encode())


def blob(length: int) -> BlobRef:
    return BlobRef(ZERO_HASH, length)


def build_definition() -> TaskDefinition:
    draft = Draft(
        "fusion-training", "t", bytes(16), PRESET, SPEC.encode(), SPEC.parameters, 2**22,
        blob(SIZES.public_key), blob(SIZES.relin_keys), "per-patch", 20, 1, 1, 20, 1, 1, 1, 1, "", ZERO_HASH,
    )  # fmt: skip
    publication = PublishTask(
        ZERO_HASH, (), (0,), 1, (0,) * SPEC.parameters, Optimizer(40, (1,)), (0,), (),
        Amount(0), Amount(0), Millis(1),
    )  # fmt: skip
    training = (Batch(blob(SIZES.training_batch), 8192),)
    validation = (Batch(blob(SIZES.validation_batch), 8192),)
    return TaskDefinition(ZERO_HASH, Address(bytes(32)), draft, publication, training, validation)


def test_a_task_of_the_right_sizes_passes() -> None:
    check_definition(build_definition())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: replace(d, draft=replace(d.draft, clipping="box")), "clipping"),
        (lambda d: replace(d, draft=replace(d.draft, parameters=111)), "parameters"),
        (lambda d: replace(d, draft=replace(d.draft, relin_keys=blob(2**29))), "relin_keys"),
        (lambda d: replace(d, draft=replace(d.draft, public_key=blob(1))), "public_key"),
        (lambda d: replace(d, training=(Batch(blob(2**29), 1),)), "training batch"),
        (lambda d: replace(d, validation=(Batch(blob(SIZES.training_batch), 1),)), "validation batch"),
        (lambda d: replace(d, training=(Batch(blob(SIZES.training_batch), 8193),)), "patches"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[TaskDefinition], TaskDefinition], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        check_definition(change(build_definition()))
