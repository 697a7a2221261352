"""Measures what the circuits cost: `python benchmarks/he_operations.py`.

Milliseconds of processor time for each operation at each level, and the two numbers of
`he.autoplan.DEFAULT_COSTS` that fit them, per level and per level squared; then whole gradients of several
networks beside what the plan predicts. Every time is the least of its repetitions. Set OMP_NUM_THREADS=1,
as workers do: the first layer's matrix products go through the linear algebra library.
"""

import argparse
import json
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np

from he.autoplan import DEFAULT_COSTS, OperationCost
from he.backend import Engine
from he.context import PrivateContext
from he.counts import Operation, count_gradient, count_loss
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.packing import encrypt_batch
from he.params import CkksParams, get_params
from he.plan import Form, build_plan
from he.residues import compute_weighted_sums
from he.spec import PolynomialSpec
from he.tensor import CiphertextTensor, Constant

Measured = dict[Operation, dict[int, float]]

NETWORKS = {
    "4 channels 3x3, 2 inputs": PolynomialSpec(),
    "4 channels 3x3, 3 inputs": PolynomialSpec(inputs=3),
    "6 channels 3x3, 3 inputs": PolynomialSpec(kernels=(3,) * 6, inputs=3),
    "8 channels 3x3, 3 inputs": PolynomialSpec(kernels=(3,) * 8, inputs=3),
    "Inception 2x1 4x3 2x5, 3 inputs, patch 8": PolynomialSpec(8, (1, 1, 3, 3, 3, 3, 5, 5), inputs=3),
    "Inception 2x1 3x3 1x5, 3 inputs, patch 8": PolynomialSpec(8, (1, 1, 3, 3, 3, 5), inputs=3),
}


def measure(call: Callable[[], object], repetitions: int) -> float:
    """Milliseconds of processor time, the least of the repetitions."""
    spent = []
    for _ in range(repetitions):
        started = time.process_time()
        call()
        spent.append(time.process_time() - started)
    return 1e3 * min(spent)


def measure_changes(
    prepare: Callable[[], CiphertextTensor], call: Callable[[CiphertextTensor], object], repetitions: int
) -> float:
    """The same for calls that use their operand up."""
    spent = []
    for _ in range(repetitions):
        operand = prepare()
        started = time.process_time()
        call(operand)
        spent.append(time.process_time() - started)
    return 1e3 * min(spent)


def add_to(engine: Engine, other: CiphertextTensor, total: CiphertextTensor) -> None:
    engine.add_inplace(total, other)


def add_constant_to(engine: Engine, constant: Constant, total: CiphertextTensor) -> None:
    engine.add_constant_inplace(total, constant)


def measure_operations(params: CkksParams, repetitions: int) -> Measured:
    """Milliseconds by operation and level."""
    engine = Engine(params)
    engine.generate_keys()
    generator = np.random.default_rng(0)
    result: Measured = {operation: {} for operation in Operation}
    for level in range(1, params.levels + 1):
        form, unit = Form(level, Fraction(2**10)), Form(level, Fraction(1))
        limits = np.array(params.primes[:level], dtype=np.uint64)[:, None]
        body = generator.integers(0, 2**63, (3, level, params.ring), dtype=np.uint64) % limits
        pair = engine.load(body[:2].copy(), form)
        other = engine.load(body[1:].copy(), form)
        triple = engine.load(body, form, components=3)
        constant, addend = engine.build_constant(12345, unit), engine.build_constant(12345, form)
        calls: dict[Operation, Callable[[], object]] = {
            Operation.LOAD: partial(engine.load, body[:2], form),
            Operation.SAVE: partial(engine.save, pair),
            Operation.MULTIPLY: partial(engine.multiply, pair, other),
            Operation.SQUARE: partial(engine.square, pair),
            Operation.CONSTANT_2: partial(engine.multiply_constant, pair, constant),
            Operation.CONSTANT_3: partial(engine.multiply_constant, triple, constant),
        }
        for operation, call in calls.items():
            result[operation][level] = measure(call, repetitions)
        changes: dict[Operation, tuple[CiphertextTensor, Callable[[CiphertextTensor], object]]] = {
            Operation.ADD_2: (pair, partial(add_to, engine, other)),
            Operation.ADD_3: (triple, partial(add_to, engine, triple)),
            Operation.ADD_CONSTANT: (pair, partial(add_constant_to, engine, addend)),
            Operation.RELINEARIZE: (triple, engine.relinearize_inplace),
        }
        if level > 1:
            changes[Operation.RESCALE_2] = (pair, engine.rescale_inplace)
            changes[Operation.RESCALE_3] = (triple, engine.rescale_inplace)
        for operation, (tensor, change) in changes.items():
            result[operation][level] = measure_changes(partial(engine.copy, tensor), change, repetitions)
    result |= measure_windows(params, repetitions)
    return result


def measure_windows(params: CkksParams, repetitions: int) -> Measured:
    """The three costs of a matrix product on residues, fitted to several shapes."""
    generator, shapes = (
        np.random.default_rng(1),
        [(4, 12), (16, 36), (32, 54), (64, 54), (16, 120), (64, 120)],
    )
    prime, rows, spent = params.primes[0], [], []
    for outputs, inputs in shapes:
        data = generator.integers(0, prime, (inputs, params.ring), dtype=np.uint64)
        weights = generator.integers(-(2**20), 2**20, (outputs, inputs))
        out = np.empty((outputs, params.ring), dtype=np.uint64)
        spent.append(measure(partial(compute_weighted_sums, data, weights, prime, out), repetitions))
        rows.append((outputs * inputs, inputs, outputs))
    fitted, *_ = np.linalg.lstsq(np.array(rows, dtype=float), np.array(spent), rcond=None)
    names = (Operation.WINDOW_CELL, Operation.WINDOW_INPUT, Operation.WINDOW_OUTPUT)
    return {name: {1: max(float(value), 0.0)} for name, value in zip(names, fitted, strict=True)}


def fit(times: dict[int, float]) -> OperationCost:
    """Milliseconds a * level + b * level^2, neither negative."""
    levels = np.array(list(times), dtype=float)
    values = np.array(list(times.values()))
    square = np.linalg.lstsq(np.stack([levels, levels**2], axis=1), values, rcond=None)[0]
    if len(levels) < 3 or square.min() < 0:
        return OperationCost(float(levels @ values / (levels @ levels)), 0.0)
    return OperationCost(float(square[0]), float(square[1]))


def measure_networks(params: CkksParams, repetitions: int) -> dict[str, dict[str, float]]:
    """Seconds of gradient and loss of whole batches, measured and predicted."""
    private = PrivateContext.generate(params)
    public, result = private.public, {}
    for name, spec in NETWORKS.items():
        generator = np.random.default_rng(2)
        inputs = generator.uniform(0, 1, (params.slots, spec.inputs, spec.patch, spec.patch))
        target = generator.uniform(0, 1, (params.slots, spec.output, spec.output))
        batch = encrypt_batch(private, spec, inputs, target, np.ones(params.slots))
        weights = [int(value) for value in generator.normal(0, 2**16, spec.parameters)]
        plan = build_plan(params, spec)
        gradient = partial(compute_gradient_bundle, public, spec, weights, batch, checked=True)
        loss = partial(compute_loss_ciphertext, public, spec, weights, batch, checked=True)
        result[name] = {
            "parameters": spec.parameters,
            "gradient_s": measure(gradient, repetitions) / 1e3,
            "gradient_predicted_s": DEFAULT_COSTS.compute_seconds(count_gradient(plan), params.ring),
            "loss_s": measure(loss, repetitions) / 1e3,
            "loss_predicted_s": DEFAULT_COSTS.compute_seconds(count_loss(plan), params.ring),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--preset", default="ckks-16384-60x6", help="for operations; the more levels the better"
    )
    parser.add_argument("--network-preset", default="ckks-16384-60x5")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--networks-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    operations: Measured = {}
    if not options.networks_only:
        operations = measure_operations(get_params(options.preset), options.repetitions)
    networks = measure_networks(get_params(options.network_preset), max(1, options.repetitions // 7))
    if options.json:
        print(json.dumps({"operations_ms": operations, "networks": networks}, indent=1))
        return
    for operation, times in operations.items():
        cost = fit(times)
        shown = "  ".join(f"{level}: {value:.4g}" for level, value in times.items())
        print(f"{operation:22s} {shown}   -> OperationCost({cost.linear:.4g}, {cost.square:.4g})")
    for name, values in networks.items():
        print(
            f"{name:42s} {values['parameters']:4.0f} weights: gradient {values['gradient_s']:.2f} s "
            f"(predicted {values['gradient_predicted_s']:.2f}), loss {values['loss_s']:.2f} s "
            f"(predicted {values['loss_predicted_s']:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
