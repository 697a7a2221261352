"""What a hostile miner does to a rig's task, and the honest miner who completes it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

from consensus.codec import decode
from consensus.crypto import hash_domain
from consensus.gossip_rules import Outcome
from consensus.state import TaskStatus
from consensus.task import BlobRef, Claim
from consensus.types import Hash32
from node.gossip.messages import Kind
from node.miner import Miner
from tests.integration.material import PRESET, SPEC, Material
from tests.integration.rig import Mallory, Rig, wait_until
from workloads.base import GradientJob, KeyFile
from workloads.fusion import WORKLOAD

MISSING = hash_domain("test", b"nobody has this")


def compute_bundle(material: Material, batch: int, output: Path) -> None:
    """The canonical bundle of a batch at the initial weights."""
    # Workers keep a loaded key under its root, so another key must have another.
    keys = KeyFile(sha256(material.relin_keys.read_bytes()).digest(), material.relin_keys)
    path = material.training[batch][0]
    WORKLOAD.run_gradient(GradientJob(PRESET, material.model, material.weights, keys, path, output))


async def claim_wrong_bundles(
    rig: Rig, mallory: Mallory, material: Material, directory: Path
) -> tuple[BlobRef, BlobRef]:
    """Batch 0: the right bundle of batch 1. Batch 1: right length, wrong bytes. Both are refused when this
    returns, and nothing is opened; the two bundles.

    The first is the worst: refused for batch 0, it must still be accepted from an honest miner for batch 1.
    """
    custody = rig.nodes["node1"].core
    await asyncio.to_thread(compute_bundle, material, 1, directory / "bundle")
    right = await mallory.blobs.put_file(directory / "bundle")
    wrong = mallory.blobs.put_bytes(bytes(right.length))
    mallory.claim(mallory.build_claim(0, right))
    mallory.claim(mallory.build_claim(1, wrong))
    refused = custody.chain.ledger.iterate_records
    await wait_until(lambda: len(list(refused(b"refused/"))) == 2, "both bundles are refused")
    assert rig.get_task().step == 0
    assert custody.chain.ledger.get_record(b"opening/gradient/" + rig.task + bytes(4)) is None
    return right, wrong


@asynccontextmanager
async def mining(rig: Rig, directory: Path) -> AsyncIterator[None]:
    """node2 mines until the block ends."""
    miner = asyncio.create_task(Miner(rig.nodes["node2"].core, 1, directory / "scratch").run())
    try:
        yield
    finally:
        miner.cancel()
        await asyncio.gather(miner, return_exceptions=True)


def has_bundles(rig: Rig) -> bool:
    """Whether the hospital still keeps bundles that it mined."""
    size = WORKLOAD.get_sizes(PRESET, SPEC.encode()).bundle
    return any(ref.length == size for ref in rig.nodes["node2"].core.blobs.get_refs())


async def mine_to_the_end(rig: Rig, directory: Path) -> None:
    """node2 completes the task."""
    async with mining(rig, directory):
        await wait_until(lambda: rig.get_task().status is TaskStatus.COMPLETE, "the task completes")
        await wait_until(lambda: not has_bundles(rig), "the miner drops its last bundles")


async def wait_suspended(rig: Rig, mallory: Mallory) -> None:
    """Until her organisation is, everywhere, and all agree."""
    organisation = rig.get_state().get_account(mallory.key.address).organisation
    await wait_until(
        lambda: all(organisation in rig.get_state(name).get_suspended() for name in rig.nodes),
        "Mallory's organisation is suspended",
    )
    await rig.wait_agreement()


class Copycat(Mallory):
    """Signs in her own name whatever bundle anybody claims, as soon as she hears of it."""

    def __init__(self, rig: Rig, name: str, directory: Path) -> None:
        super().__init__(rig, name, directory)
        self.copied: set[Hash32] = set()

    async def on_object(self, kind: Kind, object_id: Hash32, data: bytes, peer: str) -> Outcome:
        if kind is Kind.CLAIM and object_id not in self.copied:
            self.copied.add(object_id)
            claim = decode(Claim, data)
            if claim.miner != self.key.address:
                copy = self.build_claim(claim.batch, claim.bundle, claim.step, claim.task)
                self.copied.add(self.claim(copy))
        return await super().on_object(kind, object_id, data, peer)
