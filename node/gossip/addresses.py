"""Addresses that peers tell of themselves and of each other: which may be dialled, and which belong together.

Pure: nothing is resolved or dialled. An address is taken in its one canonical form only, so that it can't be
in a table twice, and a name can't be a disguised number.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from node.gossip.messages import MAX_ADDRESS_LENGTH

# Underscores are no host names, but service names of containers.
_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
# The last label begins with a letter: a resolver would take 0x7f.1 or 2130706433 for a number.
_NAME = re.compile(rf"(?:{_LABEL}\.){{0,8}}[a-z](?:[a-z0-9_-]{{0,61}}[a-z0-9])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")

HTTPS_PORT = 443
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refusal(StrEnum):
    """Why an advertised address is not taken."""

    FORM = "not host:port in canonical form"
    PORT = "a port from 1 to 65535 is needed"
    SERVICE = "a port of other services"
    SPECIAL = "multicast, unspecified, link-local or reserved"
    LOOPBACK = "loopback, which means another machine to each of us"
    PRIVATE = "private, which the settings exclude"


class AddressError(Exception):
    """An advertised address is not to be dialled."""

    def __init__(self, refusal: Refusal, address: str) -> None:
        super().__init__(f"{address[:80]!r}: {refusal}")
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which advertised addresses a node takes. Configured ones are the operator's business."""

    allow_private: bool = True
    """Consortium networks are often private (10.0.0.0/8, 192.168.0.0/16, fc00::/7, 100.64.0.0/10...)."""
    allow_loopback: bool = False
    """Right for a node that is itself reached by loopback: all its peers are on its machine."""
    least_port: int = 1
    """Lower ports are other services', whom a liar would have us dial; 443 is taken all the same."""

    def check(self, address: str) -> str:
        """The address, if it may be dialled. Raises: AddressError."""
        host, port = split_address(address)
        if not _PORT.fullmatch(port) or int(port) > 65_535:
            raise AddressError(Refusal.PORT, address)
        if int(port) < self.least_port and int(port) != HTTPS_PORT:
            raise AddressError(Refusal.SERVICE, address)
        parsed = parse_host(host)
        if parsed is None:
            if host == "localhost" or host.endswith(".localhost"):
                self._check_loopback(address)
            elif not _NAME.fullmatch(host):
                raise AddressError(Refusal.FORM, address)
            return address
        if str(parsed) != host:
            raise AddressError(Refusal.FORM, address)
        if isinstance(parsed, ipaddress.IPv6Address) and (parsed.ipv4_mapped or parsed.scope_id):
            raise AddressError(Refusal.FORM, address)
        self._check_ip(parsed, address)
        return address

    def check_dialled(self, host: str) -> None:
        """The same for an address that a name resolved to, whatever form it has. Raises: AddressError."""
        parsed = parse_host(host)
        if parsed is None:
            raise AddressError(Refusal.FORM, host)
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped  # the system would dial that
        self._check_ip(parsed, host)

    def _check_ip(self, parsed: IPAddress, address: str) -> None:
        if parsed.is_loopback:
            self._check_loopback(address)
        elif parsed.is_multicast or parsed.is_unspecified or parsed.is_link_local or _is_reserved(parsed):
            raise AddressError(Refusal.SPECIAL, address)
        elif not parsed.is_global and not self.allow_private:
            raise AddressError(Refusal.PRIVATE, address)

    def _check_loopback(self, address: str) -> None:
        if not self.allow_loopback:
            raise AddressError(Refusal.LOOPBACK, address)


def _is_reserved(parsed: IPAddress) -> bool:
    if isinstance(parsed, ipaddress.IPv4Address):
        # 0.0.0.0/8 means "this network", 240.0.0.0/4 nobody; both are "private" to the library.
        return parsed.packed[0] == 0 or parsed.packed[0] >= 240
    # The library counts 0.0.0.0's and other embedded forms among the reserved ones.
    return parsed.is_reserved or parsed.sixtofour is not None or parsed.teredo is not None


def split_address(address: str) -> tuple[str, str]:
    """Host without brackets, and port, as they stand. Raises: AddressError for any other form."""
    if len(address) > MAX_ADDRESS_LENGTH:
        raise AddressError(Refusal.FORM, address)
    host, colon, port = address.rpartition(":")
    if not host or not colon:
        raise AddressError(Refusal.FORM, address)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise AddressError(Refusal.FORM, address)
    elif ":" in host:
        raise AddressError(Refusal.FORM, address)
    return host, port


def parse_host(host: str) -> IPAddress | None:
    """The IP address that a host is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(address: str) -> bool:
    """Whether a host:port is this machine's own."""
    try:
        host, _ = split_address(address)
    except AddressError:
        return False
    parsed = parse_host(host)
    return host == "localhost" if parsed is None else parsed.is_loopback


@lru_cache(maxsize=4_096)  # asked for every address of a book at every choice
def compute_group(address: str) -> str:
    """What shares an owner or a cable as far as an address tells; an attacker has many of a few groups.

    /16 of a public IPv4 address, /24 of a private one, /32 of a public IPv6 address and /48 of a private
    one, the last two labels of a name. Loopback addresses are groups of their own: they are different nodes
    of a network on one machine. Anything else is its own group.
    """
    try:
        host, _ = split_address(address)
    except AddressError:
        return address
    parsed = parse_host(host)
    if parsed is None:
        return ".".join(host.split(".")[-2:]) if "." in host else address
    if parsed.is_loopback:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        length = 16 if parsed.is_global else 24
    else:
        length = 32 if parsed.is_global else 48
    return str(ipaddress.ip_network((parsed, length), strict=False))
