"""Key pairs of encrypted diagnosis as folders, and how a model's owner encrypts under another's public key.

A folder holds `secret.key`, which only its owner may read; `evaluation.keys`, which evaluators get; and
`public.key`, which encrypts. A folder of the last two alone is what a key holder hands to the owner of a
model: weights are encrypted with it, and the secret key never lies where the model is in clear. The owner
says first which keys the model takes (`WantedKeys`): parameters and rotations, nothing of the weights but
how large they are at most.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import TypeAdapter, ValidationError

from he.errors import GateError, HeError
from he.galois import check_rotations
from he.params import CkksParams, get_params
from he.program import Program
from workloads.base import WorkloadError

if TYPE_CHECKING:
    from he.context import PrivateContext, PublicContext

SECRET_FILE: Final = "secret.key"
EVALUATION_FILE: Final = "evaluation.keys"
PUBLIC_FILE: Final = "public.key"
_MAX_WANTED_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class WantedPair:
    folder: Literal["", "frames", "segments"]
    """Below the folder of the keys."""
    parameters: str
    rotations: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WantedKeys:
    """The key pairs that a model with encrypted weights takes; not secret."""

    format: Literal["bmif-wanted-keys-1"]
    pairs: tuple[WantedPair, ...]

    def encode(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()


_WANTED = TypeAdapter(WantedKeys)


def make_wanted(path: Path, keys: Path) -> tuple[Path, ...]:
    """New keys for what the document asks; the folders with what its writer, the model's owner, is to get.

    Raises WorkloadError for a document that is none, parameters below 128-bit security, keys in the way.
    """
    if not path.is_file():
        raise WorkloadError(f"{path}: does not exist; `bmif diagnose compile --wants` writes it")
    if path.stat().st_size > _MAX_WANTED_BYTES:
        raise WorkloadError(f"{path}: has more than {_MAX_WANTED_BYTES} bytes")
    try:
        wanted = _WANTED.validate_json(path.read_bytes(), strict=True)
        pairs = [(keys / one.folder, get_params(one.parameters), one.rotations) for one in wanted.pairs]
    except ValidationError as error:
        raise WorkloadError(f"{path}: is no list of wanted keys: {error.errors()[0]['msg']}") from error
    except HeError as error:
        raise WorkloadError(f"{path}: {error}") from error
    folders = [folder for folder, _, _ in pairs]
    if not pairs or len(set(folders)) != len(pairs):
        raise WorkloadError(f"{path}: pairs: expected one or more, each in a folder of its own")
    for folder, params, rotations in pairs:
        try:
            check_rotations(params, rotations)
        except HeError as error:
            raise WorkloadError(f"{path}: {error}") from error
        if (folder / SECRET_FILE).exists():
            raise WorkloadError(f"{folder}: holds a key pair already; name another folder")
    for folder, params, rotations in pairs:
        open_key_folder(params, rotations, folder)
    return tuple(folders)


def open_keys(program: Program, folder: Path, *, make: bool = True) -> "PrivateContext":
    """As `open_key_folder`, for a program."""
    return open_key_folder(program.params, get_rotations(program), folder, make=make)


def open_key_folder(
    params: CkksParams, rotations: tuple[int, ...], folder: Path, *, make: bool = True
) -> "PrivateContext":
    """The keys in the folder; new ones if it has none and `make`.

    Raises WorkloadError if they are for other parameters, or there are none.
    """
    from he.context import PrivateContext
    from he.diagnosis import encode_keys, encode_public_key

    secret = folder / SECRET_FILE
    if secret.is_file():
        try:
            return PrivateContext.load(params, secret, rotations)
        except GateError as error:
            raise WorkloadError(
                f"{secret}: is no key for this model ({params.name}); name the folder of the keys"
                " that were made for it, or a new one"
            ) from error
    if not make:
        raise WorkloadError(f"{secret}: does not exist; name the folder of the keys that fit")
    folder.mkdir(parents=True, exist_ok=True)
    private = PrivateContext.generate(params, rotations)
    write_file(folder / EVALUATION_FILE, encode_keys(private))
    write_file(folder / PUBLIC_FILE, encode_public_key(private))
    # Last, so that a folder with a secret key is complete.
    write_file(secret, private.save(), private=True)
    return private


def open_public_keys(params: CkksParams, rotations: tuple[int, ...], folder: Path) -> "PublicContext":
    """What a model's weights are encrypted with: the public key alone where the folder has no secret key.

    New keys are made where it has neither. Raises WorkloadError for a key of other parameters, or without
    the evaluation keys that are registered with the model.
    """
    from he.context import PublicContext
    from he.keys import PublicKey

    path = folder / PUBLIC_FILE
    if (folder / SECRET_FILE).is_file() or not path.is_file():
        return open_key_folder(params, rotations, folder).public
    if not (folder / EVALUATION_FILE).is_file():
        raise WorkloadError(f"{folder / EVALUATION_FILE}: does not exist; ask the key holder for it too")
    try:
        return PublicContext(params, PublicKey.decode(params, path))
    except GateError as error:
        raise WorkloadError(
            f"{path}: is no public key for this model ({params.name}): ask the key holder to make keys by"
            " what `bmif diagnose compile --wants` writes"
        ) from error


def find_folder(keys: Path) -> Path:
    """What a path to keys names: a folder, or the public key in it."""
    return keys.parent if keys.is_file() else keys


def get_rotations(program: Program) -> tuple[int, ...]:
    """The rotations that the program's keys are for, ascending."""
    if program.options.packing == "batch":
        return ()
    from he.envelope import get_single_plan

    return get_single_plan(program).rotations


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Whole or not at all; what is private is its owner's alone from the first byte."""
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
