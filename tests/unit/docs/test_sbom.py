"""The bill of materials names every runtime package: what goes into it, and the check of what comes out."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from scripts.sbom_check import PINNED, find_faults, normalize, read_wanted

ROOT = Path(__file__).resolve().parents[3]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
SETUP = (ROOT / "scripts" / "setup.py").read_text(encoding="utf-8")
WANTED = read_wanted(LOCK, SETUP)


def build_bill(packages: set[tuple[str, str]]) -> str:
    parts = [{"name": name, "version": version} for name, version in sorted(packages)]
    return json.dumps({"bomFormat": "CycloneDX", "components": parts})


def test_what_the_bill_is_made_of_names_every_runtime_package(tmp_path: Path) -> None:
    """The Makefile's own step, without the environment of the tool that it feeds."""
    (tmp_path / ".done").touch()
    made = tmp_path / "runtime.txt"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--silent", f"AUDIT={tmp_path}", str(made)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = made.read_text(encoding="utf-8")
    assert {(normalize(name), version) for name, version in PINNED.findall(text)} == WANTED
    assert {name for name, _ in WANTED} >= {"torch", "pyfhel", "numpy", "cryptography", "plyvel"}
    _, pyfhel = text.split("\npyfhel==")
    assert "--hash=sha256:" in pyfhel, "the source of Pyfhel is pinned by its hash"


def test_every_dependency_of_the_project_is_wanted() -> None:
    """Read another way, so that a package which the pattern does not see is missed here."""
    names = {line.partition("==")[0] for line in LOCK.splitlines() if line[:1].isalnum()}
    assert {name for name, _ in WANTED} == {normalize(name) for name in names} | {"torch", "pyfhel"}


def test_a_full_bill_passes_whatever_the_spelling() -> None:
    spelt = {(name.replace("-", "_").title(), version) for name, version in WANTED}
    assert find_faults(build_bill(spelt), WANTED) == []


@pytest.mark.parametrize("name", ["torch", "pyfhel", "numpy"])
def test_a_package_left_out_or_of_another_version_is_named(name: str) -> None:
    (version,) = (version for found, version in WANTED if found == name)
    lacking = WANTED - {(name, version)}
    assert find_faults(build_bill(lacking), WANTED) == [f"lacks {name} {version}"]
    other = find_faults(build_bill(lacking | {(name, "0.0.1")}), WANTED)
    assert other == [f"lacks {name} {version}", f"names {name} 0.0.1, not installed"]


def test_an_empty_lock_wants_nothing_and_is_refused() -> None:
    with pytest.raises(ValueError, match="Got 0"):
        read_wanted("", SETUP)
    with pytest.raises(ValueError, match="two apart"):
        read_wanted(LOCK, "")
