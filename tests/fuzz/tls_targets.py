"""The peers' port and the authority's desk: certificates, requests for them, and lists of revoked ones."""

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from node.tls import TlsError, read_certificate
from node.tls_requests import read_request
from node.tls_trust import build_trust
from tests.fuzz.target import Form, Target, require

# Signatures by elliptic curves are drawn at random: these were made once.

AUTHORITY = b"""\
-----BEGIN CERTIFICATE-----
MIIBmDCCAT2gAwIBAgIUTiIHKMdfCW9HJGgF8/uyLDC47oswCgYIKoZIzj0EAwIw
KDEXMBUGA1UEAwwOZnV6eiBhdXRob3JpdHkxDTALBgNVBAoMBGZ1enowHhcNMjQx
MjMxMDAwMDAwWhcNMzQxMjMwMDAwMDAwWjAoMRcwFQYDVQQDDA5mdXp6IGF1dGhv
cml0eTENMAsGA1UECgwEZnV6ejBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABIfq
ZqJUAIcO0GgqHRWYWESRmtdELiMc+pTjtesfP4NYFwUJVlQS0bx+gTVCMnfelh4V
WTkLAoOdzdnf+JFdrd2jRTBDMBIGA1UdEwEB/wQIMAYBAf8CAQAwDgYDVR0PAQH/
BAQDAgEGMB0GA1UdDgQWBBRPLX3roPL6H1BZZPm1uR9gm11R/DAKBggqhkjOPQQD
AgNJADBGAiEA4Ttt0utzJEaXedutucqff4WkeAkNSj9FcqBpuro8AacCIQDGUFJf
Pic/z+6fkXYUqWXk4UTI5thx1kfkeDoRI4/oMw==
-----END CERTIFICATE-----
"""
CERTIFICATE = b"""\
-----BEGIN CERTIFICATE-----
MIICzjCCAnSgAwIBAgIUK83csQcHnrKjYJeHD7TqNYy27pAwCgYIKoZIzj0EAwIw
KDEXMBUGA1UEAwwOZnV6eiBhdXRob3JpdHkxDTALBgNVBAoMBGZ1enowHhcNMjQx
MjMxMDAwMDAwWhcNMzMwMzIwMDAwMDAwWjAlMQ4wDAYDVQQDDAVub2RlMTETMBEG
A1UECgwKaG9zcGl0YWwtMTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABHzhHQym
mcf8VDymHmW5dtJtPSXotC7vccn3uPBTHFZHCHqdrdIvztHcbXZ2steYTptc3ewk
dC+zPkhBMaAFAZ2jggF9MIIBeTAMBgNVHRMBAf8EAjAAMA4GA1UdDwEB/wQEAwIH
gDAdBgNVHSUEFjAUBggrBgEFBQcDAQYIKwYBBQUHAwIwgfkGA1UdEQSB8TCB7oIR
bm9kZTEuZXhhbXBsZS5vcmeHBAoAAAGGgdJ1cm46Ym1pZjphY2NvdW50OjAzYTEw
N2JmZjNjZTEwYmUxZDcwZGQxOGU3NGJjMDk5NjdlNGQ2MzA5YmE1MGQ1ZjFkZGM4
NjY0MTI1NTMxYjg6ZmU2Y2Y0ZjkwMzcwZDI4M2YxMTdhZGUzMWRmZWRmNjgwMjJh
NWQ4N2FkMGNmOTljMWRlYWY4ZmI5N2RkNzJjODFlM2RmMmM4NmRjNTg4OTUxYzgz
ZjljZGQ1MGNhN2FjYjUxMTZhYTc3NzQ2ODg3ODU4NmZjOTgwM2YyODYwMDcwHwYD
VR0jBBgwFoAUTy1966Dy+h9QWWT5tbkfYJtdUfwwHQYDVR0OBBYEFHWs0CB1LaTJ
agFkHWj2iZ86NcGuMAoGCCqGSM49BAMCA0gAMEUCIQCs37L9TsBb0nFZQdNK3syK
SjsKJH+LRuqTM2PDYWdoAgIgGC7aphhVAfnMBaijl17zhpcrqCWvoO3Vg4Qdh6mN
hYI=
-----END CERTIFICATE-----
"""
REQUEST = b"""\
-----BEGIN CERTIFICATE REQUEST-----
MIIB9TCCAZoCAQAwJTEOMAwGA1UEAwwFbm9kZTExEzARBgNVBAoMCmhvc3BpdGFs
LTEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR84R0MppnH/FQ8ph5luXbSbT0l
6LQu73HJ97jwUxxWRwh6na3SL87R3G12drLXmE6bXN3sJHQvsz5IQTGgBQGdoIIB
ETCCAQ0GCSqGSIb3DQEJDjGB/zCB/DCB+QYDVR0RBIHxMIHughFub2RlMS5leGFt
cGxlLm9yZ4cECgAAAYaB0nVybjpibWlmOmFjY291bnQ6MDNhMTA3YmZmM2NlMTBi
ZTFkNzBkZDE4ZTc0YmMwOTk2N2U0ZDYzMDliYTUwZDVmMWRkYzg2NjQxMjU1MzFi
ODpmZTZjZjRmOTAzNzBkMjgzZjExN2FkZTMxZGZlZGY2ODAyMmE1ZDg3YWQwY2Y5
OWMxZGVhZjhmYjk3ZGQ3MmM4MWUzZGYyYzg2ZGM1ODg5NTFjODNmOWNkZDUwY2E3
YWNiNTExNmFhNzc3NDY4ODc4NTg2ZmM5ODAzZjI4NjAwNzAKBggqhkjOPQQDAgNJ
ADBGAiEA+Om/oldky7O5jqIGdeqfKqc2PK6mhTKFf/KOs62zcDQCIQDrQ90OEa70
J02ApbJq0lMpYvq03DVYISpRcy6XXdyYCA==
-----END CERTIFICATE REQUEST-----
"""
LIST = b"""\
-----BEGIN X509 CRL-----
MIHzMIGbAgEBMAoGCCqGSM49BAMCMCgxFzAVBgNVBAMMDmZ1enogYXV0aG9yaXR5
MQ0wCwYDVQQKDARmdXp6Fw0yNTAxMDEwMDAwMDBaFw0zMzAzMjAwMDAwMDBaMDIw
EgIBBxcNMjUwMTAxMDAwMDAwWjAcAgsBAAAAAAAAAAAAABcNMjUwMTAxMDAwMDAw
WqAOMAwwCgYDVR0UBAMCAQEwCgYIKoZIzj0EAwIDRwAwRAIge/UliU7uRmk1HME8
hm5uw1hZKIi1lrp+/XLTk+IN0MsCIAfKssjH6L7dRTBJr0Tmo6u2yUJnpKl7UUqv
+UpKFNPJ
-----END X509 CRL-----
"""


def run_peer_certificate(data: bytes) -> None:
    """`read_certificate`: TlsError alone leaves it; whoever it accepts has names and signed for them."""
    found = read_certificate(data).identity
    require(0 < len(found.node_id) <= 64 and 0 < len(found.organisation) <= 64, "names of another length")
    require(found.account is None or len(found.account) == 32, "an account of another length")


def run_request(data: bytes) -> None:
    """`read_request`: TlsError alone leaves it; whoever it accepts has an account and hosts."""
    found = read_request(data)
    require(found.identity.account is not None and bool(found.hosts), "no account or no host")


def run_list(data: bytes) -> None:
    """`build_trust`: TlsError alone leaves it; it accepts what the authority has signed and nothing else."""
    found = build_trust(AUTHORITY, data)
    serials = {serial for _, serial in found.revoked}
    require(serials <= {7, 2**80}, "serials that the authority has not revoked")


def _build_certificates() -> Iterable[bytes]:
    for pem in (CERTIFICATE, AUTHORITY):
        yield x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def build_targets() -> list[Target]:
    return [
        Target("peer.certificate", run_peer_certificate, (TlsError,), _build_certificates, Form.BINARY, 2048),
        Target("file.tls_request", run_request, (TlsError,), lambda: [REQUEST], Form.PEM, 2048),
        Target("file.tls_list", run_list, (TlsError,), lambda: [LIST], Form.PEM, 2048),
    ]
