"""Sequences of cervix images: what time, weights and votes are worth, in clear and encrypted.

`BMIF_DATA=FOLDER python -m benchmarks.sequences --folder RESULTS` expects
FOLDER/diagnosis/cervigram_sequences_64.npz. Each stage is a process of its own, for torch and the encryption
library do not share one, and leaves its results in RESULTS, where what is finished is not repeated:

1. `clear` trains all networks, patients cross-validated, and keeps each fold's network and decisions;
2. `control` does the same on generated sequences in which change alone tells;
3. `encrypted` runs each fold's network on its test patients' ciphertexts;
4. `weights` runs one step with weights that are ciphertexts too;
5. `selection` asks whether other inputs and augmentation do better, chosen without the test patients.

Then the tables are made (`benchmarks.sequence_page`); `--write` renews docs/SEQUENCES.md.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Stopwatch
from benchmarks.timing import get_machine
from he import network
from he.recurrent import RecurrentCell, evaluate_sequence
from workloads.polynomials import sigmoid
from workloads.sequence import (
    ClearModel,
    Floats,
    Patient,
    SequenceConfig,
    arrange_features,
    build_single_frame,
    evaluate_clear,
    prepare_frames,
    split_patients,
    take_last,
    vote,
)

FOLDS = 5
REPEATS = 3
"""Cross-validations with splits and seeds of their own, whose scores are averaged; the first is encrypted."""

CONFIG = SequenceConfig()
VARIANTS = {
    "full": CONFIG,
    "unweighted": replace(CONFIG, weighted=False),
    "spatial": replace(CONFIG, temporal=False, weighted=False),
    "single": build_single_frame(CONFIG),
}

PHASES = tuple(
    f"{part} {phase}" for part in ("frames", "cell") for phase in ("keys", "encrypt", "evaluate", "decrypt")
)


def load_patients(folder: Path, side: int = CONFIG.side) -> list[Patient]:
    """Of the cervigram archive, sorted by name, with frames of `side` pixels a side."""
    with np.load(folder / "diagnosis" / "cervigram_sequences_64.npz", allow_pickle=False) as archive:
        frames = prepare_frames(archive["images"], side)
        cases, labels = archive["case"], archive["label"]
    return [
        Patient(str(name), int(labels[cases == name][0]), frames[cases == name])
        for name in sorted(set(cases))
    ]


def take_middle(decisions: Floats) -> float:
    """The probability of the middle frame alone, of a network of single frames."""
    return float(sigmoid(decisions[len(decisions) // 2])[0])


# --- in clear -----------------------------------------------------------------------------------


def run_clear(data: Path, folder: Path) -> None:
    """Trains every variant on every fold; scores go to clear-VARIANT-R.npz, networks to fold-K.npz."""
    patients = load_patients(data)
    labels = np.array([patient.label for patient in patients], dtype=np.int64)
    print(f"{len(patients)} patients, {int(labels.sum())} of high grade", flush=True)
    for repeat in range(REPEATS):
        folds = split_patients(labels.tolist(), FOLDS, repeat)
        for name, config in VARIANTS.items():
            target = folder / f"clear-{name}-{repeat}.npz"
            if not target.exists():
                begun = time.process_time()
                kept = folder if (name, repeat) == ("full", 0) else None
                results = train_folds(config, patients, folds, repeat, kept)
                seconds = time.process_time() - begun
                np.savez(target, allow_pickle=False, labels=labels, seconds=seconds, **results)
                print(f"seed {repeat}, {name}: {seconds:.0f} s of processor time", flush=True)


def train_folds(
    config: SequenceConfig,
    patients: Sequence[Patient],
    folds: Sequence[Sequence[int]],
    seed: int,
    kept: Path | None,
) -> dict[str, NDArray[np.float64] | NDArray[np.str_]]:
    """Every patient's scores, each from the network that has not seen the patient."""
    from workloads.sequence_training import TrainingSettings, export, predict, train

    scores = {rule: np.zeros(len(patients)) for rule in ("vote", "last", "middle")}
    largest: dict[str, float] = {}
    for number, fold in enumerate(folds):
        training = [patient for index, patient in enumerate(patients) if index not in fold]
        trained, _ = train(config, TrainingSettings(seed=seed), training)
        for index in fold:
            decisions, seen = predict(trained, patients[index])
            scores["vote"][index] = vote(decisions)
            scores["last"][index] = take_last(decisions)
            scores["middle"][index] = take_middle(decisions)
            largest = {key: max(value, largest.get(key, 0.0)) for key, value in seen.items()}
        if kept is not None:
            save_model(kept / f"fold-{number}.npz", export(trained, training), fold)
    return {**scores, "names": np.array(list(largest)), "largest": np.array(list(largest.values()))}


def run_control(data: Path, folder: Path) -> None:
    """The same variants on generated sequences, in which change alone tells: what the networks can find if it
    is there. Scores of patients not trained on go to control.npz; `data` is not looked at."""
    from workloads.sequence_training import TrainingSettings, predict, train

    target = folder / "control.npz"
    if target.exists():
        return
    patients = build_generated(48, 1)
    others = build_generated(200, 2)
    scores: dict[str, NDArray[np.float64]] = {}
    for name, config in VARIANTS.items():
        small = replace(config, planes=1, side=8, channels=(4, 6 if config.temporal else 12))
        trained, _ = train(small, TrainingSettings(epochs=60, rate=1e-2), patients)
        decisions = [predict(trained, patient)[0] for patient in others]
        scores[f"{name} vote"] = np.array([vote(part) for part in decisions])
        scores[f"{name} last"] = np.array([take_last(part) for part in decisions])
        scores[f"{name} middle"] = np.array([take_middle(part) for part in decisions])
    labels = np.array([patient.label for patient in others], dtype=np.int64)
    np.savez(target, allow_pickle=False, labels=labels, **scores)


def build_generated(count: int, seed: int) -> list[Patient]:
    """Noise whose brightness rises from frame to frame (label 1) or falls (label 0) by as much; each frame is
    as likely to be of the one kind as of the other."""
    generator = np.random.default_rng(seed)
    patients = []
    for index in range(count):
        # Odd, so that the middle frame has no level of its own.
        steps = int(generator.choice([3, 5, 7]))
        level = np.linspace(-0.3, 0.3, steps) * (1 if index % 2 else -1) + generator.normal(0, 0.1)
        frames = generator.normal(0, 0.2, (steps, 1, 8, 8)) + level[:, None, None, None]
        patients.append(Patient(f"generated {index}", index % 2, np.clip(frames, -1.0, 1.0)))
    return patients


def save_model(path: Path, model: ClearModel, fold: Sequence[int]) -> None:
    np.savez(
        path,
        frames=np.frombuffer(network.encode(model.frames), dtype=np.uint8),
        cell=np.frombuffer(model.cell.encode(), dtype=np.uint8),
        fold=np.array(fold),
    )


def load_model(path: Path) -> tuple[ClearModel, list[int]]:
    with np.load(path, allow_pickle=False) as archive:
        frames, cell = archive["frames"].tobytes(), archive["cell"].tobytes()
        fold = archive["fold"].tolist()
    return ClearModel(network.decode(frames), RecurrentCell.decode(cell), CONFIG.window), fold


# --- encrypted ----------------------------------------------------------------------------------


def run_encrypted(data: Path, folder: Path, folds: Sequence[int] = range(FOLDS)) -> None:
    """Evaluates each fold's network on its own test patients; results go to encrypted-K.npz."""
    patients = load_patients(data)
    for number in folds:
        target = folder / f"encrypted-{number}.npz"
        if not target.exists():
            (folder / "machine").write_text(get_machine())
            model, fold = load_model(folder / f"fold-{number}.npz")
            np.savez(target, allow_pickle=False, **run_fold(model, [patients[index] for index in fold]))
            print(f"fold {number} done", flush=True)


def run_fold(model: ClearModel, patients: Sequence[Patient]) -> dict[str, NDArray[np.float64]]:
    """Decisions, encrypted and in clear, of all windows beside each other; processor seconds and bytes by
    phase. Frames, then segments; the requester's share and the evaluator's are timed apart."""
    from he.compiler import compile_network
    from he.context import PrivateContext, PublicContext
    from he.diagnosis import (
        compute_result,
        decrypt_result,
        encode_keys,
        encode_model,
        encrypt_images,
        load_keys,
    )
    from he.keys import RelinKeys
    from he.sequence_plan import build_default_params, plan_sequence
    from he.sequence_program import encode_clear_model
    from he.sequences import compute_segment, decrypt_segment, encrypt_segment

    program = compile_network(model.frames)
    plan = plan_sequence(program, model.cell, model.window, build_default_params())
    print("\n".join(plan.describe()), flush=True)
    watches = {name: Stopwatch() for name in PHASES}
    sizes = dict.fromkeys(PHASES, 0)

    with watches["frames keys"]:
        private = PrivateContext.generate(program.params)
        keys = encode_keys(private)
    blob = encode_model(program)
    frames = np.concatenate([patient.frames for patient in patients])
    with watches["frames encrypt"]:
        request = encrypt_images(private, program, frames)
    with watches["frames evaluate"]:
        result = compute_result(load_keys(program, keys), program, blob, request)
    with watches["frames decrypt"]:
        features = decrypt_result(private, program, result, len(frames))
    sizes |= {"frames keys": len(keys), "frames encrypt": len(request), "frames decrypt": len(result)}
    del request, result

    lengths = [len(patient.frames) for patient in patients]
    arranged = arrange_features(np.split(features, np.cumsum(lengths)[:-1]), model.window)
    count, start, state = arranged.shape[2], 0, None
    decisions = []
    params = plan.segments[0].program.params
    with watches["cell keys"]:
        private = PrivateContext.generate(params)
        relin = private.public.relin_keys
    if relin is None:
        raise ValueError("no relinearisation keys were made")
    sizes["cell keys"] = len(relin.encode())
    peer = PublicContext(params, relin_keys=RelinKeys.decode(params, relin.encode()))
    for segment in plan.segments:
        blob = encode_clear_model(segment.program, model.cell)
        part = arranged[start : start + segment.program.steps]
        start += segment.program.steps
        with watches["cell encrypt"]:
            request = encrypt_segment(private, segment, blob, part, state)
        with watches["cell evaluate"]:
            result = compute_segment(peer, blob, request)
        with watches["cell decrypt"]:
            got, state = decrypt_segment(private, segment, blob, result, count)
        decisions.append(got)
        sizes["cell encrypt"] += len(request)
        sizes["cell decrypt"] += len(result)
        print(f"segment of {segment.program.steps}: {watches['cell evaluate'].cpu_s:.1f} s", flush=True)
    return {
        "encrypted": np.concatenate(decisions),
        "clear": np.concatenate([part.T for part in evaluate_clear(model, patients)], axis=1),
        "seconds": np.array([watches[name].cpu_s for name in PHASES]),
        "bytes": np.array([float(sizes[name]) for name in PHASES]),
        "predicted": np.array([plan.seconds]),
        "refreshes": np.array([float(plan.refreshes)]),
    }


def run_weights(data: Path, folder: Path) -> None:
    """The first step of fold 0 with encrypted weights; decisions, processor seconds and bytes go to
    weights.npz."""
    from he.context import PrivateContext, PublicContext
    from he.sequence_plan import build_default_params
    from he.sequence_program import build_segment_plan, plan_segments
    from he.sequences import compute_segment, decrypt_segment, encrypt_model, encrypt_segment

    target = folder / "weights.npz"
    if target.exists():
        return
    model, fold = load_model(folder / "fold-0.npz")
    patients = load_patients(data)
    features = [network.evaluate(model.frames, patients[index].frames) for index in fold]
    arranged = arrange_features(features, model.window)[:1]
    program = plan_segments(build_default_params(), model.cell, model.window, encrypted=True)[0]
    plan = build_segment_plan(program)
    private = PrivateContext.generate(program.params)
    peer = PublicContext(program.params, relin_keys=private.public.relin_keys)
    watches = [Stopwatch(), Stopwatch()]
    with watches[0]:
        blob = encrypt_model(private.public, program, model.cell)
    request = encrypt_segment(private, plan, blob, arranged)
    with watches[1]:
        result = compute_segment(peer, blob, request)
    got, _ = decrypt_segment(private, plan, blob, result, arranged.shape[2])
    np.savez(
        target,
        allow_pickle=False,
        encrypted=got,
        clear=evaluate_sequence(model.cell, arranged),
        seconds=np.array([watch.cpu_s for watch in watches]),
        bytes=len(blob),
    )


def run_selection(data: Path, folder: Path) -> None:
    """Other inputs and augmentation, by nested cross-validation; results go to selection-K.npz."""
    from benchmarks.sequence_selection import SIDES, run_folds

    run_folds({side: load_patients(data, side) for side in SIDES}, folder, FOLDS)


STAGES = {
    "clear": run_clear,
    "control": run_control,
    "encrypted": run_encrypted,
    "weights": run_weights,
    "selection": run_selection,
}
"""Each a process of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where stages keep their results")
    parser.add_argument("--stage", choices=list(STAGES), help="this stage alone; all of them without")
    parser.add_argument("--write", action="store_true", help="renew docs/SEQUENCES.md")
    arguments = parser.parse_args()
    if not os.environ.get("BMIF_DATA"):
        parser.error("BMIF_DATA must name a folder that holds diagnosis/cervigram_sequences_64.npz")
    data = Path(os.environ["BMIF_DATA"])
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.stage is not None:
        STAGES[arguments.stage](data, arguments.folder)
        return
    for stage in STAGES:
        command = [sys.executable, "-m", "benchmarks.sequences", "--folder", str(arguments.folder)]
        subprocess.run([*command, "--stage", stage], check=True)
    from benchmarks.sequence_page import DOCUMENT, build_page

    page = build_page(load_patients(data), arguments.folder)
    print(page)
    if arguments.write:
        DOCUMENT.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
