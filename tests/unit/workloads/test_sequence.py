"""Windows, votes, gains and splits of sequences, and training in clear with its export."""

from dataclasses import replace

import numpy as np
import pytest

from he.recurrent import evaluate_sequence
from workloads.base import WorkloadError
from workloads.diagnosis_metrics import compute_auc
from workloads.sequence import (
    LOGISTIC,
    RELU,
    TANH,
    Patient,
    SequenceConfig,
    arrange_features,
    bootstrap_gain,
    build_single_frame,
    build_windows,
    evaluate_clear,
    prepare_frames,
    split_patients,
    split_windows,
    take_last,
    vote,
)
from workloads.sequence_training import TrainingSettings, export, predict, train

SMALL = SequenceConfig(planes=1, side=8, channels=(2, 3), features=3, hidden=3)


def make_patients(count: int, seed: int = 1) -> list[Patient]:
    """Those of label 1 become brighter from frame to frame, the others darker."""
    generator = np.random.default_rng(seed)
    patients = []
    for index in range(count):
        label, frames = index % 2, 3 + index % 3
        slope = np.linspace(-0.6, 0.6, frames) * (1 if label else -1)
        noise = generator.normal(0, 0.1, (frames, 1, 8, 8))
        patients.append(Patient(f"p{index}", label, np.clip(noise + slope[:, None, None, None], -1, 1)))
    return patients


def test_polynomials_state_their_error() -> None:
    x = np.linspace(-4, 4, 1001)
    logistic = np.abs(LOGISTIC.evaluate(x) - 1 / (1 + np.exp(-x))).max()
    assert logistic == pytest.approx(LOGISTIC.error, abs=1e-4)
    assert LOGISTIC.error < 0.04
    tanh = np.abs(TANH.evaluate(x / 2) - np.tanh(x / 2)).max()
    assert tanh == pytest.approx(TANH.error, abs=1e-4)
    assert TANH.error < 0.08
    assert RELU.interval == (-4.0, 4.0)


def test_frames_are_means_over_blocks() -> None:
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    images[1, :4, :4, 2] = 255
    frames = prepare_frames(images, 2)
    assert frames.shape == (2, 3, 2, 2)
    assert frames[1, 2].tolist() == [[1.0, -1.0], [-1.0, -1.0]]
    with pytest.raises(WorkloadError, match="multiple of 3"):
        prepare_frames(images, 3)


def test_windows_are_all_runs_of_frames() -> None:
    patient = make_patients(3)[2]
    windows = build_windows(patient, 3)
    assert windows.shape == (3, 3, 1, 8, 8)
    assert np.array_equal(windows[2], patient.frames[2:5])
    with pytest.raises(WorkloadError, match="needs 6 frames, has 5"):
        build_windows(patient, 6)


def test_features_are_arranged_like_windows() -> None:
    parts = [np.arange(6.0).reshape(3, 2), 10 + np.arange(8.0).reshape(4, 2)]
    arranged = arrange_features(parts, 3)
    assert arranged.shape == (3, 2, 3)
    assert arranged[:, :, 0].tolist() == parts[0].tolist()
    assert arranged[:, :, 2].tolist() == parts[1][1:4].tolist()
    split = split_windows(arranged[:, 0], [3, 4])
    assert [part.shape for part in split] == [(1, 3), (2, 3)]
    assert split[1][1].tolist() == parts[1][1:4, 0].tolist()


def test_votes() -> None:
    decisions = np.array([[0.0, 1e4], [-1e4, 0.0]])
    assert vote(decisions) == pytest.approx(0.5)
    assert take_last(np.array([[1e4, 1e4], [1e4, -1e4]])) == pytest.approx(0.0)


def test_a_gain_is_of_pairs() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(40) % 2
    scores = labels + generator.normal(0, 0.3, 40)
    gain = bootstrap_gain(labels, scores, generator.normal(size=40), draws=300)
    assert gain.low < gain.value < gain.high
    assert gain.low > 0.1
    same = bootstrap_gain(labels, scores, scores, draws=50)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_folds_hold_each_patient_once_and_both_classes() -> None:
    labels = [1] * 12 + [0] * 5
    folds = split_patients(labels, 5, 3)
    assert sorted(index for fold in folds for index in fold) == list(range(17))
    assert all({labels[index] for index in fold} == {0, 1} for fold in folds)
    assert folds == split_patients(labels, 5, 3)
    assert folds != split_patients(labels, 5, 4)


def test_the_single_frame_network_is_of_the_same_size() -> None:
    config = SequenceConfig()
    single = build_single_frame(config)
    assert (single.window, single.temporal) == (1, False)
    assert config.count_weights() <= single.count_weights() <= 1.08 * config.count_weights()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(WorkloadError, match="hidden"):
        SequenceConfig(features=3, hidden=4)
    with pytest.raises(WorkloadError, match="window"):
        SequenceConfig(window=0)


def test_training_learns_what_only_time_tells_and_exports_it() -> None:
    """Of a single frame nobody knows whether it became brighter."""
    patients = make_patients(16)
    settings = TrainingSettings(epochs=12, rate=4e-2, seed=1)
    network, largest = train(SMALL, settings, patients)
    assert sum(parameter.numel() for parameter in network.parameters()) == SMALL.count_weights()
    assert set(largest) == {"first", "second", "input", "forget", "candidate", "output", "cell"}
    others = make_patients(20, seed=2)
    decisions = [predict(network, patient)[0] for patient in others]
    labels = np.array([patient.label for patient in others])
    assert compute_auc(np.array([vote(part) for part in decisions]), labels) > 0.9
    model = export(network, patients)
    for got, expected in zip(evaluate_clear(model, others), decisions, strict=True):
        assert np.abs(got - expected).max() < 1e-4
    features = np.zeros((3, 3, 1))
    assert evaluate_sequence(model.cell, features).shape == (3, 1)


@pytest.mark.parametrize(
    "config", [replace(SMALL, temporal=False, weighted=False), replace(SMALL, weighted=False)]
)
def test_ablations_train(config: SequenceConfig) -> None:
    patients = make_patients(6)
    network, _ = train(config, TrainingSettings(epochs=1), patients)
    assert sum(parameter.numel() for parameter in network.parameters()) == config.count_weights()
    assert predict(network, patients[0])[0].shape == (1, 3)
    if not config.temporal:
        with pytest.raises(WorkloadError, match="temporal"):
            export(network, patients)


def test_stronger_augmentation_is_another_training_and_repeats() -> None:
    patients = make_patients(6)
    decisions = [
        predict(train(SMALL, TrainingSettings(epochs=1, colour=colour), patients)[0], patients[0])[0]
        for colour in (0.0, 0.2, 0.2)
    ]
    assert np.array_equal(decisions[1], decisions[2])
    assert not np.array_equal(decisions[0], decisions[1])
