"""A wrong clock for one process: libfaketime, preloaded, its offset read from a file that may change."""

import shutil
import subprocess
from pathlib import Path

from benchmarks.reliability.backend import BackendError

PACKAGE = "libfaketime"
LIBRARY = "libfaketime.so.1"


def find_library(scratch: Path) -> Path:
    """The library of this machine; on Debian and its kin its package is unpacked below `scratch` if missing.

    Raises: BackendError with what to install.
    """
    for root in (Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib"), scratch):
        for found in sorted(root.glob(f"**/faketime/{LIBRARY}")):
            return found
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        scratch.mkdir(parents=True, exist_ok=True)
        fetched = _run(["apt-get", "download", PACKAGE], scratch)
        if not fetched:
            # Package lists may be missing; only root may renew them.
            _run(["apt-get", "update", "-qq"], scratch)
            fetched = _run(["apt-get", "download", PACKAGE], scratch)
        for package in scratch.glob(f"{PACKAGE}_*.deb"):
            _run(["dpkg-deb", "-x", str(package), "."], scratch)
        for found in sorted(scratch.glob(f"**/faketime/{LIBRARY}")):
            return found
    raise BackendError(f"no {LIBRARY} here: install libfaketime (Debian's package `{PACKAGE}`)")


def _run(command: list[str], directory: Path) -> bool:
    return subprocess.run(command, cwd=directory, capture_output=True, check=False).returncode == 0


def build_environment(library: str, offset_file: str) -> dict[str, str]:
    """Variables for the process: wall time only, the file looked at on every call, workers included."""
    return {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": offset_file,
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",
    }


def format_offset(offset_s: float) -> str:
    """As libfaketime reads it."""
    return f"{offset_s:+.3f}s\n"
