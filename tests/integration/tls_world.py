"""Certificates of every kind under one authority, and transports that use them on loopback."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from consensus.crypto import SigningKey, hash_domain
from consensus.types import Address
from node.gossip.http import HttpTransport, TransportSecurity
from node.gossip.messages import Route
from node.gossip.transport import IdentifiedReply, Reply, Status
from node.tls import IssuedCertificate, PeerIdentity, TlsFiles, save_certificate
from node.tls_issue import USAGES, build_alternatives, build_name, encode_key, issue
from node.tls_requests import Authority, make_request, read_request

NOW = datetime.datetime.now(datetime.UTC)
USAGE = {
    "both": USAGES,
    "server": (ExtendedKeyUsageOID.SERVER_AUTH,),
    "client": (ExtendedKeyUsageOID.CLIENT_AUTH,),
}


def make_account(name: str) -> SigningKey:
    return SigningKey(hash_domain("test", name.encode()))


async def echo(peer: PeerIdentity, route: Route, body: bytes) -> Reply:
    return Reply(Status.OK, f"{peer.node_id} of {peer.organisation}".encode())


@dataclass(slots=True)
class TlsWorld:
    """One authority, the chain's organisations, and whatever certificate a test asks for."""

    directory: Path
    authority: Authority
    organisations: dict[Address, str] = field(default_factory=dict)
    """Of accounts, as the chain has them."""

    @classmethod
    def make(cls, directory: Path) -> "TlsWorld":
        return cls(directory, Authority.make(directory / "authority", "consortium"))

    def issue(
        self,
        name: str,
        organisation: str,
        account: SigningKey | None,
        *,
        folder: str | None = None,
        usage: str = "both",
        issued: datetime.datetime = NOW,
        days: int = 100,
        hosts: Sequence[str] = ("127.0.0.1",),
        issuer: IssuedCertificate | None = None,
    ) -> TlsFiles:
        """Whatever an authority could sign; what `bmif tls sign` refuses too."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = build_alternatives(key.public_key(), name, organisation, hosts, account)
        pem = issue(
            issuer or self.authority.issued,
            build_name(name, organisation),
            key.public_key(),
            names,
            days=days,
            now=issued,
            usages=USAGE[usage],
        )
        return self.save(folder or name, IssuedCertificate(pem, encode_key(key)))

    def issue_stolen(self, name: str, organisation: str, names: x509.SubjectAlternativeName) -> TlsFiles:
        """A certificate of a fresh key with another's alternative names."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = issue(self.authority.issued, build_name(name, organisation), key.public_key(), names)
        return self.save("stolen", IssuedCertificate(pem, encode_key(key)))

    def request(self, name: str, organisation: str, account: SigningKey) -> TlsFiles:
        """As `bmif tls request` and `sign` do it."""
        pem, key = make_request(account, name, organisation, ["127.0.0.1"])
        signed = self.authority.sign(read_request(pem), organisation, 100, NOW)
        return self.save(name, IssuedCertificate(signed, key))

    def save(self, folder: str, made: IssuedCertificate) -> TlsFiles:
        home = self.directory / folder
        home.mkdir()
        files = TlsFiles(home / "tls.pem", home / "tls.key", home / "ca.pem", home / "revoked.pem")
        save_certificate(files, made, self.authority.issued.certificate_pem)
        (home / "revoked.pem").write_bytes(self.authority.revoke([], 30, NOW))
        return files

    def build(self, files: TlsFiles, account: SigningKey | None = None) -> HttpTransport:
        """A transport that checks certificates against the chain's organisations."""
        security = TransportSecurity(
            None if account is None else account.address,
            lambda address: self.organisations.get(address, ""),
            poll_s=3_600,
        )
        return HttpTransport("127.0.0.1", 0, files, security=security)


def renew(files: TlsFiles, other: TlsFiles) -> None:
    """Put another certificate and key in the place of these, as an operator does."""
    os.replace(other.key, files.key)
    os.replace(other.certificate, files.certificate)


async def ask(client: HttpTransport, server: HttpTransport) -> IdentifiedReply:
    return await client.request(server.address, Route.STATUS, b"", max_reply=100, timeout_s=10)
