"""The federation on ciphertexts: each hospital encrypts, anybody adds, the custody opens the sum of a round.

Runs in a process with the encryption library and without torch; training is in a child of its own.
"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.federation.arms import Flat, Outcome, evaluate, get_study, train_round
from workloads.capsnet_training import build_initial
from workloads.clipping import clip_to_units

Integers = NDArray[np.int64]

UNIT_BITS = 24
"""Weights and updates are counted in units of 2^-24."""
CLIP = 4.0
"""Largest L2 norm of an update; a round of this network's seldom has half of it."""


@dataclass(frozen=True, slots=True)
class Encrypted:
    """What encryption cost in one federation, and what it changed."""

    rounds: int
    unit_bits: int
    clip: float
    update_bytes: int
    ciphertexts: int
    ring: int
    integer_error: int
    """Largest distance of an opened sum to the integers' sum, of all rounds, in units."""
    largest_error: float
    """Largest distance of a round's change to the mean of the updates as they were trained, in weights."""
    bits: float
    """log2 of the largest such mean over that error, the least of all rounds."""
    largest_norm: float
    """Of an update before clipping."""
    clipped: int
    """Updates that were longer than the clip."""
    encrypt_s: float
    """Processor time of one update; so the next two, of a round."""
    add_s: float
    decrypt_s: float


@dataclass(slots=True)
class _Log:
    """What accumulates over rounds."""

    integer_error: int = 0
    largest_error: float = 0.0
    bits: float = float("inf")
    largest_norm: float = 0.0
    clipped: int = 0
    seconds: list[tuple[float, float, float]] = field(default_factory=list)


def run_encrypted(path: Path, fold: int, kind: str) -> tuple[Outcome, Encrypted]:
    """As `train_averaged`, with clipped and truncated updates of which only the sum is opened.

    Every update passes the gate; the sum is opened from its bytes.
    """
    from he.aggregate import (
        add_updates,
        check_update,
        decrypt_sum,
        encode_public_key,
        encrypt_update,
        load_public_key,
        make_aggregate_keys,
        plan_aggregate,
    )

    study = get_study(path, fold)
    weights = [len(data) for data in study.deal(kind)]
    total_weight = sum(weights)
    bound = int(CLIP * 2**UNIT_BITS)
    plan = plan_aggregate(study.config.count_parameters(), bound, total_weight)
    private = make_aggregate_keys(plan)
    public = load_public_key(plan, encode_public_key(private))
    log = _Log()
    training_s = 0.0
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        tempfile.TemporaryDirectory() as folder,
    ):
        model = _round(pool.submit(build_initial, study.config, study.seed).result())
        for number in range(study.rounds):
            flat = np.asarray(model / 2.0**UNIT_BITS, dtype=np.float32)
            trained, seconds = pool.submit(_train, path, fold, kind, flat, number).result()
            training_s += seconds
            updates = [one.astype(np.float64) - flat for one in trained]
            values = [_clip(update, log) * weight for update, weight in zip(updates, weights, strict=True)]
            clock = [time.process_time()]
            bodies = [
                encrypt_update(public, plan, one, weight=weight)
                for one, weight in zip(values, weights, strict=True)
            ]
            clock.append(time.process_time())
            for body in bodies:
                check_update(plan, body)
            clock.append(time.process_time())
            file = Path(folder) / f"sum-{number}"
            add_updates(plan, bodies, file)
            clock.append(time.process_time())
            opened = decrypt_sum(private, plan, file, len(bodies))
            clock.append(time.process_time())
            log.seconds.append(
                ((clock[1] - clock[0]) / len(bodies), clock[3] - clock[2], clock[4] - clock[3])
            )
            log.integer_error = max(log.integer_error, int(np.abs(opened - np.sum(values, axis=0)).max()))
            change = opened // total_weight
            mean = np.average(updates, axis=0, weights=weights)
            error = float(np.abs(change / 2.0**UNIT_BITS - mean).max())
            log.largest_error = max(log.largest_error, error)
            log.bits = min(log.bits, float(np.log2(np.abs(mean).max() / error)))
            model = model + change
        flat = np.asarray(model / 2.0**UNIT_BITS, dtype=np.float32)
        outcome: Outcome = pool.submit(_evaluate, path, fold, flat, training_s).result()
    encrypting, adding, opening = (float(one) for one in np.mean(log.seconds, axis=0))
    return outcome, Encrypted(
        study.rounds,
        UNIT_BITS,
        CLIP,
        plan.update_bytes,
        plan.ciphertexts,
        plan.params.ring,
        log.integer_error,
        log.largest_error,
        log.bits,
        log.largest_norm,
        log.clipped,
        encrypting,
        adding,
        opening,
    )


def _train(path: Path, fold: int, kind: str, flat: Flat, number: int) -> tuple[list[Flat], float]:
    study = get_study(path, fold)
    started = time.process_time()
    trained = train_round(study, study.deal(kind), flat, number)
    return trained, time.process_time() - started


def _evaluate(path: Path, fold: int, flat: Flat, cpu_s: float) -> Outcome:
    return evaluate(get_study(path, fold), [flat], cpu_s)


def _clip(update: NDArray[np.float64], log: _Log) -> Integers:
    """The update in units, made no longer than the clip, as participants make it."""
    norm = float(np.linalg.norm(update))
    log.largest_norm = max(log.largest_norm, norm)
    log.clipped += norm > CLIP
    units: Integers = clip_to_units(update[None, :], int(CLIP * 2**UNIT_BITS), UNIT_BITS)[0]
    return units


def _round(numbers: NDArray[np.float64] | Flat) -> Integers:
    return np.asarray(np.rint(numbers.astype(np.float64) * 2**UNIT_BITS), dtype=np.int64)
