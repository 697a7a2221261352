"""`bmif diagnose` from labelled images to probabilities, by way of files alone; and what it refuses."""

import json
import shutil
import stat
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fusion_model.phantom import build_phantoms
from he.network import (
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Network,
    Polynomial,
    encode,
    evaluate,
)
from node.cli.main import app
from tests.medical import build_dicom
from workloads.diagnosis_images import even_contrast
from workloads.diagnosis_model import Provenance, get_provenance_path, load_provenance
from workloads.inference import InferenceJob, get_inference
from workloads.polynomials import sigmoid

SIDE = 4
RUNNER = CliRunner()


def invoke(*arguments: object, code: int = 0) -> str:
    done = RUNNER.invoke(app, ["diagnose", *map(str, arguments)], env={"COLUMNS": "200"})
    text = " ".join((done.output + (done.stderr if done.stderr_bytes else "")).split())
    assert done.exit_code == code, text
    return text


@pytest.fixture(scope="module")
def network() -> Network:
    draw = np.random.default_rng(4)
    return Network(
        (1, SIDE, SIDE),
        (
            Convolution("c", "input", draw.normal(0, 0.4, (2, 1, 3, 3)), draw.normal(0, 0.1, 2), 2, 1),
            BatchNorm("n", "c", np.array([1.5, 0.7]), np.array([-0.2, 0.3])),
            Polynomial("p", "n", (0.375, 0.5, 0.117), (-4.0, 4.0), 0.375),
            GlobalAveragePool("g", "p"),
            Dense("d", "g", np.array([[1.5, -2.0]]), np.array([0.25])),
        ),
    )


@pytest.fixture(scope="module")
def folder(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with its provenance, and three images."""
    folder = tmp_path_factory.mktemp("diagnose")
    (folder / "network").write_bytes(encode(network))
    provenance = Provenance(
        format="bmif-diagnosis-1",
        classes=("healthy", "ill"),
        shape=network.shape,
        network_sha256=sha256(encode(network)).hexdigest(),
        data_sha256="00" * 32,
        images=(1, 1, 1),
        seed=0,
        epochs=1,
        channels=(2,),
        threshold=0.2,
        metrics={"auc": (0.9, 0.8, 1.0)},
        outside={"p": 0.0},
    )
    get_provenance_path(folder / "network").write_text(provenance.encode())
    for number, pixels in enumerate(build_pixels()):
        path = folder / "images" / f"p{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    invoke("compile", folder / "network", "-o", folder / "model", "--packing", "batch")
    return folder


def build_pixels() -> list[np.ndarray]:
    return [np.rint(pair.first * 255).astype(np.uint8) for pair in build_phantoms(3, 3, slices=1, size=SIDE)]


def run_evaluator(model: Path, keys: Path, request: Path, output: Path) -> None:
    """As a peer does: from files alone, without the secret key."""
    workload = get_inference("diagnosis")
    workload.check_keys(model, keys)
    workload.check_request(model, request)
    assert workload.run(InferenceJob(model, keys, request, output)) == output.stat().st_size


def check_answers(text: str, network: Network, precision: float, even: bool = False) -> None:
    images = np.stack(build_pixels())[:, None] / 255
    logits = evaluate(network, even_contrast(images) if even else images)[:, 0]
    answers = json.loads(text)
    assert [one["image"] for one in answers] == ["p0", "p1", "p2"]
    for one, logit in zip(answers, logits, strict=True):
        assert one["probability"] == pytest.approx(float(sigmoid(np.array(logit))), abs=precision)
        assert one["decision"] == ("ill" if logit >= 0.2 else "healthy")


def test_from_images_to_probabilities(folder: Path, network: Network, tmp_path: Path) -> None:
    keys, model = tmp_path / "keys", folder / "model"
    text = invoke("encrypt", model, folder / "images", "-o", tmp_path / "request", "--keys", keys)
    assert "3 images" in text
    for private in (keys / "secret.key", tmp_path / "request.json"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    run_evaluator(model, keys / "evaluation.keys", tmp_path / "request", tmp_path / "result")
    arguments = ("--model", model, "--request", tmp_path / "request", "--keys", keys)
    check_answers(invoke("decrypt", tmp_path / "result", *arguments, "--json"), network, 5e-4)
    assert "probability of ill" in invoke("decrypt", tmp_path / "result", *arguments)


def test_images_are_evened_as_those_of_training_were(folder: Path, network: Network, tmp_path: Path) -> None:
    """The provenance beside the model says so, not whoever encrypts."""
    keys, model = tmp_path / "keys", tmp_path / "model"
    model.write_bytes((folder / "model").read_bytes())
    provenance = replace(load_provenance(get_provenance_path(folder / "model")), even_contrast=True)
    get_provenance_path(model).write_text(provenance.encode())
    invoke("encrypt", model, folder / "images", "-o", tmp_path / "request", "--keys", keys)
    run_evaluator(model, keys / "evaluation.keys", tmp_path / "request", tmp_path / "result")
    arguments = ("--model", model, "--request", tmp_path / "request", "--keys", keys, "--json")
    check_answers(invoke("decrypt", tmp_path / "result", *arguments), network, 5e-4, even=True)


def test_weights_under_the_own_key(folder: Path, tmp_path: Path) -> None:
    """Keys are made where there are none; other ones are no use then."""
    model, keys = tmp_path / "model", tmp_path / "keys"
    options = ("--packing", "batch", "--weights", "encrypted", "--keys", keys)
    plan = invoke("compile", folder / "network", "-o", model, *options)
    assert "encrypted weights" in plan
    assert "128-bit security" in plan
    assert sorted(path.name for path in keys.iterdir()) == ["evaluation.keys", "public.key", "secret.key"]
    request = ("encrypt", model, folder / "images", "-o", tmp_path / "request")
    assert "secret.key: does not exist" in invoke(*request, "--keys", tmp_path / "new", code=1)
    invoke("encrypt", folder / "model", folder / "images", "-o", tmp_path / "r", "-k", tmp_path / "other")
    assert "encrypted under another key pair" in invoke(*request, "--keys", tmp_path / "other", code=1)


def test_a_model_under_the_public_key_of_another(folder: Path, network: Network, tmp_path: Path) -> None:
    """Owner and key holder each in a folder of their own: the secret key never lies where the model is."""
    owner, holder = tmp_path / "owner", tmp_path / "holder"
    for path in (owner, holder):
        path.mkdir()
    shutil.copy(folder / "network", owner / "network")
    shutil.copy(get_provenance_path(folder / "network"), get_provenance_path(owner / "network"))
    build = ("compile", owner / "network", "--packing", "batch", "--weights", "encrypted")
    plan = invoke(*build, "--wants", owner / "wanted.json")
    assert "encrypted weights" in plan

    text = invoke("keys", owner / "wanted.json", "--keys", holder / "keys")
    assert "public.key" in text
    assert "holds a key pair already" in invoke("keys", owner / "wanted.json", "-k", holder / "keys", code=1)
    (owner / "theirs").mkdir()
    public = owner / "theirs" / "public.key"
    shutil.copy(holder / "keys" / "public.key", public)
    text = invoke(*build, "-o", owner / "model", "--keys", public, code=1)
    assert "evaluation.keys: does not exist; ask the key holder" in text
    shutil.copy(holder / "keys" / "evaluation.keys", owner / "theirs")
    invoke(*build, "-o", owner / "model", "--keys", public)
    secret = (holder / "keys" / "secret.key").read_bytes()
    assert not [path for path in owner.rglob("*") if path.name == "secret.key"]
    files = [path.read_bytes() for path in owner.rglob("*") if path.is_file()]
    assert not any(secret[4096:4128] in data for data in files)
    # The evaluator gets what the owner published.
    invoke("encrypt", owner / "model", folder / "images", "-o", holder / "request", "-k", holder / "keys")
    run_evaluator(owner / "model", public.with_name("evaluation.keys"), holder / "request", holder / "result")
    arguments = ("--model", owner / "model", "--request", holder / "request", "--keys", holder / "keys")
    check_answers(invoke("decrypt", holder / "result", *arguments, "--json"), network, 1e-2)

    text = invoke(
        "encrypt", owner / "model", folder / "images", "-o", owner / "r", "-k", public.parent, code=1
    )
    assert "secret.key: does not exist" in text
    public.write_bytes(public.read_bytes()[:-8])
    assert "is no public key for this model" in invoke(*build, "-o", owner / "m", "-k", public.parent, code=1)


def test_wanted_keys_are_checked(folder: Path, tmp_path: Path) -> None:
    wanted, keys = tmp_path / "wanted.json", ("--keys", tmp_path / "keys")
    build = ("compile", folder / "network", "--wants", wanted)
    assert "clear weights take any keys" in invoke(*build, code=1)
    build = (*build, "--weights", "encrypted")
    assert "leave out --output and --keys" in invoke(*build, "-o", tmp_path / "model", code=1)
    invoke(*build)
    document = json.loads(wanted.read_text())
    (pair,) = document["pairs"]
    assert len(pair["rotations"]) > 1
    for changed, message in (
        ({**pair, "rotations": pair["rotations"][::-1]}, "rotations must be ascending"),
        ({**pair, "parameters": "ckks-1024-34.28x5.34"}, "ckks-1024"),
        ({**pair, "folder": "../elsewhere"}, "is no list of wanted keys"),
    ):
        wanted.write_text(json.dumps({**document, "pairs": [changed]}))
        assert message in invoke("keys", wanted, *keys, code=1)
    wanted.write_text(json.dumps({**document, "pairs": [pair, pair]}))
    assert "each in a folder of its own" in invoke("keys", wanted, *keys, code=1)
    assert "does not exist" in invoke("keys", tmp_path / "none", *keys, code=1)
    assert not (tmp_path / "keys").exists()


def test_a_dicom_file(folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 4096, (SIDE, SIDE)).astype(np.uint16)
    build_dicom(pixels).save_as(tmp_path / "image.dcm", enforce_file_format=True)
    keys = tmp_path / "keys"
    text = invoke("encrypt", folder / "model", tmp_path / "image.dcm", "-o", tmp_path / "r", "-k", keys)
    assert "1 image," in text


def test_what_does_not_fit_is_refused(folder: Path, network: Network, tmp_path: Path) -> None:
    model, images, keys = folder / "model", folder / "images", tmp_path / "keys"
    request, result = tmp_path / "request", tmp_path / "result"

    Image.fromarray(np.zeros((9, 12), dtype=np.uint8)).save(tmp_path / "wide.png")
    text = invoke("encrypt", model, tmp_path / "wide.png", "-o", request, "-k", keys, code=1)
    assert "wide.png: is 12x9 pixels, the model takes 4x4" in text
    text = invoke("encrypt", images / "p0.png", images, "-o", request, "-k", keys, code=1)
    assert "model p0.png" in text
    assert not request.exists()
    assert not keys.exists()

    invoke("encrypt", model, images, "-o", request, "-k", keys)
    run_evaluator(model, keys / "evaluation.keys", request, result)
    good = ("--model", model, "--request", request, "--keys", keys)

    other = replace(network, layers=(*network.layers[:-1], replace(network.layers[-1], bias=np.array([9.0]))))
    (tmp_path / "other").write_bytes(encode(other))
    invoke("compile", tmp_path / "other", "-o", tmp_path / "model2", "--packing", "batch")
    text = invoke("decrypt", result, "--model", tmp_path / "model2", *good[2:], code=1)
    assert "was encrypted for another model" in text

    invoke("encrypt", model, images, "-o", tmp_path / "request2", "-k", tmp_path / "keys2")
    text = invoke("decrypt", result, *good[:4], "--keys", tmp_path / "keys2", code=1)
    assert "under other keys" in text
    text = invoke("decrypt", result, *good[:4], "--keys", tmp_path / "none", code=1)
    assert "secret.key: does not exist" in text
    assert not (tmp_path / "none").exists()

    run_evaluator(model, tmp_path / "keys2" / "evaluation.keys", tmp_path / "request2", tmp_path / "foreign")
    text = invoke("decrypt", tmp_path / "foreign", *good, code=1)
    assert "decrypts to nothing that a network gives" in text

    result.write_bytes(result.read_bytes()[:-8])
    text = invoke("decrypt", result, *good, code=1)
    assert "result:" in text
    secret = (keys / "secret.key").read_bytes()
    (keys / "secret.key").write_bytes(secret[: len(secret) // 2])
    text = invoke("encrypt", model, images, "-o", request, "-k", keys, code=1)
    assert "secret.key: is no key for this model" in text


def test_compile_refuses_words_and_keys_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    network, output = folder / "network", tmp_path / "model"
    assert "packing is one of" in invoke("compile", network, "-o", output, "--packing", "tight", code=1)
    text = invoke("compile", network, "-o", output, "--weights", "encrypted", code=1)
    assert "encrypted weights need a folder of keys" in text
    assert "is not a network" in invoke("compile", folder / "model", "-o", output, code=1)
    assert not output.exists()
