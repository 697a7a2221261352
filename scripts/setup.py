#!/usr/bin/env python3
"""Makes a virtual environment with everything bmif needs; a second run has nothing to do.

Packages come from the lock files, with hashes. Two do not: torch, whose file differs by build and whose CPU
build must be asked for, and Pyfhel, which is built here from its (hashed) source distribution and kept as a
wheel in the user's cache. This file runs before anything is installed, so it uses the standard library alone,
and its syntax is old enough for an outdated Python to reach the message that says so.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

MINIMUM = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
RUNTIME_LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"
BUILD_LOCK = SCRIPTS / "pyfhel-build.lock"
TOOLCHAIN = SCRIPTS / "seal-toolchain.cmake"

TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PYFHEL = "3.5.0"
PYFHEL_SDIST_SHA256 = "0375b83b5a83026924f59db25c4efa9f27e1e8a66d004658f4d24195986a04b6"


class SetupError(Exception):
    """Set-up cannot go on; the message tells the user what to do."""


def say(text: str) -> None:
    print("setup: " + text, flush=True)


def find_newer_python() -> str | None:
    """The first interpreter on PATH that is new enough, or None."""
    for name in ("python3.11", "python3.12", "python3.13", "python3.14"):
        path = shutil.which(name)
        if path is None:
            continue
        probe = "import sys; sys.exit(sys.version_info < " + repr(MINIMUM) + ")"
        if subprocess.run([path, "-c", probe], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return path
    return None


def ensure_python() -> None:
    """Goes on under a Python that is new enough, or raises."""
    if sys.version_info >= MINIMUM:
        return
    newer = find_newer_python()
    if newer is None:
        raise SetupError(
            f"bmif needs Python 3.11 or newer; this is {platform.python_version()} at {sys.executable}.\n"
            "  Debian 12, Ubuntu 24.04 and newer: sudo apt-get install python3 python3-venv python3-dev\n"
            "  Ubuntu 22.04: sudo apt-get install python3.11 python3.11-venv python3.11-dev\n"
            "  Elsewhere: install one and run `make PYTHON=/path/to/python3 ...`"
        )
    os.execv(newer, [newer, *sys.argv])


def find_compiler() -> str | None:
    for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        if name and shutil.which(name.split()[0]) is not None:
            return name
    return None


def find_missing(building: bool) -> list[tuple[str, str]]:
    """What the system lacks, as (description, Debian package)."""
    version = "python{}.{}".format(*sys.version_info[:2])
    missing = []
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        missing.append(("Python's venv module", version + "-venv"))
    if building:
        if find_compiler() is None:
            missing.append(("a C++ compiler", "g++"))
        if shutil.which("make") is None:
            missing.append(("make", "make"))
        if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
            missing.append(("Python's C headers", version + "-dev"))
    return missing


def ensure_system(building: bool) -> None:
    """Raises with the command to type if the system lacks something that only its package manager can give.

    As root on Debian or Ubuntu the Python parts are installed at once; a compiler is the user's to choose.
    """
    missing = find_missing(building)
    if not missing:
        return
    apt = shutil.which("apt-get")
    debian = Path("/etc/debian_version").exists() and apt is not None
    own = [package for _, package in missing if package.startswith("python")]
    if (
        debian
        and os.geteuid() == 0
        and own
        and len(own) == len(missing)
        and not os.environ.get("BMIF_NO_APT")
    ):
        say("installing " + " ".join(own))
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        run([str(apt), "update", "-qq"], env=environment)
        run([str(apt), "install", "-y", "-qq", "--no-install-recommends", *own], env=environment)
        return
    lines = ["this system lacks " + " and ".join(what for what, _ in missing) + "."]
    if debian:
        lines.append("  sudo apt-get install " + " ".join(package for _, package in missing))
    else:
        lines.append("  Install them with your package manager, then run the same command again.")
    lines.append(
        "  (g++ 8, clang++ 7 or newer will do. It builds Pyfhel, once; the wheel is kept in "
        + str(get_cache())
        + ")"
    )
    raise SetupError("\n".join(lines))


def run(command: list[str], env: dict[str, str] | None = None, quiet: bool = False) -> bool:
    """Runs a command; with `quiet` says whether it succeeded, else shows a failure's output and raises."""
    done = subprocess.run(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode == 0 or quiet:
        return done.returncode == 0
    sys.stderr.write(done.stdout[-8000:])
    raise SetupError("this failed with status {}: {}".format(done.returncode, " ".join(command)))


def get_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bmif"


def compute_recipe() -> str:
    """Names the Pyfhel wheel by everything that decides what is in it and where it runs."""
    digest = hashlib.sha256()
    for part in (
        PYFHEL,
        PYFHEL_SDIST_SHA256,
        sys.implementation.cache_tag,
        sysconfig.get_platform(),
        "-".join(platform.libc_ver()),
        os.environ.get("CXX", ""),
        os.environ.get("CXXFLAGS", ""),
    ):
        digest.update(part.encode() + b"\0")
    for path in (TOOLCHAIN, BUILD_LOCK):
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_wheel() -> Path | None:
    """The Pyfhel wheel of this recipe, from the wheelhouse or the cache."""
    folders = [get_cache() / "wheels" / compute_recipe()]
    wheelhouse = os.environ.get("BMIF_WHEELHOUSE")
    if wheelhouse:
        folders.insert(0, Path(wheelhouse) / "pyfhel" / compute_recipe())
    for folder in folders:
        for wheel in sorted(folder.glob("pyfhel-*.whl")):
            return wheel
    return None


def build_wheel() -> Path:
    """Builds Pyfhel with the project's toolchain file; the wheel enters the cache whole or not at all."""
    started = time.monotonic()
    say("building Pyfhel " + PYFHEL + " with " + str(find_compiler()) + " (a few minutes, once)")
    target = get_cache() / "wheels" / compute_recipe()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bmif-pyfhel-") as name:
        work = Path(name)
        environment = make_venv(work / "venv")
        pip(environment, "install", "--require-hashes", "-r", str(BUILD_LOCK))
        pinned = work / "pyfhel.txt"
        pinned.write_text(f"pyfhel=={PYFHEL} --hash=sha256:{PYFHEL_SDIST_SHA256}\n")
        variables = dict(os.environ)
        variables["PATH"] = str(environment.parent) + os.pathsep + variables.get("PATH", "")
        variables["CMAKE_TOOLCHAIN_FILE"] = str(TOOLCHAIN)
        variables.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        arguments = ["wheel", "--no-deps", "--no-build-isolation", "--no-binary", "pyfhel", "--no-cache-dir"]
        pip(environment, *arguments, "--require-hashes", "-r", str(pinned), "-w", str(work), env=variables)
        built = next(work.glob("pyfhel-*.whl"))
        partial = target / (built.name + ".part")
        shutil.copyfile(built, partial)
        os.replace(partial, target / built.name)
    say(f"Pyfhel built in {time.monotonic() - started:.0f} s")
    return target / built.name


def make_venv(path: Path) -> Path:
    """A new virtual environment; returns its interpreter."""
    run([sys.executable, "-m", "venv", "--clear", str(path)])
    return path / "bin" / "python"


def pip(
    python: Path, verb: str, *arguments: str, env: dict[str, str] | None = None, quiet: bool = False
) -> bool:
    """Runs pip as the user has configured it: indexes, proxies, certificates and local folders all count."""
    variables = dict(env if env is not None else os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    return run([str(python), "-m", "pip", verb, "--progress-bar=off", *arguments], env=variables, quiet=quiet)


def offline() -> list[str]:
    """Arguments that make pip use the wheelhouse alone, if there is one for this Python."""
    wheelhouse = os.environ.get("BMIF_WHEELHOUSE")
    if not wheelhouse or not (Path(wheelhouse) / "pyfhel" / compute_recipe()).is_dir():
        return []
    return ["--no-index", "--find-links", wheelhouse]


def get_torch(python: Path, verb: str, *arguments: str) -> None:
    """Installs or downloads the CPU build of torch: from the places pip knows, else from PyTorch's own index.

    `+cpu` names that build exactly, so that no place can answer with a CUDA one of several gigabytes.
    """
    exact = f"torch=={TORCH}+cpu"
    index = os.environ.get("BMIF_TORCH_INDEX", TORCH_CPU_INDEX)
    tries = [[exact, *offline()]]
    if not offline():
        tries.append([exact, "--extra-index-url", index])
        if sys.platform != "linux" or platform.machine() != "x86_64":
            tries.append([f"torch=={TORCH}"])  # elsewhere the plain package may be the CPU build
    for number, attempt in enumerate(tries, 1):
        last = number == len(tries)
        if pip(python, verb, "--no-deps", *arguments, *attempt, quiet=not last):
            return


def compute_stamp(runtime: bool, ours: bool) -> str:
    facts = (sys.version, sys.base_prefix, runtime, ours, compute_recipe(), str(ROOT))
    digest = hashlib.sha256(repr(facts).encode())
    for path in (Path(__file__), RUNTIME_LOCK, DEV_LOCK, ROOT / "pyproject.toml"):
        if path.exists():
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def install(venv: Path, runtime: bool, ours: bool = True) -> None:
    """Brings `venv` to the state of the lock files; does nothing if it is there already.

    With `ours` false bmif itself is left out.
    """
    stamp = venv / "bmif-setup.stamp"
    if stamp.is_file() and stamp.read_text() == compute_stamp(runtime, ours):
        return
    started = time.monotonic()
    wheel = find_wheel()
    ensure_system(building=wheel is None)
    if wheel is None:
        wheel = build_wheel()
    python = venv / "bin" / "python"
    probe = "import sys; sys.exit(sys.version != " + repr(sys.version) + ")"
    if stamp.exists():
        stamp.unlink()
    if not python.exists() or not run([str(python), "-c", probe], quiet=True):
        say("making " + str(venv))
        python = make_venv(venv)
    lock = RUNTIME_LOCK if runtime else DEV_LOCK
    say("installing " + lock.name)
    pip(python, "install", "--require-hashes", *offline(), "-r", str(lock))
    say("installing torch " + TORCH + " (CPU)")
    get_torch(python, "install")
    say("installing Pyfhel " + PYFHEL)
    pip(python, "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    if ours:
        target = [str(ROOT)] if runtime else ["--editable", str(ROOT)]
        pip(python, "install", "--no-deps", "--no-index", "--no-build-isolation", *target)
    stamp.write_text(compute_stamp(runtime, ours))
    say(f"ready in {time.monotonic() - started:.0f} s: {venv}")


def fill_wheelhouse(venv: Path, target: Path) -> None:
    """Puts every wheel that a runtime set-up of this Python needs into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    python = venv / "bin" / "python"
    say("filling " + str(target))
    pip(
        python,
        "download",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "-r",
        str(RUNTIME_LOCK),
        "-d",
        str(target),
    )
    get_torch(python, "download", "-d", str(target))
    wheel = find_wheel() or build_wheel()
    folder = target / "pyfhel" / compute_recipe()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(wheel, folder / wheel.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where (default: .venv)")
    parser.add_argument(
        "--runtime", action="store_true", help="leave out the development tools; copy bmif in"
    )
    parser.add_argument("--dependencies-only", action="store_true", help="leave out bmif itself")
    parser.add_argument(
        "--wheelhouse", type=Path, metavar="DIR", help="set up, then also gather all wheels in DIR"
    )
    arguments = parser.parse_args()
    venv = Path(os.path.abspath(arguments.venv))
    get_cache().mkdir(parents=True, exist_ok=True)
    with open(get_cache() / "setup.lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # two `make` commands may run at once
        install(venv, arguments.runtime, ours=not arguments.dependencies_only)
        if arguments.wheelhouse is not None:
            fill_wheelhouse(venv, Path(os.path.abspath(arguments.wheelhouse)))


if __name__ == "__main__":
    try:
        ensure_python()
        main()
    except SetupError as error:
        sys.exit("setup: " + str(error))
