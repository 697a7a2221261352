"""Images by file name, for commands: import pairs, encrypt them for a draft.

Encryption is imported by the call that needs it. It and torch are never in one process: processes that had
loaded the two libraries were seen to abort now and then as they ended. The cause is not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_model.importers.png import ImportRefusedError, import_folders, import_manifest
from fusion_model.pairs import ImagePair
from fusion_model.phantom import build_phantoms
from workloads.base import WorkloadError
from workloads.fusion import WORKLOAD, FusionSpec

if TYPE_CHECKING:
    from workloads.encryption import ContributionPlan, EncryptedContribution, ProgressHook


@dataclass(frozen=True, slots=True)
class PairSource:
    """Where pairs come from: exactly one of two folders, a manifest, or synthetic patients."""

    first: Path | None = None
    second: Path | None = None
    manifest: Path | None = None
    modality: str | None = None
    phantoms: int = 0
    """Number of synthetic patients."""
    phantom_seed: int = 0
    first_phantom: int = 0
    """Number of the first synthetic patient."""
    patients: tuple[int, ...] = ()
    """Keep only these patients; all if empty."""


def load_pairs(source: PairSource, left_out: list[str] | None = None) -> list[ImagePair]:
    """Checked pairs of the wanted patients. Raises WorkloadError naming the file or option at fault.

    With `left_out`, why files are refused goes there and the others are loaded.
    """
    refusals: list[ImportRefusedError] = []
    pairs = _load_all(source, refusals if left_out is not None else None)
    if left_out is not None:
        left_out.extend(map(str, refusals))
    if not source.patients:
        return pairs
    absent = set(source.patients) - {pair.patient for pair in pairs}
    if absent:
        raise WorkloadError(f"patient: there is no {', '.join(map(str, sorted(absent)))} among the pairs")
    return [pair for pair in pairs if pair.patient in source.patients]


def _load_all(source: PairSource, refusals: list[ImportRefusedError] | None) -> list[ImagePair]:
    folders = source.first is not None and source.second is not None
    if (source.first is None) != (source.second is None):
        raise WorkloadError("folders: give both, one for each modality")
    if folders + (source.manifest is not None) + (source.phantoms > 0) != 1:
        raise WorkloadError("pairs: give two folders, or a manifest, or a number of phantoms")
    try:
        if source.first is not None and source.second is not None:
            return import_folders(source.first, source.second, refusals)
        if source.manifest is not None:
            return import_manifest(source.manifest, source.modality, refusals)
    except ImportRefusedError as error:
        raise WorkloadError(str(error)) from error
    return build_phantoms(source.phantom_seed, source.phantoms, first_patient=source.first_phantom)


def choose_validation_patients(pairs: Sequence[ImagePair], count: int) -> tuple[int, ...]:
    """The last `count` patients by number."""
    return tuple(sorted({pair.patient for pair in pairs})[-count:]) if count else ()


def encrypt_pairs(
    preset: str,
    model: bytes,
    public_key: Path,
    pairs: Sequence[ImagePair],
    plan: "ContributionPlan",
    directory: Path,
    progress: "ProgressHook | None" = None,
) -> "EncryptedContribution":
    """Encrypted batches under a draft's public key, written to `directory`.

    Raises WorkloadError if the key is not one of this preset, or the plan can't be met.
    """
    from he.context import PublicContext
    from he.errors import HeError
    from he.keys import PublicKey
    from workloads.encryption import encrypt_contribution

    params = WORKLOAD.get_params(preset)
    try:
        context = PublicContext(params, public_key=PublicKey.decode(params, public_key))
        return encrypt_contribution(context, FusionSpec.decode(model), pairs, plan, directory, progress)
    except HeError as error:
        raise WorkloadError(f"public key or batch: {error}") from error
