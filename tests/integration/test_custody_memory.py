"""A node process looks at its custody's keys when it starts and when it hands them out, and keeps none."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.custody_keys import PLACES, KeyFolder, build_folder
from tests.testnet.memory import has_in_memory
from workloads.sealed import SECRET_KIND, SealingKey, derive_key, write_secret

ROOT = "5a" * 32
WORDS = b"correct horse battery staple"
SECRET = hashlib.shake_128(b"a secret key").digest(100_000)
NEEDLES = [SECRET[start : start + 32] for start in (64, 4096, 40_000, 90_000)]
LOOK = """
import sys
from pathlib import Path
from node.custody_keys import CustodyKeys
from workloads.sealed import SECRET_KIND, read_secret
directory, place, root, reads = sys.argv[1:]
keys = CustodyKeys(Path(directory))
keys.check()
opened = keys.unlock(place, root)
path = Path(directory) / place / root / "secret.key"
kept = read_secret(path, opened.secret, SECRET_KIND) if reads == "reads" else None
print("ready", flush=True)
sys.stdin.read()
"""
READ_SEAL = """
import sys
from pathlib import Path
from workloads.ceremony_folder import read_seal
print("ready" if read_seal(Path(sys.argv[1])) is None else "sealed", flush=True)
sys.stdin.read()
"""


def make(directory: Path, place: str, key: SealingKey | None) -> KeyFolder:
    folder = build_folder(directory, place, ROOT)
    folder.path.mkdir(parents=True, mode=0o700)
    for (path, kind), data in zip(folder.files, (SECRET, bytes(32)), strict=True):
        write_secret(path, data, key, kind)
    return folder


@contextmanager
def run(code: str, *arguments: str) -> Iterator[int]:
    """The process id, once the code has done its part."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("is_sealed", [False, True])
def test_keys_that_are_checked_and_unlocked_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, is_sealed: bool
) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_bytes(WORDS)
    passphrase.chmod(0o600)
    monkeypatch.setenv("BMIF_CUSTODY_PASSPHRASE_FILE", str(passphrase))
    make(tmp_path, place, derive_key(WORDS) if is_sealed else None)
    with run(LOOK, str(tmp_path), place, ROOT, "looks") as pid:
        assert not has_in_memory(pid, NEEDLES)
    # Who does read them has them, which shows that they would be found.
    with run(LOOK, str(tmp_path), place, ROOT, "reads") as pid:
        assert all(has_in_memory(pid, [needle]) for needle in NEEDLES)


def test_how_a_ceremonys_secrets_are_sealed_is_seen_without_them(tmp_path: Path) -> None:
    write_secret(tmp_path / "secret.key", SECRET, None, SECRET_KIND)
    with run(READ_SEAL, str(tmp_path)) as pid:
        assert not has_in_memory(pid, NEEDLES)
