"""Which stacks and planes of two modalities belong together, and which pairs can not be registered."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.geometry import find_other_spacing, find_turned, measure_offset
from fusion_model.importers.stack import Omission, Plane, Stack

RESAMPLE = "resample it onto its twin's grid (for instance with ANTs, elastix or 3D Slicer) and import that"
OFFSET_TOLERANCE = 0.5
"""Pixels by which the grids of two planes may be shifted against each other."""
_DEPTH_TOLERANCE = 0.25
"""Of the distance of slices."""
_SINGLE_TOLERANCE_MM = 0.5


class StackPair(NamedTuple):
    first: Stack
    second: Stack


class PlanePairs(NamedTuple):
    """Planes that lie on each other, what was left out, and what the user should look at."""

    pairs: list[tuple[Plane, Plane]]
    omissions: list[Omission]
    notes: list[str]


def match_stacks(first: Sequence[Stack], second: Sequence[Stack]) -> tuple[list[StackPair], list[Omission]]:
    """Pairs of stacks: the only two there are, or those of one patient, or those of equal names.

    One stack may be the twin of several, as one CT is of two MR series; the reverse would be ambiguous.
    """
    if len(first) == 1 and len(second) == 1:
        return [StackPair(first[0], second[0])], []
    pairs: list[StackPair] = []
    omissions: list[Omission] = []
    used: set[int] = set()
    for stack in first:
        found = _find_twins(stack, first, second)
        if len(found) == 1:
            pairs.append(StackPair(stack, second[found[0]]))
        elif found:
            names = ", ".join(str(second[number].path) for number in found[:3])
            omissions.append(
                Omission(
                    stack.path,
                    f"has {len(found)} twins of the same patient: {names}",
                    "name the folder of the one that is meant",
                    len(stack.planes),
                )
            )
        else:
            omissions.append(_report_lonely(stack, "second"))
        used.update(found)
    omissions.extend(
        _report_lonely(stack, "first") for number, stack in enumerate(second) if number not in used
    )
    return pairs, omissions


def _report_lonely(stack: Stack, side: str) -> Omission:
    return Omission(
        stack.path,
        f"has no twin of the same patient or name in the {side} folder",
        "add it there, or pair the two with --list",
        len(stack.planes),
    )


def _find_twins(stack: Stack, first: Sequence[Stack], second: Sequence[Stack]) -> list[int]:
    """Numbers of the second stacks that may be meant."""
    numbers = range(len(second))
    named = [number for number in numbers if stack.name and second[number].name == stack.name]
    label = stack.patient.label
    of_patient = [number for number in numbers if second[number].patient.label == label]
    if not stack.patient.identified:
        if named:
            return named[:1]
        # Only a patient with one stack on each side is paired by the name's part alone.
        alone = sum(other.patient.label == label for other in first) == 1
        return of_patient if alone and len(of_patient) == 1 else []
    frame = stack.frame_of_reference
    same_frame = [number for number in of_patient if frame and second[number].frame_of_reference == frame]
    same_study = [number for number in of_patient if second[number].patient.study == stack.patient.study]
    for narrower in (same_frame, named, same_study):
        both = [number for number in of_patient if number in narrower]
        if both:
            of_patient = both
    return of_patient or named[:1]


def check_patients(first: Stack, second: Stack) -> None:
    """Raises ImportRefusedError if the files say that they show different people."""
    a, b = first.patient, second.patient
    remedy = "pair images of one patient; if they are, correct the tags with the archive's help"
    if a.identified and b.identified and a.label != b.label:
        raise ImportRefusedError(
            second.path, f"is of another patient than {first.path} (PatientID differs)", remedy
        )
    for name, one, other in (("PatientBirthDate", a.birth, b.birth), ("PatientSex", a.sex, b.sex)):
        if one and other and one != other:
            raise ImportRefusedError(
                second.path, f"is of another patient than {first.path} ({name} differs)", remedy
            )
    if not (a.identified and b.identified) and a.study and b.study and a.study != b.study:
        raise ImportRefusedError(
            second.path,
            f"is of another study than {first.path}, and they do not both name the patient",
            remedy,
        )


def match_planes(first: Stack, second: Stack) -> PlanePairs:
    """Pairs of planes by place, else by order. Raises ImportRefusedError if the stacks' grids differ."""
    _check_grids(first.planes[0], second.planes[0])
    notes: list[str] = []
    if first.frame_of_reference and second.frame_of_reference not in ("", first.frame_of_reference):
        notes.append(f"{second.path}: names another frame of reference than {first.path}; compared by place")
    depths = _get_depths(first), _get_depths(second)
    if depths[0] is None or depths[1] is None:
        candidates, lonely = _match_by_order(first, second, notes), Counter[Path]()
    else:
        candidates, lonely = _match_by_depth(first, second, depths[0], depths[1])
    omissions = [
        Omission(path, "has slices where its twin has none", "import the volume that both cover", count)
        for path, count in lonely.items()
    ]
    pairs: list[tuple[Plane, Plane]] = []
    for a, b in candidates:
        try:
            _check_grids(a, b)
            _check_offset(a, b)
        except ImportRefusedError as error:
            omissions.append(Omission.of(error))
        else:
            pairs.append((a, b))
    return PlanePairs(pairs, omissions, notes)


def _check_grids(a: Plane, b: Plane) -> None:
    if a.geometry is not None and b.geometry is not None:
        turned = find_turned(a.geometry, b.geometry)
        if turned is not None:
            raise ImportRefusedError(b.path, turned, RESAMPLE)
    if a.size != b.size:
        sizes = [f"{width}x{height}" for height, width in (b.size, a.size)]
        raise ImportRefusedError(
            b.path, f"is {sizes[0]} pixels, but its twin {a.path} is {sizes[1]}", RESAMPLE
        )
    if a.geometry is not None and b.geometry is not None:
        spacing = find_other_spacing(a.geometry, b.geometry)
        if spacing is not None:
            raise ImportRefusedError(b.path, spacing, RESAMPLE)


def _check_offset(a: Plane, b: Plane) -> None:
    if a.geometry is None or b.geometry is None:
        return
    offset = measure_offset(a.geometry, b.geometry)
    if offset is not None and max(map(abs, offset)) > OFFSET_TOLERANCE:
        raise ImportRefusedError(
            b.path, f"lies {offset[0]:.1f} rows and {offset[1]:.1f} columns beside its twin", RESAMPLE
        )


def _get_depths(stack: Stack) -> list[float] | None:
    depths = [None if plane.geometry is None else plane.geometry.depth for plane in stack.planes]
    known = [depth for depth in depths if depth is not None]
    return known if len(known) == len(depths) else None


def _match_by_order(first: Stack, second: Stack, notes: list[str]) -> list[tuple[Plane, Plane]]:
    counts = len(first.planes), len(second.planes)
    if counts[0] != counts[1]:
        raise ImportRefusedError(
            second.path,
            f"has {counts[1]} planes, but its twin {first.path} has {counts[0]}, and they do not both "
            "say where",
            "export both with positions, or cut them to the same slices",
        )
    if counts[0] > 1:
        notes.append(f"{second.path}: slices are matched with {first.path} by their order alone")
    return list(zip(first.planes, second.planes, strict=True))


def _match_by_depth(
    first: Stack, second: Stack, depths: list[float], others: list[float]
) -> tuple[list[tuple[Plane, Plane]], Counter[Path]]:
    """The nearest plane within a quarter of the slices' distance; and how many planes found none."""
    for stack, places in ((first, depths), (second, others)):
        if len(places) > 1 and float(np.diff(sorted(places)).min()) < 1e-3:
            raise ImportRefusedError(
                stack.path,
                "has several planes in one place: a series of several times, echoes or directions",
                "import one of them alone",
            )
    steps = np.diff(sorted(depths))
    tolerance = _DEPTH_TOLERANCE * float(np.median(steps)) if len(steps) else _SINGLE_TOLERANCE_MM
    ground = np.array(others)
    lonely: Counter[Path] = Counter()
    pairs: list[tuple[Plane, Plane]] = []
    for plane, depth in zip(first.planes, depths, strict=True):
        nearest = int(np.argmin(np.abs(ground - depth)))
        if abs(float(ground[nearest]) - depth) <= tolerance:
            pairs.append((plane, second.planes[nearest]))
        else:
            lonely[first.path] += 1
    if not pairs:
        spans = [f"{min(some):.1f} to {max(some):.1f} mm" for some in (others, depths)]
        raise ImportRefusedError(
            second.path,
            f"has no slice in the place of one of {first.path}: {spans[0]}, but its twin {spans[1]}",
            RESAMPLE,
        )
    return pairs, lonely
