"""Every part in a federated round, on files: participant, validator, custody. Blobs: `federated_blobs`.

A participant trains in one process and encrypts in another, since the training and the encryption library
never meet; nothing of its update is on disk but the ciphertext. A sum's noise is a function of the custody's
secret and what is opened, as all noise here (`noise`).
"""

import multiprocessing
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from he import aggregate, gate
from he.errors import HeError
from workloads.base import WorkloadError
from workloads.capsnet_data import CapsuleData, load_capsule_data
from workloads.clipping import clip_to_units
from workloads.federated_blobs import (
    FederatedNetwork,
    Integers,
    add_opened,
    convert_to_units,
    convert_to_weights,
    decode_model,
    encode_model,
    encode_opened,
    read_network,
)
from workloads.noise import SECRET_BYTES, draw_gaussian
from workloads.sealed import NOISE_KIND, PLAIN, SECRET_KIND, FolderKeys, SealingKey, read_secret, write_secret

P = ParamSpec("P")
R = TypeVar("R")

SECRET_KEY_FILE = "secret.key"
NOISE_FILE = "noise.secret"
LOSS_UNIT = 1_000_000
"""Losses are counted in millionths."""
MAX_LOSS = 2**40
"""Of a loss in units; what is beyond, or not a number, counts as this."""


@dataclass(frozen=True, slots=True)
class UpdateJob:
    """A participant's part in a round; the encrypted update goes to `output`."""

    network: Path
    keys: Path
    model: Path
    data: Path = field(repr=False)
    weight: int
    seed: int
    """Of the training's order and augmentation."""
    noise_std: int
    """Of the participant's own noise in each number, before its weight, in units; 0 for none."""
    output: Path


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """For the participant's own eyes."""

    norm: float
    """L2 norm of the change before clipping, in weights."""
    clipped: bool
    update_bytes: int


# --- all ----------------------------------------------------------------------------------------


def check_terms(
    network: Path, model: Path, keys: Path, *, parameters: int, weights: int, clip: int, update_bytes: int
) -> None:
    """Raises WorkloadError unless description, first model and public key are what the federation says."""
    found = read_network(network)
    plan = found.build_plan()
    for name, value, expected in (
        ("parameters", parameters, found.parameters),
        ("weights", weights, found.weights),
        ("clip", clip, found.clip),
        ("update_bytes", update_bytes, plan.update_bytes),
    ):
        if value != expected:
            raise WorkloadError(f"{name}: the federation says {value}, its network's description {expected}")
    read_model(found, model)
    try:
        gate.check_public_key(plan.params, keys)
    except (HeError, OSError) as error:
        raise WorkloadError(f"keys: {error}; its custody must create the federation anew") from error


def read_model(network: FederatedNetwork, path: Path) -> Integers:
    """(P,) in units. Raises WorkloadError naming the file."""
    try:
        with path.open("rb") as file:
            return decode_model(network, file.read(network.model_bytes + 1))
    except (OSError, WorkloadError) as error:
        raise WorkloadError(f"{path.name}: {error}") from error


def load_data(network: FederatedNetwork, path: Path) -> CapsuleData:
    """Labelled images that fit the network. Raises WorkloadError naming file and array."""
    config = network.config
    data = load_capsule_data(path, config.side)
    if int(data.labels.max()) >= config.classes:
        raise WorkloadError(
            f"{path}: labels: expected 0 to {config.classes - 1}, got {int(data.labels.max())}"
        )
    if config.segmentation and data.masks is None:
        raise WorkloadError(f"{path}: masks: lacks them, and this federation's network draws masks")
    return data


# --- custody ------------------------------------------------------------------------------------


def make_keys(network: FederatedNetwork, folder: Path, key: SealingKey | None = None) -> bytes:
    """New keys: the secret ones stay in `folder`, which only its owner reads, sealed where there is a `key`;
    returns the public one.

    Raises WorkloadError if there is a secret key already: one key serves one federation.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (folder / SECRET_KEY_FILE).exists():
        raise WorkloadError(f"{folder} already holds a secret key; a federation's keys are made once")
    private = aggregate.make_aggregate_keys(network.build_plan())
    write_secret(folder / NOISE_FILE, secrets.token_bytes(SECRET_BYTES), key, NOISE_KIND)
    # Last, so that a folder with a secret key is complete.
    write_secret(folder / SECRET_KEY_FILE, aggregate.encode_private(private), key, SECRET_KIND)
    return aggregate.encode_public_key(private)


def build_model(network: FederatedNetwork, seed: int) -> bytes:
    """The first global model; the same seed gives the same. Loads the training library."""
    from workloads.capsnet_training import build_initial

    return encode_model(network, convert_to_units(network, build_initial(network.config, seed)))


def open_sum(
    network: Path,
    folder: Path,
    total: Path,
    *,
    participants: int,
    weights: int,
    noise_std: int,
    binding: bytes,
    output: Path,
    keys: FolderKeys = PLAIN,
) -> None:
    """Decrypt the sum of so many updates, clip it to what updates of these weights can come to, add noise,
    round; the same arguments always give the same bytes.

    `keys` open what is sealed in the folder. Raises WorkloadError on anything but the well-formed sum of at
    least two updates, so on one update.
    """
    found = read_network(network)
    plan = found.build_plan()
    try:
        private = aggregate.load_private(
            plan, read_secret(folder / SECRET_KEY_FILE, keys.secret, SECRET_KIND)
        )
        values = aggregate.decrypt_sum(private, plan, total, participants)
        secret = read_secret(folder / NOISE_FILE, keys.noise, NOISE_KIND)
    except (HeError, OSError) as error:
        raise WorkloadError(
            f"sum: {error}; only a round's sum is opened, by the custody's own keys"
        ) from error
    noise = np.array(draw_gaussian(secret, binding, found.parameters, noise_std), dtype=np.int64)
    _write(output, encode_opened(found, clip_sum(found, values, weights) + noise))


def clip_sum(network: FederatedNetwork, values: Integers, weights: int) -> Integers:
    """A sum (P,) in L2 norm at most clip x the listed weights, truncated.

    One of honest updates is never longer and stays as it is. A longer one has in it what nobody may send: an
    update beyond the clip, or multiples of another's ciphertexts, which would else stand out of the noise.
    """
    limit = float(network.clip) * weights
    norm = float(np.sqrt(np.square(values.astype(np.float64)).sum()))
    # The margin is for the norm's own rounding.
    if norm <= limit * (1 + 1e-12):
        return values
    clipped: Integers = np.trunc(values * (limit / norm)).astype(np.int64)
    return clipped


# --- validators ---------------------------------------------------------------------------------


def check_update(network: Path, update: Path) -> None:
    """Raises WorkloadError unless these bytes may be added. Loads no library."""
    plan = read_network(network).build_plan()
    try:
        aggregate.check_update(plan, update)
    except (HeError, OSError) as error:
        raise WorkloadError(f"update: {error}; encrypt again under this federation's key") from error


def sum_updates(network: Path, updates: tuple[Path, ...], output: Path) -> None:
    """The exact sum, the same bytes wherever it is computed; every update is checked. Loads no library."""
    plan = read_network(network).build_plan()
    try:
        aggregate.add_updates(plan, updates, output)
    except (HeError, OSError) as error:
        raise WorkloadError(f"updates: {error}") from error


def apply_opened(network: Path, model: Path, opened: Path, weights: int, output: Path) -> None:
    """Writes the model after a round; `weights` is the sum of the listed participants'."""
    found = read_network(network)
    read_model(found, model)
    try:
        with opened.open("rb") as file:
            data = file.read(16 + 8 * found.parameters + 1)
    except OSError as error:
        raise WorkloadError(f"opened: {error}") from error
    _write(output, add_opened(found, model.read_bytes(), data, weights))


def judge(network: Path, before: Path, after: Path, data: Path) -> tuple[int, int]:
    """Both models' mean losses on the validator's own data, in millionths. Loads the training library.

    Errors name the validator's file, never what is in it.
    """
    from workloads.capsnet_training import evaluate_loss

    found = read_network(network)
    images = load_data(found, data)

    def compute(path: Path) -> int:
        flat = convert_to_weights(found, read_model(found, path))
        loss = evaluate_loss(found.config, flat, images, found.settings)
        return min(MAX_LOSS, round(loss * LOSS_UNIT)) if np.isfinite(loss) else MAX_LOSS

    return compute(before), compute(after)


# --- participants -------------------------------------------------------------------------------


def train_update(job: UpdateJob) -> UpdateReport:
    """Train, clip, add noise if wanted, weigh, encrypt; each half in a process of its own that then ends.

    Encryption draws fresh randomness: keep the output, two encryptions of one round are two updates.
    """
    values, norm = run_apart(_train, job)
    network = read_network(job.network)
    run_apart(_encrypt, job, values)
    return UpdateReport(norm, norm > network.clip / 2**network.unit_bits, job.output.stat().st_size)


def clip_change(network: FederatedNetwork, change: NDArray[np.float64]) -> Integers:
    """A change of weights (P,) in units, in L2 norm at most the clip, the integers' too."""
    try:
        rows: Integers = clip_to_units(change.reshape(1, -1), network.clip, network.unit_bits)
    except ValueError as error:
        raise WorkloadError(f"update: {error}; train again with a lower rate") from error
    values: Integers = rows.reshape(-1)
    return values


def add_own_noise(network: FederatedNetwork, values: Integers, std: int, secret: bytes) -> Integers:
    """Clipped values (P,) with Gaussian noise of the participant's own, each cut to the clip: to cut what is
    noised already costs no privacy."""
    noise = np.array(draw_gaussian(secret, b"federation-own-noise", len(values), std), dtype=np.int64)
    kept: Integers = np.clip(values + noise, -network.clip, network.clip)
    return kept


def _train(job: UpdateJob) -> tuple[Integers, float]:
    from workloads.capsnet_training import train_local

    network = read_network(job.network)
    flat = convert_to_weights(network, read_model(network, job.model))
    trained = train_local(network.config, flat, load_data(network, job.data), network.settings, job.seed)
    change = trained.astype(np.float64) - flat.astype(np.float64)
    values = clip_change(network, change)
    if job.noise_std:
        values = add_own_noise(network, values, job.noise_std, secrets.token_bytes(SECRET_BYTES))
    return values, float(np.linalg.norm(change))


def _encrypt(job: UpdateJob, values: Integers) -> None:
    plan = read_network(job.network).build_plan()
    try:
        public = aggregate.load_public_key(plan, job.keys)
        _write(
            job.output,
            aggregate.encrypt_update(public, plan, values * np.int64(job.weight), weight=job.weight),
        )
    except (HeError, OSError) as error:
        raise WorkloadError(f"update: {error}") from error


def run_apart(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The call's result from a process of its own, which ends with it and takes its libraries along."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(call, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise WorkloadError("a process of training or encryption ended; is memory short?") from error


def _write(path: Path, data: bytes) -> None:
    """Owner-only from the first byte, on disk, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
