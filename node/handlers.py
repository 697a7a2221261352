"""What the peer network asks of this node."""

from importlib.metadata import version

from consensus.gossip_rules import Outcome
from consensus.types import Hash32
from node.chain import Imported, ImportStatus
from node.core import Core
from node.gossip.messages import Kind, PeerStatus
from node.validator import Recomputer


class PeerHandlers:
    """Judges objects from peers and serves what this node holds."""

    def __init__(self, core: Core, recomputer: Recomputer) -> None:
        self._core = core
        self._recomputer = recomputer

    async def on_object(self, kind: Kind, object_id: Hash32, data: bytes, peer: str) -> Outcome:
        """REJECT means that the peer is at fault."""
        match kind:
            case Kind.BLOCK:
                return self._on_block(self._core.take_block(data))
            case Kind.TRANSACTION:
                return self._core.take_transaction(data)
            case Kind.CLAIM:
                return self._core.take_claim(data)
            case Kind.PRESENCE:
                return self._core.take_presence(data)

    def _on_block(self, outcome: Imported) -> Outcome:
        match outcome.status:
            case ImportStatus.ACCEPTED:
                return Outcome.ACCEPT
            case ImportStatus.INVALID:
                return Outcome.REJECT if outcome.peer_at_fault else Outcome.IGNORE
            case ImportStatus.WAITING if outcome.check is not None:
                self._recomputer.request(outcome.check)
                return Outcome.IGNORE
            case _:
                return Outcome.IGNORE

    def has_object(self, kind: Kind, object_id: Hash32) -> bool:
        return self._core.has_object(kind, object_id)

    def get_object(self, kind: Kind, object_id: Hash32) -> bytes | None:
        return self._core.get_object(kind, object_id)

    def get_hashes(self, from_height: int, count: int) -> list[Hash32]:
        return self._core.chain.ledger.get_hashes(from_height, count)

    def get_status(self) -> PeerStatus:
        chain = self._core.chain
        return PeerStatus(
            chain.chain_id, chain.genesis_hash, chain.head.height, chain.head_hash, version("bmif")
        )
