"""The port through which a node evaluates encrypted inference, and the registry of its kinds.

As `workloads.base`: plain data crosses it, modules are imported when their kind is first asked for, and no
encryption library is loaded before a check or a run needs it. An evaluator holds public keys only.

Keys: with clear weights, keys are the requester's own and anyone may own the model. With encrypted weights,
model and images are under one key pair, made by the requester or by a custody; whoever holds its secret key
can read the model and every image sent under it, and nobody else can read either.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

from workloads.base import WorkloadError


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's bytes say of it: exact lengths, to refuse anything else before it is fetched."""

    kind: str
    weights: Literal["clear", "encrypted"]
    keys_bytes: int
    request_bytes: int
    result_bytes: int
    label: str
    """For people: parameters, packing and shapes."""
    seconds: float = 0.0
    """Predicted, of one core, for one request; not part of what is registered."""


@dataclass(frozen=True, slots=True)
class InferenceJob:
    """Evaluate a model on a request and write the canonical result to `output`."""

    model: Path
    keys: Path
    request: Path
    output: Path
    progress: Path | None = None
    """Written as the work goes on: `done total`."""


class InferenceWorkload(Protocol):
    """One kind of inference. Methods raise WorkloadError on what they refuse, naming file and remedy.

    Instances are small and can be pickled; methods are for worker processes.
    """

    @property
    def kind(self) -> str: ...

    def describe_model(self, model: Path) -> ModelFacts:
        """Of a model's bytes. Loads no encryption library."""
        ...

    def check_keys(self, model: Path, keys: Path) -> None:
        """Raises unless the keys would be safe to load and are those that the model takes."""
        ...

    def check_request(self, model: Path, request: Path) -> None:
        """Raises unless the request is well formed and for this model."""
        ...

    def run(self, job: InferenceJob) -> int:
        """Writes the canonical result, whole or not at all; its length."""
        ...


_MODULES = {
    "diagnosis": "workloads.diagnosis_inference",
    "sequence-diagnosis": "workloads.sequence_inference",
}
"""By kind; each module has its `INFERENCE`."""
_loaded: dict[str, InferenceWorkload] = {}


def get_inference_kinds() -> tuple[str, ...]:
    """The kinds that this node can evaluate, sorted."""
    return tuple(sorted(_MODULES))


def register_inference(workload: InferenceWorkload) -> None:
    """Use this instance for its kind from now on; for tests, which admit small insecure rings."""
    _loaded[workload.kind] = workload


def get_inference(kind: str) -> InferenceWorkload:
    """The workload of a kind; its module is imported on first use. Raises WorkloadError if unknown."""
    if kind not in _loaded:
        if kind not in _MODULES:
            raise WorkloadError(f"kind {kind!r} is unknown; known are {', '.join(get_inference_kinds())}")
        module = importlib.import_module(_MODULES[kind])
        _loaded[kind] = cast(InferenceWorkload, module.INFERENCE)
    return _loaded[kind]
