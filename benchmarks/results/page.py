"""docs/RESULTS.md, wholly made from what was mined and scored."""

import platform
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results.cases import Case
from benchmarks.results.mining import Mined
from benchmarks.results.scoring import DECISIVE, MINED, PUBLISHED, PUBLISHED_MAXIMUM, THRESHOLDS, Scored
from benchmarks.testbed import get_cores
from fusion_model.statistics import REFERENCE, Estimate, Table

PAGE = Path(__file__).parents[2] / "docs" / "RESULTS.md"
SHOWN = ("SF", "MI", "SCD", "VIF", "Qabf", "SSIM", "SSIM2")


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


def _build_published(modality: str) -> str:
    cells = dict(zip(DECISIVE, PUBLISHED[modality], strict=True))
    return (
        "| CDDFuse, medical (published) | "
        + " | ".join(f"{cells[name]:+.3f}" if name in cells else "" for name in SHOWN)
        + " |"
    )


def _describe_model(case: Case) -> str:
    spec = case.spec
    kernels = ", ".join(f"{spec.kernels.count(k)} of {k}x{k}" for k in sorted(set(spec.kernels)))
    planes = ", ".join(spec.planes) or "none"
    return (
        f"Network: first kernels {kernels}, square, {spec.second}x{spec.second}; {spec.parameters} weights. "
        f"Extra encrypted planes: {planes}. It corrects the {spec.skip} of both images. "
        f"Targets: {spec.target}, gradient weight {spec.gradient_weight}."
    )


def _build_thresholds(scored: Scored) -> list[str]:
    means, goals = scored.summary.means, THRESHOLDS[scored.modality]
    rows = [
        "| metric | goal | mined | goal less published maximum | mined less maximum, same pairs | reached |",
        "|---|---|---|---|---|---|",
    ]
    for name, goal in goals.items():
        wanted = goal - PUBLISHED_MAXIMUM[scored.modality][name]
        mine, rise = means[MINED][name].mean, scored.summary.differences[MINED][name].mean
        verdict = "both" if mine >= goal and rise >= wanted else "level" if mine >= goal else ""
        verdict = verdict or ("difference" if rise >= wanted else "no")
        rows.append(f"| {name} | {goal:.2f} | {mine:.3f} | {wanted:+.2f} | {rise:+.3f} | {verdict} |")
    return rows


def _build_mining(folds: Sequence[Mined]) -> list[str]:
    rows = [
        "| fold | noise | held back | steps | seconds | loss at first | at last, opened | twin's "
        "| largest difference of a weight | epsilon of a training patch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fold in folds:
        (_, first, _), (_, last, clear) = fold.losses[0], fold.losses[-1]
        epsilon = "none" if fold.epsilon is None else f"{fold.epsilon:.2f}"
        rows.append(
            f"| {fold.fold} | {'yes' if fold.noisy else 'no'} | {', '.join(map(str, fold.held_back))} "
            f"| {fold.steps} | {fold.seconds:.0f} | {first:.5f} | {last:.5f} | {clear:.5f} "
            f"| {fold.largest_difference:.1e} | {epsilon} |"
        )
    return rows


def _build_modality(case: Case, scored: Scored) -> list[str]:
    summary = scored.summary
    lines = [f"## {case.label}", "", _describe_model(case), "", f"{summary.extent}."]
    if summary.caution is not None:
        lines[-1] += f" {summary.caution}"
    lines += ["", *_build_table(summary.means, signed=False), ""]
    lines += ["Less pixel maximum on the same pairs:", ""]
    lines += [*_build_table(summary.differences, signed=True), _build_published(case.modality), ""]
    ahead = "; ".join(f"{name}: {scored.count_ahead(name)}" for name in summary.differences)
    lines += [f"Further above pixel maximum than CDDFuse's medical model, metrics of six: {ahead}.", ""]
    lines += [*_build_thresholds(scored), "", *_build_mining(scored.folds), ""]
    statement = next((fold.privacy for fold in scored.folds if fold.noisy and fold.privacy), "")
    return [*lines, f"Privacy of a noisy fold: {statement}", ""] if statement else lines


def write_page(entries: Sequence[tuple[Case, Scored]], note: str) -> None:
    """All modalities; `note` says what of the whole was run."""
    lines = [
        "# Results on real images",
        "",
        f"Made by `make results ARGS=--full` on {get_cores()} cores ({platform.machine()}, Python "
        f"{platform.python_version()}). {note}",
        "",
        "Pairs of the Harvard Whole Brain Atlas, by modality. Patients are dealt to folds; those of a fold "
        "are held back from everything and fused by the model that was mined without them. Hospitals "
        "contribute encrypted batches of 8192 patches; the task is mined on a testnet of four nodes, all "
        "losses recomputed by every node. The twin trains in clear on the same data with the same weights, "
        "order, clip, optimiser and strength of noise, and draws of its own. The full network is our "
        "reconstruction of BMIF's CNN with Inception branches, trained in clear with losses that "
        "ciphertexts can't train.",
        "",
        "Means over pairs, with 95 % intervals by bootstrap over patients. Higher is better. SSIM2 is the "
        "published tables' variant (data range 2), kept for comparison only. Published figures are of "
        f"other pairs of the same atlas: only their differences from pixel {REFERENCE} compare.",
        "",
    ]
    for case, scored in entries:
        lines += _build_modality(case, scored)
    PAGE.write_text("\n".join(lines), encoding="utf-8")
