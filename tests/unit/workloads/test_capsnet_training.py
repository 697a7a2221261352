"""Local training of the capsule network: deterministic, learns, keeps near by FedProx; data and phantoms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workloads.base import WorkloadError
from workloads.capsnet_config import CapsuleConfig, LocalSettings
from workloads.capsnet_data import CapsuleData, build_chest_phantoms, deal_groups, load_capsule_data
from workloads.capsnet_training import build_initial, compute_dice, evaluate_loss, predict, train_local

CONFIG = CapsuleConfig(
    side=16, channels=(8, 8), strides=(1, 2, 2), primary_types=2, primary_size=4, class_size=4, routing=2
)
SETTINGS = LocalSettings(epochs=6, batch=8, rate=5e-3)


def test_training_lowers_the_loss_and_repeats_exactly() -> None:
    data = build_chest_phantoms(1, 32, 16)
    config = replace(CONFIG, segmentation=True)
    start = build_initial(config, 3)
    kept = start.copy()
    trained = train_local(config, start, data, SETTINGS, 5)
    np.testing.assert_array_equal(start, kept)
    np.testing.assert_array_equal(trained, train_local(config, start, data, SETTINGS, 5))
    assert not np.array_equal(trained, train_local(config, start, data, SETTINGS, 6))
    assert trained.dtype == np.float32
    assert evaluate_loss(config, trained, data) < 0.8 * evaluate_loss(config, start, data)
    found = predict(config, trained, data.images)
    assert found.scores.shape == (32, 2)
    assert found.masks is not None
    assert found.masks.shape == (32, 16, 16)
    assert 0 <= found.masks.min() <= found.masks.max() <= 1
    assert found.compute_suspicion().shape == (32,)


def test_proximal_term_keeps_weights_near() -> None:
    data = build_chest_phantoms(1, 16, 16)
    start = build_initial(CONFIG, 3)
    short = replace(SETTINGS, epochs=2)
    free, held = (
        np.linalg.norm(train_local(CONFIG, start, data, replace(short, proximal=mu), 5) - start)
        for mu in (0.0, 50.0)
    )
    assert held < 0.7 * free


def test_loss_weighs_labels_alike_if_balanced() -> None:
    data = build_chest_phantoms(1, 16, 16)
    skewed = data.take(np.concatenate([np.flatnonzero(data.labels == 0), [1]]))
    flat = build_initial(CONFIG, 3)
    of_label = [evaluate_loss(CONFIG, flat, skewed.take(skewed.labels == label)) for label in (0, 1)]
    assert evaluate_loss(CONFIG, flat, skewed) == pytest.approx(np.mean(of_label), rel=1e-5)
    plain = evaluate_loss(CONFIG, flat, skewed, LocalSettings(balanced=False))
    assert plain == pytest.approx((8 * of_label[0] + of_label[1]) / 9, rel=1e-5)


def test_data_that_does_not_fit_is_refused() -> None:
    data = build_chest_phantoms(1, 4, 16)
    flat = build_initial(CONFIG, 0)
    with pytest.raises(WorkloadError, match="images"):
        train_local(CONFIG, flat, build_chest_phantoms(1, 4, 32), SETTINGS, 0)
    with pytest.raises(WorkloadError, match="labels"):
        evaluate_loss(CONFIG, flat, CapsuleData(data.images, data.labels + 1, data.groups))
    drawing = replace(CONFIG, segmentation=True)
    bare = CapsuleData(data.images, data.labels, data.groups)
    with pytest.raises(WorkloadError, match="masks"):
        train_local(drawing, build_initial(drawing, 0), bare, SETTINGS, 0)
    with pytest.raises(WorkloadError, match="images"):
        predict(CONFIG, flat, np.zeros((2, 1, 8, 8)))


def test_dice_of_known_masks() -> None:
    truth = np.zeros((3, 4, 4))
    truth[0, :2], truth[1, :2] = 1, 1
    found = np.zeros((3, 4, 4))
    found[0, :2], found[1, :1] = 0.9, 0.6
    np.testing.assert_allclose(compute_dice(found, truth), [1, 2 / 3, 1])


def test_phantoms_know_their_masks() -> None:
    data = build_chest_phantoms(7, 20)
    assert data.masks is not None
    assert 0 <= data.images.min() <= data.images.max() <= 1
    np.testing.assert_array_equal(data.labels, np.arange(20) % 2)
    assert (data.masks[data.labels == 0] == 0).all()
    assert (data.masks[data.labels == 1].sum(axis=(1, 2)) > 0).all()
    again = build_chest_phantoms(7, 5, first_patient=10)
    np.testing.assert_array_equal(again.images, data.images[10:15])


def test_groups_are_dealt_whole_and_by_share() -> None:
    draw = np.random.default_rng(2)
    groups = draw.integers(0, 60, 400)
    labels = (groups % 3 == 0).astype(np.int64)
    data = CapsuleData(np.zeros((400, 1, 8, 8)), labels, groups)
    parts = deal_groups(data, [[0.6, 0.1], [0.4, 0.1], [0.0, 0.8]], 1)
    assert sum(map(len, parts)) == 400
    owners = [set(part.groups.tolist()) for part in parts]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    assert (parts[2].labels == 1).all()
    assert abs((parts[0].labels == 0).sum() / (labels == 0).sum() - 0.6) < 0.06
    with pytest.raises(WorkloadError, match="shares"):
        deal_groups(data, [[0.5, 0.5], [0.4, 0.5]], 1)


def _save(path: Path, **changes: object) -> Path:
    arrays: dict[str, object] = {
        "images": np.full((3, 16, 16), 51, dtype=np.uint8),
        "labels": np.array([0, 1, 1]),
        "group": np.array([7, 9, 9]),
        "masks": np.zeros((3, 16, 16), dtype=np.uint8),
    }
    arrays.update(changes)
    kept = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    np.savez(path, allow_pickle=False, **kept)
    return path


def test_npz_is_read_and_averaged_down(tmp_path: Path) -> None:
    masks = np.zeros((3, 16, 16), dtype=np.uint8)
    masks[1, :3, :2] = 1
    data = load_capsule_data(_save(tmp_path / "a.npz", masks=masks), 8)
    assert data.images.shape == (3, 1, 8, 8)
    assert np.allclose(data.images, 0.2)
    assert data.groups.tolist() == [0, 1, 1]
    assert data.labels.tolist() == [0, 1, 1]
    assert data.masks is not None
    assert data.masks.sum() == 2
    bare = load_capsule_data(_save(tmp_path / "b.npz", masks=None, group=None), 16)
    assert bare.masks is None
    assert bare.groups.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", np.zeros((3, 16, 16))),
        ("images", np.zeros((3, 16, 12), dtype=np.uint8)),
        ("images", None),
        ("labels", np.array([0, 1])),
        ("labels", np.array([0.0, 1.0, 1.0])),
        ("group", np.array([1, 2])),
        ("masks", np.zeros((3, 8, 8), dtype=np.uint8)),
    ],
)
def test_npz_at_fault_is_refused_by_array(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(WorkloadError, match=f"a.npz.*{name}"):
        load_capsule_data(_save(tmp_path / "a.npz", **{name: value}), 8)


def test_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(WorkloadError, match="does not exist"):
        load_capsule_data(path, 8)
    path.write_bytes(b"no archive")
    with pytest.raises(WorkloadError, match="can not be read"):
        load_capsule_data(path, 8)
