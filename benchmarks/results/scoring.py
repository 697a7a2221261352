"""Metrics of held-back pairs, each fused by the models of the fold that held it back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.results.mining import Mined
from fusion_model.backbone import Backbone, compute_teacher_image
from fusion_model.baselines import BASELINES
from fusion_model.metrics import compute_metrics
from fusion_model.pairs import ImagePair
from fusion_model.pictures import ByteImage, convert_to_bytes
from fusion_model.statistics import REFERENCE, PairScores, Summary, summarise_scores
from workloads.fusing import Fuser

MINED, TWIN, NOISELESS = "mined", "clear twin", "twin without noise"
FULL, SHIPPED = "full network", "shipped teacher"
DECISIVE = ("SF", "MI", "SCD", "VIF", "Qabf", "SSIM2")
"""The metrics of the published tables."""
PUBLISHED = {
    "MRI-CT": (38.1, 2.61, 1.41, 0.61, 0.68, 1.34),
    "MRI-PET": (29.6, 2.03, 1.69, 0.71, 0.71, 1.49),
    "MRI-SPECT": (20.9, 2.49, 1.35, 0.97, 0.78, 1.48),
}
"""CDDFuse's medical model (Zhao et al., CVPR 2023) on the 21, 42 and 73 standard test pairs, in the order of
`DECISIVE`."""
PUBLISHED_MAXIMUM = {
    "MRI-CT": (33.5, 3.63, 1.50, 0.64, 0.63, 1.38),
    "MRI-PET": (27.3, 3.04, 1.71, 0.92, 0.71, 1.51),
    "MRI-SPECT": (18.4, 2.88, 1.33, 0.74, 0.69, 1.51),
}
"""Pixel maximum on the same standard test pairs."""
THRESHOLDS = {
    "MRI-CT": {"SCD": 1.55, "VIF": 0.57, "Qabf": 0.63, "SSIM2": 1.35},
    "MRI-PET": {"SCD": 1.70, "VIF": 0.72, "Qabf": 0.70, "SSIM2": 1.50},
    "MRI-SPECT": {"SCD": 1.55, "VIF": 0.73, "Qabf": 0.73, "SSIM2": 1.49},
}
"""Absolute levels to reach on held-back cases. They were set on the standard test pairs: on other pairs pixel
maximum itself is elsewhere, so what they mean here is told by their distance from it."""
SAME = 0.005
"""Means that differ by less are the same to two decimals."""


def get_published_differences(modality: str) -> dict[str, float]:
    """CDDFuse's medical model less pixel maximum, by metric."""
    pairs = zip(DECISIVE, PUBLISHED[modality], PUBLISHED_MAXIMUM[modality], strict=True)
    return {name: round(figure - maximum, 2) for name, figure, maximum in pairs}


@dataclass(frozen=True, slots=True)
class Scored:
    """A modality's held-back pairs by every method."""

    modality: str
    summary: Summary
    folds: tuple[Mined, ...]

    def get_rise(self, method: str, metric: str) -> float:
        """How far a method is above pixel maximum; 0 for pixel maximum itself."""
        return 0.0 if method == REFERENCE else self.summary.differences[method][metric].mean

    def count_ahead(self, method: str) -> int:
        """In how many of the six metrics the method is further above pixel maximum than the published one."""
        published = get_published_differences(self.modality)
        return sum(self.get_rise(method, name) > published[name] for name in DECISIVE)

    def get_twin_distance(self) -> tuple[str, float]:
        """The metric in whose mean mined model and clear twin differ most, and by how much."""
        mined, twin = self.summary.means[MINED], self.summary.means[TWIN]
        return max(
            ((name, abs(mined[name].mean - twin[name].mean)) for name in mined), key=lambda item: item[1]
        )


def fuse_all(pair: ImagePair, fold: Mined, full: Backbone | None) -> dict[str, ByteImage]:
    """The pair by every method, in the tables' order."""
    model = bytes.fromhex(fold.specification)
    weights = {MINED: fold.weights, TWIN: fold.twin_weights, NOISELESS: fold.noiseless_weights}
    fused = {name: Fuser.decode(model, own).fuse_luminance(pair) for name, own in weights.items()}
    if full is not None:
        fused[FULL] = convert_to_bytes(compute_teacher_image(pair.first, pair.second, full))
    fused[SHIPPED] = convert_to_bytes(compute_teacher_image(pair.first, pair.second))
    first, second = convert_to_bytes(pair.first), convert_to_bytes(pair.second)
    return fused | {name: fuse(first, second) for name, fuse in BASELINES.items()}


def score_modality(
    modality: str, pairs: Sequence[ImagePair], folds: Sequence[Mined], full: Mapping[int, Backbone]
) -> Scored:
    """Every pair of a patient whom one of the `folds` held back; `full` has each fold's network, or none."""
    scores: list[PairScores] = []
    for fold in folds:
        for pair in (pair for pair in pairs if pair.patient in fold.held_back):
            first, second = convert_to_bytes(pair.first), convert_to_bytes(pair.second)
            fused = fuse_all(pair, fold, full[fold.fold] if full else None)
            figures = {name: compute_metrics(first, second, image) for name, image in fused.items()}
            scores.append(PairScores(pair.name, pair.patient, figures))
    return Scored(modality, summarise_scores(scores), tuple(folds))
