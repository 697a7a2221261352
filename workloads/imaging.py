"""Images by file name, for commands: import pairs, encrypt them for a draft, fuse, evaluate.

Encryption and torch are imported by the calls that need them, and no call needs both: processes that
had loaded the two libraries were seen to abort now and then as they ended. The cause is not known.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from fusion_model.importers.png import ImportRefusedError, import_folders, import_manifest, import_pair
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


def load_pairs(source: PairSource) -> list[ImagePair]:
    """Checked pairs of the wanted patients. Raises WorkloadError naming the file or option at fault."""
    pairs = _load_all(source)
    if not source.patients:
        return pairs
    absent = set(source.patients) - {pair.patient for pair in pairs}
    if absent:
        raise WorkloadError(f"patient: there is no {', '.join(map(str, sorted(absent)))} among the pairs")
    return [pair for pair in pairs if pair.patient in source.patients]


def _load_all(source: PairSource) -> list[ImagePair]:
    folders = source.first is not None and source.second is not None
    if (source.first is None) != (source.second is None):
        raise WorkloadError("folders: give both, one for each modality")
    if folders + (source.manifest is not None) + (source.phantoms > 0) != 1:
        raise WorkloadError("pairs: give two folders, or a manifest, or a number of phantoms")
    try:
        if source.first is not None and source.second is not None:
            return import_folders(source.first, source.second)
        if source.manifest is not None:
            return import_manifest(source.manifest, source.modality)
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


def fuse_files(
    model: bytes,
    weights: Sequence[int],
    first: Path,
    second: Path,
    output: Path,
    figure: Path | None = None,
) -> tuple[int, int]:
    """Writes the fused PNG, and a figure of it beside its sources; returns (width, height)."""
    from fusion_model.fuse import fuse_pair, save_fusion_figure

    network = FusionSpec.decode(model).network
    try:
        pair = import_pair(first, second, first.stem, 0)
        fused = fuse_pair(network, weights, pair)
    except (ImportRefusedError, ValueError) as error:
        raise WorkloadError(str(error)) from error
    Image.fromarray(fused).save(output, format="PNG")
    if figure is not None:
        save_fusion_figure(figure, network, weights, pair, (first.stem, second.stem))
    return fused.shape[1], fused.shape[0]


def evaluate_pairs(
    model: bytes, weights: Sequence[int], pairs: Sequence[ImagePair]
) -> dict[str, dict[str, float]]:
    """Mean metrics of the model and of the methods to beat, by method and metric."""
    from fusion_model.baselines import fuse_average, fuse_laplacian, fuse_maximum
    from fusion_model.fuse import convert_to_bytes, fuse_planes
    from fusion_model.metrics import FusionMetrics, compute_mean_metrics, compute_metrics

    network = FusionSpec.decode(model).network
    results: dict[str, list[FusionMetrics]] = {"model": [], "average": [], "maximum": [], "laplacian": []}
    for pair in pairs:
        first, second = convert_to_bytes(pair.first), convert_to_bytes(pair.second)
        fused = {
            "model": fuse_planes(network, weights, pair.planes),
            "average": fuse_average(first, second),
            "maximum": fuse_maximum(first, second),
            "laplacian": fuse_laplacian(first, second),
        }
        for method, image in fused.items():
            try:
                results[method].append(compute_metrics(first, second, image))
            except ValueError as error:
                raise WorkloadError(f"{pair.name}: {error}") from error
    return {method: asdict(compute_mean_metrics(figures)) for method, figures in results.items()}
