"""Jobs of sequence diagnosis: frames, then segments, from bytes to bytes; what is refused."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from he.compiler import compile_network
from he.context import PrivateContext
from he.diagnosis import decrypt_result, encode_keys, encode_model, encrypt_images
from he.network import INPUT, Convolution, Dense, GlobalAveragePool, Network, Polynomial
from he.params import build_params
from he.program import Program
from he.sequence_plan import SequencePlan, plan_sequence
from he.sequence_program import encode_clear_model
from he.sequences import decrypt_segment, encrypt_segment
from tests.he.test_sequences import make_cell
from workloads.base import WorkloadError
from workloads.inference import InferenceJob, get_inference
from workloads.sequence import ClearModel, Patient, arrange_features, evaluate_clear, split_windows
from workloads.sequence_inference import SequenceInference

INFERENCE = SequenceInference(allow_insecure=True)
PARAMS = build_params(1024, (55, *(40,) * 8, 55), insecure=True)


def make_frames() -> Network:
    generator = np.random.default_rng(3)
    return Network(
        (1, 4, 4),
        (
            Convolution("first", INPUT, generator.normal(0, 0.3, (2, 1, 3, 3)), np.zeros(2), 2, 1),
            Polynomial("square", "first", (0.375, 0.5, 0.117), (-4.0, 4.0), 0.38),
            GlobalAveragePool("pool", "square"),
            Dense("features", "pool", generator.normal(0, 1, (3, 2)), np.zeros(3)),
        ),
    )


@dataclass
class Requester:
    """Has the keys; everything that it asks for goes through files and the registry's interface."""

    folder: Path
    frames: Program
    plan: SequencePlan
    model: ClearModel

    def ask(self, name: str, model: bytes, keys: bytes, request: bytes) -> bytes:
        job = InferenceJob(
            *(self.folder / f"{name}.{part}" for part in ("model", "keys", "request", "result"))
        )
        for path, data in ((job.model, model), (job.keys, keys), (job.request, request)):
            path.write_bytes(data)
        facts = INFERENCE.describe_model(job.model)
        assert (facts.kind, facts.weights) == ("sequence-diagnosis", "clear")
        assert (facts.keys_bytes, facts.request_bytes) == (len(keys), len(request))
        INFERENCE.check_keys(job.model, job.keys)
        INFERENCE.check_request(job.model, job.request)
        assert INFERENCE.run(job) == facts.result_bytes == job.output.stat().st_size
        return job.output.read_bytes()

    def diagnose(self, patients: list[Patient]) -> list[np.ndarray]:
        """Each patient's decisions (windows, T)."""
        images = np.concatenate([patient.frames for patient in patients])
        private = PrivateContext.generate(self.frames.params)
        request = encrypt_images(private, self.frames, images)
        result = self.ask("frames", encode_model(self.frames), encode_keys(private), request)
        features = decrypt_result(private, self.frames, result, len(images))
        lengths = [len(patient.frames) for patient in patients]
        arranged = arrange_features(np.split(features, np.cumsum(lengths)[:-1]), self.model.window)
        private, state, decisions = PrivateContext.generate(PARAMS), None, []
        for number, segment in enumerate(self.plan.segments):
            model = encode_clear_model(segment.program, self.model.cell)
            request = encrypt_segment(private, segment, model, arranged[number : number + 1], state)
            result = self.ask(f"segment{number}", model, encode_keys(private), request)
            got, state = decrypt_segment(private, segment, model, result, arranged.shape[2])
            decisions.append(got)
        return split_windows(np.concatenate(decisions), lengths)


@pytest.fixture(scope="module")
def requester(tmp_path_factory: pytest.TempPathFactory) -> Requester:
    frames = compile_network(make_frames(), insecure_ring=1024)
    plan = plan_sequence(frames, make_cell(), 3, PARAMS)
    model = ClearModel(make_frames(), make_cell(), 3)
    return Requester(tmp_path_factory.mktemp("jobs"), frames, plan, model)


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    generator = np.random.default_rng(4)
    return [Patient(f"p{n}", n % 2, generator.uniform(-1, 1, (3 + n, 1, 4, 4))) for n in range(3)]


@pytest.fixture(scope="module")
def decisions(requester: Requester, patients: list[Patient]) -> list[np.ndarray]:
    return requester.diagnose(patients)


def test_decisions_are_the_clear_ones(
    requester: Requester, patients: list[Patient], decisions: list[np.ndarray]
) -> None:
    for got, expected in zip(decisions, evaluate_clear(requester.model, patients), strict=True):
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < 2e-3


def test_the_plan_counts_refreshes(requester: Requester) -> None:
    lines = requester.plan.describe()
    assert requester.plan.refreshes == 3
    assert sum("encrypted again" in line for line in lines) == 3
    assert "refresh 3 of 3" in "\n".join(lines)
    assert requester.plan.steps == 3


@pytest.mark.usefixtures("decisions")
def test_bytes_of_other_jobs_are_refused(requester: Requester, tmp_path: Path) -> None:
    folder = requester.folder
    cut = tmp_path / "cut"
    cut.write_bytes(b"BMIFSQM1")
    for name, other in (("segment0", "segment1"), ("segment1", "frames"), ("frames", "segment0")):
        model = folder / f"{name}.model"
        with pytest.raises(WorkloadError, match=f"request {other}.request"):
            INFERENCE.check_request(model, folder / f"{other}.request")
        with pytest.raises(WorkloadError, match="keys cut"):
            INFERENCE.check_keys(model, cut)
    for check in (INFERENCE.describe_model, lambda path: INFERENCE.check_keys(path, path)):
        with pytest.raises(WorkloadError, match=r"model cut: .*ask its owner"):
            check(cut)
        with pytest.raises(WorkloadError, match="model missing"):
            check(tmp_path / "missing")
    job = InferenceJob(
        folder / "segment1.model", folder / "segment1.keys", folder / "segment0.request", tmp_path / "out"
    )
    with pytest.raises(WorkloadError, match="request segment0"):
        INFERENCE.run(job)
    assert not job.output.exists()


@pytest.mark.usefixtures("decisions")
def test_small_rings_are_refused_outside_tests(requester: Requester) -> None:
    registered = get_inference("sequence-diagnosis")
    for name in ("segment0.model", "frames.model"):
        with pytest.raises(WorkloadError, match="insecure"):
            registered.describe_model(requester.folder / name)


@pytest.mark.usefixtures("decisions")
def test_progress_is_written(requester: Requester, tmp_path: Path) -> None:
    parts = (requester.folder / f"segment0.{part}" for part in ("model", "keys", "request"))
    job = InferenceJob(*parts, tmp_path / "result", tmp_path / "progress")
    INFERENCE.run(job)
    assert job.progress is not None
    assert job.progress.read_text() == "1 1"
    assert job.output.read_bytes() == (requester.folder / "segment0.result").read_bytes()


def test_describing_and_checking_load_neither_library() -> None:
    program = (
        "import sys, workloads.sequence_inference, workloads.sequence, workloads.sequence_training;"
        " sys.exit('Pyfhel' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
