#!/usr/bin/env python3
"""Compares a software bill of materials with what is installed for a node: `sbom_check.py SBOM`.

Every package of requirements.lock, and the two that setup.py installs apart from it, must be in the bill with
exactly its version, and nothing else. Exit status 1 names what differs. Needs the standard library alone.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)
APART = re.compile(r'^(TORCH|PYFHEL) = "([^"]+)"$', re.MULTILINE)

Package = tuple[str, str]
"""Name as indices compare it, version."""


def normalize(name: str) -> str:
    """Names are the same if only case and separators differ."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_wanted(lock: str, setup: str) -> set[Package]:
    """What the texts of requirements.lock and setup.py pin.

    Raises: ValueError if either pins nothing, or setup.py not both of its packages.
    """
    locked = {(normalize(name), version) for name, version in PINNED.findall(lock)}
    apart = {(normalize(name), version) for name, version in APART.findall(setup)}
    if not locked or len(apart) != 2:
        raise ValueError(f"Expected locked packages and two apart. Got {len(locked)} and {sorted(apart)}")
    return locked | apart


def find_faults(bill: str, wanted: set[Package]) -> list[str]:
    """What the text of a CycloneDX bill lacks or has beyond the packages that are wanted."""
    parts = json.loads(bill).get("components", [])
    named = {(normalize(part["name"]), part.get("version", "no version")) for part in parts}
    faults = [f"lacks {name} {version}" for name, version in sorted(wanted - named)]
    return faults + [f"names {name} {version}, not installed" for name, version in sorted(named - wanted)]


def main() -> int:
    path = Path(sys.argv[1])
    wanted = read_wanted(
        (ROOT / "requirements.lock").read_text(encoding="utf-8"),
        (ROOT / "scripts" / "setup.py").read_text(encoding="utf-8"),
    )
    faults = find_faults(path.read_text(encoding="utf-8"), wanted)
    for fault in faults:
        print(f"{path} {fault}", file=sys.stderr)
    if not faults:
        print(f"{path} names all {len(wanted)} runtime packages with their versions")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
