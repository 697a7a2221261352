"""From per-patch gradients to integer sums in which no patch weighs more than the clip.

Rows are *effective* gradients: the entry of the output bias d, which is tied (d = -sum v b² keeps
black black), is already folded into those of b and v. The clip is joint, over all parameters.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workloads.base import WorkloadError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_MAX_CLIP = 2**40


def clip_to_units(gradients: FloatArray, clip: int, scale_bits: int) -> IntArray:
    """Each row scaled to units of 2^-scale_bits and to an L2 norm of at most `clip`, truncated.

    Truncation toward zero shrinks every entry, so the *integer* row's norm never exceeds the clip.
    Raises ValueError on an entry that is not finite: it must not hide behind the clip.
    """
    if not 1 <= clip <= _MAX_CLIP:
        raise ValueError(f"clip must lie in [1, {_MAX_CLIP}], got {clip}")
    with np.errstate(over="ignore"):
        rows = np.ldexp(gradients, scale_bits)
    if not np.isfinite(rows).all():
        raise ValueError("gradients hold an entry that is not finite")
    # Two-pass norm: entries as large as 1e300 must not overflow when squared.
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    safe = np.where(largest > 0.0, largest, 1.0)
    norms = safe * np.sqrt(((rows / safe) ** 2).sum(axis=1, keepdims=True))
    # The margin covers the rounding of norm and product; it costs nothing against truncation.
    limit = clip * (1.0 - 1e-12)
    factor = np.divide(limit, norms, out=np.ones_like(norms), where=norms > limit)
    units: IntArray = np.trunc(rows * factor).astype(np.int64)
    return units


def sum_clipped(units: IntArray) -> tuple[int, ...]:
    """Exact sums over the patches."""
    return tuple(int(total) for total in units.sum(axis=0, dtype=np.int64))


def add_sums(sums: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Entrywise total of the sums of a step's batches; order is free."""
    if not sums:
        raise ValueError("a step has at least one batch")
    lengths = {len(entry) for entry in sums}
    if len(lengths) != 1:
        raise ValueError(f"sums of different lengths {sorted(lengths)}")
    return tuple(sum(column) for column in zip(*sums, strict=True))


def sum_clipped_losses(losses: FloatArray, clip: int, scale_bits: int) -> int:
    """Exact sum of each loss rounded to opened units and limited to [0, clip]."""
    if clip < 1:
        raise WorkloadError(f"loss_clip must be at least 1, got {clip}")
    units = np.clip(np.rint(np.ldexp(losses, scale_bits)), 0, clip)
    return int(units.astype(np.int64).sum())
