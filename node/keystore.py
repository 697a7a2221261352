"""Account keys on disk: sealed with a passphrase, or PKCS#8 PEM; mode 0600, never overwritten.

Whatever needs the account key gets it by `load_account_key`.
"""

from pathlib import Path

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from consensus.crypto import SigningKey
from consensus.types import Address
from node.keystore_files import (
    KeyFileError,
    read_private_file,
    replace_private_file,
    write_private_file,
)
from node.passphrase import Passphrase, Purpose, get_passphrase, take_environment
from workloads import sealed
from workloads.sealed import SealError

__all__ = [
    "KeyFileError",
    "Protection",
    "create_account_key",
    "get_tls_passphrase",
    "load_account_key",
    "open_tls_key",
    "read_address",
    "read_protection",
    "set_passphrase",
    "write_private_file",
]

ACCOUNT_KIND = "account-key"

TlsKey = EllipticCurvePrivateKey | RSAPrivateKey | Ed25519PrivateKey


def create_account_key(path: Path, passphrase: Passphrase | None = None) -> Address:
    """Make a fresh key in a new file and return its address; sealed where there is a passphrase."""
    key = Ed25519PrivateKey.generate()
    write_private_file(path, _encode_account_key(key, passphrase))
    return Address(key.public_key().public_bytes_raw())


def _encode_account_key(key: Ed25519PrivateKey, passphrase: Passphrase | None) -> bytes:
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    address = key.public_key().public_bytes_raw().hex()
    derived = sealed.derive_key(passphrase.reveal())
    return sealed.seal(key.private_bytes_raw(), derived, ACCOUNT_KIND, address)


def load_account_key(path: Path) -> SigningKey:
    """The key in the file; a passphrase comes from where `node.passphrase` finds it.

    Raises: KeyFileError naming the file, never its contents.
    """
    take_environment()
    return SigningKey(_open_account_key(path, None).private_bytes_raw())


def _open_account_key(path: Path, passphrase: Passphrase | None) -> Ed25519PrivateKey:
    data = read_private_file(path)
    if not sealed.is_sealed(data):
        return _load_plain(path, data)
    try:
        header = sealed.read_header(data)
        if header.kind != ACCOUNT_KIND:
            raise SealError(f"holds {header.kind}, not {ACCOUNT_KIND}")
        found = passphrase or get_passphrase(Purpose.NODE, str(path))
        seed = sealed.open_sealed(data, sealed.unlock(header, found.reveal()), ACCOUNT_KIND)
        key = Ed25519PrivateKey.from_private_bytes(seed)
    except SealError as error:
        raise KeyFileError(f"{path}: {error}") from error
    except ValueError as error:
        if isinstance(error, KeyFileError):
            raise
        raise KeyFileError(f"{path} holds no Ed25519 key") from None
    if key.public_key().public_bytes_raw().hex() != header.name:
        raise KeyFileError(f"{path} holds another key than that of the address it names")
    return key


def _load_plain(path: Path, data: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        # The last two: another kind of key than this library was built with, or one it can't set up.
        raise KeyFileError(f"{path} is neither sealed by `bmif keys` nor a plain PKCS#8 PEM key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is not an Ed25519 key")
    return key


def read_address(path: Path) -> Address:
    """The address of a key file, by its own word where it is sealed: no passphrase is needed.

    Raises: KeyFileError.
    """
    data = read_private_file(path)
    if not sealed.is_sealed(data):
        return Address(_load_plain(path, data).public_key().public_bytes_raw())
    try:
        header = sealed.read_header(data)
        address = bytes.fromhex(header.name)
    except (SealError, ValueError) as error:
        raise KeyFileError(f"{path}: {error}") from None
    if header.kind != ACCOUNT_KIND or len(address) != 32:
        raise KeyFileError(f"{path}: holds {header.kind}, not {ACCOUNT_KIND}")
    return Address(address)


# --- protecting what is there -----------------------------------------------------------------


class Protection:
    """How a key file is kept: a word for the operator."""

    PLAIN = "plain"
    SEALED = "sealed"
    PEM = "encrypted PEM"


def read_protection(path: Path) -> str:
    """One of `Protection`. Raises: KeyFileError."""
    data = read_private_file(path)
    if sealed.is_sealed(data):
        return Protection.SEALED
    return Protection.PEM if b"ENCRYPTED PRIVATE KEY" in data else Protection.PLAIN


def set_passphrase(
    path: Path, old: Passphrase | None, new: Passphrase | None, *, as_pem: bool = False
) -> None:
    """Write the same key again, under `new` or plain; the file is left as it was unless all goes well.

    Ed25519 keys are sealed; others, or all with `as_pem`, become PKCS#8 PEM, which TLS libraries read.
    The new bytes are opened again and compared before they take the old ones' place. Raises: KeyFileError.
    """
    if read_protection(path) == Protection.SEALED:
        key: TlsKey = _open_account_key(path, old)
    else:
        key = open_tls_key(path, old)
    if isinstance(key, Ed25519PrivateKey) and not as_pem:
        data = _encode_account_key(key, new)
    else:
        how: KeySerializationEncryption = (
            NoEncryption() if new is None else BestAvailableEncryption(new.reveal())
        )
        data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)

    def check(written: Path) -> None:
        is_sealed = sealed.is_sealed(data)
        again = _open_account_key(written, new) if is_sealed else open_tls_key(written, new)
        if _get_raw(again) != _get_raw(key):
            raise KeyFileError(f"{written} holds another key than was written; {path} is left as it was")

    replace_private_file(path, data, check)


def _get_raw(key: TlsKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def open_tls_key(path: Path, passphrase: Passphrase | None = None) -> TlsKey:
    """A private key in PEM; its passphrase, if it has one, as given or found. Raises: KeyFileError."""
    data = read_private_file(path)
    password: bytes | None = None
    if b"ENCRYPTED PRIVATE KEY" in data:
        password = (passphrase or get_passphrase(Purpose.NODE, str(path))).reveal()
    try:
        key = load_pem_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        raise KeyFileError(f"{path} is no PEM key, or has another passphrase") from error
    if not isinstance(key, TlsKey):
        raise KeyFileError(f"{path} is neither an elliptic-curve, an RSA nor an Ed25519 key")
    return key


def get_tls_passphrase() -> bytes:
    """For `SSLContext.load_cert_chain`, which asks only if the key is encrypted. Raises: KeyFileError."""
    return get_passphrase(Purpose.NODE, "the TLS key").reveal()
