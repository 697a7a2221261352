"""The net as containers of docker-compose.yml, faults by the Docker engine's own means."""

import asyncio
import contextlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.reliability.backend import START_DEADLINE_S, BackendError, poll
from benchmarks.reliability.faketime import build_environment, format_offset
from benchmarks.reliability.manifest import Manifest
from benchmarks.reliability.process_backend import run_command
from consensus.crypto import SigningKey
from node.keystore import load_account_key

COMPOSE_FILE = Path(__file__).resolve().parents[2] / "docker-compose.yml"
IMAGE = "bmif:local"
CLOCK_IMAGE = "bmif-faketime:local"
OFFSET_FILE = "/node/clock"
FIRST_PORT, PORTS_PER_NODE = 8100, 3
POLL_S = 0.2
FREEZE_S = 60.0
CLOCK_DOCKERFILE = f"""\
FROM {IMAGE}
USER root
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libfaketime \\
    && rm -rf /var/lib/apt/lists/* && ln -s /usr/lib/*/faketime/libfaketime.so.1 /opt/libfaketime.so
USER bmif
"""


@dataclass(slots=True)
class ContainerBackend:
    """The four services of the compose file; with `attach` those that are up already, and stay up."""

    manifest: Manifest
    directory: Path
    attach: bool = False
    kind: str = "containers"
    _containers: dict[str, str] = field(default_factory=dict)
    _sides: dict[str, str] = field(default_factory=dict)
    """Name of the network on which each node that was moved is now."""
    _networks: list[str] = field(default_factory=list)
    _home: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return self.manifest.names

    # --- life ---------------------------------------------------------------------------------

    def _get_compose(self) -> list[str]:
        command = os.environ.get("COMPOSE", "docker compose").split()
        files = ["-f", str(COMPOSE_FILE)]
        if not self.attach:
            files += ["-f", str(self.directory / "override.yaml")]
        return [*command, *files, "--project-directory", str(COMPOSE_FILE.parent)]

    async def begin(self) -> None:
        if self.manifest.nodes != 4:
            raise BackendError("docker-compose.yml has four nodes")
        if not self.attach:
            self.directory.mkdir(parents=True)
            await self._write_override()
            await run_command([*self._get_compose(), "up", "-d", "--no-build"])
        for name in self.names:
            found = await run_command([*self._get_compose(), "ps", "-q", name])
            self._containers[name] = found.strip()
        joined = json.loads(await self._inspect("node1", "{{json .NetworkSettings.Networks}}"))
        self._home = next(iter(joined))
        await asyncio.gather(*map(self._wait_ready, self.names))

    async def _write_override(self) -> None:
        """The manifest's parameters, and libfaketime where a clock is to be wrong."""
        manifest = self.manifest
        suspects = {n for step in manifest.steps if step.do == "clock" for n in step.nodes or self.names}
        profile = {"name": manifest.name, "params": manifest.params, "node": {"stop_timeout_s": 30}}
        init = (
            f"cat >/tmp/profile.yaml <<'END'\n{yaml.safe_dump(profile)}END\n"
            f"bmif testnet init --nodes 4 --miners {manifest.miners} --hosts compose "
            "--profile /tmp/profile.yaml --dir /home/bmif/testnet\n"
            "for node in node4 node3 node2 node1; do\n"
            '  cp -a "/home/bmif/testnet/$$node/." "/volumes/$$node/"\n'
            "done\n"
        )
        init += "".join(f"echo '{format_offset(0.0).strip()}' >/volumes/{name}/clock\n" for name in suspects)
        services: dict[str, object] = {"init": {"command": [init]}}
        for name in suspects:
            variables = build_environment("/opt/libfaketime.so", OFFSET_FILE)
            services[name] = {"image": CLOCK_IMAGE, "environment": variables}
        if suspects:
            dockerfile = self.directory / "Dockerfile"
            dockerfile.write_text(CLOCK_DOCKERFILE, encoding="utf-8")
            await run_command(["docker", "build", "-q", "-t", CLOCK_IMAGE, str(self.directory)])
        override = yaml.safe_dump({"services": services})
        (self.directory / "override.yaml").write_text(override, encoding="utf-8")

    async def end(self) -> None:
        for network in self._networks:
            for name in self.names:
                await _try(["docker", "network", "disconnect", "-f", network, self._containers[name]])
        if not self.attach and self.directory.exists():
            await run_command(
                [*self._get_compose(), "down", "--volumes", "--remove-orphans", "--timeout", "30"]
            )
        for network in self._networks:
            await _try(["docker", "network", "rm", network])

    def get_url(self, name: str) -> str:
        return f"http://127.0.0.1:{FIRST_PORT + PORTS_PER_NODE * self.names.index(name)}"

    async def load_key(self, name: str) -> SigningKey:
        """Read in the container: nothing of it stays on this machine."""
        path = self.directory.with_name(f"{self.directory.name}-{name}.key")
        text = await run_command(["docker", "exec", self._containers[name], "cat", "/node/account.key"])
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        try:
            return load_account_key(path)
        finally:
            path.unlink()

    async def bmif(self, name: str, *arguments: str) -> str:
        return await run_command(["docker", "exec", self._containers[name], "bmif", *arguments])

    def get_scratch(self, name: str, what: str) -> str:
        return f"/node/{what}-{self.manifest.name}"

    async def read_logs(self) -> str:
        if not self._containers:
            return "(no net)"
        logs = []
        for name, container in self._containers.items():
            process = await asyncio.create_subprocess_exec(
                "docker", "logs", "--tail", "40", container,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            out, _ = await process.communicate()
            logs.append(f"--- {name}\n{out.decode(errors='replace')}")
        return "\n".join(logs)

    async def _inspect(self, name: str, template: str) -> str:
        command = ["docker", "inspect", "--format", template, self._containers[name]]
        return (await run_command(command)).strip()

    async def _wait_ready(self, name: str) -> None:
        """By the node's own word, on the published port."""

        def ask() -> bool:
            try:
                with urllib.request.urlopen(self.get_url(name) + "/readyz", timeout=3) as reply:
                    return bool(reply.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        await poll(lambda: asyncio.to_thread(ask), f"{name} is ready", START_DEADLINE_S, POLL_S)

    # --- faults -------------------------------------------------------------------------------

    async def kill(self, name: str) -> None:
        # A container that was killed by hand is not restarted by the engine (`unless-stopped`).
        await run_command(["docker", "kill", "--signal", "KILL", self._containers[name]])
        await run_command(["docker", "wait", self._containers[name]])

    async def stop(self, name: str) -> None:
        await run_command(["docker", "stop", "--time", "60", self._containers[name]])
        status = await self._inspect(name, "{{.State.ExitCode}}")
        if status != "0":
            raise BackendError(f"{name} stopped with status {status}")

    async def start(self, name: str) -> None:
        await run_command(["docker", "start", self._containers[name]])
        await self._wait_ready(name)

    async def pause(self, name: str) -> None:
        async def is_frozen() -> bool:
            # On a starved machine the engine now and then gives up with "unable to freeze".
            await _try(["docker", "pause", self._containers[name]])
            return await self._inspect(name, "{{.State.Paused}}") == "true"

        await poll(is_frozen, f"{name} is frozen", FREEZE_S, POLL_S)

    async def resume(self, name: str) -> None:
        await run_command(["docker", "unpause", self._containers[name]])

    async def part(self, groups: Sequence[Sequence[str]]) -> None:
        """The first group stays where it is when it is the larger; others move to networks of their own.

        A single node is only disconnected: even its published port is then gone.
        """
        stay = max(groups, key=len)
        for number, group in enumerate(g for g in groups if g is not stay):
            other = ""
            if len(group) > 1:
                other = f"{self._home}_side{number}"
                if other not in self._networks:
                    await run_command(["docker", "network", "create", other])
                    self._networks.append(other)
            await asyncio.gather(*(self._move(name, self._home, other) for name in group))
            self._sides |= dict.fromkeys(group, other)

    async def _move(self, name: str, source: str, target: str) -> None:
        container = self._containers[name]
        if source:
            await run_command(["docker", "network", "disconnect", source, container])
        if target:
            await run_command(["docker", "network", "connect", "--alias", name, target, container])

    async def heal(self) -> None:
        await asyncio.gather(*(self._move(name, side, self._home) for name, side in self._sides.items()))
        self._sides.clear()

    async def wipe(self, name: str) -> None:
        await run_command(
            ["docker", "run", "--rm", "--network", "none", "--volumes-from", self._containers[name],
             "--entrypoint", "/bin/sh", IMAGE, "-euc", "rm -rf /node/data"]
        )  # fmt: skip

    async def set_clock(self, name: str, offset_s: float) -> None:
        offset = format_offset(offset_s).strip()
        script = f"echo '{offset}' >{OFFSET_FILE}.part; mv {OFFSET_FILE}.part {OFFSET_FILE}"
        container = self._containers[name]
        await run_command(["docker", "exec", "-e", "LD_PRELOAD=", container, "/bin/sh", "-euc", script])


async def _try(command: list[str]) -> None:
    """For clean-up: what is gone already is fine."""
    with contextlib.suppress(BackendError):
        await run_command(command)
