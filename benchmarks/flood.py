"""Five hundred hostile connections against an honest pair: `python -m benchmarks.flood`.

One real node process is flooded; an honest peer that it has configured goes on asking it. The attacker holds
valid certificates of three organisations and comes from ten addresses; a quarter of its connections never
begin TLS, a quarter stretch their handshake, a quarter are silent after it, a quarter send malformed, useless
and costly requests as fast as they are answered. Whatever is closed is opened again at once. The table tells
the honest peer's latency, idle and under flood, and what the attacker got for it.

The attacker runs at low priority, for in earnest it would not share the node's processor.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path

from benchmarks.figures import Figure, compute_quantile, describe_spread, format_table
from consensus.crypto import hash_domain
from consensus.gossip_rules import Outcome
from consensus.types import Hash32, Height
from node.clock import SystemClock
from node.config import NodeConfig
from node.genesis import load_genesis
from node.gossip.gate import GateLimits
from node.gossip.http import PREFIX, HttpTransport, PeerNetwork, PeerNetworkConfig
from node.gossip.messages import (
    MAX_ANNOUNCED,
    MAX_HASHES,
    MAX_OBJECT_IDS,
    ROUTES,
    Announced,
    Announcement,
    HashesRequest,
    Hello,
    Kind,
    Message,
    ObjectsRequest,
    PeerStatus,
    Route,
    decode_message,
    encode_message,
)
from node.gossip.network import NetworkConfig
from node.gossip.transport import Transport, TransportError
from node.processes import start_nodes, stop_nodes
from node.testnet import Testnet, init_testnet
from node.tls import TlsFiles, build_client_context

CONNECTIONS = 500
SOURCES = tuple(f"127.0.0.{number}" for number in range(2, 12))
MOST_TIMES_IDLE = 3.0
REOPEN_S = 0.02
DRIBBLE_S = 1.0
PAUSE_S = 0.06
"""Between two honest requests: within the rate of `STATUS`."""
VICTIM, HONEST, HOSTILE = "node1", "node2", ("node3", "node4", "node5")


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Way = Callable[[str, ssl.SSLContext, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FloodPlan:
    """Whom to flood, as whom, and from where."""

    host: str
    port: int
    chain_id: Hash32
    files: tuple[TlsFiles, ...]
    connections: int = CONNECTIONS
    sources: tuple[str, ...] = SOURCES


@dataclass(slots=True)
class Flood:
    """The attacker; `gained` counts what it got."""

    plan: FloodPlan
    gained: Counter[str] = field(default_factory=Counter)
    open: int = 0
    most_open: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        ways = (self._idle, self._dribble, self._stay_silent, self._spam)
        contexts = [build_client_context(files, lambda identity: None) for files in self.plan.files]
        async with asyncio.TaskGroup() as group:
            for number in range(self.plan.connections):
                way, turn = ways[number % len(ways)], number // len(ways)
                source = self.plan.sources[turn % len(self.plan.sources)]
                group.create_task(self._keep(way, source, contexts[turn % len(contexts)], number))

    async def _keep(self, way: Way, source: str, context: ssl.SSLContext, number: int) -> None:
        while True:
            with contextlib.suppress(OSError, ssl.SSLError, EOFError, TimeoutError):
                await way(source, context, number)
            await asyncio.sleep(REOPEN_S)

    @contextlib.asynccontextmanager
    async def _connect(self, source: str, context: ssl.SSLContext | None) -> AsyncIterator[Streams]:
        self.gained["connections tried"] += 1
        reader, writer = await asyncio.open_connection(
            self.plan.host,
            self.plan.port,
            ssl=context,
            server_hostname=self.plan.host if context else None,
            local_addr=(source, 0),
        )
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.gained["handshakes" if context else "bare connections"] += 1
        try:
            yield reader, writer
        finally:
            self.open -= 1
            writer.transport.abort()

    async def _idle(self, source: str, context: ssl.SSLContext, number: int) -> None:
        async with self._connect(source, None) as (reader, _):
            await reader.read()

    async def _dribble(self, source: str, context: ssl.SSLContext, number: int) -> None:
        async with self._connect(source, None) as (reader, writer):
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            reading = asyncio.ensure_future(reader.read())
            while not reading.done():
                await asyncio.wait((reading,), timeout=DRIBBLE_S)
                writer.write(b"\x00")
            await reading

    async def _stay_silent(self, source: str, context: ssl.SSLContext, number: int) -> None:
        async with self._connect(source, context) as (reader, _):
            await reader.read()

    async def _spam(self, source: str, context: ssl.SSLContext, number: int) -> None:
        async with self._connect(source, context) as (reader, writer):
            turn = number
            while True:
                route, body = self._build_spam(turn)
                turn += 1
                head = f"POST {PREFIX}{route} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
                reply = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                self.gained[f"replies {reply.split(' ', 2)[1]}"] += 1
                length = reply.partition("content-length:")[2].split("\r\n", 1)[0].strip()
                await reader.readexactly(int(length or 0))

    def _build_spam(self, turn: int) -> tuple[Route, bytes]:
        chain_id, tag = self.plan.chain_id, turn.to_bytes(8)
        ids = [hash_domain("flood", tag + number.to_bytes(4)) for number in range(MAX_OBJECT_IDS)]
        message: Message
        match turn % 5:
            case 0:
                return Route.STATUS, b"\xc1" * 40
            case 1:
                message = HashesRequest(chain_id, Height(0), MAX_HASHES)
                return Route.HASHES, encode_message(message)
            case 2:
                message = ObjectsRequest(chain_id, Kind.TRANSACTION, tuple(ids))
                return Route.OBJECTS, encode_message(message)
            case 3:
                junk = tuple(Announced(Kind.TRANSACTION, i, i * 8) for i in ids[:MAX_ANNOUNCED])
                return Route.ANNOUNCE, encode_message(Announcement(chain_id, junk))
            case _:
                items = tuple(Announced(Kind.BLOCK, i, None) for i in ids[:MAX_ANNOUNCED])
                return Route.ANNOUNCE, encode_message(Announcement(chain_id, items))


# --- the honest side --------------------------------------------------------------------------


class Bystander:
    """An honest peer's handlers: it has genesis, and no opinion on what it hears."""

    def __init__(self, chain_id: Hash32, genesis: Hash32) -> None:
        self._status = PeerStatus(chain_id, genesis, Height(0), genesis, "bench")

    async def on_object(self, kind: Kind, object_id: Hash32, data: bytes, peer: str) -> Outcome:
        return Outcome.IGNORE

    def has_object(self, kind: Kind, object_id: Hash32) -> bool:
        return False

    def get_object(self, kind: Kind, object_id: Hash32) -> bytes | None:
        return None

    def get_hashes(self, from_height: int, count: int) -> Sequence[Hash32]:
        return ()

    def get_status(self) -> PeerStatus:
        return self._status


@dataclass(slots=True)
class Latencies:
    """Seconds of honest requests."""

    status: list[float] = field(default_factory=list)
    """A heartbeat on an open connection."""
    objects: list[float] = field(default_factory=list)
    """A page of hashes and then a block, as synchronising asks."""
    fresh: list[float] = field(default_factory=list)
    """A heartbeat on a new connection, with its handshake."""
    failed: int = 0


async def ask(transport: Transport, address: str, route: Route, message: Message) -> bytes:
    reply = await transport.request(
        address, route, encode_message(message), max_reply=ROUTES[route].reply_bytes, timeout_s=10
    )
    if reply.status != 200:
        raise TransportError(f"{route}: {reply.status.name}")
    return reply.body


async def measure(
    network: PeerNetwork, tls: TlsFiles, address: str, chain_id: Hash32, count: int
) -> Latencies:
    """So many honest requests of each sort, one after the other."""
    found = Latencies()
    transport, hello = network.transport, network.build_hello()
    for number in range(count):
        try:
            begun = time.perf_counter()
            await ask(transport, address, Route.STATUS, hello)
            found.status.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            await ask(transport, address, Route.HASHES, HashesRequest(chain_id, Height(0), 64))
            await ask(transport, address, Route.OBJECTS, ObjectsRequest(chain_id, Kind.BLOCK, ()))
            found.objects.append(time.perf_counter() - begun)
            if number % 10 == 0:
                fresh = HttpTransport("127.0.0.1", 0, tls)
                begun = time.perf_counter()
                try:
                    await ask(fresh, address, Route.STATUS, hello)
                    found.fresh.append(time.perf_counter() - begun)
                finally:
                    await fresh.stop()
        except TransportError as error:
            found.failed += 1
            print(f"an honest request failed: {error}", file=sys.stderr)
        await asyncio.sleep(PAUSE_S)
    return found


def attack(plan: FloodPlan, stop: Event, results: "multiprocessing.Queue[dict[str, int]]") -> None:
    """The attacker's process."""
    os.nice(10)

    async def run() -> Flood:
        flood = Flood(plan)
        flooding = asyncio.create_task(flood.run())
        await asyncio.to_thread(stop.wait)
        flooding.cancel()
        await asyncio.wait((flooding,))
        return flood

    flood = asyncio.run(run())
    results.put({**flood.gained, "most connections open at once": flood.most_open})


def get_files(testnet: Testnet, name: str) -> TlsFiles:
    tls = NodeConfig.load(testnet.get_config_path(name)).tls
    return TlsFiles(tls.certificate, tls.key, tls.authority)


async def run_pair(testnet: Testnet, count: int) -> tuple[Latencies, Latencies, dict[str, int], bool]:
    """Latencies idle and under flood, what the attacker gained, and whether the honest link stood."""
    victim, honest = testnet.select((VICTIM, HONEST))
    address = f"{victim.host}:{victim.peer_port}"
    tls = get_files(testnet, HONEST)
    probe = HttpTransport("127.0.0.1", 0, tls)
    chain = load_genesis(testnet.directory / "genesis.json")
    status = Bystander(hash_domain("none", b""), hash_domain("none", b"")).get_status()
    hello = Hello(status, "", 1, bytes(8))
    seen = decode_message(Hello, await ask(probe, address, Route.STATUS, hello)).status
    await probe.stop()
    network = PeerNetwork(
        PeerNetworkConfig(honest.host, honest.peer_port, NetworkConfig((address,))),
        tls,
        Bystander(seen.chain_id, seen.genesis),
        SystemClock(),
    )
    await network.start()
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    plan = FloodPlan(
        victim.host,
        victim.peer_port,
        seen.chain_id,
        tuple(get_files(testnet, name) for name in HOSTILE),
    )
    process = context.Process(target=attack, args=(plan, stop, results))
    lost = 0
    try:
        async with asyncio.timeout(60):
            await network.status_changed.wait()
        await asyncio.sleep(2)  # both directions are linked
        idle = await measure(network, tls, address, seen.chain_id, count)
        process.start()
        await asyncio.sleep(8)  # the flood has begun in earnest
        under = await measure(network, tls, address, seen.chain_id, count)
        lost = sum(not peer.connected for peer in network.peers() if peer.address == address)
        stop.set()
        gained = await asyncio.to_thread(results.get, True, 30)
    finally:
        stop.set()
        if process.pid is not None:
            await asyncio.to_thread(process.join, 30)
            process.kill()
        await network.stop()
    print(f"network {chain.name}: the attacker's account {dict(sorted(gained.items()))}")
    return idle, under, gained, not lost


def build_figures(idle: Latencies, under: Latencies, gained: dict[str, int], stood: bool) -> list[Figure]:
    figures = []
    for name, what in (
        ("status", "heartbeat"),
        ("objects", "page of hashes and objects"),
        ("fresh", "heartbeat on a new connection"),
    ):
        before, after = getattr(idle, name), getattr(under, name)
        times = statistics.median(after) / statistics.median(before)
        high = compute_quantile(after, 0.95) / compute_quantile(before, 0.95)
        figures += [
            Figure(f"{what}, idle", describe_spread(before)),
            Figure(
                f"{what}, under flood",
                f"{describe_spread(after)} ({times:.2f}x, p95 {high:.2f}x)",
                f"< {MOST_TIMES_IDLE:.0f}x idle (median)",
                times < MOST_TIMES_IDLE,
            ),
        ]
    most = gained["most connections open at once"]
    limits = GateLimits()
    figures += [
        Figure("honest requests that failed under flood", str(under.failed), "0", under.failed == 0),
        Figure("honest link stood", "yes" if stood else "no", "yes", stood),
        Figure(
            f"hostile connections open at once, of {CONNECTIONS} wanted",
            str(most),
            f"<= {limits.connections}",
            most <= limits.connections,
        ),
        Figure("hostile handshakes completed", str(gained.get("handshakes", 0))),
        Figure("hostile requests answered with what was asked", str(gained.get("replies 200", 0))),
        Figure(
            "hostile requests refused",
            str(sum(n for key, n in gained.items() if key.startswith("replies") and key != "replies 200")),
        ),
    ]
    return figures


def run(directory: Path, base_port: int, *, quick: bool) -> list[Figure]:
    testnet = init_testnet(directory / "flood", 5, 0, base_port=base_port)
    try:
        start_nodes(testnet, (VICTIM,))
        return build_figures(*asyncio.run(run_pair(testnet, 60 if quick else 300)))
    finally:
        stop_nodes(testnet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--base-port", type=int, default=18_400, help="first of fifteen ports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = run(Path(scratch), options.base_port, quick=options.quick)
    print(format_table(figures))
    sys.exit(1 if any(figure.holds is False for figure in figures) else 0)


if __name__ == "__main__":
    main()
