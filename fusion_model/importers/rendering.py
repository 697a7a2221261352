"""From stored values to the [0, 1] that networks see: windows, tables, inversion, colours."""

from dataclasses import dataclass

import numpy as np

from fusion_model.gradients import Array
from fusion_model.importers.colour import Grey, split_colour
from fusion_model.importers.stack import LookUp, Pixels, Window

PERCENTILES = (0.5, 99.5)
PRESETS = {
    "brain": Window(40, 80, "LINEAR_EXACT"),
    "subdural": Window(75, 215, "LINEAR_EXACT"),
    "stroke": Window(40, 40, "LINEAR_EXACT"),
    "bone": Window(500, 2000, "LINEAR_EXACT"),
    "soft-tissue": Window(50, 400, "LINEAR_EXACT"),
    "lung": Window(-600, 1500, "LINEAR_EXACT"),
}
"""Usual CT windows, Hounsfield units."""


@dataclass(frozen=True, slots=True)
class WindowChoice:
    """Which grey values to show: the file's own proposal, given ones, all bits, or the usual percentiles."""

    window: Window | None = None
    number: int | None = None
    """Of the file's proposals, from 1; None with no window means that `rule` decides."""
    rule: str = "file"

    @classmethod
    def parse(cls, text: str) -> "WindowChoice":
        """`file`, `file:2`, `full`, `percentile`, CENTRE/WIDTH, or the name of a CT window.

        Raises ValueError that lists what there is.
        """
        if text in ("file", "full", "percentile"):
            return cls(rule=text)
        if text in PRESETS:
            return cls(window=PRESETS[text], rule="window")
        try:
            if text.startswith("file:"):
                number = int(text.removeprefix("file:"))
                if number >= 1:
                    return cls(number=number, rule="file")
            else:
                centre, width = (float(part) for part in text.split("/"))
                if width > 0 and np.isfinite([centre, width]).all():
                    return cls(window=Window(centre, width, "LINEAR_EXACT"), rule="window")
        except ValueError:
            pass
        raise ValueError(
            f"window {text!r}: give file, file:NUMBER (from 1), full, percentile, CENTRE/WIDTH (width > 0), "
            f"or one of {', '.join(PRESETS)}"
        )


FILE_WINDOW = WindowChoice()
"""What the file proposes first."""


def needs_range(pixels: Pixels, choice: WindowChoice) -> bool:
    """Whether the range to show must be found in the stack's values."""
    if pixels.colour is not None or choice.rule == "window":
        return False
    if choice.rule == "percentile":
        return True
    proposed = choice.rule == "file" and bool(pixels.windows or pixels.lookups)
    return not proposed and not (pixels.fills or (choice.rule == "full" and pixels.limits is not None))


def measure_range(samples: list[Array]) -> tuple[float, float]:
    """The usual percentiles of all values that are not the background, which is the least one."""
    values = np.concatenate([sample.ravel() for sample in samples])
    values = values[np.isfinite(values)]
    if values.size:
        inside = values[values > values.min()]
        values = inside if inside.size else values
        low, high = np.percentile(values, PERCENTILES)
        # What is 0 where there is nothing stays black.
        return (min(0.0, float(low)) if float(values.min()) >= 0 else float(low)), float(high)
    return 0.0, 1.0


def render(pixels: Pixels, choice: WindowChoice, measured: tuple[float, float]) -> Grey:
    """Luminance in [0, 1] and, of a coloured image, its chroma; `measured` is the stack's range.

    Raises ValueError if the file has not as many windows as the choice wants.
    """
    if pixels.colour is not None:
        return split_colour(pixels.colour)
    if pixels.values is None:
        raise ValueError("pixels of neither grey nor colour")
    shown = _show(pixels, pixels.values, choice, measured)
    return Grey(1 - shown if pixels.inverted else shown, None)


def _show(pixels: Pixels, values: Array, choice: WindowChoice, measured: tuple[float, float]) -> Array:
    if choice.window is not None:
        return apply_window(values, choice.window)
    if choice.rule == "file":
        count = len(pixels.lookups) + len(pixels.windows)
        number = choice.number or 1
        if choice.number is not None and number > count:
            raise ValueError(f"proposes {count} windows, so there is no number {number}")
        if number <= len(pixels.lookups):
            return _look_up(values, pixels.lookups[number - 1])
        if number <= count:
            return apply_window(values, pixels.windows[number - len(pixels.lookups) - 1])
    low, high = measured if needs_range(pixels, choice) or pixels.limits is None else pixels.limits
    return np.asarray(np.clip((values - low) / max(high - low, 1e-12), 0, 1), dtype=np.float64)


def apply_window(values: Array, window: Window) -> Array:
    """Values in [0, 1] through a window. Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    centre, width = window.centre, window.width
    if window.function == "SIGMOID":
        steep = np.clip(-4 * (values - centre) / width, -700, 700)
        return np.asarray(1 / (1 + np.exp(steep)), dtype=np.float64)
    if window.function == "LINEAR_EXACT" or width <= 1:  # narrower than the standard allows: floats
        shown = (values - centre) / width + 0.5
    else:
        shown = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.asarray(np.clip(shown, 0, 1), dtype=np.float64)


def _look_up(values: Array, lookup: LookUp) -> Array:
    places = np.clip(np.rint(values) - lookup.start, 0, len(lookup.table) - 1).astype(np.int64)
    return np.asarray(lookup.table[places], dtype=np.float64)
