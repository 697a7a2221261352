"""A node's own certificates while it runs: loaded whole or not at all, replaced without a restart.

Files are looked at every `poll_s` seconds, and when the operator says so (SIGHUP). What can't be used leaves
the loaded certificates as they are, and is said once.
"""

import datetime
import logging
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from cryptography import x509

from consensus.types import Address
from node.clock import Clock
from node.tls import (
    PeerCertificate,
    PeerIdentity,
    TlsError,
    TlsFiles,
    build_client_context,
    build_server_context,
    load_certificate,
)
from node.tls_trust import Trust, build_trust, find_root

logger = logging.getLogger(__name__)

WARN_DAYS: tuple[int, ...] = (1, 7, 30)
"""Before the end of a certificate: a line in the log each time one of these is reached."""

CertificateCheck = Callable[[PeerCertificate], None]
"""Raises `UntrustedPeer`, which ends the handshake."""

LIST_WARN_DAYS: tuple[int, ...] = (1,)

ON_CERTIFICATE: ContextVar[CertificateCheck] = ContextVar("on_certificate")
"""Who is told of the certificate in a handshake that this node begins; a handshake without fails."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    own: PeerCertificate
    trust: Trust
    server: ssl.SSLContext
    client: ssl.SSLContext
    stamp: tuple[tuple[int, ...], ...]


class Certificates:
    """What a node shows and whom it trusts; both contexts change together."""

    def __init__(self, files: TlsFiles, clock: Clock, account: Address | None = None) -> None:
        """`account`: whose the certificate must be; None for any.

        Raises: TlsError.
        """
        self._files = files
        self._clock = clock
        self._account = account
        self._loaded = self._load()
        self._tried = self._loaded.stamp
        self._warned: dict[str, int] = {}
        self._on_change: list[Callable[[], None]] = []
        self.reloads = 0
        """How often other certificates were taken."""
        self._warn()

    @property
    def identity(self) -> PeerIdentity:
        return self._loaded.own.identity

    @property
    def certificate(self) -> PeerCertificate:
        return self._loaded.own

    @property
    def trust(self) -> Trust:
        return self._loaded.trust

    @property
    def expires(self) -> datetime.datetime:
        """When this node's certificate, or an authority of its, expires, whichever is first."""
        return min(self._loaded.own.expires, self._loaded.trust.expires)

    @property
    def server_context(self) -> ssl.SSLContext:
        return self._loaded.server

    @property
    def client_context(self) -> ssl.SSLContext:
        """Tells `ON_CERTIFICATE` who answers."""
        return self._loaded.client

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have it called after every look at the files: certificates may have changed, or expired."""
        self._on_change.append(callback)

    def check(self, certificate: PeerCertificate) -> None:
        """Raises: UntrustedPeer for a certificate that is revoked, expired, or of another authority."""
        self._loaded.trust.check(certificate, self._get_now())

    async def run(self, poll_s: float) -> None:
        """For ever: look at the files every so many seconds."""
        while True:
            await self._clock.sleep(poll_s)
            self.look()

    def look(self, *, again: bool = False) -> bool:
        """Load the files if they have changed, or `again`; True if others are in force now."""
        stamp = self._get_stamp()
        is_taken = (again or stamp != self._tried) and self._reload()
        self._tried = stamp
        self._warn()
        for callback in self._on_change:
            callback()
        return is_taken

    def _reload(self) -> bool:
        try:
            fresh = self._load()
            own, identity = fresh.own, self._loaded.own.identity
            if own.identity != identity:
                raise TlsError(
                    f"the new certificate is of {own.identity.node_id} ({own.identity.organisation}) or of "
                    f"another account, this node is {identity.node_id} ({identity.organisation}); to change "
                    "that, restart it"
                )
            fresh.trust.check(own, self._get_now())
            chain, authorities = (
                x509.load_pem_x509_certificates(path.read_bytes())
                for path in (self._files.certificate, self._files.authority)
            )
            find_root(chain, authorities)
        except (TlsError, OSError, ValueError) as error:
            logger.error("certificates were not changed, the old ones stay in force: %s", error)
            return False
        self._loaded = fresh
        self.reloads += 1
        logger.info(
            "certificates changed: own %x until %s, %d revoked",
            own.serial,
            own.expires.date(),
            len(fresh.trust.revoked),
        )
        return True

    def _load(self) -> _Loaded:
        files, stamp = self._files, self._get_stamp()
        try:
            revoked = None if files.revoked is None else files.revoked.read_bytes()
            trust = build_trust(files.authority.read_bytes(), revoked)
        except OSError as error:
            raise TlsError(f"{error.filename} can't be read: {error.strerror}") from error
        own = load_certificate(files.certificate)
        if self._account is not None and own.identity.account != self._account:
            found = own.identity.account
            raise TlsError(
                f"{files.certificate} is of {'no account' if found is None else 'account ' + found.hex()}, "
                f"the node's account_key of {self._account.hex()}: `bmif tls request` makes a request for it"
            )
        loaded = _Loaded(
            own, trust, build_server_context(files), build_client_context(files, _dispatch), stamp
        )
        if self._get_stamp() != stamp:
            raise TlsError("the files changed while they were read; they are looked at again")
        return loaded

    def _get_stamp(self) -> tuple[tuple[int, ...], ...]:
        files = self._files
        stamp = []
        for path in (files.certificate, files.key, files.authority, files.revoked):
            try:
                found = None if path is None else path.stat()
            except OSError:
                found = None
            numbers = () if found is None else (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)
            stamp.append(numbers)
        return tuple(stamp)

    def _get_now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._clock.now_ms() / 1000, datetime.UTC)

    def _warn(self) -> None:
        """Say what ends soon, once for each of `WARN_DAYS`."""
        loaded = self._loaded
        ends = [
            ("this node's certificate", loaded.own.expires, WARN_DAYS),
            ("a certificate of the authority", loaded.trust.expires, WARN_DAYS),
        ]
        if loaded.trust.renewal is not None:
            # A list that is not renewed stays in force.
            ends.append(("the list of revoked certificates", loaded.trust.renewal, LIST_WARN_DAYS))
        for what, end, warn_days in ends:
            left = (end - self._get_now()) / datetime.timedelta(days=1)
            reached = next((days for days in (0, *warn_days) if left <= days), None)
            if reached is None:
                self._warned.pop(what, None)
            elif self._warned.get(what) != reached:
                self._warned[what] = reached
                told = "expired" if left <= 0 else f"expires in {left:.0f} days"
                logger.warning("%s %s (%s): `bmif tls check` says what to do", what, told, end.date())


def _dispatch(certificate: PeerCertificate) -> None:
    ON_CERTIFICATE.get()(certificate)
