"""Runs a testnet's nodes as processes of this machine: start until ready, stop until gone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from node.testnet import Testnet, TestnetError, TestnetNode

PID_FILE = "node.pid"
LOG_FILE = "node.log"
POLL_S = 0.1
TAIL_BYTES = 3_000


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """Whether a node's process lives and answers."""

    node: TestnetNode
    pid: int | None
    ready: bool
    detail: str


def _get_start_ticks(pid: int) -> str | None:
    """The kernel's start time of a live process; tells it from a later one of the same number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def get_pid(directory: Path) -> int | None:
    """The pid of the node that runs from this directory, if one does."""
    try:
        document = json.loads((directory / PID_FILE).read_text(encoding="utf-8"))
        pid, started = int(document["pid"]), str(document["started"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return pid if _get_start_ticks(pid) == started else None


def get_log_tail(directory: Path) -> str:
    """The last lines that the node wrote."""
    try:
        with (directory / LOG_FILE).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return "(no log)"


def _spawn(testnet: Testnet, node: TestnetNode) -> subprocess.Popen[bytes]:
    home = testnet.get_directory(node.name)
    command = [
        sys.executable,
        "-m",
        "node.cli.main",
        "run",
        "--config",
        str(testnet.get_config_path(node.name)),
    ]
    # Several nodes share the cores, so numeric libraries get one thread each.
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
    with (home / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    document = {"pid": process.pid, "started": _get_start_ticks(process.pid)}
    (home / PID_FILE).write_text(json.dumps(document), encoding="utf-8")
    return process


def _is_only_alone(problem: Mapping[str, JsonValue]) -> bool:
    """Whether a node that is not ready lacks nothing but peers."""
    criteria = problem.get("criteria")
    if not isinstance(criteria, list):
        return False
    missing = [c["name"] for c in criteria if isinstance(c, dict) and c["blocking"] and not c["ok"]]
    return missing == ["peers"]


def probe(url: str, address: str, timeout_s: float = 2.0, *, may_be_alone: bool = False) -> tuple[bool, str]:
    """Whether the node of this account answers at `url` and is ready, and what is said if not.

    `may_be_alone`: it counts as ready before others are up to link with.
    """
    try:
        with urllib.request.urlopen(f"{url}/v1/status", timeout=timeout_s) as reply:
            if json.loads(reply.read()).get("address") != address:
                return False, "another node answers at this port"
        with urllib.request.urlopen(f"{url}/readyz", timeout=timeout_s) as reply:
            return reply.status == 200, "ready"
    except urllib.error.HTTPError as error:
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            problem = json.loads(error.read())
            return may_be_alone and _is_only_alone(problem), str(problem["detail"])
        return False, f"HTTP {error.code}"
    except (urllib.error.URLError, OSError, ValueError) as error:
        return False, f"no answer: {getattr(error, 'reason', error)}"


def start_nodes(
    testnet: Testnet,
    names: tuple[str, ...] = (),
    *,
    deadline_s: float = 60.0,
    report: Callable[[TestnetNode], None] = lambda node: None,
) -> tuple[TestnetNode, ...]:
    """Start the nodes that are not running yet and return once each is ready; `report` hears of each.

    Raises: TestnetError with the end of the log if a node exits or is not ready in time; others keep running.
    """
    started: dict[str, subprocess.Popen[bytes]] = {}
    waiting = list(testnet.select(names))
    for node in waiting:
        if get_pid(testnet.get_directory(node.name)) is None:
            started[node.name] = _spawn(testnet, node)
    end = time.monotonic() + deadline_s
    details: dict[str, str] = {}
    while waiting:
        for node in tuple(waiting):
            home = testnet.get_directory(node.name)
            process = started.get(node.name)
            if process is not None and process.poll() is not None:
                (home / PID_FILE).unlink(missing_ok=True)
                raise TestnetError(
                    f"{node.name} exited with status {process.returncode}; "
                    f"end of {home / LOG_FILE}:\n{get_log_tail(home)}"
                )
            url = testnet.get_api_url(node)
            ready, details[node.name] = probe(url, node.address, may_be_alone=True)
            if ready:
                waiting.remove(node)
                report(node)
        if waiting and time.monotonic() > end:
            node = waiting[0]
            home = testnet.get_directory(node.name)
            raise TestnetError(
                f"{node.name} is not ready after {deadline_s:.0f} s ({details[node.name]}); "
                f"end of {home / LOG_FILE}:\n{get_log_tail(home)}"
            )
        if waiting:
            time.sleep(POLL_S)
    return tuple(node for node in testnet.select(names) if node.name in started)


def _wait_gone(
    pids: dict[str, tuple[int, str | None]], deadline_s: float
) -> dict[str, tuple[int, str | None]]:
    end = time.monotonic() + deadline_s
    while True:
        for pid, _ in pids.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # reap it if it is our own child, else it stays a zombie
        pids = {name: entry for name, entry in pids.items() if _get_start_ticks(entry[0]) == entry[1]}
        if not pids or time.monotonic() > end:
            return pids
        time.sleep(POLL_S)


def _send(pids: Iterable[tuple[int, str | None]], number: signal.Signals, *, group: bool) -> None:
    for pid, _ in pids:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(pid, number)


def stop_nodes(testnet: Testnet, names: tuple[str, ...] = (), *, deadline_s: float = 30.0) -> tuple[str, ...]:
    """Ask the running nodes to stop (SIGTERM), wait, and kill what is left after the deadline, workers too.

    Returns the names of those that had to be killed.
    """
    pids: dict[str, tuple[int, str | None]] = {}
    for node in testnet.select(names):
        pid = get_pid(testnet.get_directory(node.name))
        if pid is not None:
            pids[node.name] = (pid, _get_start_ticks(pid))
    _send(pids.values(), signal.SIGTERM, group=False)
    left = _wait_gone(pids, deadline_s)
    if left:
        _send(left.values(), signal.SIGKILL, group=True)
        _wait_gone(left, 5.0)
    for name in pids:
        (testnet.get_directory(name) / PID_FILE).unlink(missing_ok=True)
    return tuple(left)


def get_statuses(testnet: Testnet, names: tuple[str, ...] = ()) -> tuple[ProcessStatus, ...]:
    """Process and readiness of each node."""
    statuses = []
    for node in testnet.select(names):
        pid = get_pid(testnet.get_directory(node.name))
        ready, detail = probe(testnet.get_api_url(node), node.address)
        statuses.append(ProcessStatus(node, pid, ready, detail))
    return tuple(statuses)
