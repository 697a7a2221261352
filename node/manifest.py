"""Manifests of blobs: the chunk hashes that a root commits to; and what can be wrong with a blob."""

from dataclasses import dataclass
from typing import Self

from consensus.crypto import CHUNK_BYTES, compute_blob_root
from consensus.task import BlobRef
from consensus.types import Hash32


class BlobError(Exception):
    """A blob can't be stored or read as asked."""


class QuotaExceeded(BlobError):
    """The blob is larger than allowed, or does not fit into what is left of the quota."""


class CorruptBlob(BlobError):
    """Bytes do not match the root or the chunk hash they were given for."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The chunk hashes of a blob; `decode` guarantees that they and the length make up the root."""

    ref: BlobRef
    chunks: tuple[Hash32, ...]

    def encode(self) -> bytes:
        return self.ref.length.to_bytes(8, "big") + b"".join(self.chunks)

    @classmethod
    def decode(cls, root: Hash32, data: bytes) -> Self:
        """Raises `CorruptBlob` unless `data` is the manifest of `root`."""
        if len(data) < 8 or len(data) % 32 != 8:
            raise CorruptBlob(f"a manifest of {len(data)} bytes has no whole number of chunk hashes")
        length = int.from_bytes(data[:8], "big")
        chunks = tuple(Hash32(data[at : at + 32]) for at in range(8, len(data), 32))
        try:
            found = compute_blob_root(length, chunks)
        except ValueError as error:
            raise CorruptBlob(str(error)) from error
        if found != root:
            raise CorruptBlob(f"the manifest is of blob {found.hex()}, not of {root.hex()}")
        return cls(BlobRef(root, length), chunks)

    def get_chunk_length(self, index: int) -> int:
        return min(CHUNK_BYTES, self.ref.length - index * CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """How much of a blob is on disk."""

    ref: BlobRef
    complete: bool
    held_bytes: int
