"""What the holder of a task's secret key does: check, clip, sum, add noise, open.

Nothing that a miner or contributor sent is opened before every number of it has been compared with
what it must be:

- a contributed batch must decrypt to numbers on the specification's grids, within their ranges, with
  zeros in the unused slots, and to constants that no loss can fall below (`prepare_batch`);
- a gradient bundle must decrypt, patch by patch and entry by entry, to the closed-form gradient of
  what that batch decrypts to, at those weights (`check_bundle`).

So neither can carry the key: a bundle would have to agree with the clear, and a batch with a grid, to
within about the scheme's own error, and what depends on the key does neither (ADR 20). Everything here
is a function of its arguments alone, so a repeated opening is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from fusion_model.gradients import (
    compute_patch_gradients,
    compute_patch_losses,
    convert_weights,
    fold_output_bias,
)
from fusion_model.losses import compute_least_constant
from fusion_model.prepared import round_to_grid
from he.context import PrivateContext
from he.errors import HeError
from he.gate import Source
from he.packing import decrypt_batch, decrypt_bundle, decrypt_loss
from he.plan import get_input_bounds
from he.precision import GRADIENT_TOLERANCE, INPUT_TOLERANCE, LOSS_TOLERANCE, Tolerance
from workloads.base import WorkloadError
from workloads.clipping import FloatArray, clip_to_units, sum_clipped, sum_clipped_losses
from workloads.fusion import FusionSpec
from workloads.hashing import hash_domain
from workloads.noise import draw_gaussian

GRADIENT_MARGIN = 4.0
"""Over the engine's measured tolerance. A slot's noise follows the square of the secret's value there,
so the largest error differs from key to key; refusing an honest bundle would cost its miner dear, and
what hides under the margin is still drowned by the noise (`privacy.compute_hidden_bits`)."""

BUNDLE_TOLERANCE = Tolerance(
    GRADIENT_MARGIN * GRADIENT_TOLERANCE.absolute, GRADIENT_MARGIN * GRADIENT_TOLERANCE.relative
)


TARGET_TOLERANCE = Tolerance(absolute=1e-11, relative=1e-13)
"""R and constants are encrypted at scales that leave them as exact as floating point does, 3e-15 of the
largest: a hundredth of this, which in turn is far below the finest grid's step."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Largest errors that honest bytes have; the engine's are measured in `he.precision`."""

    pixel: float = INPUT_TOLERANCE.absolute
    """Of a decrypted grey value or plane against the grid; honest ones have a fifth of it."""
    target: Tolerance = TARGET_TOLERANCE
    """Of a decrypted R or constant against the grid."""
    gradient: Tolerance = BUNDLE_TOLERANCE
    """Of each patch's entries, relative to the largest of their tensor."""
    loss: Tolerance = LOSS_TOLERANCE
    sum_divisor: float = 6.0
    """The sum over slots may be off by sqrt(slots) / sum_divisor times the limit of one patch: far
    above honest errors, which have random signs and are mostly much smaller than the largest, and far
    below what the limit of each patch would let pass if all errors agreed."""


DEFAULT_TOLERANCES = Tolerances()


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A contributed batch that has been decrypted and found honest; stays with the custody.

    Arrays cover all slots and hold what the ciphertexts hold, encryption error included: bundles are
    compared with the gradient of exactly these numbers.
    """

    inputs: FloatArray
    """(slots, inputs, P, P)"""
    target: FloatArray
    """(slots, O, O)"""
    constant: FloatArray | None
    """(slots,), of a validation batch."""
    patches: int

    def save(self, path: Path) -> None:
        """One .npz file at exactly `path`."""
        constant = np.empty(0) if self.constant is None else self.constant
        with path.open("wb") as file:
            np.savez(
                file,
                inputs=self.inputs,
                target=self.target,
                constant=constant,
                patches=np.int64(self.patches),
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path, allow_pickle=False) as arrays:
            constant = arrays["constant"]
            return cls(
                arrays["inputs"],
                arrays["target"],
                constant if constant.size else None,
                int(arrays["patches"]),
            )


@dataclass(frozen=True, slots=True)
class BundleReport:
    """How a bundle compares with the clear. For the custodian's own eyes: the errors of a refused
    bundle are decryptions of foreign bytes, so its sender may learn `accepted` and nothing else."""

    accepted: bool
    detail: str
    """Empty if accepted; else what differs, where, and by how much."""
    patch: int
    """Of the largest error; -1 if nothing could be compared."""
    entry: str
    """Gradient entry of the largest error, e.g. `w[0,1,2,2]`."""
    error: float
    tolerance: float
    sum_error: float
    sum_tolerance: float


@dataclass(frozen=True, slots=True)
class CheckedBundle:
    """A report, and the gradients if and only if it accepts."""

    report: BundleReport
    gradients: FloatArray | None
    """(used patches, entries)"""


def prepare_batch(
    private: PrivateContext,
    spec: FusionSpec,
    batch: Source,
    patches: int,
    validation: bool,
    tolerances: Tolerances = DEFAULT_TOLERANCES,
) -> PreparedBatch:
    """The decrypted batch, every slot of it checked.

    Raises WorkloadError naming the field and what was expected; the batch's contributor is at fault.
    The text holds no decrypted number: it may be shown to the contributor.
    """
    try:
        inputs, target, constant = decrypt_batch(private, spec.circuit, batch)
    except HeError as error:
        raise WorkloadError(f"batch: {error}") from error
    if not 1 <= patches <= len(inputs):
        raise WorkloadError(f"patches must lie in [1, {len(inputs)}], got {patches}")
    if (constant is not None) != validation:
        raise WorkloadError(f"batch: expected a {'validation' if validation else 'training'} batch")
    levels, bounds = spec.levels, get_input_bounds(spec.circuit)
    pixels, target_limit = Tolerance(tolerances.pixel, 0.0), tolerances.target
    images = _check_grid("inputs: grey values", inputs[:, :2], levels, (0, 1), pixels)
    planes = _check_grid("planes", inputs[:, 2:], levels, (-1, 1), pixels)
    plane = _check_grid("target", target, 2 * levels, (-bounds.target, bounds.target), target_limit)
    fields = [("inputs", images), ("planes", planes), ("target", plane)]
    if constant is not None:
        grid = 4 * levels**2
        exact = _check_grid("constant", constant, grid, (0, bounds.constant), target_limit)
        # The step is far above the rounding of either side.
        if not bool((exact >= compute_least_constant(spec.network, plane) - 0.5 / grid).all()):
            raise WorkloadError("constant: some patch's loss could be negative")
        fields.append(("constant", exact))
    for field, values in fields:
        if values[patches:].any():
            raise WorkloadError(f"{field}: slots from {patches} on must hold zeros")
    return PreparedBatch(inputs, target, constant, patches)


def _check_grid(
    field: str, values: FloatArray, levels: int, limits: tuple[int, int], tolerance: Tolerance
) -> FloatArray:
    """The multiples of 1/levels that the values are close to, all within the limits."""
    low, high = limits
    if not np.isfinite(values).all():
        raise WorkloadError(f"{field} must be finite")
    exact = round_to_grid(values, levels)
    if exact.min(initial=0.0) < low or exact.max(initial=0.0) > high:
        raise WorkloadError(f"{field} must lie in [{low}, {high}]")
    if exact.size:
        limit = tolerance.compute_limit(exact)
        _check_close(field, values, exact, limit, f"a multiple of 1/{levels}")
    return exact


def _check_close(field: str, actual: FloatArray, expected: FloatArray, tolerance: float, what: str) -> None:
    """Negated comparison: a number that is not finite is refused as well."""
    if not float(np.abs(actual - expected).max(initial=0.0)) <= tolerance:
        raise WorkloadError(f"{field}: not within {tolerance:.3g} of {what}")


def get_entry_name(spec: FusionSpec, index: int) -> str:
    """The gradient entry at a position of the flat order, e.g. `v[3,0,2]`."""
    return spec.network.get_entry_name(index)


def get_tensors(spec: FusionSpec) -> tuple[slice, ...]:
    """The columns of w, b, v and d among the gradient entries."""
    first, second = spec.network.first_weights, spec.network.second_start
    return (
        slice(0, first),
        slice(first, second),
        slice(second, spec.parameters),
        slice(spec.parameters, spec.parameters + 1),
    )


def _refuse(detail: str) -> CheckedBundle:
    return CheckedBundle(BundleReport(False, detail, -1, "", float("inf"), 0.0, float("inf"), 0.0), None)


def check_bundle(
    private: PrivateContext,
    spec: FusionSpec,
    weights: Sequence[int],
    batch: PreparedBatch,
    bundle: Source,
    tolerances: Tolerances = DEFAULT_TOLERANCES,
) -> CheckedBundle:
    """Compares every entry of every slot, unused ones included, with the clear gradient.

    Never raises for what the bundle holds: the report says why it is refused, and then no number of
    it is kept.
    """
    try:
        gradients = decrypt_bundle(private, spec.circuit, bundle)
    except HeError as error:
        return _refuse(f"bundle: {error}")
    expected = compute_patch_gradients(spec.network, convert_weights(weights), batch.inputs, batch.target)
    return compare_gradients(spec, expected, gradients, batch.patches, tolerances)


def compare_gradients(
    spec: FusionSpec, expected: FloatArray, actual: FloatArray, patches: int, tolerances: Tolerances
) -> CheckedBundle:
    """The report of `actual` against `expected`, both (slots, entries)."""
    if actual.shape != expected.shape:
        return _refuse(f"bundle: {actual.shape} numbers, expected {expected.shape}")
    difference = actual - expected
    limits = np.empty(expected.shape[1])
    for tensor in get_tensors(spec):
        limits[tensor] = tolerances.gradient.compute_limit(expected[:, tensor])
    # In units of each entry's limit; what is not finite counts as infinitely wrong.
    errors = np.nan_to_num(np.abs(difference) / limits, nan=np.inf, posinf=np.inf)
    slot, column = np.unravel_index(int(np.argmax(errors)), errors.shape)
    worst, entry = float(errors[slot, column]), get_entry_name(spec, int(column))
    # A shift that hides under the limit of each patch shows in their sum.
    sum_limits = limits * np.sqrt(len(expected)) / tolerances.sum_divisor
    sums = np.nan_to_num(np.abs(difference.sum(axis=0)) / sum_limits, nan=np.inf, posinf=np.inf)
    place = int(np.argmax(sums))
    error, limit = worst * float(limits[column]), float(limits[column])
    sum_error, sum_limit = float(sums[place] * sum_limits[place]), float(sum_limits[place])
    detail = ""
    if not worst <= 1.0:
        detail = (
            f"patch {int(slot)}, entry {entry}: {error:.3g} away from the clear gradient; "
            f"at most {limit:.3g} is allowed"
        )
    elif not sums[place] <= 1.0:
        detail = (
            f"entry {get_entry_name(spec, place)}: the sum over patches is {sum_error:.3g} away from the "
            f"clear sum; at most {sum_limit:.3g} is allowed"
        )
    report = BundleReport(not detail, detail, int(slot), entry, error, limit, sum_error, sum_limit)
    return CheckedBundle(report, None if detail else actual[:patches])


def clip_and_sum(
    spec: FusionSpec, weights: Sequence[int], checked: CheckedBundle, clip: int, scale_bits: int
) -> tuple[int, ...]:
    """One batch's integer sum: each patch's joint gradient over the effective parameters, clipped.

    Raises WorkloadError if the bundle was refused: there is nothing to sum.
    """
    if checked.gradients is None:
        raise WorkloadError(f"a refused bundle is not opened: {checked.report.detail}")
    return sum_patches(spec, weights, checked.gradients, clip, scale_bits)


def sum_patches(
    spec: FusionSpec, weights: Sequence[int], gradients: FloatArray, clip: int, scale_bits: int
) -> tuple[int, ...]:
    """Clipped integer sum of untied gradients (patches, entries), encrypted or clear alike."""
    effective = fold_output_bias(spec.network, convert_weights(weights), gradients)
    return sum_clipped(clip_to_units(effective, clip, scale_bits))


def _bind(tag: str, binding: bytes, numbers: Sequence[int]) -> bytes:
    """The binding of a noise draw: what the opening is about, and the exact numbers it hides.

    With the numbers bound in, sums that differ by as little as one unit get independent noise, so
    that no difference of two openings is ever free of it.
    """
    body = ",".join(str(number) for number in numbers).encode()
    return hash_domain(tag, len(binding).to_bytes(8, "big") + binding + body)


def open_gradient(sums: Sequence[int], noise: int, secret: bytes, binding: bytes) -> tuple[int, ...]:
    """The step's opened gradient: sums over all its batches plus N(0, noise²), in opened units.

    `binding` names chain, task, step, weights and bundles; the same arguments give the same numbers.
    """
    draws = draw_gaussian(secret, _bind("gradient-noise", binding, sums), len(sums), noise)
    return tuple(total + draw for total, draw in zip(sums, draws, strict=True))


def sum_losses(
    private: PrivateContext,
    spec: FusionSpec,
    weights: Sequence[int],
    batch: PreparedBatch,
    loss: Source,
    clip: int,
    scale_bits: int,
    tolerances: Tolerances = DEFAULT_TOLERANCES,
) -> int:
    """Sum over one validation batch of each patch's loss, clipped to [0, clip], in opened units.

    The custody has computed `loss` itself; comparing it with the clear guards against a fault of the
    machine. Raises WorkloadError if they differ.
    """
    if batch.constant is None:
        raise WorkloadError("a loss is opened on validation batches only")
    try:
        losses = decrypt_loss(private, spec.circuit, loss)
    except HeError as error:
        raise WorkloadError(f"loss: {error}") from error
    expected = compute_patch_losses(
        spec.network, convert_weights(weights), batch.inputs, batch.target, batch.constant
    )
    limit = tolerances.loss.compute_limit(expected)
    _check_close("loss", losses, expected, limit, "the clear loss")
    return sum_clipped_losses(losses[: batch.patches], clip, scale_bits)


def open_loss(sums: Sequence[int], patches: int, noise: int, secret: bytes, binding: bytes) -> int:
    """The rounded mean over `patches` of all validation batches' sums plus N(0, noise²); at least 0."""
    if patches < 1:
        raise WorkloadError("a mean loss needs at least one patch")
    total = sum(sums)
    noisy = total + draw_gaussian(secret, _bind("loss-noise", binding, (total, patches)), 1, noise)[0]
    return max(0, (2 * noisy + patches) // (2 * patches))
