"""Equal inputs give equal bytes: in every process, at every worker count, in every order."""

import hashlib
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from he import worker
from he.backend import Engine
from he.context import PublicContext
from he.errors import GateError, GateReason
from he.formats import HEADER_BYTES, Magic, build_header
from he.gate import check_batch, check_bundle, check_loss
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.params import CkksParams, get_params
from he.plan import Form, build_plan
from he.residues import compute_weighted_sums
from he.spec import PolynomialSpec
from tests.he.conftest import World
from tests.he.reference import make_weights
from tests.he.synthetic import make_batch, make_relin_keys, make_residues

GOLDEN = {
    "test-4096-60x5": (
        "b7d15143f502c0416cd51e379adab6576efa6647d90b500ee4bbd6d2a7267dcd",
        "427a9734a5f4cf6ed37cad359fe435645ece2961d3a79049d559f52942cb4a9b",
    ),
    "ckks-16384-60x5": (
        "cd5424e77a949b934de08af203a52e042db3e28593783e64bb855a14d1a23dd6",
        "a675faa87e6da1f6af644db75330ba8f87676f93c7df3b47c67540946d6edfdd",
    ),
}
"""SHA-256 of the bodies of bundle and loss over synthetic residues, which are older than version 2 of
the specification and did not change with it; a change here breaks every running chain."""

SPEC = PolynomialSpec()


def hash_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_fixed_weights() -> tuple[int, ...]:
    """Weights from integer arithmetic alone, of the size that training has, a zero among them."""
    values = [(index * 2654435761 % 2**32) % 400_001 - 200_000 for index in range(SPEC.parameters)]
    values[5] = 0
    return tuple(values)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_golden_hashes(name: str) -> None:
    params = get_params(name, allow_insecure=True)
    context = PublicContext(params, relin_keys=make_relin_keys(params))
    batch = make_batch(params, SPEC, validation=True)
    bundle = compute_gradient_bundle(context, SPEC, make_fixed_weights(), batch)
    loss = compute_loss_ciphertext(context, SPEC, make_fixed_weights(), batch)
    check_bundle(params, SPEC, bundle)
    check_loss(params, SPEC, loss)
    assert (hash_hex(bundle[HEADER_BYTES:]), hash_hex(loss[HEADER_BYTES:])) == GOLDEN[name]


def test_golden_headers() -> None:
    params = get_params("ckks-16384-60x5")
    spec = PolynomialSpec(8, (1, 3, 5), 3, 3, 4)
    assert spec.encode().hex() == "00080003000300040003010305"
    name = b"ckks-16384-60x5".ljust(32, b"\0")
    # Patch 8, 3 inputs, 2x2 outputs, channels where weights matter, mu, flags, the spec's digest.
    assert build_header(Magic.BATCH, params, spec, 1) == (
        b"BMIFBAT2" + name + bytes.fromhex("080003000200000004000100") + bytes(12)
    )
    digest = hashlib.sha256(spec.encode()).digest()[:12]
    for magic in (Magic.BUNDLE, Magic.LOSS):
        assert build_header(magic, params, spec) == (
            magic.value + name + bytes.fromhex("080003000200030004000000") + digest
        )
    assert build_header(Magic.RELIN_KEYS, params) == b"BMIFRLK1" + name + bytes(24)


@pytest.fixture
def paths(small: World, tmp_path: Path) -> tuple[str, str]:
    keys = small.private.public.relin_keys
    assert keys is not None
    (tmp_path / "relin").write_bytes(keys.encode())
    (tmp_path / "batch").write_bytes(small.batch)
    return str(tmp_path / "relin"), str(tmp_path / "batch")


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_and_worker_counts_agree(
    small: World, paths: tuple[str, str], tmp_path: Path, workers: int
) -> None:
    relin_path, batch_path = paths
    outputs = [str(tmp_path / f"bundle-{index}") for index in range(2)]
    name, spec = small.params.name, small.spec.encode()
    method = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=method) as pool:
        arguments = (name, spec, relin_path, batch_path, small.weights)
        jobs = [
            pool.submit(worker.run_gradient, *arguments, out_path, allow_insecure=True)
            for out_path in outputs
        ]
        loss = pool.submit(worker.run_loss, *arguments, allow_insecure=True)
        lengths = [job.result() for job in jobs]
        assert loss.result() == small.loss
    for length, out_path in zip(lengths, outputs, strict=True):
        bundle = Path(out_path).read_bytes()
        assert len(bundle) == length
        assert bundle == small.bundle
    assert not list(tmp_path.glob("*.part"))


def test_worker_gates_what_it_reads(small: World, paths: tuple[str, str], tmp_path: Path) -> None:
    relin_path, batch_path = paths
    broken = tmp_path / "broken"
    broken.write_bytes(small.batch[:-8])
    arguments = (small.params.name, small.spec.encode())
    with pytest.raises(GateError) as caught:
        worker.run_loss(*arguments, relin_path, str(broken), small.weights, allow_insecure=True)
    assert caught.value.reason is GateReason.LENGTH
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.reason, copied.detail) == (caught.value.reason, caught.value.detail)
    with pytest.raises(GateError):
        worker.run_loss(*arguments, batch_path, batch_path, small.weights, allow_insecure=True)


def test_worker_keeps_its_context(small: World, paths: tuple[str, str]) -> None:
    worker.initialise(small.params.name, paths[0], allow_insecure=True)
    first = worker.get_context(small.params.name, paths[0], allow_insecure=True)
    assert worker.get_context(small.params.name, paths[0], allow_insecure=True) is first
    assert not first.engine.has_secret


def test_files_and_bytes_agree(small: World, paths: tuple[str, str]) -> None:
    batch = Path(paths[1])
    assert check_batch(small.params, small.spec, batch)
    assert compute_loss_ciphertext(small.evaluator, small.spec, small.weights, batch) == small.loss
    view = memoryview(bytearray(small.batch))
    assert (
        compute_loss_ciphertext(small.evaluator, small.spec, small.weights, view, checked=True) == small.loss
    )


def test_order_of_additions_is_free(small: World) -> None:
    engine = small.evaluator.engine
    form = build_plan(small.params, small.spec).input
    bodies = [make_residues(seed, small.params, 2, form.level) for seed in range(6)]
    sums = []
    for order in (range(6), (3, 5, 0, 2, 4, 1)):
        total = engine.load(bodies[order[0]], form)
        for index in order[1:]:
            engine.add_inplace(total, engine.load(bodies[index], form))
        sums.append(bytes(engine.save(total)))
    assert sums[0] == sums[1]


def test_bytes_survive_the_library_unchanged(small: World) -> None:
    engine = small.evaluator.engine
    for level in range(1, small.params.levels + 1):
        for components in (2, 3):
            body = make_residues(level, small.params, components, level)
            tensor = engine.load(
                body, Form(level, build_plan(small.params, small.spec).output.scale), components=components
            )
            assert bytes(engine.save(tensor)) == body
            assert bytes(engine.save(engine.copy(tensor))) == body


@pytest.mark.parametrize("largest", [3, 2**20, 2**31])
def test_residue_sums_are_those_of_exact_integers(small: World, largest: int) -> None:
    rng = np.random.default_rng(3)
    for prime in small.params.primes[:2]:
        data = (np.random.Philox(key=5).random_raw(7 * 5000).reshape(7, 5000) % np.uint64(prime)).astype(
            np.uint64
        )
        data[:, 0], data[:, 1] = prime - 1, 0
        weights = rng.integers(-largest, largest + 1, size=(4, 7))
        weights[0], weights[1] = largest, -largest
        out = np.empty((4, 5000), dtype=np.uint64)
        compute_weighted_sums(data, weights, prime, out)
        exact = (weights.astype(object) @ data.astype(object)) % prime
        assert (out.astype(object) == exact).all()


def test_first_convolution_is_that_of_the_library(small: World) -> None:
    """The residues' shortcut and the library's own products and sums are bit for bit the same."""
    params: CkksParams = small.params
    engine: Engine = small.evaluator.engine
    plan = build_plan(params, small.spec)
    weights = make_weights(params, small.spec)[:5]
    bodies = [make_residues(50 + index, params, 2, params.levels) for index in range(5)]
    total = None
    for body, weight in zip(bodies, weights, strict=True):
        constant = engine.build_constant(weight, Form(params.levels, plan.weight_scale))
        term = engine.multiply_constant(engine.load(body, plan.input), constant)
        if total is None:
            total = term
        else:
            engine.add_inplace(total, term)
    assert total is not None
    library = np.frombuffer(engine.save(total), dtype="<u8").reshape(2, params.levels, params.ring)
    pixels = [np.frombuffer(body, dtype="<u8").reshape(2, params.levels, params.ring) for body in bodies]
    out = np.empty((1, params.ring), dtype=np.uint64)
    for part in range(2):
        for index in range(params.levels):
            data = np.stack([pixel[part, index] for pixel in pixels])
            compute_weighted_sums(data, np.array([weights]), params.primes[index], out)
            assert np.array_equal(out[0], library[part, index])


def read_peak_kib() -> int:
    """This process's own peak; getrusage would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0])


def test_a_worker_at_full_size_stays_within_its_memory(real: World, tmp_path: Path) -> None:
    keys = real.private.public.relin_keys
    assert keys is not None
    (tmp_path / "relin").write_bytes(keys.encode())
    (tmp_path / "batch").write_bytes(real.batch)
    out_path = tmp_path / "bundle"
    method = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=method) as pool:
        arguments = (real.params.name, real.spec.encode(), str(tmp_path / "relin"), str(tmp_path / "batch"))
        pool.submit(worker.run_gradient, *arguments, real.weights, str(out_path)).result()
        peak_kib = pool.submit(read_peak_kib).result()
    assert out_path.read_bytes() == real.bundle
    assert peak_kib < 700 * 1024, peak_kib
