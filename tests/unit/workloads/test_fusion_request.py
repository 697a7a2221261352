"""The requester's tiles: cut, fused and joined they are the image that the clear network makes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusion_model.pairs import ImagePair
from he.forward import MAX_TILE
from workloads.base import WorkloadError
from workloads.encrypted_fusion import ENCRYPTED_FUSION, EncryptedFusion, read_progress
from workloads.fusion import KIND, FusionSpec
from workloads.fusion_request import build_planes, choose_tile, cut_tiles, join_tiles

SPEC = FusionSpec()
WIDE = FusionSpec(patch=8, kernels=(1, 3, 5), planes=("saliency",), skip="maximum")
RNG = np.random.default_rng(5)


@pytest.mark.parametrize("size", [(16, 16), (13, 21), (5, 3)])
@pytest.mark.parametrize("tile", [1, 3, 8])
@pytest.mark.parametrize("margin", [0, 2])
def test_tiles_cover_the_image_once(size: tuple[int, int], tile: int, margin: int) -> None:
    """Each tile's centre is its part of the image; joined they are the image again."""
    planes = RNG.uniform(size=(2, *size))
    tiles = cut_tiles(planes, tile, margin)
    side = tile + 2 * margin
    assert tiles.shape[1:] == (2, side, side)
    centres = tiles[:, 1, margin : margin + tile, margin : margin + tile]
    assert (join_tiles(centres, *size) == planes[1]).all()


def test_tiles_hold_what_the_network_looks_at() -> None:
    """A filter over the tiles is the filter over the image continued by reflection."""
    image = RNG.uniform(size=(1, 11, 9))
    tiles = cut_tiles(image, 4, 2)
    sums = np.lib.stride_tricks.sliding_window_view(tiles[:, 0], (5, 5), axis=(1, 2)).sum((3, 4))
    bordered = np.pad(image[0], 2, mode="reflect")
    expected = np.lib.stride_tricks.sliding_window_view(bordered, (5, 5)).sum((2, 3))
    assert np.allclose(join_tiles(sums, 11, 9), expected)


def test_an_image_too_small_to_reflect_is_refused() -> None:
    with pytest.raises(WorkloadError, match="9x2 pixels is too small for a margin of 2"):
        cut_tiles(np.zeros((2, 2, 9)), 4, 2)


def test_the_tile_sends_the_fewest_bytes() -> None:
    assert choose_tile(256, 256, 4, 4096) == 4
    assert choose_tile(20, 20, 4, 4096) == 1
    assert choose_tile(512, 512, 4, 4096) == 8
    assert choose_tile(4096, 4096, 4, 4096) == MAX_TILE


def test_planes_lie_on_the_models_grid() -> None:
    pair = ImagePair("p", 0, RNG.uniform(size=(12, 10)), RNG.uniform(size=(12, 10)))
    planes, skip = build_planes(WIDE, pair)
    assert planes.shape == (3, 12, 10)
    assert skip.shape == (12, 10)
    for values, levels in ((planes, 255), (skip, 510)):
        assert np.allclose(values * levels, np.rint(values * levels))
    assert (np.abs(planes) <= 1).all()
    assert np.allclose(skip, planes[:2].max(axis=0))
    assert np.allclose(build_planes(SPEC, pair)[1], planes[:2].mean(axis=0))


def test_neither_side_loads_both_libraries() -> None:
    """The requester never meets torch, and a node loads no encryption before a worker needs it."""
    probe = (
        "import sys, workloads.encrypted_fusion; print('Pyfhel' in sys.modules);"
        "import workloads.fusion_request, he.inference; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# --- the peer's sizes -------------------------------------------------------------------------


def test_a_request_weighs_what_the_model_says() -> None:
    """64 pixels of two planes, two primes of 8192 words and two components each; 16 results of one prime."""
    sizes = ENCRYPTED_FUSION.get_sizes(KIND, SPEC.encode(), (1,) * SPEC.parameters, 4)
    keys = 64 + 2 * 2 * 3 * 8192 * 8
    assert sizes.request == keys + 64 + 2 * 8**2 * 2 * 2 * 8192 * 8
    assert sizes.result == 64 + 4**2 * 2 * 8192 * 8


@pytest.mark.parametrize(
    ("kind", "model", "count", "tile", "words"),
    [
        ("federated-round", SPEC.encode(), SPEC.parameters, 4, "kind"),
        (KIND, b"\x93\x01\x02\x03", 3, 4, "model"),
        (KIND, SPEC.encode(), SPEC.parameters - 1, 4, "weights"),
        (KIND, SPEC.encode(), SPEC.parameters, 9, "tile"),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, model: bytes, count: int, tile: int, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        ENCRYPTED_FUSION.get_sizes(kind, model, (1,) * count, tile)


def test_presets_are_admitted_by_name() -> None:
    with pytest.raises(WorkloadError, match="tests only"):
        _ = EncryptedFusion("test-2048-60x3").params
    assert EncryptedFusion("test-2048-60x3", allow_insecure=True).params.slots == 1024
    with pytest.raises(WorkloadError, match="unknown preset"):
        _ = EncryptedFusion("none").params
    with pytest.raises(WorkloadError, match="exactly 2"):
        EncryptedFusion("ckks-16384-60x5").build_plan(SPEC.encode(), (1,) * SPEC.parameters, 4)


@pytest.mark.parametrize(("text", "part"), [("3 4", 0.75), ("", 0.0), ("3", 0.0), ("a b", 0.0), ("0 4", 0.0)])
def test_progress_is_what_the_worker_wrote(tmp_path: Path, text: str, part: float) -> None:
    assert read_progress(tmp_path / "absent") == 0.0
    (tmp_path / "progress").write_text(text)
    assert read_progress(tmp_path / "progress") == part
