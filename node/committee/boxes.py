"""Bytes that only named members can read: X25519 with a fresh key, HKDF-SHA256, ChaCha20-Poly1305.

A box is bound to a context, its associated data: moved to another task, step, sender or recipient it does not
open. Every key is derived for one box alone, so nonces are zero. What goes to several members is encrypted
once, under a key that each of them gets in a box.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consensus.types import Hash32

KEY_BYTES = 32
TAG_BYTES = 16
_NONCE = bytes(12)
_DOMAIN = b"bmif committee box 1\0"


class BoxError(Exception):
    """A box that is not for this key and context, or damaged; or a key to which nothing can be sealed."""


@dataclass(frozen=True, slots=True)
class Box:
    ephemeral: Hash32
    """The X25519 key that was made for it."""
    sealed: bytes


@dataclass(frozen=True, slots=True)
class SharedBox:
    """One content for several members."""

    body: bytes
    boxes: tuple[Box, ...]
    """The body's key, in the members' order."""


def draw_private_key() -> bytes:
    """Of a member, for what is sealed to it."""
    return X25519PrivateKey.generate().private_bytes_raw()


def get_public_key(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def seal(public: bytes, data: bytes, context: bytes) -> Box:
    """Other bytes each time. Raises: BoxError on a key with which every exchange is zero."""
    private = X25519PrivateKey.generate()
    ephemeral = private.public_key().public_bytes_raw()
    key = _derive(private, public, ephemeral, public)
    return Box(Hash32(ephemeral), ChaCha20Poly1305(key).encrypt(_NONCE, data, context))


def open_box(private: bytes, box: Box, context: bytes) -> bytes:
    """Raises: BoxError; never says anything of what was found."""
    own = X25519PrivateKey.from_private_bytes(private)
    key = _derive(own, box.ephemeral, box.ephemeral, own.public_key().public_bytes_raw())
    return _decrypt(key, box.sealed, context)


def seal_shared(publics: Sequence[bytes], data: bytes, context: bytes) -> SharedBox:
    key = secrets.token_bytes(KEY_BYTES)
    body = ChaCha20Poly1305(key).encrypt(_NONCE, data, context)
    return SharedBox(body, tuple(seal(public, key, context + public) for public in publics))


def open_shared(private: bytes, place: int, shared: SharedBox, context: bytes) -> bytes:
    """As the member at `place`. Raises: BoxError."""
    if not 0 <= place < len(shared.boxes):
        raise BoxError(f"there is no box for place {place}")
    key = open_box(private, shared.boxes[place], context + get_public_key(private))
    if len(key) != KEY_BYTES:
        raise BoxError("the box holds no key")
    return _decrypt(key, shared.body, context)


def _derive(private: X25519PrivateKey, other: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    try:
        exchanged = private.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise BoxError("no key to exchange with") from None
    # Both keys are in the derivation: a box is of one exchange and one recipient, whatever is equal in it.
    return HKDF(SHA256(), KEY_BYTES, None, _DOMAIN + ephemeral + recipient).derive(exchanged)


def _decrypt(key: bytes, sealed: bytes, context: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, context)
    except InvalidTag:
        raise BoxError("is for another key or context, or damaged") from None
