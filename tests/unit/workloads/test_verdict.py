"""Verdicts in clear: repeatable, noised, about the right model, and silent about the pairs."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion_model.fuse import convert_to_bytes
from fusion_model.losses import compute_full_losses
from fusion_model.phantom import build_phantoms
from workloads.base import PrivatePairs, VerdictJob, WorkloadError
from workloads.fusion import WORKLOAD, FusionSpec
from workloads.verdict import build_source, load_private_patches, run_verdict

SPEC = FusionSpec(patch=5, kernels=(3,))
UNIT = 2**20
PAIRS = PrivatePairs(phantoms=2, phantom_seed=987)


@pytest.fixture
def job(tmp_path: Path) -> VerdictJob:
    secret = tmp_path / "verdict.key"
    secret.write_bytes(bytes(range(32)))
    weights = WORKLOAD.build_initial_weights(SPEC.encode(), 1)
    return VerdictJob(
        SPEC.encode(), weights, weights, PAIRS, 512, UNIT // 8, 20, 10 * UNIT // 8, secret, b"chain and task"
    )


def test_one_model_has_one_loss(job: VerdictJob) -> None:
    """However often it is judged, as the earlier or the later model: no noise can be averaged away."""
    losses = WORKLOAD.run_verdict(job)
    assert losses.before == losses.after
    assert losses == run_verdict(SPEC, job)
    assert losses.deviation == -(-job.noise // 512)


def test_noise_depends_on_task_and_weights(job: VerdictJob) -> None:
    other = run_verdict(SPEC, replace(job, binding=b"another task"))
    assert other.before != run_verdict(SPEC, job).before
    clear = run_verdict(SPEC, replace(job, noise=0))
    seen = [run_verdict(SPEC, replace(job, binding=bytes([i]))).before for i in range(40)]
    assert np.std(seen) == pytest.approx(other.deviation, rel=0.4)
    assert np.mean(seen) == pytest.approx(clear.before, abs=other.deviation)


def test_a_worse_model_is_seen(job: VerdictJob) -> None:
    """Twenty times the weights of the second layer: the clipped loss grows beyond the noise."""
    worse = tuple(20 * weight for weight in job.after)
    losses = run_verdict(SPEC, replace(job, after=worse))
    assert losses.after > losses.before + losses.deviation


def _write_folder(folder: Path) -> None:
    for side in ("first", "second"):
        (folder / side).mkdir(parents=True)
    for pair in build_phantoms(987, 2):
        Image.fromarray(convert_to_bytes(pair.first)).save(folder / "first" / f"{pair.patient}_0.png")
        Image.fromarray(convert_to_bytes(pair.second)).save(folder / "second" / f"{pair.patient}_0.png")


def test_folders_and_manifests_are_read_like_a_contributors(job: VerdictJob, tmp_path: Path) -> None:
    _write_folder(tmp_path / "pairs")
    found = run_verdict(SPEC, replace(job, pairs=PrivatePairs(tmp_path / "pairs"), noise=0))  # other patches
    assert found.before == pytest.approx(run_verdict(SPEC, replace(job, noise=0)).before, rel=0.2)
    rows = [
        {
            "id": p.name,
            "modality": "X",
            "file_a": f"first/{p.name}",
            "file_b": f"second/{p.name}",
            "patient": "1",
        }
        for p in sorted((tmp_path / "pairs" / "first").iterdir())
    ]
    with (tmp_path / "pairs" / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    by_manifest = PrivatePairs(tmp_path / "pairs", modality="X")
    assert build_source(by_manifest).manifest is not None
    assert run_verdict(SPEC, replace(job, pairs=by_manifest, noise=0)).before > 0


def test_private_pairs_are_judged_by_the_tasks_own_planes_skip_and_targets(job: VerdictJob) -> None:
    """By the definition of the loss, from pairs that were prepared whole."""
    spec = FusionSpec(6, (1, 3), 3, ("saliency",), 2, "maximum", "energy")
    weights = WORKLOAD.build_initial_weights(spec.encode(), 1)
    asked = replace(job, model=spec.encode(), before=weights, after=(0,) * spec.parameters, noise=0)
    found = WORKLOAD.run_verdict(asked)
    patches = load_private_patches(spec, PAIRS, 512)
    assert patches.inputs.shape == (512, 3, 6, 6)
    assert patches is load_private_patches(spec, PAIRS, 512)
    assert patches is not load_private_patches(replace(spec, target="maximum"), PAIRS, 512)
    # With weights of 0 the network changes nothing: F = S.
    losses = compute_full_losses(spec.network, patches.skip, patches.targets)
    assert found.after == pytest.approx(np.minimum(losses, 1 / 8).mean() * UNIT, abs=1)
    assert found.before != found.after


def test_fewer_patches_than_wanted_are_enough() -> None:
    assert 0 < len(load_private_patches(SPEC, PAIRS, 10**6).inputs) < 10**6


def test_errors_and_text_tell_nothing_of_the_pairs(job: VerdictJob, tmp_path: Path) -> None:
    _write_folder(tmp_path / "patients-of-ward-7")
    (tmp_path / "patients-of-ward-7" / "first" / "smith_0.png").write_bytes(b"no image")
    private = replace(job, pairs=PrivatePairs(tmp_path / "patients-of-ward-7"))
    with pytest.raises(WorkloadError) as caught:
        run_verdict(SPEC, private)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    for text in (str(caught.value), repr(caught.value), repr(private)):
        assert "ward" not in text
        assert "smith" not in text


@pytest.mark.parametrize("secret", [None, b"", b"short"])
def test_without_its_key_there_is_no_verdict(job: VerdictJob, secret: bytes | None) -> None:
    job.secret.unlink()
    if secret is not None:
        job.secret.write_bytes(secret)
    with pytest.raises(WorkloadError, match="noise key"):
        run_verdict(SPEC, job)
