"""TenSEAL's own MNIST network beside ours, in one run: `python -m benchmarks.tenseal_mnist`.

The network is that of TenSEAL's tutorial 4: convolution 7x7 of stride 3 with 4 channels, square, dense 64,
square, dense 10, with weights in clear. TenSEAL evaluates it as the tutorial does: ring 8192, primes of
31, 6 x 26 and 31 bits (`tenseal`). It takes every scale for 2^26 after rescaling by primes that differ from
that by up to a percent, so that its outputs are good to one or two digits there; with primes of 40 bits,
which take ring 16384, they are good to more (`tenseal-40`). Ours are the compiler's choice of 128-bit
parameters for one image (`single`) and for as many as there are slots (`batch`). Each runs in a process of
its own, all on one thread, and they take turns, so that other load hits all of them; processor time stands
beside the clock, and ratios are of both.

Weights and images are drawn from a printed seed: time does not depend on them, and what must agree is the
outputs of all with the network in clear. The bias of dense 64 is zero, because TenSEAL adds it to the 64
slots of the vector and not to the repetition of them that its next product reads, and so computes another
function wherever it is not (seen in 0.3.18; outputs change by up to .02 of 1.2 here).

TenSEAL is not a dependency: `pip install tenseal`.
"""

import argparse
import importlib
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.timing import Timing, get_machine, measure
from he.network import INPUT, Convolution, Dense, Network, Polynomial, decode, encode, evaluate

Floats = NDArray[np.float64]

SEED = 20260101
DOCUMENT = Path(__file__).parent.parent / "docs" / "TENSEAL.md"
PAGE = """# Beside TenSEAL

TenSEAL's own MNIST network (convolution 7x7 of stride 3 with 4 channels, square, dense 64, square, dense 10),
weights in clear, evaluated by TenSEAL 0.3.18 and by this project in one run, all at 128 bits of security and
on one thread. Made by `python -m benchmarks.tenseal_mnist --write` on {machine}. Seconds are of
processor time, by the clock in brackets.

{table}

`tenseal` is the tutorial with its own parameters, whose outputs are good to one or two digits; `tenseal-40`
has primes of 40 bits and three digits and more. `single` evaluates one image, `batch` as many as there are
slots. The error is the largest, beside the largest output. The module's head says how it is measured.
"""
TENSEAL = {
    "tenseal": (8192, (31, 26, 26, 26, 26, 26, 26, 31)),
    "tenseal-40": (16384, (60, 40, 40, 40, 40, 40, 40, 60)),
}
"""Ring and sizes of primes; the second size is the scale's."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One way to evaluate the network."""

    name: str
    parameters: str
    modulus_bits: int
    images: int
    keys_bytes: int
    request_bytes: int
    result_bytes: int
    encrypt: Timing
    evaluate: Timing
    decrypt: Timing
    error: float
    """Largest distance of an output to the network's in clear."""
    largest: float
    """Largest output in clear."""


def build_network(seed: int = SEED) -> Network:
    """Weights of about the sizes that torch begins with; outputs stay below 16, where TenSEAL's wrap."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Floats:
        bound = 1.0 / np.sqrt(np.prod(shape[1:]))
        return rng.uniform(-bound, bound, size=shape)

    def draw_bias(outputs: int, inputs: int) -> Floats:
        return np.asarray(rng.uniform(-1.0, 1.0, size=outputs) / np.sqrt(inputs))

    square = (0.0, 0.0, 1.0)
    return Network(
        (1, 28, 28),
        (
            Convolution("conv", INPUT, 3.0 * draw(4, 1, 7, 7), draw_bias(4, 49), 3, 0),
            Polynomial("square1", "conv", square, (-4.0, 4.0)),
            Dense("dense1", "square1", 1.5 * draw(64, 256), np.zeros(64)),
            Polynomial("square2", "dense1", square, (-4.0, 4.0)),
            Dense("dense2", "square2", 1.5 * draw(10, 64), draw_bias(10, 64)),
        ),
    )


def build_images(count: int, seed: int = SEED) -> Floats:
    """(count, 1, 28, 28) in [0, 1]: smooth strokes, about as bright as digits are."""
    rng = np.random.default_rng(seed + 1)
    noise = ndimage.gaussian_filter(rng.normal(size=(count, 28, 28)), (0, 1.5, 1.5))
    return np.asarray(np.clip(3.0 * noise / noise.std(), 0.0, 1.0)[:, None] * 0.8)


class Evaluation(Protocol):
    """What a process keeps of one way to evaluate."""

    def measure(self, repetitions: int) -> Figures: ...


# --- TenSEAL ----------------------------------------------------------------------------------


class _Vector(Protocol):
    def conv2d_im2col(self, kernel: list[list[float]], windows: int) -> "_Vector": ...
    def mm(self, weights: list[list[float]]) -> "_Vector": ...
    def square_(self) -> "_Vector": ...
    def decrypt(self) -> list[float]: ...
    def serialize(self) -> bytes: ...
    def __add__(self, other: float | list[float]) -> "_Vector": ...


class TenSeal:
    """As in the tutorial."""

    def __init__(self, network: Network, images: Floats, way: str) -> None:
        self.way = way
        self.ring, self.bits = TENSEAL[way]
        tenseal = importlib.import_module("tenseal")
        self.library = tenseal
        self.network, self.images = network, images
        context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, self.ring, coeff_mod_bit_sizes=list(self.bits), n_threads=1
        )
        context.global_scale = 2.0 ** self.bits[1]
        context.generate_galois_keys()
        self.context = context

    def encrypt(self) -> tuple[_Vector, int]:
        image = self.images[0, 0].tolist()
        return cast(tuple[_Vector, int], self.library.im2col_encoding(self.context, image, 7, 7, 3))

    def evaluate(self, encrypted: _Vector, windows: int) -> _Vector:
        layers = {layer.name: layer for layer in self.network.layers}
        conv, first, second = layers["conv"], layers["dense1"], layers["dense2"]
        assert isinstance(conv, Convolution)
        assert isinstance(first, Dense)
        assert isinstance(second, Dense)
        channels = [
            encrypted.conv2d_im2col(kernel.tolist(), windows) + float(bias)
            for kernel, bias in zip(conv.weights[:, 0], conv.bias, strict=True)
        ]
        x = cast(_Vector, self.library.CKKSVector.pack_vectors(channels))
        x.square_()
        x = x.mm(first.weights.T.tolist()) + first.bias.tolist()
        x.square_()
        result: _Vector = x.mm(second.weights.T.tolist()) + second.bias.tolist()
        return result

    def measure(self, repetitions: int) -> Figures:
        encrypting, (encrypted, windows) = measure(self.encrypt, repetitions)
        evaluating, result = measure(lambda: self.evaluate(encrypted, windows), repetitions)
        decrypting, values = measure(result.decrypt, repetitions)
        public = self.context.serialize(save_public_key=False, save_secret_key=False)
        expected = evaluate(self.network, self.images[:1])
        return Figures(
            name=self.way,
            parameters=f"{self.ring}, {'.'.join(map(str, self.bits))}",
            modulus_bits=sum(self.bits),
            images=1,
            keys_bytes=len(public),
            request_bytes=len(encrypted.serialize()),
            result_bytes=len(result.serialize()),
            encrypt=encrypting,
            evaluate=evaluating,
            decrypt=decrypting,
            error=float(np.abs(np.array(values) - expected[0]).max()),
            largest=float(np.abs(expected).max()),
        )


# --- ours -------------------------------------------------------------------------------------


class Ours:
    """The requester and the evaluator; the evaluator's context has no secret key."""

    def __init__(self, network: Network, images: Floats, packing: str) -> None:
        from he.compiler import compile_network
        from he.diagnosis import Evaluator, encode_keys, encode_model, make_keys

        self.network = network
        self.program = compile_network(
            network, packing="single" if packing == "single" else "batch", sample=images[:64]
        )
        self.images = images[: self.program.images]
        self.private = make_keys(self.program)
        self.evaluator = Evaluator(self.program, encode_model(self.program), encode_keys(self.private))

    def measure(self, repetitions: int) -> Figures:
        from he.diagnosis import decrypt_result, encrypt_images

        program, images = self.program, self.images
        encrypting, request = measure(lambda: encrypt_images(self.private, program, images), repetitions)
        evaluating, result = measure(lambda: self.evaluator.compute(request), repetitions)
        decrypting, values = measure(
            lambda: decrypt_result(self.private, program, result, len(images)), repetitions
        )
        expected = evaluate(self.network, images)
        return Figures(
            name=program.options.packing,
            parameters=program.params.name,
            modulus_bits=sum(program.params.prime_bits),
            images=len(images),
            keys_bytes=program.sizes.keys,
            request_bytes=program.sizes.request,
            result_bytes=program.sizes.result,
            encrypt=encrypting,
            evaluate=evaluating,
            decrypt=decrypting,
            error=float(np.abs(values - expected).max()),
            largest=float(np.abs(expected).max()),
        )


# --- processes that take turns ----------------------------------------------------------------

_held: list[Evaluation] = []


def _prepare(way: str, network: bytes, images: Floats) -> None:
    """In the process of one way."""
    built = decode(network)
    _held.append(TenSeal(built, images, way) if way in TENSEAL else Ours(built, images, way))


def _measure(repetitions: int) -> Figures:
    return _held[0].measure(repetitions)


def _keep_least(first: Figures | None, second: Figures) -> Figures:
    """The least of each time."""
    if first is None:
        return second

    def least(get: Callable[[Figures], Timing]) -> Timing:
        a, b = get(first), get(second)
        return Timing(min(a.wall_s, b.wall_s), min(a.cpu_s, b.cpu_s))

    return Figures(
        **{
            **{name: getattr(second, name) for name in second.__slots__},
            "encrypt": least(lambda item: item.encrypt),
            "evaluate": least(lambda item: item.evaluate),
            "decrypt": least(lambda item: item.decrypt),
            "error": max(first.error, second.error),
        }
    )


def run(rounds: int, ways: tuple[str, ...], count: int) -> list[Figures]:
    """Each way in a process of its own, in turns."""
    network, images = build_network(), build_images(count)
    spawn = multiprocessing.get_context("spawn")
    pools = {way: ProcessPoolExecutor(1, spawn) for way in ways}
    figures: dict[str, Figures] = {}
    try:
        for way, pool in pools.items():
            pool.submit(_prepare, way, encode(network), images).result()
        for _ in range(rounds):
            for way, pool in pools.items():
                figures[way] = _keep_least(figures.get(way), pool.submit(_measure, 1).result())
    finally:
        for pool in pools.values():
            pool.shutdown()
    return list(figures.values())


def describe(figures: list[Figures]) -> list[str]:
    """A table for people, and what it shows."""
    lines = ["| | parameters | bits | images | encrypt s | evaluate s | decrypt s | ms an image | error |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for item in figures:
        lines.append(
            f"| {item.name} | {item.parameters} | {item.modulus_bits} | {item.images}"
            f" | {_show(item.encrypt)} | {_show(item.evaluate)} | {_show(item.decrypt)}"
            f" | {1e3 * item.evaluate.cpu_s / item.images:.3g} | {item.error:.1e} of {item.largest:.2g} |"
        )
    reference = next((item for item in figures if item.name == "tenseal"), None)
    for item in figures:
        if reference is not None and item is not reference:
            cpu = reference.evaluate.cpu_s / item.evaluate.cpu_s * item.images
            wall = reference.evaluate.wall_s / item.evaluate.wall_s * item.images
            lines.append(
                f"\n{item.name}: {cpu:,.2f} times as fast an image as {reference.name} by processor time,"
                f" {wall:,.2f} by the clock"
            )
    return lines


def _show(timing: Timing) -> str:
    return f"{timing.cpu_s:.2f} ({timing.wall_s:.2f})"


def write_page(machine: str, lines: list[str]) -> None:
    """Renews docs/TENSEAL.md."""
    DOCUMENT.write_text(PAGE.format(machine=machine, table="\n".join(lines)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--images", type=int, default=8192, help="images at hand; batch packing takes its slots"
    )
    parser.add_argument("--ways", nargs="+", default=["tenseal", "tenseal-40", "single", "batch"])
    parser.add_argument("--output", type=Path, help="JSON of all figures")
    parser.add_argument("--write", action="store_true", help="renew docs/TENSEAL.md")
    arguments = parser.parse_args()
    machine = get_machine()
    print(f"seed {SEED}; {machine}; seconds of processor time (and by the clock)", flush=True)
    figures = run(arguments.rounds, tuple(arguments.ways), arguments.images)
    lines = describe(figures)
    print("\n".join(lines))
    if arguments.write:
        write_page(machine, lines)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(item) for item in figures], indent=1))


if __name__ == "__main__":
    main()
