"""Diagnosis as a workload of the chain: facts, refusals, and an evaluator's process without a secret key."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from he.compiler import compile_network
from he.context import PrivateContext
from he.diagnosis import (
    decrypt_result,
    encode_keys,
    encode_model,
    encrypt_images,
    encrypt_model,
    get_rounding_bits,
    make_keys,
)
from he.network import INPUT, AveragePool, Convolution, Dense, Floats, Network, Polynomial, evaluate
from he.program import Packing, Program, WeightKind
from workloads.base import WorkloadError
from workloads.diagnosis_inference import DiagnosisInference
from workloads.inference import InferenceJob, get_inference, get_inference_kinds

WORKLOAD = DiagnosisInference(allow_insecure=True)

EVALUATOR = """
import gc, sys
from pathlib import Path
from workloads.diagnosis_inference import DiagnosisInference
from workloads.inference import InferenceJob

model, keys, request, output = map(Path, sys.argv[1:])
workload = DiagnosisInference(allow_insecure=True)
workload.describe_model(model)
assert "Pyfhel" not in sys.modules
workload.check_keys(model, keys)
workload.check_request(model, request)

import he.diagnosis
kept = []
class Kept(he.diagnosis.Evaluator):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        kept.append(self)
he.diagnosis.Evaluator = Kept
workload.run(InferenceJob(model, keys, request, output))

assert "torch" not in sys.modules
from he.context import PrivateContext
from he.keys import SecretKey
assert not any(isinstance(thing, (SecretKey, PrivateContext)) for thing in gc.get_objects())
assert len(kept) == 1 and kept[0].context.public_key is None
assert not kept[0].context.engine.has_secret
"""


@dataclass(frozen=True)
class World:
    network: Network
    program: Program
    private: PrivateContext
    images: Floats
    job: InferenceJob


def make_world(folder: Path, packing: Packing, weights: WeightKind) -> World:
    rng = np.random.default_rng(2)
    network = Network(
        (1, 8, 8),
        (
            Convolution("conv", INPUT, rng.normal(size=(2, 1, 3, 3)) / 3, rng.normal(size=2) / 4, 1, 1),
            Polynomial("square", "conv", (0.1, 0.5, 0.25), (-2.0, 2.0), 0.1),
            AveragePool("pool", "square", 2),
            Dense("dense", "pool", rng.normal(size=(3, 32)) / 6, rng.normal(size=3)),
        ),
    )
    program = compile_network(network, packing=packing, weights=weights, insecure_ring=1024)
    private = make_keys(program)
    images = rng.uniform(0, 1, size=(min(3, program.images), 1, 8, 8))
    job = InferenceJob(
        folder / "model", folder / "keys", folder / "request", folder / "result", folder / "progress"
    )
    job.model.write_bytes(
        encode_model(program) if weights == "clear" else encrypt_model(private.public, program)
    )
    job.keys.write_bytes(encode_keys(private))
    job.request.write_bytes(encrypt_images(private, program, images))
    return World(network, program, private, images, job)


@pytest.mark.parametrize("weights", ["clear", "encrypted"])
@pytest.mark.parametrize("packing", ["batch", "single"])
def test_a_job_in_a_process_without_secret_key(tmp_path: Path, packing: Packing, weights: WeightKind) -> None:
    world = make_world(tmp_path, packing, weights)
    job, program = world.job, world.program
    facts = WORKLOAD.describe_model(job.model)
    assert (facts.kind, facts.weights) == ("diagnosis", weights)
    sizes = (job.keys.stat().st_size, job.request.stat().st_size)
    assert (facts.keys_bytes, facts.request_bytes) == sizes
    arguments = [str(path) for path in (job.model, job.keys, job.request, job.output)]
    subprocess.run([sys.executable, "-c", EVALUATOR, *arguments], check=True, timeout=300)
    result = job.output.read_bytes()
    assert len(result) == facts.result_bytes
    # The same bytes here.
    assert WORKLOAD.run(job) == len(result)
    assert job.output.read_bytes() == result
    got = decrypt_result(world.private, program, result, len(world.images))
    error = np.abs(got - evaluate(world.network, world.images)).max()
    assert error < 4 * 2.0 ** -get_rounding_bits(program)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    world = make_world(tmp_path, "batch", "clear")
    job = world.job
    good = job.request.read_bytes()
    job.request.write_bytes(good[:-8])
    with pytest.raises(
        WorkloadError, match=r"request request: length: .*; encrypt the images for this model"
    ):
        WORKLOAD.check_request(job.model, job.request)
    with pytest.raises(WorkloadError, match="length"):
        WORKLOAD.run(job)
    job.request.write_bytes(b"other" + good[5:])
    with pytest.raises(WorkloadError, match="request request: header"):
        WORKLOAD.check_request(job.model, job.request)
    with pytest.raises(WorkloadError, match=r"keys request: length: .*; make keys for this model"):
        WORKLOAD.check_keys(job.model, job.request)
    with pytest.raises(WorkloadError, match="model keys: header: not a diagnosis model; fetch it again"):
        WORKLOAD.describe_model(job.keys)
    with pytest.raises(WorkloadError, match="insecure"):
        DiagnosisInference().describe_model(job.model)
    with pytest.raises(WorkloadError, match="absent"):
        WORKLOAD.describe_model(tmp_path / "absent")
    assert not job.output.exists()


def test_a_damaged_weight_is_the_models_fault(tmp_path: Path) -> None:
    world = make_world(tmp_path, "batch", "encrypted")
    job = world.job
    job.model.write_bytes(job.model.read_bytes()[:-8] + b"\xff" * 8)
    with pytest.raises(WorkloadError, match=r"model model: residue"):
        WORKLOAD.describe_model(job.model)
    with pytest.raises(WorkloadError, match=r"model model: residue"):
        WORKLOAD.run(job)


def test_the_registry_knows_both_kinds() -> None:
    assert get_inference_kinds() == ("diagnosis", "sequence-diagnosis")
    assert get_inference("diagnosis").kind == "diagnosis"
    with pytest.raises(WorkloadError, match="kind 'other' is unknown"):
        get_inference("other")
