"""TCP relays between processes of one machine: each fronts one node's peer port and can part it from others.

A relay learns from the kernel's tables which process dialled it, so one address a node is enough, nodes can
tell each other of it, and whatever they learn they can reach only as far as the relay lets them. Bytes pass
untouched, so mutual TLS stays end to end. While two nodes are parted their connections stay open and silent,
as where packets are dropped; when they are joined the bytes in flight go on.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = "127.0.0.1"
PIECE_BYTES = 256 * 1024
TCP_TABLE = Path("/proc/net/tcp")


def find_socket(local_port: int, remote_port: int, table: str) -> str | None:
    """Inode of the socket with these two ports in the text of /proc/net/tcp."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if (
            int(fields[1].rpartition(":")[2], 16) == local_port
            and int(fields[2].rpartition(":")[2], 16) == remote_port
        ):
            return fields[9]
    return None


def has_socket(pid: int, inode: str) -> bool:
    """Whether the process has this socket open."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path) == f"socket:[{inode}]":
                        return True
    except OSError:
        pass
    return False


def find_owner(local_port: int, remote_port: int, pids: Mapping[str, int]) -> str | None:
    """Which of the named processes holds the dialling end of a connection."""
    inode = find_socket(local_port, remote_port, TCP_TABLE.read_text(encoding="ascii"))
    if inode is None:
        return None
    return next((name for name, pid in pids.items() if has_socket(pid, inode)), None)


@dataclass(slots=True)
class Relays:
    """All relays of a testnet, and which pairs of nodes they let through."""

    get_pids: Callable[[], Mapping[str, int]]
    """Process ids of the running nodes by name."""
    _gates: dict[frozenset[str], asyncio.Event] = field(default_factory=dict)
    _servers: list[asyncio.Server] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    passed_bytes: int = 0

    async def front(self, name: str, port: int, target_port: int) -> None:
        """Listen at `port` for the node whose peer listener is at `target_port`."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._serve(name, target_port, reader, writer)
            except OSError:
                pass  # an end went away; the other is closed below
            finally:
                self._tasks.discard(task)
                writer.close()

        self._servers.append(await asyncio.start_server(serve, LOOPBACK, port, limit=PIECE_BYTES))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        self._servers.clear()

    def part(self, first: str, second: str) -> None:
        """Let nothing pass between the two, in either direction."""
        self._get_gate(first, second).clear()

    def join(self, first: str, second: str) -> None:
        self._get_gate(first, second).set()

    def join_all(self) -> None:
        for gate in self._gates.values():
            gate.set()

    def _get_gate(self, first: str, second: str) -> asyncio.Event:
        pair = frozenset((first, second))
        if pair not in self._gates:
            self._gates[pair] = asyncio.Event()
            self._gates[pair].set()
        return self._gates[pair]

    async def _serve(
        self, name: str, target_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        local, remote = writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1]
        caller = await asyncio.to_thread(find_owner, local, remote, self.get_pids())
        if caller is None:
            return  # not one of ours, or dead already
        gate = self._get_gate(caller, name)
        await gate.wait()
        onward_reader, onward_writer = await asyncio.open_connection(LOOPBACK, target_port, limit=PIECE_BYTES)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(gate, reader, onward_writer))
                group.create_task(self._pump(gate, onward_reader, writer))
        except* OSError:
            pass
        finally:
            onward_writer.close()

    async def _pump(
        self, gate: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            piece = await reader.read(PIECE_BYTES)
            await gate.wait()
            if not piece:
                writer.close()
                return
            writer.write(piece)
            await writer.drain()
            self.passed_bytes += len(piece)
