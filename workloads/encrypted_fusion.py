"""The peer's side of encrypted fusion: what a request must weigh, and its evaluation in a worker process.

Importing this module loads no encryption library; a peer never holds a key that decrypts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from he.errors import HeError
from he.forward import ForwardPlan, build_forward_plan, build_tile_spec
from he.params import CkksParams, get_params
from workloads.base import WorkloadError
from workloads.fusion import KIND, FusionSpec

PRESET = "ckks-8192-60x3"
"""128 bits of security, two data primes; 4096 slots, one for each tile."""


@dataclass(frozen=True, slots=True)
class FusionSizes:
    """Exact lengths in bytes."""

    request: int
    """Relinearisation keys, then encrypted tiles."""
    result: int


@dataclass(frozen=True, slots=True)
class FuseJob:
    """Evaluate one request with a model's weights and write the encrypted result to `output`."""

    model: bytes
    weights: tuple[int, ...]
    tile: int
    request: Path
    output: Path
    progress: Path
    """Written as the work goes on: `done total`."""


@dataclass(frozen=True, slots=True)
class EncryptedFusion:
    """Encrypted fusion under one preset; instances are small and can be pickled."""

    preset: str = PRESET
    allow_insecure: bool = False
    """Admits presets of small rings, for tests alone."""

    @property
    def params(self) -> CkksParams:
        """Raises WorkloadError if the preset is unknown or not admitted."""
        try:
            return get_params(self.preset, allow_insecure=self.allow_insecure)
        except HeError as error:
            raise WorkloadError(f"preset: {error}") from error

    def build_plan(self, model: bytes, weights: tuple[int, ...], tile: int) -> ForwardPlan:
        """The plan of a model on tiles of `tile` x `tile` results.

        Raises WorkloadError naming what does not fit.
        """
        spec = FusionSpec.decode(model)
        try:
            return build_forward_plan(self.params, build_tile_spec(spec.circuit, tile), weights)
        except HeError as error:
            raise WorkloadError(f"encrypted fusion: {error}") from error

    def get_sizes(self, kind: str, model: bytes, weights: tuple[int, ...], tile: int) -> FusionSizes:
        """What a request for this model weighs, to the byte. Raises WorkloadError."""
        if kind != KIND:
            raise WorkloadError(f"kind: only models of {KIND} fuse images, this one is of {kind}")
        plan = self.build_plan(model, weights, tile)
        return FusionSizes(plan.request_bytes, plan.fused_bytes)

    def run(self, job: FuseJob) -> int:
        """Writes the canonical encrypted result, whole or not at all; its length.

        Keys and tiles pass the byte gate before the library sees any of them. Raises WorkloadError on what
        the gate refuses.
        """
        from he.context import PublicContext
        from he.gate import open_source
        from he.inference import compute_fused
        from he.keys import RelinKeys

        plan = self.build_plan(job.model, job.weights, job.tile)
        try:
            view = open_source(job.request)
            keys = RelinKeys.decode(plan.params, view[: plan.relin_bytes])
            context = PublicContext(plan.params, relin_keys=keys)
            fused = compute_fused(context, plan, view[plan.relin_bytes :], _build_report(job.progress))
            partial = job.output.with_name(f"{job.output.name}.part")
            partial.write_bytes(fused)
            partial.replace(job.output)
        except (HeError, OSError) as error:
            raise WorkloadError(f"request: {error}") from error
        return len(fused)


def _build_report(path: Path) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        path.write_text(f"{done} {total}", encoding="ascii")

    return report


def read_progress(path: Path) -> float:
    """The part of the work that is done, from what a worker wrote; 0 before it has written anything."""
    try:
        done, total = path.read_text(encoding="ascii").split()
        return int(done) / int(total)
    except (OSError, ValueError):  # not there yet, or caught in the middle of a write
        return 0.0


ENCRYPTED_FUSION = EncryptedFusion()
