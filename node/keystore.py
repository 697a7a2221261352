"""Account keys on disk: PKCS#8 PEM, mode 0600, never overwritten."""

import os
from pathlib import Path

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from consensus.crypto import SigningKey
from consensus.types import Address


class KeyFileError(ValueError):
    """A key file is missing, damaged, of another kind, or would be overwritten."""


def write_private_file(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read, synced to disk.

    Raises: KeyFileError if the file exists already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise KeyFileError(f"{path} exists already; choose another name or move it away") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def create_account_key(path: Path) -> Address:
    """Make a fresh key in a new file and return its address."""
    key = Ed25519PrivateKey.generate()
    write_private_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Address(key.public_key().public_bytes_raw())


def load_account_key(path: Path) -> SigningKey:
    """The key in the file.

    Raises: KeyFileError naming the file, never its contents.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        # The last two: another kind of key than this library was built with, or one it can't set up.
        raise KeyFileError(f"{path} is not an unencrypted PKCS#8 PEM key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is not an Ed25519 key")
    return SigningKey(key.private_bytes_raw())
