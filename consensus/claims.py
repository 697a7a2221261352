"""What a miner signs: claims of finished bundles, open or sealed, and its presence for a task."""

from dataclasses import dataclass, replace

from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain, verify
from consensus.task import BlobRef, Claim, SealedClaim
from consensus.types import Address, Hash32, Millis, Signature


@dataclass(frozen=True, slots=True)
class Presence:
    """A miner's statement that it computes for a task now; leases are dealt among the present."""

    task: Hash32
    miner: Address
    time: Millis
    signature: Signature


def sign_claim(
    key: SigningKey, chain_id: Hash32, task: Hash32, step: int, batch: int, bundle: BlobRef
) -> Claim:
    unsigned = Claim(task, step, batch, bundle, key.address, Signature(b""))
    return replace(unsigned, signature=key.sign("claim", chain_id + encode(unsigned)))


def verify_claim(chain_id: Hash32, claim: Claim) -> bool:
    """True exactly if the claim's miner signed it for this chain."""
    unsigned = replace(claim, signature=Signature(b""))
    return verify(claim.miner, "claim", chain_id + encode(unsigned), claim.signature)


def compute_seal(root: Hash32, miner: Address) -> Hash32:
    """Only who has the root can make one, and what one miner shows serves no other."""
    return hash_domain("claim-seal", root + miner)


def sign_sealed_claim(
    key: SigningKey, chain_id: Hash32, task: Hash32, step: int, batch: int, root: Hash32
) -> SealedClaim:
    """Of the bundle with this root, which the claim does not tell."""
    seal = compute_seal(root, key.address)
    unsigned = SealedClaim(task, step, batch, seal, key.address, Signature(b""))
    return replace(unsigned, signature=key.sign("sealed-claim", chain_id + encode(unsigned)))


def verify_sealed_claim(chain_id: Hash32, claim: SealedClaim) -> bool:
    """True exactly if the claim's miner signed it for this chain; of which bundle it is is not looked at."""
    unsigned = replace(claim, signature=Signature(b""))
    return verify(claim.miner, "sealed-claim", chain_id + encode(unsigned), claim.signature)


def sign_presence(key: SigningKey, chain_id: Hash32, task: Hash32, time: Millis) -> Presence:
    unsigned = Presence(task, key.address, time, Signature(b""))
    return replace(unsigned, signature=key.sign("presence", chain_id + encode(unsigned)))


def verify_presence(chain_id: Hash32, presence: Presence) -> bool:
    """True exactly if the miner signed it for this chain."""
    unsigned = replace(presence, signature=Signature(b""))
    return verify(presence.miner, "presence", chain_id + encode(unsigned), presence.signature)
