"""Mutual TLS under the consortium's authority: who may connect at all, and as whom.

A node is known by its certificate: the common name is its node id, the organisation its organisation, and a
statement signed by the node's account (`node.tls_binding`) names the account. Only certificates of the
consortium's authority are accepted, in both directions, by TLS 1.3.
"""

import datetime
import os
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from consensus.types import Address
from node.keystore import KeyFileError, get_tls_passphrase
from node.tls_binding import BindingError, read_account

MAX_NAME_LENGTH = 64
"""Of a common name and of an organisation (RFC 5280 upper bounds)."""
MAX_CERTIFICATE_BYTES = 16 * 1024
X509_ERRORS = (ValueError, TypeError, OverflowError, x509.InvalidVersion, x509.DuplicateExtension)
"""What reading a certificate raises, besides what is not supported."""


class TlsError(Exception):
    """Keys or certificates can't be made or loaded."""


class UntrustedPeer(ssl.SSLError):
    """A certificate of the authority that is not for us all the same; ends the handshake."""

    def __init__(self, reason: str) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, reason)


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who is at the other end, as its certificate says."""

    node_id: str
    organisation: str
    account: Address | None = None
    """The account that signed for this certificate's key; None where none did."""


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a certificate says, beyond what the handshake itself has checked."""

    identity: PeerIdentity
    issuer: bytes
    """Name of the authority that signed it, DER."""
    serial: int
    begins: datetime.datetime
    expires: datetime.datetime


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate with its private key, both PEM. Write the key with mode 0600."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a node's TLS material is."""

    certificate: Path
    """PEM; certificates of intermediate authorities may follow the node's own."""
    key: Path
    authority: Path
    """PEM of the consortium's authority, and of its intermediate ones."""
    revoked: Path | None = None
    """PEM of the authorities' lists of revoked certificates."""


def save_certificate(files: TlsFiles, issued: IssuedCertificate, authority_pem: bytes) -> None:
    """Write a node's material; the key file is made with mode 0600 and never overwritten."""
    try:
        descriptor = os.open(files.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise TlsError(f"{files.key} exists already") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(issued.key_pem)
    files.certificate.write_bytes(issued.certificate_pem)
    files.authority.write_bytes(authority_pem)


# --- contexts ---------------------------------------------------------------------------------


def build_server_context(files: TlsFiles) -> ssl.SSLContext:
    """A listener's context: refuses clients without a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, files)
    context.verify_mode = ssl.CERT_REQUIRED
    # Every connection shows its certificate anew: a resumed session would show one that was revoked since.
    context.num_tickets = 0
    return context


def build_client_context(
    files: TlsFiles, on_certificate: Callable[[PeerCertificate], object]
) -> ssl.SSLContext:
    """A connector's context: checks the server's certificate and name, and tells who it is.

    `on_certificate` is called after each handshake, before any data flows; `ssl.SSLError` raised by it
    ends the connection.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, files)

    class IdentifiedSSLObject(ssl.SSLObject):
        """Reads the peer's certificate where the handshake ends: HTTP clients don't hand it out."""

        def do_handshake(self) -> None:
            super().do_handshake()
            on_certificate(get_certificate(self.getpeercert(binary_form=True)))

    context.sslobject_class = IdentifiedSSLObject
    return context


def get_certificate(data: bytes | None) -> PeerCertificate:
    """What the peer's certificate says (`getpeercert(binary_form=True)`).

    Raises: ssl.SSLError if it is none, or is not one of a node.
    """
    try:
        return read_certificate(data or b"")
    except TlsError as error:
        raise UntrustedPeer(str(error)) from error


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        check_key_mode(files.key)
        context.load_cert_chain(files.certificate, files.key, get_tls_passphrase)
        context.load_verify_locations(files.authority)
    except (OSError, ssl.SSLError, KeyFileError) as error:
        raise TlsError(f"TLS files beside {files.key} can't be loaded: {error}") from error


def check_key_mode(path: Path) -> None:
    """Raises: TlsError where others than the owner may read the key; OSError."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise TlsError(f"the key {path} is open to others (mode {mode:o}): chmod 600 it")


# --- reading certificates ---------------------------------------------------------------------


def read_certificate(data: bytes) -> PeerCertificate:
    """What a certificate (DER) says of a node.

    Raises: TlsError if it is none, names no node id or organisation, or a statement of an account that does
    not hold.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise TlsError(f"a certificate has {len(data)} bytes, more than {MAX_CERTIFICATE_BYTES}")
    try:
        return _describe(x509.load_der_x509_certificate(data))
    except X509_ERRORS as error:
        raise TlsError(f"the certificate can't be read: {error}") from error


def load_certificate(path: Path) -> PeerCertificate:
    """The first certificate of a PEM file. Raises: TlsError."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        return read_certificate(certificate.public_bytes(serialization.Encoding.DER))
    except OSError as error:
        raise TlsError(f"the certificate {path} can't be read: {error}") from error
    except X509_ERRORS as error:
        raise TlsError(f"{path} is no certificate in PEM: {error}") from error
    except TlsError as error:
        raise TlsError(f"{path}: {error}") from error


def load_identity(files: TlsFiles) -> PeerIdentity:
    """The identity in a node's own certificate."""
    return load_certificate(files.certificate).identity


def read_names(name: x509.Name) -> tuple[str, str]:
    """Node id and organisation of a subject. Raises: TlsError unless it has exactly one of each."""
    found = []
    for what, oid in (("node id", NameOID.COMMON_NAME), ("organisation", NameOID.ORGANIZATION_NAME)):
        values = name.get_attributes_for_oid(oid)
        if len(values) != 1:
            raise TlsError(f"the certificate names {len(values) or 'no'} {what}, one is needed")
        found.append(check_name(what, str(values[0].value)))
    return found[0], found[1]


def check_name(what: str, value: str) -> str:
    """The name, if a certificate can hold it. Raises: TlsError."""
    if not 0 < len(value) <= MAX_NAME_LENGTH or not value.isprintable():
        raise TlsError(f"Expected a {what} of 1 to {MAX_NAME_LENGTH} printable characters. Got {value!r}.")
    return value


def _describe(certificate: x509.Certificate) -> PeerCertificate:
    node_id, organisation = read_names(certificate.subject)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    try:
        account = read_account(uris, certificate.public_key(), node_id, organisation)
    except BindingError as error:
        raise TlsError(f"the certificate of {node_id}: {error}") from error
    return PeerCertificate(
        PeerIdentity(node_id, organisation, account),
        certificate.issuer.public_bytes(),
        certificate.serial_number,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )
