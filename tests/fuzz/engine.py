"""Fuzzes one target after another with atheris (libFuzzer), each in a fork of one process that measures.

An error of the decoder does not end a run: the first input that shows it is kept, with the traceback, and the
search goes on. What kills the process, takes too long or too much memory ends the fork alone.
"""

import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import atheris

from tests.fuzz import corpus
from tests.fuzz.mutation import mutate
from tests.fuzz.sources import PACKAGES
from tests.fuzz.target import Target

LIBRARIES = ("PIL",)
"""Parsers of others that are measured too."""
NATIVE_SHARE = 0.35
"""Of mutations that are libFuzzer's own, which know what the code compared."""
MEMORY_MB = 2048
UNIT_TIMEOUT_S = 20
"""A single input that takes longer is a fault, like one that takes all memory."""


def load_measured_targets() -> dict[str, Target]:
    """All targets, in code that counts what it reaches. Nothing of the sources may be imported before."""
    measured = atheris.instrument_imports(include=[*PACKAGES, *LIBRARIES])
    with contextlib.redirect_stderr(io.StringIO()), measured:  # it names every module
        from tests.fuzz.registry import get_targets
        from tests.fuzz.scenes import get_scenes

        targets = get_targets()
        get_scenes()
    return targets


@dataclass(frozen=True, slots=True)
class Result:
    """What a run did; edges are places in the sources that were reached, at the start and at the end."""

    seconds: float
    executions: int
    first_edges: int
    edges: int
    found: tuple[Path, ...]
    crashes: tuple[Path, ...]
    failure: str


def fuzz(target: Target, seconds: int, seed: int, folder: Path) -> Result:
    """Fuzz for so long; everything found lies in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    found, crashes, log = folder / "found", folder / "crashes", folder / "log"
    found.mkdir(parents=True)
    crashes.mkdir()
    kept = [str(path) for path in (corpus.get_folder(target),) if path.exists()]
    arguments = [str(found), *kept, f"-max_total_time={seconds}", f"-seed={seed}", "-print_final_stats=1"]
    arguments += [f"-max_len={target.max_bytes}", f"-timeout={UNIT_TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}"]
    arguments += [f"-artifact_prefix={crashes}/"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bmif-fuzz-") as temporary:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _become_fuzzer(target, arguments, crashes, log, temporary)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = log.read_text(encoding="utf-8", errors="replace")
    edges = [int(number) for number in re.findall(r"\bcov: (\d+)", text)]
    initial = re.search(r"INITED cov: (\d+)", text)
    executions = re.search(r"number_of_executed_units:\s*(\d+)", text)
    return Result(
        time.monotonic() - started,
        int(executions[1]) if executions else 0,
        int(initial[1]) if initial else 0,
        edges[-1] if edges else 0,
        tuple(sorted(found.iterdir(), key=lambda path: (path.stat().st_size, path.name))),
        tuple(sorted(path for path in crashes.iterdir() if path.suffix != ".txt")),
        f"ended with status {status}, see {log}" if status else "",
    )


def _become_fuzzer(target: Target, arguments: list[str], crashes: Path, log: Path, temporary: str) -> None:
    """In the fork; never returns."""
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        tempfile.tempdir = temporary
        seeds, seen = list(target.seeds()), set[str]()

        def run(data: bytes) -> None:
            try:
                target.execute_bounded(data)
            except Exception as error:
                signature = get_signature(error)
                if signature not in seen:
                    seen.add(signature)
                    path = crashes / hashlib.sha256(data).hexdigest()[:12]
                    path.write_bytes(data)
                    path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))

        def change(data: bytes, max_size: int, seed: int) -> bytes:
            draw = random.Random(seed)
            if draw.random() < NATIVE_SHARE:
                return bytes(atheris.Mutate(data, max_size))
            return mutate(data, target.form, draw, seeds, max_size)

        atheris.Setup(["fuzz", *arguments], run, custom_mutator=change)
        atheris.Fuzz()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def get_signature(error: Exception) -> str:
    """What tells one fault from another: the error and the last places in the sources."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:]]
    return " ".join((type(error).__name__, *places))
