"""A trained sequence network as a file, its provenance, and the sequences it is trained on or asked about."""

import hashlib
import json
import struct
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from he import network as networks
from he.errors import ParameterError
from he.recurrent import RecurrentCell
from workloads.base import WorkloadError
from workloads.diagnosis_metrics import compute_metrics
from workloads.sequence import (
    MIN_FRAMES,
    ClearModel,
    Patient,
    SequenceConfig,
    evaluate_clear,
    prepare_frames,
    split_patients,
    vote,
)

MAX_NETWORK_BYTES: Final = 1 << 26
_MAGIC: Final = b"BMIFSQN1"
_HEAD: Final = struct.Struct("<8sHI")
"""Magic, window, length of the frames' network; that network and the cell follow."""
_MAX_BYTES: Final = 2**30
"""Of an npz file's arrays, unpacked."""
_HELD_BACK: Final = 4
"""One patient in so many is kept for the test."""


@dataclass(frozen=True, slots=True)
class SequenceProvenance:
    """Where a sequence network comes from: to be published with it. It tells nothing of single patients."""

    format: Literal["bmif-sequence-1"]
    network_sha256: str
    data_sha256: str
    """Of the file of sequences."""
    patients: tuple[int, int]
    """Trained on, and held back."""
    shape: tuple[int, int, int]
    """(C, S, S) of a frame."""
    window: int
    seed: int
    epochs: int
    auc: tuple[float, float, float]
    """Of the vote on patients held back, in clear, and the ends of its 95 % interval."""
    largest: dict[str, float]
    """Largest argument of each polynomial in training."""

    def encode(self) -> bytes:
        """JSON with sorted keys."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


# --- the network's bytes ------------------------------------------------------------------------


def encode_network(model: ClearModel) -> bytes:
    """Head, the frames' network and the cell, each in its own canonical encoding."""
    frames = networks.encode(model.frames)
    return _HEAD.pack(_MAGIC, model.window, len(frames)) + frames + model.cell.encode()


def decode_network(data: bytes) -> ClearModel:
    """What `encode_network` gave, and nothing else.

    Raises: ParameterError.
    """
    if len(data) < _HEAD.size:
        raise ParameterError(f"sequence network: {len(data)} bytes are too few")
    magic, window, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or not 1 <= window <= MIN_FRAMES or length > len(data) - _HEAD.size:
        raise ParameterError("sequence network: not the encoding of one")
    end = _HEAD.size + length
    model = ClearModel(networks.decode(data[_HEAD.size : end]), RecurrentCell.decode(data[end:]), window)
    if model.frames.outputs != model.cell.features:
        raise ParameterError(
            f"sequence network: frames give {model.frames.outputs} features, the cell takes"
            f" {model.cell.features}"
        )
    return model


def load_network(path: Path) -> ClearModel:
    """Raises WorkloadError if it is no sequence network."""
    if not path.is_file():
        raise WorkloadError(f"{path}: does not exist")
    if path.stat().st_size > MAX_NETWORK_BYTES:
        raise WorkloadError(f"{path}: is larger than the {MAX_NETWORK_BYTES} bytes that a network may have")
    try:
        return decode_network(path.read_bytes())
    except ParameterError as error:
        raise WorkloadError(
            f"{path}: is not a network that `bmif diagnose sequence train` wrote: {error}"
        ) from error


# --- sequences ----------------------------------------------------------------------------------


def load_sequences(path: Path, side: int, *, labelled: bool = False) -> list[Patient]:
    """The cases of an npz file, by name, with frames (T, C, side, side) in their order.

    Arrays, one row a frame: `images` (n, S, S[, 3]) of 8 bits, S a multiple of `side`; `case` (n,), text or
    integers; `order` (n,), integers, none twice in a case; `label` (n,), 0 or 1, one a case, if `labelled`.
    Raises WorkloadError naming the array at fault.
    """
    names = ["images", "case", "order", *(["label"] if labelled else [])]
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > _MAX_BYTES:
            raise WorkloadError(f"{path}: unpacks to {total} bytes, more than {_MAX_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays.files]
            if missing:
                raise WorkloadError(f"{path}: lacks the arrays {', '.join(missing)}")
            found = {name: np.asarray(arrays[name]) for name in names}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise WorkloadError(f"{path}: can not be read as sequences: {error}") from error
    images = _check_images(path, found["images"])
    for name in names[1:]:
        kinds = "iuU" if name == "case" else "iub"
        if found[name].shape != (len(images),) or found[name].dtype.kind not in kinds:
            raise WorkloadError(
                f"{path}: {name}: expected {len(images)} {'names' if name == 'case' else 'integers'},"
                f" got {found[name].shape} of {found[name].dtype}"
            )
    try:
        frames = prepare_frames(images, side)
    except WorkloadError as error:
        raise WorkloadError(f"{path}: {error}") from error
    patients = []
    for case in np.unique(found["case"]):
        rows = np.flatnonzero(found["case"] == case)
        order = found["order"][rows]
        if len(set(order.tolist())) != len(rows):
            raise WorkloadError(f"{path}: order: case {case} has two frames of one place")
        label = 0
        if labelled:
            given = set(found["label"][rows].tolist())
            if len(given) != 1 or not given <= {0, 1}:
                raise WorkloadError(f"{path}: label: case {case} needs one label, 0 or 1, got {given}")
            label = int(given.pop())
        patients.append(Patient(str(case), label, frames[rows[np.argsort(order)]]))
    return patients


def _check_images(path: Path, images: NDArray[np.generic]) -> NDArray[np.uint8]:
    """(n, S, S, 1 or 3)."""
    colour = images.ndim == 4 and images.shape[3] == 3
    if images.dtype != np.uint8 or not (images.ndim == 3 or colour) or not len(images):
        raise WorkloadError(
            f"{path}: images: expected (n, S, S) or (n, S, S, 3) of 8 bits, got {images.shape} of"
            f" {images.dtype}"
        )
    whole = images.astype(np.uint8)
    return whole if colour else whole[..., None]


# --- training -----------------------------------------------------------------------------------


def train_sequences(
    data: Path, *, side: int, window: int, features: int, epochs: int, seed: int
) -> tuple[bytes, SequenceProvenance]:
    """The network's bytes, trained on three quarters of the patients and measured on the others.

    Loads torch. Raises WorkloadError on data that is none, or has too few patients of a class.
    """
    from workloads.sequence_training import TrainingSettings, export, train

    patients = load_sequences(data, side, labelled=True)
    labels = [patient.label for patient in patients]
    if min(labels.count(0), labels.count(1)) < _HELD_BACK:
        raise WorkloadError(
            f"{data}: has {labels.count(0)} patients of label 0 and {labels.count(1)} of 1; each needs"
            f" {_HELD_BACK} or more"
        )
    short = [patient.name for patient in patients if len(patient.frames) < window]
    if short:
        raise WorkloadError(f"{data}: case {short[0]} has fewer than {window} frames; repeat one")
    held = set(split_patients(labels, _HELD_BACK, seed)[0])
    trained_on = [patient for index, patient in enumerate(patients) if index not in held]
    others = [patients[index] for index in sorted(held)]
    shape = patients[0].frames.shape[1:]
    config = SequenceConfig(planes=shape[0], side=side, window=window, features=features, hidden=features)
    network, largest = train(config, TrainingSettings(epochs=epochs, seed=seed), trained_on)
    model = export(network, trained_on)
    scores = np.array([vote(decisions) for decisions in evaluate_clear(model, others)])
    auc = compute_metrics(scores, np.array([one.label for one in others], dtype=np.int64), 0.5, seed=seed).auc
    encoded = encode_network(model)
    return encoded, SequenceProvenance(
        format="bmif-sequence-1",
        network_sha256=hashlib.sha256(encoded).hexdigest(),
        data_sha256=hashlib.sha256(data.read_bytes()).hexdigest(),
        patients=(len(trained_on), len(others)),
        shape=(shape[0], shape[1], shape[2]),
        window=window,
        seed=seed,
        epochs=epochs,
        auc=(auc.value, auc.low, auc.high),
        largest=largest,
    )
