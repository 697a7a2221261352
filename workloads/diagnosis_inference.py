"""Encrypted diagnosis as a workload of the chain: over both packings, with clear or encrypted weights."""

from dataclasses import dataclass
from pathlib import Path

from he.envelope import check_keys, check_model, check_request, open_model
from he.program import Program
from workloads.inference import InferenceJob, ModelFacts
from workloads.refusals import build_report, refusing

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
        with refusing("model", model, _REMEDIES):
            return open_model(model, allow_insecure=self.allow_insecure)

    def describe_model(self, model: Path) -> ModelFacts:
        """Raises WorkloadError on bytes that are no well-formed model."""
        program = self.open_model(model)
        with refusing("model", model, _REMEDIES):
            check_model(program, model)
        return describe_program(program)

    def check_keys(self, model: Path, keys: Path) -> None:
        """Raises WorkloadError."""
        program = self.open_model(model)
        with refusing("keys", keys, _REMEDIES):
            check_keys(program, keys)

    def check_request(self, model: Path, request: Path) -> None:
        """Raises WorkloadError."""
        program = self.open_model(model)
        with refusing("request", request, _REMEDIES):
            check_request(program, request)

    def run(self, job: InferenceJob) -> int:
        """Writes the canonical result, whole or not at all; its length. Raises WorkloadError."""
        from he.diagnosis import Evaluator, load_keys

        program = self.open_model(job.model)
        with refusing("keys", job.keys, _REMEDIES):
            context = load_keys(program, job.keys)
        with refusing("model", job.model, _REMEDIES):
            evaluator = Evaluator(program, job.model, context)
        with refusing("request", job.request, _REMEDIES):
            report = build_report(job.progress)
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


INFERENCE = DiagnosisInference()
