"""Nodes with real chains and real networks, reduced to what synchronising is about."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.voted_chain import VotedChain, build_genesis, build_keys
from consensus.crypto import SigningKey
from consensus.gossip_rules import Outcome
from consensus.params import Genesis
from consensus.types import Hash32
from consensus.vote import Checkpoint
from consensus.work import NoProofVerifier
from node.chain import Chain, Imported, ImportStatus
from node.clock import Clock, SystemClock
from node.gossip.messages import Kind, PeerStatus
from node.gossip.network import Network
from node.ledger.store import KeyValueStore, MemoryStore
from node.sync.crew import CrewLimits
from node.sync.serving import ChainService
from node.sync.snapshot import Snapshot
from node.sync.synchroniser import Synchroniser
from node.sync.trust import Trust
from tests.integration.peers import World

VALIDATORS = build_keys(4)
PAYERS = build_keys(200, "payer")
VERIFIER = NoProofVerifier(Hash32(bytes(32)))
QUICK = CrewLimits(hedge_s=0.3, patience_s=3.0, again_s=0.2, rest_s=0.5)


def build_chain(blocks: int = 0, others: Sequence[SigningKey] = PAYERS, **more: object) -> VotedChain:
    """With so many accounts that its state takes several replies."""
    keys = {key.address: key for key in (*VALIDATORS, *others)}
    chain = VotedChain(build_genesis(VALIDATORS, others), keys, **more)  # type: ignore[arg-type]
    chain.grow(blocks)
    return chain


@dataclass(eq=False)
class ChainNode:
    """A chain over a store, as its peers see it; blocks travel by synchronising alone."""

    name: str
    genesis: Genesis
    store: KeyValueStore = field(default_factory=MemoryStore)
    clock: Clock = field(default_factory=SystemClock)
    chain: Chain = field(init=False)
    service: ChainService = field(init=False)
    network: Network | None = None
    taken: list[Imported] = field(default_factory=list)
    given: list[Hash32] = field(default_factory=list)
    """Bodies that peers asked for."""
    asked: list[tuple[Hash32, ...]] = field(default_factory=list)
    """State nodes that peers asked for."""
    spoil: Callable[[Hash32, bytes], bytes | None] = lambda block, data: data
    """What becomes of a body on its way out."""

    def __post_init__(self) -> None:
        self.chain = Chain(self.genesis, self.store, self.clock, VERIFIER)
        self.service = ChainService(self.chain)

    def fill(self, blocks: Sequence[bytes]) -> None:
        for data in blocks:
            assert self.chain.submit(data).status is ImportStatus.ACCEPTED

    def copy(self, name: str) -> "ChainNode":
        """Another node with the same ledger, which costs less than judging its blocks again."""
        store = MemoryStore()
        store.write_batch(self.store.iterate(b""))
        return ChainNode(name, self.genesis, store)

    def take_block(self, data: bytes) -> Imported:
        outcome = self.chain.submit(data)
        self.taken.append(outcome)
        return outcome

    async def on_object(self, kind: Kind, object_id: Hash32, data: bytes, peer: str) -> Outcome:
        return Outcome.IGNORE

    def has_object(self, kind: Kind, object_id: Hash32) -> bool:
        return kind is Kind.BLOCK and self.chain.has_block(object_id)

    def get_object(self, kind: Kind, object_id: Hash32) -> bytes | None:
        if kind is not Kind.BLOCK:
            return None
        self.given.append(object_id)
        data = self.chain.ledger.get_block(object_id)
        return None if data is None else self.spoil(object_id, data)

    def get_hashes(self, from_height: int, count: int) -> Sequence[Hash32]:
        return self.chain.ledger.get_hashes(from_height, count)

    def get_status(self) -> PeerStatus:
        chain = self.chain
        return PeerStatus(chain.chain_id, chain.genesis_hash, chain.head.height, chain.head_hash, "test")

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self.clock.sleep(0.01)

    async def wait_linked(self, count: int = 1) -> None:
        network = self.network
        assert network is not None
        await self.wait_until(lambda: sum(peer.connected for peer in network.peers()) >= count)

    def get_faults(self) -> dict[str, float]:
        """Scores of peers with faults."""
        assert self.network is not None
        return {peer.node_id: peer.score for peer in self.network.peers() if peer.score > 0}

    def get_banned(self) -> set[str]:
        assert self.network is not None
        return {peer.node_id for peer in self.network.peers() if peer.banned}


@asynccontextmanager
async def running(world: World, *nodes: ChainNode) -> AsyncIterator[None]:
    """All nodes' networks; the last one dials the others."""
    *servers, last = nodes
    contexts = []
    try:
        for node in servers:
            contexts.append(world.run(node))  # type: ignore[arg-type]
            (await contexts[-1].__aenter__()).serve_chain(node.service)
        contexts.append(world.run(last, *servers))  # type: ignore[arg-type]
        (await contexts[-1].__aenter__()).serve_chain(last.service)
        await last.wait_linked(len(servers))
        yield
    finally:
        for context in reversed(contexts):
            await context.__aexit__(None, None, None)


def build_trust(node: ChainNode, given: Checkpoint | None = None, **more: bool) -> Trust:
    assert node.network is not None
    return Trust(node.chain, node.network, node.clock, given, **more)


@asynccontextmanager
async def syncing(
    node: ChainNode, trust: Trust | None = None, patience_s: float = 30.0, limits: CrewLimits = QUICK
) -> AsyncIterator[Synchroniser]:
    assert node.network is not None
    sync = Synchroniser(
        node.network,
        node.chain,
        node,
        node.clock,
        trust or build_trust(node),
        batch=16,
        idle_s=0.3,
        patience_s=patience_s,
        limits=limits,
    )
    task = asyncio.create_task(sync.run())
    try:
        yield sync
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def build_snapshot(node: ChainNode, trust: Trust | None = None, limits: CrewLimits = QUICK) -> Snapshot:
    assert node.network is not None
    return Snapshot(
        node.chain, node.network, node.clock, trust or build_trust(node), limits=limits, young_s=0.5
    )


def get_busy_peers(nodes: Collection[ChainNode]) -> set[str]:
    """Those that gave bodies."""
    return {node.name for node in nodes if node.given}
