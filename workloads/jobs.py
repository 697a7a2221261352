"""What a worker process does for a fusion-training task, from public data alone.

No secret key and no training library is ever loaded here. Contexts stay loaded between jobs, named by
the content of their keys.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from he import gate
from he.context import PublicContext
from he.errors import HeError
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.keys import RelinKeys
from he.params import CkksParams
from workloads.base import GradientJob, KeyFile, LossJob, WorkloadError
from workloads.fusion import FusionSpec

T = TypeVar("T")

MAX_CONTEXTS = 4
"""Loaded at once in one process; a context with its keys takes tens of megabytes."""

_contexts: OrderedDict[tuple[str, bytes], PublicContext] = OrderedDict()


def get_context(params: CkksParams, keys: KeyFile) -> PublicContext:
    """The context with these relinearisation keys, loaded once in this process."""
    name = (params.name, keys.root)
    if name not in _contexts:
        _contexts[name] = PublicContext(params, relin_keys=RelinKeys.decode(params, keys.path))
        while len(_contexts) > MAX_CONTEXTS:
            _contexts.popitem(last=False)
    _contexts.move_to_end(name)
    return _contexts[name]


def _refuse(what: str, call: Callable[[], T]) -> T:
    """The call's result; refusals of the engine and missing files become WorkloadError."""
    try:
        return call()
    except (HeError, OSError) as error:
        raise WorkloadError(f"{what}: {error}") from error


def run_gradient(params: CkksParams, spec: FusionSpec, job: GradientJob) -> int:
    """Writes the canonical gradient bundle to `job.output`, whole or not at all; returns its length."""
    bundle = _refuse(
        "gradient",
        lambda: compute_gradient_bundle(
            get_context(params, job.relin_keys), spec.circuit, job.weights, job.batch
        ),
    )
    partial = job.output.with_name(f"{job.output.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(bundle)
        partial.replace(job.output)
    finally:
        partial.unlink(missing_ok=True)
    return len(bundle)


def run_loss(params: CkksParams, spec: FusionSpec, job: LossJob) -> bytes:
    """The canonical loss ciphertext of one validation batch."""
    return _refuse(
        "loss",
        lambda: compute_loss_ciphertext(
            get_context(params, job.relin_keys), spec.circuit, job.weights, job.batch
        ),
    )


def check_keys(params: CkksParams, public_key: Path, relin_keys: Path) -> None:
    """Raises WorkloadError unless both files pass the byte gate."""
    _refuse("public_key", lambda: gate.check_public_key(params, public_key))
    _refuse("relin_keys", lambda: gate.check_relin_keys(params, relin_keys))


def check_batch(params: CkksParams, spec: FusionSpec, batch: Path, validation: bool) -> None:
    """Raises WorkloadError unless the file passes the byte gate and is of the expected sort."""
    if _refuse("batch", lambda: gate.check_batch(params, spec.circuit, batch)) != validation:
        raise WorkloadError(f"batch: expected a {'validation' if validation else 'training'} batch")
