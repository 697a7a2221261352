"""BMIF's full network, trained in clear on a fold's patients: the best clear result of the tables."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.results.folds import Fold
from fusion_model.backbone import Backbone, BackboneConfig, decode_backbone
from fusion_model.importers.png import import_manifest

WORKERS = 2
"""Folds trained at once, with a core each."""


@dataclass(frozen=True, slots=True)
class FullSettings:
    """Size and length of training: width 32 and 500 steps of four crops take a core about a minute."""

    width: int = 32
    steps: int = 500

    @property
    def label(self) -> str:
        parameters = BackboneConfig(width=self.width).parameters
        return f"{self.width} channels, {parameters} weights, {self.steps} steps"


@dataclass(frozen=True, slots=True)
class _Job:
    manifest: Path
    modality: str
    patients: tuple[int, ...]
    settings: FullSettings
    output: Path


def _train(job: _Job) -> None:
    import torch

    from fusion_model.backbone import save_backbone
    from fusion_model.teacher_train import TeacherSettings, train_teacher

    torch.set_num_threads(1)
    pairs = [pair for pair in import_manifest(job.manifest, job.modality) if pair.patient in job.patients]
    settings = TeacherSettings(config=BackboneConfig(width=job.settings.width), steps=job.settings.steps)
    teacher = train_teacher(pairs, settings)
    described = f"{job.modality}, patients {job.patients}, {job.settings.steps} steps"
    save_backbone(job.output, teacher.get_backbone(described))


def train_full(
    manifest: Path, modality: str, folds: Sequence[Fold], settings: FullSettings, folder: Path
) -> dict[int, Backbone]:
    """The network of each fold; kept in `folder`, which a second call reads.

    All patients that are not held back train it: what the mined task holds for validation included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {
        fold.number: folder / f"{modality}-{fold.number}-full-{settings.width}-{settings.steps}.json"
        for fold in folds
    }
    jobs = [
        _Job(
            manifest,
            modality,
            tuple(sorted(p for hospital in fold.hospitals for p in hospital.patients)),
            settings,
            outputs[fold.number],
        )
        for fold in folds
        if not outputs[fold.number].exists()
    ]
    # Processes of their own: encryption and torch must not share one (see workloads/imaging.py).
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        list(pool.map(_train, jobs))
    return {
        number: decode_backbone(path.read_text(encoding="utf-8"), path.name)
        for number, path in outputs.items()
    }
