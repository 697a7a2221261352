"""What synchronising needs of the peer network and of the node, and how far it is."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from consensus.types import Hash32
from node.chain import Imported
from node.gossip.limits import Fault
from node.gossip.messages import FinalityReply, HeadersReply, Kind, PeerStatus, StateReply


class SyncNetwork(Protocol):
    """Peers by node id. Requests raise `TransportError`."""

    @property
    def status_changed(self) -> asyncio.Event: ...

    def get_statuses(self) -> dict[str, PeerStatus]: ...

    def refresh(self) -> None: ...

    def report(self, node_id: str, fault: Fault, detail: str) -> None: ...

    async def request_hashes(self, node_id: str, from_height: int, count: int) -> tuple[Hash32, ...]: ...

    async def request_headers(
        self, node_id: str, from_height: int, count: int, *, signed: bool = False
    ) -> HeadersReply: ...

    async def request_finality(self, node_id: str, set_number: int) -> FinalityReply: ...

    async def request_state(self, node_id: str, nodes: tuple[Hash32, ...]) -> StateReply: ...

    async def request_objects(
        self, node_id: str, kind: Kind, ids: tuple[Hash32, ...]
    ) -> tuple[bytes | None, ...]: ...


class BlockSink(Protocol):
    """Where blocks go to be judged."""

    def take_block(self, data: bytes) -> Imported:
        """Judge a block and store it if it is valid; what it waits for is arranged."""
        ...


class Phase(StrEnum):
    """What synchronising does now."""

    IDLE = "idle"
    PROOF = "proof"
    STATE = "state"
    HEADERS = "headers"
    BODIES = "bodies"


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """How far synchronising is."""

    height: int
    target: int
    """Greatest height that a linked peer reports; at least `height`. A claim, unless proved."""
    phase: Phase
    proved: int
    """Height up to which a finality proof of peers was verified; 0 before the first."""
    done: int
    """Headers, bodies or state nodes of this phase that are here..."""
    wanted: int
    """...of so many; 0 where nobody knows how many there are (state nodes)."""
    peers: tuple[str, ...]
    """Who is asked now."""


class SyncStopped(Exception):
    """Nothing more can be had now from those that were asked."""


class Poisoned(Exception):
    """A peer gave what is not what was asked for; it was reported."""


class Lacking(Exception):
    """A peer does not hold what was asked for, which is no fault by itself."""
