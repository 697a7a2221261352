"""Measures the encrypted training step in one run: `python benchmarks/encrypted_step.py`.

Prints patches a second on one core, two processes against one, recomputation of a validation loss,
the custody's check of a bundle, precision, and the peak memory of a worker. Every time is the least
of its repetitions; processor time stands beside it, which other load disturbs less.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.timing import Timing, get_machine, measure
from fusion_model.phantom import build_phantoms
from he.context import PrivateContext
from workloads.base import GradientJob, KeyFile, LossJob
from workloads.custodian import BundleJob, LossSumJob, PrepareJob, SingleCustodian, generate_keys
from workloads.custody import BundleReport
from workloads.encryption import ContributionPlan, build_clear_batches, encrypt_patches
from workloads.fusion import FusionSpec, FusionTraining

WORKLOAD = FusionTraining(allow_insecure=True)
SPEC = FusionSpec()
MODEL = SPEC.encode()
CLIP, LOSS_CLIP, BITS = 2**19, 2**18, 20


@dataclass(frozen=True, slots=True)
class Worker:
    """What a fresh worker process measured of itself."""

    gradient: Timing
    loss: Timing
    peak_mib: float
    """Resident, all keys and one batch at a time included."""


def run_worker(gradient: GradientJob, loss: LossJob, repetitions: int) -> Worker:
    """In its own process: steady state, so keys are loaded before the clock runs."""
    WORKLOAD.run_loss(loss)
    gradient_time, _ = measure(lambda: WORKLOAD.run_gradient(gradient), repetitions)
    loss_time, _ = measure(lambda: WORKLOAD.run_loss(loss), repetitions)
    return Worker(gradient_time, loss_time, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_pair(pool: ProcessPoolExecutor, jobs: list[GradientJob], repetitions: int) -> tuple[float, float]:
    """Seconds for both batches in one process after another, and in two at once; interleaved, so that
    other load disturbs both alike."""
    one, two = [], []
    list(pool.map(WORKLOAD.run_gradient, jobs))
    for _ in range(repetitions):
        start = time.perf_counter()
        for job in jobs:
            pool.submit(WORKLOAD.run_gradient, job).result()
        one.append(time.perf_counter() - start)
        start = time.perf_counter()
        list(pool.map(WORKLOAD.run_gradient, jobs))
        two.append(time.perf_counter() - start)
    return min(one), min(two)


def run(preset: str, repetitions: int, directory: Path) -> dict[str, object]:
    machine = get_machine()
    files = generate_keys(preset, directory / "keys", WORKLOAD)
    custodian = SingleCustodian(directory / "keys", WORKLOAD)
    slots = WORKLOAD.get_slots(preset)
    params = WORKLOAD.get_params(preset)
    public = PrivateContext.load(params, (directory / "keys" / "secret.key").read_bytes()).public
    plan = ContributionPlan(2, 1, (4,), seed=3, patches_per_batch=slots)
    training, validation = build_clear_batches(SPEC, build_phantoms(11, 5), plan, slots)
    paths = [directory / f"training-{number}" for number in range(len(training))]
    encrypting, blob = measure(lambda: encrypt_patches(public, SPEC, training[0], False), 1)
    paths[0].write_bytes(blob)
    paths[1].write_bytes(encrypt_patches(public, SPEC, training[1], False))
    held = directory / "validation"
    held.write_bytes(encrypt_patches(public, SPEC, validation[0], True))

    weights = WORKLOAD.build_initial_weights(MODEL, 0)
    keys = KeyFile(b"relin", files.relin_keys)
    jobs = [GradientJob(preset, MODEL, weights, keys, path, path.with_suffix(".bundle")) for path in paths]
    loss_job = LossJob(preset, MODEL, weights, keys, held)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        worker = pool.submit(run_worker, jobs[0], loss_job, repetitions).result()
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        one, two = measure_pair(pool, jobs, repetitions)

    prepared = directory / "prepared"
    preparing, _ = measure(
        lambda: custodian.run_prepare(PrepareJob(preset, MODEL, paths[0], slots, False, prepared)), 1
    )
    checking, outcome = measure(
        lambda: custodian.run_bundle(BundleJob(preset, MODEL, weights, prepared, jobs[0].output, CLIP, BITS)),
        repetitions,
    )
    if outcome.sums is None:
        raise RuntimeError(f"an honest bundle was refused: {outcome.report.detail}")
    prepared_held = directory / "prepared-validation"
    custodian.run_prepare(PrepareJob(preset, MODEL, held, slots, True, prepared_held))
    loss = WORKLOAD.run_loss(loss_job)
    opening, _ = measure(
        lambda: custodian.run_loss_sum(
            LossSumJob(preset, MODEL, weights, prepared_held, loss, LOSS_CLIP, BITS)
        ),
        repetitions,
    )
    return {
        "machine": machine,
        "preset": preset,
        "patches": slots,
        "gradient": asdict(worker.gradient),
        "patches_per_core_second": slots / worker.gradient.cpu_s,
        "loss": asdict(worker.loss),
        "two_batches_one_process_s": one,
        "two_batches_two_processes_s": two,
        "speed_up": one / two,
        "worker_peak_mib": worker.peak_mib,
        "encrypt_batch": asdict(encrypting),
        "custody_prepare": asdict(preparing),
        "custody_check": asdict(checking),
        "custody_loss": asdict(opening),
        "report": describe_report(outcome.report),
        "batch_mb": paths[0].stat().st_size / 1e6,
        "bundle_mb": jobs[0].output.stat().st_size / 1e6,
        "relin_keys_mb": files.relin_keys.stat().st_size / 1e6,
    }


def describe_report(report: BundleReport) -> str:
    return (
        f"largest error of a patch {report.error:.2e} ({report.entry}, allowed {report.tolerance:.2e}), "
        f"of a sum {report.sum_error:.2e} (allowed {report.sum_tolerance:.2e})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="ckks-16384-60x5")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = run(options.preset, options.repetitions, Path(scratch))
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for name, value in results.items():
        if isinstance(value, dict):
            shown = f"{value['wall_s']:.3f} s wall, {value['cpu_s']:.3f} s processor"
        elif isinstance(value, float):
            shown = f"{value:,.2f}"
        else:
            shown = str(value)
        print(f"{name:28s} {shown}")


if __name__ == "__main__":
    main()
