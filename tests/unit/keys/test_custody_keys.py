"""The custody's folders of keys: what is sealed, what opens it, and a change that is interrupted."""

import pickle
from pathlib import Path

import pytest

from node import keystore_files
from node.custody_keys import (
    CustodyKeys,
    KeyFolder,
    change_folder,
    find_folders,
    make_sealing_key,
    read_secrets,
    unlock_folder,
)
from node.keystore_files import KeyFileError
from node.passphrase import Passphrase
from workloads.base import WorkloadError
from workloads.sealed import NOISE_KIND, PLAIN, SECRET_KIND, SealingKey, derive_key, read_secret, write_secret

WORDS = "correct horse battery staple"
GOOD, OTHER = Passphrase(WORDS.encode()), Passphrase(b"another twelve characters")
SECRET, NOISE = bytes(range(256)) * 300, bytes(reversed(range(32)))
ROOT = "ab" * 32


def make(directory: Path, key: SealingKey | None, place: str = "custody") -> KeyFolder:
    folder = KeyFolder(place, ROOT, directory / place / ROOT)
    folder.path.mkdir(parents=True, mode=0o700)
    for (path, kind), data in zip(folder.files, (SECRET, NOISE), strict=True):
        write_secret(path, data, key, kind)
    return folder


@pytest.fixture
def passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(WORDS)
    path.chmod(0o600)
    monkeypatch.setenv("BMIF_CUSTODY_PASSPHRASE_FILE", str(path))
    return path


@pytest.mark.parametrize("place", ["custody", "federations", "committees"])
def test_sealed_secrets_open_and_nothing_of_them_is_on_disk(
    tmp_path: Path, passphrase: Path, place: str
) -> None:
    folder = make(tmp_path, derive_key(GOOD.reveal()), place)
    assert list(find_folders(tmp_path)) == [folder]
    assert folder.is_sealed
    data = b"".join(path.read_bytes() for path in folder.path.iterdir())
    assert SECRET[:64] not in data
    assert NOISE not in data
    keys = CustodyKeys(tmp_path).unlock(place, ROOT)
    (secret, kind), (noise, other) = folder.files
    assert read_secret(secret, keys.secret, kind) == SECRET
    assert read_secret(noise, keys.noise, other) == NOISE
    assert keys.secret == keys.noise  # one derivation for both
    assert (
        pickle.loads(pickle.dumps(keys)) == keys
    )  # it goes to the worker that opens; the passphrase does not
    assert WORDS.encode() not in pickle.dumps(keys)
    with pytest.raises(WorkloadError, match=r"secret\.key: needs its passphrase"):
        read_secret(secret, None, SECRET_KIND)


def test_plain_secrets_need_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path, None)
    assert not folder.is_sealed
    assert unlock_folder(folder) == PLAIN
    CustodyKeys(tmp_path).check()
    assert make_sealing_key(tmp_path, encrypted=False) is None
    with pytest.raises(KeyFileError, match="BMIF_CUSTODY_PASSPHRASE_FILE"):
        make_sealing_key(tmp_path, encrypted=True)


def test_a_missing_or_wrong_passphrase_shows_at_the_start(tmp_path: Path, passphrase: Path) -> None:
    make(tmp_path, derive_key(GOOD.reveal()))
    CustodyKeys(tmp_path).check()
    assert make_sealing_key(tmp_path, encrypted=False) is not None
    passphrase.write_text("not the right one")
    with pytest.raises(KeyFileError, match="another passphrase"):
        CustodyKeys(tmp_path).check()
    with pytest.raises(KeyFileError, match="another passphrase"):
        make_sealing_key(tmp_path, encrypted=True)  # new keys under a mistyped passphrase would be lost
    passphrase.unlink()
    with pytest.raises(WorkloadError, match="cannot be read"):
        CustodyKeys(tmp_path).unlock("custody", ROOT)


def test_new_keys_beside_sealed_ones_are_sealed_too(tmp_path: Path) -> None:
    """Also where no source has the passphrase: then there are no new keys, rather than plain ones."""
    make(tmp_path, derive_key(GOOD.reveal()))
    with pytest.raises(KeyFileError, match="BMIF_CUSTODY_PASSPHRASE_FILE"):
        make_sealing_key(tmp_path, encrypted=False)


def test_secrets_open_to_others_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, None)
    (folder.path / "noise.key").chmod(0o640)
    with pytest.raises(WorkloadError, match=r"noise\.key is open to others"):
        CustodyKeys(tmp_path).unlock("custody", ROOT)


def test_sealing_changing_and_taking_away(tmp_path: Path) -> None:
    folder = make(tmp_path, None)
    assert change_folder(folder, None, GOOD)
    assert folder.is_sealed
    assert not change_folder(folder, None, GOOD)
    assert change_folder(folder, GOOD, OTHER)
    with pytest.raises(KeyFileError, match="another passphrase"):
        change_folder(folder, GOOD, None)
    assert read_secrets(folder, unlock_folder(folder, OTHER)) == {"secret.key": SECRET, "noise.key": NOISE}
    assert change_folder(folder, OTHER, None)
    assert not change_folder(folder, None, None)
    assert read_secrets(folder, PLAIN) == {"secret.key": SECRET, "noise.key": NOISE}
    assert sorted(path.name for path in folder.path.iterdir()) == ["noise.key", "secret.key"]


def test_a_change_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path, derive_key(GOOD.reveal()))
    real, calls = keystore_files.os.fsync, []

    def fail_second_file(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 3:  # file, its folder, its folder again after the rename; then the second file
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(keystore_files.os, "fsync", fail_second_file)
        with pytest.raises(OSError, match="No space"):
            change_folder(folder, GOOD, OTHER)
    with pytest.raises(KeyFileError, match="another passphrase"):
        read_secrets(folder, unlock_folder(folder, OTHER))
    assert change_folder(folder, GOOD, OTHER)
    assert read_secrets(folder, unlock_folder(folder, OTHER)) == {"secret.key": SECRET, "noise.key": NOISE}


def test_a_secret_of_another_kind_is_refused(tmp_path: Path) -> None:
    key = derive_key(GOOD.reveal())
    folder = make(tmp_path, key)
    (secret, _), (noise, _) = folder.files
    noise.write_bytes(secret.read_bytes())
    with pytest.raises(WorkloadError, match="holds custody-secret, not custody-noise"):
        read_secret(noise, key, NOISE_KIND)
