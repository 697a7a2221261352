"""What a member keeps of a ceremony: its share of the secret, and its secrets with each other member.

A header of 80 bytes: magic (8), preset name (32, zero-padded), members, threshold, place and shared primes as
uint16, ceremony (32); then `KeyShare` and `PairSecrets`.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from he.errors import HeError
from he.formats import HEADER_BYTES, WORD_BYTES
from he.multiparty.masking import PairSecrets
from he.multiparty.sharing import KeyShare
from workloads.base import WorkloadError
from workloads.ceremony import SHARED_LEVELS, CeremonyTerms
from workloads.ceremony_folder import NOISE_FILE, SECRET_KEY_FILE
from workloads.hashing import hash_domain
from workloads.sealed import NOISE_KIND, SECRET_KIND, FolderKeys, read_secret

_MAGIC: Final = b"BMIFCKS1"
_HEADER: Final = struct.Struct("<8s32s4H32s")


def encode_share(terms: CeremonyTerms, share: KeyShare, pairs: PairSecrets) -> bytes:
    """For the member's own protected storage; never for a peer."""
    return _build_header(terms) + share.encode() + pairs.encode()


def decode_share(data: bytes, *, allow_insecure: bool = False) -> tuple[CeremonyTerms, KeyShare, PairSecrets]:
    """What `encode_share` gave. Raises: WorkloadError."""
    if len(data) < _HEADER.size:
        raise WorkloadError("is no share of a committee's key")
    _, name, members, threshold, place, _, ceremony = _HEADER.unpack(data[: _HEADER.size])
    try:
        preset = name.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise WorkloadError("is no share of a committee's key") from None
    terms = CeremonyTerms(ceremony, preset, members, threshold, place, allow_insecure)
    params = terms.get_params()
    if data[: _HEADER.size] != _build_header(terms):
        raise WorkloadError("is no share of a committee's key")
    view = memoryview(data)[_HEADER.size :]
    end = HEADER_BYTES + SHARED_LEVELS * params.ring * WORD_BYTES
    try:
        share = KeyShare.decode(params, place, threshold, SHARED_LEVELS, view[:end])
        return terms, share, PairSecrets.decode(place, members, view[end:])
    except HeError as error:
        raise WorkloadError(f"is a damaged share: {error}") from error


def load_share(
    folder: Path, keys: FolderKeys, *, allow_insecure: bool = False
) -> tuple[KeyShare, PairSecrets]:
    """A finished ceremony's, for the worker process that opens. Raises: WorkloadError naming the file,
    OSError."""
    path = folder / SECRET_KEY_FILE
    data = read_secret(path, keys.secret, SECRET_KIND)
    try:
        _, share, pairs = decode_share(data, allow_insecure=allow_insecure)
    except WorkloadError as error:
        raise WorkloadError(f"{path}: {error}") from error
    return share, pairs


@dataclass(frozen=True, slots=True)
class MemberKeys:
    """What a member needs beside its share, all of its noise secret."""

    box: bytes = field(repr=False)
    """X25519, private: what others seal to it."""
    draw: bytes = field(repr=False)
    """Of what it recomputes, so that nobody else foresees it."""

    @property
    def box_public(self) -> bytes:
        return X25519PrivateKey.from_private_bytes(self.box).public_key().public_bytes_raw()


def derive_member_keys(noise: bytes) -> MemberKeys:
    """Of the noise secret; none tells another."""
    return MemberKeys(hash_domain("committee-box-key", noise), hash_domain("committee-draw-key", noise))


def load_member_keys(folder: Path, keys: FolderKeys) -> MemberKeys:
    """A finished ceremony's. Raises: WorkloadError naming the file, OSError."""
    return derive_member_keys(read_secret(folder / NOISE_FILE, keys.noise, NOISE_KIND))


def _build_header(terms: CeremonyTerms) -> bytes:
    numbers = (terms.members, terms.threshold, terms.place, SHARED_LEVELS)
    return _HEADER.pack(_MAGIC, terms.preset.encode("ascii"), *numbers, terms.ceremony)
