"""A workload for tests of jobs: bytes in, bytes out, at once; it says no more than the protocol asks for.

What it "computes" depends on every byte of model, keys and request, as a real evaluation does.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from workloads.base import WorkloadError
from workloads.inference import InferenceJob, ModelFacts

KEYS = b"keys" * 10
REQUEST = b"request!" * 5
RESULT_BYTES = 32


def build_model(weights: str = "clear", label: str = "echo", seconds: float = 0.1) -> bytes:
    return json.dumps({"weights": weights, "label": label, "seconds": seconds}).encode()


def compute_result(model: bytes, keys: bytes = KEYS, request: bytes = REQUEST) -> bytes:
    return sha256(model + keys + request).digest()


@dataclass(frozen=True)
class EchoInference:
    """`lies`: another result than the right one. `log`: a line for each evaluation."""

    lies: bool = False
    log: Path | None = None

    @property
    def kind(self) -> str:
        return "diagnosis"

    def describe_model(self, model: Path) -> ModelFacts:
        document = json.loads(model.read_bytes())
        return ModelFacts(
            kind=self.kind,
            weights=document["weights"],
            keys_bytes=len(KEYS),
            request_bytes=len(REQUEST),
            result_bytes=RESULT_BYTES,
            label=document["label"],
            seconds=document["seconds"],
        )

    def check_keys(self, model: Path, keys: Path) -> None:
        if not keys.read_bytes().startswith(b"keys"):
            raise WorkloadError("keys: no keys")

    def check_request(self, model: Path, request: Path) -> None:
        if not request.read_bytes().startswith(b"request"):
            raise WorkloadError("request: no request")

    def run(self, job: InferenceJob) -> int:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write("evaluated\n")
        result = compute_result(job.model.read_bytes(), job.keys.read_bytes(), job.request.read_bytes())
        return job.output.write_bytes(bytes([result[0] ^ 1]) + result[1:] if self.lies else result)
