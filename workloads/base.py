"""The port through which a node does a task's machine learning, and the registry of its kinds.

Everything that crosses the port is plain data (bytes, integers, paths), so that the heavy calls can
run in worker processes. The registry names modules and imports one when its kind is first asked for:
a node that only follows the chain loads no encryption and no training library.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast


class WorkloadError(Exception):
    """A specification, blob or job that is refused; the text names the field and what was expected."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A task's relinearisation keys on disk, named by their content."""

    root: bytes
    """Blob root: workers keep a loaded key under this name."""
    path: Path


@dataclass(frozen=True, slots=True)
class GradientJob:
    """Compute the gradient bundle of one batch at the given weights and write it to `output`."""

    preset: str
    model: bytes
    weights: tuple[int, ...]
    relin_keys: KeyFile
    batch: Path
    output: Path


@dataclass(frozen=True, slots=True)
class LossJob:
    """Compute the loss ciphertext of one validation batch at the given weights."""

    preset: str
    model: bytes
    weights: tuple[int, ...]
    relin_keys: KeyFile
    batch: Path


@dataclass(frozen=True, slots=True)
class PrivatePairs:
    """Where a validator's own pairs are: a folder, or synthetic patients. Never shown, never sent."""

    folder: Path | None = field(default=None, repr=False)
    """Holds `manifest.csv`, or the folders `first` and `second` of equally named PNG images."""
    modality: str | None = field(default=None, repr=False)
    """Only these rows of the manifest."""
    phantoms: int = field(default=0, repr=False)
    phantom_seed: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True)
class VerdictJob:
    """Evaluate two models on private pairs, in clear; only two noised losses come back."""

    model: bytes
    before: tuple[int, ...]
    """Weights of the last settled model."""
    after: tuple[int, ...]
    """Weights of the milestone's model."""
    pairs: PrivatePairs
    patches: int
    """Most patches to draw from the pairs."""
    clip: int
    """Bound of one patch's loss, opened units."""
    scale_bits: int
    noise: int
    """Standard deviation of the noise of a sum of losses, opened units."""
    secret: Path = field(repr=False)
    """File of the key that the noise is a function of, so that a repetition tells nothing new."""
    binding: bytes
    """Names the chain and the task."""


@dataclass(frozen=True, slots=True)
class VerdictLosses:
    """Mean losses with their noise, in opened units."""

    before: int
    after: int
    deviation: int
    """Standard deviation of the noise of each, rounded up."""


@dataclass(frozen=True, slots=True)
class BlobSizes:
    """Exact lengths in bytes of a task's blobs: anything else is refused before it is fetched."""

    public_key: int
    relin_keys: int
    training_batch: int
    validation_batch: int
    bundle: int
    loss: int


class Workload(Protocol):
    """One kind of task. Methods raise WorkloadError on what they refuse.

    `run_*` are for worker processes; instances are small and can be pickled.
    """

    @property
    def kind(self) -> str:
        """The draft's `kind`."""
        ...

    def check_model(self, preset: str, model: bytes, parameters: int, weight_box: int) -> None:
        """Raises unless the draft's model is canonical, known to the preset and of that many weights."""
        ...

    def check_weights(self, preset: str, model: bytes, weights: tuple[int, ...]) -> None:
        """Raises if a ciphertext's message could wrap at these weights; everyone agrees on it."""
        ...

    def get_sizes(self, preset: str, model: bytes) -> BlobSizes: ...

    def get_slots(self, preset: str) -> int:
        """Most patches of one batch."""
        ...

    def build_initial_weights(self, model: bytes, seed: int, start: str = "fresh") -> tuple[int, ...]:
        """Starting weights: `fresh` from the seed alone, `pretrained` fitted in clear to public data."""
        ...

    def run_check_keys(self, preset: str, public_key: Path, relin_keys: Path) -> None:
        """Raises unless both files would be safe to load."""
        ...

    def run_check_batch(self, preset: str, model: bytes, batch: Path, validation: bool) -> None:
        """Raises unless the file is a well-formed encrypted batch of this model."""
        ...

    def run_gradient(self, job: GradientJob) -> int:
        """Writes the canonical bundle, atomically; returns its length."""
        ...

    def run_loss(self, job: LossJob) -> bytes:
        """The canonical loss ciphertext of one validation batch."""
        ...

    def run_verdict(self, job: VerdictJob) -> VerdictLosses:
        """Both models' losses on private pairs. An error's text tells nothing of the pairs."""
        ...

    def compute_loss_hash(self, losses: Sequence[bytes]) -> bytes:
        """What a loss opening commits to, from the loss ciphertexts in the order of the batches."""
        ...


_MODULES = {"fusion-training": "workloads.fusion"}
_loaded: dict[str, Workload] = {}


def get_kinds() -> tuple[str, ...]:
    """The kinds this node can work on, sorted."""
    return tuple(sorted(_MODULES))


def register_workload(workload: Workload) -> None:
    """Use this instance for its kind from now on; for tests, which admit small insecure rings."""
    _loaded[workload.kind] = workload


def get_workload(kind: str) -> Workload:
    """The workload of a kind; its module is imported on first use. Raises WorkloadError if unknown."""
    if kind not in _loaded:
        if kind not in _MODULES:
            raise WorkloadError(f"kind {kind!r} is unknown; known are {', '.join(get_kinds())}")
        module = importlib.import_module(_MODULES[kind])
        _loaded[kind] = cast(Workload, module.WORKLOAD)
    return _loaded[kind]
