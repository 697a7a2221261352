"""Encrypted fusion: right to a fraction of a grey level, the same bytes from all, gated on both sides."""

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest

from he.context import PrivateContext, PublicContext
from he.errors import DepthError, GateError, GateReason, MagnitudeError, MissingKeyError, ParameterError
from he.formats import HEADER_BYTES, Magic, build_header
from he.forward import (
    FUSED_MAGIC,
    MIN_DATA_BITS,
    TILES_MAGIC,
    ForwardPlan,
    build_forward_plan,
    build_tile_spec,
    compute_output_bound,
)
from he.inference import check_fused, check_tiles, compute_fused, decrypt_fused, encrypt_tiles
from he.keys import RelinKeys
from he.params import get_params
from he.spec import PolynomialSpec
from tests.he.reference import compute_forward, make_weights
from tests.he.synthetic import make_relin_keys, make_residues

GREY = 1 / 255
SMALL = get_params("test-2048-60x3", allow_insecure=True)
REAL = get_params("ckks-8192-60x3")
DEFAULT = PolynomialSpec()
INCEPTION = PolynomialSpec(patch=8, kernels=(1, 1, 3, 3, 3, 3, 5, 5), second=3, inputs=3)
GOLDEN = {
    "test-2048-60x3": "3767d3d4ea4dd5d807ac767cf5182210b0b8a9c2bebf62b369b3e229356872a2",
    "ckks-8192-60x3": "381ecb4ec329a45cd7b96383b7d34dcbbdeadcef049f56d9886284c879ccfb16",
}
"""SHA-256 of the result over synthetic residues; a change here makes peers of two versions disagree."""


@dataclass
class Scene:
    """A model on tiles of one size, with a requester's keys and request."""

    plan: ForwardPlan
    count: int

    @cached_property
    def private(self) -> PrivateContext:
        return PrivateContext.generate(self.plan.params)

    @cached_property
    def tiles(self) -> np.ndarray:
        spec = self.plan.spec
        tiles = np.random.default_rng(2).uniform(size=(self.count, spec.inputs, spec.patch, spec.patch))
        tiles[:, 2:] = 2 * tiles[:, 2:] - 1
        tiles[0] = 0.0
        return tiles

    @cached_property
    def request(self) -> bytes:
        return encrypt_tiles(self.private, self.plan, self.tiles)

    def make_peer(self) -> PublicContext:
        """A peer that has the keys by way of their bytes."""
        keys = self.private.public.relin_keys
        assert keys is not None
        return PublicContext(self.plan.params, relin_keys=RelinKeys.decode(self.plan.params, keys.encode()))

    @cached_property
    def result(self) -> bytes:
        return compute_fused(self.make_peer(), self.plan, self.request)

    def measure(self) -> float:
        """Largest error of F', grey levels."""
        plan = self.plan
        expected = compute_forward(plan.params, plan.spec, plan.weights, self.tiles)[1]
        got = decrypt_fused(self.private, plan, self.result)
        assert got.shape == (plan.params.slots, plan.spec.output, plan.spec.output)
        error = float(np.abs(got[: self.count] - expected).max() / GREY)
        print(f"{plan.spec}: data scale 2^{plan.data_bits}, error {error:.4f} grey levels")
        return error


def build_scene(params, spec: PolynomialSpec, tile: int, count: int | None = None) -> Scene:
    tiled = build_tile_spec(spec, tile)
    return Scene(build_forward_plan(params, tiled, make_weights(params, tiled)), count or params.slots)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Fewer tiles than slots."""
    return build_scene(SMALL, DEFAULT, 2, 700)


@pytest.mark.parametrize(("spec", "tile"), [(DEFAULT, 1), (DEFAULT, 4), (INCEPTION, 2)])
def test_the_result_is_the_clear_one(spec: PolynomialSpec, tile: int) -> None:
    made = build_scene(SMALL, spec, tile)
    assert len(made.request) == made.plan.tiles_bytes
    assert len(made.result) == made.plan.fused_bytes
    assert made.measure() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "tile"), [(DEFAULT, 4), (INCEPTION, 4)])
def test_the_result_is_the_clear_one_at_128_bits(spec: PolynomialSpec, tile: int) -> None:
    made = build_scene(REAL, spec, tile)
    assert made.measure() < 0.5


def test_black_stays_black(scene: Scene) -> None:
    black = decrypt_fused(scene.private, scene.plan, scene.result)[0]
    assert np.abs(black).max() < 0.05 * GREY


def test_two_peers_come_to_the_same_bytes(scene: Scene) -> None:
    """In another context and in another process."""
    assert compute_fused(scene.make_peer(), scene.plan, scene.request) == scene.result
    keys = scene.private.public.relin_keys
    assert keys is not None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        job = pool.submit(run_elsewhere, scene.plan.spec, scene.plan.weights, keys.encode(), scene.request)
        assert job.result() == scene.result


def run_elsewhere(spec: PolynomialSpec, weights: tuple[int, ...], keys: bytes, request: bytes) -> bytes:
    plan = build_forward_plan(SMALL, spec, weights)
    context = PublicContext(SMALL, relin_keys=RelinKeys.decode(SMALL, keys))
    return compute_fused(context, plan, request)


def make_synthetic_request(plan: ForwardPlan) -> bytes:
    bodies = range(len(plan.get_tile_bodies()))
    residues = [make_residues(100 + index, plan.params, 2, plan.input.level) for index in bodies]
    return plan.build_header(TILES_MAGIC) + b"".join(residues)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_golden_hashes(name: str) -> None:
    """Bit for bit what every version before this one computed, from integer arithmetic alone."""
    params = get_params(name, allow_insecure=True)
    spec = build_tile_spec(replace(DEFAULT, kernels=(3, 1)), 2)
    values = [(index * 2654435761 % 2**32) % 400_001 - 200_000 for index in range(spec.parameters)]
    values[5] = 0
    plan = build_forward_plan(params, spec, tuple(values))
    context = PublicContext(params, relin_keys=make_relin_keys(params))
    result = compute_fused(context, plan, make_synthetic_request(plan))
    check_fused(plan, result)
    assert hashlib.sha256(result).hexdigest() == GOLDEN[name]


def test_progress_is_reported(scene: Scene) -> None:
    rows: list[tuple[int, int]] = []
    compute_fused(
        scene.make_peer(), scene.plan, scene.request, lambda done, total: rows.append((done, total))
    )
    assert rows == [(row + 1, 4) for row in range(4)]


def test_a_peer_needs_no_key_that_decrypts(scene: Scene) -> None:
    peer = scene.make_peer()
    compute_fused(peer, scene.plan, scene.request)
    assert not peer.engine.has_secret
    with pytest.raises(MissingKeyError):
        compute_fused(PublicContext(SMALL), scene.plan, scene.request)


# --- what is refused --------------------------------------------------------------------------


def change(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def get_reason(plan: ForwardPlan, data: bytes) -> GateReason:
    with pytest.raises(GateError) as caught:
        check_tiles(plan, data)
    return caught.value.reason


def test_the_gate_refuses_what_is_not_exactly_a_request(scene: Scene) -> None:
    plan, request = scene.plan, scene.request
    last = plan.get_tile_bodies()[-1]
    half = last.get_length(plan.params) // 2
    check_tiles(plan, request)
    assert get_reason(plan, request[:-8]) is GateReason.LENGTH
    assert get_reason(plan, request + bytes(8)) is GateReason.LENGTH
    assert get_reason(plan, b"") is GateReason.LENGTH
    assert get_reason(plan, change(request, 0, FUSED_MAGIC)) is GateReason.HEADER
    assert get_reason(plan, change(request, HEADER_BYTES - 1, b"\xff")) is GateReason.HEADER
    too_large = SMALL.primes[0].to_bytes(8, "little")
    assert get_reason(plan, change(request, last.offset, too_large)) is GateReason.RESIDUE
    transparent = change(request, last.offset + half, bytes(half))
    assert get_reason(plan, transparent) is GateReason.TRANSPARENT
    with pytest.raises(GateError, match="transparent"):
        compute_fused(scene.make_peer(), plan, transparent)


def test_a_request_for_another_model_is_refused(scene: Scene) -> None:
    """Weights, tile and preset are bound by the header: nobody decrypts one model's output as another's."""
    plan = scene.plan
    other = (plan.weights[0] + 1, *plan.weights[1:])
    assert get_reason(build_forward_plan(SMALL, plan.spec, other), scene.request) is GateReason.HEADER
    wider = build_forward_plan(SMALL, build_tile_spec(plan.spec, 3), plan.weights)
    assert get_reason(wider, scene.request) is GateReason.LENGTH
    with pytest.raises(GateError, match="length"):
        check_fused(wider, scene.result)
    with pytest.raises(GateError, match="header"):
        check_fused(build_forward_plan(SMALL, plan.spec, other), scene.result)
    real = build_forward_plan(REAL, plan.spec, plan.weights)
    assert get_reason(real, scene.request) is GateReason.LENGTH
    with pytest.raises(ParameterError, match="does not belong"):
        compute_fused(scene.make_peer(), real, scene.request)


def test_presets_of_other_depth_are_refused() -> None:
    training = get_params("ckks-16384-60x5")
    with pytest.raises(DepthError, match="exactly 2"):
        build_forward_plan(training, DEFAULT, make_weights(training, DEFAULT))


@pytest.mark.parametrize("tile", [0, 9, -1])
def test_tiles_are_bounded(tile: int) -> None:
    with pytest.raises(ParameterError, match="tile"):
        build_tile_spec(DEFAULT, tile)


@pytest.mark.parametrize("shape", [(1, 2, 6), (1, 2, 6, 5), (0, 2, 6, 6), (1025, 2, 6, 6), (1, 3, 6, 6)])
def test_tiles_of_another_shape_are_refused(scene: Scene, shape: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match="tiles"):
        encrypt_tiles(scene.private, scene.plan, np.zeros(shape))


@pytest.mark.parametrize("value", [1.01, -0.01, np.nan, np.inf])
def test_values_out_of_range_are_refused(scene: Scene, value: float) -> None:
    tiles = np.zeros((1, 2, 6, 6))
    tiles[0, 1, 2, 3] = value
    with pytest.raises(MagnitudeError, match="tiles"):
        encrypt_tiles(scene.private, scene.plan, tiles)


# --- the plan ---------------------------------------------------------------------------------


def test_the_data_scale_follows_from_the_weights() -> None:
    """Large weights leave less room, and too large ones are refused; nothing wraps at any that pass."""
    scales = []
    for factor in (1, 2, 4):
        weights = tuple(factor * value for value in make_weights(REAL, DEFAULT))
        plan = build_forward_plan(REAL, DEFAULT, weights)
        bound = compute_output_bound(REAL, DEFAULT, weights)
        assert bound * plan.product.scale * 4 <= REAL.compute_modulus(2)
        assert MIN_DATA_BITS <= plan.data_bits <= REAL.data_scale_bits
        scales.append(plan.data_bits)
    assert scales == sorted(scales, reverse=True)
    assert len(set(scales)) > 1
    with pytest.raises(MagnitudeError, match="too large"):
        build_forward_plan(REAL, DEFAULT, (2**30,) * DEFAULT.parameters)


def test_messages_at_the_bound_do_not_wrap() -> None:
    """White everywhere and weights of one sign: F' is as large as the plan admits, and still right."""
    spec = build_tile_spec(PolynomialSpec(kernels=(3,)), 1)
    weights = (2**20,) * (spec.parameters - 1 - 9) + (0,) + (2**18,) * 9
    plan = build_forward_plan(SMALL, spec, weights)
    made = Scene(plan, SMALL.slots)
    made.__dict__["tiles"] = np.ones((SMALL.slots, 2, spec.patch, spec.patch))
    expected = compute_forward(SMALL, spec, weights, made.tiles)[1]
    assert float(compute_output_bound(SMALL, spec, weights)) == pytest.approx(expected.max())
    # A wrapped message would be off by as much as it is large; noise here is about one per cent.
    assert made.measure() / expected.max() < 0.05


def test_keys_of_another_preset_are_refused(scene: Scene) -> None:
    keys = build_header(Magic.RELIN_KEYS, REAL) + bytes(scene.plan.relin_bytes - HEADER_BYTES)
    with pytest.raises(GateError, match="header"):
        RelinKeys.decode(SMALL, keys)
