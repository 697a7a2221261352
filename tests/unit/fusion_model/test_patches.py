"""Patches: count, patients' ranges, black ones left out, the same by the same seed."""

import numpy as np
import pytest

from fusion_model.pairs import ImagePair, split_by_patient
from fusion_model.patches import BLACK_LEVEL, extract_patches
from fusion_model.phantom import build_phantoms
from fusion_model.planes import PLANES, SKIPS
from fusion_model.prepared import PairSettings, prepare_pair
from fusion_model.targets import TARGETS


def test_patches_are_shared_evenly_and_contiguous_by_patient() -> None:
    pairs = build_phantoms(5, 3, slices=2, size=64)
    patches = extract_patches(list(reversed(pairs)), 1000, seed=4)
    assert patches.inputs.shape == (1000, 2, 6, 6)
    assert [entry.patient for entry in patches.ranges] == [0, 1, 2]
    assert [entry.stop - entry.start for entry in patches.ranges] in (
        [333, 333, 334],
        [334, 333, 333],
        [333, 334, 333],
    )
    assert patches.ranges[0].start == 0
    assert patches.ranges[-1].stop == 1000
    assert all(
        left.stop == right.start for left, right in zip(patches.ranges, patches.ranges[1:], strict=False)
    )
    for entry in patches.ranges:
        images = [pair.planes for pair in pairs if pair.patient == entry.patient]
        windows = np.concatenate(
            [
                np.lib.stride_tricks.sliding_window_view(image, (6, 6), axis=(1, 2))
                .transpose(1, 2, 0, 3, 4)
                .reshape(-1, 72)
                for image in images
            ]
        )
        own = {window.tobytes() for window in windows}
        assert all(patch.tobytes() in own for patch in patches.inputs[entry.start : entry.stop])


def test_near_black_patches_are_left_out_and_none_comes_twice() -> None:
    rows, columns = np.mgrid[0:40, 0:40]
    bright = np.where(rows < 20, 0.0, 0.2 + 0.01 * columns + 0.0001 * rows)
    fine = PairSettings(levels=10_000)
    patches = extract_patches([ImagePair("p", 3, bright, bright)], 400, seed=1, settings=fine)
    assert (patches.inputs.mean(axis=(1, 2, 3)) > BLACK_LEVEL).all()
    assert len(np.unique(patches.inputs.reshape(400, -1), axis=0)) == 400


def test_a_small_patient_gives_what_it_has_and_the_others_fill_up() -> None:
    tiny, large = np.full((7, 7), 0.5), np.full((40, 40), 0.5)
    patches = extract_patches([ImagePair("t", 1, tiny, tiny), ImagePair("l", 0, large, large)], 100, seed=1)
    assert [(entry.patient, entry.start, entry.stop) for entry in patches.ranges] == [
        (0, 0, 96),
        (1, 96, 100),
    ]


@pytest.mark.parametrize("margin", [0, 2])
def test_planes_skip_and_targets_are_windows_of_the_prepared_pair(margin: int) -> None:
    """Every patch is looked for among all windows of its patient's images, and found with all that belongs
    to it."""
    settings = PairSettings(("saliency", "contrast"), "mean", "energy", 63)
    pairs = build_phantoms(5, 2, slices=2, size=48)
    patches = extract_patches(pairs, 60, seed=4, settings=settings, margin=margin)
    inner = 6 - 2 * margin
    assert patches.inputs.shape == (60, 4, 6, 6)
    assert patches.targets.gradient_x.shape == (60, inner, inner - 1)
    for entry in patches.ranges:
        prepared = [prepare_pair(settings, pair) for pair in pairs if pair.patient == entry.patient]
        for patch in range(entry.start, entry.stop):
            found = 0
            for pair in prepared:
                windows = np.lib.stride_tricks.sliding_window_view(pair.inputs, (6, 6), axis=(1, 2))
                same = (windows == patches.inputs[patch][:, None, None]).all(axis=(0, 3, 4))
                for row, column in np.argwhere(same):
                    top, left = row + margin, column + margin
                    rows, columns = slice(top, top + inner), slice(left, left + inner)
                    found += bool(
                        (patches.skip[patch] == pair.skip[rows, columns]).all()
                        and (patches.targets.intensity[patch] == pair.targets.intensity[rows, columns]).all()
                        and (
                            patches.targets.gradient_x[patch]
                            == pair.targets.gradient_x[rows, left : left + inner - 1]
                        ).all()
                        and (
                            patches.targets.gradient_y[patch]
                            == pair.targets.gradient_y[top : top + inner - 1, columns]
                        ).all()
                    )
            assert found


def test_the_choice_of_patches_does_not_depend_on_what_is_computed_from_them() -> None:
    pairs = build_phantoms(5, 2, slices=2, size=48)
    plain = extract_patches(pairs, 200, seed=4)
    richer = extract_patches(pairs, 200, seed=4, settings=PairSettings(("saliency",), target="energy"))
    np.testing.assert_array_equal(richer.inputs[:, :2], plain.inputs)
    assert richer.ranges == plain.ranges


def test_a_margin_must_leave_something() -> None:
    pairs = build_phantoms(5, 1, slices=1, size=48)
    with pytest.raises(ValueError, match="a margin leaves nothing"):
        extract_patches(pairs, 1, seed=0, margin=3)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("skip", SKIPS)
def test_prepared_pairs_are_on_the_grid_in_range_and_black_where_the_images_are(
    target: str, skip: str
) -> None:
    first, second = build_phantoms(2, 1, slices=1, size=64)[0].planes
    # A black half: neighbourhoods of planes and targets end well within it.
    first, second = np.hstack([first, np.zeros((64, 64))]), np.hstack([second, np.zeros((64, 64))])
    prepared = prepare_pair(PairSettings(PLANES, skip, target, 31), ImagePair("p", 0, first, second))
    assert prepared.inputs.shape == (2 + len(PLANES), 64, 128)
    for values, least, levels in (
        (prepared.inputs[:2], 0, 31),
        (prepared.inputs[2:], -1, 31),
        (prepared.skip, 0, 62),
        (prepared.targets.intensity, 0, 31),
        (prepared.targets.gradient_x, -1, 31),
        (prepared.targets.gradient_y, -1, 31),
    ):
        np.testing.assert_allclose(values * levels, np.rint(values * levels), atol=1e-9)
        assert least <= values.min()
        assert values.max() <= 1
        assert not values[..., 100:].any()


def test_the_default_stage_is_maximum_on_the_rounded_images() -> None:
    pair = build_phantoms(2, 1, slices=1, size=64)[0]
    prepared = prepare_pair(PairSettings(levels=15), pair)
    first, second = np.rint(pair.planes * 15) / 15
    np.testing.assert_array_equal(prepared.inputs, [first, second])
    np.testing.assert_allclose(prepared.skip, (first + second) / 2, atol=1e-15)
    np.testing.assert_array_equal(prepared.targets.intensity, np.maximum(first, second))
    across = np.stack([np.diff(first), np.diff(second)])
    stronger = np.where(np.abs(across[1]) > np.abs(across[0]), across[1], across[0])
    np.testing.assert_allclose(prepared.targets.gradient_x, stronger, atol=1.01 / 15)
    assert np.isclose(prepared.targets.gradient_x, stronger, atol=1e-12).mean() > 0.99


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PairSettings(("other",)), "pair x: plane 'other' is unknown"),
        (PairSettings(skip="other"), "pair x: skip 'other' is unknown"),
        (PairSettings(target="other"), "pair x: target 'other' is unknown"),
    ],
)
def test_unknown_names_and_bad_numbers_name_the_pair(settings: PairSettings, message: str) -> None:
    image = np.full((8, 8), 0.5)
    with pytest.raises(ValueError, match=message):
        prepare_pair(settings, ImagePair("x", 0, image, image))
    image[3, 3] = np.nan
    with pytest.raises(ValueError, match="pair x: image holds a number that is not finite"):
        prepare_pair(PairSettings(), ImagePair("x", 0, image, image))


def test_the_seed_decides() -> None:
    pairs = build_phantoms(5, 2, slices=1, size=64)
    first = extract_patches(pairs, 200, seed=1).inputs
    np.testing.assert_array_equal(first, extract_patches(pairs, 200, seed=1).inputs)
    assert not np.array_equal(first, extract_patches(pairs, 200, seed=2).inputs)


def test_too_few_patches_and_too_small_images_are_refused() -> None:
    black = np.zeros((30, 30))
    with pytest.raises(ValueError, match="10 patches wanted, only 0"):
        extract_patches([ImagePair("b", 0, black, black)], 10, seed=0)
    small = np.ones((5, 5))
    with pytest.raises(ValueError, match=r"pair s: .* smaller than"):
        extract_patches([ImagePair("s", 0, small, small)], 1, seed=0)


def test_splitting_never_shares_a_patient() -> None:
    pairs = build_phantoms(5, 4, slices=2, size=64)
    training, validation = split_by_patient(pairs, [1, 3])
    assert {pair.patient for pair in training} == {0, 2}
    assert {pair.patient for pair in validation} == {1, 3}
    with pytest.raises(ValueError, match=r"\[9\]"):
        split_by_patient(pairs, [1, 9])
    with pytest.raises(ValueError, match="nothing is left"):
        split_by_patient(pairs, [0, 1, 2, 3])


def test_pairs_of_different_sizes_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="pair x: sizes differ"):
        ImagePair("x", 0, np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="chroma"):
        ImagePair("x", 0, np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((3, 4, 4)))


def test_phantoms_are_repeatable_eight_bit_and_differ_by_patient_and_slice() -> None:
    pairs = build_phantoms(1, 2, slices=3, size=64)
    again = build_phantoms(1, 1, slices=3, size=64, first_patient=1)
    assert [pair.patient for pair in pairs] == [0, 0, 0, 1, 1, 1]
    for pair, twin in zip(pairs[3:], again, strict=True):
        np.testing.assert_array_equal(pair.planes, twin.planes)
    assert len({pair.planes.tobytes() for pair in pairs}) == 6
    assert len({pair.name for pair in pairs}) == 6
    for pair in pairs:
        np.testing.assert_allclose(pair.planes * 255, np.rint(pair.planes * 255), atol=1e-12)
        assert pair.first[0, 0] < BLACK_LEVEL
    assert not np.array_equal(pairs[0].planes, build_phantoms(2, 1, slices=3, size=64)[0].planes)


def test_each_phantom_modality_shows_what_the_other_hides() -> None:
    differences = np.stack([pair.first - pair.second for pair in build_phantoms(1, 6, slices=1)])
    shown_by_first, shown_by_second = (differences > 0.5).mean(), (differences < -0.5).mean()
    assert shown_by_first > 0.05
    assert shown_by_second > 0.05
