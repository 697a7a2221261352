"""Latency of one encrypted image in few ciphertexts: encrypt, evaluate, decrypt, and what travels.

`python -m benchmarks.single_image [mnist blocks2 blocks3 blocks4] [--weights clear encrypted]`. `mnist`
is the network of TenSEAL's tutorial (convolution 7x7 of stride 3 with 4 channels, square, dense 64, square,
dense 10); `blocksN` has N blocks of convolution 3x3, quadratic activation and, up to three times, mean of 2x2
on 28x28, then global means and two outputs. Weights and images are of a seed: time does not depend on them.
Loading a model is done once for any number of images and stands apart.
"""

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks.timing import get_machine, measure
from he.context import PrivateContext, PublicContext
from he.counts import Operation
from he.fold import absorb_activations
from he.network import (
    INPUT,
    AveragePool,
    Convolution,
    Dense,
    Floats,
    GlobalAveragePool,
    Layer,
    Network,
    Polynomial,
    evaluate,
)
from he.program import WEIGHT_KINDS, WeightKind
from he.single.circuit import run_single
from he.single.layout import plan_single
from he.single.model import encode_model, encrypt_model, load_model
from he.single.requests import decrypt_result, encrypt_image

SEED = 20260102
CHANNELS = (4, 8, 8, 8)
SQUARE = (0.0, 0.0, 1.0)


def build_mnist(rng: np.random.Generator) -> Network:
    layers = (
        Convolution("conv", INPUT, _draw(rng, 4, 1, 7, 7), _draw(rng, 4, 49)[:, 0], 3),
        Polynomial("square1", "conv", SQUARE),
        Dense("dense1", "square1", _draw(rng, 64, 256), _draw(rng, 64, 256)[:, 0]),
        Polynomial("square2", "dense1", SQUARE),
        Dense("dense2", "square2", _draw(rng, 10, 64), _draw(rng, 10, 64)[:, 0]),
    )
    return Network((1, 28, 28), layers)


def build_blocks(rng: np.random.Generator, blocks: int) -> Network:
    layers: list[Layer] = []
    source, inputs = INPUT, 1
    for index, outputs in enumerate(CHANNELS[:blocks]):
        bias = _draw(rng, outputs, 9)[:, 0]
        layers.append(
            Convolution(f"conv{index}", source, 1.5 * _draw(rng, outputs, inputs, 3, 3), bias, 1, 1)
        )
        source, inputs = f"act{index}", outputs
        layers.append(Polynomial(source, f"conv{index}", (0.3, 0.5, 0.2)))
        if index < 3:
            layers.append(AveragePool(f"pool{index}", source, 2))
            source = f"pool{index}"
    layers += [GlobalAveragePool("mean", source), Dense("dense", "mean", _draw(rng, 2, inputs), np.zeros(2))]
    return absorb_activations(Network((1, 28, 28), tuple(layers)))


def _draw(rng: np.random.Generator, *shape: int) -> Floats:
    return np.asarray(rng.uniform(-1, 1, shape) / np.sqrt(np.prod(shape[1:])))


NETWORKS: dict[str, Callable[[np.random.Generator], Network]] = {
    "mnist": build_mnist,
    "blocks2": lambda rng: build_blocks(rng, 2),
    "blocks3": lambda rng: build_blocks(rng, 3),
    "blocks4": lambda rng: build_blocks(rng, 4),
}


def run(name: str, weights: WeightKind, repetitions: int) -> None:
    """Prints one network's figures."""
    rng = np.random.default_rng(SEED)
    network = NETWORKS[name](rng)
    plan = plan_single(network, weights=weights)
    totals = {
        operation.value: sum(count for (kind, _), count in plan.counts.items() if kind is operation)
        for operation in (Operation.ROTATE, Operation.RELINEARIZE, Operation.VECTOR_2, Operation.MULTIPLY)
    }
    print(f"\n{name}, {weights} weights: {plan.params.name}, {sum(plan.params.prime_bits)} bits")
    print("  " + ", ".join(f"{count} {kind}" for kind, count in totals.items() if count))
    private = PrivateContext.generate(plan.params, plan.rotations)
    public = private.public
    evaluator = PublicContext(plan.params, relin_keys=public.relin_keys, galois_keys=public.galois_keys)
    if weights == "clear":
        blob = encode_model(plan, network)
    else:
        blob = encrypt_model(public, plan, network)
    print(
        f"  MB: request {plan.request_bytes / 1e6:.2f}, result {plan.result_bytes / 1e6:.2f},"
        f" model {plan.model_bytes / 1e6:.1f}, keys {plan.keys_bytes / 1e6:.1f}"
    )
    loading, model = measure(lambda: load_model(evaluator, plan, blob), 1)
    image = rng.uniform(0, 1, network.shape)
    # What is made once for a key is made before the clock starts.
    decrypt_result(private, plan, run_single(evaluator, plan, model, encrypt_image(private, plan, image)))
    encrypting, request = measure(lambda: encrypt_image(private, plan, image), repetitions)
    evaluating, result = measure(lambda: run_single(evaluator, plan, model, request), repetitions)
    decrypting, outputs = measure(lambda: decrypt_result(private, plan, result), repetitions)
    expected = evaluate(network, image[None])[0]
    for phase, timing in (
        ("load model", loading),
        ("encrypt", encrypting),
        ("evaluate", evaluating),
        ("decrypt", decrypting),
    ):
        print(f"  {phase:<10} {1e3 * timing.cpu_s:8.1f} ms of one core, {1e3 * timing.wall_s:8.1f} ms in all")
    print(
        f"  largest error {np.abs(outputs - expected).max():.2g}, largest output {np.abs(expected).max():.2g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--weights", nargs="+", default=list(WEIGHT_KINDS), choices=WEIGHT_KINDS)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{get_machine()}; seed {SEED}")
    for name in arguments.networks:
        for weights in arguments.weights:
            run(name, weights, arguments.repetitions)


if __name__ == "__main__":
    main()
