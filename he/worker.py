"""Entry points of worker processes: arguments are names, numbers, bytes and paths.

The library never releases the interpreter's lock, so parallel work runs in processes, one whole
batch each. Workers hold public keys only. Each keeps the contexts of the last few tasks.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from he.context import PublicContext
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.keys import RelinKeys
from he.params import get_params
from he.spec import PolynomialSpec

_MAX_CONTEXTS = 2
_ContextKey = tuple[str, str, int, int]
_contexts: OrderedDict[_ContextKey, PublicContext] = OrderedDict()


def initialise(preset: str, relin_path: str | None = None, *, allow_insecure: bool = False) -> None:
    """Initialiser of a process pool: loads library and keys before the first job needs them."""
    get_params(preset, allow_insecure=allow_insecure)
    if relin_path is not None:
        get_context(preset, relin_path, allow_insecure=allow_insecure)


def get_context(preset: str, relin_path: str, *, allow_insecure: bool = False) -> PublicContext:
    """The public context with the relinearisation keys of this file, gated, from the cache if there.

    Raises: GateError on malformed keys.
    """
    status = os.stat(relin_path)
    key = (preset, relin_path, status.st_size, status.st_mtime_ns)
    context = _contexts.get(key)
    if context is None:
        params = get_params(preset, allow_insecure=allow_insecure)
        context = PublicContext(params, relin_keys=RelinKeys.decode(params, Path(relin_path)))
        _contexts[key] = context
        while len(_contexts) > _MAX_CONTEXTS:
            _contexts.popitem(last=False)
    _contexts.move_to_end(key)
    return context


def run_gradient(
    preset: str,
    spec: bytes,
    relin_path: str,
    batch_path: str,
    weights: Sequence[int],
    out_path: str,
    *,
    allow_insecure: bool = False,
) -> int:
    """Writes the canonical bundle to `out_path`, whole or not at all; its length.

    Raises: what `compute_gradient_bundle` raises.
    """
    context = get_context(preset, relin_path, allow_insecure=allow_insecure)
    bundle = compute_gradient_bundle(context, PolynomialSpec.decode(spec), weights, Path(batch_path))
    part = f"{out_path}.{os.getpid()}.part"
    with open(part, "wb") as file:
        file.write(bundle)
    os.replace(part, out_path)
    return len(bundle)


def run_loss(
    preset: str,
    spec: bytes,
    relin_path: str,
    batch_path: str,
    weights: Sequence[int],
    *,
    allow_insecure: bool = False,
) -> bytes:
    """The canonical loss ciphertext of a validation batch.

    Raises: what `compute_loss_ciphertext` raises.
    """
    context = get_context(preset, relin_path, allow_insecure=allow_insecure)
    return compute_loss_ciphertext(context, PolynomialSpec.decode(spec), weights, Path(batch_path))
