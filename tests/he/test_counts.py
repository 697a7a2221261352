"""The operations that are counted beforehand are those that the circuits take."""

from collections import Counter
from collections.abc import Callable

import pytest

from he import residues
from he.backend import Engine
from he.context import PublicContext
from he.counts import Counts, Operation, count_gradient, count_loss
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.params import get_params
from he.plan import build_plan
from he.residues import compute_weighted_sums
from he.spec import PolynomialSpec
from he.tensor import CiphertextTensor
from tests.he.synthetic import make_batch, make_relin_keys

SPECS = [
    PolynomialSpec(patch=6, kernels=(3, 3)),
    PolynomialSpec(patch=7, kernels=(1, 3, 5), second=1, inputs=3),
]


def watch(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Counts what the engine really does from here on."""
    counts: Counts = Counter()
    by_components = {
        "add_inplace": (Operation.ADD_2, Operation.ADD_3),
        "subtract_inplace": (Operation.ADD_2, Operation.ADD_3),
        "multiply_constant": (Operation.CONSTANT_2, Operation.CONSTANT_3),
        "rescale_inplace": (Operation.RESCALE_2, Operation.RESCALE_3),
        "multiply": (Operation.MULTIPLY, Operation.MULTIPLY),
        "square": (Operation.SQUARE, Operation.SQUARE),
        "relinearize_inplace": (Operation.RELINEARIZE, Operation.RELINEARIZE),
        "add_constant_inplace": (Operation.ADD_CONSTANT, Operation.ADD_CONSTANT),
        "save": (Operation.SAVE, Operation.SAVE),
    }
    for name, kinds in by_components.items():
        original = getattr(Engine, name)

        def count(
            self: Engine,
            tensor: CiphertextTensor,
            *rest: object,
            original: Callable[..., object] = original,
            kinds: tuple[Operation, Operation] = kinds,
        ) -> object:
            counts[kinds[tensor.components - 2], tensor.level] += 1
            return original(self, tensor, *rest)

        monkeypatch.setattr(Engine, name, count)
    load = Engine.load

    def count_load(self: Engine, *arguments: object) -> CiphertextTensor:
        tensor = load(self, *arguments)  # type: ignore[arg-type]
        counts[Operation.LOAD, tensor.level] += 1
        return tensor

    def count_sums(data: object, weights: object, prime: int, out: object) -> None:
        outputs, inputs = weights.shape  # type: ignore[attr-defined]
        counts[Operation.WINDOW_CELL, 1] += outputs * inputs
        counts[Operation.WINDOW_INPUT, 1] += inputs
        counts[Operation.WINDOW_OUTPUT, 1] += outputs
        compute_weighted_sums(data, weights, prime, out)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "load", count_load)
    monkeypatch.setattr(residues, "compute_weighted_sums", count_sums)
    return counts


@pytest.mark.parametrize("spec", SPECS, ids=["equal", "branched"])
def test_counts_are_those_of_a_real_run(monkeypatch: pytest.MonkeyPatch, spec: PolynomialSpec) -> None:
    params = get_params("test-4096-60x5", allow_insecure=True)
    context = PublicContext(params, relin_keys=make_relin_keys(params))
    batch = make_batch(params, spec, validation=True)
    weights = [1000 + index for index in range(spec.parameters)]
    plan = build_plan(params, spec)
    assert context.engine.has_relin
    counts = watch(monkeypatch)
    compute_gradient_bundle(context, spec, weights, batch)
    assert +counts == count_gradient(plan)
    counts.clear()
    compute_loss_ciphertext(context, spec, weights, batch)
    assert +counts == count_loss(plan)
