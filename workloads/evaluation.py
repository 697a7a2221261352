"""A model's fusion quality beside the methods to beat: figures by pair, means with intervals, a report."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from fusion_model.baselines import BASELINES
from fusion_model.metrics import METRIC_NAMES, compute_metrics
from fusion_model.pairs import ImagePair
from fusion_model.pictures import (
    ByteImage,
    build_figure,
    convert_to_bytes,
    encode_png,
    recolour,
    show_sources,
    stack_figures,
)
from fusion_model.report import METHOD_LABELS, ReportPicture, build_report
from fusion_model.statistics import Estimate, PairScores, Summary, summarise_scores
from workloads.base import WorkloadError
from workloads.fusing import Fuser

__all__ = ["Estimate", "Evaluation", "evaluate_pairs", "save_csv", "save_picture", "save_report"]

MODEL = "model"
PICTURES = 6
"""Pairs shown in a report or picture; those of different patients first."""

_SHOWN = ("VIF", "Qabf", "SCD")

ProgressHook = Callable[[int, int], None]
"""(pairs done, all pairs)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `bmif evaluate` found."""

    scores: tuple[PairScores, ...]
    summary: Summary
    left_out: tuple[str, ...] = ()
    """Pairs that could not be used, each with the reason."""
    pictures: tuple[ReportPicture, ...] = field(default=(), repr=False)


def evaluate_pairs(
    fuser: Fuser,
    pairs: Sequence[ImagePair],
    *,
    seed: int = 0,
    pictures: int = 0,
    left_out: Sequence[str] = (),
    progress: ProgressHook | None = None,
) -> Evaluation:
    """All metrics of the model and of the methods to beat, on luminance, and `pictures` of them.

    A pair that the network or the metrics can't take is left out with the reason. Raises WorkloadError when
    no pair is left.
    """
    refused = list(left_out)
    scores: list[PairScores] = []
    shown = _choose_pictures(pairs, pictures)
    made: list[ReportPicture] = []
    for index, pair in enumerate(pairs):
        first, second = convert_to_bytes(pair.first), convert_to_bytes(pair.second)
        try:
            fused = {MODEL: fuser.fuse_luminance(pair)}
            fused |= {name: fuse(first, second) for name, fuse in BASELINES.items()}
            figures = {name: compute_metrics(first, second, image) for name, image in fused.items()}
        except ValueError as error:
            refused.append(f"{pair.name}: {error}")
        else:
            scores.append(PairScores(pair.name, pair.patient, figures))
            if index in shown:
                made.append(_build_picture(pair, fused, scores[-1]))
        if progress is not None:
            progress(index + 1, len(pairs))
    if not scores:
        raise WorkloadError(f"no pair could be evaluated: {'; '.join(refused) or 'none was given'}")
    return Evaluation(tuple(scores), summarise_scores(scores, seed), tuple(refused), tuple(made))


def save_csv(path: Path, scores: Sequence[PairScores]) -> None:
    """One row a pair and method; overwrites."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["pair", "patient", "method", *METRIC_NAMES])
        for entry in scores:
            for method, figures in entry.methods.items():
                values = (f"{getattr(figures, name):.6f}" for name in METRIC_NAMES)
                writer.writerow([entry.name, entry.patient, method, *values])


def save_report(path: Path, evaluation: Evaluation, title: str, facts: Sequence[tuple[str, str]]) -> None:
    """A self-contained HTML page; overwrites."""
    page = build_report(title, facts, evaluation.summary, evaluation.pictures, evaluation.left_out)
    path.write_text(page, encoding="utf-8")


def save_picture(path: Path, evaluation: Evaluation) -> None:
    """All pictures of the evaluation below one another, as one PNG; overwrites."""
    rows = [Image.open(io.BytesIO(picture.png)) for picture in evaluation.pictures]
    path.write_bytes(encode_png(stack_figures(rows)))


def _choose_pictures(pairs: Sequence[ImagePair], count: int) -> set[int]:
    """The middle pair of each patient first, then others in order."""
    by_patient: dict[int, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_patient.setdefault(pair.patient, []).append(index)
    middles = [places[len(places) // 2] for places in by_patient.values()]
    rest = [index for index in range(len(pairs)) if index not in set(middles)]
    return set((middles + rest)[:count])


def _build_picture(pair: ImagePair, fused: dict[str, ByteImage], scores: PairScores) -> ReportPicture:
    def colour(image: ByteImage) -> ByteImage:
        return image if pair.chroma is None else recolour(image, pair.chroma)

    sources = list(zip(("first", "second"), show_sources(pair), strict=True))
    panels = sources + [(METHOD_LABELS[name], colour(image)) for name, image in fused.items()]
    figures = "; ".join(
        f"{METHOD_LABELS[name]} "
        + ", ".join(f"{metric} {getattr(scores.methods[name], metric):.2f}" for metric in _SHOWN)
        for name in (MODEL, "maximum")
    )
    return ReportPicture(f"{pair.name}: {figures}", encode_png(build_figure(panels)))
