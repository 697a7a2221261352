"""`bmif diagnose sequence` from a network to decisions, by way of files alone; and what it refuses."""

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from node.cli.main import app
from tests.integration.sequence_case import LENGTHS, SIDE, WINDOW, make_model, write_sequences
from workloads.inference import InferenceJob, get_inference
from workloads.sequence import evaluate_clear, vote
from workloads.sequence_model import encode_network, load_sequences

RUNNER = CliRunner()


def invoke(*arguments: object, code: int = 0) -> str:
    done = RUNNER.invoke(app, ["diagnose", "sequence", *map(str, arguments)], env={"COLUMNS": "200"})
    text = " ".join((done.output + (done.stderr if done.stderr_bytes else "")).split())
    assert done.exit_code == code, text
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, its models, and sequences of two cases."""
    folder = tmp_path_factory.mktemp("sequence")
    (folder / "network").write_bytes(encode_network(make_model()))
    write_sequences(folder / "sequences.npz")
    plan = invoke("compile", folder / "network", "-o", folder / "models")
    assert f"refresh {WINDOW} of {WINDOW}" in plan
    assert "128-bit security" in plan
    return folder


def run_evaluator(step: dict[str, str], output: Path) -> None:
    """As a peer does: from files alone, without the secret key."""
    workload = get_inference("sequence-diagnosis")
    model, keys, request = (Path(step[name]) for name in ("model", "keys", "request"))
    workload.check_keys(model, keys)
    workload.check_request(model, request)
    workload.run(InferenceJob(model, keys, request, output))


def test_from_frames_to_decisions(folder: Path, tmp_path: Path) -> None:
    """And on its way whatever belongs to another request, model or key is refused, and changes nothing."""
    session, keys = tmp_path / "session", ("--keys", tmp_path / "keys")
    step = json.loads(
        invoke("start", folder / "models", folder / "sequences.npz", "-o", session, *keys, "--json")
    )
    assert step["model"] == str(folder / "models" / "frames.model")
    assert "pixel" not in (session / "session.json").read_text()
    text = invoke("start", folder / "models", folder / "sequences.npz", "-o", session, *keys, code=1)
    assert "holds a session already" in text

    results = [tmp_path / f"result-{number}" for number in range(WINDOW + 1)]
    run_evaluator(step, results[0])
    text = invoke("advance", session, Path(step["request"]), *keys, code=1)
    assert "is not the result of request 1, for frames.model" in text
    text = invoke("advance", session, results[0], "--keys", tmp_path / "none", code=1)
    assert "secret.key: does not exist" in text
    check_models(folder, session, results[0], tmp_path)
    shutil.copytree(tmp_path / "keys", tmp_path / "keys2")
    (tmp_path / "keys2" / "segments" / "evaluation.keys").write_bytes(b"others")
    text = invoke("advance", session, results[0], "--keys", tmp_path / "keys2", code=1)
    assert "holds other keys than the session began with" in text
    shutil.copytree(session, tmp_path / "copy")
    text = invoke("advance", tmp_path / "copy", results[0], *keys)
    assert f"refresh 1 of {WINDOW}" in text
    assert f"request-2: request 2 of {WINDOW + 1}, for " in text

    refused = (
        "decrypts to nothing that the network gives: it was computed from another request or under other"
    )
    for number in range(1, WINDOW + 1):
        noise = scramble(results[number - 1], tmp_path / "noise")
        assert refused in invoke("advance", session, noise, *keys, code=1)
        step = json.loads(invoke("advance", session, results[number - 1], *keys, "--json"))
        assert (step["number"], step["of"], step["refreshes"]) == (number + 1, WINDOW + 1, number)
        assert Path(step["model"]).name == ("first.model" if number == 1 else "middle.model")
        text = invoke("advance", session, results[number - 1], *keys, code=1)
        assert f"is the result of request {number}, taken already" in text
        run_evaluator(step, results[number])
    check_private(session, tmp_path / "keys")
    shutil.copytree(session, tmp_path / "end")
    assert "probability of 1" in invoke("advance", tmp_path / "end", results[-1], *keys)
    answers = json.loads(invoke("advance", session, results[-1], *keys, "--json"))

    check_answers(folder, answers)
    text = invoke("advance", session, results[-1], *keys, code=1)
    assert "is at its end; the decisions are in" in text
    assert json.loads((session / "decisions.json").read_text()) == answers
    assert not list(session.glob("state-*"))


def check_answers(folder: Path, answers: list[dict[str, object]]) -> None:
    """What the network says in clear of the same frames."""
    patients = load_sequences(folder / "sequences.npz", SIDE)
    assert [one["case"] for one in answers] == sorted(LENGTHS)
    for one, decisions in zip(answers, evaluate_clear(make_model(), patients), strict=True):
        assert one["probability"] == pytest.approx(vote(decisions), abs=5e-4)
        assert one["found"] == (vote(decisions) >= 0.5)


def check_models(folder: Path, session: Path, result: Path, tmp_path: Path) -> None:
    """Other models than the session's, and models that are not those of their list."""
    (tmp_path / "other").write_bytes(encode_network(make_model(seed=2)))
    invoke("compile", tmp_path / "other", "-o", tmp_path / "models")
    arguments = ("advance", session, result, "--keys", tmp_path / "keys", "--models")
    assert "other models than the session began with" in invoke(*arguments, tmp_path / "models", code=1)
    shutil.copy(folder / "models" / "first.model", tmp_path / "models" / "first.model")
    assert "first.model: is not the model that" in invoke(*arguments, tmp_path / "models", code=1)
    assert "sequence.json: does not exist" in invoke(*arguments, tmp_path, code=1)


def scramble(result: Path, output: Path) -> Path:
    """A well-formed result that nothing gives: every residue elsewhere, so that it decrypts to noise."""
    words = np.fromfile(result, dtype="<u8")
    words[8:] = words[:7:-1]
    words.tofile(output)
    return output


def check_private(session: Path, keys: Path) -> None:
    private = [*keys.rglob("secret.key"), *session.glob("state-*"), session / "session.json"]
    assert len(private) == 4
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.fixture(scope="module")
def private(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with encrypted weights and the keys' public parts, where the owner is; `holder` has the rest."""
    owner = tmp_path_factory.mktemp("owner")
    compile_it = ("compile", folder / "network", "--weights", "encrypted")
    assert "encrypted weights" in invoke(*compile_it, "--wants", owner / "wanted.json")
    keys = owner.with_name("holder") / "keys"
    text = RUNNER.invoke(app, ["diagnose", "keys", str(owner / "wanted.json"), "--keys", str(keys)]).output
    assert "public.key" in text
    for pair in ("frames", "segments"):
        (owner / "keys" / pair).mkdir(parents=True)
        for name in ("public.key", "evaluation.keys"):
            shutil.copy(keys / pair / name, owner / "keys" / pair)
    invoke(*compile_it, "-o", owner / "models", "--keys", owner / "keys")
    return owner


def test_encrypted_weights_are_under_keys_of_another(private: Path, folder: Path, tmp_path: Path) -> None:
    """The owner has no secret key, and requests can be made by its holder alone."""
    holder = private.with_name("holder") / "keys"
    secrets = [(holder / pair / "secret.key").read_bytes()[4096:4128] for pair in ("frames", "segments")]
    for path in private.rglob("*"):
        assert path.name != "secret.key"
        assert not path.is_file() or not any(secret in path.read_bytes() for secret in secrets)
    workload = get_inference("sequence-diagnosis")
    for name, pair in (("frames", "frames"), ("first", "segments"), ("middle", "segments")):
        model, keys = private / "models" / f"{name}.model", holder / pair / "evaluation.keys"
        assert workload.describe_model(model).weights == "encrypted"
        workload.check_keys(model, keys)
    start = ("start", private / "models", folder / "sequences.npz", "-o", tmp_path / "session", "--keys")
    assert "secret.key: does not exist" in invoke(*start, private / "keys", code=1)
    shutil.copytree(holder, tmp_path / "keys")
    shutil.copy(holder / "frames" / "evaluation.keys", tmp_path / "keys" / "segments")
    assert "encrypted under other key pairs" in invoke(*start, tmp_path / "keys", code=1)
    assert not (tmp_path / "session").exists()
    compile_it = ("compile", folder / "network", "-o", tmp_path / "models", "--weights")
    assert "encrypted weights take one of them" in invoke(*compile_it, "encrypted", code=1)
    assert "clear weights none" in invoke(*compile_it, "clear", "--keys", holder, code=1)
    assert "expected clear or encrypted" in invoke(*compile_it, "hidden", code=1)


@pytest.mark.slow
def test_from_frames_to_decisions_with_encrypted_weights(private: Path, folder: Path, tmp_path: Path) -> None:
    session, keys = tmp_path / "session", ("--keys", private.with_name("holder") / "keys")
    found = invoke("start", private / "models", folder / "sequences.npz", "-o", session, *keys, "--json")
    for number in range(WINDOW + 1):
        result = tmp_path / f"result-{number}"
        run_evaluator(json.loads(found), result)
        found = invoke("advance", session, result, *keys, "--json")
    check_answers(folder, json.loads(found))


def test_sequences_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    arguments = ("start", folder / "models", data, "-o", tmp_path / "session", "--keys", tmp_path / "keys")
    write_sequences(data, SIDE + 1)
    assert "expected squares of a multiple of 4, got 5 x 5" in invoke(*arguments, code=1)
    write_sequences(data, lengths={"left": 3, "short": 1})
    assert "case short: needs 2 frames, has 1" in invoke(*arguments, code=1)
    write_sequences(data, SIDE, {"long": 8193})
    assert "slots; make two sessions" in invoke(*arguments, code=1)
    np.savez(data, images=np.zeros((2, SIDE, SIDE, 3), np.uint8), case=["a", "a"], order=[0, 1])
    assert "takes 1 colour planes, these have 3" in invoke(*arguments, code=1)
    np.savez(data, images=np.zeros((2, SIDE, SIDE), np.uint8), case=["a", "a"], order=[1, 1])
    assert "case a has two frames of one place" in invoke(*arguments, code=1)
    np.savez(data, images=np.zeros((2, SIDE, SIDE), np.uint8), case=["a", "a"])
    assert "lacks the arrays order" in invoke(*arguments, code=1)
    assert "is not a network" in invoke("compile", data, "-o", tmp_path / "models", code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz"]
