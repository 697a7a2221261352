"""The key holder's side of encrypted sequences: sessions from frames to decisions.

A session asks for one result after another: the frames' features, then each segment of the recurrent part.
Between two requests it decrypts and encrypts again (a refresh). Its folder holds what lies between: features,
decisions and state in clear, for its owner alone; the keys lie in a folder of their own, a pair for frames
and one for segments, which have other parameters. Imports the encryption library by its calls, never torch.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from workloads.base import WorkloadError
from workloads.diagnosis_client import MAX_LOGIT
from workloads.diagnosis_keys import EVALUATION_FILE, open_key_folder, write_file
from workloads.sequence import arrange_features, split_windows, vote
from workloads.sequence_inference import INFERENCE, SequenceInference
from workloads.sequence_model import load_sequences
from workloads.sequence_models import (
    OpenedModels,
    compute_digest,
    digest_keys,
    naming,
    open_models,
    read_document,
)

if TYPE_CHECKING:
    from he.context import PrivateContext
    from he.sequences import OpenedState

Floats = NDArray[np.float64]
Report = Callable[[int, int], None]
"""Told (done, total) ciphertexts."""

SESSION_FILE: Final = "session.json"
DECISIONS_FILE: Final = "decisions.json"
DIGITS: Final = 4
"""Decimals of a probability: coarser than the rounding of decisions to 2^-16, whose mean it is."""


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


_SESSION = TypeAdapter(Session)


def _ignore(done: int, total: int) -> None:
    """For callers that do not ask how far it is."""


# --- sessions -----------------------------------------------------------------------------------


def start_session(
    models: Path,
    sequences: Path,
    folder: Path,
    keys: Path,
    report: Report = _ignore,
    inference: SequenceInference = INFERENCE,
) -> Step:
    """Encrypts all frames of the sequences, a slot each; for clear weights makes keys where there are none.

    Raises WorkloadError for a folder that holds a session, frames of another size, too many of them, or other
    keys than those that weights are encrypted under.
    """
    if (folder / SESSION_FILE).exists():
        raise WorkloadError(f"{folder}: holds a session already; name another folder")
    opened = open_models(models, inference)
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
    # New keys could never open what is computed from weights under other ones.
    make = not opened.is_encrypted
    frames_key, _ = (_open_keys(opened, keys, segment, make=make) for segment in (False, True))
    if opened.is_encrypted and digest_keys(keys) != opened.note.keys_sha256:
        raise WorkloadError(
            f"{keys}: the weights of {models} are encrypted under other key pairs; name those ones' folder"
        )
    from he.diagnosis import encrypt_images

    with naming(sequences):
        frames = np.concatenate([patient.frames for patient in patients])
        data = encrypt_images(frames_key, opened.frames, frames, report)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    session = Session(
        format="bmif-sequence-session-1",
        models=str(models.resolve()),
        models_sha256=opened.digest,
        keys_sha256=digest_keys(keys),
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
    opened = open_models(Path(session.models) if models is None else models, inference)
    if opened.digest != session.models_sha256:
        raise WorkloadError(f"{opened.folder}: holds other models than the session began with; name --models")
    number, total = len(session.taken), len(opened.note.order)
    if number >= total:
        raise WorkloadError(f"{folder}: is at its end; the decisions are in {folder / DECISIONS_FILE}")
    digest = compute_digest(result)
    if digest in session.taken:
        raise WorkloadError(
            f"{result}: is the result of request {session.taken.index(digest) + 1}, taken already; the"
            f" session waits for that of request {number + 1}"
        )
    private = _open_keys(opened, keys, number > 0, make=False)
    if session.keys_sha256 != digest_keys(keys):
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
    with naming(result):
        data = encrypt_segment(private, plan, opened.get_model(number + 1), part, state, report)
    write_file(folder / f"request-{number + 2}", data)
    _save_state(folder, number + 1, features, decisions, state)
    # Until this is written the session stands where it stood.
    _save_session(folder, session)
    _get_state_path(folder, number).unlink(missing_ok=True)
    return _build_step(opened, folder, keys, number + 1)


def _open_features(opened: OpenedModels, session: Session, private: "PrivateContext", result: Path) -> Floats:
    """(window, F, B)."""
    from he.diagnosis import decrypt_result

    with naming(result, "is not the result of request 1, for frames.model"):
        features = decrypt_result(private, opened.frames, result, sum(session.lengths))
    _check_values(result, features, opened.segments[0].program.feature_bound)
    return arrange_features(np.split(features, np.cumsum(session.lengths)[:-1]), opened.note.window)


def _open_segment(
    opened: OpenedModels, private: "PrivateContext", number: int, result: Path, count: int
) -> tuple[Floats, "OpenedState"]:
    from he.sequences import MAX_STATE, decrypt_segment

    model = opened.get_model(number)
    with naming(result, f"is not the result of request {number + 1}, for {model.name}"):
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


def _build_step(opened: OpenedModels, folder: Path, keys: Path, index: int) -> Step:
    return Step(
        number=index + 1,
        total=len(opened.note.order),
        request=folder / f"request-{index + 1}",
        model=opened.get_model(index),
        keys=keys / ("segments" if index else "frames") / EVALUATION_FILE,
        refreshes=index,
    )


def _open_keys(opened: OpenedModels, keys: Path, segment: bool, *, make: bool) -> "PrivateContext":
    params = opened.segments[0].program.params if segment else opened.frames.params
    return open_key_folder(params, (), keys / ("segments" if segment else "frames"), make=make)


def _save_session(folder: Path, session: Session) -> None:
    write_file(folder / SESSION_FILE, (json.dumps(asdict(session)) + "\n").encode(), private=True)


def _load_session(folder: Path) -> Session:
    path = folder / SESSION_FILE
    try:
        return _SESSION.validate_json(read_document(path, "name the folder that `start` wrote"), strict=True)
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
