"""The `fusion-training` workload: its model specification and what a node asks of it.

Importing this module loads neither encryption nor training libraries; what needs them is imported by
the call that needs it, so that an observer can decode a task and a miner never meets torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgpack

from fusion_model.config import NetworkConfig
from fusion_model.planes import PLANES, SKIPS
from fusion_model.prepared import PairSettings
from fusion_model.targets import TARGETS
from he.errors import HeError
from he.formats import (
    HEADER_BYTES,
    WORD_BYTES,
    build_batch_layout,
    build_bundle_layout,
    build_loss_layout,
)
from he.params import CkksParams, get_params
from he.plan import build_plan, check_magnitudes, get_input_bounds
from he.spec import MAX_CHANNELS, PolynomialSpec
from workloads.base import BlobSizes, GradientJob, LossJob, VerdictJob, VerdictLosses, WorkloadError
from workloads.hashing import compute_loss_digest, compute_loss_hash

KIND = "fusion-training"
SPEC_VERSION = 2
LIMITED_VERSION = 3
"""Of a specification with a `target_limit`."""
MAX_MODEL_BYTES = 1024
MAX_LEVELS = 4095
STARTS = ("fresh", "pretrained")
"""Where a task's weights may start; they are data of its publication."""
MAX_PLANES = 14
"""With the two images the most inputs of a circuit."""
MAX_NAME = 32
"""Characters of a plane's, a skip's or a target's name."""
MAX_CONSTANT_BITS = 40
"""Bits of a validation constant on its grid: more could not be told from the grid in floating point."""


@dataclass(frozen=True, slots=True)
class FusionSpec:
    """The model of a task: the network's shape, its inputs, its loss and its targets (a draft's `model`)."""

    patch: int = 6
    kernels: tuple[int, ...] = (3, 3, 3, 3)
    """Odd side of each channel's first kernel; 1, 3 and 5 beside each other make an Inception block."""
    second: int = 3
    """Odd side of every second kernel."""
    planes: tuple[str, ...] = ()
    """Inputs after the two images: names of `fusion_model.planes.PLANES`."""
    gradient_weight: int = 1
    skip: str = "mean"
    """What the network corrects: a name of `fusion_model.planes.SKIPS`."""
    target: str = "maximum"
    """A name of `fusion_model.targets.TARGETS`."""
    levels: int = 255
    """All that a contributor encrypts lies on grids that follow from 1/levels, so that a custodian can
    tell honest data from a batch crafted to carry the key into what is opened."""
    target_limit: int = 0
    """Contributors cut every |R| off at this many 1/(2 levels), and constants at O^2 times its square; 0: no
    limit but that of images. A committee can't look into batches: what a patch can change follows from it."""

    def __post_init__(self) -> None:
        _check_names(self.planes, self.skip, self.target)
        if not 1 <= self.levels <= MAX_LEVELS:
            raise WorkloadError(f"levels must lie in [1, {MAX_LEVELS}], got {self.levels}")
        if not 0 <= self.target_limit <= 2 * self.levels:
            raise WorkloadError(f"target_limit must lie in [0, {2 * self.levels}], got {self.target_limit}")
        if not 1 <= len(self.kernels) <= MAX_CHANNELS:
            raise WorkloadError(f"kernels: 1 to {MAX_CHANNELS} channels are known, got {len(self.kernels)}")
        try:
            circuit = self.circuit
            _ = self.network
        except (ValueError, HeError) as error:
            raise WorkloadError(f"model: {error}") from error
        largest = get_input_bounds(circuit).constant * 4 * self.levels**2
        if largest > 2**MAX_CONSTANT_BITS:
            raise WorkloadError(
                f"levels: a loss of this patch and gradient_weight at {self.levels} levels has "
                f"{largest.bit_length()} bits, at most {MAX_CONSTANT_BITS}; lower levels"
            )

    @property
    def channels(self) -> int:
        return len(self.kernels)

    @property
    def inputs(self) -> int:
        """The two images and the extra planes."""
        return 2 + len(self.planes)

    @property
    def network(self) -> NetworkConfig:
        """The clear twin's shape."""
        return NetworkConfig(self.patch, self.kernels, self.second, self.inputs, self.gradient_weight)

    @property
    def circuit(self) -> PolynomialSpec:
        """The encrypted circuits' shape; they know neither planes nor skip nor targets."""
        return PolynomialSpec(self.patch, self.kernels, self.second, self.inputs, self.gradient_weight)

    @property
    def settings(self) -> PairSettings:
        """What is computed from a pair before patches are cut."""
        return PairSettings(self.planes, self.skip, self.target, self.levels)

    @property
    def parameters(self) -> int:
        return self.network.parameters

    def encode(self) -> bytes:
        """Canonical bytes: a msgpack array of version and fields."""
        data: bytes = msgpack.packb(
            [
                LIMITED_VERSION if self.target_limit else SPEC_VERSION,
                self.patch,
                list(self.kernels),
                self.second,
                self.gradient_weight,
                self.levels,
                list(self.planes),
                self.skip,
                self.target,
                *((self.target_limit,) if self.target_limit else ()),
            ]
        )
        return data

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The specification of canonical bytes; raises WorkloadError on any others."""
        if len(data) > MAX_MODEL_BYTES:
            raise WorkloadError(f"model: {len(data)} bytes, at most {MAX_MODEL_BYTES}")
        try:
            fields = msgpack.unpackb(data)
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            raise WorkloadError(f"model: not msgpack ({error})") from error
        if not isinstance(fields, list) or not fields:
            raise WorkloadError("model: expected an array of version and fields")
        if type(fields[0]) is not int or fields[0] not in (SPEC_VERSION, LIMITED_VERSION):
            raise WorkloadError(f"model: version {fields[0]!r}, expected {SPEC_VERSION} or {LIMITED_VERSION}")
        count = 9 if fields[0] == SPEC_VERSION else 10
        if len(fields) != count:
            raise WorkloadError(f"model: {len(fields)} entries, expected version and {count - 1} fields")
        _, patch, kernels, second, gradient_weight, levels, planes, skip, target, *limit = fields
        if any(type(number) is not int for number in (patch, second, gradient_weight, levels, *limit)):
            raise WorkloadError(
                "model: patch, second, gradient_weight, levels and target_limit must be integers"
            )
        if not isinstance(kernels, list) or any(type(side) is not int for side in kernels):
            raise WorkloadError("model: kernels must be a list of integers")
        if not isinstance(planes, list) or any(type(name) is not str for name in (*planes, skip, target)):
            raise WorkloadError("model: planes must be a list of names, skip and target must be names")
        spec = cls(
            patch, tuple(kernels), second, tuple(planes), gradient_weight, skip, target, levels, *limit
        )
        if spec.encode() != data:
            raise WorkloadError("model: bytes are not canonical")
        return spec


def _check_names(planes: tuple[str, ...], skip: str, target: str) -> None:
    """Every node knows the same names: a task that asks for another can't be served."""
    if len(planes) > MAX_PLANES:
        raise WorkloadError(f"planes: {len(planes)} given, at most {MAX_PLANES}")
    if len(set(planes)) != len(planes):
        raise WorkloadError(f"planes: {', '.join(planes)} name one twice")
    for field, names, known in (
        ("plane", planes, PLANES),
        ("skip", (skip,), SKIPS),
        ("target", (target,), TARGETS),
    ):
        for name in names:
            if name not in known:
                raise WorkloadError(f"{field} {name[:MAX_NAME]!r} is unknown; known are {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class FusionTraining:
    """`Workload` of encrypted fusion training."""

    allow_insecure: bool = False
    """Admits presets of small rings, for tests alone."""

    @property
    def kind(self) -> str:
        return KIND

    def check_model(self, preset: str, model: bytes, parameters: int, weight_box: int) -> None:
        spec = FusionSpec.decode(model)
        if spec.parameters != parameters:
            raise WorkloadError(f"parameters: the model has {spec.parameters}, got {parameters}")
        if weight_box < 1:
            raise WorkloadError(f"weight_box must be at least 1, got {weight_box}")
        try:
            build_plan(self.get_params(preset), spec.circuit)
        except HeError as error:
            raise WorkloadError(f"model: {error}") from error

    def check_weights(self, preset: str, model: bytes, weights: tuple[int, ...]) -> None:
        spec = FusionSpec.decode(model)
        try:
            plan = build_plan(self.get_params(preset), spec.circuit)
            check_magnitudes(plan, weights, loss=False)
            check_magnitudes(plan, weights, loss=True)
        except HeError as error:
            raise WorkloadError(f"weights: {error}") from error

    def get_params(self, preset: str) -> CkksParams:
        """The CKKS parameters of a preset. Raises WorkloadError if unknown or not admitted."""
        try:
            return get_params(preset, allow_insecure=self.allow_insecure)
        except HeError as error:
            raise WorkloadError(f"preset: {error}") from error

    def get_sizes(self, preset: str, model: bytes) -> BlobSizes:
        params = self.get_params(preset)
        try:
            plan = build_plan(params, FusionSpec.decode(model).circuit)
        except HeError as error:
            raise WorkloadError(f"model: {error}") from error
        key_words = 2 * len(params.primes) * params.ring
        return BlobSizes(
            public_key=HEADER_BYTES + key_words * WORD_BYTES,
            relin_keys=HEADER_BYTES + params.levels * key_words * WORD_BYTES,
            training_batch=build_batch_layout(plan, validation=False).length,
            validation_batch=build_batch_layout(plan, validation=True).length,
            bundle=build_bundle_layout(plan).length,
            loss=build_loss_layout(plan).length,
        )

    def get_slots(self, preset: str) -> int:
        return self.get_params(preset).slots

    def build_initial_weights(self, model: bytes, seed: int, start: str = "fresh") -> tuple[int, ...]:
        spec = FusionSpec.decode(model)
        if start == "fresh":
            from fusion_model.initial import build_initial_weights

            return build_initial_weights(spec.network, seed)
        if start != "pretrained":
            raise WorkloadError(f"start {start!r} is unknown; known are {', '.join(STARTS)}")
        from fusion_model.pretrained import build_pretrained_weights

        return build_pretrained_weights(spec.network, spec.settings, seed)

    def run_check_keys(self, preset: str, public_key: Path, relin_keys: Path) -> None:
        from workloads.jobs import check_keys

        check_keys(self.get_params(preset), public_key, relin_keys)

    def run_check_batch(self, preset: str, model: bytes, batch: Path, validation: bool) -> None:
        from workloads.jobs import check_batch

        check_batch(self.get_params(preset), FusionSpec.decode(model), batch, validation)

    def run_gradient(self, job: GradientJob) -> int:
        from workloads.jobs import run_gradient

        return run_gradient(self.get_params(job.preset), FusionSpec.decode(job.model), job)

    def run_loss(self, job: LossJob) -> bytes:
        from workloads.jobs import run_loss

        return run_loss(self.get_params(job.preset), FusionSpec.decode(job.model), job)

    def run_verdict(self, job: VerdictJob) -> VerdictLosses:
        from workloads.verdict import run_verdict

        return run_verdict(FusionSpec.decode(job.model), job)

    def compute_loss_hash(self, losses: Sequence[bytes]) -> bytes:
        return compute_loss_hash([compute_loss_digest(body) for body in losses])


WORKLOAD = FusionTraining()
