"""Which advertised addresses may be dialled, and which belong together."""

import pytest

from node.gossip.addresses import AddressError, AddressPolicy, Refusal, compute_group, is_loopback
from node.gossip.messages import MAX_ADDRESS_LENGTH

PUBLIC = AddressPolicy(allow_private=False)
PRIVATE = AddressPolicy()
LOCAL = AddressPolicy(allow_loopback=True)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8:1",
        "[2606:4700::1111]:65535",
        "node1:8102",
        "bmif_node_1:8102",
        "peer.hospital.example.org:8102",
        "xn--bcher-kva.example:8102",
    ],
)
def test_addresses_that_everybody_may_dial(address: str) -> None:
    assert PUBLIC.check(address) == address


@pytest.mark.parametrize("address", ["10.1.2.3:1", "192.168.0.1:1", "100.64.0.1:1", "[fd00::1]:1"])
def test_private_addresses_are_as_configured(address: str) -> None:
    assert PRIVATE.check(address) == address
    with pytest.raises(AddressError) as refused:
        PUBLIC.check(address)
    assert refused.value.refusal is Refusal.PRIVATE


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.255.0.1:1", "[::1]:1", "localhost:1", "a.localhost:1"]
)
def test_loopback_only_for_who_is_reached_by_it(address: str) -> None:
    assert LOCAL.check(address) == address
    with pytest.raises(AddressError) as refused:
        PRIVATE.check(address)
    assert refused.value.refusal is Refusal.LOOPBACK


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:1",
        "0.1.2.3:1",
        "169.254.169.254:80",  # where clouds keep credentials
        "224.0.0.1:1",
        "240.0.0.1:1",
        "255.255.255.255:1",
        "[::]:1",
        "[ff02::1]:1",
        "[fe80::1]:1",
        "[::7f00:1]:1",
        "[64:ff9b::7f00:1]:1",
        "[2002:7f00:1::]:1",
    ],
)
def test_special_addresses_are_never_taken(address: str) -> None:
    with pytest.raises(AddressError) as refused:
        LOCAL.check(address)
    assert refused.value.refusal is Refusal.SPECIAL


@pytest.mark.parametrize("port", ["0", "00", "65536", "080", "-1", "", "8x", "１"])
def test_ports(port: str) -> None:
    with pytest.raises(AddressError) as refused:
        PRIVATE.check(f"8.8.8.8:{port}")
    assert refused.value.refusal is Refusal.PORT


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        ":80",
        "::1:80",
        "[host]:80",
        "[8.8.8.8]:80",
        "0x7f.1:80",
        "127.1:80",
        "0177.0.0.1:80",
        "2130706433:80",
        "1.2.3.4.:80",
        "host.:80",
        "a..b:80",
        "-a:80",
        "a-:80",
        "Host:80",
        "bücher.example:80",
        "a b:80",
        "user@host:80",
        "host/path:80",
        "host?x:80",
        "host#x:80",
        "host\r\nX:80",
        "https://host:80",
        "[2001:DB8::1]:80",
        "[2001:db8:0::1]:80",
        "[::ffff:10.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "a" * 64 + ":80",
        "a." * 10 + "b:80",
        "a" * MAX_ADDRESS_LENGTH + ":80",
    ],
)
def test_other_forms_are_refused(address: str) -> None:
    with pytest.raises(AddressError) as refused:
        LOCAL.check(address)
    assert refused.value.refusal is Refusal.FORM


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("8.8.8.8:1", "8.8.255.1:2", True),
        ("8.8.8.8:1", "8.9.8.8:1", False),
        ("10.0.0.1:1", "10.0.0.9:1", True),
        ("10.0.0.1:1", "10.0.1.1:1", False),
        ("[2606:4700::1]:1", "[2606:4700:ffff::1]:1", True),
        ("[fd00:1:2::1]:1", "[fd00:1:3::1]:1", False),
        ("a.example.org:1", "b.c.example.org:2", True),
        ("a.example.org:1", "a.example.com:1", False),
        ("node1:1", "node2:1", False),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("nonsense", "8.8.8.8:1", False),
    ],
)
def test_groups(one: str, other: str, same: bool) -> None:
    assert (compute_group(one) == compute_group(other)) is same


def test_loopback_is_recognised() -> None:
    assert is_loopback("127.0.0.1:1")
    assert is_loopback("[::1]:1")
    assert is_loopback("localhost:1")
    assert not any(map(is_loopback, ("0.0.0.0:1", "node1:1", "nonsense")))
