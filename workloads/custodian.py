"""The single custodian: a task's keys on disk, and the heavy steps of custody as jobs.

Jobs carry plain data and run in worker processes of the custody's own node; the secret key is read
from its file there and never crosses a pipe. Of a sealed file, what opens this one file comes with the job,
never the passphrase, which opens others too. `Custodian` is the port: a committee, of which no member
can decrypt alone, comes behind the same calls.
"""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from he.context import PrivateContext
from he.packing import decrypt_bundle
from he.params import CkksParams
from workloads.base import WorkloadError
from workloads.custody import (
    BundleReport,
    PreparedBatch,
    check_bundle,
    clip_and_sum,
    open_gradient,
    open_loss,
    prepare_batch,
    sum_losses,
    sum_patches,
)
from workloads.fusion import WORKLOAD, FusionSpec, FusionTraining
from workloads.noise import SECRET_BYTES
from workloads.sealed import NOISE_KIND, PLAIN, SECRET_KIND, FolderKeys, SealingKey, read_secret, write_secret

SECRET_KEY_FILE = "secret.key"
NOISE_FILE = "noise.key"
PUBLIC_KEY_FILE = "public.key"
RELIN_KEYS_FILE = "relin.keys"


@dataclass(frozen=True, slots=True)
class PrepareJob:
    """Decrypt and check one contributed batch; the clear arrays go to `output`."""

    preset: str
    model: bytes
    batch: Path
    patches: int
    validation: bool
    output: Path


@dataclass(frozen=True, slots=True)
class BundleJob:
    """Check one bundle against its prepared batch and sum it."""

    preset: str
    model: bytes
    weights: tuple[int, ...]
    prepared: Path
    bundle: Path
    clip: int
    scale_bits: int
    recomputed: bool = False
    """The custody computed these very bytes itself: they are canonical, whatever their error is."""


@dataclass(frozen=True, slots=True)
class BundleOutcome:
    report: BundleReport
    sums: tuple[int, ...] | None
    """Exact sums *before* noise, if the report accepts or the bundle is recomputed; never leaves the
    custody."""


@dataclass(frozen=True, slots=True)
class LossSumJob:
    """Decrypt the loss ciphertext of one validation batch and sum it."""

    preset: str
    model: bytes
    weights: tuple[int, ...]
    prepared: Path
    loss: bytes
    clip: int
    scale_bits: int


class Custodian(Protocol):
    """Whoever can open a task's numbers. `run_*` are for worker processes."""

    def run_prepare(self, job: PrepareJob) -> None:
        """Raises WorkloadError if the contributed batch is refused."""
        ...

    def run_bundle(self, job: BundleJob) -> BundleOutcome: ...

    def run_loss_sum(self, job: LossSumJob) -> int: ...

    def open_gradient(self, sums: tuple[int, ...], noise: int, binding: bytes) -> tuple[int, ...]:
        """The step's opened gradient; the same arguments always give the same numbers."""
        ...

    def open_loss(self, sums: tuple[int, ...], patches: int, noise: int, binding: bytes) -> int:
        """The opened mean loss; the same arguments always give the same number."""
        ...


@dataclass(frozen=True, slots=True)
class PublicKeyFiles:
    public_key: Path
    relin_keys: Path


def generate_keys(
    preset: str, directory: Path, workload: FusionTraining = WORKLOAD, key: SealingKey | None = None
) -> PublicKeyFiles:
    """Makes all keys of one task in `directory`, the secret ones readable by their owner alone, and sealed
    where there is a `key`.

    Raises WorkloadError if it already holds keys: one key serves one task.
    """
    params = workload.get_params(preset)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (directory / SECRET_KEY_FILE).exists():
        raise WorkloadError(f"{directory} already holds a secret key; a task's keys are made once")
    context = PrivateContext.generate(params)
    public = PublicKeyFiles(directory / PUBLIC_KEY_FILE, directory / RELIN_KEYS_FILE)
    if context.public.public_key is None or context.public.relin_keys is None:
        raise WorkloadError("key generation gave no public keys")
    public.public_key.write_bytes(context.public.public_key.encode())
    public.relin_keys.write_bytes(context.public.relin_keys.encode())
    write_secret(directory / NOISE_FILE, secrets.token_bytes(SECRET_BYTES), key, NOISE_KIND)
    # Last, so that a directory with a secret key is complete.
    write_secret(directory / SECRET_KEY_FILE, context.save(), key, SECRET_KIND)
    return public


MAX_CONTEXTS = 2
"""Secret keys loaded at once in one process."""

_contexts: OrderedDict[Path, PrivateContext] = OrderedDict()


@dataclass(frozen=True, slots=True)
class SingleCustodian:
    """Holder of a task's whole secret key, in `directory`; can read every contributed image."""

    directory: Path = field(repr=False)
    workload: FusionTraining = WORKLOAD
    keys: FolderKeys = PLAIN
    """For secrets that are sealed."""

    def _get_context(self, params: CkksParams) -> PrivateContext:
        path = (self.directory / SECRET_KEY_FILE).resolve()
        if path not in _contexts:
            _contexts[path] = PrivateContext.load(params, read_secret(path, self.keys.secret, SECRET_KIND))
            while len(_contexts) > MAX_CONTEXTS:
                _contexts.popitem(last=False)
        _contexts.move_to_end(path)
        return _contexts[path]

    def _get_noise_secret(self) -> bytes:
        return read_secret(self.directory / NOISE_FILE, self.keys.noise, NOISE_KIND)

    def run_prepare(self, job: PrepareJob) -> None:
        prepared = prepare_batch(
            self._get_context(self.workload.get_params(job.preset)),
            FusionSpec.decode(job.model),
            job.batch,
            job.patches,
            job.validation,
        )
        partial = job.output.with_suffix(".part")
        prepared.save(partial)
        partial.replace(job.output)

    def run_bundle(self, job: BundleJob) -> BundleOutcome:
        spec = FusionSpec.decode(job.model)
        prepared = PreparedBatch.load(job.prepared)
        checked = check_bundle(
            self._get_context(self.workload.get_params(job.preset)), spec, job.weights, prepared, job.bundle
        )
        if job.recomputed:
            gradients = decrypt_bundle(
                self._get_context(self.workload.get_params(job.preset)), spec.circuit, job.bundle
            )[: prepared.patches]
            return BundleOutcome(
                checked.report, sum_patches(spec, job.weights, gradients, job.clip, job.scale_bits)
            )
        if not checked.report.accepted:
            return BundleOutcome(checked.report, None)
        return BundleOutcome(
            checked.report, clip_and_sum(spec, job.weights, checked, job.clip, job.scale_bits)
        )

    def run_loss_sum(self, job: LossSumJob) -> int:
        return sum_losses(
            self._get_context(self.workload.get_params(job.preset)),
            FusionSpec.decode(job.model),
            job.weights,
            PreparedBatch.load(job.prepared),
            job.loss,
            job.clip,
            job.scale_bits,
        )

    def open_gradient(self, sums: tuple[int, ...], noise: int, binding: bytes) -> tuple[int, ...]:
        return open_gradient(sums, noise, self._get_noise_secret(), binding)

    def open_loss(self, sums: tuple[int, ...], patches: int, noise: int, binding: bytes) -> int:
        return open_loss(sums, patches, noise, self._get_noise_secret(), binding)
