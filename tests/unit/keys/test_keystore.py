"""Account keys: sealed and plain, who may read them, how a passphrase changes."""

import os
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from node import keystore_files
from node.cli.main import app
from node.keystore import (
    KeyFileError,
    Protection,
    create_account_key,
    load_account_key,
    open_tls_key,
    read_address,
    read_protection,
    set_passphrase,
)
from node.keystore_files import read_private_file
from node.passphrase import Passphrase

WORDS = "correct horse battery staple"
GOOD = Passphrase(WORDS.encode())
OTHER = Passphrase(b"another twelve characters")
runner = CliRunner()


@pytest.fixture
def passphrase_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(WORDS + "\n")
    path.chmod(0o600)
    monkeypatch.setenv("BMIF_PASSPHRASE_FILE", str(path))
    return path


def test_a_sealed_key_opens_with_its_passphrase_alone(tmp_path: Path, passphrase_file: Path) -> None:
    path = tmp_path / "account.key"
    address = create_account_key(path, GOOD)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_account_key(path).address == address == read_address(path)
    assert read_protection(path) == Protection.SEALED
    passphrase_file.write_text("not it")
    with pytest.raises(KeyFileError, match="another passphrase"):
        load_account_key(path)
    assert read_address(path) == address


def test_without_any_source_the_remedy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "account.key"
    create_account_key(path, GOOD)
    with pytest.raises(KeyFileError, match=r"BMIF_PASSPHRASE_FILE.*bmif-passphrase.*keys agent"):
        load_account_key(path)


def test_a_key_under_another_address_is_refused(tmp_path: Path, passphrase_file: Path) -> None:
    from workloads import sealed

    path = tmp_path / "account.key"
    key = sealed.derive_key(GOOD.reveal())
    path.write_bytes(sealed.seal(bytes(32), key, "account-key", "11" * 32))
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="another key than that of the address"):
        load_account_key(path)
    path.write_bytes(sealed.seal(bytes(31), key, "account-key", "11" * 32))
    with pytest.raises(KeyFileError, match="no Ed25519 key"):
        load_account_key(path)
    path.write_bytes(sealed.seal(bytes(32), key, "account-key", "no address"))
    with pytest.raises(KeyFileError):
        read_address(path)
    path.write_bytes(b'{"cipher":')
    with pytest.raises(KeyFileError, match="no sealed file"):
        read_address(path)
    path.write_bytes(sealed.seal(bytes(32), key, "custody-secret", "11" * 32))
    with pytest.raises(KeyFileError, match="holds custody-secret"):
        load_account_key(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o644])
def test_a_file_that_others_can_reach_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "account.key"
    create_account_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_account_key(path)


def test_a_folder_that_others_can_change_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open" / "inner"
    path = folder / "account.key"
    create_account_key(path)
    folder.parent.chmod(0o777)
    with pytest.raises(KeyFileError, match=r"others may write in its folder; run `chmod go-w .*open`"):
        load_account_key(path)
    folder.parent.chmod(0o1777)  # sticky, as /tmp: nobody can take another's entry away
    load_account_key(path)


def test_links_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "account.key"
    create_account_key(path)
    link = tmp_path / "link.key"
    link.symlink_to(path)
    with pytest.raises(KeyFileError, match="symbolic link"):
        load_account_key(link)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, words in (("pipe", "no ordinary file"), ("absent", "cannot be read"), (".", "no ordinary")):
        with pytest.raises(KeyFileError, match=words):
            load_account_key(tmp_path / name)
    large = tmp_path / "large"
    large.write_bytes(bytes(70_000))
    large.chmod(0o600)
    with pytest.raises(KeyFileError, match="that is no key"):
        load_account_key(large)


def test_another_user_s_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "account.key"
    create_account_key(path)
    monkeypatch.setattr(keystore_files, "_is_ours", lambda owner: False)
    with pytest.raises(KeyFileError, match="another user"):
        read_private_file(path)


def test_a_passphrase_is_given_changed_and_taken(tmp_path: Path) -> None:
    path = tmp_path / "account.key"
    address = create_account_key(path)
    set_passphrase(path, None, GOOD)
    set_passphrase(path, GOOD, OTHER)
    with pytest.raises(KeyFileError, match="another passphrase"):
        set_passphrase(path, GOOD, None)
    assert read_protection(path) == Protection.SEALED
    set_passphrase(path, OTHER, None)
    assert load_account_key(path).address == address
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["account.key"]


def test_a_write_that_fails_leaves_the_old_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "account.key"
    address = create_account_key(path)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(keystore_files.os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            set_passphrase(path, None, GOOD)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["account.key"]
    assert load_account_key(path).address == address


def test_a_tls_key_stays_pem(tmp_path: Path) -> None:
    path = tmp_path / "tls.key"
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    set_passphrase(path, None, GOOD)
    assert read_protection(path) == Protection.PEM
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
    assert open_tls_key(path, GOOD).public_key() == key.public_key()
    with pytest.raises(KeyFileError, match="another passphrase"):
        open_tls_key(path, OTHER)
    with pytest.raises(KeyFileError, match="neither sealed"):
        load_account_key(path)
    set_passphrase(path, GOOD, None)
    assert read_protection(path) == Protection.PLAIN


def test_nothing_shows_or_pickles_a_passphrase() -> None:
    assert "horse" not in repr(GOOD)
    assert "horse" not in str({"passphrase": GOOD})
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(GOOD)


def invoke(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, ["keys", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_the_commands(tmp_path: Path, passphrase_file: Path) -> None:
    path, fresh = tmp_path / "account.key", tmp_path / "fresh"
    address = invoke("new", path).strip()  # a passphrase is set, so it is used
    assert read_protection(path) == Protection.SEALED
    assert invoke("show", path).strip() == address
    assert address in invoke("check", path)
    assert "already" in invoke("encrypt", path, code=1)
    fresh.write_text("short")
    fresh.chmod(0o600)
    assert "12 characters" in invoke("passphrase", path, "--new-file", fresh, code=1)
    fresh.write_text(OTHER.reveal().decode())
    invoke("passphrase", path, "--new-file", fresh)
    assert "another passphrase" in invoke("check", path, code=1)
    passphrase_file.write_bytes(OTHER.reveal())
    invoke("decrypt", path)
    assert read_protection(path) == Protection.PLAIN
    assert "no passphrase" in invoke("decrypt", path, code=1)
    assert "no passphrase" in invoke("passphrase", path, code=1)
    invoke("encrypt", path)
    assert invoke("show", path).strip() == address
    plain = tmp_path / "plain.key"
    assert "no passphrase" in invoke("new", plain, "--plain")
    assert read_protection(plain) == Protection.PLAIN
    os.environ.pop("BMIF_PASSPHRASE_FILE")
    assert "--encrypt" in invoke("new", "--help")
    assert "run this on a terminal" in invoke("new", tmp_path / "third", "--encrypt", code=1)
    assert not (tmp_path / "third").exists()
