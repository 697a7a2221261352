"""The composition root: builds a node from its settings, runs its services, stops in order."""

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack
from importlib.metadata import version

from consensus.types import Address
from node.accuser import Accuser
from node.announcer import EventAnnouncer
from node.api.app import build_operator_app, build_public_app
from node.api.fusions import UPLOAD_PATH
from node.api.operator import load_token
from node.api.view import NodeInfo
from node.blobs import BlobStore
from node.ceremonies import Ceremonies
from node.chain import Chain
from node.clock import Clock, SystemClock
from node.cluster import ClusterPool, check_setup
from node.config import NodeConfig, Role
from node.core import Core
from node.custody_keys import CustodyKeys
from node.descriptors import OPERATOR, DescriptorWatch, plan, raise_limit
from node.disk import DiskWatch
from node.equivocation import OpeningWitness
from node.events import EventBus
from node.evidence import VoteWatch
from node.federated_work import FederatedLearning
from node.federation_retention import FederationPruner
from node.federator import Federator
from node.fetch import BlobFetcher
from node.fusions import FusionDesk
from node.genesis import load_genesis
from node.gossip.bookfile import FilePeerStore
from node.gossip.http import PeerNetwork
from node.gossip.messages import Kind
from node.gossip.settings import build_network_config, build_security
from node.handlers import PeerHandlers
from node.history import WeightHistory
from node.jobs import JobExpirer, JobPruner
from node.keystore import load_account_key
from node.ledger.level import LevelStore
from node.ledger_retention import LedgerPruner
from node.lightview import LightView
from node.mempool import Mempool
from node.metrics.node import NodeMetrics
from node.miner import Miner
from node.pending import OwnTransactions
from node.proposer import Proposer
from node.protocol import get_known_version
from node.recomputer import Recomputer
from node.retention import Pruner
from node.serving import OPERATOR_TIMES, Room, serve
from node.settings import is_loopback
from node.skew import SkewWatch
from node.sync.service import SyncService
from node.tls import TlsFiles
from node.upgrade import UpgradeWatch
from node.validator import Availability, Expirer, Settler
from node.verdicts import Judge
from node.view import CoreOperator, CoreView
from node.voter import Voter, WitnessDesk
from node.work import VerdictBook, WorkService

logger = logging.getLogger(__name__)

DRAIN_SHARE = 0.75
"""Of `stop_timeout_s`: how long what is under way is waited for."""


class Node:
    """One node: everything that `bmif run` starts.

    Construction opens the ledger and raises ConfigError, GenesisError, KeyFileError, StoreError,
    SchemaError, LedgerError or UpgradeRequired, each with its remedy; `run` serves until it is cancelled.
    """

    def __init__(self, config: NodeConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.metrics = NodeMetrics()
        self._budget = plan(config, raise_limit())
        self._rooms = (
            Room(self._budget.api_connections, self._budget.backlog),
            Room(OPERATOR, OPERATOR // 4),
        )
        config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        genesis = load_genesis(config.genesis)
        key = load_account_key(config.account_key)
        if Role.CUSTODY in config.roles:
            CustodyKeys(config.custody_dir).check()
        self._store = LevelStore(config.data_dir / "ledger")
        limits = config.limits
        blobs = BlobStore(
            config.data_dir / "blobs", limits.blob_quota_bytes, limits.max_blob_bytes, limits.min_free_bytes
        )
        verdicts = VerdictBook()
        chain = Chain(genesis, self._store, self.clock, verdicts, get_known_version())
        verdicts.open(chain.ledger)
        self.core = Core(
            chain,
            Mempool(limits.mempool_transactions, max_bytes=limits.mempool_bytes),
            blobs,
            WorkService(blobs, verdicts, config.workers, self.metrics.jobs),
            WeightHistory(chain.ledger),
            EventBus(limits.event_history, self.clock.now_ms()),
            self.clock,
            key,
        )
        chain.on_head_change(self.core.on_head_change)
        UpgradeWatch(self.core).check()
        self._pending = OwnTransactions(self.core)
        chain.on_accepted(lambda block, data: self.core.announce(Kind.BLOCK, block, data))
        self._recomputer = Recomputer(self.core)
        OpeningWitness(self.core)
        self._announcer = EventAnnouncer(chain, self.core.events, self.clock)
        self._watch = VoteWatch(self.core)
        self._watch.on_conflict(self._announcer.on_conflict)
        self._proposer = Proposer(self.core)
        self._handlers = PeerHandlers(self.core, self._recomputer)
        self.network = self._build_network()
        self.core.skew = SkewWatch(
            self.clock,
            self.network.get_clock_offsets,
            self.network.forget_clock_offsets,
            genesis.params.slot_ms,
        )
        self.sync = SyncService(self.core, self.network, self._recomputer, config)
        self.sync.trust.on_conflict(self._watch.on_proofs)
        self._fusions = FusionDesk(
            config.fusion_requests, config.data_dir / "fusions", self.clock, observer=self.metrics.jobs
        )
        counted = self.metrics.attach(self.core, config.data_dir, config.tls, self.network.get_totals)
        self._watch.on_conflict(counted.on_conflict)

    def _build_network(self) -> PeerNetwork:
        config = self.config
        return PeerNetwork(
            build_network_config(
                config.peer.model_copy(update={"max_connections": self._budget.peer_connections})
            ),
            TlsFiles(config.tls.certificate, config.tls.key, config.tls.authority, config.tls.revoked),
            self._handlers,
            self.clock,
            self.core.blobs,
            FilePeerStore(config.data_dir / "peers.bin"),
            security=build_security(config.peer, config.tls, self.core.address, self._get_organisation),
        )

    def _get_organisation(self, account: Address) -> str:
        return self.core.chain.head_state.get_account(account).organisation

    def _get_info(self) -> NodeInfo:
        config, chain = self.config, self.core.chain
        account = chain.head_state.get_account(self.core.address)
        return NodeInfo(
            name=config.name,
            version=version("bmif"),
            network=chain.genesis.name,
            chain_id=chain.chain_id,
            address=self.core.address,
            organisation=account.organisation,
            roles=tuple(sorted(role.value for role in config.roles)),
            peer_address=config.advertised,
            started=self.clock.now_ms(),
        )

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Serve until cancelled; everything is stopped and the ledger closed when this returns.

        Raises what a service raised: a node does not limp on without one of its services.
        """
        async with AsyncExitStack() as stack:
            stack.callback(self._store.close)
            stack.callback(self.core.work.close)
            stack.callback(self.core.vote_memory.flush)
            self.network.serve_witness(WitnessDesk(self.core))
            await self.network.start()
            stack.push_async_callback(self.network.stop)
            fetcher = BlobFetcher(self.core.blobs, self.network.get_blob_sources, self.clock)
            stack.push_async_callback(fetcher.close)
            self.core.attach_network(self.network, fetcher)
            await self._start_apis(stack)
            logger.info(
                "node %s of %s is up: api %s:%d, peers %s",
                self.config.name,
                self._get_info().organisation or "no organisation",
                self.config.api.host,
                self.config.api.port,
                self.config.advertised,
            )
            if ready is not None:
                ready.set()
            async with asyncio.TaskGroup() as services:
                self._start_services(services)

    def _start_services(self, group: asyncio.TaskGroup) -> None:
        group.create_task(self.core.wait_failed(), name="failure")
        group.create_task(self.network.wait_failed(), name="network")
        group.create_task(self._fusions.run(), name="fusions")
        disk = DiskWatch(self.config.data_dir, self.config.limits.min_free_bytes, self.clock)
        group.create_task(disk.run(), name="disk")
        watch = DescriptorWatch(
            self.clock, self._budget.limit, lambda: sum(room.shed for room in self._rooms)
        )
        group.create_task(watch.run(), name="descriptors")
        if self.core.skew is not None:
            group.create_task(self.core.skew.run(), name="clock skew")
        group.create_task(self._follow(group), name="start")

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        """Everything that follows the chain, once there is one to follow."""
        await self.sync.prepare()
        config, core = self.config, self.core
        group.create_task(self.sync.run(), name="sync")
        group.create_task(self._pending.run(), name="own transactions")
        group.create_task(self._recomputer.run(), name="recomputer")
        group.create_task(self._proposer.run(), name="proposer")
        group.create_task(self._watch.run(), name="vote watch")
        group.create_task(Pruner(core, config.retention).run(), name="pruner")
        ledger_pruner = LedgerPruner(core, self._store, self.sync.service.prover, config.retention)
        group.create_task(ledger_pruner.run(), name="ledger pruner")
        expirer = JobExpirer(core, own_only=Role.VALIDATOR not in config.roles)
        group.create_task(expirer.run(), name="job expirer")
        federation_pruner = FederationPruner(core, config.retention)
        job_pruner = JobPruner(core, config.retention, federation_pruner.get_needed)
        federation_pruner.spare(job_pruner.get_needed)
        group.create_task(job_pruner.run(), name="job pruner")
        group.create_task(federation_pruner.run(), name="federation pruner")
        if config.evaluator.enabled:
            from node.evaluator import SCRATCH, Evaluator

            evaluator = Evaluator(core, config.evaluator, config.data_dir / SCRATCH)
            group.create_task(evaluator.run(), name="evaluator")
        if Role.VALIDATOR in config.roles:
            group.create_task(Voter(core, self.network).run(), name="voter")
            group.create_task(Availability(core).run(), name="availability")
            group.create_task(Expirer(core).run(), name="expirer")
            group.create_task(Settler(core).run(), name="settler")
            group.create_task(Accuser(core, config.data_dir / "scratch").run(), name="accuser")
            group.create_task(Judge(core, config.verdict, config.data_dir).run(), name="judge")
            if config.federation.enabled:
                scratch = config.data_dir / "federated"
                federator = Federator(core, config.federation, scratch, FederatedLearning())
                group.create_task(federator.run(), name="federator")
        if Role.MINER in config.roles:
            if config.cluster.scheduler is not None:
                cluster = ClusterPool(config.cluster, self.clock, core.work.observer)
                core.work.attach_cluster(cluster)
                group.create_task(cluster.run(), name="cluster")
            miner = Miner(core, config.workers, config.data_dir / "scratch", config.retention)
            group.create_task(miner.run(), name="miner")
        if Role.CUSTODY in config.roles:
            # Imported here: nobody but a custody has use for what decrypts.
            from node.custody import Custody

            is_archive = config.retention.policy == "archive"
            keys = CustodyKeys(config.custody_dir)
            custody = Custody(core, config.custody_dir, config.workers, keep_bundles=is_archive, keys=keys)
            group.create_task(custody.run(), name="custody")
            from node.federation_custody import FederationCustody

            opener = FederationCustody(
                core, config.data_dir, config.federation, FederatedLearning(), config.custody_dir, keys
            )
            group.create_task(opener.run(), name="federation custody")
            is_sealed = config.custody.encrypted
            ceremonies = Ceremonies(core, config.custody_dir, encrypted=is_sealed, keys=keys)
            group.create_task(ceremonies.run(), name="ceremonies")
            from node.committee.service import CommitteeCustody, build_member_settings

            settings = build_member_settings(config.custody, keep_bundles=is_archive)
            members = CommitteeCustody(
                core, config.custody_dir, config.data_dir / "committee", keys, settings
            )
            group.create_task(members.run(), name="committee custody")

    async def _start_apis(self, stack: AsyncExitStack) -> None:
        config = self.config
        view = CoreView(self.core, self.network, self._get_info(), lambda: self.sync.progress, config)
        light = LightView(self.core.chain, self.sync.service)
        app = build_public_app(
            view, config, self.metrics.registry, light=light, fusions=self._fusions, drain=self.core.drain
        )
        await serve(
            stack, app, config.api.host, config.api.port, free=frozenset((UPLOAD_PATH,)), room=self._rooms[0]
        )
        if not is_loopback(config.api.host):
            logger.warning(
                "the public API at %s:%d is plain HTTP and reachable from other machines: put TLS before it",
                config.api.host,
                config.api.port,
            )
        if config.operator.enabled:
            token = load_token(config.token_file)
            operator = CoreOperator(self.core, is_custody=Role.CUSTODY in config.roles)
            app = build_operator_app(view, operator, config, token, self.core.drain)
            await serve(
                stack,
                app,
                config.operator.host,
                config.operator.port,
                times=OPERATOR_TIMES,
                room=self._rooms[1],
            )


def _give_up(seconds: float) -> None:
    """A stop that hangs ends hard: the ledger is safe at any moment."""
    logger.error("not stopped after %.0f s: ending at once", seconds)
    os._exit(1)


async def run_node(config: NodeConfig) -> None:
    """Run a node until SIGTERM or SIGINT, then stop it within `stop_timeout_s`; a second one ends it at once.

    Before it stops it drains: it finishes what it has begun, and serves everybody else meanwhile.
    """
    check_setup(config.cluster)
    node = Node(config)
    serving = asyncio.create_task(node.run(), name="node")
    loop = asyncio.get_running_loop()

    stopping: list[asyncio.Task[None]] = []

    async def drain() -> None:
        """What is under way gets most of the time; the rest is for closing what is open."""
        try:
            node.core.drain.begin()
            await node.core.drain.wait(config.stop_timeout_s * DRAIN_SHARE)
        finally:
            serving.cancel()

    def stop() -> None:
        if stopping:
            logger.warning("told to stop again: ending at once")
            os._exit(1)
        stopping.append(asyncio.create_task(drain(), name="drain"))
        loop.call_later(config.stop_timeout_s, _give_up, config.stop_timeout_s)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, node.network.certificates.look)
    try:
        await serving
    except asyncio.CancelledError:
        logger.info("stopped")
