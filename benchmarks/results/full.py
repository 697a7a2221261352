"""BMIF's full network, trained in clear on a fold's patients: the best clear result of the tables."""

from pathlib import Path

from benchmarks.results.apart import call_apart
from benchmarks.results.folds import Fold
from fusion_model.backbone import Backbone, decode_backbone
from fusion_model.importers.png import import_manifest


def _train(manifest: Path, modality: str, patients: tuple[int, ...], output: Path) -> None:
    from fusion_model.backbone import save_backbone
    from fusion_model.teacher import FULL_NETWORK
    from fusion_model.teacher_train import TeacherSettings, train_teacher

    pairs = [pair for pair in import_manifest(manifest, modality) if pair.patient in patients]
    settings = TeacherSettings(config=FULL_NETWORK)
    teacher = train_teacher(pairs, settings)
    save_backbone(output, teacher.get_backbone(f"{modality}, patients {patients}, {settings.steps} steps"))


def train_full(manifest: Path, modality: str, fold: Fold, output: Path) -> Backbone:
    """The network of a fold; kept in `output`, which a second call reads.

    All patients that are not held back train it: what the mined task holds for validation included.
    """
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        patients = tuple(sorted(p for hospital in fold.hospitals for p in hospital.patients))
        call_apart(_train, manifest, modality, patients, output)
    return decode_backbone(output.read_text(encoding="utf-8"), output.name)
