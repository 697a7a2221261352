"""One training batch and one loss on synthetic patients, timed: what mining will cost on this machine."""

import resource
import time
from dataclasses import dataclass
from pathlib import Path

from fusion_model.phantom import build_phantoms
from he.context import PrivateContext
from workloads.base import GradientJob, KeyFile, LossJob
from workloads.custodian import generate_keys
from workloads.encryption import ContributionPlan, build_clear_batches, encrypt_patches
from workloads.fusion import WORKLOAD, FusionSpec

SEED = 11


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Processor seconds on one core, which other load disturbs less than seconds on the wall."""

    preset: str
    patches: int
    """Of the one batch."""
    encrypt_s: float
    gradient_s: float
    loss_s: float
    peak_mib: float
    """Resident memory of the process that did all of it."""


def rehearse(directory: Path, preset: str) -> Rehearsal:
    """Make keys, encrypt one training and one validation batch, and compute on both.

    Run it in a process of its own: it takes about a gigabyte of memory and 20 s. `directory` must be empty;
    it holds keys of no task, and about 300 MB, until its owner deletes it.
    """
    spec = FusionSpec()
    model = spec.encode()
    params = WORKLOAD.get_params(preset)
    slots = WORKLOAD.get_slots(preset)
    files = generate_keys(preset, directory / "keys")
    public = PrivateContext.load(params, (directory / "keys" / "secret.key").read_bytes()).public
    plan = ContributionPlan(1, 1, (4,), seed=SEED, patches_per_batch=slots)
    training, validation = build_clear_batches(spec, build_phantoms(SEED, 5), plan, slots)
    batch, held = directory / "training", directory / "validation"
    start = time.process_time()
    batch.write_bytes(encrypt_patches(public, spec, training[0], False))
    encrypt_s = time.process_time() - start
    held.write_bytes(encrypt_patches(public, spec, validation[0], True))
    weights = WORKLOAD.build_initial_weights(model, 0)
    keys = KeyFile(b"relin", files.relin_keys)
    loss_job = LossJob(preset, model, weights, keys, held)
    WORKLOAD.run_loss(loss_job)  # keys are loaded before the clock runs, as in a worker that goes on
    start = time.process_time()
    WORKLOAD.run_loss(loss_job)
    middle = time.process_time()
    WORKLOAD.run_gradient(GradientJob(preset, model, weights, keys, batch, directory / "bundle"))
    end = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Rehearsal(preset, slots, encrypt_s, end - middle, middle - start, peak)
