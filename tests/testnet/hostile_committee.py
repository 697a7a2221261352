"""Nodes that attack a committee's task: real nodes, but for what they do to the others.

`python -c "from tests.testnet.hostile_committee import spoil; spoil()" NODE.YAML`, or `spoil_all`, `choose`.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np

from he.formats import build_bundle_layout
from he.plan import build_plan
from node.committee import mining, share
from node.config import NodeConfig
from node.daemon import run_node
from node.logs import configure_logging
from node.tasks import TaskDefinition
from node.work import WorkService
from workloads.committee_opener import CommitteeOpener, OpeningJob, get_moduli
from workloads.fusion import WORKLOAD, FusionSpec


class SpoilingOpener(CommitteeOpener):
    """Gives parts of another key in every first attempt at a gradient."""

    def run_part(self, job: OpeningJob) -> tuple[tuple[int, ...], ...]:
        if job.kind == "loss" or job.attempt > 1:
            return CommitteeOpener.run_part(self, job)
        return make_wrong(self, job)


class WrongOpener(CommitteeOpener):
    """Gives wrong parts of everything."""

    def run_part(self, job: OpeningJob) -> tuple[tuple[int, ...], ...]:
        return make_wrong(self, job)


def make_wrong(opener: CommitteeOpener, job: OpeningJob) -> tuple[tuple[int, ...], ...]:
    moduli = get_moduli(job.kind, job.preset, job.model, opener.workload)
    return tuple(
        tuple((value + prime // 3) % prime for value, prime in zip(row, primes, strict=True))
        for row, primes in zip(CommitteeOpener.run_part(opener, job), moduli, strict=True)
    )


def spoil() -> None:
    """A member with a wrong share."""
    setattr(share, "CommitteeOpener", SpoilingOpener)  # noqa: B010  # what the member's service makes
    _run()


def spoil_all() -> None:
    """One that is wrong in every attempt, of losses too."""
    setattr(share, "CommitteeOpener", WrongOpener)  # noqa: B010
    _run()


def plant(path: Path, preset: str, model: bytes) -> None:
    """Puts (c0, 2^57) for every ciphertext: its opening would tell of the key far beyond the noise."""
    plan = build_plan(WORKLOAD.get_params(preset), FusionSpec.decode(model).circuit)
    data = bytearray(path.read_bytes())
    for body in build_bundle_layout(plan).bodies:
        half = body.form.level * plan.params.ring * 8
        start = body.offset + half
        data[start : start + half] = np.full(half // 8, 1 << 57, dtype="<u8").tobytes()
    path.write_bytes(data)


def choose() -> None:
    """A miner that seals chosen ciphertexts and tells members of them at once."""
    honest = WorkService.compute_bundle

    async def compute(
        self: WorkService, definition: TaskDefinition, batch: int, weights: tuple[int, ...], output: Path
    ) -> None:
        await honest(self, definition, batch, weights, output)
        await asyncio.to_thread(plant, output, definition.draft.preset, definition.draft.model)

    def is_tellable(*_: object) -> bool:
        return True

    setattr(WorkService, "compute_bundle", compute)  # noqa: B010
    setattr(mining.CommitteeMining, "_is_tellable", is_tellable)  # noqa: B010
    _run()


def _run() -> None:
    settings = NodeConfig.load(Path(sys.argv[1]))
    configure_logging(settings.log, settings.name)
    asyncio.run(run_node(settings))
