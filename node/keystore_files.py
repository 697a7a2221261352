"""Files that hold secrets: who may read them, and how they are written so that none is ever lost.

A file counts as private if it is an ordinary one of this user's, closed to everyone else, in folders that
nobody else can change. It is looked at through the descriptor that it is read from.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from workloads.sealed import read_start

MAX_KEY_FILE_BYTES = 64 * 1024


class KeyFileError(ValueError):
    """A key file is missing, damaged, open to others, of another kind, or would be overwritten."""


def _is_ours(owner: int) -> bool:
    """Files of this user, and of root, who could do anything anyhow; root itself reads everyone's."""
    user = os.geteuid()
    return user == 0 or owner in (0, user)


def check_folders(path: Path) -> None:
    """Raises: KeyFileError if somebody else could put another file in this one's place."""
    folder = path.absolute().parent.resolve()
    for item in (folder, *folder.parents):
        found = item.stat()
        mode = stat.S_IMODE(found.st_mode)
        if not _is_ours(found.st_uid):
            raise KeyFileError(f"{path}: its folder {item} belongs to another user; move the file")
        open_to_group = mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid())
        if (mode & stat.S_IWOTH or open_to_group) and not mode & stat.S_ISVTX:
            raise KeyFileError(f"{path}: others may write in its folder; run `chmod go-w {item}`")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        # Not blocking: a pipe in a key's place must not hold a start up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise KeyFileError(f"{path} is a symbolic link; name the file itself") from error
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise KeyFileError("a path with a zero byte names no file") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_private_file(path: Path, limit: int = MAX_KEY_FILE_BYTES, *, forbidden: int = 0o077) -> bytes:
    """The bytes of a private file of at most `limit` bytes; no bit of `forbidden` may be in its mode.

    Raises: KeyFileError naming the file and the remedy, never its contents.
    """
    with _open_private(path, forbidden) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise KeyFileError(f"{path} has more than {limit} bytes: that is no key")
    return data


def read_private_start(path: Path) -> bytes:
    """As `sealed.read_start` of a private file. Raises: KeyFileError."""
    with _open_private(path, 0o077) as descriptor:
        return read_start(descriptor)


@contextlib.contextmanager
def _open_private(path: Path, forbidden: int) -> Iterator[int]:
    with _open(path) as descriptor:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError(f"{path} cannot be read: it is no ordinary file")
        if not _is_ours(found.st_uid):
            raise KeyFileError(f"{path} belongs to another user; run `chown` on it, or choose another")
        mode = stat.S_IMODE(found.st_mode)
        if mode & forbidden:
            raise KeyFileError(f"{path} is open to others (mode {mode:o}); run `chmod 600 {path}`")
        check_folders(path)
        yield descriptor


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    _sync_folder(path.parent)


def replace_private_file(path: Path, data: bytes, check: Callable[[Path], None]) -> None:
    """Put other bytes in a private file's place: whole, or the old ones stay.

    The new bytes are on disk, and `check` has read them back, before the old ones go.
    Raises: KeyFileError, OSError, what `check` raises.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        write_private_file(partial, data)
        check(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)
