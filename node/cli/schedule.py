"""Learning-rate tables of the integer optimiser."""

import math

SHIFT = 40
"""Learning rates are integers in units of 2^-SHIFT per patch of a step."""


def build_rates(peak: float, final: float, steps: int, scale: float) -> tuple[int, ...]:
    """The learning-rate table: a half cosine from `peak` to its share `final`, in units of 1/`scale`."""
    phases = (0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps))
    return tuple(round(peak * (final + (1 - final) * phase) * scale) for phase in phases)
