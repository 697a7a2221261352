"""docs/DIAGNOSIS.md, from figures alone."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.diagnosis.encrypted import Measured, Planned
from benchmarks.diagnosis.trained import EPOCHS, MOVES, PENALTY, Mean, Trained, compute_mean
from benchmarks.timing import Timing

Key = tuple[int, str, bool, bool]
Figure = Sequence[float]

GOAL = 0.01
"""By how much quadratics may fall short of ReLU."""
SWITCH_NAMES = {
    (False, False): "neither",
    (True, False): "fold",
    (False, True): "absorb",
    (True, True): "both",
}


def build_page(
    machine: str,
    trained: Sequence[Trained],
    measured: Sequence[Measured],
    plans: Sequence[Planned],
    ablation: Mapping[Key, Measured],
) -> str:
    """The page, in Markdown."""
    parts = [
        "# Encrypted diagnosis",
        f"Made by `python -m benchmarks.diagnosis --write` on: {machine}. Seconds are of one core's processor"
        " time, the clock's beside it in brackets: other work ran on the machine, which stretches the clock"
        " and, less, processor time.",
        "PneumoniaMNIST (28x28 grey, given splits; the part of its test split that is at hand): label 1 is"
        " pneumonia. Networks after Ran & Li (JIIM 2025): blocks of 3x3 convolution, batch norm, activation"
        " and average pool, then global pooling and one dense output. The first convolution goes in steps of"
        " 2. Thresholds are chosen on the validation split (Youden), figures are of the test split, with 95 %"
        " bootstrap intervals.",
        "## Quadratic activations and ReLU",
        *_describe_training(trained),
        "## On ciphertexts",
        *_describe_measured(trained, measured),
        "## Depth: what folding and absorbing save",
        *_describe_ablation(plans, ablation),
        "## What this says and does not say",
        _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = (
    "Encryption changes no decision that the polynomial network takes beyond the error stated; what accuracy"
    " there is is the network's. Differences between AUCs of a few thousandths lie within the intervals. The"
    " test images are few, of one source and small; nothing here says how the networks do elsewhere, and"
    " they are no medical device. With encrypted weights model and images are under one key: its holder can"
    " read both (THREATS.md)."
)


def _describe_training(trained: Sequence[Trained]) -> list[str]:
    rows = []
    for one in trained:
        outside = ", ".join(f"{100 * share:.2g} %" for share in one.outside) or "-"
        rows.append(
            (
                *(one.blocks, one.activation, _name_input(one.evened), one.seed, one.parameters),
                *(f"{one.val_auc:.4f}", _figure(one.auc, 4), _figure(one.sensitivity)),
                *(_figure(one.specificity), outside),
            )
        )
    first = next(one for one in trained if one.activation == "polynomial")
    return [
        f"The quadratic is the least-squares fit to ReLU on [-{first.reach:g}, {first.reach:g}]; it is off by"
        f" {first.error:.3f} at most there. A penalty of {PENALTY:g} times the mean square excess over the"
        f" interval keeps pre-activations inside; the last column is the share of test's pre-activations that"
        f" are outside, by block. Interval and penalty were chosen by the AUC on validation, of two pairs"
        f" tried (the other: [-4, 4] and 10). ReLU networks have the same size, start and {EPOCHS} epochs.",
        _table(
            (
                *("blocks", "activation", "images", "seed", "parameters", "AUC, validation"),
                *("AUC, test", "sensitivity", "specificity", "outside"),
            ),
            rows,
        ),
        *_describe_means(trained),
    ]


def _describe_means(trained: Sequence[Trained]) -> list[str]:
    """ReLU and quadratic by blocks and input, and what images of even contrast change."""
    rows, gaps = [], {}
    for blocks, evened in sorted({(one.blocks, one.evened) for one in trained}):
        relu, quadratic = (compute_mean(trained, blocks, name, evened) for name in ("relu", "polynomial"))
        gaps[blocks, evened] = quadratic.test - relu.test
        rows.append(
            (
                *(blocks, _name_input(evened), relu.seeds, _pair(relu, quadratic)),
                *(_moved(relu, quadratic), f"{relu.test:.4f}", f"{quadratic.test:.4f}"),
                f"{gaps[blocks, evened]:+.4f}",
                f"{quadratic.test - compute_mean(trained, blocks, 'relu').test:+.4f}",
            )
        )
    # Of the same images; the last column is stricter where ReLU does better on images as they are.
    named = [(f"{blocks} blocks, {_name_input(evened)}", gap) for (blocks, evened), gap in gaps.items()]
    within = "; ".join(name for name, gap in named if gap >= -GOAL) or "none"
    beyond = "; ".join(name for name, gap in named if gap < -GOAL) or "none"
    tests = {key: compute_mean(trained, key[0], "polynomial", key[1]).test for key in gaps}
    losers = [blocks for blocks, evened in gaps if evened and tests[blocks, True] < tests[blocks, False]]
    worse = ", ".join(f"at {blocks} blocks" for blocks in losers) or "nowhere"
    return [
        "Means over seeds. *Moved*: on validation images moved by up to 3 pixels, with contrast times 0.7 to"
        f" 1.3 and brightness up to 0.1 off, the mean of {MOVES} draws. It was looked at after quadratics at"
        " 3 blocks had been seen to fall short on test, and shows what validation as it is hides. A likely"
        " reason: ReLU scales with its argument, a quadratic does not. *Even* images have one mean and one"
        " spread, made so in clear by whoever encrypts (`bmif diagnose train --even-contrast`), in training"
        " and test alike. They were chosen by the two validation columns, on two seeds of 3 blocks, before"
        " any network of theirs was run on test.",
        _table(
            (
                *("blocks", "images", "seeds", "validation: ReLU, quadratic", "moved: ReLU, quadratic"),
                *("test: ReLU", "test: quadratic", "difference", "to ReLU on images as they are"),
            ),
            rows,
        ),
        f"Within {GOAL} of ReLU on the same test images: {within}. Further below: {beyond}."
        f" Quadratics do worse on test with even images than without: {worse}.",
    ]


def _name_input(evened: bool) -> str:
    return "even" if evened else "as they are"


def _pair(relu: Mean, quadratic: Mean) -> str:
    return f"{relu.val:.4f}, {quadratic.val:.4f}"


def _moved(relu: Mean, quadratic: Mean) -> str:
    if relu.moved is None or quadratic.moved is None:
        return "-"
    return f"{relu.moved:.4f}, {quadratic.moved:.4f}"


def _describe_measured(trained: Sequence[Trained], measured: Sequence[Measured]) -> list[str]:
    if not measured:
        return ["Not measured yet."]
    quality, costs, sizes = [], [], []
    for one in measured:
        name = f"{one.packing}, {one.weights} weights"
        quality.append(
            (
                *(name, one.images, f"{one.clear_auc:.4f}", _figure(one.auc, 4), _figure(one.sensitivity)),
                *(_figure(one.specificity), f"{one.largest_error:.1e}", one.changed_decisions),
            )
        )
        total = one.encrypt_s + one.evaluate_s + one.decrypt_s
        costs.append(
            (
                *(name, _time(one.keys_s), _time(one.model_s), _time(one.encrypt_s), _time(one.evaluate_s)),
                *(_time(one.decrypt_s), f"{one.predicted_s:.3g}", _time(total)),
                f"{1e3 * total.cpu_s / one.capacity:.3g} ms",
            )
        )
        sizes.append(
            (
                *(name, one.ring, one.bits, one.depth, one.capacity, one.request_ciphertexts),
                *(_bytes(one.request_bytes), _bytes(one.request_bytes / one.capacity)),
                *(_bytes(one.result_bytes), _bytes(one.keys_bytes), one.model_ciphertexts),
                _bytes(one.model_bytes),
            )
        )
    first = next(one for one in trained if one.activation == "polynomial")
    return [
        f"The first network of the table above ({first.parameters} parameters). *Batch* packing: a slot is an"
        " image, a ciphertext is a pixel. *Single*: one image in few ciphertexts. AUC in clear is the"
        " polynomial network's on the same images; the error is the largest between logits; decisions are"
        " compared at the threshold.",
        _table(
            (
                *("", "images", "AUC in clear", "AUC encrypted", "sensitivity", "specificity"),
                *("largest error", "decisions changed"),
            ),
            quality,
        ),
        "Seconds of one request, in single packing the fastest of as many as there were images (in batch"
        " packing a request costs the same for one image and for as many as fit)."
        " Predicted: evaluation, of a quiet core, by counts of operations. Latency: encrypt, evaluate and"
        " decrypt together; amortised: of a full request.",
        _table(
            (
                *("", "keys", "model", "encrypt", "evaluate", "decrypt", "predicted", "latency"),
                "amortised, an image",
            ),
            costs,
        ),
        _table(
            (
                *("", "ring", "bits", "levels", "images a request", "ciphertexts", "request"),
                *("an image, full", "result", "evaluation keys", "model's ciphertexts", "model"),
            ),
            sizes,
        ),
    ]


def _describe_ablation(plans: Sequence[Planned], ablation: Mapping[Key, Measured]) -> list[str]:
    parts = [
        "Batch packing. *Fold*: batch norm goes into the convolution before it. *Absorb*: the quadratic's"
        " coefficients and the pools' factors go into neighbouring layers. Predicted seconds are of a quiet"
        " core, for a full request; measured ones of this machine as it was. Both switches leave the function"
        f" as it is. {_compare_times(plans, ablation)}"
    ]
    for scale in sorted({row.asked_scale or 0 for row in plans}):
        rows = []
        for row in plans:
            if (row.asked_scale or 0) != scale:
                continue
            head = (row.blocks, row.weights, SWITCH_NAMES[row.fold, row.absorb])
            if row.refusal:
                rows.append((*head, *["-"] * 6, "no"))
                continue
            found = ablation.get((row.blocks, row.weights, row.fold, row.absorb)) if not scale else None
            rows.append(
                (
                    *(*head, row.levels, row.ring, row.bits, row.scale_bits, f"{row.predicted_s:.0f}"),
                    *(_time(found.evaluate_s) if found else "-", "yes"),
                )
            )
        title = f"At a scale of {scale} bits:" if scale else "At the scale that the compiler chooses:"
        columns = ("blocks", "weights", "optimisations", "levels", "N", "bits", "scale bits")
        parts += [title, _table((*columns, "predicted s", "measured s", "feasible"), rows)]
    refusals = sorted({row.refusal for row in plans if row.refusal})
    if refusals:
        parts.append(
            f"Not feasible: no ring up to 32768 holds these levels at 128 bits; for instance: {refusals[0]}"
        )
    return parts


def _compare_times(plans: Sequence[Planned], ablation: Mapping[Key, Measured]) -> str:
    """Which rows were run, and how far off their predictions are."""
    known = [
        (row.predicted_s, found.evaluate_s.cpu_s)
        for row in plans
        if row.asked_scale is None
        and (found := ablation.get((row.blocks, row.weights, row.fold, row.absorb))) is not None
    ]
    if not known:
        return "No row was run."
    ratios = [measured / predicted for predicted, measured in known]
    return (
        f"Run were {len(known)} rows of the first table, those predicted to take up to"
        f" {max(predicted for predicted, _ in known):.0f} s; the others are predictions alone, and so is the"
        f" second table. Measured took {min(ratios):.1f} to {max(ratios):.1f} times as long as predicted."
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _figure(value: Figure, digits: int = 3) -> str:
    middle, low, high = (f"{number:.{digits}f}" for number in value)
    return f"{middle} ({low}-{high})"


def _time(timing: Timing) -> str:
    return f"{timing.cpu_s:.3g} ({timing.wall_s:.3g})"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
