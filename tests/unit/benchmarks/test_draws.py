"""The custody's draws, found again from an archive of real ciphertexts."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.results.draws import Archive, follow_openings, recover_draws
from benchmarks.testbed import TestbedError
from consensus.claims import sign_claim
from consensus.codec import encode
from consensus.crypto import SigningKey
from consensus.identifiers import compute_weights_digest
from consensus.task import BlobRef, OpenGradient, Optimizer
from consensus.types import ZERO_HASH
from fusion_model.phantom import build_phantoms
from fusion_model.train import Clipping, TrainingBatch, compute_clipped_sum
from tests.unit.consensus.world import build_draft, build_publication
from workloads.base import GradientJob, KeyFile
from workloads.fusion import WORKLOAD, FusionSpec

PRESET = "ckks-16384-60x5"
SPEC = FusionSpec(patch=2, kernels=(1, 1, 1, 1), second=1)
CLIP, NOISE, PATCHES = 2**19, 2**24, 300


@pytest.mark.slow
def test_draws_are_what_the_custody_drew(tmp_path: Path) -> None:
    from he.context import PrivateContext
    from workloads.custodian import SECRET_KEY_FILE, SingleCustodian, generate_keys
    from workloads.custody import sum_patches
    from workloads.encryption import ContributionPlan, build_clear_batches, encrypt_patches

    files = generate_keys(PRESET, tmp_path / "keys")
    private = PrivateContext.load(WORKLOAD.get_params(PRESET), tmp_path / "keys" / SECRET_KEY_FILE)
    plan = ContributionPlan(1, 0, (), seed=1, patches_per_batch=PATCHES)
    training, _ = build_clear_batches(SPEC, build_phantoms(3, 1), plan, PATCHES)
    (tmp_path / "batch").write_bytes(encrypt_patches(private.public, SPEC, training[0], False))
    weights = WORKLOAD.build_initial_weights(SPEC.encode(), 0)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    bundle = blobs / ZERO_HASH.hex()
    keys = KeyFile(b"relin", files.relin_keys)
    WORKLOAD.run_gradient(GradientJob(PRESET, SPEC.encode(), weights, keys, tmp_path / "batch", bundle))

    draft = build_draft(
        preset=PRESET, model=SPEC.encode(), parameters=SPEC.parameters, weight_box=4 << 20,
        gradient_clip=CLIP, gradient_noise=NOISE,
    )  # fmt: skip
    publication = build_publication(
        ZERO_HASH, (), initial_weights=weights, optimizer=Optimizer(40, (1,)), batches_per_step=1, order=(0,)
    )
    claim = sign_claim(
        SigningKey(bytes(32)), ZERO_HASH, ZERO_HASH, 0, 0, BlobRef(ZERO_HASH, bundle.stat().st_size)
    )
    unopened = OpenGradient(ZERO_HASH, 0, ZERO_HASH, compute_weights_digest(weights), (claim,), (), (), 1, ())
    from he.packing import decrypt_bundle

    gradients = decrypt_bundle(private, SPEC.circuit, bundle)[:PATCHES]
    sums = sum_patches(SPEC, weights, gradients, CLIP, 20)
    binding = ZERO_HASH + encode(unopened)
    opened = SingleCustodian(tmp_path / "keys").open_gradient(sums, NOISE, binding)
    opening = replace(unopened, gradient=opened)

    archive = Archive(tmp_path / "keys", blobs, ZERO_HASH, draft)
    steps = tuple(follow_openings(draft, publication, [opening], (PATCHES,)))
    draws = recover_draws(archive, steps)
    assert draws == (tuple(a - b for a, b in zip(opened, sums, strict=True)),)
    # The same draws on the clear sums: what a twin is given differs from the task by the scheme's error.
    batch = TrainingBatch(training[0].inputs, training[0].target)
    clear = compute_clipped_sum(SPEC.network, weights, batch, Clipping(CLIP, 20, CLIP, 20))
    assert max(abs(a - int(b)) for a, b in zip(sums, clear, strict=True)) < 1000
    forged = replace(opening, gradient=(opened[0] + 1, *opened[1:]))
    with pytest.raises(TestbedError, match="does not follow from its key"):
        recover_draws(archive, (replace(steps[0], opening=forged),))
