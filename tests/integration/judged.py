"""A chain of blocks made by hand, whose task has a real model, and cores of its validators that follow it.

No ciphertext is computed: the loss openings' hashes are given, so that only what judges a model is real.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consensus.block import Block
from consensus.codec import encode
from consensus.crypto import SigningKey
from consensus.payload import Payload
from consensus.state import TaskStatus
from consensus.task import Available
from consensus.transaction import SignedTransaction
from consensus.types import Millis
from consensus.work import LossCheck
from node.announcer import EventAnnouncer
from node.blobs import BlobStore
from node.chain import Chain, ImportStatus
from node.clock import ManualClock
from node.core import Core
from node.events import EventBus
from node.history import WeightHistory
from node.ledger.store import MemoryStore
from node.mempool import Mempool
from node.recomputer import Recomputer
from node.settings import VerdictSettings
from node.verdicts import Judge
from node.work import VerdictBook, WorkerPool, WorkService
from tests.unit.consensus.world import (
    CIPHERTEXT,
    CUSTODY,
    MINER_A,
    MINER_B,
    World,
    build_draft,
)
from workloads.fusion import WORKLOAD, FusionSpec

SPEC = FusionSpec(patch=5, kernels=(3,))
UNIT = 2**20
WEIGHTS = WORKLOAD.build_initial_weights(SPEC.encode(), 1)
PAIRS = VerdictSettings(phantoms=2, phantom_seed=5, patches=512)


@dataclass
class JudgedWorld(World):
    """Remembers its blocks. Its task has the initial weights until `take_milestone` moves them."""

    blocks: list[Block] = field(default_factory=list)

    def add(self, block: Block) -> None:
        super().add(block)
        self.blocks.append(block)

    def begin(self) -> None:
        draft = build_draft(
            model=SPEC.encode(),
            parameters=SPEC.parameters,
            weight_box=64 * UNIT,
            loss_clip=UNIT // 2,
            loss_noise=UNIT,
        )
        self.publish(draft, initial_weights=WEIGHTS, loss_schedule=tuple(range(5)))
        self.carry(*(self.sign(key, Available(self.task)) for key in (CUSTODY, MINER_A, MINER_B)))
        assert self.task_state.status is TaskStatus.OPEN

    def take_milestone(self, loss: int, factor: int = 1) -> None:
        """One step that multiplies every weight by `factor`, a loss, and the work block that takes it."""
        if not self.task_state.loss_opened:
            self.open_loss(900)
        # A rate of 8 and a shift of 4 halve the gradient; momentum is taken into account.
        task = self.task_state
        gradient = tuple(
            2 * (weight - factor * weight) - 9 * m // 10
            for weight, m in zip(task.weights, task.momentum, strict=True)
        )
        self.carry(self.sign(CUSTODY, self.build_gradient(gradient)))
        self.weights[self.task_state.step] = self.task_state.weights
        self.open_loss(loss)
        self.add(self.build_work_block(MINER_A))


class Validator:
    """A node's core over a store that outlives it, and its duties."""

    def __init__(
        self,
        world: JudgedWorld,
        directory: Path,
        pool: WorkerPool,
        key: SigningKey = MINER_B,
        store: MemoryStore | None = None,
    ) -> None:
        self.store = store or MemoryStore()
        self.directory = directory
        self.clock = ManualClock(world.header.time)
        verdicts = VerdictBook()
        chain = Chain(world.genesis, self.store, self.clock, verdicts)
        verdicts.open(chain.ledger)
        blobs = BlobStore(directory / "blobs")
        work = WorkService(blobs, verdicts, 1)
        work.verifiers = pool
        self.events = EventBus(100, Millis(0))
        history = WeightHistory(chain.ledger)
        self.core = Core(chain, Mempool(), blobs, work, history, self.events, self.clock, key)
        chain.on_head_change(self.core.on_head_change)
        Recomputer(self.core)  # follows the weights
        EventAnnouncer(chain, self.events, self.clock)
        self.world = world
        self.follow()

    def follow(self) -> None:
        """Take every block of the world that is not here yet; its losses count as recomputed."""
        for step, weights in self.world.weights.items():
            self.core.work.verdicts.remember(LossCheck(self.world.task, step, weights), CIPHERTEXT)
        self.clock.advance(max(0, self.world.header.time - self.clock.now_ms()) / 1000)
        for block in self.world.blocks:
            outcome = self.core.take_block(encode(block))
            assert outcome.status in (ImportStatus.ACCEPTED, ImportStatus.KNOWN), outcome
        assert self.core.chain.head_state.root == self.world.state.root

    def get_sent(self, kind: type[Payload]) -> list[SignedTransaction]:
        """What waits in the mempool of this kind."""
        pooled = [item.transaction for item in self.core.mempool.get_all()]
        return [transaction for transaction in pooled if isinstance(transaction.payload, kind)]

    @asynccontextmanager
    async def judge(self, settings: VerdictSettings = PAIRS) -> AsyncIterator[None]:
        """Its judge runs."""
        task = asyncio.create_task(Judge(self.core, settings, self.directory).run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
