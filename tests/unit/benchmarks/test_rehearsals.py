"""Rehearsals in clear: candidates that can be mined, the section of the document, rows."""

from dataclasses import replace

import pytest

from benchmarks.ablation import DOCUMENT
from benchmarks.rehearsals import (
    BEGIN,
    CANDIDATES,
    END,
    FLOORED,
    TRADES,
    Rehearsed,
    build_section,
    compute_epsilon,
    format_row,
    replace_section,
)
from benchmarks.results.cases import CASES, PRESET
from workloads.fusion import WORKLOAD


def test_every_candidate_fits_the_preset_and_what_is_mined_is_among_them() -> None:
    for case in (*CANDIDATES, FLOORED):
        weights = WORKLOAD.build_initial_weights(case.spec.encode(), 0, "fresh")
        WORKLOAD.check_weights(PRESET, case.spec.encode(), weights)
    assert set(CASES) <= set(CANDIDATES)
    assert all(batches % 2 == 0 for _, batches in TRADES), "two hospitals share them"


def test_a_section_takes_the_place_of_the_last_one() -> None:
    rows = [Rehearsed(CASES[0], (0.1, -0.2, 0.06, 0.0, 0.01, -0.02), 0.1, 0.01)]
    lines = build_section(rows, ["a table"])
    text = replace_section(f"above\n\n{BEGIN}\nformer\n{END}\n\nbelow\n", lines)
    assert text.startswith(f"above\n\n{BEGIN}\n## Noisy steps as mined")
    assert text.endswith(f"a table\n{END}\n\nbelow\n")
    assert "former" not in text
    assert replace_section(text, lines) == text
    with pytest.raises(ValueError, match="put both where the section belongs"):
        replace_section(END + BEGIN, lines)
    assert replace_section(DOCUMENT.read_text(encoding="utf-8"), lines)


def test_a_row_counts_the_metrics_that_are_ahead() -> None:
    row = Rehearsed(CASES[0], (5.0, -2.0, 0.06, 0.0, 0.01, -0.02), 0.1, 0.01)
    assert row.ahead == 4
    assert format_row(row).endswith("| -0.020 | 4 |")
    assert "| mined |" in format_row(row)


def test_more_noise_costs_less_privacy() -> None:
    costs = [compute_epsilon(replace(FLOORED.schedule, noise=noise)) for noise in (32.0, 128.0, 512.0)]
    assert costs == sorted(costs, reverse=True)
    assert 0 < costs[-1] < costs[0] < 2
