"""Encrypted sequence diagnosis as a workload of the chain: a job evaluates one model of a sequence network.

A sequence network is registered as a list of models: that of its frames, which is any diagnosis model, and
those of its recurrent segments (a first one, one in the middle that is used as often as needed, and a last
one if it has fewer steps). Each request is a job of its own, paid on its own; between two jobs it is the
requester that decrypts and encrypts again. An evaluator holds public keys only, and needs no other job.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from he.gate import check_relin_keys, open_source
from he.sequence_plan import compute_segment_seconds
from he.sequence_program import MODEL_MAGIC, SegmentPlan, check_model, check_segment_request
from workloads.diagnosis_inference import DiagnosisInference
from workloads.inference import InferenceJob, ModelFacts
from workloads.refusals import build_report, refusing

KIND = "sequence-diagnosis"

_REMEDIES = {
    "model": "fetch it again, or ask its owner",
    "keys": "make keys for this model",
    "request": "encrypt features and state for this segment of the model",
}


@dataclass(frozen=True, slots=True)
class SequenceInference:
    """Frames by compiled networks, steps by recurrent segments; instances are small and can be pickled."""

    allow_insecure: bool = False
    """Admits models for small rings, for tests alone."""

    @property
    def kind(self) -> str:
        return KIND

    def describe_model(self, model: Path) -> ModelFacts:
        """Raises WorkloadError on bytes that are no well-formed model of frames or of a segment."""
        if not _is_segment(model):
            return replace(self._frames.describe_model(model), kind=KIND)
        plan = self._open(model)
        program = plan.program
        return ModelFacts(
            kind=KIND,
            weights="encrypted" if program.encrypted else "clear",
            keys_bytes=plan.relin_bytes,
            request_bytes=plan.request_bytes,
            result_bytes=plan.result_bytes,
            label=(
                f"{program.steps} recurrent steps of {program.features} features and {program.hidden} hidden"
                f" values, {'continued' if program.continues else 'from the start'},"
                f" {program.params.slots} windows a request, {program.params.name}"
            ),
            seconds=compute_segment_seconds(plan),
        )

    def check_keys(self, model: Path, keys: Path) -> None:
        """Raises WorkloadError."""
        if not _is_segment(model):
            self._frames.check_keys(model, keys)
            return
        plan = self._open(model)
        with refusing("keys", keys, _REMEDIES):
            check_relin_keys(plan.program.params, keys)

    def check_request(self, model: Path, request: Path) -> None:
        """Raises WorkloadError."""
        if not _is_segment(model):
            self._frames.check_request(model, request)
            return
        plan = self._open(model)
        with refusing("request", request, _REMEDIES):
            check_segment_request(plan, model, request)

    def run(self, job: InferenceJob) -> int:
        """Writes the canonical result, whole or not at all; its length. Raises WorkloadError."""
        if not _is_segment(job.model):
            return self._frames.run(job)
        from he.context import PublicContext
        from he.keys import RelinKeys
        from he.sequences import compute_segment

        params = self._open(job.model).program.params
        with refusing("keys", job.keys, _REMEDIES):
            context = PublicContext(params, relin_keys=RelinKeys.decode(params, job.keys))
        with refusing("request", job.request, _REMEDIES):
            report = build_report(job.progress)
            result = compute_segment(context, job.model, job.request, report)
            partial = job.output.with_name(f"{job.output.name}.part")
            partial.write_bytes(result)
            partial.replace(job.output)
        return len(result)

    @property
    def _frames(self) -> DiagnosisInference:
        return DiagnosisInference(self.allow_insecure)

    def _open(self, model: Path) -> SegmentPlan:
        with refusing("model", model, _REMEDIES):
            return check_model(model, allow_insecure=self.allow_insecure)


def _is_segment(model: Path) -> bool:
    """By the first bytes; what they promise is checked by whoever opens the model."""
    with refusing("model", model, _REMEDIES):
        return bytes(open_source(model)[: len(MODEL_MAGIC)]) == MODEL_MAGIC


INFERENCE = SequenceInference()
