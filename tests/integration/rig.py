"""Whole nodes in this process, as `bmif run` starts them, and a scripted hostile one beside them.

LevelDB, HTTPS with mutual TLS, worker processes and ciphertexts are the real ones; only the hostile node's
will is ours.
"""

import asyncio
import random
import shutil
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import yaml

from consensus.claims import sign_claim
from consensus.codec import encode
from consensus.identifiers import compute_draft_hash, compute_task_id
from consensus.payload import Payload
from consensus.state import State, TaskState, TaskStatus
from consensus.task import BlobRef, Claim, Contribute, DraftTask
from consensus.transaction import compute_transaction_id
from consensus.types import ZERO_HASH, Hash32, Millis
from node.blobs import BlobStore
from node.chain import Chain
from node.claims import compute_claim_id
from node.clock import SystemClock
from node.config import NodeConfig
from node.custody import get_keys_directory
from node.daemon import Node
from node.genesis import load_genesis
from node.gossip.http import HttpTransport
from node.gossip.messages import Kind
from node.gossip.network import Network, NetworkConfig
from node.keystore import load_account_key
from node.testnet import PORTS_PER_NODE, Profile, Testnet, init_testnet
from node.tls import TlsFiles
from tests.integration.intruder import HostileHandlers
from tests.integration.material import Material, build_batches
from tests.unit.consensus.world import count_money

DEADLINE_S = 180.0
"""Far more than anything here takes on an idle machine."""
PARAMS = {
    "min_block_ms": 100,
    "idle_ms": 200,
    "slot_ms": 500,
    "rank_ms": 500,
    "lease_ms": 2_000,
    "verdict_ms": 3_000,
}
MAX_BALANCE = 1_000_000_000


async def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return once the condition holds; looked at often. Fails after the deadline."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    while not condition():
        if loop.time() > end:
            raise TimeoutError(f"{what}: not within {deadline_s:.0f} s")
        await asyncio.sleep(0.02)


def find_free_ports(count: int) -> int:
    """Below the ports that outgoing connections are given: one of those could take them meanwhile."""
    while True:
        base = random.randrange(12_000, 19_900)
        with ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return base


@dataclass(slots=True)
class Rig:
    """node1 is the custody, the others are validators; the last one's place is left to `Mallory`."""

    testnet: Testnet
    nodes: dict[str, Node] = field(default_factory=dict)
    running: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    task: Hash32 = ZERO_HASH

    @classmethod
    def make(cls, directory: Path, nodes: int) -> "Rig":
        profile = Profile(name="rig", params=PARAMS, balance=MAX_BALANCE, node={"stop_timeout_s": 5})
        ports = find_free_ports(PORTS_PER_NODE * nodes)
        return cls(init_testnet(directory, nodes, 0, profile=profile, base_port=ports))

    def set_roles(self, name: str, *roles: str) -> None:
        """What a node does from its next start on."""
        path = self.testnet.get_config_path(name)
        settings = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(settings | {"roles": list(roles)}))

    async def start(self, name: str) -> Node:
        node = Node(NodeConfig.load(self.testnet.get_config_path(name)))
        ready = asyncio.Event()
        task = asyncio.create_task(node.run(ready), name=name)
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            waiting.cancel()
            await task
        self.nodes[name], self.running[name] = node, task
        return node

    async def stop(self, *names: str) -> None:
        """Stop nodes, all by default; what a service raised is raised here."""
        stopping = [self.running.pop(name) for name in names or tuple(self.running)]
        for task in stopping:
            task.cancel()
        for outcome in await asyncio.gather(*stopping, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    def get_state(self, name: str = "node1") -> State:
        return self.nodes[name].core.chain.head_state

    def get_task(self, name: str = "node1") -> TaskState:
        found = self.get_state(name).get_task(self.task)
        assert found is not None
        return found

    def count_money(self) -> int:
        """All that exists."""
        accounts = load_genesis(self.testnet.directory / "genesis.json").accounts
        return count_money(self.get_state(), [account.address for account in accounts])

    async def include(self, name: str, payload: Payload) -> Hash32:
        """Sign with the node's key, admit, and wait until every node has it in a block."""
        core = self.nodes[name].core
        transaction = core.sign(payload)
        admission = core.admit(transaction)
        assert admission.accepted, admission
        ledgers = [node.core.chain.ledger for node in self.nodes.values()]
        await wait_until(
            lambda: all(ledger.find_transaction(admission.id) is not None for ledger in ledgers),
            f"a {type(payload).__name__} is included",
        )
        return compute_transaction_id(transaction)

    async def publish(self, material: Material, target: float) -> None:
        """A task with one rung, contributed by node2; open when this returns."""
        await self.announce_task(material, target, 3_600)
        await wait_until(
            lambda: all(self.get_task(name).status is TaskStatus.OPEN for name in self.nodes),
            "the task opens",
        )

    async def announce_task(
        self, material: Material, target: float, life_s: float, *, withheld: bool = False
    ) -> None:
        """The same before anybody has promised anything; `withheld`: nobody gets the validation blobs."""
        custody, hospital = self.nodes["node1"].core, self.nodes["node2"].core
        public_key = await custody.blobs.put_file(material.keys / "public.key")
        relin_keys = await custody.blobs.put_file(material.relin_keys)
        home = get_keys_directory(self.nodes["node1"].config.data_dir, public_key.root)
        shutil.copytree(material.keys, home)
        draft = material.build_draft(public_key, relin_keys)
        await self.include("node1", DraftTask(draft))
        draft_hash = compute_draft_hash(custody.chain.chain_id, draft)
        training = [await hospital.blobs.put_file(path) for path, _ in material.training]
        validation = [await hospital.blobs.put_file(path) for path, _ in material.validation]
        if withheld:
            for ref in validation:
                hospital.blobs.remove(ref.root)
        contribution = await self.include(
            "node2",
            Contribute(
                draft_hash,
                build_batches(training, material.training),
                build_batches(validation, material.validation),
                material.patients,
            ),
        )
        deadline = Millis(custody.clock.now_ms() + round(1_000 * life_s))
        publication = material.build_publication(draft_hash, contribution, deadline, target)
        self.task = compute_task_id(publication)
        await self.include("node1", publication)

    async def wait_agreement(self) -> None:
        """Return once all nodes have one head and state root."""

        def agrees() -> bool:
            chains = [node.core.chain for node in self.nodes.values()]
            return len({(chain.head_hash, chain.head_state.root) for chain in chains}) == 1

        await wait_until(agrees, "the nodes agree")


class Mallory(HostileHandlers):
    """Holds a node's certificate and account key and does whatever a test says."""

    def __init__(self, rig: Rig, name: str, directory: Path) -> None:
        super().__init__()
        config = NodeConfig.load(rig.testnet.get_config_path(name))
        self.name = name
        self.key = load_account_key(config.account_key)
        self.blobs = BlobStore(directory / "mallory")
        self.files = TlsFiles(config.tls.certificate, config.tls.key, config.tls.authority)
        self._rig = rig
        peers = tuple(f"{node.host}:{node.peer_port}" for node in rig.testnet.nodes if node.name in rig.nodes)
        self.transport = HttpTransport(config.peer.host, config.peer.port, self.files)
        self.network = Network(NetworkConfig(peers), self.transport, self, SystemClock(), self.blobs)

    async def __aenter__(self) -> Self:
        await self.network.start()
        await wait_until(lambda: self.is_linked, "Mallory is linked")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.network.stop()

    @property
    def is_linked(self) -> bool:
        """Both ways, to every node."""
        nodes = self._rig.nodes.values()
        there = all(any(p.node_id == self.name and p.connected for p in n.network.peers()) for n in nodes)
        return there and sum(peer.connected for peer in self.network.peers()) >= len(nodes)

    def get_chain(self) -> Chain:
        return self._rig.nodes["node1"].core.chain

    def get_score(self, at: str = "node1") -> float:
        """Her faults in the eyes of a node."""
        peers = self._rig.nodes[at].network.peers()
        return next((peer.score for peer in peers if peer.node_id == self.name), 0.0)

    def is_banned(self, at: str = "node1") -> bool:
        peers = self._rig.nodes[at].network.peers()
        return any(peer.banned for peer in peers if peer.node_id == self.name)

    def build_claim(self, batch: int, bundle: BlobRef, step: int = 0, task: Hash32 | None = None) -> Claim:
        return sign_claim(self.key, self.chain_id, task or self._rig.task, step, batch, bundle)

    def claim(self, claim: Claim) -> Hash32:
        claim_id = compute_claim_id(claim)
        self.announce(Kind.CLAIM, claim_id, encode(claim))
        return claim_id
