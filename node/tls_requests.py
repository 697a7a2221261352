"""Certificate requests of nodes, and the authority's side: signing, its register, and what it has revoked."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, ValidationError

from consensus.crypto import SigningKey
from node.keystore import write_private_file
from node.tls import X509_ERRORS, IssuedCertificate, PeerIdentity, TlsError, read_names
from node.tls_binding import PREFIX, BindingError, read_account
from node.tls_issue import build_alternatives, build_name, encode_key, issue, load_authority, make_authority

MAX_REQUEST_BYTES = 16 * 1024
MAX_HOSTS = 64


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """What a node asks the authority to sign; signed by the TLS key and by the node's account."""

    identity: PeerIdentity
    hosts: tuple[str, ...]
    subject: x509.Name
    names: x509.SubjectAlternativeName
    public_key: ec.EllipticCurvePublicKey


def make_request(
    account: SigningKey, node_id: str, organisation: str, hosts: Sequence[str]
) -> tuple[bytes, bytes]:
    """A request and its fresh private key, both PEM. Raises: TlsError for names that none can hold."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = build_alternatives(key.public_key(), node_id, organisation, hosts, account)
    builder = x509.CertificateSigningRequestBuilder(build_name(node_id, organisation))
    request = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM), encode_key(key)


def read_request(pem: bytes) -> CertificateRequest:
    """A request that both of its keys have signed; anything in it but names, hosts and account is ignored.

    Raises: TlsError.
    """
    if len(pem) > MAX_REQUEST_BYTES:
        raise TlsError(f"a request has at most {MAX_REQUEST_BYTES} bytes, this has {len(pem)}")
    try:
        request = x509.load_pem_x509_csr(pem)
        is_signed = request.is_signature_valid
        key = request.public_key()
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (*X509_ERRORS, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise TlsError(f"this is no request of `bmif tls request`: {error}") from error
    if not is_signed:
        raise TlsError("the request is not signed by its own key: make it again")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
        raise TlsError("expected an elliptic-curve key of at least 256 bits: `bmif tls request` makes one")
    node_id, organisation = read_names(request.subject)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    try:
        account = read_account(uris, key, node_id, organisation)
    except BindingError as error:
        raise TlsError(f"the request of {node_id}: {error}") from error
    if account is None:
        raise TlsError(f"the request of {node_id} is not signed by an account: `bmif tls request` makes such")
    return CertificateRequest(
        PeerIdentity(node_id, organisation, account), _read_hosts(names), request.subject, names, key
    )


def _read_hosts(names: x509.SubjectAlternativeName) -> tuple[str, ...]:
    hosts = []
    for name in names:
        if isinstance(name, x509.DNSName | x509.IPAddress):
            hosts.append(str(name.value))
        elif not isinstance(name, x509.UniformResourceIdentifier) or not name.value.startswith(PREFIX):
            raise TlsError("a request asks for DNS names and IP addresses only, this one for something else")
    if not 0 < len(hosts) <= MAX_HOSTS:
        raise TlsError(f"a request asks for 1 to {MAX_HOSTS} hosts, this one for {len(hosts)}")
    return tuple(hosts)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    serial: str
    node_id: str
    organisation: str
    account: str
    expires: datetime.datetime
    revoked: datetime.datetime | None = None


class _Register(BaseModel):
    """What an authority has issued and revoked."""

    model_config = ConfigDict(extra="forbid")

    issued: list[_Entry] = []
    lists: int = 0
    """How many lists of revoked certificates were made."""


class Authority:
    """The authority's directory: certificate, key, register, and the newest list of revoked certificates."""

    def __init__(self, directory: Path) -> None:
        """Raises: TlsError, OSError."""
        self.directory = directory
        self.certificate_path = directory / "ca.pem"
        self.list_path = directory / "revoked.pem"
        self._register_path = directory / "issued.json"
        try:
            self.issued = IssuedCertificate(
                self.certificate_path.read_bytes(), (directory / "ca.key").read_bytes()
            )
        except FileNotFoundError as error:
            remedy = "put the authority's ca.pem and ca.key there, or make one by `bmif tls authority`"
            raise TlsError(f"{error.filename} is not there: {remedy}") from error
        self.certificate, self._key = load_authority(self.issued)
        self._register = self._load()

    @classmethod
    def make(cls, directory: Path, name: str) -> "Authority":
        """A new authority in a directory without one. Raises: KeyFileError if there is one."""
        made = make_authority(name)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private_file(directory / "ca.key", made.key_pem)
        (directory / "ca.pem").write_bytes(made.certificate_pem)
        return cls(directory)

    def sign(
        self, request: CertificateRequest, organisation: str, days: int, now: datetime.datetime
    ) -> bytes:
        """The certificate, PEM, noted in the register. `organisation` is who handed the request in, as the
        authority's operator knows it.

        Raises: TlsError where the request names another organisation, or its node id is another account's.
        """
        identity = request.identity
        account = "" if identity.account is None else identity.account.hex()
        if identity.organisation != organisation:
            raise TlsError(
                f"the request says {identity.organisation}, not {organisation}: have them make it again, or "
                "find out who handed it in"
            )
        for entry in self._register.issued:
            if entry.revoked is not None or entry.expires < now:
                continue
            if entry.node_id == identity.node_id and entry.account != account:
                raise TlsError(
                    f"node id {entry.node_id} is in use by account {entry.account[:12]} of "
                    f"{entry.organisation}: choose another, or revoke {entry.serial}"
                )
            if entry.account == account and entry.organisation != organisation:
                raise TlsError(
                    f"account {account[:12]} has a certificate as {entry.organisation}: revoke "
                    f"{entry.serial} first"
                )
        if now + datetime.timedelta(days=days) > self.certificate.not_valid_after_utc:
            end = self.certificate.not_valid_after_utc.date()
            raise TlsError(f"the authority itself expires on {end}: give fewer --days, or renew it")
        pem = issue(self.issued, request.subject, request.public_key, request.names, days=days, now=now)
        made = x509.load_pem_x509_certificate(pem)
        self._register.issued.append(
            _Entry(
                serial=f"{made.serial_number:x}",
                node_id=identity.node_id,
                organisation=organisation,
                account=account,
                expires=made.not_valid_after_utc,
            )
        )
        self._save()
        return pem

    def revoke(self, serials: Sequence[int], days: int, now: datetime.datetime) -> bytes:
        """The new list, PEM, of everything revoked so far; valid for so many days. Without serials: a renewed
        list. Certificates that are not in the register can be revoked too."""
        entries = {entry.serial: entry for entry in self._register.issued}
        for serial in serials:
            entry = entries.get(f"{serial:x}")
            if entry is None:
                entry = _Entry(
                    serial=f"{serial:x}", node_id="", organisation="", account="", expires=now, revoked=now
                )
                self._register.issued.append(entry)
            entry.revoked = entry.revoked or now
        self._register.lists += 1
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(now + datetime.timedelta(days=days))
            .add_extension(x509.CRLNumber(self._register.lists), critical=False)
        )
        for entry in self._register.issued:
            if entry.revoked is not None:
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder(int(entry.serial, 16), entry.revoked).build()
                )
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        self._save()
        _replace(self.list_path, pem, 0o644)
        return pem

    def find(self, node_id: str) -> list[int]:
        """Serials of a node's certificates that are not revoked."""
        return [
            int(entry.serial, 16)
            for entry in self._register.issued
            if entry.node_id == node_id and entry.revoked is None
        ]

    def _load(self) -> _Register:
        try:
            return _Register.model_validate_json(self._register_path.read_bytes())
        except FileNotFoundError:
            return _Register()
        except ValidationError as error:
            raise TlsError(f"{self._register_path} is not an authority's register: {error}") from error

    def _save(self) -> None:
        _replace(self._register_path, self._register.model_dump_json(indent=1).encode(), 0o600)


def _replace(path: Path, data: bytes, mode: int) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
