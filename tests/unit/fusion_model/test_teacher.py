"""The full network in torch: its numpy twin, its losses, its training; simulated pairs."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fusion_model.backbone import (
    BackboneConfig,
    compute_backbone_planes,
    compute_teacher_image,
    decode_backbone,
    encode_backbone,
    load_backbone,
)
from fusion_model.metrics import compute_metrics
from fusion_model.pairs import ImagePair
from fusion_model.phantom import build_phantoms
from fusion_model.simulated import PICTURES, build_simulated_pairs
from fusion_model.teacher import FULL_NETWORK, Teacher
from fusion_model.teacher_losses import (
    LossWeights,
    compute_difference_correlation,
    compute_fidelity,
    compute_gradient_loss,
    compute_intensity_loss,
    compute_similarity,
    compute_teacher_loss,
)
from fusion_model.teacher_train import CROP, CropSource, TeacherSettings, train_teacher

SMALL = BackboneConfig(width=8, blocks=1, planes=2, head=2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small operations on several threads wait for each other more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_full_network_has_two_inception_blocks_and_43_thousand_parameters() -> None:
    assert FULL_NETWORK.blocks == 2
    assert 40_000 < FULL_NETWORK.parameters < 46_000
    assert sum(p.numel() for p in Teacher.from_seed(FULL_NETWORK, 0).parameters()) == FULL_NETWORK.parameters


def test_numpy_and_torch_agree() -> None:
    pair = build_phantoms(1, 1, slices=1, size=70)[0]
    backbone = load_backbone()
    teacher = Teacher.from_backbone(backbone)
    inputs = torch.from_numpy(pair.planes.astype(np.float32))[None]
    with torch.no_grad():
        planes = teacher.compute_planes(inputs)[0].numpy()
    np.testing.assert_allclose(compute_backbone_planes(pair.first, pair.second), planes, atol=1e-4)
    fused = teacher.fuse(pair.first, pair.second)
    np.testing.assert_allclose(compute_teacher_image(pair.first, pair.second), fused, atol=1e-4)


def test_another_network_survives_its_file() -> None:
    backbone = Teacher.from_seed(SMALL, 3).get_backbone("no patient was seen")
    again = decode_backbone(encode_backbone(backbone), "small")
    assert again.config == SMALL
    assert again.provenance == "no patient was seen"
    for name, array in again.arrays.items():
        np.testing.assert_allclose(array, backbone.arrays[name], rtol=1e-3, atol=1e-6)
    pair = build_phantoms(1, 1, slices=1, size=64)[0]
    assert compute_backbone_planes(pair.first, pair.second, again).shape == (2, 64, 64)


def test_black_stays_exactly_black_whatever_the_weights() -> None:
    for seed in range(3):
        assert not Teacher.from_seed(SMALL, seed).fuse(np.zeros((20, 20)), np.zeros((20, 20))).any()


def test_fidelity_is_the_metric() -> None:
    pair = build_phantoms(4, 1, slices=1, size=96)[0]
    fused = np.rint(255 * (0.7 * pair.first + 0.3 * pair.second)) / 255
    expected = compute_metrics(*(np.rint(255 * image) for image in (*pair.planes, fused))).VIF
    planes = torch.from_numpy(pair.planes)[None]
    assert compute_fidelity(torch.from_numpy(fused)[None], planes).item() == pytest.approx(expected, abs=1e-3)


def test_losses_are_least_where_they_should_be() -> None:
    pair = build_phantoms(4, 1, slices=1, size=64)[0]
    same = torch.from_numpy(np.stack([pair.first, pair.first]))[None]
    image = same[:, 0]
    assert compute_intensity_loss(image, same).item() == 0
    assert compute_gradient_loss(image, same).item() == 0
    assert compute_similarity(image, same).item() == pytest.approx(2, abs=1e-9)
    assert compute_fidelity(image, same).item() == pytest.approx(2, abs=1e-2)
    planes = torch.from_numpy(pair.planes)[None]
    both, one = planes.sum(dim=1), planes[:, 0]
    assert compute_difference_correlation(both, planes).item() == pytest.approx(2, abs=0.02)
    assert compute_difference_correlation(one, planes).item() < 1.8
    nothing = LossWeights(0, 0, 0, 0, 0)
    assert compute_teacher_loss(one, planes, nothing).item() == 0


def test_training_lowers_the_loss_and_follows_its_seed() -> None:
    pairs = build_phantoms(1, 3, slices=1, size=72)
    weights = LossWeights()

    def train(seed: int) -> Teacher:
        return train_teacher(pairs, TeacherSettings(SMALL, weights, steps=10, crops=2, rate=1e-2, seed=seed))

    def measure(teacher: Teacher) -> float:
        crops = torch.from_numpy(CropSource(pairs, 5).draw(6))
        with torch.no_grad():
            return compute_teacher_loss(teacher(crops), crops, weights).item()

    trained = train(0)
    assert measure(trained) < measure(Teacher.from_seed(SMALL, 0))
    again, other = train(0), train(1)
    name = "planes.weight"
    torch.testing.assert_close(trained.get_array(name), again.get_array(name))
    assert not torch.equal(trained.get_array(name), other.get_array(name))


def test_training_continues_and_reports() -> None:
    pairs = build_phantoms(1, 1, slices=1, size=64)
    start = Teacher.from_seed(SMALL, 0)
    seen: list[int] = []
    settings = TeacherSettings(SMALL, LossWeights(fidelity=0), steps=3, crops=1)
    result = train_teacher(pairs, settings, start, lambda step, loss: seen.append(step))
    assert result is start
    assert seen == [0, 1, 2]


def test_training_refuses_what_it_can_not_use() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        train_teacher([], TeacherSettings(SMALL))
    small = ImagePair("tiny", 0, np.zeros((20, 80)), np.zeros((20, 80)))
    with pytest.raises(ValueError, match="pair tiny is smaller"):
        CropSource([small], 0)
    with pytest.raises(ValueError, match="must be positive"):
        TeacherSettings(SMALL, steps=0)


def test_crops_come_from_every_patient_alike() -> None:
    bright = [ImagePair(f"a{n}", 1, np.full((CROP, CROP), 0.9), np.full((CROP, CROP), 0.9)) for n in range(9)]
    dim = [ImagePair("b", 2, np.full((CROP, CROP), 0.1), np.full((CROP, CROP), 0.1))]
    crops = CropSource([*bright, *dim], 0).draw(200)
    assert crops.shape == (200, 2, CROP, CROP)
    assert 70 < (crops[:, 0, 0, 0] < 0.5).sum() < 130


def test_simulated_pairs_follow_seed_and_number_and_look_like_8_bit_images() -> None:
    pairs = build_simulated_pairs(3, 6, size=64)
    again = build_simulated_pairs(3, 4, size=64)
    np.testing.assert_array_equal(pairs[2].planes, again[2].planes)
    for pair in pairs:
        np.testing.assert_allclose(pair.planes * 255, np.rint(pair.planes * 255), atol=1e-9)
        assert pair.planes.min() >= 0
        assert pair.planes.max() <= 1
        assert pair.planes.std() > 0.01
    assert not np.array_equal(build_simulated_pairs(4, 1, size=64)[0].planes, pairs[0].planes)
    assert all(licence.endswith(("CC0", "public domain")) for licence in PICTURES.values())
    with pytest.raises(ValueError, match="larger than the smallest photograph"):
        build_simulated_pairs(1, 1, size=400)
