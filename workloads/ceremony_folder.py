"""A member's folder of one key ceremony: secrets before contributions, each whole or not at all.

Of each round two files: `<round>.secret`, what is secret of it followed by the contribution's bytes, and then
`<round>.blob`, the contribution. So a contribution that was sent can always be made again, and nothing random
is drawn twice. Every file is its owner's alone; secrets are sealed where there is a key. One process at a
time works in a folder, the others wait.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from workloads.ceremony import ROUNDS
from workloads.sealed import (
    NOISE_KIND,
    SECRET_KIND,
    SealedHeader,
    SealError,
    SealingKey,
    is_sealed,
    read_header,
    read_secret,
    read_start,
    write_secret,
)

CEREMONY_KIND: Final = "ceremony-secret"
SECRET_KEY_FILE: Final = "secret.key"
NOISE_FILE: Final = "noise.key"
PUBLIC_KEY_FILE: Final = "public.key"
RELIN_KEYS_FILE: Final = "relin.keys"
_KEPT: Final = (PUBLIC_KEY_FILE, RELIN_KEYS_FILE, NOISE_FILE, SECRET_KEY_FILE)


class CeremonyFolder:
    """A folder in which this process alone works; from `open_folder`."""

    def __init__(self, path: Path, key: SealingKey | None, descriptor: int) -> None:
        self.path = path
        self._key = key
        self._descriptor = descriptor

    @property
    def is_finished(self) -> bool:
        """The secret key is written last."""
        return (self.path / SECRET_KEY_FILE).exists()

    def get_blob(self, round_name: str) -> Path:
        return self.path / f"{round_name}.blob"

    def load_blob(self, round_name: str) -> bytes | None:
        """The contribution, if its file is there."""
        try:
            return self.get_blob(round_name).read_bytes()
        except FileNotFoundError:
            return None

    def load_secret(self, round_name: str) -> bytes | None:
        """What is secret of a round, then its contribution; None before the round. Raises: WorkloadError."""
        try:
            return read_secret(self._get_secret(round_name), self._key, CEREMONY_KIND)
        except FileNotFoundError:
            return None

    def store_secret(self, round_name: str, data: bytes) -> None:
        """On disk when this returns."""
        write_secret(self._get_secret(round_name), data, self._key, CEREMONY_KIND)
        os.fsync(self._descriptor)

    def store_blob(self, round_name: str, data: bytes) -> Path:
        """On disk when this returns; a file that has these bytes is left as it is."""
        if self.load_blob(round_name) != data:
            self._write(self.get_blob(round_name), data)
        return self.get_blob(round_name)

    def store_keys(self, public_key: bytes, relin_keys: bytes, noise: bytes, secret: bytes) -> None:
        """The secret key last, so that a folder with one is complete."""
        self._write(self.path / PUBLIC_KEY_FILE, public_key)
        self._write(self.path / RELIN_KEYS_FILE, relin_keys)
        write_secret(self.path / NOISE_FILE, noise, self._key, NOISE_KIND)
        os.fsync(self._descriptor)
        write_secret(self.path / SECRET_KEY_FILE, secret, self._key, SECRET_KIND)
        os.fsync(self._descriptor)

    def load_noise(self) -> bytes:
        """A finished ceremony's. Raises: WorkloadError, OSError."""
        return read_secret(self.path / NOISE_FILE, self._key, NOISE_KIND)

    def erase_secrets(self) -> None:
        """Overwrites and removes what is secret of the rounds; copies that the disk made are beyond reach."""
        for round_name in ROUNDS:
            _erase(self._get_secret(round_name))
        os.fsync(self._descriptor)

    def erase_parts(self) -> None:
        """What a process left that died while it wrote."""
        for path in sorted(self.path.glob(".*.part")):
            _erase(path)

    def erase_blobs(self) -> None:
        for round_name in ROUNDS:
            _erase(self.get_blob(round_name))
        os.fsync(self._descriptor)

    def erase_keys(self) -> None:
        """The secret key first: what is left is no folder of keys."""
        for name in reversed(_KEPT):
            _erase(self.path / name)
        os.fsync(self._descriptor)

    def _get_secret(self, round_name: str) -> Path:
        return self.path / f"{round_name}.secret"

    def _write(self, path: Path, data: bytes) -> None:
        write_secret(path, data, None, "")
        os.fsync(self._descriptor)


@contextlib.contextmanager
def open_folder(path: Path, key: SealingKey | None = None) -> Iterator[CeremonyFolder]:
    """The folder, made if there is none; waits for a process that works in it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder = CeremonyFolder(path, key, descriptor)
        folder.erase_parts()
        yield folder
    finally:
        os.close(descriptor)


def forget_folder(path: Path, *, failed: bool) -> None:
    """Of a finished ceremony, all but its keys goes; of any other, or if it `failed`, everything."""
    if not path.exists():
        return
    with open_folder(path) as folder:
        kept = folder.is_finished and not failed
        if not kept:
            folder.erase_keys()
        folder.erase_secrets()
        folder.erase_blobs()
    if not kept:
        # What somebody else put there stays, and the folder with it.
        with contextlib.suppress(OSError):
            path.rmdir()


def read_seal(path: Path) -> SealedHeader | None:
    """How the secrets are sealed; None if they are not. Raises: WorkloadError on a damaged file."""
    for name in (*(f"{name}.secret" for name in ROUNDS), SECRET_KEY_FILE):
        try:
            with (path / name).open("rb", buffering=0) as file:
                start = read_start(file.fileno())
        except FileNotFoundError:
            continue
        try:
            return read_header(start) if is_sealed(start) else None
        except SealError as error:
            raise SealError(f"{path / name}: {error}") from None
    return None


def _erase(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(bytes(os.fstat(descriptor).st_size))
        file.flush()
        os.fsync(descriptor)
    path.unlink()
