"""The curve of `bmif task watch` as rendered text."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from node.cli.curve import Target, build_curve

LOSSES = [(0, 0.4), (5, 0.2), (10, 0.1), (15, 0.05), (20, 0.025)]
TARGETS = [Target(0, 0.2, True), Target(1, 0.05, True), Target(2, 0.0125, False)]


def show(text: Text, *, color: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=color, color_system="standard" if color else None)
    console.print(text)
    return stream.getvalue()


def test_the_rendered_ascii_text() -> None:
    drawn = build_curve(LOSSES, TARGETS, width=50, height=6, ascii_only=True)
    assert [line.rstrip() for line in show(drawn).splitlines()] == [
        "     0.4 |******",
        "         |------*********---------------- rung 0 -",
        "     0.1 |               **********",
        "         |-------------------------****** rung 1 -",
        "   0.025 |                                  ******",
        "  0.0125 |............................... rung 2 .",
        "         +----------------------------------------",
        "          step 0                                20",
    ]


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [40, 78])
def test_curve_fits_and_falls(width: int, ascii_only: bool) -> None:
    lines = build_curve(LOSSES, TARGETS, width, 10, ascii_only=ascii_only).plain.splitlines()
    assert len(lines) == 12
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).isascii() == ascii_only
    marks = [
        (row, column)
        for row, line in enumerate(lines[:10])
        for column, letter in enumerate(line)
        if letter == "*" or 0x2800 <= ord(letter) < 0x2900
    ]
    assert min(marks)[0] == 0
    assert max(marks)[0] < 9  # the next target lies below what is reached
    starts = [min(column for r, column in marks if r == row) for row in sorted({r for r, _ in marks})]
    assert starts == sorted(starts)


def test_every_target_has_its_line_and_scale() -> None:
    lines = build_curve(LOSSES, TARGETS, 60, 12, ascii_only=True).plain.splitlines()
    for target in TARGETS:
        assert any(f" rung {target.rung} " in line for line in lines)
    assert lines[0].startswith("     0.4 |")
    assert lines[11].startswith("  0.0125 |")
    assert lines[11].count(".") > 30  # not reached: dotted
    assert lines[-1].split() == ["step", "0", "20"]


def test_colours_are_only_where_the_terminal_has_them() -> None:
    drawn = build_curve(LOSSES, TARGETS, 60)
    assert "\x1b[" not in show(drawn)
    assert "\x1b[32m" in show(drawn, color=True)
    assert "\x1b[33m" in show(drawn, color=True)


@pytest.mark.parametrize("losses", [[(0, 0.1)], [(3, 0.0), (4, 0.0)], [(0, 0.2), (5, 0.2)]])
def test_odd_losses_are_drawn(losses: list[tuple[int, float]]) -> None:
    assert len(build_curve(losses, [], 60, 8).plain.splitlines()) == 10


def test_without_losses_it_says_so() -> None:
    assert build_curve([], TARGETS).plain == "no loss opened yet"
    assert build_curve([(0, float("nan"))], []).plain == "no loss opened yet"
