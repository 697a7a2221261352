"""Miners' cores of one chain on a fake clock, telling each other everything at once.

Each bundle is the real canonical one; a job then takes `JOB_S` of fake time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from consensus.claims import sign_presence
from consensus.crypto import SigningKey
from consensus.identifiers import compute_draft_hash, compute_task_id
from consensus.leases import compute_leases
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.payload import Payload
from consensus.state import TaskStatus
from consensus.task import Available, Contribute, DraftTask
from consensus.types import ZERO_HASH, Address, Amount, Hash32, Millis
from node.blobs import BlobStore
from node.chain import Chain
from node.clock import ManualClock
from node.core import Core
from node.events import EventBus
from node.fetch import BlobFetcher
from node.gossip.messages import Kind
from node.history import WeightHistory
from node.ledger.store import MemoryStore
from node.mempool import Mempool
from node.miner import Miner
from node.proposer import Proposer
from node.tasks import TaskDefinition
from node.work import VerdictBook, WorkerPool, WorkService
from tests.integration.material import BATCHES, Material, build_batches
from tests.integration.rig import wait_until

CUSTODY = SigningKey(b"c" * 32)
MINERS = tuple(SigningKey(bytes([i]) * 32) for i in range(1, 4))
JOB_S = 5.0
LEASE_MS = 8_000


class PacedWork(WorkService):
    """Computes the bundle, then lets a job's time pass on the fake clock."""

    def __init__(self, blobs: BlobStore, pool: WorkerPool, clock: ManualClock) -> None:
        super().__init__(blobs, VerdictBook(), 1)
        self.pool = pool
        self.begun: list[int] = []
        self._paces = clock

    async def compute_bundle(
        self, definition: TaskDefinition, batch: int, weights: tuple[int, ...], output: Path
    ) -> None:
        self.begun.append(batch)
        await super().compute_bundle(definition, batch, weights, output)
        await self._paces.sleep(JOB_S)


class Relay:
    """Carries claims and presences to every core at once."""

    def __init__(self, cores: list[Core]) -> None:
        self._cores = cores

    def announce(self, kind: Kind, object_id: Hash32, data: bytes) -> None:
        for core in self._cores:
            if kind is Kind.CLAIM:
                core.take_claim(data)
            elif kind is Kind.PRESENCE:
                core.take_presence(data)


class Bench:
    """Cores of one chain that tell each other everything at once; the custody is the only validator."""

    def __init__(self, directory: Path, pool: WorkerPool) -> None:
        self.clock = ManualClock()
        self.directory = directory
        self.blobs = BlobStore(directory / "blobs")
        self.task: Hash32 = ZERO_HASH
        keys = (CUSTODY, *MINERS)
        self._genesis = Genesis(
            "leases",
            self.clock.now_ms(),
            ChainParams(lease_ms=LEASE_MS, verdict_ms=3_000),
            tuple(GenesisAccount(key.address, Amount(10**6), key.address.hex()[:8]) for key in keys),
            (Validator(CUSTODY.address, 1),),
            tuple(key.address.hex()[:8] for key in MINERS),
        )
        self._cores: list[Core] = []
        self.works = [PacedWork(self.blobs, pool, self.clock) for _ in keys]
        self.custody, *self.miners = (
            self._build(key, work) for key, work in zip(keys, self.works, strict=True)
        )

    def _build(self, key: SigningKey, work: PacedWork) -> Core:
        chain = Chain(self._genesis, MemoryStore(), self.clock, work.verdicts)
        history = WeightHistory(chain.ledger)
        events = EventBus(16, self.clock.now_ms())
        core = Core(chain, Mempool(), self.blobs, work, history, events, self.clock, key)
        chain.on_head_change(core.on_head_change)
        core.attach_network(Relay(self._cores), BlobFetcher(self.blobs, list, self.clock))
        self._cores.append(core)
        return core

    def include(self, payload: Payload) -> Hash32:
        """In the custody's next carrier block, which every core takes."""
        core = self.custody
        admission = core.admit(core.sign(payload))
        assert admission.accepted, admission
        self.clock.advance(2.0)
        assert Proposer(core).propose()
        data = core.chain.ledger.get_block(core.chain.head_hash)
        assert data is not None
        for miner in self.miners:
            miner.take_block(data)
            assert miner.chain.head_hash == core.chain.head_hash
        return admission.id

    async def publish(self, material: Material) -> None:
        """An open task: its first step is to be mined."""
        put = self.blobs.put_file
        keys = [await put(material.keys / "public.key"), await put(material.relin_keys)]
        draft = material.build_draft(keys[0], keys[1])
        self.include(DraftTask(draft))
        draft_hash = compute_draft_hash(self.custody.chain.chain_id, draft)
        training = build_batches([await put(path) for path, _ in material.training], material.training)
        validation = build_batches([await put(path) for path, _ in material.validation], material.validation)
        contribution = self.include(Contribute(draft_hash, training, validation, material.patients))
        deadline = Millis(self.clock.now_ms() + 3_600_000)
        publication = material.build_publication(draft_hash, contribution, deadline, 0.001)
        self.task = compute_task_id(publication)
        self.include(publication)
        self.include(Available(self.task))
        tip = self.miners[0].get_tip(self.task)
        assert tip is not None
        assert tip.state.status is TaskStatus.OPEN

    def introduce(self, *present: Core) -> None:
        """Every core hears of the miners that are there."""
        now = self.clock.now_ms()
        for core in present:
            core.add_presence(sign_presence(core.key, core.chain.chain_id, self.task, now))

    def get_claimants(self) -> dict[int, list[Address]]:
        """Who claimed each batch, as the custody has heard."""
        claims = self.custody.claims
        return {b: [claim.miner for claim in claims.get_for(self.task, 0, b)] for b in range(BATCHES)}

    def count_claims(self) -> int:
        return sum(map(len, self.get_claimants().values()))

    def get_leases(self, *miners: Core) -> dict[int, tuple[Address, ...]]:
        return compute_leases(self.task, 0, range(BATCHES), [core.address for core in miners])

    async def finish_round(self, jobs: int) -> None:
        """Let the time of a job pass once exactly so many are under way, their bundles computed."""
        claims = self.count_claims() + jobs
        await wait_until(lambda: self.clock.sleepers == jobs, f"{jobs} bundles are computed")
        self.clock.advance(JOB_S)
        await wait_until(lambda: self.count_claims() == claims, "they are claimed")

    @asynccontextmanager
    async def mine(self, *miners: Core) -> AsyncIterator[None]:
        """The miners' services run, one worker each."""
        tasks = [
            asyncio.create_task(Miner(core, 1, self.directory / core.address.hex()).run()) for core in miners
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
