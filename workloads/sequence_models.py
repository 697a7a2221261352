"""A sequence network's models as a folder: what its owner compiles, and what a requester opens and checks."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter, ValidationError

from he.compiler import compile_network
from he.errors import HeError
from he.program import Program
from he.sequence_plan import SequencePlan, build_default_params, plan_sequence
from he.sequence_program import SegmentPlan, check_model, encode_clear_model
from workloads.base import WorkloadError
from workloads.diagnosis_inference import DiagnosisInference
from workloads.diagnosis_keys import write_file
from workloads.diagnosis_model import get_provenance_path
from workloads.sequence import MIN_FRAMES
from workloads.sequence_inference import SequenceInference
from workloads.sequence_model import load_network

ORDER_FILE: Final = "sequence.json"
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


@dataclass(frozen=True, slots=True)
class OpenedModels:
    folder: Path
    digest: str
    note: SequenceModels
    frames: Program
    segments: tuple[SegmentPlan, ...]

    def get_model(self, index: int) -> Path:
        return self.folder / self.note.order[index].name


_MODELS = TypeAdapter(SequenceModels)


def compile_sequence(network: Path, folder: Path) -> SequencePlan:
    """Writes the models that evaluators get, with clear weights; beside each the network's provenance, if
    it has one. Raises WorkloadError if no ring holds the network, with the reasons.
    """
    source = load_network(network)
    with naming(network):
        frames = compile_network(source.frames, packing="batch")
        plan = plan_sequence(frames, source.cell, source.window, build_default_params())
        from he.diagnosis import encode_model

        last = len(plan.segments) - 1
        files, order = {"frames.model": encode_model(frames)}, ["frames.model"]
        for index, segment in enumerate(plan.segments):
            name = "first.model" if index == 0 else "middle.model"
            if index == last > 1 and segment.program != plan.segments[1].program:
                name = "last.model"
            files[name] = encode_clear_model(segment.program, source.cell)
            order.append(name)
    folder.mkdir(parents=True, exist_ok=True)
    known = get_provenance_path(network)
    for name, data in files.items():
        write_file(folder / name, data)
        if known.is_file():
            write_file(get_provenance_path(folder / name), known.read_bytes())
    entries = [{"name": name, "sha256": hashlib.sha256(files[name]).hexdigest()} for name in order]
    # Last, so that a folder with it is complete.
    document = {"format": "bmif-sequence-models-1", "window": source.window, "order": entries}
    write_file(folder / ORDER_FILE, (json.dumps(document, indent=2) + "\n").encode())
    return plan


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
        or any(program.encrypted for program in programs)
        or (frames.options.packing, frames.options.weights) != ("batch", "clear")
    ):
        raise WorkloadError(f"{folder}: its models are not of one network of clear weights; fetch them again")
    return OpenedModels(folder, hashlib.sha256(data).hexdigest(), note, frames, tuple(segments))


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
