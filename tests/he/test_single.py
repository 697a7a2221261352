"""One image in few ciphertexts: every layer against the network in clear, canonical bytes, refusals."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from he.backend import Engine
from he.context import PrivateContext, PublicContext
from he.counts import Operation
from he.errors import (
    DepthError,
    GateError,
    GateReason,
    MagnitudeError,
    MissingKeyError,
    ParameterError,
)
from he.fold import absorb_activations, fold_batch_norms
from he.formats import HEADER_BYTES
from he.keys import GaloisKeys, RelinKeys
from he.network import (
    INPUT,
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    Floats,
    GlobalAveragePool,
    Layer,
    Network,
    Polynomial,
    Shape,
    evaluate,
)
from he.program import WeightKind
from he.single.blobs import SingleMagic, build_single_header
from he.single.circuit import run_single
from he.single.layout import SinglePlan, plan_single
from he.single.model import SingleModel, encode_model, encrypt_model, load_model
from he.single.planner import Precision
from he.single.requests import decrypt_result, encrypt_image
from he.tensor import CiphertextTensor
from tests.he.synthetic import make_relin_keys, make_residues

RING = 1024
SQUARE = (0.0, 0.0, 1.0)
EXACT = Precision(scale=40, weight=40, output=5)
"""Primes that no secure ring of this size could have, so that errors in slots stand out from noise."""


class Builder:
    """Layers with weights of a seed."""

    def __init__(self, shape: Shape, seed: int = 7) -> None:
        self.shape = shape
        self.rng = np.random.default_rng(seed)
        self.layers: list[Layer] = []

    def draw(self, *shape: int) -> Floats:
        return np.asarray(self.rng.uniform(-1, 1, shape) / np.sqrt(np.prod(shape[1:])))

    def conv(
        self, name: str, source: str, inputs: int, outputs: int, side: int, stride: int = 1, pad: int = 0
    ) -> None:
        weights = 1.5 * self.draw(outputs, inputs, side, side)
        self.layers.append(Convolution(name, source, weights, self.draw(outputs) / 2, stride, pad))

    def dense(self, name: str, source: str, inputs: int, outputs: int) -> None:
        self.layers.append(Dense(name, source, self.draw(outputs, inputs), self.draw(outputs) / 2))

    def norm(self, name: str, source: str, channels: int) -> None:
        scale = self.rng.uniform(0.5, 1.0, channels)
        self.layers.append(BatchNorm(name, source, scale, self.draw(channels) / 2))

    def build(self) -> Network:
        return Network(self.shape, tuple(self.layers))


def build_strided() -> Network:
    """TenSEAL's MNIST network on a smaller image."""
    b = Builder((1, 10, 10))
    b.conv("conv", INPUT, 1, 4, 4, stride=3)
    b.layers.append(Polynomial("square1", "conv", SQUARE))
    b.dense("dense1", "square1", 36, 12)
    b.layers.append(Polynomial("square2", "dense1", SQUARE))
    b.dense("dense2", "square2", 12, 3)
    return b.build()


def build_blocks() -> Network:
    """Pools and means, maps in gaps of others, several ciphertexts, norms that were not folded."""
    b = Builder((2, 8, 6))
    b.conv("conv1", INPUT, 2, 5, 3, pad=1)
    b.norm("norm1", "conv1", 5)
    b.layers += [Polynomial("act1", "norm1", (0.1, 0.4, 0.5)), AveragePool("pool1", "act1", 2)]
    b.conv("conv2", "pool1", 5, 9, 3, pad=1)
    b.layers += [Polynomial("act2", "conv2", (0.2, 0.5, -1.0)), GlobalAveragePool("mean", "act2")]
    b.dense("dense", "mean", 9, 2)
    return b.build()


def build_residual() -> Network:
    """Skips past one and past two layers, of equal and of other scales, and a branch that shrinks."""
    b = Builder((1, 8, 8))
    b.conv("conv1", INPUT, 1, 3, 3, pad=1)
    b.layers.append(Polynomial("act1", "conv1", SQUARE))
    b.conv("conv2", "act1", 3, 3, 3, pad=1)
    b.layers += [Add("sum1", "conv2", "act1"), Polynomial("act2", "sum1", (0.0, 1.0, 0.25))]
    b.conv("conv3", "act2", 3, 2, 3, stride=2, pad=1)
    b.conv("short", "act2", 3, 2, 1, stride=2)
    b.layers += [Add("sum2", "conv3", "short"), AveragePool("pool", "sum2", 3)]
    b.layers += [
        Polynomial("act3", "pool", SQUARE),
        Add("twice", "act3", "pool"),
        Add("out", "twice", "twice"),
    ]
    return b.build()


def build_curves() -> Network:
    """Polynomials up to the sixth degree, and a mean that is no dense layer's."""
    b = Builder((1, 4, 4))
    b.layers += [
        Polynomial("line", INPUT, (0.5, -0.5)),
        Polynomial("cube", "line", (0.1, 0.0, 0.3, 0.7)),
        Polynomial("even", "cube", (0.1, 0.0, 0.0, 0.0, 0.3)),
        Polynomial("sixth", "even", (0.1, 0.9, -0.4, 0.2, 0.0, 0.0, 0.5)),
        GlobalAveragePool("mean", "sixth"),
        Polynomial("last", "mean", (0.0, 0.0, -1.0)),
    ]
    return b.build()


NETWORKS = {
    "strided": build_strided,
    "blocks": build_blocks,
    "absorbed": lambda: absorb_activations(fold_batch_norms(build_blocks())),
    "residual": build_residual,
    "curves": build_curves,
}


@dataclass
class World:
    """One program with keys, image and everything that travels."""

    network: Network
    weights: WeightKind
    precision: Precision = EXACT

    @cached_property
    def plan(self) -> SinglePlan:
        return plan_single(
            self.network, weights=self.weights, precision=self.precision, ring=RING, insecure=True
        )

    @cached_property
    def private(self) -> PrivateContext:
        return PrivateContext.generate(self.plan.params, self.plan.rotations)

    @cached_property
    def evaluator(self) -> PublicContext:
        """By way of the keys' bytes, without a public key."""
        relin, galois = self.private.public.relin_keys, self.private.public.galois_keys
        assert relin is not None
        params = self.plan.params
        return PublicContext(
            params,
            relin_keys=RelinKeys.decode(params, relin.encode()),
            galois_keys=galois and GaloisKeys.decode(params, self.plan.rotations, galois.encode()),
        )

    @cached_property
    def blob(self) -> bytes:
        if self.weights == "clear":
            return encode_model(self.plan, self.network)
        return encrypt_model(self.private.public, self.plan, self.network)

    @cached_property
    def model(self) -> SingleModel:
        return load_model(self.evaluator, self.plan, self.blob)

    @cached_property
    def image(self) -> Floats:
        return np.random.default_rng(3).uniform(0, 1, self.network.shape)

    @cached_property
    def request(self) -> bytes:
        return encrypt_image(self.private, self.plan, self.image)

    @cached_property
    def result(self) -> bytes:
        return run_single(self.evaluator, self.plan, self.model, self.request)


@pytest.fixture(scope="module")
def strided() -> World:
    return World(build_strided(), "clear")


@pytest.mark.parametrize(
    ("name", "weights"),
    [(name, "clear") for name in NETWORKS]
    + [("strided", "encrypted")]
    + [pytest.param(name, "encrypted", marks=pytest.mark.slow) for name in NETWORKS if name != "strided"],
)
def test_encrypted_outputs_are_those_in_clear(name: str, weights: WeightKind) -> None:
    world = World(NETWORKS[name](), weights)
    outputs = decrypt_result(world.private, world.plan, world.result)
    expected = evaluate(world.network, world.image[None])[0]
    assert np.abs(outputs - expected).max() < 1e-4
    plan = world.plan
    assert len(world.blob) == plan.model_bytes
    assert len(world.request) == plan.request_bytes
    assert len(world.result) == plan.result_bytes
    assert not world.evaluator.engine.has_secret


def test_keys_are_those_that_are_used(strided: World, monkeypatch: pytest.MonkeyPatch) -> None:
    galois = strided.private.public.galois_keys
    relin = strided.private.public.relin_keys
    assert galois is not None
    assert relin is not None
    assert len(galois.encode()) + len(relin.encode()) == strided.plan.keys_bytes
    used: set[int] = set()
    rotate = Engine.rotate

    def note(engine: Engine, tensor: CiphertextTensor, step: int) -> CiphertextTensor:
        used.add(step)
        return rotate(engine, tensor, step)

    monkeypatch.setattr(Engine, "rotate", note)
    run_single(strided.evaluator, strided.plan, strided.model, strided.request)
    assert used == set(strided.plan.rotations)


# --- canonical --------------------------------------------------------------------------------

GOLDEN = "83ae1e2a65c989645431f55eb3f35e6826128ae107ac71df08b5411ac8ea5bca"
"""SHA-256 of the result's body over synthetic keys, model and image; a change here breaks confirmations."""


def run_golden() -> str:
    """All residues and coefficients are made by integer arithmetic, so that nothing depends on randomness or
    on a transform's rounding."""
    network = Network(
        (1, 4, 4),
        (
            Convolution("conv", INPUT, np.ones((2, 1, 3, 3)), np.ones(2), 1, 1),
            Polynomial("square", "conv", (0.5, 0.25, -1.0)),
            AveragePool("pool", "square", 2),
            Convolution("conv2", "pool", np.ones((2, 2, 1, 1)), np.ones(2)),
            Polynomial("cube", "conv2", (0.5, 0.25, 0.0, 2.0)),
            Dense("dense", "cube", np.ones((3, 8)), np.ones(3)),
        ),
    )
    plan = plan_single(network, precision=Precision(scale=30, weight=20), ring=RING, insecure=True)
    params = plan.params
    parts = make_residues(2, params, 2 * params.levels * len(plan.rotations), len(params.primes))
    relin, galois = make_relin_keys(params), GaloisKeys(params, plan.rotations, parts)
    context = PublicContext(params, relin_keys=relin, galois_keys=galois)
    coefficients = np.arange((plan.model_bytes - HEADER_BYTES) // 8, dtype=np.int64)
    coefficients = coefficients * 2654435761 % 2_000_003 - 1_000_001
    blob = encode_model(plan, network)[:HEADER_BYTES] + coefficients.astype("<i8").tobytes()
    model = load_model(context, plan, blob)
    request = build_single_header(plan, SingleMagic.REQUEST)
    request += make_residues(3, params, 2, plan.input.level)
    return hashlib.sha256(run_single(context, plan, model, request)[HEADER_BYTES:]).hexdigest()


def test_golden_hash() -> None:
    assert run_golden() == GOLDEN


def test_other_processes_get_the_same_bytes(strided: World, tmp_path: Path) -> None:
    script = "from tests.he.test_single import run_golden; print(run_golden())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == GOLDEN
    again = run_single(strided.evaluator, strided.plan, strided.model, strided.request)
    assert again == strided.result


# --- plans ------------------------------------------------------------------------------------


def build_mnist(outputs: int = 10) -> Network:
    """TenSEAL's network at its size."""
    b = Builder((1, 28, 28))
    b.conv("conv", INPUT, 1, 4, 7, stride=3)
    b.layers.append(Polynomial("square1", "conv", SQUARE))
    b.dense("dense1", "square1", 256, 64)
    b.layers.append(Polynomial("square2", "dense1", SQUARE))
    b.dense("dense2", "square2", 64, outputs)
    return b.build()


def test_plan_of_the_mnist_network() -> None:
    plan = plan_single(build_mnist())
    assert (plan.params.ring, plan.levels) == (8192, 5)
    assert sum(plan.params.prime_bits) <= 214
    assert (plan.image_ciphertexts, plan.result_ciphertexts, plan.model_ciphertexts) == (1, 1, 0)
    totals = {
        operation: sum(count for (kind, _), count in plan.counts.items() if kind is operation)
        for operation in (Operation.ROTATE, Operation.VECTOR_2, Operation.RELINEARIZE)
    }
    # 12 for taps of 7x7; 14 and 6 folds for dense 64; 6 and 2 folds for dense 10, whose input repeats itself.
    assert totals == {Operation.ROTATE: 40, Operation.VECTOR_2: 49 + 64 + 16, Operation.RELINEARIZE: 2}
    assert len(plan.rotations) == 11
    assert any("ring 4096" in reason for reason in plan.reasons)
    hidden = plan_single(build_mnist(), weights="encrypted")
    assert hidden.model_ciphertexts == 49 + 64 + 16 + 3


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["clear", "encrypted"])
def test_mnist_network_at_128_bits_is_exact_to_three_digits(weights: WeightKind) -> None:
    network = build_mnist()
    plan = plan_single(network, weights=weights)
    world = World(network, weights)
    world.plan = plan
    expected = evaluate(network, world.image[None])[0]
    outputs = decrypt_result(world.private, plan, world.result)
    assert not plan.params.insecure
    assert np.abs(outputs - expected).max() < 5e-4 * np.abs(expected).max()


def test_plans_do_not_depend_on_weights() -> None:
    one, other = build_mnist(), build_mnist()
    blank = Network(
        other.shape,
        tuple(
            Dense(layer.name, layer.source, np.zeros_like(layer.weights), np.zeros_like(layer.bias))
            if isinstance(layer, Dense)
            else layer
            for layer in other.layers
        ),
    )
    assert plan_single(one).digest == plan_single(blank).digest
    assert plan_single(one).digest != plan_single(build_mnist(outputs=9)).digest


def test_refusals_name_their_reason() -> None:
    deep = Builder((1, 8, 8))
    for index in range(24):
        deep.conv(f"conv{index}", f"act{index - 1}" if index else INPUT, 1, 1, 3, pad=1)
        deep.layers.append(Polynomial(f"act{index}", f"conv{index}", SQUARE))
    with pytest.raises(DepthError, match=r"ring 32768: .* bits"):
        plan_single(deep.build())
    wide = Builder((1, 256, 256))
    wide.conv("conv", INPUT, 1, 1, 1)
    with pytest.raises(DepthError, match="256x256 exceeds 16384 slots"):
        plan_single(wide.build())
    grown = Builder((1, 8, 8))
    grown.conv("conv", INPUT, 1, 1, 3, pad=2)
    with pytest.raises(DepthError, match=r"'conv': .* less padding"):
        plan_single(grown.build())
    unread = Builder((1, 8, 8))
    unread.conv("lost", INPUT, 1, 1, 1)
    unread.conv("conv", INPUT, 1, 1, 1)
    with pytest.raises(ParameterError, match="'lost': nothing reads it"):
        plan_single(unread.build())
    constant = Network((1, 2, 2), (Polynomial("flat", INPUT, (1.0, 0.0)),))
    with pytest.raises(DepthError, match="'flat': a constant"):
        plan_single(constant)
    crossed = Builder((1, 8, 8))
    crossed.conv("half", INPUT, 1, 1, 1, stride=2)
    crossed.layers.append(GlobalAveragePool("mean", "half"))
    crossed.conv("all", INPUT, 1, 1, 8)
    crossed.layers += [AveragePool("pool", "half", 4), Add("sum", "pool", "all")]
    crossed.layers.append(Add("out", "sum", "mean"))
    assert plan_single(crossed.build()).levels >= 1


# --- keys and gate ----------------------------------------------------------------------------


def test_evaluation_needs_exactly_the_keys(strided: World) -> None:
    public, plan = strided.private.public, strided.plan
    run = (plan, strided.model, strided.request)
    with pytest.raises(MissingKeyError, match="relinearisation"):
        run_single(PublicContext(plan.params, galois_keys=public.galois_keys), *run)
    with pytest.raises(MissingKeyError, match="rotations"):
        run_single(PublicContext(plan.params, relin_keys=public.relin_keys), *run)
    other = PrivateContext.generate(plan.params, (1, 2))
    with pytest.raises(MissingKeyError, match="rotations"):
        run_single(other.public, *run)


def test_what_travels_is_gated(strided: World) -> None:
    plan = strided.plan
    for good, check in (
        (strided.request, lambda data: run_single(strided.evaluator, plan, strided.model, data)),
        (strided.blob, lambda data: load_model(strided.evaluator, plan, data)),
        (strided.result, lambda data: decrypt_result(strided.private, plan, data)),
    ):
        high, moved = bytearray(good), bytearray(good)
        high[-8:] = b"\xff" * 7 + b"\x7f"
        moved[45] ^= 1
        for bad, reason in (
            (good[:-8], GateReason.LENGTH),
            (good + bytes(8), GateReason.LENGTH),
            (bytes(moved), GateReason.HEADER),
            (bytes(high), GateReason.RESIDUE),
        ):
            with pytest.raises(GateError) as caught:
                check(bad)
            assert caught.value.reason is reason
    with pytest.raises(GateError) as caught:
        run_single(
            strided.evaluator,
            plan,
            strided.model,
            strided.request[:HEADER_BYTES] + bytes(len(strided.request) - HEADER_BYTES),
        )
    assert caught.value.reason is GateReason.TRANSPARENT


def test_images_and_models_fit_their_plan(strided: World) -> None:
    plan = strided.plan
    with pytest.raises(ParameterError, match="expected shape"):
        encrypt_image(strided.private, plan, np.zeros((1, 10, 9)))
    for value in (np.nan, 17.0):
        with pytest.raises(MagnitudeError):
            encrypt_image(strided.private, plan, np.full((1, 10, 10), value))
    with pytest.raises(ParameterError, match="no linear layer"):
        encode_model(plan, build_curves())
    smaller = build_strided()
    layers = [*smaller.layers[:-1], Dense("dense2", "square2", np.ones((2, 12)), np.ones(2))]
    with pytest.raises(ParameterError, match="other shapes"):
        encode_model(plan, Network(smaller.shape, tuple(layers)))
    with pytest.raises(ParameterError, match="clear weights"):
        encrypt_model(strided.private.public, plan, strided.network)
    other = World(build_strided(), "clear", Precision(scale=39, weight=40))
    model = other.model
    with pytest.raises(ParameterError, match="another plan"):
        run_single(strided.evaluator, plan, model, strided.request)
