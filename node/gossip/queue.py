"""Objects waiting to be judged: bounded by peer and in total, and fair among peers. Pure.

What costs nothing to find (size, form of the message) is found before an object gets here; what waits here
needs decoding, signatures and states. When a lane is full, the oldest object of the worst-scored peer goes:
a flood displaces itself.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from consensus.types import Hash32
from node.gossip.messages import Kind


@dataclass(frozen=True, slots=True)
class Deliver:
    """Judge an object; answer with `on_outcome`, or `on_dropped`."""

    peer: str
    kind: Kind
    id: Hash32
    data: bytes


class LaneName(StrEnum):
    """Lanes are served side by side, so that none waits for another's flood."""

    BLOCKS = "blocks"
    TRANSACTIONS = "transactions"
    SIGNALS = "signals"
    """Small and short-lived: claims, presences."""


def get_lane(kind: Kind) -> LaneName:
    match kind:
        case Kind.BLOCK:
            return LaneName.BLOCKS
        case Kind.TRANSACTION:
            return LaneName.TRANSACTIONS
        case _:
            return LaneName.SIGNALS


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Bounds of one lane."""

    objects: int
    size: int
    """Bytes."""
    objects_per_peer: int
    size_per_peer: int


MIB = 1024 * 1024
DEFAULT_LANES: Mapping[LaneName, LaneLimits] = {
    LaneName.BLOCKS: LaneLimits(1_024, 96 * MIB, 512, 40 * MIB),
    LaneName.TRANSACTIONS: LaneLimits(8_192, 64 * MIB, 4_096, 32 * MIB),
    LaneName.SIGNALS: LaneLimits(4_096, 4 * MIB, 2_048, 2 * MIB),
}


class _Waiting:
    """One peer's objects in a lane, oldest first."""

    def __init__(self) -> None:
        self.objects: deque[Deliver] = deque()
        self.size = 0

    def push(self, delivered: Deliver) -> None:
        self.objects.append(delivered)
        self.size += len(delivered.data)

    def pop(self) -> Deliver:
        delivered = self.objects.popleft()
        self.size -= len(delivered.data)
        return delivered


class Lane:
    """Objects of one lane; peers take turns, each peer's come in order."""

    def __init__(self, limits: LaneLimits, get_score: Callable[[str], float]) -> None:
        self._limits = limits
        self._get_score = get_score
        self._peers: OrderedDict[str, _Waiting] = OrderedDict()
        self._count = 0
        self.size = 0
        """Bytes waiting."""

    def __len__(self) -> int:
        return self._count

    def put(self, delivered: Deliver) -> list[Deliver]:
        """Add an object; what had to go for it, perhaps the object itself."""
        limits, dropped = self._limits, []
        waiting = self._peers.setdefault(delivered.peer, _Waiting())
        waiting.push(delivered)
        self._count += 1
        self.size += len(delivered.data)
        while len(waiting.objects) > limits.objects_per_peer or waiting.size > limits.size_per_peer:
            dropped.append(self._pop(delivered.peer))
        while self._count > limits.objects or self.size > limits.size:
            dropped.append(self._pop(self._find_worst()))
        return dropped

    def take(self) -> Deliver | None:
        """The next object, of the peer that waited longest for its turn."""
        if not self._peers:
            return None
        peer = next(iter(self._peers))
        delivered = self._pop(peer)
        if peer in self._peers:
            self._peers.move_to_end(peer)
        return delivered

    def _find_worst(self) -> str:
        """Of the worst score, and among equals of most bytes and objects."""
        return max(
            self._peers,
            key=lambda peer: (
                self._get_score(peer),
                self._peers[peer].size,
                len(self._peers[peer].objects),
            ),
        )

    def _pop(self, peer: str) -> Deliver:
        waiting = self._peers[peer]
        delivered = waiting.pop()
        if not waiting.objects:
            del self._peers[peer]
        self._count -= 1
        self.size -= len(delivered.data)
        return delivered
