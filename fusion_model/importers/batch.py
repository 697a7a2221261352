"""An import from end to end: find, match, check, render, number, split, write; what is bad is left out."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fusion_model.importers.colour import Grey
from fusion_model.importers.dataset import DatasetWriter, ImportedPair, PairFacts
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.matching import RESAMPLE, StackPair, check_patients, match_planes, match_stacks
from fusion_model.importers.patients import PatientKey, count_splits
from fusion_model.importers.registration import (
    AlignmentLimits,
    find_misalignment,
    measure_alignment,
    measure_information,
)
from fusion_model.importers.rendering import FILE_WINDOW, WindowChoice, measure_range, needs_range, render
from fusion_model.importers.scan import ScanOptions, scan
from fusion_model.importers.stack import Omission, Pixels, Plane

Registration = Literal["refuse", "warn", "off"]
ColourRule = Literal["either", "first", "second", "none"]
REGISTRATIONS: tuple[Registration, ...] = ("refuse", "warn", "off")
COLOUR_RULES: tuple[ColourRule, ...] = ("either", "first", "second", "none")

MODALITIES = {"MR": "MRI", "PT": "PET", "NM": "SPECT"}
"""DICOM's words and the usual ones; others stay."""
_SAMPLES = 24
"""Planes of a stack from which its range of values is taken."""
_BRIGHT = 0.05
"""From where a pixel counts as content."""

_LEAST_VOLUME = 3
_JUDGED = 9
"""Planes from which a volume's registration is judged, and the fewest planes of what is judged as one."""

ProgressHook = Callable[[int, int], None]
Ranges = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class ImportJob:
    """A file or folder of each modality. Patient and modality override what the files say."""

    first: Path
    second: Path
    patient: str | None = None
    modality: str | None = None


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How images are read, checked and split."""

    scan: ScanOptions = field(default_factory=ScanOptions)
    windows: tuple[WindowChoice, WindowChoice] = (FILE_WINDOW, FILE_WINDOW)
    slices: slice = field(default_factory=lambda: slice(None))
    """Of the matched planes of every two stacks."""
    colour: ColourRule = "either"
    """Which of the two may be in colour; never both."""
    registration: Registration = "refuse"
    """What to do with pairs that look unregistered; grids that differ are always refused."""
    limits: AlignmentLimits = field(default_factory=AlignmentLimits)
    min_content: float = 0.01
    """Least share of pixels of each image above a twentieth of white: the ends of a volume are air."""
    shares: tuple[float, ...] = (70, 15, 15)
    seed: int = 1
    preview: bool = True


@dataclass(slots=True)
class ImportSummary:
    """What was made and what was left out, and why. Paths are the user's own: not for other people."""

    pairs: list[ImportedPair] = field(default_factory=list)
    omissions: list[Omission] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Matched:
    """Two stacks' planes that lie on each other."""

    stacks: StackPair
    label: str
    modality: str | None
    planes: list[tuple[Plane, Plane]]


def import_data(
    jobs: Sequence[ImportJob],
    output: Path,
    key_path: Path,
    options: ImportOptions,
    progress: ProgressHook | None = None,
) -> ImportSummary:
    """Makes the data set `output` and extends the private key; neither if no pair is left.

    Raises ImportRefusedError for an output that is not empty, a key that is none or lies in the output, and
    ValueError for shares that are none. Everything else that is wrong is in the summary.
    """
    count_splits(0, options.shares)
    if key_path.resolve().is_relative_to(output.resolve()):
        raise ImportRefusedError(
            key_path, "lies in the data set, which others may see", "name a place outside"
        )
    key = PatientKey.load(key_path)
    summary = ImportSummary()
    matched = [found for job in jobs for found in match_job(job, options, summary)]
    key.add_patients(found.label for found in matched)
    writer = DatasetWriter(output, options.preview)
    try:
        total = sum(len(found.planes) for found in matched)
        done = 0
        made: list[tuple[str, ImportedPair, tuple[str, str]]] = []
        for found in matched:
            ranges = measure_ranges(found, options)
            try:
                chosen = judge_stack(found, ranges, options, summary)
            except ImportRefusedError as error:
                summary.omissions.append(Omission.of(error, len(found.planes)))
                done += len(found.planes)
                continue
            for planes in found.planes:
                try:
                    pair = _import_planes(found, planes, ranges, key, writer, chosen, summary)
                except ImportRefusedError as error:
                    summary.omissions.append(Omission.of(error))
                else:
                    made.append((found.label, pair, (str(planes[0].path), str(planes[1].path))))
                done += 1
                if progress is not None:
                    progress(done, total)
        if made:
            imported = {label for label, _, _ in made}
            key.numbers = {
                who: number for who, number in key.numbers.items() if who in imported | key.splits.keys()
            }
            key.assign_splits(imported, options.shares, options.seed)
            if (
                len(imported) == 1
                and len({sources[0] for _, _, sources in made}) > 1
                and not _is_identified(matched)
            ):
                summary.notes.append(
                    "all pairs are taken for one patient's; if they are not, give --patient-pattern or --list"
                )
            for label, pair, sources in made:
                key.add_pair(label, output.name, pair.name, sources)
            summary.splits = {key.numbers[label]: key.splits[label] for label in imported}
            key.save()
            writer.finish(summary.splits)
        summary.pairs = writer.pairs
    finally:
        writer.abandon()
    summary.omissions = _gather(summary.omissions)
    return summary


def _is_identified(matched: Sequence[Matched]) -> bool:
    return any(stack.patient.identified for found in matched for stack in found.stacks)


def match_job(job: ImportJob, options: ImportOptions, summary: ImportSummary) -> list[Matched]:
    if job.first.resolve() == job.second.resolve():
        summary.omissions.append(
            Omission(job.first, "is given for both modalities", "name the other modality's file or folder")
        )
        return []
    sides = []
    for path in (job.first, job.second):
        try:
            found = scan(path, options.scan)
        except ImportRefusedError as error:
            summary.omissions.append(Omission.of(error))
            continue
        summary.omissions.extend(found.omissions)
        sides.append(found.stacks)
    if len(sides) != 2 or not (sides[0] and sides[1]):
        return []
    pairs, omissions = match_stacks(sides[0], sides[1])
    summary.omissions.extend(omissions)
    matched = []
    for stacks in pairs:
        try:
            check_patients(stacks.first, stacks.second)
            planes = match_planes(stacks.first, stacks.second)
        except ImportRefusedError as error:
            smaller = min(len(stacks.first.planes), len(stacks.second.planes))
            summary.omissions.append(Omission.of(error, smaller))
            continue
        summary.omissions.extend(planes.omissions)
        summary.notes.extend(planes.notes)
        who = stacks.second.patient if stacks.second.patient.identified else stacks.first.patient
        label = job.patient or (stacks.first.patient.label if stacks.first.patient.identified else who.label)
        matched.append(Matched(stacks, label, job.modality, planes.pairs[options.slices]))
    return matched


def measure_ranges(found: Matched, options: ImportOptions) -> Ranges:
    """Of each side's planes, where the window choice leaves the range to the values."""
    ranges = []
    for side, choice in enumerate(options.windows):
        planes = [pair[side] for pair in found.planes]
        samples = []
        for number in sorted(
            {int(place) for place in np.linspace(0, len(planes) - 1, _SAMPLES)} if planes else ()
        ):
            try:
                pixels = planes[number].read()
            except ImportRefusedError:
                continue  # told when the pair itself is read
            if pixels.values is None or not needs_range(pixels, choice):
                break
            samples.append(pixels.values)
        ranges.append(measure_range(samples) if samples else (0.0, 1.0))
    return ranges[0], ranges[1]


def judge_stack(
    found: Matched, ranges: Ranges, options: ImportOptions, summary: ImportSummary
) -> ImportOptions:
    """How the planes are to be checked. Those of located volumes are judged here, together.

    Such volumes lie right or wrong as a whole, and the small slices at their ends alone can mislead. Raises
    ImportRefusedError if most of the samples look unregistered.
    """
    located = all(plane.geometry is not None for pair in found.planes for plane in pair)
    if options.registration == "off" or not located or len(found.planes) < _LEAST_VOLUME:
        return options
    problems: list[str] = []
    judged = 0
    places = {int(place) for place in np.linspace(0, len(found.planes) - 1, _JUDGED)}
    for planes in (found.planes[place] for place in sorted(places)):
        try:
            _, images = _read_planes(planes, ranges, options)
        except ImportRefusedError:
            continue  # told when the pair itself is read
        alignment = measure_alignment(images[0].luminance, images[1].luminance)
        problem = find_misalignment(alignment, planes[0].size, options.limits)
        judged += 1
        problems.extend([problem] if problem is not None else [])
    if 2 * len(problems) > judged:
        reason = f"{problems[len(problems) // 2]}, as do {len(problems)} of {judged} slices"
        if options.registration == "refuse":
            raise ImportRefusedError(
                found.stacks.second.path, reason, f"{RESAMPLE}; or give --registration warn"
            )
        summary.notes.append(f"{found.stacks.second.path}: {reason}")
    return replace(options, registration="off")


def _read_planes(
    planes: tuple[Plane, Plane], ranges: Ranges, options: ImportOptions
) -> tuple[tuple[Pixels, Pixels], tuple[Grey, Grey]]:
    """Both planes' pixels and what is shown of them, if they may be fused. Raises ImportRefusedError."""
    read = planes[0].read(), planes[1].read()
    first, second = (
        render_plane(plane, pixels, choice, measured)
        for plane, pixels, choice, measured in zip(planes, read, options.windows, ranges, strict=True)
    )
    check_colours(planes, (first, second), options.colour)
    for plane, image in zip(planes, (first, second), strict=True):
        share = float((image.luminance > _BRIGHT).mean())
        if share < options.min_content or float(np.ptp(image.luminance)) == 0:
            raise ImportRefusedError(
                plane.path, "is empty or nearly so", "nothing to do; or give another window or --min-content"
            )
    return read, (first, second)


def _import_planes(
    found: Matched,
    planes: tuple[Plane, Plane],
    ranges: Ranges,
    key: PatientKey,
    writer: DatasetWriter,
    options: ImportOptions,
    summary: ImportSummary,
) -> ImportedPair:
    read, images = _read_planes(planes, ranges, options)
    information = check_registration(planes, images, options, summary)
    geometry = planes[0].geometry or planes[1].geometry
    names = _name_modality(found.stacks.first.modality), _name_modality(found.stacks.second.modality)
    facts = PairFacts(
        found.modality or ("unknown" if "" in names else "-".join(names)),
        names,
        (planes[0].bits, planes[1].bits),
        "" if geometry is None else geometry.plane,
        None if geometry is None else geometry.spacing,
        information,
    )
    return writer.add(
        key.numbers[found.label], (images[0], images[1]), (read[0].colour, read[1].colour), facts
    )


def check_registration(
    planes: tuple[Plane, Plane], images: tuple[Grey, Grey], options: ImportOptions, summary: ImportSummary
) -> float:
    """The pair's normalised mutual information, after the check that the options ask for."""
    first, second = images[0].luminance, images[1].luminance
    if options.registration == "off":
        return measure_information(first, second)
    alignment = measure_alignment(first, second)
    problem = find_misalignment(alignment, planes[0].size, options.limits)
    if problem is not None and options.registration == "refuse":
        raise ImportRefusedError(planes[1].path, problem, f"{RESAMPLE}; or give --registration warn")
    if problem is not None:
        summary.notes.append(f"{planes[1].path}: {problem}")
    return alignment.information


def render_plane(plane: Plane, pixels: Pixels, choice: WindowChoice, measured: tuple[float, float]) -> Grey:
    if pixels.size != plane.size:
        raise ImportRefusedError(
            plane.path, f"has pixels of size {pixels.size}, not {plane.size}", "export it again"
        )
    try:
        return render(pixels, choice, measured)
    except ValueError as error:
        raise ImportRefusedError(plane.path, str(error), "choose another window") from error


def check_colours(planes: tuple[Plane, Plane], images: tuple[Grey, Grey], rule: ColourRule) -> None:
    coloured = [image.chroma is not None for image in images]
    if all(coloured):
        raise ImportRefusedError(
            planes[1].path,
            f"is in colour, and so is its twin {planes[0].path}; at most one may be",
            "give the anatomical image in grey",
        )
    for side, name in enumerate(("first", "second")):
        if coloured[side] and rule not in ("either", name):
            raise ImportRefusedError(
                planes[side].path,
                "is in colour where grey is due",
                f"save it as grey, or give --colour {name}",
            )


def _name_modality(word: str) -> str:
    """The modality's usual name; nothing but a code may pass."""
    return MODALITIES.get(word, word) if re.fullmatch(r"[A-Z]{2,8}", word) else ""


def _gather(omissions: Sequence[Omission]) -> list[Omission]:
    """One entry for each file and reason, with its count."""
    counts: dict[tuple[Path, str, str], int] = {}
    for omission in omissions:
        what = (omission.path, omission.reason, omission.remedy)
        counts[what] = counts.get(what, 0) + omission.count
    return [Omission(*what, count) for what, count in counts.items()]
