"""The key holder's side of encrypted sequences: models compiled, and sessions from frames to decisions.

A session asks for one result after another: the frames' features, then each segment of the recurrent part.
Between two requests it decrypts and encrypts again (a refresh). Its folder holds what lies between: features,
decisions and state in clear, for its owner alone; the keys lie in a folder of their own, a pair for frames
and one for segments, which have other parameters. Imports the encryption library by its calls, never torch.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from he.compiler import compile_network
from he.errors import HeError
from he.program import Program
from he.sequence_plan import SequencePlan, build_default_params, plan_sequence
from he.sequence_program import SegmentPlan, check_model, encode_clear_model
from workloads.base import WorkloadError
from workloads.diagnosis_client import EVALUATION_FILE, MAX_LOGIT, open_key_folder, write_file
from workloads.diagnosis_inference import DiagnosisInference
from workloads.diagnosis_model import get_provenance_path
from workloads.sequence import arrange_features, split_windows, vote
from workloads.sequence_inference import INFERENCE, SequenceInference
from workloads.sequence_model import load_network, load_sequences

if TYPE_CHECKING:
    from he.context import PrivateContext
    from he.sequences import OpenedState

Floats = NDArray[np.float64]
Report = Callable[[int, int], None]
"""Told (done, total) ciphertexts."""

ORDER_FILE: Final = "sequence.json"
SESSION_FILE: Final = "session.json"
DECISIONS_FILE: Final = "decisions.json"
DIGITS: Final = 4
"""Decimals of a probability: coarser than the rounding of decisions to 2^-16, whose mean it is."""
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
class Session:
    """Where a session stands. No secret and no pixel, but names of cases: it stays with its owner."""

    format: Literal["bmif-sequence-session-1"]
    models: str
    """Folder of the models."""
    models_sha256: str
    keys_sha256: tuple[str, str]
    """Of the evaluation keys for frames and for segments."""
    cases: tuple[str, ...]
    lengths: tuple[int, ...]
    """Frames of each case."""
    taken: tuple[str, ...]
    """Digests of the results so far."""


@dataclass(frozen=True, slots=True)
class Step:
    """The request that waits for its result."""

    number: int
    total: int
    request: Path
    model: Path
    keys: Path
    """The evaluation keys to submit with it."""
    refreshes: int
    """So far."""


@dataclass(frozen=True, slots=True)
class SequenceDecision:
    case: str
    probability: float
    """Mean over all decisions of all windows, rounded to `DIGITS`."""
    found: bool


@dataclass(frozen=True, slots=True)
class _Opened:
    folder: Path
    digest: str
    note: SequenceModels
    frames: Program
    segments: tuple[SegmentPlan, ...]

    def get_model(self, index: int) -> Path:
        return self.folder / self.note.order[index].name


_MODELS = TypeAdapter(SequenceModels)
_SESSION = TypeAdapter(Session)


def _ignore(done: int, total: int) -> None:
    """For callers that do not ask how far it is."""


# --- models -------------------------------------------------------------------------------------


def compile_sequence(network: Path, folder: Path) -> SequencePlan:
    """Writes the models that evaluators get, with clear weights; beside each the network's provenance, if
    it has one. Raises WorkloadError if no ring holds the network, with the reasons.
    """
    source = load_network(network)
    with _naming(network):
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


def _open_models(folder: Path, inference: SequenceInference) -> _Opened:
    """Raises WorkloadError unless the files are those that `sequence.json` names, and fit together."""
    path = folder / ORDER_FILE
    data = _read(path, "name the folder that `bmif diagnose sequence compile` wrote")
    try:
        note = _MODELS.validate_json(data, strict=True)
    except ValidationError as error:
        raise WorkloadError(f"{path}: is no list of models: {error.errors()[0]['msg']}") from error
    names = [one.name for one in note.order]
    if len(names) < 2 or names[:2] != ["frames.model", "first.model"] or len(names) > note.window + 1:
        raise WorkloadError(f"{path}: order: expected the models of frames and segments, got {names}")
    for one in note.order:
        if _compute_digest(folder / one.name) != one.sha256:
            raise WorkloadError(f"{folder / one.name}: is not the model that {path} names; fetch both again")
    frames = DiagnosisInference(inference.allow_insecure).open_model(folder / "frames.model")
    segments = []
    for name in names[1:]:
        with _naming(folder / name):
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
    return _Opened(folder, hashlib.sha256(data).hexdigest(), note, frames, tuple(segments))


# --- sessions -----------------------------------------------------------------------------------


def start_session(
    models: Path,
    sequences: Path,
    folder: Path,
    keys: Path,
    report: Report = _ignore,
    inference: SequenceInference = INFERENCE,
) -> Step:
    """Encrypts all frames of the sequences, a slot each; makes keys where `keys` has none.

    Raises WorkloadError for a folder that holds a session, frames of another size, too many of them.
    """
    if (folder / SESSION_FILE).exists():
        raise WorkloadError(f"{folder}: holds a session already; name another folder")
    opened = _open_models(models, inference)
    shape, window = opened.frames.network.shape, opened.note.window
    patients = load_sequences(sequences, shape[1])
    if patients[0].frames.shape[1:] != shape:
        raise WorkloadError(
            f"{sequences}: images: the network takes {shape[0]} colour planes, these have"
            f" {patients[0].frames.shape[1]}"
        )
    lengths = tuple(len(patient.frames) for patient in patients)
    for patient in patients:
        if len(patient.frames) < window:
            raise WorkloadError(
                f"{sequences}: case {patient.name}: needs {window} frames, has {len(patient.frames)}; repeat"
                " one"
            )
    windows = sum(lengths) - len(lengths) * (window - 1)
    for what, count, most in (
        ("frames", sum(lengths), opened.frames.images),
        ("windows", windows, opened.segments[0].program.params.slots),
    ):
        if count > most:
            raise WorkloadError(
                f"{sequences}: has {count} {what}, a request has {most} slots; make two sessions of them"
            )
    pairs = [_open_keys(opened, keys, segment, make=True) for segment in (False, True)]
    from he.diagnosis import encrypt_images

    with _naming(sequences):
        frames = np.concatenate([patient.frames for patient in patients])
        data = encrypt_images(pairs[0], opened.frames, frames, report)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    session = Session(
        format="bmif-sequence-session-1",
        models=str(models.resolve()),
        models_sha256=opened.digest,
        keys_sha256=_digest_keys(keys),
        cases=tuple(patient.name for patient in patients),
        lengths=lengths,
        taken=(),
    )
    write_file(folder / "request-1", data)
    _save_session(folder, session)
    return _build_step(opened, folder, keys, 0)


def advance_session(
    folder: Path,
    result: Path,
    keys: Path,
    models: Path | None = None,
    report: Report = _ignore,
    inference: SequenceInference = INFERENCE,
) -> Step | list[SequenceDecision]:
    """Takes the result of the request that waits: the next request, or at the end each case's decision.

    `models` says where their folder lies now, if not where it did. Nothing changes if it raises.
    Raises WorkloadError for results of another request, other models or keys, and a session at its end.
    """
    session = _load_session(folder)
    opened = _open_models(Path(session.models) if models is None else models, inference)
    if opened.digest != session.models_sha256:
        raise WorkloadError(f"{opened.folder}: holds other models than the session began with; name --models")
    number, total = len(session.taken), len(opened.note.order)
    if number >= total:
        raise WorkloadError(f"{folder}: is at its end; the decisions are in {folder / DECISIONS_FILE}")
    digest = _compute_digest(result)
    if digest in session.taken:
        raise WorkloadError(
            f"{result}: is the result of request {session.taken.index(digest) + 1}, taken already; the"
            f" session waits for that of request {number + 1}"
        )
    private = _open_keys(opened, keys, number > 0, make=False)
    if session.keys_sha256 != _digest_keys(keys):
        raise WorkloadError(f"{keys}: holds other keys than the session began with; name --keys")
    state, decisions = None, np.zeros((0, 0))
    if number == 0:
        features = _open_features(opened, session, private, result)
    else:
        features, decisions, state = _load_state(folder, number)
        got, state = _open_segment(opened, private, number, result, features.shape[2])
        decisions = got if number == 1 else np.concatenate([decisions, got])
    session = replace(session, taken=(*session.taken, digest))
    if number + 1 == total:
        answers = _decide(session, decisions)
        document = json.dumps([asdict(one) for one in answers], indent=2) + "\n"
        write_file(folder / DECISIONS_FILE, document.encode(), private=True)
        _save_session(folder, session)
        _get_state_path(folder, number).unlink(missing_ok=True)
        return answers
    from he.sequences import encrypt_segment

    private = private if number else _open_keys(opened, keys, True, make=False)
    plan = opened.segments[number]
    begin = sum(segment.program.steps for segment in opened.segments[:number])
    part = features[begin : begin + plan.program.steps]
    with _naming(result):
        data = encrypt_segment(private, plan, opened.get_model(number + 1), part, state, report)
    write_file(folder / f"request-{number + 2}", data)
    _save_state(folder, number + 1, features, decisions, state)
    # Until this is written the session stands where it stood.
    _save_session(folder, session)
    _get_state_path(folder, number).unlink(missing_ok=True)
    return _build_step(opened, folder, keys, number + 1)


def _open_features(opened: _Opened, session: Session, private: "PrivateContext", result: Path) -> Floats:
    """(window, F, B)."""
    from he.diagnosis import decrypt_result

    with _naming(result, "is not the result of request 1, for frames.model"):
        features = decrypt_result(private, opened.frames, result, sum(session.lengths))
    _check_values(result, features, opened.segments[0].program.feature_bound)
    return arrange_features(np.split(features, np.cumsum(session.lengths)[:-1]), opened.note.window)


def _open_segment(
    opened: _Opened, private: "PrivateContext", number: int, result: Path, count: int
) -> tuple[Floats, "OpenedState"]:
    from he.sequences import MAX_STATE, decrypt_segment

    model = opened.get_model(number)
    with _naming(result, f"is not the result of request {number + 1}, for {model.name}"):
        decisions, state = decrypt_segment(private, opened.segments[number - 1], model, result, count)
    _check_values(result, decisions, MAX_LOGIT)
    _check_values(result, np.stack([state.hidden, state.cell]), MAX_STATE)
    return decisions, state


def _check_values(result: Path, values: Floats, bound: float) -> None:
    if not bool((np.abs(values) <= bound).all()):
        raise WorkloadError(
            f"{result}: decrypts to nothing that the network gives: it was computed from another request or"
            " under other keys, or the evaluator returned something else"
        )


def _decide(session: Session, decisions: Floats) -> list[SequenceDecision]:
    """By vote; decisions (T, B) of windows beside each other."""
    scores = map(vote, split_windows(decisions, session.lengths))
    return [
        SequenceDecision(case, round(score, DIGITS), score >= 0.5)
        for case, score in zip(session.cases, scores, strict=True)
    ]


# --- files --------------------------------------------------------------------------------------


def _build_step(opened: _Opened, folder: Path, keys: Path, index: int) -> Step:
    return Step(
        number=index + 1,
        total=len(opened.note.order),
        request=folder / f"request-{index + 1}",
        model=opened.get_model(index),
        keys=keys / ("segments" if index else "frames") / EVALUATION_FILE,
        refreshes=index,
    )


def _open_keys(opened: _Opened, keys: Path, segment: bool, *, make: bool) -> "PrivateContext":
    params = opened.segments[0].program.params if segment else opened.frames.params
    return open_key_folder(params, (), keys / ("segments" if segment else "frames"), make=make)


def _digest_keys(keys: Path) -> tuple[str, str]:
    frames, segments = (_compute_digest(keys / name / EVALUATION_FILE) for name in ("frames", "segments"))
    return frames, segments


def _save_session(folder: Path, session: Session) -> None:
    write_file(folder / SESSION_FILE, (json.dumps(asdict(session)) + "\n").encode(), private=True)


def _load_session(folder: Path) -> Session:
    path = folder / SESSION_FILE
    try:
        return _SESSION.validate_json(_read(path, "name the folder that `start` wrote"), strict=True)
    except ValidationError as error:
        raise WorkloadError(f"{path}: is no session: {error.errors()[0]['msg']}") from error


def _get_state_path(folder: Path, number: int) -> Path:
    """Of what waits for the result of request `number` + 1."""
    return folder / f"state-{number + 1}.npz"


def _save_state(
    folder: Path, number: int, features: Floats, decisions: Floats, state: "OpenedState | None"
) -> None:
    from io import BytesIO

    hidden, cell = (np.zeros((0, 0)),) * 2 if state is None else (state.hidden, state.cell)
    buffer = BytesIO()
    np.savez(buffer, features=features, decisions=decisions, hidden=hidden, cell=cell)
    write_file(_get_state_path(folder, number), buffer.getvalue(), private=True)


def _load_state(folder: Path, number: int) -> tuple[Floats, Floats, "OpenedState"]:
    from he.sequences import OpenedState

    path = _get_state_path(folder, number)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            state = OpenedState(arrays["hidden"], arrays["cell"])
            return arrays["features"], arrays["decisions"], state
    except (OSError, ValueError, KeyError) as error:
        raise WorkloadError(f"{path}: can not be read: {error}; start a new session") from error


def _read(path: Path, remedy: str) -> bytes:
    if not path.is_file():
        raise WorkloadError(f"{path}: does not exist; {remedy}")
    if path.stat().st_size > _MAX_DOCUMENT:
        raise WorkloadError(f"{path}: has more than {_MAX_DOCUMENT} bytes")
    return path.read_bytes()


def _compute_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise WorkloadError(f"{path}: does not exist") from error


@contextmanager
def _naming(path: Path, what: str = "") -> Iterator[None]:
    """The encryption library's refusals as WorkloadError that name the file."""
    try:
        yield
    except HeError as error:
        raise WorkloadError(f"{path}: {what + ': ' if what else ''}{error}") from error
