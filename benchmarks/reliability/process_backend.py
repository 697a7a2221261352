"""The net as processes of this machine, their peer links through relays that can be cut."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import yaml

from benchmarks.reliability.backend import START_DEADLINE_S, BackendError, poll
from benchmarks.reliability.faketime import build_environment, find_library, format_offset
from benchmarks.reliability.manifest import Manifest
from benchmarks.reliability.relay import LOOPBACK, Relays
from consensus.crypto import SigningKey
from node import processes
from node.keystore import load_account_key
from node.testnet import PORTS_PER_NODE, Profile, Testnet, init_testnet

STOP_DEADLINE_S = 60.0


def find_free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens at now."""
    while True:
        base = random.randrange(20_000, 32_000)
        with ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(socket.socket()).bind((LOOPBACK, port))
            except OSError:
                continue
        return base


@contextlib.contextmanager
def with_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables for processes started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def get_workers(pid: int) -> list[int]:
    """The process ids of a node's children, by /proc."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[1]) == pid:
                children.append(int(stat.parent.name))
    return children


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and is nobody's child to reap does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass(slots=True)
class ProcessBackend:
    """A testnet below `directory`; nodes are configured with relays' addresses, their own included."""

    manifest: Manifest
    directory: Path
    kind: str = "processes"
    _testnet: Testnet | None = None
    _relays: Relays | None = None
    _library: Path | None = None
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def names(self) -> tuple[str, ...]:
        return self.manifest.names

    @property
    def testnet(self) -> Testnet:
        if self._testnet is None:
            raise BackendError("the net is not made yet")
        return self._testnet

    @property
    def relays(self) -> Relays:
        if self._relays is None:
            raise BackendError("the net is not made yet")
        return self._relays

    # --- life ---------------------------------------------------------------------------------

    async def begin(self) -> None:
        manifest = self.manifest
        ports = find_free_ports((PORTS_PER_NODE + 1) * manifest.nodes)
        profile = Profile(
            name=manifest.name,
            params=manifest.params,
            node={"workers": 1, "stop_timeout_s": 30, "log": {"level": "info"}},
        )
        self._testnet = init_testnet(
            self.directory, manifest.nodes, manifest.miners, profile=profile, base_port=ports
        )
        if any(step.do == "clock" for step in manifest.steps):
            self._library = await asyncio.to_thread(find_library, self.directory / "faketime")
        self._relays = Relays(self._get_pids)
        first = ports + PORTS_PER_NODE * manifest.nodes
        fronts = {node.name: first + number for number, node in enumerate(self.testnet.nodes)}
        for node in self.testnet.nodes:
            await self._relays.front(node.name, fronts[node.name], node.peer_port)
            self._point_to_relays(node.name, fronts)
        await asyncio.gather(*(self.start(name) for name in self.names))

    def _point_to_relays(self, name: str, fronts: Mapping[str, int]) -> None:
        path = self.testnet.get_config_path(name)
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings["peer"]["advertise"] = f"{LOOPBACK}:{fronts[name]}"
        settings["peer"]["peers"] = [f"{LOOPBACK}:{port}" for other, port in fronts.items() if other != name]
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def _get_pids(self) -> dict[str, int]:
        found = ((name, processes.get_pid(self.testnet.get_directory(name))) for name in self.names)
        return {name: pid for name, pid in found if pid is not None}

    async def end(self) -> None:
        if self._testnet is None:
            return
        for pid in self._get_pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGCONT)
        await asyncio.to_thread(processes.stop_nodes, self.testnet, deadline_s=STOP_DEADLINE_S)
        if self._relays is not None:
            await self._relays.close()

    def get_url(self, name: str) -> str:
        return self.testnet.get_api_url(self.testnet.select((name,))[0])

    async def load_key(self, name: str) -> SigningKey:
        return load_account_key(self.testnet.get_directory(name) / "account.key")

    async def bmif(self, name: str, *arguments: str) -> str:
        config = str(self.testnet.get_config_path(name))
        command = [sys.executable, "-m", "node.cli.main", *arguments, "--config", config]
        return await run_command(command)

    def get_scratch(self, name: str, what: str) -> str:
        return str(self.directory / f"{name}-{what}")

    async def read_logs(self) -> str:
        if self._testnet is None:
            return "(no net)"
        return "\n".join(
            f"--- {name}\n{processes.get_log_tail(self.testnet.get_directory(name))}" for name in self.names
        )

    # --- faults -------------------------------------------------------------------------------

    def _require_pid(self, name: str) -> int:
        pid = self._get_pids().get(name)
        if pid is None:
            raise BackendError(f"{name} does not run")
        return pid

    async def kill(self, name: str) -> None:
        """The main process alone is killed: its workers have to notice by themselves."""
        pid = self._require_pid(name)
        workers = get_workers(pid)
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, pid, 0)

        async def are_gone() -> bool:
            return not any(map(is_alive, workers))

        await poll(are_gone, f"workers of {name} end", STOP_DEADLINE_S)

    async def stop(self, name: str) -> None:
        killed = await asyncio.to_thread(
            processes.stop_nodes, self.testnet, (name,), deadline_s=STOP_DEADLINE_S
        )
        if killed:
            raise BackendError(f"{name} had to be killed: it did not stop in {STOP_DEADLINE_S:.0f} s")

    async def start(self, name: str) -> None:
        offset = self._get_offset_file(name)
        async with self._starting:
            with with_environment(self._build_environment(name, offset)):
                # Returns as soon as the process exists; readiness is awaited outside the lock.
                started = asyncio.create_task(
                    asyncio.to_thread(
                        processes.start_nodes, self.testnet, (name,), deadline_s=START_DEADLINE_S
                    )
                )

                async def is_spawned() -> bool:
                    return started.done() or name in self._get_pids()

                await poll(is_spawned, f"{name} is spawned", START_DEADLINE_S)
        await started

    def _get_offset_file(self, name: str) -> Path:
        return self.testnet.get_directory(name) / "clock"

    def _build_environment(self, name: str, offset: Path) -> dict[str, str]:
        suspects = {n for step in self.manifest.steps if step.do == "clock" for n in step.nodes or self.names}
        if name not in suspects or self._library is None:
            return {}
        if not offset.exists():
            offset.write_text(format_offset(0.0), encoding="ascii")
        return build_environment(str(self._library), str(offset))

    async def pause(self, name: str) -> None:
        os.killpg(self._require_pid(name), signal.SIGSTOP)

    async def resume(self, name: str) -> None:
        os.killpg(self._require_pid(name), signal.SIGCONT)

    async def part(self, groups: Sequence[Sequence[str]]) -> None:
        for one, other in combinations(groups, 2):
            for first in one:
                for second in other:
                    self.relays.part(first, second)

    async def heal(self) -> None:
        self.relays.join_all()

    async def wipe(self, name: str) -> None:
        if name in self._get_pids():
            raise BackendError(f"{name} runs: its disk can't be wiped")
        data = self.testnet.get_directory(name) / "data"
        await asyncio.to_thread(shutil.rmtree, data)
        data.mkdir(mode=0o700)

    async def set_clock(self, name: str, offset_s: float) -> None:
        path = self._get_offset_file(name)
        part = path.with_name("clock.part")
        part.write_text(format_offset(offset_s), encoding="ascii")
        os.replace(part, path)


async def run_command(command: Sequence[str]) -> str:
    """A command's standard output. Raises: BackendError with its standard error."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise BackendError(f"`{' '.join(command)}` ended with {process.returncode}: {err.decode()[-2000:]}")
    return out.decode()
