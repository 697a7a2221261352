"""What peers say to each other: canonical msgpack, decoded by expected type and bounded in every length.

A new kind of request is a member of `Route` with its line in `ROUTES`, its messages in `Message` with their
bounds in `_check_limits`, and a case in `PeerServer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from consensus.block import Header
from consensus.codec import CodecError, decode, encode
from consensus.crypto import CHUNK_BYTES
from consensus.gossip_rules import MAX_CLAIM_BYTES, MAX_PRESENCE_BYTES, MAX_VOTE_BYTES
from consensus.light import FinalityProof, SetChange
from consensus.transaction import MAX_TRANSACTION_BYTES
from consensus.types import Address, Hash32, Height, Signature
from consensus.vote import Checkpoint, Vote
from node.committee.messages import MAX_MESSAGE_BYTES

PROTOCOL_VERSION = 1

MAX_ADDRESS_LENGTH = 262
MAX_VERSION_LENGTH = 64
MAX_INLINE_BYTES = 2048
"""Objects up to this size travel inside their announcement."""
MAX_ANNOUNCED = 256
MAX_OBJECT_IDS = 256
MAX_HASHES = 2048
MAX_OBJECT_BYTES = 4 * 1024 * 1024 + 64 * 1024
"""Largest object: a block of the largest body with its header."""
MAX_REPLY_BYTES = MAX_OBJECT_BYTES + 64 * 1024
MAX_MANIFEST_BYTES = 64 * 1024
MAX_HEADERS = 512
MAX_SIGNED_HEADER_BYTES = 512
MAX_SET_CHANGES = 8
"""Changes of validator set in one reply to `FINALITY`."""
MAX_NODE_IDS = 256
MAX_NODES = 1024
"""State nodes in one reply to `STATE`."""
MAX_NODES_BYTES = 256 * 1024
"""Beyond it a reply to `STATE` ends, but for a first node of any size."""
NONCE_BYTES = 16
MAX_WITNESSED = 2
"""Votes in one reply to `WITNESS`."""
MAX_ADDRESSES = 32
"""Addresses in one reply to `PEERS`."""
SMALL_REPLY_BYTES = 1024


class MessageError(Exception):
    """Bytes are not a message of the expected type within its limits; the sender is at fault."""


class Kind(StrEnum):
    """Kinds of announced objects."""

    BLOCK = "block"
    TRANSACTION = "transaction"
    CLAIM = "claim"
    PRESENCE = "presence"
    VOTE = "vote"
    SEAL = "seal"
    """A sealed claim of a committee's task."""
    COMMITTEE = "committee"
    """What members of a committee, and miners, say to come to an opening."""


MAX_KIND_BYTES: Mapping[Kind, int] = {
    Kind.BLOCK: MAX_OBJECT_BYTES,
    Kind.TRANSACTION: MAX_TRANSACTION_BYTES,
    Kind.CLAIM: MAX_CLAIM_BYTES,
    Kind.PRESENCE: MAX_PRESENCE_BYTES,
    Kind.VOTE: MAX_VOTE_BYTES,
    Kind.SEAL: MAX_CLAIM_BYTES,
    Kind.COMMITTEE: MAX_MESSAGE_BYTES,
}
"""Largest object of each kind: the cheapest check, made before an object waits to be judged."""


class Route(StrEnum):
    """Kinds of requests; each has its limits."""

    STATUS = "status"
    ANNOUNCE = "announce"
    OBJECTS = "objects"
    HASHES = "hashes"
    MANIFEST = "manifest"
    CHUNK = "chunk"
    PEERS = "peers"
    HEADERS = "headers"
    FINALITY = "finality"
    STATE = "state"
    WITNESS = "witness"


@dataclass(frozen=True, slots=True)
class RouteLimits:
    """What one request of a kind may weigh, and how many of them one peer may send."""

    request_bytes: int
    reply_bytes: int
    per_s: float
    """Requests of one peer over time..."""
    burst: float
    """...and at once."""
    is_bulk: bool = False
    """Replies of megabytes: they are given more time."""


ROUTES: Mapping[Route, RouteLimits] = {
    Route.STATUS: RouteLimits(1024, SMALL_REPLY_BYTES, 20, 60),
    Route.ANNOUNCE: RouteLimits(
        1024 + MAX_ANNOUNCED * (MAX_INLINE_BYTES + 64), SMALL_REPLY_BYTES, 400, 1_000
    ),
    Route.OBJECTS: RouteLimits(1024 + MAX_OBJECT_IDS * 34, MAX_REPLY_BYTES, 200, 600, is_bulk=True),
    Route.HASHES: RouteLimits(256, 1024 + MAX_HASHES * 34, 50, 200),
    Route.MANIFEST: RouteLimits(256, MAX_MANIFEST_BYTES, 200, 600),
    Route.CHUNK: RouteLimits(256, CHUNK_BYTES, 400, 1_000, is_bulk=True),
    Route.PEERS: RouteLimits(256, 1024 + MAX_ADDRESSES * (MAX_ADDRESS_LENGTH + 4), 0.1, 4),
    Route.HEADERS: RouteLimits(256, 1024 + MAX_HEADERS * MAX_SIGNED_HEADER_BYTES, 50, 200, is_bulk=True),
    Route.FINALITY: RouteLimits(256, MAX_REPLY_BYTES, 2, 20, is_bulk=True),
    Route.STATE: RouteLimits(
        1024 + MAX_NODE_IDS * 34, MAX_NODES_BYTES + MAX_REPLY_BYTES, 50, 200, is_bulk=True
    ),
    Route.WITNESS: RouteLimits(256, SMALL_REPLY_BYTES, 4, 40),
}
"""The limits of every route: the one place where they are set."""

MAX_REQUEST_BYTES: Mapping[Route, int] = {route: limits.request_bytes for route, limits in ROUTES.items()}


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Where a node stands."""

    chain_id: Hash32
    genesis: Hash32
    height: Height
    head: Hash32
    version: str
    """Of the node's software, for operators."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Request and reply of STATUS: the handshake, and the heartbeat afterwards."""

    status: PeerStatus
    address: str
    """host:port where the sender can be dialled; empty if it can't."""
    protocol: int
    """`PROTOCOL_VERSION`; nodes of different ones don't talk."""
    session: bytes
    """8 bytes drawn at the sender's start: a change tells that it restarted and forgot what it was told."""


@dataclass(frozen=True, slots=True)
class Announced:
    kind: Kind
    id: Hash32
    data: bytes | None
    """The object itself, if it is small."""


@dataclass(frozen=True, slots=True)
class Announcement:
    chain_id: Hash32
    items: tuple[Announced, ...]


@dataclass(frozen=True, slots=True)
class ObjectsRequest:
    chain_id: Hash32
    kind: Kind
    ids: tuple[Hash32, ...]


@dataclass(frozen=True, slots=True)
class ObjectsReply:
    """The objects in the order of the request; shorter where the reply would grow too large."""

    objects: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class HashesRequest:
    chain_id: Hash32
    from_height: Height
    count: int


@dataclass(frozen=True, slots=True)
class HashesReply:
    """The replying node's head chain, ascending from the asked height."""

    hashes: tuple[Hash32, ...]


@dataclass(frozen=True, slots=True)
class ManifestRequest:
    """Answered by the manifest's own encoding."""

    chain_id: Hash32
    root: Hash32


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """Answered by the chunk's bytes."""

    chain_id: Hash32
    root: Hash32
    index: int


@dataclass(frozen=True, slots=True)
class PeersRequest:
    chain_id: Hash32


@dataclass(frozen=True, slots=True)
class PeersReply:
    """Addresses that the replying node has itself been linked at, in no order."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeadersRequest:
    chain_id: Hash32
    from_height: Height
    count: int
    signed: bool
    """Whether signatures are wanted, which cost the replying node the reading of its blocks."""


@dataclass(frozen=True, slots=True)
class SignedHeader:
    header: Header
    signature: Signature | None
    """None if it was not asked for, or the replying node does not hold the block's body."""


@dataclass(frozen=True, slots=True)
class HeadersReply:
    """The replying node's head chain, ascending from the asked height; genesis has none."""

    headers: tuple[SignedHeader, ...]


@dataclass(frozen=True, slots=True)
class FinalityRequest:
    chain_id: Hash32
    set_number: int
    """Of the validator set that the asking node knows."""


@dataclass(frozen=True, slots=True)
class FinalityReply:
    """What leads from the known set to a final header, or as far towards it as one reply goes."""

    changes: tuple[SetChange, ...]
    proof: FinalityProof | None
    """None if more changes are to come, or nothing can be proved yet."""


@dataclass(frozen=True, slots=True)
class StateRequest:
    chain_id: Hash32
    nodes: tuple[Hash32, ...]


@dataclass(frozen=True, slots=True)
class StateReply:
    """Nodes of state trees: those asked for and what is below them, parents before children, as many as
    fit. Nodes that the replying node lacks are passed over."""

    nodes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class WitnessRequest:
    """Asks for the furthest votes of a validator that the other node has ever seen."""

    chain_id: Hash32
    validator: Address
    nonce: bytes
    """Drawn by the asking node, so that no old answer passes for a new one."""


@dataclass(frozen=True, slots=True)
class WitnessReply:
    """Signed over the chain id, the asked validator, the nonce and all that stands here."""

    witness: Address
    """The replying node's account."""
    head: Checkpoint
    justified: Checkpoint
    is_silent: bool
    """It does not vote itself before that is safe."""
    votes: tuple[Vote, ...]
    """The one with the highest target and, if that is another, the one with the highest source."""
    signature: Signature


Message = (
    Hello
    | Announcement
    | ObjectsRequest
    | ObjectsReply
    | HashesRequest
    | HashesReply
    | ManifestRequest
    | ChunkRequest
    | PeersRequest
    | PeersReply
    | HeadersRequest
    | HeadersReply
    | FinalityRequest
    | FinalityReply
    | StateRequest
    | StateReply
    | WitnessRequest
    | WitnessReply
)

T = TypeVar("T", bound=Message)


def encode_message(message: Message) -> bytes:
    return encode(message)


def decode_message(cls: type[T], data: bytes) -> T:
    """The message whose encoding is exactly `data`.

    Raises `MessageError` for anything else, and for lists or texts beyond their limits.
    """
    try:
        message = decode(cls, data)
    except CodecError as error:
        raise MessageError(f"no canonical {cls.__name__}: {error}") from error
    _check_limits(message)
    return message


def _check_limits(message: Message) -> None:
    if isinstance(message, Hello):
        _check("characters of an address", len(message.address), MAX_ADDRESS_LENGTH)
        _check("characters of a version", len(message.status.version), MAX_VERSION_LENGTH)
        _check("bytes of a session", len(message.session), 8)
    elif isinstance(message, Announcement):
        _check("announced objects", len(message.items), MAX_ANNOUNCED)
        for item in message.items:
            _check("bytes inline", len(item.data or b""), MAX_INLINE_BYTES)
    elif isinstance(message, ObjectsRequest):
        _check("ids", len(message.ids), MAX_OBJECT_IDS)
    elif isinstance(message, ObjectsReply):
        _check("objects", len(message.objects), MAX_OBJECT_IDS)
        for data in message.objects:
            _check("bytes of an object", len(data or b""), MAX_OBJECT_BYTES)
    elif isinstance(message, HashesRequest):
        _check("hashes", message.count, MAX_HASHES)
    elif isinstance(message, HashesReply):
        _check("hashes", len(message.hashes), MAX_HASHES)
    elif isinstance(message, ChunkRequest):
        _check("chunk index", message.index, MAX_MANIFEST_BYTES // 32)
    elif isinstance(message, PeersReply):
        _check("addresses", len(message.addresses), MAX_ADDRESSES)
        for address in message.addresses:
            _check("characters of an address", len(address), MAX_ADDRESS_LENGTH)
    else:
        _check_chain_limits(message)


def _check_chain_limits(message: Message) -> None:
    """Of what synchronising asks for."""
    if isinstance(message, HeadersRequest):
        _check("headers", message.count, MAX_HEADERS)
    elif isinstance(message, HeadersReply):
        _check("headers", len(message.headers), MAX_HEADERS)
    elif isinstance(message, FinalityReply):
        _check("changes of set", len(message.changes), MAX_SET_CHANGES)
    elif isinstance(message, StateRequest):
        _check("nodes", len(message.nodes), MAX_NODE_IDS)
    elif isinstance(message, StateReply):
        _check("nodes", len(message.nodes), MAX_NODES)
    elif isinstance(message, WitnessRequest):
        _check("bytes of a nonce", len(message.nonce), NONCE_BYTES)
    elif isinstance(message, WitnessReply):
        _check("votes", len(message.votes), MAX_WITNESSED)


def _check(what: str, found: int, most: int) -> None:
    if not 0 <= found <= most:
        raise MessageError(f"Expected 0 to {most} {what}. Got {found}.")
