"""Validators of one chain in this process: real chain, gossip, synchronising, proposing and voting, over a
network in memory and a clock that moves only when told to. Disks survive a stop unless a test says otherwise.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from consensus.crypto import SigningKey
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.payload import Payload
from consensus.task import Transfer
from consensus.types import Address, Amount, Hash32, Height, Millis
from node.blobs import BlobStore
from node.chain import Chain
from node.clock import ManualClock
from node.core import Core
from node.events import EventBus
from node.evidence import Conflict, VoteWatch
from node.fetch import BlobFetcher
from node.gossip.links import LinkTimes
from node.gossip.messages import Kind
from node.gossip.network import Network, NetworkConfig
from node.gossip.transport import MemoryHub
from node.handlers import PeerHandlers
from node.history import WeightHistory
from node.ledger.store import MemoryStore
from node.mempool import Mempool
from node.proposer import Proposer
from node.recomputer import Recomputer
from node.sync.serving import ChainService
from node.sync.sink import CoreSink
from node.sync.synchroniser import Synchroniser
from node.sync.trust import Trust
from node.tls import PeerIdentity
from node.voter import Voter, WitnessDesk
from node.work import VerdictBook, WorkService

PARAMS = ChainParams(min_block_ms=500, idle_ms=1_000, slot_ms=1_000, evidence_ms=600_000)
STEP_S = 0.1
TURNS = 30
"""Of the event loop after each step of time: enough for an object to reach everybody."""
TIMES = LinkTimes(heartbeat_s=1.0, least_beat_s=0.1, first_backoff_s=0.2, last_backoff_s=1.0)
OUTSIDER = Address(b"\x77" * 32)


def build_key(number: int) -> SigningKey:
    return SigningKey(bytes([number]) * 32)


class Disk(MemoryStore):
    """What a stopped node leaves behind; closing it loses nothing."""

    def close(self) -> None:
        """It is opened again."""

    def copy(self) -> "Disk":
        """A backup."""
        backup = Disk()
        backup.write_batch(list(self.iterate(b"")))
        return backup


class Peer:
    """One running node."""

    def __init__(self, name: str, key: SigningKey, cluster: "Cluster", disk: Disk) -> None:
        self.name, self.key = name, key
        clock = cluster.clock
        blobs = BlobStore(cluster.directory / name)
        verdicts = VerdictBook()
        self.chain = Chain(cluster.genesis, disk, clock, verdicts)
        self.core = Core(
            self.chain,
            Mempool(),
            blobs,
            WorkService(blobs, verdicts, 1),
            WeightHistory(self.chain.ledger),
            EventBus(100, clock.now_ms()),
            clock,
            key,
        )
        self.chain.on_head_change(self.core.on_head_change)
        self.chain.on_accepted(lambda block, data: self.core.announce(Kind.BLOCK, block, data))
        recomputer = Recomputer(self.core)
        self.conflicts: list[Conflict] = []
        self.watch = VoteWatch(self.core)
        self.watch.on_conflict(self.conflicts.append)
        transport = cluster.hub.build_transport(f"{name}:1", PeerIdentity(name, f"org-{name}"))
        peers = tuple(f"{other}:1" for other in cluster.names if other != name)
        self.network = Network(
            NetworkConfig(peers, times=TIMES), transport, PeerHandlers(self.core, recomputer), clock, blobs
        )
        self.network.serve_witness(WitnessDesk(self.core))
        self.network.serve_chain(ChainService(self.chain))
        self.proposer = Proposer(self.core)
        self.voter = Voter(self.core, self.network)
        sink = CoreSink(self.core, recomputer)
        trust = Trust(self.chain, self.network, clock)
        self.sync = Synchroniser(self.network, self.chain, sink, clock, trust)
        self.core.on_sync_wanted(self.sync.poke)

    async def run(self) -> None:
        await self.network.start()
        try:
            fetcher = BlobFetcher(self.core.blobs, self.network.get_blob_sources, self.core.clock)
            self.core.attach_network(self.network, fetcher)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.core.wait_failed())
                group.create_task(self.network.wait_failed())
                group.create_task(self.sync.run())
                group.create_task(self.proposer.run())
                group.create_task(self.voter.run())
                group.create_task(self.watch.run())
        finally:
            await self.network.stop()
            self.core.work.close()

    @property
    def final(self) -> Height:
        return self.chain.finalized.height

    def send(self, payload: Payload) -> Hash32:
        admission = self.core.admit(self.core.sign(payload))
        assert admission.accepted, admission
        return admission.id

    def find_height(self, transaction: Hash32) -> Height | None:
        """Of the head chain's block with it."""
        location = self.chain.ledger.find_transaction(transaction)
        return None if location is None else Height(location.height)


@dataclass
class Cluster:
    """Validators node1, node2 ... of equal stake, and a clock."""

    directory: Path
    size: int = 4
    params: ChainParams = PARAMS
    extra: int = 0
    """Nodes that hold money and are no validators at first."""
    clock: ManualClock = field(default_factory=ManualClock)
    hub: MemoryHub = field(default_factory=MemoryHub)
    disks: dict[str, Disk] = field(default_factory=dict)
    running: dict[str, Peer] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [f"node{number}" for number in range(1, self.size + self.extra + 1)]
        self.keys = {name: build_key(number) for number, name in enumerate(self.names, 1)}
        self.genesis = Genesis(
            "cluster",
            Millis(self.clock.now_ms()),
            self.params,
            tuple(GenesisAccount(key.address, Amount(1_000_000), f"org-{n}") for n, key in self.keys.items()),
            tuple(Validator(self.keys[name].address, 100) for name in self.names[: self.size]),
            (),
        )

    def __getitem__(self, number: int) -> Peer:
        return self.running[f"node{number}"]

    @property
    def peers(self) -> list[Peer]:
        return list(self.running.values())

    @asynccontextmanager
    async def run(self, *numbers: int) -> AsyncIterator[Self]:
        """With these nodes up, all by default."""
        try:
            self.start(*numbers or range(1, len(self.names) + 1))
            await self.pass_time(2.0)
            yield self
        finally:
            await self.stop(*(int(name[4:]) for name in tuple(self.running)))

    def start(self, *numbers: int) -> None:
        for number in numbers:
            name = f"node{number}"
            disk = self.disks.setdefault(name, Disk())
            peer = Peer(name, self.keys[name], self, disk)
            self.running[name] = peer
            self._tasks[name] = asyncio.create_task(peer.run(), name=name)

    async def stop(self, *numbers: int) -> None:
        """As a crash does: what was not written is lost."""
        names = [f"node{number}" for number in numbers]
        tasks = [self._tasks.pop(name) for name in names]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        for name in names:
            del self.running[name]

    def split(self, *groups: Sequence[int]) -> None:
        """Cut all links between the groups."""
        self._change(self.hub.cut, *groups)

    def heal(self, *groups: Sequence[int]) -> None:
        self._change(self.hub.restore, *groups)

    def _change(self, change: Callable[[str, str], None], *groups: Sequence[int]) -> None:
        for at, group in enumerate(groups):
            for other in groups[at + 1 :]:
                for a in group:
                    for b in other:
                        change(f"node{a}:1", f"node{b}:1")

    async def pass_time(self, seconds: float) -> None:
        """Let time pass in small steps; everybody does all there is to do in between."""
        for _ in range(round(seconds / STEP_S)):
            await self._step()

    async def _step(self) -> None:
        self.clock.advance(STEP_S)
        for peer in self.peers:
            peer.core.pulse.beat()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for name, task in self._tasks.items():
            if task.done():
                task.result()
                raise RuntimeError(f"{name} ended")

    async def wait_until(self, condition: Callable[[], bool], what: str, most_s: float = 120.0) -> float:
        """Let time pass until the condition holds; how long that took on the cluster's clock."""
        begun = self.clock.monotonic()
        while not condition():
            if self.clock.monotonic() > begun + most_s:
                where = {p.name: (p.chain.head.height, p.final, str(p.core.voting)) for p in self.peers}
                raise TimeoutError(f"{what}: not within {most_s:.0f} s of the cluster's time; {where}")
            await self._step()
        return self.clock.monotonic() - begun

    def build_transfer(self, amount: int = 1) -> Transfer:
        return Transfer(OUTSIDER, Amount(amount))

    async def include(self, at: int = 1, amount: int = 1) -> Hash32:
        """A transfer, in a block of every running node's head chain when this returns."""
        transaction = self[at].send(Transfer(OUTSIDER, Amount(amount)))
        await self.wait_until(
            lambda: all(peer.find_height(transaction) is not None for peer in self.peers), "it is included"
        )
        return transaction

    async def finalize(self, at: int = 1, *, among: Sequence[int] = (), most_s: float = 120.0) -> Hash32:
        """A transfer, final for every running node, or for those named, when this returns."""
        transaction = self[at].send(Transfer(OUTSIDER, Amount(1)))
        peers = [self[number] for number in among] or self.peers

        def is_final(peer: Peer) -> bool:
            height = peer.find_height(transaction)
            return height is not None and peer.final >= height

        await self.wait_until(lambda: all(map(is_final, peers)), "a transfer is final", most_s)
        return transaction

    def check_agreement(self) -> None:
        """No two nodes' final blocks conflict."""
        for a in self.peers:
            for b in self.peers:
                height = min(a.final, b.final)
                assert a.chain.get_hash_by_height(height) == b.chain.get_hash_by_height(height)
