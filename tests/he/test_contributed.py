"""Contributed batches: honest ones of every kind pass the custody, crafted ones do not.

Real ciphertexts of the small ring, and the tolerances that nodes use.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fusion_model.losses import LossTarget, compute_least_constant
from fusion_model.phantom import build_phantoms
from fusion_model.planes import PLANES, SKIPS
from fusion_model.targets import TARGETS
from he.context import PrivateContext
from he.formats import Body, build_batch_layout
from he.packing import encrypt_batch
from he.plan import build_plan, get_input_bounds
from tests.he.forging import encode_slot, get_rows
from workloads.base import WorkloadError
from workloads.custody import DEFAULT_TOLERANCES, PreparedBatch, prepare_batch
from workloads.encryption import ClearBatch, ContributionPlan, build_clear_batches, encrypt_patches
from workloads.fusion import FusionSpec, FusionTraining

PARAMS = FusionTraining(allow_insecure=True).get_params("test-4096-60x5")
PAIRS = build_phantoms(5, 3, slices=2, size=64)
PATCHES = 1500
SPEC = FusionSpec(6, (1, 3), 3, ("saliency",), gradient_weight=2)
"""With an extra plane and a window of 2x2, which has image gradients."""


@pytest.fixture(scope="module")
def private() -> PrivateContext:
    return PrivateContext.generate(PARAMS)


@cache
def get_clear(spec: FusionSpec, patches: int = PATCHES) -> ClearBatch:
    plan = ContributionPlan(0, 1, (0, 1, 2), seed=1, patches_per_batch=patches)
    return build_clear_batches(spec, PAIRS, plan, PARAMS.slots)[1][0]


def check(private: PrivateContext, spec: FusionSpec, batch: bytes, patches: int = PATCHES) -> PreparedBatch:
    return prepare_batch(private, spec, batch, patches, validation=True)


# --- honest ones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("skip", SKIPS)
def test_honest_batches_of_every_skip_and_target_pass(
    private: PrivateContext, skip: str, target: str
) -> None:
    levels = 255 if skip == SKIPS[0] else 4095
    spec = FusionSpec(6, (3,), 3, (), 2, skip, target, levels)
    batch = get_clear(spec)
    prepared = check(private, spec, encrypt_patches(private.public, spec, batch, True))
    assert prepared.constant is not None
    # A margin of three for images, and more than a hundred for what is encrypted exactly.
    assert 3 * np.abs(prepared.inputs[:PATCHES] - batch.inputs).max() < DEFAULT_TOLERANCES.pixel
    for measured, clear in (
        (prepared.target, batch.target.plane),
        (prepared.constant, batch.target.constant),
    ):
        limit = DEFAULT_TOLERANCES.target.compute_limit(clear)
        assert 100 * np.abs(measured[:PATCHES] - clear).max() < limit


@pytest.mark.parametrize("plane", PLANES)
def test_honest_batches_of_every_plane_pass(private: PrivateContext, plane: str) -> None:
    spec = FusionSpec(3, (1,), 3, (plane,), 0)
    batch = get_clear(spec, 500)
    assert batch.inputs[:, 2].any()
    training = encrypt_patches(private.public, spec, batch, False)
    assert prepare_batch(private, spec, training, 500, validation=False).constant is None


def test_a_full_batch_with_large_targets_passes(private: PrivateContext) -> None:
    """Free targets: whatever some skip and targets of the range give is admitted, all slots in use."""
    spec, count, generator = replace(SPEC, levels=1023), PARAMS.slots, np.random.default_rng(3)
    o, levels, mu = spec.network.output, spec.levels, spec.gradient_weight
    half = generator.integers(0, 2 * levels, (count, o, o), endpoint=True) / (2 * levels)
    intensity = generator.integers(0, levels, (count, o, o), endpoint=True) / levels
    across = generator.choice((-1.0, 1.0), (count, o, o - 1)) - np.diff(half, axis=2)
    down = generator.choice((-1.0, 1.0), (count, o - 1, o)) - np.diff(half, axis=1)
    plane = intensity - half
    plane[:, :, 1:] += mu * across
    plane[:, :, :-1] -= mu * across
    plane[:, 1:] += mu * down
    plane[:, :-1] -= mu * down
    squares = [(part**2).sum(axis=(1, 2)) for part in (intensity - half, across, down)]
    constant = squares[0] + mu * (squares[1] + squares[2])
    inputs = generator.integers(0, levels, (count, 3, 6, 6), endpoint=True) / levels
    inputs[:, 2] = 2 * np.rint(inputs[:, 2]) - 1
    batch = encrypt_patches(
        private.public, spec, ClearBatch(inputs, LossTarget(plane, constant), ()), validation=True
    )
    check(private, spec, batch, count)


# --- numbers that no honest contributor has ----------------------------------------------------------


def forge_numbers(batch: ClearBatch, change: str, spec: FusionSpec) -> ClearBatch:
    inputs, plane, constant = (array.copy() for array in (batch.inputs, *batch.target))
    bounds = get_input_bounds(spec.circuit)
    match change:
        case "image off the grid":
            inputs[7, 1, 2, 3] += 1e-3 if inputs[7, 1, 2, 3] < 0.5 else -1e-3
        case "image below 0":
            inputs[7, 1, 2, 3] = -2 / 255
        case "plane off the grid":
            inputs[7, 2, 2, 3] *= 0.5
            inputs[7, 2, 2, 3] += 1e-3
        case "target off the grid":
            plane[50, 0, 1] += 1e-9
        case "target between levels":
            plane[50, 0, 1] += 0.25 / 255
        case "constant off the grid":
            constant[3] += 0.3 / (4 * 255**2)
        case "constant too small":
            grid = 4 * 255**2
            constant = np.floor(compute_least_constant(spec.network, plane) * grid) / grid
            constant -= 1 / grid
            constant = np.maximum(constant, 0)
        case "constant of 0":
            constant[9] = 0
        case "constant below 0":
            constant[:] = -1
        case "target without a constant":
            plane[9] = bounds.target
        case _:
            pytest.fail(change)
    return ClearBatch(inputs, LossTarget(plane, constant), batch.ranges)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("image off the grid", "inputs: grey values: not within"),
        ("image below 0", r"inputs: grey values must lie in \[0, 1\]"),
        ("plane off the grid", "planes: not within"),
        ("target off the grid", "target: not within"),
        ("target between levels", "target: not within"),
        ("constant off the grid", "constant: not within"),
        ("constant too small", "constant: some patch's loss could be negative"),
        ("constant of 0", "constant: some patch's loss could be negative"),
        ("constant below 0", "constant must lie in"),
        ("target without a constant", "constant: some patch's loss could be negative"),
    ],
)
def test_other_numbers_are_refused(private: PrivateContext, change: str, message: str) -> None:
    forged = forge_numbers(get_clear(SPEC), change, SPEC)
    with pytest.raises(WorkloadError, match=message):
        check(private, SPEC, encrypt_patches(private.public, SPEC, forged, True))


def test_the_least_constant_itself_is_enough(private: PrivateContext) -> None:
    """Targets whose gradient is that of their intensity have exactly this constant."""
    batch, grid = get_clear(SPEC), 4 * 255**2
    least = np.ceil(compute_least_constant(SPEC.network, batch.target.plane) * grid - 1e-6) / grid
    check(
        private,
        SPEC,
        encrypt_patches(
            private.public, SPEC, replace(batch, target=LossTarget(batch.target.plane, least)), True
        ),
    )


@pytest.mark.parametrize("field", ["inputs", "planes", "target", "constant"])
def test_unused_slots_hold_nothing(private: PrivateContext, field: str) -> None:
    inputs = np.zeros((PATCHES + 1, 3, 6, 6))
    plane, constant = np.zeros((PATCHES + 1, 2, 2)), np.zeros(PATCHES + 1)
    match field:
        case "inputs":
            inputs[-1, 0, 0, 0] = 1
        case "planes":
            inputs[-1, 2, 0, 0] = -1
        case "target":
            plane[-1, 0, 0], constant[-1] = 1, 9
        case _:
            constant[-1] = 1
    batch = encrypt_batch(private.public, SPEC.circuit, inputs, plane, constant)
    check(private, SPEC, batch, PATCHES + 1)
    with pytest.raises(WorkloadError, match=f"^{field}: slots from {PATCHES} on must hold zeros"):
        check(private, SPEC, batch)


@pytest.mark.parametrize(("patches", "sort"), [(0, True), (2049, True), (PATCHES, False)])
def test_the_declared_sort_and_number_must_fit(private: PrivateContext, patches: int, sort: bool) -> None:
    batch = encrypt_patches(private.public, SPEC, get_clear(SPEC), True)
    with pytest.raises(WorkloadError, match=r"patches must lie|expected a training"):
        prepare_batch(private, SPEC, batch, patches, sort)
    with pytest.raises(WorkloadError, match="length"):
        check(private, SPEC, batch[:-8])


# --- ciphertexts that carry something else -----------------------------------------------------------

BODIES = {"image": 0, "plane": 2 * 36, "target": 3 * 36 + 1, "constant": 3 * 36 + 4}
"""A body of each sort."""


def get_body(sort: str) -> Body:
    return build_batch_layout(build_plan(PARAMS, SPEC.circuit), validation=True).bodies[BODIES[sort]]


def add_polynomial(batch: bytes, body: Body, component: int, coefficients: list[int]) -> bytes:
    """Component 0 is added to the message as it is, component 1 multiplied by the secret."""
    level = body.form.level
    words = np.frombuffer(batch, "<u8", 2 * level * PARAMS.ring, body.offset)
    residues = words.reshape(2, level, PARAMS.ring).astype(object)
    residues[component] += get_rows(PARAMS, coefficients, level)
    primes = np.array(PARAMS.primes[:level], dtype=object)[None, :, None]
    data = (residues % primes).astype("<u8").tobytes()
    return batch[: body.offset] + data + batch[body.offset + len(data) :]


def place(position: int, value: float) -> list[int]:
    polynomial = [0] * PARAMS.ring
    polynomial[position] = round(value)
    return polynomial


@pytest.fixture(scope="module")
def honest(private: PrivateContext) -> bytes:
    return encrypt_patches(private.public, SPEC, get_clear(SPEC), True)


@pytest.mark.parametrize("sort", BODIES)
@pytest.mark.parametrize(("size", "position"), [(1e-3, 0), (1 / 255, 17), (1.0, PARAMS.ring // 2)])
def test_a_multiple_of_the_key_is_refused(
    private: PrivateContext, honest: bytes, sort: str, size: float, position: int
) -> None:
    """Also of a grid's step, rotated or not: next to the grid in some slots, never in all."""
    body = get_body(sort)
    forged = add_polynomial(honest, body, 1, place(position, size * float(body.form.scale)))
    with pytest.raises(WorkloadError, match="imaginary"):
        check(private, SPEC, forged)


@pytest.mark.parametrize("sort", BODIES)
def test_a_key_masked_to_one_slot_is_refused(private: PrivateContext, honest: bytes, sort: str) -> None:
    """A grid's step in one slot and nothing in the others, times the key."""
    body = get_body(sort)
    forged = add_polynomial(honest, body, 1, encode_slot(PARAMS, 5, float(body.form.scale) / 255))
    with pytest.raises(WorkloadError, match=r"imaginary|not within"):
        check(private, SPEC, forged)


@pytest.mark.parametrize("sort", BODIES)
def test_imaginary_parts_are_refused(private: PrivateContext, honest: bytes, sort: str) -> None:
    """X^(N/2) is the imaginary unit in every slot, so that the real parts stay honest."""
    body = get_body(sort)
    forged = add_polynomial(honest, body, 0, place(PARAMS.ring // 2, float(body.form.scale) / 255))
    with pytest.raises(WorkloadError, match="imaginary"):
        check(private, SPEC, forged)


@pytest.mark.parametrize(
    ("sort", "value", "message"),
    [
        ("image", 1 + 1 / 255, "inputs: grey values must lie"),
        ("plane", 2 + 1 / 255, "planes must lie"),
        ("target", 2 * (2 + 12 * 2) + 1, "target must lie"),
        ("constant", 2.0**20, "constant must lie"),
    ],
)
def test_numbers_out_of_range_are_refused(
    private: PrivateContext, honest: bytes, sort: str, value: float, message: str
) -> None:
    """On the grid, but more than the circuits' magnitudes are computed for."""
    body = get_body(sort)
    forged = add_polynomial(honest, body, 0, place(0, value * float(body.form.scale)))
    with pytest.raises(WorkloadError, match=message):
        check(private, SPEC, forged)


@pytest.mark.parametrize(("sort", "bound"), [("image", 1.5e-4), ("target", 3e-11)])
def test_what_passes_of_a_key_is_below_the_tolerance(
    private: PrivateContext, honest: bytes, sort: str, bound: float
) -> None:
    """The largest rotation that is not refused moves a number by no more than the tolerance."""
    body = get_body(sort)
    before = check(private, SPEC, honest)
    largest = 0.0
    for bits in range(2, 60, 2):
        try:
            after = check(private, SPEC, add_polynomial(honest, body, 1, place(3, 2.0**bits)))
        except WorkloadError:
            break
        pairs = ((after.inputs, before.inputs), (after.target, before.target))
        largest = max(largest, *(float(np.abs(a - b).max()) for a, b in pairs))
    else:
        pytest.fail("no size of rotation was refused")
    assert 0 < largest < bound
