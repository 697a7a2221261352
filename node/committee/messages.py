"""What members of a committee say to come to an opening: canonical, signed, bounded in every field.

Everything may be seen by everybody, but for two things that are sealed: the root that a miner tells a member,
and the content of a proposal, which names roots. Roots are not to be known before the step is opened: who
knows one can claim the batch without having computed it.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from consensus.codec import CodecError, decode, encode
from consensus.crypto import SigningKey, hash_domain, verify
from consensus.task import Claim, SealedClaim
from consensus.types import Address, Hash32, Signature
from node.committee.boxes import TAG_BYTES, Box, SharedBox, open_box, open_shared, seal, seal_shared

MAX_MEMBERS = 64
MAX_ATTEMPTS = 2
MAX_STEP = 2**32 - 1
MAX_BATCH = 2**32 - 1
MAX_BOX_BYTES = 512 + TAG_BYTES
"""Of a told claim, or of a key."""
MAX_CONTENT_BYTES = 192 * 1024
"""Of a proposal: a hundred batches, each with as many claimants as are credited."""
MAX_ENTRIES = 4096
"""Ciphertexts of one opening."""
MAX_PRIMES = 8
MAX_MESSAGE_BYTES = 256 * 1024


class MessageError(Exception):
    """Bytes are no message of a committee within the limits; the sender is at fault."""


class OpeningKind(StrEnum):
    GRADIENT = "gradient"
    LOSS = "loss"


# --- contents ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GradientContent:
    """Of an opened gradient, all but its numbers and attempt."""

    previous: Hash32
    weights: Hash32
    claims: tuple[Claim, ...]
    """Exactly the step's batches, ascending: the root of each, as one miner told it."""
    confirmations: tuple[SealedClaim, ...]
    """By batch, then miner: who else has the same bundle."""


@dataclass(frozen=True, slots=True)
class LossContent:
    """Of an opened loss, all but its number and attempt."""

    previous: Hash32
    weights: Hash32
    ciphertext: Hash32


Content = GradientContent | LossContent


def get_kind(content: Content) -> OpeningKind:
    return OpeningKind.GRADIENT if isinstance(content, GradientContent) else OpeningKind.LOSS


def encode_content(content: Content) -> bytes:
    return encode(content)


def decode_content(kind: OpeningKind, data: bytes) -> Content:
    """Raises: MessageError."""
    try:
        if kind is OpeningKind.GRADIENT:
            return decode(GradientContent, data)
        return decode(LossContent, data)
    except CodecError as error:
        raise MessageError(f"no canonical content of a {kind}: {error}") from error


def hash_content(data: bytes) -> Hash32:
    return hash_domain("committee-content", data)


def compute_question(task: Hash32, step: int, content: Content) -> Hash32:
    """Names what is opened, whoever claimed it: previous opening, weights and ciphertexts."""
    where = task + step.to_bytes(8, "big") + content.previous + content.weights
    if isinstance(content, LossContent):
        return hash_domain("committee-loss", where + content.ciphertext)
    bundles = (
        claim.batch.to_bytes(8, "big") + claim.bundle.root + claim.bundle.length.to_bytes(8, "big")
        for claim in content.claims
    )
    return hash_domain("committee-gradient", where + b"".join(bundles))


# --- messages ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TellRoot:
    """A miner tells one member the root of its bundle: its signed claim, in a box."""

    ceremony: Hash32
    task: Hash32
    step: int
    batch: int
    miner: Address
    member: Address
    box: Box
    signature: Signature


@dataclass(frozen=True, slots=True)
class Ready:
    """The member has all that is opened, and has checked it."""

    ceremony: Hash32
    task: Hash32
    step: int
    kind: OpeningKind
    member: Address
    question: Hash32
    """`compute_question` of what it has."""
    signature: Signature


@dataclass(frozen=True, slots=True)
class Proposal:
    """Of the lead: what is to be opened, and by whom."""

    ceremony: Hash32
    task: Hash32
    step: int
    kind: OpeningKind
    attempt: int
    lead: Address
    subset: tuple[int, ...]
    """Places of the members that open, ascending."""
    question: Hash32
    content: Hash32
    """`hash_content` of what is sealed in it."""
    shared: SharedBox
    signature: Signature


@dataclass(frozen=True, slots=True)
class Partial:
    """A member's part of the opening that a proposal asks for."""

    ceremony: Hash32
    task: Hash32
    step: int
    kind: OpeningKind
    attempt: int
    member: Address
    proposal: Hash32
    values: tuple[tuple[int, ...], ...]
    """Residues by ciphertext and prime."""
    signature: Signature


@dataclass(frozen=True, slots=True)
class Cosign:
    """A member's signature of the opening with its numbers, as the chain wants it."""

    ceremony: Hash32
    task: Hash32
    step: int
    kind: OpeningKind
    attempt: int
    member: Address
    content: Hash32
    """Of the opening, numbers included, without signatures."""
    cosignature: Signature
    signature: Signature


Message = TellRoot | Ready | Proposal | Partial | Cosign
RoundMessage = Ready | Proposal | Partial | Cosign
"""Those of one opening."""


@dataclass(frozen=True, slots=True)
class CommitteeMessage:
    """What travels."""

    message: TellRoot | Ready | Proposal | Partial | Cosign


M = TypeVar("M", bound=Message)
_TAGS: dict[type, str] = {
    TellRoot: "committee-tell",
    Ready: "committee-ready",
    Proposal: "committee-proposal",
    Partial: "committee-partial",
    Cosign: "committee-cosign",
}


def get_sender(message: Message) -> Address:
    if isinstance(message, TellRoot):
        return message.miner
    if isinstance(message, Proposal):
        return message.lead
    return message.member


def sign_message(key: SigningKey, chain_id: Hash32, message: M) -> M:
    """The message with its sender's signature; the same bytes at every call."""
    if get_sender(message) != key.address:
        raise ValueError("a message is signed by its sender")
    unsigned = replace(message, signature=Signature(b""))
    return replace(message, signature=key.sign(_TAGS[type(message)], chain_id + encode(unsigned)))


def verify_message(chain_id: Hash32, message: Message) -> bool:
    """True exactly if its sender signed it for this chain."""
    unsigned = replace(message, signature=Signature(b""))
    return verify(get_sender(message), _TAGS[type(message)], chain_id + encode(unsigned), message.signature)


def compute_proposal_id(proposal: Proposal) -> Hash32:
    """By which parts name it."""
    return hash_domain("committee-proposal-id", encode(replace(proposal, signature=Signature(b""))))


def encode_message(message: Message) -> bytes:
    return encode(CommitteeMessage(message))


def hash_message(data: bytes) -> Hash32:
    """The id under which a message's bytes are announced."""
    return hash_domain("committee-message", data)


def decode_message(data: bytes) -> Message:
    """Raises: MessageError for anything but a message's canonical bytes within the limits."""
    _check("bytes", len(data), MAX_MESSAGE_BYTES)
    try:
        message = decode(CommitteeMessage, data).message
    except CodecError as error:
        raise MessageError(f"no canonical message: {error}") from error
    _check("steps", message.step, MAX_STEP)
    if isinstance(message, TellRoot):
        _check("batches", message.batch, MAX_BATCH)
        _check("bytes in a box", len(message.box.sealed), MAX_BOX_BYTES)
    elif not isinstance(message, Ready):
        _check("attempts", message.attempt - 1, MAX_ATTEMPTS - 1)
    if isinstance(message, Proposal):
        _check_proposal(message)
    elif isinstance(message, Partial):
        _check("ciphertexts", len(message.values), MAX_ENTRIES)
        for row in message.values:
            _check("primes", len(row), MAX_PRIMES)
            for value in row:
                _check("of a residue", value, 2**64 - 1)
    return message


def _check_proposal(proposal: Proposal) -> None:
    subset = proposal.subset
    _check("members", len(subset), MAX_MEMBERS)
    if list(subset) != sorted(set(subset)):
        raise MessageError("a subset's places ascend")
    for place in subset:
        _check("places", place, MAX_MEMBERS - 1)
    _check("boxes", len(proposal.shared.boxes), MAX_MEMBERS)
    _check("bytes of content", len(proposal.shared.body), MAX_CONTENT_BYTES + TAG_BYTES)
    for box in proposal.shared.boxes:
        _check("bytes in a box", len(box.sealed), MAX_BOX_BYTES)


def _check(what: str, found: int, most: int) -> None:
    if not 0 <= found <= most:
        raise MessageError(f"Expected 0 to {most} {what}. Got {found}.")


# --- what is sealed ---------------------------------------------------------------------------


def _get_tell_context(chain_id: Hash32, told: TellRoot) -> bytes:
    blank = replace(told, box=Box(Hash32(bytes(32)), b""), signature=Signature(b""))
    return b"tell" + chain_id + encode(blank)


def tell_root(
    key: SigningKey, chain_id: Hash32, ceremony: Hash32, claim: Claim, member: Address, public: bytes
) -> TellRoot:
    """A claim for the eyes of one member, whose X25519 key is `public`. Raises: BoxError."""
    empty = Box(Hash32(bytes(32)), b"")
    told = TellRoot(ceremony, claim.task, claim.step, claim.batch, key.address, member, empty, Signature(b""))
    box = seal(public, encode(claim), _get_tell_context(chain_id, told))
    return sign_message(key, chain_id, replace(told, box=box))


def open_told(private: bytes, chain_id: Hash32, told: TellRoot) -> Claim:
    """The claim that the miner told; its own signature is not looked at.

    Raises: BoxError if it is not for this key, MessageError if it holds no claim of this batch and miner.
    """
    data = open_box(private, told.box, _get_tell_context(chain_id, told))
    try:
        claim = decode(Claim, data)
    except CodecError as error:
        raise MessageError(f"no canonical claim: {error}") from error
    where = (told.task, told.step, told.batch, told.miner)
    if (claim.task, claim.step, claim.batch, claim.miner) != where:
        raise MessageError("the claim is of another batch or miner")
    return claim


def _get_proposal_context(chain_id: Hash32, proposal: Proposal) -> bytes:
    blank = replace(proposal, shared=SharedBox(b"", ()), signature=Signature(b""))
    return b"proposal" + chain_id + encode(blank)


def seal_proposal(
    key: SigningKey, chain_id: Hash32, proposal: Proposal, content: bytes, publics: tuple[bytes, ...]
) -> Proposal:
    """The signed proposal with its content sealed to the members' keys, in their order. Raises: BoxError."""
    named = replace(proposal, content=hash_content(content))
    shared = seal_shared(publics, content, _get_proposal_context(chain_id, named))
    return sign_message(key, chain_id, replace(named, shared=shared))


def open_proposal(private: bytes, place: int, chain_id: Hash32, proposal: Proposal) -> Content:
    """As the member at `place`. Raises: BoxError; MessageError if it holds another content than it names."""
    context = _get_proposal_context(chain_id, proposal)
    data = open_shared(private, place, proposal.shared, context)
    if hash_content(data) != proposal.content:
        raise MessageError("not the content that the proposal names")
    content = decode_content(proposal.kind, data)
    if compute_question(proposal.task, proposal.step, content) != proposal.question:
        raise MessageError("not the question that the proposal names")
    return content
