"""Training on ciphertexts follows training in clear, and is canonical."""

import hashlib
import multiprocessing
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from consensus.optimizer import apply_opening
from fusion_model.gradients import convert_weights, fold_output_bias
from fusion_model.losses import compute_full_losses
from fusion_model.model import PolynomialFusion
from fusion_model.phantom import build_phantoms
from fusion_model.targets import build_targets
from fusion_model.train import Clipping, build_training_batch, train_twin
from he.context import PrivateContext
from he.packing import decrypt_bundle
from workloads.base import GradientJob, KeyFile, LossJob, WorkloadError
from workloads.clipping import add_sums
from workloads.custodian import BundleJob, LossSumJob, PrepareJob, SingleCustodian, generate_keys
from workloads.custody import get_tensors
from workloads.encryption import ClearBatch, ContributionPlan, build_clear_batches, encrypt_patches
from workloads.fusion import FusionSpec, FusionTraining
from workloads.noise import draw_gaussian

SMALL, REAL = "test-4096-60x5", "ckks-16384-60x5"
SPEC = FusionSpec()
MODEL = SPEC.encode()
WORKLOAD = FusionTraining(allow_insecure=True)
CLIP, LOSS_CLIP, BITS, SHIFT, BOX = 2**19, 2**18, 20, 30, 2**22
GRADIENT_NOISE = 32 * CLIP
"""As in a real task: 32 clips."""
SECRET = bytes(range(32))


@dataclass(frozen=True, slots=True)
class Task:
    """Keys and data of one task, encrypted and in clear."""

    preset: str
    custodian: SingleCustodian
    keys: KeyFile
    directory: Path
    training: tuple[Path, ...]
    validation: Path
    clear_training: tuple[ClearBatch, ...]
    clear_validation: ClearBatch
    patches: int


def build_task(preset: str, directory: Path) -> Task:
    """Two full training batches and a validation batch of phantoms."""
    files = generate_keys(preset, directory / "keys", WORKLOAD)
    custodian = SingleCustodian(directory / "keys", WORKLOAD)
    params = WORKLOAD.get_params(preset)
    public = PrivateContext.load(params, (directory / "keys" / "secret.key").read_bytes()).public
    plan = ContributionPlan(2, 1, (4,), seed=3, patches_per_batch=params.slots)
    training, validation = build_clear_batches(SPEC, build_phantoms(11, 5), plan, params.slots)
    paths = []
    for number, batch in enumerate((*training, *validation)):
        held = number == len(training)
        path = directory / f"batch-{number}"
        path.write_bytes(encrypt_patches(public, SPEC, batch, held))
        custodian.run_prepare(PrepareJob(preset, MODEL, path, params.slots, held, prepared(path)))
        paths.append(path)
    return Task(
        preset,
        custodian,
        KeyFile(b"relin", files.relin_keys),
        directory,
        tuple(paths[:-1]),
        paths[-1],
        tuple(training),
        validation[0],
        params.slots,
    )


def prepared(batch: Path) -> Path:
    return batch.with_suffix(".prepared")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return build_task(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return build_task(REAL, tmp_path_factory.mktemp("real"))


def get_rates(steps: int, slots: int) -> tuple[int, ...]:
    """0.1 on the mean gradient, halved by a cosine."""
    phase = np.arange(steps) / steps
    rates = 0.1 * (0.75 + 0.25 * np.cos(np.pi * phase)) * 2.0**SHIFT / (2 * slots)
    return tuple(round(rate) for rate in rates.tolist())


def draw(step: int, count: int) -> tuple[int, ...]:
    return draw_gaussian(SECRET, b"test step %d" % step, count, GRADIENT_NOISE)


def update(
    weights: Sequence[int], momentum: Sequence[int], gradient: Sequence[int], rate: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return apply_opening(weights, momentum, gradient, rate, SHIFT, BOX)


@dataclass(frozen=True, slots=True)
class EncryptedRun:
    weights: tuple[int, ...]
    losses: dict[int, float]
    """Mean loss before noise, by step."""
    bundle_errors: list[float]
    """Largest absolute error of any patch's entry against the clear, by bundle."""


def train_encrypted(task: Task, steps: int, schedule: Sequence[int], executor: Executor) -> EncryptedRun:
    """What a network of nodes does, without chain: bundles, checks, openings, integer steps."""
    weights = WORKLOAD.build_initial_weights(MODEL, 0)
    momentum: tuple[int, ...] = (0,) * SPEC.parameters
    rates = get_rates(steps, task.patches)
    losses: dict[int, float] = {}
    errors: list[float] = []
    for step in range(steps + 1):
        if step in schedule:
            job = LossJob(task.preset, MODEL, weights, task.keys, task.validation)
            loss = executor.submit(WORKLOAD.run_loss, job).result()
            total = task.custodian.run_loss_sum(
                LossSumJob(task.preset, MODEL, weights, prepared(task.validation), loss, LOSS_CLIP, BITS)
            )
            losses[step] = total / task.patches / 2.0**BITS
        if step == steps:
            break
        outputs = [path.with_suffix(".bundle") for path in task.training]
        jobs = [
            executor.submit(
                WORKLOAD.run_gradient, GradientJob(task.preset, MODEL, weights, task.keys, path, output)
            )
            for path, output in zip(task.training, outputs, strict=True)
        ]
        sums = []
        for path, output, running in zip(task.training, outputs, jobs, strict=True):
            running.result()
            outcome = task.custodian.run_bundle(
                BundleJob(task.preset, MODEL, weights, prepared(path), output, CLIP, BITS)
            )
            assert outcome.sums is not None, outcome.report.detail
            errors.append(outcome.report.error)
            sums.append(outcome.sums)
        gradient = add_sums(sums)
        opened = tuple(a + b for a, b in zip(gradient, draw(step, len(gradient)), strict=True))
        weights, momentum = update(weights, momentum, opened, rates[step])
    return EncryptedRun(weights, losses, errors)


def check_against_twin(task: Task, steps: int, schedule: Sequence[int], executor: Executor) -> None:
    """The encrypted run's losses are the clear twin's to 3 digits, and its bundles stay exact."""
    states = train_twin(
        SPEC.network,
        WORKLOAD.build_initial_weights(MODEL, 0),
        [build_training_batch(SPEC.network, batch.inputs) for batch in task.clear_training],
        [build_training_batch(SPEC.network, task.clear_validation.inputs)],
        clipping=Clipping(CLIP, BITS, LOSS_CLIP, BITS),
        learning_rates=get_rates(steps, task.patches),
        batches_per_step=2,
        update=update,
        noise=draw,
        loss_schedule=schedule,
    )
    twin = list(states)
    run = train_encrypted(task, steps, schedule, executor)
    for step in schedule:
        expected = twin[step].loss
        assert expected is not None
        print(f"step {step}: loss encrypted {run.losses[step]:.7f}, clear {expected:.7f}")
        assert abs(run.losses[step] - expected) < 5e-4 * expected
    drift = max(abs(a - b) for a, b in zip(run.weights, twin[-1].weights, strict=True)) / 2**20
    print(
        f"largest drift of a weight {drift:.2e}, "
        f"largest error of a patch's entry {max(run.bundle_errors):.2e}"
    )
    assert drift < 1e-4
    # The stated absolute bound on any patch's gradient entry, at every step.
    assert max(run.bundle_errors) < 5e-5
    assert twin[-1].loss is not None
    assert twin[0].loss is not None
    assert twin[-1].loss < 0.9 * twin[0].loss


def test_a_few_encrypted_steps_follow_the_clear_twin(small: Task) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        check_against_twin(small, 6, (0, 3, 6), executor)


@pytest.mark.slow
def test_forty_encrypted_steps_follow_the_clear_twin(real: Task) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        check_against_twin(real, 40, (0, 10, 20, 30, 40), executor)


def test_gradients_agree_with_autograd(real: Task) -> None:
    """8192 patches under the 128-bit preset, at the initial weights, tensor by tensor."""
    torch.set_num_threads(1)
    weights = WORKLOAD.build_initial_weights(MODEL, 0)
    output = real.directory / "autograd.bundle"
    WORKLOAD.run_gradient(GradientJob(REAL, MODEL, weights, real.keys, real.training[0], output))
    params = WORKLOAD.get_params(REAL)
    private = PrivateContext.load(params, (real.directory / "keys" / "secret.key").read_bytes())
    untied = decrypt_bundle(private, SPEC.circuit, output)
    measured = fold_output_bias(SPEC.network, convert_weights(weights), untied).mean(axis=0)

    inputs = real.clear_training[0].inputs
    targets = build_targets(SPEC.network, inputs)
    model = PolynomialFusion.from_integers(SPEC.network, weights)
    fused = model(torch.from_numpy(inputs))
    loss = ((fused - torch.from_numpy(targets.intensity)) ** 2).sum(dim=(1, 2))
    loss = loss + ((fused.diff(dim=2) - torch.from_numpy(targets.gradient_x)) ** 2).sum(dim=(1, 2))
    loss = loss + ((fused.diff(dim=1) - torch.from_numpy(targets.gradient_y)) ** 2).sum(dim=(1, 2))
    loss = loss / SPEC.network.output**2
    np.testing.assert_allclose(
        loss.detach().numpy(), compute_full_losses(SPEC.network, fused.detach().numpy(), targets)
    )
    loss.mean().backward()  # type: ignore[no-untyped-call]
    expected = np.concatenate(
        [p.grad.numpy().ravel() for p in (model.first, model.bias, model.second) if p.grad is not None]
    )
    for name, tensor in zip("wbv", get_tensors(SPEC), strict=False):
        error = np.abs(measured[tensor] - expected[tensor]).max() / np.abs(expected[tensor]).max()
        print(f"{name}: largest error {error:.2e} of the tensor's largest entry")
        assert error < 5e-4


# --- canonical ------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_bundles_are_the_same_from_all_processes(small: Task) -> None:
    """Whatever process, number of workers or order: the same bytes."""
    weights = WORKLOAD.build_initial_weights(MODEL, 5)

    def compute(executor: Executor | None, order: Sequence[int], tag: str) -> list[str]:
        outputs = {n: small.directory / f"canonical-{tag}-{n}" for n in order}
        jobs = [
            GradientJob(small.preset, MODEL, weights, small.keys, small.training[n], outputs[n])
            for n in order
        ]
        if executor is None:
            for job in jobs:
                WORKLOAD.run_gradient(job)
        else:
            list(executor.map(WORKLOAD.run_gradient, jobs))
        return [digest(outputs[n]) for n in sorted(order)]

    here = compute(None, (0, 1), "here")
    assert here[0] != here[1]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        assert compute(executor, (1, 0), "one") == here
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        assert compute(executor, (0, 1), "two") == here
    losses = {
        WORKLOAD.run_loss(LossJob(small.preset, MODEL, weights, small.keys, small.validation))
        for _ in range(2)
    }
    assert len(losses) == 1


MINER = """
import gc, sys
from pathlib import Path
from workloads.base import GradientJob, KeyFile, LossJob, get_workload
from workloads.fusion import FusionTraining

model, keys, batch, held, output = sys.argv[1:]
workload = FusionTraining(allow_insecure=True)
data, key = bytes.fromhex(model), KeyFile(b"relin", Path(keys))
weights = {weights!r}
workload.run_check_batch("test-4096-60x5", data, Path(batch), False)
workload.run_gradient(GradientJob("test-4096-60x5", data, weights, key, Path(batch), Path(output)))
workload.run_loss(LossJob("test-4096-60x5", data, weights, key, Path(held)))

assert "torch" not in sys.modules
assert not {{"workloads.custody", "workloads.custodian"}} & set(sys.modules)
from he.backend import Engine
from he.context import PrivateContext, PublicContext
from he.keys import SecretKey
kinds = [type(thing) for thing in gc.get_objects()]
import workloads.jobs
contexts = list(workloads.jobs._contexts.values())
assert contexts and all(type(context) is PublicContext for context in contexts)
for context in contexts:
    assert not context.engine.has_secret
    assert not any(isinstance(found, (SecretKey, PrivateContext)) for found in gc.get_referents(context))
assert not any(issubclass(kind, (SecretKey, PrivateContext)) for kind in kinds)
"""


def test_a_miner_holds_no_secret_key(small: Task) -> None:
    """A process that computes a step never makes, loads or sees one, nor a training library."""
    output = small.directory / "miner.bundle"
    weights = WORKLOAD.build_initial_weights(MODEL, 5)
    # A directory without the custody's secrets.
    keys = small.directory / "public" / "relin.keys"
    keys.parent.mkdir(exist_ok=True)
    keys.write_bytes(small.keys.path.read_bytes())
    arguments = [MODEL.hex(), str(keys), str(small.training[0]), str(small.validation), str(output)]
    code = MINER.format(weights=weights)
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    job = GradientJob(
        small.preset, MODEL, weights, small.keys, small.training[0], output.with_suffix(".here")
    )
    WORKLOAD.run_gradient(job)
    assert digest(output) == digest(job.output)


def test_a_failed_job_leaves_no_output(small: Task) -> None:
    output = small.directory / "failed.bundle"
    damaged = small.directory / "damaged"
    damaged.write_bytes(small.training[0].read_bytes()[:-1])
    good = small.training[0]
    for workload, batch, keys, message in (
        (WORKLOAD, damaged, small.keys, "length"),
        (WORKLOAD, good, KeyFile(b"absent", small.directory / "absent"), "absent"),
        (WORKLOAD, good, KeyFile(b"batch", good), "length"),
        (FusionTraining(), good, small.keys, "insecure"),
    ):
        with pytest.raises(WorkloadError, match=message):
            workload.run_gradient(GradientJob(small.preset, MODEL, (0,) * 112, keys, batch, output))
    assert list(small.directory.glob("failed*")) == []
