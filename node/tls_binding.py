"""Binds a TLS key to an account: the account signs for it, and everybody can check that.

The statement is a URI among the certificate's alternative names, so that any authority that copies those of a
request can issue it. The authority alone can't make a certificate that speaks for an account, and whoever has
an account can't speak for another's: node id, organisation and TLS key are all under the signature.
"""

import re
from collections.abc import Sequence

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from consensus.crypto import SigningKey, sign, verify
from consensus.types import Address, Signature

TAG = "tls"
PREFIX = "urn:bmif:account:"
_STATEMENT = re.compile(r"urn:bmif:account:([0-9a-f]{64}):([0-9a-f]{128})")


class BindingError(ValueError):
    """A statement of an account does not hold."""


def build_statement(
    key: SigningKey, tls_key: CertificatePublicKeyTypes, node_id: str, organisation: str
) -> str:
    """The account's URI for a certificate of this TLS key and these names."""
    signature = sign(key, TAG, _build_message(tls_key, node_id, organisation))
    return f"{PREFIX}{key.address.hex()}:{signature.hex()}"


def read_account(
    uris: Sequence[str], tls_key: CertificatePublicKeyTypes, node_id: str, organisation: str
) -> Address | None:
    """The account that speaks through a certificate; None where no URI speaks of one.

    Raises: BindingError for a statement that is malformed, not alone, or not signed by its account.
    """
    statements = [uri for uri in uris if uri.startswith(PREFIX)]
    if not statements:
        return None
    found = _STATEMENT.fullmatch(statements[0])
    if len(statements) > 1 or found is None:
        raise BindingError("expected one statement of an account in its form")
    address, signature = (bytes.fromhex(part) for part in found.groups())
    try:
        message = _build_message(tls_key, node_id, organisation)
    except UnsupportedAlgorithm as error:
        raise BindingError(f"a key of an unknown kind: {error}") from error
    if not verify(Address(address), TAG, message, Signature(signature)):
        raise BindingError(f"account {address.hex()[:12]} did not sign for this key and these names")
    return Address(address)


def _build_message(tls_key: CertificatePublicKeyTypes, node_id: str, organisation: str) -> bytes:
    parts = (
        tls_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        node_id.encode(),
        organisation.encode(),
    )
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
