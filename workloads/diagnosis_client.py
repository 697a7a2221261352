"""The key holder's side of encrypted diagnosis: models compiled, keys made, images encrypted, results read.

With encrypted weights the model is under the same keys as the images (`workloads.diagnosis_keys`). Imports
the encryption library by its calls, never torch.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import TypeAdapter, ValidationError

from he.compiler import compile_network
from he.errors import HeError
from he.program import PACKINGS, WEIGHT_KINDS, Packing, Program, WeightKind
from workloads.base import WorkloadError
from workloads.diagnosis_images import ReadOptions, load_images
from workloads.diagnosis_inference import INFERENCE, DiagnosisInference
from workloads.diagnosis_keys import (
    EVALUATION_FILE,
    WantedKeys,
    WantedPair,
    find_folder,
    get_rotations,
    open_keys,
    open_public_keys,
    write_file,
)
from workloads.diagnosis_model import (
    Provenance,
    compute_probability,
    get_provenance_path,
    load_network,
    load_provenance,
)

NOTE_SUFFIX = ".json"
MAX_LOGIT = 64.0
"""No trained network is surer than this; what decrypts to more was under other keys."""
_MAX_NOTE_BYTES = 1 << 24

Report = Callable[[int, int], None]
"""Told (done, total) ciphertexts."""


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """What the model's owner chooses."""

    packing: Packing = "single"
    weights: WeightKind = "clear"
    fold: bool = True
    absorb: bool = True

    @classmethod
    def parse(cls, packing: str, weights: str, fold: bool, absorb: bool) -> Self:
        """Raises WorkloadError for words that are none."""
        for known_packing in PACKINGS:
            for known_weights in WEIGHT_KINDS:
                if (packing, weights) == (known_packing, known_weights):
                    return cls(known_packing, known_weights, fold, absorb)
        raise WorkloadError(
            f"packing is one of {', '.join(PACKINGS)}, weights one of {', '.join(WEIGHT_KINDS)};"
            f" got {packing!r} and {weights!r}"
        )


@dataclass(frozen=True, slots=True)
class RequestNote:
    """What the requester remembers of a request; it names images, so it stays with the secret key."""

    format: Literal["bmif-diagnosis-request-1"]
    model_sha256: str
    keys_sha256: str
    """Of the evaluation keys."""
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Of one image."""

    image: str
    logit: float
    probability: float
    """Of the finding, rounded to `digits`."""
    digits: int
    """Decimals that the measured precision of the logit leaves."""
    found: bool | None
    """Whether the logit reaches the model's threshold; None where the threshold is not known."""


_NOTE = TypeAdapter(RequestNote)


def _ignore(done: int, total: int) -> None:
    """For callers that do not ask how far it is."""


# --- models -----------------------------------------------------------------------------------


def compile_model(
    network: Path,
    output: Path,
    keys: Path | None,
    options: CompileOptions,
    report: Report = _ignore,
) -> Program:
    """Writes the model that evaluators get, and its provenance beside it where the network has one.

    Encrypted weights are so under the public key in `keys`, where a secret key need not be; a pair is made
    if there is none. Raises WorkloadError if no ring holds the network, with the reasons.
    """
    if (keys is None) == (options.weights == "encrypted"):
        raise WorkloadError(
            "keys: encrypted weights need a folder of keys (or --wants, to have them made by their holder),"
            " and clear ones take none"
        )
    program = _compile(network, options)
    from he.diagnosis import encode_model, encrypt_model

    digest = ""
    with _naming(network):
        if keys is None:
            data = encode_model(program)
        else:
            folder = find_folder(keys)
            public = open_public_keys(program.params, get_rotations(program), folder)
            data = encrypt_model(public, program, report)
            digest = _compute_digest(folder / EVALUATION_FILE)
    write_file(output, data)
    known = get_provenance_path(network)
    if known.is_file():
        provenance = replace(load_provenance(known), keys_sha256=digest)
        write_file(get_provenance_path(output), provenance.encode().encode())
    return program


def write_wanted(network: Path, wanted: Path, options: CompileOptions) -> Program:
    """Writes which keys the model would take, for the one who is to hold them, and no model.

    Raises WorkloadError as `compile_model` does, and if weights are to be clear.
    """
    if options.weights != "encrypted":
        raise WorkloadError("wants: clear weights take any keys that a requester makes")
    program = _compile(network, options)
    pair = WantedPair("", program.params.name, get_rotations(program))
    write_file(wanted, WantedKeys("bmif-wanted-keys-1", (pair,)).encode())
    return program


def _compile(network: Path, options: CompileOptions) -> Program:
    source = load_network(network)
    try:
        return compile_network(
            source,
            packing=options.packing,
            weights=options.weights,
            fold=options.fold,
            absorb=options.absorb,
        )
    except HeError as error:
        raise WorkloadError(f"{network}: can not be compiled: {error}") from error


# --- requests and results ---------------------------------------------------------------------


def encrypt_files(
    model: Path,
    images: Path,
    keys: Path,
    request: Path,
    read: ReadOptions,
    report: Report,
    inference: DiagnosisInference = INFERENCE,
) -> RequestNote:
    """Encrypts an image file, or a folder of them, for the model; makes keys if the folder has none.

    Beside the request a note is written that `decrypt_file` wants. Raises WorkloadError for images of
    another size, more of them than a request holds, a file that is no model, or keys that do not fit.
    A provenance beside the model decides whether images are evened in contrast; without one, `read` does.
    """
    program = inference.open_model(model)
    channels, height, width = program.network.shape
    provenance = _find_provenance(model)
    even = read.even if provenance is None else provenance.even_contrast
    read = replace(read, size=(height, width), channels=channels, even=even)
    pixels, names = load_images(images, read)
    if len(names) > program.images:
        raise WorkloadError(
            f"{images}: has {len(names)} images, a request to this model holds {program.images}"
        )
    encrypted = program.options.weights == "encrypted"
    # New keys could never open what is computed from weights under other ones.
    private = open_keys(program, keys, make=not encrypted)
    digest = _compute_digest(keys / EVALUATION_FILE)
    if encrypted and provenance is not None and provenance.keys_sha256 != digest:
        raise WorkloadError(
            f"{keys}: the weights of {model} are encrypted under another key pair; name that one's folder"
        )
    from he.diagnosis import encrypt_images

    with _naming(images):
        data = encrypt_images(private, program, pixels, report)
    write_file(request, data)
    note = RequestNote("bmif-diagnosis-request-1", _compute_digest(model), digest, names)
    write_file(_get_note_path(request), (json.dumps(asdict(note)) + "\n").encode(), private=True)
    return note


def decrypt_file(
    model: Path, request: Path, keys: Path, result: Path, inference: DiagnosisInference = INFERENCE
) -> list[Diagnosis]:
    """What a result says of each image of the request.

    Raises WorkloadError if model, request, keys and result do not belong together, so far as can be seen.
    """
    program = inference.open_model(model)
    note = _load_note(_get_note_path(request))
    if note.model_sha256 != _compute_digest(model):
        raise WorkloadError(f"{request}: was encrypted for another model than {model}; name that one")
    private = open_keys(program, keys, make=False)
    if note.keys_sha256 != _compute_digest(keys / EVALUATION_FILE):
        raise WorkloadError(f"{request}: was encrypted under other keys than those in {keys}")
    if program.network.outputs != 1:
        raise WorkloadError(f"{model}: gives {program.network.outputs} numbers, a diagnosis has one logit")
    from he.diagnosis import decrypt_result, get_rounding_bits

    with _naming(result):
        logits = decrypt_result(private, program, result, len(note.images))[:, 0]
    if not bool((np.abs(logits) <= MAX_LOGIT).all()):
        raise WorkloadError(
            f"{result}: decrypts to nothing that a network gives: its model, request and keys are not of one"
            " pair, or the evaluator returned something else"
        )
    provenance = _find_provenance(model)
    # A probability changes at most a quarter as much as its logit.
    digits = max(1, int((get_rounding_bits(program) + 2) * np.log10(2)))
    return [
        Diagnosis(
            name,
            float(logit),
            round(compute_probability(float(logit)), digits),
            digits,
            None if provenance is None else bool(logit >= provenance.threshold),
        )
        for name, logit in zip(note.images, logits, strict=True)
    ]


def get_classes(model: Path) -> tuple[str, str]:
    """Names of no finding and finding: of the model's provenance if it is beside it."""
    provenance = _find_provenance(model)
    return ("0", "1") if provenance is None else provenance.classes


def _find_provenance(model: Path) -> Provenance | None:
    path = get_provenance_path(model)
    return load_provenance(path) if path.is_file() else None


def _get_note_path(request: Path) -> Path:
    return request.with_name(request.name + NOTE_SUFFIX)


def _load_note(path: Path) -> RequestNote:
    if not path.is_file():
        raise WorkloadError(f"{path}: does not exist; `bmif diagnose encrypt` wrote it beside the request")
    if path.stat().st_size > _MAX_NOTE_BYTES:
        raise WorkloadError(f"{path}: is too large for a request's note")
    try:
        return _NOTE.validate_json(path.read_bytes())
    except ValidationError as error:
        raise WorkloadError(f"{path}: is no request's note: {error.errors()[0]['msg']}") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """The encryption library's refusals as WorkloadError that name the file."""
    try:
        yield
    except HeError as error:
        raise WorkloadError(f"{path}: {error}") from error


def _compute_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise WorkloadError(f"{path}: does not exist") from error
