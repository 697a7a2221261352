"""A validator's judgement of a model on pairs of its own, in clear (DESIGN 5).

Neither encryption nor a training library is needed: the closed-form losses of the clear twin, clipped by
patch like the task's own validation loss. What leaves this module is two means with Gaussian noise. The noise
is a function of the validator's key, the weights and the exact sum, so a model judged twice gives the same
number, and nobody can average the noise away.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fusion_model.gradients import Array, compute_patch_losses, convert_weights
from fusion_model.importers.png import ImportRefusedError
from fusion_model.losses import LossTarget
from fusion_model.pairs import ImagePair
from fusion_model.patches import PatchSet, count_patches, extract_patches
from workloads.base import PrivatePairs, VerdictJob, VerdictLosses, WorkloadError
from workloads.clipping import sum_clipped_losses
from workloads.fusion import FusionSpec
from workloads.hashing import hash_domain
from workloads.imaging import PairSource, load_pairs
from workloads.noise import SECRET_BYTES, draw_gaussian
from workloads.targets import build_target

T = TypeVar("T")

PATCH_SEED = 1
"""Of the choice of patches: fixed, so that all models of a task are judged on the same ones."""


def run_verdict(spec: FusionSpec, job: VerdictJob) -> VerdictLosses:
    """Both losses. Raises: WorkloadError that names neither a file nor a number of the pairs."""
    patches = _hide("can't be read", lambda: load_private_patches(spec, job.pairs, job.patches))
    secret = _hide("have no noise key", lambda: _read_secret(job.secret))
    inputs, target = patches.inputs, build_target(spec, patches)
    before, after = (_open(spec, weights, inputs, target, secret, job) for weights in (job.before, job.after))
    return VerdictLosses(before, after, -(-job.noise // len(inputs)))


_prepared: dict[bytes, PatchSet] = {}
"""The last patches of this process by all that they follow from: an optimised target takes its time, and a
task's models are judged one after the other."""


def load_private_patches(spec: FusionSpec, pairs: PrivatePairs, patches: int) -> PatchSet:
    """At most so many patches of the pairs, prepared like a contributor's: with the task's planes, skip
    and targets."""
    found = load_pairs(build_source(pairs))
    available = count_patches(found, spec.patch)
    if not available:
        raise WorkloadError("pairs: every patch is black")
    key = _hash_pairs(spec, found, patches)
    if key not in _prepared:
        chosen = extract_patches(
            found,
            min(patches, available),
            PATCH_SEED,
            spec.patch,
            settings=spec.settings,
            margin=spec.network.margin,
        )
        _prepared.clear()
        _prepared[key] = chosen
    return _prepared[key]


def _hash_pairs(spec: FusionSpec, pairs: Sequence[ImagePair], patches: int) -> bytes:
    digest = hashlib.sha256(patches.to_bytes(8, "big") + spec.encode())
    for pair in pairs:
        digest.update(repr((pair.patient, pair.first.shape)).encode())
        digest.update(pair.planes.tobytes())
    return digest.digest()


def build_source(pairs: PrivatePairs) -> PairSource:
    """What `bmif data encrypt` would be given for these pairs."""
    if pairs.folder is None:
        return PairSource(phantoms=pairs.phantoms, phantom_seed=pairs.phantom_seed)
    manifest = pairs.folder / "manifest.csv"
    if manifest.is_file():
        return PairSource(manifest=manifest, modality=pairs.modality)
    return PairSource(first=pairs.folder / "first", second=pairs.folder / "second")


def _open(
    spec: FusionSpec,
    weights: Sequence[int],
    inputs: Array,
    target: LossTarget,
    secret: bytes,
    job: VerdictJob,
) -> int:
    """The rounded mean of the clipped losses with its noise; at least 0."""
    losses = compute_patch_losses(
        spec.network, convert_weights(weights), inputs, target.plane, target.constant
    )
    total, patches = sum_clipped_losses(losses, job.clip, job.scale_bits), len(inputs)
    numbers = ",".join(map(str, (total, patches, *weights))).encode()
    binding = hash_domain("verdict-noise", len(job.binding).to_bytes(8, "big") + job.binding + numbers)
    noisy = total + draw_gaussian(secret, binding, 1, job.noise)[0]
    return max(0, (2 * noisy + patches) // (2 * patches))


def _read_secret(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a noise key has {SECRET_BYTES} bytes")
    return secret


def _hide(what: str, call: Callable[[], T]) -> T:
    """The call's result. Messages of importers name files, and files may be named after patients."""
    try:
        return call()
    except (WorkloadError, ImportRefusedError, OSError, ValueError):
        # Without its cause, too: a traceback would show what the message must not.
        raise WorkloadError(f"the private pairs {what}; `bmif config check` says more") from None
