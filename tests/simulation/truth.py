"""What a recomputation would find: canonical hashes that follow from a task's public data alone."""

from functools import cache
from hashlib import sha256

from consensus.crypto import SigningKey, hash_domain
from consensus.identifiers import compute_weights_digest
from consensus.types import Hash32


@cache
def get_key(name: str) -> SigningKey:
    """The same name has the same key in every run."""
    return SigningKey(sha256(f"simulated key {name}".encode()).digest())


def compute_loss_ciphertext(task: Hash32, step: int, weights: tuple[int, ...]) -> Hash32:
    """The hash that rule W4 asks for."""
    return hash_domain("simulated-loss", task + step.to_bytes(4, "big") + compute_weights_digest(weights))


def compute_bundle_root(task: Hash32, step: int, batch: int, weights: Hash32) -> Hash32:
    """The canonical bundle of a batch at the weights of this digest."""
    return hash_domain(
        "simulated-bundle", task + step.to_bytes(4, "big") + batch.to_bytes(4, "big") + weights
    )


def is_liked(task: Hash32, validator: bytes, share: float) -> bool:
    """Whether a milestone of this task generalises to the validator's private pairs."""
    return hash_domain("simulated-taste", task + validator)[0] < 256 * share
