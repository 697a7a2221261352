"""Opened losses: bounded for each patch, rounded, repeatable; entries have names."""

import numpy as np
import pytest

from workloads.base import WorkloadError
from workloads.clipping import sum_clipped_losses
from workloads.custody import DEFAULT_TOLERANCES, compare_gradients, get_entry_name, open_loss
from workloads.fusion import FusionSpec

SPEC = FusionSpec()
SECRET = bytes(range(32))


def test_each_patch_is_bounded() -> None:
    losses = np.array([-5.0, 0.0, 0.25, 1e9, np.inf])
    assert sum_clipped_losses(losses, 2**18, 20) == 0 + 0 + 3 * 2**18
    with pytest.raises(WorkloadError, match="loss_clip"):
        sum_clipped_losses(losses, 0, 20)


@pytest.mark.parametrize(
    ("sums", "patches", "mean"), [((5,), 2, 3), ((4, 1), 3, 2), ((1,), 3, 0), ((0,), 9, 0)]
)
def test_the_mean_is_rounded(sums: tuple[int, ...], patches: int, mean: int) -> None:
    assert open_loss(sums, patches, 0, SECRET, b"binding") == mean


def test_noise_is_repeatable_and_never_gives_a_negative_loss() -> None:
    opened = [open_loss((10**6,), 100, 10**5, SECRET, b"step %d" % step) for step in range(50)]
    assert opened == [open_loss((10**6,), 100, 10**5, SECRET, b"step %d" % step) for step in range(50)]
    assert len(set(opened)) > 40
    assert abs(sum(opened) / 50 - 10**4) < 5 * 10**3 / 50**0.5
    assert min(open_loss((0,), 1, 10**6, SECRET, b"step %d" % step) for step in range(20)) == 0
    with pytest.raises(WorkloadError, match="at least one patch"):
        open_loss((1,), 0, 1, SECRET, b"x")


def test_entries_have_names() -> None:
    names = [get_entry_name(SPEC, index) for index in range(113)]
    assert names[0] == "w[0,0,0,0]"
    assert names[71] == "w[3,1,2,2]"
    assert names[72:76] == ["b[0]", "b[1]", "b[2]", "b[3]"]
    assert names[76] == "v[0,0,0]"
    assert names[111:] == ["v[3,2,2]", "d"]
    assert len(set(names)) == 113


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.0])
def test_one_wrong_number_refuses_all(bad: float) -> None:
    expected = np.random.default_rng(1).normal(size=(64, 113))
    assert compare_gradients(SPEC, expected, expected.copy(), 60, DEFAULT_TOLERANCES).gradients is not None
    wrong = expected.copy()
    wrong[17, 75] += bad
    checked = compare_gradients(SPEC, expected, wrong, 60, DEFAULT_TOLERANCES)
    assert checked.gradients is None
    assert (checked.report.patch, checked.report.entry) == (17, "b[3]")
    assert compare_gradients(SPEC, expected, wrong[:-1], 60, DEFAULT_TOLERANCES).gradients is None
