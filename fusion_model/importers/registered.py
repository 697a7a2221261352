"""Registered pairs straight from files, to be fused now: matched and checked as an import's, nothing written.

Other than an import, dark slices at a volume's ends are kept, so that what is fused has no gaps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fusion_model.importers.batch import (
    ImportJob,
    ImportOptions,
    ImportSummary,
    Matched,
    check_colours,
    check_registration,
    judge_stack,
    match_job,
    measure_ranges,
    render_plane,
)
from fusion_model.importers.colour import Grey
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.matching import StackPair
from fusion_model.importers.stack import Omission, Plane
from fusion_model.pairs import ImagePair

_DARK = 0.05
_LEAST_CONTENT = 0.01
"""Share of pixels that are not dark from where a registration can be judged."""


@dataclass(frozen=True, slots=True)
class RegisteredPair:
    """One plane of the first stack with its twin, as grey values."""

    plane: Plane
    pair: ImagePair


@dataclass(frozen=True, slots=True)
class RegisteredStacks:
    """Two stacks whose planes lie on each other."""

    stacks: StackPair
    count: int
    pairs: Iterator[RegisteredPair]
    """Read as they are asked for; what can not be used goes to the summary's omissions."""


def read_registered(
    job: ImportJob, options: ImportOptions, summary: ImportSummary
) -> Iterator[RegisteredStacks]:
    """Every two stacks of the job that belong together; what is left out and why is in the summary."""
    for found in match_job(job, options, summary):
        ranges = measure_ranges(found, options)
        try:
            chosen = judge_stack(found, ranges, options, summary)
        except ImportRefusedError as error:
            summary.omissions.append(Omission.of(error, len(found.planes)))
            continue
        pairs = _read(found, ranges, chosen, summary)
        yield RegisteredStacks(found.stacks, len(found.planes), pairs)


def _read(
    found: Matched,
    ranges: tuple[tuple[float, float], tuple[float, float]],
    options: ImportOptions,
    summary: ImportSummary,
) -> Iterator[RegisteredPair]:
    for planes in found.planes:
        try:
            first, second = (
                render_plane(plane, plane.read(), choice, measured)
                for plane, choice, measured in zip(planes, options.windows, ranges, strict=True)
            )
            check_colours(planes, (first, second), options.colour)
            content = all(_has_content(image) for image in (first, second))
            check_registration(
                planes, (first, second), options if content else replace(options, registration="off"), summary
            )
        except ImportRefusedError as error:
            summary.omissions.append(Omission.of(error))
            continue
        chroma = first.chroma if second.chroma is None else second.chroma
        colour_first = first.chroma is not None
        pair = ImagePair(planes[0].name, 0, first.luminance, second.luminance, chroma, colour_first)
        yield RegisteredPair(planes[0], pair)


def _has_content(image: Grey) -> bool:
    return float((image.luminance > _DARK).mean()) >= _LEAST_CONTENT and float(np.ptp(image.luminance)) > 0
