"""Every part of a federated round on files: encrypted, gated, added, opened as a sum, applied, judged."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from workloads import federated
from workloads.base import WorkloadError
from workloads.capsnet_config import CapsuleConfig, LocalSettings
from workloads.capsnet_data import build_chest_phantoms
from workloads.federated_blobs import FederatedNetwork, decode_model, decode_opened, encode_model

WEIGHTS = (2, 3)
CONFIG = CapsuleConfig(side=16, channels=(4, 4), primary_types=1, primary_size=2, class_size=2, shared=True)
NETWORK = FederatedNetwork(CONFIG, LocalSettings(epochs=1), 20, 4 << 20, sum(WEIGHTS))
NOISE_STD = 5


@dataclass(frozen=True, slots=True)
class Files:
    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / name

    def open_sum(self, total: Path, binding: bytes, output: Path) -> None:
        federated.run_apart(
            federated.open_sum,
            self.network,
            self.secret,
            total,
            participants=len(WEIGHTS),
            weights=sum(WEIGHTS),
            noise_std=NOISE_STD,
            binding=binding,
            output=output,
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("parts"))
    made.network.write_bytes(NETWORK.encode())
    made.model.write_bytes(encode_model(NETWORK, np.zeros(NETWORK.parameters, dtype=np.int64)))
    made.keys.write_bytes(federated.run_apart(federated.make_keys, NETWORK, made.secret))
    return made


def build_job(files: Files, number: int) -> federated.UpdateJob:
    return federated.UpdateJob(
        network=files.network,
        keys=files.keys,
        model=files.model,
        data=files.folder / "data.npz",
        weight=WEIGHTS[number],
        seed=number,
        noise_std=0,
        output=files.folder / f"update-{number}",
    )


def test_a_sum_is_opened_and_an_update_is_not(files: Files) -> None:
    values = [
        federated.clip_change(NETWORK, np.random.default_rng(seed).normal(0, 1, NETWORK.parameters))
        for seed in (1, 2)
    ]
    jobs = [build_job(files, number) for number in (0, 1)]
    for job, one in zip(jobs, values, strict=True):
        federated.run_apart(federated._encrypt, job, one)
        federated.check_update(files.network, job.output)
    federated.sum_updates(files.network, tuple(job.output for job in jobs), files.total)
    files.open_sum(files.total, b"round 0", files.opened)
    exact = WEIGHTS[0] * values[0] + WEIGHTS[1] * values[1]
    opened = decode_opened(NETWORK, files.opened.read_bytes())
    assert 0 < np.abs(opened - exact).max() <= 8 * NOISE_STD
    files.open_sum(files.total, b"round 0", files.again)
    assert files.again.read_bytes() == files.opened.read_bytes()
    with pytest.raises(WorkloadError, match="only a round's sum is opened"):
        files.open_sum(jobs[0].output, b"round 0", files.refused)
    assert not files.refused.exists()
    federated.apply_opened(files.network, files.model, files.opened, sum(WEIGHTS), files.after)
    assert np.array_equal(decode_model(NETWORK, files.after.read_bytes()), opened // sum(WEIGHTS))


def test_what_does_not_fit_is_named(files: Files) -> None:
    terms = {
        "parameters": NETWORK.parameters,
        "weights": sum(WEIGHTS),
        "clip": NETWORK.clip,
        "update_bytes": NETWORK.build_plan().update_bytes,
    }
    federated.check_terms(files.network, files.model, files.keys, **terms)
    for name in terms:
        with pytest.raises(WorkloadError, match=name):
            federated.check_terms(files.network, files.model, files.keys, **(terms | {name: 1}))
    with pytest.raises(WorkloadError, match="keys"):
        federated.check_terms(files.network, files.model, files.model, **terms)
    files.rubbish.write_bytes(bytes(NETWORK.build_plan().update_bytes))
    with pytest.raises(WorkloadError, match="update: "):
        federated.check_update(files.network, files.rubbish)
    with pytest.raises(WorkloadError, match="updates: "):
        federated.sum_updates(files.network, (files.rubbish, files.rubbish), files.nothing)
    with pytest.raises(WorkloadError, match="made once"):
        federated.make_keys(NETWORK, files.secret)


@pytest.mark.slow
def test_hospitals_train_and_a_validator_judges(files: Files) -> None:
    phantoms = build_chest_phantoms(1, 20, CONFIG.side)
    pixels = np.rint(phantoms.images[:, 0] * 255).astype(np.uint8)
    np.savez(files.folder / "data.npz", images=pixels, labels=phantoms.labels, group=phantoms.groups)
    files.model.write_bytes(federated.run_apart(federated.build_model, NETWORK, 1))
    jobs = [build_job(files, number) for number in (0, 1)]
    for job in jobs:
        report = federated.train_update(job)
        assert report.norm > 0
        assert report.update_bytes == NETWORK.build_plan().update_bytes
    federated.sum_updates(files.network, tuple(job.output for job in jobs), files.total)
    files.open_sum(files.total, b"round 1", files.opened)
    federated.apply_opened(files.network, files.model, files.opened, sum(WEIGHTS), files.after)
    before, after = federated.run_apart(
        federated.judge, files.network, files.model, files.after, files.folder / "data.npz"
    )
    assert after < before
