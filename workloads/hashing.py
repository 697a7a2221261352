"""Domain-tagged SHA-256, as in docs/PROTOCOL.md; repeated here because workloads know no chain."""

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32


def hash_domain(tag: str, data: bytes) -> bytes:
    """SHA-256(length of the tag as one byte, the tag prefixed by `bmif/`, the data)."""
    full = b"bmif/" + tag.encode()
    if len(full) > 255:
        raise ValueError(f"a tag has at most 250 bytes, got {len(tag)}")
    return hashlib.sha256(bytes([len(full)]) + full + data).digest()


def compute_loss_digest(body: bytes) -> bytes:
    """Digest of one validation batch's loss ciphertext."""
    return hash_domain("loss-ciphertext", body)


def compute_loss_hash(digests: Sequence[bytes]) -> bytes:
    """What a loss opening commits to: the digests of all validation batches, in contributed order.

    Digests rather than bodies, so that batches may be recomputed apart, in any order, and a finished
    one is remembered in 32 bytes.
    """
    if not digests:
        raise ValueError("a validation loss needs at least one batch")
    for index, digest in enumerate(digests):
        if len(digest) != HASH_BYTES:
            raise ValueError(f"digest {index} has {len(digest)} bytes, expected {HASH_BYTES}")
    return hash_domain("loss-ciphertexts", b"".join(digests))
