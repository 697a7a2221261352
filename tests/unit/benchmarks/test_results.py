"""The harness of the results: folds, ladders, judges' folders, draws of noise, kept files, tables."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.results.cases import CASES, build_rungs, compute_digest
from benchmarks.results.draws import follow_openings
from benchmarks.results.folds import FOLDS, Hospital, build_folds
from benchmarks.results.judges import FOLDER, build_settings, get_judged, write_pairs
from benchmarks.results.mining import LossPoint, Mined
from benchmarks.results.page import Entry, build_page, compute_patient_epsilon, find_converged
from benchmarks.results.scoring import (
    FULL,
    MINED,
    NOISELESS,
    PUBLISHED,
    SHIPPED,
    TWIN,
    fuse_all,
    get_published_differences,
    score_modality,
)
from benchmarks.testbed import Testbed, TestbedError
from consensus.identifiers import compute_weights_digest
from consensus.optimizer import apply_opening
from consensus.task import Draft, OpenGradient, PublishTask
from consensus.types import ZERO_HASH
from fusion_model.backbone import load_backbone
from fusion_model.baselines import BASELINES
from fusion_model.importers.png import import_manifest
from fusion_model.phantom import build_phantoms
from fusion_model.pictures import convert_to_bytes
from node.config import ConfigError, NodeConfig
from node.testnet import init_testnet
from tests.unit.consensus.world import build_draft, build_publication
from workloads.fusion import WORKLOAD, FusionSpec

NODES = ("node2", "node3")


@given(st.sets(st.integers(0, 99), min_size=3, max_size=20))
def test_every_patient_is_held_back_once_and_on_one_side_only(patients: set[int]) -> None:
    folds = build_folds(sorted(patients), NODES)
    assert len(folds) == FOLDS
    assert sorted(patient for fold in folds for patient in fold.held_back) == sorted(patients)
    for fold in folds:
        training = {patient for hospital in fold.hospitals for patient in hospital.training}
        validation = {patient for hospital in fold.hospitals for patient in hospital.validation}
        assert training
        assert validation
        sides = [set(fold.held_back), training, validation]
        assert sum(map(len, sides)) == len(set().union(*sides)) == len(patients)
        for hospital in fold.hospitals:
            # `bmif data encrypt` holds the last patients by number for validation.
            assert not hospital.training or max(hospital.training) < min((*hospital.validation, 100))


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        build_folds([1, 2], NODES)


@given(st.floats(1e-3, 1.0), st.floats(0.01, 0.3))
def test_rungs_fall(first: float, share: float) -> None:
    rungs = build_rungs(first, share * first)
    targets = [float(rung.split(":")[0]) for rung in rungs]
    assert targets == sorted(targets, reverse=True)
    assert targets[-1] >= share * first > 0


def test_a_loss_that_does_not_fall_gives_no_ladder() -> None:
    with pytest.raises(ValueError, match="no ladder"):
        build_rungs(0.1, 0.1)


def test_each_modality_has_one_case() -> None:
    assert len({case.modality for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.schedule.loss_openings * case.schedule.loss_every >= case.schedule.steps


def test_another_case_has_another_digest() -> None:
    case = CASES[0]
    other = replace(case, schedule=replace(case.schedule, rate=case.schedule.rate / 2))
    assert compute_digest(case) == compute_digest(replace(case)) != compute_digest(other)


def test_hospitals_judge_on_what_they_validate_with() -> None:
    assert get_judged(Hospital("node2", (1, 2), (3,))) == (3,)
    assert get_judged(Hospital("node2", (1,), ())) == (1,)


def write_manifest(folder: Path, patients: int = 3) -> Path:
    """Phantoms as a manifest of one modality, one pair a patient, with the images as PNG files."""
    pairs = build_phantoms(5, patients, first_patient=1)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "modality", "file_a", "file_b", "patient"))
        for pair in pairs:
            for side, image in (("a", pair.first), ("b", pair.second)):
                Image.fromarray(convert_to_bytes(image)).save(folder / f"{pair.name}-{side}.png")
            rows.writerow((pair.name, "MRI-CT", f"{pair.name}-a.png", f"{pair.name}-b.png", pair.patient))
    return folder / "manifest.csv"


def test_a_judge_gets_its_own_patients_and_no_others(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    folder = tmp_path / "node2" / FOLDER
    count = write_pairs(folder, manifest, "MRI-CT", (2,))
    pairs = import_manifest(folder / "manifest.csv", "MRI-CT")
    assert count == len(pairs) > 0
    assert {pair.patient for pair in pairs} == {2}
    assert len(list(folder.glob("*.png"))) == 2 * count
    wanted = [pair for pair in import_manifest(manifest) if pair.patient == 2]
    for pair, original in zip(pairs, wanted, strict=True):
        assert np.array_equal(pair.planes, original.planes)


def test_settings_of_a_node_are_replaced_before_it_starts(tmp_path: Path) -> None:
    init_testnet(tmp_path / "net", 3)
    bed = Testbed(tmp_path / "net")
    bed.configure("node2", {"verdict": build_settings("MRI-CT", 0.25)})
    loaded = NodeConfig.load(bed.testnet.get_config_path("node2")).verdict
    assert loaded.pairs is not None
    assert loaded.pairs.name == FOLDER
    assert (loaded.modality, loaded.phantoms, loaded.tolerance) == ("MRI-CT", 0, 0.25)
    with pytest.raises(ConfigError, match="verdicts"):
        bed.configure("node2", {"verdicts": {}})


def build_chain() -> tuple[Draft, PublishTask, list[OpenGradient]]:
    """A publication and the openings of its first two steps, each bound to its weights."""
    draft = build_draft()
    publication = build_publication(ZERO_HASH, ())
    weights: tuple[int, ...] = publication.initial_weights
    momentum: tuple[int, ...] = (0, 0, 0)
    openings = []
    for step, gradient in enumerate(((5, -300, 70), (40, 2, -9))):
        openings.append(
            OpenGradient(ZERO_HASH, step, ZERO_HASH, compute_weights_digest(weights), (), (), gradient, 1, ())
        )
        rate, shift = publication.optimizer.learning_rates[step], publication.optimizer.shift
        weights, momentum = apply_opening(weights, momentum, gradient, rate, shift, draft.weight_box)
    return draft, publication, openings


def test_openings_are_followed_with_the_weights_that_they_name() -> None:
    draft, publication, openings = build_chain()
    steps = list(follow_openings(draft, publication, openings, ()))
    assert [compute_weights_digest(step.weights) for step in steps] == [o.weights for o in openings]
    with pytest.raises(TestbedError, match="step 0"):
        list(follow_openings(draft, publication, openings[1:], ()))


def build_mined(spec: FusionSpec, held_back: tuple[int, ...]) -> Mined:
    weights = WORKLOAD.build_initial_weights(spec.encode(), 0)
    shifted = (weights[0] + 1024, *weights[1:])
    points = tuple(
        LossPoint(step, 10.0 * step, loss, loss, loss) for step, loss in ((0, 0.1), (5, 0.0203), (10, 0.02))
    )
    return Mined(
        modality="MRI-CT",
        fold=0,
        case="0",
        noisy=True,
        specification=spec.encode().hex(),
        held_back=held_back,
        judged=(("node2", (1,)), ("node3", (2,))),
        accepted=4,
        rejected=1,
        weights=shifted,
        step=10,
        twin_weights=weights,
        noiseless_weights=weights,
        losses=points,
        rehearsed=((0, 0.1), (10, 0.02)),
        converged=0.02,
        seconds=100.0,
        steps=10,
        status="complete",
        rungs=4,
        rungs_settled=4,
        training_patients=1,
        training_patches=8192,
        validation_patches=16384,
        privacy="stated",
        epsilon=0.5,
    )


def test_a_kept_fold_is_read_as_it_was_written(tmp_path: Path) -> None:
    mined = build_mined(FusionSpec(), (3,))
    mined.save(tmp_path / "out" / "fold.json")
    assert Mined.load(tmp_path / "out" / "fold.json") == mined
    assert mined.largest_difference == pytest.approx(2.0**-10)
    assert find_converged(mined) == 5


def test_held_back_patients_are_scored_by_every_method() -> None:
    pairs = build_phantoms(5, 2, first_patient=3)
    mined = build_mined(FusionSpec(), (3,))
    scored = score_modality("MRI-CT", pairs, (mined,), {})
    assert list(scored.summary.means) == [MINED, TWIN, NOISELESS, SHIPPED, *BASELINES]
    assert scored.summary.patients == 1
    # Pixel maximum is level with itself, so it is ahead wherever the published one is behind.
    behind = sum(figure < 0 for figure in get_published_differences("MRI-CT").values())
    assert scored.count_ahead("maximum") == behind == 4
    assert FULL in fuse_all(pairs[0], mined, load_backbone())
    page = build_page([Entry(CASES[0], "0", scored, (1, 2))])
    assert "Folds without a result: 1, 2" in page
    assert "to two decimals" in page
    assert "How many steps" in build_page([Entry(CASES[0], "0", scored, ())], "", [mined])


def test_published_figures_are_of_six_metrics() -> None:
    assert {len(figures) for figures in PUBLISHED.values()} == {6}
    assert get_published_differences("MRI-SPECT")["VIF"] == pytest.approx(0.23)


def test_a_patient_has_no_privacy_to_speak_of() -> None:
    # One patch: rho = 30 / (2 * 32^2), epsilon = rho + 2 sqrt(rho ln 10^6).
    rho = 30 / 2048
    assert compute_patient_epsilon(1, 30, 32.0) == pytest.approx(rho + 2 * (rho * np.log(1e6)) ** 0.5)
    assert compute_patient_epsilon(5000, 60, 32.0) > 1e5
