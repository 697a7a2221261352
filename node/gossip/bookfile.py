"""The address book, anchors and bans on disk: what damage or a foreign file leaves is an empty book."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from consensus.codec import CodecError, decode, encode
from consensus.crypto import hash_domain
from node.gossip.addresses import AddressError, split_address
from node.gossip.book import AddressBook, BookLimits, Entry

logger = logging.getLogger(__name__)

VERSION = 1
MAX_BYTES = 4 * 1024 * 1024
MAX_ANCHORS = 8
MAX_BANS = 1_024
SECRET_BYTES = 32
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class StoredBan:
    node_id: str
    until: int
    """Wall time, ms."""


@dataclass(frozen=True, slots=True)
class StoredPeers:
    """What a node remembers of its peers from one run to the next."""

    version: int
    secret: bytes
    """Keys the book's buckets."""
    entries: tuple[Entry, ...]
    anchors: tuple[str, ...]
    """Addresses of the last good peers that this node chose, longest linked first."""
    bans: tuple[StoredBan, ...]


class PeerStore(Protocol):
    """Where that is kept."""

    def load(self) -> bytes | None:
        """None if nothing was saved, or it can't be read."""
        ...

    def save(self, data: bytes) -> None:
        """Replace what was saved; all or nothing."""
        ...


class MemoryPeerStore:
    """A `PeerStore` for tests, and for nodes that keep nothing."""

    def __init__(self) -> None:
        self.data: bytes | None = None

    def load(self) -> bytes | None:
        return self.data

    def save(self, data: bytes) -> None:
        self.data = data


class FilePeerStore:
    """A small file, replaced as a whole. Its loss costs a node nothing but its search for peers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s can't be read, peers are looked for anew: %s", self._path, error)
            return None

    def save(self, data: bytes) -> None:
        temporary = self._path.with_name(self._path.name + ".part")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            logger.warning("%s can't be written, peers will be looked for anew: %s", self._path, error)


def encode_peers(stored: StoredPeers) -> bytes:
    """A digest and the canonical encoding."""
    data = encode(stored)
    return hash_domain("peers", data) + data


def decode_peers(data: bytes | None) -> StoredPeers | None:
    """What `encode_peers` encoded; None with a warning for anything else."""
    if data is None:
        return None
    digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    try:
        if len(data) > MAX_BYTES or hash_domain("peers", body) != digest:
            raise CodecError("the digest does not match")
        stored = decode(StoredPeers, body)
        if stored.version != VERSION or len(stored.secret) != SECRET_BYTES:
            raise CodecError(f"version {stored.version}")
    except CodecError as error:
        logger.warning("the stored address book is damaged, peers are looked for anew: %s", error)
        return None
    return stored


def build_book(stored: StoredPeers, limits: BookLimits | None = None) -> AddressBook:
    """The book as it was; entries that do not fit any more are left out."""
    book = AddressBook(stored.secret, limits)
    for entry in sorted(stored.entries, key=lambda e: -e.last_good):
        try:
            split_address(entry.address)
        except AddressError:
            continue
        book.restore(entry)
    return book
