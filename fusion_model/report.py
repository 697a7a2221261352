"""A report page of fusion quality: one HTML file that needs nothing else, pictures included."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from fusion_model.metrics import METRIC_NAMES
from fusion_model.statistics import REFERENCE, Estimate, Summary, Table

METHOD_LABELS = {
    "model": "this model",
    "average": "average",
    "maximum": "pixel maximum",
    "laplacian": "Laplacian pyramid",
}

METRIC_LABELS = {
    "EN": "entropy, bits",
    "SD": "standard deviation of grey values",
    "SF": "spatial frequency",
    "AG": "average gradient",
    "MI": "mutual information with both sources, nats",
    "SCD": "sum of the correlations of differences",
    "VIF": "pixel visual information fidelity, both sources",
    "Qabf": "edge preservation",
    "SSIM": "structural similarity with both sources, data range 255",
    "SSIM2": "the same with data range 2, as published tables have it",
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
body { color: #1b1f24 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #d8dee4; text-align: right; vertical-align: baseline }
th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid #57606a }
small { color: #57606a; white-space: nowrap }
.facts td { text-align: left; overflow-wrap: anywhere } .facts td:first-child { white-space: nowrap }
.wide { overflow-x: auto }
.above { background: #dafbe1 } .below { background: #ffebe9 } .best { font-weight: 600 }
figure { margin: 1.2rem 0; overflow-x: auto } figure img { max-width: 100%; min-width: 40rem }
figcaption { color: #57606a }
"""


@dataclass(frozen=True, slots=True)
class ReportPicture:
    """One pair by all methods, side by side."""

    caption: str
    png: bytes


def build_report(
    title: str,
    facts: Sequence[tuple[str, str]],
    summary: Summary,
    pictures: Sequence[ReportPicture] = (),
    left_out: Sequence[str] = (),
) -> str:
    """The page: what the model is (`facts`), means, differences from the pixel maximum, pictures.

    All text is escaped; the page loads nothing from anywhere.
    """
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _build_facts(facts),
        f"<h2>Means over {escape(summary.extent)}</h2>",
        f"<p>{_explain(summary)} Bold is the best of a row.</p>",
        _build_table(summary.means, best=True),
    ]
    if summary.differences:
        parts += [
            f"<h2>Difference from {METHOD_LABELS[REFERENCE]} on the same pairs</h2>",
            "<p>Green lies above the pixel maximum and red below it with the whole interval; "
            "for what is not coloured, these patients do not tell.</p>",
            _build_table(summary.differences, signed=True),
        ]
    if pictures:
        parts.append("<h2>Pictures</h2>")
        parts += [_build_picture(picture) for picture in pictures]
    if left_out:
        items = "".join(f"<li>{escape(reason)}</li>" for reason in left_out)
        parts.append(f"<h2>Left out</h2><ul>{items}</ul>")
    parts.append("<h2>Metrics</h2>")
    parts.append(
        "<p>Computed on grey values 0 to 255, of coloured images on luminance; figures over both sources are "
        "sums. Higher is better, but EN, SD, SF and AG also rise with noise.</p>"
    )
    parts.append(_build_facts([(name, METRIC_LABELS[name]) for name in METRIC_NAMES]))
    parts.append("</body></html>\n")
    return "\n".join(parts)


def format_estimate(estimate: Estimate, signed: bool = False) -> tuple[str, str]:
    """The mean and its interval as text; the interval is empty where there is none."""
    sign = "+" if signed else ""
    mean = f"{estimate.mean:{sign}.3f}"
    if estimate.low is None or estimate.high is None:
        return mean, ""
    return mean, f"{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"


def _explain(summary: Summary) -> str:
    kind = (
        "Small figures are 95 % intervals (BCa bootstrap over patients, each drawn with all of its pairs; "
        f"seed {summary.seed})."
    )
    if summary.patients < 2:
        return summary.caution or ""
    return kind if summary.caution is None else f"{kind} {summary.caution}"


def _build_facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    return f'<table class="facts">{"".join(rows)}</table>'


def _build_table(table: Table, *, best: bool = False, signed: bool = False) -> str:
    head = "".join(f"<th>{escape(METHOD_LABELS.get(method, method))}</th>" for method in table)
    rows: list[str] = []
    for metric in METRIC_NAMES:
        row = [estimates[metric] for estimates in table.values()]
        highest = max(estimate.mean for estimate in row)
        cells = (_build_cell(estimate, best and estimate.mean == highest, signed) for estimate in row)
        rows.append(f"<tr><td>{metric}</td>{''.join(cells)}</tr>")
    # A narrow window scrolls the table and not the page.
    return (
        f'<div class="wide"><table><thead><tr><th>metric</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _build_cell(estimate: Estimate, best: bool, signed: bool) -> str:
    mean, interval = format_estimate(estimate, signed)
    kind = ""
    if best:
        kind = ' class="best"'
    elif signed and estimate.excludes_zero:
        kind = ' class="above"' if estimate.mean > 0 else ' class="below"'
    return f"<td{kind}>{mean}<br><small>{interval}</small></td>"


def _build_picture(picture: ReportPicture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
