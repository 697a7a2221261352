"""Whom a node trusts: the consortium's authorities, less what they have revoked.

OpenSSL checks chains, dates and usages. Revocation is checked here, and not by OpenSSL, for two reasons: a
list that was not renewed in time would cut every link of the network at once, and an open link must end too
when its certificate is revoked.
"""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from node.tls import X509_ERRORS, PeerCertificate, TlsError, UntrustedPeer

MAX_LIST_BYTES = 16 * 1024 * 1024
MAX_AUTHORITIES = 64
MAX_DEPTH = 8
_END = b"-----END X509 CRL-----"
_KEYS = (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, ed448.Ed448PublicKey, rsa.RSAPublicKey)


@dataclass(frozen=True, slots=True)
class Trust:
    """Authorities by name, and what was revoked."""

    issuers: frozenset[bytes]
    """Names (DER) of authorities whose node certificates are taken."""
    revoked: frozenset[tuple[bytes, int]]
    """Name of the authority, and serial number."""
    expires: datetime.datetime
    """When the first of the authorities expires."""
    renewal: datetime.datetime | None = None
    """When the first of the lists says that there will be a newer one."""

    def check(self, certificate: PeerCertificate, now: datetime.datetime) -> None:
        """Raises: UntrustedPeer for a certificate that is revoked or expired, or of an authority that is."""
        who = certificate.identity.node_id
        if (certificate.issuer, certificate.serial) in self.revoked:
            raise UntrustedPeer(f"the certificate {certificate.serial:x} of {who} is revoked")
        if certificate.issuer not in self.issuers:
            raise UntrustedPeer(f"the authority that issued the certificate of {who} is not among ours")
        if now > certificate.expires:  # of a link that has outlived it; handshakes check dates themselves
            raise UntrustedPeer(f"the certificate of {who} has expired")


def build_trust(authority_pem: bytes, revoked_pem: bytes | None) -> Trust:
    """What the files of authorities and of revoked certificates say.

    Raises: TlsError if one is malformed, or a list is not signed by one of the authorities.
    """
    try:
        authorities = x509.load_pem_x509_certificates(authority_pem)
        lists = [] if revoked_pem is None else read_lists(revoked_pem)
        if len(authorities) > MAX_AUTHORITIES:
            raise TlsError(f"{len(authorities)} authorities, more than {MAX_AUTHORITIES}")
        for found in lists:
            _check_list(found, authorities)
        revoked = frozenset(
            (found.issuer.public_bytes(), entry.serial_number) for found in lists for entry in found
        )
        standing = [a for a in authorities if (a.issuer.public_bytes(), a.serial_number) not in revoked]
        if not standing:
            raise TlsError("the file of authorities holds none that is not revoked")
        return Trust(
            frozenset(authority.subject.public_bytes() for authority in standing),
            revoked,
            min(authority.not_valid_after_utc for authority in standing),
            min(_get_renewals(lists), default=None),
        )
    except (*X509_ERRORS, UnsupportedAlgorithm) as error:
        raise TlsError(f"authorities or revoked certificates can't be read: {error}") from error


def read_lists(pem: bytes) -> list[x509.CertificateRevocationList]:
    """The lists in a PEM file, at least one. Raises: TlsError; what the library raises."""
    if len(pem) > MAX_LIST_BYTES:
        raise TlsError(f"the lists of revoked certificates have more than {MAX_LIST_BYTES} bytes")
    *parts, rest = pem.split(_END)
    if not parts or rest.strip():
        raise TlsError("the file of revoked certificates holds no list in PEM, or one that is cut off")
    return [x509.load_pem_x509_crl(part + _END) for part in parts]


def _check_list(found: x509.CertificateRevocationList, authorities: Iterable[x509.Certificate]) -> None:
    for extension in found.extensions:
        if extension.critical:
            # Partial and indirect lists: to read one as a whole list would be wrong.
            raise TlsError(
                f"a list of revoked certificates needs {extension.oid.dotted_string}, unknown here"
            )
    for authority in authorities:
        key = authority.public_key()
        if authority.subject == found.issuer and isinstance(key, _KEYS) and found.is_signature_valid(key):
            return
    raise TlsError("a list of revoked certificates is not signed by one of the authorities")


def _get_renewals(lists: Iterable[x509.CertificateRevocationList]) -> list[datetime.datetime]:
    return [due for found in lists if (due := found.next_update_utc) is not None]


def find_root(chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]) -> x509.Certificate:
    """The authority, signed by itself, to which the first of a chain leads.

    Raises: TlsError if it leads to none.
    """
    current, candidates = chain[0], [*chain[1:], *authorities]
    for _ in range(MAX_DEPTH):
        issuer = next((c for c in candidates if _is_issued_by(current, c)), None)
        if issuer is None:
            break
        if issuer in authorities and _is_issued_by(issuer, issuer):
            return issuer
        current = issuer
    raise TlsError(f"{current.issuer.rfc4514_string()} is not among the authorities, or did not sign it")


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, *X509_ERRORS):
        return False
    return True
