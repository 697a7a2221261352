"""A sequence network's models as a folder: what its owner compiles, and what a requester opens and checks."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter, ValidationError

from he.compiler import compile_network
from he.errors import HeError
from he.program import Program, WeightKind
from he.recurrent import RecurrentCell
from he.sequence_plan import SequencePlan, build_default_params, plan_sequence
from he.sequence_program import SegmentPlan, check_model, encode_clear_model
from workloads.base import WorkloadError
from workloads.diagnosis_inference import DiagnosisInference
from workloads.diagnosis_keys import (
    EVALUATION_FILE,
    WantedKeys,
    WantedPair,
    open_public_keys,
    write_file,
)
from workloads.diagnosis_model import get_provenance_path
from workloads.sequence import MIN_FRAMES, ClearModel
from workloads.sequence_inference import SequenceInference
from workloads.sequence_model import load_network

ORDER_FILE: Final = "sequence.json"
ENCRYPTED_SCALE_BITS: Final = 40
"""Of frames whose weights are ciphertexts: under the compiler's own choice, of the smallest ring, features
would be exact to 2^-5 alone, and what follows takes them for numbers."""
_MAX_DOCUMENT: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class ModelFile:
    name: Literal["frames.model", "first.model", "middle.model", "last.model"]
    sha256: str


@dataclass(frozen=True, slots=True)
class SequenceModels:
    """What `compile_sequence` says of the models beside it; not secret."""

    format: Literal["bmif-sequence-models-1"]
    window: int
    order: tuple[ModelFile, ...]
    """The model of each request; a middle one occurs as often as it is used."""
    keys_sha256: tuple[str, str] | None = None
    """Of the evaluation keys for frames and for segments of the pairs that weights are encrypted under."""


@dataclass(frozen=True, slots=True)
class OpenedModels:
    folder: Path
    digest: str
    note: SequenceModels
    frames: Program
    segments: tuple[SegmentPlan, ...]

    @property
    def is_encrypted(self) -> bool:
        """Whether weights are ciphertexts."""
        return self.frames.options.weights == "encrypted"

    def get_model(self, index: int) -> Path:
        return self.folder / self.note.order[index].name


_MODELS = TypeAdapter(SequenceModels)


Report = Callable[[int, int], None]
"""Told (done, total) ciphertexts of a file."""


def _ignore(done: int, total: int) -> None:
    """For callers that do not ask how far it is."""


def compile_sequence(
    network: Path, folder: Path, keys: Path | None = None, report: Report = _ignore
) -> SequencePlan:
    """Writes the models that evaluators get; beside each the network's provenance, if it has one.

    With `keys` weights are encrypted under the public keys of its folders `frames` and `segments`, where a
    secret key need not be; pairs are made if there are none. Raises WorkloadError if no ring holds the
    network, with the reasons.
    """
    source = load_network(network)
    plan = _plan(network, source, "clear" if keys is None else "encrypted")
    last = len(plan.segments) - 1
    segments: dict[str, SegmentPlan] = {}
    order = ["frames.model"]
    for index, segment in enumerate(plan.segments):
        name = "first.model" if index == 0 else "middle.model"
        if index == last > 1 and segment.program != plan.segments[1].program:
            name = "last.model"
        segments[name] = segment
        order.append(name)
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    with naming(network):
        # One at a time: encrypted ones are large.
        for name in ("frames.model", *segments):
            if name in segments:
                data = _encode_segment(source.cell, segments[name], keys, report)
            else:
                data = _encode_frames(plan.frames, keys, report)
            digests[name] = hashlib.sha256(data).hexdigest()
            write_file(folder / name, data)
    known = get_provenance_path(network)
    if known.is_file():
        for name in digests:
            write_file(get_provenance_path(folder / name), known.read_bytes())
    # Last, so that a folder with it is complete.
    document: dict[str, object] = {
        "format": "bmif-sequence-models-1",
        "window": source.window,
        "order": [{"name": name, "sha256": digests[name]} for name in order],
    }
    if keys is not None:
        document["keys_sha256"] = digest_keys(keys)
    write_file(folder / ORDER_FILE, (json.dumps(document, indent=2) + "\n").encode())
    return plan


def write_wanted(network: Path, wanted: Path) -> SequencePlan:
    """Writes which keys models with encrypted weights would take, for the one who is to hold them.

    Raises WorkloadError as `compile_sequence` does.
    """
    plan = _plan(network, load_network(network), "encrypted")
    pairs = (
        WantedPair("frames", plan.frames.params.name),
        WantedPair("segments", plan.segments[0].program.params.name),
    )
    write_file(wanted, WantedKeys("bmif-wanted-keys-1", pairs).encode())
    return plan


def _plan(network: Path, source: ClearModel, weights: WeightKind) -> SequencePlan:
    encrypted = weights == "encrypted"
    with naming(network):
        frames = compile_network(
            source.frames,
            packing="batch",
            weights=weights,
            scale_bits=ENCRYPTED_SCALE_BITS if encrypted else None,
        )
        return plan_sequence(frames, source.cell, source.window, build_default_params(), encrypted=encrypted)


def _encode_frames(frames: Program, keys: Path | None, report: Report) -> bytes:
    from he.diagnosis import encode_model, encrypt_model

    if keys is None:
        return encode_model(frames)
    return encrypt_model(open_public_keys(frames.params, (), keys / "frames"), frames, report)


def _encode_segment(cell: RecurrentCell, plan: SegmentPlan, keys: Path | None, report: Report) -> bytes:
    from he.sequences import encrypt_model

    if keys is None:
        return encode_clear_model(plan.program, cell)
    public = open_public_keys(plan.program.params, (), keys / "segments")
    return encrypt_model(public, plan.program, cell, report)


def open_models(folder: Path, inference: SequenceInference) -> OpenedModels:
    """Raises WorkloadError unless the files are those that `sequence.json` names, and fit together."""
    path = folder / ORDER_FILE
    data = read_document(path, "name the folder that `bmif diagnose sequence compile` wrote")
    try:
        note = _MODELS.validate_json(data, strict=True)
    except ValidationError as error:
        raise WorkloadError(f"{path}: is no list of models: {error.errors()[0]['msg']}") from error
    names = [one.name for one in note.order]
    if (
        not 1 <= note.window <= MIN_FRAMES
        or names[:2] != ["frames.model", "first.model"]
        or len(names) > note.window + 1
    ):
        raise WorkloadError(f"{path}: order: expected the models of frames and segments, got {names}")
    for one in note.order:
        if compute_digest(folder / one.name) != one.sha256:
            raise WorkloadError(f"{folder / one.name}: is not the model that {path} names; fetch both again")
    frames = DiagnosisInference(inference.allow_insecure).open_model(folder / "frames.model")
    segments = []
    for name in names[1:]:
        with naming(folder / name):
            segments.append(check_model(folder / name, allow_insecure=inference.allow_insecure))
    programs = [segment.program for segment in segments]
    if (
        sum(program.steps for program in programs) != note.window
        or any(program.continues != (index > 0) for index, program in enumerate(programs))
        or any(program.params != programs[0].params for program in programs)
        or any(program.hidden != programs[0].hidden for program in programs)
        or any(program.features != frames.network.outputs for program in programs)
        or frames.options.packing != "batch"
        or any(program.encrypted != (frames.options.weights == "encrypted") for program in programs)
        or (note.keys_sha256 is not None) != (frames.options.weights == "encrypted")
    ):
        raise WorkloadError(f"{folder}: its models are not of one network; fetch them again")
    return OpenedModels(folder, hashlib.sha256(data).hexdigest(), note, frames, tuple(segments))


def digest_keys(keys: Path) -> tuple[str, str]:
    """Of the evaluation keys for frames and for segments."""
    frames, segments = (compute_digest(keys / name / EVALUATION_FILE) for name in ("frames", "segments"))
    return frames, segments


def read_document(path: Path, remedy: str) -> bytes:
    if not path.is_file():
        raise WorkloadError(f"{path}: does not exist; {remedy}")
    if path.stat().st_size > _MAX_DOCUMENT:
        raise WorkloadError(f"{path}: has more than {_MAX_DOCUMENT} bytes")
    return path.read_bytes()


def compute_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise WorkloadError(f"{path}: does not exist") from error


@contextmanager
def naming(path: Path, what: str = "") -> Iterator[None]:
    """The encryption library's refusals as WorkloadError that name the file."""
    try:
        yield
    except HeError as error:
        raise WorkloadError(f"{path}: {what + ': ' if what else ''}{error}") from error
