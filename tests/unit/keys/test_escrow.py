"""Archives and shares: what opens them, what is refused and named, and the commands that make them."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from typer.testing import CliRunner

from node.cli.main import app
from node.custody_keys import KeyFolder, read_secrets, unlock_folder
from node.escrow import (
    Entry,
    EscrowError,
    Share,
    build_archive,
    combine,
    decode_entries,
    format_share,
    open_archive,
    parse_share,
    read_archive_header,
    restore,
    share_out,
)
from node.keystore_files import KeyFileError, write_private_file
from workloads.sealed import PLAIN, SealingKey, derive_key, draw_key, seal, write_secret

WORDS, SECRET, NOISE = "correct horse battery staple", bytes(range(256)) * 40, bytes(range(32))
ENTRIES = (
    Entry("custody", "ab" * 32, {"secret.key": SECRET, "noise.key": NOISE}),
    Entry("federations", "cd" * 32, {"secret.key": SECRET[::-1], "noise.secret": NOISE[::-1]}),
    Entry("committees", "09" * 32, {"secret.key": SECRET[1:], "noise.key": NOISE[1:] + b"\0"}),
)
runner = CliRunner()


def test_an_archive_holds_and_names_the_keys(tmp_path: Path) -> None:
    path, key = tmp_path / "archive", derive_key(WORDS.encode())
    write_private_file(path, build_archive(ENTRIES, key))
    assert read_archive_header(path).holds == tuple(item.name for item in ENTRIES)
    assert open_archive(path, key) == ENTRIES
    assert NOISE not in path.read_bytes()
    assert "secret.key" not in repr(ENTRIES[0])
    with pytest.raises(EscrowError, match="another passphrase"):
        open_archive(path, replace(key, secret=bytes(32)))
    with pytest.raises(EscrowError, match="no custody keys"):
        build_archive((), key)
    restored = restore(ENTRIES, tmp_path / "data", None)
    assert [read_secrets(item, PLAIN) for item in restored] == [item.secrets for item in ENTRIES]
    with pytest.raises(EscrowError, match="exists already"):
        restore(ENTRIES[1:], tmp_path / "data", None)
    sealed = restore(ENTRIES[:1], tmp_path / "other", key)
    assert sealed[0].is_sealed


@pytest.mark.parametrize(
    "document",
    [
        b"\xc1",
        [],
        {"version": 2, "entries": []},
        {"version": 1, "entries": {}},
        {"version": 1, "entries": [7]},
        {"version": 1, "entries": [{"name": "custody/../../etc", "secrets": {}}]},
        {"version": 1, "entries": [{"name": "custody/" + "ab" * 32, "secrets": {"secret.key": b""}}]},
        {
            "version": 1,
            "entries": [{"name": "custody/" + "ab" * 32, "secrets": {"secret.key": "", "noise.key": b""}}],
        },
        {
            "version": 1,
            "entries": [
                {"name": "custody/" + "ab" * 32, "secrets": {"secret.key": b"", "../noise.key": b""}}
            ],
        },
        {"version": 1, "entries": []},
    ],
)
def test_what_is_no_archive_is_refused(document: object) -> None:
    body = document if isinstance(document, bytes) else msgpack.packb(document)
    with pytest.raises(EscrowError):
        decode_entries(body, ("custody/" + "ab" * 32,))


# --- shares -----------------------------------------------------------------------------------


@pytest.fixture
def escrow(tmp_path: Path) -> tuple[SealingKey, tuple[Share, ...], Path]:
    key = draw_key()
    shares, name = share_out(key, 3, 5)
    path = tmp_path / "archive.sealed"
    write_private_file(path, build_archive(ENTRIES, key, name))
    return key, shares, path


Escrow = tuple[SealingKey, tuple[Share, ...], Path]


def give(*shares: Share) -> list[tuple[str, Share]]:
    return [(f"file {number}", share) for number, share in enumerate(shares)]


def test_any_three_of_five_open_it(escrow: Escrow) -> None:
    key, shares, path = escrow
    header = read_archive_header(path)
    for chosen in ((0, 1, 2), (4, 2, 0), (0, 1, 2, 3, 4)):
        found = combine(give(*(shares[at] for at in chosen)), header)
        assert found.secret == key.secret
        assert open_archive(path, found) == ENTRIES


def other_set() -> tuple[Share, ...]:
    return share_out(draw_key(), 3, 5)[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s[:2], "2 shares were given, 3 are needed"),
        (lambda s: (s[0], s[1], s[1]), "file 2: the same share as file 1"),
        (lambda s: (s[0], other_set()[1], s[2]), "file 1: share 2 of 5 .* is of another archive"),
        (lambda s: (s[0], s[1], replace(s[2], value=bytes(32))), "file 2: share 3 of 5 .* was altered"),
        (lambda s: (s[0], s[1], replace(s[2], index=4)), "file 2: share 4 of 5 .* was altered"),
        (lambda s: (replace(s[0], threshold=2), s[1], s[2]), "file 0: .* another number of shares"),
        (lambda s: (replace(s[0], count=6, index=6), s[1], s[2]), "file 0: .* another number of shares"),
    ],
)
def test_a_bad_share_is_named(
    escrow: Escrow, spoil: Callable[[tuple[Share, ...]], tuple[Share, ...]], words: str
) -> None:
    _, shares, path = escrow
    with pytest.raises(EscrowError, match=words):
        combine(give(*spoil(shares)), read_archive_header(path))


def test_an_archive_whose_vouchers_were_changed_takes_no_share(escrow: Escrow, tmp_path: Path) -> None:
    key, shares, _ = escrow
    forged = share_out(key, 3, 5)[1]
    path = tmp_path / "forged"
    write_private_file(path, seal(b"", key, "custody-backup", forged))
    with pytest.raises(EscrowError, match="another archive"):
        combine(give(*shares[:3]), read_archive_header(path))
    for name in ("", "escrow", "escrow 3 zz", "escrow 9 " + "00" * 32, "escrow x"):
        path.unlink()
        write_private_file(path, seal(b"", key, "custody-backup", name))
        with pytest.raises(EscrowError, match="not one of shares"):
            combine(give(*shares[:3]), read_archive_header(path))


def test_a_share_as_text(escrow: Escrow) -> None:
    for share in escrow[1]:
        text = format_share(share)
        assert parse_share(text) == share
        assert share.value.hex() not in text
        typed = " ".join(line for line in text.lower().splitlines() if not line.startswith("#"))
        assert parse_share(typed.replace("-", " ")) == share
        assert max(map(len, text.splitlines())) < 80
        assert "value" not in repr(share)


KNOWN = Share(2, 3, 5, bytes(range(16)), bytes(range(32)))
KNOWN_TEXT = """
AEBAGBIA-AEBAGBAF-AYDQQCIK-BMGA2DQP-AAAQEAYE-AUDAOCAJ-BIFQYDIO
B4IBCEQTCQKRMFYYDENBWHA5DYPQ
"""


def test_a_known_share() -> None:
    """The form of shares that people hold can never change unseen."""
    letters = "".join(line for line in format_share(KNOWN).splitlines() if line[:1] != "#").replace("-", "")
    assert letters.startswith(KNOWN_TEXT.replace("-", "").replace("\n", ""))
    assert parse_share(letters) == KNOWN


def test_a_mistyped_letter_is_found(escrow: Escrow) -> None:
    draw = random.Random(7)
    text = "".join(line for line in format_share(escrow[1][0]).splitlines() if line[:1] != "#").replace(
        "-", ""
    )
    for _ in range(200):
        at, letter = draw.randrange(len(text)), draw.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
        changed = text[:at] + letter + text[at + 1 :]
        if changed != text:
            with pytest.raises(EscrowError, match=r"mistyped|letters A to Z"):
                parse_share(changed)
    for bad, words in (("", "length"), (text[:-8], "length"), ("0189", "letters"), ("é" * 90, "letters")):
        with pytest.raises(EscrowError, match=words):
            parse_share(bad)


@pytest.mark.parametrize(("threshold", "count"), [(1, 5), (6, 5), (2, 17)])
def test_numbers_of_shares_out_of_bounds(threshold: int, count: int) -> None:
    with pytest.raises(EscrowError, match="expected 2"):
        share_out(draw_key(), threshold, count)


# --- commands ---------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a custody that holds two keys, one of them sealed."""
    files = {"authority": "ca.pem", "certificate": "tls.pem", "key": "tls.key"}
    document = {
        "name": "node1",
        "data_dir": "data",
        "custody": {"keys_dir": "keys"},
        "genesis": "g",
        "account_key": "a",
        "tls": files,
    }
    path = tmp_path / "node.yaml"
    path.write_text(json.dumps(document))
    for name in ("CUSTODY", "BACKUP"):
        file = tmp_path / f"{name}-passphrase"
        file.write_text(f"{name} {WORDS}")
        file.chmod(0o600)
        monkeypatch.setenv(f"BMIF_{name}_PASSPHRASE_FILE", str(file))
    restore(ENTRIES[:1], tmp_path / "keys", derive_key(f"CUSTODY {WORDS}".encode()))
    restore(ENTRIES[1:], tmp_path / "keys", None)
    monkeypatch.setenv("BMIF_CONFIG", str(path))
    return path


def invoke(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, ["custody", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def lose(node: Path) -> None:
    for path in (node.parent / "keys").rglob("*"):
        if path.is_file():
            path.unlink()


def check_restored(node: Path) -> None:
    for item in ENTRIES:
        folder = KeyFolder(item.place, item.root, node.parent / "keys" / item.place / item.root)
        assert folder.is_sealed  # under the custody's passphrase, whatever they were before
        assert read_secrets(folder, unlock_folder(folder)) == item.secrets


def test_backup_and_restore(node: Path, tmp_path: Path) -> None:
    archive = tmp_path / "backup.sealed"
    assert "sealed" in invoke("keys")
    invoke("backup", "-o", archive)
    assert archive.stat().st_mode & 0o777 == 0o600
    assert "exists already" in invoke("backup", "-o", archive, code=1)
    assert "opened by its passphrase" in invoke("show", archive)
    assert "exists already" in invoke("restore", archive, code=1)
    lose(node)
    assert "restored custody/abab" in invoke("restore", archive)
    check_restored(node)
    one = tmp_path / "one.sealed"
    assert json.loads(invoke("backup", "-o", one, "--key", "cd", "--json"))["keys"] == [ENTRIES[1].name]
    assert "begin so" in invoke("backup", "-o", tmp_path / "none", "--key", "ef", code=1)


def test_escrow_and_recover(node: Path, tmp_path: Path) -> None:
    folder = tmp_path / "escrow"
    assert "any 3 open archive.sealed" in invoke("escrow", "-o", folder)
    archive, shares = folder / "archive.sealed", sorted(folder.glob("share-*.txt"))
    assert len(shares) == 5
    assert "opened by 3 of 5 shares" in invoke("show", archive)
    assert "custody recover" in invoke("restore", archive, code=1)
    lose(node)
    assert "2 shares were given" in invoke("recover", *shares[:2], "-a", archive, code=1)
    typed = shares[4].read_text()
    assert "restored" in invoke("recover", shares[0], shares[2], typed, "-a", archive)
    check_restored(node)


def test_keys_restored_plain_are_said_to_be(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without the custody's passphrase; beside sealed keys it is asked for."""
    archive = tmp_path / "one.sealed"
    invoke("backup", "-o", archive, "--key", "cd")
    monkeypatch.delenv("BMIF_CUSTODY_PASSPHRASE_FILE")
    (cdcd,) = (node.parent / "keys" / "federations").iterdir()
    shutil.rmtree(cdcd)
    assert "needs a passphrase" in invoke("restore", archive, code=1)
    lose(node)
    shown = invoke("restore", archive)
    assert "restored federations/cdcd" in shown
    assert "kept plain; `bmif custody encrypt` seals them" in shown
    assert [entry["protection"] for entry in json.loads(invoke("keys", "--json"))] == ["plain"]


def test_a_shares_file_that_is_not_there_is_named(node: Path, tmp_path: Path) -> None:
    invoke("escrow", "-o", tmp_path / "escrow")
    given = [*sorted((tmp_path / "escrow").glob("share-*.txt"))[:2], "share-9-of-5.txt"]
    shown = invoke("recover", *given, "-a", tmp_path / "escrow" / "archive.sealed", code=1)
    assert "share-9-of-5.txt: there is no such file" in shown


def test_passphrases_of_all_keys(node: Path, tmp_path: Path) -> None:
    assert "federations cdcd" in invoke("encrypt")
    fresh = tmp_path / "fresh"
    fresh.write_text("another twelve characters")
    fresh.chmod(0o600)
    assert "changed" in invoke("passphrase", "--new-file", fresh)
    with pytest.raises(KeyFileError, match="another passphrase"):
        check_restored(node)
    (tmp_path / "CUSTODY-passphrase").write_text("another twelve characters")
    check_restored(node)
    invoke("decrypt")
    assert {entry["protection"] for entry in json.loads(invoke("keys", "--json"))} == {"plain"}
    write_secret(tmp_path / "x", b"", None, "custody-noise")
