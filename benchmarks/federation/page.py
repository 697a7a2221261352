"""docs/FEDERATED.md, from figures alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.federation.arms import Outcome
from benchmarks.federation.encrypted import Encrypted
from benchmarks.federation.scores import Figures
from benchmarks.federation.setting import (
    CONFIG,
    HOSPITALS,
    LOCAL,
    PHANTOM_CONFIG,
    PHANTOM_LOCAL,
    PHANTOM_ROUNDS,
    PHANTOMS,
    ROUNDS,
)
from workloads.diagnosis_metrics import Interval

CLOSE = 0.01
"""Encrypted and plain averaging are to be within this AUC of each other."""


@dataclass(frozen=True, slots=True)
class Dealt:
    """Images of a fold, by label: what is trained on, by hospital and kind, and what is tested on."""

    hospitals: Mapping[str, Sequence[tuple[int, int]]]
    train: tuple[int, int]
    val: tuple[int, int]
    test: tuple[int, int]
    groups: tuple[int, int, int]
    """Publications of train, val and test."""


@dataclass(frozen=True, slots=True)
class Everything:
    """All that the page is made from."""

    machine: str
    dealt: Sequence[Dealt]
    figures: Mapping[str, Figures]
    """By arm: `central`, and by kind of dealing `apart-KIND`, `averaged-KIND`, `encrypted-KIND`."""
    seconds: Mapping[str, float]
    """Processor time of an arm's training, all folds."""
    encrypted: Mapping[str, Sequence[Encrypted]]
    phantoms: Mapping[str, Outcome]
    phantom_encrypted: Mapping[str, Encrypted]


NAMES = {
    "central": "all images in one place",
    "apart": "each hospital alone (mean of four)",
    "averaged": "federated averaging in clear",
    "encrypted": "federated, encrypted",
}


def build_page(found: Everything) -> str:
    """The page, in Markdown."""
    parts = [
        "# Federated capsule networks",
        f"Made by `BMIF_DATA=FOLDER python -m benchmarks.federation --write` on: {found.machine}. Seconds are"
        " of one core's processor time, which other work on the machine stretches.",
        "## The network and the data",
        *_describe_setting(found),
        "## Diagnosis: encrypted and plain averaging, together and alone",
        *_describe_figures(found),
        "## The decrypted aggregate against the clear weighted sum",
        *_describe_precision(found),
        "## Masks",
        *_describe_masks(found),
        "## What this says and does not say",
        _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = (
    "The images are few, small and cut from publications; windows, captions and journals differ between"
    " the labels, so part of what is learnt may be how a figure was made. Nothing here says how the"
    " networks do elsewhere, and they are no medical device. AUCs are modest, and averaging is not at its"
    " end after these rounds: validation still improved in pilots. The network, the side of the images,"
    " rates, augmentation and the number of rounds were chosen by hand among about twenty pilots, by their"
    " AUC on the validation publications; pilots trained on publications of two of the folds, and none was"
    " judged by a test image. Thresholds are chosen on validation images too, so that the validation AUC"
    " is optimistic. Each publication outside validation is tested once, but networks of different folds"
    " share training images, which the intervals ignore, as they ignore the draw of first weights and of"
    " batches. Encryption hides updates from everyone but the custody, which is to open sums alone; a mean"
    " of weights still tells something of the data, and bounds on that need noise at a cost in accuracy"
    " that this page does not measure. On phantoms of another seed, with 8 rounds, a skewed federation"
    " drew no mask at all: Dice of batches without masks taught it so. Since then Dice is of images with"
    " masks alone; these phantoms were drawn after that. The encrypted IID arm was trained once more after"
    " updates were truncated as participants truncate them; with rounding to the nearest unit its AUC less"
    " that of plain averaging was -0.0009."
)


def _describe_setting(found: Everything) -> list[str]:
    first = found.dealt[0]
    rows = [
        (
            *(fold, _labels(one.train), _labels(one.val), _labels(one.test)),
            *("/".join(map(str, one.groups)), *(_hospitals(one.hospitals[kind]) for kind in one.hospitals)),
        )
        for fold, one in enumerate(found.dealt)
    ]
    return [
        f"A capsule network with dynamic routing (Sabour, Frosst & Hinton 2017): images of {CONFIG.side}x"
        f"{CONFIG.side}, convolutions of {CONFIG.channels[0]} and {CONFIG.channels[1]} channels with group"
        f" norm, {CONFIG.capsules} primary capsules of {CONFIG.primary_size}, {CONFIG.classes} class capsules"
        f" of {CONFIG.class_size}, {CONFIG.routing} iterations of routing, margin loss;"
        f" {CONFIG.count_parameters()} weights. {ROUNDS} rounds of {LOCAL.epochs} local epochs with Adam"
        f" (rate {LOCAL.rate:g}, batches of {LOCAL.batch}, FedProx mu {LOCAL.proximal:g}); other arms train"
        " as many epochs. All arms begin with the same weights, and hospitals draw the same batches.",
        "COVID-CT, slices of publications; label 1 is COVID-19. Publications are dealt whole: to eighths,"
        " of which two are for validation, and the other six make three folds, each tested on by networks"
        f" that are trained on the other two; and those of a fold to {HOSPITALS} hospitals. *IID*: labels"
        " alike everywhere; *skewed*: nine tenths of each label lie with two of the hospitals. Images as"
        " without+with the finding:",
        _table(
            ("fold", "train", "val", "test", "publications", *(f"hospitals, {k}" for k in first.hospitals)),
            rows,
        ),
    ]


def _describe_figures(found: Everything) -> list[str]:
    rows = []
    for key, figures in found.figures.items():
        arm, _, kind = key.partition("-")
        rows.append(
            (
                *(kind or "-", NAMES[arm], f"{figures.val_auc:.3f}", figures.auc, figures.sensitivity),
                *(figures.specificity, figures.balanced, f"{found.seconds[key]:.0f}"),
            )
        )
    lines = []
    for kind in (key.partition("-")[2] for key in found.figures if key.startswith("encrypted-")):
        encrypted, plain = (found.figures[f"{arm}-{kind}"] for arm in ("encrypted", "averaged"))
        alone, central = found.figures[f"apart-{kind}"], found.figures["central"]
        distance = abs(encrypted.auc.value - plain.auc.value)
        verdict = "within" if distance <= CLOSE else "not within"
        lines.append(
            f"- {kind}: encrypted less plain averaging {_signed(encrypted.compare(plain))}: {verdict}"
            f" {CLOSE}. Encrypted less each hospital alone {_signed(encrypted.compare(alone))}; less all"
            f" images in one place {_signed(encrypted.compare(central))}."
        )
    return [
        "AUC: mean of the folds' AUCs, each over pairs of its own test images. Sensitivity and specificity:"
        " over all test images, at the threshold of the greatest sum of both on the validation images, for"
        " each network its own. 95 % intervals by drawing publications anew, the same draws for all arms.",
        _table(
            (
                *("dealing", "training", "AUC, validation", "AUC", "sensitivity", "specificity"),
                *("balanced accuracy", "training s, all folds"),
            ),
            rows,
        ),
        "Differences in AUC, paired by draws:\n\n" + "\n".join(lines),
    ]


def _describe_precision(found: Everything) -> list[str]:
    everything = {
        **{f"COVID-CT, {kind}": list(runs) for kind, runs in found.encrypted.items()},
        **{f"phantoms, {kind}": [run] for kind, run in found.phantom_encrypted.items()},
    }
    rows = []
    for name, runs in everything.items():
        rows.append(
            (
                *(name, sum(run.rounds for run in runs), max(run.integer_error for run in runs)),
                f"{max(run.largest_error for run in runs):.1e}",
                f"{min(run.bits for run in runs):.1f}",
                f"{max(run.largest_norm for run in runs):.2f}",
                sum(run.clipped for run in runs),
                *(_bytes(runs[0].update_bytes), runs[0].ciphertexts, runs[0].ring),
                f"{np.mean([run.encrypt_s for run in runs]):.3f}",
                f"{np.mean([run.add_s for run in runs]):.3f}",
                f"{np.mean([run.decrypt_s for run in runs]):.3f}",
            )
        )
    one = next(iter(everything.values()))[0]
    return [
        f"Updates are clipped to an L2 norm of {one.clip:g} and truncated to units of 2^-{one.unit_bits};"
        " ciphertexts hold integers, so decryption gives the sum of the integers exactly or fails. *Integer"
        " error*: largest distance of the decrypted sum to the integers' own sum, in units. *Error*: largest"
        " distance of a weight's change by the round to the mean in double precision of the updates before"
        " clipping and truncating, in weights; *bits*: log2 of the largest such mean over that error, the"
        " least of all rounds. Seconds: encrypting one update; adding the four of a round; opening their sum."
        " No noise was added.",
        _table(
            (
                *("federation", "rounds", "integer error", "error", "bits", "largest norm"),
                *("updates clipped", "update", "ciphertexts", "ring", "encrypt s", "add s", "decrypt s"),
            ),
            rows,
        ),
    ]


def _describe_masks(found: Everything) -> list[str]:
    rows = []
    for key, outcome in found.phantoms.items():
        arm, _, kind = key.partition("-")
        values = np.mean(np.array(outcome.dice), axis=0)
        draw = np.random.default_rng(79)
        drawn = draw.choice(values, (2000, len(values))).mean(axis=1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        rows.append(
            (
                *(kind or "-", NAMES[arm], f"{values.mean():.3f} ({low:.3f}-{high:.3f})"),
                *(f"{100 * np.mean(outcome.outside):.2f} %", f"{outcome.cpu_s:.0f}"),
            )
        )
    return [
        "COVID-CT has no masks, so the segmentation head is shown on generated slices of"
        f" {PHANTOM_CONFIG.side}x{PHANTOM_CONFIG.side}: a body, two lungs, vessels, and in every second"
        f" one to three opacities of known pixels. {PHANTOMS[0]} patients to train on, dealt as above, and"
        f" {PHANTOMS[1]} to test on; {PHANTOM_CONFIG.count_parameters()} weights, {PHANTOM_ROUNDS} rounds of"
        f" {PHANTOM_LOCAL.epochs} epochs; Dice and cross-entropy are added to the margin loss. Dice: mean of"
        " test images with opacities, pixels from one half on, intervals over patients; *drawn where there is"
        " none*: share of pixels in images without. Training is short and opacities are"
        " faint: the figures compare federated and encrypted training with training in one place, and say"
        " nothing of scans.",
        _table(("dealing", "training", "Dice", "drawn where there is none", "training s"), rows),
    ]


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"


def _labels(counts: tuple[int, int]) -> str:
    return f"{counts[0]}+{counts[1]}"


def _hospitals(counts: Sequence[tuple[int, int]]) -> str:
    return ", ".join(_labels(one) for one in counts)


def _bytes(count: float) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
