"""What the consensus rules of committees' tasks will define: sealed claims and cosignatures.

Field by field and tag by tag as those rules have them, so that what is signed here is valid there. Once they
are in `consensus.task` and `consensus.claims`, this module goes and its importers name those.
"""

from dataclasses import dataclass, replace

from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain, verify
from consensus.types import Address, Hash32, Signature

MAX_CLAIMANTS = 8
"""Organisations credited for one batch."""
OPENING_TAG = "opening"
"""Under which a member signs the chain's id and the hash of an opening's content."""


@dataclass(frozen=True, slots=True)
class SealedClaim:
    """A claim that does not tell the root: made by a miner that has the bundle."""

    task: Hash32
    step: int
    batch: int
    seal: Hash32
    miner: Address
    signature: Signature


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A committee member's signature of an opening's content."""

    member: Address
    signature: Signature


def compute_seal(root: Hash32, miner: Address) -> Hash32:
    """Only who has the root can make one, and what one miner shows serves no other."""
    return hash_domain("claim-seal", root + miner)


def sign_sealed_claim(
    key: SigningKey, chain_id: Hash32, task: Hash32, step: int, batch: int, root: Hash32
) -> SealedClaim:
    unsigned = SealedClaim(task, step, batch, compute_seal(root, key.address), key.address, Signature(b""))
    return replace(unsigned, signature=key.sign("sealed-claim", chain_id + encode(unsigned)))


def verify_sealed_claim(chain_id: Hash32, claim: SealedClaim) -> bool:
    """True exactly if the claim's miner signed it for this chain; of which bundle it is is not looked at."""
    unsigned = replace(claim, signature=Signature(b""))
    return verify(claim.miner, "sealed-claim", chain_id + encode(unsigned), claim.signature)


def sign_content(key: SigningKey, chain_id: Hash32, content: Hash32) -> Cosignature:
    """Of an opening whose content, numbers included, has this hash."""
    return Cosignature(key.address, key.sign(OPENING_TAG, chain_id + content))


def verify_cosignature(chain_id: Hash32, content: Hash32, cosignature: Cosignature) -> bool:
    """True exactly if the member signed this content for this chain."""
    return verify(cosignature.member, OPENING_TAG, chain_id + content, cosignature.signature)
