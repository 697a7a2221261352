"""What is wrong, or will be soon, with a node's certificates: for `bmif tls check`."""

import datetime
import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from consensus.types import Address
from node.gossip.addresses import AddressError, split_address
from node.tls import X509_ERRORS, TlsError, TlsFiles, UntrustedPeer, build_server_context, load_certificate
from node.tls_trust import Trust, build_trust, find_root

WARN_DAYS = 30
LIST_WARN_DAYS = 3


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TlsFinding:
    """One check, and what to do about it."""

    check: str
    state: State
    detail: str
    remedy: str = ""


def check_tls(
    files: TlsFiles, node_id: str, account: Address, advertised: str, now: datetime.datetime
) -> list[TlsFinding]:
    """Everything that can be known without another node."""
    findings = [_check_pair(files)]
    try:
        revoked = None if files.revoked is None else files.revoked.read_bytes()
        trust = build_trust(files.authority.read_bytes(), revoked)
        authorities = x509.load_pem_x509_certificates(files.authority.read_bytes())
    except (OSError, TlsError) as error:
        remedy = "Ask the consortium for ca.pem and the newest list, or correct tls.authority and tls.revoked"
        return [*findings, TlsFinding("authority", State.FAILED, str(error), remedy)]
    findings.append(_check_date("authority", trust.expires, now, "Ask the consortium for its next authority"))
    if trust.renewal is not None:
        remedy = "Ask the consortium for a newer list; this one stays in force"
        found = _check_date("revoked", trust.renewal, now, remedy, LIST_WARN_DAYS)
        count = f"{len(trust.revoked)} revoked, a newer list is due {trust.renewal.date()}"
        state = State.OK if found.state is State.OK else State.WARNING
        findings.append(TlsFinding("revoked", state, count, found.remedy))
    try:
        chain = x509.load_pem_x509_certificates(files.certificate.read_bytes())
        findings += _check_own(files, node_id, account, trust, now)
    except (OSError, TlsError, *X509_ERRORS) as error:
        remedy = "Have it issued: `bmif tls request`"
        return [*findings, TlsFinding("certificate", State.FAILED, str(error), remedy)]
    return [
        *findings,
        _check_chain(chain, authorities),
        _check_usage(chain[0]),
        _check_host(chain[0], advertised),
    ]


def _check_pair(files: TlsFiles) -> TlsFinding:
    try:
        build_server_context(files)
    except TlsError as error:
        remedy = "Use the certificate that was issued for this key, mode 0600"
        return TlsFinding("key", State.FAILED, str(error), remedy)
    return TlsFinding("key", State.OK, f"{files.key} belongs to the certificate and is its owner's alone")


def _check_own(
    files: TlsFiles, node_id: str, account: Address, trust: Trust, now: datetime.datetime
) -> list[TlsFinding]:
    own = load_certificate(files.certificate)
    identity, again = own.identity, "Have it issued again: `bmif tls request`"
    detail = f"{identity.node_id} of {identity.organisation}"
    findings = [TlsFinding("certificate", State.OK, detail)]
    if identity.node_id != node_id:
        text = f"{detail}, the settings' name is {node_id}"
        findings = [TlsFinding("certificate", State.WARNING, text, "Peers see the certificate's name")]
    if identity.account == account:
        findings.append(TlsFinding("account", State.OK, account.hex()))
    else:
        text = "names none" if identity.account is None else f"is of {identity.account.hex()}"
        findings.append(TlsFinding("account", State.FAILED, f"the certificate {text}", again))
    findings.append(_check_date("validity", own.expires, now, again))
    if own.begins > now:
        text = f"valid from {own.begins}"
        findings.append(TlsFinding("validity", State.FAILED, text, "Set this machine's clock"))
    try:
        trust.check(own, now)
    except UntrustedPeer as error:
        findings.append(TlsFinding("trust", State.FAILED, str(error), again))
    return findings


def _check_date(
    check: str, end: datetime.datetime, now: datetime.datetime, remedy: str, warn_days: int = WARN_DAYS
) -> TlsFinding:
    days = (end - now) // datetime.timedelta(days=1)
    if end < now:
        return TlsFinding(check, State.FAILED, f"ended {end.date()}", remedy)
    is_soon, detail = days < warn_days, f"until {end.date()}, {days} days"
    return TlsFinding(check, State.WARNING if is_soon else State.OK, detail, remedy if is_soon else "")


def _check_chain(chain: list[x509.Certificate], authorities: list[x509.Certificate]) -> TlsFinding:
    try:
        root = find_root(chain, authorities)
    except TlsError as error:
        remedy = "Add the intermediate authorities to tls.authority, or use the consortium's ca.pem"
        return TlsFinding("chain", State.FAILED, str(error), remedy)
    return TlsFinding("chain", State.OK, f"to {root.subject.rfc4514_string()}")


def _check_usage(certificate: x509.Certificate) -> TlsFinding:
    try:
        found = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return TlsFinding("usage", State.OK, "any")
    if {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= found:
        return TlsFinding("usage", State.OK, "server and client")
    remedy = "The authority must allow both: nodes dial each other"
    return TlsFinding("usage", State.FAILED, "not for server and client", remedy)


def _check_host(certificate: x509.Certificate, advertised: str) -> TlsFinding:
    try:
        host, _ = split_address(advertised)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (AddressError, x509.ExtensionNotFound):
        host, names = advertised, x509.SubjectAlternativeName([])
    addresses = names.get_values_for_type(x509.IPAddress)
    try:
        is_named = ipaddress.ip_address(host) in addresses
    except ValueError:
        is_named = host.lower() in (name.lower() for name in names.get_values_for_type(x509.DNSName))
    if is_named:
        return TlsFinding("host", State.OK, host)
    remedy = "Have it issued with `bmif tls request --host`, or correct peer.advertise"
    return TlsFinding(
        "host", State.FAILED, f"the certificate is not valid at {host}, which others dial", remedy
    )


def describe_file(path: Path) -> list[tuple[str, object]]:
    """Name and value of what a certificate, a request or a list says. Raises: TlsError, OSError."""
    from node.tls_requests import read_request
    from node.tls_trust import read_lists

    data = path.read_bytes()
    if b"BEGIN X509 CRL" in data:
        try:
            lists = read_lists(data)
        except X509_ERRORS as error:
            raise TlsError(f"{path} is no list of revoked certificates: {error}") from error
        return [
            fact
            for found in lists
            for fact in (
                ("revoked by", found.issuer.rfc4514_string()),
                ("made", found.last_update_utc),
                ("newer one due", found.next_update_utc),
                ("serials", ", ".join(f"{entry.serial_number:x}" for entry in found) or "none"),
            )
        ]
    if b"CERTIFICATE REQUEST" in data:
        request = read_request(data)
        account = request.identity.account
        return [
            ("request of", request.identity.node_id),
            ("organisation", request.identity.organisation),
            ("account", None if account is None else account.hex()),
            ("hosts", ", ".join(request.hosts)),
        ]
    return _describe_certificate(path, data)


def _describe_certificate(path: Path, data: bytes) -> list[tuple[str, object]]:
    try:
        certificate = x509.load_pem_x509_certificate(data)
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    except X509_ERRORS as error:
        raise TlsError(f"{path} is no certificate, request or list in PEM: {error}") from error
    facts: list[tuple[str, object]] = [("issued by", certificate.issuer.rfc4514_string())]
    if is_authority:
        facts.insert(0, ("authority", certificate.subject.rfc4514_string()))
    else:
        own = load_certificate(path)
        account = own.identity.account
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.IPAddress)]
        facts = [
            ("node", own.identity.node_id),
            ("organisation", own.identity.organisation),
            ("account", None if account is None else account.hex()),
            ("hosts", ", ".join(map(str, hosts))),
            *facts,
        ]
    return [
        *facts,
        ("serial", f"{certificate.serial_number:x}"),
        ("valid from", certificate.not_valid_before_utc),
        ("valid until", certificate.not_valid_after_utc),
    ]
