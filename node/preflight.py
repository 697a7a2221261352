"""What a machine can do for a chain, and what is missing, before a node is started on it.

Each check returns findings and never raises for what it finds. Nothing is changed: the data directory gets a
file for a moment, to time the disk, and nothing else.
"""

import asyncio
import ctypes
import datetime
import os
import platform
import resource
import shutil
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from consensus.params import Genesis
from node.cluster import ClusterSetupError, build_security, connect, explain, find_mismatches
from node.config import NodeConfig, Role
from node.genesis import GenesisError, load_genesis
from node.keystore import KeyFileError, load_account_key, open_tls_key
from node.tls import PeerIdentity, TlsError, TlsFiles, build_client_context, load_identity

GIB = 1024**3
WORKER_BYTES = 1 * GIB
NODE_BYTES = GIB // 2
LEAST_DISK_BYTES = 5 * GIB
SLOW_SYNC_MS = 50.0
SYNC_ROUNDS = 15
EXPIRY_DAYS = 30
PEER_TIMEOUT_S = 5.0
SPARE_DESCRIPTORS = 512
STA_UNSYNC = 0x0040
"""Of `adjtimex(2)`: nothing disciplines the system's clock."""


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `remedy` is empty where nothing needs doing."""

    check: str
    level: Level
    detail: str
    remedy: str = ""


def check_all(config: NodeConfig) -> list[Finding]:
    """Every check that is over in seconds; `workloads.rehearsal` is the other one."""
    return [
        *check_settings(config),
        check_processor(config.workers),
        check_memory(config),
        *check_disk(config.data_dir, config.limits.blob_quota_bytes),
        check_clock(),
        *check_ports(config),
        *check_identity(config),
        *asyncio.run(check_peers(config)),
        *asyncio.run(check_cluster(config)),
        check_descriptors(config),
    ]


def check_settings(config: NodeConfig) -> list[Finding]:
    """The files that the settings name, and their modes."""
    problems = config.check_files()
    found = [Finding("settings", Level.FAILED, f"{p.field}: {p.message}", p.remedy) for p in problems]
    roles = ", ".join(sorted(config.roles)) or "observer"
    return found or [Finding("settings", Level.OK, f"{config.name}: {roles}")]


def check_processor(workers: int) -> Finding:
    """Machine type, and cores for the worker processes."""
    cores, machine = len(os.sched_getaffinity(0)), platform.machine()
    detail = f"{cores} cores, {machine}, Python {platform.python_version()}"
    if machine != "x86_64":
        return Finding(
            "processor", Level.FAILED, detail, "The encryption library is built and tested on x86-64 only"
        )
    if workers > cores:
        return Finding(
            "processor", Level.WARNING, f"{detail}, {workers} workers", f"Set workers to {cores} at most"
        )
    return Finding("processor", Level.OK, f"{detail}, {workers} workers")


def check_memory(config: NodeConfig) -> Finding:
    """Free memory, the container's limit included, against what the node and its workers take."""
    free = _read_available_bytes()
    pools = 2 if Role.CUSTODY in config.roles else 1
    wanted = NODE_BYTES + pools * config.workers * WORKER_BYTES
    detail = f"{free / GIB:.1f} GiB free, about {wanted / GIB:.1f} GiB wanted"
    if free < wanted:
        return Finding("memory", Level.WARNING, detail, "Add memory, or lower `workers`")
    return Finding("memory", Level.OK, detail)


def _read_available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free  # no control group, or an older kind
    return free if limit == "max" else min(free, int(limit) - used)


def check_disk(data_dir: Path, quota: int) -> list[Finding]:
    """Room for ledger and blobs, and how long a synced write takes: every vote waits for one."""
    folder = next(path for path in (data_dir, *data_dir.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free at {folder}, blobs may take {quota / GIB:.1f} GiB"
    if free < LEAST_DISK_BYTES:
        room = Finding("disk", Level.FAILED, detail, "Make room, or put data_dir on another disk")
    elif free < quota:
        room = Finding("disk", Level.WARNING, detail, "Make room, or lower limits.blob_quota_bytes")
    else:
        room = Finding("disk", Level.OK, detail)
    try:
        sync_ms = _time_synced_write(folder)
    except OSError as error:
        return [room, Finding("disk", Level.FAILED, f"{folder}: {error.strerror}", "Correct owner and mode")]
    detail = f"a synced write takes {sync_ms:.1f} ms"
    if sync_ms > SLOW_SYNC_MS:
        return [
            room,
            Finding("disk", Level.WARNING, detail, "Votes and openings wait for it: use a faster disk"),
        ]
    return [room, Finding("disk", Level.OK, detail)]


def _time_synced_write(folder: Path) -> float:
    """Median milliseconds of a 4 KiB write with fsync."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(SYNC_ROUNDS):
            start = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def check_clock() -> Finding:
    """Whether the system says that something keeps its clock right."""
    # The kernel's struct timex; only `status` is read, its fifth field, at the offset of 64-bit Linux.
    buffer = ctypes.create_string_buffer(512)
    if sys.platform != "linux" or ctypes.CDLL(None, use_errno=True).adjtimex(buffer) < 0:
        return Finding("clock", Level.WARNING, "its state can't be read", "Make sure that NTP keeps it right")
    status = int.from_bytes(buffer.raw[40:44], sys.byteorder)
    if status & STA_UNSYNC:
        remedy = "Start chrony, systemd-timesyncd or the like; in a container, on the host"
        return Finding("clock", Level.WARNING, "the system does not know it to be synchronised", remedy)
    return Finding("clock", Level.OK, "synchronised")


def check_ports(config: NodeConfig) -> list[Finding]:
    """Whether the listeners' addresses are free."""
    listeners = [("api", config.api.host, config.api.port), ("peer", config.peer.host, config.peer.port)]
    if config.operator.enabled:
        listeners.insert(1, ("operator", config.operator.host, config.operator.port))
    found = []
    for name, host, port in listeners:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                remedy = f"Stop what uses it (this node, perhaps), or change {name}.host or {name}.port"
                found.append(
                    Finding("ports", Level.FAILED, f"{name} {host}:{port}: {error.strerror}", remedy)
                )
            else:
                found.append(Finding("ports", Level.OK, f"{name} {host}:{port} is free"))
    return found


def check_identity(config: NodeConfig) -> list[Finding]:
    """Certificate, account and genesis document: right alone, and saying the same."""
    found, identity = _check_certificate(config)
    try:
        genesis = load_genesis(config.genesis)
        address = load_account_key(config.account_key).address
    except (GenesisError, KeyFileError) as error:
        return [*found, Finding("account", Level.FAILED, str(error), "Correct the file that is named")]
    account = next((item for item in genesis.accounts if item.address == address), None)
    if account is None:
        remedy = "Right for an account that came later; else compare address and document with the consortium"
        return [
            *found,
            Finding("account", Level.WARNING, f"{address.hex()} is not in the genesis document", remedy),
        ]
    if identity is not None and identity.organisation != account.organisation:
        detail = f"certificate of {identity.organisation}, account of {account.organisation}"
        found.append(Finding("account", Level.FAILED, detail, "Have the certificate issued again"))
    else:
        found.append(Finding("account", Level.OK, f"{address.hex()} of {account.organisation}"))
    return found + list(_check_roles(config, genesis, account.organisation))


def _check_roles(config: NodeConfig, genesis: Genesis, organisation: str) -> Iterable[Finding]:
    address = load_account_key(config.account_key).address
    if Role.VALIDATOR in config.roles and address not in {item.address for item in genesis.validators}:
        remedy = "`bmif governance set-validators`, approved by the others, takes it into the set"
        yield Finding("roles", Level.WARNING, "validator: not in the genesis set", remedy)
    if Role.MINER in config.roles and organisation not in genesis.mining_organisations:
        remedy = "Governance lists the organisations that may mine"
        yield Finding("roles", Level.WARNING, f"miner: {organisation} is not listed at genesis", remedy)


def _check_certificate(config: NodeConfig) -> tuple[list[Finding], PeerIdentity | None]:
    tls = config.tls
    try:
        certificate = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
        authority = x509.load_pem_x509_certificate(tls.authority.read_bytes())
        key = open_tls_key(tls.key)
        identity = load_identity(TlsFiles(tls.certificate, tls.key, tls.authority))
        certificate.verify_directly_issued_by(authority)
    except InvalidSignature:
        remedy = "Use the consortium's authority, or have the certificate issued again"
        return [Finding("certificate", Level.FAILED, "not of this authority", remedy)], None
    except (OSError, ValueError, TypeError, TlsError) as error:
        remedy = "`bmif tls request` makes a key and what the authority signs"
        return [Finding("certificate", Level.FAILED, str(error), remedy)], None
    public = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*public) != key.public_key().public_bytes(*public):
        return [
            Finding("certificate", Level.FAILED, "not for this key", "Use the pair that belongs together")
        ], None
    now = datetime.datetime.now(datetime.UTC)
    days = (certificate.not_valid_after_utc - now).days
    detail = f"{identity.node_id} of {identity.organisation}, valid for {days} days"
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        return [
            Finding("certificate", Level.FAILED, f"{detail}: not valid now", "Have it issued again")
        ], identity
    if days < EXPIRY_DAYS:
        return [Finding("certificate", Level.WARNING, detail, "Have it issued again soon")], identity
    return [Finding("certificate", Level.OK, detail)], identity


async def check_peers(config: NodeConfig) -> list[Finding]:
    """Whether the configured peers answer, and as whom: a TLS handshake with each, nothing is sent."""
    tls = config.tls
    try:
        load_identity(TlsFiles(tls.certificate, tls.key, tls.authority))
    except TlsError:
        return []  # said already
    peers = (*config.peer.peers, *config.peer.seeds)
    if not peers:
        remedy = "Add one to peer.peers or peer.seeds, unless others dial this node"
        return [Finding("peers", Level.WARNING, "none configured", remedy)]
    return list(await asyncio.gather(*(_check_peer(config, peer) for peer in peers)))


async def _check_peer(config: NodeConfig, peer: str) -> Finding:
    host, _, port = peer.rpartition(":")
    host = host.strip("[]")
    told: list[PeerIdentity] = []
    tls = config.tls
    try:
        files = TlsFiles(tls.certificate, tls.key, tls.authority)
        context = build_client_context(files, lambda found: told.append(found.identity))
        async with asyncio.timeout(PEER_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=host)
            writer.close()
    except TimeoutError:
        reason = f"no answer in {PEER_TIMEOUT_S:.0f} s"
    except (OSError, ssl.SSLError, TlsError) as error:
        reason = str(error)
    else:
        return Finding("peers", Level.OK, f"{peer} is {told[0].node_id} of {told[0].organisation}")
    remedy = "Is it up? Firewall, name, and its certificate's host names"
    return Finding("peers", Level.WARNING, f"{peer}: {reason}", remedy)


async def check_cluster(config: NodeConfig) -> list[Finding]:
    """Whether the scheduler lets this node in, and which workers it would use; nothing without a cluster."""
    if config.cluster.scheduler is None:
        return []
    try:
        client = await connect(config.cluster, build_security(config.cluster))
    except ClusterSetupError as error:
        return [Finding("cluster", Level.FAILED, str(error), "Or leave cluster.scheduler out")]
    except (OSError, TimeoutError, ValueError) as error:
        detail = f"{config.cluster.scheduler}: {explain(error)}"
        remedy = "Is it up? Firewall, and certificates of one authority; till then this machine trains alone"
        return [Finding("cluster", Level.WARNING, detail, remedy)]
    try:
        workers = await find_mismatches(client)
    except (OSError, TimeoutError, ValueError) as error:
        return [Finding("cluster", Level.WARNING, explain(error), "Look into the scheduler's log")]
    finally:
        await client.close()
    if not workers:
        return [Finding("cluster", Level.WARNING, "no workers", "Start `dask worker` on other machines")]
    return [
        Finding("cluster", Level.OK, f"worker {address}")
        if mismatch is None
        else Finding(
            "cluster", Level.WARNING, f"worker {address}: {mismatch}", "It gets no batches till then"
        )
        for address, mismatch in workers.items()
    ]


def check_descriptors(config: NodeConfig) -> Finding:
    """Open files allowed, against what the settings may need at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.peer.max_connections + config.api.max_event_streams + SPARE_DESCRIPTORS
    detail = f"{hard} open files allowed, up to {wanted} wanted"
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return Finding(
            "files", Level.WARNING, detail, f"Raise the limit (LimitNOFILE=, ulimit -Hn) to {wanted}"
        )
    return Finding("files", Level.OK, detail)
