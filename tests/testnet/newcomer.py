"""Does what docs/QUICKSTART.md says, command by command, from a clone in an empty folder.

`python -m tests.testnet.newcomer` clones the repository that it lies in, so what is not committed is not
tried. Images are synthetic DICOM files. Ids are taken from what the commands print, as a reader would. Exit
status 0: the page is right, no command took longer than its limit, what is to end with a word did, and the
fused images are there.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pydicom
from PIL import Image

from tests.integration.guide_data import build_guide_data

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "QUICKSTART.md"
PLACEHOLDERS = {"draft": "DRAFT", "contribution": "CONTRIBUTION", "task": "TASK"}
TOLD = re.compile(r"^(draft|contribution|task) ([0-9a-f]{64}),", re.MULTILINE)
END = "newcomer-status"
LIMIT_S = 180.0
LIMITS_S = {"make setup": 600.0, "bmif task watch": 400.0}
"""Of commands that begin so; others have `LIMIT_S`."""
CLOSINGS = {
    "python examples/follow_task.py": "is complete",
    "python examples/verify_task.py": "proves: complete",
}
"""What the last line of commands that begin so must say."""


class NewcomerError(Exception):
    """A command of the page does not do what the page says."""


def read_commands() -> list[str]:
    """The page's commands in order; at least one for each of its parts."""
    blocks = PAGE.read_text(encoding="utf-8").split("```console\n")[1:]
    return [
        line[2:]
        for block in blocks
        for line in block.partition("```")[0].splitlines()
        if line.startswith("$ ")
    ]


def get_limit_s(command: str) -> float:
    return next((limit for begin, limit in LIMITS_S.items() if command.startswith(begin)), LIMIT_S)


def check_closing(command: str, output: str) -> None:
    """Raises: NewcomerError naming a command that did not end with what it is to say."""
    lines = output.strip().splitlines()
    for begin, words in CLOSINGS.items():
        if command.startswith(begin) and (not lines or words not in lines[-1]):
            last = lines[-1] if lines else "nothing"
            raise NewcomerError(f"{command}: expected a last line with {words!r}, got {last!r}")


class Shell:
    """One bash that keeps its folder and variables from command to command, as a terminal does."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str, limit_s: float) -> str:
        """What the command printed. Raises: NewcomerError if it fails, or takes longer."""
        over = threading.Event()

        def end() -> None:
            over.set()
            self._kill()

        timer = threading.Timer(limit_s, end)
        timer.start()
        try:
            return self._run(command)
        except (NewcomerError, BrokenPipeError) as error:
            if over.is_set():
                raise NewcomerError(f"{command}: not done after {limit_s:.0f} s") from error
            raise
        finally:
            timer.cancel()

    def _kill(self) -> None:
        """End the shell and what it runs; detached nodes are not of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _run(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command} </dev/null\necho {END} $?\n")
        self._process.stdin.flush()
        lines = []
        for line in self._process.stdout:
            if line.startswith(END):
                if line.split()[1] != "0":
                    raise NewcomerError(f"{command}: exit status {line.split()[1]}")
                return "".join(lines)
            lines.append(line)
            print(f"  {line}", end="", flush=True)
        raise NewcomerError(f"{command}: the shell ended")

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait(timeout=60)
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()


def bring_images(folder: Path) -> None:
    """A synthetic patient's pair where the reader would put their own."""
    with tempfile.TemporaryDirectory() as made:
        build_guide_data(Path(made))
        shutil.copyfile(Path(made) / "mri" / "0" / "1.dcm", folder / "mri.dcm")
        shutil.copyfile(Path(made) / "ct" / "0" / "1.dcm", folder / "ct.dcm")


def check_results(folder: Path) -> None:
    """Raises: NewcomerError unless the fused images are images, of the task that was mined."""
    fused = pydicom.dcmread(folder / "fused.dcm")
    source = pydicom.dcmread(folder / "mri.dcm")
    with Image.open(folder / "fused.png") as picture, Image.open(folder / "figure.png") as figure:
        sizes = (fused.Columns, fused.Rows), (source.Columns, source.Rows), picture.size
        if len(set(sizes)) != 1 or figure.width <= picture.width:
            raise NewcomerError(f"sizes of fused.dcm, mri.dcm, fused.png: {sizes}; figure.png: {figure.size}")
        if len(picture.convert("L").getcolors()) < 16:
            raise NewcomerError("fused.png is nearly empty")
    if source.PatientName in (fused.get("PatientName"),) or "task" not in fused.DerivationDescription.lower():
        raise NewcomerError("fused.dcm names the patient, or not its task")


def follow(folder: Path) -> None:
    """Raises: NewcomerError at the first command that fails."""
    shell, ids = Shell(folder), {"REPOSITORY": shlex.quote(str(ROOT))}
    clone = folder / "bmif"
    try:
        for command in read_commands():
            for placeholder, value in ids.items():
                command = re.sub(rf"\b{placeholder}\b", value, command)
            print(f"$ {command}", flush=True)
            started = time.monotonic()
            output = shell.run(command, get_limit_s(command))
            check_closing(command, output)
            print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
            ids.update({PLACEHOLDERS[what]: found for what, found in TOLD.findall(output)})
            if command.startswith("cd "):
                bring_images(clone)
        check_results(clone)
    finally:
        if (clone / "net").exists():
            shell_end = [
                str(clone / ".venv" / "bin" / "bmif"),
                "testnet",
                "down",
                "--dir",
                str(clone / "net"),
            ]
            subprocess.run(shell_end, check=False)
        shell.close()


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bmif-newcomer-") as folder:
        try:
            follow(Path(folder))
        except NewcomerError as error:
            print(f"newcomer: {error}", file=sys.stderr)
            return 1
    seconds = time.monotonic() - started
    print(f"newcomer: every command of {PAGE.relative_to(ROOT)} does what it says, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
