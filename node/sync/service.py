"""Synchronising as a running node does it: a snapshot first if its settings say so, then in full for ever."""

from consensus.types import Hash32, Height
from consensus.vote import Checkpoint
from node.config import NodeConfig
from node.core import Core
from node.gossip.network import Network
from node.recomputer import Recomputer
from node.sync.ports import Phase, SyncProgress
from node.sync.serving import ChainService
from node.sync.sink import CoreSink
from node.sync.snapshot import Snapshot
from node.sync.synchroniser import Synchroniser
from node.sync.trust import Trust


def parse_checkpoint(text: str) -> Checkpoint:
    """Of HEIGHT:HASH. Raises: ValueError."""
    height, _, name = text.partition(":")
    block = bytes.fromhex(name)
    if len(block) != 32:
        raise ValueError(f"expected HEIGHT:HASH with 64 hexadecimal digits, got {text!r}")
    return Checkpoint(Height(int(height)), Hash32(block))


class SyncService:
    """Serves others from the start; `prepare`, then `run`."""

    def __init__(self, core: Core, network: Network, recomputer: Recomputer, config: NodeConfig) -> None:
        chain, clock = core.chain, core.clock
        given = config.trusted_checkpoint
        self._core = core
        self._mode = config.sync
        self._service = ChainService(chain)
        self.trust = Trust(
            chain,
            network,
            clock,
            None if given is None else parse_checkpoint(given),
            refuses_stale=config.stale_trust == "refuse",
        )
        self._snapshot = Snapshot(chain, network, clock, self.trust)
        self._synchroniser = Synchroniser(network, chain, CoreSink(core, recomputer), clock, self.trust)
        network.serve_chain(self._service)
        core.is_behind = lambda: self._synchroniser.is_behind
        core.on_sync_wanted(self._synchroniser.poke)

    @property
    def service(self) -> ChainService:
        return self._service

    @property
    def progress(self) -> SyncProgress:
        taking = self._snapshot.progress
        return self._synchroniser.progress if taking.phase is Phase.IDLE else taking

    async def prepare(self) -> None:
        """Take over a snapshot, if this is a new node that is to do so or one that has begun to."""
        if self._mode != "snapshot" and not self._snapshot.is_begun:
            return
        self._core.takes_blocks = False
        try:
            if await self._snapshot.run():
                self._keep_weights()
        finally:
            self._core.takes_blocks = True
        self._core.pulse.beat()

    def _keep_weights(self) -> None:
        """The weights at each task's step, which follow from no opening that this node holds."""
        state = self._core.chain.head_state
        for task_id in state.get_tasks():
            task = state.get_task(task_id)
            if task is not None:
                self._core.history.put(task_id, task.weights)

    async def run(self) -> None:
        """Synchronise until cancelled."""
        await self._synchroniser.run()
