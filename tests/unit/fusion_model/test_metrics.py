"""Metrics of images whose figures follow from the definitions; reference values are in tests/realdata."""

import time

import numpy as np
import pytest

from fusion_model.baselines import fuse_average, fuse_laplacian, fuse_maximum
from fusion_model.fuse import convert_to_bytes
from fusion_model.metrics import METRIC_NAMES, FusionMetrics, compute_mean_metrics, compute_metrics
from fusion_model.phantom import build_phantoms


def draw(seed: int, shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_an_image_fused_with_itself_is_perfect() -> None:
    image = draw(1)
    figures = compute_metrics(image, image, image)
    expected = {
        "VIF": 2,
        "SSIM": 2,
        "SSIM2": 2,
        "Qabf": 0.9994 * 0.9879 / (1 + np.exp(-22 * 0.2)),
        "MI": 2 * figures.EN * np.log(2),
        "SCD": 0,
    }
    for name, value in expected.items():
        assert getattr(figures, name) == pytest.approx(value, abs=1e-3), name


def test_simple_figures_follow_their_definitions() -> None:
    ramp = np.tile(np.arange(0, 128, 2, dtype=np.uint8), (64, 1))
    figures = compute_metrics(ramp, draw(2, (64, 64)), ramp)
    expected = {"EN": 6, "SD": np.arange(0, 128, 2).std(), "SF": 2, "AG": np.sqrt(2)}
    for name, value in expected.items():
        assert getattr(figures, name) == pytest.approx(value), name


def test_black_images_give_finite_figures() -> None:
    black = np.zeros((64, 64), dtype=np.uint8)
    figures = compute_metrics(black, black, black)
    assert all(np.isfinite(getattr(figures, name)) for name in METRIC_NAMES)
    assert (figures.EN, figures.MI, figures.SCD, figures.Qabf) == (0, 0, 0, 0)


def test_unsuitable_images_are_refused() -> None:
    image = draw(1)
    with pytest.raises(ValueError, match="one size"):
        compute_metrics(image, image, draw(1, (64, 96)))
    with pytest.raises(ValueError, match="expected second as a grey image"):
        compute_metrics(image, np.zeros((96, 96, 3)), image)
    with pytest.raises(ValueError, match=r"whole values 0\.\.255"):
        compute_metrics(image, image, image / 255)
    with pytest.raises(ValueError, match="at least 64x64"):
        compute_metrics(image[:40], image[:40], image[:40])
    with pytest.raises(ValueError, match="at least one"):
        compute_mean_metrics([])


def test_means_are_by_figure() -> None:
    zero, two = FusionMetrics(*[0.0] * 10), FusionMetrics(*[2.0] * 10)
    assert compute_mean_metrics([zero, two]) == FusionMetrics(*[1.0] * 10)


def test_baselines_keep_their_rules() -> None:
    a, b = draw(1), draw(2)
    np.testing.assert_array_equal(fuse_average(a, b), (a.astype(int) + b) // 2)
    np.testing.assert_array_equal(fuse_maximum(a, b), np.maximum(a, b))
    for shape in ((96, 96), (97, 65), (11, 9)):
        image = draw(3, shape)
        np.testing.assert_array_equal(fuse_laplacian(image, image), image)
    assert (fuse_laplacian(np.zeros_like(a), np.zeros_like(a)) == 0).all()


def test_the_pyramid_keeps_more_detail_than_the_mean() -> None:
    pair = build_phantoms(1, 1, slices=1)[0]
    a, b = convert_to_bytes(pair.first), convert_to_bytes(pair.second)
    pyramid, mean = (compute_metrics(a, b, fuse(a, b)) for fuse in (fuse_laplacian, fuse_average))
    assert pyramid.SF > mean.SF
    assert pyramid.Qabf > mean.Qabf


def test_ten_images_a_second() -> None:
    images = [draw(seed, (256, 256)) for seed in range(3)]
    spent: list[float] = []
    for _ in range(5):
        started = time.process_time()
        compute_metrics(*images)
        spent.append(time.process_time() - started)
    assert min(spent) < 0.1
