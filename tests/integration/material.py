"""Keys and encrypted batches of one small task, made once: real ciphertexts at the full ring."""

from dataclasses import dataclass
from pathlib import Path

from consensus.task import Batch, BlobRef, Draft, Milestone, Optimizer, PatientRange, PublishTask
from consensus.types import ZERO_HASH, Amount, Hash32, Millis
from workloads.custodian import generate_keys
from workloads.encryption import ContributionPlan
from workloads.fusion import WORKLOAD, FusionSpec
from workloads.imaging import PairSource, encrypt_pairs, load_pairs

PRESET = "ckks-16384-60x5"
SPEC = FusionSpec(patch=5, kernels=(3,))
"""The smallest network: a bundle takes a third of a second."""
UNIT = 2**20
STEPS = 8
BATCHES = 3
BATCH_FEE = Amount(3)
REWARD = Amount(1_000)
BOND = Amount(500)


@dataclass(frozen=True, slots=True)
class Material:
    """Files of one contribution, three training batches and one for validation, and the keys to it."""

    keys: Path
    """The custody's directory: secret key, public keys."""
    training: tuple[tuple[Path, int], ...]
    """Files and their numbers of patches."""
    validation: tuple[tuple[Path, int], ...]
    patients: tuple[PatientRange, ...]

    @property
    def model(self) -> bytes:
        return SPEC.encode()

    @property
    def relin_keys(self) -> Path:
        return self.keys / "relin.keys"

    def build_draft(self, public_key: BlobRef, relin_keys: BlobRef) -> Draft:
        return Draft(
            kind="fusion-training",
            title="integration",
            salt=bytes(16),
            preset=PRESET,
            model=self.model,
            parameters=SPEC.parameters,
            weight_box=8 * UNIT,
            public_key=public_key,
            relin_keys=relin_keys,
            clipping="per-patch",
            gradient_scale_bits=20,
            gradient_clip=UNIT // 2,
            gradient_noise=UNIT // 4,
            loss_scale_bits=20,
            loss_clip=UNIT // 2,
            loss_noise=1,
            max_gradient_openings=STEPS,
            max_loss_openings=STEPS,
            privacy="none: synthetic images",
            ceremony=ZERO_HASH,
        )

    def build_publication(
        self, draft: Hash32, contribution: Hash32, deadline: Millis, target: float
    ) -> PublishTask:
        """One rung; every step takes all three batches."""
        patches = sum(patches for _, patches in self.training)
        return PublishTask(
            draft=draft,
            contributions=(contribution,),
            order=tuple(range(BATCHES)),
            batches_per_step=BATCHES,
            initial_weights=self.weights,
            optimizer=Optimizer(40, (round(0.05 * 2.0**40 / patches),) * STEPS),
            loss_schedule=tuple(range(STEPS)),
            ladder=(Milestone(round(target * UNIT), REWARD),),
            batch_fee=BATCH_FEE,
            bond=BOND,
            deadline=deadline,
        )

    @property
    def weights(self) -> tuple[int, ...]:
        return WORKLOAD.build_initial_weights(self.model, 1)


def build_batches(refs: list[BlobRef], files: tuple[tuple[Path, int], ...]) -> tuple[Batch, ...]:
    return tuple(Batch(ref, patches) for ref, (_, patches) in zip(refs, files, strict=True))


def make_material(directory: Path) -> Material:
    """Some seconds of one core."""
    generate_keys(PRESET, directory / "keys")
    pairs = load_pairs(PairSource(phantoms=3, phantom_seed=5))
    plan = ContributionPlan(BATCHES, 1, (max(pair.patient for pair in pairs),), 1, 256)
    made = encrypt_pairs(
        PRESET, SPEC.encode(), directory / "keys" / "public.key", pairs, plan, directory / "batches"
    )
    return Material(
        directory / "keys",
        tuple((batch.path, batch.patches) for batch in made.training),
        tuple((batch.path, batch.patches) for batch in made.validation),
        tuple(PatientRange(r.patient, r.validation, r.batch, r.start, r.stop) for r in made.patients),
    )
