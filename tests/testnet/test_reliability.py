"""The fault runner's own parts: relays between real processes, manifests, and checks that do find faults."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.reliability.faketime import format_offset
from benchmarks.reliability.invariants import check_money, check_prefix, check_roots
from benchmarks.reliability.manifest import MANIFESTS, ManifestError, Step, load_manifest
from benchmarks.reliability.perturb import Outcome
from benchmarks.reliability.process_backend import find_free_ports
from benchmarks.reliability.relay import LOOPBACK, Relays, find_owner
from benchmarks.reliability.report import build_row

DEADLINE_S = 60.0
SILENCE_S = 0.5
"""For what must not come; what must come is waited for by far longer."""
CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as link:
    for line in sys.stdin.buffer:
        link.sendall(line)
        answer = link.recv(100)
        if not answer:
            break
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()
"""


class Caller:
    """A process that sends a line through a connection of its own and prints the answer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)

    async def hear(self, seconds: float = DEADLINE_S) -> bytes | None:
        """The next line, or None after so many seconds."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                return await self.process.stdout.readline()
        except TimeoutError:
            return None


Callers = dict[str, Caller]
Pids = dict[str, int]


@asynccontextmanager
async def run_callers(names: tuple[str, ...]) -> AsyncIterator[tuple[Relays, Callers, Pids]]:
    """Processes that all dial an echo server's relay, called `server`."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    pids: dict[str, int] = {}
    relays = Relays(lambda: pids)
    server = await asyncio.start_server(echo, LOOPBACK, 0)
    front = find_free_ports(1)
    await relays.front("server", front, server.sockets[0].getsockname()[1])
    callers: dict[str, Caller] = {}
    try:
        for name in names:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CLIENT, str(front),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            pids[name] = process.pid
            callers[name] = Caller(process)
        yield relays, callers, pids
    finally:
        for caller in callers.values():
            if caller.process.returncode is None:
                caller.process.kill()
            await caller.process.wait()
        await relays.close()
        server.close()


async def test_a_relay_parts_one_process_and_serves_another() -> None:
    async with run_callers(("first", "second")) as (relays, callers, _):
        for name, caller in callers.items():
            caller.say(f"hello of {name}\n".encode())
            assert await caller.hear() == f"hello of {name}\n".encode()
        relays.part("server", "first")
        callers["first"].say(b"lost?\n")
        assert await callers["first"].hear(SILENCE_S) is None
        callers["second"].say(b"still here\n")
        assert await callers["second"].hear() == b"still here\n"
        relays.join_all()
        # What was under way arrives: packets were dropped and are sent again.
        assert await callers["first"].hear() == b"lost?\n"


async def test_a_connection_made_while_parted_begins_when_joined() -> None:
    async with run_callers(("late",)) as (relays, callers, _):
        relays.part("late", "server")
        callers["late"].say(b"anybody?\n")
        assert await callers["late"].hear(SILENCE_S) is None
        relays.join("late", "server")
        assert await callers["late"].hear() == b"anybody?\n"


async def test_a_relay_serves_nobody_unknown() -> None:
    async with run_callers(("known",)) as (_, callers, pids):
        pids.clear()
        callers["known"].say(b"let me in\n")
        assert await callers["known"].hear() == b""  # the end of its output: it was hung up on


def test_an_owner_is_found_by_its_socket() -> None:
    with (
        socket.create_server((LOOPBACK, 0)) as server,
        socket.create_connection(server.getsockname()) as link,
    ):
        ports = link.getsockname()[1], server.getsockname()[1]
        assert find_owner(*ports, {"other": 1, "self": os.getpid()}) == "self"
        assert find_owner(*ports, {}) is None


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_manifest_is_well_formed(path: Path) -> None:
    manifest = load_manifest(path)
    assert manifest.name == path.stem
    assert manifest.steps


def test_fifty_kills_are_planned() -> None:
    steps = load_manifest(MANIFESTS / "kills.yaml").steps
    assert sum(step.times * step.count for step in steps if step.do == "kill") >= 50


@pytest.mark.parametrize(
    "step",
    [
        "{do: explode, bound_s: 1}",
        "{do: kill}",
        "{do: clock, bound_s: 1}",
        "{do: kill, nodes: [node9], bound_s: 1}",
        "{do: pause, for_s: [3, 2], bound_s: 1}",
        "{do: custody-away, bound_s: 1}",
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(step: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"name: bad\nabout: bad\nsteps: [{step}]\n", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"bad\.yaml"):
        load_manifest(path)


def test_a_forked_prefix_is_found() -> None:
    chain = {0: "a", 1: "b", 2: "c"}
    assert not check_prefix({"one": chain, "two": dict(chain)}, 2, {1: "b"}).problems
    assert check_prefix({"one": chain, "two": chain | {1: "x"}}, 2, {}).problems
    assert check_prefix({"one": chain, "two": dict(chain)}, 2, {1: "y"}).problems
    # Above what is final, heads may still differ.
    assert not check_prefix({"one": chain, "two": chain | {2: "x"}}, 1, {}).problems


def test_lost_money_and_differing_states_are_found() -> None:
    before = {"a": 10, "b": 5, "tasks": 0}
    assert not check_money(before, {"one": {"a": 9, "b": 6, "tasks": 0}}).problems
    assert check_money(before, {"one": {"a": 10, "b": 6, "tasks": 0}}).problems
    assert check_money(before, {"one": before, "two": {"a": 9, "b": 6, "tasks": 0}}).problems
    assert check_roots({"one": "r", "two": "s"}, 3).problems


def test_a_row_tells_of_every_time_and_of_each_failure() -> None:
    step = Step(do="kill", times=2, bound_s=30)
    fine = Outcome(step, ("node1",), 1.0, 4.0, "")
    late = Outcome(step, ("node2",), 1.0, 40.0, "", ("recovered in 40.0 s, the bound is 30 s",))
    assert build_row(step, [fine, fine]).holds == "yes"
    assert build_row(step, [fine, late]).holds == "no (1 of 2)"
    assert build_row(step, [fine]).holds != "yes"
    assert build_row(step, [fine, late]).recovery == "4.0 s, 40.0 s"


def test_offsets_are_written_as_the_library_reads_them() -> None:
    assert format_offset(600) == "+600.000s\n"
    assert format_offset(-0.5) == "-0.500s\n"
