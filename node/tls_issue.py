"""Makes authorities and node certificates: for testnets, and for `bmif tls`."""

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from consensus.crypto import SigningKey
from node.tls import MAX_NAME_LENGTH, X509_ERRORS, IssuedCertificate, TlsError, check_name
from node.tls_binding import build_statement

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 730
USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def make_authority(name: str, *, now: datetime.datetime | None = None) -> IssuedCertificate:
    """A new consortium authority: a self-signed certificate that can issue node certificates only."""
    now = now or datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = build_name(f"{name} authority"[:MAX_NAME_LENGTH], name[:MAX_NAME_LENGTH])
    builder = (
        _begin(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_build_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    return IssuedCertificate(certificate.public_bytes(serialization.Encoding.PEM), encode_key(key))


def make_certificate(
    authority: IssuedCertificate,
    node_id: str,
    organisation: str,
    hosts: Sequence[str],
    *,
    account: SigningKey | None = None,
    now: datetime.datetime | None = None,
) -> IssuedCertificate:
    """A node's certificate with a fresh key, for serving and for connecting, valid at the given DNS names and
    IP addresses; bound to the account, if one is given.

    Raises `TlsError` for a name or host that a certificate can't hold.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names = build_alternatives(key.public_key(), node_id, organisation, hosts, account)
    pem = issue(authority, build_name(node_id, organisation), key.public_key(), names, now=now)
    return IssuedCertificate(pem, encode_key(key))


def issue(
    authority: IssuedCertificate,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    names: x509.SubjectAlternativeName,
    *,
    days: int = CERTIFICATE_DAYS,
    now: datetime.datetime | None = None,
    usages: Sequence[x509.ObjectIdentifier] = USAGES,
) -> bytes:
    """A node's certificate, PEM. Raises: TlsError if the authority can't sign it."""
    issuer, issuer_key = load_authority(authority)
    builder = (
        _begin(subject, issuer.subject, public_key, now or datetime.datetime.now(datetime.UTC), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_build_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def load_authority(authority: IssuedCertificate) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Certificate and key of an authority. Raises: TlsError if they are none, or not of each other."""
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate_pem)
        key = serialization.load_pem_private_key(authority.key_pem, None)
    except X509_ERRORS as error:
        raise TlsError(f"the authority can't be read, or its key has a passphrase: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TlsError("the authority's key is not an elliptic-curve key")
    if certificate.public_key() != key.public_key():
        raise TlsError("the authority's key does not belong to its certificate")
    return certificate, key


def build_name(common_name: str, organisation: str) -> x509.Name:
    """A subject. Raises: TlsError for names that it can't hold."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, check_name("node id", common_name)),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, check_name("organisation", organisation)),
        ]
    )


def build_alternatives(
    public_key: ec.EllipticCurvePublicKey,
    node_id: str,
    organisation: str,
    hosts: Sequence[str],
    account: SigningKey | None,
) -> x509.SubjectAlternativeName:
    """Where a node is reached, and the statement of its account. Raises: TlsError for what is no host."""
    build_name(node_id, organisation)  # names that no certificate holds are refused before anything is signed
    if not hosts:
        raise TlsError("a node certificate needs at least one DNS name or IP address")
    names = [_build_host(host) for host in hosts]
    if account is not None:
        statement = build_statement(account, public_key, node_id, organisation)
        names.append(x509.UniformResourceIdentifier(statement))
    return x509.SubjectAlternativeName(names)


def encode_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 PEM without passphrase: a node starts unattended, its mode 0600 protects the file."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
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
