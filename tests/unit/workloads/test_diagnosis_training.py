"""Training on phantoms: learns, repeats, keeps its polynomials in range; models and provenance on disk."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from fusion_model.phantom import build_phantoms
from he.network import encode
from workloads.base import WorkloadError
from workloads.diagnosis import (
    LabelledImages,
    compute_logits,
    measure_ranges,
    train_network,
)
from workloads.diagnosis_config import DiagnosisConfig, TrainingSettings
from workloads.diagnosis_data import DiagnosisData
from workloads.diagnosis_images import even_contrast
from workloads.diagnosis_model import (
    evaluate_logits,
    get_provenance_path,
    load_network,
    load_provenance,
    save_model,
    train_diagnosis,
)
from workloads.diagnosis_network import build_network
from workloads.network_export import export_network

SIDE = 16
CONFIG = DiagnosisConfig((1, SIDE, SIDE), (4, 6))
SETTINGS = TrainingSettings(epochs=12, batch=16, shift=1, seed=3)


def build_images(first: int, count: int) -> LabelledImages:
    """Phantoms of one patient each; every second one has a bright lesion near the centre (label 1)."""
    images = np.stack([pair.first for pair in build_phantoms(9, count, 1, SIDE, first)])
    for number in range(1, count, 2):
        top, left = 4 + number % 5, 4 + number // 5 % 5
        images[number, top : top + 4, left : left + 4] = 1.0
    return LabelledImages(images[:, None], np.arange(count) % 2, np.arange(count))


@pytest.fixture(scope="module")
def data() -> DiagnosisData:
    return DiagnosisData(
        build_images(0, 96), build_images(96, 24), build_images(120, 24), ("healthy", "lesion")
    )


def test_it_learns_and_its_provenance_says_so(data, tmp_path):
    losses: list[float] = []
    trained = train_diagnosis(data, CONFIG, SETTINGS, lambda _, loss: losses.append(loss))
    assert len(losses) == SETTINGS.epochs
    assert losses[-1] < losses[0]
    provenance = trained.provenance
    assert provenance.metrics["auc"][0] > 0.95
    assert provenance.images == (96, 24, 24)
    assert [share.layer for share in trained.ranges] == list(provenance.outside)
    assert all(share.error > 0 and share.interval == (-2.5, 2.5) for share in trained.ranges)

    path = tmp_path / "model"
    save_model(trained, path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "model.json"]
    assert encode(load_network(path)) == encode(trained.network)
    assert load_provenance(get_provenance_path(path)) == provenance

    logits = evaluate_logits(trained.network, data.test.images)
    found = (logits >= provenance.threshold) == (data.test.labels == 1)
    sensitivity, specificity = found[1::2].mean(), found[::2].mean()
    assert provenance.metrics["sensitivity"][0] == pytest.approx(sensitivity)
    assert provenance.metrics["specificity"][0] == pytest.approx(specificity)


def test_the_same_seed_gives_the_same_network(data):
    short = TrainingSettings(epochs=1, batch=16, seed=5)
    first, second = (train_network(data.train, CONFIG, short) for _ in range(2))
    assert encode(export_network(first, CONFIG.shape)) == encode(export_network(second, CONFIG.shape))
    other = train_network(data.train, CONFIG, TrainingSettings(epochs=1, batch=16, seed=6))
    assert encode(export_network(first, CONFIG.shape)) != encode(export_network(other, CONFIG.shape))


def test_the_description_scores_as_the_torch_network_does(data):
    network = train_network(data.train, CONFIG, TrainingSettings(epochs=1, batch=16))
    exported = evaluate_logits(export_network(network, CONFIG.shape), data.test.images)
    assert np.abs(compute_logits(network, data.test.images) - exported).max() < 1e-5


def test_the_range_penalty_keeps_activations_in_a_narrow_interval(data):
    config = DiagnosisConfig(CONFIG.shape, CONFIG.channels, reach=1.0)
    shares = []
    for penalty in (0.0, 30.0):
        settings = TrainingSettings(epochs=20, batch=16, range_penalty=penalty)
        network = export_network(train_network(data.train, config, settings), config.shape)
        shares.append(float(np.mean([one.outside for one in measure_ranges(network, data.train.images)])))
    assert shares[1] < 0.2 * shares[0]


def test_relu_and_polynomial_start_alike_and_have_the_same_size():
    relu = DiagnosisConfig(CONFIG.shape, CONFIG.channels, activation="relu")
    first, second = build_network(CONFIG, 1).state_dict(), build_network(relu, 1).state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_can_not_be_trained_is_refused(data):
    with pytest.raises(WorkloadError, match="the network expects"):
        train_network(data.train, DiagnosisConfig(), SETTINGS)
    with pytest.raises(WorkloadError, match=r"needs both labels .* got \[48, 0\]"):
        train_network(data.train.take(data.train.labels == 0), CONFIG, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shape": (2, 28, 28)}, "shape"),
        ({"channels": ()}, "channels"),
        ({"kernel": 2}, "kernel"),
        ({"degree": 9}, "degree"),
        ({"reach": 0.0}, "reach"),
    ],
)
def test_settings_that_are_refused(changes, field):
    with pytest.raises(WorkloadError, match=f"^{field}: expected"):
        DiagnosisConfig(**changes)


def test_documents_that_are_no_provenance(data, tmp_path):
    settings = TrainingSettings(epochs=1, batch=16)
    text = train_diagnosis(data, CONFIG, settings).provenance.encode()
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(text) | {"classes": ["one"]}))
    with pytest.raises(WorkloadError, match=r"no model's provenance: classes"):
        load_provenance(path)
    path.write_text("[" * 60000)
    with pytest.raises(WorkloadError, match="no model's provenance"):
        load_provenance(path)
    path.write_text(text + " " * 70000)
    with pytest.raises(WorkloadError, match="bytes, more than"):
        load_provenance(path)
    with pytest.raises(WorkloadError, match="is not a network"):
        load_network(path.rename(tmp_path / "model"))


def test_the_modules_load_neither_torch_nor_the_encryption_library():
    code = (
        "import sys, workloads.diagnosis, workloads.diagnosis_model, workloads.diagnosis_data\n"
        "print([name for name in ('torch', 'Pyfhel') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_even_images_do_not_tell_contrast_or_brightness() -> None:
    images = np.random.default_rng(4).uniform(0.3, 0.7, (3, 1, 8, 8))
    even = even_contrast(images)
    assert np.allclose(even.mean(axis=(1, 2, 3)), 0.5)
    assert np.abs(even.std(axis=(1, 2, 3)) - 1 / 6).max() < 0.01
    assert np.abs(even_contrast(1.3 * images - 0.1) - even).max() < 0.01
    flat = even_contrast(np.full((1, 1, 8, 8), 0.2))
    assert np.allclose(flat, 0.5)
