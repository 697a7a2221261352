"""Secrets sealed for disk: one line of JSON that says how, then ChaCha20-Poly1305 of the bytes.

    {"cipher":"chacha20-poly1305","format":"bmif-sealed","holds":[],"kdf":{...},"kind":"account-key",
     "name":"<address>","nonce":"...","version":1}\\n<ciphertext and tag>

The whole line is associated data, so none of it can be changed without the key. The key comes from a
passphrase by scrypt, or is drawn at random and kept elsewhere (`node.escrow`). Files of one folder may share
a key; each has a nonce of its own.
"""

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from workloads.base import WorkloadError

FORMAT: Final = "bmif-sealed"
CIPHER: Final = "chacha20-poly1305"
VERSION: Final = 1
SECRET_KIND: Final = "custody-secret"
"""A task's or federation's secret key."""
NOISE_KIND: Final = "custody-noise"
"""What the noise of its openings is drawn from."""
START: Final = b'{"cipher":'
KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_PASSPHRASE_BYTES: Final = 1024
_WRONG: Final = "another passphrase or key is needed, or it is damaged"
MAX_MEMORY_BYTES: Final = 1024**3
"""Of scrypt (128 · n · r): a header that asks for more is refused before anything is allotted."""
MAX_WORK: Final = 2**24
"""Of scrypt, n · r · p: 16 times what is written here, some seconds."""


class SealError(WorkloadError):
    """Sealed bytes are damaged, of another kind, or not opened by this passphrase."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters of scrypt."""

    n: int
    """A power of two."""
    r: int
    p: int

    def check(self) -> None:
        """Raises SealError beyond the bounds."""
        if self.n < 2 or self.n & (self.n - 1) or self.r < 1 or self.p < 1:
            raise SealError("scrypt's n must be a power of two, r and p at least 1")
        if 128 * self.n * self.r > MAX_MEMORY_BYTES or self.n * self.r * self.p > MAX_WORK:
            raise SealError(
                f"scrypt with n={self.n}, r={self.r}, p={self.p} costs more than is ever written here"
            )


DEFAULT_COST: Final = Cost(2**17, 8, 1)
"""128 MiB and about half a second for each guess."""


@dataclass(frozen=True, slots=True)
class SealingKey:
    """32 secret bytes, and what they were derived by; drawn at random where there is no salt."""

    secret: bytes = field(repr=False)
    salt: bytes = b""
    cost: Cost = DEFAULT_COST


@dataclass(frozen=True, slots=True)
class FolderKeys:
    """What opens the two secrets of a task or federation; None for one that is not sealed."""

    secret: SealingKey | None = None
    noise: SealingKey | None = None


PLAIN: Final = FolderKeys()
"""For secrets that are not sealed."""


@dataclass(frozen=True, slots=True)
class SealedHeader:
    """What a sealed file says in clear."""

    kind: str
    name: str
    """Whose secret: an address, a public key's root."""
    nonce: bytes
    salt: bytes
    """Empty: the key is no passphrase's."""
    cost: Cost
    holds: tuple[str, ...] = ()
    """What is in it, for kinds that hold several things."""


def derive_key(passphrase: bytes, salt: bytes | None = None, cost: Cost | None = None) -> SealingKey:
    """The key of a passphrase; with a fresh salt where none is given.

    Raises: SealError for costs out of bounds or a passphrase that is none.
    """
    cost = cost or DEFAULT_COST
    cost.check()
    if not 0 < len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise SealError(f"a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes")
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    if len(salt) != SALT_BYTES:
        raise SealError(f"a salt has {SALT_BYTES} bytes")
    found = Scrypt(salt=salt, length=KEY_BYTES, n=cost.n, r=cost.r, p=cost.p).derive(passphrase)
    return SealingKey(found, salt, cost)


def draw_key() -> SealingKey:
    """A random key, of no passphrase."""
    return SealingKey(secrets.token_bytes(KEY_BYTES))


def seal(data: bytes, key: SealingKey, kind: str, name: str, holds: tuple[str, ...] = ()) -> bytes:
    """A sealed file's bytes; sealed twice, the same data gives other bytes."""
    header = SealedHeader(kind, name, secrets.token_bytes(NONCE_BYTES), key.salt, key.cost, holds)
    line = _encode_header(header)
    if len(line) > MAX_HEADER_BYTES:
        raise SealError("too much is named in a sealed file's header")
    return line + ChaCha20Poly1305(key.secret).encrypt(header.nonce, data, line)


def is_sealed(data: bytes) -> bool:
    """Whether these bytes, or a file's first ones, begin as a sealed file does."""
    return data.startswith(START)


def read_start(descriptor: int) -> bytes:
    """The start of an open file: enough for the header of a sealed one; of a plain one only what shows that.

    So nothing secret comes into this process. Raises: OSError.
    """
    data, wanted = b"", len(START)
    while piece := os.read(descriptor, wanted - len(data)):
        data += piece
        if is_sealed(data):
            wanted = MAX_HEADER_BYTES + TAG_BYTES
    return data


def read_header(data: bytes) -> SealedHeader:
    """What a sealed file says in clear; true only once it is opened. Raises: SealError."""
    return _split(data)[0]


def open_sealed(data: bytes, key: SealingKey, kind: str) -> bytes:
    """The sealed bytes. Raises: SealError; never says anything of what was found."""
    header, line, body = _match(data, key, kind)
    try:
        return ChaCha20Poly1305(key.secret).decrypt(header.nonce, body, line)
    except InvalidTag:
        raise SealError(_WRONG) from None


def check_sealed(data: bytes, key: SealingKey, kind: str) -> None:
    """Raises: SealError if `open_sealed` would. Leaves nothing of what is sealed in this process's memory."""
    header, line, body = _match(data, key, kind)
    opened = bytearray(len(body) - TAG_BYTES)
    try:
        ChaCha20Poly1305(key.secret).decrypt_into(header.nonce, body, line, opened)
    except InvalidTag:
        raise SealError(_WRONG) from None
    finally:
        opened[:] = bytes(len(opened))


def _match(data: bytes, key: SealingKey, kind: str) -> tuple[SealedHeader, bytes, bytes]:
    header, line, body = _split(data)
    if header.kind != kind:
        raise SealError(f"holds {header.kind}, not {kind}")
    if header.salt != key.salt or (header.salt and header.cost != key.cost):
        raise SealError("is sealed with another key")
    return header, line, body


def unlock(header: SealedHeader, passphrase: bytes) -> SealingKey:
    """The key that the header's file was sealed with, if this is its passphrase. Raises: SealError."""
    if not header.salt:
        raise SealError("is sealed with a key of shares, not with a passphrase")
    return derive_key(passphrase, header.salt, header.cost)


def read_secret(path: Path, key: SealingKey | None, kind: str) -> bytes:
    """The bytes of a secret's file, plain or sealed. Raises: WorkloadError naming the file, OSError."""
    data = path.read_bytes()
    if not is_sealed(data):
        return data
    if key is None:
        raise SealError(f"{path}: needs its passphrase")
    try:
        return open_sealed(data, key, kind)
    except SealError as error:
        raise SealError(f"{path}: {error}") from None


def write_secret(path: Path, data: bytes, key: SealingKey | None, kind: str) -> None:
    """Owner-only from the first byte, on disk, whole or not at all; sealed where there is a key."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data if key is None else seal(data, key, kind, ""))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _encode_header(header: SealedHeader) -> bytes:
    kdf: dict[str, int | str] = {"name": "none"}
    if header.salt:
        cost = header.cost
        kdf = {"name": "scrypt", "n": cost.n, "r": cost.r, "p": cost.p, "salt": header.salt.hex()}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "cipher": CIPHER,
        "kdf": kdf,
        "kind": header.kind,
        "name": header.name,
        "nonce": header.nonce.hex(),
        "holds": list(header.holds),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def _split(data: bytes) -> tuple[SealedHeader, bytes, bytes]:
    """Header, its line, ciphertext. The one form that this header has is the only one taken."""
    end = data.find(b"\n", 0, MAX_HEADER_BYTES)
    if not is_sealed(data) or end < 0:
        raise SealError("is no sealed file")
    line, body = data[: end + 1], data[end + 1 :]
    if len(body) < TAG_BYTES:
        raise SealError("is cut short")
    try:
        document: object = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        raise SealError("has a damaged header") from None
    if not isinstance(document, dict):
        raise SealError("has a damaged header")
    if document.get("version") != VERSION:
        raise SealError("is of another version of the format; newer software may read it")
    header = _read(document)
    if _encode_header(header) != line:
        raise SealError("has a damaged header")
    header.cost.check()
    return header, line, body


def _read(document: dict[str, object]) -> SealedHeader:
    """Fields of the right types; that nothing else is there, the caller sees by encoding it again."""
    kdf, kind, name, holds = (document.get(field) for field in ("kdf", "kind", "name", "holds"))
    if not (isinstance(kdf, dict) and isinstance(kind, str) and isinstance(name, str)):
        raise SealError("has a damaged header")
    if not (isinstance(holds, list) and all(isinstance(item, str) for item in holds)):
        raise SealError("has a damaged header")
    nonce, salt, cost = _read_hex(document.get("nonce"), NONCE_BYTES), b"", DEFAULT_COST
    if kdf.get("name") == "scrypt":
        n, r, p = (_read_number(kdf.get(field)) for field in ("n", "r", "p"))
        salt, cost = _read_hex(kdf.get("salt"), SALT_BYTES), Cost(n, r, p)
    return SealedHeader(kind, name, nonce, salt, cost, tuple(holds))


def _read_number(value: object) -> int:
    if type(value) is not int or not 0 < value < 2**32:
        raise SealError("has a damaged header")
    return value


def _read_hex(value: object, length: int) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * length:
        raise SealError("has a damaged header")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise SealError("has a damaged header") from None
