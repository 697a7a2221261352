"""Synchronising: from wherever the ledger stands to the heads of the peers, block after block."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from consensus.gossip_rules import Outcome
from consensus.types import Hash32
from node.clock import Clock
from node.gossip.limits import Fault
from node.gossip.links import wait_for
from node.gossip.messages import MAX_HASHES, MAX_OBJECT_IDS, Kind, PeerStatus
from node.gossip.server import Handlers
from node.gossip.transport import TransportError

logger = logging.getLogger(__name__)

RECHECK_S = 0.5


class SyncNetwork(Protocol):
    """What synchronising needs of the peer network."""

    @property
    def status_changed(self) -> asyncio.Event: ...

    def get_statuses(self) -> dict[str, PeerStatus]: ...

    def refresh(self) -> None: ...

    def report(self, node_id: str, fault: Fault, detail: str) -> None: ...

    async def request_hashes(self, node_id: str, from_height: int, count: int) -> tuple[Hash32, ...]: ...

    async def request_objects(
        self, node_id: str, kind: Kind, ids: tuple[Hash32, ...]
    ) -> tuple[bytes | None, ...]: ...


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """How far synchronising is."""

    height: int
    target: int
    """Greatest height that a linked peer reports; at least `height`."""
    peer: str | None
    """Who is asked now; None when idle."""


class SyncStopped(Exception):
    """This peer can't bring us further now."""


class Synchroniser:
    """Follows the peers' status and pulls what their head chains have beyond ours.

    The bodies of the next batch are on their way while this one is judged. Everything is decided by
    the handlers: a peer only says which blocks to look at.
    """

    def __init__(
        self,
        network: SyncNetwork,
        handlers: Handlers,
        clock: Clock,
        *,
        batch: int = 128,
        window: int = 64,
        idle_s: float = 5.0,
        patience_s: float = 30.0,
    ) -> None:
        """`batch`: bodies asked for at once. `window`: first step back in search of the fork.
        `patience_s`: how long to wait for a block that is kept aside before asking again."""
        self._network = network
        self._handlers = handlers
        self._clock = clock
        self._batch = min(batch, MAX_OBJECT_IDS)
        self._window = window
        self._idle_s = idle_s
        self._patience_s = patience_s
        self._peer: str | None = None
        self._useless: dict[str, Hash32] = {}
        self._moved = asyncio.Event()

    @property
    def progress(self) -> SyncProgress:
        height = self._handlers.get_status().height
        heights = [status.height for status in self._network.get_statuses().values()]
        return SyncProgress(height, max([height, *heights]), self._peer)

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
        own = self._handlers.get_status()
        candidates = [
            (status.height, node_id, status)
            for node_id, status in self._network.get_statuses().items()
            if status.height >= own.height
            and status.head != own.head
            and not self._is_stored(status.head)
            and self._useless.get(node_id) != status.head
        ]
        if not candidates:
            return None
        _, node_id, status = max(candidates, key=lambda candidate: candidate[:2])
        return node_id, status

    async def _follow(self, node_id: str, status: PeerStatus) -> None:
        self._peer = node_id
        before = self._handlers.get_status().height
        try:
            await self._pull(node_id, status)
        except TransportError as error:
            logger.info("synchronising from %s broke off: %s", node_id, error)
            self._useless[node_id] = status.head
        except SyncStopped as error:
            logger.debug("synchronising from %s stopped: %s", node_id, error)
            self._useless[node_id] = status.head
        finally:
            self._peer = None
        after = self._handlers.get_status().height
        if after > before:
            logger.info("synchronised from %s: height %d to %d", node_id, before, after)

    async def _pull(self, node_id: str, status: PeerStatus) -> None:
        height: int = await self._find_ancestor(node_id, status) + 1
        while height <= status.height:
            page = await self._network.request_hashes(node_id, height, MAX_HASHES)
            if not page:
                break
            await self._pull_bodies(node_id, page)
            height += len(page)
        if not self._is_stored(status.head):
            # It may have changed its mind meanwhile; its next status tells.
            raise SyncStopped("its head did not come with its chain")

    async def _find_ancestor(self, node_id: str, status: PeerStatus) -> int:
        """Greatest height at which the peer's head chain and ours agree."""
        top: int = min(self._handlers.get_status().height, status.height)
        window = self._window
        while True:
            start = max(0, top - window + 1)
            theirs = await self._network.request_hashes(node_id, start, top - start + 1)
            ours = self._handlers.get_hashes(start, top - start + 1)
            common = 0
            for our_hash, their_hash in zip(ours, theirs, strict=False):
                if our_hash != their_hash:
                    break
                common += 1
            if common:
                return start + common - 1
            if start == 0:
                self._network.report(node_id, Fault.MALFORMED, "its chain has another genesis")
                raise SyncStopped("another genesis")
            top, window = start - 1, min(2 * window, MAX_HASHES)

    async def _pull_bodies(self, node_id: str, hashes: Sequence[Hash32]) -> None:
        wanted = [block for block in hashes if not self._is_stored(block)]
        at = 0
        following = asyncio.create_task(self._request(node_id, wanted[: self._batch]))
        try:
            while at < len(wanted):
                bodies = await following
                ids = wanted[at : at + len(bodies)]
                at += len(bodies)
                following = asyncio.create_task(self._request(node_id, wanted[at : at + self._batch]))
                for block, data in zip(ids, bodies, strict=True):
                    await self._hand_over(node_id, block, data)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _request(self, node_id: str, ids: Sequence[Hash32]) -> Sequence[bytes]:
        if not ids:
            return ()
        bodies = await self._network.request_objects(node_id, Kind.BLOCK, tuple(ids))
        found = [data for data in bodies if data is not None]
        if not found or len(found) < len(bodies):
            self._network.report(node_id, Fault.UNHELPFUL, "it lacks blocks of its own chain")
            raise SyncStopped("it lacks blocks of its own chain")
        return found

    def _is_stored(self, block: Hash32) -> bool:
        return self._handlers.get_object(Kind.BLOCK, block) is not None

    async def _hand_over(self, node_id: str, block: Hash32, data: bytes) -> None:
        outcome = await self._handlers.on_object(Kind.BLOCK, block, data, node_id)
        await self._clock.sleep(0)  # the judgement may not have let anything else run
        if outcome is Outcome.REJECT:
            self._network.report(
                node_id, Fault.INVALID_OBJECT, f"block {block.hex()} of its chain is invalid"
            )
            raise SyncStopped(f"block {block.hex()} is invalid")
        if outcome is Outcome.ACCEPT or self._is_stored(block):
            return
        # Kept aside, for a recomputation or for its time: what follows it can't be judged either.
        give_up = self._clock.monotonic() + self._patience_s
        while not self._is_stored(block):
            if self._clock.monotonic() >= give_up:
                raise SyncStopped(f"block {block.hex()} is still kept aside")
            self._moved.clear()
            await wait_for(self._clock, self._moved, RECHECK_S)
