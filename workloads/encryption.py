"""The contributor's side: pairs of images become encrypted batches and the ranges of each patient.

Everything that needs an image happens here, on its owner's machine: planes, skip and targets are
computed in clear from whole pairs; patches of images and planes are encrypted, and beside them what the
loss needs of skip and targets. Patients are never split over training and validation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusion_model.losses import LossTarget
from fusion_model.pairs import ImagePair, split_by_patient
from fusion_model.patches import BLACK_LEVEL, PatchSet, extract_patches
from he.context import PublicContext
from he.packing import encrypt_batch
from workloads.base import WorkloadError
from workloads.fusion import FusionSpec
from workloads.targets import build_target

ImageArray = npt.NDArray[np.float64] | npt.NDArray[np.float32] | npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ContributionPlan:
    """What a contributor gives: how many batches, and whose images are held for validation."""

    training_batches: int
    validation_batches: int
    validation_patients: tuple[int, ...]
    seed: int
    patches_per_batch: int
    """At most the preset's slots; fewer waste computation but not privacy."""


@dataclass(frozen=True, slots=True)
class EncryptedBatch:
    path: Path
    patches: int


@dataclass(frozen=True, slots=True)
class EncryptedRange:
    """Patches [start, stop) of one batch belong to one patient (pseudonymous number)."""

    patient: int
    validation: bool
    batch: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class EncryptedContribution:
    training: tuple[EncryptedBatch, ...]
    validation: tuple[EncryptedBatch, ...]
    patients: tuple[EncryptedRange, ...]


@dataclass(frozen=True, slots=True)
class EncryptionProgress:
    """`done` of `total` batches are written."""

    done: int
    total: int
    path: Path


ProgressHook = Callable[[EncryptionProgress], None]


@dataclass(frozen=True, slots=True)
class ClearBatch:
    """One batch before encryption, everything on the specification's grids."""

    inputs: npt.NDArray[np.float64]
    """(n, inputs, P, P)."""
    target: LossTarget
    """R, (n, O, O), and the constant, (n,), which only validation batches carry."""
    ranges: tuple[tuple[int, int, int], ...]
    """(patient, start, stop)."""


def build_pairs(sources: Sequence[tuple[int, ImageArray, ImageArray]]) -> list[ImagePair]:
    """Checked pairs from (patient, A, B); 8-bit images are divided by 255, floats must lie in [0, 1].

    Raises WorkloadError naming the pair and the remedy.
    """
    pairs = []
    for index, (patient, first, second) in enumerate(sources):
        name = f"pair {index} (patient {patient})"
        if patient < 0:
            raise WorkloadError(f"{name}: patient must not be negative; give pseudonymous numbers from 0")
        if first.shape != second.shape:
            raise WorkloadError(
                f"{name}: images differ in size, {first.shape} and {second.shape}; register and resample "
                "one to the other's grid first"
            )
        pairs.append(
            ImagePair(
                name,
                patient,
                _convert_image(first, f"{name}, image A"),
                _convert_image(second, f"{name}, image B"),
            )
        )
    return pairs


def _convert_image(image: ImageArray, name: str) -> npt.NDArray[np.float64]:
    if image.ndim != 2:
        raise WorkloadError(f"{name}: expected a grey image (height, width), got shape {image.shape}")
    plane = image.astype(np.float64)
    if image.dtype == np.uint8:
        plane /= 255.0
    if not np.isfinite(plane).all() or plane.min() < 0.0 or plane.max() > 1.0:
        raise WorkloadError(f"{name}: values must lie in [0, 1]; rescale the image, or give it as 8-bit")
    return plane


def _check_not_black(pairs: Sequence[ImagePair]) -> None:
    if not pairs:
        raise WorkloadError("pairs: none given; import at least one patient's registered pair")
    for pair in pairs:
        for side, image in (("A", pair.first), ("B", pair.second)):
            if float(image.max()) <= BLACK_LEVEL:
                raise WorkloadError(
                    f"{pair.name}: image {side} is black (largest value {float(image.max()):.3f}); "
                    "check its window or leave the pair out"
                )


def _build_batches(
    field: str, pairs: Sequence[ImagePair], spec: FusionSpec, batches: int, patches: int, seed: int
) -> list[ClearBatch]:
    """`batches` batches of exactly `patches`, every patient spread evenly over all of them."""
    if batches == 0:
        return []
    total = batches * patches
    try:
        chosen = extract_patches(
            pairs, total, seed, spec.patch, settings=spec.settings, margin=spec.network.margin
        )
    except ValueError as error:
        raise WorkloadError(
            f"{field}: {batches} batches of {patches} patches cannot be filled: {error}; give more pairs, "
            f"lower {field} or lower patches_per_batch"
        ) from error
    target = build_target(spec, chosen)
    return [_take_batch(chosen, target, batches, number) for number in range(batches)]


def _take_batch(chosen: PatchSet, target: LossTarget, batches: int, number: int) -> ClearBatch:
    """Every `batches`-th patch from `number` on, so patients stay contiguous."""

    def convert(position: int) -> int:
        return -(-(position - number) // batches) if position > number else 0

    ranges = []
    for entry in chosen.ranges:
        start, stop = convert(entry.start), convert(entry.stop)
        if stop > start:
            ranges.append((entry.patient, start, stop))
    own = slice(number, None, batches)
    return ClearBatch(chosen.inputs[own], LossTarget(target.plane[own], target.constant[own]), tuple(ranges))


def _check_plan(plan: ContributionPlan, slots: int) -> None:
    if plan.training_batches < 0 or plan.validation_batches < 0:
        raise WorkloadError("training_batches and validation_batches must not be negative")
    if plan.training_batches + plan.validation_batches == 0:
        raise WorkloadError("training_batches and validation_batches are both 0; nothing to contribute")
    if not 1 <= plan.patches_per_batch <= slots:
        raise WorkloadError(f"patches_per_batch must lie in [1, {slots}], got {plan.patches_per_batch}")
    if bool(plan.validation_patients) != bool(plan.validation_batches):
        raise WorkloadError(
            "validation_patients and validation_batches go together: name the patients whose images are "
            "held for validation, or ask for no validation batch"
        )


def build_clear_batches(
    spec: FusionSpec, pairs: Sequence[ImagePair], plan: ContributionPlan, slots: int
) -> tuple[list[ClearBatch], list[ClearBatch]]:
    """Training and validation batches in clear; no patient is in both.

    Raises WorkloadError naming the field and the remedy.
    """
    _check_plan(plan, slots)
    _check_not_black(pairs)
    if plan.training_batches:
        try:
            training, validation = split_by_patient(pairs, plan.validation_patients)
        except ValueError as error:
            raise WorkloadError(f"validation_patients: {error}") from error
    else:
        training, validation = [], [pair for pair in pairs if pair.patient in plan.validation_patients]
    patches = plan.patches_per_batch
    return (
        _build_batches("training_batches", training, spec, plan.training_batches, patches, plan.seed),
        _build_batches("validation_batches", validation, spec, plan.validation_batches, patches, plan.seed),
    )


def encrypt_contribution(
    context: PublicContext,
    spec: FusionSpec,
    pairs: Sequence[ImagePair],
    plan: ContributionPlan,
    directory: Path,
    progress: ProgressHook | None = None,
) -> EncryptedContribution:
    """Writes every encrypted batch to `directory`; nothing in clear leaves this function.

    Raises WorkloadError naming the field and the remedy, before anything is encrypted.
    """
    training, validation = build_clear_batches(spec, pairs, plan, context.params.slots)
    directory.mkdir(parents=True, exist_ok=True)
    total = len(training) + len(validation)
    written: dict[bool, list[EncryptedBatch]] = {False: [], True: []}
    ranges: list[EncryptedRange] = []
    for held, batches in ((False, training), (True, validation)):
        for number, batch in enumerate(batches):
            path = directory / f"{'validation' if held else 'training'}-{number}.batch"
            path.write_bytes(encrypt_patches(context, spec, batch, held))
            written[held].append(EncryptedBatch(path, len(batch.inputs)))
            ranges += [EncryptedRange(who, held, number, start, stop) for who, start, stop in batch.ranges]
            if progress is not None:
                progress(EncryptionProgress(len(written[False]) + len(written[True]), total, path))
    return EncryptedContribution(tuple(written[False]), tuple(written[True]), tuple(ranges))


def encrypt_patches(context: PublicContext, spec: FusionSpec, batch: ClearBatch, validation: bool) -> bytes:
    """The batch blob: inputs, R and, for validation, the constant."""
    constant = batch.target.constant if validation else None
    return encrypt_batch(context, spec.circuit, batch.inputs, batch.target.plane, constant)
