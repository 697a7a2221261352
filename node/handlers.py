"""What the peer network asks of this node."""

from importlib.metadata import version

from consensus.gossip_rules import Outcome
from consensus.tree import TreeError
from consensus.types import Hash32
from node.chain import Imported, ImportStatus
from node.claims import hash_claim
from node.committee.messages import hash_message
from node.core import Core
from node.gossip.messages import Kind, PeerStatus
from node.ledger.schema import LedgerError
from node.ledger.store import StoreError
from node.presence import hash_presence
from node.recomputer import Recomputer
from node.seals import hash_seal
from node.votes import hash_vote


class PeerHandlers:
    """Judges objects from peers and serves what this node holds."""

    def __init__(self, core: Core, recomputer: Recomputer) -> None:
        self._core = core
        self._recomputer = recomputer
        # Whoever reads it, and whatever becomes of the error there.
        core.chain.ledger.on_damage(core.fail)

    async def on_object(self, kind: Kind, object_id: Hash32, data: bytes, peer: str) -> Outcome:
        """REJECT means that the peer is at fault, for one that sent another object than it announced too."""
        try:
            return self._judge(kind, object_id, data)
        except (StoreError, LedgerError, TreeError) as error:
            # The network logs what a handler raises and goes on; a node without its ledger must not.
            self._core.fail(error)
            return Outcome.IGNORE

    def _judge(self, kind: Kind, object_id: Hash32, data: bytes) -> Outcome:
        match kind:
            case Kind.BLOCK if not self._core.takes_blocks:
                return Outcome.IGNORE
            case Kind.BLOCK:
                return self._on_block(self._core.take_block(data), object_id)
            case Kind.TRANSACTION:
                return self._core.take_transaction(data, object_id)
            case Kind.CLAIM if hash_claim(data) == object_id:
                return self._core.take_claim(data)
            case Kind.PRESENCE if hash_presence(data) == object_id:
                return self._core.take_presence(data)
            case Kind.VOTE if hash_vote(data) == object_id:
                return self._core.take_vote(data)
            case Kind.SEAL if hash_seal(data) == object_id:
                return self._core.committees.take_seal(data)
            case Kind.COMMITTEE if hash_message(data) == object_id:
                return self._core.committees.take_message(data)
            case _:
                return Outcome.REJECT

    def _on_block(self, outcome: Imported, announced: Hash32) -> Outcome:
        if outcome.hash is not None and outcome.hash != announced:
            return Outcome.REJECT
        match outcome.status:
            case ImportStatus.ACCEPTED:
                return Outcome.ACCEPT
            case ImportStatus.INVALID:
                return Outcome.REJECT if outcome.peer_at_fault else Outcome.IGNORE
            case ImportStatus.WAITING if outcome.check is not None:
                self._recomputer.request(outcome.check)
                return Outcome.IGNORE
            case ImportStatus.ORPHAN:
                self._core.request_sync()
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
