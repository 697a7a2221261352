"""Hashes, signatures and Merkle roots, each separated by a domain tag."""

from collections.abc import Sequence
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from consensus.types import ZERO_HASH, Address, Hash32, Signature

CHUNK_BYTES = 1024 * 1024
"""Length of every chunk of a blob but the last."""


def _build_prefix(tag: str) -> bytes:
    full = b"bmif/" + tag.encode("ascii")
    return bytes([len(full)]) + full


_PREFIXES: dict[str, bytes] = {}


def hash_domain(tag: str, data: bytes) -> Hash32:
    """SHA-256 of (length of the tag, `bmif/` + tag, data): no two tags share a preimage."""
    prefix = _PREFIXES.get(tag)
    if prefix is None:
        prefix = _PREFIXES[tag] = _build_prefix(tag)
    return Hash32(sha256(prefix + data).digest())


class SigningKey:
    """An Ed25519 private key that never shows itself: not in repr, not by pickle."""

    __slots__ = ("_private", "address")

    def __init__(self, seed: bytes) -> None:
        """`seed`: 32 secret bytes."""
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.address = Address(self._private.public_key().public_bytes_raw())

    def sign(self, tag: str, data: bytes) -> Signature:
        return Signature(self._private.sign(hash_domain("sign/" + tag, data)))

    def __repr__(self) -> str:
        return f"SigningKey({self.address.hex()})"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is never pickled")


def sign(key: SigningKey, tag: str, data: bytes) -> Signature:
    """The key's Ed25519 signature of hash_domain("sign/" + tag, data)."""
    return key.sign(tag, data)


def verify(address: Address, tag: str, data: bytes, signature: Signature) -> bool:
    """True exactly for a signature that the address's key made of this data under this tag."""
    if len(signature) != 64 or len(address) != 32:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(address).verify(signature, hash_domain("sign/" + tag, data))
    except (InvalidSignature, ValueError):
        return False
    return True


def _compute_merkle_top(tag: str, hashes: Sequence[Hash32]) -> Hash32:
    """Top of a binary tree over leaf hashes; an odd node is promoted; 32 zero bytes when empty."""
    if not hashes:
        return ZERO_HASH
    level = list(hashes)
    while len(level) > 1:
        pairs = [hash_domain(tag, level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            pairs.append(level[-1])
        level = pairs
    return level[0]


def compute_merkle_root(tag: str, leaves: Sequence[bytes]) -> Hash32:
    """Commits to the number, order and bytes of the leaves."""
    top = _compute_merkle_top(tag + "-node", [hash_domain(tag + "-leaf", leaf) for leaf in leaves])
    return hash_domain(tag + "-root", len(leaves).to_bytes(8, "big") + top)


def compute_chunk_hash(data: bytes | memoryview) -> Hash32:
    """Leaf of a blob; equals hash_domain("chunk", data) without copying the data."""
    digest = sha256(_build_prefix("chunk"))
    digest.update(data)
    return Hash32(digest.digest())


def compute_blob_root(length: int, chunk_hashes: Sequence[Hash32]) -> Hash32:
    """Root of a blob from its length and the hashes of its chunks of `CHUNK_BYTES`.

    Raises: ValueError if the number of chunks does not fit the length.
    """
    expected = -(-length // CHUNK_BYTES)
    if length < 0 or len(chunk_hashes) != expected:
        raise ValueError(f"Expected {expected} chunks for {length} bytes. Got {len(chunk_hashes)}.")
    top = _compute_merkle_top("blob-node", chunk_hashes)
    return hash_domain("blob", length.to_bytes(8, "big") + top)
