"""The page of `benchmarks.sequences`: tables of what its stages left, and what follows from them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.sequence_selection import describe_selection
from benchmarks.sequence_usage import describe_usage
from benchmarks.sequences import CONFIG, FOLDS, PHASES, VARIANTS, load_model
from he.compiler import compile_network
from he.params import build_params
from he.sequence_plan import build_default_params, compute_segment_seconds, plan_sequence
from workloads.diagnosis_metrics import Interval, compute_auc, compute_metrics
from workloads.sequence import (
    LOGISTIC,
    RELU,
    TANH,
    Floats,
    Patient,
    bootstrap_gain,
    split_windows,
    take_last,
    vote,
)

DOCUMENT = Path(__file__).parent.parent / "docs" / "SEQUENCES.md"

NAMES = {
    "full": "conv-LSTM, weighted unit",
    "unweighted": "conv-LSTM, spatial and temporal features at equal weight",
    "spatial": "no LSTM: each frame decided alone, same convolutions",
    "single": "single-frame CNN of the same number of weights",
}
RULES = {"vote": "vote of all windows", "last": "last window's last frame", "middle": "middle frame alone"}
ROWS = (
    ("single", "middle"),
    ("single", "vote"),
    ("spatial", "vote"),
    ("unweighted", "vote"),
    ("full", "last"),
    ("full", "vote"),
)
GAINS = (
    ("conv-LSTM with voting over one frame of the single-frame CNN", ("full", "vote"), ("single", "middle")),
    ("temporal features", ("full", "vote"), ("spatial", "vote")),
    ("weighted unit", ("full", "vote"), ("unweighted", "vote")),
    ("voting", ("full", "vote"), ("full", "last")),
)
CHAINS = (
    (16384, (55, *(40,) * 8, 55)),
    (16384, (35, *(24,) * 15, 35)),
    (32768, (50, *(36,) * 21, 50)),
    (32768, (43, *(35,) * 22, 43)),
)
"""Rings and sizes of primes: room for one, two, three and three steps a segment."""

Labels = NDArray[np.int64]
Scores = dict[tuple[str, str], Floats]


def build_page(patients: list[Patient], folder: Path) -> str:
    """Markdown of everything that the stages left in `folder`."""
    labels, scores, ranges, repeats = load_scores(folder)
    parts = [
        *describe_data(patients, (folder / "machine").read_text()),
        *describe_networks(ranges),
        *compare(labels, scores, repeats),
        *describe_selection(labels, folder, FOLDS),
        *compare_control(folder),
        *compare_encrypted(patients, folder, labels),
        *describe_costs(patients, folder),
        *describe_weights(folder),
        *describe_refreshes(folder),
        *describe_usage(),
        *conclude(labels, scores),
    ]
    return "\n".join(parts).rstrip() + "\n"


def load_scores(folder: Path) -> tuple[Labels, Scores, dict[str, float], int]:
    """Labels, each patient's scores as means over repeats, largest arguments by polynomial, and repeats."""
    scores: Scores = {}
    ranges: dict[str, float] = {}
    labels = np.zeros(0, dtype=np.int64)
    repeats = min(len(list(folder.glob(f"clear-{name}-*.npz"))) for name in VARIANTS)
    for name in VARIANTS:
        files = [folder / f"clear-{name}-{repeat}.npz" for repeat in range(repeats)]
        archives = [np.load(file, allow_pickle=False) for file in files]
        labels = archives[0]["labels"]
        for rule in RULES:
            scores[name, rule] = np.mean([archive[rule] for archive in archives], axis=0)
        if name == "full":
            for archive in archives:
                for key, value in zip(archive["names"], archive["largest"], strict=True):
                    ranges[str(key)] = max(ranges.get(str(key), 0.0), float(value))
    return labels, scores, ranges, repeats


def describe_data(patients: list[Patient], machine: str) -> list[str]:
    frames = [len(patient.frames) for patient in patients]
    windows = sum(count - CONFIG.window + 1 for count in frames)
    sick = sum(patient.label for patient in patients)
    return [
        "# Sequences",
        "",
        "Encrypted diagnosis of image sequences after HE-CLSTM (ACM TOIT 2021). Written by "
        "`BMIF_DATA=FOLDER python -m benchmarks.sequences --folder RESULTS --write`; nothing here is edited "
        "by hand.",
        "",
        f"Machine: {machine}. Seconds are of processor time: the machine was shared while this ran.",
        "",
        "## Data",
        "",
        "Cervix images of colposcopic examinations in the order they were taken (saline, acetic acid, green "
        f"filter, iodine; the order and number differ between patients): {len(patients)} patients, {sick} of "
        f"high grade and {len(patients) - sick} not, {sum(frames)} frames, {min(frames)} to {max(frames)} a "
        f"patient; scaled to {CONFIG.side}x{CONFIG.side}, three colours, by means over blocks. Every "
        f"{CONFIG.window} consecutive frames are a window: {windows} of them.",
        "",
        f"**With {len(patients) - sick} negatives an AUC is known to about +-0.2.** Read every figure below "
        "with its interval: most differences here are far smaller than what chance alone makes of so few "
        "patients.",
        "",
    ]


def describe_networks(ranges: dict[str, float]) -> list[str]:
    single = VARIANTS["single"]
    bounds = {"first": 4.0, "second": 4.0, "input": 4.0, "forget": 4.0, "output": 4.0}
    seen = ", ".join(
        f"{name} {value:.1f} of {bounds.get(name, TANH.bound):g}" for name, value in ranges.items()
    )
    return [
        "## Networks",
        "",
        f"Frame: two blocks of 3x3 convolution in steps of 2 ({CONFIG.channels[0]} and {CONFIG.channels[1]} "
        f"channels), batch norm and a quadratic; global average pooling; a dense layer to {CONFIG.features} "
        f"features. LSTM of {CONFIG.hidden} hidden values with cubic gates. Weighted unit: decision = v . (s "
        "x + (1 - s) h) + e with a learnt share s of each spatial feature x against the temporal feature h. "
        f"{CONFIG.count_weights()} weights; the single-frame CNN has {single.channels[1]} channels in its "
        f"second block instead of an LSTM, {single.count_weights()} weights.",
        "",
        "| stands for | polynomial | interval | largest error |",
        "|---|---|---|---|",
        f"| ReLU | {RELU.coefficients[0]:.3f} + {RELU.coefficients[1]:.3f} x + {RELU.coefficients[2]:.4f} "
        f"x^2 | +-{RELU.interval[1]:g} | {RELU.error:.3f} |",
        f"| logistic | {LOGISTIC.c0:g} + {LOGISTIC.c1:.4f} x - {-LOGISTIC.c3:.5f} x^3 | +-{LOGISTIC.bound:g} "
        f"| {LOGISTIC.error:.3f} |",
        f"| tanh | {TANH.c1:.4f} x - {-TANH.c3:.4f} x^3 | +-{TANH.bound:g} | {TANH.error:.3f} |",
        "",
        "Trained with a penalty on arguments beyond these intervals. The largest magnitudes on patients "
        f"*not* trained on, of all folds: {seen}. What lies outside is computed all the same, in clear and "
        "encrypted alike: the polynomials are the network, not an approximation made afterwards.",
        "",
        "Voting: each window gives a decision a frame, and a patient's score is the mean probability of all "
        "decisions of all windows, taken **in clear by the key holder** after decryption. Under encryption "
        "it would be a sum over slots, which takes rotation keys, to keep from a requester decisions on its "
        "own patients; and a mean of probabilities, other than one of logits, is no sum.",
        "",
    ]


def format_auc(scores: Floats, labels: Labels) -> str:
    return str(compute_metrics(scores, labels, 0.5).auc)


def format_gain(gain: Interval) -> str:
    return f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def compare(labels: Labels, scores: Scores, repeats: int) -> list[str]:
    rows = [
        f"| {NAMES[name]} | {RULES[rule]} | {format_auc(scores[name, rule], labels)} |" for name, rule in ROWS
    ]
    gains = [
        f"| {what} | {format_gain(bootstrap_gain(labels, scores[with_it], scores[without]))} |"
        for what, with_it, without in GAINS
    ]
    return [
        "## In clear",
        "",
        f"{FOLDS} folds by patient, repeated {repeats} times with other splits and seeds (0 to "
        f"{repeats - 1}); a patient's score is the mean over repeats of what networks say that were not "
        "trained on the patient. AUC with 95 % interval by bootstrap over patients. Settings are those of "
        "the first run; none was searched for.",
        "",
        "| network | decided by | AUC |",
        "|---|---|---|",
        *rows,
        "",
        "| gain from | difference of AUC, same patients |",
        "|---|---|",
        *gains,
        "",
    ]


def compare_control(folder: Path) -> list[str]:
    with np.load(folder / "control.npz", allow_pickle=False) as archive:
        labels = archive["labels"]
        values = {key: archive[key] for key in archive.files}
    rows = [
        f"| {NAMES[name]} | {RULES[rule]} | {format_auc(values[f'{name} {rule}'], labels)} |"
        for name, rule in ROWS
    ]
    return [
        "## A control",
        "",
        "The same code on generated sequences of noise that becomes brighter (label 1) or darker (label 0) "
        "from frame to frame, so that no single frame tells anything: 48 patients to train on, 200 others "
        "to measure on. It says what the networks find where time does tell.",
        "",
        "| network | decided by | AUC |",
        "|---|---|---|",
        *rows,
        "",
    ]


def list_done(folder: Path) -> list[int]:
    """Folds whose encrypted stage has finished."""
    return [number for number in range(FOLDS) if (folder / f"encrypted-{number}.npz").exists()]


def compare_encrypted(patients: list[Patient], folder: Path, labels: Labels) -> list[str]:
    done = list_done(folder)
    encrypted, clear, chosen = [], [], []
    windows, flipped, error = 0, 0, 0.0
    for number in done:
        _, fold = load_model(folder / f"fold-{number}.npz")
        with np.load(folder / f"encrypted-{number}.npz", allow_pickle=False) as archive:
            got, expected = archive["encrypted"], archive["clear"]
        lengths = [len(patients[index].frames) for index in fold]
        chosen += fold
        encrypted += split_windows(got, lengths)
        clear += split_windows(expected, lengths)
        windows += got.shape[1]
        flipped += int(((got > 0) != (expected > 0)).sum())
        error = max(error, float(np.abs(got - expected).max()))
    order = labels[chosen]
    votes = [np.array([vote(part) for part in parts]) for parts in (clear, encrypted)]
    lasts = [np.array([take_last(part) for part in parts]) for parts in (clear, encrypted)]
    apart = int(((votes[0] > 0.5) != (votes[1] > 0.5)).sum())
    with np.load(folder / "clear-single-0.npz", allow_pickle=False) as archive:
        single = archive["middle"][chosen]
    return [
        "## Encrypted",
        "",
        "The networks of the first repeat, each on its own test patients, at 128 bits of security: "
        f"{len(done)} of {FOLDS} folds, {len(chosen)} patients, {windows} windows. Weights are clear, frames "
        "encrypted.",
        "",
        "| on these patients | AUC |",
        "|---|---|",
        f"| single-frame CNN, middle frame, in clear | {format_auc(single, order)} |",
        f"| conv-LSTM in clear, vote | {format_auc(votes[0], order)} |",
        f"| conv-LSTM encrypted, vote | {format_auc(votes[1], order)} |",
        f"| conv-LSTM in clear, last frame | {format_auc(lasts[0], order)} |",
        f"| conv-LSTM encrypted, last frame | {format_auc(lasts[1], order)} |",
        "",
        f"Largest difference of a decision (logit): {error:.1e}. Of {windows * CONFIG.window} decisions "
        f"{flipped} changed sign, of {len(chosen)} patients {apart} changed side; AUC differs by "
        f"{abs(compute_auc(votes[0], order) - compute_auc(votes[1], order)):.4f}.",
        "",
    ]


def describe_costs(patients: list[Patient], folder: Path) -> list[str]:
    done = list_done(folder)
    archives = [np.load(folder / f"encrypted-{number}.npz", allow_pickle=False) for number in done]
    seconds = dict(zip(PHASES, np.mean([archive["seconds"] for archive in archives], axis=0), strict=True))
    sizes = dict(zip(PHASES, np.mean([archive["bytes"] for archive in archives], axis=0), strict=True))
    model, _ = load_model(folder / "fold-0.npz")
    program = compile_network(model.frames)
    plan = plan_sequence(program, model.cell, model.window, build_default_params())
    frames = float(np.mean([len(patient.frames) for patient in patients]))
    windows = frames - CONFIG.window + 1
    here = len(patients) / FOLDS
    full = {"frames": program.images / frames, "cell": plan.segments[0].program.params.slots / windows}
    rows = []
    for phase in ("encrypt", "evaluate", "decrypt"):
        both = [(part, seconds[f"{part} {phase}"]) for part in ("frames", "cell")]
        amortised = sum(value / full[part] for part, value in both)
        total = sum(value for _, value in both)
        cells = (
            phase,
            *(f"{value:.1f}" for _, value in both),
            f"{total / here:.2f}",
            f"{1e3 * amortised:.1f} ms",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return [
        f"| processor seconds | frames, one request | steps, {len(plan.segments)} requests | a sequence in a "
        "fold's request | a sequence in full requests |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Mean of {len(done)} folds. Seconds of a request are the same whether its slots are full or not: a "
        f"fold has {here:.0f} patients; full requests hold the frames of {full['frames']:.0f} patients and "
        f"the windows of {full['cell']:.0f}, at {frames:.1f} frames and {windows:.1f} windows each. "
        f"Predicted for the evaluator: {plan.seconds:.1f} s. Making keys took "
        f"{seconds['frames keys'] + seconds['cell keys']:.1f} s, once.",
        "",
        "| MB | frames | all steps |",
        "|---|---|---|",
        f"| evaluation keys, once | {sizes['frames keys'] / 1e6:.1f} | {sizes['cell keys'] / 1e6:.1f} |",
        f"| requests | {sizes['frames encrypt'] / 1e6:.1f} | {sizes['cell encrypt'] / 1e6:.1f} |",
        f"| results | {sizes['frames decrypt'] / 1e6:.1f} | {sizes['cell decrypt'] / 1e6:.1f} |",
        "",
        f"Refreshes: **{plan.refreshes}** for {model.window} steps, all by the requester: the features "
        "between frames and steps, and the state between each two steps. Nothing else is decrypted before "
        "the last decision, and the evaluator holds no key that decrypts.",
        "",
        "The plan:",
        "",
        "```",
        *plan.describe(),
        "```",
        "",
    ]


def describe_weights(folder: Path) -> list[str]:
    with np.load(folder / "weights.npz", allow_pickle=False) as archive:
        error = float(np.abs(archive["encrypted"] - archive["clear"]).max())
        encrypt, evaluate = archive["seconds"]
        size = float(archive["bytes"])
    return [
        "## Encrypted weights",
        "",
        "The first step of a fold with every weight of the recurrent part a ciphertext under the requester's "
        f"key pair: {encrypt:.1f} s to encrypt the weights once ({size / 1e6:.0f} MB), {evaluate:.1f} s to "
        f"evaluate; the largest difference of a decision is {error:.1e}.",
        "",
    ]


def describe_refreshes(folder: Path) -> list[str]:
    model, _ = load_model(folder / "fold-0.npz")
    rows = []
    for encrypted in (False, True):
        program = compile_network(model.frames, weights="encrypted" if encrypted else "clear")
        for ring, bits in CHAINS:
            params = build_params(ring, bits)
            plan = plan_sequence(program, model.cell, model.window, params, encrypted=encrypted)
            steps = " + ".join(str(segment.program.steps) for segment in plan.segments)
            seconds = sum(map(compute_segment_seconds, plan.segments))
            distinct = {segment.program.encode(): segment.model_bytes for segment in plan.segments}
            requests = sum(segment.request_bytes for segment in plan.segments)
            rows.append(
                f"| {'encrypted' if encrypted else 'clear'} | {params.name} | {sum(bits)} | {steps} | "
                f"{plan.refreshes} | {seconds:.0f} | {requests / 1e6:.0f} | "
                f"{sum(distinct.values()) / 1e6:.0f} |"
            )
    return [
        "## Depth, refreshes and rings",
        "",
        "A step takes seven rescalings (weighted sums, two for the gates' cubics, the cell, two for its "
        "cubic, the output gate), the decision one more. More primes take more steps between refreshes and "
        "make each operation dearer. Planned, not measured; seconds of the evaluator for all steps, by the "
        "costs of single operations.",
        "",
        "| weights | parameters | bits | steps by segment | refreshes | seconds | requests, MB | models, MB "
        "|",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "One step a segment is the cheapest by far: what a refresh costs the requester is a few dozen "
        "ciphertexts, what it saves the evaluator is half of its work or more. The other chains are for "
        "requesters that can't stay in touch, and for owners who want fewer values of their model's inside "
        "seen.",
        "",
    ]


def conclude(labels: Labels, scores: Scores) -> list[str]:
    aucs = [compute_metrics(scores[row], labels, 0.5).auc for row in ROWS]
    gains = [bootstrap_gain(labels, scores[with_it], scores[without]) for _, with_it, without in GAINS]
    told = [NAMES[name] for (name, _), auc in zip(ROWS, aucs, strict=True) if not auc.low <= 0.5 <= auc.high]
    gained = [what for (what, *_), gain in zip(GAINS, gains, strict=True) if not gain.low <= 0 <= gain.high]
    return [
        "## What follows",
        "",
        "- What encryption changes is nothing that a decision shows: encrypted and clear networks agree on "
        "the same sequences.",
        "- On these patients, networks that can be told from chance by their interval: "
        f"{', '.join(told) or 'none, neither single-frame nor sequence'}; gains that can be told from 0: "
        f"{', '.join(gained) or 'none'}. So they neither show nor rule out what time, weights or votes are "
        "worth in cervix images; far more patients are needed, above all negatives. The control shows what "
        "the networks find where change is what tells.",
        "- Each refresh shows the requester features or states of the model on its own images. A requester "
        "who asks often can learn about the model from them; one who must not is given a chain with fewer "
        "refreshes.",
        "- With encrypted weights, model and requests are under one key pair; its holder can read both.",
        "",
    ]
