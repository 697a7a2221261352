"""Counters of a chain: listeners of the chain and of the core, each told of what happens once."""

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from consensus.block import Block
from consensus.payload import Payload, Verdict
from consensus.task import OpenGradient, OpenLoss
from consensus.vote import Vote
from node.admission import Admission
from node.chain import HeadChange, Imported
from node.core import Core
from node.signstate import SignStateStore

INTERVALS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 30, 60, 120, 300, 600, 1_800)
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


class ChainMetrics:
    """What joined the head chain, what was refused, and who voted."""

    def __init__(self, registry: CollectorRegistry, core: Core) -> None:
        self._core = core
        self._imported = Counter(
            "bmif_blocks_judged",
            "Blocks judged, by what became of them",
            ["status", "reason"],
            registry=registry,
        )
        self._connected = Counter(
            "bmif_blocks_connected", "Blocks that joined the head chain", ["kind"], registry=registry
        )
        self._proposed = Counter(
            "bmif_blocks_proposed", "Blocks of this node's own that joined the head chain", registry=registry
        )
        self._interval = Histogram(
            "bmif_block_interval_seconds",
            "Time between a block of the head chain and its parent",
            buckets=INTERVALS,
            registry=registry,
        )
        self._reorgs = Histogram(
            "bmif_reorg_depth_blocks",
            "Blocks undone by a change of branch",
            buckets=DEPTHS,
            registry=registry,
        )
        self._transactions = Counter(
            "bmif_transactions", "Transactions that joined the head chain", ["kind"], registry=registry
        )
        self._openings = Counter(
            "bmif_openings", "Openings that joined the head chain", ["kind"], registry=registry
        )
        self._verdicts = Counter(
            "bmif_verdicts", "Verdicts that joined the head chain", ["verdict"], registry=registry
        )
        self._bundles = Counter(
            "bmif_bundle_bytes",
            "Bytes of the gradient bundles that steps were opened from",
            registry=registry,
        )
        self._admitted = Counter(
            "bmif_mempool_admissions",
            "Transactions submitted, by what became of them",
            ["reason"],
            registry=registry,
        )
        self._cast = Counter("bmif_votes_cast", "Votes of this node's own", registry=registry)
        self._conflicts = Counter(
            "bmif_finality_conflicts",
            "Pairs of blocks that exclude each other with a quorum each",
            registry=registry,
        )
        self._show_from_start()
        last = SignStateStore(core.chain.ledger, core.address).last
        self._voted = -1 if last is None else last.target.height
        core.chain.on_imported(self._on_imported)
        core.chain.on_head_change(self._on_head_change)
        core.admissions.on_admission(self._on_admission)
        core.on_vote(self._on_vote)

    def _show_from_start(self) -> None:
        """A series that begins with its first event shows no increase for it."""
        for kind in ("work", "carrier"):
            self._connected.labels(kind)
        for kind in ("gradient", "loss"):
            self._openings.labels(kind)
        for payload in get_args(Payload):
            self._transactions.labels(payload.__name__)
        for verdict in ("accept", "reject"):
            self._verdicts.labels(verdict)
        self._imported.labels("accepted", "")
        self._admitted.labels("")

    def on_conflict(self, conflict: object) -> None:
        self._conflicts.inc()

    def _on_imported(self, imported: Imported) -> None:
        reason = "" if imported.reason is None else str(imported.reason)
        self._imported.labels(imported.status.value, reason).inc()

    def _on_admission(self, admission: Admission) -> None:
        # Reasons are names of rules, never what the sender wrote.
        self._admitted.labels("KNOWN" if admission.known else admission.reason).inc()

    def _on_vote(self, vote: Vote) -> None:
        """Own votes come back in blocks: those of a greater height than any before are new."""
        if vote.validator == self._core.address and vote.target.height > self._voted:
            self._voted = vote.target.height
            self._cast.inc()

    def _on_head_change(self, change: HeadChange) -> None:
        if change.disconnected:
            self._reorgs.observe(len(change.disconnected))
        for block in change.connected:
            self._count(block)

    def _count(self, block: Block) -> None:
        header, body = block.header, block.body
        self._connected.labels("carrier" if body.work is None else "work").inc()
        if header.proposer == self._core.address:
            self._proposed.inc()
        parent = self._core.chain.get_header(header.parent)
        if parent is not None and parent.height:  # the time of genesis is anybody's choice
            self._interval.observe((header.time - parent.time) / 1000)
        for transaction in body.transactions:
            payload = transaction.payload
            self._transactions.labels(type(payload).__name__).inc()
            match payload:
                case OpenGradient():
                    self._openings.labels("gradient").inc()
                    self._bundles.inc(sum(claim.bundle.length for claim in payload.claims))
                case OpenLoss():
                    self._openings.labels("loss").inc()
                case Verdict():
                    self._verdicts.labels("accept" if payload.accept else "reject").inc()
                case _:
                    pass
