"""The custody's secrets on disk: where they are, how they are sealed, and what opens them.

Each task and federation has a folder of its own, named by the root of its public key, with a secret key and
the secret of its noise; so has each committee, with this member's share, named by the ceremony. Sealed ones
are opened in the process that decrypts, and never written in clear.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from node.keystore_files import KeyFileError, read_private_file, read_private_start, replace_private_file
from node.passphrase import Passphrase, Purpose, find_passphrase, get_new_passphrase, get_passphrase
from workloads import sealed
from workloads.base import WorkloadError
from workloads.sealed import NOISE_KIND, SECRET_KIND, FolderKeys, SealedHeader, SealError, SealingKey

SECRET_FILE = "secret.key"
PLACES = {"custody": "noise.key", "federations": "noise.secret", "committees": "noise.key"}
"""Of tasks, of federations and of committees, with the name of the noise's secret in each."""
MAX_SECRET_BYTES = 1024**3
_ROOT_DIGITS = 64


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """The folder of one task, federation or committee."""

    place: str
    """One of `PLACES`."""
    root: str
    """Of the public key, or the ceremony's id, hexadecimal."""
    path: Path

    @property
    def files(self) -> tuple[tuple[Path, str], ...]:
        """The two secrets and the kind that each is sealed as."""
        return (self.path / SECRET_FILE, SECRET_KIND), (self.path / PLACES[self.place], NOISE_KIND)

    @property
    def is_sealed(self) -> bool:
        """Whether both secrets are. Raises: KeyFileError."""
        return all(_read_header(path) is not None for path, _ in self.files)


def build_folder(directory: Path, place: str, root: str) -> KeyFolder:
    """Where the keys of that root are, or would be."""
    return KeyFolder(place, root, directory / place / root)


def find_folders(directory: Path) -> Iterator[KeyFolder]:
    """The complete folders below the custody's directory, in order of their names."""
    for place in PLACES:
        for path in sorted((directory / place).glob("*")):
            is_root = len(path.name) == _ROOT_DIGITS and set(path.name) <= set("0123456789abcdef")
            if is_root and (path / SECRET_FILE).exists():
                yield KeyFolder(place, path.name, path)


def _read_header(path: Path) -> SealedHeader | None:
    """What a sealed file says in clear; None if it is plain. Raises: KeyFileError, also if it is open to
    others."""
    start = read_private_start(path)
    if not sealed.is_sealed(start):
        return None
    with _naming(path):
        return sealed.read_header(start)


def unlock_folder(folder: KeyFolder, passphrase: Passphrase | None = None) -> FolderKeys:
    """What opens the folder's secrets. Looks for the custody's passphrase if one is needed and none given.

    Takes about half a second. Raises: KeyFileError.
    """
    found = FolderKeys()
    for path, kind in folder.files:
        header = _read_header(path)
        if header is None:
            continue
        passphrase = passphrase or get_passphrase(Purpose.CUSTODY, f"the custody's keys ({path})")
        key = found.secret
        if key is None or (key.salt, key.cost) != (header.salt, header.cost):
            with _naming(path):
                key = sealed.unlock(header, passphrase.reveal())
        found = replace(found, secret=key) if kind == SECRET_KIND else replace(found, noise=key)
    return found


def read_secrets(folder: KeyFolder, keys: FolderKeys) -> dict[str, bytes]:
    """Both secrets in clear by file name. Raises: KeyFileError."""
    found = {}
    for path, kind in folder.files:
        data = read_private_file(path, MAX_SECRET_BYTES)
        if sealed.is_sealed(data):
            with _naming(path):
                data = sealed.open_sealed(data, _get_key(keys, kind), kind)
        found[path.name] = data
    return found


def check_secrets(folder: KeyFolder, keys: FolderKeys) -> None:
    """That both sealed secrets open; keeps nothing of them. Raises: KeyFileError."""
    for path, kind in folder.files:
        with _naming(path):
            sealed.check_sealed(read_private_file(path, MAX_SECRET_BYTES), _get_key(keys, kind), kind)


def _get_key(keys: FolderKeys, kind: str) -> SealingKey:
    key = keys.secret if kind == SECRET_KIND else keys.noise
    if key is None:
        raise SealError("needs its passphrase")
    return key


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except SealError as error:
        raise KeyFileError(f"{path}: {error}") from None


class CustodyKeys:
    """Opens the folders of one directory; each passphrase is tried once, and the keys kept in memory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._found: dict[Path, FolderKeys] = {}

    def check(self) -> None:
        """Raises KeyFileError unless the custody's passphrase is there and opens what is sealed already."""
        folder = next((item for item in find_folders(self._directory) if item.is_sealed), None)
        if folder is not None:
            check_secrets(folder, unlock_folder(folder))

    def unlock(self, place: str, root: str) -> FolderKeys:
        """For threads: it may take half a second. Raises: WorkloadError naming file and remedy."""
        folder = build_folder(self._directory, place, root)
        if folder.path not in self._found:
            try:
                self._found[folder.path] = unlock_folder(folder)
            except KeyFileError as error:
                raise WorkloadError(str(error)) from error
        return self._found[folder.path]


def make_sealing_key(directory: Path, *, encrypted: bool) -> SealingKey | None:
    """What new keys are sealed with: the custody's passphrase, where one is set, or wanted by `encrypted` or
    because keys of the directory are sealed already.

    Raises: KeyFileError if there is none, or it does not open what is sealed already.
    """
    is_wanted = encrypted or any(folder.is_sealed for folder in find_folders(directory))
    if not is_wanted and find_passphrase(Purpose.CUSTODY) is None:
        return None
    CustodyKeys(directory).check()
    passphrase = get_new_passphrase(Purpose.CUSTODY, "the custody's keys")
    return sealed.derive_key(passphrase.reveal())


def change_folder(folder: KeyFolder, old: Passphrase | None, new: Passphrase | None) -> bool:
    """Seal the folder's secrets with `new`, or write them plain; False if they are so already.

    Each file is whole at every moment; a change that was interrupted goes on when it is asked for again.
    Raises: KeyFileError.
    """
    if new is None and not any(_read_header(path) for path, _ in folder.files):
        return False
    if new is not None and _opens(folder, new):
        return False
    secrets = {}
    for path, kind in folder.files:
        header = _read_header(path)
        candidates = [item for item in (old, new) if item is not None]
        data = read_private_file(path, MAX_SECRET_BYTES)
        secrets[path, kind] = data if header is None else _open_any(path, data, header, kind, candidates)
    key = None if new is None else sealed.derive_key(new.reveal())
    for (path, kind), data in secrets.items():
        _replace(path, data, key, kind)
    return True


def _opens(folder: KeyFolder, passphrase: Passphrase) -> bool:
    if not folder.is_sealed:
        return False
    try:
        check_secrets(folder, unlock_folder(folder, passphrase))
    except KeyFileError:
        return False
    return True


def _open_any(
    path: Path, data: bytes, header: SealedHeader, kind: str, candidates: list[Passphrase]
) -> bytes:
    for number, passphrase in enumerate(candidates, 1):
        try:
            return sealed.open_sealed(data, sealed.unlock(header, passphrase.reveal()), kind)
        except SealError as error:
            if number == len(candidates):
                raise KeyFileError(f"{path}: {error}") from None
    raise KeyFileError(f"{path}: needs its passphrase")


def _replace(path: Path, data: bytes, key: SealingKey | None, kind: str) -> None:
    written = data if key is None else sealed.seal(data, key, kind, "")

    def check(partial: Path) -> None:
        again = partial.read_bytes()
        if (again if key is None else sealed.open_sealed(again, key, kind)) != data:
            raise KeyFileError(f"{partial} reads other bytes than were written; {path} is as it was")

    replace_private_file(path, written, check)
