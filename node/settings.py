"""The sections of a node's settings: every field with its bounds, its default and what it means.

`node.config` reads and joins them; `configs/node.yaml` shows each, and a test holds the two together.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 lets the system choose one (tests)."""

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")
PeerAddress = Annotated[str, StringConstraints(pattern=rf"^{_HOST_PORT.pattern}$")]


HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?$")]
Origin = Annotated[
    str, StringConstraints(pattern=r"^(\*|https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?)$")
]
"""Scheme, host and port of a web page, as browsers send it, or `*`."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Section(BaseModel):
    """A nested group of settings; immutable and closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ApiSettings(Section):
    """The public REST listener."""

    host: str = "127.0.0.1"
    """Address that it listens at; put TLS before it if it leaves the machine."""
    port: Port = 8100
    """Its port."""
    max_event_streams: int = Field(default=1_024, ge=1, le=10_000)
    """Most server-sent-event streams open at once."""
    event_reader_timeout_s: float = Field(default=30.0, gt=0, le=3_600)
    """How long a reader of events may leave what was sent unread; then it is dropped."""
    posts_per_minute: int = Field(default=6_000, ge=1)
    """Most transactions that one client address may post in a minute."""
    cors_origins: tuple[Origin, ...] = ()
    """Web pages of other origins that may use this API, as `https://portal.example.org`; `*` lets every page
    read and none write. Browsers keep all others out."""


class OperatorSettings(Section):
    """The operator's listener: signs with the node's key, so keep it on loopback."""

    enabled: bool = True
    """Whether there is one; commands that sign need it."""
    host: str = "127.0.0.1"
    """Address that it listens at."""
    port: Port = 8101
    """Its port."""
    expose: bool = False
    """Take requests from other machines: `host` may be other than loopback. Put TLS before it."""
    hosts: tuple[HostName, ...] = ()
    """Further names by which requests may address this listener; loopback's and `host` itself always may."""
    token_file: Path | None = None
    """Bearer token, made on first start with mode 0600; default `<data_dir>/operator.token`."""

    @model_validator(mode="after")
    def _check_host(self) -> Self:
        if self.enabled and not self.expose and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} takes requests from other machines; write 127.0.0.1, "
                "or set expose to true and put TLS before it"
            )
        return self


class ReadySettings(Section):
    """When `/readyz` says that this node can serve."""

    lag_blocks: int = Field(default=3, ge=0, le=1_000_000)
    """Most blocks behind the best peer."""
    tip_age_s: float = Field(default=600.0, ge=0, le=86_400 * 365)
    """Greatest age of the head while a block with transactions or work waits to be final; 0: any."""
    min_peers: int = Field(default=1, ge=0, le=1_024)
    """Least linked peers of a node that has peers or seeds to dial."""


class PeerSettings(Section):
    """The peer listener (msgpack over HTTPS with mutual TLS)."""

    host: str = "127.0.0.1"
    """Address that it listens at; 0.0.0.0 for all."""
    port: Port = 8102
    """Its port."""
    advertise: PeerAddress | None = None
    """host:port that other nodes should dial; default host:port of the listener."""
    peers: tuple[PeerAddress, ...] = ()
    """Peers to dial, host:port."""
    seeds: tuple[PeerAddress, ...] = ()
    """Nodes to ask for other peers, host:port; dialled while there is nobody better."""
    discover: bool = True
    """Find peers beyond the configured ones: by seeds, by each other, by who dials this node."""
    private_addresses: bool = True
    """Also dial private addresses that peers tell (10.0.0.0/8, 192.168.0.0/16 and the like)."""
    max_peers: int = Field(default=32, ge=1, le=1_024)
    """Most peers linked."""
    outbound: int = Field(default=8, ge=0, le=64)
    """Of these, links that this node chooses itself from what it has found."""
    max_connections: int = Field(default=512, ge=16, le=65_536)
    """Most connections open at the peer listener."""
    max_connections_per_address: int = Field(default=128, ge=8, le=65_536)
    """Most of one IP address; more for many nodes on one machine."""


class TlsSettings(Section):
    """Mutual TLS of the peer port; PEM files, which may be replaced while the node runs."""

    authority: Path
    """The consortium's authority; intermediate ones may follow it."""
    certificate: Path
    """This node's certificate, which its account has signed for; intermediate ones may follow it."""
    key: Path
    """Its key, mode 0600."""
    revoked: Path | None = None
    """Lists of revoked certificates, signed by the authorities."""
    poll_s: float = Field(default=60.0, ge=1, le=86_400)
    """Between two looks whether these files have changed; on SIGHUP the node looks at once."""


class VerdictSettings(Section):
    """A validator's own pairs, on which it judges milestones; without any it gives no verdict."""

    pairs: Path | None = Field(default=None, repr=False)
    """Folder of pairs: with `manifest.csv`, or with the folders `first` and `second` of PNG twins."""
    modality: str | None = Field(default=None, repr=False)
    """Only these rows of the manifest."""
    phantoms: int = Field(default=0, ge=0, le=10_000, repr=False)
    """So many synthetic patients instead of a folder, for testnets."""
    phantom_seed: int = Field(default=0, ge=0, repr=False)
    """Which synthetic patients; other ones at every node."""
    patches: int = Field(default=8_192, ge=1, le=1_000_000)
    """Most patches to judge on."""
    noise: float | None = Field(default=None, ge=0, le=1e6)
    """Noise of a published sum of losses, multiples of the bound of one patch; default the task's own."""
    tolerance: float | None = Field(default=None, ge=0, le=1e6)
    """How much larger the loss may become, in its own unit; default one standard deviation of the noise."""

    @property
    def is_given(self) -> bool:
        """Whether there is anything to judge on."""
        return self.pairs is not None or self.phantoms > 0


class RetentionSettings(Section):
    """How long blobs are kept that no living task needs."""

    policy: Literal["standard", "archive"] = "standard"
    """`standard` drops an ended task's blobs `evidence_ms` after its end; `archive` keeps everything."""
    bundle_steps: int = Field(default=2, ge=0, le=1_000_000)
    """A miner keeps its bundles until so many later steps are opened."""
    blocks: int = Field(default=0, ge=0)
    """Blocks below the last final one whose bodies and states are kept; older ones are pruned while the node
    runs. 0 keeps all."""


class FusionRequestSettings(Section):
    """Encrypted fusion for others: pairs that clients encrypt under keys of their own."""

    waiting: int = Field(default=0, ge=0, le=1_024)
    """Most requests held at once, from the first byte of an upload to the end of its result; 0: none."""
    per_client: int = Field(default=1, ge=1, le=1_024)
    """Of these, requests of one client address."""
    max_upload_bytes: int = Field(default=256 * 1024 * 1024, ge=1_024)
    """Largest request; each holds so much of the disk at most."""
    upload_s: float = Field(default=600.0, gt=0, le=86_400)
    """Longest upload."""
    keep_s: float = Field(default=600.0, gt=0, le=86_400)
    """How long a result is kept for its client."""


class EvaluatorSettings(Section):
    """Jobs of encrypted inference: a peer evaluates models on requests, both of which it can't read."""

    enabled: bool = False
    """Evaluate whatever is asked for on the chain, if governance lists this account's organisation."""
    minimum_fee: int = Field(default=1, ge=0)
    """Least fee above the model's price that a job must offer, smallest units."""
    max_blob_bytes: int = Field(default=1024 * 1024 * 1024, ge=1_024)
    """Largest model, keys, request or result; longer ones are left to others."""
    max_waiting: int = Field(default=16, ge=1, le=1_024)
    """Most jobs that are fetched or evaluated at once; one is evaluated at a time."""
    max_seconds: float = Field(default=3_600.0, gt=0)
    """Longest evaluation, predicted of a quiet core from the model's bytes; others take longer ones."""


class FederationSettings(Section):
    """Federated rounds: a validator checks and adds encrypted updates, and judges models on its own data."""

    enabled: bool = True
    """Take a validator's part in every federation of the chain."""
    data: Path | None = Field(default=None, repr=False)
    """Labelled scans of this validator's own (`.npz`), on which it judges; without any it judges nothing."""
    max_seconds: float = Field(default=3_600.0, gt=0)
    """Longest check, sum or judgement; what takes longer is given up."""


class CustodySettings(Section):
    """Where the custody keeps the keys of tasks and federations."""

    keys_dir: Path | None = Field(default=None, repr=False)
    """Directory of its keys, apart from the node's own; default `data_dir`."""
    encrypted: bool = False
    """Make no keys without the custody's passphrase; where one is set, they are sealed in any case."""
    recompute: float = Field(default=0.25, ge=0, le=1)
    """Share of a committee's confirmed bundles that this member computes anew before it opens them."""
    settle_ms: int = Field(default=200, ge=1, le=60_000)
    """How long a member listens for contradictions before it answers; longer than messages take."""
    lead_ms: int = Field(default=5_000, ge=10, le=3_600_000)
    """After which the next member leads an opening that did not come."""
    retry_ms: int = Field(default=15_000, ge=10, le=3_600_000)
    """After which missing parts of an opening count as refused, and other members open."""


class ClusterSettings(Section):
    """Further machines that train for this miner: a Dask cluster of the operator's own."""

    scheduler: str | None = Field(default=None, pattern=r"^(tls|tcp)://[A-Za-z0-9_.\[\]:-]+:[0-9]{1,5}$")
    """tls://HOST:PORT of the scheduler, tcp:// on loopback only; none: this machine alone."""
    authority: Path | None = None
    """Authority of the cluster's certificates; not the consortium's. PEM."""
    certificate: Path | None = None
    """This node's certificate in the cluster."""
    key: Path | None = None
    """Its key, mode 0600."""

    @property
    def is_tls(self) -> bool:
        """Whether the scheduler speaks TLS."""
        return self.scheduler is not None and self.scheduler.startswith("tls://")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.scheduler is None:
            return self
        if self.is_tls and not (self.authority and self.certificate and self.key):
            raise ValueError("a scheduler of tls:// needs authority, certificate and key")
        host = self.scheduler.partition("://")[2].rpartition(":")[0]
        if not self.is_tls and not is_loopback(host.strip("[]")):
            raise ValueError("who reaches a scheduler runs code here: use tls:// beyond this machine")
        return self


class LimitSettings(Section):
    """Bounds on memory, disk and requests."""

    max_request_bytes: int = Field(default=8 * 1024 * 1024, ge=1_024)
    """Largest request body on the public API."""
    max_blob_bytes: int = Field(default=1024 * 1024 * 1024, ge=1_024)
    """Largest single blob stored or fetched."""
    blob_quota_bytes: int = Field(default=64 * 1024 * 1024 * 1024, ge=1_024)
    """All blobs together."""
    min_free_bytes: int = Field(default=256 * 1024 * 1024, ge=0)
    """Free bytes of the disk of `data_dir` below which no more blobs are taken and `/readyz` says no; what is
    left is for the ledger. 0: until the disk is full."""
    mempool_transactions: int = Field(default=20_000, ge=1)
    """Most transactions waiting."""
    mempool_bytes: int = Field(default=64 * 1024 * 1024, ge=1_024)
    """All of them together."""
    event_history: int = Field(default=10_000, ge=16)
    """Events kept for replay after `Last-Event-ID`."""


class LogSettings(Section):
    """Records of the process, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""
    format: Literal["text", "json"] = "text"
    """One line a record for people, or one JSON object a line for collectors."""
    access: bool = False
    """Record every request of the APIs: method, path, status, seconds, client; never bodies or queries."""
    slow_request_s: float = Field(default=1.0, ge=0, le=3_600)
    """Requests that take longer are recorded as warnings; 0: none."""
