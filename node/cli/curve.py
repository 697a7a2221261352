"""A training curve in text: losses over steps on a logarithmic scale, targets as lines across it.

Drawn with Braille dots, two by four to a character; without colours it loses nothing, since a target's line
bears its rung. With `ascii_only` it needs nothing but ASCII.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

_MARGIN = 9
"""Characters of a loss and its axis, left of the curve."""
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Braille's bits by row and column."""
_BLANK = 0x2800
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Target:
    """A rung of the ladder."""

    rung: int
    loss: float
    reached: bool


def build_curve(
    losses: Sequence[tuple[int, float]],
    targets: Sequence[Target],
    width: int = 78,
    height: int = 12,
    *,
    ascii_only: bool = False,
) -> Text:
    """`height` + 2 lines of at most `width` characters: the curve, its axis and the steps.

    Without losses it says so. The scale holds all losses and all targets.
    """
    shown = [(step, max(loss, _TINY)) for step, loss in losses if math.isfinite(loss)]
    if not shown:
        return Text("no loss opened yet")
    plot = max(20, width - _MARGIN - 1)
    values = [math.log(loss) for _, loss in shown]
    values += [math.log(max(target.loss, _TINY)) for target in targets]
    low, high = min(values), max(values)
    if high - low < 1e-6:
        low, high = low - 0.05, high + 0.05
    first, last = shown[0][0], max(shown[-1][0], shown[0][0] + 1)

    def find_row(loss: float, rows: int) -> int:
        return round((high - math.log(max(loss, _TINY))) / (high - low) * (rows - 1))

    lines = [[" "] * plot for _ in range(height)]
    styles = [[""] * plot for _ in range(height)]
    for target in targets:
        row = find_row(target.loss, height)
        dash = ("-" if ascii_only else "─") if target.reached else ("." if ascii_only else "┄")
        style = "green" if target.reached else "yellow"
        for column in range(plot):
            lines[row][column], styles[row][column] = dash, style
    scale = 1 if ascii_only else 2
    depth = 1 if ascii_only else 4
    cells: dict[tuple[int, int], int] = {}
    for x, y in _trace(
        [
            (
                round((step - first) / (last - first) * (plot * scale - 1)),
                find_row(loss, height * depth),
            )
            for step, loss in shown
        ]
    ):
        place = y // depth, x // scale
        bit = 1 if ascii_only else _DOTS[y % depth][x % scale]
        cells[place] = cells.get(place, 0) | bit
    for (row, column), bits in cells.items():
        lines[row][column] = "*" if ascii_only else chr(_BLANK + bits)
        styles[row][column] = "cyan"
    for target in targets:  # last, so that a name is never drawn over
        label = f" rung {target.rung} "
        row, start = find_row(target.loss, height), plot - len(label) - 1
        lines[row][start : start + len(label)] = label
        styles[row][start : start + len(label)] = [""] * len(label)
    return _assemble(lines, styles, (low, high), (first, last), ascii_only)


def _trace(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Every dot on the way from point to point."""
    dots = [points[0]]
    for (x0, y0), (x1, y1) in pairwise(points):
        count = max(abs(x1 - x0), abs(y1 - y0), 1)
        dots += [
            (round(x0 + (x1 - x0) * part / count), round(y0 + (y1 - y0) * part / count))
            for part in range(1, count + 1)
        ]
    return dots


def _assemble(
    lines: list[list[str]],
    styles: list[list[str]],
    limits: tuple[float, float],
    steps: tuple[int, int],
    ascii_only: bool,
) -> Text:
    low, high = limits
    height, plot = len(lines), len(lines[0])
    side, corner, floor = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    labelled = {0, height // 3, 2 * height // 3, height - 1}
    text = Text()
    for row, (line, style) in enumerate(zip(lines, styles, strict=True)):
        value = math.exp(high - (high - low) * row / (height - 1))
        label = f"{value:.3g}" if row in labelled else ""
        text.append(f"{label:>{_MARGIN - 1}} {side}")
        for letter, colour in zip(line, style, strict=True):
            text.append(letter, colour or None)
        text.append("\n")
    text.append(" " * _MARGIN + corner + floor * plot + "\n")
    begin, end = f"step {steps[0]}", str(steps[1])
    text.append(" " * (_MARGIN + 1) + begin + end.rjust(plot - len(begin)))
    return text
