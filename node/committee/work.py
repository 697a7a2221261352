"""A member's jobs for worker processes: its part of an opening, and the sum of all parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from consensus.types import Hash32
from node.committee.messages import GradientContent, LossContent
from node.committee.ports import PartWanted, SumWanted
from node.tasks import TaskDefinition
from node.work import WorkerPool, WorkService
from workloads.committee_opener import CommitteeOpener, OpeningJob, SumJob, run_sum
from workloads.fusion import WORKLOAD, FusionTraining


@dataclass(frozen=True, slots=True)
class OpeningWorkers:
    """Of one step. Jobs name files by what is confirmed, so no proposal leads to another ciphertext."""

    pool: WorkerPool
    opener: CommitteeOpener
    work: WorkService
    definition: TaskDefinition
    weights: tuple[int, ...]
    losses: Mapping[Hash32, tuple[Path, ...]]
    """Files of loss ciphertexts by their hash."""
    workload: FusionTraining = WORKLOAD

    async def compute_part(self, wanted: PartWanted, opening: Hash32) -> tuple[tuple[int, ...], ...]:
        """Raises: WorkloadError, MissingBlob."""
        return await self.pool.run(self.opener.run_part, self._build(wanted, opening))

    async def compute_sum(self, wanted: SumWanted) -> tuple[int, ...] | None:
        """Raises: WorkloadError, MissingBlob."""
        job = SumJob(self._build(wanted, Hash32(bytes(32))), wanted.parts)
        return await self.pool.run(run_sum, job, self.workload)

    def _build(self, wanted: PartWanted | SumWanted, opening: Hash32) -> OpeningJob:
        draft, content = self.definition.draft, wanted.content
        if isinstance(content, LossContent):
            batches, files = self.definition.validation, self.losses[content.ciphertext]
            kind, noise, bits = "loss", (draft.loss_noise, draft.loss_clip), draft.loss_scale_bits
        else:
            batches = tuple(self.definition.training[claim.batch] for claim in content.claims)
            files = tuple(self.work.get_path(root) for root in get_roots(content))
            kind, noise, bits = (
                "gradient",
                (draft.gradient_noise, draft.gradient_clip),
                draft.gradient_scale_bits,
            )
        return OpeningJob(
            kind,
            draft.preset,
            draft.model,
            self.weights,
            files,
            sum(batch.patches for batch in batches),
            noise,
            bits,
            wanted.subset,
            wanted.attempt,
            opening,
        )


def get_roots(content: GradientContent) -> tuple[Hash32, ...]:
    return tuple(claim.bundle.root for claim in content.claims)
