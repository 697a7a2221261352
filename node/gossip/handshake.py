"""The handshake: what two nodes must have in common, and why one refuses the other."""

from enum import StrEnum

from node.gossip.messages import Hello
from node.gossip.transport import TransportError


class HandshakeReason(StrEnum):
    """Why a peer that answered is not linked."""

    PROTOCOL = "it speaks another protocol version"
    CHAIN = "it is on another chain"
    GENESIS = "its chain has another genesis block"
    SELF = "it is this node itself"
    BANNED = "it is banned"
    LINKED_ELSEWHERE = "it is linked at another address"
    ORGANISATION_FULL = "enough peers of its organisation are linked"

    @property
    def is_lasting(self) -> bool:
        """Dialling again soon would end alike."""
        return self not in (HandshakeReason.BANNED, HandshakeReason.LINKED_ELSEWHERE)


class HandshakeRefused(TransportError):
    """The peer answered, and is not for us."""

    def __init__(self, reason: HandshakeReason, detail: str) -> None:
        super().__init__(f"{detail}: {reason}")
        self.reason = reason


def check_hello(theirs: Hello, ours: Hello) -> HandshakeReason | None:
    """Why nodes that say this of themselves have nothing to tell each other; None if they have."""
    if theirs.protocol != ours.protocol:
        return HandshakeReason.PROTOCOL
    if theirs.status.chain_id != ours.status.chain_id:
        return HandshakeReason.CHAIN
    if theirs.status.genesis != ours.status.genesis:
        return HandshakeReason.GENESIS
    return None
