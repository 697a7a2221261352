"""A new node from a snapshot: a proved checkpoint, its state, all headers below it, and then the chain goes
on.

What is fetched is kept as it comes, so a node that dies goes on where it was. The node is a full one from the
checkpoint on; bodies below it are held by nodes that were there, and by archive nodes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from consensus.block import Header
from consensus.codec import decode_stored, encode
from consensus.errors import InvalidBlock
from consensus.identifiers import compute_block_hash
from consensus.light import FinalityProof, SetChange
from consensus.types import Hash32, Height
from consensus.validation import check_block, decode_block
from consensus.vote import Checkpoint
from node.chain import Chain
from node.clock import Clock
from node.gossip.limits import Fault
from node.gossip.links import wait_for
from node.ledger.snapshot import drop_staged, get_lowest_staged, stage_headers, take_over
from node.sync.bodies import BodyFetcher
from node.sync.crew import CrewLimits
from node.sync.headers import HeaderFetcher
from node.sync.ports import Phase, SyncNetwork, SyncProgress, SyncStopped
from node.sync.serving import PROOF_RECORD, get_change_record
from node.sync.state import StateFetcher
from node.sync.trust import Proved, Trust

logger = logging.getLogger(__name__)

TARGET_RECORD = b"snapshot/target"
PAUSE_S = 1.0
MAX_BAD_BODIES = 16


@dataclass(frozen=True, slots=True)
class SnapshotTarget:
    """What is being taken over, kept in the ledger until it is."""

    proof: FinalityProof
    changes: tuple[SetChange, ...]


class Snapshot:
    """Runs once, before a node with an empty ledger begins to follow the chain."""

    def __init__(
        self,
        chain: Chain,
        network: SyncNetwork,
        clock: Clock,
        trust: Trust,
        *,
        limits: CrewLimits | None = None,
        least_height: int = 1,
        young_s: float = 30.0,
    ) -> None:
        """`least_height`: of a checkpoint worth the while. `young_s`: how long to wait for one before the
        chain is held too young for it."""
        self._chain = chain
        self._network = network
        self._clock = clock
        self._trust = trust
        self._limits = limits
        self._least_height = least_height
        self._young_s = young_s
        self._phase = Phase.IDLE
        self._target: Checkpoint | None = None
        self._fetcher: StateFetcher | HeaderFetcher | BodyFetcher | None = None
        self._done = 0
        self._last_word = ""

    @property
    def is_begun(self) -> bool:
        """Whether an earlier run left something to go on with."""
        return self._chain.ledger.get_record(TARGET_RECORD) is not None

    @property
    def progress(self) -> SyncProgress:
        heights = [status.height for status in self._network.get_statuses().values()]
        target = 0 if self._target is None else self._target.height
        fetcher = self._fetcher
        done = fetcher.fetched if isinstance(fetcher, StateFetcher) else self._done
        return SyncProgress(
            height=self._chain.head.height,
            target=max([self._chain.head.height, target, *heights]),
            phase=self._phase,
            proved=target,
            done=done,
            wanted=target if self._phase is Phase.HEADERS else 0,
            peers=() if fetcher is None else fetcher.busy,
        )

    async def run(self) -> bool:
        """Take over a snapshot; False, with nothing changed, if the chain is too young or the node is not
        new.

        Goes on until it is done: while peers are away, it waits for them.
        """
        if self._chain.head.height:
            self._give_up()
            return False
        begun = self._clock.monotonic()
        while True:
            try:
                target = self._load_target() or await self._choose_target(begun)
                if target is None:
                    return False
                await self._take_over(target)
            except SyncStopped as error:
                if str(error) != self._last_word:
                    self._last_word = str(error)
                    logger.warning("the snapshot waits: %s", error)
                self._forget_if_gone()
                await wait_for(self._clock, self._network.status_changed, PAUSE_S)
            else:
                return True
            finally:
                self._fetcher = None

    def _get_peers(self) -> list[str]:
        target = 0 if self._target is None else self._target.height
        return [peer for peer, status in self._network.get_statuses().items() if status.height >= target]

    # --- what to take over --------------------------------------------------------------------

    def _load_target(self) -> SnapshotTarget | None:
        record = self._chain.ledger.get_record(TARGET_RECORD)
        if record is None:
            return None
        target = decode_stored(SnapshotTarget, record)
        self._target = target.proof.checkpoint
        return target

    async def _choose_target(self, begun: float) -> SnapshotTarget | None:
        self._phase = Phase.PROOF
        while True:
            self._network.status_changed.clear()
            proved = await self._trust.refresh(list(self._network.get_statuses()))
            if proved is not None and proved.checkpoint.height >= self._least_height:
                return self._begin(proved)
            if self._clock.monotonic() - begun > self._young_s and self._network.get_statuses():
                logger.info("no peer proves a final block worth a snapshot: synchronising in full")
                self._phase = Phase.IDLE
                return None
            await wait_for(self._clock, self._network.status_changed, PAUSE_S)

    def _begin(self, proved: Proved) -> SnapshotTarget:
        ledger = self._chain.ledger
        drop_staged(ledger)
        target = SnapshotTarget(proved.proof, proved.changes)
        ledger.put_record(TARGET_RECORD, encode(target))
        self._target = proved.checkpoint
        logger.info("taking over the state of the final block at height %d", proved.checkpoint.height)
        return target

    def _forget_if_gone(self) -> None:
        """Give a target up whose state no peer serves any more; the nodes that came are kept for the next."""
        proved, target = self._trust.proved, self._target
        is_stuck = self._phase is Phase.STATE and self._get_peers()
        if target is not None and is_stuck and (proved is None or proved.checkpoint == target):
            self._give_up()

    def _give_up(self) -> None:
        if self.is_begun:
            drop_staged(self._chain.ledger)
            self._chain.ledger.delete_record(TARGET_RECORD)
        self._target = None

    # --- taking over --------------------------------------------------------------------------

    async def _take_over(self, target: SnapshotTarget) -> None:
        chain, header = self._chain, target.proof.source
        top = target.proof.checkpoint
        self._phase = Phase.STATE
        async with StateFetcher(
            self._network, self._clock, chain.ledger, self._get_peers, self._limits
        ) as states:
            self._fetcher = states
            await states.fetch(header.state_root)
            logger.info("the state at height %d is here: %d nodes came", top.height, states.fetched)
        await self._fetch_headers(header)
        data = await self._fetch_block(top)
        self._keep_proofs(target)
        take_over(chain.ledger, decode_block(data, chain.params), data, (TARGET_RECORD,))
        chain.reload()
        self._phase = Phase.IDLE
        logger.info("the snapshot at height %d is taken over; bodies begin there", top.height)

    async def _fetch_headers(self, top: Header) -> None:
        """All headers below, down to genesis, each proved by the one above it."""
        ledger = self._chain.ledger
        lowest = get_lowest_staged(ledger) or top
        self._phase, self._done = Phase.HEADERS, top.height - lowest.height

        def take(headers: Sequence[Header]) -> bool:
            stage_headers(ledger, headers)
            self._done += len(headers)
            return True

        async with HeaderFetcher(
            self._network,
            self._clock,
            self._chain.chain_id,
            self._chain.params,
            self._get_peers,
            self._limits,
        ) as headers:
            self._fetcher = headers
            below = Checkpoint(Height(lowest.height - 1), lowest.parent)
            end = await headers.fetch_below(below, 1, take)
        if end.hash != self._chain.genesis_hash:
            raise SyncStopped("the headers of a proved block do not lead to this chain's genesis")

    async def _fetch_block(self, top: Checkpoint) -> bytes:
        self._phase, self._done = Phase.BODIES, 0
        refused: list[str] = []
        async with BodyFetcher(self._network, self._clock, self._get_peers, limits=self._limits) as bodies:
            self._fetcher = bodies
            while len(refused) < MAX_BAD_BODIES:
                body = await bodies.fetch_one(top.hash, refused)
                if self._is_block(body.data, top.hash):
                    return body.data
                self._network.report(body.peer, Fault.POISONED, f"a body that is not {top.hash.hex()}")
                refused.append(body.peer)
        raise SyncStopped("no peer gave the body of the proved block")

    def _is_block(self, data: bytes, block: Hash32) -> bool:
        try:
            decoded = decode_block(data, self._chain.params)
            check_block(decoded, self._chain.params, self._chain.chain_id)
        except InvalidBlock:
            return False
        return compute_block_hash(decoded.header) == block

    def _keep_proofs(self, target: SnapshotTarget) -> None:
        """The node can't make them from bodies that it lacks, and others will ask it for them."""
        records = {PROOF_RECORD: encode(target.proof)}
        known = self._trust.get_own().validators.number
        for number, change in enumerate(target.changes, known):
            records[get_change_record(number)] = encode(change)
        self._chain.ledger.put_records(records)
