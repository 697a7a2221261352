"""The public backbone: black, ranges, borders, the file format, what is refused."""

import json
from importlib import resources

import numpy as np
import pytest

from fusion_model.backbone import (
    BACKBONE_PLANES,
    Backbone,
    BackboneConfig,
    compute_backbone_planes,
    compute_teacher_image,
    decode_backbone,
    encode_backbone,
    load_backbone,
)
from fusion_model.phantom import build_phantoms


def test_planes_are_bounded_deterministic_and_as_many_as_declared() -> None:
    pair = build_phantoms(2, 1, slices=1, size=64)[0]
    planes = compute_backbone_planes(pair.first, pair.second)
    assert planes.shape == (BACKBONE_PLANES, 64, 64)
    assert planes.dtype == np.float64
    assert np.abs(planes).max() <= 1
    # A plane that is the same everywhere would waste its ciphertexts.
    assert (planes.std(axis=(1, 2)) > 0.01).all()
    np.testing.assert_array_equal(planes, compute_backbone_planes(pair.first, pair.second))


def test_black_gives_exactly_zero() -> None:
    black = np.zeros((40, 50))
    assert not compute_backbone_planes(black, black).any()
    assert not compute_teacher_image(black, black).any()


def test_black_around_a_structure_stays_zero_beyond_the_receptive_field() -> None:
    first, second = np.zeros((64, 64)), np.zeros((64, 64))
    first[30:34, 30:34] = 0.8
    planes = compute_backbone_planes(first, second)
    reach = 2 + 2 * load_backbone().config.blocks
    assert planes[:, 30:34, 30:34].any()
    assert not planes[:, : 30 - reach].any()
    assert not planes[:, :, 34 + reach :].any()


def test_the_teacher_image_stays_in_range_and_near_the_maximum() -> None:
    pair = build_phantoms(5, 1, slices=1, size=64)[0]
    image = compute_teacher_image(pair.first, pair.second)
    assert image.shape == (64, 64)
    assert image.min() >= 0
    assert image.max() <= 1
    assert 0 < np.abs(image - np.maximum(pair.first, pair.second)).mean() < 0.1


def test_a_part_of_an_image_gives_the_same_planes_away_from_its_border() -> None:
    pair = build_phantoms(6, 1, slices=1, size=80)[0]
    whole = compute_backbone_planes(pair.first, pair.second)
    part = compute_backbone_planes(pair.first[10:70, 5:75], pair.second[10:70, 5:75])
    np.testing.assert_allclose(part[:, 12:-12, 12:-12], whole[:, 22:58, 17:63], atol=1e-5)


def test_images_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="two grey images of one size"):
        compute_backbone_planes(np.zeros((8, 8)), np.zeros((8, 9)))
    with pytest.raises(ValueError, match="two grey images of one size"):
        compute_teacher_image(np.zeros((8, 8, 3)), np.zeros((8, 8, 3)))


def test_shipped_weights_are_small_and_say_what_they_were_trained_on() -> None:
    text = resources.files("fusion_model.weights").joinpath("backbone.json").read_text(encoding="utf-8")
    assert len(text) < 200_000
    backbone = load_backbone()
    assert backbone.config.planes == BACKBONE_PLANES
    assert "no patient" in backbone.provenance
    assert encode_backbone(backbone) == text
    assert sum(array.size for array in backbone.arrays.values()) == backbone.config.parameters


def test_damaged_weights_files_are_refused_by_name() -> None:
    good = json.loads(encode_backbone(load_backbone()))

    def spoil(**change: object) -> str:
        return json.dumps(good | change)

    with pytest.raises(ValueError, match=r"weights file w\.json can not be used: has format 9"):
        decode_backbone(spoil(format=9), "w.json")
    with pytest.raises(ValueError, match=r"stem\.weight: expected shape .*, got nothing"):
        decode_backbone(spoil(arrays={}), "w.json")
    with pytest.raises(ValueError, match="multiple of 4"):
        decode_backbone(spoil(config={"width": 6}), "w.json")
    for text in ("{", "[]", "{}", spoil(config={"depth": 1}), spoil(arrays={"stem.weight": {"shape": [1]}})):
        with pytest.raises(ValueError, match=r"w\.json can not be used"):
            decode_backbone(text, "w.json")


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        BackboneConfig(blocks=0)
    config = BackboneConfig(width=4, blocks=1, planes=1, head=1)
    with pytest.raises(ValueError, match="got nothing"):
        Backbone(config, {}, "empty")
