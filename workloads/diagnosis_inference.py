"""Encrypted diagnosis as a workload of the chain: over both packings, with clear or encrypted weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from he.envelope import check_keys, check_model, check_request, open_model
from he.errors import GateError, GateReason, HeError
from he.program import Program
from workloads.base import WorkloadError
from workloads.inference import InferenceJob, ModelFacts

KIND = "diagnosis"

_REMEDIES = {
    "model": "fetch it again, or ask its owner",
    "keys": "make keys for this model",
    "request": "encrypt the images for this model",
}


@dataclass(frozen=True, slots=True)
class DiagnosisInference:
    """Diagnosis by compiled networks; instances are small and can be pickled."""

    allow_insecure: bool = False
    """Admits models for small rings, for tests alone."""

    @property
    def kind(self) -> str:
        return KIND

    def open_model(self, model: Path) -> Program:
        """The program of a model's bytes, by its head. Raises WorkloadError."""
        with _refusing("model", model):
            return open_model(model, allow_insecure=self.allow_insecure)

    def describe_model(self, model: Path) -> ModelFacts:
        """Raises WorkloadError on bytes that are no well-formed model."""
        program = self.open_model(model)
        with _refusing("model", model):
            check_model(program, model)
        return describe_program(program)

    def check_keys(self, model: Path, keys: Path) -> None:
        """Raises WorkloadError."""
        program = self.open_model(model)
        with _refusing("keys", keys):
            check_keys(program, keys)

    def check_request(self, model: Path, request: Path) -> None:
        """Raises WorkloadError."""
        program = self.open_model(model)
        with _refusing("request", request):
            check_request(program, request)

    def run(self, job: InferenceJob) -> int:
        """Writes the canonical result, whole or not at all; its length. Raises WorkloadError."""
        from he.diagnosis import Evaluator, load_keys

        program = self.open_model(job.model)
        with _refusing("keys", job.keys):
            context = load_keys(program, job.keys)
        with _refusing("model", job.model):
            evaluator = Evaluator(program, job.model, context)
        with _refusing("request", job.request):
            report = _ignore if job.progress is None else _build_report(job.progress)
            result = evaluator.compute(job.request, report)
            partial = job.output.with_name(f"{job.output.name}.part")
            partial.write_bytes(result)
            partial.replace(job.output)
        return len(result)


def describe_program(program: Program) -> ModelFacts:
    """What a registration says of a model."""
    shape = "x".join(map(str, program.network.shape))
    return ModelFacts(
        kind=KIND,
        weights=program.options.weights,
        keys_bytes=program.sizes.keys,
        request_bytes=program.sizes.request,
        result_bytes=program.sizes.result,
        label=(
            f"{shape} -> {program.network.outputs}, {program.options.packing} packing,"
            f" {program.images} images a request, {program.params.name}"
        ),
        seconds=program.seconds,
    )


@contextmanager
def _refusing(what: str, path: Path) -> Iterator[None]:
    """Turns refusals into WorkloadError naming file and remedy."""
    try:
        yield
    except GateError as error:
        remedy = f"; {_REMEDIES[what]}" if error.reason in (GateReason.HEADER, GateReason.LENGTH) else ""
        raise WorkloadError(f"{what} {path.name}: {error}{remedy}") from error
    except (HeError, OSError) as error:
        raise WorkloadError(f"{what} {path.name}: {error}") from error


def _ignore(done: int, total: int) -> None:
    """For callers that do not ask how far it is."""


def _build_report(path: Path) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        path.write_text(f"{done} {total}", encoding="ascii")

    return report


INFERENCE = DiagnosisInference()
