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
from he.errors import HeError
from he.formats import (
    HEADER_BYTES,
    WORD_BYTES,
    build_batch_layout,
    build_bundle_layout,
    build_loss_layout,
)
from he.params import CkksParams, get_params
from he.plan import build_plan, check_magnitudes
from he.spec import MAX_CHANNELS, PolynomialSpec
from workloads.base import BlobSizes, GradientJob, LossJob, VerdictJob, VerdictLosses, WorkloadError
from workloads.hashing import compute_loss_digest, compute_loss_hash

KIND = "fusion-training"
SPEC_VERSION = 1
MAX_MODEL_BYTES = 256
MAX_LEVELS = 4095
TARGETS = ("maximum",)
"""Known targets: `maximum` is the brighter pixel and the stronger signed gradient."""


@dataclass(frozen=True, slots=True)
class FusionSpec:
    """The model of a task: the network's shape, its loss and its targets (a draft's `model`)."""

    patch: int = 6
    channels: int = 4
    kernel: int = 3
    inputs: int = 2
    gradient_weight: int = 1
    target: str = "maximum"
    levels: int = 255
    """Grey values are multiples of 1/levels: with the targets a function of the pixels, a custodian
    can tell honest data from a batch crafted to carry the key into what is opened."""

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise WorkloadError(f"target {self.target!r} is unknown; known are {', '.join(TARGETS)}")
        if not 1 <= self.levels <= MAX_LEVELS:
            raise WorkloadError(f"levels must lie in [1, {MAX_LEVELS}], got {self.levels}")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise WorkloadError(f"model: channels must lie in [1, {MAX_CHANNELS}], got {self.channels}")
        if self.inputs != 2:
            raise WorkloadError(f"inputs: pairs have 2 images, got {self.inputs}")
        try:
            _ = (self.network, self.circuit)
        except (ValueError, HeError) as error:
            raise WorkloadError(f"model: {error}") from error

    @property
    def network(self) -> NetworkConfig:
        """The clear twin's shape."""
        kernels = (self.kernel,) * self.channels
        return NetworkConfig(self.patch, kernels, self.kernel, self.inputs, self.gradient_weight)

    @property
    def circuit(self) -> PolynomialSpec:
        """The encrypted circuits' shape."""
        kernels = (self.kernel,) * self.channels
        return PolynomialSpec(self.patch, kernels, self.kernel, self.inputs, self.gradient_weight)

    @property
    def parameters(self) -> int:
        return self.network.parameters

    def encode(self) -> bytes:
        """Canonical bytes: a msgpack array of version and fields."""
        data: bytes = msgpack.packb(
            [
                SPEC_VERSION,
                self.patch,
                self.channels,
                self.kernel,
                self.inputs,
                self.gradient_weight,
                self.levels,
                self.target,
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
        if not isinstance(fields, list) or len(fields) != 8:
            raise WorkloadError("model: expected an array of version and seven fields")
        version, *numbers, target = fields
        if version != SPEC_VERSION:
            raise WorkloadError(f"model: version {version!r}, expected {SPEC_VERSION}")
        if any(type(number) is not int for number in numbers) or not isinstance(target, str):
            raise WorkloadError("model: expected six integers and a target name")
        patch, channels, kernel, inputs, gradient_weight, levels = numbers
        spec = cls(patch, channels, kernel, inputs, gradient_weight, target, levels)
        if spec.encode() != data:
            raise WorkloadError("model: bytes are not canonical")
        return spec


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

    def build_initial_weights(self, model: bytes, seed: int) -> tuple[int, ...]:
        from fusion_model.initial import build_initial_weights

        return build_initial_weights(FusionSpec.decode(model).network, seed)

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
