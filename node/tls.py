"""Mutual TLS under the consortium's authority: who may connect at all, and as whom.

A node is known by its certificate: the common name is its node id, the organisation its organisation. Only
certificates of the consortium's authority are accepted, in both directions, by TLS 1.3.
"""

import datetime
import ipaddress
import os
import ssl
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 730
MAX_NAME_LENGTH = 64
"""Of a common name and of an organisation (RFC 5280 upper bounds)."""


class TlsError(Exception):
    """Keys or certificates can't be made or loaded."""


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who is at the other end, as its certificate says."""

    node_id: str
    organisation: str


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate with its private key, both PEM. Write the key with mode 0600."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a node's TLS material is."""

    certificate: Path
    key: Path
    authority: Path


def make_authority(name: str, *, now: datetime.datetime | None = None) -> IssuedCertificate:
    """A new consortium authority: a self-signed certificate that can issue node certificates only."""
    now = now or datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _build_name(f"{name} authority"[:MAX_NAME_LENGTH], name[:MAX_NAME_LENGTH])
    builder = (
        _begin(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_build_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _sign(builder, key, key)


def make_certificate(
    authority: IssuedCertificate,
    node_id: str,
    organisation: str,
    hosts: Sequence[str],
    *,
    now: datetime.datetime | None = None,
) -> IssuedCertificate:
    """A node's certificate, for serving and for connecting, valid at the given DNS names and IP addresses.

    Raises `TlsError` for a name or host that a certificate can't hold.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    for what, value in (("node id", node_id), ("organisation", organisation)):
        if not 0 < len(value) <= MAX_NAME_LENGTH or not value.isprintable():
            raise TlsError(
                f"Expected a {what} of 1 to {MAX_NAME_LENGTH} printable characters. Got {value!r}."
            )
    if not hosts:
        raise TlsError("a node certificate needs at least one DNS name or IP address")
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem)
    issuer_key = serialization.load_pem_private_key(authority.key_pem, None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise TlsError("the authority's key is not an elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _begin(_build_name(node_id, organisation), issuer.subject, key.public_key(), now, CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_build_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([_build_host(host) for host in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _sign(builder, key, issuer_key)


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


def build_server_context(files: TlsFiles) -> ssl.SSLContext:
    """A listener's context: refuses clients without a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, files)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def build_client_context(files: TlsFiles, on_identity: Callable[[PeerIdentity], None]) -> ssl.SSLContext:
    """A connector's context: checks the server's certificate and name, and tells who it is.

    `on_identity` is called after each handshake, before any data flows; `ssl.SSLError` raised by it
    ends the connection.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, files)

    class IdentifiedSSLObject(ssl.SSLObject):
        """Reads the peer's certificate where the handshake ends: HTTP clients don't hand it out."""

        def do_handshake(self) -> None:
            super().do_handshake()
            on_identity(get_identity(self.getpeercert()))

    context.sslobject_class = IdentifiedSSLObject
    return context


def get_identity(certificate: Mapping[str, object] | None) -> PeerIdentity:
    """The identity in what `SSLObject.getpeercert()` returned.

    Raises `ssl.SSLError` if the names are missing.
    """
    names: dict[str, str] = {}
    subject = (certificate or {}).get("subject", ())
    if isinstance(subject, tuple):
        names = {key: value for relative in subject for key, value in relative}
    node_id, organisation = names.get("commonName"), names.get("organizationName")
    if not node_id or not organisation:
        raise ssl.SSLError("the peer's certificate names no node id or no organisation")
    return PeerIdentity(node_id, organisation)


def load_identity(files: TlsFiles) -> PeerIdentity:
    """The identity in a node's own certificate."""
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise TlsError(f"the certificate {files.certificate} can't be read: {error}") from error
    values = [
        attributes[0].value if (attributes := certificate.subject.get_attributes_for_oid(oid)) else ""
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    ]
    return PeerIdentity(str(values[0]), str(values[1]))


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        mode = stat.S_IMODE(files.key.stat().st_mode)
        if mode & 0o077:
            raise TlsError(f"the key {files.key} is open to others (mode {mode:o}): chmod 600 it")
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.authority)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"TLS files beside {files.key} can't be loaded: {error}") from error


def _build_name(common_name: str, organisation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
        ]
    )


def _build_host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise TlsError(f"{host!r} is neither a DNS name nor an IP address") from error


def _build_key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # A day back: the consortium's clocks need not agree to the minute.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _sign(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
) -> IssuedCertificate:
    certificate = builder.sign(issuer_key, hashes.SHA256())
    return IssuedCertificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
