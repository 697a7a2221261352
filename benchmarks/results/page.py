"""docs/RESULTS.md, made from what was mined and scored; conclusions are taken from a file of their own."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results.cases import CONVERGENCE, Case
from benchmarks.results.folds import FOLDS
from benchmarks.results.mining import CONVERGED_STEPS, LEAST_VALIDATION, NODES, TOLERANCE, Mined
from benchmarks.results.scoring import (
    DECISIVE,
    MINED,
    NOISELESS,
    PUBLISHED,
    PUBLISHED_MAXIMUM,
    SAME,
    THRESHOLDS,
    Scored,
    get_published_differences,
)
from benchmarks.testbed import get_cores
from fusion_model.statistics import REFERENCE, Estimate, Table

PAGE = Path(__file__).parents[2] / "docs" / "RESULTS.md"
CONCLUSIONS = Path(__file__).parent / "conclusions.md"
"""Written by hand from one run's figures: its first line names that run's cases, and the page of another
run leaves it out."""
SHOWN = ("SF", "MI", "SCD", "VIF", "Qabf", "SSIM", "SSIM2")
LONGEST_S = 900.0
"""Of mining one task."""
LEAST_AHEAD = 4
NEAR = 1.02
"""Losses up to this multiple of the converged one count as converged."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A modality: what was asked for and what came of it."""

    case: Case
    digest: str
    scored: Scored
    failed: tuple[int, ...]
    """Folds without a result."""


def _format(estimate: Estimate, signed: bool) -> str:
    mark = "+" if signed else ""
    text = f"{estimate.mean:{mark}.3f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({estimate.low:{mark}.3f} to {estimate.high:{mark}.3f})"


def _build_table(table: Table, signed: bool) -> list[str]:
    return [
        "| method | " + " | ".join(SHOWN) + " |",
        "|---|" + "---|" * len(SHOWN),
        *(
            f"| {name} | " + " | ".join(_format(estimates[metric], signed) for metric in SHOWN) + " |"
            for name, estimates in table.items()
        ),
    ]


def _build_row(name: str, figures: Mapping[str, float], signed: bool) -> str:
    mark = "+" if signed else ""
    cells = (f"{figures[metric]:{mark}.2f}" if metric in figures else "" for metric in SHOWN)
    return f"| {name} | " + " | ".join(cells) + " |"


def _build_published(modality: str) -> list[str]:
    methods = {"pixel maximum": PUBLISHED_MAXIMUM[modality], "CDDFuse, medical": PUBLISHED[modality]}
    return [
        _build_row(f"{name}, published (other pairs)", dict(zip(DECISIVE, figures, strict=True)), False)
        for name, figures in methods.items()
    ]


def describe_model(case: Case) -> str:
    """Network, planes, skip and targets in words."""
    spec = case.spec
    kernels = ", ".join(f"{spec.kernels.count(k)} of {k}x{k}" for k in sorted(set(spec.kernels)))
    planes = ", ".join(spec.planes) or "none"
    start = "of a fixed seed" if case.schedule.initial == "fresh" else "fitted to public data"
    return (
        f"Network: first kernels {kernels}, square, {spec.second}x{spec.second}; {spec.parameters} weights, "
        f"at first {start}. Extra encrypted planes: {planes}. It corrects the {spec.skip} of both images. "
        f"Targets: {spec.target}, gradient weight {spec.gradient_weight}."
    )


def _build_thresholds(scored: Scored) -> list[str]:
    means, goals = scored.summary.means, THRESHOLDS[scored.modality]
    maximum = dict(zip(DECISIVE, PUBLISHED_MAXIMUM[scored.modality], strict=True))
    rows = [
        "| metric | goal | mined | pixel maximum, same pairs | goal less published maximum "
        "| mined less maximum, same pairs | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, goal in goals.items():
        wanted, mine = goal - maximum[name], means[MINED][name].mean
        rise = scored.get_rise(MINED, name)
        level, distance = mine >= goal, rise >= wanted
        verdict = "both" if level and distance else "level" if level else "distance" if distance else "no"
        rows.append(
            f"| {name} | {goal:.2f} | {mine:.3f} | {means[REFERENCE][name].mean:.3f} | {wanted:+.2f} "
            f"| {rise:+.3f} | {verdict} |"
        )
    return rows


def find_converged(fold: Mined) -> int | None:
    """The first step whose loss (the twin's, which is free of the noise of opening) is within 2 % of the
    converged one."""
    return next((point.step for point in fold.losses if point.twin <= NEAR * fold.converged), None)


def _build_mining(folds: Sequence[Mined]) -> list[str]:
    rows = [
        "| fold | held back | verdicts | steps, model's | rungs | seconds | loss at first "
        "| at the model's step | twin's | without noise | converged | largest difference of a weight |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fold in folds:
        first, last = fold.losses[0], next(p for p in fold.losses if p.step == fold.step)
        rows.append(
            f"| {fold.fold} | {', '.join(map(str, fold.held_back))} "
            f"| {fold.accepted} for, {fold.rejected} against | {fold.steps}, {fold.step} "
            f"| {fold.rungs_settled} of {fold.rungs} | {fold.seconds:.0f} | {first.opened:.5f} "
            f"| {last.opened:.6f} | {last.twin:.6f} | {last.noiseless:.6f} | {fold.converged:.6f} "
            f"| {fold.largest_difference:.1e} |"
        )
    return rows


def _build_losses(folds: Sequence[Mined]) -> list[str]:
    """By step and by seconds: the fold that took the most steps, so that the table stays readable."""
    fold = max(folds, key=lambda fold: (fold.steps, -fold.fold))
    rows = [
        f"Losses of fold {fold.fold}, on {fold.validation_patches} validation patches:",
        "",
        "| step | seconds | opened, with noise | clear twin | twin without noise |",
        "|---|---|---|---|---|",
    ]
    return rows + [
        f"| {p.step} | {p.seconds:.0f} | {p.opened:.6f} | {p.twin:.6f} | {p.noiseless:.6f} |"
        for p in fold.losses
    ]


def _build_checks(scored: Scored) -> list[str]:
    metric, distance = scored.get_twin_distance()
    slowest = max(scored.folds, key=lambda fold: fold.seconds)
    difference = max(fold.largest_difference for fold in scored.folds)
    near = [find_converged(fold) for fold in scored.folds]
    steps = ", ".join("no step" if step is None else f"step {step}" for step in near)
    noiseless = scored.summary.means[NOISELESS]
    cost = max(DECISIVE, key=lambda name: abs(noiseless[name].mean - scored.summary.means[MINED][name].mean))
    by = scored.summary.means[MINED][cost].mean - noiseless[cost].mean
    return [
        f"- Mined model and clear twin: means differ most in {metric}, by {distance:.1e} "
        f"({'the same' if distance < SAME else 'not the same'} to two decimals); the largest difference of "
        f"a weight is {difference:.1e} ({'within' if difference <= 1e-3 else 'not within'} 1e-3).",
        f"- Mining took {slowest.seconds:.0f} s at most, "
        f"{'under' if slowest.seconds < LONGEST_S else 'over'} 15 minutes, all nodes on this machine.",
        f"- Within 2 % of the converged loss, by fold: {steps}.",
        f"- What the noise of privacy costs: most in {cost}, {by:+.3f}.",
    ]


def compute_patient_epsilon(patches: int, openings: int, noise: float, delta: float = 1e-6) -> float:
    """Epsilon of all gradient openings for a patient with so many patches: zero-concentrated privacy of a
    Gaussian whose sensitivity is that many clips (Bun & Steinke 2016). Thousands mean: no protection."""
    rho = openings * (patches / noise) ** 2 / 2
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def _build_privacy(case: Case, folds: Sequence[Mined]) -> list[str]:
    noisy = [fold for fold in folds if fold.noisy and fold.privacy]
    if not noisy:
        return ["No noise was added, so nothing is promised to any patch.", ""]
    fold = max(noisy, key=lambda fold: fold.steps)
    patches = fold.training_patches // fold.training_patients
    epsilon = compute_patient_epsilon(patches, fold.steps, case.schedule.noise)
    return [
        f"Privacy, fold {fold.fold}: {fold.privacy}",
        "",
        f"Per patient, with {patches} training patches each: epsilon is about {epsilon:.0f}, which promises "
        "nothing.",
        "",
    ]


def _build_modality(entry: Entry) -> list[str]:
    case, scored = entry.case, entry.scored
    summary = scored.summary
    lines = [f"## {case.label}", "", describe_model(case), "", f"{summary.extent}."]
    if summary.caution is not None:
        lines[-1] += f" {summary.caution}"
    if entry.failed:
        lines[-1] += f" Folds without a result: {', '.join(map(str, entry.failed))}."
    lines += ["", *_build_table(summary.means, signed=False), *_build_published(case.modality), ""]
    lines += ["Less pixel maximum on the same pairs:", "", *_build_table(summary.differences, signed=True)]
    published = get_published_differences(case.modality)
    lines += [_build_row("CDDFuse, medical, published (other pairs)", published, True), ""]
    ahead = "; ".join(f"{name}: {scored.count_ahead(name)}" for name in summary.means)
    lines += [f"Further above pixel maximum than CDDFuse's medical model, metrics of six: {ahead}.", ""]
    lines += [*_build_thresholds(scored), "", *_build_mining(scored.folds), "", *_build_checks(scored), ""]
    return [*lines, *_build_losses(scored.folds), "", *_build_privacy(case, scored.folds)]


def _build_convergence(folds: Sequence[Mined]) -> list[str]:
    lines = [
        "## How many steps",
        "",
        f"{describe_model(CONVERGENCE)} The networks above come so close to their targets that a share "
        "of the loss that is left says little; these targets leave a loss that no weights can remove.",
        "",
    ]
    for fold in folds:
        step = find_converged(fold)
        reached = "no step" if step is None else f"step {step}"
        lines += [
            f"Within 2 % of the converged loss ({fold.converged:.6f}): {reached} of {fold.steps}, all mined "
            f"in {fold.seconds:.0f} s; the largest difference of a weight from the twin's is "
            f"{fold.largest_difference:.1e}.",
            "",
        ]
    return [*lines, *_build_losses(folds), ""]


def _build_summary(entries: Sequence[Entry]) -> list[str]:
    rows = [
        "| modality | model | metrics of six ahead: mined | twin without noise | pixel maximum "
        "| goals reached by level, by distance | slowest fold |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        scored = entry.scored
        goals = THRESHOLDS[scored.modality]
        maximum = dict(zip(DECISIVE, PUBLISHED_MAXIMUM[scored.modality], strict=True))
        level = sum(scored.summary.means[MINED][name].mean >= goal for name, goal in goals.items())
        distance = sum(scored.get_rise(MINED, name) >= goal - maximum[name] for name, goal in goals.items())
        planes = "+".join(entry.case.spec.planes) or "no planes"
        rows.append(
            f"| {entry.case.label} | {entry.case.spec.target}, {planes} | {scored.count_ahead(MINED)} "
            f"| {scored.count_ahead(NOISELESS)} | {scored.count_ahead(REFERENCE)} "
            f"| {level}, {distance} of {len(goals)} | {max(f.seconds for f in scored.folds):.0f} s |"
        )
    return [*rows, ""]


def _read_conclusions(entries: Sequence[Entry]) -> list[str]:
    if not CONCLUSIONS.exists():
        return []
    first, _, text = CONCLUSIONS.read_text(encoding="utf-8").partition("\n")
    named = ", ".join(f"{entry.case.modality} {entry.digest}" for entry in entries)
    return ["## What this says", "", text.strip(), ""] if first == f"<!-- {named} -->" else []


def write_page(entries: Sequence[Entry], note: str, convergence: Sequence[Mined]) -> None:
    PAGE.write_text(build_page(entries, note, convergence), encoding="utf-8")


def build_page(entries: Sequence[Entry], note: str = "", convergence: Sequence[Mined] = ()) -> str:
    """All modalities that have a result; `note` says what else is to be known of this run."""
    lines = [
        "# Results on real images",
        "",
        f"Made by `make results ARGS=--full` on {get_cores()} cores ({platform.machine()}, Python "
        f"{platform.python_version()}).",
        "",
        f"Pairs of the Harvard Whole Brain Atlas, by modality. Patients are dealt to {FOLDS} folds; those of "
        "a fold are held back from everything and fused by the model that was mined without them. Two "
        "hospitals contribute encrypted batches of 8192 patches, at least "
        f"{LEAST_VALIDATION} for validation; the task is mined on a testnet of {NODES} nodes, all losses "
        "recomputed by every node. *Held back* is said of the weights: targets, planes and schedules were "
        "chosen earlier with sight of these same pairs ([ABLATION.md](ABLATION.md)), so the figures are "
        "optimistic by what that choice gained.",
        "",
        "Both hospitals judge each milestone, in clear, on patients of their own: those that they validate "
        "with, or, where a hospital has none of these, the ones that it trains with. These are not unseen. "
        f"They accept a loss that grew by at most {TOLERANCE:.0%} of the rehearsed last loss. The custody "
        "has no pairs and gives no verdict; two of three stakes settle a milestone. Rungs follow from a "
        "rehearsal in clear by the bench. The model is that of the last settled milestone; a task whose last "
        "rung noise kept out of reach ends with its openings.",
        "",
        "The clear twin trains without encryption on the same data with the same weights, order, clip, "
        "optimiser and *the custody's own draws of noise*, which the bench, who owns the custody, decrypts "
        "again from the archived bundles and checks against the custody's key. The twin without noise is the "
        f"same with none. Converged: the last loss of {CONVERGED_STEPS} such steps without noise. The full "
        "network is our reconstruction of BMIF's CNN with Inception branches, trained in clear on the fold's "
        "other patients with losses that ciphertexts can't train; the shipped teacher is a smaller one that "
        f"saw no patient's image. {note}".rstrip(),
        "",
        "Means over pairs, with 95 % intervals by bootstrap over patients. Higher is better. SSIM2 is the "
        "published tables' variant (data range 2), kept for comparison only. Published figures are of "
        f"other pairs of the same atlas: only differences from pixel {REFERENCE} compare.",
        "",
        *_build_summary(entries),
        *_read_conclusions(entries),
    ]
    for entry in entries:
        lines += _build_modality(entry)
    if convergence:
        lines += _build_convergence(convergence)
    return "\n".join(lines).rstrip() + "\n"
