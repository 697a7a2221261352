"""Synchronising in full: headers first, then bodies from several peers at once, each block judged in order.

A long way is gone only along headers that a finality proof ends; what lies above the last provable block, and
a short way, along a peer's claim, a bounded number of signed headers at a time.
"""

import asyncio
import logging
from collections.abc import Sequence

from consensus.block import Header
from consensus.errors import Reason
from consensus.identifiers import compute_block_hash
from consensus.light import ConflictingFinality
from consensus.types import Hash32
from node.chain import Chain, Imported, ImportStatus
from node.clock import Clock
from node.gossip.limits import Fault
from node.gossip.links import wait_for
from node.gossip.messages import MAX_HASHES, MAX_HEADERS, PeerStatus
from node.gossip.transport import TransportError
from node.sync.bodies import Body, BodyFetcher
from node.sync.crew import CrewLimits
from node.sync.headers import HeaderFetcher, fetch_above
from node.sync.ports import (
    BlockSink,
    Lacking,
    Phase,
    Poisoned,
    SyncNetwork,
    SyncProgress,
    SyncStopped,
)
from node.sync.trust import Proved, Trust

logger = logging.getLogger(__name__)

RECHECK_S = 0.5
LONG = 64
"""So far behind, the node asks for a finality proof before it believes anybody's headers."""
NOT_THE_BLOCK = frozenset(
    {
        Reason.B1_MALFORMED,
        Reason.B1_NON_CANONICAL,
        Reason.B1_OVERSIZE,
        Reason.B4_SIGNATURE,
        Reason.B5_TRANSACTIONS_ROOT,
        Reason.B5_WORK_ROOT,
        Reason.B5_VOTES_ROOT,
    }
)
"""Reasons that say of bytes that they are not the block of their hash: only who sent them is to blame."""


class Synchroniser:
    """Follows the peers' status and pulls what their head chains have beyond ours.

    Everything is decided by the judge: a peer only says which blocks to look at.
    """

    def __init__(
        self,
        network: SyncNetwork,
        chain: Chain,
        sink: BlockSink,
        clock: Clock,
        trust: Trust,
        *,
        batch: int = 64,
        window: int = 64,
        headers: int = MAX_HEADERS,
        idle_s: float = 5.0,
        patience_s: float = 30.0,
        limits: CrewLimits | None = None,
    ) -> None:
        """`batch`: bodies of a request. `window`: first step back in search of a fork. `headers`: most that
        are believed at once without proof. `patience_s`: how long to wait for a block that is kept aside."""
        self._network = network
        self._chain = chain
        self._sink = sink
        self._clock = clock
        self._trust = trust
        self._batch = batch
        self._window = window
        self._headers = min(headers, MAX_HEADERS)
        self._idle_s = idle_s
        self._patience_s = patience_s
        self._limits = limits
        self._useless: dict[str, Hash32] = {}
        self._moved = asyncio.Event()
        self._phase = Phase.IDLE
        self._fetcher: HeaderFetcher | BodyFetcher | None = None
        self._done = self._wanted = 0
        self._is_far = False

    @property
    def progress(self) -> SyncProgress:
        height = self._chain.head.height
        heights = [status.height for status in self._network.get_statuses().values()]
        proved = 0 if self._trust.proved is None else self._trust.proved.checkpoint.height
        return SyncProgress(
            height=height,
            target=max([height, *heights]),
            phase=self._phase,
            proved=proved,
            done=self._done,
            wanted=self._wanted,
            peers=() if self._fetcher is None else self._fetcher.busy,
        )

    @property
    def is_behind(self) -> bool:
        """Whether the node is on a long way to a proved block."""
        return self._is_far

    def poke(self) -> None:
        """Look again now: an orphan came, or a block that was kept aside is stored."""
        self._moved.set()
        self._network.refresh()

    async def run(self) -> None:
        """Synchronise for ever."""
        while True:
            self._network.status_changed.clear()
            while (candidate := self._choose_peer()) is not None:
                await self._follow(*candidate)
            await wait_for(self._clock, self._network.status_changed, self._idle_s)
            self._useless.clear()

    def _choose_peer(self) -> tuple[str, PeerStatus] | None:
        """The highest peer whose head we don't have."""
        candidates = [
            (status.height, node_id, status)
            for node_id, status in self._network.get_statuses().items()
            if status.height >= self._chain.head.height
            and not self._chain.has_block(status.head)
            and self._useless.get(node_id) != status.head
        ]
        if not candidates:
            return None
        _, node_id, status = max(candidates, key=lambda candidate: candidate[:2])
        return node_id, status

    async def _follow(self, peer: str, status: PeerStatus) -> None:
        before = self._chain.head.height
        try:
            if status.height - before > LONG:
                await self._follow_proof()
            await self._follow_claim(peer, status)
        except (TransportError, SyncStopped, Lacking, Poisoned) as error:
            logger.info("synchronising to the head of %s stopped: %s", peer, error)
            self._useless[peer] = status.head
        finally:
            self._phase, self._fetcher, self._is_far = Phase.IDLE, None, False
            self._done = self._wanted = 0
        after = self._chain.head.height
        if after > before:
            logger.info("synchronised: height %d to %d", before, after)

    def _get_peers(self, height: int) -> list[str]:
        """Whoever says that its chain is so long."""
        return [peer for peer, status in self._network.get_statuses().items() if status.height >= height]

    # --- along a proof ------------------------------------------------------------------------

    async def _follow_proof(self) -> None:
        """To the highest block that any peer proves final."""
        self._phase = Phase.PROOF
        proved = await self._trust.refresh(list(self._network.get_statuses()))
        if proved is None or self._chain.has_block(proved.checkpoint.hash):
            return
        self._is_far = True
        hashes = await self._fetch_proved_hashes(proved)
        self._chain.note_proved(hashes)
        await self._import(hashes, proved.checkpoint.height, None)

    async def _fetch_proved_hashes(self, proved: Proved) -> list[Hash32]:
        """From the first block above a stored one up to the proved one, by headers that lead down from it."""
        top, chain = proved.checkpoint, self._chain
        bottom = chain.finalized.height + 1
        self._phase, self._wanted = Phase.HEADERS, top.height - bottom + 1
        found: list[Hash32] = []
        expected = top.hash

        def take(headers: Sequence[Header]) -> bool:
            nonlocal expected
            self._done += len(headers)
            for header in reversed(headers):
                if chain.has_block(expected):
                    return False
                found.append(expected)
                expected = header.parent
            return not chain.has_block(expected)

        async with HeaderFetcher(
            self._network,
            self._clock,
            chain.chain_id,
            chain.params,
            lambda: self._get_peers(top.height),
            self._limits,
        ) as fetcher:
            self._fetcher = fetcher
            await fetcher.fetch_below(top, bottom, take)
        if not chain.has_block(expected):
            final = chain.finalized
            detail = f"height {top.height} does not descend from height {final.height}"
            self._trust.report_conflict(ConflictingFinality(None, proved.proof, detail))
        return found[::-1]

    # --- along a claim ------------------------------------------------------------------------

    async def _follow_claim(self, peer: str, status: PeerStatus) -> None:
        """To a peer's head: so many signed headers, their bodies, and again."""
        chain = self._chain
        if chain.has_block(status.head):
            return
        below = await self._find_ancestor(peer, status)
        if below.height < chain.finalized.height:
            raise SyncStopped(f"its chain leaves the final block at height {chain.finalized.height}")
        while not chain.has_block(status.head) and below.height < status.height:
            self._phase = Phase.HEADERS
            headers = await fetch_above(
                self._network, peer, chain.chain_id, chain.params, below, self._headers
            )
            hashes = [*(header.parent for header in headers[1:]), compute_block_hash(headers[-1])]
            await self._import(hashes, headers[0].height, peer)
            below = headers[-1]
        if not chain.has_block(status.head):
            # It may have changed its mind meanwhile; its next status tells.
            raise SyncStopped("its head did not come with its chain")

    async def _find_ancestor(self, peer: str, status: PeerStatus) -> Header:
        """The header at the greatest height at which the peer's head chain and ours agree."""
        ledger = self._chain.ledger
        top: int = min(self._chain.head.height, status.height)
        window = self._window
        while True:
            start = max(0, top - window + 1)
            theirs = await self._network.request_hashes(peer, start, top - start + 1)
            ours = ledger.get_hashes(start, top - start + 1)
            common = None
            for our_hash, their_hash in zip(ours, theirs, strict=False):
                if our_hash != their_hash:
                    break
                common = our_hash
            if common is not None:
                header = self._chain.get_header(common)
                if header is None:
                    raise SyncStopped(f"block {common.hex()} is not in the ledger")
                return header
            if start == 0:
                self._network.report(peer, Fault.MALFORMED, "its chain has another genesis")
                raise SyncStopped("another genesis")
            top, window = start - 1, min(2 * window, MAX_HASHES)

    # --- bodies -------------------------------------------------------------------------------

    async def _import(self, hashes: Sequence[Hash32], height: int, claimant: str | None) -> None:
        """Fetch and judge these blocks, which follow one another; held by whoever is as high as `height`.

        `claimant`: who says that they are valid; None if a finality proof does.
        """
        wanted = [block for block in hashes if not self._chain.has_block(block)]
        self._phase, self._done, self._wanted = Phase.BODIES, 0, len(wanted)
        async with BodyFetcher(
            self._network,
            self._clock,
            lambda: self._get_peers(height),
            batch=self._batch,
            limits=self._limits,
        ) as fetcher:
            self._fetcher = fetcher
            async for body in fetcher.fetch(wanted):
                await self._judge(body, fetcher, claimant)
                self._done += 1

    async def _judge(self, body: Body, fetcher: BodyFetcher, claimant: str | None) -> None:
        refused: set[str] = set()
        while True:
            if self._chain.has_block(body.hash):
                return  # gossip was faster
            outcome = self._sink.take_block(body.data)
            await self._clock.sleep(0)  # the judgement may not have let anything else run
            if not _is_poisoned(outcome, body.hash):
                break
            detail = f"a body that is not block {body.hash.hex()}: {outcome.reason}"
            logger.warning("%s gave %s", body.peer, detail)
            self._network.report(body.peer, Fault.POISONED, detail)
            fetcher.exclude(body.peer)
            refused.add(body.peer)
            body = await fetcher.fetch_one(body.hash, refused)
        if outcome.status in (ImportStatus.ACCEPTED, ImportStatus.KNOWN):
            return
        if outcome.status in (ImportStatus.HELD, ImportStatus.WAITING):
            await self._wait_stored(body.hash)
            return
        what = f"block {body.hash.hex()} is {outcome.status}: {outcome.reason} {outcome.detail}"
        if claimant is None:
            logger.critical("%s, although two thirds of stake hold it final: is this software too old?", what)
        elif outcome.status is ImportStatus.INVALID and outcome.peer_at_fault:
            self._network.report(claimant, Fault.INVALID_OBJECT, what)
        raise SyncStopped(what)

    async def _wait_stored(self, block: Hash32) -> None:
        """For a recomputation, or for a block's time: what follows it can't be judged before."""
        give_up = self._clock.monotonic() + self._patience_s
        while not self._chain.has_block(block):
            if self._clock.monotonic() >= give_up:
                raise SyncStopped(f"block {block.hex()} is still kept aside")
            self._moved.clear()
            await wait_for(self._clock, self._moved, RECHECK_S)


def _is_poisoned(outcome: Imported, expected: Hash32) -> bool:
    is_other = outcome.hash is not None and outcome.hash != expected
    return is_other or (outcome.status is ImportStatus.INVALID and outcome.reason in NOT_THE_BLOCK)
